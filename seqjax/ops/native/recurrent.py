"""The backends 'native' of `seqjax.ops.lstm` and `seqjax.ops.gru`: kernels in C++ for CPUs.

Both passes are one custom call each. The weights are packed once per call; a tile of rows and units keeps its sums in
registers, computes the gates there, and writes h, c and, for the backward pass, the gates. The backward pass computes
the gradients of the pre-activations and of the weights; a product of XLA makes the gradients of the inputs.

Forward mode and second derivatives come from the plain recurrence.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from seqjax.ops import common, linear_map, row_sharding
from seqjax.ops.common import StepInputs
from seqjax.ops.native import library

LSTM, GRU, GRU_RESET_BEFORE = 0, 1, 2  # values of `Cell` in recurrent.h
GATES = 6  # index of the gates among the arguments of the backward call, which overwrites them


class StaticArgs(NamedTuple):
    """Static arguments of a recurrence."""

    cell: int  # LSTM, GRU or GRU_RESET_BEFORE
    plain: Callable[..., Any]  # the plain recurrence: (steps, carry, weights, reset_carry) -> output
    output: type  # LSTMOutput or GRUOutput
    reverse: bool
    history: bool  # True to return c after each step


class Saved(NamedTuple):
    """Values that the forward pass saves for the backward pass."""

    outputs: jax.Array  # [B, T, H]: h after each step
    cells: jax.Array  # [T, B, H]: c after each step; empty for a GRU
    gates: jax.Array  # [T, B, 4H]: i, f, g, o; or z, r, n, and h U_n + d_n, or r * h without `reset_after`


def is_called_by(jaxpr: ClosedJaxpr) -> bool:
    """Returns True if a traced function calls the native kernels."""
    return f'{library.PREFIX}_forward' in str(jaxpr)


def run(
    cell: int,
    plain: Callable[..., Any],
    output: type,
    steps: StepInputs,
    carry: Any,
    weights: Any,
    reset_carry: Any,
    *,
    reverse: bool = False,
    history: bool = False,
) -> Any:
    """Computes the plain recurrence by the native kernels.

    Args:
      cell: LSTM, GRU, or GRU_RESET_BEFORE: without `reset_after`.
      plain: the plain recurrence: (steps, carry, weights, reset_carry) -> output.
      output: LSTMOutput or GRUOutput.
      steps: inputs [T, B, F] and flags [T, B], in the order of time also with `reverse`.
      carry, reset_carry: (c, h) for an LSTM, h for a GRU, each [B, H].
      weights: LSTMWeights or GRUWeights.
      reverse: process the last step first.
      history: return c after each step.
    """
    return _run(StaticArgs(cell, plain, output, reverse, history), steps, carry, weights, reset_carry)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _run(static: StaticArgs, steps: StepInputs, carry: Any, weights: Any, reset_carry: Any) -> Any:
    return _call_forward(static, steps, carry, weights, reset_carry, save=False)[0]


@_run.defjvp
def _run_jvp(static: StaticArgs, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    output, saved = _forward(static, *primals)
    arguments = (tangents[0].inputs, *tangents[1:])
    call, transpose = partial(_tangents, static), partial(_backward, static)
    return output, linear_map.linear_map(call, transpose, (primals, saved), arguments, like=output)


def _tangents(static: StaticArgs, residuals: tuple[Any, Saved], tangents: tuple[Any, ...]) -> Any:
    """Returns the tangents of the output, by forward mode of the plain recurrence."""
    (steps, *states), _ = residuals
    return jax.jvp(partial(_plain, static, steps), (steps.inputs, *states), tangents)[1]


def _plain(static: StaticArgs, steps: StepInputs, inputs: jax.Array, *states: Any) -> Any:
    """Computes the plain recurrence of the inputs, with the flags of `steps`."""
    steps, options = steps._replace(inputs=inputs), {'history': True} if static.history else {}
    if not static.reverse:
        return static.plain(steps, *states, **options)
    last, *others = static.plain(common.flip(steps), *states, **options)
    return static.output(last, *common.flip(others))


# The forward pass and the backward pass are differentiated only for second derivatives, by the plain recurrence. What
# is saved needs no tangents then: the rule of `_backward` does not use them.


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(static: StaticArgs, steps: StepInputs, carry: Any, weights: Any, reset_carry: Any) -> tuple[Any, Saved]:
    return _call_forward(static, steps, carry, weights, reset_carry, save=True)


@_forward.defjvp
def _forward_jvp(static: StaticArgs, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    output, saved = _forward(static, *primals)
    output_tangents = _tangents(static, (primals, saved), (tangents[0].inputs, *tangents[1:]))
    return (output, saved), (output_tangents, jax.tree.map(jnp.zeros_like, saved))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _backward(static: StaticArgs, residuals: tuple[Any, Saved], gradients: Any) -> tuple[Any, ...]:
    """Returns the gradients of inputs, carry, weights and reset_carry from gradients of the output."""
    (_, _, weights, _), _ = residuals
    dz, carry_gradients, weight_gradients, reset_gradients = _call_backward(static, *residuals, gradients)
    kernel = weights.kernel
    if static.cell != LSTM:  # the gradients of n, z, r stand before a part that does not depend on the inputs
        hidden = kernel.shape[1] // 3
        kernel = jnp.pad(jnp.roll(kernel, hidden, axis=1), [(0, 0), (0, hidden)])
    return jnp.einsum('tbg,fg->tbf', dz, kernel), carry_gradients, weight_gradients, reset_gradients


@_backward.defjvp
def _backward_jvp(static: StaticArgs, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    (residuals, gradients), ((argument_tangents, _), gradient_tangents) = primals, tangents
    (steps, *states), _ = residuals

    def plain_backward(inputs, states, gradients):
        return jax.vjp(partial(_plain, static, steps), inputs, *states)[1](gradients)

    tangents = (argument_tangents[0].inputs, list(argument_tangents[1:]), gradient_tangents)
    _, out = jax.jvp(plain_backward, (steps.inputs, states, gradients), tangents)
    return _backward(static, residuals, gradients), out


def _call(call: str, static: StaticArgs, arguments: tuple[Any, ...], out: tuple[Any, ...], **options: Any) -> list[Any]:
    name = f'{library.PREFIX}_{call}_{library.load(arguments[0].dtype.name).key}'
    shapes = [jax.ShapeDtypeStruct(shape, arguments[0].dtype) for shape in out]
    function = jax.ffi.ffi_call(name, shapes, vmap_method='expand_dims', **options)
    shards = row_sharding.shards_on_this_host()
    return function(*arguments, cell=np.int32(static.cell), reverse=static.reverse, shards=np.int32(shards))


def _states(static: StaticArgs, steps: StepInputs, carry: Any, reset_carry: Any) -> tuple[tuple[Any, ...], ...]:
    """Returns (h, c) of the carry, and (reset h, reset c, valid, resets); empty arrays for what there is not."""
    empty, none = jnp.zeros(0, steps.inputs.dtype), jnp.zeros(0, bool)
    c, h = carry if static.cell == LSTM else (empty, carry)
    reset_c, reset_h = reset_carry if static.cell == LSTM else (empty, reset_carry)
    if steps.resets is None:
        reset_c, reset_h = empty, empty
    flags = (none if flag is None else flag for flag in (steps.valid, steps.resets))
    return (h, c), (reset_h, reset_c, *flags)


def _call_forward(
    static: StaticArgs, steps: StepInputs, carry: Any, weights: Any, reset_carry: Any, *, save: bool
) -> tuple[Any, Saved]:
    (count, rows, _), hidden, lstm = steps.inputs.shape, weights.recurrent_kernel.shape[0], static.cell == LSTM
    by_row, by_step, none = (rows, hidden), (count, rows, hidden), (0,)
    cells = by_step if lstm and (save or static.history) else none
    gates = (count, rows, 4 * hidden) if save else none
    out = ((rows, count, hidden), by_row, by_row if lstm else none, cells, gates)
    state, others = _states(static, steps, carry, reset_carry)
    biases = (weights.bias, weights.recurrent_bias if static.cell == GRU else jnp.zeros(0, steps.inputs.dtype))
    arguments = (jnp.swapaxes(steps.inputs, 0, 1), *state, weights.kernel, weights.recurrent_kernel, *biases, *others)
    outputs, last_h, last_c, cells, gates = _call('forward', static, arguments, out)
    if lstm:
        history = cells if static.history else None
        result = static.output(type(carry)(last_c, last_h), jnp.swapaxes(outputs, 0, 1), history)
    else:
        result = static.output(last_h, jnp.swapaxes(outputs, 0, 1))
    return result, Saved(outputs, cells, gates)


def _call_backward(
    static: StaticArgs, primals: tuple[Any, ...], saved: Saved, gradients: Any
) -> tuple[jax.Array, Any, Any, Any]:
    """Returns the gradients of the pre-activations [T, B, 4H], of the carry, of the weights, and of reset_carry."""
    (steps, carry, weights, reset_carry), (outputs, _, gates) = primals, saved
    empty, none, lstm, resets = jnp.zeros(0, outputs.dtype), (0,), static.cell == LSTM, steps.resets is not None
    by_row = (outputs.shape[0], outputs.shape[2])
    reset = by_row if resets else none
    out = (gates.shape, by_row, by_row if lstm else none, reset, reset if lstm else none)
    out += (*(none if x is None else x.shape for x in weights), *[none] * (4 - len(weights)))
    state, others = _states(static, steps, carry, reset_carry)
    last = (gradients.last.h, gradients.last.c) if lstm else (gradients.last, empty)
    dcells = gradients.cells if static.history else empty
    x, dy = jnp.swapaxes(steps.inputs, 0, 1), jnp.swapaxes(gradients.outputs, 0, 1)
    arguments = (x, weights.recurrent_kernel, *state, *saved, *others, dy, dcells, *last)
    dz, dh, dc, dreset_h, dreset_c, *dweights = _call(
        'backward', static, arguments, out, input_output_aliases={GATES: 0}
    )
    dweights = [None if x is None else dx for x, dx in zip(weights, dweights, strict=False)]
    weight_gradients = type(weights)(*dweights)
    if not lstm:
        return dz, dh, weight_gradients, dreset_h if resets else jnp.zeros_like(reset_carry)
    carry_type = type(carry)
    reset_gradients = carry_type(dreset_c, dreset_h) if resets else jax.tree.map(jnp.zeros_like, reset_carry)
    return dz, carry_type(dc, dh), weight_gradients, reset_gradients
