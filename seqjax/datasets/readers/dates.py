"""Date arithmetic: frequency, gaps, following dates and time zones.

A date is a local time, datetime64[us], with its offset from UTC in seconds if known. Frequencies of whole days or
months use the local time. The order of rows and other frequencies use the time in UTC, if the offset is known, since a
change of the clock does not affect it.
"""

from typing import NamedTuple

import numpy as np

MICRO = 'datetime64[us]'
DAY = 86_400_000_000  # microseconds
UNITS = (('day', DAY), ('hour', 3_600_000_000), ('minute', 60_000_000), ('second', 1_000_000))


def instants(local: np.ndarray, offsets: np.ndarray | None) -> np.ndarray:
    """Returns the times in UTC [n] of local times [n]; the local times if `offsets` (seconds [n]) is None."""
    return local if offsets is None else local - offsets.astype('timedelta64[s]')


def in_zone(instants: np.ndarray, zone: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the local times [n] in a zone of times in UTC [n], and the offsets from UTC in seconds [n] int32."""
    import pandas

    local = (
        pandas.DatetimeIndex(instants).tz_localize('UTC').tz_convert(zone).tz_localize(None).to_numpy().astype(MICRO)
    )
    return local, seconds(local - instants)


def offsets_in(local: np.ndarray, zone: str, after: np.datetime64 | None = None) -> np.ndarray:
    """Returns the offsets from UTC in seconds [n] int32 of local times [n] in a time zone, in the order of time.

    A local time that occurs twice, when the clock is set back, is the first occurrence if that is later than the time
    before it, otherwise the second. `after` is the UTC time before the first local time, if there is one. A local time
    that the zone skips stands for the next time that exists.
    """
    import pandas

    index = pandas.DatetimeIndex(local)
    readings = [
        index.tz_localize(zone, ambiguous=np.full(len(local), is_dst), nonexistent='shift_forward').tz_convert('UTC')
        for is_dst in (True, False)
    ]
    first, second = (reading.tz_localize(None).to_numpy().astype(MICRO) for reading in readings)
    utc, later_utc = np.minimum(first, second), np.maximum(first, second)
    for place in np.flatnonzero(utc != later_utc):
        before = utc[place - 1] if place else after
        if before is not None and utc[place] <= before:
            utc[place] = later_utc[place]
    return seconds(local - utc)


def seconds(differences: np.ndarray) -> np.ndarray:
    """Returns time differences [n] in whole seconds, int32, rounded down."""
    return (differences // np.timedelta64(1, 's')).astype(np.int32)


class Frequency(NamedTuple):
    """Most common time between a row and the next."""

    unit: str  # 'months', 'ends of months', 'weekdays' or 'microseconds'
    count: int  # months, weekdays (1) or microseconds between two rows

    def words(self) -> str:
        """Returns the frequency as text, such as '3 month(s)' or '1 weekday'."""
        if self.unit == 'weekdays':
            return '1 weekday'
        if self.unit != 'microseconds':
            return f'{self.count // 12} year(s)' if self.count % 12 == 0 else f'{self.count} month(s)'
        for name, size in UNITS:
            if self.count % size == 0:
                return f'{self.count // size} {name}(s)'
        return f'{self.count} microseconds'

    def days(self) -> float:
        """Returns the approximate time between two rows in days; a month counts 30.44 days, a weekday 1 day."""
        return self.count * {'microseconds': 1 / DAY, 'weekdays': 1}.get(self.unit, 30.44)

    def after(self, date: np.datetime64, steps: int) -> np.ndarray:
        """Returns the next dates [steps] after a date at this frequency; a day that a month lacks is its last day."""
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


def infer_frequency(dates: np.ndarray, offsets: np.ndarray | None = None) -> Frequency:
    """Returns the most common time between successive dates, local times [n] with n >= 2.

    It is in months if the dates are on the same day and time of different months, or on their last days; in weekdays if
    more than 7 daily dates have no weekend. If it is not a whole number of days, it is computed from times in UTC.
    """
    days, months = dates.astype('datetime64[D]'), dates.astype('datetime64[M]')
    steps = np.diff(months).astype(int)
    if (steps > 0).all():  # a row a month at most
        if len(np.unique(dates - months.astype(MICRO))) == 1:
            return Frequency('months', _most_common(steps))
        if (days == _last_days(months)).all():
            return Frequency('ends of months', _most_common(steps))
    gap = _most_common(np.diff(dates).astype(int))
    if gap <= 0 or gap % DAY:
        gap = _most_common(np.diff(instants(dates, offsets)).astype(int))
    if gap == DAY and len(dates) > 7 and np.is_busday(days).all():
        return Frequency('weekdays', 1)
    return Frequency('microseconds', gap)


def following(
    local: np.datetime64, offset: int | None, frequency: Frequency, steps: int, zone: str | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the next local times [steps] after `local`, and their offsets from UTC in seconds [steps] int32.

    The offsets follow the rules of `zone`; without a zone, they equal `offset`. They are None if `offset` is None.
    """
    if offset is None:
        return frequency.after(local, steps), None
    if zone is None:
        return frequency.after(local, steps), np.full(steps, offset, np.int32)
    instant = local - np.timedelta64(offset, 's')
    if frequency.unit == 'microseconds' and frequency.count % DAY:
        return in_zone(frequency.after(instant, steps), zone)
    ahead = frequency.after(local, steps)
    return ahead, offsets_in(ahead, zone, instant)


def _last_days(months: np.ndarray) -> np.ndarray:
    """Returns the last day [n] of each month [n]."""
    return (months + np.timedelta64(1, 'M')).astype('datetime64[D]') - np.timedelta64(1, 'D')


def gaps(dates: np.ndarray, frequency: Frequency, offsets: np.ndarray | None = None) -> np.ndarray:
    """Returns the indices of dates [n] after which the time to the next date differs from the frequency.

    A frequency in microseconds is compared in local time and in UTC, and the result with fewer indices is returned.
    """
    if frequency.unit == 'weekdays':
        days = dates.astype('datetime64[D]')
        return np.flatnonzero(np.busday_count(days[:-1], days[1:]) != 1)
    if frequency.unit == 'microseconds':
        times = dates, instants(dates, offsets)
        return min((np.flatnonzero(np.diff(time).astype(int) != frequency.count) for time in times), key=len)
    return np.flatnonzero(np.diff(dates.astype('datetime64[M]')).astype(int) != frequency.count)


def _most_common(values: np.ndarray) -> int:
    distinct, counts = np.unique(values, return_counts=True)
    return int(distinct[np.argmax(counts)])
