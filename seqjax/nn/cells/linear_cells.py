"""Cells with a linear recurrence h' = a * h + b, where a and b depend only on the inputs.

All steps can be computed by `jax.lax.associative_scan` (Blelloch 1990; Martin and Cundy 2018), see `parallel` of
`seqjax.nn.rnn.RNN`; they can also run step by step, like all other cells.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from seqjax.nn import activations, initializers
from seqjax.nn.activations import Activation
from seqjax.nn.cells import cell
from seqjax.nn.cells.cell import Cell, HiddenCarry

Affine = tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]]


class ComplexCarry(NamedTuple):
    """Carry of a complex state as two real arrays, for code that supports no complex arrays."""

    real: jax.Array  # [B, H]
    imag: jax.Array  # [B, H]


class LinearCell(Cell):
    """Base class of cells with a linear recurrence h' = a * h + b.

    Subclasses define `affine`, which returns (a, b, read); `read` maps h' to the outputs of the step.
    """

    def affine(self, inputs: jax.Array) -> Affine:
        """Returns (a, b, read) for inputs [*B, F]: h' = a * h + b, and read maps h' [*B, H] to outputs [*B, O].

        a and b are [*B, H] or broadcast to it. Inputs are [B, F] for a step, and [T, B, F] for a parallel scan.
        """
        raise NotImplementedError

    def __call__(self, carry: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
        """Runs one time step: carry with state [B, H], inputs [B, F] -> (new carry, outputs [B, O])."""
        state = self.state(carry)
        self._check_carry((state,), inputs, self.features)
        decay, update, read = self.affine(inputs)
        state = (decay * state + update).astype(state.dtype)
        return self.carry(state), read(state)

    @property
    def _carry_dtype(self) -> Any:
        """Dtype of the carry, at least float32: rounding errors of half precision would accumulate over time."""
        return jnp.promote_types(self.param_dtype, jnp.float32)

    @nn.nowrap
    def state(self, carry: Any) -> jax.Array:
        """Returns the state in a carry as one array [*B, H]."""
        return carry[0] if isinstance(carry, tuple) else carry

    @nn.nowrap
    def carry(self, state: jax.Array) -> Any:
        """Returns a state [*B, H] as a carry, the inverse of `state`."""
        return HiddenCarry(state)

    def _gates(self, inputs: jax.Array) -> tuple[list[jax.Array], Any]:
        """Returns (list of x W + b [*B, H] per gate, in the dtype of the carry or wider; dtype of the outputs)."""
        inputs, kernel, bias = promote_dtype(inputs, *self._input_weights(inputs), dtype=self.dtype)
        z = inputs @ kernel + cell.row(bias, inputs)
        return jnp.split(self._widen(z), len(self.roles), axis=-1), z.dtype

    def _widen(self, x: jax.Array) -> jax.Array:
        return x.astype(jnp.promote_types(x.dtype, self._carry_dtype))


class MinGRUCell(LinearCell):
    """The minimal GRU (Feng et al. 2024, section 3).

        z  = sigmoid(x W + b)   n = activation(x W + b) each with its own half of W and b
        h' = (1 - z) * h + z * n

    Parameters: `kernel` [F, 2H], `bias` [2H], that is 2 (F + 1) H numbers. `activation='positive'` is the paper's
    log-space version (appendix B), whose states are positive.
    """

    activation: str | Activation = activations.IDENTITY  # of n; 'positive': see above

    @property
    def roles(self) -> tuple[str, ...]:
        return (initializers.UPDATE, '')

    @nn.compact
    def affine(self, inputs: jax.Array) -> Affine:
        (z, n), dtype = self._gates(inputs)
        z, n = nn.sigmoid(z), self.activation(n)
        return 1 - z, z * n, lambda h: h.astype(dtype)


class MinLSTMCell(LinearCell):
    """The minimal LSTM (Feng et al. 2024, section 3).

        f, i = sigmoid(x W + b)   n = activation(x W + b) each with its own third of W and b
        h'   = f / (f + i) * h + i / (f + i) * n

    Parameters: `kernel` [F, 3H], `bias` [3H], that is 3 (F + 1) H numbers. `activation='positive'` is the paper's
    log-space version (appendix B).
    """

    activation: str | Activation = activations.IDENTITY  # of n; 'positive': see above

    @property
    def roles(self) -> tuple[str, ...]:
        return (initializers.KEEP, initializers.WRITE, '')

    @nn.compact
    def affine(self, inputs: jax.Array) -> Affine:
        (f, i, n), dtype = self._gates(inputs)
        # f / (f + i) = sigmoid(log f - log i), which does not underflow.
        keep = nn.log_sigmoid(f) - nn.log_sigmoid(i)
        return nn.sigmoid(keep), nn.sigmoid(-keep) * self.activation(n), lambda h: h.astype(dtype)


class LRUCell(LinearCell):
    """The linear recurrent unit (Orvieto et al. 2023, section 3): a diagonal complex recurrence.

        s' = lambda * s + gamma * (x B)     lambda = exp(-exp(nu) + i exp(theta))
        y  = Re(s' C) + x D

    Parameters: `nu_log`, `theta_log`, `gamma_log` [H]; `kernel` [F, 2H] and `output_kernel` [2H, O], the real and the
    imaginary parts of B and C; `skip` [F, O] (D); that is 3 H + 2 H (F + O) + F O numbers. Initial eigenvalues are
    uniform on the ring from `r_min` to `r_max`, with phases up to `max_phase` (Lemma 3.2); initial gamma is
    sqrt(1 - |lambda|^2) (section 3.4); B, C and D are initialized normal, with variances 1 / (2F), 1 / H and 1 / F.
    """

    outputs: int | None = None  # O; H by default
    r_min: float = 0.0  # smallest initial |lambda|
    r_max: float = 1.0  # largest initial |lambda|
    max_phase: float = 2 * math.pi  # largest initial phase of lambda

    def __post_init__(self) -> None:
        if self.outputs is not None:
            cell.check_count('outputs', self.outputs, 'the size of the output of a step')
        if not 0 <= self.r_min < self.r_max <= 1:
            raise ValueError(f'r_min={self.r_min} and r_max={self.r_max} must satisfy 0 <= r_min < r_max <= 1')
        if not 0 < self.max_phase <= 2 * math.pi:
            raise ValueError(f'max_phase={self.max_phase} must be above 0 and at most 2 pi, an angle in radians')
        if self.bias_init is not None:
            raise ValueError(
                'bias_init is not supported by LRUCell, which has no bias; use bias_init=None (in a model '
                'configuration forget_bias_init=default)'
            )
        super().__post_init__()

    @nn.compact
    def affine(self, inputs: jax.Array) -> Affine:
        units, outputs, count = self.features, self.outputs or self.features, inputs.shape[-1]
        self._check_inputs(inputs)
        nu = self._widen(self.param('nu_log', self._nu_log, (units,), self.param_dtype))
        theta = self._widen(self.param('theta_log', self._theta_log, (units,), self.param_dtype))
        gamma = self.param('gamma_log', lambda _: jnp.log(-jnp.expm1(-2 * jnp.exp(nu))).astype(self.param_dtype) / 2)
        normal = nn.initializers.normal
        kernel_init = self.kernel_init or normal((2 * count) ** -0.5)
        kernel = self.param('kernel', kernel_init, (count, 2 * units), self.param_dtype)
        output_kernel = self.param('output_kernel', normal(units**-0.5), (2 * units, outputs), self.param_dtype)
        skip = self.param('skip', normal(count**-0.5), (count, outputs), self.param_dtype)
        x, kernel, output_kernel, skip = promote_dtype(inputs, kernel, output_kernel, skip, dtype=self.dtype)
        real, imag = jnp.split(self._widen(x @ kernel), 2, axis=-1)
        gamma = cell.row(jnp.exp(self._widen(gamma)), real)
        size, phase = jnp.exp(-jnp.exp(nu)), jnp.exp(theta)
        decay = jax.lax.complex(size * jnp.cos(phase), size * jnp.sin(phase))

        def read(state):
            parts = jnp.concatenate([state.real, -state.imag], axis=-1).astype(x.dtype)
            return parts @ output_kernel + x @ skip

        return cell.row(decay, real), jax.lax.complex(gamma * real, gamma * imag), read

    def _nu_log(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        u = jax.random.uniform(key, shape, jnp.float32, jnp.finfo(jnp.float32).tiny)
        return jnp.log(-0.5 * jnp.log(u * (self.r_max**2 - self.r_min**2) + self.r_min**2)).astype(dtype)

    def _theta_log(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        u = jax.random.uniform(key, shape, jnp.float32, jnp.finfo(jnp.float32).tiny)
        return jnp.log(self.max_phase * u).astype(dtype)

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> ComplexCarry:
        """Returns a carry of zeros [B, H], at least float32, for inputs of shape [B, F]; `rng` is not used."""
        del rng
        return ComplexCarry(*(jnp.zeros((*input_shape[:-1], self.features), self._carry_dtype) for _ in range(2)))

    @nn.nowrap
    def state(self, carry: Any) -> jax.Array:
        return jax.lax.complex(*carry)

    @nn.nowrap
    def carry(self, state: jax.Array) -> ComplexCarry:
        return ComplexCarry(state.real, state.imag)


class RGLRUCell(LinearCell):
    """The real-gated linear recurrent unit (De et al. 2024, equations 1 to 4), with the linear layer before it.

        u    = x W + b
        r, i = sigmoid(u V + d) each with its own half of V and d
        a    = sigmoid(L)^(8 r)
        h'   = a * h + sqrt(1 - a^2) * (i * u)

    Parameters: `kernel` [F, H] (W), `bias` [H] (b), `gate_kernel` [H, 2H] (V), `gate_bias` [2H] (d), `decay` [H] (L),
    that is (F + 1) H + 2 H^2 + 3 H numbers. L is initialized so that a is uniform from 0.9 to 0.999 at r = 1.
    """

    @property
    def roles(self) -> tuple[str, ...]:
        return ('',)

    @nn.compact
    def affine(self, inputs: jax.Array) -> Affine:
        units, lecun = self.features, nn.initializers.lecun_normal()
        (u,), dtype = self._gates(inputs)
        gate_kernel = self.param('gate_kernel', lecun, (units, 2 * units), self.param_dtype)
        gate_bias = self.param('gate_bias', nn.initializers.zeros_init(), (2 * units,), self.param_dtype)
        logit = self._widen(self.param('decay', _decay_init, (units,), self.param_dtype))
        z = u.astype(dtype) @ gate_kernel.astype(dtype) + cell.row(gate_bias.astype(dtype), u)
        r, i = jnp.split(nn.sigmoid(self._widen(z)), 2, axis=-1)
        log_a = 8 * r * cell.row(nn.log_sigmoid(logit), u)
        left = -jnp.expm1(2 * log_a)  # 1 - a^2
        # The square root is not differentiable at a = 1.
        scale = jnp.where(left > TINY, jnp.sqrt(jnp.maximum(left, TINY)), 0)
        return jnp.exp(log_a), scale * (i * u), lambda h: h.astype(dtype)


TINY = 1e-12  # largest 1 - a^2 whose square root is taken as 0


def _decay_init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    log_a = jnp.log(jax.random.uniform(key, shape, jnp.float32, 0.9, 0.999)) / 8
    return (log_a - jnp.log(-jnp.expm1(log_a))).astype(dtype)  # the logit of a
