"""Copy memory: repeating ten symbols after a delay T (Bai et al. 2018, after Hochreiter and Schmidhuber 1997).

    read     3 1 4 1 5 8 2 6 5 3  0 0 ... 0  9 9 9 9 9 9 9 9 9 9 9
    answer   0 0 0 0 0 0 0 0 0 0  0 0 ... 0  0 3 1 4 1 5 8 2 6 5 3

The input is ten symbols from 1 to 8, T - 1 blanks (0), and eleven marks (9); the first mark asks for the symbols. A
sequence has T + 20 steps, with a target at each. A memoryless model that knows the time step has a loss of
10 ln 8 / (T + 20).
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SuccessCriterion, SyntheticTask, task_defaults
from seqjax.types import Batch, ModelSpec

COPY_LENGTH, NUM_SYMBOLS = 10, 8  # length of the copied sequence, and number of different symbols
BLANK, MARK = 0, NUM_SYMBOLS + 1
NUM_CLASSES = NUM_SYMBOLS + 2


@task_defaults(batch_size=32, eval_every=50, steps=5000, clip_norm=1.0)
def copy_memory(delay: int = 100) -> SyntheticTask:
    """Returns the task of writing ten symbols again, in their order, after a delay.

    Args:
      delay: T, number of time steps between the last symbol that is read and the first that is to be written.

    Raises:
      ValueError: `delay` is below 1.

    >>> batch = copy_memory(delay=2).sample(jax.random.key(0), 1)
    >>> print(batch.inputs[0].argmax(-1), batch.targets[0], sep='\\n')
    [6 1 1 6 4 4 1 8 6 4 0 9 9 9 9 9 9 9 9 9 9 9]
    [0 0 0 0 0 0 0 0 0 0 0 0 6 1 1 6 4 4 1 8 6 4]
    """
    if delay < 1:
        raise ValueError(f'delay={delay} must be at least 1')
    memoryless = COPY_LENGTH * math.log(NUM_SYMBOLS) / (delay + 2 * COPY_LENGTH)
    return SyntheticTask(
        name=f'copy memory over {delay} steps',
        sample=partial(_sample, delay=delay),
        loss_fn=synthetic.classification,
        spec=ModelSpec(
            'per_step', outputs=NUM_CLASSES - 1, features=NUM_CLASSES, causal=True, memory_span=delay + 2 * COPY_LENGTH
        ),
        reference_losses={'memoryless': memoryless},
        success=SuccessCriterion(at_most=0.1 * memoryless, metric='loss'),
    )


def _sample(key: jax.Array, count: int, *, delay: int) -> Batch:
    symbols = jax.random.randint(key, (count, COPY_LENGTH), 1, NUM_SYMBOLS + 1)
    blanks, marks = jnp.full((count, delay - 1), BLANK), jnp.full((count, COPY_LENGTH + 1), MARK)
    inputs = jnp.concatenate([symbols, blanks, marks], axis=1)
    targets = jnp.concatenate([jnp.full((count, delay + COPY_LENGTH), BLANK), symbols], axis=1)
    return Batch(jax.nn.one_hot(inputs, NUM_CLASSES), targets, jnp.ones(targets.shape, bool))
