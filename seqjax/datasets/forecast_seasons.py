"""Seasons of a series: the usual ones of its frequency, and the one that forecasts best on validation."""

from collections.abc import Sequence

import numpy as np

from seqjax.datasets import forecast_batching
from seqjax.datasets.baselines import forecast_baselines
from seqjax.datasets.forecast_batching import Split
from seqjax.datasets.readers.dates import Pace

MINUTE, DAY = 60_000_000, 86_400_000_000  # microseconds
SHORT = (MINUTE, 60 * MINUTE)  # cycles that count where they have 12 rows or more
LONG = (DAY, 7 * DAY)  # cycles that count where they have 2 rows or more
YEAR = 365.25 * DAY


def usual(pace: Pace) -> list[int]:
    """Returns the usual seasons of a frequency, in rows, the shortest first.

    >>> usual(Pace('microseconds', 60 * MINUTE)), usual(Pace('microseconds', DAY)), usual(Pace('months', 3))
    ([24, 168], [7, 365], [4])
    """
    if pace.unit == 'weekdays':
        return [5, 260]
    if pace.unit != 'microseconds':
        return [12 // pace.count] if 12 % pace.count == 0 and pace.count < 12 else []
    gap = pace.count
    found = [cycle // gap for cycle in SHORT if cycle % gap == 0 and cycle >= 12 * gap]
    found += [cycle // gap for cycle in LONG if cycle % gap == 0 and cycle >= 2 * gap]
    return found + ([round(YEAR / gap)] if gap % DAY == 0 and 2 * gap <= YEAR else [])


def fitting(seasons: Sequence[int], splits: Sequence[Split]) -> list[int]:
    """Returns the seasons that are shorter than the training part of every series."""
    shortest = min(split.validation for split in splits)
    return [season for season in seasons if season < shortest]


def best(seasons: Sequence[int], scaled: Sequence[np.ndarray], splits: Sequence[Split], horizon: int) -> int | None:
    """Returns the season whose seasonal naive forecast has the lowest squared error on validation; None of no seasons.

    `scaled` are the targets of each series [n, C], in standard deviations of its training part.
    """
    ranges = forecast_batching.spans('validation', splits, [len(values) for values in scaled], horizon)
    origins = [np.arange(*span) for span in ranges]

    def error(season: int) -> float:
        total = 0.0
        for values, some in zip(scaled, origins, strict=True):
            for target in values.T:
                forecasts = forecast_baselines.seasonal(target, some, horizon, season)
                total += float(np.nansum((forecasts - target[some[:, None] + np.arange(1, horizon + 1)]) ** 2))
        return total

    return min(seasons, key=error) if seasons else None
