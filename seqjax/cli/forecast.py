r"""Forecast time series from a CSV, TSV or Parquet file.

    seqjax forecast --data=statsmodels:datasets/sunspots/sunspots.csv --target=SUNACTIVITY --date=YEAR \
        --validation_from=1881 --test_from=1921
    seqjax forecast --data=sales.csv --target=sold --date=day --id=shop --covariates=price --calendar \
        --horizon=14 --season=7 --likelihood=quantile --workdir=runs/sales
    seqjax predict --workdir=runs/sales --data=sales_of_today.csv --out=forecasts.csv

The file has a row for each point in time. Each series is split by time into training, validation and test rows. A
forecast belongs to the split that contains all of its targets; its inputs may be in the split before. Metrics are over
rolling origins: the trained model forecasts from every time step. With several series or targets, errors are in units
of the standard deviation of each target in the training split of its series.

The inputs of a model are standardized with the mean and standard deviation of the training split, per series and
column. The model reads a series from its first row, also for predictions. In a series of more than 4096 + 8 * --window
rows, forecasts after these are made in pieces of 4096 rows, each after 8 * --window rows of context.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqjax import config
from seqjax.cli import dataset_experiment
from seqjax.cli.dataset_experiment import DatasetExperiment
from seqjax.cli.flag_tables import Flag
from seqjax.cli.forecast_stream import ForecastStream
from seqjax.cli.parsers import (
    BoolParser,
    CharacterParser,
    CheckedParser,
    ChoiceParser,
    FractionParser,
    IntParser,
    ListParser,
    NameParser,
    ThousandsParser,
)
from seqjax.cli.settings import Settings
from seqjax.datasets import forecast_batching, forecast_heads, forecast_preprocessing, forecasting
from seqjax.datasets.dataset import Dataset, OnlinePredictor, PredictionInputs
from seqjax.datasets.forecast_batching import Split
from seqjax.datasets.forecast_preprocessing import UnusableSeriesError
from seqjax.datasets.readers import date_columns, date_formats, numbers, optional_packages, tables
from seqjax.datasets.readers.date_formats import DateFormat
from seqjax.datasets.readers.numbers import NumberFormat
from seqjax.datasets.readers.table_columns import Series
from seqjax.datasets.readers.table_sources import Columns
from seqjax.datasets.readers.tables import SeriesTable
from seqjax.errors import UserError


class Forecast(DatasetExperiment):
    """Experiment on forecasting the time series of a table."""

    name = 'forecast'
    suffix = '.csv'
    OWN = {
        'target': Flag(
            ListParser(NameParser()), 'columns to forecast; by default the only numeric column without another role'
        ),
        'date': Flag(NameParser(), 'column of the dates, which must increase within each series'),
        'date_format': Flag(
            CheckedParser(date_formats.check_format, f'strptime format | {" | ".join(date_formats.WORDS)}'),
            'format of the dates; by default the only known format that fits all of them',
        ),
        'time_zone': Flag(
            CheckedParser(date_formats.check_zone, 'time zone'),
            'time zone of the dates, such as Europe/Berlin; dates with an offset from UTC are converted to it',
        ),
        'id': Flag(NameParser(), 'column with the name of the series of each row; by default the file is one series'),
        'covariates': Flag(
            ListParser(NameParser()),
            'numeric columns that the model reads in addition to the targets, up to the time of the forecast',
        ),
        'calendar': Flag(
            BoolParser(), 'add the time of year, week and day as inputs, each as sine and cosine (needs --date)'
        ),
        'missing': Flag(
            ChoiceParser('refuse', 'mask'),
            'missing values: refuse stops with an error; mask sets them to 0 after scaling, adds an input for each '
            'column that is 1 where its value is missing, and excludes missing targets from loss and metrics',
        ),
        'separator': Flag(
            CharacterParser(), 'column separator of text files, a character or tab; in .tsv files, a comma means tab'
        ),
        'decimal': Flag(
            ChoiceParser(*numbers.DECIMAL),
            "decimal separator of numbers in text; by default '.', and an ambiguous column is an error",
        ),
        'thousands': Flag(
            ThousandsParser(*numbers.THOUSANDS),
            "thousands separator of numbers in text, as in 1,234; by default none; ' is the apostrophe",
        ),
        'validation_fraction': Flag(
            FractionParser(),
            'fraction of the rows of each series for the validation split, before the test split; used for early '
            'stopping and model selection',
        ),
        'test_fraction': Flag(FractionParser(), 'fraction of the rows of each series for the test split, at its end'),
        'validation_from': Flag(
            NameParser(),
            'first date of the validation split or, without --date, number of its first row; needs --test_from, and '
            'replaces --validation_fraction',
        ),
        'test_from': Flag(
            NameParser(),
            'first date of the test split or, without --date, number of its first row; needs --validation_from, and '
            'replaces --test_fraction',
        ),
        'horizon': Flag(IntParser(1), 'forecast horizon H: a forecast is for each of the next H time steps'),
        'window': Flag(IntParser(1), 'time steps of a training sequence (truncated backpropagation)'),
        'strategy': Flag(
            ChoiceParser('direct', 'recursive'),
            'direct: one output for all H steps; recursive: one-step forecasts that are fed back as inputs',
        ),
        'likelihood': Flag(
            ChoiceParser(*forecast_heads.NUM_OUTPUTS),
            'point: the mean, trained with the squared error; gaussian: mean and standard deviation, trained with the '
            'negative log-likelihood; quantile: five quantiles, trained with quantile losses',
        ),
        'residual': Flag(
            ChoiceParser('last', 'season', 'none'),
            'baseline that the output of the network is added to: last (the last value), season (the value one season '
            'before, for the season that is best on validation) or none',
        ),
        'season': Flag(
            ListParser(IntParser(2)),
            'seasons in time steps, for seasonal naive baselines; with --date, the usual seasons of the frequency of '
            'the dates are added, such as 24 and 168 for hourly rows',
        ),
        'ar_order': Flag(
            IntParser(1, 1000),
            'order of the autoregression baseline; by default the order with the lowest AIC for each series and target',
        ),
        'skip_short': Flag(
            BoolParser(),
            'exclude series (of --id) that are too short or constant from training, and then from predictions until '
            'the run is trained again; by default they are an error',
        ),
    }
    own_defaults = {
        **dict.fromkeys(('target', 'date', 'date_format', 'time_zone', 'id', 'covariates', 'decimal', 'thousands')),
        **dict.fromkeys(('validation_from', 'test_from', 'season', 'ar_order')),
        **{
            'calendar': False,
            'missing': 'refuse',
            'separator': ',',
            'validation_fraction': 0.15,
            'test_fraction': 0.15,
            'horizon': 1,
        },
        **{'window': 64, 'strategy': 'direct', 'likelihood': 'point', 'residual': 'last', 'skip_short': False},
        'hidden': 32,
    }

    def check(self, values: Mapping[str, Any]) -> Settings:
        settings = super().check(values)
        _check_together(settings.options)
        return settings

    def dataset(self, settings: Settings) -> Dataset:
        options = settings.options
        path = optional_packages.locate(options['data'])
        columns = Columns(options['target'], options['covariates'] or (), options['date'], options['id'])
        dates = DateFormat.of_flags(options['date_format'], options['time_zone'])
        table = _read(path, columns, options, dates)
        names = ('date', 'id', 'horizon', 'window', 'strategy', 'likelihood', 'calendar', 'skip_short')
        preprocessing = {name: options[name] for name in names} | {
            'covariates': list(columns.covariates),
            'mask': options['missing'] == 'mask',
            'header': list(table.names),
            'separator': table.separator,
            'seasons': options['season'],
            'lag': {'last': 1, 'none': None, 'season': 'season'}[options['residual']],
        }
        splits = _splits(path.name, table, options)
        training = {'batch_size': settings.train.batch_size, 'order': options['ar_order']}
        return forecasting.dataset(path.name, table, splits, preprocessing, **training)

    def check_preprocessing(self, settings: Settings, preprocessing: Any) -> Mapping[str, Any]:
        return forecasting.check_preprocessing(preprocessing, settings.options)

    spec = staticmethod(forecast_heads.spec)
    postprocess = staticmethod(forecast_heads.postprocess)

    def prediction_inputs(
        self, settings: Settings, preprocessing: Mapping[str, Any], path: str, split: str = 'all'
    ) -> PredictionInputs:
        """Returns the inputs for forecasts from every row of a file, or from the rows whose targets are all in `split`.

        With split='all', the last forecasts reach beyond the end of the file.
        """
        options = settings.options
        file, origins = optional_packages.locate(path), None
        columns, dates = (
            forecast_preprocessing.columns_of(preprocessing),
            forecast_preprocessing.format_of(preprocessing),
        )
        table = _read(file, columns, options, dates, forecast_preprocessing.number_formats(preprocessing))
        if split != 'all':
            series_list, _ = forecasting.known_series(file.name, table, preprocessing)
            table = table._replace(series=series_list)
            lengths = [len(series.rows) for series in series_list]
            origins = forecast_batching.origin_ranges(
                split, _splits(file.name, table, options), lengths, preprocessing['horizon']
            )
            is_long = [0 <= first < stop for first, stop in origins]
            if not (any(is_long) if options.get('skip_short') else all(is_long)):
                raise UserError(
                    f'{file}: the rows{series_list[is_long.index(False)].phrase} do not reach the {split} split, or '
                    f'are too few in it for --horizon={preprocessing["horizon"]}; use --split=all'
                )
            table = table._replace(series=list(itertools.compress(series_list, is_long)))
            origins = list(itertools.compress(origins, is_long))
        return forecasting.prediction_inputs(
            file.name, table, preprocessing, batch_size=settings.train.batch_size, origins=origins
        )

    def stream(self, settings: Settings, preprocessing: Mapping[str, Any]) -> OnlinePredictor:
        """Returns the predictor for --stdin: a line is a row with the columns of the training file or of a header line.

        Raises:
          UserError: the run has --strategy=recursive.
        """
        if preprocessing['strategy'] == 'recursive':
            raise UserError('--stdin does not support a run with --strategy=recursive; train with --strategy=direct')
        stream = ForecastStream(settings.options, preprocessing)
        return OnlinePredictor(
            stream.parse,
            stream.columns,
            stream.values,
            stream.restart,
            series=lambda: stream.series,
            rows=forecast_batching.TILE,
            takes_empty=True,
        )


def _read(
    path: Path,
    columns: Columns,
    options: Mapping[str, Any],
    dates: DateFormat,
    formats: Mapping[str, NumberFormat] | None = None,
) -> SeriesTable:
    format_flags = {name: options[name] for name in ('separator', 'decimal', 'thousands')}
    mask, bounds = options['missing'] == 'mask', dataset_experiment.bounds_of(options)
    return tables.read(path, columns, **format_flags, formats=formats, dates=dates, mask=mask, bounds=bounds)


def _check_together(options: Mapping[str, Any]) -> None:
    """Raises UserError if flags are incompatible, or the fractions of the splits leave a split empty."""
    conflicts = {
        '--calendar needs --date; pass the column of the dates as --date, or remove --calendar': options['calendar']
        and options['date'] is None,
        f'--date_format={options["date_format"]} needs --date; pass the column of the dates as --date': (
            options['date_format'] and not options['date']
        ),
        f'--time_zone={options["time_zone"]} needs --date; pass the column of the dates as --date': (
            options['time_zone'] and not options['date']
        ),
        '--residual=season needs a season; pass --season, or --date to use the usual seasons of its frequency': (
            options['residual'] == 'season' and options['season'] is None and options['date'] is None
        ),
        '--strategy=recursive does not support --covariates, whose future values are unknown; remove one of the two': (
            options['strategy'] == 'recursive' and options['covariates']
        ),
        '--strategy=recursive does not support --likelihood=quantile; use --likelihood=point or gaussian': (
            options['strategy'] == 'recursive' and options['likelihood'] == 'quantile'
        ),
        '--validation_from and --test_from must be set together; pass both or none': (
            (options['validation_from'] is None) != (options['test_from'] is None)
        ),
    }
    for message, is_wrong in conflicts.items():
        if is_wrong:
            raise UserError(message)
    for name in config.SPLITS:
        if options['validation_from'] is None and not options[f'{name}_fraction']:
            raise UserError(f'--{name}_fraction=0 leaves an empty {name} split; use a fraction such as 0.15')
    if options['validation_from'] is None and options['validation_fraction'] + options['test_fraction'] >= 1:
        raise UserError(
            f'--validation_fraction={options["validation_fraction"]} and --test_fraction={options["test_fraction"]} '
            'leave an empty training split; use fractions whose sum is below 1'
        )


def _splits(name: str, table: SeriesTable, options: Mapping[str, Any]) -> list[Split]:
    """Returns the split of each series; Split(0, 0) if --validation_from and --test_from cannot split the series.

    Raises:
      UserError: no series can be split, or a flag is not a date.
    """
    splits, errors = [], []
    for series in table.series:
        try:
            splits.append(split_series(name, series, options, table.dates))
        except UnusableSeriesError as error:
            errors.append(error)
            splits.append(Split(0, 0))
    if len(errors) == len(splits):
        raise errors[0]
    return splits


def split_series(name: str, series: Series, options: Mapping[str, Any], form: DateFormat) -> Split:
    """Returns the indices of the first validation and test rows of a series.

    They are set by --validation_from and --test_from or, without these, by the fractions, whose splits may be empty.

    Raises:
      UserError: a flag is not a date, or has an offset from UTC and the dates of the series have none.
      UnusableSeriesError: a flag selects no row or the first one, or the validation row is not before the test row.
    """
    count = len(series.rows)
    if options['validation_from'] is None:
        test = count - round(options['test_fraction'] * count)
        return Split(test - round(options['validation_fraction'] * count), test)
    split = Split(*(_row(name, series, flag, options[flag], form) for flag in ('validation_from', 'test_from')))
    if split.validation >= split.test:
        raise UnusableSeriesError(
            f'--validation_from={options["validation_from"]} must be at least one row before '
            f'--test_from={options["test_from"]}, for {name}{series.phrase}'
        )
    return split


def _row(name: str, series: Series, flag: str, text: str, form: DateFormat) -> int:
    """Returns the index, from 0, of the row of a series that --`flag` selects by `text`.

    It is the first row at or after a date or, in a series without dates, the row of a number from 1. A date without an
    offset from UTC is a local time of the file.

    Raises:
      UserError: `text` is not a date, or has an offset from UTC and the dates of the file have none.
      UnusableSeriesError: there is no such row, it is the first one, or, without dates, `text` is not a number.
    """
    count = len(series.rows)
    if series.dates is None:
        row = int(text) - 1 if text.isascii() and text.isdigit() else -1
        requirement = (
            f'must be a row number from 2 to {count} (without --date)' if count > 1 else 'needs more than one row'
        )
    else:
        try:
            date = date_columns.parse(text, DateFormat(date_formats.ISO))
        except UserError as error:
            raise UserError(f'--{flag}={text} is not a date; use the format YYYY-MM-DD') from error
        if date.offset is not None and series.offsets is None:
            raise UserError(
                f'--{flag}={text} has an offset from UTC, but the dates of {name} do not; remove the offset'
            )
        times = series.dates >= date.local if date.offset is None else series.instants >= date.instant
        row = int(times.argmax()) if times.any() else count
        offsets = None if series.offsets is None else series.offsets[[0, -1]]
        requirement = 'must be a date after {} and up to {}'.format(
            *date_formats.write(series.dates[[0, -1]], offsets, form)
        )
    if not 0 < row < count:
        raise UnusableSeriesError(f'--{flag}={text} {requirement}, for {name}{series.phrase}')
    return row


EXPERIMENT = Forecast()
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main
