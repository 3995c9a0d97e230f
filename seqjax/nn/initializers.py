"""Weight initializers: the defaults of Keras, PyTorch and Flax by name, and gate biases that set a memory span."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.linen import initializers

from seqjax.config import GATE_BIAS_NAMES

Initializer = Callable[..., jax.Array]

# Roles of gates, by which a `GateBias` sets their biases. A gate with another role has '', and bias 0.
KEEP = 'keep'  # the gate multiplies the old state: f of the LSTM, z of the GRU
WRITE = 'write'  # the gate multiplies the candidate, and another gate has the role KEEP: i of the LSTM
UPDATE = 'update'  # gate u in (1 - u) * old state + u * candidate: i of the coupled LSTM, z of the minGRU
LSTM_ROLES = (WRITE, KEEP, '', '')  # i, f, g, o


def orthogonal_init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """Draws a matrix [m, n] with orthonormal rows (columns if m > n), uniformly distributed: Keras's `Orthogonal`.

    The matrix is the orthogonal polar factor of a Gaussian matrix, by Newton-Schulz iteration (Higham 2008, equation
    8.20). It has the distribution of a QR factorization (Mezzadri 2007), but needs only matrix products. Flax's
    `initializers.orthogonal` needs LAPACK, whose bindings take 0.2 s to import, and which accelerators emulate.
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
    """Returns an initializer that draws values uniformly from -bound to bound."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def blockwise(init: Initializer, width: int) -> Initializer:
    """Returns an initializer that draws each block of `width` columns by `init` with its own key: a block per gate."""

    def draw(key, shape, dtype=jnp.float32):
        blocks = -(-shape[-1] // width)
        keys = jax.random.split(key, blocks)
        widths = [min(width, shape[-1] - i * width) for i in range(blocks)]
        return jnp.concatenate([init(k, (*shape[:-1], w), dtype) for k, w in zip(keys, widths, strict=True)], axis=-1)

    return draw


def sum_of(*inits: Initializer) -> Initializer:
    """Returns an initializer whose result is the sum of the results of `inits`, each drawn with its own key."""

    def draw(key, shape, dtype=jnp.float32):
        keys = jax.random.split(key, len(inits))
        return sum(init(k, shape, dtype) for k, init in zip(keys, inits, strict=True))

    return draw


@dataclasses.dataclass(frozen=True)
class GateBias:
    """Base class of initializers of a bias [nH] by the roles of the n gates; subclasses define `keep`.

    Called like any other initializer; `roles` are the LSTM's by default. Gates with role '' have bias 0. A call
    raises ValueError if no gate has the role KEEP or UPDATE.
    """

    def keep(self, key: jax.Array, features: int, dtype: Any) -> jax.Array:
        """Returns the bias [H] of a KEEP gate, where H is `features`; an UPDATE gate gets the negated bias."""
        raise NotImplementedError

    def write(self, keep: jax.Array) -> jax.Array:
        """Returns the bias [H] of a WRITE gate, given the bias of the KEEP gate: zeros unless overridden."""
        return jnp.zeros_like(keep)

    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, roles: tuple[str, ...] = LSTM_ROLES
    ) -> jax.Array:
        if not {KEEP, UPDATE} & set(roles):
            raise ValueError(
                f'bias_init={self} needs a forget or update gate, and this cell has none; use bias_init=None (in a '
                'model configuration forget_bias_init=default)'
            )
        keep = self.keep(key, shape[-1] // len(roles), dtype)
        parts = {KEEP: keep, UPDATE: -keep, WRITE: self.write(keep)}
        return jnp.concatenate([parts.get(role, jnp.zeros_like(keep)) for role in roles])


@dataclasses.dataclass(frozen=True)
class ConstantGate(GateBias):
    """Constant gate bias: `value` for a KEEP gate, -`value` for an UPDATE gate, else 0.

    References: Gers et al. 2000; Jozefowicz et al. 2015.
    """

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
            raise ValueError(f'span={self.span} must be a number above 2: the longest dependency in time steps')

    def keep(self, key: jax.Array, features: int, dtype: Any) -> jax.Array:
        return jnp.log(jax.random.uniform(key, (features,), dtype, 1, self.span - 1))

    def write(self, keep: jax.Array) -> jax.Array:
        return -keep


@dataclasses.dataclass(frozen=True)
class UniformGate(GateBias):
    """Uniform gate initialization: a forget gate's activations start uniform on (1/H, 1 - 1/H) (Gu et al. 2020).

    b_f = logit(u) with u ~ U(1/H, 1 - 1/H), and b_i = -b_f. H must be at least 2.
    """

    def keep(self, key: jax.Array, features: int, dtype: Any) -> jax.Array:
        if features < 2:
            raise ValueError(f'features={features} must be at least 2 for bias_init=UniformGate(); use another one')
        u = jax.random.uniform(key, (features,), dtype, 1 / features, 1 - 1 / features)
        return jnp.log(u) - jnp.log1p(-u)

    def write(self, keep: jax.Array) -> jax.Array:
        return -keep


GATE_BIASES: dict[str, type[GateBias]] = dict(
    zip(GATE_BIAS_NAMES, (ConstantGate, ChronoGate, UniformGate), strict=True)
)


class Scheme(NamedTuple):
    """Default initializers of recurrent cells in one library; a cell with one bias vector gets the sum of both."""

    kernel: Initializer  # [F, nH]
    recurrent_kernel: Initializer  # [H, nH]
    bias: Initializer  # [nH]
    recurrent_bias: Initializer  # [nH]
    forget_bias: float  # constant added to the initial bias of an LSTM's forget gate


_ZEROS = initializers.zeros_init()
# Functions from the number of hidden units H to a Scheme.
SCHEMES: dict[str, Callable[[int], Scheme]] = {
    # Glorot uniform; one orthogonal matrix [H, nH]; zeros; forget bias 1.
    'keras': lambda features: Scheme(initializers.glorot_uniform(), orthogonal_init, _ZEROS, _ZEROS, 1.0),
    # Everything uniform from -1 / sqrt(H) to 1 / sqrt(H).
    'pytorch': lambda features: Scheme(*[uniform_init(features**-0.5)] * 4, 0.0),
    # LeCun normal; an orthogonal matrix [H, H] for each gate; zeros; forget bias 0.
    'flax': lambda features: Scheme(
        initializers.lecun_normal(), blockwise(orthogonal_init, features), _ZEROS, _ZEROS, 0.0
    ),
}
