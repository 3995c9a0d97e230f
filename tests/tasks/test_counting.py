"""Counting: strings by a stack of plain Python, floors by every string and by the automaton that knows the law."""

import functools
import itertools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import anbn, dyck
from seqjax.tasks import counting, synthetic
from seqjax.tasks.synthetic import SuccessCriterion
from tests.helpers.drawing import compiled

DRAWS, MANY = 3000, 30_000


# --- the languages, slowly -------------------------------------------------------------------------


def all_anbn(longest):
    """Every string and how likely it is."""
    return {(0,) * n + (1,) * n: 1 / (longest // 2) for n in range(1, longest // 2 + 1)}


def balanced(word, kinds, deepest):
    stack = []
    for symbol in word:
        if symbol < kinds:
            stack.append(symbol)
        elif not stack or stack.pop() != symbol - kinds:
            return False
        if len(stack) > deepest:
            return False
    return not stack


def all_dyck(longest, kinds, deepest):
    law, lengths = {}, range(2, longest + 1, 2)
    for length in lengths:
        found = [w for w in itertools.product(range(2 * kinds), repeat=length) if balanced(w, kinds, deepest)]
        law |= {word: 1 / len(found) / len(lengths) for word in found}
    return law


def targets_of(word, end):
    return [*word[1:], end]


def predictive(law, end):
    """prefix -> how likely each symbol follows it, the end included."""
    table = {}
    for word, p in law.items():
        for t, symbol in enumerate(targets_of(word, end), 1):
            table.setdefault(word[:t], np.zeros(end + 1))[symbol] += p
    return {prefix: row / row.sum() for prefix, row in table.items()}


def walk_tables(longest, deepest):
    """Of brackets of one kind, by chances alone: [t, depth] -> (open, close, end) after t symbols, and how likely
    such a prefix is. Backwards from each length, with fractions of the chance of that length."""
    lengths, joint = range(2, longest + 1, 2), np.zeros((longest + 1, deepest + 1, 3))
    for length in lengths:
        ways = np.zeros((length + 1, deepest + 1))  # ways to the end from [t, depth]
        ways[length, 0] = 1
        for t in reversed(range(length)):
            ways[t, :-1] += ways[t + 1, 1:]
            ways[t, 1:] += ways[t + 1, :-1]
        here = np.zeros((length + 1, deepest + 1))
        here[0, 0] = 1 / len(lengths)
        for t in range(length):
            opening = np.append(ways[t + 1, 1:], 0) / np.maximum(ways[t], 1)
            opened, closed = here[t] * opening, here[t] * (1 - opening) * (ways[t] > 0)
            joint[t, :, 0] += opened
            joint[t, :, 1] += closed
            here[t + 1, 1:] += opened[:-1]
            here[t + 1, :-1] += closed[1:]
        joint[length, 0, 2] += here[length, 0]
    return joint


def ideal(batch, longest, kinds, deepest):
    """Probabilities of whoever knows the law of brackets, after each real step; by a stack."""
    joint = walk_tables(longest, deepest)
    rows = np.full((*batch.targets.shape, 2 * kinds + 1), 1 / (2 * kinds + 1))
    for row, word in zip(rows, strings(batch), strict=True):
        stack = []
        for t, symbol in enumerate(word):
            stack.append(symbol) if symbol < kinds else stack.pop()
            p = joint[t + 1, len(stack)]
            row[t] = 0
            row[t, :kinds], row[t, -1] = p[0] / p.sum() / kinds, p[2] / p.sum()
            if stack:
                row[t, kinds + stack[-1]] = p[1] / p.sum()
    return rows


@functools.cache
def drawn(make, count=DRAWS, **options):
    return jax.device_get(compiled(make, **options).sample(jax.random.key(0), count))


def first(batch, count):
    return jax.tree.map(lambda x: x[:count], batch)


def score_each(problem):
    """The score of every row by itself."""
    return jax.jit(jax.vmap(lambda logits, row: problem.loss_fn(logits[None], jax.tree.map(lambda x: x[None], row))))


def strings(batch):
    """Symbols of each; what stands after the end is zeros, and the mask is that of the real steps."""
    values, lengths = batch.inputs.values, batch.inputs.seq_lengths
    real = np.arange(values.shape[1]) < lengths[:, None]
    np.testing.assert_array_equal(values.sum(-1), real)
    np.testing.assert_array_equal(batch.mask, real)
    assert set(np.unique(values)) <= {0.0, 1.0} and batch.inputs.mask is None and batch.inputs.resets is None
    return [tuple(row[:n].argmax(-1).tolist()) for row, n in zip(values, lengths, strict=True)]


def log(probabilities):
    return jnp.log(jnp.maximum(jnp.asarray(probabilities, jnp.float32), 1e-30))


def close(found, share, count, sigmas=4.5):
    """A share of `count` draws is that of a law, to what the binomial law lets it stray."""
    return abs(found - share) <= sigmas * math.sqrt(share * (1 - share) / count) + 1e-9


def mean_and_error(losses, lengths):
    """Nats for each symbol, and the standard error of that ratio."""
    ratio = losses.sum() / lengths.sum()
    return ratio, (losses - ratio * lengths).std() / lengths.mean() / math.sqrt(len(losses))


TASKS = {
    'a^n b^n': (counting.anbn, {}, 2),
    'one kind': (counting.dyck, {'kinds': 1}, 2),
    'two kinds': (counting.dyck, {}, 4),
    'three kinds, flat': (counting.dyck, {'kinds': 3, 'deepest': 2}, 6),
}
each = pytest.mark.parametrize(('make', 'options', 'end'), TASKS.values(), ids=TASKS)
SMALL = {
    'a^n b^n': (counting.anbn, {'longest': 10}, 2, all_anbn(10)),
    'one kind': (counting.dyck, {'kinds': 1, 'longest': 10}, 2, all_dyck(10, 1, 10)),
    'one kind, flat': (counting.dyck, {'kinds': 1, 'longest': 10, 'deepest': 2}, 2, all_dyck(10, 1, 2)),
    'two kinds': (counting.dyck, {'longest': 6}, 4, all_dyck(6, 2, 10)),
    'two kinds, flat': (counting.dyck, {'longest': 6, 'deepest': 1}, 4, all_dyck(6, 2, 1)),
}
small = pytest.mark.parametrize(('make', 'options', 'end', 'law'), SMALL.values(), ids=SMALL)


# --- the law ---------------------------------------------------------------------------------------


@each
def test_strings_are_of_the_language_and_targets_follow(make, options, end):
    problem, batch = compiled(make, **options), drawn(make, **options)
    assert batch.inputs.values.shape == (DRAWS, 40, end) and problem.spec.outputs == end + 1
    assert batch.inputs.values.dtype == np.float32 and batch.targets.dtype == np.int32 and batch.mask.dtype == bool
    for word, targets, mask in zip(strings(batch), batch.targets, batch.mask, strict=True):
        if make is counting.anbn:
            assert word in all_anbn(40)
        else:
            assert balanced(word, end // 2, options.get('deepest', 10))
        assert targets[mask].tolist() == targets_of(word, end) and not targets[~mask].any()
    if make is counting.dyck:
        deepest = max(max(itertools.accumulate(1 if s < end // 2 else -1 for s in w)) for w in strings(batch))
        assert deepest == options.get('deepest', 10)


@each
def test_every_length_is_as_likely(make, options, end):
    found = Counter(drawn(make, **options).inputs.seq_lengths.tolist())
    assert set(found) == set(range(2, 41, 2))
    assert all(close(n / DRAWS, 1 / 20, DRAWS) for n in found.values())


@small
def test_every_string_is_as_likely_as_it_should_be(make, options, end, law):
    found = Counter(strings(drawn(make, MANY, **options)))
    assert set(found) == set(law)
    assert all(close(found[word] / MANY, p, MANY) for word, p in law.items())


@each
def test_draws_of_given_lengths(make, options, end):
    """Of those lengths, under jit, padded to what is asked for; an odd length loses one."""
    problem, lengths = compiled(make, **options, longest=4), jnp.arange(2, 62)
    batch = jax.device_get(problem.draw(jax.random.key(1), lengths, 64))
    np.testing.assert_array_equal(batch.inputs.seq_lengths, lengths // 2 * 2)
    assert batch.inputs.values.shape == (60, 64, end)
    for word, targets, mask in zip(strings(batch), batch.targets, batch.mask, strict=True):
        assert word in all_anbn(64) if make is counting.anbn else balanced(word, end // 2, options.get('deepest', 10))
        assert targets[mask].tolist() == targets_of(word, end)


@small
def test_a_given_length_has_its_strings(make, options, end, law):
    count, length = 10_000, options['longest'] - 2
    batch = jax.device_get(
        compiled(make, **options).draw(jax.random.key(4), jnp.full(count, length), options['longest'])
    )
    share = sum(p for word, p in law.items() if len(word) == length)
    law = {word: p / share for word, p in law.items() if len(word) == length}
    found = Counter(strings(batch))
    assert set(found) == set(law)
    assert all(close(found[word] / count, p, count) for word, p in law.items())


@each
def test_a_key_is_a_draw(make, options, end):
    one, again, other = (compiled(make, **options).sample(jax.random.key(seed), DRAWS) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.array_equal(one.inputs.values, other.inputs.values)


# --- the figures -----------------------------------------------------------------------------------


@small
def test_figures_by_every_string(make, options, end, law):
    """What follows each prefix, weighed by how likely that is; no law but the list of the strings."""
    problem, table = compiled(make, **options), predictive(law, end)
    nats, length, counts = 0.0, 0.0, np.zeros(end + 1)
    for word, p in law.items():
        for t, symbol in enumerate(targets_of(word, end), 1):
            nats -= p * math.log(table[word[:t]][symbol])
            counts[symbol] += p
        length += p * len(word)
    shares = counts / counts.sum()
    constant = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    assert problem.reference_losses == pytest.approx(
        {'best constant': constant, 'entropy floor': nats / length}, rel=1e-9
    )
    assert problem.success == SuccessCriterion(0.01 * problem.reference_losses['entropy floor'], 'excess')
    assert problem.spec.output == 'per_step' and problem.spec.causal


@small
def test_who_knows_the_law_is_at_the_floor_and_never_wrong(make, options, end, law):
    """Every string at once, through the score; its totals are weighed by the law."""
    problem, table = compiled(make, **options), predictive(law, end)
    batch = by_word(make, options, law)
    logits = np.zeros((*batch.targets.shape, end + 1))
    for row, word in zip(logits, law, strict=True):
        row[: len(word)] = [table[word[:t]] for t in range(1, len(word) + 1)]
    found = score_each(problem)(log(logits), batch)
    weights = np.array([*law.values()])
    loss = (weights * found['loss'].total).sum() / (weights * found['loss'].count).sum()
    assert loss == pytest.approx(problem.reference_losses['entropy floor'], rel=1e-5)
    assert not found[synthetic.WRONG].total.any() and found[synthetic.WRONG].count.all()
    assert np.abs(found['excess'].total).max() < 1e-4  # on each string, whatever chance made of it


def by_word(make, options, law):
    """A batch of every string of a law, found among draws."""
    batch = drawn(make, MANY, **options)
    place = {word: i for i, word in enumerate(strings(batch))}
    rows = np.array([place[word] for word in law])
    return jax.tree.map(lambda x: jnp.asarray(x[rows]), batch)


@pytest.mark.parametrize(('make', 'options', 'end'), [*TASKS.values()][1:], ids=[*TASKS][1:])
def test_long_brackets_of_the_ideal_and_of_a_constant(make, options, end):
    """Monte Carlo: strings of up to 40 symbols, through the score."""
    problem, batch = compiled(make, **options), drawn(make, **options)
    probabilities = ideal(batch, 40, end // 2, options.get('deepest', 10))
    assert np.allclose(probabilities.sum(-1), 1)
    found = problem.loss_fn(log(probabilities), batch)
    lengths = batch.inputs.seq_lengths.astype(float)
    chosen = np.take_along_axis(probabilities, batch.targets[..., None], -1)[..., 0]
    mean, error = mean_and_error(-(np.log(chosen) * batch.mask).sum(1), lengths)
    assert float(found['loss'].compute()) == pytest.approx(mean, rel=1e-5)
    assert (
        abs(mean - problem.reference_losses['entropy floor']) < 4.5 * error < 0.02
        and found[synthetic.WRONG].compute() == 0
    )
    assert abs(found['excess'].compute()) < 1e-5
    shares = np.bincount(batch.targets[batch.mask], minlength=end + 1) / batch.mask.sum()
    constant = problem.loss_fn(jnp.broadcast_to(log(shares), probabilities.shape), batch)
    nats = -(np.log(shares)[batch.targets] * batch.mask).sum(1)
    mean, error = mean_and_error(nats, lengths)
    assert float(constant['loss'].compute()) == pytest.approx(mean, rel=1e-5)
    assert (
        abs(mean - problem.reference_losses['best constant']) < 4.5 * error + 1e-3
        and constant[synthetic.WRONG].compute() == 1
    )


def test_long_a_b_of_the_ideal_and_of_a_constant():
    """After k of 20 a the first b has the chance 1 / (21 - k), and the rest is certain."""
    problem, batch = compiled(counting.anbn), drawn(counting.anbn)
    rows = np.zeros((*batch.targets.shape, 3))
    for row, word in zip(rows, strings(batch), strict=True):
        n = len(word) // 2
        for k in range(1, n + 1):
            row[k - 1, :2] = 1 - 1 / (21 - k), 1 / (21 - k)
        row[n : 2 * n - 1, 1] = 1
        row[2 * n - 1, 2] = 1
    found = problem.loss_fn(log(rows), batch)
    assert problem.reference_losses['entropy floor'] == pytest.approx(math.log(20) / 21)
    lengths = batch.inputs.seq_lengths.astype(float)
    error = math.log(20) / 21 * lengths.std() / lengths.mean() / math.sqrt(DRAWS)
    assert abs(float(found['loss'].compute()) - math.log(20) / 21) < 4.5 * error
    assert found[synthetic.WRONG].compute() == 0 and abs(found['excess'].compute()) < 1e-6
    constant = problem.loss_fn(jnp.broadcast_to(log([9.5 / 21, 10.5 / 21, 1 / 21]), rows.shape), batch)
    assert abs(float(constant['loss'].compute()) - problem.reference_losses['best constant']) < 0.01
    assert constant[synthetic.WRONG].compute() == 1


# --- what is wrong ---------------------------------------------------------------------------------


def possible(word, t, make, end, deepest):
    """What can follow the first t symbols of a string, at any length: by a stack."""
    word = word[:t]
    if make is counting.anbn:
        a, b = word.count(0), word.count(1)
        return {0, 1} if not b else {1} if b < a else {2}
    kinds, stack = end // 2, []
    for symbol in word:
        stack.append(symbol) if symbol < kinds else stack.pop()
    return ({kinds + stack[-1]} if stack else {end}) | (set(range(kinds)) if len(stack) < deepest else set())


@each
def test_wrong_is_more_than_a_tenth_on_what_cannot_follow(make, options, end):
    """At one step of a string, 9% or 11% on one symbol, which is wrong where it cannot follow, and 11% of two."""
    problem, batch = compiled(make, **options), first(drawn(make, **options), 60)
    score = score_each(problem)
    chance = np.random.default_rng(0)
    for share in (0.09, 0.11):
        rows, want = np.full((*batch.targets.shape, end + 1), 1e-9), []
        for i, word in enumerate(strings(batch)):
            allowed = [possible(word, t + 1, make, end, options.get('deepest', 10)) for t in range(len(word))]
            for t, symbols in enumerate(allowed):
                rows[i, t, chance.permutation(sorted(symbols))[0]] = 1
            t, symbol = chance.integers(len(word)), chance.integers(end + 1)
            rows[i, t] *= 1 - share
            rows[i, t, symbol] += share
            want.append(share > 0.1 and symbol not in allowed[t])
        found = score(log(rows), batch)[synthetic.WRONG]
        np.testing.assert_array_equal(found.total, want)
        assert share < 0.1 or 10 < sum(want) < 60


@each
def test_what_is_not_finite_is_wrong_and_padding_is_not_looked_at(make, options, end):
    problem, batch = compiled(make, **options), first(drawn(make, **options), 60)
    sure = np.where(np.arange(end + 1) == batch.targets[..., None], 20.0, 0.0)
    sure[~batch.mask] = np.nan
    assert problem.loss_fn(jnp.asarray(sure), batch)[synthetic.WRONG].compute() == 0
    sure[7, 0, 0] = np.nan
    assert problem.loss_fn(jnp.asarray(sure), batch)[synthetic.WRONG] == (1, 60)


@pytest.mark.parametrize(
    ('make', 'options', 'words'),
    [
        (counting.anbn, {'longest': 2}, 'longest=2'),
        (counting.anbn, {'longest': 9}, 'longest=9'),
        (counting.dyck, {'longest': 2}, 'longest=2'),
        (counting.dyck, {'longest': 41}, 'longest=41'),
        (counting.dyck, {'kinds': 0}, 'kinds=0'),
        (counting.dyck, {'deepest': 0}, 'deepest=0'),
    ],
)
def test_what_cannot_be_is_refused(make, options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)


@pytest.mark.parametrize('experiment', [anbn, dyck])
def test_an_experiment_takes_its_defaults(experiment):
    """Of the name of its file, with all flags that it has accepted as they are."""
    task_experiment = experiment.EXPERIMENT
    assert experiment.__name__ == f'experiments.{task_experiment.name}'
    assert task_experiment.check({}).train.batch_size == 64 and 'longest' in task_experiment.FLAGS
