"""Forecasts of your own series: a table with a row for each point in time, from CSV, TSV or parquet.

    seqjax forecast --data=statsmodels:datasets/sunspots/sunspots.csv --target=SUNACTIVITY --date=YEAR \
        --validation_from=1881 --test_from=1921
    seqjax forecast --data=sales.csv --target=sold --date=day --id=shop --covariates=price --calendar \
        --horizon=14 --season=7 --head=quantile --workdir=runs/sales
    seqjax predict --workdir=runs/sales --data=sales_of_today.csv --out=forecasts.csv

The split is by time: each series has its training, its validation and its test part, one after the other. A forecast
belongs to the part in which all that it is about lies; what was read before may lie in the part before. Scores are over
rolling origins, a forecast from every step, with a model that stays as training left it. One of several series, or of
several targets, is in standard deviations of the training part of each.

What a model reads, per series and column: (value - mean) / standard deviation, both of the training part. It reads a
series from the beginning, also to predict; one of more than 4096 + 8 * --window rows in pieces of 4096, each after
8 * --window rows of context.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqjax import config
from seqjax.cli import dataset_experiment
from seqjax.cli.dataset_experiment import DatasetExperiment
from seqjax.cli.flag_tables import Flag
from seqjax.cli.forecast_stream import Following
from seqjax.cli.parsers import Checked, Choice, Fraction, Many, Name, Sign, Switch, Thousands, Whole
from seqjax.cli.settings import Settings
from seqjax.datasets import forecast_batching, forecast_heads, forecast_preprocessing, forecasting
from seqjax.datasets.dataset import Dataset, OnlinePredictor, Unseen
from seqjax.datasets.forecast_batching import Split
from seqjax.datasets.forecast_preprocessing import Unusable
from seqjax.datasets.readers import date_columns, date_formats, numbers, optional_packages, tables
from seqjax.datasets.readers.date_formats import DateFormat
from seqjax.datasets.readers.numbers import NumberFormat
from seqjax.datasets.readers.table_columns import Series
from seqjax.datasets.readers.table_sources import Columns
from seqjax.datasets.readers.tables import SeriesTable
from seqjax.errors import UserError

ALL = 'all'


class Forecast(DatasetExperiment):
    """Series of numbers, in time."""

    name = 'forecast'
    suffix = '.csv'
    OWN = {
        'target': Flag(Many(Name()), 'columns to forecast; by default the one column of numbers, where there is one'),
        'date': Flag(Name(), 'column of the date, which must rise'),
        'date_format': Flag(
            Checked(date_formats.check_format, f'strptime format | {" | ".join(date_formats.WORDS)}'),
            'format of the dates; by default the only one that fits all of them',
        ),
        'time_zone': Flag(
            Checked(date_formats.check_zone, 'time zone'),
            'time zone of the dates, such as Europe/Berlin; dates with an offset from UTC are converted to it',
        ),
        'id': Flag(Name(), 'column that says which series a row is of'),
        'covariates': Flag(Many(Name()), 'further columns of numbers that are known up to now'),
        'calendar': Flag(Switch(), 'read where in the year, week and day a row is, too, by --date'),
        'missing': Flag(
            Choice('refuse', 'mask'),
            'mask: a missing value is read as 0, beside a 1 that says so, and is left out of every score',
        ),
        'separator': Flag(Sign(), 'between columns of text; a file named .tsv has tabs'),
        'decimal': Flag(
            Choice(*numbers.DECIMAL), "decimal sign of numbers in text; '.' by default, if no column leaves it open"
        ),
        'thousands': Flag(
            Thousands(*numbers.THOUSANDS), "sign between groups of digits: 1,234 or 12,34,567; ' is the apostrophe"
        ),
        'validation': Flag(Fraction(), 'share of each series that settings and the end of training are chosen by'),
        'test': Flag(Fraction(), 'share of each series, its last, that is looked at once'),
        'validation_from': Flag(Name(), 'date, or without --date row of each series, at which validation begins'),
        'test_from': Flag(Name(), 'date, or without --date row of each series, at which the test begins'),
        'horizon': Flag(Whole(1), 'H: how many steps ahead are told'),
        'window': Flag(Whole(1), 'steps of a training sequence, over which gradients reach'),
        'strategy': Flag(
            Choice('direct', 'recursive'), 'tell all H steps at once, or one, and read it as known for the next'
        ),
        'head': Flag(
            Choice(*forecast_heads.NUMBERS),
            'a point by squared error; or intervals, too, by the likelihood of a Gaussian or by quantile losses',
        ),
        'relative_to': Flag(
            Choice('last', 'nothing', 'season'),
            'what the answer of the network is added to: the last value, nothing, or the value a season before (the '
            'season that is best on validation)',
        ),
        'season': Flag(
            Many(Whole(2)),
            'steps of a season, one or several: the value a season before is a baseline; with --date the usual seasons '
            'of its frequency are tried, too, such as 24 and 168 for hours',
        ),
        'ar_order': Flag(Whole(1, 1000), 'order of the autoregression to beat; by default that of the lowest AIC'),
        'skip_short': Flag(
            Switch(), 'leave out series (by --id) that are too short or constant to learn from, here and in predictions'
        ),
    }
    own_defaults = {
        **dict.fromkeys(('target', 'date', 'date_format', 'time_zone', 'id', 'covariates', 'decimal', 'thousands')),
        **dict.fromkeys(('validation_from', 'test_from', 'season', 'ar_order')),
        **{'calendar': False, 'missing': 'refuse', 'separator': ',', 'validation': 0.15, 'test': 0.15, 'horizon': 1},
        **{'window': 64, 'strategy': 'direct', 'head': 'point', 'relative_to': 'last', 'skip_short': False},
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
        names = ('date', 'id', 'horizon', 'window', 'strategy', 'head', 'calendar', 'skip_short')
        recipe = {name: options[name] for name in names} | {
            'covariates': list(columns.covariates),
            'mask': options['missing'] == 'mask',
            'header': list(table.names),
            'separator': table.separator,
            'seasons': options['season'],
            'lag': {'last': 1, 'nothing': None, 'season': 'season'}[options['relative_to']],
        }
        splits = _splits(path.name, table, options)
        how = {'batch_size': settings.train.batch_size, 'order': options['ar_order']}
        return forecasting.dataset(path.name, table, splits, recipe, **how)

    def check_recipe(self, settings: Settings, recipe: Any) -> Mapping[str, Any]:
        return forecasting.check_recipe(recipe, settings.options)

    spec = staticmethod(forecast_heads.spec)
    answers = staticmethod(forecast_heads.answers)

    def unseen(self, settings: Settings, recipe: Mapping[str, Any], path: str) -> Unseen:
        """From every origin, the last of which reach into the future; or from those of one part of the file."""
        options = settings.options
        file, part, origins = optional_packages.locate(path), options.get('part', ALL), None
        columns, dates = forecast_preprocessing.columns_of(recipe), forecast_preprocessing.format_of(recipe)
        table = _read(file, columns, options, dates, forecast_preprocessing.number_formats(recipe))
        if part != ALL:
            known, _ = forecasting.known_series(file.name, table, recipe)
            table = table._replace(series=known)
            lengths = [len(series.rows) for series in known]
            origins = forecast_batching.spans(part, _splits(file.name, table, options), lengths, recipe['horizon'])
            long = [0 <= first < stop for first, stop in origins]
            if not (any(long) if options.get('skip_short') else all(long)):
                raise UserError(
                    f'{file}{known[long.index(False)].phrase} is too short for a {part} part with '
                    f'--horizon={recipe["horizon"]}; use --part=all'
                )
            table = table._replace(series=[one for one, some in zip(known, long, strict=True) if some])
            origins = [span for span, some in zip(origins, long, strict=True) if some]
        return forecasting.unseen(file.name, table, recipe, batch_size=settings.train.batch_size, origins=origins)

    def stream(self, settings: Settings, recipe: Mapping[str, Any]) -> OnlinePredictor:
        """A line is a row, with the columns of the run's file in their order, or those that a header line names."""
        if recipe['strategy'] == 'recursive':
            raise UserError(
                '--stdin: the run has --strategy=recursive, which reads its own forecasts; train --strategy=direct'
            )
        following = Following(settings.options, recipe)
        return OnlinePredictor(
            following.parse,
            following.columns,
            following.values,
            following.restart,
            series=lambda: following.series,
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
    how = {name: options[name] for name in ('separator', 'decimal', 'thousands')}
    mask, bounds = options['missing'] == 'mask', dataset_experiment.bounds_of(options)
    return tables.read(path, columns, **how, formats=formats, dates=dates, mask=mask, bounds=bounds)


def _check_together(options: Mapping[str, Any]) -> None:
    """Raises UserError where two flags do not go together."""
    refusals = {
        '--calendar needs the column of the date: say --date': options['calendar'] and options['date'] is None,
        '--date_format is the format of a column of dates: pass --date': options['date_format'] and not options['date'],
        '--time_zone is that of a column of dates: pass --date': options['time_zone'] and not options['date'],
        '--relative_to=season needs the steps of a season: pass --season, or --date for the usual ones': (
            options['relative_to'] == 'season' and options['season'] is None and options['date'] is None
        ),
        '--strategy=recursive has no covariates of the future to read: leave out --covariates': (
            options['strategy'] == 'recursive' and options['covariates']
        ),
        '--strategy=recursive has no one value to feed back with --head=quantile: choose point or gaussian': (
            options['strategy'] == 'recursive' and options['head'] == 'quantile'
        ),
        '--validation_from and --test_from go together: say both, or neither': (
            (options['validation_from'] is None) != (options['test_from'] is None)
        ),
    }
    for sentence, wrong in refusals.items():
        if wrong:
            raise UserError(sentence)
    for part in config.SPLITS:
        if options['validation_from'] is None and not options[part]:
            raise UserError(f'--{part}=0 leaves no {part} part; give it a share, such as 0.15')
    if options['validation'] + options['test'] >= 1:
        raise UserError(f'--validation={options["validation"]} and --test={options["test"]} leave nothing to train on')


def _splits(name: str, table: SeriesTable, options: Mapping[str, Any]) -> list[Split]:
    """Returns the split of each series; a series that does not reach a named date gets one without a training part."""
    found, errors = [], []
    for series in table.series:
        try:
            found.append(split(name, series, options, table.dates))
        except Unusable as error:
            errors.append(error)
            found.append(Split(0, 0))
    if len(errors) == len(found):
        raise errors[0]
    return found


def split(name: str, series: Series, options: Mapping[str, Any], form: DateFormat) -> Split:
    """Where validation and test begin in a series: at the rows or dates that are named, or by shares."""
    count = len(series.rows)
    if options['validation_from'] is None:
        test = count - round(options['test'] * count)
        return Split(test - round(options['validation'] * count), test)
    found = Split(*(_place(name, series, flag, options[flag], form) for flag in ('validation_from', 'test_from')))
    if found.validation >= found.test:
        raise Unusable(
            f'--validation_from={options["validation_from"]} must lie before --test_from={options["test_from"]}'
            f', and in {name}{series.phrase} no row is between them'
        )
    return found


def _place(name: str, series: Series, flag: str, text: str, form: DateFormat) -> int:
    """The place of a row, or of a date (a local time unless it has an offset), in a series: not the first."""
    count = len(series.rows)
    if series.dates is None:
        place = int(text) - 1 if text.isascii() and text.isdigit() else -1
        kind = f'must be a row from 2 to {count}, as there is no --date' if count > 1 else 'needs more than one row'
    else:
        try:
            when = date_columns.parse(text, DateFormat(date_formats.ISO))
        except UserError as error:
            raise UserError(f'--{flag}={text} is not a date; write it as YYYY-MM-DD') from error
        if when.offset is not None and series.offsets is None:
            raise UserError(f'--{flag}={text} has an offset from UTC, and the dates of {name} do not; leave it out')
        times = series.dates >= when.local if when.offset is None else series.instants >= when.instant
        place = int(times.argmax()) if times.any() else count
        offsets = None if series.offsets is None else series.offsets[[0, -1]]
        kind = 'must be a date after {} and up to {}'.format(*date_formats.write(series.dates[[0, -1]], offsets, form))
    if not 0 < place < count:
        raise Unusable(f'--{flag}={text} {kind}, for {name}{series.phrase}')
    return place


KIND = Forecast()
COMMAND = KIND.command(__doc__)
FLAGS, run, main = KIND.FLAGS, KIND.run, COMMAND.main
