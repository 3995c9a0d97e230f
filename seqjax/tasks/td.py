"""The task of the notebook: output the values that are read, in three setups of inputs and targets.

The values are i / length, for length 5: 0.0 0.2 0.4 0.6 0.8. They are the whole data set: every training step uses all.

    one_to_one     inputs [5, 1, 1]  targets [5, 1]     five sequences of one time step
    many_to_one    inputs [1, 5, 1]  targets [1, 5]     one sequence, all targets from the last output
    many_to_many   inputs [1, 5, 1]  targets [1, 5, 1]  one sequence, a target at every time step
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np

from seqjax import validation
from seqjax.nn import losses
from seqjax.types import Batch, ModelSpec, Task

SETUPS = ('one_to_one', 'many_to_one', 'many_to_many')
UNROLL = 8  # time steps per loop iteration: unrolls T = 5 completely, which is a third faster under vmap


def sequence(length: int) -> np.ndarray:
    """Returns i / length for i = 0 .. length-1, as float32 [length].

    >>> sequence(5).tolist() == [np.float32(x) for x in (0.0, 0.2, 0.4, 0.6, 0.8)]
    True
    """
    return (np.arange(length) / length).astype(np.float32)


def td(setup: str, *, length: int = 5, numbers: Sequence[float] | None = None) -> Task:
    """Returns the task of echoing a sequence of numbers in one setup; inputs and targets are the same numbers.

    Args:
      setup: one of SETUPS, which decides the shapes of inputs and targets, see the module.
      length: number of values in the sequence.
      numbers: the sequence, [length]; None for i / length.

    Raises:
      ValueError: `setup` is unknown, or the shape of `numbers` is not [length].
    """
    validation.check_choice('setup', setup, SETUPS)
    numbers = sequence(length) if numbers is None else np.asarray(numbers, np.float32)
    if numbers.shape != (length,):
        raise ValueError(f'numbers {numbers.shape} must have the shape ({length},), because length={length}')
    shape, targets = {
        'one_to_one': ((length, 1, 1), (length, 1)),
        'many_to_one': ((1, length, 1), (1, length)),
        'many_to_many': ((1, length, 1), (1, length, 1)),
    }[setup]
    data = Batch(numbers.reshape(shape), numbers.reshape(targets), np.ones(targets[:1], bool))
    spec = ModelSpec(
        'per_step' if setup == 'many_to_many' else 'last',
        outputs=length if setup == 'many_to_one' else 1,
        features=1,
        head_init=GLOROT,
        unroll=min(UNROLL, shape[1]),
    )
    return Task(losses.mean_squared_error, whole_batch, data, spec=spec)


GLOROT = nn.initializers.glorot_uniform()  # Keras's default for Dense; Flax's is LeCun normal


def whole_batch(data: Batch, key: jax.Array, step: jax.Array) -> Batch:
    """Returns the whole data set as the batch of every training step, so that a training step is an epoch."""
    del key, step
    return data
