"""Layers whose cell is a plain LSTM give by the array function what they give step by step."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeCollectionNotFound

from seqjax.nn import rnn as nn_rnn
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.nn.wrappers import Bidirectional, Stack, Stateful
from seqjax.ops import lstm
from tests.helpers import reference
from tests.ops.test_lstm import assert_near


class OneByOne(LSTMCell):
    """The same cell, whose steps are taken one by one."""

    fused = False


def seen(cell, backend, kind, options, seed=0):
    """What a layer gives, and its gradients to its parameters, inputs and carry."""

    def rnn(**more):
        return nn_rnn.RNN(cell(3, **options.get('cell', {})), backend=backend, **more, **options.get('layer', {}))

    layers = {
        'rnn': rnn,
        'bidirectional': lambda: Bidirectional(rnn(), rnn()),
        'stack': lambda: Stack([rnn(), rnn()]),
        'stateful': lambda: Stateful(rnn()),
    }
    layer, time = layers[kind](), 7
    rng = np.random.default_rng(seed)
    batch = options.get('batch', (2,))
    shape = (time, *batch, 2) if options.get('layer', {}).get('time_major') else (*batch, time, 2)
    inputs, mask = jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.asarray(rng.random((*batch, time)) < 0.7)
    resets = jnp.asarray(rng.random((*batch, time)) < 0.2)
    flags = {'mask': mask, 'resets': resets} if options.get('flags', True) else {}
    how = flags | options.get('call', {})
    variables = reference.random_variables(layer, inputs)
    state = {name: v for name, v in variables.items() if name != 'params'}
    if 'carry' in state:  # as after the first window
        state['carry'] = {'stream': state['carry']['stream']._replace(started=jnp.array([True, False]))}
    rngs = {'dropout': jax.random.key(3)}

    def loss(params, inputs):
        got = layer.apply({'params': params, **state}, inputs, rngs=rngs, return_carry=True, mutable=['carry'], **how)
        return sum((y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum() for y in jax.tree.leaves(got[0])), got

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables['params'], inputs)


LAYERS = {
    'one row': ('rnn', {'batch': ()}),
    'two axes of rows': ('rnn', {'batch': (2, 3), 'call': {'carry_history': True}}),
    'time major, backward': ('rnn', {'layer': {'time_major': True, 'reverse': True, 'learn_initial_carry': True}}),
    'without flags': ('rnn', {'flags': False, 'layer': {'learn_initial_carry': True}}),
    'dropped connections': ('rnn', {'cell': {'drop_connect': 0.5}}),
    'segments': ('rnn', {'layer': {'remat_segments': 3}, 'cell': {'drop_connect': 0.5}}),
    'half precision': ('rnn', {'cell': {'dtype': jnp.bfloat16}}),
    'bidirectional': ('bidirectional', {'call': {'carry_history': True}}),
    'stack': ('stack', {'call': {'return_sequences': False}}),
    'stateful': ('stateful', {}),
}


SLOW = ('one row', 'without flags', 'dropped connections', 'stack')  # segments drop connections, too


@functools.cache
def by_steps(name):
    return seen(OneByOne, 'auto', *LAYERS[name])


@pytest.mark.representative(by=lambda name, backend: [] if name in SLOW else [name, backend])
@pytest.mark.parametrize('backend', [*lstm.BACKENDS])
@pytest.mark.parametrize('name', LAYERS)
def test_a_layer_gives_what_it_gives_step_by_step(name, backend):
    tolerance = 2e-2 if name == 'half precision' else 1e-5
    assert_near(seen(LSTMCell, backend, *LAYERS[name]), by_steps(name), tolerance)


@pytest.mark.parametrize(
    ('cell', 'options', 'taken'),
    [
        (LSTMCell(3), {}, True),
        (LSTMCell(3, drop_connect=0.1), {}, True),
        (LSTMCell(3), {'variable_axes': {'intermediates': 0}}, False),
        (LSTMCell(3), {'split_rngs': {'params': False}}, False),
        (LSTMCell(3, zoneout_c=0.1), {}, False),
        (LSTMCell(3, peepholes=True), {}, False),
        (LSTMCell(3, activation=nn.relu), {}, False),
        (LSTMCell(3, forget='coupled'), {}, False),
        (OneByOne(3), {}, False),
    ],
)
def test_a_layer_takes_the_array_function_where_the_cell_is_plain(cell, options, taken, monkeypatch):
    layer, x, calls = nn_rnn.RNN(cell, **options), jnp.ones((2, 4, 2)), []
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    function = lstm.lstm
    monkeypatch.setattr(lstm, 'lstm', lambda *args, **how: calls.append(1) or function(*args, **how))
    jax.eval_shape(layer.apply, variables, x)
    assert bool(calls) == taken


def test_gates_are_sown_where_they_are_asked_for():
    x = jnp.ones((2, 4, 2))
    layer = nn_rnn.RNN(LSTMCell(3), variable_axes={'intermediates': 0})
    params = {'params': layer.init(jax.random.key(0), x)['params']}
    outputs, sown = layer.apply(params, x, mutable=['intermediates'])
    gates = sown['intermediates']['cell']
    assert {name: value[0].shape for name, value in gates.items()} == dict.fromkeys('ifgo', (4, 2, 3))
    np.testing.assert_allclose(nn_rnn.RNN(LSTMCell(3), backend='rows').apply(params, x), outputs, atol=1e-6)


@pytest.mark.parametrize('backend', ['auto', *lstm.BACKENDS])
def test_parameters_begin_as_they_always_did(backend):
    """Numbers of the layer that took steps one by one."""
    params = nn_rnn.RNN(LSTMCell(3), backend=backend).init(jax.random.key(0), jnp.ones((2, 4, 2)))['params']['cell']
    sums = {name: float(jnp.abs(x).sum()) for name, x in params.items()}
    assert sums == pytest.approx({'bias': 3, 'kernel': 7.92808, 'recurrent_kernel': 8.594538}, rel=1e-6)
    assert float(params['kernel'][0, 1]) == pytest.approx(-0.6267812)


def test_weights_that_are_not_there_are_flax_s_to_refuse_or_to_make():
    layer, x = nn_rnn.RNN(LSTMCell(3)), jnp.ones((2, 4, 2))
    with pytest.raises(ScopeCollectionNotFound, match='kernel'):
        layer.apply({'params': {'cell': {}}}, x)
    _, made = layer.apply({}, x, rngs={'params': jax.random.key(0)}, mutable=['params'])
    reference.assert_trees_equal(made, layer.init({'params': jax.random.key(0)}, x))
