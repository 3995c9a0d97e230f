"""Compositions: shapes, and which inputs an output may depend on."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from seqjax.cells import LSTMCell
from seqjax.layers import RNN, TimeDistributed
from seqjax.models import SequenceToSequence, SequenceToVector
from tests import reference

B, T, F, H, O = 2, 7, 3, 5, 4  # noqa: E741
MODELS = {
    'vector': SequenceToVector(RNN(LSTMCell(H)), nn.Dense(O)),
    'sequence': SequenceToSequence(RNN(LSTMCell(H)), TimeDistributed(nn.Dense(O))),
}


def start(name):
    x = np.random.default_rng(0).normal(size=(B, T, F)).astype(np.float32)
    return MODELS[name], reference.random_variables(MODELS[name], x), x


@pytest.mark.parametrize(('name', 'shape'), [('vector', (B, O)), ('sequence', (B, T, O))])
def test_models_are_their_parts_in_turn(name, shape):
    """The head of the RNN's outputs, all of them or the last; parameters are named after the parts."""
    model, variables, x = start(name)
    params = variables['params']
    assert set(params) == {'rnn', 'head'}
    hidden = RNN(LSTMCell(H)).apply({'params': params['rnn']}, x)
    hidden = np.asarray(hidden if name == 'sequence' else hidden[:, -1])
    head = params['head']['module'] if name == 'sequence' else params['head']
    got = model.apply(variables, x)
    assert got.shape == shape
    reference.assert_close(got, hidden @ head['kernel'] + head['bias'], 1e-5)


def test_an_answer_depends_on_the_inputs_up_to_its_step_and_on_no_later_one():
    """Gradients at the beginning, in the middle and at the end: 0 from later inputs, not from the others."""
    model, variables, x = start('sequence')
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
    model, variables, x = start('vector')
    slopes = np.abs(jax.jit(jax.jacrev(lambda x: model.apply(variables, x)))(x))  # [B, O, B, T, F]
    for row in range(B):
        assert (slopes[row, :, row].max(axis=(0, 2)) > 1e-6).all()
        np.testing.assert_array_equal(slopes[row, :, 1 - row], 0)


def test_a_model_answers_sequences_of_another_length():
    """The parameters fit any T, and the answers to the first steps stay what they are."""
    model, variables, x = start('sequence')
    apply = jax.jit(model.apply)
    whole = apply(variables, x)
    reference.assert_close(apply(variables, x[:, :3]), whole[:, :3], 1e-5)
    longer = apply(variables, np.concatenate([x, x], 1))
    assert longer.shape == (B, 2 * T, O)
    reference.assert_close(longer[:, :T], whole, 1e-5)
