"""Over time: a cell carried along, both directions, stacks, streams; any module spread by `nn.vmap`.

Every recurrent layer here is called in the same way, and hands out a carry that it takes back unchanged:

    layer(inputs, initial_carry=, init_key=, seq_lengths=, mask=, resets=, return_carry=, return_sequences=,
          time_major=, masked_output=, deterministic=)

    layer           carry
    RNN             the cell's: LSTMCarry(c, h), HiddenCarry(h), whatever a cell of Flax's has
    Bidirectional   (forward carry, backward carry)
    Stack           (carry of the first layer, ..., carry of the last)
    Stateful        that of its layer
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from seqjax import lstm_ops, masks, ops
from seqjax.options import NamedOptions
from seqjax.recurrence import (
    Carry,
    Run,
    Scan,
    Steps,
    at_once,
    fused,
    in_segments,
    step_by_step,
)

MASKED_OUTPUTS = ('zero', 'hold')
MERGES: dict[str, Callable[[jax.Array, jax.Array], Any]] = {
    'concat': lambda forward, backward: jnp.concatenate([forward, backward], axis=-1),
    'sum': jnp.add,
    'mul': jnp.multiply,
    'ave': lambda forward, backward: (forward + backward) / 2,
    'none': lambda forward, backward: (forward, backward),
}


def _either(call: Any, field: Any) -> Any:
    """An option of the call, or where that is None of the layer."""
    return field if call is None else call


# --- one cell --------------------------------------------------------------------------------------


class _Axes(NamedTuple):
    """What the axes of a layer's inputs are."""

    batch: tuple[int, ...]
    steps: int
    features: tuple[int, ...]
    time: int  # which axis it is

    @classmethod
    def of(cls, inputs: jax.Array, num_feature_axes: int, time_major: bool) -> _Axes:
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

    Cells that drop (`recurrent_dropout`, `drop_connect`, `zoneout_h` of `seqjax.cells`) do so where the call has a
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
    parallel: bool = False  # all steps at once: for the cells of `seqjax.linear`
    backend: str = 'auto'  # of an LSTM or a GRU without variants: a key of BACKENDS in `lstm_ops` or `gru_ops`
    remat_segments: int = 1  # above 1: that many segments, each computed again in the backward pass, to save memory

    def __post_init__(self) -> None:
        masks.check_choice('masked_output', self.masked_output, MASKED_OUTPUTS)
        for name, meaning in (
            ('unroll', 'the steps in one iteration of the compiled loop'),
            ('remat_segments', 'in how many segments the steps are taken'),
        ):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f'{name}={getattr(self, name)} must be at least 1: {meaning}')
        masks.check_choice('backend', self.backend, ('auto', *lstm_ops.BACKENDS))
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
          deterministic: whether cells of `seqjax.cells` drop nothing; by default where there is no stream 'dropout'.

        Returns:
          outputs, or (carry, outputs) as `flax.linen.RNN` does.

        Raises:
          ValueError: an argument does not fit the others; the message names it.
        """
        time_major, reverse = _either(time_major, self.time_major), _either(reverse, self.reverse)
        masked_output, parallel = _either(masked_output, self.masked_output), _either(parallel, self.parallel)
        masks.check_choice('masked_output', masked_output, MASKED_OUTPUTS)
        self._check_parallel(parallel)
        if isinstance(inputs, tuple):
            raise ValueError(f"inputs are {len(inputs)} arrays and must be one; merge_mode='none' gives such a pair")
        inputs = jnp.asarray(inputs)
        axes = _Axes.of(inputs, self.cell.num_feature_axes, time_major)
        real, resets = _flags(axes, seq_lengths, mask, resets, f'inputs {inputs.shape}')
        fresh = self._fresh_carry(axes, init_key, needed=initial_carry is None or resets is not None)
        carry = fresh if initial_carry is None else _fit(initial_carry, fresh)
        if real is not None or resets is not None or self.remat_segments > 1:
            _check_rows(carry, axes)
        x = jnp.moveaxis(inputs, axes.time, 0)
        if real is not None:
            x = masks.zero(x, real)  # so that NaN in padding never meets a weight
        x = masks.spoil(x, seq_lengths, axes.steps, 0)
        steps = Steps(x, real, _before(resets, reverse))
        last, outputs, carries = self._run(carry, fresh, steps, axes, reverse, carry_history, parallel, deterministic)

        if carry_history:
            last = _history(carry, carries, reverse, axes)
        if return_sequences:
            outputs = _sequence(outputs, real, reverse, _either(keep_order, self.keep_order), masked_output)
            outputs = jax.tree.map(lambda y: jnp.moveaxis(y, 0, axes.time), outputs)
        else:
            outputs = _last(outputs, real, reverse)
        return (last, outputs) if _either(return_carry, self.return_carry) or carry_history else outputs

    @property
    def causal(self) -> bool:
        """Whether an output depends on no later input."""
        return not self.reverse

    def _fresh_carry(self, axes: _Axes, init_key: jax.Array | None, needed: bool) -> Carry | None:
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
        steps: Steps,
        axes: _Axes,
        reverse: bool,
        history: bool,
        parallel: bool,
        deterministic: bool | None,
    ) -> Run:
        lift = {
            'variable_axes': self.variable_axes,
            'variable_broadcast': self.variable_broadcast,
            'variable_carry': self.variable_carry,
            'split_rngs': _either(self.split_rngs, {'params': False, nn.DenyList(('params',)): True}),
        }
        noise, call = self._call(axes, deterministic)
        steps = steps._replace(index=jnp.arange(axes.steps))
        how = Scan(reverse, history, self.unroll, lift, fresh, noise, call, self.backend)
        known = ops.known(axes.steps)  # neither a tree of steps nor segments can be made of a symbolic number
        run = at_once if parallel and known else fused if self._fuses(axes) else step_by_step
        if self.remat_segments == 1 or not known:
            return run(self.cell, carry, steps, how)
        return in_segments(run, self.cell, carry, steps, how, self.remat_segments, axes.batch)

    def _fuses(self, axes: _Axes) -> bool:
        """Whether an array function takes all steps; not where weights are made, or something of each step is asked."""
        plain = not self.variable_axes and not self.variable_carry and self.variable_broadcast == 'params'
        usual = plain and self.split_rngs is None and len(axes.features) == 1
        if not usual or self.is_initializing() or not getattr(self.cell, 'fused', False):
            return False
        return all(self.cell.has_variable('params', name) for name in self.cell.fused_names)  # else Flax makes them

    def _call(self, axes: _Axes, deterministic: bool | None) -> tuple[Any, Callable[..., Any]]:
        """What the cell draws for the sequence, and with that (cell, carry, inputs, index) -> (carry, outputs)."""
        if not getattr(self.cell, 'drops', False):
            return None, lambda cell, carry, x, index: cell(carry, x)  # Flax's protocol
        if deterministic is None:
            deterministic = not self.has_rng('dropout')
        if deterministic:
            return None, lambda cell, carry, x, index: cell(carry, x, deterministic=True)
        noise = self.cell.noise(axes.batch)
        return noise, lambda cell, carry, x, index: cell(carry, x, noise=noise.at(index), deterministic=False)


def _flags(axes: _Axes, seq_lengths: Any, mask: Any, resets: Any, of: str) -> tuple[Any, Any]:
    """The mask and the resets, time first; None where they were not given."""
    real = masks.real_steps(seq_lengths, mask, axes.batch, axes.steps, of=of)
    if resets is not None:
        resets = masks.as_flags(resets, (*axes.batch, axes.steps), of=of, name='resets')
    return tuple(None if flags is None else jnp.moveaxis(flags, -1, 0) for flags in (real, resets))


def _before(resets: jax.Array | None, reverse: bool) -> jax.Array | None:
    """Before which steps the carry is made new: backward in time that is one step further on."""
    if resets is None or not reverse:
        return resets
    return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])


def _check_rows(carry: Carry, axes: _Axes) -> None:
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
        masks.check_shape(name, x.shape, like.shape, 'the batch axes of inputs and the state of the cell')
        if x.dtype != like.dtype:
            raise ValueError(f'{name} is {x.dtype} and must be {like.dtype}, as the carry of the cell is')
        return x

    return jax.tree_util.tree_map_with_path(check, given, want)


def _sequence(outputs: Any, real: jax.Array | None, reverse: bool, keep_order: bool, masked_output: str) -> Any:
    """Outputs [T, *B, ...] in the order that was asked for, and what masked steps show."""
    if real is not None and masked_output == 'hold':
        processed = masks.flip(outputs, real) if reverse else outputs
        outputs = masks.hold(processed, real, jax.tree.map(lambda y: jnp.zeros(y.shape[1:], y.dtype), outputs))
        return masks.flip(outputs, real) if reverse and keep_order else outputs
    if real is not None:
        outputs = masks.zero(outputs, real)
    return masks.flip(outputs, real) if reverse and not keep_order else outputs


def _last(outputs: Any, real: jax.Array | None, reverse: bool) -> Any:
    """[T, *B, ...] -> [*B, ...]: of the real step that was processed last, and 0 where there is none."""

    def last(y):
        if y.shape[0] == 0:
            return jnp.zeros(y.shape[1:], y.dtype)
        if real is None:
            return y[0 if reverse else -1]
        index = jnp.argmax(real, axis=0)[None] if reverse else jnp.maximum(masks.last_real(real)[-1:], 0)
        return masks.zero(masks.take(y, index)[0], real.any(axis=0))

    return jax.tree.map(last, outputs)


def _history(first: Carry, carries: Carry, reverse: bool, axes: _Axes) -> Carry:
    """The first carry and those after every step [T, *B, ...], in the order in which steps are visited."""
    if reverse:
        carries = masks.flip(carries, None)
    return jax.tree.map(lambda x, y: jnp.moveaxis(jnp.concatenate([x[None], y]), 0, axes.time), first, carries)


# --- both directions -------------------------------------------------------------------------------


class Bidirectional(NamedOptions, nn.Module):
    """Reads the sequence in both directions and merges the outputs step by step, as `flax.linen.Bidirectional` does.

    With `return_sequences=False` the summary is merged from what each direction has at its own end: forward at the last
    real step, backward at the first. (The last step of the sequence of outputs has read one step backward.)
    """

    forward_rnn: nn.Module
    backward_rnn: nn.Module  # told to go backward and to keep the order of its inputs
    merge_mode: str | Callable[[jax.Array, jax.Array], Any] | None = 'concat'  # a key of MERGES, or a function
    time_major: bool = False
    return_carry: bool = False

    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: tuple[Carry, Carry] | None = None,
        init_key: jax.Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        **options: Any,
    ) -> Any:
        """See `RNN`; the carry is (forward, backward). With merge_mode 'none' the outputs are a pair as well.

        Raises:
          ValueError: an argument does not fit; or the forward layer goes backward itself.
        """
        merge = self._merge()
        if self.forward_rnn is self.backward_rnn:
            raise ValueError(
                'forward_rnn and backward_rnn are one object; give two, for the directions have their own weights'
            )
        if getattr(self.forward_rnn, 'cell', None) is getattr(self.backward_rnn, 'cell', self):
            raise ValueError(
                'forward_rnn and backward_rnn have one cell; give two, or clone it: each has its own weights'
            )
        options.pop('keep_order', None)  # its outputs are always in the order of the inputs
        if options.pop('reverse', None):
            raise ValueError('reverse: a Bidirectional layer reads both ways already')
        if not getattr(self.forward_rnn, 'causal', True):
            raise ValueError('forward_rnn goes backward itself; give it reverse=False')
        carries, keys = _pair('initial_carry', initial_carry), _split(init_key, 2)
        options = {**options, 'time_major': _either(time_major, self.time_major), 'return_carry': True}
        forward = self.forward_rnn(inputs, initial_carry=carries[0], init_key=keys[0], **options)
        options |= {'reverse': True, 'keep_order': True}
        backward = self.backward_rnn(inputs, initial_carry=carries[1], init_key=keys[1], **options)
        outputs = merge(forward[1], backward[1])
        return ((forward[0], backward[0]), outputs) if _either(return_carry, self.return_carry) else outputs

    @property
    def causal(self) -> bool:
        return False

    def _merge(self) -> Callable[[jax.Array, jax.Array], Any]:
        if callable(self.merge_mode):
            return self.merge_mode
        mode = 'none' if self.merge_mode is None else self.merge_mode
        masks.check_choice('merge_mode', mode, MERGES)
        return MERGES[mode]


def _pair(name: str, given: Any, count: int = 2) -> Sequence[Any]:
    if given is None:
        return (None,) * count
    if not isinstance(given, tuple | list) or len(given) != count:
        kind = f'{len(given)} parts' if isinstance(given, tuple | list) else type(given).__name__
        raise ValueError(f'{name} must have {count} parts, one for each layer or direction, and is {kind}')
    return given


def _split(key: jax.Array | None, count: int) -> Sequence[Any]:
    return (None,) * count if key is None else jax.random.split(key, count)


# --- stacks ----------------------------------------------------------------------------------------


class Stack(NamedOptions, nn.Module):
    """Layers in turn, each reading the outputs of the one before; the carry is a tuple with a part for each.

    Dropout stands between two layers, so one layer has none. It acts where the call has a random stream 'dropout', as
    in training, or where `deterministic` is False; without a stream nothing is dropped.
    """

    layers: Sequence[nn.Module]
    dropout: float = 0.0
    residual: bool = False  # from the second layer on, a layer's inputs are added to its outputs
    time_major: bool = False
    return_carry: bool = False

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError('layers is empty; a stack has at least one')
        for i, layer in enumerate(self.layers):
            if isinstance(layer, nn.RNNCellBase):
                kind = type(layer).__name__
                raise ValueError(f'layers[{i}] is a cell, {kind}: write RNN({kind}(...)), which carries it over time')
        check_dropout(self.dropout, len(self.layers))
        object.__setattr__(self, 'layers', tuple(self.layers))  # a list could not be hashed
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Sequence[Carry] | None = None,
        init_key: jax.Array | None = None,
        return_carry: bool | None = None,
        return_sequences: bool = True,
        time_major: bool | None = None,
        deterministic: bool | None = None,
        **options: Any,
    ) -> Any:
        """See `RNN`.

        Raises:
          ValueError: an argument does not fit; or with `residual` a layer is not as wide as its inputs.
        """
        count = len(self.layers)
        carries, keys = _pair('initial_carry', initial_carry, count), _split(init_key, count)
        options = {**options, 'time_major': _either(time_major, self.time_major), 'return_carry': True}
        if deterministic is None:
            deterministic = not self.has_rng('dropout')
        else:
            options['deterministic'] = deterministic
        backward, kept = (
            _either(options.get(name), getattr(self.layers[-1], name, False)) for name in ('reverse', 'keep_order')
        )
        if self.residual and count > 1 and return_sequences and backward and not kept:
            raise ValueError('residual with reverse=True needs keep_order=True, so that inputs and outputs line up')
        outputs, last_carries = inputs, []
        for i, (layer, carry, key) in enumerate(zip(self.layers, carries, keys, strict=True)):
            if i:
                outputs = nn.Dropout(self.dropout)(outputs, deterministic=deterministic)
            whole = return_sequences or i < count - 1
            # All layers but the last hand on what they made in the order of their inputs: that of mask and resets.
            order = {'keep_order': True} if i < count - 1 else {}
            carry, new = layer(outputs, initial_carry=carry, init_key=key, return_sequences=whole, **(options | order))
            outputs = _add(i, new, outputs, layer, whole, options) if self.residual and i else new
            last_carries.append(carry)
        carry = tuple(last_carries)
        return (carry, outputs) if _either(return_carry, self.return_carry) else outputs

    @property
    def causal(self) -> bool:
        return all(getattr(layer, 'causal', True) for layer in self.layers)


def check_dropout(rate: float, layers: int) -> None:
    """Raises ValueError where the rate is none; warns where there are no two layers for it to stand between."""
    if not 0 <= rate < 1:
        raise ValueError(f'dropout={rate} must be from 0 to below 1: the share of values that is dropped')
    if rate and layers == 1:
        warnings.warn(f'dropout={rate} does nothing with one layer: it stands between two', UserWarning, stacklevel=3)


def _add(i: int, new: Any, inputs: jax.Array, layer: nn.Module, whole: bool, options: Mapping[str, Any]) -> jax.Array:
    """The residual connection of layer i."""
    if not whole:
        if not isinstance(layer, RNN):
            raise ValueError(
                f'residual with return_sequences=False needs an RNN as the last layer, not a {type(layer).__name__}: '
                'its summary is of two steps, and its inputs are of one'
            )
        inputs = _summary(inputs, layer, options)
    if isinstance(new, tuple) or new.shape != inputs.shape:
        got = [y.shape for y in new] if isinstance(new, tuple) else new.shape
        raise ValueError(f'residual: the outputs of layers[{i}] {got} must have the shape of its inputs {inputs.shape}')
    return inputs + new


def _summary(inputs: jax.Array, layer: RNN, options: Mapping[str, Any]) -> jax.Array:
    """The inputs of the step whose output is the summary of `layer`."""
    axes = _Axes.of(inputs, layer.cell.num_feature_axes, options['time_major'])
    real, _ = _flags(axes, options.get('seq_lengths'), options.get('mask'), None, f'inputs {inputs.shape}')
    steps = jnp.moveaxis(inputs, axes.time, 0)
    return _last(steps, real, _either(options.get('reverse'), layer.reverse))


# --- streams ---------------------------------------------------------------------------------------


class Stream(NamedTuple):
    """What the collection 'carry' keeps of a `Stateful` layer between two windows; all zeros before the first."""

    started: jax.Array  # [B] bool
    carry: Carry  # of the layer, after the window before


class Stateful(NamedOptions, nn.Module):
    """Goes on where the call before it ended: windows of a long stream, row by row (truncated backpropagation).

    The carry lives in the mutable collection 'carry': values go on, gradients stop at the window's edge (Williams and
    Peng 1990). Where that collection is not mutable, it is read and not written; where it is absent, rows start anew.
    `resets` start a row anew, as in `RNN`; `initial_carry` replaces what is kept.
    """

    rnn: nn.Module

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Carry | None = None,
        resets: jax.Array | None = None,
        return_carry: bool | None = None,
        **options: Any,
    ) -> Any:
        """See `RNN`.

        Raises:
          ValueError: an argument does not fit; the layer reads backward, which a stream cannot; or the batch is not the
            one whose carry is kept.
        """
        if not getattr(self.rnn, 'causal', True) or options.get('reverse'):
            raise ValueError(f'a stream has no end to begin at: {type(self.rnn).__name__} must read forward alone')
        inputs = jnp.asarray(inputs)
        if inputs.ndim < 3:
            raise ValueError(f'inputs {inputs.shape} must be [B, T, F]: a stream has rows')
        if options.get('carry_history'):
            raise ValueError('carry_history: a Stateful layer keeps one carry, the last; ask the layer within')
        time_major = _either(options.get('time_major'), getattr(self.rnn, 'time_major', False))
        shape = inputs.shape[:2][::-1] if time_major else inputs.shape[:2]  # [B, T]
        begun = jnp.full(shape[:1], initial_carry is not None)
        if initial_carry is None and self.has_variable('carry', 'stream'):
            stream = self.get_variable('carry', 'stream')
            masks.check_shape('inputs', shape[:1], stream.started.shape, 'the rows of the stream whose carry is kept')
            resets = (
                jnp.zeros(shape, bool)
                if resets is None
                else masks.as_flags(resets, shape, of=f'inputs {inputs.shape}', name='resets')
            )
            resets = resets.at[:, :1].set(resets[:, :1] | ~stream.started[:, None])
            initial_carry, begun = stream.carry, stream.started
        carry, outputs = self.rnn(inputs, initial_carry=initial_carry, resets=resets, return_carry=True, **options)
        if self.is_mutable_collection('carry'):
            real = masks.real_steps(options.get('seq_lengths'), options.get('mask'), shape[:1], shape[1], of='inputs')
            begun |= shape[1] > 0 if real is None else real.any(axis=1)  # not by steps that are none
            stream = Stream(begun, jax.lax.stop_gradient(carry))
            if self.is_initializing():
                stream = jax.tree.map(jnp.zeros_like, stream)
            self.put_variable('carry', 'stream', stream)
        return (carry, outputs) if _either(return_carry, getattr(self.rnn, 'return_carry', False)) else outputs

    @property
    def causal(self) -> bool:
        return True


# --- any module ------------------------------------------------------------------------------------


class TimeDistributed(NamedOptions, nn.Module):
    """Applies one module to every time step: [B, T, ...] -> [B, T, ...], one set of parameters for all steps.

    Random streams (dropout) are drawn anew at every step.

    >>> layer = TimeDistributed(nn.Dense(2))
    >>> params = layer.init(jax.random.key(0), jnp.ones((3, 7, 4)))
    >>> jax.tree.map(jnp.shape, params)
    {'params': {'module': {'bias': (2,), 'kernel': (4, 2)}}}
    """

    module: nn.Module

    def __call__(self, inputs: jax.Array, *args: Any, mask: jax.Array | None = None, **kwargs: Any) -> Any:
        """Applies the module to inputs[:, t] for every t.

        Args:
          inputs: [B, T, ...].
          mask: bool [B, T]: which steps are real. Outputs of masked steps are 0 (a dense layer's bias is not), and
            inputs of masked steps reach nothing. A module that has an argument `mask` is given mask[:, t], and its mask
            may have further axes of the inputs; that of a recurrent layer over [B, T, S, F] is [B, T, S] or [B, T].
          args, kwargs: reach every step as they are.

        Returns:
          What the module returns, with time as axis 1.

        Raises:
          ValueError: the inputs have no time axis, or the mask does not fit them.
        """
        inputs = jnp.asarray(inputs)
        if inputs.ndim < 2:
            raise ValueError(f'inputs {inputs.shape} must be [B, T, ...]: the time axis is axis 1')
        real, passed = self._masks(inputs, mask)
        if real is not None:
            inputs = masks.zero(inputs, real)
        spread = nn.vmap(
            lambda module, x, mask: module(x, *args, **kwargs, **({} if mask is None else {'mask': mask})),
            variable_axes={'params': None},
            split_rngs={'params': False, nn.DenyList(('params',)): True},
            in_axes=1,
            out_axes=1,
        )
        outputs = spread(self.module, inputs, passed)
        return outputs if real is None else masks.zero(outputs, real)

    def _masks(self, inputs: jax.Array, mask: Any) -> tuple[jax.Array | None, jax.Array | None]:
        """Which steps are real [B, T], and the mask for the module; None for either that there is not."""
        if mask is None:
            return None, None
        of, axes = f'inputs {inputs.shape}', jnp.ndim(mask)
        recurrent = isinstance(self.module, RNN | Bidirectional | Stack | Stateful)
        # The `mask` of a normalisation is over the features.
        norm = isinstance(self.module, nn.BatchNorm | nn.LayerNorm | nn.RMSNorm | nn.GroupNorm)
        takes = recurrent or ('mask' in inspect.signature(type(self.module).__call__).parameters and not norm)
        if axes <= 2 or not takes:
            real = masks.as_flags(mask, inputs.shape[:2], of=of)
            if recurrent:  # a masked step has no real step within
                shape = _mask_shape(inputs, self.module)
                return real, jnp.broadcast_to(masks.expand(real, len(shape)), shape)
            return real, real if takes else None
        mask = masks.as_flags(mask, _mask_shape(inputs, self.module) if recurrent else inputs.shape[:axes], of=of)
        return mask.any(axis=tuple(range(2, mask.ndim))), mask


def _mask_shape(inputs: jax.Array, layer: nn.Module) -> tuple[int, ...]:
    """The shape [B, T, *B, S] of a mask for a recurrent layer that reads [*B, S, F] at each step of the inputs."""
    while not hasattr(layer, 'cell'):
        layer = next(getattr(layer, name) for name in ('forward_rnn', 'rnn', 'layers') if hasattr(layer, name))
        layer = layer[0] if isinstance(layer, tuple) else layer
    return inputs.shape[: -layer.cell.num_feature_axes]
