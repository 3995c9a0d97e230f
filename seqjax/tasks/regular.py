"""Regular tasks: strings that an automaton with a few states answers, after Delétang et al. 2022.

"Neural Networks and the Chomsky Hierarchy" trains on strings of 1 to 40 symbols, every length as likely, and asks
whether what was learned holds for longer ones; `SyntheticTask.draw` makes those. An answer is told at the end.

    parity               1 0 1 0 1 0 0          ->  1    the ones are odd in number
    even pairs           0 0 1 1 1 0            ->  0    one 01 and one 10, which is even
    modular arithmetic   0 * 1 + 4 * 3 - 2      ->  0    modulo 5; * binds more tightly than + and -
    cycle navigation     right left stay left left  ->  3    from place 0 of a cycle of 5

There are few short strings (2 of one bit), so those that a model is tested on are also among those that it learned
from, as in the source.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import validation
from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SyntheticTask, task_defaults
from seqjax.types import Batch, ModelSpec, Sequences

OPERATORS = '+-*'  # the symbols after the numbers
MOVES = ('left', 'stay', 'right')
PADDINGS = ('right', 'left')

Draw = Callable[[jax.Array, jax.Array, int], Batch]


@task_defaults(batch_size=64, steps=10000)
def parity(longest: int = 40, padding: Literal['right', 'left'] = 'right') -> SyntheticTask:
    """Whether the ones are odd in number.

    Args:
      longest: bits of a string, from 1 up to these.
      padding: where the steps stand that are not real: right after the string, left before it.

    >>> batch = parity(longest=6).sample(jax.random.key(3), 1)
    >>> bits = batch.inputs.values[0, : int(batch.inputs.seq_lengths[0])].argmax(-1)
    >>> ' '.join('01'[bit] for bit in bits), int(batch.targets[0])
    ('1 0 0 1 1', 1)
    """
    _check('longest', longest, 1)
    validation.check_choice('padding', padding, PADDINGS)
    return _task(f'parity of 1 to {longest} bits', partial(_parity, padding=padding), longest, 2, [0.5, 0.5])


@task_defaults(batch_size=64, steps=5000)
def even_pairs(longest: int = 40) -> SyntheticTask:
    """Whether the pairs 01 and 10 are odd in number, which is whether the first bit differs from the last.

    Args:
      longest: bits of a string, from 1 up to these.

    >>> batch = even_pairs(longest=6).sample(jax.random.key(3), 1)
    >>> bits = batch.inputs.values[0, : int(batch.inputs.seq_lengths[0])].argmax(-1)
    >>> ' '.join('01'[bit] for bit in bits), int(batch.targets[0])
    ('1 0 0 1 1', 0)
    """
    _check('longest', longest, 2)
    odd = (1 - 1 / longest) / 2  # one bit alone has no pair; in longer strings the last bit is as likely either
    return _task(f'even pairs in 1 to {longest} bits', _even_pairs, longest, 2, [1 - odd, odd])


@task_defaults(hidden=64, batch_size=64, steps=20000, clip_norm=1.0)
def modular_arithmetic(longest: int = 40, modulus: int = 5) -> SyntheticTask:
    """The value of numbers joined by +, - and *, modulo `modulus`; * binds more tightly.

    Numbers and operators take turns, so lengths are odd: each odd one up to `longest` is as likely. Of an even length
    that `draw` is given, one is taken away, as in the source.

    Args:
      longest: symbols of a string, from 1 up to these.
      modulus: numbers are from 0 to one below it.

    >>> batch = modular_arithmetic(longest=9).sample(jax.random.key(9), 1)
    >>> symbols = batch.inputs.values[0, : int(batch.inputs.seq_lengths[0])].argmax(-1)
    >>> ' '.join('01234+-*'[symbol] for symbol in symbols), int(batch.targets[0])
    ('2 - 1 * 0', 2)
    """
    _check('longest', longest, 1)
    _check('modulus', modulus, 2)
    most = longest - (longest + 1) % 2
    name = f'arithmetic modulo {modulus} of 1 to {most} symbols'
    draw, symbols = partial(_arithmetic, modulus=modulus), modulus + len(OPERATORS)
    return _task(name, draw, longest, symbols, _arithmetic_shares(most, modulus), step=2)


@task_defaults(hidden=64, batch_size=64, steps=20000)
def cycle_navigation(longest: int = 40, cycle: int = 5) -> SyntheticTask:
    """Where on a cycle one stands after moves to the left, to the right, or none, begun at place 0.

    Args:
      longest: moves of a string, from 1 up to these.
      cycle: places on the cycle.

    >>> batch = cycle_navigation(longest=6).sample(jax.random.key(4), 1)
    >>> symbols = batch.inputs.values[0, : int(batch.inputs.seq_lengths[0])].argmax(-1)
    >>> ' '.join(MOVES[symbol] for symbol in symbols), int(batch.targets[0])
    ('left right stay right right', 2)
    """
    _check('longest', longest, 1)
    _check('cycle', cycle, 2)
    name = f'navigation of 1 to {longest} moves on a cycle of {cycle}'
    return _task(name, partial(_navigation, cycle=cycle), longest, len(MOVES), _navigation_shares(longest, cycle))


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f'{name}={value} must be at least {least}')


def _task(name: str, draw: Draw, longest: int, symbols: int, shares: Sequence[float], step: int = 1) -> SyntheticTask:
    """Strings of every `step`-th length from 1, of so many symbols; `shares` are those of the classes."""

    return SyntheticTask(
        name=name,
        sample=synthetic.by_length(draw, longest, step=step),
        loss_fn=synthetic.classification,
        spec=ModelSpec('last', outputs=len(shares), features=symbols, memory_span=longest),
        reference_losses={'best constant': synthetic.entropy(shares)},
        draw=draw,
    )


def _symbols(key: jax.Array, lengths: jax.Array, longest: int, kinds: int) -> tuple[jax.Array, jax.Array]:
    """Symbols [N, T], each kind as likely, and which of them are real."""
    symbols = jax.random.randint(key, (lengths.shape[0], longest), 0, kinds)
    return symbols, jnp.arange(longest)[None] < lengths[:, None]


def _batch(symbols: jax.Array, real: jax.Array, lengths: jax.Array, kinds: int, targets: jax.Array) -> Batch:
    values = jax.nn.one_hot(jnp.where(real, symbols, -1), kinds)  # -1 is no symbol: zeros
    return Batch(Sequences(values, lengths), targets.astype(jnp.int32), jnp.ones(len(values), bool))


def _parity(key: jax.Array, lengths: jax.Array, longest: int, *, padding: str) -> Batch:
    bits, real = _symbols(key, lengths, longest, 2)
    batch = _batch(bits, real, lengths, 2, (bits * real).sum(1) % 2)
    if padding == 'right':
        return batch
    places = jnp.arange(longest)[None] - (longest - lengths[:, None])
    values = jnp.take_along_axis(batch.inputs.values, jnp.maximum(places, 0)[..., None], 1)
    mask = places >= 0
    return batch._replace(inputs=Sequences(jnp.where(mask[..., None], values, 0), mask=mask))


def _even_pairs(key: jax.Array, lengths: jax.Array, longest: int) -> Batch:
    bits, real = _symbols(key, lengths, longest, 2)
    pairs = (bits[:, 1:] != bits[:, :-1]) & real[:, 1:]
    return _batch(bits, real, lengths, 2, pairs.sum(1) % 2)


def _navigation(key: jax.Array, lengths: jax.Array, longest: int, *, cycle: int) -> Batch:
    moves, real = _symbols(key, lengths, longest, len(MOVES))
    return _batch(moves, real, lengths, len(MOVES), ((moves - 1) * real).sum(1) % cycle)


def _arithmetic(key: jax.Array, lengths: jax.Array, longest: int, *, modulus: int) -> Batch:
    lengths = lengths - (lengths + 1) % 2
    of_numbers, of_operators = jax.random.split(key)
    numbers, real = _symbols(of_numbers, lengths, longest, modulus)
    operators, _ = _symbols(of_operators, lengths, longest, len(OPERATORS))
    numbers_here = jnp.arange(longest)[None] % 2 == 0
    symbols = jnp.where(numbers_here, numbers, modulus + operators)
    numbers, real_numbers = numbers[:, ::2], real[:, ::2]
    before = jnp.pad(operators[:, 1::2], ((0, 0), (1, 0)))[:, : numbers.shape[1]]  # the first number follows a +
    targets = _value(numbers, before, real_numbers, modulus)
    return _batch(symbols, real, lengths, modulus + len(OPERATORS), targets)


def _value(numbers: jax.Array, before: jax.Array, real: jax.Array, modulus: int) -> jax.Array:
    """Of numbers [N, K] and of the operators before them: the sum of the terms, which are products."""
    factors = jnp.where(real, jnp.where(before == OPERATORS.index('-'), -numbers, numbers), 0) % modulus
    begins = (before != OPERATORS.index('*')) | ~real

    def join(left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Product since a term began, and whether one did."""
        (product, began), (further, anew) = left, right
        return jnp.where(anew, further, product * further % modulus), began | anew

    products, _ = jax.lax.associative_scan(join, (factors, begins), axis=1)
    ends = jnp.pad(begins[:, 1:], ((0, 0), (0, 1)), constant_values=True)
    return (products * ends).sum(1) % modulus


@lru_cache(maxsize=4)
def _arithmetic_shares(longest: int, modulus: int) -> list[float]:
    """How often each value is the answer, over all odd lengths."""
    synthetic.check_cost(longest // 2 * (5000 + modulus**3 // 20), longest=longest, modulus=modulus)
    numbers = np.arange(modulus)
    sums = (numbers[:, None] + numbers) % modulus
    products = np.zeros((modulus, modulus))  # [term, the term times a number]
    np.add.at(products, (numbers[:, None], numbers[:, None] * numbers % modulus), 1 / modulus)
    state = np.zeros((modulus, modulus))  # [sum of the terms before, the term so far]
    state[0] = 1 / modulus
    total, lengths = np.zeros(modulus), range(1, longest + 1, 2)
    for _ in lengths:
        values = np.bincount(sums.ravel(), state.ravel(), modulus)
        total += values
        # By + or - the next term begins, and each number is as likely, with either sign.
        state = 2 / 3 * np.outer(values, np.full(modulus, 1 / modulus)) + 1 / 3 * state @ products
    return (total / len(lengths)).tolist()


@lru_cache(maxsize=4)
def _navigation_shares(longest: int, cycle: int) -> list[float]:
    """How often each place is the last, over all lengths."""
    synthetic.check_cost(longest * (5000 + cycle), longest=longest, cycle=cycle)
    places, total = np.zeros(cycle), np.zeros(cycle)
    places[0] = 1
    for _ in range(longest):
        places = (np.roll(places, -1) + places + np.roll(places, 1)) / len(MOVES)
        total += places
    return (total / longest).tolist()
