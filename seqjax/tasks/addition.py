"""Addition of written numbers: the example addition_rnn of Keras, by Smerity and others, 2015.

An encoder reads a question such as 12+345, by default from its last character to the first. A decoder writes the answer
digit by digit, then the end token. Tokens are 0 for the end and for padding, 1 to 10 for the digits 0 to 9, and 11 for
the plus sign:

    question  12+345      reversed  5 4 3 + 2 1      answer  3 5 7 end

A number has 1 to 3 random digits; their count is drawn first, and leading zeros are dropped: 007 is written 7. The
set of questions is finite, and has no question twice, nor both a+b and b+a. The original has 50,000 questions, and uses
a tenth of them for validation; here half of that tenth is for validation, and half for test. The original pads reversed
questions on the left and answers on the right with spaces, and its decoder does not read its own answers.

The decoder is trained with teacher forcing. An answer is correct if every token is the most probable one after the
correct tokens before it, that is if greedy decoding finds the whole answer. The metric `wrong` is 1 - exact match.
"""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import Examples, SuccessCriterion, SyntheticTask, task_defaults
from seqjax.types import Batch, ModelSpec, Sequences

SYMBOLS = ' 0123456789+'  # character of each token, a space for token 0; answers have no plus
END = 0  # token at the end of an answer, and for padding
PLUS = SYMBOLS.index('+')
SEED = 0  # random seed of the finite set of questions, the same in all runs
MAX_DIGITS = 9  # a sum has to fit into 32 bits


@task_defaults(hidden=128, batch_size=32, steps=150_000, eval_every=1500, learning_rate=1e-3, num_seeds=1)
def addition(digits: int = 3, examples: int = 50_000, reverse: bool = True) -> SyntheticTask:
    """Returns the task of reading the text of an addition, such as 12+345, and writing the digits of the sum.

    Args:
      digits: maximal number of digits of each of the two numbers.
      examples: total number of questions; a twentieth, rounded up, is for validation, as many are for test.
      reverse: read questions from the last character to the first.

    Raises:
      ValueError: `digits` is not from 1 to 9, or `examples` is below 3 or above the number of different questions.

    >>> batch = addition(examples=100).examples().train
    >>> source, answer = batch.inputs
    >>> ''.join(SYMBOLS[i] for i in source.values[2]), ''.join(SYMBOLS[i] for i in answer[2])
    ('4+7    ', '11   ')
    >>> int(source.seq_lengths[2]), batch.mask[2].astype(int).tolist()
    (3, [1, 1, 1, 0, 0])
    """
    if not 1 <= digits <= MAX_DIGITS:
        raise ValueError(f'digits={digits} must be from 1 to {MAX_DIGITS}, because a sum has to fit into 32 bits')
    if examples < 3:
        raise ValueError(f'examples={examples} must be at least 3, one each for training, validation and test')
    most = 10**digits * (10**digits + 1) // 2
    if examples > most:
        raise ValueError(
            f'examples={examples} must be at most {most:,}, the number of different questions with digits={digits}, '
            'where a+b and b+a are the same'
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
    """Returns the number of validation questions for a total of `examples`; there are as many test questions.

    >>> held_out(50_000), held_out(45)
    (2500, 3)
    """
    return -(-examples // 20)


@lru_cache(maxsize=4)
def questions(digits: int, count: int) -> np.ndarray:
    """Returns `count` different pairs of numbers, [2, count], the same in every call; never both (a, b) and (b, a).

    Pairs have the distribution of `SyntheticTask.sample`, except that repeated ones are dropped; their order is random.

    >>> int(questions(1, 55).sum()), len({frozenset(pair) for pair in questions(1, 55).T.tolist()})
    (495, 55)
    """
    random, numbers = np.random.default_rng(SEED), 10**digits
    pairs = np.zeros((2, 0), np.int64)
    while pairs.shape[1] < count:
        new_pairs = random.integers(10 ** random.integers(1, digits + 1, (2, 2 * count)))
        pairs = np.concatenate([pairs, new_pairs], axis=1)
        _, first = np.unique(pairs.min(0) * numbers + pairs.max(0), return_index=True)
        pairs = pairs[:, np.sort(first)]
    pairs = random.permutation(pairs[:, :count], axis=1)
    pairs.flags.writeable = False
    return pairs


def _examples(digits: int, examples: int, reverse: bool) -> Examples:
    num_held_out = held_out(examples)
    pairs = questions(digits, examples)
    ends = [examples - 2 * num_held_out, examples - num_held_out]
    return Examples(*(_encode(*split.astype(np.int32), digits, reverse) for split in np.split(pairs, ends, axis=1)))


def _entropy(sums: np.ndarray) -> float:
    """Returns the loss of the best constant: the entropy in nats of the token frequencies in the answers `sums` [N]."""
    counts = np.zeros(PLUS)
    counts[END] = len(sums)
    for power in range(len(str(sums.max()))):
        with_digit = sums[(sums >= 10**power) | (power == 0)]
        counts += np.bincount(1 + with_digit // 10**power % 10, minlength=PLUS)
    return synthetic.entropy((counts / counts.sum()).tolist())


def _sample(key: jax.Array, count: int, *, digits: int, reverse: bool) -> Batch:
    keys = jax.random.split(key)
    most = 10 ** jax.random.randint(keys[0], (2, count), 1, digits + 1)
    return _encode(*jax.random.randint(keys[1], (2, count), 0, most), digits, reverse)


@partial(jax.jit, static_argnames=('digits', 'reverse'))  # for the finite set
def _encode(a: jax.Array, b: jax.Array, digits: int, reverse: bool) -> Batch:
    """Returns the batch of the questions a+b and their answers, for numbers a [N] and b [N]."""
    (first, width), (second, second_width) = _digits(a, digits), _digits(b, digits)
    steps, lengths = jnp.arange(2 * digits + 1)[None], width + 1 + second_width
    places = lengths[:, None] - 1 - steps if reverse else steps
    offsets = places - width[:, None]  # from the end of the first number, where the plus sign is
    source = jnp.where(
        offsets < 0,
        jnp.take_along_axis(first, jnp.clip(places, 0, digits - 1), 1),
        jnp.take_along_axis(second, jnp.clip(offsets - 1, 0, digits - 1), 1),
    )
    source = jnp.where(steps < lengths[:, None], jnp.where(offsets == 0, PLUS, source), END)
    answer, answer_width = _digits(a + b, digits + 1)
    targets = jnp.pad(answer, [(0, 0), (0, 1)], constant_values=END)
    mask = jnp.arange(digits + 2)[None] <= answer_width[:, None]
    return Batch((Sequences(source, lengths), targets), targets, mask)


def _digits(numbers: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """Returns tokens [N, most] of the digits of numbers [N], then END; and the digit count of each number [N]."""
    powers = 10 ** np.arange(most, dtype=np.int32)
    width = jnp.maximum((numbers[:, None] >= powers[None]).sum(1), 1)
    places = width[:, None] - 1 - jnp.arange(most)[None]
    tokens = 1 + numbers[:, None] // jnp.take(powers, jnp.maximum(places, 0)) % 10
    return jnp.where(places >= 0, tokens, END), width
