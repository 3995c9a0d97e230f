"""What is said of forecasts: errors by steps ahead, intervals, baselines, tables and a picture.

Axes beside those in `seqjax`: C targets, H steps ahead, k origins.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from seqjax import config, options
from seqjax.datasets import forecast_preprocessing
from seqjax.datasets.baselines import forecast_baselines
from seqjax.datasets.dataset import ForecastCurve, Items, Table
from seqjax.datasets.forecast_batching import Spans, Split, Told
from seqjax.datasets.forecast_preprocessing import Ready
from seqjax.datasets.readers import date_formats, dates, summary
from seqjax.datasets.readers.date_formats import DateFormat
from seqjax.datasets.readers.table_columns import Series
from seqjax.datasets.readers.tables import SeriesTable

INTERVALS = {'90%': (0, 4), '50%': (1, 3)}  # between which of the quantiles that are told
MOST_DRAWN = 200  # origins of a picture


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


Rival = Callable[[Spans], list[Told]]


def rivals(
    parts: Sequence[Ready], recipe: Mapping[str, Any], splits: Sequence[Split], order: int | None, on: str
) -> dict[str, Rival]:
    """The baselines by name, which tell of one part of the file, `on`: 'validation' or 'test'.

    Autoregression has what stands before that part to fit its weights on, so that for the test it has all that a person
    would have had then. Its order is chosen on the training part, by the lowest AIC of a series and a target unless
    given.
    """
    horizon, seasons = recipe['horizon'], recipe['seasons']
    scaled = [(part.series.values[:, : part.values.shape[1]] - part.scale[0]) / part.scale[1] for part in parts]
    models, orders = [], []
    for part, values, split in zip(parts, scaled, splits, strict=True):
        end, columns = split.validation, range(values.shape[1])
        most = forecast_baselines.most_orders(end, seasons, len(parts) * values.shape[1])
        chosen = [order or forecast_baselines.best_order(values[:end, i], most) for i in columns]
        until = end if on == 'validation' else split.test
        models.append([forecast_baselines.fit(values[:until, i], p) for i, p in zip(columns, chosen, strict=True)])
        orders += chosen

    def rival(forecast: Callable[[int, int, np.ndarray], np.ndarray]) -> Rival:
        """Of (series, target, origins) -> [k, H]."""

        def said(spans: Spans) -> list[Told]:
            return [one(series, np.arange(*span)) for series, span in enumerate(spans)]

        def one(series: int, origins: np.ndarray) -> Told:
            found = np.stack([forecast(series, place, origins) for place in range(scaled[series].shape[1])], -1)
            mean, deviation = parts[series].scale
            return Told(series, origins, (found * deviation + mean)[..., None])

        return said

    found = {'persistence': rival(lambda i, j, origins: forecast_baselines.seasonal(scaled[i][:, j], origins, horizon))}
    for season in seasons:
        found[f'{season} steps before'] = rival(
            lambda i, j, origins, season=season: forecast_baselines.seasonal(scaled[i][:, j], origins, horizon, season)
        )
    low, high = min(orders), max(orders)
    found[f'AR({low})' if low == high else f'AR({low} to {high})'] = rival(
        lambda i, j, origins: forecast_baselines.autoregressive(models[i][j], scaled[i][:, j], origins, horizon)
    )
    return found


def look(table: SeriesTable, recipe: Mapping[str, Any], parts: Sequence[Ready], splits: Sequence[Split]) -> list[str]:
    """The first look at a file."""
    series, columns = table.series, table.columns
    lengths = [len(one.rows) for one in series]
    range_ = f'{min(lengths):,}' if len(set(lengths)) == 1 else f'{min(lengths):,} to {max(lengths):,}'
    lines = [f'{sum(lengths):,} rows in {len(series)} series' + (f' of {range_}' if len(series) > 1 else '')]
    lines += [dates_line(table)] if columns.date is not None else []
    roles = {'target': columns.targets, 'covariates': columns.covariates, 'calendar': recipe['cycles']}
    roles |= {role: [name] for role, name in (('date', columns.date), ('series by', columns.id)) if name is not None}
    lines.append('; '.join(f'{role} {options.some(names)}' for role, names in roles.items() if names))
    missing = {
        name: sum(int(np.isnan(one.values[:, place]).sum()) for one in series)
        for place, name in enumerate(columns.numbers)
    }
    some = [f'{count:,} of {name}' for name, count in missing.items() if count]
    lines.append(f'missing values: {options.some(some) or "none"}' + (', masked' if some else ''))
    for part in ('training', *config.SPLITS):
        lines.append(_part_line(part, parts, splits, table.dates))
    lines += _season_lines(recipe)
    how = {'direct': 'all at once', 'recursive': 'each from the one before'}[recipe['strategy']]
    lines.append(
        f'read step by step from the beginning, in windows of {recipe["window"]} to train; at each step '
        f'{recipe["horizon"]} ahead are told' + (f', {how}' if recipe['horizon'] > 1 else '')
    )
    return lines + summary.lines(table)


def _season_lines(recipe: Mapping[str, Any]) -> list[str]:
    """Which seasons are tried, and the one that is best on validation."""
    lines = []
    if recipe['seasons']:
        seasons = options.some([str(season) for season in recipe['seasons']])
        lines.append(f'seasons tried: {seasons} steps; {recipe["season"]} is best on validation')
    elif recipe['date'] is None:
        lines.append('no season is tried: pass --season, or --date for the usual ones')
    if recipe['seasons_too_long']:
        seasons = options.some([str(season) for season in recipe['seasons_too_long']])
        lines.append(f'seasons left out, as the training part is not longer: {seasons} steps')
    return lines


def dates_line(table: SeriesTable) -> str:
    """The span, the pace and the gaps of the dates of a file, and how they were read."""
    series, form = table.series, table.dates
    several = [one for one in series if len(one.dates) > 1]
    line = f'dates from {_span([(one, 0, -1) for one in series], form)}'
    if form.format not in (None, date_formats.ISO):
        line += f' (read as {form})'
    if form.zone:
        line += f' in {form.zone}'
    paces = [dates.pace(one.dates, one.offsets) for one in several]
    line += f', a row every {options.some(sorted({pace.words() for pace in paces}))}' if several else ''
    places = [(one, dates.gaps(one.dates, pace, one.offsets)) for one, pace in zip(several, paces, strict=True)]
    count = sum(len(found) for _, found in places)
    if count:
        one, found = next((one, found) for one, found in places if len(found))
        place = f'{_date(one, found[0], form)}{one.phrase}'
        line += f' but for {count:,}, the first after {place}; a row is a step all the same'
    return line + ('' if count or not several else ', without gaps')


def _span(edges: Sequence[tuple[Series, int, int]], form: DateFormat) -> str:
    """The first and the last date of stretches of series, given by their first and last place."""
    first = min(edges, key=lambda edge: edge[0].instants[edge[1]])
    last = max(edges, key=lambda edge: edge[0].instants[edge[2]])
    return f'{_date(first[0], first[1], form)} to {_date(last[0], last[2], form)}'


def _date(series: Series, place: int, form: DateFormat) -> str:
    offset = None if series.offsets is None else series.offsets[[place]]
    return date_formats.write(series.dates[[place]], offset, form)[0]


def _part_line(part: str, parts: Sequence[Ready], splits: Sequence[Split], form: DateFormat) -> str:
    """Which rows of a file are in a part."""
    edges = []
    for one, split in zip(parts, splits, strict=True):
        bounds = (0, split.validation, split.test, one.steps)
        place = ('training', *config.SPLITS).index(part)
        edges.append((one.series, bounds[place], bounds[place + 1] - 1))
    count = sum(last - first + 1 for _, first, last in edges)
    if edges[0][0].dates is not None:
        return f'{part}: {count:,} rows, {_span(edges, form)}'
    if len(edges) == 1:
        return f'{part}: {count:,} rows, {edges[0][1] + 1:,} to {edges[0][2] + 1:,}'
    return f'{part}: {count:,} rows, of each series'


def interval_columns(recipe: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """The names of the bounds of intervals, and the quantiles that a forecast is told by: the middle and the bounds."""
    if recipe['likelihood'] == 'point':
        return [], [0]
    bounds = [f'{side} {name}' for name in INTERVALS for side in ('lower', 'upper')]
    return bounds, [2, *(place for pair in INTERVALS.values() for place in pair)]


def table_of(told: Iterator[Told] | Sequence[Told], parts: Sequence[Ready], recipe: Mapping[str, Any]) -> Table:
    """A row for every origin, target and step ahead; `actual` is empty where it is not known."""
    bounds, order = interval_columns(recipe)
    time = 'row' if recipe['date'] is None else 'date'
    several = ['series'] if recipe['id'] is not None else []
    columns = [*several, 'origin', time, 'target', 'step', 'forecast', *bounds, 'actual']
    return columns, _table_rows(told, parts, recipe, order)


def _table_rows(
    told: Iterator[Told] | Sequence[Told], parts: Sequence[Ready], recipe: Mapping[str, Any], order: list[int]
) -> Iterator[list[Any]]:
    horizon = recipe['horizon']
    for one in told:
        part = parts[one.series]
        times, truth = _times(part, one.origins, recipe), actual(part, one.origins, horizon)
        several = [part.series.name] if recipe['id'] is not None else []
        forecasts, start = one.forecasts[..., order], one.origins[0]
        for k, origin in enumerate(one.origins - start):
            for place, target in enumerate(recipe['targets']):
                for step in range(horizon):
                    value = truth[k, step, place]
                    numbers = forecasts[k, step, place].tolist()
                    known = '' if np.isnan(value) else float(value)
                    when = times[origin], times[origin + step + 1]
                    yield [*several, *when, target, step + 1, *numbers, known]


def _times(part: Ready, origins: np.ndarray, recipe: Mapping[str, Any]) -> list[Any]:
    """Dates or rows from the first origin to H steps after the last."""
    stop = origins[-1] + recipe['horizon'] + 1
    if part.series.dates is None:
        return list(range(origins[0] + 1, stop + 1))
    series = part.series
    local, offsets = series.dates, series.offsets
    if stop > len(local):
        later, later_offsets = forecast_preprocessing.dates_after(series, recipe, stop - len(local))
        local = np.concatenate([local, later])
        offsets = None if offsets is None else np.concatenate([offsets, later_offsets])
    shown = slice(origins[0], stop)
    return date_formats.write(
        local[shown], None if offsets is None else offsets[shown], forecast_preprocessing.format_of(recipe)
    )


def tell(told: Mapping[str, Sequence[Told]], parts: Sequence[Ready], recipe: Mapping[str, Any]) -> list[str]:
    """RMSE and mean absolute error by steps ahead, and how often an interval holds the value."""
    own, horizon = recipe['own'], recipe['horizon']
    unit = "the data's own units" if own else 'standard deviations of the training part (training SD)'
    lines = [f'by steps ahead, RMSE and mean absolute error on the test part, in {unit}']
    lines.append(f'{"ahead":>7}' + ''.join(f'{who:>24}' for who in told))
    found = {who: [errors(one, parts[one.series], own) for one in those] for who, those in told.items()}
    found = {who: np.concatenate(those) for who, those in found.items()}
    for step in np.unique(np.geomspace(1, horizon, 12).round().astype(int)):
        at = {who: those[:, step - 1] for who, those in found.items()}
        values = [
            (np.sqrt(np.nanmean(those**2)), np.nanmean(np.abs(those)))
            for those in at.values()
            if not np.isnan(those).all()
        ]
        lines.append(f'{step:>7}' + ''.join(f'{f"{root:.4g}  {mean:.4g}":>24}' for root, mean in values))
    if recipe['likelihood'] != 'point':
        shares = ', '.join(
            f'{name} intervals hold {share:.1%}' for name, share in coverage(told['network'], parts).items()
        )
        lines.append(f'of the values of the test part, {shares}')
    return lines


def coverage(told: Sequence[Told], parts: Sequence[Ready]) -> dict[str, float]:
    """The share of known values that lie within an interval, by its name."""
    found = {}
    for name, (low, high) in INTERVALS.items():
        inside = count = 0
        for one in told:
            truth = actual(parts[one.series], one.origins, one.forecasts.shape[1])
            inside += int(((truth >= one.forecasts[..., low]) & (truth <= one.forecasts[..., high])).sum())
            count += int((~np.isnan(truth)).sum())
        found[name] = inside / count
    return found


def curve(told: Sequence[Told], parts: Sequence[Ready], recipe: Mapping[str, Any]) -> ForecastCurve:
    """Returns one-step-ahead forecasts of the first target of the first series, where its test ends."""
    one = [some for some in told if some.series == told[0].series][-1]
    one = Told(one.series, one.origins[-MOST_DRAWN:], one.forecasts[-MOST_DRAWN:])
    part, steps = parts[one.series], one.origins + 1
    times = steps + 1 if part.series.dates is None else part.series.dates[steps]
    low, high = INTERVALS['90%']
    band = (one.forecasts[:, 0, 0, low], one.forecasts[:, 0, 0, high]) if one.forecasts.shape[-1] > 1 else None
    name = recipe['targets'][0]
    return ForecastCurve(name, times, actual(part, one.origins, 1)[:, 0, 0], one.points[:, 0, 0], band)
