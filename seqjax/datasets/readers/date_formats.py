"""Date formats: checks of --date_format and --time_zone, and output of dates as text.

A format is a strptime format, as in pandas and Python, or one of `WORDS`. An offset from UTC at the end of a text is
removed before pandas parses the date. Dates are kept as local times, see `seqjax.datasets.readers.dates`.
"""

from __future__ import annotations

import re
import zoneinfo
from typing import NamedTuple

import numpy as np

ISO, QUARTER, WEEK = 'iso8601', 'quarter', 'week'
EPOCHS = {'epoch_s': 10**6, 'epoch_ms': 10**3}  # microseconds per unit; dates are units since 1970-01-01 UTC
WORDS = (ISO, QUARTER, WEEK, *EPOCHS)
DIRECTIVES = 'YymdbBjHIMSfpaA%'  # strptime directives that --date_format accepts, besides %z at the end
UNITS = ('D', 's', 'us')  # days, seconds, microseconds

DAYS = [
    *(f'%d{s}%m{s}%Y %m{s}%d{s}%Y %d{s}%m{s}%y %m{s}%d{s}%y %y{s}%m{s}%d %m{s}%Y'.split() for s in '/.-'),
    *(f'%Y{s}%m{s}%d|%d{s}%b{s}%Y|%d{s}%B{s}%Y|%d{s}%b{s}%y|%Y{s}%b{s}%d'.split('|') for s in '/.- '),
    *(f'%b{s}%Y|%B{s}%Y|%Y{s}%b|%Y{s}%B|%b{s}%y'.split('|') for s in '/.- '),
    ['%b %d, %Y', '%B %d, %Y', '%b %d %Y', '%B %d %Y', '%a, %d %b %Y', '%a %d %b %Y', '%A, %d %B %Y', '%A, %B %d, %Y'],
    ['%d. %B %Y', '%d. %b %Y', '%d%b%Y', '%Y%m', '%y%m%d'],
]
HOURS = ['%H:%M', '%H:%M:%S', '%H:%M:%S.%f', '%I:%M %p', '%I:%M:%S %p', '%I:%M%p', '%I:%M:%S%p', '%I %p', '%I%p']
OFFSET = re.compile(r'(?:\d:\d\d|\dT\d\d).*?\s*(Z|UTC|GMT|[+-]\d\d(?::?\d\d){0,2})$', re.ASCII)
QUARTERS = re.compile(r'(\d{4})[-/ ]?Q([1-4])|Q([1-4])[-/ ]?(\d{4})', re.ASCII | re.IGNORECASE)
WEEKS = re.compile(r'(\d{4})-?W(\d\d)(?:-?([1-7]))?', re.ASCII)
YEAR_FIRST = re.compile(r'\d{4}(?!\.\d$)', re.ASCII)  # excludes 2010.1, which may be October or a fraction
NUMBER = re.compile(r'(\d{4,})\.0', re.ASCII)  # a whole number that was written with a decimal, such as 2010.0


class DateFormat(NamedTuple):
    """Format of a date column; a run saves it, to read later files in the same format."""

    format: str | None = None  # a strptime format without %z, or one of WORDS; None if undecided
    zone: str | None = None  # time zone of the dates, such as Europe/Berlin; None if unknown
    aware: bool | None = None  # True if each date has an offset from UTC; None if undecided
    unit: str = 'D'  # the coarsest of UNITS in which all dates are whole numbers

    @classmethod
    def of_flags(cls, format: str | None, zone: str | None) -> DateFormat:
        """Returns the format for the values of --date_format and --time_zone; None for a flag that was not passed."""
        if format is None or format == ISO:
            return cls(format, zone)
        return cls(format.removesuffix('%z').rstrip(), zone, format.endswith('%z') or format in EPOCHS)

    def __str__(self) -> str:
        return f'{self.format}%z' if self.aware and '%' in str(self.format) else str(self.format)


class Timestamp(NamedTuple):
    """Local time and its offset from UTC, if known."""

    local: np.datetime64  # [us] local time
    offset: int | None = None  # seconds that local time is ahead of UTC; None if unknown

    @property
    def instant(self) -> np.datetime64:
        """Time in UTC; the local time if the offset is unknown."""
        return self.local - np.timedelta64(self.offset or 0, 's')


def check_format(text: str) -> str:
    """Returns `text`, the value of --date_format, unchanged; raises ValueError if it is not a supported format.

    The caller adds the flag and its value to the message.
    """
    if text in WORDS:
        return text
    if '%' not in text:
        raise ValueError(f'must be a strptime format, such as %d/%m/%Y, or one of {", ".join(WORDS)}')
    fields = re.findall(r'%(.?)', text.removesuffix('%z'), re.DOTALL)
    unknown = [field for field in fields if not field or field not in DIRECTIVES]
    if unknown:
        hint = ' (pass the zone as --time_zone)' if 'Z' in unknown else ''
        known = ' '.join(f'%{directive}' for directive in DIRECTIVES)
        raise ValueError(f'must not have %{unknown[0]}{hint}; use only the directives {known}, and %z at the end')
    has = set(fields)
    wrong = {
        'must have the year once, as %Y or %y': len(has & set('Yy')) != 1,
        'must have each directive at most once': len(fields) - fields.count('%') != len(has - {'%'}),
        'must have both %I and %p, or neither': ('I' in has) != ('p' in has),
        'must not have both %H and %I': {'H', 'I'} <= has,
        'must have a month, %m, %b or %B, if it has %d': 'd' in has and not has & set('mbB'),
        'must have at most one of %m, %b and %B': len(has & set('mbB')) > 1,
        'must have %H or %I if it has %M': 'M' in has and not has & set('HI'),
        'must have %M if it has %S': 'S' in has and 'M' not in has,
        'must have %S if it has %f': 'f' in has and 'S' not in has,
    }
    for sentence, refused in wrong.items():
        if refused:
            raise ValueError(sentence)
    return text


def check_zone(text: str) -> str:
    """Returns `text`, the value of --time_zone, unchanged; raises ValueError if it is not the name of a time zone.

    The caller adds the flag and its value to the message.
    """
    if not is_zone(text):
        raise ValueError('must be the name of a time zone, such as Europe/Berlin or UTC')
    return text


def is_zone(text: str) -> bool:
    try:
        zoneinfo.ZoneInfo(text)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        return False
    return True


def write(local: np.ndarray, offsets: np.ndarray | None, form: DateFormat) -> list[str]:
    """Returns dates [n] as ISO 8601 text with a space between date and time, and offsets from UTC if `form.aware`.

    The time is left out if all dates are at midnight, `form.unit` is 'D' and `form.aware` is not True.

    >>> local = np.array(['2020-01-31T12', '2020-02-01'], 'datetime64[us]')
    >>> write(local, np.array([3600, 7200]), DateFormat(aware=True))
    ['2020-01-31 12:00:00+01:00', '2020-02-01 00:00:00+02:00']
    """
    unit = max(form.unit, unit_of(local), 's' if form.aware else 'D', key=UNITS.index)
    words = [word.replace('T', ' ') for word in np.datetime_as_string(local, unit=unit).tolist()]
    if not form.aware or offsets is None:
        return words
    return [word + _offset_text(int(offset)) for word, offset in zip(words, offsets, strict=True)]


def write_one(timestamp: Timestamp, form: DateFormat) -> str:
    """Returns one date as ISO 8601 text, see `write`."""
    return write(np.array([timestamp.local]), None if timestamp.offset is None else np.array([timestamp.offset]), form)[
        0
    ]


def unit_of(local: np.ndarray) -> str:
    """Returns the coarsest of UNITS in which all dates [n] are whole numbers: 'D', 's' or 'us'."""
    return next(unit for unit in UNITS if unit == 'us' or (local.astype(f'datetime64[{unit}]') == local).all())


def _offset_text(seconds: int) -> str:
    sign, size = '-' if seconds < 0 else '+', abs(seconds)
    ending = f':{size % 60:02}' if size % 60 else ''
    return f'{sign}{size // 3600:02}:{size // 60 % 60:02}{ending}'
