"""Arguments of RNN and its cells that do not fit are refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import rnn
from seqjax.nn.cells.gru_cell import GRUCell
from seqjax.nn.cells.lstm_cell import LSTMCarry, LSTMCell
from seqjax.nn.cells.simple_cell import SimpleRNNCell
from seqjax.nn.wrappers import Bidirectional, Stack
from tests.helpers.layers import (
    B,
    F,
    H,
    T,
    draw,
    started,
)

BAD = {
    'seq_lengths': [
        (np.array([1, 7, 2, 3]), r'seq_lengths\[1\] is 7 and must be from 0 to 6'),
        (np.array([1, 2, -1, 3]), r'seq_lengths\[2\] is -1 and must be from 0 to 6'),
        (np.array([1.0, 2, 3, 4]), 'seq_lengths are float64 and must be integers'),
        (np.array([True] * B), 'seq_lengths are bool and must be integers'),
        (np.array([1, 2, 3]), r'seq_lengths \(3,\) must be \(4,\).*\(4, 6, 3\).*axis 0 is 3, not 4'),
        (np.ones((B, 1), int), r'seq_lengths \(4, 1\) must be \(4,\).*it has 2 axes, not 1'),
        (3, r'seq_lengths \(\) must be \(4,\)'),
    ],
    'mask': [
        (np.ones((B, T)), 'mask is float64 and must be bool'),
        (np.ones((B, T + 1), bool), r'mask \(4, 7\) must be \(4, 6\).*axis 1 is 7, not 6'),
        (np.ones((T, B), bool), r'mask \(6, 4\) must be \(4, 6\).*axis 0 is 6, not 4'),
        (np.ones((B, T, 1), bool), r'mask \(4, 6, 1\) must be \(4, 6\).*3 axes, not 2'),
        (np.ones(B, bool), r'mask \(4,\) must be \(4, 6\)'),
        (np.full((B, T), 2), 'mask contains 2'),
        (np.full((B, T), -1), 'mask contains -1'),
    ],
    'resets': [
        (np.ones((B, T)), 'resets is float64 and must be bool'),
        (np.ones((B, T - 1), bool), r'resets \(4, 5\) must be \(4, 6\)'),
    ],
    'initial_carry': [
        (
            LSTMCarry(np.ones((B, H)), np.ones((B, H + 1))),
            r'initial_carry\.h \(4, 6\) must be \(4, 5\).*axis 1 is 6, not 5',
        ),
        (
            LSTMCarry(np.ones((1, H)), np.ones((1, H))),
            r'initial_carry\.c \(1, 5\) must be \(4, 5\).*axis 0 is 1, not 4',
        ),
        (np.ones((B, H)), 'initial_carry must be .* another structure'),
        ({'c': np.ones((B, H)), 'h': np.ones((B, H))}, 'initial_carry must be .* another structure'),
        (LSTMCarry(np.ones((B, H), int), np.ones((B, H))), r'initial_carry\.c is int32 and must be float32'),
        ((np.ones((B, H), jnp.bfloat16), np.ones((B, H))), r'initial_carry\.c is bfloat16 and must be float32'),
    ],
    'masked_output': [('repeat', "masked_output='repeat' must be one of 'zero', 'hold'")],
}


@pytest.mark.parametrize(('name', 'value', 'message'), [(k, v, m) for k, cases in BAD.items() for v, m in cases])
def test_L04_what_does_not_fit_is_refused_by_name(name, value, message):
    """The argument, both shapes and the axis, or the row and its value; from Bidirectional and Stack as well."""
    layer, variables, x = started('lstm')
    with pytest.raises(ValueError, match=message):
        layer.apply(variables, x, **{name: value})
    if name in ('seq_lengths', 'mask', 'resets', 'masked_output'):
        for wrapper in (Bidirectional(rnn.RNN(LSTMCell(H)), rnn.RNN(LSTMCell(H))), Stack([rnn.RNN(LSTMCell(H))] * 1)):
            with pytest.raises(ValueError, match=message):
                wrapper.init(jax.random.key(0), x, **{name: value})


@pytest.mark.parametrize(
    ('x', 'message'),
    [
        (np.ones(3, np.float32), r'inputs \(3,\)'),
        (np.ones((B, T), int), r'inputs \(4, 6\).*int32'),
    ],
)
def test_inputs_that_are_no_sequences_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        rnn.RNN(LSTMCell(H)).init(jax.random.key(0), jnp.asarray(x))


@pytest.mark.parametrize('name', ['lstm', 'gru', 'tanh'])
def test_inputs_of_other_features_than_the_weights_are_refused(name):
    layer, variables, _ = started(name)
    with pytest.raises(ValueError, match=r'inputs \(4,\).*\(3,\)'):
        layer.apply(variables, draw(B, T, F + 1))


@pytest.mark.parametrize('features', [0, -1, 2.0, True, None, '5'])
@pytest.mark.parametrize('cell', [LSTMCell, GRUCell, SimpleRNNCell])
def test_S13_a_cell_without_hidden_units_is_refused(cell, features):
    with pytest.raises(ValueError, match=f'features={features!r}'):
        cell(features)


@pytest.mark.parametrize('unroll', [0, -1])
def test_an_unroll_below_one_is_refused(unroll):
    with pytest.raises(ValueError, match=f'unroll={unroll}'):
        rnn.RNN(LSTMCell(H), unroll=unroll)
