"""Parsers of flag values: numbers, choices, names, paths."""

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
    """Python's numbers may hold underscores and the digits of every script, and bool is one; a flag's are plain."""
    odd = isinstance(argument, str) and (not argument.isascii() or '_' in argument)
    if odd or isinstance(argument, bool | np.bool_):
        raise ValueError
    return argument


class Parser(flags.ArgumentParser):
    """Parser of a flag; `kind` stands in the help."""

    kind: str

    def flag_type(self) -> str:
        return self.kind


class Whole(Parser):
    """A whole number from `minimum` to `maximum`."""

    kind = 'whole number'

    def __init__(self, minimum: int, maximum: int = 2**31 - 1):
        self.minimum, self.maximum = minimum, maximum

    def parse(self, argument: Any) -> int:
        try:
            argument = _plain_number(argument)
            value = int(argument) if isinstance(argument, str) else operator.index(argument)
        except (TypeError, ValueError):
            value = None
        if value is None or not self.minimum <= value <= self.maximum:
            raise ValueError(f'must be a whole number from {self.minimum} to {self.maximum}')
        return value


class Real(Parser):
    """A number for which `holds` is true; NaN, which stands for what is no number, never is one."""

    def __init__(self, kind: str, words: str, holds: Callable[[float], bool]):
        self.kind, self.words, self.holds = kind, words, holds

    def parse(self, argument: Any) -> float:
        try:
            value = float(_plain_number(argument))
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if not self.holds(value):
            raise ValueError(self.words)
        return value


SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
Positive = partial(
    Real,
    'positive number',
    f'must be a positive and finite number, from {SMALLEST:.1e} to {LARGEST:.1e}',
    lambda value: SMALLEST <= value <= LARGEST,
)
Number = partial(Real, 'number', 'must be a finite number', lambda value: abs(value) <= LARGEST)
Share = partial(Real, 'share', 'must be a number over 0 and at most 1', lambda value: 0 < value <= 1)
Fraction = partial(Real, 'fraction', 'must be a number from 0 to below 1', lambda value: 0 <= value < 1)


class Choice(Parser):
    """One of a few words."""

    def __init__(self, *words: str):
        self.words, self.kind = words, ' | '.join(words)

    def parse(self, argument: Any) -> str:
        if argument not in self.words:
            raise ValueError(f'must be one of {", ".join(self.words)}{nearest(argument, self.words, str)}')
        return argument


class Many(Parser):
    """Values that another parser takes, separated by commas."""

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
            different = ', all different' if self.distinct else ''
            raise ValueError(f'must be one or more values{different}, separated by commas')
        return parsed


def _split(text: str) -> list[str]:
    """At commas, but for those in parentheses.

    >>> _split('lstm(peepholes=True,forget=none),gru')
    ['lstm(peepholes=True,forget=none)', 'gru']
    """
    return re.split(r',(?![^(]*\))', text)


LONGEST_PATH, LONGEST_NAME = 3000, 255  # bytes; Linux takes 4095 and 255, and a run adds names of its own


class Place(Parser):
    """The path of a folder, or of a file."""

    def __init__(self, kind: str = 'folder'):
        self.kind = kind

    def parse(self, argument: Any) -> str:
        text = os.fspath(argument) if isinstance(argument, str | os.PathLike) else ''
        # Half a surrogate pair stands for a byte that the locale cannot decode; Orbax takes no such folder.
        known = _is_path(text) if self.kind == 'file' else validation.is_encodable(text)
        if not text.strip() or '\0' in text or not known:
            raise ValueError(f'must be the path of a {self.kind}')
        path = os.fsencode(text)
        if len(path) > LONGEST_PATH or max(map(len, path.split(os.fsencode(os.sep)))) > LONGEST_NAME:
            raise ValueError(
                f'must be a path of at most {LONGEST_PATH} bytes, with names of at most {LONGEST_NAME}; choose another'
            )
        return text


class Cache(Place):
    """A folder, or none."""

    def flag_type(self) -> str:
        return f'{self.kind} | {compilation_cache.OFF}'


class Name(Parser):
    """A word that the run must know."""

    kind = 'name'

    def parse(self, argument: Any) -> str:
        if not isinstance(argument, str) or not argument.strip() or not validation.is_encodable(argument):
            raise ValueError('must be a name')
        return argument


class Sign(Parser):
    """One character, or the word tab."""

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
            raise ValueError('must be one character that is no letter and no digit, or tab')
        return argument


class Checked(Name):
    """A text that a function of `seqjax.datasets.readers.date_formats` takes."""

    def __init__(self, check: Callable[[str], str], kind: str):
        self.check, self.kind = check, kind

    def parse(self, argument: Any) -> str:
        return self.check(super().parse(argument))


class Thousands(Choice):
    """The name of a thousands sign, or one of its characters."""

    def parse(self, argument: Any) -> str:
        names = {sign: name for name, signs in numbers.THOUSANDS.items() for sign in signs}
        return super().parse(names.get(argument, argument) if isinstance(argument, str) else argument)


class TextParser(Parser):
    """Any text that is not empty."""

    kind = 'text'

    def parse(self, argument: Any) -> str:
        if not isinstance(argument, str) or not argument or not validation.is_encodable(argument):
            raise ValueError('must be a text that is not empty')
        return argument


def _is_path(text: str) -> bool:
    """Returns True if the system can be given the text as a path."""
    try:
        return bool(os.fsencode(text))
    except UnicodeEncodeError:
        return False


class MeshParser(Parser):
    """A mesh of devices."""

    kind = 'data:N[,model:M]'

    def parse(self, argument: Any) -> str:
        sharding.parse_mesh(argument if isinstance(argument, str) else '')
        return argument


class Others(Parser):
    """How a process finds those that it works with."""

    kind = 'off | auto | HOST:PORT,COUNT,INDEX'

    def parse(self, argument: Any) -> str:
        multihost.parse(argument)
        return argument


class Grid(Parser):
    """A flag and the values that it takes in turn; the flag may be repeated."""

    kind = 'NAME:VALUE,...'

    def parse(self, argument: Any) -> tuple[str, list[str]]:
        name, colon, values = argument.partition(':') if isinstance(argument, str) else ('', '', '')
        if not name or not colon or not all(values.split(',')):
            raise ValueError('must be NAME:VALUE,VALUE,..., such as learning_rate:1e-3,3e-3')
        return name, values.split(',')


class Switch(flags.BooleanParser):
    """True or false."""

    def parse(self, argument: Any) -> bool:
        try:
            return super().parse(bool(argument) if isinstance(argument, np.bool_) else argument)
        except (TypeError, ValueError, AttributeError):
            raise ValueError('must be true or false') from None


class CellName(Parser):
    """A cell by its name or as MODULE:CLASS, with options in parentheses behind it."""

    kind = f'{" | ".join(models.CELLS)} | MODULE:CLASS'

    def parse(self, argument: Any) -> str:
        text = argument if isinstance(argument, str) and validation.is_encodable(argument) else ''
        if ':' in text:
            import_from_here()
        try:
            models.find_cell(text)
        except ValueError as error:
            raise ValueError(str(error).removeprefix(f'cell={text} ')) from error
        return text


def import_from_here() -> None:
    """Modules of the folder where the command was given are found, too."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
