"""The fused LSTM and its backward pass through time.

`fast` computes the numbers of `lstm_scan.plain`, and its backward pass

- carries the gradients of c and h alone from step to step, so that a step needs one product and not three;
- takes the gradients of the weights from chunks of steps: one large product for each is faster than a small one for
  every step, and needs less memory, and rounds less, than one of all steps;
- keeps of each step h, c and what the gates come from, 6 H numbers a row, where JAX by itself keeps about 14 H; or only
  h and c if the residuals exceed the caches: the pre-activations are then recomputed chunk by chunk.
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
    how: LSTMStaticArgs, steps: StepInputs, carry: LSTMState, weights: LSTMWeights, fresh: LSTMState
) -> LSTMOutput:
    return _forward(how._replace(again=True), steps, carry, weights, fresh)[0]  # there is nothing to keep it for


def _forward(
    how: LSTMStaticArgs, steps: StepInputs, carry: LSTMState, weights: LSTMWeights, fresh: LSTMState
) -> tuple[LSTMOutput, LSTMResiduals]:
    form, inputs = how.form, jnp.swapaxes(steps.inputs, 0, 1)
    matrix, begin = form.prepare(weights), lstm_layouts.to_layout(form, fresh)

    def step(before, x):
        state, outputs = before
        old = state if x.resets is None else lstm_scan.where(form.flags(x.resets), begin, state)
        sums = form.sums(matrix, common.at(inputs, x.inputs), old.h)
        kept = None if how.again else form.keep(sums)
        i, f, g, o = lstm_scan.gate_preactivations(sums, form.axis) if how.again else form.gates(kept)
        c = f * old.c + i * g
        h = o * jnp.tanh(c)
        new = LSTMState(c.astype(old.c.dtype), h.astype(old.h.dtype))
        if x.real is not None:
            new = lstm_scan.where(form.flags(x.real), new, old)
        h = form.turn(new.h).astype(outputs.dtype)
        return (new, lax.dynamic_update_index_in_dim(outputs, h, x.inputs, 1)), (state.c, kept)

    outputs = jnp.zeros_like(inputs, shape=(*inputs.shape[:2], weights.recurrent_kernel.shape[0]))
    numbered = steps._replace(inputs=jnp.arange(inputs.shape[1]))
    (last, outputs), (cells, kept) = lax.scan(step, (lstm_layouts.to_layout(form, carry), outputs), numbered)
    after = None
    if how.history:
        after = jax.vmap(form.turn)(jnp.concatenate([cells[1:], last.c[None]]))
    run = LSTMOutput(lstm_layouts.to_layout(form, last), jnp.swapaxes(outputs, 0, 1), after)
    return run, LSTMResiduals(steps._replace(inputs=inputs), carry, weights, fresh, last, outputs, cells, kept)


@fast.defjvp
def _fast_jvp(
    how: LSTMStaticArgs, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[LSTMOutput, LSTMOutput]:
    run, kept = _forward(how, *primals)
    arguments = (tangents[0].inputs, *tangents[1:])
    return run, linear_map.linear_map(partial(_tangents, how), partial(_backward, how), kept, arguments, like=run)


def _tangents(how: LSTMStaticArgs, kept: LSTMResiduals, tangents: tuple[Any, ...]) -> LSTMOutput:
    """Forward mode is that of the plain recurrence."""
    steps = kept.steps._replace(inputs=jnp.swapaxes(kept.steps.inputs, 0, 1))
    return _plain_jvp(steps, (kept.carry, kept.weights, kept.fresh), tangents, how.history)[1]


def _plain_jvp(
    steps: StepInputs, states: tuple[Any, ...], tangents: tuple[Any, ...], history: bool, unroll: int = 1
) -> tuple[LSTMOutput, LSTMOutput]:
    """What `plain` gives of steps and (carry, weights, fresh), and its tangents for those of inputs and of these."""

    def plain(inputs, *states):
        return lstm_scan.plain(steps._replace(inputs=inputs), *states, history=history, unroll=unroll)

    return jax.jvp(plain, (steps.inputs, *states), tangents)


def _backward(how: LSTMStaticArgs, kept: LSTMResiduals, gradients: LSTMOutput) -> tuple[Any, ...]:
    """Gradients of inputs, carry, weights and fresh."""
    form, (steps, carry, weights, fresh, *_) = how.form, kept
    gradients = gradients._replace(outputs=jnp.swapaxes(gradients.outputs, 0, 1))
    back = LSTMBackwardCarry(
        state=lstm_layouts.to_layout(form, gradients.last),
        c=kept.last.c,
        fresh=None if steps.resets is None else jax.tree.map(jnp.zeros_like, lstm_layouts.to_layout(form, fresh)),
        weights=None,
        inputs=jnp.zeros_like(steps.inputs),
    )
    step = _back_step(how, kept, gradients)
    again = partial(form.sums, form.prepare(weights)) if how.again else None
    back = common.in_chunks(form, step, back, steps, kept.outputs, carry.h, fresh.h, weights.kernel, again)
    hidden = kept.outputs.shape[-1]
    of_weights = jax.tree.map(lambda x, like: x.astype(like.dtype), form.as_weights(back.weights, hidden), weights)
    of_fresh = jax.tree.map(jnp.zeros_like, fresh) if back.fresh is None else lstm_layouts.to_layout(form, back.fresh)
    return jnp.swapaxes(back.inputs, 0, 1), lstm_layouts.to_layout(form, back.state), of_weights, of_fresh


def _back_step(
    how: LSTMStaticArgs, kept: LSTMResiduals, gradients: LSTMOutput
) -> Callable[..., tuple[LSTMBackwardCarry, jax.Array]]:
    """-> (t, what is carried after step t, its sums made again) -> what is carried before it, and dz as it lies."""
    form, steps, begin = how.form, kept.steps, lstm_layouts.to_layout(how.form, kept.fresh)
    matrix = form.prepare_back(kept.weights)

    def step(t, back, again):
        state = LSTMState(
            back.state.c, back.state.h + form.turn(common.at(gradients.outputs, t)).astype(back.state.h.dtype)
        )
        if how.history:
            state = state._replace(c=state.c + form.turn(gradients.cells[t]))
        passed = None
        if steps.real is not None:  # the gradients of a masked step pass it by
            real, none = form.flags(steps.real[t]), jax.tree.map(jnp.zeros_like, state)
            state, passed = lstm_scan.where(real, state, none), lstm_scan.where(real, none, state)
        before = kept.cells[t]
        anew = None if steps.resets is None else form.flags(steps.resets[t])
        old_c = before if anew is None else jnp.where(anew, begin.c, before)
        i, f, g, o = lstm_scan.gate_preactivations(again, form.axis) if how.again else form.gates(kept.kept[t])
        squashed = jnp.tanh(back.c)
        dc = state.c + state.h * o * (1 - squashed**2)
        sums = [dc * g * i * (1 - i), dc * old_c * f * (1 - f), dc * i * (1 - g**2), state.h * squashed * o * (1 - o)]
        dz = jnp.concatenate(sums, axis=form.axis).astype(steps.inputs.dtype)
        old = LSTMState((dc * f).astype(state.c.dtype), form.back(matrix, dz).astype(state.h.dtype))
        if passed is not None:
            old = jax.tree.map(jnp.add, old, passed)
        fresh = back.fresh
        if anew is not None:
            none = jax.tree.map(jnp.zeros_like, old)
            fresh = jax.tree.map(jnp.add, fresh, lstm_scan.where(anew, old, none))
            old = lstm_scan.where(anew, none, old)
        return back._replace(state=old, c=before, fresh=fresh), dz

    return step


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def small(
    how: LSTMStaticArgs, steps: StepInputs, carry: LSTMState, weights: LSTMWeights, fresh: LSTMState
) -> LSTMOutput:
    """Where a step is so small that what counts is how many operations it has, and not what they compute.

    The forward pass has fewest as `_Rows` has it, and forward and backward pass together as JAX makes them from a plain
    loop of some steps in one.
    """
    return _forward(how._replace(again=True), steps, carry, weights, fresh)[0]


@small.defjvp
def _small_jvp(
    how: LSTMStaticArgs, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[LSTMOutput, LSTMOutput]:
    return _plain_jvp(primals[0], primals[1:], (tangents[0].inputs, *tangents[1:]), how.history, common.FEW)


def with_layout(run: Callable[..., LSTMOutput], form: Any) -> Callable[..., LSTMOutput]:
    def backend(steps, carry, *others, history=False):
        again = form.again(*steps.inputs.shape[:2], carry.h.shape[-1])
        return run(LSTMStaticArgs(form, history, again), steps, carry, *others)

    return backend
