"""Forecasting of time series: a series is read from its beginning, and at every step the next H steps are forecast.

Axes beside those in `seqjax`: C targets, H steps ahead, K numbers that a forecast has: 1, 2 (mean, log of the standard
deviation) or 5 (quantiles). What a model reads and returns is in units of the training part: minus its mean, over its
standard deviation, per series and column.
"""

import functools
import math
from collections.abc import Mapping, Sequence
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
    recipes,
)
from seqjax.datasets.dataset import Dataset, Measure, Unseen
from seqjax.datasets.forecast_batching import Spans, Split, Told
from seqjax.datasets.forecast_preprocessing import Ready, Unusable
from seqjax.datasets.readers import date_columns, dates, summary
from seqjax.datasets.readers.dates import Pace
from seqjax.datasets.readers.table_columns import Series
from seqjax.datasets.readers.tables import SeriesTable
from seqjax.errors import UserError

FEWEST = 25  # steps of an epoch: a look at a short series costs more than a step
FEWEST_ROWS = 4  # to train on
PACE_RATIO = 4.0  # between the steps of two paces that are not the same


def dataset(
    name: str,
    table: SeriesTable,
    splits: Sequence[Split],
    recipe: dict[str, Any],
    *,
    batch_size: int,
    order: int | None = None,
) -> Dataset:
    """Series of a file, ready for a model.

    Args:
      name, table, splits: of the file, its series, and where the parts of each begin.
      recipe: covariates, date, id, mask, seasons, lag ('season' for the best season), horizon, window, strategy, head,
        and whether there is a calendar and series are left out that are too short; what the series themselves decide
        is added.
      batch_size: B.
      order: of the autoregression that is to be beaten.

    Raises:
      UserError: a part is too short, or a column constant; the sentence names it.
    """
    table, splits, scales, left_out = _usable(name, table, splits, recipe, order)
    recipe = _completed(name, table, splits, recipe | {'scales': scales, 'left_out': list(left_out)})
    parts = [forecast_preprocessing.ready(name, series, recipe) for series in table.series]
    horizon, own = recipe['horizon'], recipe['own']
    lengths = [part.steps for part in parts]
    train = [_until(part, split.validation) for part, split in zip(parts, splits, strict=True)]
    seen = [_until(part, split.test) for part, split in zip(parts, splits, strict=True)]
    data, batch = forecast_batching.training(train, recipe, batch_size)
    origins = {part: forecast_batching.spans(part, splits, lengths, horizon) for part in config.SPLITS}
    looked = forecast_batching.asked(
        forecast_batching.rows_of([part.steps for part in seen], recipe['window'], batch_size), origins['validation']
    )
    tested = forecast_batching.tiled(
        forecast_batching.asked(forecast_batching.rows_of(lengths, recipe['window'], batch_size), origins['test'])
    )
    others = functools.cache(partial(forecast_report.rivals, parts, recipe, splits, order))
    _check_known(name, parts, origins, horizon)

    def said(answers: np.ndarray) -> list[Told]:
        return list(forecast_batching.collected(answers, parts, tested, origins['test']))

    return Dataset(
        name=name,
        look=[*forecast_report.look(table, recipe, parts, splits), *_left_out_lines(left_out)],
        spec=forecast_heads.spec(recipe),
        answers=forecast_heads.answers(recipe),
        recipe=recipe,
        loss_fn=forecast_heads.loss_fn(recipe),
        batch=batch,
        data=data,
        both=lambda: forecast_batching.training(seen, recipe, batch_size)[0],
        epoch=max(FEWEST, math.ceil(int(data['ends'][-1]) / batch_size)),  # every window once
        validation=forecast_batching.evaluation(seen, recipe, looked, origins['validation']),
        test=Unseen(
            forecast_batching.evaluation(parts, recipe, tested, origins['test']),
            lambda answers: forecast_report.table_of(said(answers), parts, recipe),
        ),
        measure=Measure('RMSE', root=True, unit='' if own else 'training SD'),
        items=lambda answers: forecast_report.items(said(answers), parts, own),
        baselines={
            who: (lambda part, who=who: forecast_report.items(others(part)[who](origins[part]), parts, own))
            for who in others('validation')
        },
        tell=lambda answers: forecast_report.tell(
            {'network': said(answers), **{who: rival(origins['test']) for who, rival in others('test').items()}},
            parts,
            recipe,
        ),
        figure_data=lambda answers: forecast_report.curve(said(answers), parts, recipe),
    )


OPTIONAL_NAME = recipes.optional(recipes.text(1))
SCHEMA = {
    'targets': recipes.several(recipes.text(1), 1, distinct=True),
    'covariates': recipes.NAMES,
    'date': OPTIONAL_NAME,
    'id': OPTIONAL_NAME,
    'mask': recipes.SWITCH,
    'calendar': recipes.SWITCH,
    'lag': recipes.optional(recipes.whole(1)),
    'horizon': recipes.whole(1),
    'window': recipes.whole(1),
    'strategy': recipes.choice('direct', 'recursive'),
    'likelihood': recipes.choice(*forecast_heads.NUMBERS),
    'cycles': recipes.several(recipes.choice(*forecast_preprocessing.CYCLES), distinct=True),
    'own': recipes.SWITCH,
}
LATER = {  # absent from the recipes of earlier versions
    'header': recipes.optional(recipes.several(recipes.text(), 1, distinct=True)),
    'separator': recipes.optional(recipes.text(1)),
    'left_out': recipes.optional(recipes.several(recipes.text(), distinct=True)),
}
PACES = {'months': 12_000, 'ends of months': 12_000, 'weekdays': 1, 'microseconds': 10**16}  # most of each unit


def check_recipe(recipe: Any, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a recipe that was read from a file; raises UserError if it is invalid or not that of the settings."""
    copied = ('date', 'id', 'horizon', 'window', 'strategy', 'likelihood', 'calendar')
    implied = {'covariates': list(settings['covariates'] or ()), 'mask': settings['missing'] == 'mask'}
    recipes.check(recipe, SCHEMA, {name: settings[name] for name in copied} | implied)
    recipes.check(recipe, {name: rule for name, rule in LATER.items() if name in recipe})
    lag = {'last': recipe['lag'] == 1, 'none': recipe['lag'] is None, 'season': (recipe['lag'] or 0) > 1}
    recipes.require(lag[settings['residual']], f'lag={recipe["lag"]} with --residual={settings["residual"]}')
    columns, scales, found = len(recipe['targets']) + len(recipe['covariates']), *map(recipe.get, ('scales', 'pace'))
    recipes.require(settings['target'] in (None, recipe['targets']), f'targets={recipe["targets"]}')
    recipes.require(
        isinstance(scales, dict)
        and len(scales) > 0
        and all(isinstance(rows, list) and len(rows) == columns for rows in scales.values())
        and all(
            forecast_heads.SCALE.holds(row) and len(row) == 2 and row[1] > 0 for rows in scales.values() for row in rows
        ),
        f'scales that are not a mean and a positive deviation for each of {columns} columns',
    )
    recipes.require(
        found is None
        and settings['date'] is None
        or isinstance(found, list)
        and len(found) == 2
        and found[0] in PACES
        and recipes.whole(1, PACES[found[0]]).holds(found[1]),
        f'pace={str(found)[:80]}',
    )
    recipes.require(bool(recipe['cycles']) == recipe['calendar'], f'cycles={recipe["cycles"]}')
    recipes.require(recipe['own'] == (len(scales) * len(recipe['targets']) == 1), f'own={recipe["own"]}')
    return recipe


def unseen(
    name: str, table: SeriesTable, recipe: Mapping[str, Any], *, batch_size: int, origins: Spans | None = None
) -> Unseen:
    """A file to predict: forecasts from every origin, or from those of some spans; the last reach into the future."""
    recipe = {**recipe, 'dates': list(table.dates)}
    series, left_out = known_series(name, table, recipe)
    _check_dates(name, series, recipe)
    parts = [forecast_preprocessing.ready(name, one, recipe) for one in series]
    lengths = [part.steps for part in parts]
    wanted = [(0, length) for length in lengths] if origins is None else origins
    rows = forecast_batching.tiled(
        forecast_batching.asked(forecast_batching.rows_of(lengths, recipe['window'], batch_size), wanted)
    )
    count = sum(stop - first for first, stop in wanted)
    return Unseen(
        forecast_batching.evaluation(parts, recipe, rows, wanted),
        lambda answers: forecast_report.table_of(
            forecast_batching.collected(answers, parts, rows, wanted), parts, recipe
        ),
        [
            f'{name}: {sum(lengths):,} rows in {len(parts)} series; told from {count:,}',
            *([f'not predicted, as the run left them out: {options.some(map(repr, left_out), 5)}'] if left_out else []),
            *summary.lines(table),
            *([forecast_report.dates_line(table)] if table.columns.date is not None else []),
        ],
    )


def known_series(name: str, table: SeriesTable, recipe: Mapping[str, Any]) -> tuple[list[Series], list[str]]:
    """Returns the series of a file to predict, and the names of those that the run left out of its training."""
    left_out = [one.name for one in table.series if one.name in recipe.get('left_out', ())]
    if len(left_out) == len(table.series):
        named = options.some(map(repr, left_out), 5)
        raise UserError(f'{name} has only series that the run left out of its training: {named}')
    return [one for one in table.series if one.name not in left_out], left_out


def _check_dates(name: str, series: Sequence[Series], recipe: Mapping[str, Any]) -> None:
    """Raises UserError if another format than that of the run gives the dates of a file the pace of the training."""
    one = max(series, key=lambda series: len(series.rows))
    form = forecast_preprocessing.format_of(recipe)
    other = None if one.dates is None else date_columns.other_reading(one.dates, form.format)
    if not other or not recipe['pace'] or len(one.dates) < 3:
        return
    pace = Pace(*recipe['pace'])

    def far(local: np.ndarray) -> int:
        steps = np.diff(dates.instants(local, one.offsets)) / np.timedelta64(1, 'D') / pace.days()
        return int(((steps < 1 / PACE_RATIO) | (steps > PACE_RATIO)).sum())

    if 2 * far(other[1]) < far(one.dates):
        raise UserError(
            f'{name}: the dates{one.phrase} are {pace.words()} apart, as in the training, only in the format '
            f'{other[0]}, and the format of the run is {form}; write them in the format of the run'
        )


def _usable(
    name: str, table: SeriesTable, splits: Sequence[Split], recipe: Mapping[str, Any], order: int | None
) -> tuple[SeriesTable, list[Split], dict[str, Any], dict[str | None, str]]:
    """Returns the series that can be learned from, their splits and scales, and why others cannot, by name."""
    kept, scales, left_out = [], {}, {}
    for series, split in zip(table.series, splits, strict=True):
        try:
            _check_parts(name, series, split, recipe, order)
            scales[series.name or ''] = forecast_preprocessing.fit_scale(
                name, series, table.columns.numbers, split.validation
            )
            kept.append((series, split))
        except Unusable as error:
            if len(table.series) == 1:
                raise
            left_out[series.name] = str(error).removeprefix(f'{name}: ')
    if left_out and not (kept and recipe['skip_short']):
        more = '; or pass --skip_short, which leaves them out' if kept else ''
        raise UserError(
            f'{name}: {len(left_out):,} of {len(table.series):,} series are too short or constant, '
            f'{options.some(map(repr, left_out), 5)}: {next(iter(left_out.values()))}{more}'
        )
    return table._replace(series=[one for one, _ in kept]), [split for _, split in kept], scales, left_out


def _left_out_lines(left_out: Mapping[str | None, str]) -> list[str]:
    if not left_out:
        return []
    count = len(left_out)
    return [
        f'left out, too short or constant: {count:,} series, {options.some(map(repr, left_out), 5)}',
        *list(left_out.values())[:3],
    ]


def _completed(name: str, table: SeriesTable, splits: Sequence[Split], recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe, with what is fitted on the training part, and the season that is best on validation."""
    columns = table.columns
    longest = max(table.series, key=lambda series: len(series.rows))
    found = {'targets': list(columns.targets), 'cycles': [], 'pace': None, 'dates': None}
    found['numbers'] = {name: list(format) for name, format in table.formats.items()}
    if columns.date is not None:
        found |= {'pace': list(dates.pace(longest.dates, longest.offsets)), 'dates': list(table.dates)}
    if recipe['calendar']:
        found['cycles'] = forecast_preprocessing.cycles_of(longest.dates)
        if not found['cycles']:
            raise UserError(f'--calendar=true says nothing about {name}, whose rows are a year apart; leave it out')
    found |= _seasons(name, table, splits, recipe | found)
    # Errors of several series or targets are comparable in units of their own.
    return recipe | found | {'own': len(table.series) * len(columns.targets) == 1}


def _seasons(name: str, table: SeriesTable, splits: Sequence[Split], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the seasons that are tried, the one that is best on validation, and the lag of what is added."""
    known = set(recipe['seasons'] or ()) | set(forecast_seasons.usual(Pace(*recipe['pace'])) if recipe['pace'] else ())
    seasons = forecast_seasons.fitting(sorted(known), splits)
    scaled = []
    for series in table.series:
        mean, deviation = np.array(recipe['scales'][series.name or '']).T[:, : len(recipe['targets'])]
        scaled.append((series.values[:, : len(recipe['targets'])] - mean) / deviation)
    season = forecast_seasons.best(seasons, scaled, splits, recipe['horizon'])
    if recipe['lag'] == 'season' and season is None:
        raise UserError(
            f'--residual=season: the dates of {name} have no usual season that is short enough; pass --season'
        )
    found = {'seasons': seasons, 'seasons_too_long': sorted(known - set(seasons)), 'season': season}
    return found | {'lag': season if recipe['lag'] == 'season' else recipe['lag']}


def _check_parts(name: str, series: Series, split: Split, recipe: Mapping[str, Any], order: int | None) -> None:
    """Raises Unusable where a part is too short for what is asked."""
    who, rows = f'{name}{series.phrase.replace(" of", ":", 1)}', max(split.validation, 0)
    if rows < FEWEST_ROWS:
        raise Unusable(f'{who} has {rows} rows to train on, and needs {FEWEST_ROWS}; use more rows, or a later split')
    if rows < recipe['window'] + 1:
        raise Unusable(
            f'{who} has {rows} rows to train on, and --window={recipe["window"]} needs {recipe["window"] + 1}; use a '
            'smaller --window'
        )
    if recipe['seasons'] and min(recipe['seasons']) >= rows:
        raise Unusable(
            f'{who} has {rows} rows to train on, and --season={min(recipe["seasons"])} needs more; use a shorter season'
        )
    if order and 2 * order + 2 > rows:
        raise Unusable(
            f'{who} has {rows} rows to train on, and --ar_order={order} needs {2 * order + 2}; use a lower order'
        )
    for part, count in (('validation', split.test - split.validation), ('test', len(series.rows) - split.test)):
        if count < recipe['horizon']:
            raise Unusable(
                f'{who} has {max(count, 0)} rows for {part}, and --horizon={recipe["horizon"]} needs as many; use a '
                f'shorter horizon, or a larger --{part}_fraction'
            )


def _check_known(name: str, parts: Sequence[Ready], origins: Mapping[str, Spans], horizon: int) -> None:
    for part, ranges in origins.items():
        if not any(
            one.real[first + 1 : stop + horizon].any() for one, (first, stop) in zip(parts, ranges, strict=True)
        ):
            raise UserError(f'{name} has no value of a target in its {part} part; choose another split')


def _until(part: Ready, stop: int) -> Ready:
    """Its first steps."""
    return part._replace(**{name: getattr(part, name)[:stop] for name in ('inputs', 'values', 'real', 'past')})
