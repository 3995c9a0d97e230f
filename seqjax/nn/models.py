"""Sequence models with an output per sequence or per time step, cells by name, and functions that build models."""

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
    """Returns {name: cell class} of the classes below `base` in seqjax that have no subclasses; LSTMCell is 'lstm'."""
    subclasses = [cell for cell in base.__subclasses__() if cell.__module__.startswith('seqjax.')]
    if not subclasses:
        return {base.__name__.removesuffix('Cell').removesuffix('RNN').lower(): base}
    return {name: cell for subclass in subclasses for name, cell in _cells(subclass).items()}


for _module in pkgutil.iter_modules(cells.__path__):
    importlib.import_module(f'{cells.__name__}.{_module.name}')
CELLS = _cells(Cell)


def find_cell(text: str) -> tuple[Callable[..., nn.RNNCellBase], dict[str, Any]]:
    """Returns the cell class and the options of a text: a key of `CELLS` or MODULE:CLASS, and options in parentheses.

    The names of the options are not checked.

    Raises:
      ValueError: the cell does not exist, or the options are not keyword arguments; the message starts with 'cell='.

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
        raise ValueError(f'cell={text} has invalid options; use {name}(name=value, ...) with literal values') from error
    cell = CELLS[name] if name in CELLS else _imported_cell(text, *name.split(':', 1))
    return cell, options


def _call_options(text: str) -> dict[str, Any]:
    """Parses the text after the opening parenthesis, 'name=value, ...)', as a dict; a bare word as value is a string.

    Raises:
      ValueError or SyntaxError: the text is not a list of keyword arguments with literal values or bare words.
    """
    call = ast.parse(f'_({text}', mode='eval').body
    if not isinstance(call, ast.Call) or call.args or not all(option.arg for option in call.keywords):
        raise ValueError(text)
    values = ((option.arg, option.value) for option in call.keywords)
    return {name: value.id if isinstance(value, ast.Name) else ast.literal_eval(value) for name, value in values}


def _imported_cell(text: str, module: str, name: str) -> Callable[..., nn.RNNCellBase]:
    """Imports a module and returns its cell class `name`; raises ValueError if that fails. `text` is for messages."""
    try:
        cell = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # any error of the user's module
        reason = f'{type(error).__name__}: {error}'
        raise ValueError(f'cell={text} cannot be imported from module {module} ({reason})') from error
    if not (isinstance(cell, type) and issubclass(cell, nn.RNNCellBase)):
        problem = 'does not exist' if cell is None else 'is not a subclass of flax.linen.RNNCellBase'
        raise ValueError(f'cell={text} must be MODULE:CLASS of a cell; {name!r} in module {module} {problem}')
    return cell


class _Model(NamedOptions, nn.Module):
    """Base class of sequence models: embeds tokens, applies dropout, and runs the recurrent layer on the inputs."""

    rnn: nn.Module  # [B, T, F] -> [B, T, H]: any layer of `seqjax.nn`
    head: nn.Module  # [..., H] -> [..., O]
    embed: nn.Embed | None = None  # embedding of tokens [B, T]; None for inputs [B, T, F]
    drop_inputs: nn.Dropout | None = None  # dropout of the inputs of the recurrent layer; None: none
    drop_outputs: nn.Dropout | None = None  # dropout of the inputs of the head; None: none

    def _drop(self, drop: nn.Dropout | None, x: jax.Array) -> jax.Array:
        """Returns x after dropout; x unchanged if `drop` is None or the call has no random stream 'dropout'."""
        return x if drop is None else drop(x, deterministic=not self.has_rng('dropout'))

    def _read(self, inputs: Arrays, options: dict[str, Any]) -> tuple[Any, Any, jax.Array | None]:
        """Runs all modules before the head; returns (carry, outputs of the recurrent layer, mask of valid steps).

        `options` are options of the recurrent layer's call, without the options that are None. The carry is
        None unless `return_carry` is True; the mask is None without lengths and mask.
        """
        values, valid, resets = embed_inputs(inputs, self.embed)
        values = self._drop(self.drop_inputs, values)
        options |= {'mask': valid, 'resets': resets, 'return_carry': bool(options['return_carry'])}
        result = self.rnn(values, **{name: value for name, value in options.items() if value is not None})
        return (*result, valid) if options['return_carry'] else (None, result, valid)


class SequenceToVector(_Model):
    """Sequence model with one output per sequence: the head reads the last valid output of each direction."""

    def __call__(self, inputs: Arrays, *, initial_carry: Any = None, return_carry: bool | None = None) -> Any:
        """Returns one output for each sequence.

        Args:
          inputs: [B, T, F], or tokens [B, T]; alone or in `Sequences`, or in a tuple (values, lengths).
          initial_carry: carry that a call with `return_carry` returned; by default the recurrent layer's own.
          return_carry: True to return the carry after the last step, too.

        Returns:
          outputs [B, O], or with `return_carry` (carry, outputs).
        """
        options = {'initial_carry': initial_carry, 'return_carry': return_carry, 'return_sequences': False}
        carry, summary, _ = self._read(inputs, options)
        outputs = self.head(self._drop(self.drop_outputs, summary))
        return (carry, outputs) if return_carry else outputs


class SequenceToSequence(_Model):
    """Sequence model with an output at every time step, which is 0 at masked steps if the head is `TimeDistributed`."""

    def __call__(self, inputs: Arrays, *, initial_carry: Any = None, return_carry: bool | None = None) -> Any:
        """Returns outputs [B, T, O], or with `return_carry` (carry, outputs); arguments as in `SequenceToVector`."""
        carry, outputs, valid = self._read(inputs, {'initial_carry': initial_carry, 'return_carry': return_carry})
        outputs = self._drop(self.drop_outputs, outputs)
        if valid is not None and isinstance(self.head, TimeDistributed):
            outputs = self.head(outputs, mask=valid)
        else:
            outputs = self.head(outputs)
        return (carry, outputs) if return_carry else outputs


def embed_inputs(inputs: Arrays, embed: nn.Embed | None) -> tuple[jax.Array, jax.Array | None, Any]:
    """Returns (values, mask of valid steps, resets) for a recurrent layer from model inputs, with tokens embedded.

    Args:
      inputs: [B, T, F], or tokens [B, T]; alone or in `Sequences`, or in a tuple (values, lengths).
      embed: embedding of tokens; None for inputs [B, T, F].

    Returns:
      values [B, T, F]; the mask of valid steps [B, T], None if `inputs` have neither lengths nor mask; the resets, None
      if `inputs` have none. In compiled code, which cannot raise, the values of a valid token that is out of range, and
      of a row whose length is out of range, are NaN.

    Raises:
      ValueError: the shape, the dtype or a value of an input is wrong; the message names the input.
    """
    if isinstance(inputs, tuple) and not 1 <= len(inputs) <= 4:
        raise ValueError(
            f'inputs are a tuple of {len(inputs)} and must be an array, or a tuple of 1 to 4: (values, seq_lengths, '
            'mask, resets)'
        )
    values, seq_lengths, mask, resets = Sequences(*inputs) if isinstance(inputs, tuple) else Sequences(inputs)
    values = jnp.asarray(values)
    if embed is not None and values.ndim != 2:
        raise ValueError(f'tokens {values.shape} of {values.dtype} must be integers [B, T], as the model embeds them')
    if embed is None and values.ndim < 3:
        raise ValueError(
            f'inputs {values.shape} must be [B, T, F]; for tokens [B, T] build the model with an embedding (nn.Embed)'
        )
    valid = masking.valid_steps(seq_lengths, mask, values.shape[:1], values.shape[1], of=f'inputs {values.shape}')
    if embed is not None:
        tokens = as_tokens(values, embed.num_embeddings, valid)
        values = embed(tokens)
        if embed.num_embeddings == 1:  # Flax ignores the tokens then
            values = jnp.where(tokens[..., None] == 0, values, jnp.nan)
    return masking.poison_rows(values, seq_lengths, values.shape[1], 1), valid, resets


def as_tokens(tokens: jax.Array, vocabulary: int, valid: jax.Array | None) -> jax.Array:
    """Returns tokens [B, T] with 0 at masked steps, so that padding may be any integer.

    Without `valid` [B, T] no step is masked. In compiled code, which cannot raise, tokens below 0 become `vocabulary`,
    which `nn.Embed` maps to NaN: -1 would index the last row.

    Raises:
      ValueError: tokens are not integers, or a token at a valid step is not from 0 to `vocabulary` - 1.
    """
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f'tokens {tokens.shape} of {tokens.dtype} must be integers [B, T]')
    if valid is not None:
        tokens = jnp.where(valid, tokens, 0)
    validation.check_range('tokens', tokens, vocabulary - 1, 'the rows of the embedding')
    tokens = tokens.astype(jnp.promote_types(tokens.dtype, jnp.int32))
    return tokens if validation.is_concrete(tokens) else jnp.where(tokens < 0, vocabulary, tokens)


def check_cell_options(
    function: str, cell: str | Callable[..., nn.RNNCellBase], options: dict[str, Any], *functions: Callable[..., Any]
) -> None:
    """Raises TypeError if a name in `options` is neither an argument of one of `functions` nor an option of the cell.

    Nothing is checked if the cell accepts options of any name. `function` is the name of the caller, for the message.
    """
    parameters = [p for function in functions for p in inspect.signature(function).parameters.values()]
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    cell_names = seqjax_options.argument_names(CELLS.get(cell, LSTMCell) if isinstance(cell, str) else cell)
    names = None if cell_names is None else list(dict.fromkeys([*names, *cell_names]))
    seqjax_options.check_options(function, options, names)


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
    """Builds a recurrent layer: an `RNN` or a `Bidirectional`, or with `layers` above 1 a `Stack` of either.

    Args:
      cell: a key of `CELLS`, or a function (features, **cell_options) -> cell, such as a class of cells.
      features: H, the number of hidden units of each direction of each layer.
      layers: number of stacked layers.
      bidirectional: run each layer in both directions.
      merge_mode: merge of the outputs of both directions, a key of `seqjax.nn.wrappers.MERGES`.
      dropout: fraction of values that is dropped between two layers in training.
      residual: add the inputs of each layer but the first to its outputs.
      learn_initial_carry: make the initial carry of each direction of each layer a parameter.
      unroll, backend, parallel, remat_segments: see `RNN`.
      cell_options: further arguments of the cell.

    Raises:
      ValueError: an argument is invalid, or incompatible with another.
      TypeError: neither this function nor the cell has an option of this name.
    """
    if isinstance(cell, str) and cell not in CELLS:
        raise ValueError(
            f'cell={cell!r} must be one of {", ".join(CELLS)}, or a function of features that returns a cell'
            f'{seqjax_options.nearest(cell, CELLS)}'
        )
    check_cell_options('recurrent', cell, cell_options, recurrent)
    if layers < 1:
        raise ValueError(f'layers={layers} must be at least 1')
    if bidirectional and layers > 1 and merge_mode == 'none':
        raise ValueError(
            "merge_mode='none' returns a pair of outputs, which the next layer cannot read; use layers=1 or "
            "merge_mode='concat'"
        )
    wrappers.check_dropout(dropout, layers)

    def make_rnn() -> nn_rnn.RNN:
        make = CELLS[cell] if isinstance(cell, str) else cell
        rnn_options = {'unroll': unroll, 'backend': backend, 'parallel': parallel, 'remat_segments': remat_segments}
        return nn_rnn.RNN(make(features, **cell_options), learn_initial_carry=learn_initial_carry, **rnn_options)

    def make_layer() -> nn.Module:
        return Bidirectional(make_rnn(), make_rnn(), merge_mode) if bidirectional else make_rnn()

    return make_layer() if layers == 1 else Stack([make_layer() for _ in range(layers)], dropout, residual)


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
    """Builds a sequence model: recurrent layers and a dense head, with `vocabulary` also an embedding of tokens.

    Args:
      output: 'last', one output after the last valid step of a sequence, or 'per_step', one at every step.
      outputs: O, the size of an output.
      cell, features: see `recurrent`.
      vocabulary: number of different tokens; None for inputs [B, T, F].
      embedding: size of the embedding of a token; `features` by default.
      stateful: keep the carry from call to call; see `Stateful`.
      input_dropout: fraction of the inputs of the first recurrent layer that is dropped in training.
      output_dropout: fraction of the inputs of the head that is dropped in training.
      head_init: initializer of the head's kernel; by default the initializer of `nn.Dense`.
      dtype: dtype of the computation; by default the promoted dtype of inputs and parameters.
      param_dtype: dtype of the parameters and the carry; float32 by default.
      options: further arguments of `recurrent`, including the cell's.

    Raises:
      ValueError: an argument is invalid, or incompatible with another.
      TypeError: neither this function, `recurrent` nor the cell has an option of this name.

    >>> model = sequence_model('per_step', 10, features=16, vocabulary=10, layers=2, bidirectional=True)
    >>> tokens = jnp.zeros((2, 7), int)
    >>> model.init_with_output(jax.random.key(0), tokens)[0].shape
    (2, 7, 10)
    """
    check_cell_options('sequence_model', cell, options, sequence_model, recurrent)
    kinds = {'last': SequenceToVector, 'per_step': SequenceToSequence}
    validation.check_choice('output', output, kinds)
    if vocabulary is None and embedding is not None:
        raise ValueError(f'embedding={embedding} needs vocabulary, the number of different tokens; pass vocabulary')
    if stateful and options.get('bidirectional'):
        raise ValueError(
            'stateful=True is not supported with bidirectional=True, which needs the end of the stream; use one of them'
        )
    if options.get('bidirectional') and options.get('merge_mode') == 'none':
        raise ValueError("merge_mode='none' returns a pair of outputs, and the head needs one; use merge_mode='concat'")
    if embedding is not None and embedding < 1:
        raise ValueError(f'embedding={embedding} must be at least 1: the size of the embedding of a token')
    for name, rate in (('input_dropout', input_dropout), ('output_dropout', output_dropout)):
        if not 0 <= rate < 1:
            raise ValueError(f'{name}={rate} must be from 0 to below 1: the fraction of values that is dropped')
    dtype_options = {'dtype': dtype, 'param_dtype': param_dtype}
    types = {name: value for name, value in dtype_options.items() if value is not None}
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
