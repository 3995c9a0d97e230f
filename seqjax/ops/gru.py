"""The recurrence of the GRU as an array function: one signature, two ways to compute it.

`_plain` is the recurrence as the equations of `GRUCell` have it with `reset_after`, differentiated by JAX.
`_fast` computes the same numbers and brings its own backward pass, which

- carries the gradient of h alone from step to step, so that a step needs one product and not five;
- takes the gradients of the weights from chunks of steps, as `seqjax.ops.lstm_backward` does;
- keeps of each step h, z, r, n and h U_n + d_n, 5 H numbers a row, besides the outputs.

Tried and left out, as they are no faster: one product of [h, x, 1] for all sums, in which a quarter of the matrix is
zeros; keeping sums in place of gates; rows of a batch as columns in memory, which the LSTM gains from.

`BACKENDS` has both ways by name, and `choose` says which is taken where.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from seqjax import validation
from seqjax.ops import common, linear_map, masking
from seqjax.ops.common import BackwardLayout, StepInputs


class GRUWeights(NamedTuple):
    """Gates z, r, n side by side; also the gradients."""

    kernel: jax.Array  # [F, 3H]
    recurrent_kernel: jax.Array  # [H, 3H]
    bias: jax.Array  # [3H]
    recurrent_bias: jax.Array  # [3H]


class GRUOutput(NamedTuple):
    """What a recurrence gives; also the gradients of that."""

    last: jax.Array  # [B, H]
    outputs: jax.Array  # [T, B, H]: h after each step


def gru(
    inputs: jax.Array,
    h: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    recurrent_bias: jax.Array,
    *,
    seq_lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    fresh: jax.Array | None = None,
    reverse: bool = False,
    unroll: int | None = None,
    backend: str = 'auto',
) -> GRUOutput:
    """The GRU of `seqjax.nn.GRUCell` with `reset_after`, tanh and sigmoid, over time, which is the first axis.

    As `seqjax.ops.lstm.lstm`, of a state that is h alone: gradients, masks, resets, backends and the mesh in effect.

    Args:
      inputs: [T, B, F].
      h: before the first step, [B, H], in a dtype that it keeps.
      kernel: [F, 3H], gates z, r, n side by side, in the dtype of the inputs, as are the other weights.
      recurrent_kernel, bias: [H, 3H] and [3H].
      recurrent_bias: [3H], of h U; for n it is inside of what r multiplies.
      seq_lengths, mask, resets, reverse, unroll, backend: see `seqjax.ops.lstm.lstm`.
      fresh: [B, H], what h becomes where `resets` says so; zeros by default.

    >>> x, h, bias = jnp.ones((7, 2, 3)), jnp.zeros((2, 5)), jnp.zeros(15)
    >>> run = gru(x, h, jnp.ones((3, 15)), jnp.ones((5, 15)), bias, bias, seq_lengths=jnp.array([7, 4]))
    >>> run.outputs.shape, bool((run.outputs[3, 1] == run.last[1]).all())
    ((7, 2, 5), True)
    """
    common.check_backend(backend, BACKENDS, unroll)
    weights = GRUWeights(kernel, recurrent_kernel, bias, recurrent_bias)
    fresh = jnp.zeros_like(h) if fresh is None else fresh
    steps = common.as_steps(inputs, seq_lengths, mask, resets)
    _check(steps, h, weights, fresh)
    how = {'unroll': unroll, 'reverse': reverse}
    return GRUOutput(*common.run_backend(BACKENDS, choose, backend, steps, h, weights, fresh, **how))


def choose(steps: int, rows: int, hidden: int, platform: str = 'cpu') -> str:
    """The backend for T, B (on one device) and H.

    B H up to 64, or B = 1 and H up to 512    plain: a step costs more to start than to compute
    else                                      rows
    T or B symbolic                           plain

    Measured on CPUs, and taken for GPUs, too; a TPU has plain.
    """
    if platform == 'tpu' or not common.known(steps, rows):
        return 'plain'
    small = rows * hidden <= (ALONE if rows == 1 else SMALL)
    return 'plain' if small or not steps else 'rows'


SMALL, ALONE = 64, common.SMALL


def _check(steps: StepInputs, h: jax.Array, weights: GRUWeights, fresh: jax.Array) -> None:
    """Raises ValueError where an array has not the shape or the dtype that the others say."""
    _, rows, features = steps.inputs.shape
    common.check_floats('inputs', steps.inputs.dtype)
    common.check_floats('h', h.dtype)
    hidden = h.shape[-1] if h.ndim else 0
    shapes = {
        'kernel': (features, 3 * hidden),
        'recurrent_kernel': (hidden, 3 * hidden),
        'bias': (3 * hidden,),
        'recurrent_bias': (3 * hidden,),
    }
    why = f'inputs {steps.inputs.shape} and h of {hidden} units'
    common.check_weights(weights, shapes, steps.inputs.dtype, why)
    for name, state in (('h', h), ('fresh', fresh)):
        validation.check_shape(name, state.shape, (rows, hidden), why)
    if fresh.dtype != h.dtype:
        raise ValueError(f'fresh is {fresh.dtype} and must be {h.dtype}, as h is')


def _plain(steps: StepInputs, h: jax.Array, weights: GRUWeights, fresh: jax.Array, *, unroll: int = 1) -> GRUOutput:
    """The equations, one step after the other; JAX differentiates them in whatever way."""
    dtype = steps.inputs.dtype

    def step(h, x):
        if x.resets is not None:
            h = masking.select(x.resets, fresh, h)
        of_x = jnp.split(x.inputs @ weights.kernel + weights.bias[None], 3, axis=-1)
        of_h = jnp.split(h.astype(dtype) @ weights.recurrent_kernel + weights.recurrent_bias[None], 3, axis=-1)
        z = jax.nn.sigmoid(of_x[0] + of_h[0])
        r = jax.nn.sigmoid(of_x[1] + of_h[1])
        n = jnp.tanh(of_x[2] + r * of_h[2])
        new = (z * h + (1 - z) * n).astype(h.dtype)
        if x.real is not None:
            new = masking.select(x.real, new, h)
        return new, new.astype(dtype)

    return GRUOutput(*lax.scan(step, h, steps, unroll=unroll))


class _Rows(BackwardLayout):
    """What a step leaves are the gradients of the sums of n, z, r, and of h U_n + d_n: [B, 4H].

    The first three of these belong to the inputs and the last three to h, so that no part is copied.
    """

    def weights(self, room: jax.Array, inputs: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        """inputs [B, n, F], old h [B, n, H] -> of kernel and bias [F + 1, 3H], n first, and of h's [H + 1, 3H]."""
        hidden, gradients = h.shape[-1], common.flat(room)
        return (
            common.sum_of_products(common.flat(common.beside(inputs)).T, gradients[:, : 3 * hidden]),
            common.sum_of_products(common.flat(common.beside(h)).T, gradients[:, hidden:]),
        )

    def as_weights(self, gradients: tuple[jax.Array, jax.Array], hidden: int) -> GRUWeights:
        of_x, of_h = jnp.roll(gradients[0], -hidden, axis=1), gradients[1]
        return GRUWeights(of_x[:-1], of_h[:-1], of_x[-1], of_h[-1])

    def inputs(self, room: jax.Array, kernel: jax.Array) -> jax.Array:
        """kernel [F, 3H], n first -> the gradients of the inputs of a chunk, [B, n, F]."""
        return room[..., : kernel.shape[1]] @ kernel.T


FORM = _Rows()


class _Kept(NamedTuple):
    """What the forward pass leaves for the backward pass."""

    steps: StepInputs  # with inputs [B, T, F]
    h: jax.Array  # [B, H] before the first step
    weights: GRUWeights
    fresh: jax.Array
    outputs: jax.Array  # [B, T, H]
    before: jax.Array  # [T, B, H]: h before each step
    gates: jax.Array  # [T, B, 4H]: z, r, n, h U_n + d_n


class _Back(NamedTuple):
    """What the backward pass carries from a step to the one before it."""

    h: jax.Array  # [B, H] gradients of h after the step
    fresh: jax.Array | None  # gradients so far
    weights: Any  # gradients so far, see `_Rows.weights`
    inputs: jax.Array  # [B, T, F] gradients so far


@jax.custom_jvp
def _fast(steps: StepInputs, h: jax.Array, weights: GRUWeights, fresh: jax.Array) -> GRUOutput:
    return _forward(steps, h, weights, fresh)[0]


def _forward(steps: StepInputs, h: jax.Array, weights: GRUWeights, fresh: jax.Array) -> tuple[GRUOutput, _Kept]:
    """As `_plain`, but the gates are kept, and outputs are written where the backward pass wants them."""
    inputs = jnp.swapaxes(steps.inputs, 0, 1)

    def step(before, x):
        h, outputs = before
        old = h if x.resets is None else jnp.where(x.resets[:, None], fresh, h)
        of_x = jnp.split(common.at(inputs, x.inputs) @ weights.kernel + weights.bias[None], 3, axis=-1)
        of_h = old.astype(inputs.dtype) @ weights.recurrent_kernel + weights.recurrent_bias[None]
        of_h = jnp.split(of_h, 3, axis=-1)
        z = jax.nn.sigmoid(of_x[0] + of_h[0])
        r = jax.nn.sigmoid(of_x[1] + of_h[1])
        n = jnp.tanh(of_x[2] + r * of_h[2])
        new = (z * old + (1 - z) * n).astype(h.dtype)
        if x.real is not None:
            new = jnp.where(x.real[:, None], new, old)
        outputs = lax.dynamic_update_index_in_dim(outputs, new.astype(outputs.dtype), x.inputs, 1)
        return (new, outputs), (h, jnp.concatenate([z, r, n, of_h[2]], axis=-1))

    outputs = jnp.zeros_like(inputs, shape=(*inputs.shape[:2], h.shape[-1]))
    numbered = steps._replace(inputs=jnp.arange(inputs.shape[1]))
    (last, outputs), (before, gates) = lax.scan(step, (h, outputs), numbered)
    kept = _Kept(steps._replace(inputs=inputs), h, weights, fresh, outputs, before, gates)
    return GRUOutput(last, jnp.swapaxes(outputs, 0, 1)), kept


@_fast.defjvp
def _fast_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[GRUOutput, GRUOutput]:
    run, kept = _forward(*primals)
    return run, linear_map.linear_map(_tangents, _backward, kept, (tangents[0].inputs, *tangents[1:]), like=run)


def _tangents(kept: _Kept, tangents: tuple[Any, ...]) -> GRUOutput:
    """Forward mode is that of the plain recurrence."""

    def plain(inputs, *others):
        return _plain(kept.steps._replace(inputs=inputs), *others)

    inputs = jnp.swapaxes(kept.steps.inputs, 0, 1)
    return jax.jvp(plain, (inputs, kept.h, kept.weights, kept.fresh), tangents)[1]


def _backward(kept: _Kept, gradients: GRUOutput) -> tuple[Any, ...]:
    """Gradients of inputs, h, weights and fresh."""
    steps, h, weights, fresh, *_ = kept
    hidden = h.shape[-1]
    step = _back_step(kept, jnp.swapaxes(gradients.outputs, 0, 1))
    back = _Back(
        h=gradients.last,
        fresh=None if steps.resets is None else jnp.zeros_like(fresh),
        weights=None,
        inputs=jnp.zeros_like(steps.inputs),
    )
    n_first = jnp.roll(weights.kernel, hidden, axis=1)
    back = common.in_chunks(FORM, step, back, steps, kept.outputs, h, fresh, n_first)
    of_weights = jax.tree.map(lambda x, like: x.astype(like.dtype), FORM.as_weights(back.weights, hidden), weights)
    of_fresh = jnp.zeros_like(fresh) if back.fresh is None else back.fresh
    return jnp.swapaxes(back.inputs, 0, 1), back.h, of_weights, of_fresh


def _back_step(kept: _Kept, of_outputs: jax.Array) -> Callable[..., tuple[_Back, jax.Array]]:
    """-> (t, what is carried after step t, nothing) -> what is carried before it, and what `_Rows` has of a step."""
    steps, matrix = kept.steps, kept.weights.recurrent_kernel.T

    def step(t, back, _):
        dh = back.h + common.at(of_outputs, t).astype(back.h.dtype)
        passed = None
        if steps.real is not None:  # the gradient of a masked step passes it by
            real = steps.real[t][:, None]
            dh, passed = jnp.where(real, dh, 0), jnp.where(real, 0, dh)
        anew = None if steps.resets is None else steps.resets[t][:, None]
        h = kept.before[t] if anew is None else jnp.where(anew, kept.fresh, kept.before[t])
        z, r, n, inner = jnp.split(kept.gates[t], 4, axis=-1)
        dn = dh * (1 - z) * (1 - n**2)
        sums = [dn, dh * (h - n) * z * (1 - z), dn * inner * r * (1 - r), dn * r]
        gradients = jnp.concatenate(sums, axis=-1).astype(steps.inputs.dtype)
        old = dh * z + gradients[:, dh.shape[-1] :] @ matrix
        old = old.astype(dh.dtype) if passed is None else old.astype(dh.dtype) + passed
        fresh = back.fresh
        if anew is not None:
            fresh, old = fresh + jnp.where(anew, old, 0), jnp.where(anew, 0, old)
        return back._replace(h=old, fresh=fresh), gradients

    return step


BACKENDS: dict[str, Callable[..., GRUOutput]] = {'plain': _plain, 'rows': _fast}
