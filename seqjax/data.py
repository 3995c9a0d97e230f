"""Ways to feed a task, as pure functions of the step.

Streams: one long series, cut into rows that run side by side, read window by window.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rows(NamedTuple):
    """A long series as rows side by side; row i of a window goes on where row i of the window before ended."""

    values: Any  # arrays [B, L, ...]
    mask: np.ndarray  # [B, L] bool: False where the series had ended


def stream_rows(series: Any, batch_size: int, window: int) -> Rows:
    """Cuts a series into `batch_size` rows of equal length, a whole number of windows; nothing is left out.

    Args:
      series: an array [N, ...], or a tree of such arrays with one N, such as inputs and targets.
      batch_size: B.
      window: T.

    Returns:
      Rows; what goes beyond the end of the series, or of a row's share of it, is masked.

    Raises:
      ValueError: the series is empty, its arrays differ in N, or a size is below 1.

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
    return Rows(jax.tree.map(lambda x: np.asarray(x)[index], series), mask)


def stream_window(rows: Rows, step: jax.Array, window: int) -> tuple[Any, jax.Array, jax.Array]:
    """The window that training step `step` reads; after the last window the stream begins again.

    Args:
      rows: from `stream_rows`.
      step: [] integer, counted from 0.
      window: T, the one that the rows were made for.

    Returns:
      values [B, T, ...], mask [B, T], and resets [B, T], True where the stream begins.

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
