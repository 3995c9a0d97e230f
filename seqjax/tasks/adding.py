"""Adding and multiplication: experiments 4 and 5 of Hochreiter and Schmidhuber 1997.

A time step is a pair of a number and a mark. The mark is 1 at the two marked steps, -1 at the first step (unless it is
marked) and at the last, and 0 elsewhere. The target, after the last step, is 0.5 + (x + y) / 4 or the product x * y of
the two marked numbers x and y. The first mark is in the first ten steps, and the second is at another step of the first
half. So for length 100 the numbers have to be remembered for at least 50 steps.

    number   0.5  -0.2   0.7   0.1 ...  0.4 ... -0.3
    mark    -1     0     1     0   ...  1   ... -1      ->   0.5 + (0.7 + 0.4) / 4 = 0.775
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SyntheticTask
from seqjax.types import Batch, ModelSpec, Sequences

TOLERANCE = 0.04  # absolute error below which an output is correct, from the paper
FIRST_MARK_PAIRS = 10  # the first mark is in the first so many steps
MIN_LENGTH = 2 * FIRST_MARK_PAIRS + 2  # the first ten steps are in the first half


def adding(length: int = 100, rule: Literal['add', 'multiply'] = 'add') -> SyntheticTask:
    """Returns the task of adding or multiplying the two marked numbers of a sequence of (number, mark) pairs.

    Args:
      length: length of the shortest sequences in time steps; the longest are a tenth longer.
      rule: add (numbers from -1 to 1) or multiply (numbers from 0 to 1).

    Raises:
      ValueError: `length` is below 22.

    >>> batch = adding(length=22).sample(jax.random.key(0), 1)
    >>> numbers, marks = batch.inputs.values[0].T
    >>> int(batch.inputs.seq_lengths[0]), marks.astype(int).tolist()
    (23, [-1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1, 0])
    >>> float(batch.targets[0, 0]) == 0.5 + float(numbers @ (marks == 1)) / 4
    True
    """
    if length < MIN_LENGTH:
        raise ValueError(f'length={length} must be at least {MIN_LENGTH}, because both marks are in the first half')
    return SyntheticTask(
        name=f'{"adding" if rule == "add" else "multiplication"} of length {length}',
        sample=partial(_sample, length=length, rule=rule),
        loss_fn=synthetic.regression(TOLERANCE),
        spec=ModelSpec('last', outputs=1, features=2, memory_span=length + length // 10),
        reference_losses={'best constant': _variance(length, rule)},
    )


def _variance(length: int, rule: str) -> float:
    """Returns the variance of the targets, which is the mean squared error of the best constant prediction."""
    at_first = 1 / FIRST_MARK_PAIRS + (1 - 1 / FIRST_MARK_PAIRS) / (
        length // 2 - 1
    )  # probability that the first step is marked
    if rule == 'add':  # numbers have mean 0 and variance 1/3; the number of a marked first step is 0
        return (2 - at_first) / 3 / 16
    mean, square = (1 - at_first) / 4 + at_first / 2, (1 - at_first) / 9 + at_first / 3
    return square - mean**2


def _sample(key: jax.Array, count: int, *, length: int, rule: str) -> Batch:
    tenth = length // 10
    steps = jnp.arange(length + tenth)[None]
    keys = jax.random.split(key, 4)
    lengths = jax.random.randint(keys[0], (count, 1), length, length + tenth + 1)
    numbers = jax.random.uniform(keys[1], (count, steps.size), minval=-1 if rule == 'add' else 0, maxval=1)
    first = jax.random.randint(keys[2], (count, 1), 0, FIRST_MARK_PAIRS)
    second = jax.random.randint(keys[3], (count, 1), 0, length // 2 - 1)  # skips the first mark
    second += second >= first
    # As in the paper, the number of a marked first step is the neutral element: 0 for add, 1 for multiply.
    numbers = jnp.where((steps == 0) & ((first == 0) | (second == 0)), 0.0 if rule == 'add' else 1.0, numbers)
    numbers = jnp.where(steps < lengths, numbers, 0.0)
    x, y = (jnp.take_along_axis(numbers, place, 1) for place in (first, second))
    marked = (steps == first) | (steps == second)
    ends = (steps == 0) | (steps == lengths - 1)
    marks = jnp.where(marked, 1.0, jnp.where(ends, -1.0, 0.0))
    targets = 0.5 + (x + y) / 4 if rule == 'add' else x * y
    return Batch(Sequences(jnp.stack([numbers, marks], -1), lengths[:, 0]), targets, jnp.ones(count, bool))
