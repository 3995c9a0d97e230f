"""The three setups: what goes in, what comes out, and the same training as in Keras."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import training
from seqjax.config import ModelConfig
from seqjax.nn.build import build_model
from seqjax.reporting import text_tables
from seqjax.tasks import td
from seqjax.types import Batch
from tests.helpers import reference

SHAPES = {  # setup -> inputs, targets, mask for length L
    'one_to_one': lambda n: ((n, 1, 1), (n, 1), (n,)),
    'many_to_one': lambda n: ((1, n, 1), (1, n), (1,)),
    'many_to_many': lambda n: ((1, n, 1), (1, n, 1), (1,)),
}
COUNTS = {'one_to_one': 146, 'many_to_one': 170, 'many_to_many': 146}
OUTPUTS = {'one_to_one': 1, 'many_to_one': 5, 'many_to_many': 1}


def model_of(task, cell='lstm'):
    """The notebook's model."""
    return build_model(task.spec, ModelConfig(cell=cell, hidden=5))


def dense(setup, params):
    return params['head']['module'] if setup == 'many_to_many' else params['head']


@pytest.mark.parametrize('length', [4, 1])
@pytest.mark.parametrize('setup', td.SETUPS)
def test_batches_hold_the_sequence_in_the_shapes_of_the_setup(setup, length):
    """Inputs and targets are both i / length, everything counts, and the model answers in the targets' shape."""
    task = td.td(setup, length=length)
    model = build_model(task.spec, ModelConfig(hidden=3))
    batch = task.batch(task.data, jax.random.key(0), jnp.int32(7))
    assert isinstance(batch, Batch)
    assert tuple(x.shape for x in batch) == SHAPES[setup](length)
    np.testing.assert_array_equal(np.ravel(batch.inputs), np.float32([i / length for i in range(length)]))
    np.testing.assert_array_equal(np.ravel(batch.targets), np.ravel(batch.inputs))
    assert batch.inputs.dtype == batch.targets.dtype == np.float32
    assert batch.mask.dtype == bool and batch.mask.all()
    outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), batch.inputs)
    assert outputs.shape == batch.targets.shape
    width = length if setup == 'many_to_one' else 1
    assert text_tables.count_params(variables['params']) == 4 * ((1 + 1) * 3 + 3 * 3) + (3 + 1) * width


def test_sequence_is_i_over_length():
    np.testing.assert_array_equal(td.sequence(4), [0, 0.25, 0.5, 0.75])
    assert td.sequence(5).dtype == np.float32


@pytest.mark.parametrize('setup', td.SETUPS)
def test_the_loss_is_the_mean_squared_error_of_the_whole_batch(setup):
    """Against NumPy, for outputs that are drawn at random."""
    task = td.td(setup)
    outputs = np.random.default_rng(0).normal(size=task.data.targets.shape).astype(np.float32)
    got = task.loss(outputs, task.data)['loss']
    assert got.count == 5
    reference.assert_close(got.compute(), np.mean((outputs - task.data.targets) ** 2), 1e-6)


@pytest.mark.parametrize('setup', td.SETUPS)
def test_parameter_counts_are_the_notebooks(setup):
    """146, 170 and 146: 140 for the LSTM, 6 or 30 for the dense layer."""
    task = td.td(setup)
    params = jax.eval_shape(model_of(task).init, jax.random.key(0), task.data.inputs)['params']
    assert text_tables.count_params(params) == COUNTS[setup]
    assert text_tables.count_params(params['rnn']) == 140
    assert text_tables.count_params(params['head']) == 6 * OUTPUTS[setup]


@pytest.mark.parametrize('setup', td.SETUPS)
def test_weights_begin_as_keras_layers_do(setup):
    """The dense kernel is Glorot uniform, as Flax's own default is not; its bias 0; the LSTM's forget bias 1."""
    task = td.td(setup)
    model = model_of(task)
    keys = jax.random.split(jax.random.key(0), 2000)
    params = jax.jit(jax.vmap(lambda key: model.init(key, task.data.inputs)))(keys)['params']
    head, shape = dense(setup, params), (5, OUTPUTS[setup])
    assert head['kernel'].shape == (2000, *shape)
    bound = np.sqrt(6 / sum(shape))
    assert reference.is_uniform(head['kernel'], bound)
    lecun = jax.vmap(lambda key: nn.Dense(shape[1]).init(key, jnp.ones((1, 5))))(keys)['params']['kernel']
    assert lecun.shape == head['kernel'].shape and not reference.is_uniform(lecun, bound)
    np.testing.assert_array_equal(head['bias'], 0)
    np.testing.assert_array_equal(params['rnn']['cell']['bias'][-1], np.repeat([0, 1, 0, 0], 5))


@pytest.mark.parametrize('setup', td.SETUPS)
def test_twenty_steps_of_training_equal_keras(keras, compiled_td, setup):
    """From the same initial weights, Keras's losses to relative 1e-5 at every step, and its last predictions."""
    trained, task, tx, programs = compiled_td(setup)
    state = programs.init(np.uint32(1))
    inputs, targets, _ = task.data
    with jax.numpy_rank_promotion('allow'):
        layers = keras.layers
        head = layers.Dense(OUTPUTS[setup])
        model = keras.Sequential(
            [
                layers.Input(inputs.shape[1:]),
                layers.LSTM(5, return_sequences=setup == 'many_to_many'),
                layers.TimeDistributed(head) if setup == 'many_to_many' else head,
            ]
        )
        cell, final = state.params['rnn']['cell'], dense(setup, state.params)
        weights = [cell['kernel'], cell['recurrent_kernel'], cell['bias'], final['kernel'], final['bias']]
        model.set_weights([np.asarray(x) for x in weights])
        assert model.count_params() == COUNTS[setup]
        model.compile(loss='mean_squared_error', optimizer=keras.optimizers.Adam(1e-3, epsilon=1e-7))
        want = []
        for _ in range(20):
            model.reset_metrics()  # or each loss is the mean of all so far
            want.append(float(model.train_on_batch(inputs, targets)))
        want_outputs = model(inputs)
    ((state, metrics, _),) = training.train(
        trained, task, tx, state, steps=20, steps_per_call=20, train_chunk=programs.train_chunk
    )
    losses = metrics['loss'].total / metrics['loss'].count
    assert abs(want[-1] / want[0] - 1) > 0.02  # it moves by far more than the tolerance
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    reference.assert_close(programs.predict(state, inputs), want_outputs, 1e-4)


def test_unroll_changes_no_number():
    """However the loop over time is compiled, the model answers the same."""
    task = td.td('many_to_many')
    model = model_of(task)
    variables = reference.random_variables(model, task.data.inputs)
    want = model.apply(variables, task.data.inputs)
    for unroll in (1, 2):
        other = task._replace(spec=task.spec._replace(unroll=unroll))
        got = model_of(other).apply(variables, task.data.inputs)
        reference.assert_close(got, want, 1e-6)


def test_recurrent_activation_reaches_the_gates():
    """Each of the three gives other outputs from the same weights."""
    task = td.td('many_to_one')
    names = ('sigmoid', 'hard_sigmoid', 'keras2_hard_sigmoid')
    models = [model_of(task, f'lstm(recurrent_activation={name})') for name in names]
    inputs = task.data.inputs
    variables = reference.random_variables(models[0], inputs)
    outputs = [np.asarray(jax.jit(model.apply)(variables, inputs)) for model in models]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(outputs[one] - outputs[other]).max() > 1e-3


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'one_to_two'.*'one_to_one'.*'many_to_one'.*'many_to_many'"):
        td.td('one_to_two')
    with pytest.raises(ValueError, match="'relus'.*'sigmoid'.*'keras2_hard_sigmoid'"):
        model_of(td.td('one_to_one'), 'lstm(recurrent_activation=relus)')
