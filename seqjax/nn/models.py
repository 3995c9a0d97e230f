"""Compositions of layers: a sequence to one vector, a sequence to a sequence; and a constructor for the usual ones."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqjax import options as seqjax_options
from seqjax import validation
from seqjax.nn import cells, wrappers
from seqjax.nn import rnn as nn_rnn
from seqjax.nn.cells.cell import Cell
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.nn.initializers import Initializer
from seqjax.nn.wrappers import Bidirectional, Stack, Stateful, TimeDistributed
from seqjax.ops import masking
from seqjax.options import NamedOptions
from seqjax.types import Arrays, Sequences


def _cells(base: type[Cell]) -> dict[str, type[Cell]]:
    """The cells of seqjax that no other builds on, by name: LSTMCell is 'lstm', SimpleRNNCell 'simple'."""
    own = [cell for cell in base.__subclasses__() if cell.__module__.startswith('seqjax.')]
    if not own:
        return {base.__name__.removesuffix('Cell').removesuffix('RNN').lower(): base}
    return {name: cell for one in own for name, cell in _cells(one).items()}


for _module in pkgutil.iter_modules(cells.__path__):
    importlib.import_module(f'{cells.__name__}.{_module.name}')
CELLS = _cells(Cell)


def find_cell(text: str) -> tuple[Callable[..., nn.RNNCellBase], dict[str, Any]]:
    """A cell by its name or as MODULE:CLASS, and its options where parentheses behind it have some.

    Raises ValueError where there is none; the message names `cell`.

    >>> find_cell('lstm(peepholes=True, forget=coupled)')
    (<class 'seqjax.nn.cells.lstm_cell.LSTMCell'>, {'peepholes': True, 'forget': 'coupled'})
    """
    name, opening, rest = text.partition('(')
    if name not in CELLS and ':' not in name:
        known = f'{", ".join(CELLS)}, or MODULE:CLASS of your own'
        raise ValueError(f'cell={text} must be one of {known}{seqjax_options.nearest(name, CELLS)}')
    try:
        options = _call_options(rest) if opening else {}
    except (SyntaxError, ValueError) as error:
        raise ValueError(f'cell={text} must have its options written as {name}(name=value, ...)') from error
    cell = CELLS[name] if name in CELLS else _imported_cell(text, *name.split(':', 1))
    return cell, options


def _call_options(text: str) -> dict[str, Any]:
    """The values of 'name=value, ...)'; a word stands for itself. Raises ValueError or SyntaxError where it is none."""
    call = ast.parse(f'_({text}', mode='eval').body
    if not isinstance(call, ast.Call) or call.args or not all(option.arg for option in call.keywords):
        raise ValueError(text)
    values = ((option.arg, option.value) for option in call.keywords)
    return {name: value.id if isinstance(value, ast.Name) else ast.literal_eval(value) for name, value in values}


def _imported_cell(text: str, module: str, name: str) -> Callable[..., nn.RNNCellBase]:
    """A cell of a module of anyone's."""
    try:
        cell = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # of the module itself
        why = f'{type(error).__name__}: {error}'
        raise ValueError(f'cell={text} must be a cell, and {module} cannot be imported ({why})') from error
    if not (isinstance(cell, type) and issubclass(cell, nn.RNNCellBase)):
        what = 'does not exist' if cell is None else 'is not a class of cells, see flax.linen.RNNCellBase'
        raise ValueError(f'cell={text} must be a cell, and {name!r} of {module} {what}')
    return cell


class _Model(NamedOptions, nn.Module):
    """What the models share: tokens are embedded, and what is known of the steps reaches the recurrent layer."""

    rnn: nn.Module  # [B, T, F] -> [B, T, H]: any layer of `seqjax.nn`
    head: nn.Module
    embed: nn.Embed | None = None  # of tokens [B, T]
    drop_inputs: nn.Dropout | None = None  # of what the recurrent layer reads
    drop_outputs: nn.Dropout | None = None  # of what the head reads

    def _drop(self, drop: nn.Dropout | None, x: jax.Array) -> jax.Array:
        """In training alone, which has a random stream 'dropout'."""
        return x if drop is None else drop(x, deterministic=not self.has_rng('dropout'))

    def _read(self, inputs: Arrays, options: dict[str, Any]) -> tuple[Any, Any, jax.Array | None]:
        """-> carry (None unless it is asked for), outputs, and which steps are real (None for all)."""
        values, real, resets = as_steps(inputs, self.embed)
        values = self._drop(self.drop_inputs, values)
        options |= {'mask': real, 'resets': resets, 'return_carry': bool(options['return_carry'])}
        read = self.rnn(values, **{name: value for name, value in options.items() if value is not None})
        return (*read, real) if options['return_carry'] else (None, read, real)


class SequenceToVector(_Model):
    """Reads a sequence and answers once, from the summary: what each direction has at its last real step."""

    def __call__(self, inputs: Arrays, *, initial_carry: Any = None, return_carry: bool | None = None) -> Any:
        """Answers each sequence.

        Args:
          inputs: [B, T, F], or tokens [B, T]; alone or in `Sequences`, or in a tuple (values, lengths).
          initial_carry: what a call with `return_carry` gave.
          return_carry: also return the carry after the last step.

        Returns:
          [B, O], or (carry, [B, O]).
        """
        options = {'initial_carry': initial_carry, 'return_carry': return_carry, 'return_sequences': False}
        carry, summary, _ = self._read(inputs, options)
        outputs = self.head(self._drop(self.drop_outputs, summary))
        return (carry, outputs) if return_carry else outputs


class SequenceToSequence(_Model):
    """Answers at every step, and with a `TimeDistributed` head 0 at masked ones."""

    def __call__(self, inputs: Arrays, *, initial_carry: Any = None, return_carry: bool | None = None) -> Any:
        """As `SequenceToVector`, with [B, T, O] for [B, O]."""
        carry, outputs, real = self._read(inputs, {'initial_carry': initial_carry, 'return_carry': return_carry})
        outputs = self._drop(self.drop_outputs, outputs)
        if real is not None and isinstance(self.head, TimeDistributed):
            outputs = self.head(outputs, mask=real)
        else:
            outputs = self.head(outputs)
        return (carry, outputs) if return_carry else outputs


def as_steps(inputs: Arrays, embed: nn.Embed | None) -> tuple[jax.Array, jax.Array | None, Any]:
    """What a recurrent layer reads.

    Args:
      inputs: [B, T, F], or tokens [B, T]; alone or in `Sequences`, or in a tuple (values, lengths).
      embed: of tokens; None for inputs [B, T, F].

    Returns:
      values [B, T, F]; which steps are real [B, T], None for all; the resets, None where there are none. In compiled
      code, which cannot raise, NaN stands for tokens that are out of range, and in rows whose lengths are.
    """
    if isinstance(inputs, tuple) and not 1 <= len(inputs) <= 4:
        raise ValueError(f'inputs of {len(inputs)} parts must be an array or (values, seq_lengths, mask, resets)')
    values, seq_lengths, mask, resets = Sequences(*inputs) if isinstance(inputs, tuple) else Sequences(inputs)
    values = jnp.asarray(values)
    if embed is not None and values.ndim != 2:
        raise ValueError(f'tokens {values.shape} of {values.dtype} must be integers [B, T]')
    if embed is None and values.ndim < 3:
        raise ValueError(f'inputs {values.shape} must be [B, T, F]; tokens [B, T] need embed=nn.Embed(...)')
    real = masking.real_steps(seq_lengths, mask, values.shape[:1], values.shape[1], of=f'inputs {values.shape}')
    if embed is not None:
        tokens = as_tokens(values, embed.num_embeddings, real)
        values = embed(tokens)
        if embed.num_embeddings == 1:  # Flax does not look at the tokens
            values = jnp.where(tokens[..., None] == 0, values, jnp.nan)
    return masking.spoil(values, seq_lengths, values.shape[1], 1), real, resets


def as_tokens(tokens: jax.Array, vocabulary: int, real: jax.Array | None) -> jax.Array:
    """Tokens [B, T] with 0 where a step is masked, so that padding may hold any number.

    In compiled code those below 0 become `vocabulary`, for which an embedding gives NaN: -1 would be its last row.

    Raises:
      ValueError: they are no integers [B, T]; or, where the values are known, one is below 0 or not below `vocabulary`.
    """
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f'tokens {tokens.shape} of {tokens.dtype} must be integers [B, T]')
    if real is not None:
        tokens = jnp.where(real, tokens, 0)
    validation.check_range('tokens', tokens, vocabulary - 1, 'the last row of the embedding')
    tokens = tokens.astype(jnp.promote_types(tokens.dtype, jnp.int32))
    return tokens if validation.is_concrete(tokens) else jnp.where(tokens < 0, vocabulary, tokens)


def check_cell_options(
    called: str, cell: str | Callable[..., nn.RNNCellBase], given: dict[str, Any], *functions: Callable[..., Any]
) -> None:
    """Raises TypeError if an option belongs neither to one of the functions nor to the cell."""
    parameters = [p for function in functions for p in inspect.signature(function).parameters.values()]
    own = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    of_cell = seqjax_options.names(CELLS.get(cell, LSTMCell) if isinstance(cell, str) else cell)
    seqjax_options.check_options(called, given, None if of_cell is None else list(dict.fromkeys([*own, *of_cell])))


def recurrent(
    cell: str | Callable[..., nn.RNNCellBase],
    features: int,
    *,
    layers: int = 1,
    bidirectional: bool = False,
    merge_mode: str = 'concat',
    dropout: float = 0.0,
    residual: bool = False,
    learn_initial_carry: bool = False,
    unroll: int | None = None,
    backend: str = 'auto',
    parallel: bool = False,
    remat_segments: int = 1,
    **cell_options: Any,
) -> nn.Module:
    """The usual recurrent layers: an RNN, both directions of one, or a stack of either.

    Args:
      cell: a key of `CELLS`, or what makes a cell when it is called with `features`.
      features: H.
      layers: how many of them, one on the other.
      bidirectional: whether each reads in both directions.
      merge_mode: how the directions are merged, a key of `seqjax.nn.wrappers.MERGES`.
      dropout: the share of values that is dropped between two layers.
      residual: whether layers from the second on add their inputs to their outputs.
      learn_initial_carry: whether each direction of each layer learns where it begins.
      unroll, backend, parallel, remat_segments: see `RNN`.
      cell_options: further arguments of the cell.
    """
    if isinstance(cell, str) and cell not in CELLS:
        raise ValueError(
            f'cell={cell!r} must be one of {", ".join(CELLS)}, or make a cell when called with features'
            f'{seqjax_options.nearest(cell, CELLS)}'
        )
    check_cell_options('recurrent', cell, cell_options, recurrent)
    if layers < 1:
        raise ValueError(f'layers={layers} must be at least 1')
    if bidirectional and layers > 1 and merge_mode == 'none':
        raise ValueError("merge_mode='none' gives a pair of outputs, which no further layer reads; layers must be 1")
    wrappers.check_dropout(dropout, layers)

    def one() -> nn_rnn.RNN:
        make = CELLS[cell] if isinstance(cell, str) else cell
        how = {'unroll': unroll, 'backend': backend, 'parallel': parallel, 'remat_segments': remat_segments}
        return nn_rnn.RNN(make(features, **cell_options), learn_initial_carry=learn_initial_carry, **how)

    parts = [Bidirectional(one(), one(), merge_mode) if bidirectional else one() for _ in range(layers)]
    return parts[0] if layers == 1 else Stack(parts, dropout, residual)


def sequence_model(
    output: str,
    outputs: int,
    *,
    cell: str | Callable[..., nn.RNNCellBase] = 'lstm',
    features: int,
    vocabulary: int | None = None,
    embedding: int | None = None,
    stateful: bool = False,
    input_dropout: float = 0.0,
    output_dropout: float = 0.0,
    head_init: Initializer | None = None,
    dtype: Any = None,
    param_dtype: Any = None,
    **options: Any,
) -> SequenceToVector | SequenceToSequence:
    """The usual sequence models: an embedding for tokens, recurrent layers, a dense head.

    Args:
      output: 'last', one after the last step of a sequence, or 'per_step', one at every step.
      outputs: O, how many numbers an output has.
      cell: see `recurrent`, as for further options.
      features: H.
      vocabulary: how many tokens there are; None for inputs [B, T, F].
      embedding: how many numbers a token becomes; `features` by default.
      stateful: whether the carry goes on from call to call; see `Stateful`.
      input_dropout: the share of the values that the first recurrent layer reads that is dropped in training.
      output_dropout: that of the values that the head reads.
      head_init: initializer of the head's kernel; by default that of `nn.Dense`.
      dtype: of the computation, in every part; by default what inputs and parameters promote to.
      param_dtype: of the parameters and the carry, in every part; float32 by default.
      options: further arguments of `recurrent`, and through it of the cell.

    >>> model = sequence_model('per_step', 10, features=16, vocabulary=10, layers=2, bidirectional=True)
    >>> tokens = jnp.zeros((2, 7), int)
    >>> model.init_with_output(jax.random.key(0), tokens)[0].shape
    (2, 7, 10)
    """
    check_cell_options('sequence_model', cell, options, sequence_model, recurrent)
    kinds = {'last': SequenceToVector, 'per_step': SequenceToSequence}
    validation.check_choice('output', output, kinds)
    if vocabulary is None and embedding is not None:
        raise ValueError(f'embedding={embedding} needs vocabulary, the number of tokens')
    if stateful and options.get('bidirectional'):
        raise ValueError('stateful and bidirectional do not go together: a stream has no end to begin at')
    if options.get('bidirectional') and options.get('merge_mode') == 'none':
        raise ValueError("merge_mode='none' gives a pair of outputs, and the head reads one array")
    if embedding is not None and embedding < 1:
        raise ValueError(f'embedding={embedding} must be at least 1: how many numbers a token becomes')
    for name, rate in (('input_dropout', input_dropout), ('output_dropout', output_dropout)):
        if not 0 <= rate < 1:
            raise ValueError(f'{name}={rate} must be from 0 to below 1: the share of values that is dropped')
    given = {'dtype': dtype, 'param_dtype': param_dtype}
    types = {name: value for name, value in given.items() if value is not None}
    rnn = recurrent(cell, features, **types, **options)
    head = nn.Dense(outputs, **types, **({} if head_init is None else {'kernel_init': head_init}))
    embed = None if vocabulary is None else nn.Embed(vocabulary, embedding or features, **types)
    return kinds[output](
        Stateful(rnn) if stateful else rnn,
        TimeDistributed(head) if output == 'per_step' else head,
        embed,
        nn.Dropout(input_dropout) if input_dropout else None,
        nn.Dropout(output_dropout) if output_dropout else None,
    )
