"""Associative recall with many queries: MQAR of Arora et al. 2023, "Zoology".

A sequence starts with pairs of a key and its value. Then keys of some pairs are repeated as queries, among filler, and
the target at each query is the value of the key. No key and no value occurs in two pairs. An example with 2 pairs, 9
keys (tokens 1 to 9), 9 values (tokens 10 to 18) and filler 0, with the tokens of the answers:

    input    3  12   7  18   0   0   7   0   3   0   0   0
    answer                          18      12

As in the paper, a query is at an even distance 2 (i - 1) from the end of the pairs, with a probability proportional to
i^-0.99, and the pairs draw their places in turn: most queries are early, and the first pair's query tends to be the
earliest. The paper has 4,095 keys and 4,096 values, and queries every pair; filler is 0 in all its published
experiments. Nothing after a query reveals its answer, so a model may be bidirectional.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SuccessCriterion, SyntheticTask, task_defaults
from seqjax.types import Batch, ModelSpec

FILLER = 0  # keys are the tokens from 1, and values the tokens after the keys
POWER = 0.01  # from the paper: the i-th place has a probability proportional to i ** (POWER - 1)


@task_defaults(hidden=64, batch_size=64, steps=12_500)
def recall(pairs: int = 4, queries: int = 4, length: int = 64, keys: int = 64, values: int = 64) -> SyntheticTask:
    """Returns the task of recalling the value of each queried key, from key-value pairs at the start of a sequence.

    Args:
      pairs: number of pairs of a key and a value at the start of a sequence.
      queries: number of pairs whose keys are queried, each once; if fewer than `pairs`, a random subset.
      length: length of every sequence in time steps, including filler.
      keys: number of different keys.
      values: number of different values; answers are the classes 0 to `values` - 1.

    Raises:
      ValueError: `queries` is not from 1 to `pairs`, `keys` or `values` is below `pairs`, or `length` is
        below 2 (pairs + queries).

    >>> task = recall(pairs=2, queries=2, length=12, keys=9, values=9)
    >>> batch = task.sample(jax.random.key(5), 1)
    >>> batch.inputs[0].tolist()
    [9, 16, 4, 17, 0, 0, 0, 0, 4, 0, 9, 0]
    >>> batch.mask[0].nonzero()[0].tolist(), (batch.targets[0][batch.mask[0]] + 10).tolist()
    ([8, 10], [17, 16])
    """
    if not 1 <= queries <= pairs:
        raise ValueError(f'queries={queries} must be from 1 to pairs={pairs}, because no key is queried twice')
    for name, number in (('keys', keys), ('values', values)):
        if number < pairs:
            raise ValueError(f'{name}={number} must be at least pairs={pairs}, because all pairs have different {name}')
    if length < 2 * (pairs + queries):
        raise ValueError(
            f'length={length} must be at least {2 * (pairs + queries)}: two steps for each of pairs={pairs} and '
            f'queries={queries}'
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
    pair_keys = _draw_distinct(draws[0], count, keys, pairs)
    pair_values = _draw_distinct(draws[1], count, values, pairs)
    queried = jnp.sort(_draw_distinct(draws[2], count, pairs, queries), axis=1)
    # Sequential draws without replacement, like numpy.random.choice in the paper's code.
    places = 2 * pairs + 2 * _draw_distinct(draws[3], count, length // 2 - pairs, queries, POWER - 1)
    rows = jnp.arange(count)[:, None]
    inputs = jnp.full((count, length), FILLER)
    inputs = inputs.at[:, 0 : 2 * pairs : 2].set(1 + pair_keys).at[:, 1 : 2 * pairs : 2].set(1 + keys + pair_values)
    inputs = inputs.at[rows, places].set(1 + jnp.take_along_axis(pair_keys, queried, 1))
    targets = jnp.zeros((count, length), jnp.int32).at[rows, places].set(jnp.take_along_axis(pair_values, queried, 1))
    mask = jnp.zeros((count, length), bool).at[rows, places].set(True)
    return Batch(inputs, targets, mask)


def _draw_distinct(key: jax.Array, count: int, size: int, chosen: int, power: float = 0.0) -> jax.Array:
    """Returns `count` rows of `chosen` different random integers from 0 to size - 1, [count, chosen].

    Integers are drawn one after the other without replacement, each i with probability proportional to (i + 1)^power.
    """
    # Gumbel top-k.
    weights = power * jnp.log(jnp.arange(1.0, size + 1))
    return jax.lax.top_k(jax.random.gumbel(key, (count, size)) + weights[None], chosen)[1]
