"""Layers around recurrent layers: both directions, stacks, streams, time-distributed layers."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqjax import validation
from seqjax.nn import rnn as nn_rnn
from seqjax.nn.recurrence import Carry
from seqjax.nn.rnn import Axes
from seqjax.ops import masking
from seqjax.options import NamedOptions

MERGES: dict[str, Callable[[jax.Array, jax.Array], Any]] = {
    'concat': lambda forward, backward: jnp.concatenate([forward, backward], axis=-1),
    'sum': jnp.add,
    'mul': jnp.multiply,
    'ave': lambda forward, backward: (forward + backward) / 2,
    'none': lambda forward, backward: (forward, backward),
}


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

        Raises ValueError where an argument does not fit; or the forward layer goes backward itself.
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
        options = {**options, 'time_major': nn_rnn.either(time_major, self.time_major), 'return_carry': True}
        forward = self.forward_rnn(inputs, initial_carry=carries[0], init_key=keys[0], **options)
        options |= {'reverse': True, 'keep_order': True}
        backward = self.backward_rnn(inputs, initial_carry=carries[1], init_key=keys[1], **options)
        outputs = merge(forward[1], backward[1])
        return ((forward[0], backward[0]), outputs) if nn_rnn.either(return_carry, self.return_carry) else outputs

    @property
    def causal(self) -> bool:
        return False

    def _merge(self) -> Callable[[jax.Array, jax.Array], Any]:
        if callable(self.merge_mode):
            return self.merge_mode
        mode = 'none' if self.merge_mode is None else self.merge_mode
        validation.check_choice('merge_mode', mode, MERGES)
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

        Raises ValueError where an argument does not fit; or with `residual` a layer is not as wide as its inputs.
        """
        count = len(self.layers)
        carries, keys = _pair('initial_carry', initial_carry, count), _split(init_key, count)
        options = {**options, 'time_major': nn_rnn.either(time_major, self.time_major), 'return_carry': True}
        if deterministic is None:
            deterministic = not self.has_rng('dropout')
        else:
            options['deterministic'] = deterministic
        backward, kept = (
            nn_rnn.either(options.get(name), getattr(self.layers[-1], name, False))
            for name in ('reverse', 'keep_order')
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
        return (carry, outputs) if nn_rnn.either(return_carry, self.return_carry) else outputs

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
        if not isinstance(layer, nn_rnn.RNN):
            raise ValueError(
                f'residual with return_sequences=False needs an RNN as the last layer, not a {type(layer).__name__}: '
                'its summary is of two steps, and its inputs are of one'
            )
        inputs = _summary(inputs, layer, options)
    if isinstance(new, tuple) or new.shape != inputs.shape:
        got = [y.shape for y in new] if isinstance(new, tuple) else new.shape
        raise ValueError(f'residual: the outputs of layers[{i}] {got} must have the shape of its inputs {inputs.shape}')
    return inputs + new


def _summary(inputs: jax.Array, layer: nn_rnn.RNN, options: Mapping[str, Any]) -> jax.Array:
    """The inputs of the step whose output is the summary of `layer`."""
    axes = Axes.of(inputs, layer.cell.num_feature_axes, options['time_major'])
    real, _ = nn_rnn.call_flags(axes, options.get('seq_lengths'), options.get('mask'), None, f'inputs {inputs.shape}')
    steps = jnp.moveaxis(inputs, axes.time, 0)
    return nn_rnn.last_outputs(steps, real, nn_rnn.either(options.get('reverse'), layer.reverse))


class StreamState(NamedTuple):
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
        time_major = nn_rnn.either(options.get('time_major'), getattr(self.rnn, 'time_major', False))
        shape = inputs.shape[:2][::-1] if time_major else inputs.shape[:2]  # [B, T]
        begun = jnp.full(shape[:1], initial_carry is not None)
        if initial_carry is None and self.has_variable('carry', 'stream'):
            stream = self.get_variable('carry', 'stream')
            validation.check_shape(
                'inputs', shape[:1], stream.started.shape, 'the rows of the stream whose carry is kept'
            )
            resets = (
                jnp.zeros(shape, bool)
                if resets is None
                else masking.as_flags(resets, shape, of=f'inputs {inputs.shape}', name='resets')
            )
            resets = resets.at[:, :1].set(resets[:, :1] | ~stream.started[:, None])
            initial_carry, begun = stream.carry, stream.started
        carry, outputs = self.rnn(inputs, initial_carry=initial_carry, resets=resets, return_carry=True, **options)
        if self.is_mutable_collection('carry'):
            real = masking.real_steps(options.get('seq_lengths'), options.get('mask'), shape[:1], shape[1], of='inputs')
            begun |= shape[1] > 0 if real is None else real.any(axis=1)  # not by steps that are none
            stream = StreamState(begun, jax.lax.stop_gradient(carry))
            if self.is_initializing():
                stream = jax.tree.map(jnp.zeros_like, stream)
            self.put_variable('carry', 'stream', stream)
        return (carry, outputs) if nn_rnn.either(return_carry, getattr(self.rnn, 'return_carry', False)) else outputs

    @property
    def causal(self) -> bool:
        return True


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
            inputs = masking.zero(inputs, real)
        spread = nn.vmap(
            lambda module, x, mask: module(x, *args, **kwargs, **({} if mask is None else {'mask': mask})),
            variable_axes={'params': None},
            split_rngs={'params': False, nn.DenyList(('params',)): True},
            in_axes=1,
            out_axes=1,
        )
        outputs = spread(self.module, inputs, passed)
        return outputs if real is None else masking.zero(outputs, real)

    def _masks(self, inputs: jax.Array, mask: Any) -> tuple[jax.Array | None, jax.Array | None]:
        """Which steps are real [B, T], and the mask for the module; None for either that there is not."""
        if mask is None:
            return None, None
        of, axes = f'inputs {inputs.shape}', jnp.ndim(mask)
        recurrent = isinstance(self.module, nn_rnn.RNN | Bidirectional | Stack | Stateful)
        # The `mask` of a normalisation is over the features.
        norm = isinstance(self.module, nn.BatchNorm | nn.LayerNorm | nn.RMSNorm | nn.GroupNorm)
        takes = recurrent or ('mask' in inspect.signature(type(self.module).__call__).parameters and not norm)
        if axes <= 2 or not takes:
            real = masking.as_flags(mask, inputs.shape[:2], of=of)
            if recurrent:  # a masked step has no real step within
                shape = _mask_shape(inputs, self.module)
                return real, jnp.broadcast_to(masking.expand(real, len(shape)), shape)
            return real, real if takes else None
        mask = masking.as_flags(mask, _mask_shape(inputs, self.module) if recurrent else inputs.shape[:axes], of=of)
        return mask.any(axis=tuple(range(2, mask.ndim))), mask


def _mask_shape(inputs: jax.Array, layer: nn.Module) -> tuple[int, ...]:
    """The shape [B, T, *B, S] of a mask for a recurrent layer that reads [*B, S, F] at each step of the inputs."""
    while not hasattr(layer, 'cell'):
        layer = next(getattr(layer, name) for name in ('forward_rnn', 'rnn', 'layers') if hasattr(layer, name))
        layer = layer[0] if isinstance(layer, tuple) else layer
    return inputs.shape[: -layer.cell.num_feature_axes]
