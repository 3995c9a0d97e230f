"""Reversal and sorting: a sequence of symbols, and the same symbols in another order.

An encoder reads the symbols, and a decoder tells them one by one and then the end. Lengths are from 1 to the longest,
each as likely, and so is every symbol. Reversal is a task of Grefenstette et al. 2015, "Learning to transduce with
unbounded memory"; sorting is one of Vinyals et al. 2016, "Order matters", here of symbols, which may be equal.
With symbols 1 to 9, and 0 for the end and for padding:

    source      3 7 3 1 0 0
    reversal    1 3 7 3 0          sorting    1 3 3 7 0

A decoder is trained with the right answer so far as its input. A sequence is then answered rightly where every token is
the most probable one behind the right tokens before it, which is exactly where greedy decoding finds the whole answer:
`wrong` is 1 - its exact match.

There are few short sequences, so those of them that a model is tested on are also among those that it learned from.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp

from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SuccessCriterion, SyntheticTask, task_defaults
from seqjax.types import Batch, ModelSpec, Sequences

END = 0  # of an answer; padding too. Symbols are the tokens from 1.


@task_defaults(hidden=64, batch_size=64)
def reversal(longest: int = 10, symbols: int = 8) -> SyntheticTask:
    """Symbols from the last to the first.

    Args:
      longest: most symbols of a sequence; the shortest has one.
      symbols: that there are to draw from.

    >>> batch = reversal(longest=6).sample(jax.random.key(6), 1)
    >>> source, answer = batch.inputs
    >>> source.values[0].tolist(), answer[0].tolist()
    ([5, 1, 6, 6, 7, 0], [7, 6, 6, 1, 5, 0, 0])
    >>> int(source.seq_lengths[0]), batch.mask[0].astype(int).tolist()
    (5, [1, 1, 1, 1, 1, 1, 0])
    """
    synthetic.check_cost(300 * longest, longest=longest)
    return _task('reversal', _reversed, lambda length: length * math.log(symbols), longest, symbols)


@task_defaults(hidden=64, batch_size=64)
def sorting(longest: int = 10, symbols: int = 8) -> SyntheticTask:
    """Symbols from the smallest to the largest.

    Args:
      longest: most symbols of a sequence; the shortest has one.
      symbols: that there are to draw from.

    >>> batch = sorting(longest=6).sample(jax.random.key(6), 1)
    >>> source, answer = batch.inputs
    >>> source.values[0].tolist(), answer[0].tolist()
    ([5, 1, 6, 6, 7, 0], [1, 5, 6, 6, 7, 0, 0])
    """
    synthetic.check_cost(200 * longest**2, longest=longest)
    return _task('sorting', _sorted, lambda length: _entropy_of_counts(length, symbols), longest, symbols)


def _task(name: str, order: Callable, entropy: Callable[[int], float], longest: int, symbols: int) -> SyntheticTask:
    """Of the answers that `order` makes, whose entropy at a length is `entropy(length)`."""
    for what, number in (('longest', longest), ('symbols', symbols)):
        if number < 1:
            raise ValueError(f'{what}={number} must be at least 1')
    draw = partial(_draw, symbols=symbols, order=order)
    return SyntheticTask(
        name=f'{name} of 1 to {longest} of {symbols} symbols',
        sample=partial(_sample, draw=draw, longest=longest),
        loss_fn=synthetic.classification,
        spec=ModelSpec('seq2seq', outputs=symbols + 1, vocabulary=symbols + 1, memory_span=2 * longest),
        reference_losses=_reference_losses(entropy, longest, symbols),
        success=SuccessCriterion(at_most=0.01),
        draw=draw,
    )


def _reference_losses(entropy: Callable[[int], float], longest: int, symbols: int) -> dict[str, float]:
    """Losses, nats a token: of the best constant, and of who knows the law and the answer so far but not the source."""
    tokens = 1 + (1 + longest) / 2  # of an answer, on average
    end = 1 / tokens  # their share; the others are one symbol as often as another
    answer = math.log(longest) + sum(map(entropy, range(1, longest + 1))) / longest
    return {
        'best constant': -end * math.log(end) - (1 - end) * math.log((1 - end) / symbols),
        'without the source': answer / tokens,
    }


@lru_cache(maxsize=4096)
def _entropy_of_counts(length: int, symbols: int) -> float:
    """Of how often each symbol is among `length`, in nats: that of the sequence, less that of its order."""
    if symbols == 1:
        return 0.0
    share, orders = 1 / symbols, math.lgamma(length + 1)
    for times in range(length + 1):  # of one symbol, by the binomial law
        log_odds = times * math.log(share) + (length - times) * math.log1p(-share)
        log_odds += math.lgamma(length + 1) - math.lgamma(times + 1) - math.lgamma(length - times + 1)
        orders -= symbols * math.exp(log_odds) * math.lgamma(times + 1)
    return length * math.log(symbols) - orders


def _sample(key: jax.Array, count: int, *, draw: Callable[..., Batch], longest: int) -> Batch:
    keys = jax.random.split(key)
    return draw(keys[0], synthetic.lengths_between(keys[1], count, 1, longest), longest)


def _draw(key: jax.Array, lengths: jax.Array, longest: int, *, symbols: int, order: Callable) -> Batch:
    real = jnp.arange(longest)[None] < lengths[:, None]
    source = jnp.where(real, jax.random.randint(key, real.shape, 1, symbols + 1), END)
    targets = jnp.pad(jnp.where(real, order(source, lengths), END), [(0, 0), (0, 1)], constant_values=END)
    mask = jnp.arange(longest + 1)[None] <= lengths[:, None]
    return Batch((Sequences(source, lengths), targets), targets, mask)


def _reversed(source: jax.Array, lengths: jax.Array) -> jax.Array:
    steps = lengths[:, None] - 1 - jnp.arange(source.shape[1])[None]
    return jnp.take_along_axis(source, jnp.maximum(steps, 0), 1)


def _sorted(source: jax.Array, lengths: jax.Array) -> jax.Array:
    return jnp.sort(jnp.where(source == END, jnp.iinfo(source.dtype).max, source), axis=1)
