"""The recurrent layer: a cell scanned over time.

All recurrent layers, here and in `wrappers`, have the same call, and accept the carry that they return as
`initial_carry`:

    layer(inputs, initial_carry=, init_key=, seq_lengths=, mask=, resets=, return_carry=, return_sequences=,
          time_major=, masked_output=, deterministic=)

    layer           carry
    RNN             carry of the cell: LSTMCarry(c, h), HiddenCarry(h), or the carry of a Flax cell
    Bidirectional   (forward carry, backward carry)
    Stack           (carry of the first layer, ..., carry of the last)
    Stateful        carry of the layer that it wraps
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from seqjax import validation
from seqjax.nn import recurrence
from seqjax.nn.cells.cell import RecurrentOutput
from seqjax.nn.recurrence import Carry, ScanOptions, SequenceInputs
from seqjax.ops import common, lstm, masking
from seqjax.options import NamedOptions

MASKED_OUTPUTS = ('zero', 'hold')


def override(call: Any, field: Any) -> Any:
    """Returns `call`, the option of a layer's call, or if it is None `field`, the layer's own value of the option."""
    return field if call is None else call


class Axes(NamedTuple):
    """Sizes of the axes of a layer's inputs, and the place of the time axis."""

    batch: tuple[int, ...]  # sizes of the batch axes *B
    steps: int  # T
    features: tuple[int, ...]  # sizes of the feature axes F
    time: int  # index of the time axis

    @classmethod
    def of(cls, inputs: jax.Array, num_feature_axes: int, time_major: bool) -> Axes:
        """Returns the axes of inputs; raises ValueError if there are too few, or if inputs look like tokens [B, T]."""
        least, shape = num_feature_axes + 1, inputs.shape
        layout = '[T, *B, F]' if time_major else '[*B, T, F]'
        if len(shape) < least:
            raise ValueError(
                f'inputs {shape} must be {layout} with at least {least} axes: 1 for time and {num_feature_axes} for '
                'features'
            )
        if len(shape) == least and num_feature_axes and jnp.issubdtype(inputs.dtype, jnp.integer):
            raise ValueError(
                f'inputs {shape} of {inputs.dtype} must be {layout}; embed tokens [B, T] with nn.Embed first'
            )
        time = 0 if time_major else len(shape) - least
        rest = shape[:time] + shape[time + 1 :]
        count = len(shape) - least
        return cls(rest[:count], shape[time], rest[count:], time)


class RNN(NamedOptions, nn.Module):
    """Recurrent layer that runs a cell over time; all time steps share the parameters of the cell.

    Arguments of `flax.linen.RNN` have the same names here, and the same meaning if no step is masked. The cell may be
    any that follows the protocol of `flax.linen.RNNCellBase`.

    A masked step (`seq_lengths`, `mask`) leaves the carry unchanged. Its output is 0, or with `masked_output='hold'`
    the last valid output before it in the order of processing (0 before the first). A row without valid steps, such
    as one of length 0, has outputs 0 and returns its initial carry.

    With `reverse` the valid steps of each row are processed from last to first; padding keeps its place. Outputs are in
    the order of processing, or with `keep_order` in the order of the inputs.

    `resets` marks the first steps of sequences: no information passes between such a step and the step before it, in
    either direction. The carry is reset to the cell's own initial carry (learned with `learn_initial_carry`), not to
    `initial_carry`.

    Dropout of cells (`recurrent_dropout`, `drop_connect`, `zoneout_h` of `seqjax.nn.cells`) is active if the call has a
    random stream 'dropout', as in training, or if `deterministic` is False. Masks for all steps are drawn once per
    call; masks for a single step are drawn from a key of the call and the index of the step.
    """

    cell: nn.RNNCellBase
    time_major: bool = False  # inputs and outputs are [T, B, ...] instead of [B, T, ...]
    return_carry: bool = False  # return (carry, outputs) instead of outputs
    reverse: bool = False
    keep_order: bool = False
    unroll: int | None = None  # time steps per iteration of the compiled loop; None: by T and carry size
    variable_axes: Mapping[str, Any] = FrozenDict()  # this and the next three are arguments of `nn.scan`
    variable_broadcast: Any = 'params'
    variable_carry: Any = False
    split_rngs: Any = None  # by default all streams but 'params' are split, so that dropout differs between steps
    masked_output: str = 'zero'  # or 'hold'
    learn_initial_carry: bool = False  # parameters `initial_carry_...`, initialized to the cell's initial carry
    parallel: bool = False  # parallel scan over time; only for the cells of `seqjax.nn.cells.linear_cells`
    backend: str = 'auto'  # or a key of BACKENDS in `seqjax.ops.lstm` or `.gru`, for an LSTM or GRU without variants
    remat_segments: int = 1  # segments of T that the backward pass rematerializes, to save memory; 1: no remat

    def __post_init__(self) -> None:
        validation.check_choice('masked_output', self.masked_output, MASKED_OUTPUTS)
        for name, meaning in (
            ('unroll', 'time steps per iteration of the compiled loop'),
            ('remat_segments', 'number of segments of the time steps, 1 for no rematerialization'),
        ):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f'{name}={getattr(self, name)} must be at least 1: {meaning}')
        validation.check_choice('backend', self.backend, ('auto', *lstm.BACKENDS))
        self._check_parallel(self.parallel)
        if self.remat_segments > 1 and self.variable_axes:
            raise ValueError(
                f'variable_axes={dict(self.variable_axes)} is not supported with remat_segments={self.remat_segments}; '
                'use remat_segments=1'
            )
        super().__post_init__()

    @nn.nowrap
    def _check_parallel(self, parallel: bool) -> None:
        """Raises ValueError if `parallel` is True and the cell is not linear, or a field needs a loop over steps."""
        if not parallel:
            return
        if not hasattr(self.cell, 'affine'):
            raise ValueError(
                'parallel=True needs a cell with a linear recurrence, such as MinGRUCell, and '
                f'{type(self.cell).__name__} is not linear; use parallel=False'
            )
        if (self.unroll or 1) > 1 or self.variable_axes or self.variable_carry or self.split_rngs is not None:
            raise ValueError(
                'parallel=True does not support unroll above 1, variable_axes, variable_carry and split_rngs, which '
                'need a loop over steps; leave them at their defaults'
            )

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Carry | None = None,
        init_key: jax.Array | None = None,
        seq_lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        return_carry: bool | None = None,
        return_sequences: bool = True,
        carry_history: bool = False,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        masked_output: str | None = None,
        parallel: bool | None = None,
        deterministic: bool | None = None,
    ) -> Any:
        """Runs the cell over all time steps of the inputs.

        Args:
          inputs: [B, T, F]; [T, B, F] with `time_major`. F stands for `num_feature_axes` axes of the cell (1 for most),
            B for any number of axes.
          initial_carry: carry that a call with `return_carry` returned; by default the cell's own initial carry.
          init_key: PRNG key for cells whose own initial carry is random.
          seq_lengths: integers [B], 0 to T: the number of valid steps of each row, counted from the first. In compiled
            code, which cannot raise, the results of a row whose length is out of range are NaN.
          mask: bool [B, T], also with `time_major`, True at valid steps; padding may be anywhere. With `seq_lengths`, a
            step is valid if it is by both.
          resets: bool [B, T], also with `time_major`, True at the first step of a new sequence in a row.
          return_carry: True to return the carry after the last processed step, too.
          return_sequences: return all outputs [B, T, H] instead of the last valid one in processing order [B, H].
          carry_history: return the carry, even without `return_carry`, with a time axis of T + 1 at the place of the
            outputs' time axis: before the first step and after each, including masked ones; with `reverse` from the
            last step to the first.
          time_major, reverse, keep_order, masked_output, parallel: override the fields of the same names.
          deterministic: disable dropout of cells of `seqjax.nn.cells`; by default True without a stream 'dropout'.

        Returns:
          outputs, or with `return_carry` or `carry_history` (carry, outputs).

        Raises:
          ValueError: an argument is invalid; the message names it.
        """
        time_major, reverse = override(time_major, self.time_major), override(reverse, self.reverse)
        masked_output, parallel = override(masked_output, self.masked_output), override(parallel, self.parallel)
        validation.check_choice('masked_output', masked_output, MASKED_OUTPUTS)
        self._check_parallel(parallel)
        if isinstance(inputs, tuple):
            raise ValueError(
                f'inputs are a tuple of {len(inputs)} and must be one array; pass lengths as seq_lengths, and merge '
                "the pair of outputs that a Bidirectional layer with merge_mode='none' returns"
            )
        inputs = jnp.asarray(inputs)
        axes = Axes.of(inputs, self.cell.num_feature_axes, time_major)
        valid, resets = call_flags(axes, seq_lengths, mask, resets, f'inputs {inputs.shape}')
        reset_carry = self._cell_carry(axes, init_key, needed=initial_carry is None or resets is not None)
        carry = reset_carry if initial_carry is None else _fit(initial_carry, reset_carry)
        if valid is not None or resets is not None or self.remat_segments > 1:
            _check_rows(carry, axes)
        x = jnp.moveaxis(inputs, axes.time, 0)
        if valid is not None:
            x = masking.zero(x, valid)  # NaN in padding would make gradients of weights NaN
        x = masking.poison_rows(x, seq_lengths, axes.steps, 0)
        steps = SequenceInputs(x, valid, _before(resets, reverse))
        last, outputs, carries = self._run(
            carry, reset_carry, steps, axes, reverse, carry_history, parallel, deterministic
        )

        if carry_history:
            last = _history(carry, carries, reverse, axes)
        if return_sequences:
            outputs = _sequence(outputs, valid, reverse, override(keep_order, self.keep_order), masked_output)
            outputs = jax.tree.map(lambda y: jnp.moveaxis(y, 0, axes.time), outputs)
        else:
            outputs = last_outputs(outputs, valid, reverse)
        return (last, outputs) if override(return_carry, self.return_carry) or carry_history else outputs

    @property
    def causal(self) -> bool:
        """True if no output depends on a later input."""
        return not self.reverse

    def _cell_carry(self, axes: Axes, init_key: jax.Array | None, needed: bool) -> Carry | None:
        """Returns the cell's own or the learned initial carry; None if the cell defines none and `needed` is False."""
        key = jax.random.key(0) if init_key is None else init_key
        try:
            reset_carry = self.cell.initialize_carry(key, axes.batch + axes.features)
        except NotImplementedError:
            if needed or self.learn_initial_carry:
                raise
            return None
        if not self.learn_initial_carry:
            return reset_carry
        _check_rows(reset_carry, axes)
        single_row = self.cell.initialize_carry(key, (1,) * len(axes.batch) + axes.features)

        def learned(path, leaf, many):
            name = '_'.join(
                ['initial_carry', *(str(getattr(k, 'name', getattr(k, 'idx', getattr(k, 'key', k)))) for k in path)]
            )
            value = self.param(name, lambda _: leaf.reshape(leaf.shape[len(axes.batch) :]))
            return jnp.broadcast_to(value.reshape((1,) * len(axes.batch) + value.shape), many.shape)

        return jax.tree_util.tree_map_with_path(learned, single_row, reset_carry)

    def _run(
        self,
        carry: Carry,
        reset_carry: Carry | None,
        steps: SequenceInputs,
        axes: Axes,
        reverse: bool,
        history: bool,
        parallel: bool,
        deterministic: bool | None,
    ) -> RecurrentOutput:
        lift = {
            'variable_axes': self.variable_axes,
            'variable_broadcast': self.variable_broadcast,
            'variable_carry': self.variable_carry,
            'split_rngs': override(self.split_rngs, {'params': False, nn.DenyList(('params',)): True}),
        }
        dropout_masks, call = self._call(axes, deterministic)
        steps = steps._replace(index=jnp.arange(axes.steps))
        options = ScanOptions(reverse, history, self.unroll, lift, reset_carry, dropout_masks, call, self.backend)
        is_static = common.is_static(
            axes.steps
        )  # a symbolic number of steps allows neither segments nor a parallel scan
        run = recurrence.fused_scan if self._fuses(axes) else recurrence.sequential_scan
        run = recurrence.parallel_scan if parallel and is_static else run
        if self.remat_segments == 1 or not is_static:
            return run(self.cell, carry, steps, options)
        return recurrence.segmented_scan(run, self.cell, carry, steps, options, self.remat_segments, axes.batch)

    def _fuses(self, axes: Axes) -> bool:
        """Returns True if the cell is `fused`, its weights exist, and no field asks `nn.scan` for lifted variables."""
        plain = not self.variable_axes and not self.variable_carry and self.variable_broadcast == 'params'
        usual = plain and self.split_rngs is None and len(axes.features) == 1
        if not usual or self.is_initializing() or not getattr(self.cell, 'fused', False):
            return False
        return all(
            self.cell.has_variable('params', name) for name in self.cell.fused_weight_names
        )  # otherwise the sequential scan initializes them

    def _call(self, axes: Axes, deterministic: bool | None) -> tuple[Any, Callable[..., Any]]:
        """Returns the dropout masks of a call, None without dropout, and a function that runs a step with them.

        The function maps (cell, carry, inputs of the step, index of the step) to (carry, outputs).
        """
        if not getattr(self.cell, 'is_stochastic', False):
            return None, lambda cell, carry, x, index: cell(carry, x)  # Flax's protocol
        if deterministic is None:
            deterministic = not self.has_rng('dropout')
        if deterministic:
            return None, lambda cell, carry, x, index: cell(carry, x, deterministic=True)
        masks = self.cell.draw_dropout_masks(axes.batch)
        return masks, lambda cell, carry, x, index: cell(carry, x, dropout_masks=masks.at(index), deterministic=False)


def call_flags(axes: Axes, seq_lengths: Any, mask: Any, resets: Any, of: str) -> tuple[Any, Any]:
    """Returns (mask of valid steps, resets), each [T, *B]; None without lengths and mask, or without resets.

    Raises ValueError if an argument has a wrong shape, dtype or value; `of` describes the inputs in the message.
    """
    valid = masking.valid_steps(seq_lengths, mask, axes.batch, axes.steps, of=of)
    if resets is not None:
        resets = masking.as_flags(resets, (*axes.batch, axes.steps), of=of, name='resets')
    return tuple(None if flags is None else jnp.moveaxis(flags, -1, 0) for flags in (valid, resets))


def _before(resets: jax.Array | None, reverse: bool) -> jax.Array | None:
    """Returns flags [T, *B], True at steps before which the carry is reset, in the order of processing.

    With `reverse` the flag of step t moves to step t - 1, which is processed after step t.
    """
    if resets is None or not reverse:
        return resets
    return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])


def _check_rows(carry: Carry, axes: Axes) -> None:
    """Raises ValueError if an array of the carry does not start with the batch axes of the inputs."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if leaf.shape[: len(axes.batch)] != axes.batch:
            name = 'carry' + jax.tree_util.keystr(path)
            raise ValueError(
                f'{name} {leaf.shape} of the cell must start with the batch axes {axes.batch} of inputs: lengths, '
                'mask, resets, learn_initial_carry and remat_segments above 1 need a carry for each row'
            )


def _fit(carry: Carry, want: Carry | None) -> Carry:
    """Returns an initial carry in the structure of `want`, the cell's own; plain tuples (c, h) and arrays are accepted.

    Raises ValueError if the structure, a shape or a dtype differs; nothing is checked if `want` is None.
    """
    if want is None:
        return jax.tree.map(jnp.asarray, carry)
    if jax.tree.structure(carry) != jax.tree.structure(want):
        leaves = list(carry) if isinstance(carry, tuple | list) else [carry]
        if not all(hasattr(leaf, 'shape') for leaf in leaves) or len(leaves) != len(jax.tree.leaves(want)):
            names = jax.tree.map(lambda leaf: f'{leaf.dtype}{list(leaf.shape)}', want)
            raise ValueError(f'initial_carry must be {names}, but has another structure, {jax.tree.structure(carry)}')
        carry = jax.tree.unflatten(jax.tree.structure(want), leaves)

    def check(path, x, like):
        name, x = 'initial_carry' + jax.tree_util.keystr(path), jnp.asarray(x)
        validation.check_shape(name, x.shape, like.shape, 'the batch axes of inputs and the state size of the cell')
        if x.dtype != like.dtype:
            raise ValueError(f'{name} is {x.dtype} and must be {like.dtype}, the dtype of the carry of the cell')
        return x

    return jax.tree_util.tree_map_with_path(check, carry, want)


def _sequence(outputs: Any, valid: jax.Array | None, reverse: bool, keep_order: bool, masked_output: str) -> Any:
    """Returns outputs [T, *B, ...] in the order of processing or of the inputs, 0 or held at masked steps."""
    if valid is not None and masked_output == 'hold':
        processed = masking.flip(outputs, valid) if reverse else outputs
        outputs = masking.hold(processed, valid, jax.tree.map(lambda y: jnp.zeros(y.shape[1:], y.dtype), outputs))
        return masking.flip(outputs, valid) if reverse and keep_order else outputs
    if valid is not None:
        outputs = masking.zero(outputs, valid)
    return masking.flip(outputs, valid) if reverse and not keep_order else outputs


def last_outputs(outputs: Any, valid: jax.Array | None, reverse: bool) -> Any:
    """Returns the output of the valid step that was processed last, [T, *B, ...] -> [*B, ...]; 0 if there is none."""

    def last(y):
        if y.shape[0] == 0:
            return jnp.zeros(y.shape[1:], y.dtype)
        if valid is None:
            return y[0 if reverse else -1]
        index = jnp.argmax(valid, axis=0)[None] if reverse else jnp.maximum(masking.last_valid(valid)[-1:], 0)
        return masking.zero(masking.take(y, index)[0], valid.any(axis=0))

    return jax.tree.map(last, outputs)


def _history(first: Carry, carries: Carry, reverse: bool, axes: Axes) -> Carry:
    """Returns the T + 1 carries before the first and after every step, in processing order, along the time axis."""
    if reverse:
        carries = masking.flip(carries, None)
    return jax.tree.map(lambda x, y: jnp.moveaxis(jnp.concatenate([x[None], y]), 0, axes.time), first, carries)
