"""Initializers: the schemes of other libraries by name, and gate biases that set the memory span of a cell."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.linen import initializers

from seqjax.config import GATE_BIAS_NAMES

Initializer = Callable[..., jax.Array]

# Roles of gates, by which a `GateBias` sets their biases. All other gates have the role ''.
KEEP = 'keep'  # the gate multiplies the old state: f of the LSTM, z of the GRU
WRITE = 'write'  # the gate multiplies the candidate, and another gate has the role KEEP: i of the LSTM
UPDATE = 'update'  # gate u in (1 - u) * old state + u * candidate: i of the coupled LSTM, z of the minGRU
LSTM_ROLES = (WRITE, KEEP, '', '')  # i, f, g, o


def orthogonal_init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """Draws a matrix [m, n] with orthonormal rows (columns if m > n), uniformly distributed: Keras's `Orthogonal`.

    It is the orthogonal polar factor of a Gaussian matrix, by Newton-Schulz iteration (Higham 2008, equation 8.20): the
    distribution of a QR factorization (Mezzadri 2007), from products alone. `initializers.orthogonal` needs LAPACK,
    whose bindings take 0.2 s to import, and which accelerators emulate step by step.
    """
    work = jnp.promote_types(dtype, jnp.float32)  # in half precision the norm overflows
    gaussian = jax.random.normal(key, (min(shape), max(shape)), work)
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

    # Divided by the Frobenius norm, no singular value is above 1, and each converges to 1.
    rows, _ = jax.lax.while_loop(far, improve, (gaussian / jnp.linalg.norm(gaussian), 0))
    return (rows if shape[0] <= shape[1] else rows.T).astype(dtype)


def uniform_init(bound: float) -> Initializer:
    """Returns an initializer that is uniform from -bound to bound."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def blockwise(init: Initializer, width: int) -> Initializer:
    """Returns an initializer that applies `init` to each block of `width` columns: a matrix for each gate."""

    def draw(key, shape, dtype=jnp.float32):
        blocks = -(-shape[-1] // width)
        keys = jax.random.split(key, blocks)
        widths = [min(width, shape[-1] - i * width) for i in range(blocks)]
        return jnp.concatenate([init(k, (*shape[:-1], w), dtype) for k, w in zip(keys, widths, strict=True)], axis=-1)

    return draw


def sum_of(*inits: Initializer) -> Initializer:
    """Returns an initializer that sums the results of others, each with its own key."""

    def draw(key, shape, dtype=jnp.float32):
        keys = jax.random.split(key, len(inits))
        return sum(init(k, shape, dtype) for k, init in zip(keys, inits, strict=True))

    return draw


@dataclasses.dataclass(frozen=True)
class GateBias:
    """Initializer of a bias [nH] that depends on the role of each of the n gates.

    Called like any other initializer; the default `roles` are the LSTM's.
    """

    def keep(self, key: jax.Array, features: int, dtype: Any) -> jax.Array:
        """Returns the bias [H] of a KEEP gate; the bias of an UPDATE gate is its negative."""
        raise NotImplementedError

    def write(self, keep: jax.Array) -> jax.Array:
        """Returns the bias [H] of a WRITE gate, given the bias of the KEEP gate."""
        return jnp.zeros_like(keep)

    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, roles: tuple[str, ...] = LSTM_ROLES
    ) -> jax.Array:
        if not {KEEP, UPDATE} & set(roles):
            raise ValueError(f'bias_init={self} needs a forget or update gate, and this cell has none')
        keep = self.keep(key, shape[-1] // len(roles), dtype)
        parts = {KEEP: keep, UPDATE: -keep, WRITE: self.write(keep)}
        return jnp.concatenate([parts.get(role, jnp.zeros_like(keep)) for role in roles])


@dataclasses.dataclass(frozen=True)
class ConstantGate(GateBias):
    """Constant initialization: `value` for the forget gate, 0 for others (Gers et al. 2000; Jozefowicz et al. 2015)."""

    value: float = 1.0

    def keep(self, key: jax.Array, features: int, dtype: Any) -> jax.Array:
        del key
        return jnp.full((features,), self.value, dtype)


@dataclasses.dataclass(frozen=True)
class ChronoGate(GateBias):
    """Chrono initialization: memory spans from 1 to about `span` steps (Tallec and Ollivier 2018, equation 16).

        b_f ~ log U(1, span - 1)    b_i = -b_f

    `span` is the longest expected dependency, in time steps.
    """

    span: int

    def __post_init__(self) -> None:
        if isinstance(self.span, bool) or not self.span > 2:
            raise ValueError(f'span={self.span} must be above 2: the longest expected dependency, in time steps')

    def keep(self, key: jax.Array, features: int, dtype: Any) -> jax.Array:
        return jnp.log(jax.random.uniform(key, (features,), dtype, 1, self.span - 1))

    def write(self, keep: jax.Array) -> jax.Array:
        return -keep


@dataclasses.dataclass(frozen=True)
class UniformGate(GateBias):
    """Uniform gate initialization: initial activations uniform on (1/H, 1 - 1/H) (Gu et al. 2020).

    b_f = logit(u) with u ~ U(1/H, 1 - 1/H), and b_i = -b_f, for H of at least 2.
    """

    def keep(self, key: jax.Array, features: int, dtype: Any) -> jax.Array:
        if features < 2:
            raise ValueError(f'features={features} must be at least 2 with bias_init=UniformGate(): U(1/H, 1 - 1/H)')
        u = jax.random.uniform(key, (features,), dtype, 1 / features, 1 - 1 / features)
        return jnp.log(u) - jnp.log1p(-u)

    def write(self, keep: jax.Array) -> jax.Array:
        return -keep


GATE_BIASES: dict[str, type[GateBias]] = dict(
    zip(GATE_BIAS_NAMES, (ConstantGate, ChronoGate, UniformGate), strict=True)
)


class Scheme(NamedTuple):
    """Initializers of a recurrent cell in one library. The bias of a cell with one bias is the sum of both."""

    kernel: Initializer  # [F, nH]
    recurrent_kernel: Initializer  # [H, nH]
    bias: Initializer  # [nH]
    recurrent_bias: Initializer  # [nH]
    forget_bias: float  # constant that an LSTM adds to the bias of its forget gate


_ZEROS = initializers.zeros_init()
# Schemes as functions of the number of hidden units.
SCHEMES: dict[str, Callable[[int], Scheme]] = {
    # Glorot uniform; one orthogonal matrix [H, nH]; zeros; forget bias 1.
    'keras': lambda features: Scheme(initializers.glorot_uniform(), orthogonal_init, _ZEROS, _ZEROS, 1.0),
    # Everything uniform within 1 / sqrt(H).
    'pytorch': lambda features: Scheme(*[uniform_init(features**-0.5)] * 4, 0.0),
    # LeCun normal; an orthogonal matrix [H, H] for each gate; zeros.
    'flax': lambda features: Scheme(
        initializers.lecun_normal(), blockwise(orthogonal_init, features), _ZEROS, _ZEROS, 0.0
    ),
}
