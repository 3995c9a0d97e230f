"""Batches of a task as pure functions of the training step.

Streams: a long series is split into parallel rows, which are read window by window.
Epochs: the rows of a finite training set are read batch by batch, in a new random order in every epoch.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class StreamRows(NamedTuple):
    """A long series as B parallel rows of L time steps; row i of a window continues row i of the window before."""

    values: Any  # an array [B, L, ...], or a tree of such arrays
    mask: np.ndarray  # [B, L] bool, False at padding


def stream_rows(series: Any, batch_size: int, window: int) -> StreamRows:
    """Splits a series into `batch_size` rows of the same length, a multiple of `window`, without dropping a step.

    Args:
      series: an array [N, ...], or a tree of such arrays with one N, such as inputs and targets.
      batch_size: B.
      window: T.

    Returns:
      Rows, padded to that length. Padding repeats the last time step of the row's part of the series, and is masked.

    Raises:
      ValueError: the series is empty, its arrays differ in N, or a size is below 1.

    >>> stream_rows(np.arange(7), batch_size=2, window=3).values.tolist()
    [[0, 1, 2, 3, 3, 3], [4, 5, 6, 6, 6, 6]]
    """
    lengths = sorted({len(x) for x in jax.tree.leaves(series)})
    if len(lengths) != 1 or lengths[0] == 0:
        raise ValueError(
            f'series must have one length N of at least 1 on axis 0; the lengths of its arrays are {lengths}'
        )
    if batch_size < 1 or window < 1:
        raise ValueError(f'batch_size={batch_size} and window={window} must be at least 1')
    row_length = math.ceil(lengths[0] / batch_size)
    steps = math.ceil(row_length / window) * window
    first, offset = np.arange(batch_size)[:, None] * row_length, np.arange(steps)[None, :]
    index = first + np.minimum(offset, row_length - 1)
    mask = (offset < row_length) & (index < lengths[0])
    index = np.minimum(index, lengths[0] - 1)
    return StreamRows(jax.tree.map(lambda x: np.asarray(x)[index], series), mask)


def stream_window(rows: StreamRows, step: jax.Array, window: int) -> tuple[Any, jax.Array, jax.Array]:
    """Returns the window that training step `step` reads; after the last window the stream restarts.

    Args:
      rows: result of `stream_rows`.
      step: [] integer, the number of the training step, counted from 0.
      window: T, the same as passed to `stream_rows`.

    Returns:
      values [B, T, ...], mask [B, T], and resets [B, T], True at the first time step of each row.

    >>> rows = stream_rows(np.arange(12), batch_size=2, window=3)
    >>> [stream_window(rows, step, 3)[0].tolist() for step in (0, 1)]
    [[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9, 10, 11]]]
    """
    batch, steps = rows.mask.shape
    if window < 1 or steps % window:
        raise ValueError(
            f'window={window} must divide the {steps} time steps of the rows; pass the same window as to stream_rows'
        )
    place = jnp.asarray(step) % (steps // window)

    def cut(x):
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(x), place * window, window, axis=1)

    resets = jnp.zeros((batch, window), bool).at[:, 0].set(place == 0)
    return jax.tree.map(cut, rows.values), cut(rows.mask), resets


def token_rows(tokens: np.ndarray, batch_size: int, window: int) -> np.ndarray:
    """Returns tokens [N] as parallel rows [B, L], each of k windows and the token after them: L = k T + 1.

    B is `batch_size` and T is `window`. The result is a view and needs no mask: tokens that do not fill a window in
    every row are dropped. Raises ValueError if a size is below 1 or there are fewer than B (T + 1) tokens.

    >>> token_rows(np.arange(11), batch_size=2, window=2).tolist()
    [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    """
    if batch_size < 1 or window < 1:
        raise ValueError(f'batch_size={batch_size} and window={window} must be at least 1')
    row_length = len(tokens) // batch_size
    if row_length < window + 1:
        raise ValueError(
            f'{len(tokens)} tokens are too few for batch_size={batch_size} rows of window={window} + 1 tokens'
        )
    rows = tokens[: batch_size * row_length].reshape(batch_size, row_length)
    return rows[:, : (row_length - 1) // window * window + 1]


def token_window(rows: jax.Array, step: jax.Array, window: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the window of rows from `token_rows` that training step `step` reads; after the last one rows restart.

    `step` counts from 0. Returns (inputs [B, T], targets [B, T], resets [B, T]): a target is the token after the input,
    and resets are True at the first token of each row.

    >>> inputs, targets, _ = token_window(token_rows(np.arange(11), 2, 2), 1, 2)
    >>> inputs.tolist(), targets.tolist()
    ([[2, 3], [7, 8]], [[3, 4], [8, 9]])
    """
    batch, steps = rows.shape
    if window < 1 or (steps - 1) % window:
        raise ValueError(
            f'window={window} must divide {steps - 1}, the tokens of a row less 1; pass the window of token_rows'
        )
    place = jnp.asarray(step) % ((steps - 1) // window)
    cut = jax.lax.dynamic_slice_in_dim(jnp.asarray(rows), place * window, window + 1, axis=1)
    resets = jnp.zeros((batch, window), bool).at[:, 0].set(place == 0)
    return cut[:, :-1], cut[:, 1:], resets


ROUNDS = 8  # rounds of the Feistel network: 8 make all orders of five rows about equally likely, 4 do not


def shuffled(key: jax.Array, places: jax.Array, count: int) -> jax.Array:
    """Returns the elements at `places` [...] of a random permutation of 0 .. count-1, without computing the others.

    The key determines the permutation; `places` are integers from 0 to count-1.

    A Feistel network (Luby and Rackoff 1988) permutes a power of four; values of `count` or more are permuted again
    until they are below `count` (Black and Rogaway 2002, "cycle walking").

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

    def walk(x):
        return jnp.where(x < count, x, permute(x))

    x = jax.lax.while_loop(lambda x: (x >= count).any(), walk, permute(jnp.asarray(places, jnp.uint32)))
    return x.astype(jnp.int32)


def _mixed(x: jax.Array) -> jax.Array:
    """Returns a hash of x whose every bit depends on all bits of x: the finalizer of MurmurHash3."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def epoch_rows(key: jax.Array, step: jax.Array, count: int, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Returns the indices of the rows that training step `step` reads; each epoch reads all rows in a new random order.

    The rows are taken from a finite set of `count` rows; `step` counts from 0. The key, the same at every step,
    determines the orders. Returns (indices [B], mask [B]); the mask is False at the padding of an epoch's last batch.
    """
    if batch_size < 1:
        raise ValueError(f'batch_size={batch_size} must be at least 1')
    if count < 1:
        raise ValueError(f'count={count} must be at least 1')
    batches = math.ceil(count / batch_size)
    places = (jnp.asarray(step) % batches) * batch_size + jnp.arange(batch_size)
    rows = shuffled(jax.random.fold_in(key, jnp.asarray(step) // batches), jnp.minimum(places, count - 1), count)
    return rows, places < count
