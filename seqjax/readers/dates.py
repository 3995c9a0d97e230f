"""Dates of rows: how far they are apart, where one is left out, and which ones come next."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

MICRO = 'datetime64[us]'
WRITTEN = re.compile(r'\d{4}(-\d\d(-\d\d([ T]\d\d(:\d\d(:\d\d(\.\d{1,6})?)?)?)?)?)?', re.ASCII)
UNITS = (('day', 86_400_000_000), ('hour', 3_600_000_000), ('minute', 60_000_000), ('second', 1_000_000))


def parsed(text: str) -> np.datetime64:
    """A date that a person wrote as YYYY-MM-DD, or with the time of day, or without day or month.

    Raises:
      ValueError: it is none.
    """
    if not WRITTEN.fullmatch(text.strip()):
        raise ValueError(f'{text!r} is no date')
    return np.datetime64(text.strip(), 'us')


def written(date: np.datetime64) -> str:
    """As short as it can be.

    >>> written(np.datetime64('2020-01-31T00:00', 'us')), written(np.datetime64('2020-01-31T12:30', 'us'))
    ('2020-01-31', '2020-01-31 12:30:00')
    """
    for unit in ('D', 's'):
        if date == date.astype(f'datetime64[{unit}]'):
            return str(date.astype(f'datetime64[{unit}]')).replace('T', ' ')
    return str(date).replace('T', ' ')


class Pace(NamedTuple):
    """The time between two rows, as most rows have it."""

    unit: str  # 'months', 'ends of months', 'weekdays' or 'microseconds'
    count: int

    def words(self) -> str:
        """For a person."""
        if self.unit == 'weekdays':
            return 'a weekday'
        if self.unit != 'microseconds':
            return f'{self.count // 12} year(s)' if self.count % 12 == 0 else f'{self.count} month(s)'
        for name, size in UNITS:
            if self.count % size == 0:
                return f'{self.count // size} {name}(s)'
        return f'{self.count} microseconds'

    def after(self, date: np.datetime64, steps: int) -> np.ndarray:
        """The dates [steps] that follow one."""
        ahead = np.arange(1, steps + 1)
        if self.unit == 'weekdays':
            day = date.astype('datetime64[D]')
            return np.busday_offset(day, ahead, roll='backward').astype(MICRO) + (date - day)
        if self.unit == 'microseconds':
            return date + ahead * np.timedelta64(self.count, 'us')
        month = date.astype('datetime64[M]')
        within = date - month.astype(MICRO)
        months = month + ahead * np.timedelta64(self.count, 'M')
        last = _last_days(months).astype(MICRO)
        if self.unit == 'ends of months':
            return last + within % np.timedelta64(1, 'D')
        return np.minimum(months.astype(MICRO) + within, last + within % np.timedelta64(1, 'D'))


def pace(dates: np.ndarray) -> Pace:
    """How far apart most of some dates [n >= 2] are."""
    days, months = dates.astype('datetime64[D]'), dates.astype('datetime64[M]')
    steps = np.diff(months).astype(int)
    if (steps > 0).all():  # a row a month at most
        if len(np.unique(dates - months.astype(MICRO))) == 1:
            return Pace('months', _commonest(steps))
        if (days == _last_days(months)).all():
            return Pace('ends of months', _commonest(steps))
    gap = _commonest(np.diff(dates).astype(int))
    if gap == 86_400_000_000 and len(dates) > 7 and np.is_busday(days).all():
        return Pace('weekdays', 1)
    return Pace('microseconds', gap)


def _last_days(months: np.ndarray) -> np.ndarray:
    """The last day of each month."""
    return (months + np.timedelta64(1, 'M')).astype('datetime64[D]') - np.timedelta64(1, 'D')


def gaps(dates: np.ndarray, found: Pace) -> np.ndarray:
    """Places [k] of the dates [n] whose next one does not follow at the pace."""
    if found.unit == 'weekdays':
        days = dates.astype('datetime64[D]')
        return np.flatnonzero(np.busday_count(days[:-1], days[1:]) != 1)
    if found.unit == 'microseconds':
        return np.flatnonzero(np.diff(dates).astype(int) != found.count)
    return np.flatnonzero(np.diff(dates.astype('datetime64[M]')).astype(int) != found.count)


def _commonest(values: np.ndarray) -> int:
    found, counts = np.unique(values, return_counts=True)
    return int(found[np.argmax(counts)])
