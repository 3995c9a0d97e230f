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


def one_line(error: Exception) -> str:
    """What a library says, in a line."""
    return ' '.join(str(error).split())[:200]


def nearest_hint(word: str, words: Sequence[str]) -> str:
    """The end of a sentence about a word that is none of some others: the nearest, and what there is."""
    return options.nearest(word, words) or f'; there are {quoted_list(words)}'


def quoted_list(words: Sequence[str]) -> str:
    """A few words, for a message."""
    return ', '.join(map(repr, words[:20])) + (', ...' if len(words) > 20 else '')


class Text:
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


class Parquet:
    """A parquet file."""

    separator = ','  # of lines that are read with a run on such a file
    typed = True  # numbers are numbers, not text

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
        """Raises UserError if so many columns are too large in memory, however small they are in the file."""
        rows = self.file.metadata.num_rows
        self.bounds.check_bytes(self.path, 8 * columns * rows, f'has {rows:,} rows, and {columns} columns of them take')

    def frames(self, names: Sequence[str], *_: Any, rows: int | None = None, **__: Any) -> Iterator[tuple[int, Any]]:
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
        with files.open_file(path) as file:
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
