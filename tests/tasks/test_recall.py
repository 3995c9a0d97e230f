"""Recall: its sequences, the law of their keys, values and places, and its figure."""

import itertools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import recall as experiments_recall
from seqjax.tasks import recall
from seqjax.types import Batch

SMALL = {'pairs': 3, 'queries': 2, 'length': 15, 'keys': 5, 'values': 4}


def draw(count, seed=0, **options):
    sample = jax.jit(recall.recall(**options).sample, static_argnums=1)
    return jax.device_get(sample(jax.random.key(seed), count))


def near(counts, shares, sigmas=4):
    """Whether counts [K] of draws are within so many standard deviations of their law [K]."""
    counts, shares = np.asarray(counts), np.asarray(shares)
    total = counts.sum()
    return (np.abs(counts - total * shares) <= sigmas * np.sqrt(total * shares * (1 - shares)) + 1e-9).all()


def answers(tokens, pairs):
    """The answers of a sequence by place, slowly."""
    known, found = {}, {}
    for place, token in enumerate(tokens):
        if place < 2 * pairs:
            if place % 2:
                known[tokens[place - 1]] = token
        elif token:
            found[place] = known[token]
    return found


@pytest.mark.parametrize('options', [SMALL, {}, {'pairs': 1, 'queries': 1, 'length': 4, 'keys': 1, 'values': 2}])
def test_answers_are_the_values_that_the_keys_came_with(options):
    problem = recall.recall(**options)
    batch = draw(1000, 1, **options)
    sizes = {name: options.get(name, default) for name, default in zip(SMALL, (4, 4, 64, 64, 64), strict=True)}
    assert batch.inputs.shape == batch.targets.shape == batch.mask.shape == (1000, sizes['length'])
    assert batch.inputs.dtype == batch.targets.dtype == np.int32 and batch.mask.dtype == bool
    for tokens, targets, mask in zip(*(x.tolist() for x in batch), strict=True):
        found = answers(tokens, sizes['pairs'])
        assert len(found) == sizes['queries'] and [place for place, asked in enumerate(mask) if asked] == list(found)
        assert all(targets[place] + 1 + sizes['keys'] == value for place, value in found.items())
    assert (batch.targets[~batch.mask] == 0).all()
    assert problem.spec.outputs == sizes['values'] and problem.spec.vocabulary == 1 + sizes['keys'] + sizes['values']


def test_keys_and_values_are_drawn_evenly_and_none_twice():
    inputs = draw(4000, **SMALL).inputs
    keys, values, rest = inputs[:, 0:6:2], inputs[:, 1:6:2], inputs[:, 6:]
    for tokens, first, last in ((keys, 1, 5), (values, 6, 9)):
        assert set(tokens.ravel()) == set(range(first, last + 1))
        assert all(len(set(row)) == 3 for row in tokens.tolist())
        size = last - first + 1
        orders = Counter(map(tuple, (tokens - first).tolist()))
        eval_every = list(itertools.permutations(range(size), 3))
        assert near([orders[order] for order in eval_every], np.full(len(eval_every), 1 / len(eval_every)))
    # Keys and values of a pair have nothing to do with each other, and what comes behind the pairs is no value.
    together = np.bincount((keys[:, 0] - 1) * 4 + values[:, 0] - 6, minlength=20)
    assert near(together, np.full(20, 1 / 20)) and rest.max() == 5


def test_every_part_of_the_pairs_is_asked_for_as_often():
    inputs = draw(3000, **SMALL).inputs
    keys, rest = inputs[:, 0:6:2], inputs[:, 6:]
    asked = (keys[:, :, None] == rest[:, None]).sum(-1)  # [N, pairs]
    assert set(asked.ravel()) == {0, 1} and (asked.sum(1) == 2).all()
    assert near((asked == 0).sum(0), np.full(3, 1 / 3))


@pytest.mark.parametrize(('pairs', 'length'), [(2, 12), (3, 15)])
def test_places_have_the_law_of_the_source(pairs, length):
    """Two queries: the earlier pair draws its place by i^-0.99, and the later one of those that are left."""
    batch = draw(6000, pairs=pairs, queries=2, length=length, keys=5, values=4)
    places = np.nonzero(batch.mask)[1].reshape(-1, 2) - 2 * pairs
    assert (places % 2 == 0).all()
    stand = np.argmax(batch.inputs[:, None, 0 : 2 * pairs : 2] == batch.inputs[batch.mask].reshape(-1, 2, 1), axis=2)
    swapped = (stand[:, 0] > stand[:, 1])[:, None]
    first, second = (np.where(swapped, places[:, ::-1], places) // 2).T
    space = (length - 2 * pairs) // 2
    weights = np.arange(1, space + 1) ** -0.99
    weights /= weights.sum()
    law = np.outer(weights, weights) / (1 - weights)[:, None]
    np.fill_diagonal(law, 0)
    assert law.sum() == pytest.approx(1)
    assert near(np.bincount(first * space + second, minlength=space**2), law.ravel())


def test_one_query_at_each_of_many_places():
    """The published law over all 30 places of the default length, both ends included."""
    mask = draw(20_000, pairs=2, queries=1).mask
    weights = np.arange(1, 31) ** (0.01 - 1)
    counts = mask.sum(0)[4::2]
    assert near(counts, weights / weights.sum()) and counts.min() > 0 and counts.sum() == 20_000


def test_equal_keys_give_equal_sequences_and_others_do_not():
    one, same, other = (jax.tree.leaves(draw(50, seed, **SMALL)) for seed in (3, 3, 4))
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert not any((a == b).all() for a, b in zip(one, other, strict=True))
    assert len(np.unique(draw(1000).inputs, axis=0)) == 1000


def test_the_best_constant_by_counting():
    """Over all draws of the values, each answer as often: its entropy, and what the score says of even odds."""
    problem = recall.recall(**SMALL)
    counts = Counter(itertools.chain(*itertools.permutations(range(4), 3)))
    shares = np.array(list(counts.values())) / counts.total()
    assert problem.reference_losses == {'best constant': pytest.approx(-(shares * np.log(shares)).sum())}
    assert problem.reference_losses['best constant'] == pytest.approx(math.log(4))
    batch = problem.sample(jax.random.key(0), 2000)
    losses = [
        problem.loss_fn(jnp.broadcast_to(logits, (*batch.mask.shape, 4)), batch)['loss'].compute()
        for logits in (jnp.zeros(4), jnp.array([0.1, 0.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 0.0, -0.1]))
    ]
    assert losses[0] == pytest.approx(math.log(4), rel=1e-5) and losses[0] < min(losses[1:])


def test_one_wrong_answer_makes_a_sequence_wrong():
    problem = recall.recall(**SMALL)
    batch = problem.sample(jax.random.key(0), 8)
    logits = 9.0 * jax.nn.one_hot(batch.targets, 4)
    assert problem.loss_fn(logits, batch)['wrong'] == (0, 8)
    place = int(batch.mask[2].argmax())
    spoiled = Batch(batch.inputs, batch.targets.at[2, place].set((batch.targets[2, place] + 1) % 4), batch.mask)
    assert problem.loss_fn(logits, spoiled)['wrong'] == (1, 8)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'queries': 5}, 'queries=5'),
        ({'queries': 0}, 'queries=0'),
        ({'pairs': 0}, 'queries=4'),
        ({'keys': 3}, 'keys=3'),
        ({'values': 3}, 'values=3'),
        ({'length': 15}, 'length=15'),
    ],
)
def test_what_cannot_be_is_refused(options, words, capsys):
    with pytest.raises(ValueError, match=words):
        recall.recall(**options)
    assert experiments_recall.main([f'--{name}={value}' for name, value in options.items()]) == 2
    assert words in capsys.readouterr().err


def test_the_least_that_can_be():
    """Just enough keys, values and steps."""
    batch = draw(200, pairs=2, queries=2, length=8, keys=2, values=2)
    assert (batch.mask == (np.arange(8) % 2 == 0) & (np.arange(8) > 3)).all()
    assert set(batch.inputs[:, 0]) == {1, 2} and set(batch.inputs[:, 1]) == {3, 4}
