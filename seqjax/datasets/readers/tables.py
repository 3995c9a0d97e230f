"""Tables of time series: CSV, TSV and Parquet files, parsed by pandas and pyarrow in chunks of rows.

Rows of a file are counted from 1, below the column names.
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
    """Content of a table file, split into series."""

    columns: Columns  # columns that were read, with the default target filled in
    series: Sequence[Series]  # in the order of their first rows
    dates: DateFormat = date_columns.UNDECIDED  # format of the date column, UNDECIDED without one
    names: Sequence[str] = ()  # names of all columns of the file, in order
    separator: str = ','  # separator of the columns of a text file; ',' for Parquet
    formats: Mapping[str, NumberFormat] = MappingProxyType({})  # number format of each target and covariate


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
    """Returns the selected columns of a table file, split into series by id.

    Args:
      path: a Parquet file if its name ends in .parquet, otherwise text.
      columns: the columns to read; without targets, the target is the only column of numbers without another role.
      separator: the separator of columns; in a .tsv or .tab file, a comma means a tab.
      decimal, thousands: the decimal and the thousands sign of numbers in text. Without `decimal`, a column is refused
        if its points may be either.
      formats: the number format of each column in training, which this file must follow, instead of `decimal` and
        `thousands`.
      mask: True if values may be missing.
      dates: the format of the dates; fields that are None are inferred.
      bounds: the limits of columns and bytes.

    Raises:
      UserError: the file is not a table, or has no rows; a column does not exist, or holds text or ambiguous numbers; a
        value is infinite, or missing without `mask`; a date is invalid; the dates of a series do not increase; pandas
        is not installed. A message about a value or date names its row.
    """
    optional_packages.need('pandas', path)
    format = next(iter(formats.values())) if formats else numbers.format_of(decimal, thousands)
    source = (Parquet if path.suffix == '.parquet' else Text)(path, separator, format, bool(formats), bounds)
    table_columns.check_names(path, source.names)
    if columns.targets is None:
        columns = columns._replace(targets=[table_columns.only_number(source, columns)])
    table_columns.check_columns(path, source.names, columns)
    source.check_size(len(columns.all))
    reader = ColumnReader(lambda row: f'{path}, row {row}, column {columns.date!r}', dates)
    # pandas would drop thousands signs at any position, so these numbers are read as text.
    words = columns.words if format.thousands is None else columns.all
    parts = [Part(path, first, frame, columns, source, reader) for first, frame in source.frames(columns.all, words)]
    if not parts:
        raise UserError(f'{path} has no rows below its column names; add rows')
    ids = None if columns.id is None else np.concatenate([part.ids for part in parts])
    days = offsets = None
    if columns.date is not None:
        days, offsets, dates = reader.finish(ids)
    values = np.empty((sum(len(part.values) for part in parts), len(columns.numbers)))
    place = 0
    for part in parts:  # frees each chunk as soon as it is copied
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
