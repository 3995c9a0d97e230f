"""Replica groups: seeds that are trained together in one program. A replica is the training of one seed."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MAX_WIDTH = 256  # maximal number of replicas in a group, for a model of any size
# Each group needs its own checkpoints, which cost as much time as some hundred replicas of a tiny model. Groups of tiny
# models are therefore wider, as long as they fit into the caches of a CPU.
MAX_TINY_WIDTH, MAX_NUMBERS = 1024, 2**21  # maximal replicas in such a group; float32 numbers of all of its replicas


class ReplicaGroup(NamedTuple):
    """Seeds that are trained together in one program."""

    first: int  # index of `seeds[0]` among the seeds of all groups
    seeds: np.ndarray  # [n]
    num_seeds: int  # number of seeds of all groups

    def __str__(self) -> str:
        """Returns the name of a folder, such as seeds_0_to_249."""
        return f'seeds_{self.seeds[0]}_to_{self.seeds[-1]}'

    @property
    def label(self) -> str:
        """Name for messages, such as seeds 0 to 249; empty if the group has all seeds."""
        return '' if len(self.seeds) == self.num_seeds else str(self).replace('_', ' ')


def max_width(numbers: int) -> int:
    """Returns the maximal number of replicas in a group, if a training step of one has `numbers` float32 numbers.

    >>> max_width(1), max_width(5000), max_width(10**6)
    (1024, 419, 256)
    """
    return min(max(MAX_NUMBERS // numbers, MAX_WIDTH), MAX_TINY_WIDTH)


def group_width(count: int, max_width: int = MAX_WIDTH) -> int:
    """Returns the group size that splits `count` replicas most equally into the fewest groups.

    A group has at most `max_width` replicas; the last group may be smaller than the others.

    >>> group_width(100), group_width(1000), group_width(257)
    (100, 250, 129)
    """
    groups = -(-count // max_width)
    return -(-count // groups)


def replica_groups(seeds: np.ndarray, width: int) -> Iterator[ReplicaGroup]:
    """Yields groups of `width` consecutive seeds of `seeds` [R]; the last group may be smaller.

    >>> [str(group) for group in replica_groups(np.arange(5), 3)]
    ['seeds_0_to_2', 'seeds_3_to_4']
    """
    for first in range(0, len(seeds), width):
        yield ReplicaGroup(first, seeds[first : first + width], len(seeds))


def pad_replicas(rows: np.ndarray, width: int) -> np.ndarray:
    """Returns rows [n, ...] padded to [width, ...] with copies of the last row, so that all groups run one program.

    >>> pad_replicas(np.array([7, 8]), 4).tolist()
    [7, 8, 8, 8]
    """
    return np.concatenate([rows, np.repeat(rows[-1:], width - len(rows), axis=0)])
