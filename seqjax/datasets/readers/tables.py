"""Tables of numbers in time: CSV, TSV and parquet files, parsed by pandas and pyarrow, a part of the rows at a time.

A row of a file is counted from 1, below the names of the columns.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from seqjax.datasets.readers import date_columns, numbers, optional_packages, table_columns
from seqjax.datasets.readers import dates as readers_dates
from seqjax.datasets.readers.bounds import Bounds
from seqjax.datasets.readers.date_columns import ColumnReader
from seqjax.datasets.readers.date_formats import DateFormat
from seqjax.datasets.readers.numbers import NumberFormat
from seqjax.datasets.readers.table_columns import Part, Series
from seqjax.datasets.readers.table_sources import Columns, Parquet, Text
from seqjax.errors import UserError


class SeriesTable(NamedTuple):
    """A file that was read."""

    columns: Columns  # the targets known
    series: Sequence[Series]  # in the order in which they begin
    dates: DateFormat = date_columns.UNDECIDED  # of the column of dates, if there is one
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
    dates: DateFormat = date_columns.UNDECIDED,
    bounds: Bounds = Bounds(),  # noqa: B008
) -> SeriesTable:
    """Reads the columns that are asked for, and no other.

    Args:
      path: parquet where it is named so, text with a separator otherwise; in a .tsv file that is a tab where it is the
        comma.
      columns: what to read; a single column of numbers is found by itself.
      decimal, thousands: the signs of numbers in text; without `decimal`, columns that leave it open are refused.
      formats: of the columns of an earlier file, which this one must follow; instead of `decimal` and `thousands`.
      mask: whether values may be missing.
      dates: the format of the dates, as far as it is known.
      bounds: of the columns of the file, and of the bytes of a text or of the columns that are read.

    Raises:
      UserError: the file is no such table; a column is not there, holds text or ambiguous numbers; a value is infinite,
        or missing without `mask`; dates do not rise. The sentence names the row and the column.
    """
    optional_packages.need('pandas', path)
    format = next(iter(formats.values())) if formats else numbers.format_of(decimal, thousands)
    source = (Parquet if path.suffix == '.parquet' else Text)(path, separator, format, bool(formats), bounds)
    table_columns.check_names(path, source.names)
    if columns.targets is None:
        columns = columns._replace(targets=[table_columns.only_number(source, columns)])
    table_columns.check_columns(path, source.names, columns)
    source.check_size(len(columns.all))
    reader = ColumnReader(lambda row: f'{path}: row {row}, column {columns.date!r}', dates)
    # pandas would drop thousands signs wherever they stand, so these numbers are read as text.
    words = columns.words if format.thousands is None else columns.all
    parts = [Part(path, first, frame, columns, source, reader) for first, frame in source.frames(columns.all, words)]
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
    formats = table_columns.settle(
        source, columns.numbers, values, pointed, formats or dict.fromkeys(columns.numbers, format)
    )
    if not mask:
        table_columns.refuse_missing(path, values, columns.numbers)
    series = _by_series(values, ids, days, offsets)
    if days is not None and offsets is None and dates.zone:
        series = [one._replace(offsets=readers_dates.offsets_in(one.dates, dates.zone)) for one in series]
    for one in series:
        table_columns.check_dates(path, one, columns, dates)
    return SeriesTable(columns, series, dates, source.names, source.separator, formats)


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
