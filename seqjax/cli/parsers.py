"""Parsers of flag values, from the command line or from Python: numbers, choices, names, paths."""

import math
import operator
import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from absl import flags

from seqjax import validation
from seqjax.cli import compilation_cache
from seqjax.datasets.readers import numbers
from seqjax.nn import models
from seqjax.options import nearest
from seqjax.runs import multihost
from seqjax.training import sharding


def _plain_number(argument: Any) -> Any:
    """Returns the argument; raises ValueError for booleans, `_` and non-ASCII text, which int() and float() accept."""
    is_unusual = isinstance(argument, str) and (not argument.isascii() or '_' in argument)
    if is_unusual or isinstance(argument, bool | np.bool_):
        raise ValueError
    return argument


class Parser(flags.ArgumentParser):
    """Base class of flag parsers; `kind` is the type of the value that --help shows, such as integer."""

    kind: str

    def flag_type(self) -> str:
        return self.kind


class IntParser(Parser):
    """Parser of an integer from `minimum` to `maximum`, both included."""

    kind = 'integer'

    def __init__(self, minimum: int, maximum: int = 2**31 - 1):
        self.minimum, self.maximum = minimum, maximum

    def parse(self, argument: Any) -> int:
        try:
            argument = _plain_number(argument)
            value = int(argument) if isinstance(argument, str) else operator.index(argument)
        except (TypeError, ValueError):
            value = None
        if value is None or not self.minimum <= value <= self.maximum:
            raise ValueError(f'must be an integer from {self.minimum} to {self.maximum}')
        return value


class RangeParser(Parser):
    """Parser of a number in a range.

    Args:
      kind: type of the value in --help.
      requirement: message of the ValueError for an invalid value, such as 'must be a finite number'.
      is_valid: returns True if a number is in the range; must return False for NaN, the value of text without a number.
    """

    def __init__(self, kind: str, requirement: str, is_valid: Callable[[float], bool]):
        self.kind, self.requirement, self.is_valid = kind, requirement, is_valid

    def parse(self, argument: Any) -> float:
        try:
            value = float(_plain_number(argument))
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if not self.is_valid(value):
            raise ValueError(self.requirement)
        return value


SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
PositiveParser = partial(
    RangeParser,
    'positive number',
    f'must be a positive and finite number, from {SMALLEST:.1e} to {LARGEST:.1e}',
    lambda value: SMALLEST <= value <= LARGEST,
)
FloatParser = partial(
    RangeParser,
    'number',
    f'must be a finite number, at most {LARGEST:.1e} in magnitude',
    lambda value: abs(value) <= LARGEST,
)
PositiveFractionParser = partial(
    RangeParser, 'fraction', 'must be a number above 0 and at most 1', lambda value: 0 < value <= 1
)
FractionParser = partial(
    RangeParser, 'fraction', 'must be a number from 0 to less than 1', lambda value: 0 <= value < 1
)


class ChoiceParser(Parser):
    """Parser of a word, which must be one of `words`."""

    def __init__(self, *words: str):
        self.words, self.kind = words, ' | '.join(words)

    def parse(self, argument: Any) -> str:
        if argument not in self.words:
            raise ValueError(f'must be one of {", ".join(self.words)}{nearest(argument, self.words, str)}')
        return argument


class ListParser(Parser):
    """Parser of a comma-separated text or a Python iterable; `parser` parses each value, `distinct` forbids repeats."""

    def __init__(self, parser: flags.ArgumentParser, distinct: bool = True):
        self.parser, self.distinct, self.kind = parser, distinct, f'{parser.flag_type()},...'

    def parse(self, argument: Any) -> list[Any]:
        values = _split(argument) if isinstance(argument, str) else argument
        values = values if isinstance(values, Iterable) else [values]
        try:
            parsed = [self.parser.parse(value) for value in values]
        except TypeError:
            parsed = []
        if not parsed or (self.distinct and len(set(parsed)) < len(parsed)):
            distinct = ' distinct' if self.distinct else ''
            raise ValueError(f'must be one or more{distinct} values, separated by commas')
        return parsed


def _split(text: str) -> list[str]:
    """Splits a text at commas outside of parentheses.

    >>> _split('lstm(peepholes=True,forget=none),gru')
    ['lstm(peepholes=True,forget=none)', 'gru']
    """
    return re.split(r',(?![^(]*\))', text)


MAX_PATH, MAX_NAME = 3000, 255  # bytes of a path, of a name in it; Linux allows 4095 and 255, and a run appends names


class PathParser(Parser):
    """Parser of a path, which need not exist; `kind` is 'folder' or 'file'."""

    def __init__(self, kind: str = 'folder'):
        self.kind = kind

    def parse(self, argument: Any) -> str:
        text = os.fspath(argument) if isinstance(argument, str | os.PathLike) else ''
        # A lone surrogate stands for a byte that the locale cannot decode; Orbax rejects such a folder.
        is_valid = _is_path(text) if self.kind == 'file' else validation.is_encodable(text)
        if not text.strip() or '\0' in text or not is_valid:
            raise ValueError(f'must be the path of a {self.kind}: not blank, and without null or undecodable bytes')
        path = os.fsencode(text)
        if len(path) > MAX_PATH or max(map(len, path.split(os.fsencode(os.sep)))) > MAX_NAME:
            raise ValueError(
                f'must have at most {MAX_PATH} bytes, and each name in it at most {MAX_NAME}; use a shorter path'
            )
        return text


class CacheParser(PathParser):
    """Parser of --compilation_cache: the path of a folder, or `off`."""

    def flag_type(self) -> str:
        return f'{self.kind} | {compilation_cache.OFF}'


class NameParser(Parser):
    """Parser of a name, any text that is not blank; the command checks later if the name is known."""

    kind = 'name'

    def parse(self, argument: Any) -> str:
        if not isinstance(argument, str) or not argument.strip() or not validation.is_encodable(argument):
            raise ValueError('must be a name: text that is not blank and can be encoded as UTF-8')
        return argument


class CharacterParser(Parser):
    """Parser of one ASCII character that is not alphanumeric, such as a semicolon; the word tab stands for a tab."""

    kind = 'character'

    def parse(self, argument: Any) -> str:
        if argument in ('tab', '\\t'):
            return '\t'
        if (
            not isinstance(argument, str)
            or len(argument) != 1
            or not argument.isascii()
            or argument.isalnum()
            or argument in '"\r\n\0'
        ):
            raise ValueError(
                'must be one ASCII character other than a letter, a digit, a double quote, a line break or NUL, or the '
                'word tab'
            )
        return argument


class CheckedParser(NameParser):
    """Parser of a name; `check` returns the value of a valid name, and raises ValueError for an invalid one."""

    def __init__(self, check: Callable[[str], str], kind: str):
        self.check, self.kind = check, kind

    def parse(self, argument: Any) -> str:
        return self.check(super().parse(argument))


class ThousandsParser(ChoiceParser):
    """Parser of a thousands separator, by name or by character; returns the name, such as `space` for a space."""

    def parse(self, argument: Any) -> str:
        names = {sign: name for name, signs in numbers.THOUSANDS.items() for sign in signs}
        return super().parse(names.get(argument, argument) if isinstance(argument, str) else argument)


class TextParser(Parser):
    """Parser of any text that is not empty and can be encoded as UTF-8."""

    kind = 'text'

    def parse(self, argument: Any) -> str:
        if not isinstance(argument, str) or not argument or not validation.is_encodable(argument):
            raise ValueError('must be a text that is not empty and can be encoded as UTF-8')
        return argument


def _is_path(text: str) -> bool:
    """Returns True if the text is not empty and can be encoded as a file path."""
    try:
        return bool(os.fsencode(text))
    except UnicodeEncodeError:
        return False


class MeshParser(Parser):
    """Parser of --mesh, the axes of a device mesh and their sizes; returns the text."""

    kind = 'data:N[,model:M]'

    def parse(self, argument: Any) -> str:
        sharding.parse_mesh(argument if isinstance(argument, str) else '')
        return argument


class ProcessesParser(Parser):
    """Parser of --distributed, the address of a process or `off` or `auto`; returns the text."""

    kind = 'off | auto | HOST:PORT,COUNT,INDEX'

    def parse(self, argument: Any) -> str:
        multihost.parse(argument)
        return argument


class GridParser(Parser):
    """Parser of one --grid of a sweep: returns the name of the varied flag and its values, which are not parsed yet."""

    kind = 'NAME:VALUE,...'

    def parse(self, argument: Any) -> tuple[str, list[str]]:
        name, colon, values = argument.partition(':') if isinstance(argument, str) else ('', '', '')
        if not name or not colon or not all(values.split(',')):
            raise ValueError('must be NAME:VALUE,VALUE,..., such as learning_rate:1e-3,3e-3')
        return name, values.split(',')


class BoolParser(flags.BooleanParser):
    """Parser of a boolean: a bool, 0 or 1, or text such as true and false."""

    def parse(self, argument: Any) -> bool:
        try:
            return super().parse(bool(argument) if isinstance(argument, np.bool_) else argument)
        except (TypeError, ValueError, AttributeError):
            raise ValueError('must be true or false') from None


class CellParser(Parser):
    """Parser of --cell: a name or MODULE:CLASS, optionally followed by options in parentheses; returns the text."""

    kind = f'{" | ".join(models.CELLS)} | MODULE:CLASS'

    def parse(self, argument: Any) -> str:
        text = argument if isinstance(argument, str) and validation.is_encodable(argument) else ''
        if ':' in text:
            import_from_cwd()
        try:
            models.find_cell(text)
        except ValueError as error:
            raise ValueError(str(error).removeprefix(f'cell={text} ')) from error
        return text


def import_from_cwd() -> None:
    """Inserts the current directory at the start of `sys.path`, unless it is already there."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
