"""Counting: languages whose next symbol hangs on how many came before, a stack of brackets among them.

At every step a model says what follows: the next symbol, or the end. What it cannot know it can only weigh, so that a
loss stays above a floor, which is known here.

    a^n b^n          a  a  a  b  b  b          after Gers and Schmidhuber 2001
    what follows     a  a  b  b  b  end        from the first b on it is certain

    dyck             (  [  ]  (  )  )          after Skachkova et al. 2018
    what follows     [  ]  (  )  )  end        a bracket that closes is that of the last one still open

A floor is in nats for each predicted symbol, over endlessly many sequences: the entropy of a string, less that of its
first symbol, which nobody is asked for, divided by the mean length. Both are sums over all that a string can be.

`excess` is how far the cross-entropy is above that of who knows the law, on the same sequences: the floor without the
chance that is in them.

A sequence is wrong where a model at any step gives more than a tenth of the probability to what cannot follow; so what
is certain must have nine tenths. What could follow counts as right, likely or not, also beyond the lengths of
training; a bracket that would be one too many open at once could not.

There are few short strings (one a^n b^n of each length), so those that a model is tested on are also among those that
it learned from.
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

SHORTEST = 4  # of the longest strings: with those of two symbols alone there is nothing to count
STRAY = 0.1  # of the probability, that may go to what cannot follow
NEAR = 0.01  # the goal is an excess of a hundredth of the floor
EXCESS = 'excess'

A, B, END = range(3)  # of a^n b^n


@task_defaults(batch_size=64, steps=5000)
def anbn(longest: int = 40) -> SyntheticTask:
    """So many a, then as many b: from 1 up to half of `longest`, each number as likely.

    Args:
      longest: symbols of a string, from 2 up to these.

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
    """Balanced brackets: every even length up to `longest` is as likely, and every string of a length.

    So the walk of the depth is a random one that is at 0 at the end and never below it or above `deepest`; the number
    of ways that it can still go decides how likely it opens. A bracket that opens is of any kind.

    Args:
      kinds: of brackets.
      longest: symbols of a string, from 2 up to these.
      deepest: brackets that are open at once, at most.

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
    strings = [ways[0] for ways in _ways(longest, deepest)[2::2]]  # of each length, were there one kind of bracket
    half = (longest + 2) / 4  # brackets that open in a string, on average; as many close
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
    if longest < SHORTEST or longest % 2:
        raise ValueError(f'longest={longest} must be even and at least {SHORTEST}: every symbol has another')


def _task(
    name: str,
    draw: Callable[[jax.Array, jax.Array, int], Batch],
    ideal: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    longest: int,
    floor: float,
    counts: Sequence[float],
) -> SyntheticTask:
    """The task of a language; `counts` are how often each symbol is asked for in a string, on average.

    `ideal` takes symbols [N, T, F] to what can follow each, bool [N, T, C], and how likely that is for who knows the
    law.
    """

    total = sum(counts)
    constant = synthetic.entropy(count / total for count in counts)
    return SyntheticTask(
        name=name,
        sample=synthetic.by_length(draw, longest, shortest=2, step=2),
        loss_fn=_loss_fn(ideal),
        spec=ModelSpec('per_step', outputs=len(counts), features=len(counts) - 1, causal=True, memory_span=longest),
        reference_losses={'best constant': constant, 'entropy floor': floor},
        success=SuccessCriterion(at_most=NEAR * floor, metric=EXCESS),
        draw=draw,
    )


def _loss_fn(ideal: Callable[[jax.Array], tuple[jax.Array, jax.Array]]) -> LossFn:
    """Cross-entropy, its excess, and mistakes: over a tenth of the probability on what cannot follow, at any step."""

    def loss_fn(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
        follows, likely = ideal(Sequences(*batch.inputs).values)
        stray = jnp.where(follows, 0, jax.nn.softmax(logits.astype(jnp.float32))).sum(-1)
        loss = losses.cross_entropy(logits, batch.targets, batch.mask)
        chances = jnp.take_along_axis(likely, batch.targets[..., None], -1)[..., 0]
        least = -jnp.where(batch.mask & (chances > 0), jnp.log(jnp.maximum(chances, 1e-30)), 0).sum()
        return {
            'loss': loss,
            EXCESS: Mean(loss.total - least, loss.count),
            synthetic.WRONG: synthetic.mistakes((stray <= STRAY) & jnp.isfinite(logits).all(-1), batch.mask),
        }

    return loss_fn


def _batch(symbols: jax.Array, lengths: jax.Array, end: int) -> Batch:
    """Symbols [N, T], of which the first `lengths` are real, and what follows each; `end` is the last class."""
    steps = jnp.arange(symbols.shape[1])[None]
    real = steps < lengths[:, None]
    following = jnp.pad(symbols[:, 1:], ((0, 0), (0, 1)))
    targets = jnp.where(steps < lengths[:, None] - 1, following, jnp.where(real, end, 0))
    values = jax.nn.one_hot(jnp.where(real, symbols, -1), end)  # -1 is no symbol: zeros
    return Batch(Sequences(values, lengths), targets.astype(jnp.int32), real)


def _anbn(key: jax.Array, lengths: jax.Array, longest: int) -> Batch:
    """Nothing is left to chance: a length has one string. Of an odd length one is taken away."""
    lengths = lengths // 2 * 2
    symbols = jnp.where(jnp.arange(longest)[None] < lengths[:, None] // 2, A, B)
    return _batch(symbols, lengths, END)


def _anbn_ideal(values: jax.Array, *, most: int) -> tuple[jax.Array, jax.Array]:
    """After k of at most N times a, the first b has the chance 1 / (N - k + 1), and the rest is certain."""
    a, b = jnp.moveaxis(values.cumsum(1), -1, 0)
    first = 1 / jnp.maximum(most - a + 1, 1)
    follows = jnp.stack([b == 0, b < a, b == a], -1)
    likely = jnp.where((b == 0)[..., None], jnp.stack([1 - first, first, 0 * first], -1), follows)
    return follows, likely


@lru_cache(maxsize=4)
def _ways(longest: int, deepest: int) -> list[list[int]]:
    """[steps that are left, depth]: how many walks end at depth 0 and stay between that and `deepest`."""
    synthetic.check_cost(longest * (deepest + 1) * (longest + 32) // 2, longest=longest, deepest=deepest)
    ways = [[1] + [0] * deepest]
    for _ in range(longest):
        low, high = [0, *ways[-1][:-1]], [*ways[-1][1:], 0]  # of the depth below, of that above
        ways.append([closing + opening for closing, opening in zip(low, high, strict=True)])
    return ways


def _openings(longest: int, deepest: int) -> np.ndarray:
    """[steps that are left, depth]: how likely the next one opens, every walk being as likely; 0 where none is."""
    ways = _ways(longest, deepest)
    shares = [[0.0] * (deepest + 1)]
    for after, now in zip(ways, ways[1:], strict=False):
        shares.append([more / of if of else 0.0 for more, of in zip([*after[1:], 0], now, strict=True)])
    return np.array(shares, np.float32)


def _dyck(key: jax.Array, lengths: jax.Array, longest: int, *, kinds: int, deepest: int) -> Batch:
    """Of an odd length one is taken away."""
    lengths = lengths // 2 * 2
    table = jnp.asarray(_openings(longest, deepest))
    of_walk, of_kinds = jax.random.split(key)
    chances = jax.random.uniform(of_walk, (longest, *lengths.shape))

    def step(depth: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        chance, place = now
        opens = chance < table[jnp.maximum(lengths - place, 0), depth]
        return jnp.maximum(depth + jnp.where(opens, 1, -1), 0), opens  # at 0 it closes after the end alone

    opens = jax.lax.scan(step, jnp.zeros_like(lengths), (chances, jnp.arange(longest)))[1].T
    kind = jax.random.randint(of_kinds, opens.shape, 0, kinds)
    real = jnp.arange(longest)[None] < lengths[:, None]
    depth = jnp.where(real, jnp.where(opens, 1, -1), 0).cumsum(1)
    before = jnp.pad(_tops(opens, kind, depth, kinds, deepest)[:, :-1], ((0, 0), (1, 0)))
    return _batch(jnp.where(opens, kind, kinds + before), lengths, 2 * kinds)


def _tops(opens: jax.Array, kind: jax.Array, depth: jax.Array, kinds: int, deepest: int) -> jax.Array:
    """The kind of the last bracket that is still open after each step [N, T]; any where none is.

    It is the last that opened (`opens`, of `kind`) to the depth that there is after the step.
    """
    reached = opens[..., None] & (depth[..., None] == jnp.arange(deepest + 1)[None, None])
    numbered = jnp.arange(opens.shape[1])[None] * kinds + kind  # later ones are larger, and the kind is in it
    latest = jax.lax.cummax(jnp.where(reached, numbered[..., None], 0), axis=1)
    return jnp.take_along_axis(latest, depth[..., None], 2)[..., 0] % kinds


@lru_cache(maxsize=4)
def _chances(longest: int, deepest: int) -> np.ndarray:
    """[symbols so far, depth, 3]: how likely it is that one opens, that one closes, that the string ends; else 0."""
    whole = _ways(longest, deepest)  # [left, depth]
    # As floats of any size: those of a row over a power of two, which rounds nothing.
    bits = np.array([max(row).bit_length() - 1 for row in whole])
    ways = np.array([[n / (1 << k) for n in row] for row, k in zip(whole, bits.tolist(), strict=True)])
    every = np.arange(2, longest + 1, 2)
    chances = np.zeros((longest + 1, deepest + 1, 3))
    for place in range(longest + 1):
        lengths = every[every >= place]
        left = lengths - place
        weights, more = 1 / ways[lengths, 0], left > 0
        after = ways[left[more] - 1] * weights[more, None]  # [lengths, depth], of walks that go on from there
        scale = bits[np.maximum(left - 1, 0)] + bits[place] - bits[lengths]  # the same power for all of a place
        after, weights = np.ldexp(after, scale[more, None]), np.ldexp(weights, scale)
        chances[place, :-1, 0] = after[:, 1:].sum(0)
        chances[place, 1:, 1] = after[:, :-1].sum(0)
        chances[place, 0, 2] = weights[~more].sum()
    return (chances / np.maximum(chances.sum(-1, keepdims=True), 1e-300)).astype(np.float32)


def _dyck_ideal(values: jax.Array, *, kinds: int, table: np.ndarray) -> tuple[jax.Array, jax.Array]:
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
    likely = [opening * opened[..., None] / kinds, closing * closed[..., None], ended[..., None]]
    return jnp.concatenate([opening, closing, ~inside], -1), jnp.concatenate(likely, -1)
