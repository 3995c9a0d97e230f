"""Temporal order: experiments 6a and 6b of Hochreiter and Schmidhuber 1997.

A sequence begins with E and ends with B. In between stand a, b, c, d at random, but for two or three places where X or
Y stands; which of the two stands at each is to be told at the end, in four or eight classes. For length 100:

    sequence  100 to 110 symbols
    two       X or Y at one of 10 to 20, and of 50 to 60
    three     X or Y at one of 10 to 20, of 33 to 43, and of 66 to 76

    E b d a c ... X ... a d c b ... Y ... c a b B   ->   1 (X, then Y)

Nothing but the order carries information, over at least 34 or 40 steps: a sequence is answered rightly where each of
the four or eight probabilities is within 0.3 of its target.
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
NEAR = 0.3  # the source's: "processed correctly" means that every output is this near to its target
SHORTEST = 10  # from here on the spans do not meet


def temporal_order(length: int = 100, relevant: Literal['two', 'three'] = 'two') -> SyntheticTask:
    """The order of the two or three symbols that matter.

    Args:
      length: symbols in the shortest sequences; all spans grow with it.
      relevant: how many symbols matter: two is the source's experiment 6a, three 6b.

    >>> batch = temporal_order(length=20).sample(jax.random.key(0), 1)
    >>> text = ''.join(SYMBOLS[i] for i in batch.inputs.values[0].argmax(-1))[: int(batch.inputs.seq_lengths[0])]
    >>> text, int(batch.targets[0])
    ('EabcXadaccYddccaadcdcB', 1)
    """
    if length < SHORTEST:
        raise ValueError(f'length={length} must be at least {SHORTEST}: every symbol that matters needs room')
    begins = [length // 10, length // 2] if relevant == 'two' else [length // 10, length // 3, length * 2 // 3]
    classes = 2 ** len(begins)
    return SyntheticTask(
        name=f'temporal order of {relevant} symbols, length {length}',
        sample=partial(_sample, length=length, begins=begins),
        loss_fn=loss_fn,
        spec=ModelSpec('last', outputs=classes, features=len(SYMBOLS), memory_span=longest(length)),
        reference_losses={'best constant': math.log(classes)},
    )


def longest(length: int) -> int:
    """The number of symbols in the longest sequence.

    >>> longest(100), longest(10)
    (110, 11)
    """
    return length + length // 10


def _sample(key: jax.Array, count: int, *, length: int, begins: list[int]) -> Batch:
    tenth, steps, classes = length // 10, jnp.arange(longest(length))[None], 2 ** len(begins)
    # All from one draw: each takes most of a second to compile.
    draws = jax.random.uniform(key, (count, 2 + len(begins) + steps.size))

    def between(draw, low, high):  # both included
        return low + jnp.floor(draw * (high + 1 - low)).astype(jnp.int32)

    ends, places, rest = jnp.split(draws, [1, 1 + len(begins)], axis=1)
    ends, answers = between(ends, length, length + tenth), between(rest[:, 0], 0, classes - 1)
    symbols = between(rest[:, 1:], *map(SYMBOLS.index, 'ad'))
    symbols = jnp.where(steps == 0, SYMBOLS.index('E'), symbols)
    for i, begin in enumerate(begins):
        x_or_y = SYMBOLS.index('X') + (answers >> (len(begins) - 1 - i)) % 2
        symbols = jnp.where(steps == between(places[:, i : i + 1], begin, begin + tenth), x_or_y[:, None], symbols)
    symbols = jnp.where(steps == ends - 1, SYMBOLS.index('B'), symbols)
    inputs = Sequences(jax.nn.one_hot(symbols, len(SYMBOLS)), ends[:, 0])
    return Batch(inputs, answers, jnp.ones(count, bool))


def loss_fn(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    """'loss', the cross-entropy, and 'wrong', the share of sequences that are not answered rightly."""
    errors = jnp.abs(nn.softmax(logits.astype(jnp.float32)) - jax.nn.one_hot(batch.targets, logits.shape[-1]))
    return {
        'loss': losses.cross_entropy(logits, batch.targets, batch.mask),
        'wrong': synthetic.mistakes((errors < NEAR).all(-1), batch.mask),  # NaN is not right
    }
