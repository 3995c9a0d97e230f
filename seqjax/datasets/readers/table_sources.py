"""Text and Parquet tables, read in chunks of rows as pandas frames."""

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

CHUNK = 2**16  # maximum number of rows that are parsed at a time
TABS = ('.tsv', '.tab')  # suffixes of files that are separated by tabs
BYTE_ORDER = (b'\xff\xfe', b'\xfe\xff')  # byte order marks of UTF-16
OTHERS = {'\t': 'tab', ';': ';', ',': ',', '|': '|'}  # separator -> value of --separator


class Columns(NamedTuple):
    """Columns to read from a file, by role."""

    targets: Sequence[str] | None  # columns to forecast; None for the only column of numbers without another role
    covariates: Sequence[str] = ()  # columns that are inputs but not forecast
    date: str | None = None  # column of dates
    id: str | None = None  # column of series ids

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
    """Returns the message of an error as one line of at most 200 characters."""
    return ' '.join(str(error).split())[:200]


def nearest_hint(word: str, words: Sequence[str]) -> str:
    """Returns the end of a message about an unknown word: the most similar of the known `words`, or a list of them."""
    return options.nearest(word, words) or f'; the known names are {quoted_list(words)}'


def quoted_list(words: Sequence[str]) -> str:
    """Returns the first 20 words in quotes, separated by commas, and '...' if there are more."""
    return ', '.join(map(repr, words[:20])) + (', ...' if len(words) > 20 else '')


class Text:
    """Table in a text file, such as CSV.

    Args:
      path: the file.
      separator: the character between columns; in a .tsv or .tab file, a comma means a tab.
      numbers: the format of numbers.
      fixed: True if `numbers` is the format of training, which flags cannot change.
      bounds: the limits of columns and bytes.
    """

    typed = False  # the file does not store types of columns

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
        """Does nothing: the size of the file was checked, and its values take at most a few times as many bytes."""

    def frames(
        self,
        names: Sequence[str],
        words: Sequence[str] = (),
        rows: int | None = None,
        checked: bool = False,
        pointless: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """Yields chunks of rows: the number of the first row, from 1, and a pandas frame of the columns `names`.

        Args:
          names: the columns.
          words: words of the columns that are read as text instead of numbers.
          rows: the maximum number of rows; None for all.
          checked: True if the file was read before without errors, so that other columns need not be parsed.
          pointless: True to read numbers without their points, 1.473 as 1473.
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
        """Context manager that raises UserError for an error or a ParserWarning of pandas."""
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
            raise UserError(f'{self.path} starts with a blank line; write the column names in it') from error
        except (ValueError, OverflowError) as error:
            raise UserError(
                f'{self.path} is not a table {separated} ({one_line(error)}); correct the file or --separator'
            ) from error

    def _check_separator(self) -> None:
        if len(self.names) != 1:
            return
        for sign, word in OTHERS.items():
            if sign in self.names[0] and sign != self.separator:
                raise UserError(
                    f'{self.path} has only one column, {self.names[0][:80]!r}, with the separator '
                    f'{OTHERS.get(self.separator, self.separator)!r}; pass --separator={word!r}'
                )

    def _rows_before_blank_end(self) -> int | None:
        """Returns the number of rows before the blank lines at the end of the file; None if there are none."""
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
        """Returns the number of rows that pandas reads, including blank lines."""
        with self._csv(header=0, usecols=[0], dtype=str, index_col=False, chunksize=CHUNK) as reader:
            return sum(len(frame) for frame in reader)


class Parquet:
    """Table in a Parquet file; the arguments are the same as for `Text`."""

    separator = ','  # separator of lines for online prediction
    typed = True  # the file stores types of columns

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
        """Raises UserError if `columns` columns of float64, decompressed, exceed the limit in bytes."""
        rows = self.file.metadata.num_rows
        self.bounds.check_bytes(self.path, 8 * columns * rows, f'has {rows:,} rows, and {columns} columns of them take')

    def frames(self, names: Sequence[str], *_: Any, rows: int | None = None, **__: Any) -> Iterator[tuple[int, Any]]:
        """Yields chunks of rows, see `Text.frames`; only `names` and `rows` have an effect: columns have types."""
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
            raise UserError(f'{self.path} cannot be read as Parquet ({one_line(error)}); write it again') from error


def _check_file(path: Path) -> None:
    try:
        with files.open_file(path) as file:
            if not file.read(1):
                raise UserError(f'{path} is empty; use a file with a line of column names and rows of values')
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}; pass another --data') from error


def _check_bytes(path: Path) -> None:
    """Raises UserError if a text file is empty or unreadable, or its first 64 KiB are UTF-16, binary or blank."""
    _check_file(path)
    with path.open('rb') as file:
        head = file.read(2**16)
    if head.startswith(BYTE_ORDER):
        raise UserError(f'{path} is not UTF-8 but UTF-16, as its byte order mark shows; save it as UTF-8')
    if b'\0' in head:
        place = head.index(b'\0')
        raise UserError(f'{path} is binary: byte {place + 1} is 0; use a CSV or a .parquet file')
    if not head.removeprefix(b'\xef\xbb\xbf').strip():
        raise UserError(f'{path} is blank; use a file with a line of column names and rows of values')


def _count_columns(path: Path, separator: str) -> int:
    """Returns the number of columns of a text file: 1 plus the separators outside quotes in its first line."""
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
