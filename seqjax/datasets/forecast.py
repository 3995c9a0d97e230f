"""Series to forecast: read from their beginning, and at every step the next H steps of every target are told.

Axes beside those in `seqjax`: C targets, H steps ahead, K numbers that a forecast has: 1, 2 (mean, log of the standard
deviation) or 5 (quantiles). What a model reads and says is in units of the training part: minus its mean, over its
standard deviation, per series and column. A forecast made at an origin, the last step that was read, is of a split
where all H steps that it is about are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import losses
from seqjax.baselines import forecasts as baselines
from seqjax.dataset import SPLITS, Dataset, Form, Items, Measure, Table, Unseen
from seqjax.datasets.feedback import Fed, Feedback, deviation, latest
from seqjax.files import UserError
from seqjax.readers import tables
from seqjax.readers.tables import Columns, Pace, Series
from seqjax.task import Arrays, Batch, Mean

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # the quantiles that are told
INTERVALS = {'90%': (0, 4), '50%': (1, 3)}  # between which of them
NUMBERS = {'point': 1, 'gaussian': 2, 'quantile': len(LEVELS)}  # K of a head
CHUNK, CONTEXT = 4096, 8  # steps that are told of a longer series at once, after as many windows of context
FARTHEST = 1e15  # training standard deviations from the mean; float32 squares no more
CYCLES = {'year': 31_556_952_000_000, 'week': 604_800_000_000, 'day': 86_400_000_000}  # microseconds


class Ahead(NamedTuple):
    """What forecasts are compared with; step t of a row is told the values at t + 1 to t + H."""

    values: jax.Array  # [B, T + H, C]; 0 where one is missing
    real: jax.Array  # [B, T + H, C] bool: which are known
    past: jax.Array | None  # [B, lag - 1 + T, C]: known values, from lag - 1 steps before; None: nothing is added


class Ready(NamedTuple):
    """A series as a model reads it."""

    series: Series
    inputs: np.ndarray  # [n, F] float32
    values: np.ndarray  # [n, C] float32; 0 where one is missing
    real: np.ndarray  # [n, C] bool
    past: np.ndarray  # [n, C] float32: the value, or that `lag` before where it is missing, and so on
    scale: np.ndarray  # [2, C]: means and standard deviations of the targets
    future: np.ndarray  # [H - 1, F] float32: inputs after its end, of which the calendar is known

    def __len__(self) -> int:
        return len(self.inputs)


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


# --- the recipe ------------------------------------------------------------------------------------


def form(recipe: Mapping[str, Any]) -> Form:
    """Of a model that reads what the recipe says."""
    steps = recipe['horizon'] if recipe['strategy'] == 'direct' else 1
    return Form(
        answer='sequence',
        outputs=steps * len(recipe['targets']) * NUMBERS[recipe['head']],
        answers=lambda outputs, batch: quantiles(forecasts(outputs, batch, recipe), recipe['head']),
        features=len(channels(recipe)),
        causal=True,
        horizon=recipe['window'],
    )


def channels(recipe: Mapping[str, Any]) -> list[str]:
    """Names of the F inputs, in their order."""
    columns = [*recipe['targets'], *recipe['covariates']]
    missing = [f'{name} is missing' for name in columns] if recipe['mask'] else []
    return columns + missing + [f'{side} of the {cycle}' for cycle in recipe['cycles'] for side in ('sine', 'cosine')]


def columns_of(recipe: Mapping[str, Any]) -> Columns:
    """What is read of a file to predict."""
    return Columns(recipe['targets'], recipe['covariates'], recipe['date'], recipe['id'])


def cycles_of(dates: np.ndarray) -> list[str]:
    """Which cycles the dates of a series tell apart: those of more than one row."""
    gap = np.median(np.diff(dates).astype(float))
    return [name for name, length in CYCLES.items() if gap < 0.95 * length]


def calendar(dates: np.ndarray, cycles: Sequence[str]) -> np.ndarray:
    """[n, 2 * cycles]: sine and cosine of where each date lies in each cycle."""
    since = {
        'year': dates - dates.astype('datetime64[Y]'),
        'week': dates - np.datetime64('2001-01-01', 'us'),  # a Monday
        'day': dates - dates.astype('datetime64[D]'),
    }
    turns = [2 * np.pi * (since[cycle].astype(np.int64) % (366 * CYCLES['day'])) / CYCLES[cycle] for cycle in cycles]
    return np.array([side(turn) for turn in turns for side in (np.sin, np.cos)]).reshape(-1, len(dates)).T


def fit_scale(name: str, series: Series, columns: Sequence[str], count: int) -> list[list[float]]:
    """[mean, standard deviation] of each column over the first `count` values, which are the training part.

    Raises:
      UserError: a column has no value there, is constant there, or has values too large to be squared.
    """
    found = []
    for place, column in enumerate(columns):
        values = series.values[:count, place]
        values = values[~np.isnan(values)]
        where = f'{name}: column {column!r}{series.phrase}'
        if not len(values):
            raise UserError(f'{where} has no value on the training part; leave it out')
        if values.min() == values.max():
            raise UserError(f'{where} is constant on the training part; leave it out, or begin validation later')
        with np.errstate(over='ignore', invalid='ignore'):
            mean, deviation = float(values.mean()), float(values.std())
        if not (0 < deviation < math.inf):
            raise UserError(f'{where} has values that cannot be squared, up to {np.abs(values).max():.3g}; rescale it')
        found.append([mean, deviation])
    return found


def ready(name: str, series: Series, recipe: Mapping[str, Any]) -> Ready:
    """A series through the preprocessing of training.

    Raises:
      UserError: its id is none of those that were trained on; or a value is too far from them.
    """
    key = series.name or ''
    if key not in recipe['scales']:
        known = list(recipe['scales'])
        raise UserError(f'{name}: series {key!r} is none of the {len(known)} that were trained on{tables.near(key, known)}')
    targets, mean_and_deviation = len(recipe['targets']), np.array(recipe['scales'][key]).T
    with np.errstate(over='ignore'):
        scaled = (series.values - mean_and_deviation[0]) / mean_and_deviation[1]
    far = np.abs(scaled) > FARTHEST  # False of what is missing
    for row, place in np.argwhere(far)[:1]:
        column = [*recipe['targets'], *recipe['covariates']][place]
        raise UserError(
            f'{name}: row {series.rows[row]}, column {column!r} is {series.values[row, place]:.3g}, more than '
            f'{FARTHEST:.0e} standard deviations from its mean; mend it'
        )
    missing = np.isnan(scaled)
    parts = [np.where(missing, 0, scaled), *([missing] if recipe['mask'] else [])]
    ahead = np.zeros((recipe['horizon'] - 1, len(channels(recipe))), np.float32)
    if recipe['cycles']:
        parts.append(calendar(series.dates, recipe['cycles']))
        following = pace_of(series, recipe).after(series.dates[-1], len(ahead))
        ahead[:, -2 * len(recipe['cycles']) :] = calendar(following, recipe['cycles'])
    return Ready(
        series,
        np.concatenate(parts, 1, dtype=np.float32),
        parts[0][:, :targets].astype(np.float32),
        ~missing[:, :targets],
        baselines.carried(scaled[:, :targets], recipe['lag'] or 1).astype(np.float32),
        mean_and_deviation[:, :targets],
        ahead,
    )


def pace_of(series: Series, recipe: Mapping[str, Any]) -> Pace:
    """Of its dates, or where there are too few of those that were trained on."""
    return tables.pace(series.dates) if len(series.dates) > 2 else Pace(*recipe['pace'])


# --- on the device ---------------------------------------------------------------------------------


def forecasts(outputs: jax.Array, batch: Batch, recipe: Mapping[str, Any]) -> jax.Array:
    """[B, T, H, C, K] in units of the training part: the model's outputs, added to what is known where it is direct."""
    told = outputs.astype(jnp.float32).reshape(*outputs.shape[:2], -1, len(recipe['targets']), NUMBERS[recipe['head']])
    if recipe['strategy'] == 'recursive' or batch.targets.past is None:
        return told
    known = latest(batch.targets.past, *told.shape[1:3], recipe['lag'])
    return told.at[..., 0].add(known) if recipe['head'] == 'gaussian' else told + known[..., None]


def ahead(values: jax.Array, steps: int, horizon: int) -> jax.Array:
    """[B, T, H, C] of values [B, T + H, C]: at each step those that follow it."""
    return jnp.stack([values[:, step : step + steps] for step in range(1, horizon + 1)], 2)


def quantiles(told: jax.Array, head: str) -> jax.Array:
    """[..., 1] of points, [..., 5] of the other heads, in rising order."""
    if head == 'gaussian':
        normal = jnp.array([NormalDist().inv_cdf(level) for level in LEVELS], jnp.float32)
        return told[..., :1] + deviation(told)[..., None] * normal.reshape(*[1] * (told.ndim - 1), -1)
    return jnp.sort(told, -1)


def score(recipe: Mapping[str, Any]) -> Callable[[Arrays, Batch], dict[str, Mean]]:
    """The loss of the head, and the squared error, in units of the training part."""

    def scored(outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        told = forecasts(outputs, batch, recipe)
        steps, horizon = told.shape[1:3]
        targets = ahead(batch.targets.values, steps, horizon)
        mask = ahead(batch.targets.real, steps, horizon) & batch.mask[..., None, None]
        middle = told[..., NUMBERS[recipe['head']] // 2 if recipe['head'] == 'quantile' else 0]
        squared = losses.squared_error(middle, targets, mask)
        loss = {'point': lambda *_: squared, 'gaussian': gaussian, 'quantile': pinball}[recipe['head']]
        return {'loss': loss(told, targets, mask), 'squared_error': squared}

    return scored


def gaussian(told: jax.Array, targets: jax.Array, mask: jax.Array) -> Mean:
    """Negative log-likelihood in nats of targets [...] under Gaussians [..., 2]."""
    scale = deviation(told)
    error = jnp.where(mask, targets - told[..., 0], 0) / scale
    return _mean(0.5 * error**2 + jnp.log(scale) + 0.5 * math.log(2 * math.pi), mask)


def pinball(told: jax.Array, targets: jax.Array, mask: jax.Array) -> Mean:
    """Quantile loss (Koenker and Bassett 1978) of targets [...], the mean over `LEVELS` of told [..., 5]."""
    levels = jnp.array(LEVELS, told.dtype).reshape(*[1] * targets.ndim, -1)
    error = jnp.where(mask, targets, 0)[..., None] - jnp.where(mask[..., None], told, 0)
    return _mean(jnp.maximum(levels * error, (levels - 1) * error).mean(-1), mask)


def _mean(values: jax.Array, mask: jax.Array) -> Mean:
    return Mean(jnp.where(mask, values, 0).sum(), mask.sum(dtype=values.dtype))


# --- batches ---------------------------------------------------------------------------------------


def training(parts: Sequence[Ready], recipe: Mapping[str, Any], batch_size: int) -> tuple[Arrays, Callable[..., Batch]]:
    """Windows of series that end where their training does: the data, and the batch of a step.

    A window begins anywhere that has a target for each of its steps; targets beyond the end of the series are masked.
    """
    window, horizon, lag = recipe['window'], recipe['horizon'], recipe['lag'] or 1
    counts = np.array([len(part) - window for part in parts])  # of windows
    lengths = np.array([lag - 1 + len(part) + horizon for part in parts])
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


class Rows(NamedTuple):
    """Series as batches of rows."""

    cuts: Sequence[Sequence[Cut]]  # [M][up to B]
    steps: int  # T
    size: int  # B


def rows_of(lengths: Sequence[int], window: int, batch_size: int) -> Rows:
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
    return Rows(batches, min(max(lengths), longest), size)


def asked(rows: Rows, origins: Sequence[tuple[int, int]]) -> Rows:
    """The batches that tell of any origin from [first, stop) of its series."""

    def some(cut: Cut) -> bool:
        first, stop = origins[cut.series]
        return cut.first < stop and first < cut.stop

    return rows._replace(cuts=[cuts for cuts in rows.cuts if any(map(some, cuts))])


def evaluation(parts: Sequence[Ready], recipe: Mapping[str, Any], rows: Rows, origins: Sequence[tuple[int, int]]) -> Batch:
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


def _within(cut: Cut, origins: Sequence[tuple[int, int]]) -> tuple[int, int]:
    first, stop = origins[cut.series]
    return max(cut.first, first), min(cut.stop, stop)


def collected(
    answers: np.ndarray, parts: Sequence[Ready], rows: Rows, origins: Sequence[tuple[int, int]]
) -> Iterator[Told]:
    """What the model said at the origins, row by row, in the data's own units; answers are [M, B, T, H, C, K]."""
    for said, cuts in zip(answers, rows.cuts, strict=True):
        for row, cut in enumerate(cuts):
            first, stop = _within(cut, origins)
            if first < stop:
                mean, deviation = parts[cut.series].scale[:, None, None, :, None]
                scaled = np.asarray(said[row, first - cut.start : stop - cut.start], np.float64)
                yield Told(cut.series, np.arange(first, stop), scaled * deviation + mean)


# --- what is told of forecasts ---------------------------------------------------------------------


def actual(part: Ready, origins: np.ndarray, horizon: int) -> np.ndarray:
    """[k, H, C] in the data's own units, NaN where a value is missing or to come."""
    values = part.series.values[:, : part.values.shape[1]]
    places = origins[:, None] + np.arange(1, horizon + 1)
    return np.where((places < len(values))[..., None], values[np.minimum(places, len(values) - 1)], np.nan)


def errors(told: Told, part: Ready, own: bool) -> np.ndarray:
    """[k, H, C], NaN where the value is not known; in the data's own units, or in those of the training part."""
    found = told.points - actual(part, told.origins, told.forecasts.shape[1])
    return found if own else found / part.scale[1]


def items(told: Sequence[Told], parts: Sequence[Ready], own: bool) -> Items:
    """Squared errors by stretches of origins that follow one another: neighbours err alike.

    A stretch has as many origins as a forecast has steps, or the square root of all of its series, whichever is more.
    """
    totals, counts = [], []
    for series in sorted({one.series for one in told}):
        squared = np.concatenate([errors(one, parts[series], own) ** 2 for one in told if one.series == series])
        length = max(squared.shape[1], math.ceil(math.sqrt(len(squared))))
        places = np.arange(0, len(squared), length)
        totals.append(np.add.reduceat(np.nansum(squared, (1, 2)), places))
        counts.append(np.add.reduceat((~np.isnan(squared)).sum((1, 2)), places))
    totals, counts = np.concatenate(totals), np.concatenate(counts)
    return Items(totals[counts > 0], counts[counts > 0])


def known(parts: Sequence[Ready], recipe: Mapping[str, Any], orders: Sequence[Sequence[int]] | None) -> dict[str, Any]:
    """The baselines by name: each takes the ranges of origins, and gives what it says there."""
    makers: dict[str, Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]] = {}
    horizon = recipe['horizon']
    makers['persistence'] = lambda values, origins, series, place: baselines.seasonal(values, origins, horizon)
    if recipe['season']:
        makers[f'the season before ({recipe["season"]} steps)'] = lambda values, origins, series, place: (
            baselines.seasonal(values, origins, horizon, recipe['season'])
        )
    if orders is not None:
        name = _order_name([order for row in orders for order in row])
        makers[name] = lambda values, origins, series, place: baselines.autoregressive(
            models[series][place], values, origins, horizon
        )
        models = [
            [baselines.fit(_scaled(part)[: _train(recipe, part), place], order) for place, order in enumerate(row)]
            for part, row in zip(parts, orders, strict=True)
        ]

    def said(make: Callable[..., np.ndarray], origins: Sequence[tuple[int, int]]) -> list[Told]:
        return [_said(make, parts[series], series, np.arange(*span)) for series, span in enumerate(origins)]

    return {name: (lambda origins, make=make: said(make, origins)) for name, make in makers.items()}


def _said(make: Callable[..., np.ndarray], part: Ready, series: int, origins: np.ndarray) -> Told:
    values = _scaled(part)
    found = np.stack([make(values[:, place], origins, series, place) for place in range(values.shape[1])], -1)
    return Told(series, origins, (found * part.scale[1] + part.scale[0])[..., None])


def _scaled(part: Ready) -> np.ndarray:
    """[n, C] float64, NaN where a value is missing."""
    return (part.series.values[:, : part.values.shape[1]] - part.scale[0]) / part.scale[1]


def _train(recipe: Mapping[str, Any], part: Ready) -> int:
    return recipe['splits'][part.series.name or ''][0]


def _order_name(orders: Sequence[int]) -> str:
    low, high = min(orders), max(orders)
    return f'AR({low})' if low == high else f'AR({low} to {high})'
