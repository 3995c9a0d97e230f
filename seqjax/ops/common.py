"""Shared parts of the recurrences: checks of their arguments, the call of a backend, and the chunked backward pass.

`seqjax.ops.lstm` and `seqjax.ops.gru` hold the recurrences and the reasons for their fast backends.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from seqjax import validation
from seqjax.ops import masking, row_sharding


class StepInputs(NamedTuple):
    """Inputs and flags of the time steps, in the order in which they are taken."""

    inputs: jax.Array  # [T, B, F]
    valid: jax.Array | None  # [T, B] bool
    resets: jax.Array | None  # [T, B] bool


def as_steps(inputs: jax.Array, seq_lengths: Any, mask: Any, resets: Any) -> StepInputs:
    """Returns the time steps of inputs [T, B, F], lengths [B] and flags [T, B]; raises ValueError if shapes differ.

    In compiled code, which cannot raise, the inputs of a row whose length is out of range become NaN.
    """
    if inputs.ndim != 3:
        raise ValueError(f'inputs {inputs.shape} must be [T, B, F]')
    (count, rows, _), of = inputs.shape, f'inputs {inputs.shape}'
    flags = [
        None if x is None else masking.as_flags(x, (count, rows), of=of, name=name)
        for name, x in (('mask', mask), ('resets', resets))
    ]
    valid = flags[0]
    if seq_lengths is not None:
        within_length = masking.length_mask(masking.as_lengths(seq_lengths, (rows,), count, of=of), count).T
        valid = within_length if valid is None else valid & within_length
        inputs = masking.poison_rows(inputs, seq_lengths, count, 0)
    return StepInputs(inputs, valid, flags[1])


def check_floats(name: str, dtype: Any) -> None:
    """Raises ValueError if the dtype is not floating-point, so that no gradient could reach the array."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f'{name} is {dtype} and must be floating-point numbers')


def check_weights(weights: Any, shapes: dict[str, tuple[int, ...]], dtype: Any, why: str) -> None:
    """Raises ValueError if a weight has another shape than expected, or another dtype than the inputs."""
    for name, want in shapes.items():
        value = getattr(weights, name)
        validation.check_shape(name, value.shape, want, why)
        if value.dtype != dtype:
            raise ValueError(f'{name} is {value.dtype} and must be {dtype}, the dtype of the inputs')


def run_backend(
    backends: Mapping[str, Callable[..., Any]],
    select_backend: Callable[[int, int, int, str], str],
    backend: str,
    steps: StepInputs,
    carry: Any,
    weights: Any,
    reset_carry: Any,
    *,
    unroll: int | None,
    reverse: bool,
    **options: Any,
) -> tuple[Any, ...]:
    """Runs a backend over all steps, its rows sharded over the mesh in effect; returns the last carry and the rest."""
    (count, rows, _), hidden = steps.inputs.shape, weights.recurrent_kernel.shape[0]
    devices = row_sharding.num_shards(rows)
    rows_per_device = -(-rows // devices)
    if backend == 'auto' or not is_static(count, rows) or not count:
        backend = select_backend(count, rows_per_device, hidden, jax.default_backend())
    if backend == 'plain':
        options['unroll'] = (unroll if is_static(count) else 1) or select_unroll(count, rows_per_device * hidden)
    run = row_sharding.shard_over_rows(partial(backends[backend], **options), devices)
    last, *others = run(flip(steps) if reverse else steps, carry, weights, reset_carry)
    return last, *(flip(others) if reverse else others)


def check_backend(backend: str, backends: Mapping[str, Callable[..., Any]], unroll: int | None) -> None:
    """Raises ValueError if the backend does not exist or `unroll` is below 1."""
    validation.check_choice('backend', backend, ('auto', *backends))
    if unroll is not None and unroll < 1:
        raise ValueError(f'unroll={unroll} must be at least 1: time steps per iteration of the compiled loop')


def flip(tree: Any) -> Any:
    """Reverses arrays [T, ...] along time."""
    return jax.tree.map(lambda x: jnp.flip(x, axis=0), tree)


def select_unroll(steps: int, size: int) -> int:
    """Returns the time steps per iteration of a compiled loop over T steps with a state of `size` numbers.

    Up to `UNROLL_MAX_STEPS` small steps are unrolled completely, which removes the loop; more would take longer to
    compile. 1 if a size is symbolic.
    """
    if not is_static(steps, size) or size > UNROLL_MAX_SIZE or not steps:
        return 1
    return steps if steps <= UNROLL_MAX_STEPS else UNROLL_FACTOR


UNROLL_MAX_SIZE = 512  # numbers of the state of a loop that is unrolled
UNROLL_MAX_STEPS = 8  # time steps of a loop that is unrolled completely
UNROLL_FACTOR = 4  # time steps per iteration of a longer loop


def is_static(*sizes: Any) -> bool:
    """Returns True if no size is a symbolic dimension of `jax.export`, which cannot be compared with a number."""
    return all(isinstance(size, int) for size in sizes)


class BackwardLayout:
    """Batch-major layout of the backward pass: states [B, H], gradients of a step's pre-activations [B, 4H]."""

    axis, chunk = -1, 16

    def to_layout(self, x: jax.Array) -> jax.Array:
        """Converts [B, n] to this layout, or back: it is its own inverse."""
        return x

    def flags(self, flags: jax.Array) -> jax.Array:
        """Expands flags [B], so that they select rows of a state."""
        return flags[:, None]

    def buffer(self, count: int, rows: int, width: int, dtype: Any) -> jax.Array:
        """Allocates the buffer for the pre-activation gradients of a chunk of `count` steps, [B, n, 4H]."""
        return jnp.zeros((rows, count, width), dtype)

    def write(self, buffer: jax.Array, dz: jax.Array, k: jax.Array) -> jax.Array:
        """Writes dz [B, 4H] to the place of the chunk's step k."""
        return lax.dynamic_update_index_in_dim(buffer, dz, k, 1)


def chunked_backward(
    layout: Any,
    backward_step: Callable[[Any, Any, Any], tuple[Any, jax.Array]],
    backward_carry: Any,
    steps: StepInputs,
    outputs: jax.Array,
    carry: jax.Array,
    reset_carry: jax.Array,
    kernel: jax.Array,
    recompute: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Any:
    """Runs `backward_step` from the last step to the first, accumulating weight gradients chunk by chunk.

    The pre-activation gradients of a chunk are written to one buffer; one large product per chunk turns them into
    gradients of the weights, and one into gradients of the inputs. The first chunk may be shorter than the others.

    Args:
      layout: a `BackwardLayout` or an object with its methods; `weights(buffer, inputs [B, n, F], old h [B, n, H])`
        returns a tree of gradients that is summed over chunks, `inputs(buffer, kernel)` returns gradients [B, n, F].
      backward_step: (t, carry after step t, recomputed values of step t) -> (carry before step t, gradients of its
        pre-activations, 4 H for each row, in the layout).
      backward_carry: the carry after the last step. Its `weights` are None; its `inputs` [B, T, F] are filled here.
      steps: with inputs [B, T, F].
      outputs: [B, T, H], h after each step.
      carry: [B, H], h before the first step.
      reset_carry: [B, H], h after a reset.
      kernel: the argument of `layout.inputs`.
      recompute: (inputs [B, n, F], old h [B, n, H]) -> values of the forward pass of a chunk, [B, n, ...], computed
        again; by default nothing is recomputed.

    Returns:
      The carry before the first step.
    """
    rows, count, hidden = outputs.shape
    chunks = -(-count // layout.chunk) - 1
    first_length = count - chunks * layout.chunk

    def chunk(backward_carry, first, length, old_h):
        inputs = lax.dynamic_slice_in_dim(steps.inputs, first, length, axis=1)
        if steps.resets is not None:
            resets = lax.dynamic_slice_in_dim(steps.resets, first, length).T
            old_h = jnp.where(resets[..., None], reset_carry[:, None].astype(old_h.dtype), old_h)
        recomputed = None if recompute is None else recompute(inputs, old_h)

        def body(j, state):
            backward_carry, buffer = state
            k = length - 1 - j
            values = None if recomputed is None else at(recomputed, k)
            backward_carry, dz = backward_step(first + k, backward_carry, values)
            return backward_carry, layout.write(buffer, dz, k)

        buffer = layout.buffer(length, rows, 4 * hidden, steps.inputs.dtype)
        backward_carry, buffer = lax.fori_loop(0, length, body, (backward_carry, buffer))
        weights = layout.weights(buffer, inputs, old_h)
        input_gradients = layout.inputs(buffer, kernel).astype(backward_carry.inputs.dtype)
        return backward_carry._replace(
            weights=weights
            if backward_carry.weights is None
            else jax.tree.map(jnp.add, backward_carry.weights, weights),
            inputs=lax.dynamic_update_slice_in_dim(backward_carry.inputs, input_gradients, first, 1),
        )

    def full_chunk(j, backward_carry):
        first = first_length + (chunks - 1 - j) * layout.chunk
        old_h = lax.dynamic_slice_in_dim(outputs, first - 1, layout.chunk, axis=1)
        return chunk(backward_carry, first, layout.chunk, old_h)

    if chunks:
        shapes = jax.eval_shape(partial(full_chunk, 0), backward_carry).weights
        backward_carry = backward_carry._replace(weights=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
        backward_carry = lax.fori_loop(0, chunks, full_chunk, backward_carry)
    first_h = carry[:, None].astype(outputs.dtype)
    old_h = jnp.concatenate([first_h, outputs[:, : first_length - 1]], axis=1)
    return chunk(backward_carry, 0, first_length, old_h)


def at(x: jax.Array, t: jax.Array) -> jax.Array:
    """Returns step t of x: [B, T, n] -> [B, n]."""
    return lax.dynamic_index_in_dim(x, t, axis=1, keepdims=False)


def flatten_steps(x: jax.Array) -> jax.Array:
    """Merges all axes but the last: [k, l, m] -> [k l, m]."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def concat_ones(*parts: jax.Array) -> jax.Array:
    """Concatenates arrays [..., n] in the dtype of the last, and a column of ones, whose weight is the bias."""
    last = parts[-1]
    ones = jnp.ones_like(last, shape=(*last.shape[:-1], 1))
    return jnp.concatenate([*(x.astype(last.dtype) for x in parts), ones], axis=-1)


def accumulator_dtype(dtype: Any) -> Any:
    """Returns the dtype of sums over many steps: at least float32, as half precision loses too much."""
    return jnp.promote_types(dtype, jnp.float32)


def sum_of_products(x: jax.Array, y: jax.Array) -> jax.Array:
    dtype = accumulator_dtype(x.dtype)
    return lax.platform_dependent(
        x,
        y,
        cpu=lambda x, y: lax.dot(x.astype(dtype), y.astype(dtype)),  # CPUs lack some mixed-precision products
        default=lambda x, y: lax.dot(x, y, preferred_element_type=dtype),
    )
