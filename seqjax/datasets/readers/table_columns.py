"""Columns of a table: checks of names and dates, and parsing of numbers and series ids."""

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqjax.datasets.readers import date_formats, table_sources
from seqjax.datasets.readers import dates as readers_dates
from seqjax.datasets.readers import numbers as readers_numbers
from seqjax.datasets.readers.date_columns import ColumnReader
from seqjax.datasets.readers.date_formats import DateFormat
from seqjax.datasets.readers.numbers import InvalidNumberError, NumberFormat
from seqjax.datasets.readers.table_sources import Columns, Parquet, Text
from seqjax.errors import UserError


class Series(NamedTuple):
    """Rows of one time series, in the order of the file, which must be the order of time."""

    name: str | None  # series id; None if the file has no column of ids
    values: np.ndarray  # [n, columns] float64: targets, then covariates; NaN if missing
    rows: np.ndarray  # [n] row numbers in the file, counted from 1 below the column names
    dates: np.ndarray | None  # [n] datetime64[us], local times; None without a date column
    offsets: np.ndarray | None = None  # [n] seconds that local time is ahead of UTC; None if unknown

    @property
    def instants(self) -> np.ndarray:
        """Dates in UTC [n]; the local times if the offsets from UTC are unknown. The series must have dates."""
        return readers_dates.instants(self.dates, self.offsets)

    @property
    def phrase(self) -> str:
        """Text to insert in a message, such as " of series 'a'"; empty if the series has no id."""
        return '' if self.name is None else f' of series {self.name!r}'


def check_names(path: Path, names: Sequence[str]) -> None:
    if not any(names):
        raise UserError(f'{path} has no column names; write them in its first line')
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise UserError(f'{path} has several columns named {twice[0]!r}; rename all but one')


def check_columns(path: Path, names: Sequence[str], columns: Columns) -> None:
    """Raises UserError if a column to read is not among the `names` of the file, or has two roles."""
    roles = {
        'id': [columns.id] if columns.id is not None else [],
        'date': [columns.date] if columns.date is not None else [],
        'target': columns.targets,
        'covariates': columns.covariates,
    }
    seen: dict[str, str] = {}
    for role, role_columns in roles.items():
        for name in role_columns:
            if name in seen:
                raise UserError(
                    f'--{role}={",".join(role_columns)} has the column {name!r}, which is also in --{seen[name]}; '
                    'remove it from one of them'
                )
            if name not in names:
                raise UserError(
                    f'{path} has no column {name!r} (--{role}){_no_header(names)}'
                    f'{table_sources.nearest_hint(name, names)}'
                )
            seen[name] = role


def _no_header(names: Sequence[str]) -> str:
    """Returns a hint that the line of column names is missing if all names are numbers, otherwise ''."""
    numbers = all(re.fullmatch(r'[-+]?[\d.]+(e[-+]?\d+)?', name) for name in names)
    return ', and its first line holds numbers; add the column names as a first line' if numbers else ''


def only_number(source: Text | Parquet, columns: Columns) -> str:
    """Returns the default target: the only column of numbers, by its first rows, that has no other role.

    Raises UserError if there is no such column, or more than one.
    """
    unused = [name for name in source.names if name and name not in columns.all]
    numeric: list[str] = []
    for _, frame in source.frames(unused, rows=1000) if unused else ():
        numeric = [name for name in unused if _is_number(frame[name], source)]
        break
    if len(numeric) != 1:
        content = f'{len(numeric)} columns of numbers, {table_sources.quoted_list(numeric)}'
        if not numeric:
            content = f'no unused column of numbers, besides --id, --date and --covariates{_no_header(source.names)}'
        raise UserError(f'{source.path} has {content}; pass the column to forecast as --target')
    return numeric[0]


def _is_number(column: Any, source: Text | Parquet) -> bool:
    """Returns True if the values of a column are numbers, or text that is numbers in one format or missing.

    The format is the one in `source`, or any of FORMATS if no flags set it. A column of missing text is not numbers.
    """
    from pandas.api import types

    if types.is_numeric_dtype(column):
        return not types.is_bool_dtype(column)
    textual = types.is_string_dtype(column) or types.is_object_dtype(column)
    words = {*_words(column)} - {*readers_numbers.MISSING} if textual else set()
    open_ = source.numbers == NumberFormat(seen='')
    formats = readers_numbers.FORMATS if open_ else [source.numbers]
    return bool(words) and any(all(readers_numbers.matches(word, format) for word in words) for format in formats)


class Part:
    """Chunk of rows as arrays: the numbers and series ids of the rows. `reader` receives their dates."""

    def __init__(
        self, path: Path, first: int, frame: Any, columns: Columns, source: Text | Parquet, reader: ColumnReader
    ):
        self.values = np.stack([_numbers(path, first, frame[name], source, columns) for name in columns.numbers], 1)
        # False for integers, which have no decimal sign.
        self.pointed = [frame[name].dtype.kind not in 'iu' for name in columns.numbers]
        self.ids = None if columns.id is None else _ids(path, first, frame[columns.id])
        if columns.date is not None:
            reader.add(first, frame[columns.date])


def _place(flags: np.ndarray) -> int:
    return int(np.argmax(flags))


def _words(column: Any) -> list[str]:
    """Returns the texts [n] of a column without spaces around them; '' for missing values."""
    return [str(word).strip() for word in column.astype(object).where(column.notna(), '').tolist()]


def _numbers(path: Path, first: int, column: Any, source: Text | Parquet, columns: Columns) -> np.ndarray:
    """Returns the numbers [n] float64 of a column, NaN where missing.

    Raises UserError, which names the row and column, if a value is infinite or not a number.
    """
    from pandas.api import types

    if types.is_bool_dtype(column):
        column = column.astype(str)
    if not types.is_numeric_dtype(column):
        if not (types.is_string_dtype(column) or types.is_object_dtype(column)):
            raise UserError(f'{path}, column {column.name!r}: type {column.dtype} is not numeric; use another column')
        words = _words(column)
        try:
            return readers_numbers.parse_column(words, source.numbers._replace(seen=None))
        except InvalidNumberError as error:
            where, hint = f'row {first + error.place}, column {column.name!r}', _hint(source, columns.numbers, error)
            raise UserError(f'{path}, {where}: {error}{hint}') from error
    values = column.to_numpy(np.float64, na_value=np.nan)
    if np.isinf(values).any():
        row = first + _place(np.isinf(values))
        raise UserError(f'{path}, row {row}, column {column.name!r}: the value is infinite; write a finite number')
    return values


def _hint(source: Text | Parquet, names: Sequence[str], error: InvalidNumberError) -> str:
    """Returns the fix for a word that is not a number: flags that fit all columns, or another correction."""
    if source.fixed:
        return f'; write numbers as in training, with {readers_numbers.phrase(source.numbers)}'
    formats = [format for format in readers_numbers.FORMATS if readers_numbers.matches(error.word, format)]
    readings: dict[float, str] = {}
    for format in _readable(source, names, formats):
        with contextlib.suppress(UserError):  # a number such as 1e999 is too large for a float
            readings.setdefault(readers_numbers.parse_number(error.word, format), readers_numbers.flags(format))
    if len(readings) == 1:
        return f'; use {next(iter(readings.values()))}'
    if readings:
        remedies = [f'{flags} if it stands for {value:.15g}' for value, flags in readings.items()]
        return ', but could be ' + ' or '.join(f'{value:.15g}' for value in readings) + '; use ' + ' or '.join(remedies)
    return '' if ';' in str(error) else '; write a number, or use another column'


def _readable(source: Text | Parquet, names: Sequence[str], formats: Sequence[NumberFormat]) -> Sequence[NumberFormat]:
    """Returns the formats among `formats` in which every word of the columns `names` is a number or missing.

    A format with a thousands sign is left out if the same format without it fits, too.
    """
    for _, frame in source.frames(names, names, checked=True) if formats else ():
        words = {word for name in names if frame[name].dtype.kind not in 'iufb' for word in _words(frame[name])}
        formats = [format for format in formats if all(readers_numbers.matches(word, format) for word in words)]
    return [format for format in formats if format.thousands is None or format._replace(thousands=None) not in formats]


def settle(
    source: Text | Parquet,
    names: Sequence[str],
    values: np.ndarray,
    pointed: np.ndarray,
    formats: Mapping[str, NumberFormat],
) -> dict[str, NumberFormat]:
    """Returns the number format of each column, with `NumberFormat.seen` updated by the numbers of this file.

    Args:
      source: the file.
      names: the columns of numbers.
      values: [n, columns] float64, as parsed in the format `source.numbers`.
      pointed: [columns], False if a column was parsed as integers, which have no decimal sign.
      formats: the format of each column before this file: from the flags, or from training.

    Raises:
      UserError: the decimal sign of a column is ambiguous.
    """
    unsettled: list[str] = []
    seen: dict[str, dict[str, tuple[int, str] | None]] = {}
    for place, name in enumerate(names):
        if formats[name].seen is None or (pointed[place] and readers_numbers.certain(values[:, place])):
            seen[name] = {readers_numbers.CERTAIN: None}
        elif pointed[place]:
            unsettled.append(name)
        else:
            known = ~np.isnan(values[:, place])
            row = _place(known)
            open_ = known.any() and not (source.typed and formats[name].seen)
            seen[name] = {readers_numbers.WHOLE: (row + 1, f'{values[row, place]:.0f}')} if open_ else {}
    seen |= _kinds(source, unsettled, values[:, [names.index(name) for name in unsettled]])
    return {name: _settled(source, name, names, seen[name], formats[name]) for name in names}


def _kinds(source: Text | Parquet, names: Sequence[str], values: np.ndarray) -> dict[str, dict[str, tuple[int, str]]]:
    """Returns for each column: kind -> row and word of its first number of that kind.

    Kinds that do not occur are left out; a column with a CERTAIN number may lack others. `values` [n, columns] are the
    parsed numbers. Rows are read as text up to the first zero of each column, at least 1,000 rows; with a thousands
    sign, all rows. In later rows, comparing `values` with the numbers parsed without points shows the decimals.
    """
    kinds_of: dict[str, dict[str, tuple[int, str]]] = {name: {} for name in names}
    rows = max([1000, *(_place(column == 0) + 1 for column in values.T)])
    plain = source.numbers.thousands is None
    passes = [{'words': names, 'rows': rows}, {'pointless': True}] if plain else [{'words': names}]
    for options in passes:
        undecided = [name for name in names if readers_numbers.CERTAIN not in kinds_of[name]]
        for first, frame in source.frames(undecided, checked=True, **options) if undecided else ():
            for name in undecided:
                column, place = frame[name], names.index(name)
                if column.dtype.kind not in 'iuf':
                    words = _words(column)
                    kinds = {
                        kind: (first + i, words[i])
                        for kind, i in readers_numbers.first_of_kinds(words, source.numbers.decimal).items()
                    }
                elif source.typed:
                    continue
                else:
                    block = values[first - 1 : first - 1 + len(column), place]
                    kinds = readers_numbers.first_of_kinds_by_value(block, column.to_numpy(np.float64))
                    kinds = {
                        kind: (first + i, f'{block[i]:.{3 * (kind == readers_numbers.GROUPED)}f}')
                        for kind, i in kinds.items()
                    }
                kinds_of[name] = kinds | kinds_of[name]
    return kinds_of


def _settled(
    source: Text | Parquet,
    name: str,
    names: Sequence[str],
    first_numbers: Mapping[str, tuple[int, str]],
    format: NumberFormat,
) -> NumberFormat:
    """Returns the format of one column, with `seen` updated; raises UserError if its decimal sign is ambiguous.

    `first_numbers` has the row and the word of the first number of each kind.
    """
    if format.seen is None or readers_numbers.CERTAIN in first_numbers:
        return format._replace(seen=None)
    kinds = {*first_numbers, format.seen} - {''}
    if format.thousands and not source.fixed and readers_numbers.GROUPED in kinds:
        return format._replace(seen=None)
    if kinds != {readers_numbers.WHOLE, readers_numbers.GROUPED}:
        return format._replace(seen=kinds.pop() if kinds else '')
    if format.seen:
        row, word = first_numbers[
            readers_numbers.GROUPED if format.seen == readers_numbers.WHOLE else readers_numbers.WHOLE
        ]
        try:
            readers_numbers.parse_number(word, format)
        except UserError as error:
            raise UserError(f'{source.path}, row {row}, column {name!r}: {error}') from error
    (row, word), (other, whole_number) = first_numbers[readers_numbers.GROUPED], first_numbers[readers_numbers.WHOLE]
    plain = word.replace('.', '')
    if source.fixed:
        remedy = f'write it as {plain} if it separates thousands, or as {word}0 if it separates decimals'
    else:
        remedy = f"use --decimal='.' if it stands for {word}"
        if _readable(source, names, [NumberFormat(',', '.')]):
            remedy = f"use --thousands='.' if it stands for {plain}, or --decimal='.' if it stands for {word}"
    raise UserError(
        f'{source.path}, row {row}, column {name!r}: the point of {word!r} may separate thousands or decimals, since '
        f'row {other} is {whole_number!r}, without a point; {remedy}'
    )


def _ids(path: Path, first: int, column: Any) -> np.ndarray:
    """Returns the series ids [n] of a column, one str object for equal ids; raises UserError if one is missing."""
    import pandas

    codes, names = pandas.factorize(column.astype(str).where(column.notna()))
    if (codes < 0).any():
        raise UserError(f'{path}, row {first + _place(codes < 0)}, column {column.name!r}: the id is missing; add it')
    return np.array([str(name) for name in names], object)[codes]


def refuse_missing(path: Path, values: np.ndarray, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        missing = np.isnan(values[:, place])
        if missing.any():
            raise UserError(
                f'{path}, row {_place(missing) + 1}, column {name!r}: the value is missing ('
                f'{int(missing.sum()):,} missing in this column); add the values, or train with --missing=mask'
            )


def check_dates(path: Path, series: Series, columns: Columns, form: DateFormat) -> None:
    """Raises UserError if a date is not after the date of the row before, in a series that has dates."""
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
        remedy = ', or pass --time_zone, such as --time_zone=Europe/Berlin, if the clock was set back'
    if before == after:
        remedy += '' if columns.id is not None else ', or pass the column of series ids as --id'
        raise UserError(
            f'{path}: rows {above} and {row}{series.phrase} have the same date {after}; remove one of the rows{remedy}'
        )
    raise UserError(
        f'{path}, row {row}{series.phrase}: the date {after} is before the date of row {above}, {before}; sort the '
        f'rows by date{remedy}'
    )
