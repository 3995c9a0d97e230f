"""Schemas of the preprocessing that a run saves: types and ranges, checked before a prediction uses it."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from seqjax import validation
from seqjax.errors import UserError

MAX_INTEGER = 2**31 - 1
MAX_STEPS = 2**24  # maximum length of a padded sequence


class Rule(NamedTuple):
    """A condition on a value, and the words that complete "must be" in a message."""

    holds: Callable[[Any], bool]
    words: str


def integer(least: int, most: int = MAX_INTEGER) -> Rule:
    return Rule(lambda x: type(x) is int and least <= x <= most, f'a whole number from {least} to {most}')


def number(over: float = -math.inf) -> Rule:
    """Returns a rule for finite numbers above `over`."""
    return Rule(lambda x: type(x) in (int, float) and over < x < math.inf and abs(x) < 1e300, 'a finite number')


def choice(*words: Any) -> Rule:
    return Rule(lambda x: any(type(x) is type(word) and x == word for word in words), f'one of {words}')


def text(least: int = 0) -> Rule:
    """Returns a rule for text of at least `least` characters that UTF-8 can encode."""

    def holds(x: Any) -> bool:
        return isinstance(x, str) and len(x) >= least and validation.is_encodable(x)

    return Rule(holds, 'text')


def list_of(rule: Rule, least: int = 0, distinct: bool = False) -> Rule:
    """Returns a rule for lists of at least `least` values."""

    def holds(x: Any) -> bool:
        return isinstance(x, list) and len(x) >= least and all(map(rule.holds, x)) and not (distinct and repeated(x))

    return Rule(holds, f'a list of {least} or more values, each {rule.words}{", all different" if distinct else ""}')


def repeated(values: Any) -> bool:
    return len(set(values)) < len(values)


def optional(rule: Rule) -> Rule:
    return Rule(lambda x: x is None or rule.holds(x), f'null or {rule.words}')


BOOLEAN = choice(True, False)
NAMES = list_of(text(1), distinct=True)


def check(preprocessing: Any, schema: Mapping[str, Rule], equal: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Returns the preprocessing of a run if it has all values of the schema, and the values of `equal`.

    Args:
      preprocessing: what JSON was parsed to.
      schema: rules by key.
      equal: values by key that the run's flags imply.

    Raises:
      UserError: a value is missing or invalid; the message names it.
    """
    if not isinstance(preprocessing, dict):
        raise UserError('its preprocessing is missing, or is not a JSON object')
    for name, rule in schema.items():
        if name not in preprocessing:
            raise UserError(f'its preprocessing has no {name!r}')
        if not rule.holds(preprocessing[name]):
            raise UserError(f'its preprocessing has {name}={str(preprocessing[name])[:80]}, which must be {rule.words}')
    for name, value in (equal or {}).items():
        require(
            preprocessing[name] == value,
            f'{name}={str(preprocessing[name])[:80]}, but its flags imply {str(value)[:80]}',
        )
    return preprocessing


def require(holds: bool, what: str) -> None:
    """Raises UserError unless the condition holds; `what` is the wrong content of the preprocessing."""
    if not holds:
        raise UserError(f'its preprocessing has {what}')
