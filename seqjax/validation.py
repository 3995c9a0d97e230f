"""Checks of the shapes, choices and integer ranges of arguments."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from seqjax import options

Shape = tuple[int, ...]


def is_concrete(x: Any) -> bool:
    """Returns True if the values of x are known; False if x is a tracer, as inside `jax.jit` or `jax.vmap`."""
    return not isinstance(x, jax.core.Tracer)


def is_encodable(text: str) -> bool:
    """Returns True if the text can be encoded as UTF-8, that is if it has no lone surrogate (an undecodable byte)."""
    return text.encode('utf-8', 'ignore').decode() == text


def check_shape(name: str, got: Shape, want: Shape, reason: str) -> None:
    """Raises ValueError if the shapes `got` and `want` differ; the message names the first axis that differs."""
    if got == want:
        return
    where = f'it has {len(got)} axes, not {len(want)}'
    if len(got) == len(want):
        axis = next(i for i, (a, b) in enumerate(zip(got, want, strict=True)) if a != b)
        where = f'axis {axis} is {got[axis]}, not {want[axis]}'
    raise ValueError(f'{name} {got} must be {want}, {reason}: {where}')


def check_choice(name: str, value: Any, known: Iterable[Any]) -> None:
    """Raises ValueError if the value of the argument `name` is not one of the known values, which the message lists."""
    if value not in tuple(known):  # a tuple, as an invalid value may not be hashable
        raise ValueError(
            f'{name}={value!r} must be one of {", ".join(map(repr, known))}{options.nearest(value, known)}'
        )


def check_range(name: str, x: Any, last: int, reason: str) -> None:
    """Raises ValueError if an element of the integer array x is below 0 or above `last`; names the first such element.

    Does nothing if x is traced: compiled code cannot raise, so callers make results NaN that depend on such an element.
    """
    if not is_concrete(x):
        return
    values = np.asarray(x)
    for index in np.argwhere((values < 0) | (values > last))[:1]:
        place = f'[{", ".join(map(str, index))}]' if len(index) else ''
        raise ValueError(f'{name}{place} is {values[tuple(index)]} and must be from 0 to {last}: {reason}')
