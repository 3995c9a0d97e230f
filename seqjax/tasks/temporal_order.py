"""Temporal order with two relevant symbols: experiment 6a of Hochreiter and Schmidhuber 1997.

A sequence begins with E and ends with B. In between stand a, b, c, d at random, but for two places where X or Y
stands; which of the two came first and second is to be told at the end, in four classes. For length 100:

    sequence  100 to 110 symbols      first place  10 to 20      second place  50 to 60

    E b d a c ... X ... a d c b ... Y ... c a b B   ->   1 (X, then Y)

Nothing but the order carries information, over at least 40 steps: a sequence is answered rightly where each of the four
probabilities is within 0.3 of its target.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqjax import losses
from seqjax.models import SequenceToVector
from seqjax.task import Arrays, Batch, Mean, Sequences, Task

SYMBOLS = 'EBabcdXY'
ANSWERS = ('XX', 'XY', 'YX', 'YY')
NEAR = 0.3  # the source's: "processed correctly" means that every output is this near to its target
SHORTEST = 10  # from here on the three spans do not meet


def longest(length: int) -> int:
    """The number of symbols in the longest sequence.

    >>> longest(100), longest(10)
    (110, 11)
    """
    return length + length // 10


def sample(key: jax.Array, count: int, length: int = 100) -> Batch:
    """`count` sequences with their answers.

    Returns:
      Batch(Sequences(one-hot symbols [N, T, 8], lengths [N]), answers [N] of 0 to 3, all counting), T the longest.

    Raises:
      ValueError: `length` is below 10, where there is no room for both symbols.

    >>> batch = sample(jax.random.key(0), 1, length=20)
    >>> text = ''.join(SYMBOLS[i] for i in batch.inputs.values[0].argmax(-1))[: int(batch.inputs.seq_lengths[0])]
    >>> text, ANSWERS[int(batch.targets[0])]
    ('EabcXadaccYddccaadcdcB', 'XY')
    """
    if length < SHORTEST:
        raise ValueError(f'length={length} must be at least {SHORTEST}: both symbols need room')
    tenth, steps = length // 10, jnp.arange(longest(length))[None]
    # All from one draw: each takes most of a second to compile.
    draws = jax.random.uniform(key, (count, 4 + steps.size))

    def between(draw, low, high):  # both included
        return low + jnp.floor(draw * (high + 1 - low)).astype(jnp.int32)

    ends = between(draws[:, :1], length, length + tenth)
    first, second = between(draws[:, 1:2], tenth, 2 * tenth), between(draws[:, 2:3], length // 2, length // 2 + tenth)
    answers, noise = between(draws[:, 3], 0, len(ANSWERS) - 1), between(draws[:, 4:], *map(SYMBOLS.index, 'ad'))
    x_or_y = SYMBOLS.index('X') + jnp.stack([answers // 2, answers % 2], 1)
    symbols = jnp.where(steps == 0, SYMBOLS.index('E'), noise)
    symbols = jnp.where(steps == first, x_or_y[:, :1], symbols)
    symbols = jnp.where(steps == second, x_or_y[:, 1:], symbols)
    symbols = jnp.where(steps == ends - 1, SYMBOLS.index('B'), symbols)
    inputs = Sequences(jax.nn.one_hot(symbols, len(SYMBOLS)), ends[:, 0])
    return Batch(inputs, answers, jnp.ones(count, bool))


def temporal_order(rnn: nn.Module, *, length: int = 100, batch_size: int = 16, validation: Batch | None = None) -> Task:
    """The task for a recurrent layer [B, T, 8] -> [B, H], with a new batch drawn at every step.

    Args:
      rnn: any layer of `seqjax.layers`.
      length: of the shortest sequences; all spans grow with it.
      batch_size: sequences in a step.
      validation: sequences for the split 'validation'; none by default.
    """

    def batch(data: Arrays, key: jax.Array, step: jax.Array) -> Batch:
        del data, step
        return sample(key, batch_size, length)

    evals = {} if validation is None else {'validation': jax.tree.map(lambda x: x[None], validation)}
    return Task(SequenceToVector(rnn, nn.Dense(len(ANSWERS))), score, batch, evals=evals)


def score(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    """'loss', the cross-entropy, and 'wrong', the share of sequences that are not answered rightly."""
    errors = jnp.abs(nn.softmax(logits.astype(jnp.float32)) - jax.nn.one_hot(batch.targets, len(ANSWERS)))
    wrong = ~(errors < NEAR).all(-1) & batch.mask  # NaN is not right
    return {
        'loss': losses.cross_entropy(logits, batch.targets, batch.mask),
        'wrong': Mean(wrong.sum(dtype=jnp.float32), batch.mask.sum(dtype=jnp.float32)),
    }
