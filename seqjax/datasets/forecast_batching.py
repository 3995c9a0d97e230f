"""Batches for forecasting: random windows of series for training, whole series or long segments for evaluation.

Axes in addition to those in `seqjax`: C target columns, H forecast horizon in steps, K numbers of each forecast value.
The origin of a forecast is the index of the last time step that the model has read; the forecast is of the H steps
after it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.datasets.forecast_preprocessing import PreparedSeries
from seqjax.datasets.recursive_forecasts import RecursiveInputs
from seqjax.types import Arrays, Batch

TILE = 8  # a matrix product with a multiple of this many rows rounds every row alike (measured on CPUs with AVX2)
CHUNK, CONTEXT = 4096, 8  # origins in each row after the first of a long series, and windows of context before them
OriginRanges = Sequence[tuple[int, int]]  # (first, stop) of each series: its origins are first to stop - 1


class ForecastTargets(NamedTuple):
    """Scaled targets of the rows of a batch; targets of the forecast at step t are at steps t + 1 to t + H."""

    values: jax.Array  # [B, T + H, C]; 0 if missing
    valid: jax.Array  # [B, T + H, C] bool; False if a value is missing
    past: jax.Array | None  # [B, lag - 1 + T, C] filled targets from lag - 1 steps before; None if not added to outputs


class Split(NamedTuple):
    """Indices of the first validation row and the first test row of a series; earlier rows are the training split."""

    validation: int
    test: int


def origin_ranges(split_name: str, splits: Sequence[Split], lengths: Sequence[int], horizon: int) -> OriginRanges:
    """Returns for each series the origins whose next H = `horizon` steps are all in the validation or the test split.

    A range is empty, with first >= stop, if the split has fewer than H rows. `lengths` are the rows of each series.
    """
    if split_name == 'validation':
        return [(split.validation - 1, split.test - horizon) for split in splits]
    return [(split.test - 1, length - horizon) for split, length in zip(splits, lengths, strict=True)]


class Segment(NamedTuple):
    """A row of an evaluation batch: a series read from index `start`, with the origins `first` to `stop` - 1."""

    series: int  # index of the series
    start: int
    first: int
    stop: int


class Forecasts(NamedTuple):
    """Forecasts of one series in the units of the file."""

    series: int  # index of the series
    origins: np.ndarray  # [k] consecutive indices of rows
    forecasts: np.ndarray  # [k, H, C, 1] point forecasts or [k, H, C, 5] quantiles

    @property
    def points(self) -> np.ndarray:
        """Point forecasts, or the medians of quantile forecasts, [k, H, C]."""
        return self.forecasts[..., self.forecasts.shape[-1] // 2]


def training_windows(
    prepared_series: Sequence[PreparedSeries], preprocessing: Mapping[str, Any], batch_size: int
) -> tuple[Arrays, Callable[..., Batch]]:
    """Returns the training data, and a function (data, key, step) -> Batch that draws `batch_size` random windows.

    `prepared_series` must be cut to the rows to train on. A window may start at any row from which each of its steps
    has a next row. Missing targets, and those after the end of the series, are masked. `step` is not used.
    """
    window, horizon, lag = preprocessing['window'], preprocessing['horizon'], preprocessing['lag'] or 1
    counts = np.array([prepared.steps - window for prepared in prepared_series])  # windows of each series
    lengths = np.array([lag - 1 + prepared.steps + horizon for prepared in prepared_series])
    data = {
        'inputs': _stacked([prepared.inputs for prepared in prepared_series], lag - 1, horizon),
        'values': _stacked([prepared.values for prepared in prepared_series], lag - 1, horizon),
        'valid': _stacked([prepared.valid for prepared in prepared_series], lag - 1, horizon),
        'past': _stacked([prepared.past for prepared in prepared_series], lag - 1, horizon),
        'ends': np.cumsum(counts, dtype=np.int32),
        # The number of a window plus the offset of its series is the index of its first row in the arrays above.
        'offsets': (np.cumsum(lengths) - lengths + lag - 1 - (np.cumsum(counts) - counts)).astype(np.int32),
    }
    extra = horizon - 1 if preprocessing['strategy'] == 'recursive' else 0

    def batch(data: Arrays, key: jax.Array, step: jax.Array) -> Batch:
        index = jax.random.randint(key, (batch_size,), 0, data['ends'][-1])
        first = index + data['offsets'][jnp.searchsorted(data['ends'], index, side='right')]

        def rows(name: str, before: int, after: int) -> jax.Array:
            return data[name][first[:, None] + jnp.arange(-before, window + after)[None]]

        past = rows('past', lag - 1, 0) if preprocessing['lag'] else None
        targets = ForecastTargets(rows('values', 0, horizon), rows('valid', 0, horizon), past)
        return Batch(
            _inputs(rows('inputs', 0, extra), past, preprocessing), targets, jnp.ones((batch_size, window), bool)
        )

    return data, batch


def _stacked(arrays: Sequence[np.ndarray], before: int, after: int) -> np.ndarray:
    """Concatenates arrays on axis 0, each with `before` zero rows before it and `after` zero rows after it."""
    total = sum(len(array) + before + after for array in arrays)
    out, place = np.zeros((total, *arrays[0].shape[1:]), arrays[0].dtype), 0
    for array in arrays:
        out[place + before : place + before + len(array)] = array
        place += before + len(array) + after
    return out


def _inputs(values: Any, past: Any, preprocessing: Mapping[str, Any]) -> Any:
    return RecursiveInputs(values, past) if preprocessing['strategy'] == 'recursive' else values


class EvalRows(NamedTuple):
    """Evaluation batches as segments of series, before arrays are made of them."""

    segments: Sequence[Sequence[Segment]]  # [M][up to B]: M batches of up to B rows
    steps: int  # T, time steps of a row, with padding
    size: int  # B, rows of a batch, with padding


def evaluation_rows(lengths: Sequence[int], window: int, batch_size: int) -> EvalRows:
    """Returns the batches of evaluation rows: a row for each series, or several for a series that is too long.

    A row has at most CHUNK + CONTEXT * `window` steps. The first row of a series starts at its first step, and each of
    its steps is an origin. Each later row starts with CONTEXT * `window` steps of context, followed by up to CHUNK
    origins. The rows depend on the arguments alone, so that the test of a run and a later prediction are the same
    program on the same rows.
    """
    context = CONTEXT * window
    longest = CHUNK + context
    segments = []
    for series, length in enumerate(lengths):
        segments.append(Segment(series, 0, 0, min(length, longest)))
        firsts = range(longest, length, CHUNK)
        segments += [Segment(series, first - context, first, min(first + CHUNK, length)) for first in firsts]
    size = min(batch_size, len(segments))
    batches = [segments[place : place + size] for place in range(0, len(segments), size)]
    return EvalRows(batches, min(max(lengths), longest), size)


def select_rows(rows: EvalRows, origins: OriginRanges) -> EvalRows:
    """Returns `rows` without the batches that have no origin in the ranges `origins`."""

    def overlaps(segment: Segment) -> bool:
        first, stop = origins[segment.series]
        return segment.first < stop and first < segment.stop

    return rows._replace(segments=[segments for segments in rows.segments if any(map(overlaps, segments))])


def pad_to_tile(rows: EvalRows) -> EvalRows:
    """Returns `rows` with `steps` rounded up to a multiple of `TILE`, so that online prediction rounds nearly alike."""
    return rows._replace(steps=-(-rows.steps // TILE) * TILE)


def evaluation_batches(
    prepared_series: Sequence[PreparedSeries], preprocessing: Mapping[str, Any], rows: EvalRows, origins: OriginRanges
) -> Batch:
    """Returns the batches of `rows` as arrays, leaves [M, B, ...]; steps outside the ranges `origins` are masked."""
    steps, horizon, lag = rows.steps, preprocessing['horizon'], preprocessing['lag'] or 1
    extra = horizon - 1 if preprocessing['strategy'] == 'recursive' else 0

    def stacked(name: str, before: int, after: int) -> np.ndarray:
        example = getattr(prepared_series[0], name)
        out = np.zeros((len(rows.segments), rows.size, before + steps + after, *example.shape[1:]), example.dtype)
        for batch, segments in enumerate(rows.segments):
            for row, segment in enumerate(segments):
                values = getattr(prepared_series[segment.series], name)
                if name == 'inputs' and extra:
                    values = np.concatenate([values, prepared_series[segment.series].future])
                skip = max(0, before - segment.start)
                piece = values[max(0, segment.start - before) : segment.start + steps + after]
                out[batch, row, skip : skip + len(piece)] = piece
        return out

    mask = np.zeros((len(rows.segments), rows.size, steps), bool)
    for batch, segments in enumerate(rows.segments):
        for row, segment in enumerate(segments):
            first, stop = _within(segment, origins)
            mask[batch, row, first - segment.start : max(first, stop) - segment.start] = True
    past = stacked('past', lag - 1, 0) if preprocessing['lag'] else None
    targets = ForecastTargets(stacked('values', 0, horizon), stacked('valid', 0, horizon), past)
    return Batch(_inputs(stacked('inputs', 0, extra), past, preprocessing), targets, mask)


def _within(segment: Segment, origins: OriginRanges) -> tuple[int, int]:
    first, stop = origins[segment.series]
    return max(segment.first, first), min(segment.stop, stop)


def collect_forecasts(
    predictions: np.ndarray, prepared_series: Sequence[PreparedSeries], rows: EvalRows, origins: OriginRanges
) -> Iterator[Forecasts]:
    """Yields the Forecasts of each row that has origins in the ranges, in the units of the file.

    `predictions` [M, B, T, H, C, K] are scaled like the training split, with K = 1 for points or 5 for quantiles.
    """
    for batch, segments in zip(predictions, rows.segments, strict=True):
        for row, segment in enumerate(segments):
            first, stop = _within(segment, origins)
            if first < stop:
                mean, deviation = prepared_series[segment.series].scale[:, None, None, :, None]
                scaled = np.asarray(batch[row, first - segment.start : stop - segment.start], np.float64)
                yield Forecasts(segment.series, np.arange(first, stop), scaled * deviation + mean)
