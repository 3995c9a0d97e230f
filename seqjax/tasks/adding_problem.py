"""Adding problem: the sum of two marked numbers of a sequence, as in Bai et al. 2018.

A time step is a pair of a number, uniform from 0 to 1, and a mark, which is 1 at two random steps and 0 elsewhere. The
target, after the last step, is the sum of the two marked numbers. The loss is the mean squared error.

    number   0.5  0.2  0.7  0.1 ... 0.4 ...
    mark     0    0    1    0   ... 1   ...   ->   0.7 + 0.4 = 1.1

The best constant, 1, has a loss of 1/6. In the task `adding` (Hochreiter and Schmidhuber 1997) numbers, marks, targets
and lengths are different: both marks are in the first half.
"""

from functools import partial

import jax
import jax.numpy as jnp

from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SuccessCriterion, SyntheticTask, task_defaults
from seqjax.types import Batch, ModelSpec

TOLERANCE = 0.04  # absolute error below which an output is correct; the source has no such criterion
VARIANCE = 1 / 6  # of the sum of two independent numbers, each of variance 1/12


@task_defaults(batch_size=32, eval_every=50, steps=5000, clip_norm=1.0)
def adding_problem(length: int = 600) -> SyntheticTask:
    """Returns the task of adding the two marked numbers of a sequence of (number, mark) pairs.

    Args:
      length: T, number of time steps of every sequence.

    Raises:
      ValueError: `length` is below 2.

    >>> batch = adding_problem(length=6).sample(jax.random.key(0), 1)
    >>> numbers, marks = batch.inputs[0].T
    >>> marks.astype(int).tolist(), bool(jnp.isclose(batch.targets[0, 0], numbers @ marks))
    ([0, 0, 1, 0, 0, 1], True)
    """
    if length < 2:
        raise ValueError(f'length={length} must be at least 2, because two steps are marked')
    return SyntheticTask(
        name=f'adding problem of length {length}',
        sample=partial(_sample, length=length),
        loss_fn=synthetic.regression(TOLERANCE),
        spec=ModelSpec('last', outputs=1, features=2, memory_span=length),
        reference_losses={'best constant': VARIANCE},
        success=SuccessCriterion(at_most=0.1 * VARIANCE, metric='loss'),
    )


def _sample(key: jax.Array, count: int, *, length: int) -> Batch:
    keys = jax.random.split(key, 3)
    numbers = jax.random.uniform(keys[0], (count, length))
    first = jax.random.randint(keys[1], (count, 1), 0, length)
    second = jax.random.randint(keys[2], (count, 1), 0, length - 1)  # skips the first mark
    second += second >= first
    steps = jnp.arange(length)[None]
    marked = (steps == first) | (steps == second)
    targets = jnp.take_along_axis(numbers, first, 1) + jnp.take_along_axis(numbers, second, 1)
    return Batch(jnp.stack([numbers, marked.astype(numbers.dtype)], -1), targets, jnp.ones(count, bool))
