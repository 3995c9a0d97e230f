"""One time step: (carry, x_t) -> (carry, y_t), by the protocol of `flax.linen.RNNCellBase`.

The order of the four gates in every kernel and bias is (i, f, g, o), as in Keras and PyTorch:
input gate, forget gate, candidate (Keras calls it c, PyTorch g), output gate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers

Initializer = Callable[..., jax.Array]


class LSTMCarry(NamedTuple):
    """State of an LSTM between two steps, in Flax's order."""

    c: jax.Array  # [B, H] cell state
    h: jax.Array  # [B, H] hidden state: the output of the step before


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
    wide = jax.random.normal(key, (min(shape), max(shape)), dtype)
    eye = jnp.eye(min(shape), dtype=dtype)

    def gram(x):
        return jnp.matmul(x, x.T, precision='highest')

    def improve(carry):
        x, count = carry
        return jnp.matmul(1.5 * eye - 0.5 * gram(x), x, precision='highest'), count + 1

    def far(carry):
        x, count = carry
        tolerance = 10 * jnp.finfo(dtype).eps
        return (jnp.max(jnp.abs(gram(x) - eye)) > tolerance) & (count < 100)

    # Divided by its Frobenius norm no singular value is above 1, and each rises to 1.
    rows, _ = jax.lax.while_loop(far, improve, (wide / jnp.linalg.norm(wide), 0))
    return rows if shape[0] <= shape[1] else rows.T


class LSTMCell(nn.RNNCellBase):
    """Long short-term memory with a forget gate (Hochreiter and Schmidhuber 1997; Gers et al. 2000).

        i, f, o = act(x W + h U + b) each with its own quarter of W, U and b
        g       = tanh(x W + h U + b)
        c'      = f * c + i * g
        h'      = o * tanh(c')

    Parameters: `kernel` [F, 4H] (W), `recurrent_kernel` [H, 4H] (U), `bias` [4H] (b), that is
    4 ((F + 1) H + H^2) numbers. The default initialisers are Keras's.
    """

    features: int  # H
    recurrent_activation: Callable[[jax.Array], jax.Array] = nn.sigmoid  # of the gates i, f, o
    kernel_init: Initializer = initializers.glorot_uniform()
    recurrent_kernel_init: Initializer = orthogonal_init
    bias_init: Initializer = forget_bias_init
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, carry: LSTMCarry, inputs: jax.Array) -> tuple[LSTMCarry, jax.Array]:
        """carry of [B, H] and [B, H], inputs [B, F] -> new carry, outputs [B, H]."""
        c, h = carry
        width = 4 * self.features
        kernel = self.param('kernel', self.kernel_init, (inputs.shape[-1], width), self.param_dtype)
        recurrent_kernel = self.param(
            'recurrent_kernel', self.recurrent_kernel_init, (self.features, width), self.param_dtype
        )
        bias = self.param('bias', self.bias_init, (width,), self.param_dtype)
        z = inputs @ kernel + h @ recurrent_kernel + bias.reshape((1,) * (inputs.ndim - 1) + (width,))
        i, f, g, o = jnp.split(z, 4, axis=-1)
        act = self.recurrent_activation
        c = act(f) * c + act(i) * jnp.tanh(g)
        h = act(o) * jnp.tanh(c)
        return LSTMCarry(c, h), h

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> LSTMCarry:
        """Zeros for inputs of `input_shape` [B, F]; `rng` is not used."""
        del rng
        zeros = jnp.zeros((*input_shape[:-1], self.features), self.param_dtype)
        return LSTMCarry(zeros, zeros)

    @property
    def num_feature_axes(self) -> int:
        return 1
