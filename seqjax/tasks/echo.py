"""Echo: in a stream of random symbols, output at each step the symbol that was read `delay` steps before.

    symbols   5 0 2 2 7 1 3 ...
    answers   - - - 5 0 2 2 ...   for a delay of 3

A memoryless model has a loss of ln 8 and an accuracy of 1/8. The series is cut into windows. They are read either in
their order, with the carry kept between them (truncated backpropagation: gradients do not cross windows), or as
independent sequences, in a new random order in every epoch.
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

SYMBOLS = 8  # number of different symbols
FEEDS = ('stream', 'shuffle')  # windows in order with the carry kept, or independent windows in random order


class Windows(NamedTuple):
    """The N windows of a series, as independent sequences of T steps."""

    symbols: np.ndarray  # [N, T]
    answers: np.ndarray  # [N, T]
    key: jax.Array  # PRNG key that determines the order of the windows in every epoch


def series(seed: int, length: int, delay: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random symbols and their answers, both [length]; answers[i] is symbols[i - delay].

    The first `delay` answers are 0; callers should mask them.

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
    """Returns the echo task, with batches from a stream or from shuffled windows.

    Args:
      feed: 'stream': the series as B parallel rows, window by window, with the carry kept; 'shuffle': independent
        windows in random order, in which the first `delay` answers are masked.
      delay: time steps from a symbol to its echo.
      window: T, number of time steps in a batch.
      batch_size: B, number of rows in a batch.
      length: number of symbols in the series.
      seed: random seed of the series and of the orders of its windows, the same for all replicas.

    Raises:
      ValueError: `feed` is unknown, `window` exceeds `length`, or `delay` is below 0 or so large that all answers would
        be masked.
    """
    validation.check_choice('feed', feed, FEEDS)
    spec = ModelSpec('per_step', outputs=SYMBOLS, vocabulary=SYMBOLS, stateful=feed == 'stream')
    limit, name = (length, 'length') if feed == 'stream' else (window, 'window')
    if delay < 0 or delay >= limit or window > length:
        raise ValueError(
            f'delay={delay} must be at least 0 and below {name}={limit}, and window={window} must be at most '
            f'length={length}'
        )
    symbols, answers = series(seed, length, delay)
    if feed == 'stream':
        data: Any = windows.stream_rows((symbols, answers, np.arange(length)), batch_size, window)
        places = data.values[2]  # positions within a row, because the model does not read the symbols before the row
        data = data._replace(values=(*data.values[:2], places - places[:, :1]))
        return Task(losses.classification, partial(_stream, window, delay), data, spec=spec)
    divisible = length // window * window
    rows = (x[:divisible].reshape(-1, window) for x in (symbols, answers))
    data = Windows(*rows, key=jax.random.key(seed))
    return Task(losses.classification, partial(_shuffle, batch_size, delay), data, spec=spec)


def _stream(window: int, delay: int, rows: StreamRows, key: jax.Array, step: jax.Array) -> Batch:
    """Returns the batch of training step `step`: the next window of every row, with answers masked where unknown."""
    del key
    (symbols, answers, places), mask, resets = windows.stream_window(rows, step, window)
    return Batch(Sequences(symbols, mask=mask, resets=resets), answers, mask & (places >= delay))


def _shuffle(batch_size: int, delay: int, data: Windows, key: jax.Array, step: jax.Array) -> Batch:
    """Returns the batch of training step `step`: windows in the random order of its epoch, as independent rows."""
    del key
    count, window = data.symbols.shape
    rows, mask = windows.epoch_rows(data.key, step, count, batch_size)
    known = mask[:, None] & (np.arange(window) >= delay)[None]
    return Batch(data.symbols[rows], data.answers[rows], known)
