"""Outputs and states against the constants of Keras's own tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import rnn
from seqjax.nn.cells.lstm_cell import LSTMCarry, LSTMCell
from seqjax.nn.wrappers import Bidirectional, Stack, Stateful
from tests.helpers.oracles import CELLS, apply

# From keras/src/layers/rnn/{lstm,gru,simple_rnn,bidirectional,stacked_rnn_cells}_test.py of Keras 3.15.1 (Apache 2.0):
# the numbers alone. Inputs count from 0, kernels are .01, recurrent kernels .02, biases .03; with its
# `unit_forget_bias` the biases of the forget gate are 1, not 1.03.


def count(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def constant_weights(module, x, kernel=0.01, recurrent_kernel=0.02, bias=0.03, forget_bias=1.0):
    """Variables of `module` in which each weight has one value."""
    values = {'kernel': kernel, 'recurrent_kernel': recurrent_kernel, 'bias': bias, 'recurrent_bias': bias}

    def fill(path, like):
        filled = np.full(like.shape, values[path[-1].key], like.dtype)
        if path[-1].key == 'bias' and forget_bias is not None and filled.size % 4 == 0:
            filled.reshape(4, -1)[1] = forget_bias
        return filled

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(module.init, jax.random.key(0), x))


def constant_layer(kind, units, x, forget_bias=1.0, bias=0.03, **options):
    """A layer and its variables."""
    layer = rnn.RNN(CELLS[kind](units), **options)
    return layer, constant_weights(layer, x, bias=bias, forget_bias=forget_bias if kind == 'lstm' else None)


def assert_constants(got, want):
    """Keras's tests say 1e-5; where their constants are one for all units, so must ours be."""
    want = np.asarray(want)
    want = want if want.ndim == np.ndim(got) else np.repeat(want[..., None], got.shape[-1], axis=-1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('kind', 'shape', 'units', 'options', 'want'),
    [
        ('lstm', (3, 6, 4), 3, {}, [0.6288687, 0.86899155, 0.9460773]),
        ('lstm', (3, 6, 4), 3, {'reverse': True}, [0.35622165, 0.74789524, 0.8872726]),
        ('lstm', (3, 6, 4), 3, {'unroll': 6}, [0.6288687, 0.86899155, 0.9460773]),
        ('lstm', (3, 6, 4), 3, {'forget_bias': 0.03}, [0.57019705, 0.8661914, 0.9459622]),
        ('lstm', (3, 6, 4), 3, {'forget_bias': 0.0, 'bias': 0.0}, [0.54986924, 0.86226785, 0.9443936]),
        ('gru', (3, 6, 4), 3, {}, [0.5217289, 0.6371659, 0.39384964]),
        ('gru', (3, 6, 4), 3, {'reverse': True}, [0.24406259, 0.611516, 0.3928808]),
        ('gru', (3, 6, 4), 3, {'bias': 0.0}, [0.49988455, 0.64701194, 0.4103359]),
        ('gru_reset_before', (3, 6, 4), 3, {}, [0.51447755, 0.6426879, 0.40208298]),
        ('tanh', (2, 3, 4), 4, {}, [0.405432, 0.73605347]),
        ('tanh', (2, 3, 4), 4, {'reverse': True}, [0.11144729, 0.5528889]),
    ],
)
def test_last_outputs_are_the_constants_of_keras(kind, shape, units, options, want):
    """Forward and backward, with and without biases."""
    layer, weights = constant_layer(kind, units, count(*shape), **options)
    assert_constants(apply(layer, weights, count(*shape), return_sequences=False), want)


@pytest.mark.parametrize(
    ('kind', 'units', 'reverse', 'want'),
    [
        ('lstm', 2, False, [[0.20574439, 0.3558822], [0.64930826, 0.66276]]),
        ('lstm', 2, True, [[0.13281618, 0.2790356], [0.5839337, 0.5992567]]),
        ('gru', 2, False, [[0.23774096, 0.33508456], [0.83659905, 1.0227708]]),
        ('gru', 2, True, [[0.13486053, 0.23261218], [0.78257304, 0.9691353]]),
        ('tanh', 4, False, [0.33621645, 0.6262637]),
        ('tanh', 4, True, [0.07344437, 0.43043602]),
    ],
)
def test_given_states_lead_to_the_constants_of_keras(kind, units, reverse, want):
    """All parts of the state count from 0."""
    layer, weights = constant_layer(kind, units, count(2, 4, 3), reverse=reverse)
    carry = (count(2, units),) * (2 if kind == 'lstm' else 1)
    carry, outputs = apply(
        layer, weights, count(2, 4, 3), initial_carry=carry, return_carry=True, return_sequences=False
    )
    assert_constants(outputs, want)
    np.testing.assert_array_equal(carry.h, outputs)


RIGHT = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
HOLES = np.array([[1, 1, 0, 1], [1, 0, 0, 1]], bool)


@pytest.mark.parametrize(
    ('kind', 'units', 'reverse', 'mask', 'want'),
    [
        ('lstm', 2, False, RIGHT, [0.11755939, 0.28556206]),
        ('lstm', 2, True, RIGHT[:, ::-1], [0.15341201, 0.3844719]),
        ('gru', 2, False, HOLES, [0.19393763, 0.30818558]),
        ('gru', 2, True, HOLES, [0.11669192, 0.28380975]),
        ('tanh', 4, False, HOLES, [0.32951632, 0.61799484]),
        ('tanh', 4, True, HOLES, [0.07376196, 0.43645123]),
    ],
)
def test_last_outputs_with_a_mask_are_the_constants_of_keras(kind, units, reverse, mask, want):
    """Padding right, padding left for the LSTM that goes backward, and holes."""
    layer, weights = constant_layer(kind, units, count(2, 4, 3), reverse=reverse)
    assert_constants(apply(layer, weights, count(2, 4, 3), mask=mask, return_sequences=False), want)


@pytest.mark.parametrize('masked_output', ['hold', 'zero'])
@pytest.mark.parametrize(
    ('kind', 'mask', 'want'),
    [
        ('lstm', RIGHT, [[0.01588910, 0.05552048, 0.11755939, 0.11755939], [0.14185596] + 3 * [0.28556206]]),
        ('gru', HOLES, [[0.03606692, 0.09497581, 0.09497581, 0.19393763], 3 * [0.16051409] + [0.30818558]]),
        ('tanh', HOLES, [[0.0599281, 0.15122814, 0.15122814, 0.32394567], 3 * [0.3969304] + [0.608085]]),
    ],
)
def test_all_outputs_with_a_mask_are_the_constants_of_keras(kind, mask, want, masked_output):
    """What a masked step shows: the output before it, or 0 as with `zero_output_for_mask`."""
    layer, weights = constant_layer(kind, 2, count(2, 4, 3), masked_output=masked_output)
    want = np.where(mask, want, 0) if masked_output == 'zero' else want
    assert_constants(apply(layer, weights, count(2, 4, 3), mask=mask), want)


def test_M13_two_stacked_lstms_with_a_mask_have_the_constants_of_keras():
    """One unit each, kernels of ones: .7793, and .5998 for the row whose last step is masked."""
    x, mask = np.ones((2, 3, 4), np.float32), np.array([[1, 1, 1], [1, 1, 0]], bool)
    layer = Stack([rnn.RNN(LSTMCell(1)) for _ in range(2)])
    weights = constant_weights(layer, x, kernel=1, recurrent_kernel=1, bias=0)
    outputs = apply(layer, weights, x, mask=mask, return_sequences=False)
    np.testing.assert_allclose(outputs, [[0.7793], [0.5998]], atol=1e-4)
    lengths = apply(layer, weights, x, seq_lengths=np.array([3, 2]), return_sequences=False)
    np.testing.assert_array_equal(lengths, outputs)


@pytest.mark.parametrize(
    ('kind', 'want'),
    [('lstm', [0.3124785, 0.6863672]), ('gru', [0.29542392, 0.5885018]), ('tanh', [0.40559256, 0.7361247])],
)
def test_S04_the_second_call_has_the_constants_of_keras_stateful(kind, want):
    """The same window twice, rows .3124785 and .6863672 for the LSTM: handed on by hand, and by `Stateful`."""
    x = count(2, 3, 4)
    layer, weights = constant_layer(kind, 4, x)
    carry, _ = apply(layer, weights, x, return_carry=True)
    assert_constants(apply(layer, weights, x, initial_carry=carry, return_sequences=False), want)

    stream, variables = Stateful(layer), {'params': {'rnn': weights['params']}}
    _, kept = apply(stream, variables, x, mutable='carry')
    assert_constants(apply(stream, {**variables, **kept}, x, return_sequences=False), want)


def constant_bidirectional(kind, x, **options):
    layer = Bidirectional(rnn.RNN(CELLS[kind](2)), rnn.RNN(CELLS[kind](2)), **options)
    return layer, constant_weights(layer, x, forget_bias=1.0 if kind == 'lstm' else None)


def test_B02_bidirectional_states_are_the_constants_of_keras():
    """Both of both directions; handed back they continue, as Keras's stateful layer does."""
    x = count(2, 4, 3)
    layer, weights = constant_bidirectional('lstm', x, return_carry=True)
    (forward, backward), outputs = apply(layer, weights, x, return_sequences=False)
    assert_constants(forward.h, [0.1990008, 0.52335435])
    assert_constants(forward.c, [0.35567185, 1.0492687])
    assert_constants(backward.h, [0.12659755, 0.44717982])
    assert_constants(backward.c, [0.2501858, 0.941473])
    np.testing.assert_array_equal(outputs, np.concatenate([forward.h, backward.h], axis=-1))
    _, again = apply(layer, weights, x, initial_carry=(forward, backward), return_sequences=False)
    assert_constants(again[:, :2], [0.26234663, 0.6137073])
    assert_constants(again[:, 2:], [0.16959146, 0.5381646])


def test_B02_bidirectional_continues_from_the_given_states_of_keras():
    """h and c of the forward layer, then of the backward one: 0 to 3, times 1, 2, 3 and 4."""
    x, states = count(2, 4, 3), [n * count(2, 2) for n in (1, 2, 3, 4)]
    layer, weights = constant_bidirectional('lstm', x)
    carry = LSTMCarry(h=states[0], c=states[1]), LSTMCarry(h=states[2], c=states[3])
    outputs = apply(layer, weights, x, initial_carry=carry, return_sequences=False)
    want = [[0.20794602, 0.4577124, 0.14046375, 0.48191673], [0.6682636, 0.6711909, 0.60943645, 0.60950446]]
    assert_constants(outputs, want)


def test_bidirectional_outputs_are_the_constants_of_keras():
    """Simple layers merged by concat, ave, None and mul; GRUs by sum at every step; GRUs with holes."""
    x = count(2, 3, 4)
    forward, backward = [0.39687276, 0.7237238], [0.10004295, 0.53391594]
    for merge_mode in ('concat', 'ave', None):
        layer, weights = constant_bidirectional('tanh', x, merge_mode=merge_mode)
        got = apply(layer, weights, x, return_sequences=False)
        if merge_mode == 'ave':
            assert_constants(got, [0.24845785, 0.6288199])
        else:
            got = jnp.split(got, 2, axis=-1) if merge_mode else got
            assert_constants(got[0], forward)
            assert_constants(got[1], backward)

    layer, weights = constant_bidirectional('tanh', x, merge_mode='mul')
    other = constant_weights(layer, x, kernel=0.03, bias=0.01, forget_bias=None)
    weights['params']['backward_rnn'] = other['params']['backward_rnn']
    assert_constants(apply(layer, weights, x, return_sequences=False), [0.08374989, 0.6740834])

    layer, weights = constant_bidirectional('gru', x, merge_mode='sum')
    want = [[0.20937867, 0.34462988, 0.40290534], [0.59829646, 0.6734641, 0.6479671]]
    assert_constants(apply(layer, weights, x), want)

    layer, weights = constant_bidirectional('gru', count(2, 4, 3))
    got = apply(layer, weights, count(2, 4, 3), mask=HOLES, return_sequences=False)
    assert_constants(got[:, :2], [0.19393763, 0.30818558])
    assert_constants(got[:, 2:], [0.11669192, 0.28380975])
