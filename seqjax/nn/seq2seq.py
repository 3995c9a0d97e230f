"""Encoder-decoder models, which map a source sequence to a target sequence of tokens.

The final carry of the encoder is the initial carry of the decoder (Sutskever et al. 2014), which may also attend to all
steps of the source (Bahdanau et al. 2015, Luong et al. 2015). Axes beyond those in `seqjax`: S time steps of the
source, U time steps of the target, K features of a key. `seqjax.nn.decoding` generates targets.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqjax import config, validation
from seqjax.nn import models
from seqjax.nn.attention import AdditiveAttention, Attention, DotAttention, Source
from seqjax.nn.cells import cell as cells_cell
from seqjax.nn.wrappers import Stack
from seqjax.ops import masking
from seqjax.options import NamedOptions
from seqjax.types import Arrays, Sequences

NO_TOKEN = -1  # token that the decoder reads as zeros instead of an embedding


class Memory(NamedTuple):
    """Encoded source sequences, the result of `EncoderDecoder.encode`; all arrays are [B, ...]."""

    carry: tuple[Any, ...]  # initial carry of each layer of the decoder
    source: Source | None  # keys and mask for the attention; None without attention


class StepDropout(NamedTuple):
    """Dropout masks for one time step of the decoder in training."""

    dropout_masks: tuple[Any, ...]  # masks of each cell for the target sequence; None for a cell without dropout
    index: jax.Array  # [] index of the time step


class Bridge(NamedOptions, nn.Module):
    """Merges the carries of both directions; a dense layer for each part reads the two concatenated parts."""

    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, forward: Any, backward: Any) -> Any:
        """Returns one carry with parts [B, H] from two such carries."""

        def merge(path, forward, backward):
            name = jax.tree_util.keystr(path).strip('.[]') or 'carry'
            dense = nn.Dense(forward.shape[-1], name=name, dtype=self.dtype, param_dtype=self.param_dtype)
            return dense(jnp.concatenate([forward, backward], axis=-1)).astype(forward.dtype)

        return jax.tree_util.tree_map_with_path(merge, forward, backward)


class EncoderDecoder(NamedOptions, nn.Module):
    """Encoder-decoder model with teacher forcing; called as model((source, targets)).

    The decoder reads `start_token` and then the targets but the last (teacher forcing), so the logits at a step predict
    the target of this step from earlier targets. The decoder's initial carry is the encoder's carry after the last
    valid step, layer by layer; a `Bridge` merges both directions of a bidirectional encoder.

    Attention without `combine` follows Bahdanau et al. 2015: the query is the carry of the last layer before the step,
    all its parts concatenated; the context is concatenated to the inputs of the first layer and of the head. With
    `combine` it follows Luong et al. 2015, equation 5, without input feeding: the query is the output of the last
    layer, and the head reads tanh(combine([context, outputs])).

    In training, that is with a random stream 'dropout', `dropout` acts between two layers of the decoder. Scheduled
    sampling (Bengio et al. 2015) then replaces the fraction `scheduled_sampling` of the target tokens that the decoder
    reads, drawn for each row and step, by the decoder's own predictions, the tokens with the largest logit.
    """

    encoder: nn.Module  # [B, S, F] -> [B, S, H]: an RNN, a Bidirectional, or a Stack of either
    cells: Sequence[nn.RNNCellBase]  # one for each layer of the decoder, with the carry of the encoder's layer
    head: nn.Module  # [B, H] -> [B, V]
    embed: nn.Embed  # embedding of target tokens, and without `source_embed` of source tokens
    source_embed: nn.Embed | None = None  # embedding of source tokens
    attention: Attention | None = None  # None: the decoder reads only the last carry of the encoder
    combine: nn.Module | None = None  # [B, K + H] -> [B, H]
    bridges: Sequence[Bridge] = ()  # one for each layer of a bidirectional encoder, else empty
    start_token: int | None = None  # start token of the decoder; None for zeros
    dropout: float = 0.0  # fraction of values dropped between two layers of the decoder
    scheduled_sampling: float = 0.0

    def __post_init__(self) -> None:
        count = self.embed.num_embeddings
        if self.start_token is not None and self.start_token not in range(count):
            raise ValueError(f'start_token={self.start_token} must be a token from 0 to {count - 1}, or None for zeros')
        if not 0 <= self.scheduled_sampling <= 1:
            meaning = "the fraction of target tokens replaced by the decoder's own predictions"
            raise ValueError(f'scheduled_sampling={self.scheduled_sampling} must be from 0 to 1: {meaning}')
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f'dropout={self.dropout} must be from 0 to below 1: the fraction of values that is dropped'
            )
        for i, cell in enumerate(self.cells):
            if not isinstance(cell, nn.RNNCellBase):
                raise ValueError(
                    f'cells[{i}] is a {type(cell).__name__} and must be a cell, such as LSTMCell(...), without RNN'
                )
        if self.bridges and len(self.bridges) != len(self.cells):
            raise ValueError(
                f'bridges has {len(self.bridges)} parts and must have {len(self.cells)}, one for each of the cells'
            )
        if self.combine is not None and self.attention is None:
            raise ValueError('combine needs attention, whose context it reads; pass attention, or combine=None')
        for name in ('cells', 'bridges'):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list could not be hashed
        super().__post_init__()

    def setup(self) -> None:
        self.drop = nn.Dropout(self.dropout)

    @property
    def first_token(self) -> int:
        """The token that the decoder reads first: `start_token`, or NO_TOKEN (read as zeros) if that is None."""
        return NO_TOKEN if self.start_token is None else self.start_token

    def __call__(self, inputs: Arrays) -> jax.Array:
        """Returns the logits of each target token, given the source and the targets before it (teacher forcing).

        Args:
          inputs: (source, targets). The source is [B, S, F] or tokens [B, S]; alone or in `Sequences`, or in a tuple
            (values, lengths). Targets are tokens [B, U]; padding is on the right and may be any integer.

        Returns:
          logits [B, U, V], also at the padding, which a loss should mask.

        Raises:
          ValueError: the shape, the dtype or a value of an input is wrong; the message names the input.
        """
        if not isinstance(inputs, tuple | list) or isinstance(inputs, Sequences) or len(inputs) != 2:
            raise ValueError('inputs must be a pair (source, targets); with lengths use ((values, lengths), targets)')
        source, targets = inputs[0], jnp.asarray(inputs[1])
        if targets.ndim != 2 or not jnp.issubdtype(targets.dtype, jnp.integer):
            raise ValueError(f'targets {targets.shape} of {targets.dtype} must be tokens: integers [B, U]')
        memory = self.encode(source)
        batch, steps = targets.shape
        rows = jax.tree.leaves(memory.carry)[0].shape[0]
        validation.check_shape('targets', targets.shape, (rows, steps), 'with the batch size of the source')
        first = jnp.full((batch, 1), self.first_token, jnp.int32)
        tokens = jnp.concatenate([first, targets.astype(jnp.int32)], axis=1)[:, :steps]
        return self._decode(memory, tokens)

    def encode(self, source: Arrays) -> Memory:
        """Runs the encoder on a source, in a form that a call accepts; returns the `Memory` for the decoder."""
        embed = self.source_embed
        if embed is None and jnp.ndim(source[0] if isinstance(source, tuple) else source) == 2:
            embed = self.embed
        values, valid, resets = models.embed_inputs(source, embed)
        if resets is not None:
            raise ValueError('resets are not supported by an encoder; use one row for each source sequence')
        carry, outputs = self.encoder(values, mask=valid, return_carry=True)
        parts = carry if isinstance(self.encoder, Stack) else (carry,)
        if self.bridges:
            parts = tuple(bridge(*part) for bridge, part in zip(self.bridges, parts, strict=True))
        self._check_carry(parts, values)
        return Memory(parts, None if self.attention is None else self.attention.prepare(outputs, valid))

    def step(self, memory: Memory, carry: tuple[Any, ...], token: jax.Array) -> tuple[tuple[Any, ...], jax.Array]:
        """Runs one time step of the decoder, without dropout.

        Args:
          memory: result of `encode`.
          carry: `memory.carry` at the first step, then the carry of the step before.
          token: integers [B]; `first_token` at the first step, then the token of the step before. Tokens outside the
            vocabulary are read as zeros.

        Returns:
          The carry after the step, and the logits [B, V] of the next token.
        """
        token = jnp.asarray(token)
        if token.ndim != 1 or not jnp.issubdtype(token.dtype, jnp.integer):
            raise ValueError(f'token {token.shape} of {token.dtype} must be integers [B], one for each row')
        return self._advance(memory, carry, token.astype(jnp.int32), None)

    def _check_carry(self, parts: tuple[Any, ...], values: jax.Array) -> None:
        """Raises ValueError if the carry of the encoder differs from the cells' carry in structure, shape or dtype."""
        key, shape = jax.random.key(0), (values.shape[0], values.shape[-1])
        got = jax.eval_shape(lambda: parts)
        want = jax.eval_shape(lambda: tuple(cell.initialize_carry(key, shape) for cell in self.cells))
        if jax.tree.structure(got) != jax.tree.structure(want) or jax.tree.leaves(got) != jax.tree.leaves(want):
            shapes = [jax.tree.map(lambda x: f'{x.dtype}{list(x.shape)}', carry) for carry in (got, want)]
            raise ValueError(
                f'the carry of the encoder {shapes[0]} must have the parts of the carry of the cells {shapes[1]}; use '
                'as many cells as the encoder has layers, of the same type and size, and bridges for a Bidirectional '
                'encoder'
            )

    def _decode(self, memory: Memory, tokens: jax.Array) -> jax.Array:
        """Runs the decoder on the tokens [B, U] that it reads; returns logits [B, U, V]."""
        batch, steps = tokens.shape
        training = self.has_rng('dropout')
        guesses = training and self.scheduled_sampling > 0
        dropout_masks = tuple(
            cell.draw_dropout_masks((batch,)) if training and _is_stochastic(cell) else None for cell in self.cells
        )

        def step(model, state, x):
            (carry, guess), (token, index) = state, x
            if guesses:
                own = jax.random.bernoulli(model.make_rng('dropout'), float(model.scheduled_sampling), token.shape)
                token = jnp.where(own & (index > 0), guess, token)
            carry, logits = model._advance(
                memory, carry, token, StepDropout(dropout_masks, index) if training else None
            )
            return (carry, jnp.argmax(logits, axis=-1).astype(jnp.int32) if guesses else None), logits

        scan = nn.scan(
            step,
            variable_broadcast='params',
            variable_axes={'intermediates': 1},
            split_rngs={'params': False, nn.DenyList(('params',)): True},
            in_axes=0,
            out_axes=1,
        )
        guess = jnp.zeros((batch,), jnp.int32) if guesses else None
        return scan(self, (memory.carry, guess), (tokens.T, jnp.arange(steps)))[1]

    def _advance(
        self, memory: Memory, carry: tuple[Any, ...], token: jax.Array, step_dropout: StepDropout | None
    ) -> tuple[tuple[Any, ...], jax.Array]:
        """Runs a time step of the decoder; returns (carry, logits [B, V]). No dropout if `step_dropout` is None."""
        x, context = self._read(token), None
        if self.attention is not None and self.combine is None:
            context = self._attend(jnp.concatenate(jax.tree.leaves(carry[-1]), axis=-1), memory)
            x = jnp.concatenate([x, context.astype(x.dtype)], axis=-1)
        after = []
        for i, (cell, part) in enumerate(zip(self.cells, carry, strict=True)):
            if i:
                x = self.drop(x, deterministic=step_dropout is None)
            new, x = _call(
                cell, part, x, step_dropout and step_dropout.dropout_masks[i], step_dropout and step_dropout.index
            )
            after.append(
                jax.tree.map(lambda new, old: new.astype(old.dtype), new, part)
            )  # the carry of a loop has a constant dtype
        if self.combine is not None:
            x = jnp.tanh(self.combine(jnp.concatenate([self._attend(x, memory), x], axis=-1)))
        elif context is not None:
            x = jnp.concatenate([x, context.astype(x.dtype)], axis=-1)
        return tuple(after), self.head(x)

    def _read(self, token: jax.Array) -> jax.Array:
        """Returns embeddings [B, F] of tokens [B]; zeros for tokens outside the vocabulary, such as NO_TOKEN."""
        valid = (token >= 0) & (token < self.embed.num_embeddings)
        return masking.zero(self.embed(jnp.where(valid, token, 0)), valid)

    def _attend(self, query: jax.Array, memory: Memory) -> jax.Array:
        """Returns the context [B, K] of a query.

        Sows the weights [B, S] as 'attention_weights' in 'intermediates'; a call of the model stacks them to [B, U, S].
        """
        context, weights = self.attention.attend(query, memory.source)
        self.sow('intermediates', 'attention_weights', weights)
        return context


def _is_stochastic(cell: nn.RNNCellBase) -> bool:
    return getattr(cell, 'is_stochastic', False)


def _call(cell: nn.RNNCellBase, carry: Any, x: jax.Array, dropout_masks: Any, index: Any) -> tuple[Any, jax.Array]:
    """Runs a cell for time step `index`; a stochastic cell without dropout if `dropout_masks` is None."""
    if not _is_stochastic(cell):
        return cell(carry, x)
    if dropout_masks is None:
        return cell(carry, x, deterministic=True)
    return cell(carry, x, dropout_masks=dropout_masks.at(index), deterministic=False)


def encoder_decoder(
    vocabulary: int,
    *,
    cell: str | Callable[..., nn.RNNCellBase] = 'lstm',
    features: int,
    layers: int = 1,
    bidirectional: bool = False,
    merge_mode: str = 'concat',
    attention: str = 'none',
    dropout: float = 0.0,
    source_vocabulary: int | None = None,
    embedding: int | None = None,
    start_token: int | None = None,
    scheduled_sampling: float = 0.0,
    dtype: Any = None,
    param_dtype: Any = None,
    **cell_options: Any,
) -> EncoderDecoder:
    """Builds an encoder-decoder model with the same cell, size and number of layers in encoder and decoder.

    Args:
      vocabulary: V, number of different target tokens.
      cell, layers, bidirectional, dropout: as in `models.recurrent`; only the encoder is bidirectional.
      features: H of encoder and decoder (of each direction), and A of additive attention.
      merge_mode: merge of the encoder's directions, a key of `seqjax.nn.wrappers.MERGES` except 'none'.
      attention: 'none'; 'additive', into the decoder's input (Bahdanau et al. 2015); 'dot' or 'general', before the
        head (Luong et al. 2015). See `EncoderDecoder`.
      source_vocabulary: number of different source tokens; None if source and target share tokens and their embedding,
        or if the source is [B, S, F].
      embedding, dtype, param_dtype: as in `models.sequence_model`.
      start_token: start token of the decoder; None for zeros.
      scheduled_sampling: fraction of target tokens replaced by the decoder's own predictions in training.
      cell_options: further arguments of all cells.

    Raises:
      ValueError: an argument is invalid, or incompatible with another.
      TypeError: neither this function nor the cell has an option of this name.

    >>> model = encoder_decoder(10, features=16, attention='additive', bidirectional=True)
    >>> source, targets = jnp.zeros((2, 7), int), jnp.zeros((2, 5), int)
    >>> model.init_with_output(jax.random.key(0), (source, targets))[0].shape
    (2, 5, 10)
    """
    models.check_cell_options('encoder_decoder', cell, cell_options, encoder_decoder)
    validation.check_choice('attention', attention, config.ATTENTIONS)
    cells_cell.check_count('vocabulary', vocabulary, 'the number of different target tokens')
    if source_vocabulary is not None:
        cells_cell.check_count('source_vocabulary', source_vocabulary, 'the number of different source tokens')
    if embedding is not None:
        cells_cell.check_count('embedding', embedding, 'the size of the embedding of a token')
    if bidirectional and merge_mode == 'none':
        raise ValueError("merge_mode='none' is not supported by an encoder-decoder model; use merge_mode='concat'")
    if attention == 'dot' and bidirectional and merge_mode == 'concat':
        raise ValueError(
            "attention='dot' needs keys as wide as the decoder, and merge_mode='concat' makes them twice as wide; "
            "use attention='general' or merge_mode='sum'"
        )
    dtype_options = {'dtype': dtype, 'param_dtype': param_dtype}
    types = {name: value for name, value in dtype_options.items() if value is not None}
    rnn_options = {'layers': layers, 'bidirectional': bidirectional, 'merge_mode': merge_mode, 'dropout': dropout}
    encoder = models.recurrent(cell, features, **rnn_options, **types, **cell_options)
    make = models.CELLS[cell] if isinstance(cell, str) else cell
    kinds = {
        'none': lambda: None,
        'additive': lambda: AdditiveAttention(features, **types),
        'dot': lambda: DotAttention(**types),
        'general': lambda: DotAttention(general=True, **types),
    }
    return EncoderDecoder(
        encoder,
        [make(features, **types, **cell_options) for _ in range(layers)],
        nn.Dense(vocabulary, **types),
        nn.Embed(vocabulary, embedding or features, **types),
        None if source_vocabulary is None else nn.Embed(source_vocabulary, embedding or features, **types),
        kinds[attention](),
        nn.Dense(features, **types) if attention in ('dot', 'general') else None,
        [Bridge(**types) for _ in range(layers)] if bidirectional else (),
        start_token,
        dropout,
        scheduled_sampling,
    )
