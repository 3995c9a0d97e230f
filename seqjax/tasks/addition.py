"""Addition of written numbers: the example addition_rnn of Keras, by Smerity and others, 2015.

An encoder reads a question, by default from its last character, and a decoder tells the answer digit by digit and then
the end. Tokens are 0 for the end and for padding, 1 to 10 for the digits 0 to 9, and 11 for the plus sign:

    question  12+345      reversed  5 4 3 + 2 1      answer  3 5 7 end

A number is 1 to 3 random digits, the count drawn first, without the zeros in front: 007 is written 7. What is learned
from is a finite set in which no question comes twice, not even the other way round, as b+a for a+b. The source has
50,000 of them, and keeps a tenth of these for validation; here half of that tenth is for validation, and half for test.
The source pads with spaces in front of a reversed question and behind an answer, and
its decoder does not read what it has answered.

A decoder is trained with the right answer so far as its input. A question is then answered rightly where every token is
the most probable one behind the right tokens before it, which is exactly where greedy decoding finds the whole answer:
`wrong` is 1 - its exact match.
"""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import Examples, SuccessCriterion, SyntheticTask, task_defaults
from seqjax.types import Batch, ModelSpec, Sequences

SYMBOLS = ' 0123456789+'  # of the tokens; the answers have no plus
END = 0  # of an answer; padding too
PLUS = SYMBOLS.index('+')
SEED = 0  # of the questions in the finite set
MOST = 9  # digits of a number: a sum has to fit into 32 bits


@task_defaults(hidden=128, batch_size=32, steps=150_000, eval_every=1500, learning_rate=1e-3, num_seeds=1)
def addition(digits: int = 3, examples: int = 50_000, reverse: bool = True) -> SyntheticTask:
    """The sum of two written numbers.

    Args:
      digits: most digits of a number.
      examples: questions in all; a twentieth of them, rounded up, is for validation, and as many are for test.
      reverse: questions are read from the last character to the first.

    >>> batch = addition(examples=100).examples().train
    >>> source, answer = batch.inputs
    >>> ''.join(SYMBOLS[i] for i in source.values[2]), ''.join(SYMBOLS[i] for i in answer[2])
    ('4+7    ', '11   ')
    >>> int(source.seq_lengths[2]), batch.mask[2].astype(int).tolist()
    (3, [1, 1, 1, 0, 0])
    """
    if not 1 <= digits <= MOST:
        raise ValueError(f'digits={digits} must be from 1 to {MOST}: a sum has to fit into 32 bits')
    if examples < 3:
        raise ValueError(f'examples={examples} must be at least 3: one to learn from, for validation, and for test')
    most = 10**digits * (10**digits + 1) // 2
    if examples > most:
        raise ValueError(
            f'examples={examples} must be at most {most:,}, the questions that numbers of up to digits={digits} make, '
            'a+b and b+a being one'
        )
    synthetic.check_cost(100 * examples, examples=examples)
    return SyntheticTask(
        name=f'addition of numbers of up to {digits} digits',
        sample=partial(_sample, digits=digits, reverse=reverse),
        loss_fn=synthetic.classification,
        spec=ModelSpec('seq2seq', outputs=PLUS, vocabulary=len(SYMBOLS), memory_span=3 * digits + 3),
        reference_losses={
            'best constant': _entropy(questions(digits, examples)[:, : examples - 2 * held_out(examples)].sum(0))
        },
        success=SuccessCriterion(at_most=0.01),
        examples=partial(_examples, digits, examples, reverse),
    )


def held_out(examples: int) -> int:
    """Questions for validation, and as many for test.

    >>> held_out(50_000), held_out(45)
    (2500, 3)
    """
    return -(-examples // 20)


@lru_cache(maxsize=4)
def questions(digits: int, count: int) -> np.ndarray:
    """Pairs of numbers [2, count], always the same, no two of them alike or alike the other way round.

    They are drawn as `sample` draws them, until there are so many, and then shuffled.

    >>> int(questions(1, 55).sum()), len({frozenset(pair) for pair in questions(1, 55).T.tolist()})
    (495, 55)
    """
    random, numbers = np.random.default_rng(SEED), 10**digits
    found = np.zeros((2, 0), np.int64)
    while found.shape[1] < count:
        drawn = random.integers(10 ** random.integers(1, digits + 1, (2, 2 * count)))
        found = np.concatenate([found, drawn], axis=1)
        _, first = np.unique(found.min(0) * numbers + found.max(0), return_index=True)
        found = found[:, np.sort(first)]
    found = random.permutation(found[:, :count], axis=1)
    found.flags.writeable = False
    return found


def _examples(digits: int, examples: int, reverse: bool) -> Examples:
    held = held_out(examples)
    drawn = questions(digits, examples)
    ends = [examples - 2 * held, examples - held]
    return Examples(*(_written(*part.astype(np.int32), digits, reverse) for part in np.split(drawn, ends, axis=1)))


def _entropy(sums: np.ndarray) -> float:
    """Of the tokens of the answers, in nats: the loss of the best constant."""
    counts = np.zeros(PLUS)
    counts[END] = len(sums)
    for power in range(len(str(sums.max()))):
        written = sums[(sums >= 10**power) | (power == 0)]
        counts += np.bincount(1 + written // 10**power % 10, minlength=PLUS)
    return synthetic.entropy((counts / counts.sum()).tolist())


def _sample(key: jax.Array, count: int, *, digits: int, reverse: bool) -> Batch:
    keys = jax.random.split(key)
    most = 10 ** jax.random.randint(keys[0], (2, count), 1, digits + 1)
    return _written(*jax.random.randint(keys[1], (2, count), 0, most), digits, reverse)


@partial(jax.jit, static_argnames=('digits', 'reverse'))  # for the finite set, on the host
def _written(one: jax.Array, other: jax.Array, digits: int, reverse: bool) -> Batch:
    """Questions and answers of the numbers [N] and [N]."""
    (first, width), (second, width_of_second) = _digits(one, digits), _digits(other, digits)
    steps, lengths = jnp.arange(2 * digits + 1)[None], width + 1 + width_of_second
    places = lengths[:, None] - 1 - steps if reverse else steps
    behind = places - width[:, None]  # of the first number; the plus sign is at 0
    source = jnp.where(
        behind < 0,
        jnp.take_along_axis(first, jnp.clip(places, 0, digits - 1), 1),
        jnp.take_along_axis(second, jnp.clip(behind - 1, 0, digits - 1), 1),
    )
    source = jnp.where(steps < lengths[:, None], jnp.where(behind == 0, PLUS, source), END)
    answer, size = _digits(one + other, digits + 1)
    targets = jnp.pad(answer, [(0, 0), (0, 1)], constant_values=END)
    mask = jnp.arange(digits + 2)[None] <= size[:, None]
    return Batch((Sequences(source, lengths), targets), targets, mask)


def _digits(numbers: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """Tokens [N, most] of the digits of numbers [N], from the left, and how many there are [N]."""
    powers = 10 ** np.arange(most, dtype=np.int32)
    width = jnp.maximum((numbers[:, None] >= powers[None]).sum(1), 1)
    places = width[:, None] - 1 - jnp.arange(most)[None]
    tokens = 1 + numbers[:, None] // jnp.take(powers, jnp.maximum(places, 0)) % 10
    return jnp.where(places >= 0, tokens, END), width
