"""Rows of a table that arrive as lines, in the columns of a file or of a header line."""

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
    """Splits lines into the values of named columns.

    Without a header line, a line has the columns `names` in order. A header line names the columns of the lines after
    it, in any order.
    """

    def __init__(
        self, names: Sequence[str] | None, used: Sequence[str], separator: str, is_value: Callable[[str, str], bool]
    ):
        """Selects the `used` columns of a file; `names` is None if a header line must come first.

        `is_value` returns True if a word can be a value of a column; a header line has a word that cannot.
        """
        self.names, self.used, self.separator, self.is_value = names, used, separator, is_value
        self.started = False

    @property
    def single(self) -> bool:
        """Returns True if a line is one value, so that an empty line is a missing value."""
        return self.names is not None and len(self.names) == 1

    def read(self, line: str) -> dict[str, str] | None:
        """Returns the values of a line by column; None for a header line. Raises UserError if the line does not fit."""
        words = self._split(line)
        if self._is_header(words):
            self.names = [word.strip() for word in words]
            if len(set(self.names)) < len(self.names):
                raise UserError('the header line names a column twice; rename all but one')
            return None
        if self.names is None:
            raise UserError(
                f'the run did not save the columns of its file; start with a header line, such as {self._example()}'
            )
        if len(words) != len(self.names):
            expected = f'{len(self.names)} are expected: {options.some(map(repr, self.names))}'
            raise UserError(
                f'the line has {len(words)} values, but {expected}; start with a header line, such as '
                f'{self._example()}, if it has other columns'
            )
        self.started = True
        values = dict(zip(self.names, words, strict=True))
        return {name: values[name] for name in self.used}

    def _split(self, line: str) -> list[str]:
        """Returns the values of a line; an empty line has one value."""
        try:
            rows = csv.reader([line], delimiter=self.separator, skipinitialspace=True, strict=True)
            return next(rows) or ['']
        except csv.Error as error:
            reason = next((reason for words, reason in REASONS.items() if words in str(error)), str(error))
            raise UserError(f'the line cannot be split into values: {reason}') from error

    def _is_header(self, words: Sequence[str]) -> bool:
        """Returns True if a line has the names of all used columns, and they cannot be values.

        If the names are numbers themselves, only a first line with the names of the file is a header.
        """
        words = [word.strip() for word in words]
        if not set(self.used) <= set(words):
            return False
        if any(not self.is_value(name, name) for name in self.used):
            return True
        return not self.started and words == self.names

    def _example(self) -> str:
        return repr(self.separator.join(self.used))
