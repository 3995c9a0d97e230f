"""Regular tasks: functions of strings that a finite automaton computes, after Delétang et al. 2022.

The paper, "Neural Networks and the Chomsky Hierarchy", trains on strings of 1 to 40 symbols, with uniform lengths, and
tests the generalization to longer ones, which `SyntheticTask.draw` samples. The target is one class per string.

    parity               1 0 1 0 1 0 0          ->  1    the number of ones is odd
    even pairs           0 0 1 1 1 0            ->  0    one 01 and one 10, which is even
    modular arithmetic   0 * 1 + 4 * 3 - 2      ->  0    modulo 5; * binds more tightly than + and -
    cycle navigation     right left stay left left  ->  3    from position 0 of a cycle of 5

There are few short strings (2 of one bit), so short test strings also occur in training, as in the paper.
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

OPERATORS = '+-*'  # their classes follow the classes of the numbers
MOVES = ('left', 'stay', 'right')  # move i changes the position by i - 1
PADDINGS = ('right', 'left')

Draw = Callable[[jax.Array, jax.Array, int], Batch]


@task_defaults(batch_size=64, steps=10000)
def parity(longest: int = 40, padding: Literal['right', 'left'] = 'right') -> SyntheticTask:
    """Returns the task of computing the parity of a string of random bits: 1 if the number of ones is odd, else 0.

    Args:
      longest: maximal length of a string in bits; the minimal length is 1.
      padding: side of the padding, right (after the string) or left (before it).

    Raises:
      ValueError: `longest` is below 1, or `padding` is unknown.

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
    """Returns the task of deciding if the number of pairs 01 and 10 is odd: 1 if the first and last bit differ, else 0.

    Args:
      longest: maximal length of a string in bits, at least 2; the minimal length is 1.

    Raises:
      ValueError: `longest` is below 2.

    >>> batch = even_pairs(longest=6).sample(jax.random.key(3), 1)
    >>> bits = batch.inputs.values[0, : int(batch.inputs.seq_lengths[0])].argmax(-1)
    >>> ' '.join('01'[bit] for bit in bits), int(batch.targets[0])
    ('1 0 0 1 1', 0)
    """
    _check('longest', longest, 2)
    odd = (1 - 1 / longest) / 2  # a single bit has no pair; in longer strings the last bit is uniform
    return _task(f'even pairs in 1 to {longest} bits', _even_pairs, longest, 2, [1 - odd, odd])


@task_defaults(hidden=64, batch_size=64, steps=20000, clip_norm=1.0)
def modular_arithmetic(longest: int = 40, modulus: int = 5) -> SyntheticTask:
    """Returns the task of evaluating random expressions of numbers, +, - and * modulo `modulus`; * binds more tightly.

    Numbers and operators alternate, so lengths are odd; they are uniform from 1 to `longest`. `SyntheticTask.draw`
    reduces even lengths by one, as in the paper.

    Args:
      longest: maximal length of an expression in symbols; the minimal length is 1.
      modulus: modulus of the arithmetic; numbers are from 0 to modulus - 1.

    Raises:
      ValueError: `longest` is below 1, `modulus` is below 2, or they are too large.

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
    """Returns the task of computing the last position on a cycle after random moves (left, stay, right) from 0.

    Args:
      longest: maximal number of moves in a sequence; the minimal number is 1.
      cycle: number of positions on the cycle.

    Raises:
      ValueError: `longest` is below 1, `cycle` is below 2, or they are too large.

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
    """Returns the task of classifying strings, with lengths 1, 1 + step, ... up to `longest`.

    Args:
      name: name of the task.
      draw: see `SyntheticTask.draw`.
      longest: maximal length of a string.
      symbols: number of different symbols.
      shares: frequency of each target class.
      step: difference between two lengths.
    """

    return SyntheticTask(
        name=name,
        sample=synthetic.sampler_by_length(draw, longest, step=step),
        loss_fn=synthetic.classification,
        spec=ModelSpec('last', outputs=len(shares), features=symbols, memory_span=longest),
        reference_losses={'best constant': synthetic.entropy(shares)},
        draw=draw,
    )


def _symbols(key: jax.Array, lengths: jax.Array, longest: int, kinds: int) -> tuple[jax.Array, jax.Array]:
    """Returns random symbols from 0 to kinds - 1, and the mask of valid steps, both [N, longest]."""
    symbols = jax.random.randint(key, (lengths.shape[0], longest), 0, kinds)
    return symbols, jnp.arange(longest)[None] < lengths[:, None]


def _batch(symbols: jax.Array, valid: jax.Array, lengths: jax.Array, kinds: int, targets: jax.Array) -> Batch:
    values = jax.nn.one_hot(jnp.where(valid, symbols, -1), kinds)  # -1 becomes all zeros
    return Batch(Sequences(values, lengths), targets.astype(jnp.int32), jnp.ones(len(values), bool))


def _parity(key: jax.Array, lengths: jax.Array, longest: int, *, padding: str) -> Batch:
    bits, valid = _symbols(key, lengths, longest, 2)
    batch = _batch(bits, valid, lengths, 2, (bits * valid).sum(1) % 2)
    if padding == 'right':
        return batch
    places = jnp.arange(longest)[None] - (longest - lengths[:, None])
    values = jnp.take_along_axis(batch.inputs.values, jnp.maximum(places, 0)[..., None], 1)
    mask = places >= 0
    return batch._replace(inputs=Sequences(jnp.where(mask[..., None], values, 0), mask=mask))


def _even_pairs(key: jax.Array, lengths: jax.Array, longest: int) -> Batch:
    bits, valid = _symbols(key, lengths, longest, 2)
    pairs = (bits[:, 1:] != bits[:, :-1]) & valid[:, 1:]
    return _batch(bits, valid, lengths, 2, pairs.sum(1) % 2)


def _navigation(key: jax.Array, lengths: jax.Array, longest: int, *, cycle: int) -> Batch:
    moves, valid = _symbols(key, lengths, longest, len(MOVES))
    return _batch(moves, valid, lengths, len(MOVES), ((moves - 1) * valid).sum(1) % cycle)


def _arithmetic(key: jax.Array, lengths: jax.Array, longest: int, *, modulus: int) -> Batch:
    lengths = lengths - (lengths + 1) % 2
    number_key, operator_key = jax.random.split(key)
    numbers, valid = _symbols(number_key, lengths, longest, modulus)
    operators, _ = _symbols(operator_key, lengths, longest, len(OPERATORS))
    is_number = jnp.arange(longest)[None] % 2 == 0
    symbols = jnp.where(is_number, numbers, modulus + operators)
    numbers, valid_numbers = numbers[:, ::2], valid[:, ::2]
    before = jnp.pad(operators[:, 1::2], ((0, 0), (1, 0)))[:, : numbers.shape[1]]  # the first number follows a +
    targets = _value(numbers, before, valid_numbers, modulus)
    return _batch(symbols, valid, lengths, modulus + len(OPERATORS), targets)


def _value(numbers: jax.Array, before: jax.Array, valid: jax.Array, modulus: int) -> jax.Array:
    """Returns the values [N], modulo `modulus`, of expressions of K numbers: sums of products.

    Args:
      numbers: [N, K].
      before: [N, K], index in OPERATORS of the operator before each number; + before the first.
      valid: [N, K] bool, False at padding.
      modulus: modulus of the arithmetic.
    """
    factors = jnp.where(valid, jnp.where(before == OPERATORS.index('-'), -numbers, numbers), 0) % modulus
    starts = (before != OPERATORS.index('*')) | ~valid

    def join(left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Joins two adjacent parts of an expression, for a scan over its factors.

        A part is (product since the start of its last term, True if a term starts in the part).
        """
        (left_product, left_starts), (right_product, right_starts) = left, right
        product = jnp.where(right_starts, right_product, left_product * right_product % modulus)
        return product, left_starts | right_starts

    products, _ = jax.lax.associative_scan(join, (factors, starts), axis=1)
    ends = jnp.pad(starts[:, 1:], ((0, 0), (0, 1)), constant_values=True)
    return (products * ends).sum(1) % modulus


@lru_cache(maxsize=4)
def _arithmetic_shares(longest: int, modulus: int) -> list[float]:
    """Returns the probability of each answer, 0 to modulus - 1, with uniform odd lengths up to `longest`."""
    synthetic.check_cost(longest // 2 * (5000 + modulus**3 // 20), longest=longest, modulus=modulus)
    numbers = np.arange(modulus)
    sums = (numbers[:, None] + numbers) % modulus
    products = np.zeros((modulus, modulus))  # probability of [term, the term times a random number]
    np.add.at(products, (numbers[:, None], numbers[:, None] * numbers % modulus), 1 / modulus)
    state = np.zeros((modulus, modulus))  # probability of [sum of the terms before, the term so far]
    state[0] = 1 / modulus
    total, lengths = np.zeros(modulus), range(1, longest + 1, 2)
    for _ in lengths:
        values = np.bincount(sums.ravel(), state.ravel(), modulus)
        total += values
        # + or - starts the next term, and numbers are uniform with either sign.
        state = 2 / 3 * np.outer(values, np.full(modulus, 1 / modulus)) + 1 / 3 * state @ products
    return (total / len(lengths)).tolist()


@lru_cache(maxsize=4)
def _navigation_shares(longest: int, cycle: int) -> list[float]:
    """Returns the probability that each position is the last, with uniform lengths up to `longest`."""
    synthetic.check_cost(longest * (5000 + cycle), longest=longest, cycle=cycle)
    places, total = np.zeros(cycle), np.zeros(cycle)
    places[0] = 1
    for _ in range(longest):
        places = (np.roll(places, -1) + places + np.roll(places, 1)) / len(MOVES)
        total += places
    return (total / longest).tolist()
