"""One time step: (carry, x_t) -> (carry, y_t), by the protocol of `flax.linen.RNNCellBase`.

Gates lie side by side in every kernel and bias. The LSTM's are (i, f, g, o), as in Keras and PyTorch: input gate,
forget gate, candidate (Keras calls it c, PyTorch g), output gate. The GRU's are (z, r, n), as in Keras and ONNX:
update gate, reset gate, candidate; PyTorch has r before z.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers

from seqjax.masks import check_shape

Initializer = Callable[..., jax.Array]


class LSTMCarry(NamedTuple):
    """State of an LSTM between two steps, in Flax's order."""

    c: jax.Array  # [B, H] cell state
    h: jax.Array  # [B, H] hidden state: the output of the step before


class HiddenCarry(NamedTuple):
    """State of a cell whose output is all that it remembers."""

    h: jax.Array  # [B, H]


def keras2_hard_sigmoid(x: jax.Array) -> jax.Array:
    """clip(0.2 x + 0.5, 0, 1): the gate activation of Keras before 2.3, when the notebook was written."""
    return jnp.clip(0.2 * x + 0.5, 0, 1)


RECURRENT_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'sigmoid': nn.sigmoid,  # Keras 3, PyTorch, Flax
    'hard_sigmoid': nn.hard_sigmoid,  # relu6(x + 3) / 6: JAX's and Keras 3's function of this name
    'keras2_hard_sigmoid': keras2_hard_sigmoid,
}


def forget_bias_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """[4H] zeros, and ones for the forget gate (Jozefowicz et al. 2015; Keras's `unit_forget_bias`)."""
    del key
    quarter = shape[-1] // 4
    return jnp.zeros(shape, dtype).at[..., quarter : 2 * quarter].set(1)


def orthogonal_init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """[m, n] with orthonormal rows (columns where m > n), uniformly distributed: Keras's `Orthogonal`.

    The orthogonal polar factor of a Gaussian matrix, by Newton-Schulz iteration (Higham 2008, equation 8.20): the
    distribution that a QR factorisation gives (Mezzadri 2007), from products alone. `initializers.orthogonal` takes
    LAPACK, whose bindings alone take 0.2 s of every start to import, and which accelerators emulate step by step.
    """
    work = jnp.promote_types(dtype, jnp.float32)  # in half precision the norm overflows
    wide = jax.random.normal(key, (min(shape), max(shape)), work)
    eye = jnp.eye(min(shape), dtype=work)

    def gram(x):
        return jnp.matmul(x, x.T, precision='highest')

    def improve(carry):
        x, count = carry
        return jnp.matmul(1.5 * eye - 0.5 * gram(x), x, precision='highest'), count + 1

    def far(carry):
        x, count = carry
        tolerance = 10 * jnp.finfo(work).eps
        return (jnp.max(jnp.abs(gram(x) - eye)) > tolerance) & (count < 100)

    # Divided by its Frobenius norm no singular value is above 1, and each rises to 1.
    rows, _ = jax.lax.while_loop(far, improve, (wide / jnp.linalg.norm(wide), 0))
    return (rows if shape[0] <= shape[1] else rows.T).astype(dtype)


def _check_features(features: int) -> None:
    if isinstance(features, bool) or not isinstance(features, int | np.integer) or features < 1:
        raise ValueError(f'features={features!r} must be a whole number from 1: how many hidden units the cell has')


class _Cell(nn.RNNCellBase):
    """What the cells share: the names and the checks of their weights.

    The parameters are `kernel` [F, n H], `recurrent_kernel` [H, n H] and `bias` [n H], for n gates side by side.
    """

    features: int  # H

    def __post_init__(self) -> None:
        _check_features(self.features)
        super().__post_init__()

    def _weights(self, inputs: jax.Array, carry: Any, gates: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """kernel, recurrent_kernel and bias; raises ValueError where inputs or the carry do not fit them."""
        width, given = gates * self.features, inputs.shape[-1:]
        if self.has_variable('params', 'kernel'):
            made = self.get_variable('params', 'kernel').shape[:1]
            check_shape('the last axis of inputs', given, made, 'the features that the kernel was made for')
        want = (*inputs.shape[:-1], self.features)
        for part in carry:
            check_shape('the carry', part.shape, want, f'the batch axes of inputs {inputs.shape} and the features')
        return (
            self.param('kernel', self.kernel_init, (*given, width), self.param_dtype),
            self.param('recurrent_kernel', self.recurrent_kernel_init, (self.features, width), self.param_dtype),
            self.param('bias', self.bias_init, (width,), self.param_dtype),
        )

    def _zeros(self, input_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*input_shape[:-1], self.features), self.param_dtype)

    @property
    def num_feature_axes(self) -> int:
        return 1


def _hidden(carry: Any) -> HiddenCarry:
    """Flax's cells of one state carry a plain array: it is taken too."""
    return HiddenCarry(*carry) if isinstance(carry, tuple) else HiddenCarry(carry)


class LSTMCell(_Cell):
    """Long short-term memory with a forget gate (Hochreiter and Schmidhuber 1997; Gers et al. 2000).

        i, f, o = act(x W + h U + b) each with its own quarter of W, U and b
        g       = tanh(x W + h U + b)
        c'      = f * c + i * g
        h'      = o * tanh(c')

    Parameters: `kernel` [F, 4H] (W), `recurrent_kernel` [H, 4H] (U), `bias` [4H] (b), that is
    4 ((F + 1) H + H^2) numbers. The default initialisers are Keras's. Where there are two biases, as in PyTorch, `bias`
    is their sum; under plain gradient descent two biases move twice as far.
    """

    recurrent_activation: Callable[[jax.Array], jax.Array] = nn.sigmoid  # of the gates i, f, o
    kernel_init: Initializer = initializers.glorot_uniform()
    recurrent_kernel_init: Initializer = orthogonal_init
    bias_init: Initializer = forget_bias_init
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, carry: LSTMCarry, inputs: jax.Array) -> tuple[LSTMCarry, jax.Array]:
        """carry of c and h [B, H], inputs [B, F] -> new carry, outputs [B, H]."""
        c, h = carry
        kernel, recurrent_kernel, bias = self._weights(inputs, carry, 4)
        i, f, g, o = jnp.split(inputs @ kernel + h @ recurrent_kernel + _row(bias, inputs), 4, axis=-1)
        act = self.recurrent_activation
        c = act(f) * c + act(i) * jnp.tanh(g)
        h = act(o) * jnp.tanh(c)
        return LSTMCarry(c, h), h

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> LSTMCarry:
        """Zeros for inputs of `input_shape` [B, F]; `rng` is not used."""
        del rng
        return LSTMCarry(self._zeros(input_shape), self._zeros(input_shape))


class GRUCell(_Cell):
    """Gated recurrent unit (Cho et al. 2014), with the reset gate after the product or before it.

        z, r = act(x W + b + h U + d) each with its own third of W, U, b and d
        n    = tanh(x W + b + r * (h U + d))    with `reset_after`: PyTorch; Keras's default; ONNX linear_before_reset=1
        n    = tanh(x W + b + (r * h) U)        without: Cho et al.; Keras reset_after=False; ONNX's default
        h'   = z * h + (1 - z) * n

    Parameters: `kernel` [F, 3H] (W), `recurrent_kernel` [H, 3H] (U), `bias` [3H] (b), and with `reset_after`
    `recurrent_bias` [3H] (d): 3 ((F + 1) H + H^2) numbers, or 3 ((F + 2) H + H^2). Without `reset_after` the second
    bias of ONNX only adds to the first. The default initialisers are Keras's.
    """

    reset_after: bool = True
    recurrent_activation: Callable[[jax.Array], jax.Array] = nn.sigmoid  # of the gates z, r
    kernel_init: Initializer = initializers.glorot_uniform()
    recurrent_kernel_init: Initializer = orthogonal_init
    bias_init: Initializer = initializers.zeros_init()  # of both biases
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, carry: HiddenCarry, inputs: jax.Array) -> tuple[HiddenCarry, jax.Array]:
        """carry of [B, H], inputs [B, F] -> new carry, outputs [B, H]."""
        (h,) = carry = _hidden(carry)
        kernel, recurrent_kernel, bias = self._weights(inputs, carry, 3)
        act = self.recurrent_activation
        xz, xr, xn = jnp.split(inputs @ kernel + _row(bias, inputs), 3, axis=-1)
        if self.reset_after:
            recurrent_bias = self.param('recurrent_bias', self.bias_init, bias.shape, self.param_dtype)
            u = h @ recurrent_kernel + _row(recurrent_bias, inputs)
            uz, ur, un = jnp.split(u, 3, axis=-1)
        else:
            gates, candidate = jnp.split(recurrent_kernel, [2 * self.features], axis=-1)
            uz, ur = jnp.split(h @ gates, 2, axis=-1)
        z, r = act(xz + uz), act(xr + ur)
        n = jnp.tanh(xn + (r * un if self.reset_after else (r * h) @ candidate))
        h = z * h + (1 - z) * n
        return HiddenCarry(h), h

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> HiddenCarry:
        """Zeros for inputs of `input_shape` [B, F]; `rng` is not used."""
        del rng
        return HiddenCarry(self._zeros(input_shape))


class SimpleRNNCell(_Cell):
    """The simple recurrent network (Elman 1990): h' = activation(x W + h U + b).

    Parameters: `kernel` [F, H] (W), `recurrent_kernel` [H, H] (U), `bias` [H] (b), that is (F + 1) H + H^2 numbers.
    The default initialisers are Keras's.
    """

    activation: Callable[[jax.Array], jax.Array] = jnp.tanh  # or nn.relu
    kernel_init: Initializer = initializers.glorot_uniform()
    recurrent_kernel_init: Initializer = orthogonal_init
    bias_init: Initializer = initializers.zeros_init()
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, carry: HiddenCarry, inputs: jax.Array) -> tuple[HiddenCarry, jax.Array]:
        """carry of [B, H], inputs [B, F] -> new carry, outputs [B, H]."""
        (h,) = carry = _hidden(carry)
        kernel, recurrent_kernel, bias = self._weights(inputs, carry, 1)
        h = self.activation(inputs @ kernel + h @ recurrent_kernel + _row(bias, inputs))
        return HiddenCarry(h), h

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> HiddenCarry:
        """Zeros for inputs of `input_shape` [B, F]; `rng` is not used."""
        del rng
        return HiddenCarry(self._zeros(input_shape))


def _row(bias: jax.Array, inputs: jax.Array) -> jax.Array:
    """bias [n] with as many axes as inputs [*B, F]."""
    return bias.reshape((1,) * (inputs.ndim - 1) + bias.shape)


CELLS: dict[str, type[nn.RNNCellBase]] = {'lstm': LSTMCell, 'gru': GRUCell, 'simple_rnn': SimpleRNNCell}
