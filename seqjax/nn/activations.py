"""Activation functions by name, so that cells can be compared, copied and pickled."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqjax import validation

Activation = Callable[[jax.Array], jax.Array]


def keras2_hard_sigmoid(x: jax.Array) -> jax.Array:
    """Computes clip(0.2 x + 0.5, 0, 1), the gate activation of Keras before 2.3, which the notebook used."""
    return jnp.clip(0.2 * x + 0.5, 0, 1)


def identity(x: jax.Array) -> jax.Array:
    """Returns x."""
    return x


def positive(x: jax.Array) -> jax.Array:
    """Computes x + 1/2 for x >= 0 and sigmoid(x) below, the positive function g of Feng et al. 2024."""
    return jnp.where(x >= 0, x + 0.5, nn.sigmoid(x))


# The usual gate activations.
RECURRENT_ACTIVATIONS: dict[str, Activation] = {
    'sigmoid': nn.sigmoid,  # Keras 3, PyTorch, Flax
    'hard_sigmoid': nn.hard_sigmoid,  # relu6(x + 3) / 6: JAX's and Keras 3's function of this name
    'keras2_hard_sigmoid': keras2_hard_sigmoid,
}
# Functions on which JAX, Keras and PyTorch agree by name.
ACTIVATIONS: dict[str, Activation] = RECURRENT_ACTIVATIONS | {
    'tanh': jnp.tanh,
    'relu': nn.relu,
    'elu': nn.elu,
    'selu': nn.selu,
    'silu': nn.silu,
    'softplus': nn.softplus,
    'softsign': nn.soft_sign,
    'identity': identity,
    'positive': positive,
}


@dataclasses.dataclass(frozen=True)
class NamedActivation:
    """A callable function of `ACTIVATIONS` that is equal to every other of the same name.

    Functions themselves do not compare equal after a copy, and `pickle` fails for `jnp.tanh`.
    """

    name: str

    def __call__(self, x: jax.Array) -> jax.Array:
        return ACTIVATIONS[self.name](x)

    def __repr__(self) -> str:
        return repr(self.name)


TANH, SIGMOID, IDENTITY = (NamedActivation(name) for name in ('tanh', 'sigmoid', 'identity'))


def named(field: str, value: str | Activation) -> Activation:
    """Returns the `NamedActivation` of a name or of a function of `ACTIVATIONS`, and any other callable unchanged.

    Raises ValueError if the value of the field is neither a known name nor a callable.

    >>> named('activation', jnp.tanh) == named('activation', 'tanh')
    True
    """
    if isinstance(value, str):
        validation.check_choice(field, value, ACTIVATIONS)
        return NamedActivation(value)
    if not callable(value):
        raise ValueError(f"{field}={value!r} must be a function or the name of an activation, such as 'tanh'")
    return next((NamedActivation(name) for name, function in ACTIVATIONS.items() if value is function), value)
