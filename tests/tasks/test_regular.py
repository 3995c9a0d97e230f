"""Regular tasks: their strings by an automaton of plain Python, their figures by enumeration, both paddings."""

import functools
import itertools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cycle_navigation, even_pairs, modular_arithmetic, parity
from seqjax import training
from seqjax.nn import models
from seqjax.tasks import regular, synthetic
from seqjax.tasks.synthetic import SuccessCriterion
from seqjax.training import optimizers
from seqjax.types import Task
from tests.helpers.drawing import compiled

DRAWS, MANY = 1000, 20_000


# --- the automata ----------------------------------------------------------------------------------


def run_parity(symbols, size):
    state = 0
    for bit in symbols:
        state ^= bit
    return state


def run_even_pairs(symbols, size):
    pairs = [tuple(pair) for pair in itertools.pairwise(symbols)]
    return (pairs.count((0, 1)) + pairs.count((1, 0))) % 2


def run_arithmetic(symbols, size):
    """By Python's own precedence."""
    return eval(''.join(str(s) if s < size else '+-*'[s - size] for s in symbols)) % size


def run_navigation(symbols, size):
    place = 0
    for move in symbols:
        place = (place + {0: -1, 1: 0, 2: 1}[move]) % size
    return place


def words(problem_of, size, length):
    """Every string of a length."""
    if problem_of is regular.modular_arithmetic:
        places = [range(size) if i % 2 == 0 else range(size, size + 3) for i in range(length)]
    else:
        places = [range(3 if problem_of is regular.cycle_navigation else 2)] * length
    return itertools.product(*places)


TASKS = {
    'parity': (regular.parity, {}, run_parity, 2, 2),
    'even_pairs': (regular.even_pairs, {}, run_even_pairs, 2, 2),
    'arithmetic': (regular.modular_arithmetic, {}, run_arithmetic, 5, 8),
    'arithmetic of 3': (regular.modular_arithmetic, {'modulus': 3}, run_arithmetic, 3, 6),
    'navigation': (regular.cycle_navigation, {}, run_navigation, 5, 3),
    'navigation of 2': (regular.cycle_navigation, {'cycle': 2}, run_navigation, 2, 3),
}
each = pytest.mark.parametrize(('make', 'options', 'automaton', 'size', 'features'), TASKS.values(), ids=TASKS)


@functools.cache
def drawn(make, count=DRAWS, **options):
    return jax.device_get(compiled(make, **options).sample(jax.random.key(0), count))


def strings(batch):
    """Lists of symbols; what stands after the end is zeros, and every real step is one symbol."""
    values, lengths = batch.inputs.values, batch.inputs.seq_lengths
    assert batch.inputs.mask is None and batch.inputs.resets is None
    np.testing.assert_array_equal(values.sum(-1), np.arange(values.shape[1]) < lengths[:, None])
    assert set(np.unique(values)) <= {0.0, 1.0}
    return [row[:length].argmax(-1).tolist() for row, length in zip(values, lengths, strict=True)]


def close(found, share, count, sigmas=4.5):
    """A share of `count` draws is that of a law, to what the binomial law lets it stray."""
    return abs(found - share) <= sigmas * math.sqrt(share * (1 - share) / count) + 1e-9


# --- the law ---------------------------------------------------------------------------------------


@each
def test_answers_are_those_of_an_automaton(make, options, automaton, size, features):
    problem, batch = compiled(make, **options), drawn(make, **options)
    assert batch.inputs.values.shape == (DRAWS, 40, features) and problem.spec.outputs == size
    assert batch.inputs.values.dtype == np.float32 and batch.targets.dtype == np.int32
    assert batch.mask.shape == (DRAWS,) and batch.mask.all() and batch.mask.dtype == bool
    np.testing.assert_array_equal(batch.targets, [automaton(word, size) for word in strings(batch)])
    assert set(batch.targets) == set(range(size))


@each
@pytest.mark.parametrize('longest', [7, 8])
def test_every_length_is_as_likely_and_so_is_every_symbol(make, options, automaton, size, features, longest):
    """Both ends are drawn; of arithmetic the odd lengths alone, numbers and operators by turns."""
    batch = drawn(make, MANY, **options, longest=longest)
    step = 2 if make is regular.modular_arithmetic else 1
    lengths = range(1, longest + 1, step)
    found = Counter(batch.inputs.seq_lengths.tolist())
    assert set(found) == set(lengths)
    assert all(close(found[length] / MANY, 1 / len(lengths), MANY) for length in lengths)
    lists = strings(batch)
    for place in range(max(lengths)):
        symbols = Counter(word[place] for word in lists if len(word) > place)
        kinds = {word[place] for word in words(make, size, place + 1)} if place < 3 else set(symbols)
        total = symbols.total()
        assert set(symbols) == kinds
        assert all(close(n / total, 1 / len(kinds), total) for n in symbols.values())


@each
def test_the_best_constant_by_enumeration(make, options, automaton, size, features):
    """Every string of every length up to 5, or 7; and the classes of a draw have the shares that it is made of."""
    longest = 5 if size == 5 else 7
    problem, shares = compiled(make, **options, longest=longest), np.zeros(size)
    lengths = range(1, longest + 1, 2 if make is regular.modular_arithmetic else 1)
    for length in lengths:
        answers = Counter(automaton(word, size) for word in words(make, size, length))
        shares += [answers[k] / answers.total() / len(lengths) for k in range(size)]
    entropy = -(shares * np.log(shares)).sum()
    assert problem.reference_losses == {'best constant': pytest.approx(entropy, rel=1e-12)}
    assert type(problem.reference_losses['best constant']) is float
    count = MANY
    batch = drawn(make, count, **options, longest=longest)
    found = np.bincount(batch.targets, minlength=size) / count
    assert all(close(*pair, count) for pair in zip(found, shares, strict=True))
    constant = jnp.broadcast_to(jnp.log(jnp.asarray(shares, jnp.float32)), (count, size))
    spread = np.log(shares).std() + 1e-3
    loss = float(problem.loss_fn(constant, batch)['loss'].compute())
    assert abs(loss - entropy) <= 4.5 * spread / math.sqrt(count)


@each
def test_the_automaton_is_never_wrong_and_a_constant_is(make, options, automaton, size, features):
    problem, batch = compiled(make, **options), drawn(make, **options)
    answers = np.array([automaton(word, size) for word in strings(batch)])
    found = problem.loss_fn(jnp.asarray(30 * np.eye(size)[answers], jnp.float32), batch)
    assert found[synthetic.WRONG].compute() == 0 and found['loss'].compute() < 1e-6
    assert problem.loss_fn(jnp.zeros((DRAWS, size)), batch)[synthetic.WRONG].compute() > 0.3
    assert problem.success == SuccessCriterion() and problem.spec.output == 'last' and not problem.spec.causal


@each
def test_draws_of_given_lengths(make, options, automaton, size, features):
    """Of those lengths, under jit, padded to what is asked for; an even length of arithmetic loses one."""
    problem, lengths = compiled(make, **options, longest=8), jnp.arange(1, 61)
    batch = jax.device_get(problem.draw(jax.random.key(1), lengths, 64))
    assert batch.inputs.values.shape == (60, 64, features)
    want = (lengths + 1) // 2 * 2 - 1 if make is regular.modular_arithmetic else lengths
    np.testing.assert_array_equal(batch.inputs.seq_lengths, want)
    np.testing.assert_array_equal(batch.targets, [automaton(word, size) for word in strings(batch)])
    many = jax.device_get(problem.draw(jax.random.key(2), jnp.full(3000, 3), 3))
    possible = Counter(automaton(word, size) for word in words(make, size, 3))
    for k in range(size):
        assert close((many.targets == k).mean(), possible[k] / possible.total(), 3000)


@each
def test_a_key_is_a_draw(make, options, automaton, size, features):
    first, again, other = (compiled(make, **options).sample(jax.random.key(seed), DRAWS) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first.inputs.values, other.inputs.values)
    assert not np.array_equal(first.inputs.seq_lengths, other.inputs.seq_lengths)


@pytest.mark.parametrize(
    ('make', 'options', 'words'),
    [
        (regular.parity, {'longest': 0}, 'longest=0'),
        (regular.parity, {'padding': 'middle'}, "padding='middle'"),
        (regular.even_pairs, {'longest': 1}, 'longest=1'),
        (regular.modular_arithmetic, {'longest': 0}, 'longest=0'),
        (regular.modular_arithmetic, {'modulus': 1}, 'modulus=1'),
        (regular.cycle_navigation, {'longest': 0}, 'longest=0'),
        (regular.cycle_navigation, {'cycle': 1}, 'cycle=1'),
    ],
)
def test_what_cannot_be_is_refused(make, options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)


@pytest.mark.parametrize('experiment', [parity, even_pairs, modular_arithmetic, cycle_navigation])
def test_an_experiment_takes_its_defaults(experiment):
    """Of the name of its file, with all flags that it has accepted as they are."""
    task_experiment = experiment.EXPERIMENT
    assert experiment.__name__ == f'experiments.{task_experiment.name}'
    assert task_experiment.check({}).train.batch_size == 64 and 'longest' in task_experiment.FLAGS


# --- padding ---------------------------------------------------------------------------------------


def test_padding_on_the_left_moves_the_strings_alone():
    right, left = (drawn(regular.parity, longest=9, padding=padding) for padding in ('right', 'left'))
    np.testing.assert_array_equal(left.targets, right.targets)
    assert left.inputs.seq_lengths is None
    np.testing.assert_array_equal(left.inputs.mask, np.arange(9) >= 9 - right.inputs.seq_lengths[:, None])
    np.testing.assert_array_equal(left.inputs.values.sum(-1), left.inputs.mask)
    for row, mask, word in zip(left.inputs.values, left.inputs.mask, strings(right), strict=True):
        assert row[mask].argmax(-1).tolist() == word


def test_both_paddings_are_learned_alike():
    """The same bits of 1 to 50: losses of 20 steps by an LSTM agree, while they change."""
    curves = []
    for padding in ('right', 'left'):
        problem = regular.parity(longest=50, padding=padding)
        model = models.sequence_model('last', problem.spec.outputs, features=8)
        task = Task(problem.loss_fn, lambda data, key, step, problem=problem: problem.sample(key, 16))
        tx = optimizers.adam(1e-2, 1e-7)
        state = training.init_state(model, task, tx, jax.random.key(3))
        ((_, metrics, _),) = training.train(model, task, tx, state, steps=20, steps_per_call=20)
        curves.append(metrics['loss'].total / metrics['loss'].count)
    assert curves[0].shape == (20,) and len(set(curves[0].tolist())) == 20
    np.testing.assert_allclose(*curves, atol=1e-4, rtol=0)
