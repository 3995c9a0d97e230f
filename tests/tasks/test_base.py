"""What problems share: their scores, and the lengths that they draw."""

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.tasks import synthetic
from seqjax.types import Batch


def test_a_sequence_is_right_where_every_answer_that_counts_is():
    """By hand; NaN is right nowhere, not even in the place of the answer, where argmax finds it."""
    logits = jnp.array([[[0, 2.0], [3, 0.0]], [[0, 2.0], [0, 1.0]], [[2.0, jnp.nan], [3, 0.0]]])
    targets, mask = jnp.array([[1, 0], [1, 0], [1, 0]]), jnp.ones((3, 2), bool)
    assert synthetic.classification(logits, Batch(None, targets, mask))['wrong'] == (2, 3)
    assert synthetic.classification(logits, Batch(None, targets, mask.at[1, 1].set(False)))['wrong'] == (1, 3)
    found = synthetic.classification(logits[:2], Batch(None, targets[:2], mask[:2]))['loss'].compute()
    want = -np.log([np.e**2 / (1 + np.e**2), np.e**3 / (1 + np.e**3), np.e**2 / (1 + np.e**2), 1 / (1 + np.e)]).mean()
    assert abs(found - want) < 1e-6


def test_within_asks_every_output_of_a_step():
    batch = Batch(None, jnp.zeros((2, 3, 2)), jnp.ones((2, 3), bool))
    outputs = jnp.zeros((2, 3, 2)).at[1, 2, 1].set(0.2)
    assert synthetic.regression(0.1)(outputs, batch)['wrong'] == (1, 2) and synthetic.regression(0.3)(outputs, batch)[
        'wrong'
    ] == (0, 2)
    assert abs(synthetic.regression(0.1)(outputs, batch)['loss'].compute() - 0.04 / 12) < 1e-7


def test_lengths_have_both_ends_and_each_is_as_likely():
    counts = np.bincount(synthetic.uniform_lengths(jax.random.key(0), 10_000, 3, 6), minlength=8)
    assert counts[:3].sum() == counts[7:].sum() == 0
    assert np.abs(counts[3:7] / 10_000 - 0.25).max() < 4 * (0.1875 / 10_000) ** 0.5
