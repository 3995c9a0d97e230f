"""Replica groups: seeds that are computed together by `vmap`."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MAX_WIDTH = 256  # replicas of a group, for a model of any size
# Each group needs its own checkpoints, which cost as much time as some hundred replicas of a tiny model. Groups of tiny
# models are therefore wider, as long as they fit into the caches of a CPU.
MAX_TINY_WIDTH, MAX_NUMBERS = 1024, 2**21  # replicas, and float32 numbers of all of them


class ReplicaGroup(NamedTuple):
    """Seeds that are trained together."""

    first: int  # index of the first seed among all seeds
    seeds: np.ndarray  # [n]
    num_seeds: int  # number of seeds of all groups

    def __str__(self) -> str:
        """Name for a folder: seeds_0_to_249."""
        return f'seeds_{self.seeds[0]}_to_{self.seeds[-1]}'

    @property
    def label(self) -> str:
        """Name for a message: seeds 0 to 249; empty if the group has all seeds."""
        return '' if len(self.seeds) == self.num_seeds else str(self).replace('_', ' ')


def max_width(numbers: int) -> int:
    """Returns the maximal number of replicas in a group, for a training step with `numbers` float32 numbers.

    >>> max_width(1), max_width(5000), max_width(10**6)
    (1024, 419, 256)
    """
    return min(max(MAX_NUMBERS // numbers, MAX_WIDTH), MAX_TINY_WIDTH)


def group_width(count: int, max_width: int = MAX_WIDTH) -> int:
    """Returns the width that splits `count` replicas into the fewest equal groups, the last one padded.

    >>> group_width(100), group_width(1000), group_width(257)
    (100, 250, 129)
    """
    groups = -(-count // max_width)
    return -(-count // groups)


def replica_groups(seeds: np.ndarray, width: int) -> Iterator[ReplicaGroup]:
    """Yields groups of `width` seeds; the last may be narrower.

    >>> [str(group) for group in replica_groups(np.arange(5), 3)]
    ['seeds_0_to_2', 'seeds_3_to_4']
    """
    for first in range(0, len(seeds), width):
        yield ReplicaGroup(first, seeds[first : first + width], len(seeds))


def pad_replicas(rows: np.ndarray, width: int) -> np.ndarray:
    """Repeats the last of rows [n, ...] up to [width, ...], so that all groups run the same program.

    >>> pad_replicas(np.array([7, 8]), 4).tolist()
    [7, 8, 8, 8]
    """
    return np.concatenate([rows, np.repeat(rows[-1:], width - len(rows), axis=0)])
