"""Encoder and decoder: a source sequence is read, and a target sequence is written, token by token.

Sutskever et al. 2014: the decoder begins with the carry that the encoder ends with. Bahdanau et al. 2015, Luong et al.
2015: it also looks back at all steps of the source. Axes beyond those in `seqjax`: S steps of the source, U of the
target. `seqjax.nn.decoding` writes without targets.
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

NO_TOKEN = -1  # the decoder reads zeros in its place


class Memory(NamedTuple):
    """What the decoder knows of a source; all arrays [B, ...]."""

    carry: tuple[Any, ...]  # of each layer of the decoder, before its first step
    source: Source | None  # what the attention looks at


class Draws(NamedTuple):
    """What a step of the decoder drops in training."""

    noise: tuple[Any, ...]  # of each cell, drawn once for a sequence; None where a cell does not drop
    index: jax.Array  # [] the number of the step


class Bridge(NamedOptions, nn.Module):
    """The carries of both directions as one: each part is a dense layer of its two, side by side."""

    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, forward: Any, backward: Any) -> Any:
        """Two carries with parts [B, H] -> one."""

        def merge(path, forward, backward):
            name = jax.tree_util.keystr(path).strip('.[]') or 'carry'
            dense = nn.Dense(forward.shape[-1], name=name, dtype=self.dtype, param_dtype=self.param_dtype)
            return dense(jnp.concatenate([forward, backward], axis=-1)).astype(forward.dtype)

        return jax.tree_util.tree_map_with_path(merge, forward, backward)


class EncoderDecoder(NamedOptions, nn.Module):
    """Reads a source and writes a target; called as model((source, targets)).

    The decoder reads `begin` and then the targets up to the last but one (teacher forcing), so the logits at a step say
    what the target there is, from those before it. Its carry begins with the encoder's after the last real step, layer
    by layer; where the encoder reads in both directions, a `Bridge` makes one of two.

    Attention without `combine` is that of Bahdanau et al. 2015: the query is the state of the last layer before the
    step, all its parts side by side; the context goes with the token into the first layer, and with the outputs into
    the head. With `combine` it is that of Luong et al. 2015, equation 5, without input feeding: the query is what the
    last layer gave, and the head reads tanh(combine([context, outputs])).

    In training, that is where the call has a random stream 'dropout', `dropout` acts between two layers, and with
    `scheduled_sampling` (Bengio et al. 2015) that share of the tokens, drawn for each row and step, is not the target
    but the decoder's own last choice, the token of the largest logit. Without the stream it reads the targets alone.
    """

    encoder: nn.Module  # [B, S, F] -> [B, S, H]: an RNN, a Bidirectional, or a Stack of either
    cells: Sequence[nn.RNNCellBase]  # of the decoder, a layer each: their carries are those of the encoder's layers
    head: nn.Module  # [B, H] -> [B, V]
    embed: nn.Embed  # of target tokens; of source tokens too, where they have none of their own
    source_embed: nn.Embed | None = None
    attention: Attention | None = None
    combine: nn.Module | None = None  # [B, K + H] -> [B, H]
    bridges: Sequence[Bridge] = ()  # one a layer, where the encoder reads in both directions
    begin: int | None = None  # the token that the decoder reads first; None for zeros
    dropout: float = 0.0
    scheduled_sampling: float = 0.0

    def __post_init__(self) -> None:
        count = self.embed.num_embeddings
        if self.begin is not None and self.begin not in range(count):
            raise ValueError(f'begin={self.begin} must be a token from 0 to {count - 1}, or None for zeros')
        if not 0 <= self.scheduled_sampling <= 1:
            share = 'the share of tokens that the decoder reads of its own'
            raise ValueError(f'scheduled_sampling={self.scheduled_sampling} must be from 0 to 1: {share}')
        if not 0 <= self.dropout < 1:
            raise ValueError(f'dropout={self.dropout} must be from 0 to below 1: the share of values that is dropped')
        for i, cell in enumerate(self.cells):
            if not isinstance(cell, nn.RNNCellBase):
                raise ValueError(f'cells[{i}] is a {type(cell).__name__} and must be a cell: the decoder goes by steps')
        if self.bridges and len(self.bridges) != len(self.cells):
            raise ValueError(
                f'bridges has {len(self.bridges)} parts and must have {len(self.cells)}, one for each cell'
            )
        if self.combine is not None and self.attention is None:
            raise ValueError('combine does nothing without attention: it reads the context')
        for name in ('cells', 'bridges'):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list could not be hashed
        super().__post_init__()

    def setup(self) -> None:
        self.drop = nn.Dropout(self.dropout)

    @property
    def first(self) -> int:
        """What the decoder reads first."""
        return NO_TOKEN if self.begin is None else self.begin

    def __call__(self, inputs: Arrays) -> jax.Array:
        """What the targets are, from the source and the targets before.

        Args:
          inputs: (source, targets). The source is [B, S, F] or tokens [B, S]; alone or in `Sequences`, or in a tuple
            (values, lengths). Targets are tokens [B, U] with padding on the right, which may hold anything.

        Returns:
          logits [B, U, V]; those at the padding mean nothing, and a loss masks them.
        """
        if not isinstance(inputs, tuple | list) or isinstance(inputs, Sequences) or len(inputs) != 2:
            raise ValueError('inputs must be a pair (source, targets); a source with lengths is a pair within it')
        source, targets = inputs[0], jnp.asarray(inputs[1])
        if targets.ndim != 2 or not jnp.issubdtype(targets.dtype, jnp.integer):
            raise ValueError(f'targets {targets.shape} of {targets.dtype} must be integers [B, U]')
        memory = self.encode(source)
        batch, steps = targets.shape
        rows = jax.tree.leaves(memory.carry)[0].shape[0]
        validation.check_shape('targets', targets.shape, (rows, steps), 'with the rows of the source')
        first = jnp.full((batch, 1), self.first, jnp.int32)
        tokens = jnp.concatenate([first, targets.astype(jnp.int32)], axis=1)[:, :steps]
        return self._write(memory, tokens)

    def encode(self, source: Arrays) -> Memory:
        """Reads a source, which is as in a call."""
        embed = self.source_embed
        if embed is None and jnp.ndim(source[0] if isinstance(source, tuple) else source) == 2:
            embed = self.embed
        values, real, resets = models.as_steps(source, embed)
        if resets is not None:
            raise ValueError('resets: the source of an encoder is one sequence a row; give each a row of its own')
        carry, outputs = self.encoder(values, mask=real, return_carry=True)
        parts = carry if isinstance(self.encoder, Stack) else (carry,)
        if self.bridges:
            parts = tuple(bridge(*part) for bridge, part in zip(self.bridges, parts, strict=True))
        self._check_carry(parts, values)
        return Memory(parts, None if self.attention is None else self.attention.prepare(outputs, real))

    def step(self, memory: Memory, carry: tuple[Any, ...], token: jax.Array) -> tuple[tuple[Any, ...], jax.Array]:
        """One step of the decoder, in which nothing is dropped.

        Args:
          memory: what `encode` gave.
          carry: `memory.carry` at the first step, then what the step before gave.
          token: integers [B]; `first` at the first step, then what was written. One that is none, as -1, is read as 0s.

        Returns:
          The carry after it, and the logits [B, V] of what comes next.
        """
        token = jnp.asarray(token)
        if token.ndim != 1 or not jnp.issubdtype(token.dtype, jnp.integer):
            raise ValueError(f'token {token.shape} of {token.dtype} must be integers [B], one for each row')
        return self._advance(memory, carry, token.astype(jnp.int32), None)

    def _check_carry(self, parts: tuple[Any, ...], values: jax.Array) -> None:
        """Raises ValueError where the carry of the encoder is none of the decoder."""
        key, shape = jax.random.key(0), (values.shape[0], values.shape[-1])
        got = jax.eval_shape(lambda: parts)
        want = jax.eval_shape(lambda: tuple(cell.initialize_carry(key, shape) for cell in self.cells))
        if jax.tree.structure(got) != jax.tree.structure(want) or jax.tree.leaves(got) != jax.tree.leaves(want):
            shapes = [jax.tree.map(lambda x: f'{x.dtype}{list(x.shape)}', carry) for carry in (got, want)]
            raise ValueError(
                f'the carry of the encoder {shapes[0]} must be that of cells, {shapes[1]}: as many layers of the same '
                'kind and size, and for a Bidirectional encoder bridges'
            )

    def _write(self, memory: Memory, tokens: jax.Array) -> jax.Array:
        """Logits [B, U, V] from the tokens that the decoder reads [B, U]."""
        batch, steps = tokens.shape
        training = self.has_rng('dropout')
        guesses = training and self.scheduled_sampling > 0
        noise = tuple(cell.noise((batch,)) if training and _drops(cell) else None for cell in self.cells)

        def step(model, state, x):
            (carry, guess), (token, index) = state, x
            if guesses:
                own = jax.random.bernoulli(model.make_rng('dropout'), float(model.scheduled_sampling), token.shape)
                token = jnp.where(own & (index > 0), guess, token)
            carry, logits = model._advance(memory, carry, token, Draws(noise, index) if training else None)
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
        self, memory: Memory, carry: tuple[Any, ...], token: jax.Array, draws: Draws | None
    ) -> tuple[tuple[Any, ...], jax.Array]:
        """As `step`, with what is dropped."""
        x, context = self._read(token), None
        if self.attention is not None and self.combine is None:
            context = self._look(jnp.concatenate(jax.tree.leaves(carry[-1]), axis=-1), memory)
            x = jnp.concatenate([x, context.astype(x.dtype)], axis=-1)
        after = []
        for i, (cell, part) in enumerate(zip(self.cells, carry, strict=True)):
            if i:
                x = self.drop(x, deterministic=draws is None)
            new, x = _call(cell, part, x, draws and draws.noise[i], draws and draws.index)
            after.append(jax.tree.map(lambda new, old: new.astype(old.dtype), new, part))  # one dtype in a loop
        if self.combine is not None:
            x = jnp.tanh(self.combine(jnp.concatenate([self._look(x, memory), x], axis=-1)))
        elif context is not None:
            x = jnp.concatenate([x, context.astype(x.dtype)], axis=-1)
        return tuple(after), self.head(x)

    def _read(self, token: jax.Array) -> jax.Array:
        """Tokens [B] -> [B, F], 0 for what is no token: padding, which may hold anything, never makes a NaN."""
        known = (token >= 0) & (token < self.embed.num_embeddings)
        return masking.zero(self.embed(jnp.where(known, token, 0)), known)

    def _look(self, query: jax.Array, memory: Memory) -> jax.Array:
        """The context; its weights [B, S] are sown as 'attention_weights' in 'intermediates', [B, U, S] by a call."""
        context, weights = self.attention.attend(query, memory.source)
        self.sow('intermediates', 'attention_weights', weights)
        return context


def _drops(cell: nn.RNNCellBase) -> bool:
    return getattr(cell, 'drops', False)


def _call(cell: nn.RNNCellBase, carry: Any, x: jax.Array, noise: Any, index: Any) -> tuple[Any, jax.Array]:
    """One step of a cell, of Flax's protocol or one that drops."""
    if not _drops(cell):
        return cell(carry, x)
    if noise is None:
        return cell(carry, x, deterministic=True)
    return cell(carry, x, noise=noise.at(index), deterministic=False)


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
    begin: int | None = None,
    scheduled_sampling: float = 0.0,
    dtype: Any = None,
    param_dtype: Any = None,
    **cell_options: Any,
) -> EncoderDecoder:
    """The usual encoder and decoder, of the same cells.

    Args:
      vocabulary: V, how many tokens the targets are of.
      cell, layers, bidirectional, dropout: as in `models.recurrent`; the encoder alone reads in both directions.
      features: H, of encoder and decoder; also the A of an additive attention.
      merge_mode: how its directions are merged, a key of `seqjax.nn.wrappers.MERGES` but 'none'.
      attention: 'none'; 'additive', into the decoder's input (Bahdanau et al. 2015); 'dot' or 'general', before the
        head (Luong et al. 2015). See `EncoderDecoder`.
      source_vocabulary: how many tokens the source is of; None where they are those of the targets, with the same
        embedding, or where the source is [B, S, F].
      embedding, dtype, param_dtype: as in `models.sequence_model`.
      begin: the token that the decoder reads first; None for zeros.
      scheduled_sampling: the share of tokens that the decoder reads of its own in training.
      cell_options: further arguments of all cells.

    >>> model = encoder_decoder(10, features=16, attention='additive', bidirectional=True)
    >>> source, targets = jnp.zeros((2, 7), int), jnp.zeros((2, 5), int)
    >>> model.init_with_output(jax.random.key(0), (source, targets))[0].shape
    (2, 5, 10)
    """
    models.check_cell_options('encoder_decoder', cell, cell_options, encoder_decoder)
    validation.check_choice('attention', attention, config.ATTENTIONS)
    cells_cell.check_count('vocabulary', vocabulary, 'how many tokens there are')
    if source_vocabulary is not None:
        cells_cell.check_count('source_vocabulary', source_vocabulary, 'how many tokens the source is of')
    if embedding is not None:
        cells_cell.check_count('embedding', embedding, 'how many numbers a token becomes')
    if bidirectional and merge_mode == 'none':
        raise ValueError("merge_mode='none' gives a pair of outputs, and the attention looks at one array")
    if attention == 'dot' and bidirectional and merge_mode == 'concat':
        raise ValueError(
            "attention='dot' needs keys as wide as the decoder, and those of both directions are twice that; "
            "take attention='general' or merge_mode='sum'"
        )
    given = {'dtype': dtype, 'param_dtype': param_dtype}
    types = {name: value for name, value in given.items() if value is not None}
    how = {'layers': layers, 'bidirectional': bidirectional, 'merge_mode': merge_mode, 'dropout': dropout}
    encoder = models.recurrent(cell, features, **how, **types, **cell_options)
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
        begin,
        dropout,
        scheduled_sampling,
    )
