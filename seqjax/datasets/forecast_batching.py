"""Batches of series: windows for training, and rows from the start of a series for evaluation.

Axes in addition to those in `seqjax`: C targets, H steps ahead, K numbers of a forecast. A forecast is made at an
origin, the last step that was read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.datasets.forecast_preprocessing import PreparedSeries
from seqjax.datasets.recursive_forecasts import RecursiveInputs
from seqjax.types import Arrays, Batch

TILE = 8  # multiple of rows at which a matrix product rounds every row alike (measured on CPUs with AVX2)
CHUNK, CONTEXT = 4096, 8  # maximum number of origins in a row of a long series, and windows of context before them
OriginRanges = Sequence[tuple[int, int]]  # (first, stop) of the forecast origins of each series


class ForecastTargets(NamedTuple):
    """Targets of forecasts: at step t of a row, the values at t + 1 to t + H."""

    values: jax.Array  # [B, T + H, C]; 0 if missing
    valid: jax.Array  # [B, T + H, C] bool; False if a value is missing
    past: jax.Array | None  # [B, lag - 1 + T, C]: known values, which outputs are added to; None to add none


class Split(NamedTuple):
    """First rows of the validation and test splits of a series; the training split is before them."""

    validation: int
    test: int


def origin_ranges(split_name: str, splits: Sequence[Split], lengths: Sequence[int], horizon: int) -> OriginRanges:
    """Returns the origins whose H following steps are all in the validation or test split."""
    if split_name == 'validation':
        return [(split.validation - 1, split.test - horizon) for split in splits]
    return [(split.test - 1, length - horizon) for split, length in zip(splits, lengths, strict=True)]


class Segment(NamedTuple):
    """A row of a batch: a series from step `start`, with forecasts from the origins `first` to `stop` - 1."""

    series: int  # index of the series
    start: int
    first: int
    stop: int


class Forecasts(NamedTuple):
    """Forecasts of one series in the units of the file."""

    series: int  # index of the series
    origins: np.ndarray  # [k]
    forecasts: np.ndarray  # [k, H, C, 1] points or [k, H, C, 5] quantiles

    @property
    def points(self) -> np.ndarray:
        """Points, or medians of quantiles: [k, H, C]."""
        return self.forecasts[..., self.forecasts.shape[-1] // 2]


def training_windows(
    prepared_series: Sequence[PreparedSeries], preprocessing: Mapping[str, Any], batch_size: int
) -> tuple[Arrays, Callable[..., Batch]]:
    """Returns the training data and the function that draws a batch of windows from it.

    The series end where their training split does. A window starts anywhere if each of its steps has a target;
    targets after the end of the series are masked.
    """
    window, horizon, lag = preprocessing['window'], preprocessing['horizon'], preprocessing['lag'] or 1
    counts = np.array([prepared.steps - window for prepared in prepared_series])  # numbers of windows
    lengths = np.array([lag - 1 + prepared.steps + horizon for prepared in prepared_series])
    data = {
        'inputs': _stacked([prepared.inputs for prepared in prepared_series], lag - 1, horizon),
        'values': _stacked([prepared.values for prepared in prepared_series], lag - 1, horizon),
        'valid': _stacked([prepared.valid for prepared in prepared_series], lag - 1, horizon),
        'past': _stacked([prepared.past for prepared in prepared_series], lag - 1, horizon),
        'ends': np.cumsum(counts, dtype=np.int32),
        # The index of a window plus its offset is its first row.
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
    """Concatenates arrays, with zeros before and after each."""
    total = sum(len(array) + before + after for array in arrays)
    out, place = np.zeros((total, *arrays[0].shape[1:]), arrays[0].dtype), 0
    for array in arrays:
        out[place + before : place + before + len(array)] = array
        place += before + len(array) + after
    return out


def _inputs(values: Any, past: Any, preprocessing: Mapping[str, Any]) -> Any:
    return RecursiveInputs(values, past) if preprocessing['strategy'] == 'recursive' else values


class EvalRows(NamedTuple):
    """Rows of evaluation batches as segments of series."""

    segments: Sequence[Sequence[Segment]]  # [M][up to B]
    steps: int  # T
    size: int  # B


def evaluation_rows(lengths: Sequence[int], window: int, batch_size: int) -> EvalRows:
    """Returns one row for each series; a series longer than CHUNK steps plus CONTEXT windows is split into several.

    Each of these rows starts with CONTEXT windows of context. The rows depend on the file and the settings alone, so
    that the test of a run and a later prediction run the same program on the same rows.
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
    """Returns the batches that have an origin in the ranges."""

    def overlaps(segment: Segment) -> bool:
        first, stop = origins[segment.series]
        return segment.first < stop and first < segment.stop

    return rows._replace(segments=[segments for segments in rows.segments if any(map(overlaps, segments))])


def pad_to_tile(rows: EvalRows) -> EvalRows:
    """Returns rows with a multiple of `TILE` steps, so that online prediction gives nearly the same bits."""
    return rows._replace(steps=-(-rows.steps // TILE) * TILE)


def evaluation_batches(
    prepared_series: Sequence[PreparedSeries], preprocessing: Mapping[str, Any], rows: EvalRows, origins: OriginRanges
) -> Batch:
    """Returns batches with leaves [M, B, ...]; steps that are not in the origin ranges are masked."""
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
    """Yields the forecasts from the origins, row by row, in the units of the file; predictions [M, B, T, H, C, K]."""
    for batch, segments in zip(predictions, rows.segments, strict=True):
        for row, segment in enumerate(segments):
            first, stop = _within(segment, origins)
            if first < stop:
                mean, deviation = prepared_series[segment.series].scale[:, None, None, :, None]
                scaled = np.asarray(batch[row, first - segment.start : stop - segment.start], np.float64)
                yield Forecasts(segment.series, np.arange(first, stop), scaled * deviation + mean)
