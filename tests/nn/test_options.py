"""Names: options that are mistyped, activations by name, modules that are copied and pickled."""

import copy
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import activations, models, seq2seq
from seqjax.nn import rnn as nn_rnn
from seqjax.nn.attention import AdditiveAttention
from seqjax.nn.cells.gru_cell import GRUCell
from seqjax.nn.cells.linear_cells import LRUCell, MinGRUCell, MinLSTMCell
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.nn.cells.simple_cell import SimpleRNNCell
from seqjax.nn.wrappers import Bidirectional, Stack, Stateful, TimeDistributed


def rnn():
    return nn_rnn.RNN(LSTMCell(3))


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: LSTMCell(hiden=3), "'hiden'.*'features"),
        (lambda: GRUCell(3, rest_after=False), "'rest_after'.*'reset_after"),
        (lambda: LRUCell(3, rmin=0.5), "'rmin'.*'r_min"),
        (lambda: nn_rnn.RNN(LSTMCell(3), revrse=True), "'revrse'.*'reverse"),
        (lambda: Bidirectional(rnn(), rnn(), merge='sum'), "'merge'.*'merge_"),
        (lambda: Stack([rnn()], droput=0.1), "'droput'.*'dropout"),
        (lambda: Stateful(rn=rnn()), "'rn'.*'rnn"),
        (lambda: TimeDistributed(modul=rnn()), "'modul'.*'module"),
        (lambda: AdditiveAttention(units=3), "'units'.*'features"),
        (lambda: models.recurrent('lstm', 3, layer=2), "'layer'.*'layers"),
        (
            lambda: models.sequence_model('last', 2, features=3, droput=0.1),
            "sequence_model.*'dropout'",
        ),
        (lambda: models.sequence_model('last', 2, features=3, peephole=1), "sequence_model.*'peepholes'"),
        (lambda: seq2seq.encoder_decoder(5, features=3, atention='dot'), "encoder_decoder.*'attention'"),
    ],
)
def test_a_mistyped_option_is_refused_with_the_function_and_the_nearest_option(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: LSTMCell(3, activation='rellu'), "activation='rellu'.*'relu'"),
        (lambda: GRUCell(3, recurrent_activation='sigmod'), "recurrent_activation='sigmod'.*'sigmoid'"),
        (lambda: MinGRUCell(3, activation=1.0), 'activation=1.0'),
        (lambda: nn_rnn.RNN(LSTMCell(3), backend='colums'), "backend='colums'.*'columns'"),
        (lambda: models.recurrent('lsmt', 3), "cell='lsmt'.*'lstm'"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_options_of_subclasses_and_of_flax_are_taken():
    class Mine(LSTMCell):
        extra: int = 0

    class Parent(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn_rnn.RNN(Mine(3, extra=2, name='mine'), name='layer')(x)

    variables = Parent().init(jax.random.key(0), jnp.ones((1, 2, 3)))
    assert set(variables['params']) == {'mine'} or set(variables['params']) == {'layer'}
    with pytest.raises(TypeError, match="'extr'.*'extra"):
        Mine(3, extr=1)


@pytest.mark.parametrize('name', activations.ACTIVATIONS)
def test_an_activation_by_name_is_the_function_of_that_name(name):
    x = jnp.linspace(-3, 3, 9)
    by_name, by_function = SimpleRNNCell(3, activation=name), SimpleRNNCell(3, activation=activations.ACTIVATIONS[name])
    assert by_name == by_function
    np.testing.assert_array_equal(by_name.activation(x), activations.ACTIVATIONS[name](x))


def test_activations_by_name_have_the_values_of_their_definitions():
    x = np.array([-4.0, -1.0, 0.0, 0.5, 4.0])
    e = np.exp(x)
    want = {
        'tanh': np.tanh(x),
        'sigmoid': e / (1 + e),
        'relu': np.maximum(x, 0),
        'softplus': np.log1p(e),
        'softsign': x / (1 + np.abs(x)),
        'silu': x * e / (1 + e),
        'hard_sigmoid': np.clip(x / 6 + 0.5, 0, 1),
        'keras2_hard_sigmoid': np.clip(0.2 * x + 0.5, 0, 1),
        'elu': np.where(x > 0, x, e - 1),
        'selu': 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * (e - 1)),
        'identity': x,
        'positive': np.where(x >= 0, x + 0.5, e / (1 + e)),
    }
    assert set(want) == set(activations.ACTIVATIONS)
    for name, values in want.items():
        np.testing.assert_allclose(activations.named('activation', name)(jnp.asarray(x)), values, rtol=2e-6, atol=1e-6)


def again_pickled(module):
    return pickle.loads(pickle.dumps(module))


def again_by_value(module):
    cloudpickle = pytest.importorskip('cloudpickle')
    return cloudpickle.loads(cloudpickle.dumps(module))


@pytest.mark.representative(1)
@pytest.mark.parametrize(
    'again', [copy.copy, copy.deepcopy, again_pickled, again_by_value, lambda module: module.clone()]
)
@pytest.mark.parametrize(
    'layer',
    [
        nn_rnn.RNN(LSTMCell(4)),
        Bidirectional(
            nn_rnn.RNN(GRUCell(4, recurrent_activation=nn.sigmoid)), nn_rnn.RNN(SimpleRNNCell(4, activation=nn.relu))
        ),
        Stack([nn_rnn.RNN(MinLSTMCell(4, activation='positive')), nn_rnn.RNN(LSTMCell(4, activation=jnp.tanh))]),
    ],
)
def test_a_copied_layer_equals_its_original_in_program_and_numbers(layer, again):
    other, x = again(layer), jnp.ones((2, 12, 3))
    assert other == layer and hash(other) == hash(layer)
    variables = layer.init(jax.random.key(0), x)
    assert str(jax.make_jaxpr(other.apply)(variables, x)) == str(jax.make_jaxpr(layer.apply)(variables, x))
    np.testing.assert_array_equal(other.apply(variables, x), layer.apply(variables, x))


def test_only_functions_of_the_table_are_held_by_name():
    for function in (jnp.arctan, jax.jit(jnp.tanh), lambda x: x):
        assert LSTMCell(3, activation=function).activation is function
        assert not LSTMCell(3, activation=function).fused
    assert LSTMCell(3, activation=jnp.tanh).fused and LSTMCell(3, activation='tanh').fused
