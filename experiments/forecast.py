"""Forecasts of your own series: a table with a row for each point in time, from CSV, TSV or parquet.

    python -m experiments.forecast --data=statsmodels:datasets/sunspots/sunspots.csv --target=SUNACTIVITY --date=YEAR \\
        --validation_from=1881 --test_from=1921
    python -m experiments.forecast --data=sales.csv --target=sold --date=day --id=shop --covariates=price --calendar \\
        --horizon=14 --season=7 --head=quantile
    python -m experiments.predict --workdir=runs/forecast/lstm --data=sales_of_today.csv --out=forecasts.csv

The split is by time: each series has its training, its validation and its test part, one after the other. A forecast
belongs to the part in which all that it is about lies; what was read before may lie in the part before. Scores are over
rolling origins, a forecast from every step, with a model that stays as training left it. One of several series, or of
several targets, is in standard deviations of the training part of each.

What a model reads, per series and column: (value - mean) / standard deviation, both of the training part. It reads a
series from the beginning, also to predict; one of more than 4096 + 8 * --window rows in pieces of 4096, each after
8 * --window rows of context.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import launch
from experiments.fitting import Kind, bounds_of
from experiments.launch import Choice, Flag, Fraction, Many, Name, Switch, Whole
from seqjax.dataset import SPLITS, Dataset, Form, Stream, Unseen
from seqjax.datasets import forecast
from seqjax.datasets.forecast_rows import Ahead, Split, spans
from seqjax.datasets.forecast_series import columns_of, number_formats, ready
from seqjax.datasets.forecast_told import INTERVALS
from seqjax.files import UserError
from seqjax.readers import dates, numbers, tables
from seqjax.readers.extra import locate
from seqjax.readers.numbers import NumberFormat, parse_number
from seqjax.readers.tables import Columns, Series, Table
from seqjax.task import Batch

ALL = 'all'


class Sign(Name):
    """One character, or the word tab."""

    def parse(self, argument: Any) -> str:
        if argument in ('tab', '\\t'):
            return '\t'
        if (
            not isinstance(argument, str)
            or len(argument) != 1
            or not argument.isascii()
            or argument.isalnum()
            or argument in '"\r\n\0'
        ):
            raise ValueError('must be one character that is no letter and no digit, or tab')
        return argument

    def flag_type(self) -> str:
        return 'character'


class Thousands(Choice):
    """The name of a thousands sign, or one of its characters."""

    def parse(self, argument: Any) -> str:
        names = {sign: name for name, signs in numbers.THOUSANDS.items() for sign in signs}
        return super().parse(names.get(argument, argument) if isinstance(argument, str) else argument)


class Forecast(Kind):
    """Series of numbers, in time."""

    name = 'forecast'
    about = 'Forecasts series of numbers from a table with a row for each point in time.'
    OWN = {
        'target': Flag(Many(Name()), 'columns to forecast; by default the one column of numbers, where there is one'),
        'date': Flag(Name(), 'column of the date, which must rise'),
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
            Choice(*forecast.NUMBERS),
            'a point by squared error; or intervals, too, by the likelihood of a Gaussian or by quantile losses',
        ),
        'relative_to': Flag(
            Choice('last', 'nothing', 'season'),
            'what the answer of the network is added to: the last value, nothing, or that of a --season before',
        ),
        'season': Flag(Whole(2), 'steps of a season; the value of the season before is a baseline then'),
        'ar_order': Flag(Whole(1, 1000), 'order of the autoregression to beat; by default that of the lowest AIC'),
    }
    own_defaults = {
        **{'target': None, 'date': None, 'id': None, 'covariates': None, 'calendar': False, 'missing': 'refuse'},
        **{
            'separator': ',',
            'decimal': None,
            'thousands': None,
            'validation': 0.15,
            'test': 0.15,
            'validation_from': None,
        },
        **{'test_from': None, 'horizon': 1, 'window': 64, 'strategy': 'direct', 'head': 'point'},
        **{'relative_to': 'last', 'season': None, 'ar_order': None, 'hidden': 32},
    }

    def check(self, values: Mapping[str, Any]) -> dict[str, Any]:
        settings = super().check(values)
        _check_together(settings)
        return settings

    def dataset(self, settings: Mapping[str, Any]) -> Dataset:
        path = locate(settings['data'])
        columns = Columns(settings['target'], settings['covariates'] or (), settings['date'], settings['id'])
        table = _read(path, columns, settings)
        names = ('date', 'id', 'season', 'horizon', 'window', 'strategy', 'head', 'calendar')
        recipe = {name: settings[name] for name in names} | {
            'covariates': list(columns.covariates),
            'mask': settings['missing'] == 'mask',
            'lag': {'last': 1, 'nothing': None, 'season': settings['season']}[settings['relative_to']],
        }
        splits = [split(path.name, series, settings) for series in table.series]
        how = {'batch_size': settings['batch_size'], 'order': settings['ar_order']}
        return forecast.dataset(path.name, table, splits, recipe, **how)

    def check_recipe(self, settings: Mapping[str, Any], recipe: Any) -> Mapping[str, Any]:
        return forecast.check_recipe(recipe, settings)

    def form(self, settings: Mapping[str, Any], recipe: Mapping[str, Any]) -> Form:
        return forecast.form(recipe)

    def unseen(self, settings: Mapping[str, Any], recipe: Mapping[str, Any], path: str) -> Unseen:
        """From every origin, the last of which reach into the future; or from those of one part of the file."""
        file, part, origins = locate(path), settings.get('part', ALL), None
        table = _read(file, columns_of(recipe), settings, number_formats(recipe))
        if part != ALL:
            splits = [split(file.name, series, settings) for series in table.series]
            lengths = [len(series.rows) for series in table.series]
            origins = spans(part, splits, lengths, recipe['horizon'])
            if any(first < 0 or first >= stop for first, stop in origins):
                raise UserError(
                    f'{file} is too short for a {part} part with --horizon={recipe["horizon"]}; say --part=all'
                )
        return forecast.unseen(file.name, table, recipe, batch_size=settings['batch_size'], origins=origins)

    def stream(self, settings: Mapping[str, Any], recipe: Mapping[str, Any]) -> Stream:
        """A line is the row of a file: the id and the date where there is one to know, targets, covariates."""
        if recipe['strategy'] == 'recursive':
            raise UserError(
                '--stdin: the run has --strategy=recursive, which reads its own forecasts; train --strategy=direct'
            )
        following = _Following(settings, recipe)
        return Stream(following.parse, following.columns, following.values, following.restart)


def _read(
    path: Path,
    columns: Columns,
    settings: Mapping[str, Any],
    formats: Mapping[str, NumberFormat] | None = None,
) -> Table:
    how = {name: settings[name] for name in ('separator', 'decimal', 'thousands')}
    how |= {'formats': formats, 'mask': settings['missing'] == 'mask', 'bounds': bounds_of(settings)}
    return tables.read(path, columns, **how)


def _check_together(settings: Mapping[str, Any]) -> None:
    """Raises UserError where two flags do not go together."""
    refusals = {
        '--calendar needs the column of the date: say --date': settings['calendar'] and settings['date'] is None,
        '--relative_to=season needs the steps of a season: say --season': (
            settings['relative_to'] == 'season' and settings['season'] is None
        ),
        '--strategy=recursive has no covariates of the future to read: leave out --covariates': (
            settings['strategy'] == 'recursive' and settings['covariates']
        ),
        '--strategy=recursive has no one value to feed back with --head=quantile: choose point or gaussian': (
            settings['strategy'] == 'recursive' and settings['head'] == 'quantile'
        ),
        '--validation_from and --test_from go together: say both, or neither': (
            (settings['validation_from'] is None) != (settings['test_from'] is None)
        ),
    }
    for sentence, wrong in refusals.items():
        if wrong:
            raise UserError(sentence)
    for part in SPLITS:
        if settings['validation_from'] is None and not settings[part]:
            raise UserError(f'--{part}=0 leaves no {part} part; give it a share, such as 0.15')
    if settings['validation'] + settings['test'] >= 1:
        raise UserError(
            f'--validation={settings["validation"]} and --test={settings["test"]} leave nothing to train on'
        )


# --- splits ----------------------------------------------------------------------------------------


def split(name: str, series: Series, settings: Mapping[str, Any]) -> Split:
    """Where validation and test begin in a series: at the rows or dates that are named, or by shares."""
    count = len(series.rows)
    if settings['validation_from'] is None:
        test = count - round(settings['test'] * count)
        return Split(test - round(settings['validation'] * count), test)
    found = Split(*(_place(name, series, flag, settings[flag]) for flag in ('validation_from', 'test_from')))
    if found.validation >= found.test:
        raise UserError(
            f'--validation_from={settings["validation_from"]} must lie before --test_from={settings["test_from"]}'
            f', and in {name}{series.phrase} no row is between them'
        )
    return found


def _place(name: str, series: Series, flag: str, text: str) -> int:
    """The place of a date or a row, which must be one of the series but its first."""
    count = len(series.rows)
    if series.dates is None:
        place = int(text) - 1 if text.isascii() and text.isdigit() else -1
        kind = f'must be a row from 2 to {count}, as there is no --date'
    else:
        try:
            place = int(np.searchsorted(series.dates, dates.parsed(text)))
        except ValueError as error:
            raise UserError(f'--{flag}={text} is no date; write it as YYYY-MM-DD') from error
        kind = f'must be a date after {dates.written(series.dates[0])} and up to {dates.written(series.dates[-1])}'
    if not 0 < place < count:
        raise UserError(f'--{flag}={text} {kind}, for {name}{series.phrase}')
    return place


# --- one observation after the other ---------------------------------------------------------------


class _Following:
    """Rows that come one at a time."""

    def __init__(self, settings: Mapping[str, Any], recipe: Mapping[str, Any]):
        self.settings, self.recipe = settings, recipe
        self.names = columns_of(recipe).numbers
        how = numbers.format_of(settings['decimal'], settings['thousands'])
        self.formats = {**dict.fromkeys(self.names, how), **number_formats(recipe)}
        self.leads = [name for name in (recipe['id'], recipe['date'] if recipe['cycles'] else None) if name is not None]
        self.form = forecast.form(recipe)
        self.answer = jax.jit(self._answer)
        self.restart()

    def restart(self) -> None:
        self.series, self.scale = None, None
        self.past = np.zeros((self.recipe['lag'] or 1, len(self.recipe['targets'])), np.float32)

    @property
    def columns(self) -> list[str]:
        """For each target and step ahead the forecast, and the bounds of its intervals."""
        bounds = [f' {side} {name}' for name in INTERVALS for side in ('lower', 'upper')]
        ends = ['', *(bounds if self.recipe['head'] != 'point' else [])]
        steps = range(1, self.recipe['horizon'] + 1)
        return [f'{target}+{step}{end}' for target in self.recipe['targets'] for step in steps for end in ends]

    def parse(self, line: str) -> np.ndarray:
        """[F] of a row."""
        words = [word.strip() for word in next(csv.reader([line], delimiter=self.settings['separator']))]
        wanted = [*self.leads, *self.names]
        if len(words) != len(wanted):
            raise UserError(f'{len(words)} values are not the {len(wanted)} of a row: {", ".join(wanted)}')
        leads = dict(zip(self.leads, words, strict=False))
        series = leads.get(self.recipe['id']) if self.recipe['id'] is not None else None
        if self.series not in (None, series):
            raise UserError(f'series {series!r} follows {self.series!r}; put an empty line between two series')
        values = np.array([[self._number(*pair) for pair in zip(self.names, words[len(self.leads) :], strict=True)]])
        date = np.array([self._date(leads[self.recipe['date']])]) if self.recipe['cycles'] else None
        found = ready('the line', Series(series, values, np.array([1]), date), self.recipe)
        self.series, self.scale = series, found.scale
        now = np.where(found.real[0], found.values[0], self.past[0])
        self.past = np.concatenate([self.past[1:], now[None]])
        return found.inputs[0]

    def _number(self, name: str, word: str) -> float:
        try:
            value = parse_number(word, self.formats[name])
        except UserError as error:
            raise UserError(f'column {name!r}: {error}') from error
        if np.isnan(value) and not self.recipe['mask']:
            raise UserError(f'column {name!r} has no value, and the run has --missing=refuse; fill it in')
        return value

    def _date(self, word: str) -> np.datetime64:
        try:
            return dates.parsed(word)
        except ValueError as error:
            raise UserError(f'column {self.recipe["date"]!r} holds {word[:80]!r}; write dates as YYYY-MM-DD') from error

    def _answer(self, outputs: jax.Array, past: jax.Array) -> jax.Array:
        known = past[None] if self.recipe['lag'] else None
        return self.form.answers(outputs[None, None], Batch((), Ahead((), (), known), ()))[0, 0]

    def values(self, outputs: np.ndarray, parsed: np.ndarray) -> Sequence[Any]:
        told = np.asarray(self.answer(outputs, self.past), np.float64)  # [H, C, K]
        told = told * self.scale[1][:, None] + self.scale[0][:, None]
        order = [2, *(place for pair in INTERVALS.values() for place in pair)] if told.shape[-1] > 1 else [0]
        return [f'{value:.9g}' for value in told[..., order].swapaxes(0, 1).reshape(-1).tolist()]


KIND = Forecast()
FLAGS, run, main = KIND.FLAGS, KIND.run, KIND.main

if __name__ == '__main__':
    launch.leave(main())
