"""Temporal order: the law of its sequences, and its score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.tasks import temporal_order
from seqjax.types import Batch

COUNT = 4000


@pytest.mark.parametrize('relevant', ['two', 'three'])
@pytest.mark.parametrize('length', [10, 37, 100])
def test_sequences_are_those_of_the_source(length, relevant):
    """Lengths, places and symbols by their ranges, both ends of each drawn; the answer is what stands there."""
    batch = jax.device_get(temporal_order.temporal_order(length, relevant).sample(jax.random.key(0), COUNT))
    values, lengths, mask, resets = batch.inputs
    assert (
        values.shape == (COUNT, temporal_order.longest(length), 8)
        and mask is None
        and resets is None
        and batch.mask.all()
    )
    np.testing.assert_array_equal(values.sum(-1), 1)
    tenth = length // 10
    assert set(lengths) == set(range(length, length + tenth + 1))
    symbols = np.array(list(temporal_order.SYMBOLS))[values.argmax(-1)]
    assert (symbols[:, 0] == 'E').all() and (symbols[np.arange(COUNT), lengths - 1] == 'B').all()
    inside = np.arange(temporal_order.longest(length)) < lengths[:, None] - 1
    inside[:, 0] = False
    marked = np.isin(symbols, ['X', 'Y'])
    begins = [tenth, length // 2] if relevant == 'two' else [tenth, length // 3, 2 * length // 3]
    assert (marked.sum(1) == len(begins)).all() and not (marked & ~inside).any()
    assert set(symbols[inside & ~marked]) == set('abcd')
    places = np.nonzero(marked)[1].reshape(COUNT, -1).T
    for begin, drawn in zip(begins, places, strict=True):
        assert set(drawn) == set(range(begin, begin + tenth + 1))
    answers = [int(''.join('01'[x == 'Y'] for x in row[m]), 2) for row, m in zip(symbols, marked, strict=True)]
    np.testing.assert_array_equal(batch.targets, answers)
    classes = 2 ** len(begins)
    assert np.abs(np.bincount(answers, minlength=classes) / COUNT - 1 / classes).max() < 4 * (0.1875 / COUNT) ** 0.5


def test_at_length_100_the_spans_are_those_that_the_source_names():
    batch = temporal_order.temporal_order(100, 'three').sample(jax.random.key(1), COUNT)
    places = np.nonzero(np.asarray(batch.inputs.values[..., temporal_order.SYMBOLS.index('X') :]).any(-1))[1].reshape(
        COUNT, 3
    )
    assert [(low, high) for low, high in zip(places.min(0), places.max(0), strict=True)] == [
        (10, 20),
        (33, 43),
        (66, 76),
    ]


@pytest.mark.parametrize('relevant', ['two', 'three'])
def test_too_short_a_length_is_refused(relevant):
    with pytest.raises(ValueError, match='length=9'):
        temporal_order.temporal_order(9, relevant)


def test_right_is_within_three_tenths_of_every_target():
    """Probabilities .71 .29 0 0 are right and .69 .31 0 0 are not; nor is NaN, nor the largest of an even spread."""
    probabilities = np.array([[0.71, 0.29], [0.69, 0.31], [0.29, 0.71], [np.nan, 1], [0.5, 0.5]])
    logits = jnp.asarray(np.log(np.pad(probabilities, [(0, 0), (0, 2)], constant_values=1e-9)), jnp.float32)
    batch = Batch(None, jnp.zeros(5, int), jnp.ones(5, bool))
    assert temporal_order.loss_fn(logits, batch)['wrong'] == (4, 5)
    assert temporal_order.loss_fn(logits, batch._replace(mask=jnp.arange(5) < 2))['wrong'] == (1, 2)


def test_the_best_constant_gives_each_class_the_same_probability():
    problem = temporal_order.temporal_order(10, 'three')
    batch = problem.sample(jax.random.key(0), 100)
    assert (
        abs(
            temporal_order.loss_fn(jnp.zeros((100, 8)), batch)['loss'].compute()
            - problem.reference_losses['best constant']
        )
        < 1e-5
    )


def test_equal_keys_draw_equal_sequences_and_others_do_not():
    batches = [temporal_order.temporal_order(10).sample(jax.random.key(seed), 8).inputs.values for seed in range(20)]
    assert len({np.asarray(batch).tobytes() for batch in batches}) == 20
