"""One time step: (carry, x_t) -> (carry, y_t), by the protocol of `flax.linen.RNNCellBase`.

Gates lie side by side in every kernel and bias. The LSTM's are (i, f, g, o), as in Keras and PyTorch: input gate,
forget gate, candidate (Keras calls it c, PyTorch g), output gate. The GRU's are (z, r, n), as in Keras and ONNX:
update gate, reset gate, candidate; PyTorch has r before z.

In training, that is where a call has the random stream 'dropout', a cell may drop: `seqjax.layers.RNN` draws what holds
for a whole sequence once (`noise`), and hands it to every step.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from seqjax import gru_ops, lstm_ops
from seqjax.activations import SIGMOID, TANH, Activation, named
from seqjax.initializers import (
    KEEP,
    LSTM_ROLES,
    SCHEMES,
    UPDATE,
    ConstantGate,
    GateBias,
    Initializer,
    Scheme,
    added,
)
from seqjax.masks import check_choice, check_shape
from seqjax.options import NamedOptions


class LSTMCarry(NamedTuple):
    """State of an LSTM between two steps, in Flax's order."""

    c: jax.Array  # [B, H] cell state
    h: jax.Array  # [B, H], or [B, P] where it is projected: the output of the step before


class HiddenCarry(NamedTuple):
    """State of a cell whose output is all that it remembers."""

    h: jax.Array  # [B, H]


class OverTime(NamedTuple):
    """What all steps at once give."""

    last: Any  # the carry after the last step
    outputs: jax.Array  # [T, B, H]
    carries: Any  # [T, B, ...] the carry after each step; None where it is not asked for


class Noise(NamedTuple):
    """What a cell that drops draws once for a sequence."""

    key: jax.Array  # of what is drawn anew at every step; `at` makes it the step's
    hidden: jax.Array | None  # [B, H] factor on the hidden state in every product
    kernel: jax.Array | None  # [H, nH] factor on the recurrent kernel, the same for all rows

    def at(self, step: jax.Array) -> Noise:
        """That of one step: it depends on the sequence's and on the number of the step alone."""
        return self._replace(key=jax.random.fold_in(self.key, step))


# --- what all cells share --------------------------------------------------------------------------


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
                object.__setattr__(self, name, named(name, getattr(self, name)))
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
            check_shape('the last axis of inputs', inputs.shape[-1:], made, 'the features that the kernel was made for')

    def _check_carry(self, carry: Any, inputs: jax.Array, *widths: int) -> None:
        for part, width in zip(carry, widths, strict=True):
            want = (*inputs.shape[:-1], width)
            check_shape('the carry', part.shape, want, f'the batch axes of inputs {inputs.shape} and the features')


def check_count(name: str, value: Any, meaning: str) -> None:
    """Raises ValueError where the value is no whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f'{name}={value!r} must be a whole number from 1: {meaning}')


def _check_rate(name: str, value: Any, meaning: str, below_one: bool = False) -> None:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1 or (below_one and value == 1):
        raise ValueError(f'{name}={value!r} must be a number from 0 {meaning}')


def row(bias: jax.Array, like: jax.Array) -> jax.Array:
    """bias [n] with as many axes as `like` [*B, n]."""
    return bias.reshape((1,) * (like.ndim - 1) + bias.shape)


# --- cells with a recurrent kernel -----------------------------------------------------------------

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
        check_choice('init_scheme', self.init_scheme, SCHEMES)
        if self.init_scheme != 'keras' and None not in (self.kernel_init, self.recurrent_kernel_init, self.bias_init):
            raise ValueError(f'init_scheme={self.init_scheme!r} does nothing where every initialiser is given')
        for name in ('recurrent_dropout', 'drop_connect'):
            _check_rate(name, getattr(self, name), 'to below 1: the share that is dropped', below_one=True)
        _check_rate('zoneout_h', self.zoneout_h, 'to 1: the share that stays as it was')
        check_choice('recurrent_dropout_mask', self.recurrent_dropout_mask, DROPOUT_MASKS)
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
        return SCHEMES[self.init_scheme](self.features)

    def _default_kernel(self) -> Initializer:
        return self._scheme.kernel

    def _default_bias(self) -> Initializer:
        """Of a cell with one bias, which is the sum of both."""
        return added(self._scheme.bias, self._scheme.recurrent_bias)

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
        """The inputs and `fused_names`, in the dtype of the computation.

        The weights must be there: a layer begins with steps taken one by one.
        """
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


class LSTMCell(RecurrentCell):
    """Long short-term memory with a forget gate (Hochreiter and Schmidhuber 1997; Gers et al. 2000).

        i, f, o = recurrent_activation(x W + h U + b) each with its own quarter of W, U and b
        g       = activation(x W + h U + b)
        c'      = f * c + i * g
        h'      = o * activation(c')

    Parameters: `kernel` [F, 4H] (W), `recurrent_kernel` [H, 4H] (U), `bias` [4H] (b), that is
    4 ((F + 1) H + H^2) numbers. The default initialisers are Keras's. Where there are two biases, as in PyTorch, `bias`
    is their sum; under plain gradient descent two biases move twice as far.

    Variants:
      forget: 'gate'; or 'coupled', f = 1 - i (Greff et al. 2017, CIFG); or 'none', f = 1, the cell of 1997
        (section 4; its squashing functions reached from -2 to 2 and from -1 to 1). The last two have the gates i, g, o
        alone, three quarters of the weights.
      peepholes: `peephole` [3H] (i, f, o), each gate also sees its own cell: i and f the old c, o the new one (Gers et
        al. 2002). They begin at 0.
      layer_norm: Ba et al. 2016, equations 20 to 22: also of c' before the last activation.
      projection: P numbers, h' = (o * activation(c')) R with `projection_kernel` [H, P] (Sak et al. 2014; PyTorch's
        `proj_size`); U is [P, 4H].
      recurrent_dropout, drop_connect, zoneout_h, zoneout_c: see `RecurrentCell`.

    The gates are sown in the collection 'intermediates', by their names.
    """

    activation: str | Activation = TANH  # a key of ACTIVATIONS, or a function
    recurrent_activation: str | Activation = SIGMOID  # of the gates i, f, o
    forget: str = 'gate'
    peepholes: bool = False
    peephole_init: Initializer | None = None
    projection: int | None = None
    zoneout_c: float = 0.0

    def __post_init__(self) -> None:
        check_choice('forget', self.forget, FORGET)
        _check_rate('zoneout_c', self.zoneout_c, 'to 1: the share that stays as it was')
        if self.peephole_init is not None and not self.peepholes:
            raise ValueError('peephole_init does nothing without peepholes=True')
        if self.projection is not None:
            check_count('projection', self.projection, 'how many numbers the hidden state is projected to')
        super().__post_init__()

    @property
    def roles(self) -> tuple[str, ...]:
        return FORGET[self.forget]

    @property
    def _hidden_size(self) -> int:
        return self.projection or self.features

    @property
    def drops(self) -> bool:
        return super().drops or self.zoneout_c > 0

    def _default_bias(self) -> Initializer:
        both, forget_bias = super()._default_bias(), self._scheme.forget_bias
        if not forget_bias or self.forget == 'none':
            return both
        return added(both, partial(ConstantGate(forget_bias), roles=self.roles))

    @nn.compact
    def __call__(
        self,
        carry: LSTMCarry,
        inputs: jax.Array,
        *,
        noise: Noise | None = None,
        deterministic: bool | None = None,
    ) -> tuple[LSTMCarry, jax.Array]:
        """carry of c and h [B, H], inputs [B, F] -> new carry, outputs [B, H]; with `projection` h is [B, P] too."""
        c, h = carry = LSTMCarry(*carry)
        self._check_carry(carry, inputs, self.features, self._hidden_size)
        noise, act = self._noise(noise, deterministic, inputs), self.recurrent_activation
        xw, dropped, recurrent_kernel, bias = self._products(inputs, h, noise)
        z = self._norm('input_norm', xw) + self._norm('recurrent_norm', dropped @ recurrent_kernel) + bias
        z, looks = self._by_gate(z), self._peepholes(z)

        def gate(name: str, cell: jax.Array) -> jax.Array:
            return act(z[name] + looks[name] * cell.astype(xw.dtype) if name in looks else z[name])

        i = gate('i', c)
        f = gate('f', c) if self.forget == 'gate' else 1 - i if self.forget == 'coupled' else jnp.ones_like(i)
        g = self.activation(z['g'])
        new_c = f * c + i * self._drop_candidate(g, noise)
        o = gate('o', new_c)
        outputs = o * self.activation(self._norm('cell_norm', new_c, shift=True))
        if self.projection is not None:
            outputs = outputs.astype(xw.dtype) @ self._projection_kernel(xw.dtype)
        for name, value in {'i': i, 'f': f, 'g': g, 'o': o}.items():
            self.sow('intermediates', name, value)
        carry = LSTMCarry(
            self._zoneout(self.zoneout_c, new_c, c, noise, 1), self._zoneout(self.zoneout_h, outputs, h, noise, 2)
        )
        return carry, carry.h.astype(xw.dtype)

    fused_names = lstm_ops.Weights._fields  # the weights of `over_time`, which must be there

    @property
    def fused(self) -> bool:
        """Whether `over_time` is this cell, of whose variants it has DropConnect alone."""
        standard = (self.forget, self.activation, self.recurrent_activation) == ('gate', TANH, SIGMOID)
        variants = (self.peepholes, self.projection is not None, self.zoneout_c)
        return standard and not any(variants) and self._steps_as(LSTMCell)

    def over_time(
        self, carry: LSTMCarry, inputs: jax.Array, noise: Noise | None, *, history: bool, **how: Any
    ) -> OverTime:
        """All steps of inputs [T, B, F] at once, by `seqjax.lstm_ops.lstm`, which takes what `how` has."""
        carry = LSTMCarry(*carry)
        inputs, *weights = self._fused_weights(inputs, carry.h, noise)
        last, outputs, cells = lstm_ops.lstm(inputs, carry, *weights, history=history, **how)
        return OverTime(last, outputs, LSTMCarry(cells, outputs.astype(carry.h.dtype)) if history else None)

    def _by_gate(self, x: jax.Array) -> dict[str, jax.Array]:
        names = 'ifgo' if self.forget == 'gate' else 'igo'
        return dict(zip(names, jnp.split(x, len(names), axis=-1), strict=True))

    def _peepholes(self, z: jax.Array) -> dict[str, jax.Array]:
        """By which weights [*1, H] the gates look at the cell; empty without peepholes."""
        if not self.peepholes:
            return {}
        names = 'ifo' if self.forget == 'gate' else 'io'
        init = self.peephole_init or nn.initializers.zeros_init()
        kernel = self.param('peephole', init, (len(names) * self.features,), self.param_dtype)
        parts = jnp.split(kernel.astype(z.dtype), len(names))
        return {name: row(part, z) for name, part in zip(names, parts, strict=True)}

    def _projection_kernel(self, dtype: Any) -> jax.Array:
        init = self.kernel_init or self._scheme.kernel
        shape = (self.features, self.projection)
        return self.param('projection_kernel', init, shape, self.param_dtype).astype(dtype)

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> LSTMCarry:
        """Zeros for inputs of `input_shape` [B, F]; `rng` is not used."""
        del rng
        return LSTMCarry(
            *(jnp.zeros((*input_shape[:-1], width), self.param_dtype) for width in (self.features, self._hidden_size))
        )


FORGET = {
    'gate': LSTM_ROLES,  # i, f, g, o
    'coupled': (UPDATE, '', ''),  # i, g, o
    'none': ('', '', ''),  # i, g, o: what is kept is not for a gate to say
}


class GRUCell(RecurrentCell):
    """Gated recurrent unit (Cho et al. 2014, equations 5 to 8), with the reset gate after the product or before it.

        z, r = recurrent_activation(x W + b + h U + d) each with its own third of W, U, b and d
        n    = activation(x W + b + r * (h U + d))  with `reset_after`: PyTorch; Keras's default; ONNX
                                                    linear_before_reset=1
        n    = activation(x W + b + (r * h) U)      without: Cho et al.; Keras reset_after=False; ONNX's default
        h'   = z * h + (1 - z) * n

    Parameters: `kernel` [F, 3H] (W), `recurrent_kernel` [H, 3H] (U), `bias` [3H] (b), and with `reset_after`
    `recurrent_bias` [3H] (d): 3 ((F + 1) H + H^2) numbers, or 3 ((F + 2) H + H^2). Without `reset_after` the second
    bias of ONNX only adds to the first. The default initialisers are Keras's.

    Variants: those of `RecurrentCell`. With `layer_norm` the gates z and r are normalised together, and n by itself (Ba
    et al. 2016, equations 26 to 28; biases are kept). Masks of a step (Semeniuta et al. 2016) fall on n.
    """

    reset_after: bool = True
    activation: str | Activation = TANH  # a key of ACTIVATIONS, or a function
    recurrent_activation: str | Activation = SIGMOID  # of the gates z, r

    @property
    def roles(self) -> tuple[str, ...]:
        return (KEEP, '', '')

    def _default_bias(self) -> Initializer:
        return self._scheme.bias if self.reset_after else super()._default_bias()

    @nn.compact
    def __call__(
        self,
        carry: HiddenCarry,
        inputs: jax.Array,
        *,
        noise: Noise | None = None,
        deterministic: bool | None = None,
    ) -> tuple[HiddenCarry, jax.Array]:
        """carry of [B, H], inputs [B, F] -> new carry, outputs [B, H]."""
        (h,) = carry = _hidden(carry)
        self._check_carry(carry, inputs, self.features)
        noise, act = self._noise(noise, deterministic, inputs), self.recurrent_activation
        xw, dropped, recurrent_kernel, bias = self._products(inputs, h, noise)
        split = [2 * self.features]
        x_gates, x_n = jnp.split(xw, split, axis=-1)
        u_gates, u_n = jnp.split(recurrent_kernel, split, axis=-1)
        b_gates, b_n = jnp.split(bias, split, axis=-1)
        if self.reset_after:
            products = jnp.split(dropped @ recurrent_kernel, split, axis=-1)
            d_gates, d_n = jnp.split(self._recurrent_bias(xw), split, axis=-1)
        else:
            products, d_gates = [dropped @ u_gates], 0
        gates = self._norm('input_norm', x_gates) + b_gates + (self._norm('recurrent_norm', products[0]) + d_gates)
        z, r = jnp.split(act(gates), 2, axis=-1)
        if self.reset_after:
            inner = r * (self._norm('recurrent_norm_n', products[1]) + d_n)
        else:
            inner = self._norm('recurrent_norm_n', (r * dropped) @ u_n)
        n = self.activation(self._norm('input_norm_n', x_n) + b_n + inner)
        for name, value in {'z': z, 'r': r, 'n': n}.items():
            self.sow('intermediates', name, value)
        new = self._zoneout(self.zoneout_h, z * h + (1 - z) * self._drop_candidate(n, noise), h, noise, 2)
        return HiddenCarry(new), new.astype(xw.dtype)

    fused_names = gru_ops.Weights._fields  # the weights of `over_time`, which must be there

    @property
    def fused(self) -> bool:
        """Whether `over_time` is this cell, of whose variants it has DropConnect alone."""
        standard = (self.reset_after, self.activation, self.recurrent_activation) == (True, TANH, SIGMOID)
        return standard and self._steps_as(GRUCell)

    def over_time(
        self, carry: HiddenCarry, inputs: jax.Array, noise: Noise | None, *, history: bool, fresh: Any, **how: Any
    ) -> OverTime:
        """All steps of inputs [T, B, F] at once, by `seqjax.gru_ops.gru`, which takes what `how` has."""
        h, fresh = _hidden(carry).h, None if fresh is None else _hidden(fresh).h
        inputs, *weights = self._fused_weights(inputs, h, noise)
        last, outputs = gru_ops.gru(inputs, h, *weights, fresh=fresh, **how)
        return OverTime(HiddenCarry(last), outputs, HiddenCarry(outputs.astype(h.dtype)) if history else None)

    def _recurrent_bias(self, xw: jax.Array) -> jax.Array:
        # A bias that sets how long the gate keeps is set once, in `bias`.
        own = None if isinstance(self.bias_init, GateBias) else self.bias_init
        init = own or self._scheme.recurrent_bias
        return row(self.param('recurrent_bias', init, xw.shape[-1:], self.param_dtype).astype(xw.dtype), xw)


class SimpleRNNCell(RecurrentCell):
    """The simple recurrent network (Elman 1990): h' = activation(x W + h U + b).

    Parameters: `kernel` [F, H] (W), `recurrent_kernel` [H, H] (U), `bias` [H] (b), that is (F + 1) H + H^2 numbers.
    The default initialisers are Keras's.

    Variants: those of `RecurrentCell`. With `layer_norm` the sum x W + h U is normalised (Ba et al. 2016, equation 4).
    Masks of a step (Semeniuta et al. 2016) fall on h in h U.
    """

    activation: str | Activation = TANH  # a key of ACTIVATIONS, or a function

    @property
    def roles(self) -> tuple[str, ...]:
        return ('',)

    @nn.compact
    def __call__(
        self,
        carry: HiddenCarry,
        inputs: jax.Array,
        *,
        noise: Noise | None = None,
        deterministic: bool | None = None,
    ) -> tuple[HiddenCarry, jax.Array]:
        """carry of [B, H], inputs [B, F] -> new carry, outputs [B, H]."""
        (h,) = carry = _hidden(carry)
        self._check_carry(carry, inputs, self.features)
        noise = self._noise(noise, deterministic, inputs)
        xw, dropped, recurrent_kernel, bias = self._products(inputs, h, noise)
        product = self._drop_candidate(dropped, noise) @ recurrent_kernel
        new = self.activation(self._norm('norm', xw + product) + bias)
        new = self._zoneout(self.zoneout_h, new, h, noise, 2)
        return HiddenCarry(new), new.astype(xw.dtype)


def _hidden(carry: Any) -> HiddenCarry:
    """Flax's cells of one state carry a plain array: it is taken too."""
    return HiddenCarry(*carry) if isinstance(carry, tuple) else HiddenCarry(carry)
