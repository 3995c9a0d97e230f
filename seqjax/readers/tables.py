"""Tables of numbers in time: CSV, TSV and parquet files, parsed by pandas and pyarrow, a part of the rows at a time.

A row of a file is counted from 1, below the names of the columns.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from seqjax.files import UserError, open_file
from seqjax.readers import date_formats, numbers
from seqjax.readers.bounds import Bounds
from seqjax.readers.date_formats import UNDECIDED, ColumnReader, DateFormat
from seqjax.readers.dates import instants, offsets_in
from seqjax.readers.extra import need
from seqjax.readers.numbers import MISSING, BadNumber, NumberFormat

CHUNK = 2**16  # rows that are parsed at a time
TABS = ('.tsv', '.tab')
BYTE_ORDER = (b'\xff\xfe', b'\xfe\xff')  # how UTF-16 begins
OTHERS = {'\t': 'tab', ';': ';', ',': ',', '|': '|'}  # separators, as --separator takes them


class Columns(NamedTuple):
    """Which columns of a file are read, and as what."""

    targets: Sequence[str] | None  # None: the one column of numbers beside all others
    covariates: Sequence[str] = ()
    date: str | None = None
    id: str | None = None  # which series a row is of

    @property
    def numbers(self) -> list[str]:
        return [*(self.targets or ()), *self.covariates]

    @property
    def all(self) -> list[str]:
        return [*self.words, *self.numbers]

    @property
    def words(self) -> list[str]:
        return [name for name in (self.id, self.date) if name is not None]


class Series(NamedTuple):
    """Rows that follow one another in time."""

    name: str | None  # its id; None where a file has one series
    values: np.ndarray  # [n, columns] float64: targets, then covariates; NaN where one is missing
    rows: np.ndarray  # [n] of the file, counted from 1
    dates: np.ndarray | None  # [n] datetime64[us], local times
    offsets: np.ndarray | None = None  # [n] seconds from UTC to the local time; None where no zone is known

    @property
    def instants(self) -> np.ndarray:
        """[n], rising: the dates in UTC; the local times where no zone is known."""
        return instants(self.dates, self.offsets)

    @property
    def phrase(self) -> str:
        """The series, in a sentence that names a row or a column of it."""
        return '' if self.name is None else f' of series {self.name!r}'


class Table(NamedTuple):
    """A file that was read."""

    columns: Columns  # the targets known
    series: Sequence[Series]  # in the order in which they begin
    dates: DateFormat = UNDECIDED  # of the column of dates, if there is one
    names: Sequence[str] = ()  # of all columns of the file, in their order
    separator: str = ','  # between columns of text
    formats: Mapping[str, NumberFormat] = MappingProxyType({})  # of the numbers in each column


def read(
    path: Path,
    columns: Columns,
    *,
    separator: str = ',',
    decimal: str | None = None,
    thousands: str | None = None,
    formats: Mapping[str, NumberFormat] | None = None,
    mask: bool = False,
    dates: DateFormat = UNDECIDED,
    bounds: Bounds = Bounds(),  # noqa: B008
) -> Table:
    """Reads the columns that are asked for, and no other.

    Args:
      path: parquet where it is named so, text with a separator otherwise.
      columns: what to read; a single column of numbers is found by itself.
      separator: between columns of text; a file named .tsv has tabs where it is the comma.
      decimal: the decimal sign of numbers in text; by default '.', and columns that leave it open are refused.
      thousands: the sign between groups of digits, a key of `numbers.THOUSANDS`.
      formats: of the columns of an earlier file, which this one must follow; instead of `decimal` and `thousands`.
      mask: whether values may be missing.
      dates: the format of the dates, as far as it is known.
      bounds: of the columns of the file, and of the bytes of a text or of the columns that are read.

    Raises:
      UserError: the file cannot be read as such a table; a column is not there, holds text, or numbers of which the
        decimal sign is ambiguous; a value is infinite, or missing without `mask`; dates do not rise. The sentence names
        the row and the column.
    """
    need('pandas', path)
    format = next(iter(formats.values())) if formats else numbers.format_of(decimal, thousands)
    source = (_Parquet if path.suffix == '.parquet' else _Text)(path, separator, format, bool(formats), bounds)
    _check_names(path, source.names)
    if columns.targets is None:
        columns = columns._replace(targets=[_only_number(source, columns)])
    _check_columns(path, source.names, columns)
    source.check_size(len(columns.all))
    reader = ColumnReader(lambda row: f'{path}: row {row}, column {columns.date!r}', dates)
    # pandas would drop thousands signs wherever they stand, so these numbers are read as text.
    words = columns.words if format.thousands is None else columns.all
    parts = [_Part(path, first, frame, columns, source, reader) for first, frame in source.frames(columns.all, words)]
    if not parts:
        raise UserError(f'{path} has no row below the names of its columns; give it some')
    ids = None if columns.id is None else np.concatenate([part.ids for part in parts])
    days = offsets = None
    if columns.date is not None:
        days, offsets, dates = reader.finish(ids)
    values = np.empty((sum(len(part.values) for part in parts), len(columns.numbers)))
    place = 0
    for part in parts:  # a part is let go of as soon as it is copied
        values[place : (place := place + len(part.values))] = part.values
        part.values = None
    pointed = np.any([part.pointed for part in parts], 0)
    formats = _settle(source, columns.numbers, values, pointed, formats or dict.fromkeys(columns.numbers, format))
    if not mask:
        _refuse_missing(path, values, columns.numbers)
    series = _by_series(values, ids, days, offsets)
    if days is not None and offsets is None and dates.zone:
        series = [one._replace(offsets=offsets_in(one.dates, dates.zone)) for one in series]
    for one in series:
        _check_dates(path, one, columns, dates)
    return Table(columns, series, dates, source.names, source.separator, formats)


def one_line(error: Exception) -> str:
    """What a library says, in a line."""
    return ' '.join(str(error).split())[:200]


def near(word: str, words: Sequence[str]) -> str:
    """The end of a sentence about a word that is none of some others: the nearest, and what there is."""
    close = difflib.get_close_matches(word, words, 1)
    some = ', '.join(map(repr, words[:20])) + (', ...' if len(words) > 20 else '')
    return f'; did you mean {close[0]!r}?' if close else f'; there are {some}'


# --- files -----------------------------------------------------------------------------------------


class _Text:
    """Text with a separator between columns."""

    typed = False

    def __init__(self, path: Path, separator: str, numbers: NumberFormat, fixed: bool, bounds: Bounds):
        _check_bytes(path)
        self.path, self.numbers, self.fixed = path, numbers, fixed
        self.separator = '\t' if path.suffix in TABS and separator == ',' else separator
        bounds.check_columns(path, _count_columns(path, self.separator))
        bounds.check_bytes(path, path.stat().st_size)
        with self._parsing():
            head = self._csv(header=None, nrows=1, dtype=str, keep_default_na=False)
        self.names = [str(name).strip() for name in head.iloc[0]] if len(head) else []
        self._check_separator()

    def check_size(self, columns: int) -> None:
        """Does nothing: the values of a text take a few times the bytes of the file at most."""

    def frames(
        self,
        names: Sequence[str],
        words: Sequence[str] = (),
        rows: int | None = None,
        checked: bool = False,
        pointless: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """The number of a first row, and a pandas frame of the columns, part by part; `words` are read as text.

        No other column is parsed if the file was `checked` by an earlier reading; `pointless` leaves out all points.
        """
        unique = [name or f' {place}' for place, name in enumerate(self.names)]
        # All columns are parsed: with a choice of them, pandas drops the values that a row has too many.
        options = {'names': unique, 'header': 0, 'index_col': False, 'low_memory': False}
        # What is a word and what is missing is a matter of the column: an id may be NA, and 007.
        options |= {'dtype': dict.fromkeys(words, str), 'keep_default_na': False}
        options |= {'na_values': {name: ('',) if name in words else MISSING for name in names}}
        options |= {'usecols': list(names)} if checked else {}
        options |= {'decimal': ',', 'thousands': '.'} if pointless else {}
        chunk = max(1, min(CHUNK, 8 * CHUNK // len(unique)))
        left = self._rows_before_blank_end() if rows is None else rows
        with self._parsing(), self._csv(**options, chunksize=chunk, nrows=left) as reader:
            first = 1
            for frame in reader:
                if len(frame):
                    yield first, frame[list(names)]
                first += len(frame)

    def _csv(self, **options: Any) -> Any:
        import pandas

        options = {'decimal': self.numbers.decimal, **options}
        options |= {'sep': self.separator, 'encoding': 'utf-8-sig', 'skip_blank_lines': False, 'compression': None}
        # The other parsers drop what follows 17 digits, leading zeros among them: 0.00000000000000001 would be 0.
        options |= {'float_precision': 'round_trip'}
        return pandas.read_csv(self.path, engine='c', skipinitialspace=True, **options)

    @contextlib.contextmanager
    def _parsing(self) -> Iterator[None]:
        """Turns what pandas refuses into a sentence."""
        import pandas

        how = f'with {OTHERS.get(self.separator, self.separator)!r} between columns'
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('error', pandas.errors.ParserWarning)
                yield
        except UserError:
            raise
        except UnicodeDecodeError as error:
            raise UserError(f'{self.path} is not UTF-8{_first_bad_byte(self.path)}; save it as UTF-8') from error
        except pandas.errors.ParserWarning as error:
            raise UserError(
                f'{self.path} has rows of more values than its {len(self.names)} names of columns; name all, or '
                'put numbers that hold the separator in quotes'
            ) from error
        except pandas.errors.EmptyDataError as error:
            raise UserError(f'{self.path} begins with a blank line; write the names of the columns there') from error
        except (ValueError, OverflowError) as error:
            raise UserError(
                f'{self.path} is no table {how} ({one_line(error)}); mend it, or say --separator'
            ) from error

    def _check_separator(self) -> None:
        if len(self.names) != 1:
            return
        for sign, word in OTHERS.items():
            if sign in self.names[0] and sign != self.separator:
                raise UserError(
                    f'{self.path} has one column, {self.names[0][:80]!r}, by its separator '
                    f'{OTHERS.get(self.separator, self.separator)!r}; say --separator={word!r}'
                )

    def _rows_before_blank_end(self) -> int | None:
        """How many rows there are, where the file ends in blank lines, which are none; None where it does not."""
        size, tail = self.path.stat().st_size, 2**16
        with self.path.open('rb') as file:
            file.seek(max(0, size - tail))
            ending = file.read()
        blank = ending[len(ending.rstrip(b'\r\n')) :]
        ends = blank.count(b'\n') or blank.count(b'\r')
        if ends < 2 or len(blank) == len(ending):
            return None
        return self._count() - (ends - 1)

    def _count(self) -> int:
        """Rows by the library's own reading of the first column."""
        with self._csv(header=0, usecols=[0], dtype=str, index_col=False, chunksize=CHUNK) as reader:
            return sum(len(frame) for frame in reader)


class _Parquet:
    """A parquet file."""

    separator = ','  # of lines that are read with a run on such a file
    typed = True  # numbers are numbers, not text

    def __init__(self, path: Path, separator: str, numbers: NumberFormat, fixed: bool, bounds: Bounds):
        parquet, arrow = need('pyarrow.parquet', path), need('pyarrow', path)
        _check_file(path)
        self.path, self.numbers, self.fixed = path, numbers, fixed
        self.failures = (arrow.ArrowException, OSError, ValueError)
        with self._parsing():
            self.file = parquet.ParquetFile(path)
            self.bounds = bounds
            bounds.check_columns(path, self.file.metadata.num_columns)
            self.names = list(self.file.schema_arrow.names)

    def check_size(self, columns: int) -> None:
        """Raises UserError if so many columns are too large in memory, however small they are in the file."""
        rows = self.file.metadata.num_rows
        self.bounds.check_bytes(self.path, 8 * columns * rows, f'has {rows:,} rows, and {columns} columns of them take')

    def frames(
        self,
        names: Sequence[str],
        words: Sequence[str] = (),
        rows: int | None = None,
        checked: bool = False,
        pointless: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """As those of text; a file of parquet knows itself what is text."""
        first = 1
        with self._parsing():
            for batch in self.file.iter_batches(batch_size=min(rows or CHUNK, CHUNK), columns=list(names)):
                if batch.num_rows:
                    yield first, batch.select(list(names)).to_pandas()
                first += batch.num_rows
                if rows is not None and first > rows:
                    return

    @contextlib.contextmanager
    def _parsing(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except self.failures as error:
            raise UserError(f'{self.path} cannot be read as parquet ({one_line(error)}); write it again') from error


def _check_file(path: Path) -> None:
    try:
        with open_file(path) as file:
            if not file.read(1):
                raise UserError(f'{path} is empty; give a file with a row of names and rows of numbers')
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}; give another --data') from error


def _check_bytes(path: Path) -> None:
    """Refuses what is no text in UTF-8 at its very beginning."""
    _check_file(path)
    with path.open('rb') as file:
        head = file.read(2**16)
    if head.startswith(BYTE_ORDER):
        raise UserError(f'{path} is not UTF-8 but UTF-16, by its first two bytes; save it as UTF-8')
    if b'\0' in head:
        place = head.index(b'\0')
        raise UserError(f'{path} is binary: byte {place + 1} is 0, which no text has; give a CSV or a .parquet file')
    if not head.removeprefix(b'\xef\xbb\xbf').strip():
        raise UserError(f'{path} is blank; give a file with a row of names and rows of numbers')


def _count_columns(path: Path, separator: str) -> int:
    """Returns the number of columns of a text by its first line, which may be of any length."""
    count, quoted = 1, False
    with path.open('rb') as file:
        while block := file.read(2**16):
            for place, piece in enumerate(block.split(b'"')):
                quoted ^= place > 0
                if quoted:
                    continue
                line = re.match(rb'[^\r\n]*', piece).group()
                count += line.count(separator.encode())
                if len(line) < len(piece):
                    return count
    return count


def _first_bad_byte(path: Path) -> str:
    with path.open('rb') as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f' in line {number}: byte {error.start + 1} is {line[error.start]:#04x}'
    return ''


# --- columns ---------------------------------------------------------------------------------------


def _check_names(path: Path, names: Sequence[str]) -> None:
    if not any(names):
        raise UserError(f'{path} has no names of columns in its first line; write them there')
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise UserError(f'{path} has several columns named {twice[0]!r}; rename all but one')


def _check_columns(path: Path, names: Sequence[str], columns: Columns) -> None:
    """Each is there, and has one role."""
    roles = {
        'id': [columns.id] if columns.id is not None else [],
        'date': [columns.date] if columns.date is not None else [],
        'target': columns.targets,
        'covariates': columns.covariates,
    }
    seen: dict[str, str] = {}
    for role, given in roles.items():
        for name in given:
            if name in seen:
                raise UserError(
                    f'--{role}={",".join(given)} has the column {name!r} that --{seen[name]} has; take one out'
                )
            if name not in names:
                raise UserError(f'{path} has no column {name!r} of --{role}{_no_header(names)}{near(name, names)}')
            seen[name] = role


def _no_header(names: Sequence[str]) -> str:
    """A hint where the names look like a row of numbers."""
    numbers = all(re.fullmatch(r'[-+]?[\d.]+(e[-+]?\d+)?', name) for name in names)
    return ', and its first line holds numbers where the names of columns belong' if numbers else ''


def _only_number(source: _Text | _Parquet, columns: Columns) -> str:
    """The target where none is named: the one column of numbers that has no other role."""
    free = [name for name in source.names if name and name not in columns.all]
    found: list[str] = []
    for _, frame in source.frames(free, rows=1000) if free else ():
        found = [name for name in free if _is_number(frame[name], source)]
        break
    if len(found) != 1:
        some = ', '.join(map(repr, found[:20])) + (', ...' if len(found) > 20 else '')
        has = (
            f'{len(found)} columns of numbers, {some}'
            if found
            else f'no free column of numbers{_no_header(source.names)}'
        )
        raise UserError(f'{source.path} has {has}; name the column to forecast by --target')
    return found[0]


def _is_number(column: Any, source: _Text | _Parquet) -> bool:
    """Returns True if a column holds numbers, in some format if none was asked for."""
    from pandas.api import types

    if types.is_numeric_dtype(column):
        return not types.is_bool_dtype(column)
    words = {*_words(column)} - {*MISSING} if types.is_string_dtype(column) or types.is_object_dtype(column) else set()
    open_ = source.numbers == NumberFormat(seen='')
    formats = numbers.FORMATS if open_ else [source.numbers]
    return bool(words) and any(all(numbers.matches(word, format) for word in words) for format in formats)


class _Part:
    """Some rows of a file as arrays."""

    def __init__(
        self, path: Path, first: int, frame: Any, columns: Columns, source: _Text | _Parquet, reader: ColumnReader
    ):
        self.values = np.stack([_numbers(path, first, frame[name], source, columns) for name in columns.numbers], 1)
        self.pointed = [frame[name].dtype.kind not in 'iu' for name in columns.numbers]  # may hold decimal signs
        self.ids = None if columns.id is None else _ids(path, first, frame[columns.id])
        if columns.date is not None:
            reader.add(first, frame[columns.date])


def _place(flags: np.ndarray) -> int:
    return int(np.argmax(flags))


def _words(column: Any) -> list[str]:
    """The text of a column, with '' for missing values."""
    return [str(word).strip() for word in column.astype(object).where(column.notna(), '').tolist()]


def _numbers(path: Path, first: int, column: Any, source: _Text | _Parquet, columns: Columns) -> np.ndarray:
    """[n] float64, NaN where one is missing."""
    from pandas.api import types

    if types.is_bool_dtype(column):
        column = column.astype(str)
    if not types.is_numeric_dtype(column):
        if not (types.is_string_dtype(column) or types.is_object_dtype(column)):
            raise UserError(f'{path}: column {column.name!r} holds {column.dtype}, and must hold numbers; leave it out')
        words = _words(column)
        try:
            return numbers.parse_column(words, source.numbers._replace(seen=None))
        except BadNumber as error:
            where, hint = f'row {first + error.place}, column {column.name!r}', _hint(source, columns.numbers, error)
            raise UserError(f'{path}: {where}: {error}{hint}') from error
    values = column.to_numpy(np.float64, na_value=np.nan)
    if np.isinf(values).any():
        row = first + _place(np.isinf(values))
        raise UserError(f'{path}: row {row}, column {column.name!r} is infinite; mend it')
    return values


# --- how numbers are written -----------------------------------------------------------------------


def _hint(source: _Text | _Parquet, names: Sequence[str], error: BadNumber) -> str:
    """The end of a sentence about a word that is not a number: the flags with which the file can be read."""
    if source.fixed:
        return f'; the run reads numbers with {numbers.phrase(source.numbers)}: write them in this form'
    formats = [format for format in numbers.FORMATS if numbers.matches(error.word, format)]
    readings: dict[float, str] = {}
    for format in _readable(source, names, formats):
        readings.setdefault(numbers.parse_number(error.word, format), numbers.flags(format))
    if len(readings) == 1:
        return f'; use {next(iter(readings.values()))}'
    if readings:
        remedies = [f'{flags} if it stands for {value:.15g}' for value, flags in readings.items()]
        return ', but may be ' + ' or '.join(f'{value:.15g}' for value in readings) + '; use ' + ' or '.join(remedies)
    return '' if ';' in str(error) else '; correct it, or leave the column out'


def _readable(
    source: _Text | _Parquet, names: Sequence[str], formats: Sequence[NumberFormat]
) -> Sequence[NumberFormat]:
    """Returns the formats in which every number of the columns can be read, without those that add a needless sign."""
    for _, frame in source.frames(names, names, checked=True) if formats else ():
        words = {word for name in names if frame[name].dtype.kind not in 'iufb' for word in _words(frame[name])}
        formats = [format for format in formats if all(numbers.matches(word, format) for word in words)]
    return [format for format in formats if format.thousands is None or format._replace(thousands=None) not in formats]


def _settle(
    source: _Text | _Parquet,
    names: Sequence[str],
    values: np.ndarray,
    pointed: np.ndarray,
    formats: Mapping[str, NumberFormat],
) -> dict[str, NumberFormat]:
    """Returns the format of each column, with what it says about the decimal sign.

    Args:
      source: the file.
      names: of the columns.
      values: [n, columns], read with '.' as the decimal sign where it is open.
      pointed: [columns] bool: whether a column may hold decimal signs at all.
      formats: before this file.

    Raises:
      UserError: the decimal sign of a column is ambiguous.
    """
    unsettled, seen = [], {}
    for place, name in enumerate(names):
        if formats[name].seen is None or (pointed[place] and numbers.certain(values[:, place])):
            seen[name] = {numbers.CERTAIN: None}
        elif pointed[place]:
            unsettled.append(name)
        else:
            known = ~np.isnan(values[:, place])
            row = _place(known)
            open_ = known.any() and not (source.typed and formats[name].seen)
            seen[name] = {numbers.WHOLE: (row + 1, f'{values[row, place]:.0f}')} if open_ else {}
    seen |= _kinds(source, unsettled, values[:, [names.index(name) for name in unsettled]])
    return {name: _settled(source, name, names, seen[name], formats[name]) for name in names}


def _kinds(source: _Text | _Parquet, names: Sequence[str], values: np.ndarray) -> dict[str, dict[str, tuple[int, str]]]:
    """Returns for each column the row and the word where each kind of number is met first, until one is CERTAIN.

    `values` are those of the columns. The text is read as far as the first zero, the decimals of which no value shows;
    further down, the values of the numbers without their points show the decimals.
    """
    found: dict[str, dict[str, tuple[int, str]]] = {name: {} for name in names}
    rows = max([1000, *(_place(column == 0) + 1 for column in values.T)])
    ways = (
        [{'words': names, 'rows': rows}, {'pointless': True}]
        if source.numbers.thousands is None
        else [{'words': names}]
    )
    for how in ways:
        left = [name for name in names if numbers.CERTAIN not in found[name]]
        for first, frame in source.frames(left, checked=True, **how) if left else ():
            for name in left:
                column, place = frame[name], names.index(name)
                if column.dtype.kind not in 'iuf':
                    words = _words(column)
                    kinds = {
                        kind: (first + i, words[i])
                        for kind, i in numbers.first_of_kinds(words, source.numbers.decimal).items()
                    }
                elif source.typed:
                    continue
                else:
                    block = values[first - 1 : first - 1 + len(column), place]
                    kinds = numbers.first_of_kinds_by_value(block, column.to_numpy(np.float64))
                    kinds = {
                        kind: (first + i, f'{block[i]:.{3 * (kind == numbers.GROUPED)}f}') for kind, i in kinds.items()
                    }
                found[name] = kinds | found[name]
    return found


def _settled(
    source: _Text | _Parquet,
    name: str,
    names: Sequence[str],
    found: Mapping[str, tuple[int, str]],
    format: NumberFormat,
) -> NumberFormat:
    """Returns the format of one column, after what was found in it."""
    if format.seen is None or numbers.CERTAIN in found:
        return format._replace(seen=None)
    kinds = {*found, format.seen} - {''}
    if format.thousands and not source.fixed and numbers.GROUPED in kinds:
        return format._replace(seen=None)
    if kinds != {numbers.WHOLE, numbers.GROUPED}:
        return format._replace(seen=kinds.pop() if kinds else '')
    if format.seen:
        row, word = found[numbers.GROUPED if format.seen == numbers.WHOLE else numbers.WHOLE]
        try:
            numbers.parse_number(word, format)
        except UserError as error:
            raise UserError(f'{source.path}: row {row}, column {name!r}: {error}') from error
    (row, word), (other, whole) = found[numbers.GROUPED], found[numbers.WHOLE]
    plain = word.replace('.', '')
    if source.fixed:
        remedy = f'write it as {plain} or {word}0'
    else:
        remedy = f"use --decimal='.' if it stands for {word}"
        if _readable(source, names, [NumberFormat(',', '.')]):
            remedy = f"use --thousands='.' if it stands for {plain}, or --decimal='.' if it stands for {word}"
    raise UserError(
        f'{source.path}: row {row}, column {name!r} holds {word!r} and row {other} {whole!r}, so the point may '
        f'separate thousands or decimals; {remedy}'
    )


def _ids(path: Path, first: int, column: Any) -> np.ndarray:
    """[n] of objects: a text for each row, the same object for the same text."""
    import pandas

    codes, names = pandas.factorize(column.astype(str).where(column.notna()))
    if (codes < 0).any():
        raise UserError(f'{path}: row {first + _place(codes < 0)} has no id in column {column.name!r}; give it one')
    return np.array([str(name) for name in names], object)[codes]


def _refuse_missing(path: Path, values: np.ndarray, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        missing = np.isnan(values[:, place])
        if missing.any():
            raise UserError(
                f'{path}: row {_place(missing) + 1}, column {name!r} has no value, like {int(missing.sum()) - 1} more; '
                'fill them in, or say --missing=mask'
            )


def _by_series(
    values: np.ndarray, ids: np.ndarray | None, dates: np.ndarray | None, offsets: np.ndarray | None
) -> list[Series]:
    rows = np.arange(1, len(values) + 1)
    if ids is None:
        return [Series(None, values, rows, dates, offsets)]
    import pandas

    codes, names = pandas.factorize(ids)
    order = np.argsort(codes, kind='stable')
    ends = np.cumsum(np.bincount(codes))[:-1]
    return [
        Series(
            str(name), values[part], rows[part], *(None if some is None else some[part] for some in (dates, offsets))
        )
        for name, part in zip(names, np.split(order, ends), strict=True)
    ]


# --- dates -----------------------------------------------------------------------------------------


def _check_dates(path: Path, series: Series, columns: Columns, form: DateFormat) -> None:
    """Raises UserError where a date is not after the one before it."""
    if series.dates is None or len(series.dates) < 2:
        return
    steps = np.diff(series.instants)
    late = steps <= np.timedelta64(0, 'us')
    if not late.any():
        return
    place = _place(late)
    pair = slice(place, place + 2)
    offsets = None if series.offsets is None else series.offsets[pair]
    (before, after), (above, row) = date_formats.write(series.dates[pair], offsets, form), series.rows[pair]
    remedy = ''
    if series.offsets is None and form.unit != 'D' and steps[place] >= np.timedelta64(-1, 'h'):
        remedy = ', or pass --time_zone=Europe/Berlin or the like where the clock was set back'
    if before == after:
        remedy += '' if columns.id is not None else ', or name the column of the series by --id'
        raise UserError(
            f'{path}: rows {above} and {row}{series.phrase} have the same date {after}; take one out{remedy}'
        )
    raise UserError(
        f'{path}: row {row}{series.phrase} has the date {after}, before that of row {above}, {before}; sort the rows '
        f'by date{remedy}'
    )
