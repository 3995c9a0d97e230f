"""Series to forecast: read from their beginning, and at every step the next H steps of every target are told.

Axes beside those in `seqjax`: C targets, H steps ahead, K numbers that a forecast has: 1, 2 (mean, log of the standard
deviation) or 5 (quantiles). What a model reads and says is in units of the training part: minus its mean, over its
standard deviation, per series and column.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import NormalDist
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seqjax import losses
from seqjax.dataset import SPLITS, Answers, Dataset, Measure, Unseen
from seqjax.datasets import forecast_told as said_of
from seqjax.datasets import recipes
from seqjax.datasets.feedback import Feedback, deviation, latest
from seqjax.datasets.forecast_rows import (
    Spans,
    Split,
    Told,
    asked,
    collected,
    evaluation,
    rows_of,
    spans,
    tiled,
    training,
)
from seqjax.datasets.forecast_seasons import best, fitting, usual
from seqjax.datasets.forecast_series import (
    CYCLES,
    Ready,
    Unusable,
    channels,
    cycles_of,
    fit_scale,
    format_of,
    ready,
)
from seqjax.files import UserError
from seqjax.problem import LossFn
from seqjax.readers import date_formats, dates, summary, tables
from seqjax.readers.dates import Pace
from seqjax.readers.tables import Series
from seqjax.task import Batch, Mean
from seqjax.types import ModelSpec

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # the quantiles that are told
NUMBERS = {'point': 1, 'gaussian': 2, 'quantile': len(LEVELS)}  # K of a head
FEWEST = 25  # steps of an epoch: a look at a short series costs more than a step
FEWEST_ROWS = 4  # to train on
PACE_RATIO = 4.0  # between the steps of two paces that are not the same


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
    'head': recipes.choice(*NUMBERS),
    'cycles': recipes.several(recipes.choice(*CYCLES), distinct=True),
    'own': recipes.SWITCH,
}
LATER = {  # absent from the recipes of earlier versions
    'header': recipes.optional(recipes.several(recipes.text(), 1, distinct=True)),
    'separator': recipes.optional(recipes.text(1)),
    'left_out': recipes.optional(recipes.several(recipes.text(), distinct=True)),
}
SCALE = recipes.several(recipes.number(), 2)
PACES = {'months': 12_000, 'ends of months': 12_000, 'weekdays': 1, 'microseconds': 10**16}  # most of each unit


def check_recipe(recipe: Any, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a recipe that was read from a file; raises UserError if it is invalid or not that of the settings."""
    copied = ('date', 'id', 'horizon', 'window', 'strategy', 'head', 'calendar')
    implied = {
        'covariates': list(settings['covariates'] or ()),
        'mask': settings['missing'] == 'mask',
    }
    recipes.check(recipe, SCHEMA, {name: settings[name] for name in copied} | implied)
    recipes.check(recipe, {name: rule for name, rule in LATER.items() if name in recipe})
    lag = {'last': recipe['lag'] == 1, 'nothing': recipe['lag'] is None, 'season': (recipe['lag'] or 0) > 1}
    recipes.require(lag[settings['relative_to']], f'lag={recipe["lag"]} with --relative_to={settings["relative_to"]}')
    columns, scales, found = len(recipe['targets']) + len(recipe['covariates']), *map(recipe.get, ('scales', 'pace'))
    recipes.require(settings['target'] in (None, recipe['targets']), f'targets={recipe["targets"]}')
    recipes.require(
        isinstance(scales, dict)
        and len(scales) > 0
        and all(isinstance(rows, list) and len(rows) == columns for rows in scales.values())
        and all(SCALE.holds(row) and len(row) == 2 and row[1] > 0 for rows in scales.values() for row in rows),
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


def spec(recipe: Mapping[str, Any]) -> ModelSpec:
    """Of a model that reads what the recipe says."""
    steps = recipe['horizon'] if recipe['strategy'] == 'direct' else 1
    return ModelSpec(
        'per_step',
        outputs=steps * len(recipe['targets']) * NUMBERS[recipe['head']],
        features=len(channels(recipe)),
        causal=True,
        memory_span=recipe['window'],
        wrap_model=None if recipe['strategy'] == 'direct' else lambda model: feedback(model, recipe),
    )


def answers(recipe: Mapping[str, Any]) -> Answers:
    """The quantiles of each forecast, or the points."""
    return lambda outputs, batch: quantiles(forecasts(outputs, batch, recipe), recipe['head'])


def feedback(model: nn.Module, recipe: Mapping[str, Any]) -> Feedback:
    """What a model of one step becomes where forecasts are fed back."""
    targets, numbers = len(recipe['targets']), NUMBERS[recipe['head']]
    return Feedback(model, targets, recipe['horizon'], numbers, 2 * len(recipe['cycles']), recipe['lag'])


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


def loss_fn(recipe: Mapping[str, Any]) -> LossFn:
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


# --- the data set ----------------------------------------------------------------------------------


def dataset(
    name: str,
    table: tables.Table,
    splits: Sequence[Split],
    recipe: dict[str, Any],
    *,
    batch_size: int,
    order: int | None = None,
) -> Dataset:
    """Series of a file, ready for a model.

    Args:
      name: of the file.
      table: its series.
      splits: of each of them.
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
    parts = [ready(name, series, recipe) for series in table.series]
    horizon, own = recipe['horizon'], recipe['own']
    lengths = [part.steps for part in parts]
    train = [_until(part, split.validation) for part, split in zip(parts, splits, strict=True)]
    seen = [_until(part, split.test) for part, split in zip(parts, splits, strict=True)]
    data, batch = training(train, recipe, batch_size)
    origins = {part: spans(part, splits, lengths, horizon) for part in SPLITS}
    looked = asked(rows_of([part.steps for part in seen], recipe['window'], batch_size), origins['validation'])
    tested = tiled(asked(rows_of(lengths, recipe['window'], batch_size), origins['test']))
    others = functools.cache(partial(said_of.rivals, parts, recipe, splits, order))
    _check_known(name, parts, origins, horizon)

    def said(answers: np.ndarray) -> list[Told]:
        return list(collected(answers, parts, tested, origins['test']))

    return Dataset(
        name=name,
        look=[*said_of.look(table, recipe, parts, splits), *_left_out_lines(left_out)],
        spec=spec(recipe),
        answers=answers(recipe),
        recipe=recipe,
        loss_fn=loss_fn(recipe),
        batch=batch,
        data=data,
        both=lambda: training(seen, recipe, batch_size)[0],
        epoch=max(FEWEST, math.ceil(int(data['ends'][-1]) / batch_size)),  # every window once
        validation=evaluation(seen, recipe, looked, origins['validation']),
        test=Unseen(
            evaluation(parts, recipe, tested, origins['test']),
            lambda answers: said_of.table_of(said(answers), parts, recipe),
        ),
        measure=Measure('RMSE', root=True, unit='' if own else 'training SD'),
        items=lambda answers: said_of.items(said(answers), parts, own),
        baselines={
            who: (lambda part, who=who: said_of.items(others(part)[who](origins[part]), parts, own))
            for who in others('validation')
        },
        tell=lambda answers: said_of.tell(
            {'network': said(answers), **{who: rival(origins['test']) for who, rival in others('test').items()}},
            parts,
            recipe,
        ),
        draw=lambda axis, answers: said_of.draw(axis, said(answers), parts, recipe),
    )


def unseen(
    name: str, table: tables.Table, recipe: Mapping[str, Any], *, batch_size: int, origins: Spans | None = None
) -> Unseen:
    """A file to predict: forecasts from every origin, or from those of some spans; the last reach into the future."""
    recipe = {**recipe, 'dates': list(table.dates)}
    series, left_out = known_series(name, table, recipe)
    _check_dates(name, series, recipe)
    parts = [ready(name, one, recipe) for one in series]
    lengths = [part.steps for part in parts]
    wanted = [(0, length) for length in lengths] if origins is None else origins
    rows = tiled(asked(rows_of(lengths, recipe['window'], batch_size), wanted))
    count = sum(stop - first for first, stop in wanted)
    return Unseen(
        evaluation(parts, recipe, rows, wanted),
        lambda answers: said_of.table_of(collected(answers, parts, rows, wanted), parts, recipe),
        [
            f'{name}: {sum(lengths):,} rows in {len(parts)} series; told from {count:,}',
            *([f'not predicted, as the run left them out: {_named(left_out)}'] if left_out else []),
            *summary.lines(table),
            *([said_of.dates_line(table)] if table.columns.date is not None else []),
        ],
    )


def known_series(name: str, table: tables.Table, recipe: Mapping[str, Any]) -> tuple[list[Series], list[str]]:
    """Returns the series of a file to predict, and the names of those that the run left out of its training.

    Raises:
      UserError: the run left out all of them.
    """
    left_out = [one.name for one in table.series if one.name in recipe.get('left_out', ())]
    if len(left_out) == len(table.series):
        raise UserError(f'{name} has only series that the run left out of its training: {_named(left_out)}')
    return [one for one in table.series if one.name not in left_out], left_out


def _check_dates(name: str, series: Sequence[Series], recipe: Mapping[str, Any]) -> None:
    """Raises UserError if another format than that of the run gives the dates of a file the pace of the training."""
    one = max(series, key=lambda series: len(series.rows))
    other = None if one.dates is None else date_formats.other_reading(one.dates, format_of(recipe).format)
    if not other or not recipe['pace'] or len(one.dates) < 3:
        return
    pace = Pace(*recipe['pace'])

    def far(local: np.ndarray) -> int:
        steps = np.diff(dates.instants(local, one.offsets)) / np.timedelta64(1, 'D') / pace.days()
        return int(((steps < 1 / PACE_RATIO) | (steps > PACE_RATIO)).sum())

    if 2 * far(other[1]) < far(one.dates):
        raise UserError(
            f'{name}: the dates{one.phrase} are {pace.words()} apart, as in the training, only in the format '
            f'{other[0]}, and the format of the run is {format_of(recipe)}; write them in the format of the run'
        )


def _named(names: Sequence[str | None]) -> str:
    """A few names, and how many more."""
    return ', '.join(map(repr, names[:5])) + (f' and {len(names) - 5:,} more' if len(names) > 5 else '')


def _usable(
    name: str, table: tables.Table, splits: Sequence[Split], recipe: Mapping[str, Any], order: int | None
) -> tuple[tables.Table, list[Split], dict[str, Any], dict[str | None, str]]:
    """Returns the series that can be learned from, their splits and scales, and why others cannot, by name."""
    kept, scales, left_out = [], {}, {}
    for series, split in zip(table.series, splits, strict=True):
        try:
            _check_parts(name, series, split, recipe, order)
            scales[series.name or ''] = fit_scale(name, series, table.columns.numbers, split.validation)
            kept.append((series, split))
        except Unusable as error:
            if len(table.series) == 1:
                raise
            left_out[series.name] = str(error).removeprefix(f'{name}: ')
    if left_out and not (kept and recipe['skip_short']):
        more = '; or pass --skip_short, which leaves them out' if kept else ''
        raise UserError(
            f'{name}: {len(left_out):,} of {len(table.series):,} series are too short or constant, '
            f'{_named(list(left_out))}: {next(iter(left_out.values()))}{more}'
        )
    return table._replace(series=[one for one, _ in kept]), [split for _, split in kept], scales, left_out


def _left_out_lines(left_out: Mapping[str | None, str]) -> list[str]:
    if not left_out:
        return []
    count = len(left_out)
    return [
        f'left out, too short or constant: {count:,} series, {_named(list(left_out))}',
        *list(left_out.values())[:3],
    ]


def _completed(name: str, table: tables.Table, splits: Sequence[Split], recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe, with what is fitted on the training part, and the season that is best on validation."""
    columns = table.columns
    longest = max(table.series, key=lambda series: len(series.rows))
    found = {'targets': list(columns.targets), 'cycles': [], 'pace': None, 'dates': None}
    found['numbers'] = {name: list(format) for name, format in table.formats.items()}
    if columns.date is not None:
        found |= {'pace': list(dates.pace(longest.dates, longest.offsets)), 'dates': list(table.dates)}
    if recipe['calendar']:
        found['cycles'] = cycles_of(longest.dates)
        if not found['cycles']:
            raise UserError(f'--calendar=true says nothing about {name}, whose rows are a year apart; leave it out')
    found |= _seasons(name, table, splits, recipe | found)
    # Errors of several series or targets are comparable in units of their own.
    return recipe | found | {'own': len(table.series) * len(columns.targets) == 1}


def _seasons(name: str, table: tables.Table, splits: Sequence[Split], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the seasons that are tried, the one that is best on validation, and the lag of what is added."""
    known = set(recipe['seasons'] or ()) | set(usual(Pace(*recipe['pace'])) if recipe['pace'] else ())
    seasons = fitting(sorted(known), splits)
    scaled = []
    for series in table.series:
        mean, deviation = np.array(recipe['scales'][series.name or '']).T[:, : len(recipe['targets'])]
        scaled.append((series.values[:, : len(recipe['targets'])] - mean) / deviation)
    season = best(seasons, scaled, splits, recipe['horizon'])
    if recipe['lag'] == 'season' and season is None:
        raise UserError(
            f'--relative_to=season: the dates of {name} have no usual season that is short enough; pass --season'
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
                f'shorter horizon, or a larger --{part}'
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
