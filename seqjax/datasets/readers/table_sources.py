"""Text and Parquet files as sources of rows."""

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seqjax import files, options
from seqjax.datasets.readers import numbers as readers_numbers
from seqjax.datasets.readers import optional_packages
from seqjax.datasets.readers.bounds import Bounds
from seqjax.datasets.readers.numbers import NumberFormat
from seqjax.errors import UserError

CHUNK = 2**16  # rows that are parsed at a time
TABS = ('.tsv', '.tab')
BYTE_ORDER = (b'\xff\xfe', b'\xfe\xff')  # byte order marks of UTF-16
OTHERS = {'\t': 'tab', ';': ';', ',': ',', '|': '|'}  # separators, as --separator takes them


class Columns(NamedTuple):
    """Columns to read from a file, by role."""

    targets: Sequence[str] | None  # None for the only column of numbers without another role
    covariates: Sequence[str] = ()
    date: str | None = None
    id: str | None = None  # column of the series' ids

    @property
    def numbers(self) -> list[str]:
        return [*(self.targets or ()), *self.covariates]

    @property
    def all(self) -> list[str]:
        return [*self.words, *self.numbers]

    @property
    def words(self) -> list[str]:
        return [name for name in (self.id, self.date) if name is not None]


def one_line(error: Exception) -> str:
    """Returns the message of a library's error in one line."""
    return ' '.join(str(error).split())[:200]


def nearest_hint(word: str, words: Sequence[str]) -> str:
    """Returns the end of a message about an unknown word: the nearest known word, or the known words."""
    return options.nearest(word, words) or f'; there are {quoted_list(words)}'


def quoted_list(words: Sequence[str]) -> str:
    """Returns a few words, quoted, for a message."""
    return ', '.join(map(repr, words[:20])) + (', ...' if len(words) > 20 else '')


class Text:
    """A text file with a separator between columns."""

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
        """Does nothing: the values of a text file take at most a few times its bytes."""

    def frames(
        self,
        names: Sequence[str],
        words: Sequence[str] = (),
        rows: int | None = None,
        checked: bool = False,
        pointless: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """Yields chunks of the columns: the number of the first row, and a pandas frame; `words` are read as text.

        With `checked`, the file was read before, and no other column is parsed; with `pointless`, points are removed.
        """
        unique = [name or f' {place}' for place, name in enumerate(self.names)]
        # All columns are parsed: with a selection, pandas silently drops surplus values of a row.
        options = {'names': unique, 'header': 0, 'index_col': False, 'low_memory': False}
        # Words and missing values depend on the column: an id may be NA, or 007.
        options |= {'dtype': dict.fromkeys(words, str), 'keep_default_na': False}
        options |= {'na_values': {name: ('',) if name in words else readers_numbers.MISSING for name in names}}
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
        """Turns errors of pandas into UserError."""
        import pandas

        separated = f'with {OTHERS.get(self.separator, self.separator)!r} between columns'
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
                f'{self.path} has rows with more values than its {len(self.names)} column names; name all columns, or '
                'quote values that contain the separator'
            ) from error
        except pandas.errors.EmptyDataError as error:
            raise UserError(f'{self.path} starts with a blank line; write the column names there') from error
        except (ValueError, OverflowError) as error:
            raise UserError(
                f'{self.path} is not a table {separated} ({one_line(error)}); correct it, or pass --separator'
            ) from error

    def _check_separator(self) -> None:
        if len(self.names) != 1:
            return
        for sign, word in OTHERS.items():
            if sign in self.names[0] and sign != self.separator:
                raise UserError(
                    f'{self.path} has one column, {self.names[0][:80]!r}, with the separator '
                    f'{OTHERS.get(self.separator, self.separator)!r}; pass --separator={word!r}'
                )

    def _rows_before_blank_end(self) -> int | None:
        """Returns the number of rows if the file ends in blank lines, which are not rows; otherwise None."""
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
        """Returns the number of rows in pandas' own reading of the first column."""
        with self._csv(header=0, usecols=[0], dtype=str, index_col=False, chunksize=CHUNK) as reader:
            return sum(len(frame) for frame in reader)


class Parquet:
    """A Parquet file."""

    separator = ','  # separator of lines for online prediction
    typed = True  # columns have types in the file

    def __init__(self, path: Path, separator: str, numbers: NumberFormat, fixed: bool, bounds: Bounds):
        parquet, arrow = optional_packages.need('pyarrow.parquet', path), optional_packages.need('pyarrow', path)
        _check_file(path)
        self.path, self.numbers, self.fixed = path, numbers, fixed
        self.failures = (arrow.ArrowException, OSError, ValueError)
        with self._parsing():
            self.file = parquet.ParquetFile(path)
            self.bounds = bounds
            bounds.check_columns(path, self.file.metadata.num_columns)
            self.names = list(self.file.schema_arrow.names)

    def check_size(self, columns: int) -> None:
        """Raises UserError if the columns are too large in memory, however small they are in the file."""
        rows = self.file.metadata.num_rows
        self.bounds.check_bytes(self.path, 8 * columns * rows, f'has {rows:,} rows, and {columns} columns of them take')

    def frames(self, names: Sequence[str], *_: Any, rows: int | None = None, **__: Any) -> Iterator[tuple[int, Any]]:
        """Yields chunks of the columns, see `Text.frames`; a Parquet file has types of its own."""
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
            raise UserError(f'{self.path} cannot be read as parquet ({one_line(error)}); export it again') from error


def _check_file(path: Path) -> None:
    try:
        with files.open_file(path) as file:
            if not file.read(1):
                raise UserError(f'{path} is empty; use a file with a row of names and rows of numbers')
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}; pass another --data') from error


def _check_bytes(path: Path) -> None:
    """Raises UserError if the start of a file is not UTF-8 text."""
    _check_file(path)
    with path.open('rb') as file:
        head = file.read(2**16)
    if head.startswith(BYTE_ORDER):
        raise UserError(f'{path} is not UTF-8 but UTF-16, by its first two bytes; save it as UTF-8')
    if b'\0' in head:
        place = head.index(b'\0')
        raise UserError(f'{path} is binary: byte {place + 1} is 0; use a CSV or a .parquet file')
    if not head.removeprefix(b'\xef\xbb\xbf').strip():
        raise UserError(f'{path} is blank; use a file with a row of names and rows of numbers')


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
