"""Table rows that arrive one line at a time, as in online prediction, instead of in a file."""

import csv
from collections.abc import Callable, Sequence

from seqjax import options
from seqjax.errors import UserError

REASONS = {  # messages of the csv module
    'field larger': f'a value has more than {csv.field_size_limit():,} characters',
    'new-line': 'a value contains a carriage return',
    'end of data': 'a quote is not closed',
    'expected after': 'text follows a closing quote',
}


class LineReader:
    """Reader that splits lines into values of named columns.

    Without a header line, the columns of a line are `names` in order. A header line names the columns of the lines
    after it, in any order, and may come at any time.
    """

    def __init__(
        self, names: Sequence[str] | None, used: Sequence[str], separator: str, is_value: Callable[[str, str], bool]
    ):
        """Initializes the reader.

        Args:
          names: all columns of the training file in order; None if unknown, so that a header line must come first.
          used: the columns whose values `read` returns.
          separator: the character between the values of a line.
          is_value: function (column, word) that returns True if the word can be a value of the column. It helps to
            recognize header lines, see `_is_header`.
        """
        self.names, self.used, self.separator, self.is_value = names, used, separator, is_value
        self.started = False

    @property
    def single(self) -> bool:
        """Returns True if lines have one column, so that an empty line is a missing value."""
        return self.names is not None and len(self.names) == 1

    def read(self, line: str) -> dict[str, str] | None:
        """Returns the values of the used columns in a line, as text by column; None for a header line.

        Raises UserError if the line cannot be split into one value for each column, or a header names a column twice.
        """
        words = self._split(line)
        if self._is_header(words):
            self.names = [word.strip() for word in words]
            if len(set(self.names)) < len(self.names):
                raise UserError(f'the header line {line[:80]!r} names a column twice; rename all but one')
            return None
        if self.names is None:
            raise UserError(
                f'the columns of the training file are unknown; write a header line first, such as {self._example()}'
            )
        if len(words) != len(self.names):
            expected = f'{len(self.names)} are expected: {options.some(map(repr, self.names))}'
            raise UserError(
                f'the line has {len(words)} values, but {expected}; write them all, or write a header line before it, '
                f'such as {self._example()}, if its columns are others'
            )
        self.started = True
        values = dict(zip(self.names, words, strict=True))
        return {name: values[name] for name in self.used}

    def _split(self, line: str) -> list[str]:
        """Returns the values of a line as text; [''] for an empty line."""
        try:
            rows = csv.reader([line], delimiter=self.separator, skipinitialspace=True, strict=True)
            return next(rows) or ['']
        except csv.Error as error:
            reason = next((reason for words, reason in REASONS.items() if words in str(error)), str(error))
            raise UserError(f'the line {line[:80]!r} cannot be split into values: {reason}; correct it') from error

    def _is_header(self, words: Sequence[str]) -> bool:
        """Returns True if the words of a line contain all used column names, and one of these cannot be a value.

        If each of these names can be a value, such as '2020', only all column names of the file in order are a header,
        and only before the first row.
        """
        words = [word.strip() for word in words]
        if not set(self.used) <= set(words):
            return False
        if any(not self.is_value(name, name) for name in self.used):
            return True
        return not self.started and words == self.names

    def _example(self) -> str:
        return repr(self.separator.join(self.used))
