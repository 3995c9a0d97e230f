"""Layers, outputs, carries and all gradients against Keras."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import rnn
from seqjax.nn.cells.lstm_cell import LSTMCarry, LSTMCell
from seqjax.nn.cells.simple_cell import SimpleRNNCell
from seqjax.nn.wrappers import Bidirectional, TimeDistributed
from tests.helpers import reference
from tests.helpers.oracles import (
    CELLS,
    F32,
    F64,
    MASKS,
    RTOL,
    VALID,
    B,
    F,
    H,
    T,
    apply,
    assert_all_reached,
    assert_same,
    differentiated,
    draw,
    draw_args,
    draw_carry,
    draw_weights,
)


def keras_weights(kind, cell):
    """The list that Keras has of one cell: its GRU with `reset_after` has both biases as rows of one."""
    bias = jnp.stack([cell['bias'], cell['recurrent_bias']]) if kind == 'gru' else cell['bias']
    return [cell['kernel'], cell['recurrent_kernel'], bias]


def keras_state(carry):
    """[h, c], or [h]."""
    return list(carry)[::-1]


def keras_layer(keras, kind, dtype, **options):
    make = {
        'lstm': keras.layers.LSTM,
        'gru': keras.layers.GRU,
        'gru_reset_before': functools.partial(keras.layers.GRU, reset_after=False),
        'tanh': keras.layers.SimpleRNN,
        'relu': functools.partial(keras.layers.SimpleRNN, activation='relu'),
    }
    layer = make[kind](H, dtype=dtype, **options)
    if kind != 'relu':
        layer.cell.activation = jnp.tanh  # Keras's own rounds float64 to float32 on its JAX backend
    return layer


def keras_call(layer):
    """weights, inputs, options -> outputs: the layer as a pure function."""
    layer.build((B, T, F))
    state = [v.value for v in layer.non_trainable_variables]
    return lambda weights, *args, **options: layer.stateless_call(weights, state, *args, **options)[0]


@functools.cache
def keras_run(keras, kind, reverse, dtype):
    """Outputs in the order of the inputs and final states of one layer of Keras."""
    with jax.numpy_rank_promotion('allow'):
        options = {'go_backwards': reverse, 'return_sequences': True, 'return_state': True, 'dtype': dtype}
        layer = keras_call(keras_layer(keras, kind, zero_output_for_mask=True, **options))

    def run(args, mask):
        weights, state = keras_weights(kind, args['weights']['params']['cell']), keras_state(args['carry'])
        outputs, *state = layer(weights, args['inputs'], mask=mask, initial_state=state)
        return {'outputs': jnp.flip(outputs, 1) if reverse else outputs, 'state': state}

    return differentiated(run)


@functools.cache
def our_run(kind, reverse, dtype):
    """The same of ours."""
    layer = rnn.RNN(CELLS[kind](H, param_dtype=dtype), reverse=reverse, keep_order=True, return_carry=True)

    def run(args, mask):
        carry, outputs = layer.apply(args['weights'], args['inputs'], initial_carry=args['carry'], mask=mask)
        return {'outputs': outputs, 'state': keras_state(carry)}

    return differentiated(run)


def compare_keras(keras, kind, mask, reverse, dtype):
    args, mask = draw_args(kind, dtype), MASKS[mask]
    got = our_run(kind, reverse, dtype)(args, mask=mask)
    with jax.numpy_rank_promotion('allow'):
        want = keras_run(keras, kind, reverse, dtype)(args, mask=mask)
    assert_same(got, want, RTOL[dtype])
    assert_all_reached(got['gradients'])


@pytest.mark.representative(1)
@pytest.mark.parametrize(
    ('kind', 'reverse', 'mask'),
    [('lstm', reverse, 'none') for reverse in (False, True)]
    + [(kind, False, mask) for kind in CELLS for mask in MASKS if mask != 'none']
    + [(kind, True, mask) for kind in ('lstm', 'gru', 'tanh') for mask in MASKS if mask != 'none'],
)
def test_rnn_and_all_gradients_equal_keras(keras, x64, kind, reverse, mask):
    """Outputs, 0 where masked, final states, and all gradients, from a given initial state."""
    compare_keras(keras, kind, mask, reverse, F64)


@pytest.mark.parametrize('kind', ['gru', 'tanh'])
def test_rnn_and_all_gradients_equal_keras_in_float32(keras, kind):
    """Relative 1e-5, with holes."""
    compare_keras(keras, kind, 'holes', False, F32)


@functools.cache
def keras_shown(keras, reverse):
    """In the order of processing: what Keras shows at masked steps, and its last output."""
    with jax.numpy_rank_promotion('allow'):
        options = {'go_backwards': reverse, 'dtype': F64}
        held = keras_call(keras_layer(keras, 'tanh', return_sequences=True, **options))
        last = keras_call(keras_layer(keras, 'tanh', **options))

    def run(args, mask):
        call = keras_weights('tanh', args['weights']['params']['cell']), args['inputs']
        options = {'mask': mask, 'initial_state': keras_state(args['carry'])}
        # Before the first real step Keras shows h of the initial state, where ours is 0: not compared here.
        seen = jnp.ones((B, T)) if mask is None else jnp.cumsum(mask[:, ::-1] if reverse else mask, axis=1) > 0
        results = {'last': jnp.where(seen[:, -1:], last(*call, **options), 0)}
        if mask is None or not reverse:  # backward, Keras meets padding in another order than ours
            results['held'] = jnp.where(seen[..., None], held(*call, **options), 0)
        return results

    return differentiated(run)


@functools.cache
def our_shown(reverse):
    """The same of ours."""
    layer = rnn.RNN(SimpleRNNCell(H, param_dtype=F64), reverse=reverse)

    def run(args, mask):
        def apply(**options):
            return layer.apply(args['weights'], args['inputs'], initial_carry=args['carry'], mask=mask, **options)

        results = {'last': apply(return_sequences=False)}
        return results if mask is not None and reverse else {**results, 'held': apply(masked_output='hold')}

    return differentiated(run)


@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('reverse', [False, True], ids=['forward', 'reverse'])
def test_last_and_held_outputs_and_their_gradients_equal_keras(keras, x64, reverse, mask):
    """`return_sequences=False`, and `masked_output='hold'`, which is what Keras shows by default."""
    args, mask = draw_args('tanh'), MASKS[mask]
    got = our_shown(reverse)(args, mask=mask)
    with jax.numpy_rank_promotion('allow'):
        want = keras_shown(keras, reverse)(args, mask=mask)
    assert_same(got, want, 1e-10)


def keras_outputs(keras, args, mask, **options):
    """All outputs of Keras's simple layer, as it gives them."""
    with jax.numpy_rank_promotion('allow'):
        layer = keras_call(keras_layer(keras, 'tanh', F64, return_sequences=True, **options))
        weights, state = keras_weights('tanh', args['weights']['params']['cell']), keras_state(args['carry'])
        call = jax.jit(lambda inputs: layer(weights, inputs, mask=mask, initial_state=state))
        return call(args['inputs'])


@pytest.mark.parametrize('mask', ['left', 'holes'])
def test_held_outputs_before_the_first_real_step_equal_unrolled_keras(keras, x64, mask):
    """They are 0, from whatever state the layer begins; Keras's compiled loop shows that state instead."""
    args, mask = draw_args('tanh'), MASKS[mask]
    layer = rnn.RNN(SimpleRNNCell(H, param_dtype=F64), masked_output='hold')
    got = apply(layer, args['weights'], args['inputs'], initial_carry=args['carry'], mask=mask)
    want = keras_outputs(keras, args, mask, unroll=True)
    reference.assert_close(got, want, 1e-10)


@pytest.mark.parametrize('mask', ['none', 'right', 'holes'])
def test_backward_outputs_come_in_the_order_of_keras(keras, x64, mask):
    """Real steps in the order of processing; Keras turns the padding about as well, ours keeps its place."""
    args, mask = draw_args('tanh'), MASKS[mask]
    layer = rnn.RNN(SimpleRNNCell(H, param_dtype=F64), reverse=True)
    got = np.asarray(apply(layer, args['weights'], args['inputs'], initial_carry=args['carry'], mask=mask))
    want = np.asarray(keras_outputs(keras, args, mask, go_backwards=True))
    valid = np.ones((B, T), bool) if mask is None else mask
    for b in range(B):
        np.testing.assert_allclose(got[b, valid[b]], want[b, valid[b, ::-1]], rtol=1e-10)


def bidirectional_runs(keras, merge_mode, return_sequences):
    """Ours and Keras's, of two LSTMs."""
    rnns = (rnn.RNN(LSTMCell(H, param_dtype=F64)) for _ in range(2))
    layer = Bidirectional(*rnns, merge_mode=merge_mode, return_carry=True)
    with jax.numpy_rank_promotion('allow'):
        one = keras.layers.LSTM(H, return_sequences=return_sequences, return_state=True, dtype=F64)
        both = keras.layers.Bidirectional(one, merge_mode=merge_mode, dtype=F64)  # which makes copies
        both.forward_layer.cell.activation = both.backward_layer.cell.activation = jnp.tanh
        theirs = keras_call(both)

    def ours(args, mask):
        call = {'initial_carry': args['carry'], 'return_sequences': return_sequences, 'mask': mask}
        carry, outputs = layer.apply(args['weights'], args['inputs'], **call)
        return {'outputs': outputs, 'states': [x for part in carry for x in keras_state(part)]}

    def keras_run(args, mask):
        params = args['weights']['params']
        weights = [w for name in ('forward_rnn', 'backward_rnn') for w in keras_weights('lstm', params[name]['cell'])]
        state = [x for part in args['carry'] for x in keras_state(part)]
        results = theirs(weights, args['inputs'], mask=mask, initial_state=state)
        outputs, states = (results[:2], results[2:]) if merge_mode is None else (results[0], results[1:])
        return {'outputs': outputs, 'states': list(states)}

    return layer, differentiated(ours), differentiated(keras_run)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(
    ('merge_mode', 'return_sequences'),
    [('concat', True), ('sum', False), ('mul', True), (None, False)],
)
def test_bidirectional_and_all_gradients_equal_keras(keras, x64, merge_mode, return_sequences):
    """With padding right: outputs or their summary, all four final states, from given initial states."""
    layer, ours, theirs = bidirectional_runs(keras, merge_mode, return_sequences)
    inputs = draw(B, T, F, seed=2)
    carry = draw_carry('lstm'), LSTMCarry(draw(B, H, seed=8), draw(B, H, seed=9) / 2)
    args = {'weights': draw_weights(layer, inputs), 'inputs': inputs, 'carry': carry}
    got = ours(args, mask=VALID)
    with jax.numpy_rank_promotion('allow'):
        want = theirs(args, mask=VALID)
    assert_same(got, want, 1e-10)
    assert_all_reached(got['gradients'])


@pytest.mark.parametrize('mask', ['none', 'right', 'holes'])
def test_time_distributed_and_all_gradients_equal_keras(keras, x64, mask):
    """One dense layer at every step. At masked steps Keras's output is its bias, ours is 0."""
    mask = MASKS[mask]
    layer, inputs = TimeDistributed(nn.Dense(H, param_dtype=F64)), draw(B, T, F, seed=2)
    valid = jnp.ones((B, T, 1)) if mask is None else mask[..., None]
    args = {'weights': draw_weights(layer, inputs), 'inputs': inputs}
    with jax.numpy_rank_promotion('allow'):
        theirs = keras_call(keras.layers.TimeDistributed(keras.layers.Dense(H, dtype=F64), dtype=F64))

    def keras_run(args):
        dense = args['weights']['params']['module']
        return {'outputs': jnp.where(valid, theirs([dense['kernel'], dense['bias']], args['inputs'], mask=mask), 0)}

    got = differentiated(lambda args: {'outputs': layer.apply(args['weights'], args['inputs'], mask=mask)})(args)
    with jax.numpy_rank_promotion('allow'):
        want = differentiated(keras_run)(args)
    assert_same(got, want, 1e-10)
