"""Parsers of the flags of forecasts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from seqjax.cli.parsers import Choice, Name
from seqjax.datasets.readers import numbers


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
