"""Shared parts of the LSTM and GRU recurrences: argument checks, the call of a backend, the chunked backward pass.

`seqjax.ops.lstm` and `seqjax.ops.gru` define the recurrences and describe their fast backends.
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
from seqjax.ops.native import library


class StepInputs(NamedTuple):
    """Inputs and flags of all time steps; backends process them from the first to the last."""

    inputs: jax.Array  # [T, B, F]
    valid: jax.Array | None  # [T, B] bool, True at valid steps; None if all are valid
    resets: jax.Array | None  # [T, B] bool, True at steps before which the state is reset; None: never


def as_steps(inputs: jax.Array, seq_lengths: Any, mask: Any, resets: Any) -> StepInputs:
    """Returns inputs [T, B, F], lengths [B], mask and resets [T, B] as StepInputs.

    A step is valid if it is by both lengths and mask. Raises ValueError if a shape, a dtype or a value is wrong. In
    compiled code, which cannot raise, the inputs of a row whose length is out of range become NaN.
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
    """Raises ValueError if `dtype`, the dtype of the array `name`, is not floating-point: integers have no gradient."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f'{name} has dtype {dtype} and must have a floating-point dtype')


def check_weights(weights: Any, shapes: dict[str, tuple[int, ...]], dtype: Any, why: str) -> None:
    """Raises ValueError if a weight has another shape than in `shapes`, or another dtype than `dtype`, the inputs'."""
    for name, want in shapes.items():
        value = getattr(weights, name)
        validation.check_shape(name, value.shape, want, why)
        if value.dtype != dtype:
            raise ValueError(f'{name} is {value.dtype} and must be {dtype}, the dtype of the inputs')


def run_backend(
    backends: Mapping[str, Callable[..., Any]],
    select_backend: Callable[[int, int, int, str, bool], str],
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
    """Runs a backend over all time steps; returns (last carry, outputs, ...).

    Rows are sharded over the mesh in effect. `select_backend` is called if `backend` is 'auto', T is 0, or T or B is
    symbolic. With `reverse` the steps are processed from last to first, and outputs keep the places of their inputs.
    """
    (count, rows, _), hidden = steps.inputs.shape, weights.recurrent_kernel.shape[0]
    devices = row_sharding.num_shards(rows)
    rows_per_device = -(-rows // devices)
    platform = jax.default_backend()
    if backend == 'auto' or not is_static(count, rows) or not count:
        native = platform == 'cpu' and (devices > 1 or not row_sharding.is_automatic())
        backend = select_backend(count, rows_per_device, hidden, platform, native)
        if backend == 'native' and not library.supports(platform, steps.inputs, carry):  # which may compile the kernels
            backend = select_backend(count, rows_per_device, hidden, platform, False)
    elif backend == 'native' and not library.supports(platform, steps.inputs, carry):
        raise ValueError(
            f"backend='native' needs a CPU and float32 or float64 for inputs and carry ({steps.inputs.dtype} on "
            f'{platform} here){library.reason(platform, steps.inputs.dtype.name)}'
        )
    if backend == 'plain':
        options['unroll'] = (unroll if is_static(count) else 1) or select_unroll(count, rows_per_device * hidden)
    if backend == 'native':
        options['reverse'] = reverse
    run = row_sharding.shard_over_rows(partial(backends[backend], **options), devices)
    if not reverse or backend == 'native':
        return tuple(run(steps, carry, weights, reset_carry))
    last, *others = run(flip(steps), carry, weights, reset_carry)
    return last, *flip(others)


def check_backend(backend: str, backends: Mapping[str, Callable[..., Any]], unroll: int | None) -> None:
    """Raises ValueError if the backend is neither 'auto' nor a key of `backends`, or `unroll` is below 1."""
    validation.check_choice('backend', backend, ('auto', *backends))
    if unroll is not None and unroll < 1:
        raise ValueError(f'unroll={unroll} must be at least 1: time steps per iteration of the compiled loop')


def flip(tree: Any) -> Any:
    """Returns a tree of arrays [T, ...] reversed along time, the first axis."""
    return jax.tree.map(lambda x: jnp.flip(x, axis=0), tree)


def select_unroll(steps: int, size: int) -> int:
    """Returns the time steps per iteration of a compiled loop over T steps with a state of `size` numbers.

    T, which removes the loop, if T is at most `UNROLL_MAX_STEPS`; else `UNROLL_FACTOR`, which compiles faster. But 1 if
    `size` is above `UNROLL_MAX_SIZE`, T is 0, or T or `size` is symbolic.
    """
    if not is_static(steps, size) or size > UNROLL_MAX_SIZE or not steps:
        return 1
    return steps if steps <= UNROLL_MAX_STEPS else UNROLL_FACTOR


def native_pays(steps: int, rows: int, hidden: int) -> bool:
    """Returns True if the native kernels are faster than the plain recurrence over T steps of B rows with H units.

    They pack the weights once per call, which takes as long as a few steps; one step of up to two rows packs nothing.
    """
    if steps == 1 and rows <= NATIVE_STREAMING_ROWS:
        return hidden >= NATIVE_STREAMING_MIN_UNITS
    if steps <= UNROLL_MAX_STEPS and rows * hidden <= UNROLL_MAX_SIZE:
        return False
    return steps > NATIVE_FEW_STEPS or steps * rows * hidden > NATIVE_MIN_SIZE


NATIVE_STREAMING_ROWS = 2  # most rows of a single step without packed weights, `kMaxUnpackedRows` in native/product.h
NATIVE_STREAMING_MIN_UNITS = 384  # least H for which such a step is faster than in XLA
NATIVE_FEW_STEPS = 4  # most steps for which packing the weights pays only from T B H = NATIVE_MIN_SIZE on
NATIVE_MIN_SIZE = 8192

UNROLL_MAX_SIZE = 512  # largest state, in numbers, of a loop that is unrolled
UNROLL_MAX_STEPS = 8  # most time steps of a loop that is unrolled completely
UNROLL_FACTOR = 4  # time steps per iteration of an unrolled longer loop


def is_static(*sizes: Any) -> bool:
    """Returns True if all sizes are ints, none a symbolic dimension of `jax.export`, which has no known value."""
    return all(isinstance(size, int) for size in sizes)


class BackwardLayout:
    """Batch-major layout of the backward pass: states [B, H], gradients of a step's pre-activations [B, 4H]."""

    axis, chunk = -1, 16  # axis of the gates; time steps per chunk of the backward pass

    def to_layout(self, x: jax.Array) -> jax.Array:
        """Converts an array from [B, n] to this layout, or back; here the layout is [B, n], and x is unchanged."""
        return x

    def flags(self, flags: jax.Array) -> jax.Array:
        """Returns flags [B] as [B, 1], which broadcast to a state [B, H]."""
        return flags[:, None]

    def buffer(self, count: int, rows: int, width: int, dtype: Any) -> jax.Array:
        """Returns zeros [B, n, 4H] as buffer for the pre-activation gradients of n = `count` steps; `width` is 4H."""
        return jnp.zeros((rows, count, width), dtype)

    def write(self, buffer: jax.Array, dz: jax.Array, k: jax.Array) -> jax.Array:
        """Returns the buffer with the gradients dz [B, 4H] written to step k of the chunk."""
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
    """Runs `backward_step` from the last time step to the first, and adds up weight gradients chunk by chunk.

    The pre-activation gradients of a chunk are written to one buffer. One large product per chunk turns the buffer into
    gradients of the weights, and another into gradients of the inputs. The first chunk in time may be shorter.

    Args:
      layout: a `BackwardLayout` or an object with its methods, and two more methods. `weights(buffer, inputs [B, n, F],
        h before each step [B, n, H])` returns a tree of weight gradients, which is summed over chunks. `inputs(buffer,
        kernel)` returns the gradients [B, n, F] of the inputs of a chunk.
      backward_step: (t, backward carry after step t, recomputed values of step t) -> (backward carry before step t,
        gradients of the pre-activations of step t, 4 H for each row, in the layout).
      backward_carry: the backward carry (gradients) after the last step. Its field `weights` is None, its field
        `inputs` [B, T, F] is filled with the gradients of the inputs.
      steps: the time steps of the forward pass, with inputs [B, T, F].
      outputs: [B, T, H], h after each step.
      carry: [B, H], h before the first step.
      reset_carry: [B, H], h after a reset.
      kernel: the argument of `layout.inputs`.
      recompute: (inputs [B, n, F], h before each step [B, n, H]) -> values of the forward pass of a chunk, [B, n, ...];
        None if nothing is recomputed.

    Returns:
      The backward carry before the first step, with the gradients of weights and inputs.
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
    """Returns time step t of x: [B, T, n] -> [B, n]."""
    return lax.dynamic_index_in_dim(x, t, axis=1, keepdims=False)


def flatten_steps(x: jax.Array) -> jax.Array:
    """Merges all axes but the last: [k, l, m] -> [k l, m]."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def concat_ones(*parts: jax.Array) -> jax.Array:
    """Concatenates arrays [..., n] and ones [..., 1], in the dtype of the last array; the bias multiplies the ones."""
    last = parts[-1]
    ones = jnp.ones_like(last, shape=(*last.shape[:-1], 1))
    return jnp.concatenate([*(x.astype(last.dtype) for x in parts), ones], axis=-1)


def accumulator_dtype(dtype: Any) -> Any:
    """Returns the dtype for sums over many steps of arrays of `dtype`: `dtype`, but at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def sum_of_products(x: jax.Array, y: jax.Array) -> jax.Array:
    dtype = accumulator_dtype(x.dtype)
    return lax.platform_dependent(
        x,
        y,
        cpu=lambda x, y: lax.dot(x.astype(dtype), y.astype(dtype)),  # CPUs lack some mixed-precision products
        default=lambda x, y: lax.dot(x, y, preferred_element_type=dtype),
    )
