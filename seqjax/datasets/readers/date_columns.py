"""Parsing of date columns. A format that is not known is inferred from all dates of the column."""

import datetime
import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from seqjax.datasets.readers import date_formats, dates, optional_packages
from seqjax.datasets.readers.date_formats import DateFormat, Timestamp
from seqjax.errors import UserError

UNDECIDED = DateFormat()  # every field is inferred from the dates


def parse(text: str, form: DateFormat, after: Timestamp | None = None, column: str = 'date') -> Timestamp:
    """Returns one date of a column whose format is known, parsed in the same way as in a file.

    Args:
      text: the date; spaces around it are ignored.
      form: the format of the column.
      after: the date of the row before. A local time that occurs twice, when the clock is set back, is the second
        occurrence if the first is not after this date.
      column: the name of the column, for messages.

    Raises:
      UserError: the text is empty, does not fit the format, or is a time that its zone skips; or pandas is not
        installed.
    """
    optional_packages.need('pandas', f'column {column!r}')
    reader = ColumnReader(lambda row: f'column {column!r}', form)
    reader.add_texts(1, [text])
    local, offsets, _ = reader.finish()
    if offsets is None and form.zone:
        offsets = dates.offsets_in(local, form.zone, None if after is None else after.instant)
    return Timestamp(local[0], None if offsets is None else int(offsets[0]))


class ColumnReader:
    """Reader of a date column, chunk by chunk. It keeps every format that fits all dates so far, until `finish`."""

    def __init__(self, where: Callable[[int], str], form: DateFormat):
        self.where = where  # row number, counted from 1 -> start of a message with file, row and column
        self.form = form
        # By format that fits so far: chunks of local times. None before the first chunk.
        self.readings: dict[str, list[np.ndarray]] | None = None
        self.offsets: list[np.ndarray] = []  # chunks of offsets from UTC in seconds; [] if the dates have none

    def add(self, first: int, column: Any) -> None:
        """Adds a chunk of the column: a pandas Series of dates, numbers or texts that starts in row `first`.

        Raises UserError if a date is missing, or if no format fits it and all dates before it.
        """
        from pandas.api import types

        missing = column.isna().to_numpy(bool)
        if missing.any():
            raise UserError(f'{self.where(first + int(missing.argmax()))}: the date is missing; add a date')
        if types.is_datetime64_any_dtype(column):
            self._add_dates(first, column)
        else:
            self.add_texts(first, column.astype(str).tolist())

    def add_texts(self, first: int, texts: list[str]) -> None:
        """Adds a chunk of dates as texts [n], which start in row `first`; raises the errors of `add`."""
        texts = [
            date_formats.NUMBER.sub(r'\1', text) if text.endswith('.0') else text for text in map(str.strip, texts)
        ]
        if '' in texts:
            raise UserError(f'{self.where(first + texts.index(""))}: the date is missing; add a date')
        plain, offsets = self._split_offsets(first, texts)
        if self.readings is None:
            formats = candidates(plain[0]) if self.form.format is None else [self.form.format]
            if not formats:
                raise UserError(f'{self.where(first)}: {texts[0][:80]!r} {_no_format(texts[0])}')
            self.readings = {format: [] for format in formats}
        fitting, misfits = {}, {}
        for format in self.readings:
            local = _local(plain, format)
            bad = np.isnat(local)
            if bad.any():
                misfits[int(bad.argmax())] = format
            else:
                fitting[format] = [*self.readings[format], local]
        if not fitting:
            place = max(misfits)
            raise UserError(
                f'{self.where(first + place)}: {texts[place][:80]!r} does not fit the date format '
                f'{misfits[place]}{_example(misfits[place])} of the column; write all its dates in this format, or '
                'correct --date_format if it was passed'
            )
        self.readings = fitting
        if offsets is not None:
            self.offsets.append(offsets)

    def _add_dates(self, first: int, column: Any) -> None:
        """Adds a chunk of a column of date type, as in Parquet. Its time zone is used if `form` has none."""
        zone = column.dt.tz
        self._check_aware(first, np.array([zone is not None]), [str(column.iloc[0])])
        local = column.to_numpy() if zone is None else column.dt.tz_localize(None).to_numpy()
        self.readings = {
            self.form.format or date_formats.ISO: [*(self.readings or {'': []}).popitem()[1], local.astype(dates.MICRO)]
        }
        if zone is not None:
            instants = column.dt.tz_convert('UTC').dt.tz_localize(None).to_numpy().astype(dates.MICRO)
            self.offsets.append(dates.seconds(local.astype(dates.MICRO) - instants))
            name = getattr(zone, 'key', None) or getattr(zone, 'zone', None) or str(zone)  # for zoneinfo and pytz
            if self.form.zone is None and date_formats.is_zone(name):
                self.form = self.form._replace(zone=name)

    def _split_offsets(self, first: int, texts: list[str]) -> tuple[list[str], np.ndarray | None]:
        """Returns the texts [n] without offsets from UTC, and the offsets in seconds [n], or None if there are none.

        The offset of a time since 1970 is 0. Quarters, weeks and formats without %z have none.
        Raises UserError if an offset is invalid, or if only some of the dates have one.
        """
        format = self.form.format
        if format in date_formats.EPOCHS:
            return texts, np.zeros(len(texts), np.int32)
        if format in (date_formats.QUARTER, date_formats.WEEK) or (
            format not in (None, date_formats.ISO) and not self.form.aware
        ):
            return texts, None
        matches = [date_formats.OFFSET.search(text) for text in texts]
        has = np.array([match is not None for match in matches])
        self._check_aware(first, has, texts)
        if not has[0]:
            return texts, None
        known: dict[str, int | None] = {}
        for place, match in enumerate(matches):
            end = match[1]
            if end not in known:
                known[end] = _offset_seconds(end)
            if known[end] is None:
                raise UserError(
                    f'{self.where(first + place)}: {texts[place][:80]!r} has the invalid offset {end} from UTC; use an '
                    'offset of at most 23 hours, 59 minutes and 59 seconds'
                )
        offsets = np.array([known[match[1]] for match in matches], np.int32)
        return [text[: match.start(1)].rstrip() for text, match in zip(texts, matches, strict=True)], offsets

    def _check_aware(self, first: int, has_offset: np.ndarray, texts: list[str]) -> None:
        """Raises UserError if a date has an offset from UTC and the column has none, or the reverse.

        `has_offset` [n] is True for each text with an offset. The first date of the column decides if its format does
        not.
        """
        if self.form.aware is None:
            self.form = self.form._replace(aware=bool(has_offset[0]))
        wrong = has_offset != self.form.aware
        if wrong.any():
            place = int(wrong.argmax())
            has, must = ('no', 'with') if self.form.aware else ('an', 'without')
            raise UserError(
                f'{self.where(first + place)}: {texts[place][:80]!r} has {has} offset from UTC, unlike the '
                f'dates before it, the training dates or --date_format; write all dates {must} an offset'
            )

    def finish(self, ids: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None, DateFormat]:
        """Returns the local times [n], their offsets from UTC in seconds [n] or None, and the format of the column.

        Call it once, after all chunks. If several formats fit and give different dates, it selects the one in which the
        dates of every series increase. Dates with offsets are converted to the time zone of the format, if it has one.
        `ids` [n] are the series ids of the rows, None for one series.

        Raises UserError if several formats are left, or if a time does not exist in the time zone.
        """
        offsets = np.concatenate(self.offsets) if self.offsets else None
        self.offsets = []
        readings = {format: np.concatenate(parts) for format, parts in self.readings.items()}
        self.readings = {}
        first, *others = readings
        for format in others:  # formats with the same dates are not ambiguous
            if np.array_equal(readings[first], readings[format]):
                del readings[format]
        if len(readings) > 1:
            increasing = [format for format, local in readings.items() if _rises(dates.instants(local, offsets), ids)]
            readings = {format: readings[format] for format in increasing or readings}
        if len(readings) > 1:
            self._refuse_ambiguous(readings)
        ((format, local),) = readings.items()
        form = self.form._replace(format=format, aware=offsets is not None)
        if form.zone and offsets is None:
            self._check_existing(local, form.zone)
        elif form.zone:
            local, offsets = dates.in_zone(dates.instants(local, offsets), form.zone)
        unit = max(form.unit, date_formats.unit_of(local), key=date_formats.UNITS.index)
        return local, offsets, form._replace(unit=unit)

    def _refuse_ambiguous(self, readings: dict[str, np.ndarray]) -> None:
        first, second = list(readings.values())[:2]
        row = int((first != second).argmax())
        examples = [
            f'{", ".join(date_formats.write(local[row : row + 3], None, DateFormat()))} with --date_format={format}'
            for format, local in readings.items()
        ]
        raise UserError(
            f'{self.where(row + 1)}: the dates from this row on are ambiguous: {"; or ".join(examples)}; pass one of '
            'these flags'
        )

    def _check_existing(self, local: np.ndarray, zone: str) -> None:
        """Raises UserError if a zone skips a local time [n] other than midnight, when the clock is set forward."""
        skipped = (dates.in_zone(dates.instants(local, dates.offsets_in(local, zone)), zone)[0] != local) & (
            local != local.astype('datetime64[D]')
        )
        if skipped.any():
            row = int(skipped.argmax())
            time = date_formats.write(local[row : row + 1], None, DateFormat())[0]
            raise UserError(
                f'{self.where(row + 1)} is {time}, which --time_zone={zone} skips when the clock is set forward; '
                'correct the time or the zone'
            )


def other_reading(local: np.ndarray, format: str | None) -> tuple[str, np.ndarray] | None:
    """Returns the format that is easily mistaken for `format`, and the dates [n] reread in it; None if there is none.

    It has day and month swapped, or is epoch_s for epoch_ms. There is none if it does not fit all dates. `local` [n]
    are the dates as read in `format`.

    >>> other_reading(np.array(['2020-01-01', '2020-01-02'], 'datetime64[us]'), '%d/%m/%Y')
    ('%m/%d/%Y', array(['2020-01-01T00:00:00.000000', '2020-02-01T00:00:00.000000'],
          dtype='datetime64[us]'))
    """
    if format == 'epoch_ms':
        since = local.astype(np.int64)
        return ('epoch_s', (1000 * since).astype(dates.MICRO)) if (np.abs(since) < 2**55 // 1000).all() else None
    if not {'%d', '%m'} <= {*re.findall('%.', format or '')}:
        return None
    days, months = local.astype('datetime64[D]'), local.astype('datetime64[M]')
    day, month, year = (days - months).astype(int), months.astype(int) % 12, local.astype('datetime64[Y]')
    if (day > 11).any():
        return None
    swapped = (year.astype('datetime64[M]') + day).astype('datetime64[D]') + month
    other = re.sub('%[dm]', lambda match: {'%d': '%m', '%m': '%d'}[match[0]], format)
    return other, swapped.astype(dates.MICRO) + (local - days)


def candidates(text: str) -> list[str]:
    """Returns the known formats that fit `text`, the first date of a column without its offset from UTC; [] if none.

    If ISO, QUARTER or WEEK fits, it is the only one returned, and strptime formats are not tried.
    """
    one = [text]
    for word in (date_formats.ISO, date_formats.QUARTER, date_formats.WEEK):
        if not np.isnat(_local(one, word)).any():
            return [word]
    return [format for format in _formats().get(_shape(text), ()) if not np.isnat(_local(one, format)).any()]


@functools.cache
def _formats() -> dict[str, list[str]]:
    """Returns lists of the known strptime formats, by the `_shape` of the texts that they fit."""
    days = [format for formats in date_formats.DAYS for format in formats]
    by_shape: dict[str, list[str]] = {}
    for format in days + [
        f'{day}{sign}{hour}' for day in days for sign in (' ', 'T', ', ') for hour in date_formats.HOURS
    ]:
        by_shape.setdefault(_shape(re.sub('%[bBaAp]', 'x', re.sub('%[YymdHIMSf]', '0', format))), []).append(format)
    return by_shape


def _shape(text: str) -> str:
    """Returns the text with each number replaced by 0, each word by x, and each run of white space by one space.

    >>> _shape('2 Jan 2010  13:00')
    '0 x 0 0:0'
    """
    return re.sub(r'\s+', ' ', re.sub(r'[^\W\d_]+', 'x', re.sub(r'\d+', '0', text)))


def _local(texts: list[str], format: str) -> np.ndarray:
    """Returns the local times [n] datetime64[us] of texts without offsets; NaT where a text does not fit the format."""
    import pandas

    if format in date_formats.EPOCHS:
        numbers = (
            pandas.to_numeric(np.array(texts, object), errors='coerce').astype(np.float64) * date_formats.EPOCHS[format]
        )
        fits = np.abs(numbers) < 2**55  # microseconds of about a thousand years
        return np.where(
            fits, np.where(fits, numbers, 0).round().astype(np.int64).view(dates.MICRO), np.datetime64('NaT', 'us')
        )
    if format == date_formats.QUARTER:
        texts, format = [_first_month(text) for text in texts], '%Y-%m'
    elif format == date_formats.WEEK:
        weeks = [date_formats.WEEKS.fullmatch(text) for text in texts]
        texts, format = [one and f'{one[1]}-{one[2]}-{one[3] or 1}' for one in weeks], '%G-%V-%u'
    elif format == date_formats.ISO:
        texts, format = [text if date_formats.YEAR_FIRST.match(text) else None for text in texts], 'ISO8601'
    else:  # pandas reads these words in any format
        texts = [None if text.lower() in ('now', 'today') else text for text in texts]
    return pandas.to_datetime(np.array(texts, object), format=format, errors='coerce').to_numpy().astype(dates.MICRO)


def _first_month(text: str) -> str | None:
    """Returns the first month of a quarter such as 2010-Q1 as YYYY-MM; None if the text is not a quarter."""
    match = date_formats.QUARTERS.fullmatch(text)
    return match and f'{match[1] or match[4]}-{3 * int(match[2] or match[3]) - 2:02}'


def _offset_seconds(text: str) -> int | None:
    """Returns an offset from UTC such as +01:00 in seconds, 0 for Z, UTC and GMT; None if invalid, such as +25:00."""
    if text[0] not in '+-':
        return 0
    digits = text[1:].replace(':', '').ljust(6, '0')
    hours, minutes, seconds = (int(digits[place : place + 2]) for place in (0, 2, 4))
    total = 3600 * hours + 60 * minutes + seconds
    return (-total if text[0] == '-' else total) if hours < 24 and max(minutes, seconds) < 60 else None


def _rises(instants: np.ndarray, ids: np.ndarray | None) -> bool:
    """Returns True if the times [n] of each series strictly increase; `ids` [n] are series ids, None for one series."""
    if ids is None:
        return bool((instants[1:] > instants[:-1]).all())
    import pandas

    codes, _ = pandas.factorize(ids)
    order = np.argsort(codes, kind='stable')
    later = np.diff(instants[order]) > np.timedelta64(0, 'us')
    return bool((later | (np.diff(codes[order]) > 0)).all())


def _example(format: str) -> str:
    """Returns an example date in a strptime format, in parentheses; '' for other formats."""
    day = datetime.datetime(2024, 12, 31, 18, 30)
    return f' (such as {day.strftime(format)})' if '%' in format else ''


def _no_format(text: str) -> str:
    """Returns the end of a message about the first date of a column if it is in no known format."""
    digits = text.lstrip('-').partition('.')[0]
    epoch = {10: 'epoch_s', 9: 'epoch_s', 13: 'epoch_ms', 12: 'epoch_ms'}.get(len(digits)) if digits.isdigit() else None
    remedy = f'--date_format={epoch} if it is the time since 1970' if epoch else 'the format as --date_format'
    return (
        f'is not a date in a known format; pass {remedy}, write the dates as YYYY-MM-DD, or leave out --date if '
        'the column only numbers the rows'
    )
