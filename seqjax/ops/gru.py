"""The GRU over time as a function of arrays, `gru`, with two backends.

`_plain` scans the equations of `GRUCell`, and JAX differentiates it. `_fast` computes the same
numbers with a custom backward pass, which

- carries only the gradient of h from step to step, so that a step needs one product instead of five;
- takes the gradients of the weights from chunks of steps, as `seqjax.ops.lstm_backward` does;
- reads h, z, r, n and h U_n + d_n of each step, 5 H numbers per row, saved in addition to the outputs.

It has no version for `reset_after=False`.

Alternatives that were measured and are no faster: one product of [h, x, 1] for all pre-activations, in which a quarter
of the matrix is zeros; saving pre-activations instead of gates; the feature-major layout, which the LSTM gains from.

`BACKENDS` maps names to backends, and `select_backend` chooses one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from seqjax import validation
from seqjax.ops import common, linear_map, masking
from seqjax.ops.common import BackwardLayout, StepInputs
from seqjax.ops.native import recurrent


class GRUWeights(NamedTuple):
    """Weights of a GRU, or gradients of the weights; the gates z, r, n are side by side on the last axis."""

    kernel: jax.Array  # [F, 3H]
    recurrent_kernel: jax.Array  # [H, 3H]
    bias: jax.Array  # [3H]
    recurrent_bias: jax.Array | None  # [3H]; None without `reset_after`


class GRUOutput(NamedTuple):
    """Result of the GRU, or gradients of such a result."""

    last: jax.Array  # [B, H]: h after the last processed step
    outputs: jax.Array  # [T, B, H]: h after each step


def gru(
    inputs: jax.Array,
    h: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    recurrent_bias: jax.Array | None,
    *,
    seq_lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reset_carry: jax.Array | None = None,
    reset_after: bool = True,
    reverse: bool = False,
    unroll: int | None = None,
    backend: str = 'auto',
) -> GRUOutput:
    """Runs a GRU, `seqjax.nn.GRUCell` with tanh and sigmoid, over all time steps of the inputs.

    Gradients, masks, resets, backends and sharding are as in `seqjax.ops.lstm.lstm`; the state is h.

    Args:
      inputs: [T, B, F].
      h: initial state [B, H]; its dtype is the dtype of the state at every step.
      kernel: [F, 3H], gates z, r, n side by side, in the dtype of the inputs, like the other weights.
      recurrent_kernel, bias: [H, 3H] and [3H].
      recurrent_bias: [3H], added to h U; for n before the product with r. None without `reset_after`.
      seq_lengths, mask, resets, reverse, unroll, backend: see `seqjax.ops.lstm.lstm`.
      reset_carry: [B, H], the value of h after a reset; zeros by default.
      reset_after: multiply r with h U_n + d_n; if False, with h before the product, and there is no backend 'rows'.

    Returns:
      The last h [B, H] and the outputs [T, B, H].

    >>> x, h, bias = jnp.ones((7, 2, 3)), jnp.zeros((2, 5)), jnp.zeros(15)
    >>> run = gru(x, h, jnp.ones((3, 15)), jnp.ones((5, 15)), bias, bias, seq_lengths=jnp.array([7, 4]))
    >>> run.outputs.shape, bool((run.outputs[3, 1] == run.last[1]).all())
    ((7, 2, 5), True)
    """
    backends = BACKENDS if reset_after else {name: BACKENDS[name] for name in ('plain', 'native')}
    common.check_backend(backend, backends, unroll)
    if reset_after == (recurrent_bias is None):
        raise ValueError(f'recurrent_bias is {recurrent_bias}: pass an array with reset_after=True, else None')
    weights = GRUWeights(kernel, recurrent_kernel, bias, recurrent_bias)
    reset_carry = jnp.zeros_like(h) if reset_carry is None else reset_carry
    steps = common.as_steps(inputs, seq_lengths, mask, resets)
    _check(steps, h, weights, reset_carry)
    options = {'unroll': unroll, 'reverse': reverse}
    select = select_backend if reset_after else _select_reset_before
    return GRUOutput(*common.run_backend(backends, select, backend, steps, h, weights, reset_carry, **options))


def select_backend(steps: int, rows: int, hidden: int, platform: str = 'cpu', native: bool = False) -> str:
    """Returns the fastest backend; arguments as in `seqjax.ops.lstm.select_backend`.

    The first line that applies:

    T = 0, or T or B symbolic, or a TPU       plain
    `native`, see `common.native_pays`        native
    `native`                                  plain
    B H up to 64, or B = 1 and H up to 512    plain: launching a step takes longer than computing it
    else                                      rows

    Measured on CPUs, and also used for GPUs.
    """
    if platform == 'tpu' or not common.is_static(steps, rows) or not steps:
        return 'plain'
    if native:
        return 'native' if common.native_pays(steps, rows, hidden) else 'plain'
    return 'plain' if rows * hidden <= (PLAIN_MAX_UNITS if rows == 1 else PLAIN_MAX_SIZE) else 'rows'


def _select_reset_before(*arguments: Any) -> str:
    """Returns the fastest backend without `reset_after`; arguments as for `select_backend`."""
    backend = select_backend(*arguments)
    return 'plain' if backend == 'rows' else backend


PLAIN_MAX_SIZE = 64  # largest B H for 'plain', with B above 1
PLAIN_MAX_UNITS = 512  # largest H for 'plain', with B = 1


def _check(steps: StepInputs, h: jax.Array, weights: GRUWeights, reset_carry: jax.Array) -> None:
    """Raises ValueError if an array has a wrong shape or dtype; H is taken from h, F and the dtype from the inputs."""
    _, rows, features = steps.inputs.shape
    common.check_floats('inputs', steps.inputs.dtype)
    common.check_floats('h', h.dtype)
    hidden = h.shape[-1] if h.ndim else 0
    shapes = {
        'kernel': (features, 3 * hidden),
        'recurrent_kernel': (hidden, 3 * hidden),
        'bias': (3 * hidden,),
    }
    if weights.recurrent_bias is not None:
        shapes['recurrent_bias'] = (3 * hidden,)
    why = f'for inputs {steps.inputs.shape} and h with {hidden} units'
    common.check_weights(weights, shapes, steps.inputs.dtype, why)
    for name, state in (('h', h), ('reset_carry', reset_carry)):
        validation.check_shape(name, state.shape, (rows, hidden), why)
    if reset_carry.dtype != h.dtype:
        raise ValueError(f'reset_carry is {reset_carry.dtype} and must be {h.dtype}, the dtype of h')


# --- the plain recurrence --------------------------------------------------------------------------


def _plain(
    steps: StepInputs, h: jax.Array, weights: GRUWeights, reset_carry: jax.Array, *, unroll: int = 1
) -> GRUOutput:
    """Runs the equations of the GRU by `lax.scan`; the reference implementation, differentiated by JAX."""
    dtype, matrix = steps.inputs.dtype, weights.recurrent_kernel
    gates, candidate = jnp.split(matrix, [2 * h.shape[-1]], axis=-1)

    def step(h, x):
        if x.resets is not None:
            h = masking.select(x.resets, reset_carry, h)
        of_x = jnp.split(x.inputs @ weights.kernel + weights.bias[None], 3, axis=-1)
        if weights.recurrent_bias is None:
            of_h = jnp.split(h.astype(dtype) @ gates, 2, axis=-1)
        else:
            of_h = jnp.split(h.astype(dtype) @ matrix + weights.recurrent_bias[None], 3, axis=-1)
        z = jax.nn.sigmoid(of_x[0] + of_h[0])
        r = jax.nn.sigmoid(of_x[1] + of_h[1])
        inner = (r * h).astype(dtype) @ candidate if weights.recurrent_bias is None else r * of_h[2]
        n = jnp.tanh(of_x[2] + inner)
        new = (z * h + (1 - z) * n).astype(h.dtype)
        if x.valid is not None:
            new = masking.select(x.valid, new, h)
        return new, new.astype(dtype)

    return GRUOutput(*lax.scan(step, h, steps, unroll=unroll))


# --- the fast recurrence ---------------------------------------------------------------------------


class _GRULayout(BackwardLayout):
    """Batch-major layout [B, 4H] of the gradients of the pre-activations of n, z and r, and of h U_n + d_n.

    The first three parts are the gradients of x W + b, the last three of h U + d, so that no part is copied.
    """

    def weights(self, buffer: jax.Array, inputs: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the weight gradients of a chunk from inputs [B, n, F] and h before each step [B, n, H].

        [F + 1, 3H] for kernel and bias, with gates n, z, r; [H + 1, 3H] for recurrent kernel and recurrent bias, with
        gates z, r, n.
        """
        hidden, gradients = h.shape[-1], common.flatten_steps(buffer)
        return (
            common.sum_of_products(common.flatten_steps(common.concat_ones(inputs)).T, gradients[:, : 3 * hidden]),
            common.sum_of_products(common.flatten_steps(common.concat_ones(h)).T, gradients[:, hidden:]),
        )

    def as_weights(self, gradients: tuple[jax.Array, jax.Array], hidden: int) -> GRUWeights:
        """Converts the gradients from `weights`, already summed over chunks, to `GRUWeights` with gates z, r, n."""
        of_x, of_h = jnp.roll(gradients[0], -hidden, axis=1), gradients[1]
        return GRUWeights(of_x[:-1], of_h[:-1], of_x[-1], of_h[-1])

    def inputs(self, buffer: jax.Array, kernel: jax.Array) -> jax.Array:
        """Returns the input gradients [B, n, F] of a chunk, from the kernel [F, 3H] with gates n, z, r."""
        return buffer[..., : kernel.shape[1]] @ kernel.T


LAYOUT = _GRULayout()


class _Residuals(NamedTuple):
    """Arguments and intermediate values that the forward pass saves for the backward pass."""

    steps: StepInputs  # with inputs [B, T, F] instead of [T, B, F]
    h: jax.Array  # [B, H], before the first step
    weights: GRUWeights
    reset_carry: jax.Array
    outputs: jax.Array  # [B, T, H]: h after each step
    before: jax.Array  # [T, B, H]: h before each step, and before its reset
    gates: jax.Array  # [T, B, 4H]: z, r, n, h U_n + d_n


class _BackwardCarry(NamedTuple):
    """Carry of the backward pass from a time step to the step before it: gradients."""

    h: jax.Array  # [B, H], gradients of h between these steps
    reset_carry: jax.Array | None  # [B, H], sum of gradients so far; None without resets
    weights: Any  # sum of gradients so far, see `_GRULayout.weights`
    inputs: jax.Array  # [B, T, F], gradients of the chunks so far


@jax.custom_jvp
def _fast(steps: StepInputs, h: jax.Array, weights: GRUWeights, reset_carry: jax.Array) -> GRUOutput:
    return _forward(steps, h, weights, reset_carry)[0]


def _forward(
    steps: StepInputs, h: jax.Array, weights: GRUWeights, reset_carry: jax.Array
) -> tuple[GRUOutput, _Residuals]:
    """Returns the result of `_plain`, and the residuals that the backward pass needs."""
    inputs = jnp.swapaxes(steps.inputs, 0, 1)

    def step(before, x):
        h, outputs = before
        old = h if x.resets is None else jnp.where(x.resets[:, None], reset_carry, h)
        of_x = jnp.split(common.at(inputs, x.inputs) @ weights.kernel + weights.bias[None], 3, axis=-1)
        of_h = old.astype(inputs.dtype) @ weights.recurrent_kernel + weights.recurrent_bias[None]
        of_h = jnp.split(of_h, 3, axis=-1)
        z = jax.nn.sigmoid(of_x[0] + of_h[0])
        r = jax.nn.sigmoid(of_x[1] + of_h[1])
        n = jnp.tanh(of_x[2] + r * of_h[2])
        new = (z * old + (1 - z) * n).astype(h.dtype)
        if x.valid is not None:
            new = jnp.where(x.valid[:, None], new, old)
        outputs = lax.dynamic_update_index_in_dim(outputs, new.astype(outputs.dtype), x.inputs, 1)
        return (new, outputs), (h, jnp.concatenate([z, r, n, of_h[2]], axis=-1))

    outputs = jnp.zeros_like(inputs, shape=(*inputs.shape[:2], h.shape[-1]))
    numbered = steps._replace(inputs=jnp.arange(inputs.shape[1]))
    (last, outputs), (before, gates) = lax.scan(step, (h, outputs), numbered)
    residuals = _Residuals(steps._replace(inputs=inputs), h, weights, reset_carry, outputs, before, gates)
    return GRUOutput(last, jnp.swapaxes(outputs, 0, 1)), residuals


@_fast.defjvp
def _fast_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[GRUOutput, GRUOutput]:
    output, residuals = _forward(*primals)
    arguments = (tangents[0].inputs, *tangents[1:])
    return output, linear_map.linear_map(_tangents, _backward, residuals, arguments, like=output)


def _tangents(residuals: _Residuals, tangents: tuple[Any, ...]) -> GRUOutput:
    """Returns the tangents of the result for tangents of (inputs, h, weights, reset_carry), by `_plain`."""

    def plain(inputs, *others):
        return _plain(residuals.steps._replace(inputs=inputs), *others)

    inputs = jnp.swapaxes(residuals.steps.inputs, 0, 1)
    return jax.jvp(plain, (inputs, residuals.h, residuals.weights, residuals.reset_carry), tangents)[1]


def _backward(residuals: _Residuals, gradients: GRUOutput) -> tuple[Any, ...]:
    """Returns the gradients of (inputs, h, weights, reset_carry) from the gradients of the result."""
    steps, h, weights, reset_carry, *_ = residuals
    hidden = h.shape[-1]
    backward_step = _backward_step(residuals, jnp.swapaxes(gradients.outputs, 0, 1))
    backward_carry = _BackwardCarry(
        h=gradients.last,
        reset_carry=None if steps.resets is None else jnp.zeros_like(reset_carry),
        weights=None,
        inputs=jnp.zeros_like(steps.inputs),
    )
    n_first = jnp.roll(weights.kernel, hidden, axis=1)
    backward_carry = common.chunked_backward(
        LAYOUT, backward_step, backward_carry, steps, residuals.outputs, h, reset_carry, n_first
    )
    weight_gradients = LAYOUT.as_weights(backward_carry.weights, hidden)
    weight_gradients = jax.tree.map(lambda x, like: x.astype(like.dtype), weight_gradients, weights)
    reset_gradients = backward_carry.reset_carry
    reset_gradients = jnp.zeros_like(reset_carry) if reset_gradients is None else reset_gradients
    return jnp.swapaxes(backward_carry.inputs, 0, 1), backward_carry.h, weight_gradients, reset_gradients


def _backward_step(
    residuals: _Residuals, output_gradients: jax.Array
) -> Callable[..., tuple[_BackwardCarry, jax.Array]]:
    """Returns the argument `backward_step` of `common.chunked_backward`; it ignores recomputed values."""
    steps, matrix = residuals.steps, residuals.weights.recurrent_kernel.T

    def backward_step(t, backward_carry, _):
        dh = backward_carry.h + common.at(output_gradients, t).astype(backward_carry.h.dtype)
        skipped = None
        if steps.valid is not None:  # gradients skip a masked step
            valid = steps.valid[t][:, None]
            dh, skipped = jnp.where(valid, dh, 0), jnp.where(valid, 0, dh)
        resets = None if steps.resets is None else steps.resets[t][:, None]
        h = residuals.before[t] if resets is None else jnp.where(resets, residuals.reset_carry, residuals.before[t])
        z, r, n, inner = jnp.split(residuals.gates[t], 4, axis=-1)
        dn = dh * (1 - z) * (1 - n**2)
        gradients = [dn, dh * (h - n) * z * (1 - z), dn * inner * r * (1 - r), dn * r]
        gradients = jnp.concatenate(gradients, axis=-1).astype(steps.inputs.dtype)
        old = dh * z + gradients[:, dh.shape[-1] :] @ matrix
        old = old.astype(dh.dtype) if skipped is None else old.astype(dh.dtype) + skipped
        reset_carry = backward_carry.reset_carry
        if resets is not None:
            reset_carry, old = reset_carry + jnp.where(resets, old, 0), jnp.where(resets, 0, old)
        return backward_carry._replace(h=old, reset_carry=reset_carry), gradients

    return backward_step


def _native(steps: StepInputs, h: jax.Array, weights: GRUWeights, reset_carry: jax.Array, **options: Any) -> GRUOutput:
    cell = recurrent.GRU_RESET_BEFORE if weights.recurrent_bias is None else recurrent.GRU
    return recurrent.run(cell, _plain, GRUOutput, steps, h, weights, reset_carry, **options)


BACKENDS: dict[str, Callable[..., GRUOutput]] = {
    'plain': _plain,
    'native': _native,
    'rows': _fast,
}
