"""Series as batches: windows to train on, and rows from the beginning to be told of.

Axes beside those in `seqjax`: C targets, H steps ahead, K numbers that a forecast has. A forecast is made at an origin,
the last step that was read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.datasets.forecast_preprocessing import Ready
from seqjax.datasets.recursive_forecasts import Fed
from seqjax.types import Arrays, Batch

TILE = 8  # rows that a product of matrices rounds alike, wherever they stand (measured on CPUs with AVX2)
CHUNK, CONTEXT = 4096, 8  # steps that are told of a longer series at once, after as many windows of context
Spans = Sequence[tuple[int, int]]  # of origins, from the first to before the last: a range for each series


class Ahead(NamedTuple):
    """What forecasts are compared with; step t of a row is told the values at t + 1 to t + H."""

    values: jax.Array  # [B, T + H, C]; 0 where one is missing
    real: jax.Array  # [B, T + H, C] bool: which are known
    past: jax.Array | None  # [B, lag - 1 + T, C]: known values, from lag - 1 steps before; None: nothing is added


class Split(NamedTuple):
    """Where the parts of a series begin; the training part is what lies before."""

    validation: int
    test: int


def spans(part: str, splits: Sequence[Split], lengths: Sequence[int], horizon: int) -> Spans:
    """The origins of a part: all of the H steps that follow one lie in it."""
    if part == 'validation':
        return [(split.validation - 1, split.test - horizon) for split in splits]
    return [(split.test - 1, length - horizon) for split, length in zip(splits, lengths, strict=True)]


class Cut(NamedTuple):
    """A row of a batch: a series from `start`, which tells what follows the origins `first` to `stop` - 1."""

    series: int
    start: int
    first: int
    stop: int


class Told(NamedTuple):
    """Forecasts of one series in its own units."""

    series: int
    origins: np.ndarray  # [k]
    forecasts: np.ndarray  # [k, H, C, 1 or 5], the quantiles where there are five

    @property
    def points(self) -> np.ndarray:
        """[k, H, C]"""
        return self.forecasts[..., self.forecasts.shape[-1] // 2]


def training(parts: Sequence[Ready], recipe: Mapping[str, Any], batch_size: int) -> tuple[Arrays, Callable[..., Batch]]:
    """Windows of series that end where their training does: the data, and the batch of a step.

    A window begins anywhere that has a target for each of its steps; targets beyond the end of the series are masked.
    """
    window, horizon, lag = recipe['window'], recipe['horizon'], recipe['lag'] or 1
    counts = np.array([part.steps - window for part in parts])  # of windows
    lengths = np.array([lag - 1 + part.steps + horizon for part in parts])
    data = {
        'inputs': _stacked([part.inputs for part in parts], lag - 1, horizon),
        'values': _stacked([part.values for part in parts], lag - 1, horizon),
        'real': _stacked([part.real for part in parts], lag - 1, horizon),
        'past': _stacked([part.past for part in parts], lag - 1, horizon),
        'ends': np.cumsum(counts, dtype=np.int32),
        # What is added to the number of a window to find its first row.
        'offsets': (np.cumsum(lengths) - lengths + lag - 1 - (np.cumsum(counts) - counts)).astype(np.int32),
    }
    extra = horizon - 1 if recipe['strategy'] == 'recursive' else 0

    def batch(data: Arrays, key: jax.Array, step: jax.Array) -> Batch:
        number = jax.random.randint(key, (batch_size,), 0, data['ends'][-1])
        first = number + data['offsets'][jnp.searchsorted(data['ends'], number, side='right')]

        def rows(name: str, before: int, after: int) -> jax.Array:
            return data[name][first[:, None] + jnp.arange(-before, window + after)[None]]

        past = rows('past', lag - 1, 0) if recipe['lag'] else None
        targets = Ahead(rows('values', 0, horizon), rows('real', 0, horizon), past)
        return Batch(_inputs(rows('inputs', 0, extra), past, recipe), targets, jnp.ones((batch_size, window), bool))

    return data, batch


def _stacked(parts: Sequence[np.ndarray], before: int, after: int) -> np.ndarray:
    """One after the other, with zeros around each."""
    total = sum(len(part) + before + after for part in parts)
    out, place = np.zeros((total, *parts[0].shape[1:]), parts[0].dtype), 0
    for part in parts:
        out[place + before : place + before + len(part)] = part
        place += before + len(part) + after
    return out


def _inputs(values: Any, past: Any, recipe: Mapping[str, Any]) -> Any:
    return Fed(values, past) if recipe['strategy'] == 'recursive' else values


class EvalRows(NamedTuple):
    """Series as batches of rows."""

    cuts: Sequence[Sequence[Cut]]  # [M][up to B]
    steps: int  # T
    size: int  # B


def rows_of(lengths: Sequence[int], window: int, batch_size: int) -> EvalRows:
    """Whole series, a row each; one of over CHUNK + CONTEXT windows in several, each with that much context before.

    The file and the settings alone decide it, so that training's own test and a later prediction are the same program
    on the same rows.
    """
    context = CONTEXT * window
    longest = CHUNK + context
    cuts = []
    for series, length in enumerate(lengths):
        cuts.append(Cut(series, 0, 0, min(length, longest)))
        firsts = range(longest, length, CHUNK)
        cuts += [Cut(series, first - context, first, min(first + CHUNK, length)) for first in firsts]
    size = min(batch_size, len(cuts))
    batches = [cuts[place : place + size] for place in range(0, len(cuts), size)]
    return EvalRows(batches, min(max(lengths), longest), size)


def asked(rows: EvalRows, origins: Spans) -> EvalRows:
    """The batches that tell of any origin from [first, stop) of its series."""

    def some(cut: Cut) -> bool:
        first, stop = origins[cut.series]
        return cut.first < stop and first < cut.stop

    return rows._replace(cuts=[cuts for cuts in rows.cuts if any(map(some, cuts))])


def tiled(rows: EvalRows) -> EvalRows:
    """Returns rows with a multiple of `TILE` steps, so that a stream gives the same numbers, most bit for bit."""
    return rows._replace(steps=-(-rows.steps // TILE) * TILE)


def evaluation(parts: Sequence[Ready], recipe: Mapping[str, Any], rows: EvalRows, origins: Spans) -> Batch:
    """Leaves [M, B, ...]; what is told at an origin of [first, stop) of its series counts."""
    steps, horizon, lag = rows.steps, recipe['horizon'], recipe['lag'] or 1
    extra = horizon - 1 if recipe['strategy'] == 'recursive' else 0

    def stacked(name: str, before: int, after: int) -> np.ndarray:
        one = getattr(parts[0], name)
        out = np.zeros((len(rows.cuts), rows.size, before + steps + after, *one.shape[1:]), one.dtype)
        for batch, cuts in enumerate(rows.cuts):
            for row, cut in enumerate(cuts):
                values = getattr(parts[cut.series], name)
                if name == 'inputs' and extra:
                    values = np.concatenate([values, parts[cut.series].future])
                skip = max(0, before - cut.start)
                piece = values[max(0, cut.start - before) : cut.start + steps + after]
                out[batch, row, skip : skip + len(piece)] = piece
        return out

    mask = np.zeros((len(rows.cuts), rows.size, steps), bool)
    for batch, cuts in enumerate(rows.cuts):
        for row, cut in enumerate(cuts):
            first, stop = _within(cut, origins)
            mask[batch, row, first - cut.start : max(first, stop) - cut.start] = True
    past = stacked('past', lag - 1, 0) if recipe['lag'] else None
    targets = Ahead(stacked('values', 0, horizon), stacked('real', 0, horizon), past)
    return Batch(_inputs(stacked('inputs', 0, extra), past, recipe), targets, mask)


def _within(cut: Cut, origins: Spans) -> tuple[int, int]:
    first, stop = origins[cut.series]
    return max(cut.first, first), min(cut.stop, stop)


def collected(answers: np.ndarray, parts: Sequence[Ready], rows: EvalRows, origins: Spans) -> Iterator[Told]:
    """What the model said at the origins, row by row, in the data's own units; answers are [M, B, T, H, C, K]."""
    for said, cuts in zip(answers, rows.cuts, strict=True):
        for row, cut in enumerate(cuts):
            first, stop = _within(cut, origins)
            if first < stop:
                mean, deviation = parts[cut.series].scale[:, None, None, :, None]
                scaled = np.asarray(said[row, first - cut.start : stop - cut.start], np.float64)
                yield Told(cut.series, np.arange(first, stop), scaled * deviation + mean)
