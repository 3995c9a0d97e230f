"""Resets of RNN inside a sequence."""

import functools
import itertools

import jax
import numpy as np
import pytest

from seqjax.nn import rnn
from seqjax.nn.cells.lstm_cell import LSTMCarry
from tests.helpers import reference
from tests.helpers.layers import (
    CELLS,
    FORMS,
    B,
    F,
    H,
    T,
    draw,
    own_carry,
    started,
    variables_of,
)


@pytest.mark.representative(every=7, first=3)
@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize(
    ('name', 'learned'), [(name, n % 2 == 0) for n, name in enumerate(CELLS)] + [('lstm', False), ('gru', True)]
)
def test_a_reset_begins_a_fresh_run(name, reverse, learned):
    """Each stretch between resets equals a run of its own; one at the first step forgets the carry that was given."""
    layer = rnn.RNN(CELLS[name], learn_initial_carry=learned, **FORMS.get(name, {}))
    x = draw(1, T, F)
    variables = variables_of(layer, x)
    first = jax.tree.map(lambda leaf: draw(*leaf.shape, seed=8), own_carry(name, rows=1))
    starts = [0, 1, 2, 4]  # stretches of two lengths, so that few programs are compiled
    resets = np.isin(np.arange(T), starts)[None]
    run = jax.jit(functools.partial(layer.apply, variables, reverse=reverse, keep_order=True))
    got = run(x, resets=resets, initial_carry=first)
    pieces = list(itertools.pairwise([*starts, T]))
    want = [run(x[:, a:b], initial_carry=first if reverse and b == T else None) for a, b in pieces]
    reference.assert_close(got, np.concatenate(want, axis=1), 1e-5)
    assert np.abs(got - run(x, resets=np.zeros_like(resets), initial_carry=first)).max() > 1e-2


def run_from(start, x, parallel, resets, **options):
    """Returns the outputs of a minGRU whose initial state is `start` in every unit."""
    layer, variables, _ = started('mingru', parallel=parallel)
    first = jax.tree.map(lambda leaf: np.full(leaf.shape, start, np.float32), own_carry('mingru'))
    return layer.apply(variables, x, resets=resets, initial_carry=first, keep_order=True, **options)


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('parallel', [False, True])
def test_an_infinite_state_ends_at_a_reset(parallel, reverse):
    resets = np.zeros((B, T), bool)
    resets[:, 3] = True
    finite, infinite = (run_from(start, draw(B, T, F), parallel, resets, reverse=reverse) for start in (1, np.inf))
    before, after = (slice(3, None), slice(3)) if reverse else (slice(3), slice(3, None))
    np.testing.assert_array_equal(infinite[:, after], finite[:, after])
    assert not np.isfinite(infinite[:, before]).any()


@pytest.mark.parametrize('parallel', [False, True])
def test_an_infinite_carry_that_is_reset_at_once_leaves_finite_gradients(parallel):
    resets = np.zeros((B, T), bool)
    resets[:, 0] = True
    want, got = (
        jax.value_and_grad(lambda x, start=start: run_from(start, x, parallel, resets).sum())(draw(B, T, F))
        for start in (1, np.inf)
    )
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert np.isfinite(got[1]).all()


@pytest.mark.parametrize('reverse', [False, True])
def test_no_gradient_crosses_a_reset(reverse):
    """Outputs on either side of step 3 depend on inputs of their own side alone, and only one side on the carry."""
    layer, variables, x = started('lstm')
    resets = np.zeros((B, T), bool)
    resets[:, 3] = True
    first = LSTMCarry(draw(B, H, seed=3), draw(B, H, seed=4))
    run = functools.partial(layer.apply, variables, resets=resets, reverse=reverse, keep_order=True)
    slopes, from_carry = jax.jit(jax.jacrev(lambda x, c: run(x, initial_carry=c).sum((0, 3 - 1)), (0, 1)))(x, first)
    reach = np.abs(slopes).max(axis=(1, 3)) > 1e-6  # [T of outputs, T of inputs]
    before, after = np.tri(3, dtype=bool), np.tri(3, dtype=bool)
    want = np.block([[before, np.zeros((3, 3), bool)], [np.zeros((3, 3), bool), after]])
    np.testing.assert_array_equal(reach, want.T if reverse else want)
    carried = np.abs(from_carry.c).max(axis=(1, 2)) > 1e-6
    np.testing.assert_array_equal(carried, np.arange(T) >= 3 if reverse else np.arange(T) < 3)


def test_a_reset_at_a_masked_step_counts():
    """What follows it is a fresh run; a reset at the last step leaves the cell's own initial carry."""
    layer, variables, x = started('lstm')
    mask, resets = np.ones((B, T), bool), np.zeros((B, T), bool)
    mask[:, 2] = False
    resets[:, 2] = True
    got = layer.apply(variables, x, mask=mask, resets=resets)
    reference.assert_close(got[:, 3:], layer.apply(variables, x[:, 3:]), 1e-6)
    mask[:, T - 1], resets[:, T - 1] = False, True
    carry, _ = layer.apply(variables, x, mask=mask, resets=resets, return_carry=True)
    assert (carry.c == 0).all() and (carry.h == 0).all()
