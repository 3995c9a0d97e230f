"""The notebook's task: echo the sequence i / length, in three setups of inputs and outputs.

For length 5 the sequence is 0.0 0.2 0.4 0.6 0.8. It is the whole data set: every step trains on all of it.

    one_to_one     inputs [5, 1, 1]  targets [5, 1]     five sequences of one step
    many_to_one    inputs [1, 5, 1]  targets [1, 5]     one sequence, all answers from the last output
    many_to_many   inputs [1, 5, 1]  targets [1, 5, 1]  one sequence, an answer at every step
"""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np

from seqjax import losses
from seqjax.activations import RECURRENT_ACTIVATIONS
from seqjax.cells import LSTMCell
from seqjax.layers import RNN, TimeDistributed
from seqjax.models import SequenceToSequence, SequenceToVector
from seqjax.task import Batch, Task

SETUPS = ('one_to_one', 'many_to_one', 'many_to_many')
UNROLL = 8  # T = 5 as one iteration of the loop: no loop, a third faster under vmap


def sequence(length: int) -> np.ndarray:
    """i / length for i = 0 .. length-1, as float32 [length].

    >>> sequence(5).tolist() == [np.float32(x) for x in (0.0, 0.2, 0.4, 0.6, 0.8)]
    True
    """
    return (np.arange(length) / length).astype(np.float32)


def td(
    setup: str, *, length: int = 5, hidden: int = 5, recurrent_activation: str = 'sigmoid', unroll: int = UNROLL
) -> Task:
    """The task of one setup.

    Raises:
      ValueError: `setup` or `recurrent_activation` is none of the known ones.
    """
    if setup not in SETUPS:
        raise ValueError(f'setup {setup!r} must be one of {", ".join(SETUPS)}')
    if recurrent_activation not in RECURRENT_ACTIVATIONS:
        raise ValueError(
            f'recurrent_activation {recurrent_activation!r} must be one of {", ".join(RECURRENT_ACTIVATIONS)}'
        )
    cell = LSTMCell(hidden, recurrent_activation=RECURRENT_ACTIVATIONS[recurrent_activation])
    numbers = sequence(length)
    shape, targets, model, head = {
        'one_to_one': ((length, 1, 1), (length, 1), SequenceToVector, nn.Dense(1, kernel_init=GLOROT)),
        'many_to_one': ((1, length, 1), (1, length), SequenceToVector, nn.Dense(length, kernel_init=GLOROT)),
        'many_to_many': (
            (1, length, 1),
            (1, length, 1),
            SequenceToSequence,
            TimeDistributed(nn.Dense(1, kernel_init=GLOROT)),
        ),
    }[setup]
    data = Batch(numbers.reshape(shape), numbers.reshape(targets), np.ones(targets[:1], bool))
    rnn = RNN(cell, unroll=min(unroll, shape[1]))
    return Task(model(rnn=rnn, head=head), losses.mean_squared_error, whole_batch, data)


GLOROT = nn.initializers.glorot_uniform()  # Keras's default for Dense; Flax's is LeCun normal


def whole_batch(data: Batch, key: jax.Array, step: jax.Array) -> Batch:
    """The whole data set at every step, so that a step is an epoch."""
    del key, step
    return data
