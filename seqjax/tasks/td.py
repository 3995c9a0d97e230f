"""The notebook's task: echo the sequence i / length, in three setups of inputs and outputs.

For length 5 the sequence is 0.0 0.2 0.4 0.6 0.8. It is the whole data set: every step trains on all of it.

    one_to_one     inputs [5, 1, 1]  targets [5, 1]     five sequences of one step
    many_to_one    inputs [1, 5, 1]  targets [1, 5]     one sequence, all answers from the last output
    many_to_many   inputs [1, 5, 1]  targets [1, 5, 1]  one sequence, an answer at every step
"""

import flax.linen as nn
import jax
import numpy as np

from seqjax.nn import activations, losses
from seqjax.nn import rnn as nn_rnn
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.nn.models import SequenceToSequence, SequenceToVector
from seqjax.nn.wrappers import TimeDistributed
from seqjax.types import Batch, Task

SETUPS = ('one_to_one', 'many_to_one', 'many_to_many')
UNROLL = 8  # T = 5 as one iteration of the loop: no loop, a third faster under vmap


def sequence(length: int) -> np.ndarray:
    """i / length for i = 0 .. length-1, as float32 [length].

    >>> sequence(5).tolist() == [np.float32(x) for x in (0.0, 0.2, 0.4, 0.6, 0.8)]
    True
    """
    return (np.arange(length) / length).astype(np.float32)


def _check_setup(setup: str) -> None:
    if setup not in SETUPS:
        raise ValueError(f'setup {setup!r} must be one of {", ".join(SETUPS)}')


def td(setup: str, *, length: int = 5) -> Task:
    """Returns the task of one setup; raises ValueError if `setup` is unknown."""
    _check_setup(setup)
    numbers = sequence(length)
    shape, targets = {
        'one_to_one': ((length, 1, 1), (length, 1)),
        'many_to_one': ((1, length, 1), (1, length)),
        'many_to_many': ((1, length, 1), (1, length, 1)),
    }[setup]
    data = Batch(numbers.reshape(shape), numbers.reshape(targets), np.ones(targets[:1], bool))
    return Task(losses.mean_squared_error, whole_batch, data)


def td_model(
    setup: str, *, length: int = 5, hidden: int = 5, recurrent_activation: str = 'sigmoid', unroll: int = UNROLL
) -> nn.Module:
    """Returns the model of one setup.

    Raises:
      ValueError: `setup` or `recurrent_activation` is unknown.
    """
    _check_setup(setup)
    if recurrent_activation not in activations.RECURRENT_ACTIVATIONS:
        raise ValueError(
            f'recurrent_activation {recurrent_activation!r} must be one of '
            f'{", ".join(activations.RECURRENT_ACTIVATIONS)}'
        )
    cell = LSTMCell(hidden, recurrent_activation=activations.RECURRENT_ACTIVATIONS[recurrent_activation])
    rnn = nn_rnn.RNN(cell, unroll=min(unroll, 1 if setup == 'one_to_one' else length))
    if setup == 'many_to_many':
        return SequenceToSequence(rnn=rnn, head=TimeDistributed(nn.Dense(1, kernel_init=GLOROT)))
    outputs = length if setup == 'many_to_one' else 1
    return SequenceToVector(rnn=rnn, head=nn.Dense(outputs, kernel_init=GLOROT))


GLOROT = nn.initializers.glorot_uniform()  # Keras's default for Dense; Flax's is LeCun normal


def whole_batch(data: Batch, key: jax.Array, step: jax.Array) -> Batch:
    """The whole data set at every step, so that a step is an epoch."""
    del key, step
    return data
