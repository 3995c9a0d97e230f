"""One LSTM against hand-written references: outputs, carries and all gradients, and how its weights begin."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import activations, initializers, rnn
from seqjax.nn.cells.lstm_cell import LSTMCarry, LSTMCell
from seqjax.nn.initializers import ConstantGate
from tests.helpers import reference

B, T, F, H = 3, 6, 2, 5
ONE_TWO_THREE = np.array([[[1], [2], [3]]])


def draw(seed=35):
    """Arguments of `reference.lstm`: gates in and out of saturation, and with this seed far from kinks."""
    rng = np.random.default_rng(seed)
    inputs, c, h = rng.normal(size=(B, T, F)), rng.normal(size=(B, H)), rng.uniform(-0.9, 0.9, size=(B, H))
    weights = [rng.normal(scale=1.2, size=shape) for shape in ((F, 4 * H), (H, 4 * H), (4 * H,))]
    cotangents = rng.normal(size=(B, T, H)), rng.normal(size=(B, H)), rng.normal(size=(B, H))
    return [inputs, c, h, *weights], cotangents


def variables(kernel, recurrent_kernel, bias):
    return {'params': {'cell': {'kernel': kernel, 'recurrent_kernel': recurrent_kernel, 'bias': bias}}}


def t1(forget_bias=0, dtype=jnp.float32):
    """One unit, one feature, all weights 0.5: the layer and its variables."""
    bias = ConstantGate()(jax.random.key(0), (4,), dtype) if forget_bias else jnp.zeros(4, dtype)
    half = jnp.full((1, 4), 0.5, dtype)
    return rnn.RNN(LSTMCell(1, param_dtype=dtype)), variables(half, half, bias)


# --- the reference itself --------------------------------------------------------------------------


@pytest.mark.parametrize('activation', reference.ACTIVATIONS)
def test_reference_gradients_equal_finite_differences(activation):
    """The hand-written backward pass is the derivative of the hand-written forward pass, away from kinks."""
    args, cotangents = draw()
    *_, tape = reference.lstm(*args, activation)
    z = reference.preactivations(tape)
    for kink in reference.ACTIVATIONS[activation][2]:
        assert np.abs(z - kink).min() > 1e-3
        assert 0.05 < (np.abs(z) > abs(kink)).mean() < 0.6  # both sides of it are tried
    grads = reference.lstm_backward(tape, *cotangents)

    def objective():
        outputs, (c, h), _ = reference.lstm(*args, activation)
        return sum(np.sum(x * y) for x, y in zip((outputs, c, h), cotangents, strict=True))

    for name, x in zip(('inputs', 'c', 'h', 'kernel', 'recurrent_kernel', 'bias'), args, strict=True):
        slopes = np.zeros_like(x)
        for index in np.ndindex(x.shape):
            value, x[index] = x[index], x[index] + 1e-6
            above, x[index] = objective(), value - 1e-6
            slopes[index], x[index] = (above - objective()) / 2e-6, value
        reference.assert_close(grads[name], slopes, 1e-6, name)


# --- the LSTM --------------------------------------------------------------------------------------


def compare_lstm(activation, unroll, dtype, rtol, default_carry):
    """Everything that `RNN(LSTMCell)` gives and every gradient of it, against the reference."""
    args, cotangents = draw()
    if default_carry:
        args[1:3] = np.zeros((2, B, H))
    want_outputs, want_carry, tape = reference.lstm(*args, activation)
    want_grads = reference.lstm_backward(tape, *cotangents)
    cell = LSTMCell(H, recurrent_activation=activations.RECURRENT_ACTIVATIONS[activation], param_dtype=dtype)
    layer = rnn.RNN(cell, unroll=unroll)

    def run(args):
        carry = None if default_carry else LSTMCarry(args['c'], args['h'])
        weights = variables(args['kernel'], args['recurrent_kernel'], args['bias'])
        carry, outputs = layer.apply(weights, args['inputs'], initial_carry=carry, return_carry=True)
        total = sum(jnp.sum(x * y) for x, y in zip((outputs, *carry), cotangents, strict=True))
        return total, (outputs, carry)

    names = ('inputs', 'c', 'h', 'kernel', 'recurrent_kernel', 'bias')
    args = {name: x.astype(dtype) for name, x in zip(names, args, strict=True)}
    cotangents = [x.astype(dtype) for x in cotangents]
    grads, (outputs, carry) = jax.jit(jax.grad(run, has_aux=True))(args)
    assert outputs.dtype == carry.c.dtype == grads['kernel'].dtype == dtype
    reference.assert_close(outputs, want_outputs, rtol, 'outputs')
    reference.assert_close(carry.c, want_carry[0], rtol, 'c')
    reference.assert_close(carry.h, want_carry[1], rtol, 'h')
    for name in names:
        if not (default_carry and name in ('c', 'h')):
            reference.assert_close(grads[name], want_grads[name], rtol, f'gradient of {name}')


@pytest.mark.parametrize(
    ('activation', 'unroll'), [('sigmoid', 1), ('sigmoid', 4), ('hard_sigmoid', 1), ('keras2_hard_sigmoid', 1)]
)
def test_lstm_and_all_gradients_equal_the_reference_in_float32(activation, unroll):
    """Relative 1e-5 for outputs, both parts of the carry, and gradients of inputs, carry and all weights."""
    compare_lstm(activation, unroll, np.dtype('float32'), 1e-5, default_carry=False)


@pytest.mark.parametrize('activation', activations.RECURRENT_ACTIVATIONS)
def test_lstm_and_all_gradients_equal_the_reference_in_float64(activation, x64):
    """Relative 1e-10: what is left of the difference in float32 is rounding."""
    compare_lstm(activation, 1, np.dtype('float64'), 1e-10, default_carry=False)


@pytest.mark.parametrize('unroll', [1, 4])
def test_lstm_begins_at_zeros_by_default(unroll, x64):
    """Without a given carry, what the reference gives from c = h = 0."""
    compare_lstm('sigmoid', unroll, np.dtype('float64'), 1e-10, default_carry=True)


@pytest.mark.parametrize(
    ('forget_bias', 'outputs', 'c'),
    [
        (0, [0.17426972, 0.50085938, 0.77002330], 1.49245676),
        (1, [0.17426972, 0.51722486, 0.78675252], 1.60419241),
    ],
)
def test_C04_one_unit_of_weights_one_half(forget_bias, outputs, c, x64):
    """T1 on x = 1, 2, 3, with forget bias 0 and 1, to all eight decimals."""
    layer, weights = t1(forget_bias, jnp.float64)
    carry, got = layer.apply(weights, ONE_TWO_THREE.astype(float), return_carry=True)
    np.testing.assert_allclose(got[0, :, 0], outputs, rtol=0, atol=6e-9)
    np.testing.assert_allclose(carry.c, [[c]], rtol=0, atol=6e-9)
    np.testing.assert_allclose(carry.h, got[:, -1], rtol=0, atol=0)


def test_S04_a_sequence_in_two_halves_with_the_carry_is_the_sequence():
    """T1: x = 1 leaves h = .17426972 and c = .28764914; 2, 3 go on to .50085938 .77002330."""
    layer, weights = t1()
    x = ONE_TWO_THREE.astype(np.float32)
    carry, first = layer.apply(weights, x[:, :1], return_carry=True)
    np.testing.assert_allclose([carry.h[0, 0], carry.c[0, 0]], [0.17426972, 0.28764914], rtol=1e-6)
    second = layer.apply(weights, x[:, 1:], initial_carry=carry)
    np.testing.assert_allclose(second[0, :, 0], [0.50085938, 0.77002330], rtol=1e-6)
    whole = layer.apply(weights, x)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, rtol=1e-6)


def test_S04_holds_for_batches_and_any_cut():
    """Random weights, inputs and first carry; the outputs and the last carry are those of the whole."""
    (inputs, c, h, *weights), _ = jax.tree.map(np.float32, draw())
    layer = rnn.RNN(LSTMCell(H))

    @jax.jit
    def run(x, carry):
        return layer.apply(variables(*weights), x, initial_carry=carry, return_carry=True)

    last, whole = run(inputs, LSTMCarry(c, h))
    for cut in (1, 4):
        carry, first = run(inputs[:, :cut], LSTMCarry(c, h))
        carry, second = run(inputs[:, cut:], carry)
        reference.assert_close(np.concatenate([first, second], 1), whole, 1e-6)
        reference.assert_close(carry.c, last.c, 1e-6)
        reference.assert_close(carry.h, last.h, 1e-6)


def test_S07_gradients_reach_the_initial_carry(x64):
    """T1 on 1, 2, 3: dh3/dc0 = .09368770, dh3/dh0 = .04649498, dc3/dc0 = .50908322."""
    layer, weights = t1(dtype=jnp.float64)

    def last(c, h):
        carry = LSTMCarry(c, h)
        return layer.apply(weights, ONE_TWO_THREE.astype(float), initial_carry=carry, return_carry=True)[0]

    slopes = jax.jacobian(last, argnums=(0, 1))(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    got = [slopes.h[0].item(), slopes.h[1].item(), slopes.c[0].item()]
    np.testing.assert_allclose(got, [0.09368770, 0.04649498, 0.50908322], rtol=0, atol=6e-9)


def test_S08_the_carry_is_c_then_h():
    """Zero weights: c0 = 1, h0 = 0 gives c = .5, h = .23105858; swapped, both are 0."""
    cell = LSTMCell(1)
    one, zero, x = jnp.ones((1, 1)), jnp.zeros((1, 1)), jnp.full((1, 1), 0.7)
    weights = {'kernel': jnp.zeros((1, 4)), 'recurrent_kernel': jnp.zeros((1, 4)), 'bias': jnp.zeros(4)}
    carry, y = cell.apply({'params': weights}, (one, zero), x)
    got = [carry.c.item(), carry.h.item(), y.item()]
    np.testing.assert_allclose(got, [0.5, 0.23105858, 0.23105858], rtol=1e-6)
    carry, _ = cell.apply({'params': weights}, LSTMCarry(c=zero, h=one), x)
    assert carry == LSTMCarry(c=0, h=0)
    assert LSTMCarry._fields == ('c', 'h')


def test_keras2_hard_sigmoid_is_not_hard_sigmoid():
    """clip(0.2 x + 0.5, 0, 1): 0.7 at 1 where Keras 3's is 2/3, and saturated from 2.5, not from 3."""
    x = jnp.array([-2.6, -2.4, 1.0, 2.4, 2.6])
    np.testing.assert_allclose(activations.keras2_hard_sigmoid(x), [0, 0.02, 0.7, 0.98, 1], atol=1e-6)
    np.testing.assert_allclose(activations.RECURRENT_ACTIVATIONS['hard_sigmoid'](x), (x + 3) / 6, atol=1e-6)


# --- the same as Keras's ---------------------------------------------------------------------------


@pytest.mark.parametrize('activation', ['sigmoid', 'hard_sigmoid'])
def test_lstm_and_its_gradients_equal_keras(keras, activation):
    """With the very same arrays as weights: the gates stand in the same order, and nothing is rearranged."""
    (inputs, c, h, *weights), (weighting, *_) = jax.tree.map(np.float32, draw())
    layer = rnn.RNN(LSTMCell(H, recurrent_activation=activations.RECURRENT_ACTIVATIONS[activation]))

    def ours(weights, inputs, c, h):
        outputs = layer.apply(variables(*weights), inputs, initial_carry=LSTMCarry(c, h))
        return jnp.sum(outputs * weighting), outputs

    grads, outputs = jax.jit(jax.grad(ours, argnums=(0, 1, 2, 3), has_aux=True))(weights, inputs, c, h)
    with jax.numpy_rank_promotion('allow'):
        theirs = keras.layers.LSTM(H, recurrent_activation=activation, return_sequences=True)
        theirs.build((B, T, F))
        assert [v.name for v in theirs.trainable_variables] == ['kernel', 'recurrent_kernel', 'bias']
        state = [v.value for v in theirs.non_trainable_variables]

        def reference_loss(weights, inputs, c, h):
            outputs, _ = theirs.stateless_call(weights, state, inputs, initial_state=[h, c])
            return jnp.sum(outputs * weighting), outputs

        want = jax.jit(jax.grad(reference_loss, argnums=(0, 1, 2, 3), has_aux=True))(weights, inputs, c, h)
    reference.assert_close(outputs, want[1], 1e-5)
    names = ('kernel', 'recurrent_kernel', 'bias', 'inputs', 'c', 'h')
    for name, got, expected in zip(names, jax.tree.leaves(grads), jax.tree.leaves(want[0]), strict=True):
        reference.assert_close(got, expected, 1e-5, name)


# --- how the weights begin -------------------------------------------------------------------------


SIZES = [(1, 5), (7, 4)]  # F, H


@functools.cache
def draw_weights(features, units):
    """The LSTM's initial weights from 1000 seeds: leaves [1000, ...]."""
    cell = LSTMCell(units)
    carry, x = LSTMCarry(*jnp.zeros((2, 1, units))), jnp.zeros((1, features))
    keys = jax.random.split(jax.random.key(0), 1000)
    weights = jax.jit(jax.vmap(lambda key: cell.init(key, carry, x)))(keys)['params']
    return jax.tree.map(np.asarray, weights)


def test_kernels_begin_as_keras_glorot_uniform(keras):
    """Bound sqrt(6 / (F + 4H)); mean, variance and fourth moment as in Keras's own draws."""
    with jax.numpy_rank_promotion('allow'):
        theirs = [keras.initializers.GlorotUniform(seed=seed)((7, 16)) for seed in range(1, 101)]
    assert reference.is_uniform(theirs, np.sqrt(6 / (7 + 16)))
    for features, units in SIZES:
        draws = draw_weights(features, units)['kernel']
        assert draws.shape == (1000, features, 4 * units)
        assert reference.is_uniform(draws, np.sqrt(6 / (features + 4 * units)))


def test_recurrent_kernels_begin_orthogonal_and_uniformly_so(keras):
    """[H, 4H] with orthonormal rows; the moments of a coordinate of a random unit vector in 4H dimensions."""
    with jax.numpy_rank_promotion('allow'):
        theirs = [keras.initializers.Orthogonal(seed=seed)((4, 16)) for seed in range(1, 51)]
    for draws in (draw_weights(7, 4)['recurrent_kernel'], draw_weights(1, 5)['recurrent_kernel'], theirs):
        draws = np.asarray(draws, np.float64)
        count, units, n = draws.shape
        assert n == 4 * units
        gram = draws @ draws.swapaxes(1, 2)
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(units), gram.shape), atol=1e-5)
        noise = 1 / np.sqrt(count)
        assert np.abs(draws.mean(0)).max() < 4.5 * noise / np.sqrt(n)  # no sign is preferred anywhere
        np.testing.assert_allclose((draws**2).mean(0), 1 / n, rtol=7 * noise)  # nor any place
        np.testing.assert_allclose((draws**4).mean(), 3 / (n * (n + 2)), rtol=noise)


@pytest.mark.parametrize(('shape', 'dtype', 'atol'), [((4, 4), 'float32', 4e-6), ((20, 3), 'float64', 1e-14)])
def test_orthogonal_init_is_orthogonal_in_every_shape_and_precision(shape, dtype, atol, x64):
    """Orthonormal rows, or columns where those are shorter, to the last digits; every key gives another."""
    keys = jax.random.split(jax.random.key(1), 50)
    draws = np.asarray(jax.jit(jax.vmap(lambda key: initializers.orthogonal_init(key, shape, dtype)))(keys))
    assert draws.shape == (50, *shape) and draws.dtype == dtype
    short = np.float64(draws if shape[0] <= shape[1] else draws.swapaxes(1, 2))
    gram = short @ short.swapaxes(1, 2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(min(shape)), gram.shape), atol=atol)
    assert len(np.unique(short[:, 0, 0])) == 50


@pytest.mark.parametrize(('features', 'units'), SIZES)
def test_C04_biases_begin_at_0_and_those_of_the_forget_gate_at_1(features, units):
    """From every seed and in every size; the forget gate has the second quarter."""
    bias = draw_weights(features, units)['bias']
    np.testing.assert_array_equal(bias, np.broadcast_to(np.repeat([0, 1, 0, 0], units), bias.shape))


@pytest.mark.parametrize(('features', 'units', 'count'), [(1, 5, 140), (1, 1, 12), (3, 7, 308), (6, 2, 72)])
def test_parameter_count_is_4_times_F_plus_1_times_H_plus_H_squared(features, units, count):
    """140 for the notebook's LSTM, and the formula for other sizes."""
    carry, x = jnp.ones((2, 1, units)), jnp.ones((1, features))
    weights = jax.eval_shape(LSTMCell(units).init, jax.random.key(0), carry, x)
    shapes = jax.tree.map(lambda x: x.shape, weights['params'])
    assert shapes == {
        'kernel': (features, 4 * units),
        'recurrent_kernel': (units, 4 * units),
        'bias': (4 * units,),
    }
    assert sum(x.size for x in jax.tree.leaves(weights)) == count == 4 * ((features + 1) * units + units**2)


def test_cell_follows_the_protocol_of_flax():
    """flax.linen.RNN runs our cell, and gives what our RNN gives."""
    (inputs, _, _, *weights), _ = jax.tree.map(np.float32, draw())
    want = rnn.RNN(LSTMCell(H)).apply(variables(*weights), inputs)
    got = nn.RNN(LSTMCell(H)).apply(variables(*weights), inputs)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


def test_the_orthogonal_matrix_of_half_precision_is_orthogonal():
    """Its norm is beyond float16's largest number."""
    k = np.asarray(initializers.orthogonal_init(jax.random.key(0), (128, 512), jnp.float16), np.float32)
    np.testing.assert_allclose(k @ k.T, np.eye(128), atol=1e-2)
