"""Ways to feed a task, as pure functions of the step.

Streams: one long series, cut into rows that run side by side, read window by window.
Epochs: all rows of a finite set in a new order, batch by batch, and again.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class StreamRows(NamedTuple):
    """A long series as rows side by side; row i of a window goes on where row i of the window before ended."""

    values: Any  # arrays [B, L, ...]
    mask: np.ndarray  # [B, L] bool: False where the series had ended


def stream_rows(series: Any, batch_size: int, window: int) -> StreamRows:
    """Cuts a series into `batch_size` rows of equal length, a whole number of windows; nothing is left out.

    The series is an array [N, ...], or a tree of such arrays with one N, such as inputs and targets. What goes beyond
    the end of the series, or of a row's share of it, is masked. Raises ValueError where the series is empty, its arrays
    differ in N, or a size is below 1.

    >>> stream_rows(np.arange(7), batch_size=2, window=3).values.tolist()
    [[0, 1, 2, 3, 3, 3], [4, 5, 6, 6, 6, 6]]
    """
    lengths = sorted({len(x) for x in jax.tree.leaves(series)})
    if len(lengths) != 1 or lengths[0] == 0:
        raise ValueError(f'series must have one length N of at least 1 on axis 0; its arrays have {lengths}')
    if batch_size < 1 or window < 1:
        raise ValueError(f'batch_size={batch_size} and window={window} must be at least 1')
    share = math.ceil(lengths[0] / batch_size)
    steps = math.ceil(share / window) * window
    first, offset = np.arange(batch_size)[:, None] * share, np.arange(steps)[None, :]
    index = first + np.minimum(offset, share - 1)
    mask = (offset < share) & (index < lengths[0])
    index = np.minimum(index, lengths[0] - 1)
    return StreamRows(jax.tree.map(lambda x: np.asarray(x)[index], series), mask)


def stream_window(rows: StreamRows, step: jax.Array, window: int) -> tuple[Any, jax.Array, jax.Array]:
    """The window of rows from `stream_rows` that training step `step` reads; after the last one, the first.

    Returns values [B, T, ...], mask [B, T], and resets [B, T], True where the stream begins.

    >>> rows = stream_rows(np.arange(12), batch_size=2, window=3)
    >>> [stream_window(rows, step, 3)[0].tolist() for step in (0, 1)]
    [[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9, 10, 11]]]
    """
    batch, steps = rows.mask.shape
    if window < 1 or steps % window:
        raise ValueError(
            f'window={window} must divide the {steps} steps of the rows, which were made for another window'
        )
    place = jnp.asarray(step) % (steps // window)

    def cut(x):
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(x), place * window, window, axis=1)

    resets = jnp.zeros((batch, window), bool).at[:, 0].set(place == 0)
    return jax.tree.map(cut, rows.values), cut(rows.mask), resets


def token_rows(tokens: np.ndarray, batch_size: int, window: int) -> np.ndarray:
    """Tokens [N] as rows side by side [B, L], each a whole number of windows and the token after them.

    A view: nothing is copied, and no mask is needed, for what does not fill a window of every row is left out. Raises
    ValueError where a size is below 1, or there are fewer than B (T + 1) tokens.

    >>> token_rows(np.arange(11), batch_size=2, window=2).tolist()
    [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    """
    if batch_size < 1 or window < 1:
        raise ValueError(f'batch_size={batch_size} and window={window} must be at least 1')
    share = len(tokens) // batch_size
    if share < window + 1:
        raise ValueError(f'{len(tokens)} tokens are too few for {batch_size} rows of {window} + 1')
    rows = tokens[: batch_size * share].reshape(batch_size, share)
    return rows[:, : (share - 1) // window * window + 1]


def token_window(rows: jax.Array, step: jax.Array, window: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The window of rows from `token_rows` that training step `step` reads; after the last one the rows begin again.

    Returns inputs [B, T]; targets [B, T], the token after each; resets [B, T], True where a row begins.

    >>> inputs, targets, _ = token_window(token_rows(np.arange(11), 2, 2), 1, 2)
    >>> inputs.tolist(), targets.tolist()
    ([[2, 3], [7, 8]], [[3, 4], [8, 9]])
    """
    batch, steps = rows.shape
    if window < 1 or (steps - 1) % window:
        raise ValueError(f'window={window} must divide the {steps - 1} steps of the rows, made for another window')
    place = jnp.asarray(step) % ((steps - 1) // window)
    cut = jax.lax.dynamic_slice_in_dim(jnp.asarray(rows), place * window, window + 1, axis=1)
    resets = jnp.zeros((batch, window), bool).at[:, 0].set(place == 0)
    return cut[:, :-1], cut[:, 1:], resets


ROUNDS = 8  # of the network below: with 4, orders of five rows are visibly not equally likely; with 8 they are


def shuffled(key: jax.Array, places: jax.Array, count: int) -> jax.Array:
    """What stands at `places` [...] of 0 .. count-1 in the order that the key decides; nothing else is computed.

    A Feistel network (Luby and Rackoff 1988) permutes a power of four; what falls outside `count` goes through it again
    until it falls inside (Black and Rogaway 2002, "cycle walking").

    >>> sorted(shuffled(jax.random.key(0), jnp.arange(6), 6).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    bits = max(1, math.ceil(math.log2(count) / 2))
    mask, words = jnp.uint32(2**bits - 1), jax.random.bits(key, (ROUNDS,))

    def permute(x):
        left, right = x >> bits, x & mask
        for word in words:
            left, right = right, left ^ (_mixed(right ^ word) & mask)
        return (left << bits) | right

    def again(x):
        return jnp.where(x < count, x, permute(x))

    x = jax.lax.while_loop(lambda x: (x >= count).any(), again, permute(jnp.asarray(places, jnp.uint32)))
    return x.astype(jnp.int32)


def _mixed(x: jax.Array) -> jax.Array:
    """Every bit of the result depends on every bit of x: the finaliser of MurmurHash3."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def epoch_rows(key: jax.Array, step: jax.Array, count: int, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """The rows of a finite set that training step `step` reads; each epoch reads all of them, in an order of its own.

    The key, the same at every step, decides the orders of the `count` rows. Returns rows [B], and mask [B], False where
    the last batch of an epoch is filled up.
    """
    if batch_size < 1:
        raise ValueError(f'batch_size={batch_size} must be at least 1')
    if count < 1:
        raise ValueError(f'count={count} must be at least 1')
    batches = math.ceil(count / batch_size)
    places = (jnp.asarray(step) % batches) * batch_size + jnp.arange(batch_size)
    rows = shuffled(jax.random.fold_in(key, jnp.asarray(step) // batches), jnp.minimum(places, count - 1), count)
    return rows, places < count
