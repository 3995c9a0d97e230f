"""Many seeds at once, by vmap, in groups that fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MAX_WIDTH = 256  # replicas side by side: more are no faster on a CPU, and their memory leaves the cache


class Group(NamedTuple):
    """Seeds that are trained side by side."""

    first: int  # the place of its first seed among all
    seeds: np.ndarray  # [n], n at most the width
    filled: np.ndarray  # [width] uint32: the seeds, and the last of them again until all groups are equally wide

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
    """Groups of `width`, one after the other, which all run the same program: that for `replicas=width`.

    >>> [(str(group), group.filled.tolist()) for group in groups(np.arange(5), 3)]
    [('seeds_0_to_2', [0, 1, 2]), ('seeds_3_to_4', [3, 4, 4])]
    """
    for first in range(0, len(seeds), width):
        part = seeds[first : first + width]
        yield Group(first, part, np.pad(part, (0, width - len(part)), mode='edge').astype(np.uint32))
