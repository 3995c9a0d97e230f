"""Masks, lengths and resets of sequences: checks, and operations along time.

A mask is True at valid steps; padding may be on the right, on the left or in between. A masked step is skipped: it
leaves the carry unchanged, and its inputs (even NaN or infinity) affect no value and no gradient.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import validation
from seqjax.validation import Shape


def as_lengths(lengths: Any, batch: Shape, steps: int, *, of: str, name: str = 'seq_lengths') -> jax.Array:
    """Checks that lengths [*B] are integers from 0 to T, and returns them as int32.

    In compiled code, which cannot raise, a length that is out of range becomes T; `poison_rows` makes its row NaN.

    Args:
      lengths: integers [*B].
      batch: the expected shape, the sizes of *B.
      steps: T.
      of: name and shape of the array whose rows have these lengths, for messages.
      name: name of the argument `lengths`, for messages.

    Raises:
      ValueError: the shape is wrong, the lengths are not integers, or one is below 0 or above T.
    """
    lengths = lengths if isinstance(lengths, jax.Array) else np.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f'{name} are {lengths.dtype} and must be integers: the number of valid steps of each row')
    validation.check_shape(name, lengths.shape, batch, f'the batch axes of {of}')
    validation.check_range(name, lengths, steps, f'the size of the time axis of {of}')
    if not validation.is_concrete(lengths):
        lengths = jnp.where(_out_of_range(lengths, steps), steps, lengths.astype(jnp.int32))
    return jnp.asarray(lengths, jnp.int32)


def _out_of_range(lengths: jax.Array, steps: int) -> jax.Array:
    lengths = lengths.astype(jnp.int32)  # a byte cannot be compared with 256 steps
    return (lengths < 0) | (lengths > steps)


def poison_rows(x: jax.Array, seq_lengths: Any, steps: int, time_axis: int) -> jax.Array:
    """Returns x with NaN in rows whose length is not from 0 to T, in compiled code, which cannot raise.

    x is [*B, T, ...], or [T, *B, ...] with time_axis 0. It is returned unchanged outside compiled code, without
    lengths, or if it is not floating-point.
    """
    if seq_lengths is None or validation.is_concrete(seq_lengths) or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    invalid = _out_of_range(seq_lengths, steps)
    return jnp.where(expand(invalid if time_axis else invalid[None], x.ndim), jnp.nan, x)


def as_flags(flags: Any, shape: Shape, *, of: str, name: str = 'mask') -> jax.Array:
    """Checks that flags have the shape `shape`, and returns them as bool; integers 0 and 1 are accepted, too.

    In compiled code, which cannot raise, every integer except 0 is True. `of` and `name` are for messages, see
    `as_lengths`.

    Raises:
      ValueError: the shape is wrong, the dtype is neither bool nor integer, or an integer is neither 0 nor 1.
    """
    flags = flags if isinstance(flags, jax.Array) else np.asarray(flags)
    if flags.dtype != bool and not jnp.issubdtype(flags.dtype, jnp.integer):
        raise ValueError(f'{name} is {flags.dtype} and must be bool; pass {name} != 0')
    validation.check_shape(name, flags.shape, shape, f'the batch and time axes of {of}')
    if flags.dtype != bool and validation.is_concrete(flags):
        values = np.asarray(flags)
        if ((values != 0) & (values != 1)).any():
            raise ValueError(
                f'{name} contains {values[(values != 0) & (values != 1)][0]} and must be bool, or only 0 and 1; pass '
                f'{name} != 0, or lengths as seq_lengths'
            )
    return jnp.asarray(flags, bool)


def length_mask(lengths: jax.Array, steps: int) -> jax.Array:
    """Returns the mask [*B, T] of lengths [*B]: True for as many first steps of each row as its length.

    >>> length_mask(jnp.array([0, 2]), 3).astype(int).tolist()
    [[0, 0, 0], [1, 1, 0]]
    """
    places = jnp.arange(steps).reshape((1,) * lengths.ndim + (steps,))
    return places < lengths[..., None]


def valid_steps(seq_lengths: Any, mask: Any, batch: Shape, steps: int, *, of: str) -> jax.Array | None:
    """Returns the mask [*B, T] of steps that are valid by both lengths [*B] and mask [*B, T]; None if both are None.

    If only one is None, the other decides. `of` names the array, for messages.

    Raises:
      ValueError: see `as_lengths` and `as_flags`.
    """
    if seq_lengths is not None:
        seq_lengths = length_mask(as_lengths(seq_lengths, batch, steps, of=of), steps)
    if mask is not None:
        mask = as_flags(mask, (*batch, steps), of=of)
    if seq_lengths is None or mask is None:
        return mask if seq_lengths is None else seq_lengths
    return seq_lengths & mask


def expand(mask: jax.Array, ndim: int) -> jax.Array:
    """Returns the mask with axes of length 1 appended, so that it has `ndim` axes."""
    return mask.reshape(mask.shape + (1,) * (ndim - mask.ndim))


def select(mask: jax.Array, x: Any, y: Any) -> Any:
    """Returns x where the mask is True, else y; x and y are trees of arrays whose first axes are the mask's."""
    return jax.tree.map(lambda x, y: jnp.where(expand(mask, x.ndim), x, y), x, y)


def zero(x: Any, mask: jax.Array) -> Any:
    """Returns x with 0 where the mask is False; x is a tree of arrays whose first axes are the mask's."""
    return jax.tree.map(lambda x: jnp.where(expand(mask, x.ndim), x, jnp.zeros((), x.dtype)), x)


def take(x: Any, index: jax.Array) -> Any:
    """Returns [S, *B, ...], the time steps `index` [S, *B] of each row of x [T, *B, ...]; x may be a tree of arrays."""
    return jax.tree.map(lambda x: jnp.take_along_axis(x, expand(index, x.ndim), axis=0, mode='clip'), x)


def flip(x: Any, mask: jax.Array | None) -> Any:
    """Returns x [T, *B, ...] with the valid steps of each row in reverse order, and masked steps in their places.

    Without a mask [T, *B] all steps are valid; x may be a tree of arrays.
    """
    if mask is None:
        return jax.tree.map(lambda x: jnp.flip(x, axis=0), x)
    if mask.shape[0] == 0:
        return x
    rank = jnp.cumsum(mask, axis=0) - 1  # rank of a valid step among the valid steps of its row
    order = jnp.argsort(~mask, axis=0, stable=True)  # valid steps first, in their order
    mirrored = jnp.take_along_axis(order, rank[-1:] - rank, axis=0, mode='clip')
    return take(x, jnp.where(mask, mirrored, _places(mask)))


def last_valid(mask: jax.Array) -> jax.Array:
    """Returns indices [T, *B] of the last valid step up to and including each step; -1 if there is none."""
    return jax.lax.cummax(jnp.where(mask, _places(mask), -1), axis=0)


def hold(x: Any, mask: jax.Array, before: Any) -> Any:
    """Returns x [T, *B, ...] with each masked step replaced by the last valid step before it, or `before` [*B, ...]."""
    index = last_valid(mask)
    filled = take(x, jnp.maximum(index, 0))
    return jax.tree.map(lambda x, first: jnp.where(expand(index, x.ndim) < 0, first[None], x), filled, before)


def _places(mask: jax.Array) -> jax.Array:
    return jnp.broadcast_to(expand(jnp.arange(mask.shape[0]), mask.ndim), mask.shape)
