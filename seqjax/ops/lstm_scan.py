"""The LSTM as a plain scan, which JAX differentiates."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from seqjax.ops import masking
from seqjax.ops.common import StepInputs


class LSTMState(NamedTuple):
    """What an LSTM remembers between two steps; also the gradients of that."""

    c: jax.Array  # [B, H]
    h: jax.Array  # [B, H]


class LSTMWeights(NamedTuple):
    """Gates i, f, g, o side by side; also the gradients."""

    kernel: jax.Array  # [F, 4H]
    recurrent_kernel: jax.Array  # [H, 4H]
    bias: jax.Array  # [4H]


class LSTMOutput(NamedTuple):
    """What a recurrence gives; also the gradients of that."""

    last: LSTMState
    outputs: jax.Array  # [T, B, H]: h after each step
    cells: jax.Array | None  # [T, B, H]: c after each step; None where it is not asked for


def initial_state(name: str, pair: Any) -> LSTMState:
    if len(pair) != 2:
        raise ValueError(f'{name} has {len(pair)} parts and must have 2, c and h')
    return LSTMState(*pair)


def plain(
    steps: StepInputs,
    carry: LSTMState,
    weights: LSTMWeights,
    fresh: LSTMState,
    *,
    history: bool = False,
    unroll: int = 1,
    of_inputs: Callable[[jax.Array], jax.Array] | None = None,
) -> LSTMOutput:
    """The equations, one step after the other; JAX differentiates them in whatever way.

    `of_inputs` gives what the inputs of a step add to its sums, [B, 4H]: by default their product with the kernel.
    """
    of_inputs = of_inputs or (lambda x: x @ weights.kernel)
    dtype = steps.inputs.dtype

    def step(state, x):
        if x.resets is not None:
            state = masking.select(x.resets, fresh, state)
        z = of_inputs(x.inputs) + state.h.astype(dtype) @ weights.recurrent_kernel + weights.bias[None]
        i, f, g, o = jnp.split(z, 4, axis=-1)
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        new = LSTMState(c.astype(state.c.dtype), h.astype(state.h.dtype))
        if x.real is not None:
            new = masking.select(x.real, new, state)
        return new, (new.h.astype(dtype), new.c if history else None)

    last, (outputs, cells) = lax.scan(step, carry, steps, unroll=unroll)
    return LSTMOutput(last, outputs, cells)


def ahead(
    steps: StepInputs, carry: LSTMState, weights: LSTMWeights, fresh: LSTMState, *, history: bool = False
) -> LSTMOutput:
    """As `plain`, with one product for the inputs of all steps, and `AT_ONCE` steps in one iteration of the loop.

    For GPUs, on which it takes longer to start an operation than to compute most of these.
    """
    ready = steps._replace(inputs=steps.inputs @ weights.kernel)
    return plain(ready, carry, weights, fresh, history=history, unroll=AT_ONCE, of_inputs=lambda x: x)


AT_ONCE = 8


def gate_preactivations(z: jax.Array, axis: int) -> list[jax.Array]:
    i, f, g, o = jnp.split(z, 4, axis=axis)
    return [jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)]


class LSTMStaticArgs(NamedTuple):
    """What is known before anything is traced."""

    form: Any  # _Rows(), _Narrow() or _Columns()
    history: bool
    again: bool  # whether the backward pass makes the sums once more


def where(flags: jax.Array, x: LSTMState, y: LSTMState) -> LSTMState:
    return jax.tree.map(partial(jnp.where, flags), x, y)
