"""Carries of RNN: numbers of one LSTM unit by hand, learned and given initial carries, their history and dtype."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import rnn
from seqjax.nn.cells.cell import HiddenCarry
from seqjax.nn.cells.lstm_cell import LSTMCarry, LSTMCell
from seqjax.nn.wrappers import Bidirectional, Stack
from tests.helpers import reference
from tests.helpers.layers import (
    CELLS,
    MASKS,
    B,
    F,
    H,
    Sum,
    T,
    assert_equal,
    assert_same,
    column,
    draw,
    started,
    t1,
)


@pytest.mark.parametrize(
    ('forget_bias', 'outputs', 'c'),
    [(0, [0.17426972, 0.50085938, 0.77002330], 1.49245676), (1, [0.17426972, 0.51722486, 0.78675252], 1.60419241)],
)
def test_C04_the_forget_bias_reaches_the_forget_gate(forget_bias, outputs, c):
    layer, variables = t1(forget_bias)
    carry, got = layer.apply(variables, column(1, 2, 3), return_carry=True)
    np.testing.assert_allclose(got[0, :, 0], outputs, rtol=1e-6)
    np.testing.assert_allclose(carry.c, [[c]], rtol=1e-6)


def test_C04_every_layer_and_direction_begins_with_a_forget_bias_of_one():
    """The slice of the forget gate is 1, all other biases are 0."""
    directions = [Bidirectional(rnn.RNN(LSTMCell(H)), rnn.RNN(LSTMCell(H))) for _ in range(2)]
    params = Stack(directions).init(jax.random.key(0), draw(B, T, F))['params']
    biases = [x for path, x in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == 'bias']
    assert len(biases) == 4
    for bias in biases:
        np.testing.assert_array_equal(bias, np.repeat([0, 1, 0, 0], H))


@pytest.mark.parametrize(
    ('x', 'mask'), [((0, 0, 1, 2), (0, 0, 1, 1)), ((1, 2, 0, 0), (1, 1, 0, 0)), ((1, 0, 2, 0), (1, 0, 1, 0))]
)
def test_M01_where_the_padding_sits_changes_nothing(x, mask):
    layer, variables = t1()
    for flags in (np.array([mask], bool), np.array([mask])):  # 0 and 1 are taken as well
        carry, _ = layer.apply(variables, column(*x), mask=flags, return_carry=True)
        np.testing.assert_allclose([carry.h[0, 0], carry.c[0, 0]], [0.50085938, 0.81027102], rtol=1e-6)


def test_M06_the_last_state_is_not_zeroed():
    """Zeroing is for outputs of steps: the summary and the state are those of the last real step."""
    layer, variables = t1()
    lengths = jnp.array([2])
    carry, outputs = layer.apply(variables, column(1, 2, 3), seq_lengths=lengths, return_carry=True)
    np.testing.assert_allclose(outputs[0, :, 0], [0.17426972, 0.50085938, 0], rtol=1e-6)
    np.testing.assert_allclose(carry.h, [[0.50085938]], rtol=1e-6)
    for options in ({'reverse': False}, {'reverse': True}, {'reverse': True, 'keep_order': True}):
        carry, summary = layer.apply(
            variables, column(1, 2, 3), seq_lengths=lengths, return_carry=True, return_sequences=False, **options
        )
        np.testing.assert_array_equal(summary, carry.h)
        assert (summary != 0).all()


def test_S04_a_run_in_two_parts_is_the_run():
    layer, variables = t1()
    carry, first = layer.apply(variables, column(1), return_carry=True)
    np.testing.assert_allclose([first[0, 0, 0], carry.c[0, 0]], [0.17426972, 0.28764914], rtol=1e-6)
    rest = layer.apply(variables, column(2, 3), initial_carry=carry)
    np.testing.assert_allclose(rest[0, :, 0], [0.50085938, 0.77002330], rtol=1e-6)


def test_S07_gradients_reach_the_initial_carry():
    layer, variables = t1()

    def last(carry, which):
        return getattr(layer.apply(variables, column(1, 2, 3), initial_carry=carry, return_carry=True)[0], which)[0, 0]

    zeros = LSTMCarry(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    h, c = jax.grad(last)(zeros, 'h'), jax.grad(last)(zeros, 'c')
    np.testing.assert_allclose([h.c[0, 0], h.h[0, 0], c.c[0, 0]], [0.09368770, 0.04649498, 0.50908322], rtol=1e-6)


def test_S07_a_learned_initial_carry_gets_the_gradients_of_all_rows():
    """Parameters of one row, zeros at first; their gradient is the sum of those of a carry that was given."""
    layer, x = rnn.RNN(LSTMCell(H), learn_initial_carry=True), draw(B, T, F)
    params = layer.init(jax.random.key(0), x)['params']
    np.testing.assert_array_equal(params['initial_carry_c'], np.zeros(H))
    params = {**params, 'initial_carry_c': draw(H, seed=1), 'initial_carry_h': draw(H, seed=2)}
    given = LSTMCarry(*(jnp.tile(params[f'initial_carry_{part}'], (B, 1)) for part in 'ch'))

    def loss(params, carry):
        return jnp.sum(layer.apply({'params': params}, x, initial_carry=carry) ** 2)

    got, want = jax.grad(loss)(params, None), jax.grad(loss, 1)(params, given)
    reference.assert_close(loss(params, None), loss(params, given), 1e-6)
    for part in 'ch':
        reference.assert_close(got[f'initial_carry_{part}'], getattr(want, part).sum(0), 1e-5)


@pytest.mark.parametrize(
    ('name', 'parts'), [('lstm', ['_c', '_h']), ('gru', ['_h']), ('flax_gru', ['']), ('flax_lstm', ['_0', '_1'])]
)
def test_every_cell_can_learn_where_it_begins(name, parts):
    x = draw(2, T, F)
    params = rnn.RNN(CELLS[name], learn_initial_carry=True).init(jax.random.key(0), x)['params']
    assert {k: v.shape for k, v in params.items() if k != 'cell'} == {f'initial_carry{part}': (H,) for part in parts}


def test_S08_the_carry_is_c_then_h():
    """Zero weights, c = 1 and h = 0: a forget gate of a half; with the two swapped nothing is left."""
    layer, variables = t1()
    nothing = jax.tree.map(jnp.zeros_like, variables)
    one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
    for carry in (LSTMCarry(c=one, h=zero), (one, zero)):
        last, _ = layer.apply(nothing, column(7), initial_carry=carry, return_carry=True)
        np.testing.assert_allclose([last.c[0, 0], last.h[0, 0]], [0.5, 0.23105858], rtol=1e-6)
    last, _ = layer.apply(nothing, column(7), initial_carry=LSTMCarry(c=zero, h=one), return_carry=True)
    assert last.c == last.h == 0


@pytest.mark.representative
@pytest.mark.parametrize('time_major', [False, True])
@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('mask', [None, 'right', 'holes'])
def test_S10_the_history_of_carries_has_the_first_and_the_last(mask, reverse, time_major):
    """T + 1 carries: the given one, and that after each step, of which outputs are a part."""
    layer, variables, x = started('lstm')
    flags = None if mask is None else MASKS[mask]
    first = LSTMCarry(draw(B, H, seed=3), draw(B, H, seed=4))
    inputs = x.swapaxes(0, 1) if time_major else x
    options = {'initial_carry': first, 'mask': flags, 'reverse': reverse, 'time_major': time_major}
    history, _ = layer.apply(variables, inputs, carry_history=True, **options)
    last, outputs = layer.apply(variables, inputs, return_carry=True, keep_order=True, **options)
    if time_major:
        history, outputs = jax.tree.map(lambda y: y.swapaxes(0, 1), (history, outputs))
    assert history.c.shape == history.h.shape == (B, T + 1, H)
    assert_equal(jax.tree.map(lambda x: x[:, 0], history), first)
    assert_same(jax.tree.map(lambda x: x[:, -1], history), last)
    visited = history.h[:, :0:-1] if reverse else history.h[:, 1:]
    valid = np.ones((B, T), bool) if flags is None else flags
    np.testing.assert_array_equal(visited[valid], outputs[valid])


def test_a_carry_without_the_axes_of_the_batch_is_refused():
    class Counter(Sum):
        @nn.nowrap
        def initialize_carry(self, rng, input_shape):
            return jnp.zeros(())

        def __call__(self, carry, inputs):
            return carry + 1, inputs + carry

    x = draw(B, T, F)
    got = rnn.RNN(Counter()).apply({}, x, return_carry=True)  # without a mask there is nothing to do row by row
    assert got[0] == T
    reference.assert_close(got[1], x + np.arange(T, dtype=np.float32)[:, None], 1e-6)
    for options in ({'mask': np.ones((B, T), bool)}, {'resets': np.ones((B, T), bool)}):
        with pytest.raises(ValueError, match='carry'):
            rnn.RNN(Counter()).apply({}, x, **options)
    with pytest.raises(ValueError, match='carry'):
        rnn.RNN(Counter(), learn_initial_carry=True).init(jax.random.key(0), x)


def test_a_cell_that_does_not_say_where_it_begins_takes_a_carry_that_is_given():
    class Unsaid(nn.RNNCellBase):
        def __call__(self, carry, inputs):
            return carry + inputs, carry + inputs

        @property
        def num_feature_axes(self):
            return 1

    x = draw(B, T, F)
    got = rnn.RNN(Unsaid()).apply({}, x, initial_carry=jnp.zeros((B, F)), mask=MASKS['right'])
    reference.assert_close(got, rnn.RNN(Sum()).apply({}, x, mask=MASKS['right']), 1e-6)
    for options in ({}, {'initial_carry': jnp.zeros((B, F)), 'resets': MASKS['right']}):
        with pytest.raises(NotImplementedError):
            rnn.RNN(Unsaid()).apply({}, x, **options)


def test_the_carry_keeps_its_dtype(x64):
    """Whatever the inputs are: a loop's carry cannot change it from step to step."""
    layer, variables, x = started('lstm')
    for dtype in (jnp.float64, jnp.bfloat16, jnp.int32):
        carry, _ = layer.apply(variables, x.astype(dtype), return_carry=True)
        assert carry.c.dtype == carry.h.dtype == jnp.float32


def test_a_plain_carry_of_flax_is_taken_by_our_cells():
    """An array where ours is HiddenCarry(h), a tuple where it is LSTMCarry(c, h)."""
    h = draw(B, H, seed=3)
    layer, variables, x = started('gru')
    assert_equal(layer.apply(variables, x, initial_carry=h), layer.apply(variables, x, initial_carry=HiddenCarry(h)))
