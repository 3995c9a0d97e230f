"""What the array functions of recurrences share: steps, and chunks of them in a backward pass.

`seqjax.ops.lstm` and `seqjax.ops.gru` have the recurrences themselves, each with the reasons for its fast ways.
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
    """What the steps are, in the order in which they are taken."""

    inputs: jax.Array  # [T, B, F]
    real: jax.Array | None  # [T, B] bool
    resets: jax.Array | None  # [T, B] bool


def as_steps(inputs: jax.Array, seq_lengths: Any, mask: Any, resets: Any) -> StepInputs:
    """inputs [T, B, F], lengths [B], flags [T, B]; raises ValueError where they do not fit each other.

    In compiled code, which cannot raise, inputs of a row whose length is out of range are NaN.
    """
    if inputs.ndim != 3:
        raise ValueError(f'inputs {inputs.shape} must be [T, B, F]')
    (count, rows, _), of = inputs.shape, f'inputs {inputs.shape}'
    flags = [
        None if x is None else masking.as_flags(x, (count, rows), of=of, name=name)
        for name, x in (('mask', mask), ('resets', resets))
    ]
    real = flags[0]
    if seq_lengths is not None:
        some = masking.length_mask(masking.as_lengths(seq_lengths, (rows,), count, of=of), count).T
        real = some if real is None else real & some
        inputs = masking.spoil(inputs, seq_lengths, count, 0)
    return StepInputs(inputs, real, flags[1])


def check_floats(name: str, dtype: Any) -> None:
    """Raises ValueError where gradients could not reach what has this dtype."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f'{name} is {dtype} and must be floating-point numbers')


def check_weights(weights: Any, shapes: dict[str, tuple[int, ...]], dtype: Any, why: str) -> None:
    """Raises ValueError where a weight has not the shape, or the dtype of the inputs."""
    for name, want in shapes.items():
        value = getattr(weights, name)
        validation.check_shape(name, value.shape, want, why)
        if value.dtype != dtype:
            raise ValueError(f'{name} is {value.dtype} and must be {dtype}, as the inputs are')


def run_backend(
    backends: Mapping[str, Callable[..., Any]],
    choose: Callable[[int, int, int, str], str],
    backend: str,
    steps: StepInputs,
    carry: Any,
    weights: Any,
    fresh: Any,
    *,
    unroll: int | None,
    reverse: bool,
    **how: Any,
) -> tuple[Any, ...]:
    """The last carry and what else a backend gives of all steps; its rows are spread over the mesh in effect."""
    (count, rows, _), hidden = steps.inputs.shape, weights.recurrent_kernel.shape[0]
    devices = row_sharding.num_shards(rows)
    share = -(-rows // devices)  # rows of a device
    if backend == 'auto' or not known(count, rows) or not count:
        backend = choose(count, share, hidden, jax.default_backend())
    if backend == 'plain':
        how['unroll'] = (unroll if known(count) else 1) or loop(count, share * hidden)
    run = row_sharding.shard_over_rows(partial(backends[backend], **how), devices)
    last, *others = run(flip(steps) if reverse else steps, carry, weights, fresh)
    return last, *(flip(others) if reverse else others)


def check_backend(backend: str, backends: Mapping[str, Callable[..., Any]], unroll: int | None) -> None:
    """Raises ValueError where there is no such backend, or `unroll` is below 1."""
    validation.check_choice('backend', backend, ('auto', *backends))
    if unroll is not None and unroll < 1:
        raise ValueError(f'unroll={unroll} must be at least 1: the steps in one iteration of the compiled loop')


def flip(tree: Any) -> Any:
    """Arrays [T, ...] from the last step to the first."""
    return jax.tree.map(lambda x: jnp.flip(x, axis=0), tree)


def loop(steps: int, size: int) -> int:
    """How many steps to take in one iteration of a compiled loop over T steps with a state of `size` numbers.

    All of a few small ones, so that there is no loop; compiling does not take longer for more than `ALL`. One where a
    size is symbolic.
    """
    if not known(steps, size) or size > SMALL or not steps:
        return 1
    return steps if steps <= ALL else FEW


SMALL = 512
ALL, FEW = 8, 4


def known(*sizes: Any) -> bool:
    """Returns True if no size is a symbolic dimension of `jax.export`, which cannot be compared with a number."""
    return all(isinstance(size, int) for size in sizes)


class BackwardLayout:
    """A row of the batch is a row in memory: states [B, H], what a step leaves [B, 4H]."""

    axis, chunk = -1, 16

    def turn(self, x: jax.Array) -> jax.Array:
        """[B, n] <-> as it lies here."""
        return x

    def flags(self, flags: jax.Array) -> jax.Array:
        """[B], to select states by."""
        return flags[:, None]

    def room(self, count: int, rows: int, width: int, dtype: Any) -> jax.Array:
        """For the gradients of the sums of a chunk of `count` steps, [B, n, 4H]."""
        return jnp.zeros((rows, count, width), dtype)

    def put(self, room: jax.Array, dz: jax.Array, k: jax.Array) -> jax.Array:
        """dz [B, 4H] into the place of the chunk's step k."""
        return lax.dynamic_update_index_in_dim(room, dz, k, 1)


def in_chunks(
    form: Any,
    step: Callable[[Any, Any, Any], tuple[Any, jax.Array]],
    back: Any,
    steps: StepInputs,
    outputs: jax.Array,
    carry: jax.Array,
    fresh: jax.Array,
    kernel: jax.Array,
    again: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Any:
    """`step` from the last step to the first, in chunks, the first of which may be shorter.

    One large product a chunk makes the gradients of the weights and of the inputs.

    Args:
      form: its `chunk`, `room` and `put` are those of `Rows` or like them; `weights` has (room, inputs [B, n, F], old h
        [B, n, H]) -> a tree that the chunks add up; `inputs` has (room, kernel) -> gradients [B, n, F].
      step: (t, what is carried after step t, what `again` gave of it) -> what is carried before it, and 4 H gradients a
        row as they lie.
      back: what is carried after the last step. Its `weights` are None, its `inputs` [B, T, F] are there to be filled.
      steps: with inputs [B, T, F].
      outputs: [B, T, H], h after each step.
      carry: [B, H], h before the first step.
      fresh: [B, H], h after a reset.
      kernel: as `inputs` of the form takes it.
      again: (inputs [B, n, F], old h [B, n, H]) -> what of the forward pass is made once more for a chunk, [B, n, ...];
        by default nothing is.

    Returns:
      What is carried before the first step.
    """
    rows, count, hidden = outputs.shape
    chunks = -(-count // form.chunk) - 1
    short = count - chunks * form.chunk

    def chunk(back, first, length, old_h):
        inputs = lax.dynamic_slice_in_dim(steps.inputs, first, length, axis=1)
        if steps.resets is not None:
            anew = lax.dynamic_slice_in_dim(steps.resets, first, length).T
            old_h = jnp.where(anew[..., None], fresh[:, None].astype(old_h.dtype), old_h)
        made = None if again is None else again(inputs, old_h)

        def body(j, state):
            back, room = state
            k = length - 1 - j
            back, dz = step(first + k, back, None if made is None else at(made, k))
            return back, form.put(room, dz, k)

        room = form.room(length, rows, 4 * hidden, steps.inputs.dtype)
        back, room = lax.fori_loop(0, length, body, (back, room))
        new = form.weights(room, inputs, old_h)
        of_inputs = form.inputs(room, kernel).astype(back.inputs.dtype)
        return back._replace(
            weights=new if back.weights is None else jax.tree.map(jnp.add, back.weights, new),
            inputs=lax.dynamic_update_slice_in_dim(back.inputs, of_inputs, first, 1),
        )

    def later(j, back):
        first = short + (chunks - 1 - j) * form.chunk
        return chunk(back, first, form.chunk, lax.dynamic_slice_in_dim(outputs, first - 1, form.chunk, axis=1))

    if chunks:
        some = jax.eval_shape(partial(later, 0), back).weights
        back = back._replace(weights=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), some))
        back = lax.fori_loop(0, chunks, later, back)
    first_h = carry[:, None].astype(outputs.dtype)
    return chunk(back, 0, short, jnp.concatenate([first_h, outputs[:, : short - 1]], axis=1))


def at(x: jax.Array, t: jax.Array) -> jax.Array:
    """[B, T, n] -> [B, n]."""
    return lax.dynamic_index_in_dim(x, t, axis=1, keepdims=False)


def flat(x: jax.Array) -> jax.Array:
    """[k, l, m] -> [k l, m]."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def beside(*parts: jax.Array) -> jax.Array:
    """Arrays [..., n] side by side in the dtype of the last, and a 1, for the bias."""
    last = parts[-1]
    one = jnp.ones_like(last, shape=(*last.shape[:-1], 1))
    return jnp.concatenate([*(x.astype(last.dtype) for x in parts), one], axis=-1)


def wide(dtype: Any) -> Any:
    """Sums over many steps are not kept in half precision."""
    return jnp.promote_types(dtype, jnp.float32)


def sum_of_products(x: jax.Array, y: jax.Array) -> jax.Array:
    dtype = wide(x.dtype)
    return lax.platform_dependent(
        x,
        y,
        cpu=lambda x, y: lax.dot(x.astype(dtype), y.astype(dtype)),  # it lacks some products of halves with a wide sum
        default=lambda x, y: lax.dot(x, y, preferred_element_type=dtype),
    )
