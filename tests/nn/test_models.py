"""Compositions: shapes, and which inputs an output may depend on."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from seqjax.config import ModelConfig
from seqjax.nn import activations, build, models, rnn
from seqjax.nn.cells.gru_cell import GRUCell
from seqjax.nn.cells.linear_cells import LRUCell, MinGRUCell, MinLSTMCell, RGLRUCell
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.nn.cells.simple_cell import SimpleRNNCell
from seqjax.nn.models import SequenceToSequence, SequenceToVector
from seqjax.nn.wrappers import Stack, Stateful, TimeDistributed
from seqjax.types import ModelSpec, Sequences
from tests.helpers import reference

B, T, F, H, O = 2, 7, 3, 5, 4  # noqa: E741
MODELS = {
    'last': SequenceToVector(rnn.RNN(LSTMCell(H)), nn.Dense(O)),
    'per_step': SequenceToSequence(rnn.RNN(LSTMCell(H)), TimeDistributed(nn.Dense(O))),
}


def start(name):
    x = np.random.default_rng(0).normal(size=(B, T, F)).astype(np.float32)
    return MODELS[name], reference.random_variables(MODELS[name], x), x


@pytest.mark.parametrize(('name', 'shape'), [('last', (B, O)), ('per_step', (B, T, O))])
def test_models_are_their_parts_in_turn(name, shape):
    """The head of the RNN's outputs, all of them or the last; parameters are named after the parts."""
    model, variables, x = start(name)
    params = variables['params']
    assert set(params) == {'rnn', 'head'}
    hidden = rnn.RNN(LSTMCell(H)).apply({'params': params['rnn']}, x)
    hidden = np.asarray(hidden if name == 'per_step' else hidden[:, -1])
    head = params['head']['module'] if name == 'per_step' else params['head']
    got = model.apply(variables, x)
    assert got.shape == shape
    reference.assert_close(got, hidden @ head['kernel'] + head['bias'], 1e-5)


def test_an_answer_depends_on_the_inputs_up_to_its_step_and_on_no_later_one():
    """Gradients at the beginning, in the middle and at the end: 0 from later inputs, not from the others."""
    model, variables, x = start('per_step')
    slopes = jax.jit(jax.jacrev(lambda x: model.apply(variables, x)))(x)  # [B, T, O, B, T, F]
    assert slopes.shape == (B, T, O, B, T, F)
    for t in (0, T // 2, T - 1):
        for row in range(B):
            to_step = np.abs(slopes[row, t])  # [O, B, T, F]
            np.testing.assert_array_equal(to_step[:, row, t + 1 :], 0)
            assert (to_step[:, row, : t + 1].max(axis=(0, 2)) > 1e-6).all()
            np.testing.assert_array_equal(to_step[:, 1 - row], 0)  # nor on another sequence of the batch


def test_one_answer_depends_on_every_input_of_its_sequence():
    """At the beginning, in the middle and at the end; on no other sequence of the batch."""
    model, variables, x = start('last')
    slopes = np.abs(jax.jit(jax.jacrev(lambda x: model.apply(variables, x)))(x))  # [B, O, B, T, F]
    for row in range(B):
        assert (slopes[row, :, row].max(axis=(0, 2)) > 1e-6).all()
        np.testing.assert_array_equal(slopes[row, :, 1 - row], 0)


def test_a_model_answers_sequences_of_another_length():
    """The parameters fit any T, and the answers to the first steps stay what they are."""
    model, variables, x = start('per_step')
    apply = jax.jit(model.apply)
    whole = apply(variables, x)
    reference.assert_close(apply(variables, x[:, :3]), whole[:, :3], 1e-5)
    longer = apply(variables, np.concatenate([x, x], 1))
    assert longer.shape == (B, 2 * T, O)
    reference.assert_close(longer[:, :T], whole, 1e-5)


# --- tokens, lengths and the constructor -----------------------------------------------------------

VOCABULARY = 9
LENGTHS = np.array([7, 3])


def tokens(seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, (B, T))


@pytest.mark.representative(1)
@pytest.mark.parametrize('answer', ['last', 'per_step'])
@pytest.mark.parametrize(
    'options', [{}, {'bidirectional': True}, {'layers': 2, 'cell': 'gru', 'learn_initial_carry': True}]
)
def test_padding_reaches_no_answer(answer, options):
    """Tokens with lengths, as a tuple or as Sequences: what stands behind them, even no token at all, is not read."""
    model = models.sequence_model(answer, O, features=H, vocabulary=VOCABULARY, embedding=4, **options)
    x = tokens()
    variables = reference.random_variables(model, x)
    want = model.apply(variables, (x, LENGTHS))
    mask = np.arange(T) < LENGTHS[:, None]
    for padding in (0, -1, 10**6):
        padded = np.where(mask, x, padding)
        np.testing.assert_array_equal(model.apply(variables, Sequences(padded, LENGTHS)), want)
        np.testing.assert_array_equal(model.apply(variables, Sequences(padded, mask=mask)), want)
    for row, length in enumerate(LENGTHS):
        alone = model.apply(variables, x[row : row + 1, :length])
        got = want[row] if answer == 'last' else want[row, :length]
        reference.assert_close(got, alone[0], 1e-5)
    if answer == 'per_step':
        np.testing.assert_array_equal(np.asarray(want)[~mask], 0)


@pytest.mark.parametrize('answer', ['last', 'per_step'])
def test_a_models_carry_goes_out_and_in(answer):
    """Of a stack in both directions too; and a reset forgets it."""
    model = models.sequence_model(answer, O, features=H, layers=2)
    x = np.random.default_rng(0).normal(size=(B, T, F)).astype(np.float32)
    variables = reference.random_variables(model, x)
    carry, outputs = model.apply(variables, x, return_carry=True)
    np.testing.assert_array_equal(outputs, model.apply(variables, x))
    again = model.apply(variables, x, initial_carry=carry)
    assert np.abs(again - outputs).max() > 1e-3
    resets = np.zeros((B, T), bool)
    resets[:, 0] = True
    fresh = model.apply(variables, Sequences(x, resets=resets), initial_carry=carry)
    reference.assert_close(fresh, outputs, 1e-6)
    middle, _ = model.apply(variables, x[:, :3], return_carry=True)
    rest = model.apply(variables, x[:, 3:], initial_carry=middle)
    reference.assert_close(rest, outputs if answer == 'last' else outputs[:, 3:], 1e-5)


def test_the_constructor_builds_what_it_says():
    """Kinds and sizes of all parts, cells of Flax among them."""
    both = models.sequence_model('last', O, features=H, layers=2, bidirectional=True, merge_mode='sum', dropout=0.1)
    assert isinstance(both, SequenceToVector) and isinstance(both.rnn, Stack) and both.rnn.dropout == 0.1
    assert [layer.merge_mode for layer in both.rnn.layers] == ['sum', 'sum'] and both.embed is None
    stream = models.sequence_model('per_step', O, features=H, vocabulary=VOCABULARY, stateful=True, cell=nn.GRUCell)
    assert isinstance(stream.rnn, Stateful) and isinstance(stream.rnn.rnn.cell, nn.GRUCell)
    assert (stream.embed.num_embeddings, stream.embed.features) == (VOCABULARY, H)
    plain = models.recurrent('simple', H, activation=nn.relu, unroll=3)
    assert (
        isinstance(plain, rnn.RNN)
        and plain.unroll == 3
        and plain.cell.activation == activations.named('activation', 'relu')
    )
    for cell, kind in (('lstm', LSTMCell), ('gru', GRUCell), ('simple', SimpleRNNCell)):
        assert type(models.recurrent(cell, H).cell) is kind


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'output': 'sequences'}, "output='sequences'"),
        ({'cell': 'lsmt'}, "cell='lsmt'"),
        ({'layers': 0}, 'layers=0'),
        ({'features': 0}, 'features=0'),
        ({'embedding': 4}, 'embedding=4'),
        ({'stateful': True, 'bidirectional': True}, 'stateful.*bidirectional'),
        ({'bidirectional': True, 'layers': 2, 'merge_mode': 'none'}, "merge_mode='none'"),
        ({'bidirectional': True, 'merge_mode': 'none'}, "merge_mode='none'"),
        ({'vocabulary': 5, 'embedding': 0}, 'embedding=0'),
        ({'dropout': 2, 'layers': 2}, 'dropout=2'),
    ],
)
def test_models_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        models.sequence_model(**{'output': 'last', 'outputs': O, 'features': H, **options})


@pytest.mark.parametrize(
    ('inputs', 'message'),
    [
        (np.full((B, T), VOCABULARY), r'tokens\[0, 0\].*9'),
        (np.full((B, T), -1), r'tokens\[0, 0\].*-1'),
        (np.ones((B, T)), r'tokens \(2, 7\).*float32'),
        (np.ones((B, T, 1), int), r'tokens \(2, 7, 1\)'),
        (np.ones(T, int), r'tokens \(7,\)'),
        ((np.ones((B, T), int),) * 5, 'inputs'),
        ((np.ones((B, T), int), np.array([8, 1])), r'seq_lengths\[0\].*8'),
    ],
)
def test_tokens_that_are_none_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        models.sequence_model('last', O, features=H, vocabulary=VOCABULARY).init(jax.random.key(0), inputs)


def test_tokens_without_an_embedding_are_refused():
    with pytest.raises(ValueError, match=r'inputs \(2, 7\).*embed'):
        models.sequence_model('last', O, features=H).init(jax.random.key(0), tokens())


@pytest.mark.representative(1)
@pytest.mark.parametrize('token', [-1, -3, 4, 255, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize('vocabulary', [1, 4])
@pytest.mark.parametrize('answer', ['last', 'per_step'])
def test_compiled_models_give_nan_for_a_token_that_is_none(answer, vocabulary, token):
    """From its step on, in its row alone; -1 is not the last row of the embedding. In padding it may be anything."""
    model = models.sequence_model(answer, 2, features=3, vocabulary=vocabulary)
    tokens, lengths = np.zeros((3, 4), np.int64), np.array([4, 3, 4])
    variables = model.init(jax.random.key(0), (tokens, lengths))
    run, want = jax.jit(model.apply), model.apply(variables, (tokens, lengths))
    tokens[0, 2] = tokens[1, 3] = token
    got = run(variables, (tokens.astype(np.int32), lengths))
    np.testing.assert_allclose(got[1:], want[1:], rtol=1e-5, atol=1e-7)
    assert np.isnan(got[0] if answer == 'last' else got[0, 2:]).all()
    with pytest.raises(ValueError, match=r'tokens\[0, 2\]'):
        model.apply(variables, (tokens, lengths))


@pytest.mark.parametrize('vocabulary', [None, 4])
def test_compiled_models_give_nan_for_a_length_that_cannot_be(vocabulary):
    model = models.sequence_model('per_step', 2, features=3, vocabulary=vocabulary, layers=2, bidirectional=True)
    inputs = np.ones((3, 4), np.int32) if vocabulary else np.ones((3, 4, 2), np.float32)
    variables = model.init(jax.random.key(0), inputs)
    run = jax.jit(model.apply)
    got = run(variables, (inputs, np.array([5, 3, -1])))
    assert np.isnan(got[::2]).all()
    np.testing.assert_array_equal(got[1], run(variables, (inputs, np.array([4, 3, 0])))[1])


def test_a_cell_is_found_by_its_name_with_its_options():
    assert {
        'lstm': LSTMCell,
        'gru': GRUCell,
        'simple': SimpleRNNCell,
        'mingru': MinGRUCell,
        'minlstm': MinLSTMCell,
        'lru': LRUCell,
        'rglru': RGLRUCell,
    } == models.CELLS
    assert models.find_cell('lstm(peepholes=True, forget=coupled)') == (
        LSTMCell,
        {'peepholes': True, 'forget': 'coupled'},
    )
    assert models.find_cell('seqjax.nn.cells.linear_cells:LRUCell(r_min=0.5)') == (LRUCell, {'r_min': 0.5})


@pytest.mark.parametrize(
    'text', ['lsmt', '', 'lstm(', 'lstm(3)', 'lstm(a=open(1))', 'os:path', 'seqjax.cells:NoCell', 'nowhere:Cell', ':']
)
def test_a_cell_that_is_none_is_refused_by_name(text):
    with pytest.raises(ValueError, match='^cell='):
        models.find_cell(text)


def test_a_model_is_built_of_a_spec_and_a_configuration():
    config = ModelConfig(cell='lstm(peepholes=True)', hidden=H, layers=2, dropout=0.5, forget_bias_init='chrono')
    model = build.build_model(ModelSpec('per_step', O, vocabulary=VOCABULARY, memory_span=9), config)
    assert isinstance(model, SequenceToSequence) and model.rnn.layers[0].cell.peepholes


@pytest.mark.parametrize(
    ('spec', 'config', 'name'),
    [
        ({}, {'dropout': 0.5}, 'dropout=0.5'),
        ({'causal': True}, {'bidirectional': True}, 'bidirectional=True'),
        ({}, {'forget_bias_init': 'chrono'}, 'forget_bias_init=chrono'),
        ({}, {'attention': 'dot'}, 'attention=dot'),
        ({}, {'cell': 'lru', 'recurrent_dropout': 0.5}, 'recurrent_dropout=0.5'),
        ({}, {'cell': 'lstm(peephole=True)'}, 'peephole'),
        ({'output': 'seq2seq'}, {'parallel': True}, 'parallel=True'),
        ({'output': 'seq2seq'}, {'input_dropout': 0.5}, 'input_dropout=0.5'),
    ],
)
def test_a_model_that_cannot_be_is_refused_by_the_field_that_it_is_about(spec, config, name):
    with pytest.raises(ValueError, match=name):
        build.build_model(ModelSpec(**{'output': 'last', 'outputs': O, 'vocabulary': 4, **spec}), ModelConfig(**config))
