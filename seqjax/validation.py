"""Checks of shapes, choices and ranges."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from seqjax import options

Shape = tuple[int, ...]


def is_concrete(x: Any) -> bool:
    """Whether its values can be looked at: not while a transformation traces it."""
    return not isinstance(x, jax.core.Tracer)


def is_encodable(text: str) -> bool:
    """Returns True if UTF-8 can hold it: not half a surrogate pair, which stands for a byte that is no text."""
    return text.encode('utf-8', 'ignore').decode() == text


def check_shape(name: str, got: Shape, want: Shape, reason: str) -> None:
    """Raises a ValueError that names the argument, both shapes and the first axis where they differ."""
    if got == want:
        return
    where = f'it has {len(got)} axes, not {len(want)}'
    if len(got) == len(want):
        axis = next(i for i, (a, b) in enumerate(zip(got, want, strict=True)) if a != b)
        where = f'axis {axis} is {got[axis]}, not {want[axis]}'
    raise ValueError(f'{name} {got} must be {want}, {reason}: {where}')


def check_choice(name: str, value: Any, known: Iterable[Any]) -> None:
    """Raises a ValueError that names the argument and lists what is known, where the value is none of that."""
    if value not in tuple(known):  # not by its hash, which a wrong one may lack
        raise ValueError(
            f'{name}={value!r} must be one of {", ".join(map(repr, known))}{options.nearest(value, known)}'
        )


def check_range(name: str, x: Any, last: int, reason: str) -> None:
    """Raises a ValueError that names the first of the integers that is not from 0 to `last`, where they are known.

    Compiled code cannot raise: callers make NaN of whatever depends on such an integer.
    """
    if not is_concrete(x):
        return
    values = np.asarray(x)
    for index in np.argwhere((values < 0) | (values > last))[:1]:
        place = ', '.join(map(str, index))
        raise ValueError(f'{name}[{place}] is {values[tuple(index)]} and must be from 0 to {last}, {reason}')
