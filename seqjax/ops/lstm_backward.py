"""The fused LSTM, with a custom backward pass through time.

`fast` computes the numbers of `lstm_scan.plain`, and its backward pass

- carries only the gradients of c and h from step to step, so that a step needs one product instead of three;
- takes the gradients of the weights from chunks of steps: one large product per chunk is faster than a small one per
  step, and needs less memory and rounds less than one for all steps;
- reads h, c and the pre-activations (or gates) of each step, which the forward pass saved: 6 H numbers per row instead
  of about 14 H with JAX's own backward pass. `BatchMajor` saves only h and c if T B H is large and H is small, and
  recomputes the pre-activations chunk by chunk.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from seqjax.ops import common, linear_map, lstm_layouts, lstm_scan
from seqjax.ops.common import StepInputs
from seqjax.ops.lstm_layouts import LSTMBackwardCarry, LSTMResiduals
from seqjax.ops.lstm_scan import LSTMOutput, LSTMState, LSTMStaticArgs, LSTMWeights


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def fast(
    static_args: LSTMStaticArgs, steps: StepInputs, carry: LSTMState, weights: LSTMWeights, reset_carry: LSTMState
) -> LSTMOutput:
    # Without a backward pass nothing needs saving, and with `recompute` no pre-activations are saved.
    return _forward(static_args._replace(recompute=True), steps, carry, weights, reset_carry)[0]


def _forward(
    static_args: LSTMStaticArgs, steps: StepInputs, carry: LSTMState, weights: LSTMWeights, reset_carry: LSTMState
) -> tuple[LSTMOutput, LSTMResiduals]:
    layout, inputs = static_args.layout, jnp.swapaxes(steps.inputs, 0, 1)
    matrix, reset_state = layout.step_matrix(weights), lstm_layouts.state_to_layout(layout, reset_carry)

    def step(before, x):
        state, outputs = before
        old = state if x.resets is None else lstm_scan.where(layout.flags(x.resets), reset_state, state)
        preactivations = layout.preactivations(matrix, common.at(inputs, x.inputs), old.h)
        saved = None if static_args.recompute else layout.save(preactivations)
        if static_args.recompute:
            i, f, g, o = lstm_scan.activate_gates(preactivations, layout.axis)
        else:
            i, f, g, o = layout.gates(saved)
        c = f * old.c + i * g
        h = o * jnp.tanh(c)
        new = LSTMState(c.astype(old.c.dtype), h.astype(old.h.dtype))
        if x.valid is not None:
            new = lstm_scan.where(layout.flags(x.valid), new, old)
        h = layout.to_layout(new.h).astype(outputs.dtype)
        return (new, lax.dynamic_update_index_in_dim(outputs, h, x.inputs, 1)), (state.c, saved)

    outputs = jnp.zeros_like(inputs, shape=(*inputs.shape[:2], weights.recurrent_kernel.shape[0]))
    numbered = steps._replace(inputs=jnp.arange(inputs.shape[1]))
    first = lstm_layouts.state_to_layout(layout, carry)
    (last, outputs), (cells, saved) = lax.scan(step, (first, outputs), numbered)
    history = None
    if static_args.history:
        history = jax.vmap(layout.to_layout)(jnp.concatenate([cells[1:], last.c[None]]))
    output = LSTMOutput(lstm_layouts.state_to_layout(layout, last), jnp.swapaxes(outputs, 0, 1), history)
    steps = steps._replace(inputs=inputs)
    return output, LSTMResiduals(steps, carry, weights, reset_carry, last, outputs, cells, saved)


@fast.defjvp
def _fast_jvp(
    static_args: LSTMStaticArgs, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[LSTMOutput, LSTMOutput]:
    output, residuals = _forward(static_args, *primals)
    arguments = (tangents[0].inputs, *tangents[1:])
    call, transpose = partial(_tangents, static_args), partial(_backward, static_args)
    return output, linear_map.linear_map(call, transpose, residuals, arguments, like=output)


def _tangents(static_args: LSTMStaticArgs, residuals: LSTMResiduals, tangents: tuple[Any, ...]) -> LSTMOutput:
    """Returns the tangents of the result, by `plain`, for tangents of (inputs, carry, weights, reset_carry)."""
    steps = residuals.steps

    def plain(inputs, *states):
        return lstm_scan.plain(steps._replace(inputs=inputs), *states, history=static_args.history)

    primals = (jnp.swapaxes(steps.inputs, 0, 1), residuals.carry, residuals.weights, residuals.reset_carry)
    return jax.jvp(plain, primals, tangents)[1]


def _backward(static_args: LSTMStaticArgs, residuals: LSTMResiduals, gradients: LSTMOutput) -> tuple[Any, ...]:
    """Returns the gradients of (inputs, carry, weights, reset_carry) from the gradients of the result."""
    layout, (steps, carry, weights, reset_carry, *_) = static_args.layout, residuals
    reset_state = lstm_layouts.state_to_layout(layout, reset_carry)
    gradients = gradients._replace(outputs=jnp.swapaxes(gradients.outputs, 0, 1))
    backward_carry = LSTMBackwardCarry(
        state=lstm_layouts.state_to_layout(layout, gradients.last),
        c=residuals.last.c,
        reset_carry=None if steps.resets is None else jax.tree.map(jnp.zeros_like, reset_state),
        weights=None,
        inputs=jnp.zeros_like(steps.inputs),
    )
    backward_step = _backward_step(static_args, residuals, gradients)
    recompute = partial(layout.preactivations, layout.step_matrix(weights)) if static_args.recompute else None
    backward_carry = common.chunked_backward(
        layout,
        backward_step,
        backward_carry,
        steps,
        residuals.outputs,
        carry.h,
        reset_carry.h,
        weights.kernel,
        recompute,
    )
    weight_gradients = layout.as_weights(backward_carry.weights, residuals.outputs.shape[-1])
    weight_gradients = jax.tree.map(lambda x, like: x.astype(like.dtype), weight_gradients, weights)
    if backward_carry.reset_carry is None:
        reset_gradients = jax.tree.map(jnp.zeros_like, reset_carry)
    else:
        reset_gradients = lstm_layouts.state_to_layout(layout, backward_carry.reset_carry)
    carry_gradients = lstm_layouts.state_to_layout(layout, backward_carry.state)
    return jnp.swapaxes(backward_carry.inputs, 0, 1), carry_gradients, weight_gradients, reset_gradients


def _backward_step(
    static_args: LSTMStaticArgs, residuals: LSTMResiduals, gradients: LSTMOutput
) -> Callable[..., tuple[LSTMBackwardCarry, jax.Array]]:
    """Returns the argument `backward_step` of `common.chunked_backward`; recomputed values are pre-activations."""
    layout, steps = static_args.layout, residuals.steps
    reset_state = lstm_layouts.state_to_layout(layout, residuals.reset_carry)
    matrix = layout.backward_matrix(residuals.weights)

    def backward_step(t, backward_carry, preactivations):
        state = LSTMState(
            backward_carry.state.c,
            backward_carry.state.h
            + layout.to_layout(common.at(gradients.outputs, t)).astype(backward_carry.state.h.dtype),
        )
        if static_args.history:
            state = state._replace(c=state.c + layout.to_layout(gradients.cells[t]))
        skipped = None
        if steps.valid is not None:  # gradients skip a masked step
            valid, zeros = layout.flags(steps.valid[t]), jax.tree.map(jnp.zeros_like, state)
            state, skipped = lstm_scan.where(valid, state, zeros), lstm_scan.where(valid, zeros, state)
        before = residuals.cells[t]
        resets = None if steps.resets is None else layout.flags(steps.resets[t])
        old_c = before if resets is None else jnp.where(resets, reset_state.c, before)
        if static_args.recompute:
            i, f, g, o = lstm_scan.activate_gates(preactivations, layout.axis)
        else:
            i, f, g, o = layout.gates(residuals.saved[t])
        squashed = jnp.tanh(backward_carry.c)
        dc = state.c + state.h * o * (1 - squashed**2)
        dz = [dc * g * i * (1 - i), dc * old_c * f * (1 - f), dc * i * (1 - g**2), state.h * squashed * o * (1 - o)]
        dz = jnp.concatenate(dz, axis=layout.axis).astype(steps.inputs.dtype)
        old = LSTMState((dc * f).astype(state.c.dtype), layout.h_gradient(matrix, dz).astype(state.h.dtype))
        if skipped is not None:
            old = jax.tree.map(jnp.add, old, skipped)
        reset_carry = backward_carry.reset_carry
        if resets is not None:
            zeros = jax.tree.map(jnp.zeros_like, old)
            reset_carry = jax.tree.map(jnp.add, reset_carry, lstm_scan.where(resets, old, zeros))
            old = lstm_scan.where(resets, zeros, old)
        return backward_carry._replace(state=old, c=before, reset_carry=reset_carry), dz

    return backward_step


def with_layout(layout: Any) -> Callable[..., LSTMOutput]:
    """Returns `fast` as a backend that uses the memory layout `layout`."""

    def backend(steps, carry, *others, history=False):
        recompute = layout.should_recompute(*steps.inputs.shape[:2], carry.h.shape[-1])
        return fast(LSTMStaticArgs(layout, history, recompute), steps, carry, *others)

    return backend
