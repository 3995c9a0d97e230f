"""Over time: any cell, one set of parameters, every step; under each of JAX's transformations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import rnn
from seqjax.nn.cells.lstm_cell import LSTMCarry, LSTMCell
from seqjax.nn.wrappers import TimeDistributed
from seqjax.reporting import text_tables
from tests.helpers import reference

B, T, F, H = 3, 6, 2, 4


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope='module')
def lstm():
    """A layer, its variables and inputs."""
    layer, x = rnn.RNN(LSTMCell(H)), draw(B, T, F)
    return layer, reference.random_variables(layer, x), x


# --- RNN -------------------------------------------------------------------------------------------


def test_return_options_give_parts_of_the_same_result(lstm):
    """All outputs or the last one, with or without the carry, which comes first as in flax.linen.RNN."""
    layer, variables, x = lstm
    outputs = layer.apply(variables, x)
    assert outputs.shape == (B, T, H)
    carry, again = layer.apply(variables, x, return_carry=True)
    last = layer.apply(variables, x, return_sequences=False)
    last_carry, last_again = layer.apply(variables, x, return_sequences=False, return_carry=True)
    assert isinstance(carry, LSTMCarry)
    np.testing.assert_array_equal(again, outputs)
    for vector in (last, last_again, carry.h, last_carry.h):
        np.testing.assert_array_equal(vector, outputs[:, -1])
    np.testing.assert_array_equal(last_carry.c, carry.c)


@pytest.mark.parametrize('return_state', [False, True])
@pytest.mark.parametrize('return_sequences', [False, True])
def test_return_options_equal_keras(keras, lstm, return_sequences, return_state):
    """With the same weights; Keras returns the output, h and c where we return (c, h) and the output."""
    layer, variables, x = lstm
    options = {'return_sequences': return_sequences}
    got = layer.apply(variables, x, **options, return_carry=return_state)
    with jax.numpy_rank_promotion('allow'):
        theirs = keras.layers.LSTM(H, **options, return_state=return_state)
        theirs.build(x.shape)
        cell = variables['params']['cell']
        theirs.set_weights([cell['kernel'], cell['recurrent_kernel'], cell['bias']])
        want = theirs(x)
    if return_state:
        (carry, got), (want, h, c) = got, want
        reference.assert_close(carry.h, h, 1e-5, 'h')
        reference.assert_close(carry.c, c, 1e-5, 'c')
    reference.assert_close(got, want, 1e-5)


@pytest.mark.parametrize('unroll', [4, T + 3])
def test_unroll_changes_no_number(lstm, unroll):
    """Also where it does not divide T, or exceeds it."""
    layer, variables, x = lstm
    got = rnn.RNN(layer.cell, unroll=unroll).apply(variables, x)
    reference.assert_close(got, layer.apply(variables, x), 1e-6)


def test_rnn_runs_another_cell_as_flax_does():
    """flax.linen.GRUCell: the parameters of flax.linen.RNN fit, and outputs and carry are the same."""
    x = draw(B, T, F)
    ours, theirs = rnn.RNN(nn.GRUCell(H)), nn.RNN(nn.GRUCell(H), return_carry=True)
    variables = reference.random_variables(theirs, x)
    assert jax.tree.structure(reference.random_variables(ours, x)) == jax.tree.structure(variables)
    for initial_carry in (None, draw(B, H, seed=1)):
        got = ours.apply(variables, x, initial_carry=initial_carry, return_carry=True)
        want = theirs.apply(variables, x, initial_carry=initial_carry)
        assert got[1].shape == (B, T, H)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), got, want)


@pytest.mark.parametrize('steps', [1, 2, 7])
def test_D03_the_parameters_of_an_rnn_do_not_depend_on_the_number_of_steps(steps):
    """One copy of the cell's, 140 for F = 1 and H = 5 and any T, with no axis for time."""
    params = jax.eval_shape(rnn.RNN(LSTMCell(5)).init, jax.random.key(0), jnp.ones((2, steps, 1)))['params']
    shapes = jax.tree.map(lambda x: x.shape, params)
    assert shapes == {'cell': {'kernel': (1, 20), 'recurrent_kernel': (5, 20), 'bias': (20,)}}
    assert text_tables.count_params(params) == 140


def test_N08_lstm_works_under_jit_vmap_grad_and_scan(lstm):
    """Each gives the numbers of the plain call."""
    layer, variables, x = lstm
    many = np.stack([x, draw(B, T, F, seed=9)])
    run = layer.apply
    plain = [run(variables, one) for one in many]
    compiled = jax.jit(run)
    reference.assert_close(compiled(variables, x), plain[0], 1e-5)
    reference.assert_close(jax.jit(jax.vmap(run, (None, 0)))(variables, many), plain, 1e-5)
    flipped = jax.tree.map(lambda w: -w, variables)
    two = jax.jit(jax.vmap(run, (0, None)))(jax.tree.map(lambda *ws: np.stack(ws), variables, flipped), x)
    reference.assert_close(two, [plain[0], compiled(flipped, x)], 1e-5)
    _, scanned = jax.lax.scan(lambda _, one: (None, run(variables, one)), None, many)
    reference.assert_close(scanned, plain, 1e-5)

    gradient = jax.grad(lambda variables, x: jnp.sum(run(variables, x) ** 3))
    alone = jax.jit(gradient)
    grads = jax.jit(jax.vmap(gradient, (None, 0)))(variables, many)
    for n, one in enumerate(many):
        for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(alone(variables, one)), strict=True):
            reference.assert_close(got[n], want, 1e-5)


# --- TimeDistributed -------------------------------------------------------------------------------


def test_time_distributed_applies_the_module_to_every_step():
    """What a loop over the steps gives, with further axes too."""
    x = draw(B, T, 5, F)
    layer = TimeDistributed(nn.Dense(H))
    variables = reference.random_variables(layer, x)
    params = variables['params']['module']
    want = np.stack([x[:, t] @ params['kernel'] + params['bias'] for t in range(T)], axis=1)
    got = layer.apply(variables, x)
    assert got.shape == (B, T, 5, H)
    reference.assert_close(got, want, 1e-5)


def test_time_distributed_dense_equals_keras(keras):
    """Dense alone and under TimeDistributed, with the same weights: outputs and gradients of the weights."""
    x, kernel, bias, weighting = draw(B, T, F), draw(F, H, seed=1), draw(H, seed=2), draw(B, T, H, seed=3)

    def gradients(apply, x, weighting):
        return jax.value_and_grad(lambda weights: jnp.sum(apply(weights, x) * weighting))([kernel, bias])

    def ours(layer, wrap):
        return lambda weights, x: layer.apply({'params': wrap({'kernel': weights[0], 'bias': weights[1]})}, x)

    def theirs(layer):
        return lambda weights, x: layer.stateless_call(weights, [], x)[0]

    steps = ours(TimeDistributed(nn.Dense(H)), lambda params: {'module': params})
    pairs = [(ours(nn.Dense(H), dict), 'dense', 0), (steps, 'steps', slice(None))]
    for apply, name, step in pairs:
        part, weights = x[:, step], weighting[:, step]
        with jax.numpy_rank_promotion('allow'):
            layer = keras.layers.Dense(H)
            layer = keras.layers.TimeDistributed(layer) if name == 'steps' else layer
            layer.build(part.shape)
            want, want_grads = gradients(theirs(layer), part, weights)
            want_outputs = theirs(layer)([kernel, bias], part)
        reference.assert_close(apply([kernel, bias], part), want_outputs, 1e-5, name)
        got, grads = gradients(apply, part, weights)
        reference.assert_close(got, want, 1e-5, name)
        for grad, want_grad in zip(grads, want_grads, strict=True):
            reference.assert_close(grad, want_grad, 1e-5, name)


@pytest.mark.parametrize('steps', [1, 2, 7])
@pytest.mark.parametrize(('features', 'outputs', 'count'), [(5, 1, 6), (5, 5, 30)])
def test_D03_the_parameters_of_a_time_distributed_dense_do_not_depend_on_the_number_of_steps(
    features, outputs, count, steps
):
    """6 and 30 for any T, with no axis for time."""
    layer = TimeDistributed(nn.Dense(outputs))
    params = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((2, steps, features)))['params']
    shapes = jax.tree.map(lambda x: x.shape, params)
    assert shapes == {'module': {'kernel': (features, outputs), 'bias': (outputs,)}}
    assert text_tables.count_params(params) == count


def test_D03_dropout_draws_another_mask_at_every_step():
    """Masks of all steps differ, halves of them are kept, and the same key gives the same masks."""
    layer, x = TimeDistributed(nn.Dropout(0.5, deterministic=False)), 1.5 + np.abs(draw(2, T, 40))
    drop = jax.jit(lambda key: layer.apply({}, x, rngs={'dropout': key}))
    outputs = np.asarray(drop(jax.random.key(0)))
    kept = outputs != 0
    np.testing.assert_allclose(outputs[kept], 2 * x[kept], rtol=1e-6)
    assert len({kept[:, t].tobytes() for t in range(T)}) == T
    np.testing.assert_allclose(kept.mean(axis=(0, 2)), 0.5, atol=0.2)
    np.testing.assert_array_equal(drop(jax.random.key(0)), outputs)
    assert (drop(jax.random.key(1)) != outputs).any()


def test_time_distributed_hands_further_arguments_to_every_step():
    """Dropout that is told to be deterministic returns its inputs."""
    x = draw(B, T, F)
    got = TimeDistributed(nn.Dropout(0.5)).apply({}, x, deterministic=True)
    np.testing.assert_array_equal(got, x)


def test_time_distributed_refuses_inputs_without_time():
    with pytest.raises(ValueError, match=r'\(3,\)'):
        TimeDistributed(nn.Dense(1)).init(jax.random.key(0), jnp.ones(3))
