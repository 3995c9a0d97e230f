"""Many seeds at once, by vmap, in groups that fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
import optax

from seqjax import train
from seqjax.task import State, Task

MAX_WIDTH = 256  # replicas side by side: more are no faster on a CPU, and their memory leaves the cache


class Progress(NamedTuple):
    """One chunk of one group of replicas."""

    first: int  # the replica that the group begins with
    step: int  # the step that the chunk begins with
    state: State  # leaves [R, ...], after the chunk; a group that was filled up is wider than its metrics
    metrics: train.Metrics  # leaves [steps of the chunk, replicas of the group]
    evals: dict[str, train.Metrics]  # of every split after the chunk, leaves [replicas of the group]


def group_width(count: int, max_width: int = MAX_WIDTH) -> int:
    """The width that splits `count` replicas into the fewest equal groups, the last one filled up.

    >>> group_width(100), group_width(1000), group_width(257)
    (100, 250, 129)
    """
    groups = -(-count // max_width)
    return -(-count // groups)


def sweep(
    task: Task,
    tx: optax.GradientTransformation,
    seeds: np.ndarray,
    *,
    steps: int,
    chunk: int,
    width: int,
    programs: train.Programs,
) -> Iterator[Progress]:
    """Trains one replica for each of `seeds` [N], a group of `width` after the other, and yields every chunk.

    A group narrower than the others is filled up with its last seed, so that all run the same program: what
    `train.compile_programs` gave for `replicas=width`.
    """
    for first in range(0, len(seeds), width):
        group = seeds[first : first + width]
        count = len(group)
        initial = programs.init(np.pad(group, (0, width - count), mode='edge').astype(np.uint32))
        step = 0
        for state, metrics, evals in train.train(task, tx, initial, steps=steps, chunk=chunk, advance=programs.advance):
            metrics = jax.tree.map(lambda x, count=count: x[:, :count], metrics)
            yield Progress(first, step, state, metrics, jax.tree.map(lambda x, count=count: x[:count], evals))
            step += chunk
