"""Columns of a table: names, numbers and dates."""

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
    """Rows of a series in order of time."""

    name: str | None  # id of the series; None if the file has one series
    values: np.ndarray  # [n, columns] float64: targets, then covariates; NaN if missing
    rows: np.ndarray  # [n] row numbers of the file, counted from 1
    dates: np.ndarray | None  # [n] datetime64[us], local times
    offsets: np.ndarray | None = None  # [n] seconds from UTC to the local time; None if no zone is known

    @property
    def instants(self) -> np.ndarray:
        """Dates in UTC [n], ascending; local times if no zone is known."""
        return readers_dates.instants(self.dates, self.offsets)

    @property
    def phrase(self) -> str:
        """Phrase that names the series in a message about a row or column."""
        return '' if self.name is None else f' of series {self.name!r}'


def check_names(path: Path, names: Sequence[str]) -> None:
    if not any(names):
        raise UserError(f'{path} has no column names in its first line; add them')
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise UserError(f'{path} has several columns named {twice[0]!r}; rename all but one')


def check_columns(path: Path, names: Sequence[str], columns: Columns) -> None:
    """Raises UserError if a column does not exist or has two roles."""
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
                    'remove one'
                )
            if name not in names:
                raise UserError(
                    f'{path} has no column {name!r} (--{role}){_no_header(names)}'
                    f'{table_sources.nearest_hint(name, names)}'
                )
            seen[name] = role


def _no_header(names: Sequence[str]) -> str:
    """Returns a hint if the names look like a row of numbers."""
    numbers = all(re.fullmatch(r'[-+]?[\d.]+(e[-+]?\d+)?', name) for name in names)
    return ', and its first line holds numbers; add a line of column names' if numbers else ''


def only_number(source: Text | Parquet, columns: Columns) -> str:
    """Returns the default target: the only column of numbers without another role."""
    unused = [name for name in source.names if name and name not in columns.all]
    numeric: list[str] = []
    for _, frame in source.frames(unused, rows=1000) if unused else ():
        numeric = [name for name in unused if _is_number(frame[name], source)]
        break
    if len(numeric) != 1:
        content = f'{len(numeric)} columns of numbers, {table_sources.quoted_list(numeric)}'
        if not numeric:
            content = f'no unused column of numbers{_no_header(source.names)}'
        raise UserError(f'{source.path} has {content}; pass the column to forecast as --target')
    return numeric[0]


def _is_number(column: Any, source: Text | Parquet) -> bool:
    """Returns True if a column holds numbers, in any format if no format was passed."""
    from pandas.api import types

    if types.is_numeric_dtype(column):
        return not types.is_bool_dtype(column)
    textual = types.is_string_dtype(column) or types.is_object_dtype(column)
    words = {*_words(column)} - {*readers_numbers.MISSING} if textual else set()
    open_ = source.numbers == NumberFormat(seen='')
    formats = readers_numbers.FORMATS if open_ else [source.numbers]
    return bool(words) and any(all(readers_numbers.matches(word, format) for word in words) for format in formats)


class Part:
    """A chunk of the rows of a file as arrays."""

    def __init__(
        self, path: Path, first: int, frame: Any, columns: Columns, source: Text | Parquet, reader: ColumnReader
    ):
        self.values = np.stack([_numbers(path, first, frame[name], source, columns) for name in columns.numbers], 1)
        self.pointed = [frame[name].dtype.kind not in 'iu' for name in columns.numbers]  # may hold decimal signs
        self.ids = None if columns.id is None else _ids(path, first, frame[columns.id])
        if columns.date is not None:
            reader.add(first, frame[columns.date])


def _place(flags: np.ndarray) -> int:
    return int(np.argmax(flags))


def _words(column: Any) -> list[str]:
    """Returns the text of a column, with '' for missing values."""
    return [str(word).strip() for word in column.astype(object).where(column.notna(), '').tolist()]


def _numbers(path: Path, first: int, column: Any, source: Text | Parquet, columns: Columns) -> np.ndarray:
    """Returns the numbers of a column [n] float64, NaN if missing."""
    from pandas.api import types

    if types.is_bool_dtype(column):
        column = column.astype(str)
    if not types.is_numeric_dtype(column):
        if not (types.is_string_dtype(column) or types.is_object_dtype(column)):
            raise UserError(f'{path}, column {column.name!r}: {column.dtype} is not numeric; remove the column')
        words = _words(column)
        try:
            return readers_numbers.parse_column(words, source.numbers._replace(seen=None))
        except InvalidNumberError as error:
            where, hint = f'row {first + error.place}, column {column.name!r}', _hint(source, columns.numbers, error)
            raise UserError(f'{path}, {where}: {error}{hint}') from error
    values = column.to_numpy(np.float64, na_value=np.nan)
    if np.isinf(values).any():
        row = first + _place(np.isinf(values))
        raise UserError(f'{path}, row {row}, column {column.name!r}: the value is infinite; correct it')
    return values


def _hint(source: Text | Parquet, names: Sequence[str], error: InvalidNumberError) -> str:
    """Returns the end of a message about a word that is not a number: the flags with which the file can be read."""
    if source.fixed:
        return f'; the run reads numbers with {readers_numbers.phrase(source.numbers)}; write them so'
    formats = [format for format in readers_numbers.FORMATS if readers_numbers.matches(error.word, format)]
    readings: dict[float, str] = {}
    for format in _readable(source, names, formats):
        readings.setdefault(readers_numbers.parse_number(error.word, format), readers_numbers.flags(format))
    if len(readings) == 1:
        return f'; use {next(iter(readings.values()))}'
    if readings:
        remedies = [f'{flags} if it stands for {value:.15g}' for value, flags in readings.items()]
        return ', but could be ' + ' or '.join(f'{value:.15g}' for value in readings) + '; use ' + ' or '.join(remedies)
    return '' if ';' in str(error) else '; correct it, or remove the column'


def _readable(source: Text | Parquet, names: Sequence[str], formats: Sequence[NumberFormat]) -> Sequence[NumberFormat]:
    """Returns the formats that can read every number of the columns, without formats that add a needless sign."""
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
    """Returns the format of each column, including its decimal sign; raises UserError if a column is ambiguous.

    Args:
      source: the file.
      names: the columns.
      values: [n, columns], read with '.' as the decimal sign if it is undecided.
      pointed: [columns], True if a column may hold decimal signs.
      formats: the formats of the columns before this file.
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
    """Returns the row and the word of the first number of each kind in each column, until a number is CERTAIN.

    `values` are the values of the columns. The text is read up to the first zero, whose value does not show its
    decimals; after it, the values of the numbers without their points show the decimals.
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
    """Returns the format of one column, given the kinds of its numbers."""
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
        remedy = f'write it as {plain} or {word}0'
    else:
        remedy = f"use --decimal='.' if it stands for {word}"
        if _readable(source, names, [NumberFormat(',', '.')]):
            remedy = f"use --thousands='.' if it stands for {plain}, or --decimal='.' if it stands for {word}"
    raise UserError(
        f'{source.path}, row {row}, column {name!r}: the point of {word!r} may separate thousands or decimals, as '
        f'row {other} is {whole_number!r}; {remedy}'
    )


def _ids(path: Path, first: int, column: Any) -> np.ndarray:
    """Returns ids [n], the same str object for equal ids."""
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
                f'{int(missing.sum()):,} missing in this column); add the values, or use --missing=mask'
            )


def check_dates(path: Path, series: Series, columns: Columns, form: DateFormat) -> None:
    """Raises UserError if a date is not after the one before it."""
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
        remedy = ', or pass --time_zone, such as Europe/Berlin, if the clock was set back'
    if before == after:
        remedy += '' if columns.id is not None else ', or pass the column of series as --id'
        raise UserError(f'{path}: rows {above} and {row}{series.phrase} have the same date {after}; remove one{remedy}')
    raise UserError(
        f'{path}, row {row}{series.phrase}: the date {after} is before that of row {above}, {before}; sort the rows '
        f'by date{remedy}'
    )
