"""Wrappers of recurrent layers (Bidirectional, Stack, Stateful), and TimeDistributed for any module."""

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
    """Runs two layers in opposite directions and merges their outputs step by step, like `flax.linen.Bidirectional`.

    With `return_sequences=False` the last processed outputs of both directions are merged: the forward layer's at the
    last valid step, the backward layer's at the first. That differs from the last step of the output sequence, where
    the backward layer has read only one step.
    """

    forward_rnn: nn.Module
    backward_rnn: nn.Module  # called with reverse=True and keep_order=True
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
        """Runs both layers and merges their outputs; arguments and results as in `RNN`.

        The carry is a pair (forward, backward); so are the outputs with merge_mode 'none'.

        Raises:
          ValueError: an argument is invalid, both layers are the same object or share a cell, or the forward layer is
            not causal.
        """
        merge = self._merge()
        if self.forward_rnn is self.backward_rnn:
            raise ValueError(
                'forward_rnn and backward_rnn are the same object; pass two, as each direction needs its own weights'
            )
        if getattr(self.forward_rnn, 'cell', None) is getattr(self.backward_rnn, 'cell', self):
            raise ValueError(
                'forward_rnn and backward_rnn share a cell; pass two cells, as each direction needs its own weights'
            )
        options.pop('keep_order', None)  # outputs are always in the order of the inputs
        if options.pop('reverse', None):
            raise ValueError('reverse=True is not supported by a Bidirectional layer, which runs both ways; omit it')
        if not getattr(self.forward_rnn, 'causal', True):
            raise ValueError('forward_rnn must be causal; pass a layer with reverse=False that is not Bidirectional')
        carries, keys = _parts('initial_carry', initial_carry), _split(init_key, 2)
        options = {**options, 'time_major': nn_rnn.override(time_major, self.time_major), 'return_carry': True}
        forward = self.forward_rnn(inputs, initial_carry=carries[0], init_key=keys[0], **options)
        options |= {'reverse': True, 'keep_order': True}
        backward = self.backward_rnn(inputs, initial_carry=carries[1], init_key=keys[1], **options)
        outputs = merge(forward[1], backward[1])
        return ((forward[0], backward[0]), outputs) if nn_rnn.override(return_carry, self.return_carry) else outputs

    @property
    def causal(self) -> bool:
        return False

    def _merge(self) -> Callable[[jax.Array, jax.Array], Any]:
        if callable(self.merge_mode):
            return self.merge_mode
        mode = 'none' if self.merge_mode is None else self.merge_mode
        validation.check_choice('merge_mode', mode, MERGES)
        return MERGES[mode]


def _parts(name: str, value: Any, count: int = 2) -> Sequence[Any]:
    """Returns the parts of a carry; `count` times None if it is None. Raises ValueError for another number of parts."""
    if value is None:
        return (None,) * count
    if not isinstance(value, tuple | list) or len(value) != count:
        kind = f'has {len(value)} parts' if isinstance(value, tuple | list) else f'is of type {type(value).__name__}'
        raise ValueError(f'{name} must be a tuple of {count} parts, one for each layer or direction, but {kind}')
    return value


def _split(key: jax.Array | None, count: int) -> Sequence[Any]:
    return (None,) * count if key is None else jax.random.split(key, count)


class Stack(NamedOptions, nn.Module):
    """Stacked layers, each reading the outputs of the layer before; the carry is a tuple with a part for each layer.

    Dropout acts between two layers, so a stack of one layer has none. Dropout is active if the call has a random stream
    'dropout', as in training, or if `deterministic` is False.
    """

    layers: Sequence[nn.Module]  # recurrent layers, from the inputs to the outputs
    dropout: float = 0.0  # fraction of values dropped between two layers
    residual: bool = False  # from the second layer on, a layer's inputs are added to its outputs
    time_major: bool = False
    return_carry: bool = False

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError('layers is empty; pass at least one layer')
        for i, layer in enumerate(self.layers):
            if isinstance(layer, nn.RNNCellBase):
                kind = type(layer).__name__
                raise ValueError(f'layers[{i}] is a cell, {kind}; use RNN({kind}(...)), which runs it over time')
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
        """Runs the layers one after the other; arguments and results as in `RNN`, with a tuple of carries.

        Raises:
          ValueError: an argument is invalid, or with `residual` a layer returns another shape than it reads.
        """
        count = len(self.layers)
        carries, keys = _parts('initial_carry', initial_carry, count), _split(init_key, count)
        options = {**options, 'time_major': nn_rnn.override(time_major, self.time_major), 'return_carry': True}
        if deterministic is None:
            deterministic = not self.has_rng('dropout')
        else:
            options['deterministic'] = deterministic
        backward, keep_order = (
            nn_rnn.override(options.get(name), getattr(self.layers[-1], name, False))
            for name in ('reverse', 'keep_order')
        )
        if self.residual and count > 1 and return_sequences and backward and not keep_order:
            raise ValueError('residual=True with reverse=True needs keep_order=True, the order of the inputs')
        outputs, last_carries = inputs, []
        for i, (layer, carry, key) in enumerate(zip(self.layers, carries, keys, strict=True)):
            if i:
                outputs = nn.Dropout(self.dropout)(outputs, deterministic=deterministic)
            all_steps = return_sequences or i < count - 1
            # Between layers, outputs are in the order of the inputs, which is also the order of mask and resets.
            order = {'keep_order': True} if i < count - 1 else {}
            carry, new = layer(
                outputs, initial_carry=carry, init_key=key, return_sequences=all_steps, **(options | order)
            )
            outputs = _add(i, new, outputs, layer, all_steps, options) if self.residual and i else new
            last_carries.append(carry)
        carry = tuple(last_carries)
        return (carry, outputs) if nn_rnn.override(return_carry, self.return_carry) else outputs

    @property
    def causal(self) -> bool:
        return all(getattr(layer, 'causal', True) for layer in self.layers)


def check_dropout(rate: float, layers: int) -> None:
    """Raises ValueError if the rate is not from 0 to below 1; warns if it is above 0 and `layers` is 1."""
    if not 0 <= rate < 1:
        raise ValueError(f'dropout={rate} must be from 0 to below 1: the fraction of values that is dropped')
    if rate and layers == 1:
        warnings.warn(f'dropout={rate} has no effect on one layer: it acts between layers', UserWarning, stacklevel=3)


def _add(
    i: int, new: Any, inputs: jax.Array, layer: nn.Module, all_steps: bool, options: Mapping[str, Any]
) -> jax.Array:
    """Returns the outputs `new` of `layer`, number i, plus the inputs of the layer.

    Without `all_steps`, `new` is the last output, and only the inputs of that step are added. Raises ValueError if the
    shapes differ, or if without `all_steps` the layer is not an `RNN`.
    """
    if not all_steps:
        if not isinstance(layer, nn_rnn.RNN):
            raise ValueError(
                'residual=True with return_sequences=False needs an RNN as the last layer, not a '
                f'{type(layer).__name__}; use return_sequences=True'
            )
        inputs = _last_inputs(inputs, layer, options)
    if isinstance(new, tuple) or new.shape != inputs.shape:
        got = [y.shape for y in new] if isinstance(new, tuple) else new.shape
        raise ValueError(
            f'residual=True: the outputs of layers[{i}] {got} must have the shape of its inputs {inputs.shape}; use '
            'layers with the same number of features'
        )
    return inputs + new


def _last_inputs(inputs: jax.Array, layer: nn_rnn.RNN, options: Mapping[str, Any]) -> jax.Array:
    """Returns the inputs [*B, F] of the step whose output `layer` returns with `return_sequences=False`."""
    axes = Axes.of(inputs, layer.cell.num_feature_axes, options['time_major'])
    valid, _ = nn_rnn.call_flags(axes, options.get('seq_lengths'), options.get('mask'), None, f'inputs {inputs.shape}')
    steps = jnp.moveaxis(inputs, axes.time, 0)
    return nn_rnn.last_outputs(steps, valid, nn_rnn.override(options.get('reverse'), layer.reverse))


class StreamState(NamedTuple):
    """State of a `Stateful` layer between two calls, stored in the collection 'carry'; zeros before the first call."""

    started: jax.Array  # [B] bool, True if the row has had a valid step or an `initial_carry`
    carry: Carry  # carry of the wrapped layer after the previous call


class Stateful(NamedOptions, nn.Module):
    """Wrapper of a recurrent layer that keeps the carry between calls, for consecutive windows of a long stream.

    The carry is stored in the mutable collection 'carry'. Gradients stop at the edge of a window: this is truncated
    backpropagation through time (Williams and Peng 1990). If the collection is immutable, the carry is read but not
    stored; if the collection is absent, rows start from the initial carry of the layer.

    `resets` act as in `RNN`; `initial_carry` replaces the stored carry in a call.
    """

    rnn: nn.Module  # the wrapped layer, which must be causal

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
        """Runs the wrapped layer from the stored carry, and stores its last carry; arguments and results as in `RNN`.

        Raises:
          ValueError: an argument is invalid, the layer is not causal, or the stored carry has another batch size.
        """
        if not getattr(self.rnn, 'causal', True) or options.get('reverse'):
            raise ValueError(
                f'Stateful needs a causal layer, and {type(self.rnn).__name__} reads later steps; use reverse=False '
                'and no Bidirectional layer'
            )
        inputs = jnp.asarray(inputs)
        if inputs.ndim < 3:
            raise ValueError(f'inputs {inputs.shape} must be [B, T, F], or [T, B, F] with time_major')
        if options.get('carry_history'):
            raise ValueError('carry_history=True is not supported by a Stateful layer; call the wrapped layer itself')
        time_major = nn_rnn.override(options.get('time_major'), getattr(self.rnn, 'time_major', False))
        shape = inputs.shape[:2][::-1] if time_major else inputs.shape[:2]  # [B, T]
        started = jnp.full(shape[:1], initial_carry is not None)
        if initial_carry is None and self.has_variable('carry', 'stream'):
            stream = self.get_variable('carry', 'stream')
            validation.check_shape('inputs', shape[:1], stream.started.shape, 'the batch size of the stored carry')
            resets = (
                jnp.zeros(shape, bool)
                if resets is None
                else masking.as_flags(resets, shape, of=f'inputs {inputs.shape}', name='resets')
            )
            resets = resets.at[:, :1].set(resets[:, :1] | ~stream.started[:, None])
            initial_carry, started = stream.carry, stream.started
        carry, outputs = self.rnn(inputs, initial_carry=initial_carry, resets=resets, return_carry=True, **options)
        if self.is_mutable_collection('carry'):
            valid = masking.valid_steps(
                options.get('seq_lengths'), options.get('mask'), shape[:1], shape[1], of='inputs'
            )
            started |= shape[1] > 0 if valid is None else valid.any(axis=1)  # masked steps start no row
            stream = StreamState(started, jax.lax.stop_gradient(carry))
            if self.is_initializing():
                stream = jax.tree.map(jnp.zeros_like, stream)
            self.put_variable('carry', 'stream', stream)
        return (carry, outputs) if nn_rnn.override(return_carry, getattr(self.rnn, 'return_carry', False)) else outputs

    @property
    def causal(self) -> bool:
        return True


class TimeDistributed(NamedOptions, nn.Module):
    """Applies a module to every time step with shared parameters: [B, T, ...] -> [B, T, ...].

    Random streams are split over time steps, so that dropout differs between them.

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
          mask: bool [B, T], True at valid steps. Outputs of masked steps are 0, even with a bias, and their inputs
            affect no value and no gradient. A module with an argument `mask` receives mask[:, t]; its mask may have
            further axes of the inputs, such as [B, T, S] for a recurrent layer over inputs [B, T, S, F].
          args, kwargs: further arguments of the module, the same at every step.

        Returns:
          The outputs of the module for all steps, with time as axis 1.

        Raises:
          ValueError: the inputs have no time axis, or the mask does not fit them.
        """
        inputs = jnp.asarray(inputs)
        if inputs.ndim < 2:
            raise ValueError(f'inputs {inputs.shape} must be [B, T, ...] with time as axis 1')
        valid, passed = self._masks(inputs, mask)
        if valid is not None:
            inputs = masking.zero(inputs, valid)
        distributed = nn.vmap(
            lambda module, x, mask: module(x, *args, **kwargs, **({} if mask is None else {'mask': mask})),
            variable_axes={'params': None},
            split_rngs={'params': False, nn.DenyList(('params',)): True},
            in_axes=1,
            out_axes=1,
        )
        outputs = distributed(self.module, inputs, passed)
        return outputs if valid is None else masking.zero(outputs, valid)

    def _masks(self, inputs: jax.Array, mask: Any) -> tuple[jax.Array | None, jax.Array | None]:
        """Returns (mask of valid steps [B, T], mask for the module).

        Both are None without a mask; the second is None if the module takes no mask.
        """
        if mask is None:
            return None, None
        of, axes = f'inputs {inputs.shape}', jnp.ndim(mask)
        recurrent = isinstance(self.module, nn_rnn.RNN | Bidirectional | Stack | Stateful)
        # The `mask` of a normalization is over the features.
        norm = isinstance(self.module, nn.BatchNorm | nn.LayerNorm | nn.RMSNorm | nn.GroupNorm)
        takes = recurrent or ('mask' in inspect.signature(type(self.module).__call__).parameters and not norm)
        if axes <= 2 or not takes:
            valid = masking.as_flags(mask, inputs.shape[:2], of=of)
            if recurrent:  # all inner steps of a masked step are masked
                shape = _mask_shape(inputs, self.module)
                return valid, jnp.broadcast_to(masking.expand(valid, len(shape)), shape)
            return valid, valid if takes else None
        mask = masking.as_flags(mask, _mask_shape(inputs, self.module) if recurrent else inputs.shape[:axes], of=of)
        return mask.any(axis=tuple(range(2, mask.ndim))), mask


def _mask_shape(inputs: jax.Array, layer: nn.Module) -> tuple[int, ...]:
    """Returns the shape [B, T, S] of a mask for inputs [B, T, S, F] of a recurrent layer that runs over S."""
    while not hasattr(layer, 'cell'):
        layer = next(getattr(layer, name) for name in ('forward_rnn', 'rnn', 'layers') if hasattr(layer, name))
        layer = layer[0] if isinstance(layer, tuple) else layer
    return inputs.shape[: -layer.cell.num_feature_axes]
