"""Many seeds at once, by vmap, in groups that fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MAX_WIDTH = 256  # replicas side by side: more are no faster on a CPU, and their memory leaves the cache


class Group(NamedTuple):
    """Seeds that are trained side by side."""

    first: int  # the place of its first seed among all
    seeds: np.ndarray  # [n]

    def __str__(self) -> str:
        """For a person, and as the name of a folder: seeds_0_to_249."""
        return f'seeds_{self.seeds[0]}_to_{self.seeds[-1]}'


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
