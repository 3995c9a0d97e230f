"""Seasons of series, in rows: the usual ones for a frequency, and the one whose baseline is best on validation."""

from collections.abc import Sequence

import numpy as np

from seqjax.datasets import forecast_batching
from seqjax.datasets.baselines import forecast_baselines
from seqjax.datasets.forecast_batching import Split
from seqjax.datasets.readers.dates import Frequency

MINUTE, DAY = 60_000_000, 86_400_000_000  # microseconds
SHORT = (MINUTE, 60 * MINUTE)  # microseconds of cycles that are seasons if they have 12 rows or more
LONG = (DAY, 7 * DAY)  # microseconds of cycles that are seasons if they have 2 rows or more
YEAR = 365.25 * DAY


def usual(frequency: Frequency) -> list[int]:
    """Returns the lengths in rows of the usual seasons of a frequency, ascending; [] if it has none.

    >>> hours, days = Frequency('microseconds', 60 * MINUTE), Frequency('microseconds', DAY)
    >>> usual(hours), usual(days), usual(Frequency('months', 3))
    ([24, 168], [7, 365], [4])
    """
    if frequency.unit == 'weekdays':
        return [5, 260]
    if frequency.unit != 'microseconds':
        return [12 // frequency.count] if 12 % frequency.count == 0 and frequency.count < 12 else []
    gap = frequency.count
    seasons = [cycle // gap for cycle in SHORT if cycle % gap == 0 and cycle >= 12 * gap]
    seasons += [cycle // gap for cycle in LONG if cycle % gap == 0 and cycle >= 2 * gap]
    return seasons + ([round(YEAR / gap)] if gap % DAY == 0 and 2 * gap <= YEAR else [])


def fitting(seasons: Sequence[int], splits: Sequence[Split]) -> list[int]:
    """Returns the seasons, in rows, that are shorter than the training split of every series."""
    shortest = min(split.validation for split in splits)
    return [season for season in seasons if season < shortest]


def best(seasons: Sequence[int], scaled: Sequence[np.ndarray], splits: Sequence[Split], horizon: int) -> int | None:
    """Returns the season whose seasonal naive baseline has the lowest squared error on validation; None if none.

    Args:
      seasons: lengths of the seasons, in rows.
      scaled: targets of each series [n, C], minus their mean and divided by their deviation in the training split.
      splits: the Split of each series.
      horizon: forecast horizon in rows.
    """
    ranges = forecast_batching.origin_ranges('validation', splits, [len(values) for values in scaled], horizon)
    origins = [np.arange(*span) for span in ranges]

    def error(season: int) -> float:
        total = 0.0
        for values, places in zip(scaled, origins, strict=True):
            for target in values.T:
                forecasts = forecast_baselines.seasonal_naive(target, places, horizon, season)
                total += float(np.nansum((forecasts - target[places[:, None] + np.arange(1, horizon + 1)]) ** 2))
        return total

    return min(seasons, key=error) if seasons else None
