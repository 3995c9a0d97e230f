"""Associative recall with many queries: MQAR of Arora et al. 2023, "Zoology".

First come pairs of a key and its value. Then some keys come again, among filler, and at each of them the value that it
came with is to be told. No key and no value stands in two pairs. With 2 pairs of 9 keys (1 to 9) and 9 values (10 to
18), and 0 for filler:

    input    3  12   7  18   0   0   7   0   3   0   0   0
    answer                          18      12

As in the source, a query comes at an even distance from the pairs, 2 (i - 1) steps behind them with a probability that
falls like i^-0.99, and the pairs draw their places in turn: most are asked for soon, and the first pair the soonest.
The source has 4,095 keys and 4,096 values, and asks for every pair; filler is 0 in all its published experiments.
Nothing behind a query tells its answer, so a model may read in both directions.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SuccessCriterion, SyntheticTask, task_defaults
from seqjax.types import Batch, ModelSpec

FILLER = 0  # keys are the tokens from 1, and values those behind the keys
POWER = 0.01  # the source's: the i-th place has a share of i ** (POWER - 1)


@task_defaults(hidden=64, batch_size=64, steps=12_500)
def recall(pairs: int = 4, queries: int = 4, length: int = 64, keys: int = 64, values: int = 64) -> SyntheticTask:
    """The values that keys came with.

    Args:
      pairs: of a key and a value, at the beginning of a sequence.
      queries: keys that come again, each once; with fewer than `pairs`, a random part of them.
      length: steps of every sequence, filler included.
      keys: that there are to draw from.
      values: that there are to draw from; answers are the numbers 0 to `values` - 1.

    >>> task = recall(pairs=2, queries=2, length=12, keys=9, values=9)
    >>> batch = task.sample(jax.random.key(5), 1)
    >>> batch.inputs[0].tolist()
    [9, 16, 4, 17, 0, 0, 0, 0, 4, 0, 9, 0]
    >>> batch.mask[0].nonzero()[0].tolist(), (batch.targets[0][batch.mask[0]] + 10).tolist()
    ([8, 10], [17, 16])
    """
    if not 1 <= queries <= pairs:
        raise ValueError(f'queries={queries} must be from 1 to pairs={pairs}: a key comes again once')
    for name, number in (('keys', keys), ('values', values)):
        if number < pairs:
            raise ValueError(f'{name}={number} must be at least pairs={pairs}: no two pairs share one')
    if length < 2 * (pairs + queries):
        raise ValueError(
            f'length={length} must be at least {2 * (pairs + queries)}: two steps for each of {pairs} pairs and '
            f'{queries} queries'
        )
    return SyntheticTask(
        name=f'recall of {queries} of {pairs} pairs in {length} steps',
        sample=partial(_sample, pairs=pairs, queries=queries, length=length, keys=keys, values=values),
        loss_fn=synthetic.classification,
        spec=ModelSpec('per_step', outputs=values, vocabulary=1 + keys + values, memory_span=length),
        reference_losses={'best constant': math.log(values)},
        success=SuccessCriterion(at_most=0.01),
    )


def _sample(key: jax.Array, count: int, *, pairs: int, queries: int, length: int, keys: int, values: int) -> Batch:
    draws = jax.random.split(key, 4)
    kept, held = _some(draws[0], count, keys, pairs), _some(draws[1], count, values, pairs)
    asked = jnp.sort(_some(draws[2], count, pairs, queries), axis=1)
    # One draw after the other, without those that are taken: what the source's numpy.random.choice does.
    places = 2 * pairs + 2 * _some(draws[3], count, length // 2 - pairs, queries, POWER - 1)
    rows = jnp.arange(count)[:, None]
    inputs = jnp.full((count, length), FILLER)
    inputs = inputs.at[:, 0 : 2 * pairs : 2].set(1 + kept).at[:, 1 : 2 * pairs : 2].set(1 + keys + held)
    inputs = inputs.at[rows, places].set(1 + jnp.take_along_axis(kept, asked, 1))
    targets = jnp.zeros((count, length), jnp.int32).at[rows, places].set(jnp.take_along_axis(held, asked, 1))
    mask = jnp.zeros((count, length), bool).at[rows, places].set(True)
    return Batch(inputs, targets, mask)


def _some(key: jax.Array, count: int, size: int, chosen: int, power: float = 0.0) -> jax.Array:
    """[N, chosen] different ones of 0 to size - 1, in the order in which they are drawn; i has weight (i + 1)^power."""
    # The largest Gumbel variables are draws without replacement.
    weights = power * jnp.log(jnp.arange(1.0, size + 1))
    return jax.lax.top_k(jax.random.gumbel(key, (count, size)) + weights[None], chosen)[1]
