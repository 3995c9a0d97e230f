"""Lengths of sequences: all return values, no steps and no rows, values beyond the end under jit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn.cells.lstm_cell import LSTMCarry
from tests.helpers.layers import (
    MASKS,
    B,
    F,
    H,
    T,
    assert_equal,
    draw,
    everything,
    started,
)


@pytest.mark.parametrize('return_carry', [False, True])
@pytest.mark.parametrize('return_sequences', [False, True])
def test_L08_lengths_are_taken_whatever_is_returned(return_sequences, return_carry):
    layer, variables, x = started('lstm')
    lengths = np.array([3, 6, 1, 2])
    carry, outputs = layer.apply(variables, x, seq_lengths=lengths, return_carry=True)
    got = layer.apply(variables, x, seq_lengths=lengths, return_carry=return_carry, return_sequences=return_sequences)
    if return_carry:
        assert_equal(got[0], carry)
        got = got[1]
    np.testing.assert_array_equal(got, outputs if return_sequences else carry.h)


def test_lengths_and_mask_together_are_both():
    layer, variables, x = started('gru')
    lengths = np.array([2, 6, 3, 5])
    both = MASKS['holes'] & (np.arange(T) < lengths[:, None])
    got = layer.apply(variables, x, seq_lengths=lengths, mask=MASKS['holes'], return_carry=True)
    assert_equal(got, layer.apply(variables, x, mask=both, return_carry=True))


@pytest.mark.parametrize('name', ['lstm', 'gru', 'tanh', 'lstm_coupled', 'minlstm_parallel', 'lru', 'flax_gru'])
def test_L04_lengths_that_cannot_be_looked_at_never_read_past_the_end(name):
    """Under jit: what comes of a row whose length is over T or below 0 is NaN, and other rows are as they were."""
    layer, variables, x = started(name)
    run = jax.jit(lambda lengths: layer.apply(variables, x, seq_lengths=lengths, return_carry=True))
    got, want = run(jnp.array([9, 2, -3, 6])), run(jnp.array([6, 2, 0, 6]))
    assert_equal(*(jax.tree.map(lambda leaf: leaf[1::2], tree) for tree in (got, want)))
    assert all(np.isnan(leaf[::2]).all() for leaf in jax.tree.leaves(got))
    summary = jax.jit(lambda n: layer.apply(variables, x, seq_lengths=n, return_sequences=False))
    summary = summary(jnp.array([9, 2, -(2**31), 2**31 - 1]))
    np.testing.assert_array_equal(np.isnan(jax.tree.leaves(summary)[0]).all(axis=1), [True, False, True, True])
    with pytest.raises(ValueError, match='seq_lengths'):
        run(jnp.ones(B))
    with pytest.raises(ValueError, match=r'seq_lengths \(3,\)'):
        run(jnp.ones(3, int))


def test_L05_outputs_keep_the_steps_of_the_inputs():
    """Though no row is as long: what each device of a sharded batch returns lines up."""
    layer, variables, x = started('lstm')
    assert layer.apply(variables, x, seq_lengths=np.array([1, 2, 0, 1])).shape == (B, T, H)


def test_twenty_vectors_of_lengths_are_compiled_once():
    layer, variables, x = started('lstm')
    traces = []

    @jax.jit
    def run(lengths):
        traces.append(1)
        return layer.apply(variables, x, seq_lengths=lengths)

    rng = np.random.default_rng(0)
    seen = {run(jnp.asarray(rng.integers(0, T + 1, B))).tobytes() for _ in range(20)}
    assert len(traces) == 1 and run._cache_size() == 1 and len(seen) > 10


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(
    ('shape', 'given', 'reverse'),
    [
        ((0, T), 'nothing', False),
        ((0, T), 'lengths', True),
        ((B, 0), 'nothing', True),
        ((B, 0), 'lengths', False),
        ((B, 0), 'mask', True),
        ((B, 0), 'resets', True),
        ((0, 0), 'mask', False),
    ],
)
def test_no_rows_and_no_steps_work(shape, given, reverse):
    """Outputs of the right shape, an initial carry that is handed on, gradients of 0."""
    rows, steps = shape
    layer, variables, _ = started('lstm')
    extra = {
        'nothing': {},
        'lengths': {'seq_lengths': np.zeros(rows, int)},
        'mask': {'mask': np.ones(shape, bool), 'masked_output': 'hold'},
        'resets': {'resets': np.ones(shape, bool)},
    }[given]
    x, first = np.ones((*shape, F), np.float32), LSTMCarry(draw(rows, H), draw(rows, H, seed=1))
    run = functools.partial(layer.apply, variables, x, initial_carry=first, reverse=reverse, **extra)
    carry, outputs = run(return_carry=True, keep_order=True)
    assert outputs.shape == (*shape, H)
    assert_equal(carry, first)
    np.testing.assert_array_equal(run(return_sequences=False), np.zeros((rows, H)))
    assert run(carry_history=True)[0].c.shape == (rows, steps + 1, H)
    grads = jax.grad(functools.partial(everything, layer, reverse=reverse, **extra))(variables, x)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))
    assert_equal(jax.tree.map(jnp.shape, layer.init(jax.random.key(0), x)), jax.tree.map(jnp.shape, variables))
