"""Reversal and sorting of a sequence of symbols, for an encoder-decoder model.

The encoder reads the sequence (the source); the decoder writes it reversed or sorted, then the end token. Lengths are
uniform from 1 to the longest, and symbols are uniform. Reversal is a task of Grefenstette et al. 2015, "Learning to
transduce with unbounded memory"; sorting is a task of Vinyals et al. 2016, "Order matters", here of symbols, which may
be equal. With symbols 1 to 9, and 0 for the end and for padding:

    source      3 7 3 1 0 0
    reversal    1 3 7 3 0          sorting    1 3 3 7 0

The decoder is trained with teacher forcing. An answer is correct if every token is the most probable one after the
correct tokens before it, that is if greedy decoding finds the whole answer. The metric `wrong` is 1 - exact match.

There are few short sequences, so short test sequences also occur in training.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp

from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SuccessCriterion, SyntheticTask, task_defaults
from seqjax.types import Batch, ModelSpec, Sequences

END = 0  # token at the end of an answer, and for padding; symbols are the tokens from 1


@task_defaults(hidden=64, batch_size=64)
def reversal(longest: int = 10, symbols: int = 8) -> SyntheticTask:
    """Returns the task of writing a sequence of random symbols in reverse order.

    Args:
      longest: maximal number of symbols of a sequence; the minimal number is 1.
      symbols: number of different symbols.

    Raises:
      ValueError: `longest` or `symbols` is below 1, or `longest` is too large.

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
    """Returns the task of writing a sequence of random symbols in ascending order.

    Args:
      longest: maximal number of symbols of a sequence; the minimal number is 1.
      symbols: number of different symbols.

    Raises:
      ValueError: `longest` or `symbols` is below 1, or `longest` is too large.

    >>> batch = sorting(longest=6).sample(jax.random.key(6), 1)
    >>> source, answer = batch.inputs
    >>> source.values[0].tolist(), answer[0].tolist()
    ([5, 1, 6, 6, 7, 0], [1, 5, 6, 6, 7, 0, 0])
    """
    synthetic.check_cost(200 * longest**2, longest=longest)
    return _task('sorting', _sorted, lambda length: _entropy_of_counts(length, symbols), longest, symbols)


def _task(name: str, order: Callable, entropy: Callable[[int], float], longest: int, symbols: int) -> SyntheticTask:
    """Returns the task of writing a sequence of random symbols in the order of `order`.

    Args:
      name: name of the task.
      order: (source [N, T], lengths [N]) -> symbols in the order of the answer [N, T].
      entropy: length -> entropy in nats of an answer of that length.
      longest: maximal number of symbols of a sequence.
      symbols: number of different symbols.
    """
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
    """Returns the losses, in nats per token, of two references that do not read the source.

    They are the best constant distribution over tokens, and the optimal decoder, which knows the earlier tokens.
    `entropy` maps a length to the entropy in nats of an answer of that length.
    """
    tokens = 1 + (1 + longest) / 2  # mean number of tokens of an answer
    end = 1 / tokens  # frequency of the end token; symbols are uniform
    answer = math.log(longest) + sum(map(entropy, range(1, longest + 1))) / longest
    return {
        'best constant': -end * math.log(end) - (1 - end) * math.log((1 - end) / symbols),
        'without the source': answer / tokens,
    }


@lru_cache(maxsize=4096)
def _entropy_of_counts(length: int, symbols: int) -> float:
    """Returns the entropy in nats of the counts of each symbol in a random sequence, that is of the sorted sequence.

    It is the entropy of the sequence minus the entropy of its order, given the counts.
    """
    if symbols == 1:
        return 0.0
    share, orders = 1 / symbols, math.lgamma(length + 1)
    for times in range(length + 1):  # count of one symbol, which is binomial
        log_odds = times * math.log(share) + (length - times) * math.log1p(-share)
        log_odds += math.lgamma(length + 1) - math.lgamma(times + 1) - math.lgamma(length - times + 1)
        orders -= symbols * math.exp(log_odds) * math.lgamma(times + 1)
    return length * math.log(symbols) - orders


def _sample(key: jax.Array, count: int, *, draw: Callable[..., Batch], longest: int) -> Batch:
    keys = jax.random.split(key)
    return draw(keys[0], synthetic.uniform_lengths(keys[1], count, 1, longest), longest)


def _draw(key: jax.Array, lengths: jax.Array, longest: int, *, symbols: int, order: Callable) -> Batch:
    valid = jnp.arange(longest)[None] < lengths[:, None]
    source = jnp.where(valid, jax.random.randint(key, valid.shape, 1, symbols + 1), END)
    targets = jnp.pad(jnp.where(valid, order(source, lengths), END), [(0, 0), (0, 1)], constant_values=END)
    mask = jnp.arange(longest + 1)[None] <= lengths[:, None]
    return Batch((Sequences(source, lengths), targets), targets, mask)


def _reversed(source: jax.Array, lengths: jax.Array) -> jax.Array:
    steps = lengths[:, None] - 1 - jnp.arange(source.shape[1])[None]
    return jnp.take_along_axis(source, jnp.maximum(steps, 0), 1)


def _sorted(source: jax.Array, lengths: jax.Array) -> jax.Array:
    return jnp.sort(jnp.where(source == END, jnp.iinfo(source.dtype).max, source), axis=1)
