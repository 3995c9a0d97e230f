"""Many seeds at once, by vmap, in groups that fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MAX_WIDTH = 256  # replicas side by side, of a model of any size
# A group costs the host a checkpoint, which takes as long as some hundred replicas of a tiny model. More of those lie
# side by side, up to what the caches of a CPU hold; wider than that they are no faster.
WIDEST, NUMBERS = 1024, 2**21  # replicas, and the float32 numbers of all of them


class Group(NamedTuple):
    """Seeds that are trained side by side."""

    first: int  # the place of its first seed among all
    seeds: np.ndarray  # [n]

    def __str__(self) -> str:
        """For a person, and as the name of a folder: seeds_0_to_249."""
        return f'seeds_{self.seeds[0]}_to_{self.seeds[-1]}'

    def place_among(self, count: int) -> str:
        """The group for a person; empty where it has all of `count` seeds."""
        return '' if len(self.seeds) == count else str(self).replace('_', ' ')


def max_width(numbers: int) -> int:
    """How many replicas may lie side by side, where a training step of one has so many float32 numbers.

    >>> max_width(1), max_width(5000), max_width(10**6)
    (1024, 419, 256)
    """
    return min(max(NUMBERS // numbers, MAX_WIDTH), WIDEST)


def group_width(count: int, max_width: int = MAX_WIDTH) -> int:
    """The width that splits `count` replicas into the fewest equal groups, the last one filled up.

    >>> group_width(100), group_width(1000), group_width(257)
    (100, 250, 129)
    """
    groups = -(-count // max_width)
    return -(-count // groups)


def groups(seeds: np.ndarray, width: int) -> Iterator[Group]:
    """Groups of `width`, one after the other; the last may be narrower.

    >>> [str(group) for group in groups(np.arange(5), 3)]
    ['seeds_0_to_2', 'seeds_3_to_4']
    """
    for first in range(0, len(seeds), width):
        yield Group(first, seeds[first : first + width])


def fill(rows: np.ndarray, width: int) -> np.ndarray:
    """[n, ...] -> [width, ...]: the last row again until all groups are equally wide, and run the same program.

    >>> fill(np.array([7, 8]), 4).tolist()
    [7, 8, 8, 8]
    """
    return np.concatenate([rows, np.repeat(rows[-1:], width - len(rows), axis=0)])
