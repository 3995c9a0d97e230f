"""Echo: in a stream of random symbols, predict at each step the symbol of `delay` steps before.

    symbols   5 0 2 2 7 1 3 ...
    answers   - - - 5 0 2 2 ...   for a delay of 3

A memoryless model has a loss of ln(symbols) and an accuracy of 1 / symbols. The stream is read in windows, either in
their order with the carry kept between them (truncated backpropagation: gradients do not cross windows), or each by
itself, in a new order in every epoch.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax import validation
from seqjax.nn import losses
from seqjax.ops import windows
from seqjax.ops.windows import StreamRows
from seqjax.types import Batch, ModelSpec, Sequences, Task

SYMBOLS = 8
FEEDS = ('stream', 'shuffle')


class Windows(NamedTuple):
    """Windows of a series, as independent rows."""

    symbols: np.ndarray  # [N, T]
    answers: np.ndarray  # [N, T]
    key: jax.Array  # key of the orders of the epochs


def series(seed: int, length: int, delay: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws symbols and answers, both [length]; the first `delay` answers are 0 and should be masked.

    >>> symbols, answers = series(0, 9, delay=3)
    >>> symbols.tolist(), answers.tolist()
    ([6, 5, 4, 2, 2, 0, 0, 0, 1], [0, 0, 0, 6, 5, 4, 2, 2, 0])
    """
    symbols = np.random.default_rng(seed).integers(0, SYMBOLS, length).astype(np.int32)
    return symbols, np.concatenate([np.zeros(delay, np.int32), symbols])[:length]


def echo(
    feed: str,
    *,
    delay: int,
    window: int = 16,
    batch_size: int = 16,
    length: int = 16_384,
    seed: int = 0,
) -> Task:
    """Returns the task with one kind of batches.

    Args:
      feed: 'stream' or 'shuffle'.
      delay: time steps from a symbol to its echo.
      window: T, the time steps of a batch.
      batch_size: B.
      length: length of the series.
      seed: seed of the series and of the orders of its windows, shared by all replicas.

    Raises:
      ValueError: an argument is invalid, or all answers would be masked.
    """
    validation.check_choice('feed', feed, FEEDS)
    spec = ModelSpec('per_step', outputs=SYMBOLS, vocabulary=SYMBOLS, stateful=feed == 'stream')
    limit, name = (length, 'length') if feed == 'stream' else (window, 'window')
    if delay < 0 or delay >= limit or window > length:
        raise ValueError(
            f'delay={delay} must be from 0 to below {name}={limit}, and window={window} at most length={length}'
        )
    symbols, answers = series(seed, length, delay)
    if feed == 'stream':
        data: Any = windows.stream_rows((symbols, answers, np.arange(length)), batch_size, window)
        places = data.values[2]  # positions within the row, as the model does not see what is before the row
        data = data._replace(values=(*data.values[:2], places - places[:, :1]))
        return Task(losses.classification, partial(_stream, window, delay), data, spec=spec)
    divisible = length // window * window
    rows = (x[:divisible].reshape(-1, window) for x in (symbols, answers))
    data = Windows(*rows, key=jax.random.key(seed))
    return Task(losses.classification, partial(_shuffle, batch_size, delay), data, spec=spec)


def _stream(window: int, delay: int, rows: StreamRows, key: jax.Array, step: jax.Array) -> Batch:
    """Returns the next window of every row."""
    del key
    (symbols, answers, places), mask, resets = windows.stream_window(rows, step, window)
    return Batch(Sequences(symbols, mask=mask, resets=resets), answers, mask & (places >= delay))


def _shuffle(batch_size: int, delay: int, data: Windows, key: jax.Array, step: jax.Array) -> Batch:
    """Returns windows in the order of the epoch, without a carry between them."""
    del key
    count, window = data.symbols.shape
    rows, mask = windows.epoch_rows(data.key, step, count, batch_size)
    known = mask[:, None] & (np.arange(window) >= delay)[None]
    return Batch(data.symbols[rows], data.answers[rows], known)
