"""Preprocessing of series for forecasting: scaling, missing-value indicators and calendar features.

Axes in addition to those in `seqjax`: n rows of a series, C target columns, H forecast horizon in steps.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seqjax.datasets.baselines import forecast_baselines
from seqjax.datasets.readers import dates as readers_dates
from seqjax.datasets.readers import table_sources
from seqjax.datasets.readers.date_formats import DateFormat
from seqjax.datasets.readers.dates import Frequency
from seqjax.datasets.readers.numbers import NumberFormat
from seqjax.datasets.readers.table_columns import Series
from seqjax.datasets.readers.table_sources import Columns
from seqjax.errors import UserError

MAX_SCALED = 1e15  # maximum distance from the training mean, in standard deviations; float32 can sum its squares
CYCLES = {'year': 31_556_952_000_000, 'week': 604_800_000_000, 'day': 86_400_000_000}  # microseconds of a cycle


class UnusableSeriesError(UserError):
    """Error for a series that training cannot use, such as a short or constant one; --skip_short excludes it."""


class PreparedSeries(NamedTuple):
    """A series of n rows after preprocessing; targets are scaled with the mean and deviation of the training split."""

    series: Series  # series before preprocessing
    inputs: np.ndarray  # [n, F] float32 inputs of the model
    values: np.ndarray  # [n, C] float32 scaled targets; 0 if missing
    valid: np.ndarray  # [n, C] bool; False if a target is missing
    past: np.ndarray  # [n, C] `values`, with missing ones filled from a multiple of `lag` rows before, or with 0
    scale: np.ndarray  # [2, C] means and standard deviations of the targets in the training split
    future: np.ndarray  # [H - 1, F] float32 inputs after the end of the series; 0 but for calendar features

    @property
    def steps(self) -> int:
        """Number n of time steps, which are rows of the series."""
        return len(self.inputs)


def channels(preprocessing: Mapping[str, Any]) -> list[str]:
    """Returns the names of the F inputs of the model, in order."""
    columns = [*preprocessing['targets'], *preprocessing['covariates']]
    missing = [f'{name} is missing' for name in columns] if preprocessing['mask'] else []
    return (
        columns
        + missing
        + [f'{side} of the {cycle}' for cycle in preprocessing['cycles'] for side in ('sine', 'cosine')]
    )


def columns_of(preprocessing: Mapping[str, Any]) -> Columns:
    """Returns the columns that a run reads from a file to predict: the columns of its training file."""
    return Columns(preprocessing['targets'], preprocessing['covariates'], preprocessing['date'], preprocessing['id'])


def number_formats(preprocessing: Mapping[str, Any]) -> dict[str, NumberFormat]:
    """Returns the number format of each column of the training file; empty if the run saved none."""
    return {name: NumberFormat(*format) for name, format in (preprocessing.get('numbers') or {}).items()}


def cycles_of(dates: np.ndarray) -> list[str]:
    """Returns the names in `CYCLES` of the cycles over 5% longer than the median time between dates [n]."""
    gap = np.median(np.diff(dates).astype(float))
    return [name for name, length in CYCLES.items() if gap < 0.95 * length]


def calendar(dates: np.ndarray, cycles: Sequence[str]) -> np.ndarray:
    """Returns [n, 2 * len(cycles)]: for each cycle, the sine and the cosine of the phase of each date [n]."""
    elapsed = {
        'year': dates - dates.astype('datetime64[Y]'),
        'week': dates - np.datetime64('2001-01-01', 'us'),  # a Monday
        'day': dates - dates.astype('datetime64[D]'),
    }
    phases = [2 * np.pi * elapsed[cycle].astype(np.int64) / CYCLES[cycle] for cycle in cycles]
    return np.array([f(phase) for phase in phases for f in (np.sin, np.cos)]).reshape(2 * len(cycles), len(dates)).T


def fit_scale(name: str, series: Series, columns: Sequence[str], count: int) -> list[list[float]]:
    """Returns [mean, standard deviation] of each column over the first `count` rows, ignoring missing values.

    Raises:
      UnusableSeriesError: a column has no value in these rows, or only equal ones.
      UserError: the squares of a column's values overflow or underflow float64.
    """
    scales = []
    for place, column in enumerate(columns):
        values = series.values[:count, place]
        values = values[~np.isnan(values)]
        where = f'{name}: column {column!r}{series.phrase}'
        if not len(values):
            raise UnusableSeriesError(
                f'{where} has no value in the training split; remove it from --target or --covariates, or start the '
                'validation split later'
            )
        if values.min() == values.max():
            raise UnusableSeriesError(
                f'{where} is constant in the training split; remove it from --target or --covariates, or start the '
                'validation split later'
            )
        with np.errstate(over='ignore', invalid='ignore'):
            mean, deviation = float(values.mean()), float(values.std())
        if not (0 < deviation < math.inf):
            raise UserError(
                f'{where} has values up to {np.abs(values).max():.3g}, too large or too close together for a '
                'standard deviation in float64; rescale the column'
            )
        scales.append([mean, deviation])
    return scales


def prepare_series(name: str, series: Series, preprocessing: Mapping[str, Any]) -> PreparedSeries:
    """Returns a series after the preprocessing that was fitted on the training split.

    Raises UserError if the series was not trained on, or a value is more than `MAX_SCALED` standard deviations from the
    training mean. `name` is the file in messages.
    """
    key = series.name or ''
    if key in preprocessing.get('left_out', ()):
        raise UserError(f'{name}: series {key!r} was excluded from training by --skip_short; remove its rows')
    if key not in preprocessing['scales']:
        known = list(preprocessing['scales'])
        raise UserError(
            f'{name}: series {key!r} is not among the {len(known)} training series; remove its rows, or correct the id'
            f'{table_sources.nearest_hint(key, known)}'
        )
    targets, mean_and_deviation = len(preprocessing['targets']), np.array(preprocessing['scales'][key]).T
    with np.errstate(over='ignore'):
        scaled = (series.values - mean_and_deviation[0]) / mean_and_deviation[1]
    far = np.abs(scaled) > MAX_SCALED  # False for missing values
    for row, place in np.argwhere(far)[:1]:
        column = [*preprocessing['targets'], *preprocessing['covariates']][place]
        raise UserError(
            f'{name}: row {series.rows[row]}, column {column!r} is {series.values[row, place]:.3g}, more than '
            f'{MAX_SCALED:.0e} standard deviations from the training mean; correct the value'
        )
    missing = np.isnan(scaled)
    features = [np.where(missing, 0, scaled), *([missing] if preprocessing['mask'] else [])]
    future = np.zeros((preprocessing['horizon'] - 1, len(channels(preprocessing))), np.float32)
    if preprocessing['cycles']:
        features.append(calendar(series.dates, preprocessing['cycles']))
        future[:, -2 * len(preprocessing['cycles']) :] = calendar(
            dates_after(series, preprocessing, len(future))[0], preprocessing['cycles']
        )
    return PreparedSeries(
        series,
        np.concatenate(features, 1, dtype=np.float32),
        features[0][:, :targets].astype(np.float32),
        ~missing[:, :targets],
        forecast_baselines.forward_fill(scaled[:, :targets], preprocessing['lag'] or 1).astype(np.float32),
        mean_and_deviation[:, :targets],
        future,
    )


def frequency_of(series: Series, preprocessing: Mapping[str, Any]) -> Frequency:
    """Returns the frequency of the dates of a series, or the training frequency if these dates do not determine it.

    The training frequency is returned if the series has fewer than 3 dates, or if the training frequency is 'weekdays'
    and the dates are daily without a weekend.
    """
    training_frequency, days = Frequency(*preprocessing['frequency']), series.dates.astype('datetime64[D]')
    if len(days) < 3:
        return training_frequency
    frequency = readers_dates.infer_frequency(series.dates, series.offsets)
    weekdays = training_frequency.unit == 'weekdays' and frequency.days() == 1 and np.is_busday(days).all()
    return training_frequency if weekdays else frequency


def dates_after(series: Series, preprocessing: Mapping[str, Any], steps: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the local times [`steps`] after the last row of a series, and their offsets from UTC in seconds.

    The offsets are None if the series has none.
    """
    offset = None if series.offsets is None else int(series.offsets[-1])
    return readers_dates.following(
        series.dates[-1], offset, frequency_of(series, preprocessing), steps, format_of(preprocessing).zone
    )


def format_of(preprocessing: Mapping[str, Any]) -> DateFormat:
    """Returns the date format that a run saved; DateFormat(), which is undecided, if it saved none."""
    return DateFormat(*(preprocessing.get('dates') or ()))
