"""The recurrent layer: a cell scanned over time.

Every recurrent layer, here and in `wrappers`, is called in the same way, and returns a carry that it takes back
unchanged:

    layer(inputs, initial_carry=, init_key=, seq_lengths=, mask=, resets=, return_carry=, return_sequences=,
          time_major=, masked_output=, deterministic=)

    layer           carry
    RNN             the cell's: LSTMCarry(c, h), HiddenCarry(h), whatever a cell of Flax's has
    Bidirectional   (forward carry, backward carry)
    Stack           (carry of the first layer, ..., carry of the last)
    Stateful        that of its layer
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
from seqjax.nn.cells.cell import OverTime
from seqjax.nn.recurrence import Carry, Scan, SequenceInputs
from seqjax.ops import common, lstm, masking
from seqjax.options import NamedOptions

MASKED_OUTPUTS = ('zero', 'hold')


def either(call: Any, field: Any) -> Any:
    """An option of the call, or where that is None of the layer."""
    return field if call is None else call


class Axes(NamedTuple):
    """What the axes of a layer's inputs are."""

    batch: tuple[int, ...]
    steps: int
    features: tuple[int, ...]
    time: int  # which axis it is

    @classmethod
    def of(cls, inputs: jax.Array, num_feature_axes: int, time_major: bool) -> Axes:
        least, shape = num_feature_axes + 1, inputs.shape
        layout = '[T, *B, F]' if time_major else '[*B, T, F]'
        if len(shape) < least:
            raise ValueError(
                f'inputs {shape} must be {layout} with at least {least} axes: the features have {num_feature_axes}'
            )
        if len(shape) == least and num_feature_axes and jnp.issubdtype(inputs.dtype, jnp.integer):
            raise ValueError(
                f'inputs {shape} of {inputs.dtype} must be {layout}; tokens [B, T] go through nn.Embed first'
            )
        time = 0 if time_major else len(shape) - least
        rest = shape[:time] + shape[time + 1 :]
        count = len(shape) - least
        return cls(rest[:count], shape[time], rest[count:], time)


class RNN(NamedOptions, nn.Module):
    """Carries a cell over time: the parameters are shared by all steps, so their count does not depend on T.

    What `flax.linen.RNN` takes goes by the same names here, and means the same where no step is masked. The cell is any
    that follows the protocol of `flax.linen.RNNCellBase`.

    A masked step (`seq_lengths`, `mask`) leaves the carry as it was; its output is 0, or with `masked_output='hold'`
    the last real output before it in the order of processing, and 0 before the first. A row without a real step, be it
    of length 0, has outputs 0 and hands its initial carry on.

    With `reverse` each row's real steps are processed from last to first; padding keeps its place wherever it is. The
    outputs come in the order of processing, or with `keep_order` in the order of the inputs: one is the other with the
    real steps flipped.

    `resets` says where in time a sequence begins: nothing passes between such a step and the one before it, in either
    direction. The row starts anew there from the cell's own initial carry (the learned one with `learn_initial_carry`),
    not from the one that was given.

    Cells that drop (`recurrent_dropout`, `drop_connect`, `zoneout_h` of `seqjax.nn.cells`) do so where the call has a
    random stream 'dropout', as in training, or where `deterministic` is False. What is drawn once for a sequence is
    drawn once for each row and call. What is drawn anew depends on the number of the step alone.
    """

    cell: nn.RNNCellBase
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: int | None = None  # steps in one iteration of the compiled loop, for speed alone; by default by size
    variable_axes: Mapping[str, Any] = FrozenDict()  # these four go to `nn.scan`
    variable_broadcast: Any = 'params'
    variable_carry: Any = False
    split_rngs: Any = None  # by default all but 'params' are split: dropout draws anew at every step
    masked_output: str = 'zero'
    learn_initial_carry: bool = False  # as parameters `initial_carry_...`, which begin at the cell's own
    parallel: bool = False  # all steps at once: for the cells of `seqjax.nn.cells.linear_cells`
    backend: str = 'auto'  # of an LSTM or a GRU without variants: a key of BACKENDS in `lstm_ops` or `gru_ops`
    remat_segments: int = 1  # above 1: that many segments, each computed again in the backward pass, to save memory

    def __post_init__(self) -> None:
        validation.check_choice('masked_output', self.masked_output, MASKED_OUTPUTS)
        for name, meaning in (
            ('unroll', 'the steps in one iteration of the compiled loop'),
            ('remat_segments', 'in how many segments the steps are taken'),
        ):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f'{name}={getattr(self, name)} must be at least 1: {meaning}')
        validation.check_choice('backend', self.backend, ('auto', *lstm.BACKENDS))
        self._check_parallel(self.parallel)
        if self.remat_segments > 1 and self.variable_axes:
            raise ValueError(f'variable_axes={dict(self.variable_axes)} has no time axis with remat_segments above 1')
        super().__post_init__()

    @nn.nowrap
    def _check_parallel(self, parallel: bool) -> None:
        """Raises ValueError where the steps cannot be taken all at once, or something is asked of a loop over them."""
        if not parallel:
            return
        if not hasattr(self.cell, 'affine'):
            raise ValueError(
                'parallel=True needs a cell whose recurrence is linear, such as MinGRUCell; '
                f'{type(self.cell).__name__} goes step by step'
            )
        if (self.unroll or 1) > 1 or self.variable_axes or self.variable_carry or self.split_rngs is not None:
            raise ValueError(
                'parallel=True takes no loop over steps, where unroll, variable_axes, variable_carry and split_rngs '
                'would do anything'
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
        """Runs over time.

        Args:
          inputs: [B, T, F]; [T, B, F] with `time_major`. F stands for as many axes as the cell's features have, B for
            any number of axes.
          initial_carry: what a call with `return_carry` gave; the cell's own by default.
          init_key: for cells whose own initial carry is random.
          seq_lengths: integers [B], 0 to T: how many steps of each row are real, counted from the first. In compiled
            code, which cannot raise, the results of a row whose length is out of range are NaN.
          mask: bool [B, T], also with `time_major`: which steps are real; padding right, left or in holes. With
            `seq_lengths`, a step is real where both say so.
          resets: bool [B, T], also with `time_major`: where a row starts anew.
          return_carry: also return the carry after the last step.
          return_sequences: all outputs [B, T, H], or the last real one in the order of processing [B, H] alone.
          carry_history: the carry that is returned has a time axis of T + 1, where outputs have theirs: before the
            first step and after each, masked ones too; with `reverse` from the last step to the first.
          time_major, reverse, keep_order, masked_output, parallel: as the fields of these names, which they override.
          deterministic: whether cells of `seqjax.nn.cells` drop nothing; by default where there is no stream 'dropout'.

        Returns:
          outputs, or (carry, outputs) as `flax.linen.RNN` does.
        """
        time_major, reverse = either(time_major, self.time_major), either(reverse, self.reverse)
        masked_output, parallel = either(masked_output, self.masked_output), either(parallel, self.parallel)
        validation.check_choice('masked_output', masked_output, MASKED_OUTPUTS)
        self._check_parallel(parallel)
        if isinstance(inputs, tuple):
            raise ValueError(f"inputs are {len(inputs)} arrays and must be one; merge_mode='none' gives such a pair")
        inputs = jnp.asarray(inputs)
        axes = Axes.of(inputs, self.cell.num_feature_axes, time_major)
        real, resets = call_flags(axes, seq_lengths, mask, resets, f'inputs {inputs.shape}')
        fresh = self._fresh_carry(axes, init_key, needed=initial_carry is None or resets is not None)
        carry = fresh if initial_carry is None else _fit(initial_carry, fresh)
        if real is not None or resets is not None or self.remat_segments > 1:
            _check_rows(carry, axes)
        x = jnp.moveaxis(inputs, axes.time, 0)
        if real is not None:
            x = masking.zero(x, real)  # so that NaN in padding never meets a weight
        x = masking.spoil(x, seq_lengths, axes.steps, 0)
        steps = SequenceInputs(x, real, _before(resets, reverse))
        last, outputs, carries = self._run(carry, fresh, steps, axes, reverse, carry_history, parallel, deterministic)

        if carry_history:
            last = _history(carry, carries, reverse, axes)
        if return_sequences:
            outputs = _sequence(outputs, real, reverse, either(keep_order, self.keep_order), masked_output)
            outputs = jax.tree.map(lambda y: jnp.moveaxis(y, 0, axes.time), outputs)
        else:
            outputs = last_outputs(outputs, real, reverse)
        return (last, outputs) if either(return_carry, self.return_carry) or carry_history else outputs

    @property
    def causal(self) -> bool:
        """Whether an output depends on no later input."""
        return not self.reverse

    def _fresh_carry(self, axes: Axes, init_key: jax.Array | None, needed: bool) -> Carry | None:
        """What a row begins with; None where the cell does not say, and it need not, for a carry is given."""
        key = jax.random.key(0) if init_key is None else init_key
        try:
            fresh = self.cell.initialize_carry(key, axes.batch + axes.features)
        except NotImplementedError:
            if needed or self.learn_initial_carry:
                raise
            return None
        if not self.learn_initial_carry:
            return fresh
        _check_rows(fresh, axes)
        one = self.cell.initialize_carry(key, (1,) * len(axes.batch) + axes.features)

        def learned(path, leaf, many):
            name = '_'.join(
                ['initial_carry', *(str(getattr(k, 'name', getattr(k, 'idx', getattr(k, 'key', k)))) for k in path)]
            )
            value = self.param(name, lambda _: leaf.reshape(leaf.shape[len(axes.batch) :]))
            return jnp.broadcast_to(value.reshape((1,) * len(axes.batch) + value.shape), many.shape)

        return jax.tree_util.tree_map_with_path(learned, one, fresh)

    def _run(
        self,
        carry: Carry,
        fresh: Carry | None,
        steps: SequenceInputs,
        axes: Axes,
        reverse: bool,
        history: bool,
        parallel: bool,
        deterministic: bool | None,
    ) -> OverTime:
        lift = {
            'variable_axes': self.variable_axes,
            'variable_broadcast': self.variable_broadcast,
            'variable_carry': self.variable_carry,
            'split_rngs': either(self.split_rngs, {'params': False, nn.DenyList(('params',)): True}),
        }
        noise, call = self._call(axes, deterministic)
        steps = steps._replace(index=jnp.arange(axes.steps))
        how = Scan(reverse, history, self.unroll, lift, fresh, noise, call, self.backend)
        known = common.known(axes.steps)  # neither a tree of steps nor segments can be made of a symbolic number
        run = recurrence.fused if self._fuses(axes) else recurrence.step_by_step
        run = recurrence.at_once if parallel and known else run
        if self.remat_segments == 1 or not known:
            return run(self.cell, carry, steps, how)
        return recurrence.in_segments(run, self.cell, carry, steps, how, self.remat_segments, axes.batch)

    def _fuses(self, axes: Axes) -> bool:
        """Whether an array function takes all steps; not where weights are made, or something of each step is asked."""
        plain = not self.variable_axes and not self.variable_carry and self.variable_broadcast == 'params'
        usual = plain and self.split_rngs is None and len(axes.features) == 1
        if not usual or self.is_initializing() or not getattr(self.cell, 'fused', False):
            return False
        return all(self.cell.has_variable('params', name) for name in self.cell.fused_names)  # else Flax makes them

    def _call(self, axes: Axes, deterministic: bool | None) -> tuple[Any, Callable[..., Any]]:
        """What the cell draws for the sequence, and with that (cell, carry, inputs, index) -> (carry, outputs)."""
        if not getattr(self.cell, 'drops', False):
            return None, lambda cell, carry, x, index: cell(carry, x)  # Flax's protocol
        if deterministic is None:
            deterministic = not self.has_rng('dropout')
        if deterministic:
            return None, lambda cell, carry, x, index: cell(carry, x, deterministic=True)
        noise = self.cell.noise(axes.batch)
        return noise, lambda cell, carry, x, index: cell(carry, x, noise=noise.at(index), deterministic=False)


def call_flags(axes: Axes, seq_lengths: Any, mask: Any, resets: Any, of: str) -> tuple[Any, Any]:
    """The mask and the resets, time first; None where they were not given."""
    real = masking.real_steps(seq_lengths, mask, axes.batch, axes.steps, of=of)
    if resets is not None:
        resets = masking.as_flags(resets, (*axes.batch, axes.steps), of=of, name='resets')
    return tuple(None if flags is None else jnp.moveaxis(flags, -1, 0) for flags in (real, resets))


def _before(resets: jax.Array | None, reverse: bool) -> jax.Array | None:
    """Before which steps the carry is made new: backward in time that is one step further on."""
    if resets is None or not reverse:
        return resets
    return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])


def _check_rows(carry: Carry, axes: Axes) -> None:
    """Raises ValueError where a part of the carry is not of rows, which masks and resets treat one by one."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if leaf.shape[: len(axes.batch)] != axes.batch:
            name = 'carry' + jax.tree_util.keystr(path)
            raise ValueError(
                f'the {name} {leaf.shape} of the cell must begin with the batch axes {axes.batch} of inputs'
            )


def _fit(given: Carry, want: Carry | None) -> Carry:
    """The given carry in the structure of the cell's own: a plain tuple (c, h) or an array is taken too."""
    if want is None:
        return jax.tree.map(jnp.asarray, given)
    if jax.tree.structure(given) != jax.tree.structure(want):
        leaves = list(given) if isinstance(given, tuple | list) else [given]
        if not all(hasattr(leaf, 'shape') for leaf in leaves) or len(leaves) != len(jax.tree.leaves(want)):
            names = jax.tree.map(lambda leaf: f'{leaf.dtype}{list(leaf.shape)}', want)
            raise ValueError(f'initial_carry must be {names} and is of another structure, {jax.tree.structure(given)}')
        given = jax.tree.unflatten(jax.tree.structure(want), leaves)

    def check(path, x, like):
        name, x = 'initial_carry' + jax.tree_util.keystr(path), jnp.asarray(x)
        validation.check_shape(name, x.shape, like.shape, 'the batch axes of inputs and the state of the cell')
        if x.dtype != like.dtype:
            raise ValueError(f'{name} is {x.dtype} and must be {like.dtype}, as the carry of the cell is')
        return x

    return jax.tree_util.tree_map_with_path(check, given, want)


def _sequence(outputs: Any, real: jax.Array | None, reverse: bool, keep_order: bool, masked_output: str) -> Any:
    """Outputs [T, *B, ...] in the order that was asked for, and what masked steps show."""
    if real is not None and masked_output == 'hold':
        processed = masking.flip(outputs, real) if reverse else outputs
        outputs = masking.hold(processed, real, jax.tree.map(lambda y: jnp.zeros(y.shape[1:], y.dtype), outputs))
        return masking.flip(outputs, real) if reverse and keep_order else outputs
    if real is not None:
        outputs = masking.zero(outputs, real)
    return masking.flip(outputs, real) if reverse and not keep_order else outputs


def last_outputs(outputs: Any, real: jax.Array | None, reverse: bool) -> Any:
    """[T, *B, ...] -> [*B, ...]: of the real step that was processed last, and 0 where there is none."""

    def last(y):
        if y.shape[0] == 0:
            return jnp.zeros(y.shape[1:], y.dtype)
        if real is None:
            return y[0 if reverse else -1]
        index = jnp.argmax(real, axis=0)[None] if reverse else jnp.maximum(masking.last_real(real)[-1:], 0)
        return masking.zero(masking.take(y, index)[0], real.any(axis=0))

    return jax.tree.map(last, outputs)


def _history(first: Carry, carries: Carry, reverse: bool, axes: Axes) -> Carry:
    """The first carry and those after every step [T, *B, ...], in the order in which steps are visited."""
    if reverse:
        carries = masking.flip(carries, None)
    return jax.tree.map(lambda x, y: jnp.moveaxis(jnp.concatenate([x[None], y]), 0, axes.time), first, carries)
