"""Lengths, masks, resets and carries of RNN: known faults of other libraries by their IDs, and properties."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax import masks
from seqjax.cells import GRUCell, HiddenCarry, LSTMCarry, LSTMCell, SimpleRNNCell
from seqjax.layers import RNN, Bidirectional, Stack
from seqjax.linear import LRUCell, MinGRUCell, MinLSTMCell, RGLRUCell
from seqjax.models import CELLS as NAMED
from tests import reference

B, T, F, H = 4, 6, 3, 5
PADDINGS = (1e30, np.nan, np.inf, -np.inf)
MASKS = {
    'right': [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]],
    'left': [[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]],
    'holes': [[1, 0, 1, 0, 0, 1], [0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]],
}
MASKS = {name: np.array(rows, bool) for name, rows in MASKS.items()}
CELLS = {
    'lstm': LSTMCell(H),
    'gru': GRUCell(H),
    'gru_before': GRUCell(H, reset_after=False),
    'tanh': SimpleRNNCell(H),
    'relu': SimpleRNNCell(H, activation=nn.relu),
    'flax_lstm': nn.OptimizedLSTMCell(H),
    'flax_gru': nn.GRUCell(H),
    'flax_mgu': nn.MGUCell(H),
    'flax_simple': nn.SimpleCell(H),
    'lstm_1997': LSTMCell(H, forget='none', peepholes=True),
    'lstm_coupled': LSTMCell(H, forget='coupled', peepholes=True, zoneout_h=0.2, zoneout_c=0.3),
    'lstm_norm': LSTMCell(H, layer_norm=True),
    'lstm_projected': LSTMCell(H, projection=2),
    'gru_norm': GRUCell(H, layer_norm=True, zoneout_h=0.2),
    'simple_norm': SimpleRNNCell(H, layer_norm=True),
    'mingru': MinGRUCell(H),
    'minlstm': MinLSTMCell(H),
    'lru': LRUCell(H, outputs=2),
    'rglru': RGLRUCell(H),
}
# The same cells, in other forms: all steps at once, or in segments that the backward pass computes again.
FORMS = {f'{name}_at_once': {'parallel': True} for name in ('mingru', 'minlstm', 'lru', 'rglru')}
FORMS |= {'lstm_in_segments': {'remat_segments': 4}, 'lru_at_once_in_segments': {'parallel': True, 'remat_segments': 4}}
CELLS |= {form: CELLS[form.split('_')[0]] for form in FORMS}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def variables_of(layer, x, scale=0.5, **options):
    shapes = reference.random_variables(WithOptions(layer, options), x)
    return jax.tree.map(lambda w: scale * w, shapes)


class WithOptions:
    """A layer whose `init` is called with options."""

    def __init__(self, layer, options):
        self.init = functools.partial(layer.init, **options)


@functools.cache
def started(name, **options):
    """A layer over the cell of that name, its variables, and inputs [B, T, F]."""
    layer, x = RNN(CELLS[name], **FORMS.get(name, {}), **options), draw(B, T, F)
    return layer, variables_of(layer, x), x


def own_carry(name, rows=B):
    return CELLS[name].initialize_carry(jax.random.key(0), (rows, F))


@functools.cache
def compiled(layer, **options):
    return jax.jit(functools.partial(layer.apply, **options))


def assert_same(got, want, atol=1e-6):
    """To `atol`, and to ten times as much of what is above 1."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=10 * atol, atol=atol), got, want)


def assert_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


# --- the cell T1, by hand --------------------------------------------------------------------------


def t1(forget_bias=0.0, **options):
    """One LSTM unit and one feature, all weights 0.5."""
    params = {
        'kernel': jnp.full((1, 4), 0.5),
        'recurrent_kernel': jnp.full((1, 4), 0.5),
        'bias': jnp.array([0, forget_bias, 0, 0]),
    }
    return RNN(LSTMCell(1), **options), {'params': {'cell': params}}


def column(*numbers):
    return jnp.array(numbers, jnp.float32)[None, :, None]


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
    directions = [Bidirectional(RNN(LSTMCell(H)), RNN(LSTMCell(H))) for _ in range(2)]
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
    layer, x = RNN(LSTMCell(H), learn_initial_carry=True), draw(B, T, F)
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
    params = RNN(CELLS[name], learn_initial_carry=True).init(jax.random.key(0), x)['params']
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
    real = np.ones((B, T), bool) if flags is None else flags
    np.testing.assert_array_equal(visited[real], outputs[real])


# --- masks, in values and gradients ----------------------------------------------------------------


def everything(layer, variables, x, initial_carry=None, **options):
    """A number that depends on all that a layer returns."""
    carry, outputs = layer.apply(variables, x, initial_carry=initial_carry, return_carry=True, **options)
    weights = np.random.default_rng(7)
    leaves = jax.tree.leaves((carry, outputs))
    return sum(jnp.sum(leaf * weights.normal(size=leaf.shape).astype(np.float32)) for leaf in leaves)


def row_by_row(layer, variables, x, mask, first, reverse):
    """Each row's real steps alone: the carry, and outputs put back in their places."""
    width = jax.eval_shape(layer.apply, variables, x).shape[-1]
    outputs, carries = np.zeros((B, T, width), np.float32), []
    run = jax.jit(functools.partial(layer.apply, return_carry=True, reverse=reverse, keep_order=True))
    for row in range(B):
        carry = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], first)
        if mask[row].any():
            carry, y = run(variables, x[row : row + 1, mask[row]], initial_carry=carry)
            outputs[row, mask[row]] = y[0]
        carries.append(carry)
    return outputs, jax.tree.map(lambda *parts: jnp.concatenate(parts), *carries)


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize(('name', 'mask'), [('lstm', 'right'), ('lstm', 'left'), *((name, 'holes') for name in CELLS)])
def test_L09_a_mask_of_any_form_is_each_rows_real_steps_alone(name, mask, reverse):
    """Right, left, with holes, and rows without a real step: outputs, and the carry of the last step."""
    layer, variables, x = started(name)
    flags = MASKS[mask]
    leaves, structure = jax.tree.flatten(own_carry(name))
    first = structure.unflatten([draw(*leaf.shape, seed=n) for n, leaf in enumerate(leaves)])
    want = row_by_row(layer, variables, x, flags, first, reverse)
    options = {'initial_carry': first, 'return_carry': True, 'reverse': reverse}
    carry, outputs = layer.apply(variables, x, mask=flags, keep_order=True, **options)
    assert_same((outputs, carry), want, 1e-5)
    np.testing.assert_array_equal(np.asarray(outputs)[~flags], 0)
    assert_equal(jax.tree.map(lambda leaf: leaf[2], carry), jax.tree.map(lambda leaf: leaf[2], first))


@pytest.mark.parametrize(
    ('name', 'mask', 'masked_output', 'reverse'),
    [
        ('lstm', 'right', 'zero', False),
        ('lstm', 'left', 'zero', True),
        ('lstm', 'holes', 'hold', True),
        ('gru', 'holes', 'zero', True),
        ('gru', 'right', 'hold', True),
        ('relu', 'holes', 'hold', False),
        *((name, 'holes', ('zero', 'hold')[n % 2], n % 3 > 0) for n, name in enumerate(CELLS)),
    ],
)
def test_padding_changes_no_value_and_no_gradient(name, mask, masked_output, reverse):
    """Bit for bit, be it 1e30, NaN or infinite; what is masked gets a gradient of 0; all are finite."""
    layer, variables, x = started(name, masked_output=masked_output)
    flags = MASKS[mask]
    step = jax.jit(jax.value_and_grad(functools.partial(everything, layer, mask=flags, reverse=reverse), (0, 1)))
    want = step(variables, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(want))
    np.testing.assert_array_equal(np.asarray(want[1][1])[~flags], 0)
    assert (np.abs(np.asarray(want[1][1])[flags]).max(-1) > 0).all()
    for padding in PADDINGS:
        assert_equal(step(variables, np.where(flags[..., None], x, np.float32(padding))), want)


@pytest.mark.parametrize(
    ('name', 'how', 'given'),
    [('lstm', 'lengths', True), *((name, 'mask', n % 2 == 0) for n, name in enumerate(CELLS))],
)
def test_a_batch_without_a_real_step_hands_its_carry_on(name, how, given):
    """Length 0 and a mask of False: outputs 0, the initial carry as it was, gradients 0 for weights and inputs."""
    layer, variables, _ = started(name)
    x = np.full((B, T, F), np.nan, np.float32)
    first = jax.tree.map(lambda leaf: jnp.asarray(draw(*leaf.shape, seed=2)) if given else leaf, own_carry(name))
    options = {'seq_lengths': np.zeros(B, int)} if how == 'lengths' else {'mask': np.zeros((B, T), bool)}

    @jax.jit
    def run(variables, x, first):
        whole = functools.partial(layer.apply, variables, x, initial_carry=first if given else None, **options)
        grads = jax.grad(functools.partial(everything, layer, **options), (0, 1))(variables, x, first)
        return *whole(return_carry=True), whole(return_sequences=False, reverse=True), grads

    carry, outputs, summary, grads = run(variables, x, first)
    np.testing.assert_array_equal(outputs, np.zeros((B, T, outputs.shape[-1])))
    assert_equal(carry, first)
    np.testing.assert_array_equal(summary, outputs[:, 0])
    for grad in jax.tree.leaves(grads):
        np.testing.assert_array_equal(grad, np.zeros(grad.shape))


class Doubled(LSTMCell):
    """A cell whose output is not its state."""

    @nn.compact
    def __call__(self, carry, inputs):
        carry, h = super().__call__(carry, inputs)
        return carry, 2 * h


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('unroll', [1, T])
def test_M07_what_is_held_is_the_last_output(unroll, reverse):
    """Not the state: output = 2 h. Rolled and unrolled loops agree."""
    layer, variables, x = started('lstm')
    doubled = RNN(Doubled(H), unroll=unroll, masked_output='hold', reverse=reverse)
    flags = MASKS['holes']
    plain = layer.apply(variables, x, mask=flags, reverse=reverse)
    got, want = np.asarray(doubled.apply(variables, x, mask=flags)), 2 * np.asarray(plain)
    for row, step in itertools.product(range(B), range(T)):
        before = [t for t in range(step + 1) if flags[row, t]]
        reference.assert_close(got[row, step], want[row, before[-1]] if before else np.zeros(H), 1e-6)


def test_hold_in_the_order_of_the_inputs_keeps_what_masked_steps_hold():
    """With reverse, keep_order flips the real steps alone: what masked ones hold is the same in both orders."""
    layer, variables, x = started('gru')
    flags = MASKS['holes']
    run = functools.partial(layer.apply, variables, x, mask=flags, reverse=True, masked_output='hold')
    processed, kept = run(keep_order=False), run(keep_order=True)
    assert_same(masks.flip_sequences(kept, mask=flags), processed)
    np.testing.assert_array_equal(np.asarray(kept)[~flags], np.asarray(processed)[~flags])


# --- order -----------------------------------------------------------------------------------------


class Sum(nn.RNNCellBase):
    """Adds up its inputs."""

    def __call__(self, carry, inputs):
        return carry + inputs, carry + inputs

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros(input_shape)

    @property
    def num_feature_axes(self):
        return 1


def test_M04_each_row_is_reversed_by_its_own_length():
    x, lengths = column(1, 2, 3, 9), jnp.array([3])
    total = RNN(Sum())
    forward = total.apply({}, x, seq_lengths=lengths)
    backward = total.apply({}, x, seq_lengths=lengths, reverse=True, keep_order=True)
    np.testing.assert_array_equal(forward[0, :, 0], [1, 3, 6, 0])
    np.testing.assert_array_equal(backward[0, :, 0], [6, 5, 3, 0])
    processed = total.apply({}, x, seq_lengths=lengths, reverse=True)
    np.testing.assert_array_equal(processed[0, :, 0], [3, 5, 6, 0])


@pytest.mark.parametrize('mask', [None, *MASKS])
@pytest.mark.parametrize('masked_output', ['zero', 'hold'])
def test_B05_the_two_orders_are_each_other_flipped_over_real_steps(mask, masked_output):
    """And reverse is a forward run over inputs that were flipped so."""
    layer, variables, x = started('lstm', masked_output=masked_output)
    flags = None if mask is None else MASKS[mask]
    run = functools.partial(layer.apply, variables, mask=flags, return_carry=True)
    carry, processed = run(x, reverse=True)
    same_carry, kept = run(x, reverse=True, keep_order=True)
    flipped = np.asarray(masks.flip_sequences(x, mask=flags))
    forward = run(flipped)
    assert_same((carry, processed), forward)
    assert_same(same_carry, carry)
    assert_same(masks.flip_sequences(kept, mask=flags), processed)
    assert np.abs(np.asarray(kept) - np.asarray(run(x)[1])).max() > 0.1  # reverse does something


@pytest.mark.parametrize(
    ('given', 'options'),
    [
        ('nothing', {}),
        ('nothing', {'reverse': True}),
        ('lengths', {'reverse': True}),
        ('mask', {'reverse': True, 'keep_order': True}),
        ('resets', {'reverse': True, 'keep_order': True}),
    ],
)
def test_M14_time_major_is_the_transpose(given, options):
    """In all of reverse, order, lengths, masks and resets, which stay [B] and [B, T]; by field and by call."""
    layer, variables, x = started('lstm')
    extra = {
        'nothing': {},
        'lengths': {'seq_lengths': np.array([3, 6, 0, 1])},
        'mask': {'mask': MASKS['holes']},
        'resets': {'resets': MASKS['holes']},
    }[given]
    carry, outputs = layer.apply(variables, x, return_carry=True, **extra, **options)
    turned = x.swapaxes(0, 1)
    for time_major, call in ((RNN(CELLS['lstm'], time_major=True), {}), (layer, {'time_major': True})):
        same, transposed = time_major.apply(variables, turned, return_carry=True, **extra, **options, **call)
        assert transposed.shape == (T, B, H)
        assert_same((same, transposed.swapaxes(0, 1)), (carry, outputs))
        last = time_major.apply(variables, turned, return_sequences=False, **extra, **options, **call)
        assert_same(last, layer.apply(variables, x, return_sequences=False, **extra, **options))


# --- lengths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('return_carry', [False, True])
@pytest.mark.parametrize('return_sequences', [False, True])
def test_L08_lengths_are_taken_whatever_is_returned(return_sequences, return_carry):
    layer, variables, x = started('lstm')
    lengths = np.array([3, 6, 1, 2])
    carry, outputs = layer.apply(variables, x, seq_lengths=lengths, return_carry=True)
    got = layer.apply(variables, x, seq_lengths=lengths, return_carry=return_carry, return_sequences=return_sequences)
    if return_carry:
        assert_equal(got[0], carry)
        got = got[1]
    np.testing.assert_array_equal(got, outputs if return_sequences else carry.h)


def test_lengths_and_mask_together_are_both():
    layer, variables, x = started('gru')
    lengths = np.array([2, 6, 3, 5])
    both = MASKS['holes'] & (np.arange(T) < lengths[:, None])
    got = layer.apply(variables, x, seq_lengths=lengths, mask=MASKS['holes'], return_carry=True)
    assert_equal(got, layer.apply(variables, x, mask=both, return_carry=True))


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
        (np.full((B, T), 2), 'mask holds 2 and must hold 0 and 1'),
        (np.full((B, T), -1), 'mask holds -1 and must hold 0 and 1'),
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
        for wrapper in (Bidirectional(RNN(LSTMCell(H)), RNN(LSTMCell(H))), Stack([RNN(LSTMCell(H))] * 1)):
            with pytest.raises(ValueError, match=message):
                wrapper.init(jax.random.key(0), x, **{name: value})


@pytest.mark.parametrize(
    ('x', 'message'),
    [
        (np.ones(3, np.float32), r'inputs \(3,\) must be \[\*B, T, F\]'),
        (np.ones((B, T), int), r'inputs \(4, 6\) of int32 must be .*nn\.Embed'),
    ],
)
def test_inputs_that_are_no_sequences_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        RNN(LSTMCell(H)).init(jax.random.key(0), jnp.asarray(x))


@pytest.mark.parametrize('name', ['lstm', 'gru', 'tanh'])
def test_inputs_of_other_features_than_the_weights_are_refused(name):
    layer, variables, _ = started(name)
    with pytest.raises(ValueError, match=r'last axis of inputs \(4,\) must be \(3,\).*axis 0 is 4, not 3'):
        layer.apply(variables, draw(B, T, F + 1))


@pytest.mark.parametrize('features', [0, -1, 2.0, True, None, '5'])
@pytest.mark.parametrize('cell', [LSTMCell, GRUCell, SimpleRNNCell])
def test_S13_a_cell_without_hidden_units_is_refused(cell, features):
    with pytest.raises(ValueError, match=f'features={features!r} must be a whole number from 1'):
        cell(features)


@pytest.mark.parametrize('unroll', [0, -1])
def test_an_unroll_below_one_is_refused(unroll):
    with pytest.raises(ValueError, match=f'unroll={unroll} must be at least 1'):
        RNN(LSTMCell(H), unroll=unroll)


@pytest.mark.parametrize('name', ['lstm', 'gru', 'tanh', 'lstm_coupled', 'minlstm_at_once', 'lru', 'flax_gru'])
def test_L04_lengths_that_cannot_be_looked_at_never_read_past_the_end(name):
    """Under jit: what comes of a row whose length is over T or below 0 is NaN, and other rows are as they were."""
    layer, variables, x = started(name)
    run = jax.jit(lambda lengths: layer.apply(variables, x, seq_lengths=lengths, return_carry=True))
    got, want = run(jnp.array([9, 2, -3, 6])), run(jnp.array([6, 2, 0, 6]))
    assert_equal(*(jax.tree.map(lambda leaf: leaf[1::2], tree) for tree in (got, want)))
    assert all(np.isnan(leaf[::2]).all() for leaf in jax.tree.leaves(got))
    summary = jax.jit(lambda n: layer.apply(variables, x, seq_lengths=n, return_sequences=False))
    summary = summary(jnp.array([9, 2, -(2**31), 2**31 - 1]))
    np.testing.assert_array_equal(np.isnan(jax.tree.leaves(summary)[0]).all(axis=1), [True, False, True, True])
    with pytest.raises(ValueError, match='must be integers'):
        run(jnp.ones(B))
    with pytest.raises(ValueError, match='axis 0 is 3, not 4'):
        run(jnp.ones(3, int))


def test_L05_outputs_keep_the_steps_of_the_inputs():
    """Though no row is as long: what each device of a sharded batch returns lines up."""
    layer, variables, x = started('lstm')
    assert layer.apply(variables, x, seq_lengths=np.array([1, 2, 0, 1])).shape == (B, T, H)


def test_twenty_vectors_of_lengths_are_compiled_once():
    layer, variables, x = started('lstm')
    traces = []

    @jax.jit
    def run(lengths):
        traces.append(1)
        return layer.apply(variables, x, seq_lengths=lengths)

    rng = np.random.default_rng(0)
    seen = {run(jnp.asarray(rng.integers(0, T + 1, B))).tobytes() for _ in range(20)}
    assert len(traces) == 1 and run._cache_size() == 1 and len(seen) > 10


@pytest.mark.parametrize(
    ('shape', 'given', 'reverse'),
    [
        ((0, T), 'nothing', False),
        ((0, T), 'lengths', True),
        ((B, 0), 'nothing', True),
        ((B, 0), 'lengths', False),
        ((B, 0), 'mask', True),
        ((B, 0), 'resets', True),
        ((0, 0), 'mask', False),
    ],
)
def test_no_rows_and_no_steps_work(shape, given, reverse):
    """Outputs of the right shape, an initial carry that is handed on, gradients of 0."""
    rows, steps = shape
    layer, variables, _ = started('lstm')
    extra = {
        'nothing': {},
        'lengths': {'seq_lengths': np.zeros(rows, int)},
        'mask': {'mask': np.ones(shape, bool), 'masked_output': 'hold'},
        'resets': {'resets': np.ones(shape, bool)},
    }[given]
    x, first = np.ones((*shape, F), np.float32), LSTMCarry(draw(rows, H), draw(rows, H, seed=1))
    run = functools.partial(layer.apply, variables, x, initial_carry=first, reverse=reverse, **extra)
    carry, outputs = run(return_carry=True, keep_order=True)
    assert outputs.shape == (*shape, H)
    assert_equal(carry, first)
    np.testing.assert_array_equal(run(return_sequences=False), np.zeros((rows, H)))
    assert run(carry_history=True)[0].c.shape == (rows, steps + 1, H)
    grads = jax.grad(functools.partial(everything, layer, reverse=reverse, **extra))(variables, x)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))
    assert_equal(jax.tree.map(jnp.shape, layer.init(jax.random.key(0), x)), jax.tree.map(jnp.shape, variables))


# --- resets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize(
    ('name', 'learned'), [(name, n % 2 == 0) for n, name in enumerate(CELLS)] + [('lstm', False), ('gru', True)]
)
def test_a_reset_begins_a_fresh_run(name, reverse, learned):
    """Each stretch between resets equals a run of its own; one at the first step forgets the carry that was given."""
    layer = RNN(CELLS[name], learn_initial_carry=learned, **FORMS.get(name, {}))
    x = draw(1, T, F)
    variables = variables_of(layer, x)
    first = jax.tree.map(lambda leaf: draw(*leaf.shape, seed=8), own_carry(name, rows=1))
    starts = [0, 1, 2, 4]  # stretches of two lengths, so that few programs are compiled
    resets = np.isin(np.arange(T), starts)[None]
    run = jax.jit(functools.partial(layer.apply, variables, reverse=reverse, keep_order=True))
    got = run(x, resets=resets, initial_carry=first)
    pieces = list(itertools.pairwise([*starts, T]))
    want = [run(x[:, a:b], initial_carry=first if reverse and b == T else None) for a, b in pieces]
    reference.assert_close(got, np.concatenate(want, axis=1), 1e-5)
    assert np.abs(got - run(x, resets=np.zeros_like(resets), initial_carry=first)).max() > 1e-2


@pytest.mark.parametrize('reverse', [False, True])
def test_no_gradient_crosses_a_reset(reverse):
    """Outputs on either side of step 3 depend on inputs of their own side alone, and only one side on the carry."""
    layer, variables, x = started('lstm')
    resets = np.zeros((B, T), bool)
    resets[:, 3] = True
    first = LSTMCarry(draw(B, H, seed=3), draw(B, H, seed=4))
    run = functools.partial(layer.apply, variables, resets=resets, reverse=reverse, keep_order=True)
    slopes, from_carry = jax.jit(jax.jacrev(lambda x, c: run(x, initial_carry=c).sum((0, 3 - 1)), (0, 1)))(x, first)
    reach = np.abs(slopes).max(axis=(1, 3)) > 1e-6  # [T of outputs, T of inputs]
    before, after = np.tri(3, dtype=bool), np.tri(3, dtype=bool)
    want = np.block([[before, np.zeros((3, 3), bool)], [np.zeros((3, 3), bool), after]])
    np.testing.assert_array_equal(reach, want.T if reverse else want)
    carried = np.abs(from_carry.c).max(axis=(1, 2)) > 1e-6
    np.testing.assert_array_equal(carried, np.arange(T) >= 3 if reverse else np.arange(T) < 3)


def test_a_reset_at_a_masked_step_counts():
    """What follows it is a fresh run; a reset at the last step leaves the cell's own initial carry."""
    layer, variables, x = started('lstm')
    mask, resets = np.ones((B, T), bool), np.zeros((B, T), bool)
    mask[:, 2] = False
    resets[:, 2] = True
    got = layer.apply(variables, x, mask=mask, resets=resets)
    reference.assert_close(got[:, 3:], layer.apply(variables, x[:, 3:]), 1e-6)
    mask[:, T - 1], resets[:, T - 1] = False, True
    carry, _ = layer.apply(variables, x, mask=mask, resets=resets, return_carry=True)
    assert (carry.c == 0).all() and (carry.h == 0).all()


# --- properties ------------------------------------------------------------------------------------

SOME = settings(max_examples=4, deadline=None, derandomize=True, database=None)  # of every cell and form
SEEDS = st.integers(0, 2**32 - 1)
NAMES = list(CELLS)
FORWARD = [{}, {'masked_output': 'hold'}]
BACKWARD = [{'reverse': True, **order, **output} for order in ({}, {'keep_order': True}) for output in FORWARD]
# Grouped by name, so that the properties of a cell use the same compiled programs.
every_name = pytest.mark.parametrize('name', NAMES, scope='module')


def options_of(name):
    """One way forward and one backward for each name, with the same output of masked steps; all among four names.

    Compiling is most of the time here, and the ways are the same code for every cell that takes step after step.
    """
    n = NAMES.index(name)
    return FORWARD[n % 2], BACKWARD[n % 4]


def test_properties_are_tried_with_every_cell_that_has_a_name():
    assert {type(cell) for cell in CELLS.values()} >= set(NAMED.values())


@functools.cache
def program(name, unroll=1, **options):
    """A compiled call: (variables, x, mask, resets, initial_carry) -> (carry, outputs)."""
    layer = RNN(CELLS[name], unroll=unroll, **FORMS.get(name, {}))

    def run(variables, x, mask, resets, carry):
        return layer.apply(
            variables, x, mask=mask, resets=resets, initial_carry=carry, return_carry=True, **dict(options)
        )

    return jax.jit(run)


def example(name, seed):
    """Inputs, mask, resets and a carry, from a seed alone."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(B, T, F)).astype(np.float32)
    carry = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), own_carry(name))
    kind = rng.integers(3)
    lengths = rng.integers(0, T + 1, B)
    mask = [np.arange(T) < lengths[:, None], np.arange(T) >= lengths[:, None], rng.random((B, T)) < 0.6][kind]
    return x, mask, rng.random((B, T)) < 0.2, carry


@every_name
@SOME
@given(seed=SEEDS)
def test_L11_a_row_does_not_depend_on_its_neighbours(name, seed):
    """Nor on the batch: alone, as one of four, and among other rows, to 1e-6."""
    arrays, variables, other = example(name, seed), started(name)[1], example(name, seed + 1)
    mixed = jax.tree.map(lambda a, b: np.concatenate([a[:1], b[1:]]), arrays, other)
    for options in options_of(name):
        run = program(name, **options)
        want = first_row(run(variables, *arrays))
        assert_same(run(variables, *first_row(arrays)), want)
        assert_equal(first_row(run(variables, *mixed)), want)


def first_row(tree):
    return jax.tree.map(lambda leaf: leaf[:1], tree)


@pytest.mark.parametrize('rows', [1, 7, 64])
def test_L11_predictions_do_not_depend_on_the_batch(rows):
    layer, variables, _ = started('lstm')
    x = draw(64, T, F, seed=5)
    lengths = np.random.default_rng(0).integers(0, T + 1, 64)
    want = layer.apply(variables, x, seq_lengths=lengths)
    reference.assert_close(layer.apply(variables, x[:rows], seq_lengths=lengths[:rows]), want[:rows], 1e-6)


@every_name
@SOME
@given(seed=SEEDS)
def test_L06_rows_in_another_order_are_the_same_rows(name, seed):
    """f(x[p], mask[p]) = f(x, mask)[p], states too."""
    arrays, variables = example(name, seed), started(name)[1]
    order = np.random.default_rng(seed).permutation(B)
    for options in options_of(name):
        run = program(name, **options)
        got = run(variables, *jax.tree.map(lambda leaf: leaf[order], arrays))
        assert_same(got, jax.tree.map(lambda leaf: leaf[order], run(variables, *arrays)))


@every_name
@SOME
@given(seed=SEEDS, bad=st.sampled_from(PADDINGS), left=st.booleans())
def test_more_padding_changes_nothing(name, seed, bad, left):
    """On either side, whatever it holds: outputs and the carry stay."""
    x, mask, resets, carry = example(name, seed)
    resets[:, 0] = False  # with padding on its left it would stand between two steps
    width, variables = [(0, 0), (2, 0) if left else (0, 2)], started(name)[1]
    padded = np.pad(x, [*width, (0, 0)], constant_values=bad), np.pad(mask, width), np.pad(resets, width)
    for options in options_of(name):
        run = program(name, **options)
        last, outputs = run(variables, *padded, carry)
        cut = outputs[:, 2:] if left else outputs[:, :T]
        assert_same((last, cut), run(variables, x, mask, resets, carry))


def cuts(name):
    """Where a run is split: before the first step, after it, in the middle, after the last; each is a program more."""
    ends, middle = (0, T), (T // 2,)
    return ends + middle if name in FORMS else (ends, (1,), middle)[NAMES.index(name) % 3]


@every_name
@SOME
@given(seed=SEEDS)
def test_S04_splitting_a_run_anywhere_changes_nothing(name, seed):
    """Even before the first step or after the last; the carry goes over."""
    *arrays, carry = example(name, seed)
    variables, run = started(name)[1], program(name)
    want = run(variables, *arrays, carry)
    for cut in cuts(name):
        middle, first = run(variables, *(leaf[:, :cut] for leaf in arrays), carry)
        last, second = run(variables, *(leaf[:, cut:] for leaf in arrays), middle)
        assert_same((last, np.concatenate([first, second], axis=1)), want)


@every_name
@SOME
@given(seed=SEEDS)
def test_reversing_is_flipping(name, seed):
    """reverse = a forward run over flipped real steps, the outputs flipped back where the order is kept."""
    x, mask, resets, carry = example(name, seed)
    variables, (forth, back), resets = started(name)[1], options_of(name), np.zeros_like(resets)
    got = program(name, **back)(variables, x, mask, resets, carry)
    flipped = np.asarray(masks.flip_sequences(x, mask=mask))
    forward = program(name, **forth)(variables, flipped, mask, resets, carry)
    if back.get('keep_order'):
        forward = (forward[0], masks.flip_sequences(forward[1], mask=mask))
    assert_same(got, forward)


@functools.cache
def row_program(name, **options):
    """As `program`, each row by itself under vmap."""
    layer = started(name)[0]

    def run(variables, x, mask, resets, carry):
        return layer.apply(
            variables, x, mask=mask, resets=resets, initial_carry=carry, return_carry=True, **dict(options)
        )

    return jax.jit(jax.vmap(run, (None, 0, 0, 0, 0)))


@every_name
@SOME
@given(seed=SEEDS)
def test_unrolled_loops_and_vmap_agree(name, seed):
    """One layer run in three ways, of which each of the two others is tried in one direction."""
    arrays, variables, n = example(name, seed), started(name)[1], NAMES.index(name)
    for place, options in enumerate(options_of(name)):
        want = program(name, **options)(variables, *arrays)
        if place == n // 4 % 2:
            assert_same(row_program(name, **options)(variables, *arrays), want)
        elif not FORMS.get(name, {}).get('parallel'):
            assert_same(program(name, unroll=(2, T + 5)[n // 2 % 2], **options)(variables, *arrays), want)


def test_eager_equals_jit():
    """With jit turned off, every step runs by itself."""
    layer, variables, x = started('lstm')
    want = layer.apply(variables, x, mask=MASKS['holes'], return_carry=True)
    with jax.disable_jit():
        assert_same(layer.apply(variables, x, mask=MASKS['holes'], return_carry=True), want)


@pytest.mark.parametrize(
    ('name', 'mask', 'reverse'),
    [('lstm', None, False), *((name, 'holes', n % 2 == 0) for n, name in enumerate(CELLS))],
)
def test_an_output_depends_on_the_real_steps_up_to_its_own_and_on_no_other(name, mask, reverse):
    """By gradients at the beginning, in the middle and at the end; backward it is from its own step on."""
    layer, variables, x = started(name)
    flags = np.ones((B, T), bool) if mask is None else MASKS[mask]
    run = functools.partial(layer.apply, variables, mask=flags, reverse=reverse, keep_order=True)
    slopes = np.abs(jax.jit(jax.jacrev(lambda x: run(x).sum(-1)))(x)).max(-1)  # [B, T, B, T]
    for row, step in itertools.product(range(B), (0, T // 2, T - 1)):
        side = np.arange(T) >= step if reverse else np.arange(T) <= step
        want = np.zeros((B, T), bool)
        want[row] = side & flags[row] & flags[row, step]
        got = slopes[row, step] > 0
        # A relu may be shut, so what is reached is a part of what may be.
        assert not (got & ~want).any()
        if name != 'relu':
            np.testing.assert_array_equal(got, want)


# --- several axes of batch and of features ---------------------------------------------------------


@pytest.mark.parametrize('reverse', [False, True])
def test_convolutional_cells_take_masks(reverse):
    """Carries [B, height, width, channels]."""
    layer, x = RNN(nn.ConvLSTMCell(2, (3, 3)), reverse=reverse), draw(2, T, 4, 5, 3)
    variables = variables_of(layer, x)
    flags = MASKS['holes'][:2]
    carry, outputs = layer.apply(
        variables, np.where(flags[..., None, None, None], x, np.nan), mask=flags, return_carry=True
    )
    assert outputs.shape == (2, T, 4, 5, 2)
    for row in range(2):
        alone, y = layer.apply(variables, x[row : row + 1, flags[row]], return_carry=True)
        reference.assert_close(outputs[row, flags[row]], y[0], 1e-5)
        assert_same(jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], carry), alone, 1e-5)


def test_any_number_of_batch_axes():
    """As flax.linen.RNN has it: two axes, and none."""
    layer, variables, x = started('lstm')
    mask, resets = MASKS['holes'], MASKS['left']
    want = layer.apply(variables, x, mask=mask, resets=resets)
    square = layer.apply(variables, x.reshape(2, 2, T, F), mask=mask.reshape(2, 2, T), resets=resets.reshape(2, 2, T))
    reference.assert_close(square.reshape(B, T, H), want, 1e-6)
    reference.assert_close(layer.apply(variables, x[0], mask=mask[0], resets=resets[0]), want[0], 1e-6)


def test_a_carry_without_the_axes_of_the_batch_is_refused():
    class Counter(Sum):
        @nn.nowrap
        def initialize_carry(self, rng, input_shape):
            return jnp.zeros(())

        def __call__(self, carry, inputs):
            return carry + 1, inputs + carry

    x = draw(B, T, F)
    got = RNN(Counter()).apply({}, x, return_carry=True)  # without a mask there is nothing to do row by row
    assert got[0] == T
    reference.assert_close(got[1], x + np.arange(T, dtype=np.float32)[:, None], 1e-6)
    for options in ({'mask': np.ones((B, T), bool)}, {'resets': np.ones((B, T), bool)}):
        with pytest.raises(ValueError, match=r'the carry \(\) of the cell must begin with the batch axes \(4,\)'):
            RNN(Counter()).apply({}, x, **options)
    with pytest.raises(ValueError, match=r'the carry \(\) of the cell'):
        RNN(Counter(), learn_initial_carry=True).init(jax.random.key(0), x)


def test_a_cell_that_does_not_say_where_it_begins_takes_a_carry_that_is_given():
    class Unsaid(nn.RNNCellBase):
        def __call__(self, carry, inputs):
            return carry + inputs, carry + inputs

        @property
        def num_feature_axes(self):
            return 1

    x = draw(B, T, F)
    got = RNN(Unsaid()).apply({}, x, initial_carry=jnp.zeros((B, F)), mask=MASKS['right'])
    reference.assert_close(got, RNN(Sum()).apply({}, x, mask=MASKS['right']), 1e-6)
    for options in ({}, {'initial_carry': jnp.zeros((B, F)), 'resets': MASKS['right']}):
        with pytest.raises(NotImplementedError):
            RNN(Unsaid()).apply({}, x, **options)


def test_the_carry_keeps_its_dtype(x64):
    """Whatever the inputs are: a loop's carry cannot change it from step to step."""
    layer, variables, x = started('lstm')
    for dtype in (jnp.float64, jnp.bfloat16, jnp.int32):
        carry, _ = layer.apply(variables, x.astype(dtype), return_carry=True)
        assert carry.c.dtype == carry.h.dtype == jnp.float32


def test_M09_an_accelerator_gives_the_same_numbers():
    """Right, left and with holes: within 1e-5 of the CPU, with float32 products."""
    devices = [device for device in jax.devices() if device.platform != 'cpu']
    if not devices:
        pytest.skip('there is no accelerator here')
    layer, variables, x = started('lstm')
    with jax.default_matmul_precision('float32'):
        for flags in MASKS.values():
            runs = []
            for device in (jax.devices('cpu')[0], devices[0]):
                with jax.default_device(device):
                    runs.append(jax.device_get(layer.apply(variables, x, mask=flags, return_carry=True)))
            assert_same(*runs, 1e-5)


def test_a_plain_carry_of_flax_is_taken_by_our_cells():
    """An array where ours is HiddenCarry(h), a tuple where it is LSTMCarry(c, h)."""
    h = draw(B, H, seed=3)
    layer, variables, x = started('gru')
    assert_equal(layer.apply(variables, x, initial_carry=h), layer.apply(variables, x, initial_carry=HiddenCarry(h)))
