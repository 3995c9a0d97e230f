"""Forecasting of time series: a model reads a series step by step and forecasts the next H steps after each step.

Axes in addition to those in `seqjax`: C target columns, H forecast horizon in steps, K numbers of a forecast value: 1
(point), 2 (mean, log of the standard deviation) or 5 (quantiles). A model reads and returns scaled values: minus the
mean of the training split, divided by its standard deviation, per series and column.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from seqjax import config, options
from seqjax.datasets import (
    forecast_batching,
    forecast_heads,
    forecast_preprocessing,
    forecast_report,
    forecast_seasons,
    forecast_series,
    schemas,
)
from seqjax.datasets.baselines import series_baselines
from seqjax.datasets.baselines.series_baselines import BaselineFn
from seqjax.datasets.dataset import Dataset, ItemScores, MetricSpec, PredictionInputs
from seqjax.datasets.forecast_batching import EvalRows, Forecasts, OriginRanges, Split
from seqjax.datasets.forecast_preprocessing import PreparedSeries
from seqjax.datasets.readers import date_columns, dates, summary
from seqjax.datasets.readers.dates import Frequency
from seqjax.datasets.readers.table_columns import Series
from seqjax.datasets.readers.tables import SeriesTable
from seqjax.errors import UserError

MIN_STEPS_PER_EPOCH = 25  # minimum of steps_per_epoch, since an evaluation costs more than a training step
FREQUENCY_RATIO = 4.0  # times between rows that differ by more than this factor have different frequencies


def dataset(
    name: str,
    table: SeriesTable,
    splits: Sequence[Split],
    preprocessing: dict[str, Any],
    *,
    batch_size: int,
    order: int | None = None,
) -> Dataset:
    """Returns the Dataset for forecasting the target columns of a file.

    Args:
      name: name of the file.
      table: series of the file.
      splits: the Split of each series, in the order of the table.
      preprocessing: the settings covariates, date, id, mask, calendar, seasons, lag ('season' for the best season),
        horizon, window, strategy, likelihood, skip_short, header and separator. The Dataset has a copy to which fitted
        values are added, such as scales.
      batch_size: B.
      order: order of the autoregression baseline; None selects it by AIC for each series and target.

    Raises:
      UserError: a series is too short or constant and not skipped, a split has no target value, or a flag does not fit
        the file. The message names the series, column or flag.
    """
    table, splits, scales, left_out = forecast_series.usable_series(name, table, splits, preprocessing, order)
    preprocessing = preprocessing | {'scales': scales, 'left_out': list(left_out)}
    preprocessing = _fit_preprocessing(name, table, splits, preprocessing)
    prepared_series = [forecast_preprocessing.prepare_series(name, series, preprocessing) for series in table.series]
    horizon = preprocessing['horizon']
    lengths = [prepared.steps for prepared in prepared_series]
    train = [_first_steps(prepared, split.validation) for prepared, split in zip(prepared_series, splits, strict=True)]
    before_test = [_first_steps(prepared, split.test) for prepared, split in zip(prepared_series, splits, strict=True)]
    data, batch = forecast_batching.training_windows(train, preprocessing, batch_size)
    origins = {
        split_name: forecast_batching.origin_ranges(split_name, splits, lengths, horizon)
        for split_name in config.SPLITS
    }
    eval_rows = partial(forecast_batching.evaluation_rows, window=preprocessing['window'], batch_size=batch_size)
    validation_rows = eval_rows([prepared.steps for prepared in before_test])
    validation_rows = forecast_batching.select_rows(validation_rows, origins['validation'])
    test_rows = forecast_batching.select_rows(eval_rows(lengths), origins['test'])
    test_rows = forecast_batching.pad_to_tile(test_rows)
    baselines = functools.cache(partial(series_baselines.baselines, prepared_series, preprocessing, splits, order))
    forecast_series.check_targets(name, prepared_series, origins, horizon)

    return Dataset(
        name=name,
        description=forecast_report.describe(table, preprocessing, prepared_series, splits)
        + forecast_series.left_out_lines(left_out),
        spec=forecast_heads.spec(preprocessing),
        postprocess=forecast_heads.postprocess(preprocessing),
        preprocessing=preprocessing,
        loss_fn=forecast_heads.loss_fn(preprocessing),
        batch=batch,
        data=data,
        train_plus_validation=lambda: forecast_batching.training_windows(before_test, preprocessing, batch_size)[0],
        steps_per_epoch=max(MIN_STEPS_PER_EPOCH, math.ceil(int(data['ends'][-1]) / batch_size)),
        validation=forecast_batching.evaluation_batches(
            before_test, preprocessing, validation_rows, origins['validation']
        ),
        metric=MetricSpec('RMSE', root=True, unit='' if preprocessing['original_units'] else 'training SD'),
        **_test_fields(prepared_series, preprocessing, test_rows, origins, baselines),
    )


def _test_fields(
    prepared_series: Sequence[PreparedSeries],
    preprocessing: Mapping[str, Any],
    rows: EvalRows,
    origins: Mapping[str, OriginRanges],
    baselines: Callable[[str], Mapping[str, BaselineFn]],
) -> dict[str, Any]:
    """Returns the fields test, items, baselines, summary and figure_data of a Dataset."""
    original_units, test = preprocessing['original_units'], origins['test']

    def forecasts(predictions: np.ndarray) -> list[Forecasts]:
        return list(forecast_batching.collect_forecasts(predictions, prepared_series, rows, test))

    def baseline_items(name: str, split_name: str) -> ItemScores:
        baseline_forecasts = baselines(split_name)[name](origins[split_name])
        return forecast_report.items(baseline_forecasts, prepared_series, original_units)

    def summarize(predictions: np.ndarray) -> list[str]:
        by_name = {'model': forecasts(predictions)}
        by_name |= {name: baseline(test) for name, baseline in baselines('test').items()}
        return forecast_report.summarize(by_name, prepared_series, preprocessing)

    batches = forecast_batching.evaluation_batches(prepared_series, preprocessing, rows, test)
    report = prepared_series, preprocessing
    return {
        'test': PredictionInputs(batches, lambda x: forecast_report.table_of(forecasts(x), *report)),
        'items': lambda x: forecast_report.items(forecasts(x), prepared_series, original_units),
        'baselines': {name: partial(baseline_items, name) for name in baselines('validation')},
        'summary': summarize,
        'figure_data': lambda x: forecast_report.curve(forecasts(x), *report),
    }


OPTIONAL_NAME = schemas.optional(schemas.text(1))
SCHEMA = {
    'targets': schemas.list_of(schemas.text(1), 1, distinct=True),
    'covariates': schemas.NAMES,
    'date': OPTIONAL_NAME,
    'id': OPTIONAL_NAME,
    'mask': schemas.BOOLEAN,
    'calendar': schemas.BOOLEAN,
    'lag': schemas.optional(schemas.integer(1)),
    'horizon': schemas.integer(1),
    'window': schemas.integer(1),
    'strategy': schemas.choice('direct', 'recursive'),
    'likelihood': schemas.choice(*forecast_heads.NUM_OUTPUTS),
    'cycles': schemas.list_of(schemas.choice(*forecast_preprocessing.CYCLES), distinct=True),
    'original_units': schemas.BOOLEAN,
}
LATER = {  # keys that a run of an earlier version may lack
    'header': schemas.optional(schemas.list_of(schemas.text(), 1, distinct=True)),
    'separator': schemas.optional(schemas.text(1)),
    'left_out': schemas.optional(schemas.list_of(schemas.text(), distinct=True)),
}
MAX_COUNTS = {
    'months': 12_000,
    'ends of months': 12_000,
    'weekdays': 1,
    'microseconds': 10**16,
}  # maximum count of each unit of a Frequency


def check_preprocessing(preprocessing: Any, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the preprocessing that was read from a run directory, unchanged.

    Raises UserError if it is invalid, or contradicts `settings`, the flags of the run.
    """
    copied = ('date', 'id', 'horizon', 'window', 'strategy', 'likelihood', 'calendar')
    implied = {'covariates': list(settings['covariates'] or ()), 'mask': settings['missing'] == 'mask'}
    schemas.check(preprocessing, SCHEMA, {name: settings[name] for name in copied} | implied)
    schemas.check(preprocessing, {name: rule for name, rule in LATER.items() if name in preprocessing})
    lag = {
        'last': preprocessing['lag'] == 1,
        'none': preprocessing['lag'] is None,
        'season': (preprocessing['lag'] or 0) > 1,
    }
    schemas.require(lag[settings['residual']], f'lag={preprocessing["lag"]}, but --residual={settings["residual"]}')
    columns, scales, frequency = (
        len(preprocessing['targets']) + len(preprocessing['covariates']),
        *map(preprocessing.get, ('scales', 'frequency')),
    )
    schemas.require(
        settings['target'] in (None, preprocessing['targets']),
        f'targets={preprocessing["targets"]}, but --target={settings["target"]}',
    )
    schemas.require(
        isinstance(scales, dict)
        and len(scales) > 0
        and all(isinstance(rows, list) and len(rows) == columns for rows in scales.values())
        and all(
            forecast_heads.SCALE.holds(row) and len(row) == 2 and row[1] > 0 for rows in scales.values() for row in rows
        ),
        f'scales that are not [mean, positive standard deviation] for each series and each of {columns} columns',
    )
    schemas.require(
        frequency is None
        and settings['date'] is None
        or isinstance(frequency, list)
        and len(frequency) == 2
        and frequency[0] in MAX_COUNTS
        and schemas.integer(1, MAX_COUNTS[frequency[0]]).holds(frequency[1]),
        f'frequency={str(frequency)[:80]}, which must be [unit, count] with counts up to {MAX_COUNTS}, or '
        'null without --date',
    )
    schemas.require(
        bool(preprocessing['cycles']) == preprocessing['calendar'],
        f'cycles={preprocessing["cycles"]}, but --calendar={preprocessing["calendar"]}',
    )
    schemas.require(
        preprocessing['original_units'] == (len(scales) * len(preprocessing['targets']) == 1),
        f'original_units={preprocessing["original_units"]}, which must be True for one target of one series, '
        'otherwise False',
    )
    return preprocessing


def prediction_inputs(
    name: str,
    table: SeriesTable,
    preprocessing: Mapping[str, Any],
    *,
    batch_size: int,
    origins: OriginRanges | None = None,
) -> PredictionInputs:
    """Returns the PredictionInputs of a file: forecasts from every row, or from the rows in the ranges `origins`.

    `origins` has a range for each series that training did not exclude; excluded series are not predicted. Forecasts
    from the last rows reach beyond the end of the file.

    Raises UserError if a series or a value does not fit the training data, or no series can be predicted.
    """
    preprocessing = {**preprocessing, 'dates': list(table.dates)}
    series, left_out = known_series(name, table, preprocessing)
    _check_dates(name, series, preprocessing)
    prepared_series = [forecast_preprocessing.prepare_series(name, each, preprocessing) for each in series]
    lengths = [prepared.steps for prepared in prepared_series]
    ranges = [(0, length) for length in lengths] if origins is None else origins
    rows = forecast_batching.evaluation_rows(lengths, preprocessing['window'], batch_size)
    rows = forecast_batching.pad_to_tile(forecast_batching.select_rows(rows, ranges))
    count = sum(stop - first for first, stop in ranges)
    return PredictionInputs(
        forecast_batching.evaluation_batches(prepared_series, preprocessing, rows, ranges),
        lambda predictions: forecast_report.table_of(
            forecast_batching.collect_forecasts(predictions, prepared_series, rows, ranges),
            prepared_series,
            preprocessing,
        ),
        [
            f'{name}: {sum(lengths):,} rows in {len(prepared_series)} series, {count:,} forecast origins',
            *([f'not predicted, as not trained on: {options.some(map(repr, left_out), 5)}'] if left_out else []),
            *summary.lines(table),
            *([forecast_report.dates_line(table)] if table.columns.date is not None else []),
        ],
    )


def known_series(name: str, table: SeriesTable, preprocessing: Mapping[str, Any]) -> tuple[list[Series], list[str]]:
    """Returns the series of a file without the series that training excluded, and the names of the excluded ones.

    Raises UserError if training excluded all of them.
    """
    left_out = [series.name for series in table.series if series.name in preprocessing.get('left_out', ())]
    if len(left_out) == len(table.series):
        named = options.some(map(repr, left_out), 5)
        raise UserError(
            f'{name} has only series that --skip_short excluded from training: {named}; use a file with other series'
        )
    return [series for series in table.series if series.name not in left_out], left_out


def _check_dates(name: str, series: Sequence[Series], preprocessing: Mapping[str, Any]) -> None:
    """Raises UserError if another date format fits the training frequency much better than the format of the run.

    It does if the longest series then has fewer than half as many irregular times between rows. Another format swaps
    day and month, or has seconds for milliseconds. Fewer than 3 dates are not checked.
    """
    longest = max(series, key=lambda series: len(series.rows))
    form = forecast_preprocessing.format_of(preprocessing)
    alternative = None if longest.dates is None else date_columns.other_reading(longest.dates, form.format)
    if not alternative or not preprocessing['frequency'] or len(longest.dates) < 3:
        return
    frequency = Frequency(*preprocessing['frequency'])

    def irregular_steps(local: np.ndarray) -> int:
        steps = np.diff(dates.instants(local, longest.offsets)) / np.timedelta64(1, 'D') / frequency.days()
        return int(((steps < 1 / FREQUENCY_RATIO) | (steps > FREQUENCY_RATIO)).sum())

    if 2 * irregular_steps(alternative[1]) < irregular_steps(longest.dates):
        raise UserError(
            f'{name}: the dates{longest.phrase} are {frequency.words()} apart, as in training, only if read in the '
            f'format {alternative[0]}, but the run reads the format {form}; write the dates in the format of the run'
        )


def _fit_preprocessing(
    name: str, table: SeriesTable, splits: Sequence[Split], preprocessing: dict[str, Any]
) -> dict[str, Any]:
    """Returns `preprocessing` with the keys added that depend on the file.

    These are targets, number formats, original_units and the keys of `_seasons`; frequency, date format and calendar
    cycles belong to the longest series.
    """
    columns = table.columns
    longest = max(table.series, key=lambda series: len(series.rows))
    fitted = {'targets': list(columns.targets), 'cycles': [], 'frequency': None, 'dates': None}
    fitted['numbers'] = {name: list(format) for name, format in table.formats.items()}
    if columns.date is not None:
        fitted |= {'frequency': list(dates.infer_frequency(longest.dates, longest.offsets)), 'dates': list(table.dates)}
    if preprocessing['calendar']:
        fitted['cycles'] = forecast_preprocessing.cycles_of(longest.dates)
        if not fitted['cycles']:
            raise UserError(
                f'--calendar=true has no effect on {name}, whose rows are a year or more apart; remove --calendar'
            )
    fitted |= _seasons(name, table, splits, preprocessing | fitted)
    # Errors of several series or targets are comparable only in units of their training deviations.
    return preprocessing | fitted | {'original_units': len(table.series) * len(columns.targets) == 1}


def _seasons(
    name: str, table: SeriesTable, splits: Sequence[Split], preprocessing: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the seasons of the baselines, those too long for the training split, the best one on validation, and lag.

    The best season replaces the lag 'season'; it is None if there are no seasons.
    """
    candidates = set(preprocessing['seasons'] or ()) | set(
        forecast_seasons.usual(Frequency(*preprocessing['frequency'])) if preprocessing['frequency'] else ()
    )
    seasons = forecast_seasons.fitting(sorted(candidates), splits)
    scaled = []
    for series in table.series:
        mean, deviation = np.array(preprocessing['scales'][series.name or '']).T[:, : len(preprocessing['targets'])]
        scaled.append((series.values[:, : len(preprocessing['targets'])] - mean) / deviation)
    season = forecast_seasons.best(seasons, scaled, splits, preprocessing['horizon'])
    if preprocessing['lag'] == 'season' and season is None:
        raise UserError(
            f'--residual=season: the frequency of {name} has no usual season shorter than its training split; pass '
            'a shorter one as --season, or another --residual'
        )
    fitted = {'seasons': seasons, 'seasons_too_long': sorted(candidates - set(seasons)), 'season': season}
    return fitted | {'lag': season if preprocessing['lag'] == 'season' else preprocessing['lag']}


def _first_steps(prepared: PreparedSeries, stop: int) -> PreparedSeries:
    """Returns a series with inputs, values, valid and past cut to the first `stop` rows."""
    return prepared._replace(**{name: getattr(prepared, name)[:stop] for name in ('inputs', 'values', 'valid', 'past')})
