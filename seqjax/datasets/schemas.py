"""Rules for the values of the preprocessing that a run saves, which are checked before it is used for predictions."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from seqjax import validation
from seqjax.errors import UserError

MAX_INTEGER = 2**31 - 1  # default maximum of a whole number
MAX_STEPS = 2**24  # maximum number of time steps of a padded sequence


class Rule(NamedTuple):
    """A condition on a value, and its description in messages."""

    holds: Callable[[Any], bool]  # value -> True if it is valid
    words: str  # words after 'must be', such as 'a whole number from 1 to 9'


def integer(least: int, most: int = MAX_INTEGER) -> Rule:
    return Rule(lambda x: type(x) is int and least <= x <= most, f'a whole number from {least} to {most}')


def number(over: float = -math.inf) -> Rule:
    """Returns a rule for numbers above `over` with an absolute value below 1e300."""
    return Rule(
        lambda x: type(x) in (int, float) and over < x < math.inf and abs(x) < 1e300,
        f'a number above {over} and below 1e300',
    )


def choice(*words: Any) -> Rule:
    return Rule(
        lambda x: any(type(x) is type(word) and x == word for word in words), f'one of {", ".join(map(repr, words))}'
    )


def text(least: int = 0) -> Rule:
    """Returns a rule for text of at least `least` characters that UTF-8 can encode."""

    def holds(x: Any) -> bool:
        return isinstance(x, str) and len(x) >= least and validation.is_encodable(x)

    return Rule(holds, f'UTF-8 text of {least} or more characters')


def list_of(rule: Rule, least: int = 0, distinct: bool = False) -> Rule:
    """Returns a rule for lists of `least` or more values that each satisfy `rule`; all different if `distinct`."""

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
    """Returns `preprocessing` unchanged if its values satisfy `schema` and equal those in `equal`.

    Args:
      preprocessing: JSON value from a run directory.
      schema: rule for the value of each key that `preprocessing` must have; other keys are allowed.
      equal: value that the flags of the run imply, for some keys of the schema.

    Raises:
      UserError: `preprocessing` is not a dict, or a value is missing, invalid or not equal; the message names its key.
    """
    if not isinstance(preprocessing, dict):
        raise UserError('the saved preprocessing is missing or is not a JSON object; restore the file, or train again')
    for name, rule in schema.items():
        if name not in preprocessing:
            raise UserError(f'the saved preprocessing has no {name!r}; restore the file, or train again')
        if not rule.holds(preprocessing[name]):
            raise UserError(
                f'the saved preprocessing has {name}={str(preprocessing[name])[:80]}, which must be {rule.words}; '
                'restore the file, or train again'
            )
    for name, value in (equal or {}).items():
        require(
            preprocessing[name] == value,
            f'{name}={str(preprocessing[name])[:80]}, but the flags of the run imply {str(value)[:80]}',
        )
    return preprocessing


def require(holds: bool, what: str) -> None:
    """Raises UserError if `holds` is False; `what` describes the invalid content of the saved preprocessing."""
    if not holds:
        raise UserError(f'the saved preprocessing has {what}; restore the file, or train again')
