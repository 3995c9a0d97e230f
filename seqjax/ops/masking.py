"""Masks, lengths and resets of sequences, the checks of them, and what they mean along time.

A mask is True where a step is real; padding may be right, left or in holes. A masked step is skipped: it leaves the
carry as it was, and whatever stands there (1e30, NaN, infinity) reaches no value and no gradient.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import validation
from seqjax.validation import Shape


def as_lengths(lengths: Any, batch: Shape, steps: int, *, of: str, name: str = 'seq_lengths') -> jax.Array:
    """Lengths [*B], each from 0 to T, as int32; in compiled code T in place of one that is out of range, see `spoil`.

    `name` is the argument in messages, and `of` what it has the lengths of, with its shape. Raises ValueError where
    they are of another shape or no integers; or, where the values are known, one is below 0 or over T.
    """
    lengths = lengths if isinstance(lengths, jax.Array) else np.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f'{name} are {lengths.dtype} and must be integers: the number of real steps of each row')
    validation.check_shape(name, lengths.shape, batch, f'the batch axes of {of}')
    validation.check_range(name, lengths, steps, f'the time axis of {of}')
    if not validation.is_concrete(lengths):
        lengths = jnp.where(_out_of_range(lengths, steps), steps, lengths.astype(jnp.int32))
    return jnp.asarray(lengths, jnp.int32)


def _out_of_range(lengths: jax.Array, steps: int) -> jax.Array:
    lengths = lengths.astype(jnp.int32)  # a byte cannot be compared with 256 steps
    return (lengths < 0) | (lengths > steps)


def spoil(x: jax.Array, seq_lengths: Any, steps: int, time_axis: int) -> jax.Array:
    """x, and in compiled code NaN in rows whose lengths are out of range, so that no result of theirs looks right.

    x is [*B, T, ...], or [T, *B, ...] with time_axis 0; integers stay as they are.
    """
    if seq_lengths is None or validation.is_concrete(seq_lengths) or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    bad = _out_of_range(seq_lengths, steps)
    return jnp.where(expand(bad if time_axis else bad[None], x.ndim), jnp.nan, x)


def as_flags(flags: Any, shape: Shape, *, of: str, name: str = 'mask') -> jax.Array:
    """Flags as bool of `shape`; integers 0 and 1 are taken too. In compiled code every integer but 0 is True.

    Raises:
      ValueError: they are of another shape or dtype; or, where the values are known, an integer is neither 0 nor 1.
    """
    flags = flags if isinstance(flags, jax.Array) else np.asarray(flags)
    if flags.dtype != bool and not jnp.issubdtype(flags.dtype, jnp.integer):
        raise ValueError(f'{name} is {flags.dtype} and must be bool, True where it holds; write {name} != 0')
    validation.check_shape(name, flags.shape, shape, f'the batch and time axes of {of}')
    if flags.dtype != bool and validation.is_concrete(flags):
        values = np.asarray(flags)
        if ((values != 0) & (values != 1)).any():
            raise ValueError(f'{name} holds {values.max()} and must hold 0 and 1 alone, or be bool; are these lengths?')
    return jnp.asarray(flags, bool)


def length_mask(lengths: jax.Array, steps: int) -> jax.Array:
    """lengths [*B] -> mask [*B, T], True for the first `lengths` steps of each row.

    >>> length_mask(jnp.array([0, 2]), 3).astype(int).tolist()
    [[0, 0, 0], [1, 1, 0]]
    """
    places = jnp.arange(steps).reshape((1,) * lengths.ndim + (steps,))
    return places < lengths[..., None]


def real_steps(seq_lengths: Any, mask: Any, batch: Shape, steps: int, *, of: str) -> jax.Array | None:
    """What lengths [*B] and a mask [*B, T] say together, [*B, T]; None where neither is given."""
    if seq_lengths is not None:
        seq_lengths = length_mask(as_lengths(seq_lengths, batch, steps, of=of), steps)
    if mask is not None:
        mask = as_flags(mask, (*batch, steps), of=of)
    if seq_lengths is None or mask is None:
        return mask if seq_lengths is None else seq_lengths
    return seq_lengths & mask


def expand(mask: jax.Array, ndim: int) -> jax.Array:
    """The mask with trailing axes of length 1, so that it has `ndim` of them."""
    return mask.reshape(mask.shape + (1,) * (ndim - mask.ndim))


def select(mask: jax.Array, x: Any, y: Any) -> Any:
    """x where the mask is True, else y; trees of arrays whose first axes are the mask's."""
    return jax.tree.map(lambda x, y: jnp.where(expand(mask, x.ndim), x, y), x, y)


def zero(x: Any, mask: jax.Array) -> Any:
    """x, and 0 where the mask is False."""
    return jax.tree.map(lambda x: jnp.where(expand(mask, x.ndim), x, jnp.zeros((), x.dtype)), x)


def take(x: Any, index: jax.Array) -> Any:
    """x [T, *B, ...] at the steps of index [S, *B] -> [S, *B, ...]."""
    return jax.tree.map(lambda x: jnp.take_along_axis(x, expand(index, x.ndim), axis=0, mode='clip'), x)


def flip(x: Any, mask: jax.Array | None) -> Any:
    """Each row's real steps in reverse order; its masked steps stay in their places."""
    if mask is None:
        return jax.tree.map(lambda x: jnp.flip(x, axis=0), x)
    if mask.shape[0] == 0:
        return x
    rank = jnp.cumsum(mask, axis=0) - 1  # of a real step among the real ones
    order = jnp.argsort(~mask, axis=0, stable=True)  # the real steps come first, in their order
    mirrored = jnp.take_along_axis(order, rank[-1:] - rank, axis=0, mode='clip')
    return take(x, jnp.where(mask, mirrored, _places(mask)))


def last_real(mask: jax.Array) -> jax.Array:
    """[T, *B] -> [T, *B]: the last real step up to each, itself included; -1 where there is none."""
    return jax.lax.cummax(jnp.where(mask, _places(mask), -1), axis=0)


def hold(x: Any, mask: jax.Array, before: Any) -> Any:
    """x, and at every masked step what the last real step before it has; `before` [*B, ...] where there is none."""
    index = last_real(mask)
    held = take(x, jnp.maximum(index, 0))
    return jax.tree.map(lambda x, first: jnp.where(expand(index, x.ndim) < 0, first[None], x), held, before)


def _places(mask: jax.Array) -> jax.Array:
    return jnp.broadcast_to(expand(jnp.arange(mask.shape[0]), mask.ndim), mask.shape)
