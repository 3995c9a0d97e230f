"""Schemas of recipes: types and ranges of what a run keeps about its data, checked before a prediction uses it."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from seqjax import validation
from seqjax.errors import UserError

LARGEST = 2**31 - 1
MOST_STEPS = 2**24  # of a padded sequence


class Rule(NamedTuple):
    """A condition on a value, and the words that complete "must be"."""

    holds: Callable[[Any], bool]
    words: str


def whole(least: int, most: int = LARGEST) -> Rule:
    return Rule(lambda x: type(x) is int and least <= x <= most, f'a whole number from {least} to {most}')


def number(over: float = -math.inf) -> Rule:
    """A finite number above `over`."""
    return Rule(lambda x: type(x) in (int, float) and over < x < math.inf and abs(x) < 1e300, 'a finite number')


def choice(*words: Any) -> Rule:
    return Rule(lambda x: any(type(x) is type(word) and x == word for word in words), f'one of {words}')


def text(least: int = 0) -> Rule:
    """Text that UTF-8 can hold."""

    def holds(x: Any) -> bool:
        return isinstance(x, str) and len(x) >= least and validation.is_encodable(x)

    return Rule(holds, 'text')


def several(rule: Rule, least: int = 0, distinct: bool = False) -> Rule:
    """A list."""

    def holds(x: Any) -> bool:
        return isinstance(x, list) and len(x) >= least and all(map(rule.holds, x)) and not (distinct and repeated(x))

    return Rule(holds, f'a list of {least} or more values, each {rule.words}{", all different" if distinct else ""}')


def repeated(values: Any) -> bool:
    return len(set(values)) < len(values)


def optional(rule: Rule) -> Rule:
    return Rule(lambda x: x is None or rule.holds(x), f'null or {rule.words}')


SWITCH = choice(True, False)
NAMES = several(text(1), distinct=True)


def check(recipe: Any, schema: Mapping[str, Rule], equal: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Returns a recipe, as JSON gives it, that has all values of the schema, and those of `equal`, which flags imply.

    Raises UserError where a value is missing or invalid; the sentence names it.
    """
    if not isinstance(recipe, dict):
        raise UserError('its recipe is not an object')
    for name, rule in schema.items():
        if name not in recipe:
            raise UserError(f'its recipe has no {name!r}')
        if not rule.holds(recipe[name]):
            raise UserError(f'its recipe has {name}={str(recipe[name])[:80]}, which must be {rule.words}')
    for name, value in (equal or {}).items():
        require(recipe[name] == value, f'{name}={str(recipe[name])[:80]}, and its flags say {str(value)[:80]}')
    return recipe


def require(holds: bool, what: str) -> None:
    """Raises UserError with what the recipe has, unless that is right."""
    if not holds:
        raise UserError(f'its recipe has {what}')
