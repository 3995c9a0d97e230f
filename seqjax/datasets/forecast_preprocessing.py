"""A series as a model reads it: scaled by its training part, with what is missing and the calendar beside it.

Axes beside those in `seqjax`: C targets, H steps ahead.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seqjax.datasets.baselines import forecast_baselines
from seqjax.datasets.readers import dates as readers_dates
from seqjax.datasets.readers import table_sources
from seqjax.datasets.readers.date_formats import DateFormat
from seqjax.datasets.readers.dates import Pace
from seqjax.datasets.readers.numbers import NumberFormat
from seqjax.datasets.readers.table_columns import Series
from seqjax.datasets.readers.table_sources import Columns
from seqjax.errors import UserError

FARTHEST = 1e15  # training standard deviations from the mean; float32 squares no more
CYCLES = {'year': 31_556_952_000_000, 'week': 604_800_000_000, 'day': 86_400_000_000}  # microseconds


class Unusable(UserError):
    """A series that is too short or constant, so that nothing can be learned from it."""


class Ready(NamedTuple):
    """A series as a model reads it."""

    series: Series
    inputs: np.ndarray  # [n, F] float32
    values: np.ndarray  # [n, C] float32; 0 where one is missing
    real: np.ndarray  # [n, C] bool
    past: np.ndarray  # [n, C] float32: the value, or that `lag` before where it is missing, and so on
    scale: np.ndarray  # [2, C]: means and standard deviations of the targets
    future: np.ndarray  # [H - 1, F] float32: inputs after its end, of which the calendar is known

    @property
    def steps(self) -> int:
        """n"""
        return len(self.inputs)


def channels(recipe: Mapping[str, Any]) -> list[str]:
    """Names of the F inputs, in their order."""
    columns = [*recipe['targets'], *recipe['covariates']]
    missing = [f'{name} is missing' for name in columns] if recipe['mask'] else []
    return columns + missing + [f'{side} of the {cycle}' for cycle in recipe['cycles'] for side in ('sine', 'cosine')]


def columns_of(recipe: Mapping[str, Any]) -> Columns:
    """What is read of a file to predict."""
    return Columns(recipe['targets'], recipe['covariates'], recipe['date'], recipe['id'])


def number_formats(recipe: Mapping[str, Any]) -> dict[str, NumberFormat]:
    """Returns how the numbers of each column were written in training, as a file to predict must write them."""
    return {name: NumberFormat(*format) for name, format in (recipe.get('numbers') or {}).items()}


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
    turns = [2 * np.pi * since[cycle].astype(np.int64) / CYCLES[cycle] for cycle in cycles]
    return np.array([side(turn) for turn in turns for side in (np.sin, np.cos)]).reshape(2 * len(cycles), len(dates)).T


def fit_scale(name: str, series: Series, columns: Sequence[str], count: int) -> list[list[float]]:
    """[mean, standard deviation] of each column over the first `count` values, which are the training part.

    Raises Unusable where a column has no value there or is constant, UserError where values are too large to be
    squared.
    """
    found = []
    for place, column in enumerate(columns):
        values = series.values[:count, place]
        values = values[~np.isnan(values)]
        where = f'{name}: column {column!r}{series.phrase}'
        if not len(values):
            raise Unusable(f'{where} has no value on the training part; leave it out')
        if values.min() == values.max():
            raise Unusable(f'{where} is constant on the training part; leave it out, or begin validation later')
        with np.errstate(over='ignore', invalid='ignore'):
            mean, deviation = float(values.mean()), float(values.std())
        if not (0 < deviation < math.inf):
            raise UserError(f'{where} has values that cannot be squared, up to {np.abs(values).max():.3g}; rescale it')
        found.append([mean, deviation])
    return found


def ready(name: str, series: Series, recipe: Mapping[str, Any]) -> Ready:
    """A series through the preprocessing of training.

    Raises UserError where its id is none of those that were trained on, or a value is too far from them.
    """
    key = series.name or ''
    if key in recipe.get('left_out', ()):
        raise UserError(f'{name}: series {key!r} was left out of the training by --skip_short; leave it out here, too')
    if key not in recipe['scales']:
        known = list(recipe['scales'])
        raise UserError(
            f'{name}: series {key!r} is none of the {len(known)} that were trained on{table_sources.near(key, known)}'
        )
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
        ahead[:, -2 * len(recipe['cycles']) :] = calendar(dates_after(series, recipe, len(ahead))[0], recipe['cycles'])
    return Ready(
        series,
        np.concatenate(parts, 1, dtype=np.float32),
        parts[0][:, :targets].astype(np.float32),
        ~missing[:, :targets],
        forecast_baselines.carried(scaled[:, :targets], recipe['lag'] or 1).astype(np.float32),
        mean_and_deviation[:, :targets],
        ahead,
    )


def pace_of(series: Series, recipe: Mapping[str, Any]) -> Pace:
    """Of its dates, or of those of the training: where there are too few, or weekdays that no weekend parts."""
    trained, days = Pace(*recipe['pace']), series.dates.astype('datetime64[D]')
    if len(days) < 3:
        return trained
    found = readers_dates.pace(series.dates, series.offsets)
    weekdays = trained.unit == 'weekdays' and found.days() == 1 and np.is_busday(days).all()
    return trained if weekdays else found


def dates_after(series: Series, recipe: Mapping[str, Any], steps: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Local times [steps] that follow a series, and their offsets from UTC."""
    offset = None if series.offsets is None else int(series.offsets[-1])
    return readers_dates.following(series.dates[-1], offset, pace_of(series, recipe), steps, format_of(recipe).zone)


def format_of(recipe: Mapping[str, Any]) -> DateFormat:
    """The format of the dates of a run; one that decides nothing where the run has not kept it."""
    return DateFormat(*(recipe.get('dates') or ()))
