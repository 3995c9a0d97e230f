"""Tables of activation functions by name, and `NamedActivation`, which can be compared, copied and pickled."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqjax import validation

Activation = Callable[[jax.Array], jax.Array]


def keras2_hard_sigmoid(x: jax.Array) -> jax.Array:
    """Computes clip(0.2 x + 0.5, 0, 1), the default gate activation (`hard_sigmoid`) of Keras before version 2.3."""
    return jnp.clip(0.2 * x + 0.5, 0, 1)


def identity(x: jax.Array) -> jax.Array:
    """Returns x unchanged."""
    return x


def positive(x: jax.Array) -> jax.Array:
    """Computes x + 0.5 where x >= 0, else sigmoid(x): the function g of Feng et al. 2024, which is always above 0."""
    return jnp.where(x >= 0, x + 0.5, nn.sigmoid(x))


# Functions for gates by name.
RECURRENT_ACTIVATIONS: dict[str, Activation] = {
    'sigmoid': nn.sigmoid,  # the default of Keras 3, PyTorch and Flax
    'hard_sigmoid': nn.hard_sigmoid,  # relu6(x + 3) / 6, as in JAX and Keras 3
    'keras2_hard_sigmoid': keras2_hard_sigmoid,
}
# Functions for hidden states and gates by name.
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
    """Callable that computes `ACTIVATIONS[name]`; two objects with the same name are equal.

    It replaces the function itself, which may not be equal to a copy, and which `pickle` may reject (`jnp.tanh`).
    """

    name: str

    def __call__(self, x: jax.Array) -> jax.Array:
        return ACTIVATIONS[self.name](x)

    def __repr__(self) -> str:
        return repr(self.name)


TANH, SIGMOID, IDENTITY = (NamedActivation(name) for name in ('tanh', 'sigmoid', 'identity'))


def named(field: str, value: str | Activation) -> Activation:
    """Returns a key or a function of `ACTIVATIONS` as a `NamedActivation`, and any other callable unchanged.

    Raises ValueError for any other value; `field` is the name of the argument in the message.

    >>> named('activation', jnp.tanh) == named('activation', 'tanh')
    True
    """
    if isinstance(value, str):
        validation.check_choice(field, value, ACTIVATIONS)
        return NamedActivation(value)
    if not callable(value):
        raise ValueError(f"{field}={value!r} must be a function or the name of an activation, such as 'tanh'")
    return next((NamedActivation(name) for name, function in ACTIVATIONS.items() if value is function), value)
