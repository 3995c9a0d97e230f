"""Parsing of numbers in text, with the same rules for columns of a table and for single words.

A point before exactly three digits is ambiguous: 1.473 is 1473 in a German file. Without flags the decimal sign of a
column is '.', and the column is refused if both hold:

- every number with a point has one to three digits before it, the first not 0, and exactly three after it (1.473);
- there are numbers without a point, too (950).

A single 0.473, 1.5 or 1.4730 shows that the points of a column are decimal signs. A column in which every number is
like 1.473 is read with decimal points. --decimal and --thousands set the signs of all columns of the file. Without
--decimal, 1.473 is refused in a later file if the column had no decimals in training, since it may be 1473.
"""

import functools
import itertools
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seqjax.errors import UserError

MISSING = ('', 'NA', 'N/A', 'n/a', 'NaN', 'nan', 'null', 'NULL', 'None', '#N/A', '<NA>')  # words for a missing value
DECIMAL = ('.', ',')
THOUSANDS = {',': ',', '.': '.', "'": "'\u2019", 'space': ' \u00a0\u202f\u2009'}  # --thousands -> removed signs
_REMOVED = {name: dict.fromkeys(map(ord, signs)) for name, signs in THOUSANDS.items()}
WHOLE, GROUPED, CERTAIN = 'whole', 'grouped', 'certain'  # kinds of numbers: 950; 1.473; 0.5


class NumberFormat(NamedTuple):
    """Decimal and thousands sign of the numbers in a column."""

    decimal: str = '.'
    thousands: str | None = None  # a key of THOUSANDS
    # None if the decimal sign is certain. Otherwise the kind of all numbers of the column so far: WHOLE, GROUPED, or ''
    # if it has none. After WHOLE numbers, a GROUPED one is ambiguous, and the reverse.
    seen: str | None = None


def parse_number(word: str, format: NumberFormat = NumberFormat()) -> float:  # noqa: B008
    """Returns the number that a word stands for, NaN for a missing value.

    Raises UserError if the word is not a finite number in this format, or if its decimal sign is ambiguous; callers add
    the row and the column to the message.
    """
    word = word.strip()
    if not _pattern(format.decimal, format.thousands).fullmatch(word):
        if _is_missing(word):
            return math.nan
        raise UserError(f'{word[:80]!r} is not a number{_reason(word, format)}')
    if format.seen and {format.seen, *first_of_kinds([word], format.decimal)} == {WHOLE, GROUPED}:
        raise UserError(f'{word!r} is ambiguous: {_AMBIGUOUS[format.seen].replace("1.4", f"1{format.decimal}4")}')
    if format.thousands is not None:
        word = word.translate(_REMOVED[format.thousands])
    value = float(word.replace(format.decimal, '.'))
    if math.isinf(value):
        raise UserError(f'{word[:80]!r} is too large for a 64-bit number')
    return value


def parse_column(words: Sequence[str], format: NumberFormat = NumberFormat()) -> np.ndarray:  # noqa: B008
    """Returns the numbers [n] float64 that the words of a column stand for, see `parse_number`.

    Raises InvalidNumberError for the first word that `parse_number` refuses.
    """
    text = '\n'.join(words)
    if text.count('\n') == len(words) - 1 and not _other_line(format.decimal, format.thousands).search(text):
        for sign in THOUSANDS.get(format.thousands, ''):
            text = text.replace(sign, '')
        lines = text.replace(format.decimal, '.').split('\n')
        values = np.array([float(line) if line else math.nan for line in lines], np.float64)
        if format.seen is None and not np.isinf(values).any():
            return values
    values = np.empty(len(words))
    for place, word in enumerate(words):
        try:
            values[place] = parse_number(word, format)
        except UserError as error:
            raise InvalidNumberError(str(error), word, place) from error
    return values


class InvalidNumberError(UserError):
    """Error for a word of a column that `parse_number` refuses; it holds the word and its index, `place`."""

    def __init__(self, message: str, word: str, place: int):
        super().__init__(message)
        self.word, self.place = word, place


def matches(word: str, format: NumberFormat) -> bool:
    """Returns True if a word is a number in this format, or stands for a missing value."""
    return bool(_pattern(format.decimal, format.thousands).fullmatch(word)) or _is_missing(word)


def _is_missing(word: str) -> bool:
    return word in MISSING or word.lstrip('+-').lower() == 'nan'


def format_of(decimal: str | None, thousands: str | None) -> NumberFormat:
    """Returns the format for the values of --decimal and --thousands, None if not passed; UserError if they are equal.

    Without --decimal, the decimal sign is '.', or ',' with --thousands='.', and is not certain (`seen` is '').
    """
    if decimal is None:
        return NumberFormat(',' if thousands == '.' else '.', thousands, seen='')
    if decimal == thousands:
        raise UserError(f'--decimal={decimal} and --thousands={thousands} must be different signs; change one of them')
    return NumberFormat(decimal, thousands)


# All formats with different decimal and thousands signs.
FORMATS = [NumberFormat(*signs) for signs in itertools.product(DECIMAL, (None, *THOUSANDS)) if len({*signs}) == 2]


def flags(format: NumberFormat) -> str:
    """Returns the command-line flags that select a format, such as "--decimal=',' --thousands='.'"."""
    decimal = f"--decimal='{format.decimal}'"
    if format.thousands is None:
        return decimal
    thousands = {"'": '--thousands="\'"', 'space': '--thousands=space'}.get(
        format.thousands, f"--thousands='{format.thousands}'"
    )
    return thousands if format.decimal == '.' else f'{decimal} {thousands}'


def phrase(format: NumberFormat) -> str:
    """Returns words that name the decimal and the thousands sign of a format, for a message."""
    return f'the decimal sign {format.decimal!r} and ' + (
        'no thousands sign' if format.thousands is None else f'the thousands sign {format.thousands!r}'
    )


def certain(values: np.ndarray) -> bool:
    """Returns True if the values [n] of a column, read with '.' as the decimal sign, prove that it is one.

    They do if the absolute value of a number that is not whole is below 1, above 1000, or has more than three decimals.
    """
    for start in range(0, len(values), 2**16):
        block = np.abs(values[start : start + 2**16])
        fractions = block[block != np.floor(block)]  # NaN is included, but no comparison with it is true
        scaled = 1000 * fractions
        if ((fractions < 1) | (fractions > 1000) | (np.abs(scaled - np.round(scaled)) > 1e-6)).any():
            return True
    return False


_GROUPED = r'[+-]?[1-9]\d{0,2}\.\d{3}'
_KINDS = {
    WHOLE: re.compile(r'^[+-]?\d[^.\n]*$', re.MULTILINE),
    GROUPED: re.compile(rf'^{_GROUPED}$', re.MULTILINE),
    CERTAIN: re.compile(rf'^(?!{_GROUPED}$)[^.\n]*\..*$', re.MULTILINE),
}


_SWAPPED = str.maketrans('.,', ',.')


def first_of_kinds(words: Sequence[str], decimal: str = '.') -> dict[str, int]:
    """Returns the index of the first word of each kind that occurs: WHOLE, GROUPED, CERTAIN."""
    text, places = '\n'.join(words), {}
    if decimal == ',':
        text = text.translate(_SWAPPED)
    for kind, pattern in _KINDS.items():
        match = pattern.search(text)
        if match:
            places[kind] = text.count('\n', 0, match.start())
    return places


def first_of_kinds_by_value(values: np.ndarray, digits: np.ndarray) -> dict[str, int]:
    """Returns the index of the first value of each kind, as `first_of_kinds`; zeros and missing values have no kind.

    `digits` [n] are the numbers `values` [n] parsed without their points: digits / values = 10 ** (their decimals).
    """
    values, digits = np.abs(values), np.abs(digits)
    with np.errstate(divide='ignore', invalid='ignore'):
        decimals = np.round(np.log10(digits / values))  # NaN for a missing value and for 0
    kinds = {WHOLE: decimals == 0, GROUPED: (decimals == 3) & (values >= 1) & (values < 1000)}
    kinds[CERTAIN] = ~np.isnan(decimals) & ~kinds[WHOLE] & ~kinds[GROUPED]
    return {kind: int(np.argmax(flags)) for kind, flags in kinds.items() if flags.any()}


_AMBIGUOUS = {
    WHOLE: 'this column had no decimals in training, so a number like 1.473 may be 1473; write it as 1473 or 1.4730',
    GROUPED: 'all numbers of this column were like 1.473 in training, which may be 1473; write it with decimals',
}


@functools.cache
def _pattern(decimal: str, thousands: str | None) -> re.Pattern[str]:
    return re.compile(_number(decimal, thousands), re.ASCII)


@functools.cache
def _other_line(decimal: str, thousands: str | None) -> re.Pattern[str]:
    """Returns a pattern that finds a line that is neither empty nor a number with these signs."""
    return re.compile(rf'^(?!{_number(decimal, thousands)}$|$)', re.ASCII | re.MULTILINE)


def _number(decimal: str, thousands: str | None) -> str:
    point = re.escape(decimal)
    number = rf'(?:\d+(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?'
    if thousands is not None:
        sign = f'[{re.escape(THOUSANDS[thousands])}]'
        groups = rf'(?:[1-9]\d{{0,2}}(?:{sign}\d{{3}})+|[1-9]\d?(?:{sign}\d{{2}})+{sign}\d{{3}})'  # 1,234,567 12,34,567
        number = rf'(?:{number}|{groups}(?:{point}\d*)?)'
    return rf'[+-]?{number}'


def _reason(word: str, format: NumberFormat) -> str:
    """Returns the fix or reason, to end a message, for a word that is not a number; '' if it is unknown."""
    if re.fullmatch(r'\(.*\)', word):
        return '; write a negative number with a minus sign'
    if '%' in word:
        return '; remove the percent sign'
    if any(unicodedata.category(sign) == 'Sc' for sign in word):
        return '; remove the currency sign'
    if '\u2212' in word:
        return "; write the minus sign as '-'"
    if '_' in word:
        return '; remove the underscore'
    if any(sign.isdigit() and not sign.isascii() for sign in word):
        return '; write it with the digits 0 to 9'
    if re.fullmatch(r'[+-]?inf(inity)?', word, re.IGNORECASE):
        return '; write a finite number'
    if re.fullmatch(r'[+-]?\d+', word.translate(_REMOVED.get(format.thousands, {}))):
        return f', since with --thousands={format.thousands} it must have groups of three digits and not start with 0'
    return ''
