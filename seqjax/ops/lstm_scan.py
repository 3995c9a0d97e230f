"""The LSTM as a plain scan, which JAX differentiates, and the types of all LSTM backends."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from seqjax.ops import masking
from seqjax.ops.common import StepInputs


class LSTMState(NamedTuple):
    """State of an LSTM between two time steps, or gradients of such a state."""

    c: jax.Array  # [B, H]
    h: jax.Array  # [B, H]


class LSTMWeights(NamedTuple):
    """Weights of an LSTM, or gradients of the weights; the gates i, f, g, o are side by side on the last axis."""

    kernel: jax.Array  # [F, 4H]
    recurrent_kernel: jax.Array  # [H, 4H]
    bias: jax.Array  # [4H]


class LSTMOutput(NamedTuple):
    """Result of the LSTM, or gradients of such a result."""

    last: LSTMState  # after the last processed step
    outputs: jax.Array  # [T, B, H]: h after each step
    cells: jax.Array | None  # [T, B, H]: c after each step; None without `history`


def initial_state(name: str, pair: Any) -> LSTMState:
    """Returns a pair (c, h), the argument `name`, as an LSTMState; raises ValueError if it has not 2 parts."""
    if len(pair) != 2:
        raise ValueError(f'{name} has {len(pair)} parts and must have 2: c and h')
    return LSTMState(*pair)


def plain(
    steps: StepInputs,
    carry: LSTMState,
    weights: LSTMWeights,
    reset_carry: LSTMState,
    *,
    history: bool = False,
    unroll: int = 1,
    input_projection: Callable[[jax.Array], jax.Array] | None = None,
) -> LSTMOutput:
    """Runs the equations of the LSTM by `lax.scan`; the reference implementation, differentiated by JAX.

    `input_projection` maps the inputs of a step to their part of the pre-activations [B, 4H], by default by the product
    with the kernel. `unroll` is the number of time steps per loop iteration.
    """
    input_projection = input_projection or (lambda x: x @ weights.kernel)
    dtype = steps.inputs.dtype

    def step(state, x):
        if x.resets is not None:
            state = masking.select(x.resets, reset_carry, state)
        z = input_projection(x.inputs) + state.h.astype(dtype) @ weights.recurrent_kernel + weights.bias[None]
        i, f, g, o = jnp.split(z, 4, axis=-1)
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        new = LSTMState(c.astype(state.c.dtype), h.astype(state.h.dtype))
        if x.valid is not None:
            new = masking.select(x.valid, new, state)
        return new, (new.h.astype(dtype), new.c if history else None)

    last, (outputs, cells) = lax.scan(step, carry, steps, unroll=unroll)
    return LSTMOutput(last, outputs, cells)


def ahead(
    steps: StepInputs, carry: LSTMState, weights: LSTMWeights, reset_carry: LSTMState, *, history: bool = False
) -> LSTMOutput:
    """Computes `plain` with one product for the inputs of all steps, and `AHEAD_UNROLL` steps per loop iteration.

    It is faster on GPUs, where launching an operation takes longer than most operations of a step.
    """
    projected = steps._replace(inputs=steps.inputs @ weights.kernel)
    return plain(
        projected, carry, weights, reset_carry, history=history, unroll=AHEAD_UNROLL, input_projection=lambda x: x
    )


AHEAD_UNROLL = 8  # time steps per loop iteration


def activate_gates(z: jax.Array, axis: int) -> list[jax.Array]:
    """Returns the gates [i, f, g, o] from pre-activations z, which hold the four side by side on `axis`."""
    i, f, g, o = jnp.split(z, 4, axis=axis)
    return [jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)]


class LSTMStaticArgs(NamedTuple):
    """Arguments of the fused LSTM that are constants of the compiled code."""

    layout: Any  # BatchMajor() or FeatureMajor()
    history: bool  # True to return c after each step
    recompute: bool  # True to recompute pre-activations in the backward pass


def where(flags: jax.Array, x: LSTMState, y: LSTMState) -> LSTMState:
    return jax.tree.map(partial(jnp.where, flags), x, y)
