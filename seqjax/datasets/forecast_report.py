"""Reports on forecasts: errors by steps ahead, interval coverage, tables and the data of a plot.

Axes in addition to those in `seqjax`: C target columns, H forecast horizon in steps, k origins (the last rows read).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from seqjax import config, options
from seqjax.datasets import forecast_preprocessing
from seqjax.datasets.dataset import ForecastCurve, ItemScores, Table
from seqjax.datasets.forecast_batching import Forecasts, Split
from seqjax.datasets.forecast_preprocessing import PreparedSeries
from seqjax.datasets.readers import date_formats, dates, summary
from seqjax.datasets.readers.date_formats import DateFormat
from seqjax.datasets.readers.table_columns import Series
from seqjax.datasets.readers.tables import SeriesTable

INTERVALS = {'90%': (0, 4), '50%': (1, 3)}  # indices of the (lower, upper) bound in `QUANTILES`
MAX_PLOTTED = 200  # maximum number of origins in the plot, the last ones


def actual(prepared: PreparedSeries, origins: np.ndarray, horizon: int) -> np.ndarray:
    """Returns the true values [k, H, C] in the units of the file; NaN if missing or after the end of the series."""
    values = prepared.series.values[:, : prepared.values.shape[1]]
    places = origins[:, None] + np.arange(1, horizon + 1)
    return np.where((places < len(values))[..., None], values[np.minimum(places, len(values) - 1)], np.nan)


def errors(forecast: Forecasts, prepared: PreparedSeries, original_units: bool) -> np.ndarray:
    """Returns forecast - true value, [k, H, C]; NaN where the true value is unknown.

    The unit is the file's if `original_units`, otherwise the standard deviation of the training split.
    """
    differences = forecast.points - actual(prepared, forecast.origins, forecast.forecasts.shape[1])
    return differences if original_units else differences / prepared.scale[1]


def items(
    forecasts: Sequence[Forecasts], prepared_series: Sequence[PreparedSeries], original_units: bool
) -> ItemScores:
    """Returns the item scores of squared errors; an item is a block of consecutive origins of one series.

    Blocks are resampled together (block bootstrap), since neighboring errors correlate. A block has H origins, or the
    square root of the number of origins of its series if that is more. Blocks without a known true value are dropped.
    """
    totals, counts = [], []
    for series in sorted({forecast.series for forecast in forecasts}):
        squared = np.concatenate(
            [
                errors(forecast, prepared_series[series], original_units) ** 2
                for forecast in forecasts
                if forecast.series == series
            ]
        )
        length = max(squared.shape[1], math.ceil(math.sqrt(len(squared))))
        places = np.arange(0, len(squared), length)
        totals.append(np.add.reduceat(np.nansum(squared, (1, 2)), places))
        counts.append(np.add.reduceat((~np.isnan(squared)).sum((1, 2)), places))
    totals, counts = np.concatenate(totals), np.concatenate(counts)
    return ItemScores(totals[counts > 0], counts[counts > 0])


# --- descriptions and tables -----------------------------------------------------------------------


def describe(
    table: SeriesTable,
    preprocessing: Mapping[str, Any],
    prepared_series: Sequence[PreparedSeries],
    splits: Sequence[Split],
) -> list[str]:
    """Returns lines about a training file: rows, dates, columns, missing values, splits, seasons and windows."""
    series, columns = table.series, table.columns
    lengths = [len(one.rows) for one in series]
    range_ = f'{min(lengths):,}' if len(set(lengths)) == 1 else f'{min(lengths):,} to {max(lengths):,}'
    lines = [f'{sum(lengths):,} rows in {len(series)} series' + (f' of {range_}' if len(series) > 1 else '')]
    lines += [dates_line(table)] if columns.date is not None else []
    roles = {'target': columns.targets, 'covariates': columns.covariates, 'calendar': preprocessing['cycles']}
    roles |= {role: [name] for role, name in (('date', columns.date), ('series by', columns.id)) if name is not None}
    lines.append('; '.join(f'{role} {options.some(names)}' for role, names in roles.items() if names))
    missing = {
        name: sum(int(np.isnan(one.values[:, place]).sum()) for one in series)
        for place, name in enumerate(columns.numbers)
    }
    missing_counts = [f'{count:,} of {name}' for name, count in missing.items() if count]
    lines.append(f'missing values: {options.some(missing_counts) or "none"}' + (', masked' if missing_counts else ''))
    for split_name in ('training', *config.SPLITS):
        lines.append(_split_line(split_name, prepared_series, splits, table.dates))
    lines += _season_lines(preprocessing)
    strategy = {'direct': 'all steps at once', 'recursive': 'each step from the previous forecast'}[
        preprocessing['strategy']
    ]
    lines.append(
        f'training windows of {preprocessing["window"]} steps, evaluation from the first row; '
        f'forecast horizon {preprocessing["horizon"]}' + (f', {strategy}' if preprocessing['horizon'] > 1 else '')
    )
    return lines + summary.lines(table)


def _season_lines(preprocessing: Mapping[str, Any]) -> list[str]:
    """Returns lines about the seasons of the seasonal naive baselines, the best one, and seasons that are too long."""
    lines = []
    if preprocessing['seasons']:
        seasons = options.some([str(season) for season in preprocessing['seasons']])
        lines.append(f'seasonal naive baselines: {seasons} steps; {preprocessing["season"]} is best on validation')
    elif preprocessing['date'] is None:
        lines.append('no seasonal naive baseline; pass --season, or --date for the usual seasons of its frequency')
    if preprocessing['seasons_too_long']:
        seasons = options.some([str(season) for season in preprocessing['seasons_too_long']])
        lines.append(f'seasons without a baseline, since a training split is not longer: {seasons} steps')
    return lines


def dates_line(table: SeriesTable) -> str:
    """Returns a line with the range, format, time zone, frequency and gaps of the dates of all series of a file."""
    series, form = table.series, table.dates
    dated = [one for one in series if len(one.dates) > 1]
    line = f'dates from {_span([(one, 0, -1) for one in series], form)}'
    if form.format not in (None, date_formats.ISO):
        line += f' (read as {form})'
    if form.zone:
        line += f' in {form.zone}'
    frequencies = [dates.infer_frequency(one.dates, one.offsets) for one in dated]
    line += f', time step {options.some(sorted({frequency.words() for frequency in frequencies}))}' if dated else ''
    gaps = [
        (one, dates.gaps(one.dates, frequency, one.offsets)) for one, frequency in zip(dated, frequencies, strict=True)
    ]
    count = sum(len(gap_places) for _, gap_places in gaps)
    if count:
        one, gap_places = next((one, gap_places) for one, gap_places in gaps if len(gap_places))
        place = f'{_date(one, gap_places[0], form)}{one.phrase}'
        line += f', with {count:,} gaps, the first after {place}; each row is one time step'
    return line + ('' if count or not dated else ', without gaps')


def _span(edges: Sequence[tuple[Series, int, int]], form: DateFormat) -> str:
    """Returns 'FIRST to LAST', the dates that the ranges span; a range is (series, first index, last index)."""
    first = min(edges, key=lambda edge: edge[0].instants[edge[1]])
    last = max(edges, key=lambda edge: edge[0].instants[edge[2]])
    return f'{_date(first[0], first[1], form)} to {_date(last[0], last[2], form)}'


def _date(series: Series, place: int, form: DateFormat) -> str:
    offset = None if series.offsets is None else series.offsets[[place]]
    return date_formats.write(series.dates[[place]], offset, form)[0]


def _split_line(
    split_name: str, prepared_series: Sequence[PreparedSeries], splits: Sequence[Split], form: DateFormat
) -> str:
    """Returns a line with the number of rows of a split in all series, and its dates, or row numbers of one series."""
    edges = []
    for prepared, split in zip(prepared_series, splits, strict=True):
        bounds = (0, split.validation, split.test, prepared.steps)
        place = ('training', *config.SPLITS).index(split_name)
        edges.append((prepared.series, bounds[place], bounds[place + 1] - 1))
    count = sum(last - first + 1 for _, first, last in edges)
    if edges[0][0].dates is not None:
        return f'{split_name}: {count:,} rows, {_span(edges, form)}'
    if len(edges) == 1:
        return f'{split_name}: {count:,} rows, {edges[0][1] + 1:,} to {edges[0][2] + 1:,}'
    return f'{split_name}: {count:,} rows in {len(edges)} series'


def interval_columns(preprocessing: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Returns the names of the columns of interval bounds, and indices into the last axis of forecasts.

    The first index is the median's, then one for each bound. For point forecasts, returns ([], [0]).
    """
    if preprocessing['likelihood'] == 'point':
        return [], [0]
    bounds = [f'{side} {name}' for name in INTERVALS for side in ('lower', 'upper')]
    return bounds, [2, *(place for pair in INTERVALS.values() for place in pair)]


def table_of(
    forecasts: Iterator[Forecasts] | Sequence[Forecasts],
    prepared_series: Sequence[PreparedSeries],
    preprocessing: Mapping[str, Any],
) -> Table:
    """Returns a table with a row for each origin, target and step ahead; 'actual' is '' if the value is unknown."""
    bounds, order = interval_columns(preprocessing)
    time = 'row' if preprocessing['date'] is None else 'date'
    several = ['series'] if preprocessing['id'] is not None else []
    columns = [*several, 'origin', time, 'target', 'step', 'forecast', *bounds, 'actual']
    return columns, _table_rows(forecasts, prepared_series, preprocessing, order)


def _table_rows(
    forecasts: Iterator[Forecasts] | Sequence[Forecasts],
    prepared_series: Sequence[PreparedSeries],
    preprocessing: Mapping[str, Any],
    order: list[int],
) -> Iterator[list[Any]]:
    horizon = preprocessing['horizon']
    for forecast in forecasts:
        prepared = prepared_series[forecast.series]
        times, truth = _times(prepared, forecast.origins, preprocessing), actual(prepared, forecast.origins, horizon)
        several = [prepared.series.name] if preprocessing['id'] is not None else []
        quantiles, start = forecast.forecasts[..., order], forecast.origins[0]
        for k, origin in enumerate(forecast.origins - start):
            for place, target in enumerate(preprocessing['targets']):
                for step in range(horizon):
                    value = truth[k, step, place]
                    numbers = quantiles[k, step, place].tolist()
                    known = '' if np.isnan(value) else float(value)
                    when = times[origin], times[origin + step + 1]
                    yield [*several, *when, target, step + 1, *numbers, known]


def _times(prepared: PreparedSeries, origins: np.ndarray, preprocessing: Mapping[str, Any]) -> list[Any]:
    """Returns dates, or row numbers from 1, of all rows from the first origin to H steps after the last origin."""
    stop = origins[-1] + preprocessing['horizon'] + 1
    if prepared.series.dates is None:
        return list(range(origins[0] + 1, stop + 1))
    series = prepared.series
    local, offsets = series.dates, series.offsets
    if stop > len(local):
        later, later_offsets = forecast_preprocessing.dates_after(series, preprocessing, stop - len(local))
        local = np.concatenate([local, later])
        offsets = None if offsets is None else np.concatenate([offsets, later_offsets])
    shown = slice(origins[0], stop)
    return date_formats.write(
        local[shown], None if offsets is None else offsets[shown], forecast_preprocessing.format_of(preprocessing)
    )


def summarize(
    forecasts: Mapping[str, Sequence[Forecasts]],
    prepared_series: Sequence[PreparedSeries],
    preprocessing: Mapping[str, Any],
) -> list[str]:
    """Returns lines with RMSE and mean absolute error by steps ahead, and a line with the coverage of the intervals.

    The keys of `forecasts` are 'model' and the names of the baselines. Up to 12 numbers of steps ahead are shown. Point
    forecasts have no intervals and no line of coverage.
    """
    original_units, horizon = preprocessing['original_units'], preprocessing['horizon']
    unit = 'the units of the file' if original_units else 'standard deviations of the training split (training SD)'
    lines = [f'RMSE and mean absolute error on the test split by steps ahead, in {unit}']
    width = max(24, 3 + max(map(len, forecasts)))
    lines.append(f'{"ahead":>7}' + ''.join(f'{name:>{width}}' for name in forecasts))
    errors_by_name = {
        name: [errors(forecast, prepared_series[forecast.series], original_units) for forecast in series_forecasts]
        for name, series_forecasts in forecasts.items()
    }
    errors_by_name = {name: np.concatenate(values) for name, values in errors_by_name.items()}
    for step in np.unique(np.geomspace(1, horizon, 12).round().astype(int)):
        step_errors = {name: values[:, step - 1] for name, values in errors_by_name.items()}
        scores = [
            ''  # no error is known
            if np.isnan(values).all()
            else f'{np.sqrt(np.nanmean(values**2)):.4g}  {np.nanmean(np.abs(values)):.4g}'
            for values in step_errors.values()
        ]
        lines.append((f'{step:>7}' + ''.join(f'{score:>{width}}' for score in scores)).rstrip())
    if preprocessing['likelihood'] != 'point':
        fractions = ', '.join(
            f'{name} intervals: {fraction:.1%}'
            for name, fraction in coverage(forecasts['model'], prepared_series).items()
        )
        lines.append(f'coverage, the fraction of test values in the intervals: {fractions}')
    return lines


def coverage(forecasts: Sequence[Forecasts], prepared_series: Sequence[PreparedSeries]) -> dict[str, float]:
    """Returns the fraction of known true values inside each of the `INTERVALS`, by name, such as '90%'."""
    shares = {}
    for name, (low, high) in INTERVALS.items():
        inside = count = 0
        for forecast in forecasts:
            truth = actual(prepared_series[forecast.series], forecast.origins, forecast.forecasts.shape[1])
            inside += int(((truth >= forecast.forecasts[..., low]) & (truth <= forecast.forecasts[..., high])).sum())
            count += int((~np.isnan(truth)).sum())
        shares[name] = inside / count
    return shares


def curve(
    forecasts: Sequence[Forecasts], prepared_series: Sequence[PreparedSeries], preprocessing: Mapping[str, Any]
) -> ForecastCurve:
    """Returns the last one-step-ahead forecasts, up to `MAX_PLOTTED`, of the first target of the first series."""
    last = [forecast for forecast in forecasts if forecast.series == forecasts[0].series][-1]
    last = Forecasts(last.series, last.origins[-MAX_PLOTTED:], last.forecasts[-MAX_PLOTTED:])
    prepared, steps = prepared_series[last.series], last.origins + 1
    times = steps + 1 if prepared.series.dates is None else prepared.series.dates[steps]
    low, high = INTERVALS['90%']
    band = (last.forecasts[:, 0, 0, low], last.forecasts[:, 0, 0, high]) if last.forecasts.shape[-1] > 1 else None
    name = preprocessing['targets'][0]
    return ForecastCurve(name, times, actual(prepared, last.origins, 1)[:, 0, 0], last.points[:, 0, 0], band)
