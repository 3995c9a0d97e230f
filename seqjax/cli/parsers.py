"""Parsers of flag values: numbers, choices, names, paths."""

import math
import operator
import os
import re
import sys
from collections.abc import Callable, Iterable
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


class Whole(flags.ArgumentParser):
    """A whole number from `minimum` to `maximum`."""

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

    def flag_type(self) -> str:
        return 'whole number'


class Real(flags.ArgumentParser):
    """A number for which `holds` is true; the classes below are its kinds."""

    kind: str
    words: str  # what it must be

    def holds(self, value: float) -> bool:
        """Whether a number is one of this kind; NaN, which stands for what is no number, never is."""
        raise NotImplementedError

    def parse(self, argument: Any) -> float:
        try:
            value = float(_plain_number(argument))
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if not self.holds(value):
            raise ValueError(self.words)
        return value

    def flag_type(self) -> str:
        return self.kind


SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class Positive(Real):
    """A positive number that float32 can hold."""

    kind, words = 'positive number', f'must be a positive and finite number, from {SMALLEST:.1e} to {LARGEST:.1e}'

    def holds(self, value: float) -> bool:
        return SMALLEST <= value <= LARGEST


class Number(Real):
    """A finite number."""

    kind, words = 'number', 'must be a finite number'

    def holds(self, value: float) -> bool:
        return abs(value) <= LARGEST


class Share(Real):
    """A share: over 0, at most 1."""

    kind, words = 'share', 'must be a number over 0 and at most 1'

    def holds(self, value: float) -> bool:
        return 0 < value <= 1


class Fraction(Real):
    """A share that leaves something: from 0 to below 1."""

    kind, words = 'fraction', 'must be a number from 0 to below 1'

    def holds(self, value: float) -> bool:
        return 0 <= value < 1


class Choice(flags.ArgumentParser):
    """One of a few words."""

    def __init__(self, *words: str):
        self.words = words

    def parse(self, argument: Any) -> str:
        if argument not in self.words:
            raise ValueError(f'must be one of {", ".join(self.words)}{nearest(argument, self.words, str)}')
        return argument

    def flag_type(self) -> str:
        return ' | '.join(self.words)


class Many(flags.ArgumentParser):
    """Values that another parser takes, separated by commas."""

    def __init__(self, parser: flags.ArgumentParser, distinct: bool = True):
        self.parser, self.distinct = parser, distinct

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

    def flag_type(self) -> str:
        return f'{self.parser.flag_type()},...'


def _split(text: str) -> list[str]:
    """At commas, but for those in parentheses.

    >>> _split('lstm(peepholes=True,forget=none),gru')
    ['lstm(peepholes=True,forget=none)', 'gru']
    """
    return re.split(r',(?![^(]*\))', text)


LONGEST_PATH, LONGEST_NAME = 3000, 255  # bytes; Linux takes 4095 and 255, and a run adds names of its own


class Place(flags.ArgumentParser):
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

    def flag_type(self) -> str:
        return self.kind


class Cache(Place):
    """A folder, or none."""

    def flag_type(self) -> str:
        return f'{self.kind} | {compilation_cache.OFF}'


class Name(flags.ArgumentParser):
    """A word that the run must know."""

    def parse(self, argument: Any) -> str:
        if not isinstance(argument, str) or not argument.strip() or not validation.is_encodable(argument):
            raise ValueError('must be a name')
        return argument

    def flag_type(self) -> str:
        return 'name'


class Sign(Name):
    """One character, or the word tab."""

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

    def flag_type(self) -> str:
        return 'character'


class Checked(Name):
    """A text that a function of `seqjax.datasets.readers.date_formats` takes."""

    def __init__(self, check: Callable[[str], str], kind: str):
        self.check, self.kind = check, kind

    def parse(self, argument: Any) -> str:
        return self.check(super().parse(argument))

    def flag_type(self) -> str:
        return self.kind


class Thousands(Choice):
    """The name of a thousands sign, or one of its characters."""

    def parse(self, argument: Any) -> str:
        names = {sign: name for name, signs in numbers.THOUSANDS.items() for sign in signs}
        return super().parse(names.get(argument, argument) if isinstance(argument, str) else argument)


class TextParser(flags.ArgumentParser):
    """Any text that is not empty."""

    def parse(self, argument: Any) -> str:
        if not isinstance(argument, str) or not argument or not validation.is_encodable(argument):
            raise ValueError('must be a text that is not empty')
        return argument

    def flag_type(self) -> str:
        return 'text'


def _is_path(text: str) -> bool:
    """Returns True if the system can be given the text as a path."""
    try:
        return bool(os.fsencode(text))
    except UnicodeEncodeError:
        return False


class MeshParser(flags.ArgumentParser):
    """A mesh of devices."""

    def parse(self, argument: Any) -> str:
        sharding.parse_mesh(argument if isinstance(argument, str) else '')
        return argument

    def flag_type(self) -> str:
        return 'data:N[,model:M]'


class Others(flags.ArgumentParser):
    """How a process finds those that it works with."""

    def parse(self, argument: Any) -> str:
        multihost.parse(argument)
        return argument

    def flag_type(self) -> str:
        return 'off | auto | HOST:PORT,COUNT,INDEX'


class Grid(flags.ArgumentParser):
    """A flag and the values that it takes in turn; the flag may be repeated."""

    def parse(self, argument: Any) -> tuple[str, list[str]]:
        name, colon, values = argument.partition(':') if isinstance(argument, str) else ('', '', '')
        if not name or not colon or not all(values.split(',')):
            raise ValueError('must be NAME:VALUE,VALUE,..., such as learning_rate:1e-3,3e-3')
        return name, values.split(',')

    def flag_type(self) -> str:
        return 'NAME:VALUE,...'


class Switch(flags.BooleanParser):
    """True or false."""

    def parse(self, argument: Any) -> bool:
        try:
            return super().parse(bool(argument) if isinstance(argument, np.bool_) else argument)
        except (TypeError, ValueError, AttributeError):
            raise ValueError('must be true or false') from None


class CellName(flags.ArgumentParser):
    """A cell by its name or as MODULE:CLASS, with options in parentheses behind it."""

    def parse(self, argument: Any) -> str:
        text = argument if isinstance(argument, str) and validation.is_encodable(argument) else ''
        if ':' in text:
            import_from_here()
        try:
            models.find_cell(text)
        except ValueError as error:
            raise ValueError(str(error).removeprefix(f'cell={text} ')) from error
        return text

    def flag_type(self) -> str:
        return f'{" | ".join(models.CELLS)} | MODULE:CLASS'


def import_from_here() -> None:
    """Modules of the folder where the command was given are found, too."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
