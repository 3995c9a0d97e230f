"""Temporal order: experiments 6a and 6b of Hochreiter and Schmidhuber 1997.

A sequence starts with E and ends with B. Between them are random symbols a, b, c, d, except for two or three relevant
symbols, each X or Y. The target, after the last step, is the class of their order, one of four or eight. For length
100, with time steps counted from 0:

    sequence  100 to 110 symbols
    two       X or Y at one step of 10 to 20, and at one of 50 to 60
    three     X or Y at one step of 10 to 20, at one of 33 to 43, and at one of 66 to 76

    E b d a c ... X ... a d c b ... Y ... c a b B   ->   1 (X, then Y)

Only this order carries information. For length 100, two relevant symbols are at least 30 steps apart; three are at
least 13 and 23 steps apart, and the third is at least 23 steps before the last step (the 24th from the end). An answer
is correct if each of the four or eight class probabilities differs by less than 0.3 from its target, 1 or 0.
"""

import math
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqjax.nn import losses
from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SyntheticTask
from seqjax.types import Batch, Mean, ModelSpec, Sequences

SYMBOLS = 'EBabcdXY'
TOLERANCE = 0.3  # absolute error below which a class probability is correct, from the paper ("processed correctly")
MIN_LENGTH = 10  # so that the ranges of the relevant symbols do not overlap


def temporal_order(length: int = 100, relevant: Literal['two', 'three'] = 'two') -> SyntheticTask:
    """Returns the task of classifying the order of two or three symbols X or Y among irrelevant ones.

    Args:
      length: length of the shortest sequences in time steps; the longest are a tenth longer.
      relevant: number of relevant symbols, two (experiment 6a) or three (6b).

    Raises:
      ValueError: `length` is below 10.

    >>> batch = temporal_order(length=20).sample(jax.random.key(0), 1)
    >>> text = ''.join(SYMBOLS[i] for i in batch.inputs.values[0].argmax(-1))[: int(batch.inputs.seq_lengths[0])]
    >>> text, int(batch.targets[0])
    ('EabcXadaccYddccaadcdcB', 1)
    """
    if length < MIN_LENGTH:
        raise ValueError(
            f'length={length} must be at least {MIN_LENGTH}, so that ranges of relevant symbols do not overlap'
        )
    starts = [length // 10, length // 2] if relevant == 'two' else [length // 10, length // 3, length * 2 // 3]
    classes = 2 ** len(starts)
    return SyntheticTask(
        name=f'temporal order of {relevant} symbols, length {length}',
        sample=partial(_sample, length=length, starts=starts),
        loss_fn=loss_fn,
        spec=ModelSpec('last', outputs=classes, features=len(SYMBOLS), memory_span=longest(length)),
        reference_losses={'best constant': math.log(classes)},
    )


def longest(length: int) -> int:
    """Returns the length of the longest sequences of a task with this `length`.

    >>> longest(100), longest(10)
    (110, 11)
    """
    return length + length // 10


def _sample(key: jax.Array, count: int, *, length: int, starts: list[int]) -> Batch:
    tenth, steps, classes = length // 10, jnp.arange(longest(length))[None], 2 ** len(starts)
    # A single draw of random numbers, as each takes most of a second to compile.
    draws = jax.random.uniform(key, (count, 2 + len(starts) + steps.size))

    def between(draw, low, high):  # both included
        return low + jnp.floor(draw * (high + 1 - low)).astype(jnp.int32)

    ends, places, rest = jnp.split(draws, [1, 1 + len(starts)], axis=1)
    ends, answers = between(ends, length, length + tenth), between(rest[:, 0], 0, classes - 1)
    symbols = between(rest[:, 1:], *map(SYMBOLS.index, 'ad'))
    symbols = jnp.where(steps == 0, SYMBOLS.index('E'), symbols)
    for i, start in enumerate(starts):
        x_or_y = SYMBOLS.index('X') + (answers >> (len(starts) - 1 - i)) % 2
        symbols = jnp.where(steps == between(places[:, i : i + 1], start, start + tenth), x_or_y[:, None], symbols)
    symbols = jnp.where(steps == ends - 1, SYMBOLS.index('B'), symbols)
    inputs = Sequences(jax.nn.one_hot(symbols, len(SYMBOLS)), ends[:, 0])
    return Batch(inputs, answers, jnp.ones(count, bool))


def loss_fn(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    """Returns 'loss', the mean cross-entropy, and 'wrong', the fraction of sequences with a wrong answer.

    An answer is wrong if the probability of any class differs by TOLERANCE or more from its target, 1 or 0.
    """
    errors = jnp.abs(nn.softmax(logits.astype(jnp.float32)) - jax.nn.one_hot(batch.targets, logits.shape[-1]))
    return {
        'loss': losses.cross_entropy(logits, batch.targets, batch.mask),
        'wrong': synthetic.error_rate((errors < TOLERANCE).all(-1), batch.mask),  # NaN is wrong
    }
