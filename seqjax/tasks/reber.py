"""Embedded Reber grammar: prediction of the next symbol (Hochreiter and Schmidhuber 1997, experiment 1).

A Reber string is a walk through a graph from B to E. Where two edges leave a node, each is taken with probability 1/2:

    B -> 0    0: T -> 1, P -> 2    1: S -> 1, X -> 3    2: T -> 2, V -> 4    3: X -> 2, S -> 5    4: P -> 3, V -> 5
    5: E

An embedded Reber string is B, T or P, a Reber string, the same T or P again, and E:

    read                 B    T  B    P    V    P    S  E  T  E
    can follow           T P  B  T P  T V  P V  X S  E  T  E

The symbol before the last one depends on the second one. A string is correct if at every step the symbols that can
follow have the largest logits, which is the criterion of the source. The metric `wrong` is the fraction of other
strings. Training is on the symbol that follows.

The source has 256 strings for training and 256 for testing. Both are random, so short strings occur in both.
"""

import math
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.nn import losses
from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import Examples, SyntheticTask, task_defaults
from seqjax.types import Batch, Mean, ModelSpec, Sequences

SYMBOLS = 'BTPSXVE'
SHORTEST = 9  # length of the shortest embedded string, such as BTBTXSETE
REBER = {0: [('T', 1), ('P', 2)], 1: [('S', 1), ('X', 3)], 2: [('T', 2), ('V', 4)], 3: [('X', 2), ('S', 5)]}
REBER |= {4: [('P', 3), ('V', 5)], 5: [('E', 6)]}  # edges of the nodes of a Reber string, after its B
SEED = 0  # random seed of the finite set of strings, the same in all runs


class Graph(NamedTuple):
    """Graph of the embedded grammar with S nodes; node 0 is the start, the last node the end."""

    symbols: np.ndarray  # [S, 2] symbols of the two edges of a node; a node with one edge has it twice
    targets: np.ndarray  # [S, 2] nodes to which the edges lead
    moves: np.ndarray  # [S, 7] node after each symbol; the end if the symbol cannot follow
    follows: np.ndarray  # [S, 7] bool, True for symbols that can follow


@task_defaults(hidden=16, batch_size=8, eval_every=32, steps=16_000, learning_rate=0.01)
def embedded_reber(longest: int = 40, examples: int = 256) -> SyntheticTask:
    """Returns the task of predicting the next symbol of strings of the embedded Reber grammar.

    Args:
      longest: maximal length of a string; longer ones are not drawn.
      examples: number of training strings, of validation strings and of test strings; 0 to draw new ones at every step.

    Raises:
      ValueError: `longest` is below 9, or `longest` or `examples` is too large.

    >>> batch = embedded_reber().sample(jax.random.key(2), 1)
    >>> length = int(batch.inputs.seq_lengths[0])
    >>> [''.join(SYMBOLS[i] for i in x[0, :length]) for x in (batch.inputs.values.argmax(-1), batch.targets)]
    ['BPBPTVPSEPE', 'PBPTVPSEPEB']
    """
    if longest < SHORTEST:
        raise ValueError(f'longest={longest} must be at least {SHORTEST}, the length of the shortest string')
    _check_cost(longest)
    synthetic.check_cost(10 * examples * longest, examples=examples, longest=longest)
    sample = partial(_sample, longest=longest)
    return SyntheticTask(
        name=f'embedded Reber grammar in {SHORTEST} to {longest} symbols',
        sample=sample,
        loss_fn=_loss_fn,
        spec=ModelSpec('per_step', outputs=len(SYMBOLS), features=len(SYMBOLS), causal=True, memory_span=longest),
        reference_losses=_reference_losses(longest),
        draw=_draw,
        examples=partial(_examples, examples, sample) if examples else None,
    )


def _check_cost(longest: int) -> None:
    synthetic.check_cost(5000 * longest, longest=longest)


@lru_cache(maxsize=1)
def graph() -> Graph:
    """Returns the graph of the embedded grammar."""
    edges: dict[str, list[tuple[str, str]]] = {'start': [('B', 'choice')], 'choice': [('T', 'T'), ('P', 'P')]}
    for outer in 'TP':
        edges[outer] = [('B', f'{outer}0')]
        edges |= {f'{outer}{node}': [(symbol, f'{outer}{to}') for symbol, to in ways] for node, ways in REBER.items()}
        edges[f'{outer}6'] = [(outer, 'last')]
    edges |= {'last': [('E', 'end')], 'end': []}
    number = {name: i for i, name in enumerate(edges)}
    end = number['end']
    symbols, targets = np.zeros((len(edges), 2), np.int32), np.full((len(edges), 2), end, np.int32)
    moves = np.full((len(edges), len(SYMBOLS)), end, np.int32)
    follows = np.zeros((len(edges), len(SYMBOLS)), bool)
    for name, ways in edges.items():
        for edge in range(2 if ways else 0):
            symbol, to = ways[edge % len(ways)]
            place = number[name], SYMBOLS.index(symbol)
            symbols[number[name], edge], targets[number[name], edge] = place[1], number[to]
            moves[place], follows[place] = number[to], True
    return Graph(symbols, targets, moves, follows)


@lru_cache(maxsize=4)
def _walks(longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tables of walks that end after an exact number of symbols, up to `longest`.

    Returns:
      Probability of the first edge [remaining symbols, S], given that the end is reached after exactly so many
      symbols; and the logarithm of the probability of every length [longest + 1] of a string, -inf if there is none.
    """
    targets = graph().targets
    ends = np.zeros(len(targets))  # probability of reaching the end after exactly r symbols, up to a factor
    ends[-1] = 1
    first, logs, scale = np.full((longest + 1, len(targets)), 0.5, np.float32), np.full(longest + 1, -np.inf), 0.0
    for remaining in range(1, longest + 1):
        ways = ends[targets]
        ways[-1] = 0  # nothing follows the end
        total = ways.sum(1)
        first[remaining] = np.where(total > 0, ways[:, 0] / np.maximum(total, 1e-300), 0.5)
        ends = total / 2
        if ends[0] > 0:
            logs[remaining] = math.log(ends[0]) + scale
        largest = ends.max()
        scale += math.log(largest)
        ends = ends / largest
    return first, logs


def _sample(key: jax.Array, count: int, *, longest: int) -> Batch:
    length_key, draw_key = jax.random.split(key)
    lengths = jax.random.categorical(length_key, jnp.asarray(_walks(longest)[1], jnp.float32), shape=(count,))
    return _draw(draw_key, lengths, longest)


def _draw(key: jax.Array, lengths: jax.Array, longest: int) -> Batch:
    """Returns random strings of these lengths [N]; strings shorter than the shortest one are empty."""
    _check_cost(longest)
    lengths = jnp.where(lengths < SHORTEST, 0, lengths)
    table, first = graph(), jnp.asarray(_walks(longest)[0])

    def step(node: jax.Array, x: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        uniform, place = x
        edge = (uniform >= first[jnp.maximum(lengths - place, 0), node]).astype(jnp.int32)
        return jnp.asarray(table.targets)[node, edge], jnp.asarray(table.symbols)[node, edge]

    uniforms = jax.random.uniform(key, (longest, *lengths.shape))
    symbols = jax.lax.scan(step, jnp.zeros_like(lengths), (uniforms, jnp.arange(longest)))[1].T
    steps = jnp.arange(longest)[None]
    values = jax.nn.one_hot(jnp.where(steps < lengths[:, None], symbols, -1), len(SYMBOLS))  # -1 becomes all zeros
    mask = steps < lengths[:, None] - 1  # nothing follows the last symbol
    following = jnp.pad(symbols[:, 1:], ((0, 0), (0, 1)))
    return Batch(Sequences(values, lengths), jnp.where(mask, following, 0), mask)


def _examples(count: int, sample: partial) -> Examples:
    """Returns `count` strings for training, as many for validation and as many for testing."""
    strings = jax.jit(lambda: sample(jax.random.key(SEED), 3 * count))()
    return Examples(*(jax.tree.map(lambda x, i=i: x[i * count : (i + 1) * count], strings) for i in range(3)))


def can_follow(values: jax.Array) -> jax.Array:
    """Returns the symbols that can follow after each step, bool [N, T, 7], for one-hot symbols [N, T, 7]."""
    table, symbols = graph(), values.argmax(-1)
    moves = jnp.asarray(table.moves)

    def step(node: jax.Array, symbol: jax.Array) -> tuple[jax.Array, jax.Array]:
        node = moves[node, symbol]
        return node, node

    nodes = jax.lax.scan(step, jnp.zeros_like(symbols[:, 0]), symbols.T)[1].T
    return jnp.asarray(table.follows)[nodes]


def _loss_fn(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    """Returns 'loss', the cross-entropy of the next symbol, and 'wrong', the fraction of wrong strings."""
    follows = can_follow(Sequences(*batch.inputs).values)
    least = jnp.where(follows, logits, jnp.inf).min(-1)  # of the symbols that can follow
    correct = (least > jnp.where(follows, -jnp.inf, logits).max(-1)) & jnp.isfinite(logits).all(-1)
    return {
        'loss': losses.cross_entropy(logits, batch.targets, batch.mask),
        synthetic.WRONG: synthetic.error_rate(correct, batch.mask),
    }


@lru_cache(maxsize=4)
def _reference_losses(longest: int) -> dict[str, float]:
    """Returns the losses, in nats per predicted symbol, of the best constant and of the optimal predictor.

    A string with k binary choices has the probability 2^-k / Z, where Z is the probability of a length of at most
    `longest`. The entropy of a string is therefore ln 2 times the mean of k, plus ln Z.
    """
    table = graph()
    branches = table.symbols[:, 0] != table.symbols[:, 1]
    within = [np.eye(len(branches))[-1]]  # probability of reaching the end within so many symbols [longest + 1, S]
    for _ in range(longest):
        after = within[-1][table.targets].mean(1)
        after[-1] = 1
        within.append(after)
    here, counts, choices = np.eye(len(branches))[0], np.zeros(len(SYMBOLS)), 0.0
    for place in range(longest):
        uses = here[:, None] / 2 * within[longest - place - 1][table.targets]  # of each edge, at this place
        uses[-1] = 0
        np.add.at(counts, table.symbols, uses)
        choices += uses[branches].sum()
        new = np.zeros_like(here)
        half = np.where(np.arange(len(here)) < len(here) - 1, here / 2, 0)
        np.add.at(new, table.targets, half[:, None] + np.zeros((1, 2)))
        here = new
    likely = within[longest][0]  # Z
    counts, choices = counts / likely, choices / likely
    counts[0] -= 1  # the first B is not predicted
    floor = float((math.log(2) * choices + math.log(likely)) / counts.sum())
    return {'best constant': synthetic.entropy((counts / counts.sum()).tolist()), 'entropy floor': floor}
