"""Summary of the columns of numbers of a table: count, missing values, range, median and suspicious values."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from seqjax.datasets.readers.table_columns import Series
from seqjax.datasets.readers.tables import SeriesTable

MAX_COLUMNS, MAX_LINES = 20, 8  # maximum numbers of columns that are listed, and of lines about suspicious values
OUTLIER_RANGES, STAND_IN_RANGES = 20, 3  # minimum distance from the quartiles, in interquartile ranges
MIN_VALUES = 8  # minimum number of values for quartiles
# Numbers that stand for a missing value in many files.
STAND_INS = {-99, -999, -9999, -99999, -999.9, -999.99, -9999.9, -9999.99, 9999, 99999, 999999, 1e20, 1e30, 1e36}


class SuspiciousValue(NamedTuple):
    """Suspicious value of a series, which may be a mistake, with similar values."""

    row: int  # number of the first row of the file with such a value, counted from 1
    value: float  # value in this row
    count: int  # number of such values in the series
    reason: str  # reason for the suspicion, to end a message


def lines(table: SeriesTable) -> list[str]:
    """Returns lines with the count, missing values, minimum, median and maximum of each column, and suspicious values.

    The first line has headings. Columns after the first 20 share a line. At most 8 suspicious values have lines; then
    a line has the number of others.
    """
    names = table.columns.numbers
    columns = [
        np.concatenate([one.values[:, place] for one in table.series]) for place in range(min(len(names), MAX_COLUMNS))
    ]
    rows = [['column', 'count', 'missing', 'min', 'median', 'max']]
    rows += [[name[:40], *_numbers(values)] for name, values in zip(names[:MAX_COLUMNS], columns, strict=False)]
    widths = [max(map(len, words)) for words in zip(*rows, strict=True)]
    shown = ['  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    if len(names) > MAX_COLUMNS:
        count, missing, low, _, high = _numbers(
            np.concatenate([one.values[:, MAX_COLUMNS:].ravel() for one in table.series])
        )
        shown.append(
            f'{len(names) - MAX_COLUMNS:,} more columns: {count} values from {low} to {high}, {missing} missing'
        )
    odd = [
        f'{name}{one.phrase}: row {row:,} is {value:.9g}'
        + (f', as in {count - 1:,} more rows; {reason}' if count > 1 else f'; {reason}')
        for place, name in enumerate(names)
        for one in table.series
        for row, value, count, reason in suspicious_values(one, place)
    ]
    more = [f'{len(odd) - MAX_LINES:,} more suspicious values'] if len(odd) > MAX_LINES else []
    return [*shown, *odd[:MAX_LINES], *more]


def _numbers(values: np.ndarray) -> list[str]:
    known = values[~np.isnan(values)]
    extent = [f'{x:.6g}' for x in (known.min(), np.median(known), known.max())] if len(known) else ['-'] * 3
    return [f'{len(known):,}', f'{len(values) - len(known):,}', *extent]


def suspicious_values(series: Series, place: int) -> Iterator[SuspiciousValue]:
    """Yields the suspicious values in the column with index `place` of a series; none if it has fewer than 8 values.

    These are stand-ins for missing values such as -999, a first or last row that is the sum of all other rows, and
    outliers.
    """
    known = ~np.isnan(series.values[:, place])
    values, rows = series.values[known, place], series.rows[known]
    if len(values) < MIN_VALUES:
        return
    usual = np.ones(len(values), bool)

    def odd(flags: np.ndarray, reason: str) -> SuspiciousValue:
        usual[flags] = False
        first = int(np.argmax(flags))
        return SuspiciousValue(int(rows[first]), float(values[first]), int(flags.sum()), reason)

    if not STAND_INS.isdisjoint((values.min(), values.max())):
        plain = np.isin(values, list(STAND_INS), invert=True)
        low, high = _limits(values[plain], STAND_IN_RANGES)
        for number in np.unique(values[~plain]):
            if not low <= number <= high:
                yield odd(values == number, 'this number often stands for a missing value')
    total = float(values.sum())
    for end, neighbour in ((len(values) - 1, -2), (0, 1)):
        if values[end] not in (0, values[neighbour]) and math.isclose(values[end], total - values[end], rel_tol=1e-6):
            yield odd(np.arange(len(values)) == end, 'it is the sum of all other rows')
    low, high = _limits(values[usual], OUTLIER_RANGES)
    flags = usual & ((values < low) | (values > high))
    if flags.any():
        yield odd(flags, f'an outlier, more than {OUTLIER_RANGES} interquartile ranges from the quartiles')


def _limits(values: np.ndarray, ranges: float) -> tuple[float, float]:
    """Returns the range of usual values [n]: from the quartiles, `ranges` interquartile ranges farther down and up.

    If both quartiles are equal, the range also covers the quartiles of the values that differ. If fewer than 8 differ,
    the range is that one value for stand-ins, and unlimited for outliers.
    """
    low, high = _quartiles(values)
    if low == high:
        rarer = values[values != low]
        if len(rarer) < MIN_VALUES:
            return (low, high) if ranges == STAND_IN_RANGES else (-math.inf, math.inf)
        first, third = _quartiles(rarer)
        low, high = min(low, first), max(high, third)
    return low - ranges * (high - low), high + ranges * (high - low)


def _quartiles(values: np.ndarray) -> tuple[float, float]:
    if not len(values):
        return math.nan, math.nan
    places = len(values) // 4, len(values) - 1 - len(values) // 4
    return tuple(np.partition(values, places)[list(places)].tolist())
