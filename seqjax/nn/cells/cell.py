"""Base classes of recurrent cells: one time step, (carry, x_t) -> (carry, y_t), by `flax.linen.RNNCellBase`.

Gates lie side by side in every kernel and bias. The LSTM's are (i, f, g, o), as in Keras and PyTorch: input gate,
forget gate, candidate (Keras calls it c, PyTorch g), output gate. The GRU's are (z, r, n), as in Keras and ONNX:
update gate, reset gate, candidate; PyTorch has r before z.

In training, that is where a call has the random stream 'dropout', a cell may drop: `seqjax.nn.RNN` draws the masks of a
whole sequence once (`noise`), and hands them to every step.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from seqjax import validation
from seqjax.nn import activations, initializers
from seqjax.nn.initializers import GateBias, Initializer, Scheme
from seqjax.options import NamedOptions


class HiddenCarry(NamedTuple):
    """State of a cell whose output is all that it remembers."""

    h: jax.Array  # [B, H]


class OverTime(NamedTuple):
    """Carry and outputs of a cell over all steps."""

    last: Any  # the carry after the last step
    outputs: Any  # [T, *B, ...]
    carries: Any  # [T, *B, ...], after each step; None where they are not asked for


class Noise(NamedTuple):
    """What a cell that drops draws once for a sequence."""

    key: jax.Array  # of what is drawn anew at every step; `at` makes it the step's
    hidden: jax.Array | None  # [B, H] factor on the hidden state in every product
    kernel: jax.Array | None  # [H, nH] factor on the recurrent kernel, the same for all rows

    def at(self, step: jax.Array) -> Noise:
        """That of one step: it depends on the sequence's and on the number of the step alone."""
        return self._replace(key=jax.random.fold_in(self.key, step))


class Cell(NamedOptions, nn.RNNCellBase):
    """Weights by name, their checks and their precision.

    The parameters are `kernel` [F, nH] and `bias` [nH], for n gates side by side, and what a cell adds to them.
    Products and gates are computed in `dtype`, by default in what inputs and parameters promote to, which outputs have
    too; the carry has `param_dtype` at every step.
    """

    features: int  # H
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None  # may be a `GateBias`
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_count('features', self.features, 'how many hidden units the cell has')
        for name in ('activation', 'recurrent_activation'):
            if hasattr(self, name):
                object.__setattr__(self, name, activations.named(name, getattr(self, name)))
        super().__post_init__()

    @property
    def roles(self) -> tuple[str, ...]:
        """What each gate does to the state, in the order of the gates."""
        raise NotImplementedError

    @property
    def num_feature_axes(self) -> int:
        return 1

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> Any:
        """Zeros for inputs of `input_shape` [B, F]; `rng` is not used."""
        del rng
        return HiddenCarry(jnp.zeros((*input_shape[:-1], self.features), self._carry_dtype))

    @property
    def _carry_dtype(self) -> Any:
        return self.param_dtype

    def _input_weights(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """kernel and bias; raises ValueError where inputs do not fit them."""
        self._check_inputs(inputs)
        shape = (inputs.shape[-1], len(self.roles) * self.features)
        bias_init = self.bias_init or self._default_bias()
        if isinstance(bias_init, GateBias):
            bias_init = partial(bias_init, roles=self.roles)
        return (
            self.param('kernel', self.kernel_init or self._default_kernel(), shape, self.param_dtype),
            self.param('bias', bias_init, shape[1:], self.param_dtype),
        )

    def _default_kernel(self) -> Initializer:
        return nn.initializers.glorot_uniform()

    def _default_bias(self) -> Initializer:
        return nn.initializers.zeros_init()

    def _check_inputs(self, inputs: jax.Array) -> None:
        if self.has_variable('params', 'kernel'):
            made = self.get_variable('params', 'kernel').shape[:1]
            validation.check_shape(
                'the last axis of inputs', inputs.shape[-1:], made, 'the features that the kernel was made for'
            )

    def _check_carry(self, carry: Any, inputs: jax.Array, *widths: int) -> None:
        for part, width in zip(carry, widths, strict=True):
            want = (*inputs.shape[:-1], width)
            validation.check_shape(
                'the carry', part.shape, want, f'the batch axes of inputs {inputs.shape} and the features'
            )


def check_count(name: str, value: Any, meaning: str) -> None:
    """Raises ValueError where the value is no whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f'{name}={value!r} must be a whole number from 1: {meaning}')


def check_rate(name: str, value: Any, meaning: str, below_one: bool = False) -> None:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1 or (below_one and value == 1):
        raise ValueError(f'{name}={value!r} must be a number from 0 {meaning}')


def row(bias: jax.Array, like: jax.Array) -> jax.Array:
    """bias [n] with as many axes as `like` [*B, n]."""
    return bias.reshape((1,) * (like.ndim - 1) + bias.shape)


DROPOUT_MASKS = ('sequence', 'step')


class RecurrentCell(Cell):
    """What the cells with a recurrent kernel share; parameter `recurrent_kernel` [H, nH] (U).

    In training alone:
      recurrent_dropout: the share that is dropped. With `recurrent_dropout_mask='sequence'` one mask a sequence on the
        hidden state in every product h U (Gal and Ghahramani 2016, equation 7, the tied weights); with 'step' a mask a
        step on the candidate alone, so that memory is not lost (Semeniuta et al. 2016, equation 9).
      drop_connect: the share of the recurrent kernel that is dropped, one mask for the whole batch and all steps
        (Merity et al. 2018).
      zoneout_h: the share of hidden units that stay as they were, drawn at every step (Krueger et al. 2017, section
        3.2); without the stream 'dropout' its expectation. (`zoneout_c` of the LSTM: the same of the cell state.)

    With `layer_norm` the products x W and h U are normalised over all gates together before they are added (Ba et al.
    2016); scales are parameters, and shifts only where they would not add to the bias.
    """

    init_scheme: str = 'keras'  # a key of SCHEMES: how the weights begin, where no initialiser is given
    recurrent_kernel_init: Initializer | None = None
    layer_norm: bool = False
    recurrent_dropout: float = 0.0
    recurrent_dropout_mask: str = 'sequence'
    drop_connect: float = 0.0
    zoneout_h: float = 0.0

    def __post_init__(self) -> None:
        validation.check_choice('init_scheme', self.init_scheme, initializers.SCHEMES)
        if self.init_scheme != 'keras' and None not in (self.kernel_init, self.recurrent_kernel_init, self.bias_init):
            raise ValueError(f'init_scheme={self.init_scheme!r} does nothing where every initialiser is given')
        for name in ('recurrent_dropout', 'drop_connect'):
            check_rate(name, getattr(self, name), 'to below 1: the share that is dropped', below_one=True)
        check_rate('zoneout_h', self.zoneout_h, 'to 1: the share that stays as it was')
        validation.check_choice('recurrent_dropout_mask', self.recurrent_dropout_mask, DROPOUT_MASKS)
        if self.recurrent_dropout_mask != 'sequence' and not self.recurrent_dropout:
            raise ValueError(
                f'recurrent_dropout_mask={self.recurrent_dropout_mask!r} does nothing with recurrent_dropout=0'
            )
        super().__post_init__()
        if self.layer_norm and self.features == 1:
            raise ValueError('layer_norm=True with features=1 leaves nothing: one number minus its mean is 0')

    @property
    def _hidden_size(self) -> int:
        return self.features

    @property
    def _scheme(self) -> Scheme:
        return initializers.SCHEMES[self.init_scheme](self.features)

    def _default_kernel(self) -> Initializer:
        return self._scheme.kernel

    def _default_bias(self) -> Initializer:
        """Of a cell with one bias, which is the sum of both."""
        return initializers.added(self._scheme.bias, self._scheme.recurrent_bias)

    @property
    def drops(self) -> bool:
        """Whether training differs from evaluation."""
        return any((self.recurrent_dropout, self.drop_connect, self.zoneout_h))

    def noise(self, batch: tuple[int, ...]) -> Noise | None:
        """What holds for a whole sequence of rows [*B], from the stream 'dropout'; None where nothing is drawn."""
        if not self.drops:
            return None
        step, hidden, kernel = jax.random.split(self.make_rng('dropout'), 3)
        by_sequence = self.recurrent_dropout if self.recurrent_dropout_mask == 'sequence' else 0
        shape = (self._hidden_size, len(self.roles) * self.features)
        return Noise(
            step,
            self._factor(hidden, by_sequence, (*batch, self._hidden_size)) if by_sequence else None,
            self._factor(kernel, self.drop_connect, shape) if self.drop_connect else None,
        )

    def _factor(self, key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
        """0 with probability `rate`, else what keeps the mean at 1."""
        return jax.random.bernoulli(key, 1 - rate, shape).astype(self.param_dtype) / (1 - rate)

    def _noise(self, noise: Noise | None, deterministic: bool | None, inputs: jax.Array) -> Noise | None:
        """The noise that was handed over, or for a step by itself its own."""
        if deterministic is None:
            deterministic = not self.has_rng('dropout')
        if deterministic:
            return None
        return self.noise(inputs.shape[:-1]) if noise is None else noise

    def _products(
        self, inputs: jax.Array, h: jax.Array, noise: Noise | None
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """x W [*B, nH], h [*B, H] and U [H, nH] as they are multiplied, b [*1, nH]; in the dtype of the computation."""
        kernel, bias = self._input_weights(inputs)
        init = self.recurrent_kernel_init or self._scheme.recurrent_kernel
        shape = (self._hidden_size, kernel.shape[-1])
        recurrent_kernel = self.param('recurrent_kernel', init, shape, self.param_dtype)
        if noise is not None and noise.hidden is not None:
            h = h * noise.hidden
        if noise is not None and noise.kernel is not None:
            recurrent_kernel = recurrent_kernel * noise.kernel
        inputs, h, kernel, recurrent_kernel, bias = promote_dtype(
            inputs, h, kernel, recurrent_kernel, bias, dtype=self.dtype
        )
        return inputs @ kernel, h, recurrent_kernel, row(bias, inputs)

    def _steps_as(self, cell: type[RecurrentCell]) -> bool:
        """Whether a step is that of `cell` and not of a subclass, without the variants of all cells but DropConnect."""
        variants = (self.layer_norm, self.recurrent_dropout, self.zoneout_h)
        return type(self).__call__ is cell.__call__ and not any(variants)

    def _fused_weights(self, inputs: jax.Array, h: jax.Array, noise: Noise | None) -> list[jax.Array]:
        """The inputs and `fused_names`, which must be there, in the dtype of the computation."""
        self._check_inputs(inputs)
        weights = {name: self.get_variable('params', name) for name in self.fused_names}
        if noise is not None:
            weights['recurrent_kernel'] *= noise.kernel  # once, and not at every step
        return promote_dtype(inputs, *weights.values(), h, dtype=self.dtype)[:-1]

    def _norm(self, name: str, x: jax.Array, *, shift: bool = False) -> jax.Array:
        """x normalised over its last axis, where the cell has layer normalisation."""
        if not self.layer_norm:
            return x
        norm = nn.LayerNorm(1e-5, name=name, use_bias=shift, param_dtype=self.param_dtype)
        return norm(x).astype(x.dtype)

    def _drop_candidate(self, x: jax.Array, noise: Noise | None) -> jax.Array:
        if noise is None or self.recurrent_dropout_mask != 'step':
            return x
        factor = self._factor(jax.random.fold_in(noise.key, 0), self.recurrent_dropout, x.shape)
        return x * factor.astype(x.dtype)

    def _zoneout(self, rate: float, new: jax.Array, old: jax.Array, noise: Noise | None, part: int) -> jax.Array:
        """`new` in the dtype of the carry `old`, and where a unit is zoned out `old`."""
        new = new.astype(old.dtype)
        if not rate:
            return new
        if noise is None:
            return rate * old + (1 - rate) * new
        return jnp.where(jax.random.bernoulli(jax.random.fold_in(noise.key, part), float(rate), old.shape), old, new)


def hidden_carry(carry: Any) -> HiddenCarry:
    """Flax's cells of one state carry a plain array: it is taken too."""
    return HiddenCarry(*carry) if isinstance(carry, tuple) else HiddenCarry(carry)
