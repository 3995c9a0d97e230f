"""Checks of shapes, choices and ranges."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from seqjax import options

Shape = tuple[int, ...]


def is_concrete(x: Any) -> bool:
    """Returns True if the values of x are known, that is if x is not traced by a transformation."""
    return not isinstance(x, jax.core.Tracer)


def is_encodable(text: str) -> bool:
    """Returns True if the text can be encoded as UTF-8: no lone surrogates, which stand for undecodable bytes."""
    return text.encode('utf-8', 'ignore').decode() == text


def check_shape(name: str, got: Shape, want: Shape, reason: str) -> None:
    """Raises ValueError with the argument, both shapes and the first axis that differs, if the shapes differ."""
    if got == want:
        return
    where = f'it has {len(got)} axes, not {len(want)}'
    if len(got) == len(want):
        axis = next(i for i, (a, b) in enumerate(zip(got, want, strict=True)) if a != b)
        where = f'axis {axis} is {got[axis]}, not {want[axis]}'
    raise ValueError(f'{name} {got} must be {want}, {reason}: {where}')


def check_choice(name: str, value: Any, known: Iterable[Any]) -> None:
    """Raises ValueError with the argument and the known values, if the value is not among them."""
    if value not in tuple(known):  # a tuple, as an invalid value may not be hashable
        raise ValueError(
            f'{name}={value!r} must be one of {", ".join(map(repr, known))}{options.nearest(value, known)}'
        )


def check_range(name: str, x: Any, last: int, reason: str) -> None:
    """Raises ValueError with the first of the integers x that is not from 0 to `last`, if they are concrete.

    Compiled code cannot raise: there, callers make results NaN that depend on such an integer.
    """
    if not is_concrete(x):
        return
    values = np.asarray(x)
    for index in np.argwhere((values < 0) | (values > last))[:1]:
        place = ', '.join(map(str, index))
        raise ValueError(f'{name}[{place}] is {values[tuple(index)]} and must be from 0 to {last}: {reason}')
