"""Counting: prediction of the next symbol of a^n b^n and of balanced brackets (Dyck languages).

At every step a model predicts the next symbol, or the end. Some next symbols are random, so the loss has a floor.

    a^n b^n          a  a  a  b  b  b          after Gers and Schmidhuber 2001
    next symbol      a  a  b  b  b  end        certain from the first b on

    dyck             (  [  ]  (  )  )          after Skachkova et al. 2018
    next symbol      [  ]  (  )  )  end        a closing bracket matches the last open one

The entropy floor is the expected loss of the optimal predictor, in nats per predicted symbol: the entropy of a string
minus the entropy of its first symbol, which is not predicted, divided by the mean length.

The metric `excess` is the cross-entropy minus the cross-entropy of the optimal predictor on the same sequences, so that
sampling noise cancels.

A sequence is wrong if at any step the model assigns more than a tenth of the probability to symbols that cannot follow.
All symbols that can follow count as correct, even beyond the lengths of training, except for an opening bracket at the
maximal depth.

There are few short strings (one a^n b^n of each length), so short test strings also occur in training.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.nn import losses
from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import LossFn, SuccessCriterion, SyntheticTask, task_defaults
from seqjax.types import Batch, Mean, ModelSpec, Sequences

MIN_LONGEST = 4  # least value of `longest`, because strings of two symbols need no counting
MAX_INVALID_PROBABILITY = 0.1  # total probability of symbols that cannot follow, at a correct step
MAX_RELATIVE_EXCESS = 0.01  # success criterion: excess divided by the entropy floor
EXCESS = 'excess'

A, B, END = range(3)  # classes of a^n b^n


@task_defaults(batch_size=64, steps=5000)
def anbn(longest: int = 40) -> SyntheticTask:
    """Returns the task of predicting the next symbol of a^n b^n, with n uniform from 1 to half of `longest`.

    Args:
      longest: maximal length of a string, even and at least 4; the minimal length is 2.

    Raises:
      ValueError: `longest` is odd or below 4.

    >>> task = anbn(longest=8)
    >>> batch = task.sample(jax.random.key(4), 1)
    >>> length = int(batch.inputs.seq_lengths[0])
    >>> [''.join('ab.'[symbol] for symbol in x[0, :length]) for x in (batch.inputs.values.argmax(-1), batch.targets)]
    ['aaabbb', 'aabbb.']
    >>> round(task.reference_losses['entropy floor'], 4)  # one of four strings, of five symbols on average
    0.2773
    """
    _check_longest(longest)
    most = longest // 2
    mean = (most + 1) / 2
    return _task(
        name=f'a^n b^n of 2 to {longest} symbols',
        draw=_anbn,
        ideal=partial(_anbn_ideal, most=most),
        longest=longest,
        floor=math.log(most) / (2 * mean),
        counts=[mean - 1, mean, 1],
    )


@task_defaults(hidden=64, batch_size=64, steps=10000)
def dyck(kinds: int = 2, longest: int = 40, deepest: int = 10) -> SyntheticTask:
    """Returns the task of predicting the next symbol of balanced brackets.

    Lengths are uniform over the even numbers from 2 to `longest`, and strings are uniform within a length. The
    depth is a random walk from 0 to 0 that stays between 0 and `deepest`; the probability of an opening bracket is
    proportional to the number of walks that continue after it. The kind of an opening bracket is uniform.

    Args:
      kinds: number of kinds of brackets.
      longest: maximal length of a string, even and at least 4; the minimal length is 2.
      deepest: maximal number of brackets that are open at once.

    Raises:
      ValueError: `kinds` or `deepest` is below 1, `longest` is odd or below 4, or they are too large.

    >>> batch = dyck(longest=12).sample(jax.random.key(3), 1)
    >>> length = int(batch.inputs.seq_lengths[0])
    >>> [''.join('([)].'[symbol] for symbol in x[0, :length]) for x in (batch.inputs.values.argmax(-1), batch.targets)]
    ['[(())[]][]', '(())[]][].']
    """
    for name, value in (('kinds', kinds), ('deepest', deepest)):
        if value < 1:
            raise ValueError(f'{name}={value} must be at least 1')
    synthetic.check_cost(100 * kinds, kinds=kinds)
    _check_longest(longest)
    strings = [
        ways[0] for ways in _ways(longest, deepest)[2::2]
    ]  # number of strings of each length, with one kind of bracket
    half = (longest + 2) / 4  # mean number of opening brackets, and of closing ones
    nats = math.log(len(strings)) + sum(map(math.log, strings)) / len(strings) + (half - 1) * math.log(kinds)
    return _task(
        name=f'brackets of {kinds} {"kind" if kinds == 1 else "kinds"} in 2 to {longest} symbols',
        draw=partial(_dyck, kinds=kinds, deepest=deepest),
        ideal=partial(_dyck_ideal, kinds=kinds, table=_chances(longest, deepest)),
        longest=longest,
        floor=nats / (2 * half),
        counts=[*[(half - 1) / kinds] * kinds, *[half / kinds] * kinds, 1],
    )


def _check_longest(longest: int) -> None:
    if longest < MIN_LONGEST or longest % 2:
        raise ValueError(f'longest={longest} must be even and at least {MIN_LONGEST}')


def _task(
    name: str,
    draw: Callable[[jax.Array, jax.Array, int], Batch],
    ideal: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    longest: int,
    floor: float,
    counts: Sequence[float],
) -> SyntheticTask:
    """Returns the task of predicting the next symbol of the strings of a language, for `anbn` and `dyck`.

    Args:
      name: name of the task.
      draw: see `SyntheticTask.draw`.
      ideal: one-hot symbols [N, T, F] -> classes that can follow each symbol, bool [N, T, C], and their probabilities.
      longest: maximal length of a string.
      floor: the entropy floor in nats per predicted symbol.
      counts: mean number of times that each of the C classes is the target in a string.
    """

    total = sum(counts)
    constant = synthetic.entropy(count / total for count in counts)
    return SyntheticTask(
        name=name,
        sample=synthetic.sampler_by_length(draw, longest, shortest=2, step=2),
        loss_fn=_loss_fn(ideal),
        spec=ModelSpec('per_step', outputs=len(counts), features=len(counts) - 1, causal=True, memory_span=longest),
        reference_losses={'best constant': constant, 'entropy floor': floor},
        success=SuccessCriterion(at_most=MAX_RELATIVE_EXCESS * floor, metric=EXCESS),
        draw=draw,
    )


def _loss_fn(ideal: Callable[[jax.Array], tuple[jax.Array, jax.Array]]) -> LossFn:
    """Returns a loss function with the metrics loss (cross-entropy), excess and wrong; see `_task` for `ideal`."""

    def loss_fn(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
        follows, probabilities = ideal(Sequences(*batch.inputs).values)
        invalid = jnp.where(follows, 0, jax.nn.softmax(logits.astype(jnp.float32))).sum(-1)
        loss = losses.cross_entropy(logits, batch.targets, batch.mask)
        p = jnp.take_along_axis(probabilities, batch.targets[..., None], -1)[..., 0]
        ideal_total = -jnp.where(batch.mask & (p > 0), jnp.log(jnp.maximum(p, 1e-30)), 0).sum()
        correct = (invalid <= MAX_INVALID_PROBABILITY) & jnp.isfinite(logits).all(-1)
        return {
            'loss': loss,
            EXCESS: Mean(loss.total - ideal_total, loss.count),
            synthetic.WRONG: synthetic.error_rate(correct, batch.mask),
        }

    return loss_fn


def _batch(symbols: jax.Array, lengths: jax.Array, end: int) -> Batch:
    """Returns the batch of one-hot symbols [N, T]; targets are the next symbols, and the class `end` at the last.

    The first `lengths` [N] steps of each row are valid. `end` is also the number of different symbols.
    """
    steps = jnp.arange(symbols.shape[1])[None]
    valid = steps < lengths[:, None]
    following = jnp.pad(symbols[:, 1:], ((0, 0), (0, 1)))
    targets = jnp.where(steps < lengths[:, None] - 1, following, jnp.where(valid, end, 0))
    values = jax.nn.one_hot(jnp.where(valid, symbols, -1), end)  # -1 becomes all zeros
    return Batch(Sequences(values, lengths), targets.astype(jnp.int32), valid)


def _anbn(key: jax.Array, lengths: jax.Array, longest: int) -> Batch:
    """Returns the batch of the strings a^n b^n of these lengths [N]; odd lengths are reduced by one."""
    lengths = lengths // 2 * 2
    symbols = jnp.where(jnp.arange(longest)[None] < lengths[:, None] // 2, A, B)
    return _batch(symbols, lengths, END)


def _anbn_ideal(values: jax.Array, *, most: int) -> tuple[jax.Array, jax.Array]:
    """Returns the classes that can follow each symbol, and their probabilities; see `ideal` of `_task`.

    After k a, of at most `most`, the first b has the probability 1 / (most - k + 1).
    """
    a, b = jnp.moveaxis(values.cumsum(1), -1, 0)
    first = 1 / jnp.maximum(most - a + 1, 1)
    follows = jnp.stack([b == 0, b < a, b == a], -1)
    probabilities = jnp.where((b == 0)[..., None], jnp.stack([1 - first, first, 0 * first], -1), follows)
    return follows, probabilities


@lru_cache(maxsize=4)
def _ways(longest: int, deepest: int) -> list[list[int]]:
    """Returns a table [remaining steps][depth] of the number of walks to depth 0 that stay between 0 and `deepest`.

    Raises:
      ValueError: computing the table, with numbers of up to `longest` bits, would take too long.
    """
    synthetic.check_cost(longest * (deepest + 1) * (longest + 32) // 2, longest=longest, deepest=deepest)
    ways = [[1] + [0] * deepest]
    for _ in range(longest):
        low, high = [0, *ways[-1][:-1]], [*ways[-1][1:], 0]  # ways of the depth below and of the depth above
        ways.append([closing + opening for closing, opening in zip(low, high, strict=True)])
    return ways


def _openings(longest: int, deepest: int) -> np.ndarray:
    """Returns a table [remaining steps, depth] of the probability that the next bracket opens; 0 if no walk exists.

    All walks of `_ways` are equally likely.
    """
    ways = _ways(longest, deepest)
    probabilities = [[0.0] * (deepest + 1)]
    for after, now in zip(ways, ways[1:], strict=False):
        counts = zip([*after[1:], 0], now, strict=True)
        probabilities.append([opening / total if total else 0.0 for opening, total in counts])
    return np.array(probabilities, np.float32)


def _dyck(key: jax.Array, lengths: jax.Array, longest: int, *, kinds: int, deepest: int) -> Batch:
    """Returns a batch of random strings of brackets of these lengths [N]; odd lengths are reduced by one."""
    lengths = lengths // 2 * 2
    table = jnp.asarray(_openings(longest, deepest))
    walk_key, kind_key = jax.random.split(key)
    uniforms = jax.random.uniform(walk_key, (longest, *lengths.shape))

    def step(depth: jax.Array, x: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        uniform, place = x
        opens = uniform < table[jnp.maximum(lengths - place, 0), depth]
        return jnp.maximum(depth + jnp.where(opens, 1, -1), 0), opens  # below 0 only after the end

    opens = jax.lax.scan(step, jnp.zeros_like(lengths), (uniforms, jnp.arange(longest)))[1].T
    kind = jax.random.randint(kind_key, opens.shape, 0, kinds)
    valid = jnp.arange(longest)[None] < lengths[:, None]
    depth = jnp.where(valid, jnp.where(opens, 1, -1), 0).cumsum(1)
    before = jnp.pad(_tops(opens, kind, depth, kinds, deepest)[:, :-1], ((0, 0), (1, 0)))
    return _batch(jnp.where(opens, kind, kinds + before), lengths, 2 * kinds)


def _tops(opens: jax.Array, kind: jax.Array, depth: jax.Array, kinds: int, deepest: int) -> jax.Array:
    """Returns the kind of the innermost open bracket after each step, [N, T]; arbitrary if none is open.

    The innermost open bracket is the last one that opened to the current depth.

    Args:
      opens: [N, T] bool, True at opening brackets.
      kind: [N, T], kind of each opening bracket; ignored at closing ones.
      depth: [N, T], number of open brackets after each step.
      kinds: number of kinds of brackets.
      deepest: maximal depth.
    """
    reached = opens[..., None] & (depth[..., None] == jnp.arange(deepest + 1)[None, None])
    numbered = jnp.arange(opens.shape[1])[None] * kinds + kind  # increases over time; modulo `kinds` it is the kind
    latest = jax.lax.cummax(jnp.where(reached, numbered[..., None], 0), axis=1)
    return jnp.take_along_axis(latest, depth[..., None], 2)[..., 0] % kinds


@lru_cache(maxsize=4)
def _chances(longest: int, deepest: int) -> np.ndarray:
    """Returns the probabilities of an opening bracket, a closing one and the end: [symbols so far, depth, 3].

    The length of the string is unknown: the probabilities average over all lengths that are still possible, and all
    strings of each. They are 0 at depths that cannot be reached.
    """
    integer_ways = _ways(longest, deepest)  # [remaining steps, depth]
    # As floats of any size: each row divided by a power of two, which does not round.
    bits = np.array([max(row).bit_length() - 1 for row in integer_ways])
    ways = np.array([[n / (1 << k) for n in row] for row, k in zip(integer_ways, bits.tolist(), strict=True)])
    all_lengths = np.arange(2, longest + 1, 2)
    chances = np.zeros((longest + 1, deepest + 1, 3))
    for place in range(longest + 1):
        lengths = all_lengths[all_lengths >= place]
        left = lengths - place
        weights, more = 1 / ways[lengths, 0], left > 0
        after = ways[left[more] - 1] * weights[more, None]  # [lengths, depth], of walks that continue from there
        scale = bits[np.maximum(left - 1, 0)] + bits[place] - bits[lengths]  # the same power for all lengths
        after, weights = np.ldexp(after, scale[more, None]), np.ldexp(weights, scale)
        chances[place, :-1, 0] = after[:, 1:].sum(0)
        chances[place, 1:, 1] = after[:, :-1].sum(0)
        chances[place, 0, 2] = weights[~more].sum()
    return (chances / np.maximum(chances.sum(-1, keepdims=True), 1e-300)).astype(np.float32)


def _dyck_ideal(values: jax.Array, *, kinds: int, table: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Returns the classes that can follow each symbol, and their probabilities; see `ideal` of `_task`.

    `table` is the result of `_chances`.
    """
    deepest = table.shape[1] - 1
    symbols = values.argmax(-1)
    opens = symbols < kinds
    depth = jnp.where(values.any(-1), jnp.where(opens, 1, -1), 0).cumsum(1)
    top = _tops(opens, symbols % kinds, depth, kinds, deepest)
    inside = (depth > 0)[..., None]
    opening = jnp.broadcast_to((depth < deepest)[..., None], (*depth.shape, kinds))
    closing = inside & (top[..., None] == jnp.arange(kinds)[None, None])
    places = jnp.minimum(jnp.arange(1, depth.shape[1] + 1), len(table) - 1)
    opened, closed, ended = jnp.moveaxis(jnp.asarray(table)[places[None], depth], -1, 0)
    probabilities = [opening * opened[..., None] / kinds, closing * closed[..., None], ended[..., None]]
    return jnp.concatenate([opening, closing, ~inside], -1), jnp.concatenate(probabilities, -1)
