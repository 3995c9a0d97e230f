"""Both directions, stacks, streams, and masks over time-distributed modules."""

import ast
import functools
import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import losses, models, wrappers
from seqjax.nn import rnn as nn_rnn
from seqjax.nn.cells.cell import HiddenCarry
from seqjax.nn.cells.gru_cell import GRUCell
from seqjax.nn.cells.lstm_cell import LSTMCarry, LSTMCell
from seqjax.nn.cells.simple_cell import SimpleRNNCell
from seqjax.nn.wrappers import Bidirectional, Stack, Stateful, TimeDistributed
from tests.helpers import reference

B, T, F, H = 4, 6, 3, 5
LENGTHS = np.array([3, 6, 0, 1])
MASK = np.arange(T) < LENGTHS[:, None]
KEY = jax.random.key(0)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def start(layer, *shape):
    """Random variables of a layer, and inputs."""
    x = draw(*(shape or (B, T, F)))
    return jax.tree.map(lambda w: 0.5 * w, reference.random_variables(layer, x)), x


def part(variables, *names):
    """The parameters below a path."""
    return {'params': functools.reduce(lambda tree, name: tree[name], names, variables['params'])}


def assert_same(got, want, rtol=1e-6):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(lambda x, y: reference.assert_close(x, y, rtol), got, want)


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


# --- both directions -------------------------------------------------------------------------------


def relu_sum():
    """h' = relu(x + h): all weights 1."""
    cell = SimpleRNNCell(1, activation=nn.relu)
    params = {'kernel': jnp.ones((1, 1)), 'recurrent_kernel': jnp.ones((1, 1)), 'bias': jnp.zeros(1)}
    variables = {'params': {name: {'cell': params} for name in ('forward_rnn', 'backward_rnn')}}
    return Bidirectional(nn_rnn.RNN(cell), nn_rnn.RNN(cell.clone())), variables


def test_B01_the_summary_is_forward_at_the_last_step_and_backward_at_the_first():
    """Ones on 0 0 1 1: the last output of the sequence has read one step backward, the summary all of them."""
    layer, variables = relu_sum()
    x = jnp.array([[[0], [0], [1], [1]]], jnp.float32)
    outputs = layer.apply(variables, x)
    np.testing.assert_array_equal(outputs[0], [[0, 2], [0, 2], [1, 2], [2, 1]])
    np.testing.assert_array_equal(layer.apply(variables, x, return_sequences=False), [[2, 2]])
    padded = jnp.concatenate([x, jnp.full((1, 3, 1), jnp.nan)], axis=1)
    summary = layer.apply(variables, padded, return_sequences=False, seq_lengths=np.array([4]))
    np.testing.assert_array_equal(summary, [[2, 2]])


WANTED = {
    'concat': lambda f, b: np.concatenate([f, b], -1),
    'sum': lambda f, b: f + b,
    'mul': lambda f, b: f * b,
    'ave': lambda f, b: 0.5 * f + 0.5 * b,
    'none': lambda f, b: (f, b),
    None: lambda f, b: (f, b),
}


@pytest.mark.representative(1)
@pytest.mark.parametrize('return_sequences', [True, False])
@pytest.mark.parametrize('mode', WANTED)
def test_bidirectional_merges_two_runs(mode, return_sequences):
    """What both layers give on their own, the backward one in the order of the inputs."""
    layer = Bidirectional(nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(GRUCell(H)), mode)
    variables, x = start(layer)
    options = {'seq_lengths': LENGTHS, 'return_sequences': return_sequences, 'return_carry': True}
    forward_carry, forward = nn_rnn.RNN(LSTMCell(H)).apply(part(variables, 'forward_rnn'), x, **options)
    backward_carry, backward = nn_rnn.RNN(GRUCell(H)).apply(
        part(variables, 'backward_rnn'), x, **options, reverse=True, keep_order=True
    )
    carry, outputs = layer.apply(variables, x, **options)
    assert isinstance(carry[0], LSTMCarry) and isinstance(carry[1], HiddenCarry)
    assert_same(carry, (forward_carry, backward_carry))
    assert_same(outputs, jax.tree.map(jnp.asarray, WANTED[mode](np.asarray(forward), np.asarray(backward))))


def test_every_way_to_merge_is_tested():
    assert set(wrappers.MERGES) | {None} == set(WANTED)
    layer = Bidirectional(nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(LSTMCell(H)), lambda f, b: f - 2 * b)
    variables, x = start(layer)
    forward, backward = layer.clone(merge_mode='none').apply(variables, x)
    reference.assert_close(layer.apply(variables, x), forward - 2 * backward, 1e-6)


def test_an_output_in_both_directions_depends_on_the_whole_sequence():
    """By gradients at the beginning, in the middle and at the end; on no masked step and no other row."""
    layer = Bidirectional(nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(LSTMCell(H)))
    variables, x = start(layer)
    slopes = jax.jit(jax.jacrev(lambda x: layer.apply(variables, x, mask=MASK).sum(-1)))(x)
    reach = np.abs(slopes).max(-1) > 1e-7
    for row in range(B):
        for t in (0, T // 2, T - 1):
            want = np.zeros((B, T), bool)
            want[row] = MASK[row] & MASK[row, t]
            np.testing.assert_array_equal(reach[row, t], want)


@pytest.mark.parametrize(
    ('layer', 'message'),
    [
        (lambda: Bidirectional(nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(LSTMCell(H)), 'max'), "merge_mode='max'"),
        (lambda: Bidirectional(*[nn_rnn.RNN(LSTMCell(H))] * 2), 'forward_rnn.*backward_rnn'),
        (lambda: Bidirectional(nn_rnn.RNN(LSTMCell(H), reverse=True), nn_rnn.RNN(LSTMCell(H))), 'forward_rnn'),
    ],
)
def test_directions_that_do_not_go_together_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        layer().init(jax.random.key(0), draw(B, T, F))


def test_resets_keep_sequences_apart_in_both_directions():
    """Two sequences packed into one row are two runs."""
    layer = Bidirectional(nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(LSTMCell(H)))
    variables, x = start(layer)
    resets = np.zeros((B, T), bool)
    resets[:, 2] = True
    want = np.concatenate([layer.apply(variables, x[:, :2]), layer.apply(variables, x[:, 2:])], axis=1)
    reference.assert_close(layer.apply(variables, x, resets=resets), want, 1e-6)


# --- carries in one nested shape -------------------------------------------------------------------

LAYERS = {
    'rnn': lambda: nn_rnn.RNN(LSTMCell(H)),
    'learned': lambda: nn_rnn.RNN(GRUCell(H), learn_initial_carry=True),
    'bidirectional': lambda: Bidirectional(nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(GRUCell(H))),
    'stack': lambda: Stack(
        [nn_rnn.RNN(LSTMCell(F)), nn_rnn.RNN(GRUCell(F)), nn_rnn.RNN(SimpleRNNCell(F))], residual=True
    ),
    'both': lambda: Stack([Bidirectional(nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(LSTMCell(H))) for _ in range(2)]),
    'stateful': lambda: Stateful(Stack([nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(nn.GRUCell(H))])),
}


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('name', LAYERS)
def test_B02_a_returned_carry_can_be_handed_back_unchanged(name):
    """In every wrapper; what it was made from decides its shape, and it changes the outputs."""
    layer = LAYERS[name]()
    variables, x = start(layer)
    variables = {'params': variables['params']}
    carry, first = layer.apply(variables, x, return_carry=True)
    again, second = layer.apply(variables, x, initial_carry=carry, return_carry=True)
    assert jax.tree.structure(again) == jax.tree.structure(carry) and shapes(again) == shapes(carry)
    assert np.abs(np.asarray(second) - np.asarray(first)).max() > 1e-3


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('name', ['rnn', 'learned', 'stack', 'stateful'])
def test_S04_wrappers_too_go_on_from_their_carry(name):
    """run(x) = run(x[:k]), then run(x[k:]) with the carry."""
    layer = LAYERS[name]()
    variables, x = start(layer)
    variables = {'params': variables['params']}
    want = layer.apply(variables, x, return_carry=True)
    carry, first = layer.apply(variables, x[:, :2], return_carry=True)
    last, second = layer.apply(variables, x[:, 2:], initial_carry=carry, return_carry=True)
    assert_same((last, jnp.concatenate([first, second], axis=1)), want, 1e-5)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('name', LAYERS)
def test_M14_wrappers_too_are_time_major_by_transposing(name):
    layer = LAYERS[name]()
    variables, x = start(layer)
    variables = {'params': variables['params']}
    options = {'seq_lengths': LENGTHS, 'return_carry': True}
    carry, outputs = layer.apply(variables, x, **options)
    same, turned = layer.apply(variables, x.swapaxes(0, 1), time_major=True, **options)
    assert_same((same, turned.swapaxes(0, 1)), (carry, outputs))


@pytest.mark.representative(every=2, first=1)
@pytest.mark.parametrize('name', LAYERS)
def test_wrappers_too_are_blind_to_padding(name):
    """NaN there changes no value and no gradient, and outputs there are 0."""
    layer = LAYERS[name]()
    variables, x = start(layer)

    @jax.jit
    def run(params, x):
        def total(params, x):
            outputs = layer.apply({'params': params}, x, seq_lengths=LENGTHS)
            return jnp.sum(outputs**2), outputs

        return jax.value_and_grad(total, (0, 1), has_aux=True)(params, x)

    want = run(variables['params'], x)
    got = run(variables['params'], np.where(MASK[..., None], x, np.nan))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    outputs, slopes = want[0][1], want[1][1]
    np.testing.assert_array_equal(np.asarray(slopes)[~MASK], 0)
    np.testing.assert_array_equal(np.asarray(outputs)[~MASK], 0)


# --- stacks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('return_sequences', [True, False])
def test_M13_a_stack_is_its_layers_in_turn(return_sequences, residual):
    """With a mask; the residual connection begins at the second layer, the summary is that of the last."""
    layer = Stack([nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(GRUCell(H))], residual=residual)
    variables, x = start(layer)
    first_carry, hidden = nn_rnn.RNN(LSTMCell(H)).apply(part(variables, 'layers_0'), x, mask=MASK, return_carry=True)
    second_carry, outputs = nn_rnn.RNN(GRUCell(H)).apply(
        part(variables, 'layers_1'), hidden, mask=MASK, return_carry=True
    )
    if residual:
        outputs = outputs + hidden
    if not return_sequences:
        outputs = np.stack([y[n - 1] if n else np.zeros(H) for y, n in zip(np.asarray(outputs), LENGTHS, strict=True)])
    got = layer.apply(variables, x, mask=MASK, return_carry=True, return_sequences=return_sequences)
    assert_same(got, ((first_carry, second_carry), jnp.asarray(outputs)))


@pytest.mark.parametrize('keep_order', [False, True])
def test_a_stack_told_to_go_backward_is_the_stack_over_flipped_inputs(keep_order):
    """Each layer goes through the sequence backward, not every other one."""
    layer = Stack([nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(GRUCell(H))])
    variables, x = start(layer)
    carry, want = layer.apply(variables, x[:, ::-1], return_carry=True)
    got = layer.apply(variables, x, reverse=True, keep_order=keep_order, return_carry=True)
    assert_same(got, (carry, want[:, ::-1] if keep_order else want))


def test_a_residual_stack_cannot_add_what_does_not_line_up():
    layer = Stack([nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(LSTMCell(H))], residual=True)
    variables, x = start(layer)
    with pytest.raises(ValueError, match='residual.*reverse=True.*keep_order=True'):
        layer.apply(variables, x, reverse=True)
    assert_same(layer.apply(variables, x, reverse=True, keep_order=True)[:, ::-1], layer.apply(variables, x[:, ::-1]))
    hash(layer)


def dropped(**options):
    layer = Stack([nn_rnn.RNN(LSTMCell(32)), nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(LSTMCell(H))], **options)
    variables, x = start(layer)
    return layer, variables, x


def test_D05_without_a_random_stream_a_stack_drops_nothing():
    """Bit for bit as with a rate of 0, and as with deterministic=True."""
    layer, variables, x = dropped(dropout=0.5)
    want = dropped()[0].apply(variables, x)
    rngs = {'dropout': jax.random.key(1)}
    np.testing.assert_array_equal(layer.apply(variables, x), want)
    np.testing.assert_array_equal(layer.apply(variables, x, rngs=rngs, deterministic=True), want)
    np.testing.assert_array_equal(dropped(dropout=0.0)[0].apply(variables, x, rngs=rngs), want)


def test_D03_dropout_between_layers_drops_the_share_and_draws_anew_at_every_step():
    """Seen by the second layer; the same key drops the same; the last layer's outputs are all there."""
    layer, variables, x = dropped(dropout=0.25)
    seen = {}

    def listen(call, args, kwargs, context):
        if context.module.path and context.method_name == '__call__':
            seen[context.module.path[-1]] = args[0]
        return call(*args, **kwargs)

    with nn.intercept_methods(listen):
        outputs = layer.apply(variables, x, rngs={'dropout': jax.random.key(1)})
    hidden = np.asarray(nn_rnn.RNN(LSTMCell(32)).apply(part(variables, 'layers_0'), x))
    kept = np.asarray(seen['layers_1']) != 0
    reference.assert_close(np.asarray(seen['layers_1'])[kept], hidden[kept] / 0.75, 1e-6)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / kept.size)
    assert len({kept[b, t].tobytes() for b in range(B) for t in range(T)}) == B * T
    assert (outputs != 0).all() and np.abs(outputs - layer.apply(variables, x)).max() > 1e-3
    np.testing.assert_array_equal(outputs, layer.apply(variables, x, rngs={'dropout': jax.random.key(1)}))
    other = layer.apply(variables, x, rngs={'dropout': jax.random.key(2)})
    assert np.abs(outputs - other).max() > 1e-3


def test_D05_inverted_dropout_keeps_the_mean():
    """Over 10,000 masks, within 3 standard errors."""
    x = 1.5 + np.abs(draw(8))
    drop = jax.jit(jax.vmap(lambda key: nn.Dropout(0.25).apply({}, x, deterministic=False, rngs={'dropout': key})))
    draws = np.asarray(drop(jax.random.split(jax.random.key(0), 10_000)))
    error = x * np.sqrt(0.25 / 0.75 / 10_000)
    assert (np.abs(draws.mean(0) - x) < 3 * error).all()


@pytest.mark.parametrize(
    'make', [lambda: Stack([nn_rnn.RNN(LSTMCell(H))], 0.5), lambda: models.recurrent('lstm', H, dropout=0.5)]
)
def test_D04_dropout_with_one_layer_warns(make):
    with pytest.warns(UserWarning, match='dropout=0.5'):
        make()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        models.recurrent('lstm', H, layers=2, dropout=0.5)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: Stack([]), 'layers'),
        (lambda: Stack([LSTMCell(H)]), r'layers\[0\].*LSTMCell'),
        (lambda: Stack([nn_rnn.RNN(LSTMCell(H))] * 2, 1.0), 'dropout=1.0'),
        (lambda: Stack([nn_rnn.RNN(LSTMCell(H))] * 2, -0.1), 'dropout=-0.1'),
        (lambda: Stack([nn_rnn.RNN(LSTMCell(H))] * 2, float('nan')), 'dropout=nan'),
    ],
)
def test_a_stack_that_is_none_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ('layers', 'options', 'message'),
    [
        ([nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(LSTMCell(H + 1))], {}, r'layers\[1\] \(4, 6, 6\).*\(4, 6, 5\)'),
        (
            [nn_rnn.RNN(LSTMCell(2 * H)), Bidirectional(nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(LSTMCell(H)))],
            {'return_sequences': False},
            'residual.*return_sequences=False',
        ),
        ([nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(LSTMCell(H))], {'initial_carry': (None,)}, '2 parts.*1 parts'),
        ([nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(LSTMCell(H))], {'initial_carry': 3}, '2 parts'),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, options, message):
    with pytest.raises(ValueError, match=message):
        Stack(layers, residual=True).init(jax.random.key(0), draw(B, T, F), **options)


# --- streams ---------------------------------------------------------------------------------------


def test_a_stateful_layer_goes_on_where_it_ended():
    """Windows through it are the whole run; reading without writing leaves the stream where it stands."""
    layer, x = Stateful(nn_rnn.RNN(LSTMCell(H))), draw(B, T, F)
    variables = layer.init(jax.random.key(0), x[:, :2])
    assert not variables['carry']['stream'].started.any()
    want = nn_rnn.RNN(LSTMCell(H)).apply(part(variables, 'rnn'), x)
    state, got = {'carry': variables['carry']}, []
    for begin in (0, 2, 4):
        window = x[:, begin : begin + 2]
        held = {'params': variables['params'], **state}
        looked = layer.apply(held, window)
        outputs, state = layer.apply(held, window, mutable=['carry'])
        np.testing.assert_array_equal(looked, outputs)
        got.append(outputs)
    reference.assert_close(np.concatenate(got, axis=1), want, 1e-6)
    assert state['carry']['stream'].started.all()


def test_a_stream_begins_at_the_learned_carry_and_begins_again_where_it_is_reset():
    layer = Stateful(nn_rnn.RNN(LSTMCell(H), learn_initial_carry=True))
    x = draw(B, T, F)
    variables = layer.init(jax.random.key(0), x)
    params = reference.random_variables(nn_rnn.RNN(LSTMCell(H), learn_initial_carry=True), x)['params']
    fresh = nn_rnn.RNN(LSTMCell(H), learn_initial_carry=True).apply({'params': params}, x)
    held = {'params': {'rnn': params}, 'carry': variables['carry']}
    first, state = layer.apply(held, x, mutable=['carry'])
    reference.assert_close(first, fresh, 1e-6)
    resets = np.zeros((B, T), bool)
    resets[1, 0] = True
    second = layer.apply({**held, **state}, x, resets=resets)
    reference.assert_close(second[1], fresh[1], 1e-6)
    assert (np.abs(second - fresh).max(axis=(1, 2)) > 1e-3).tolist() == [True, False, True, True]


def test_gradients_stop_at_the_edge_of_a_window():
    """The values of the window before reach this one, its parameters and inputs get no gradient through it."""
    layer, x = Stateful(nn_rnn.RNN(LSTMCell(H))), draw(B, T, F)
    variables = layer.init(jax.random.key(0), x)

    def two_windows(first, second):
        _, state = layer.apply(variables, first, mutable=['carry'])
        return jnp.sum(layer.apply({**variables, **state}, second) ** 2)

    to_first, to_second = jax.grad(two_windows, (0, 1))(x[:, :3], x[:, 3:])
    np.testing.assert_array_equal(to_first, np.zeros((B, 3, F)))
    assert (np.abs(to_second).max(-1) > 0).all()
    assert two_windows(x[:, :3], x[:, 3:]) != two_windows(0 * x[:, :3], x[:, 3:])


@pytest.mark.parametrize(
    ('layer', 'options', 'x', 'message'),
    [
        (Bidirectional(nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(LSTMCell(H))), {}, draw(B, T, F), 'Bidirectional'),
        (Stack([nn_rnn.RNN(LSTMCell(H), reverse=True)]), {}, draw(B, T, F), 'Stack'),
        (nn_rnn.RNN(LSTMCell(H)), {'reverse': True}, draw(B, T, F), 'RNN'),
        (nn_rnn.RNN(LSTMCell(H)), {}, draw(T, F), r'inputs \(6, 3\)'),
    ],
)
def test_what_cannot_be_a_stream_is_refused(layer, options, x, message):
    with pytest.raises(ValueError, match=message):
        Stateful(layer).init(jax.random.key(0), x, **options)


def test_S03_another_number_of_rows_than_the_streams_is_refused_by_name():
    layer = Stateful(nn_rnn.RNN(LSTMCell(H)))
    variables = layer.init(jax.random.key(0), draw(B, T, F))
    with pytest.raises(ValueError, match=r'inputs \(2,\).*\(4,\)'):
        layer.apply(variables, draw(2, T, F))
    assert layer.apply({'params': variables['params']}, draw(2, T, F)).shape == (2, T, H)  # without a stream


# --- masks over time-distributed modules -----------------------------------------------------------


def test_M11_masked_outputs_of_a_time_distributed_dense_are_zero():
    """Though its bias is not; NaN at masked steps reaches no gradient."""
    layer = TimeDistributed(nn.Dense(2))
    variables, x = start(layer)
    plain = np.asarray(layer.apply(variables, x))
    np.testing.assert_array_equal(layer.apply(variables, x, mask=MASK), np.where(MASK[..., None], plain, 0))
    assert (plain[~MASK] != 0).all()

    def total(variables, x):
        return jnp.sum(layer.apply(variables, x, mask=MASK) ** 2)

    bad = np.where(MASK[..., None], x, np.nan)
    jax.tree.map(np.testing.assert_array_equal, jax.grad(total)(variables, bad), jax.grad(total)(variables, x))


class Masked(nn.Module):
    """Returns the mask that it was given, beside its inputs."""

    @nn.compact
    def __call__(self, x, mask=None):
        return x, (jnp.zeros(x.shape[:1]) if mask is None else mask.astype(jnp.float32))


def test_a_time_distributed_module_that_takes_a_mask_is_given_that_of_its_step():
    x = draw(B, T, F)
    np.testing.assert_array_equal(TimeDistributed(Masked()).apply({}, x, mask=MASK)[1], MASK.astype(np.float32))
    np.testing.assert_array_equal(TimeDistributed(Masked()).apply({}, x)[1], np.zeros((B, T)))


def test_a_recurrent_layer_under_time_distribution_gets_the_mask_of_its_own_steps():
    """Sentences of words: [B, T, S, F] with a mask [B, T, S]; a sentence without a word is 0."""
    words, x = 4, draw(2, 3, 4, F)
    lengths = np.array([[4, 0, 2], [1, 3, 0]])
    mask = np.arange(words) < lengths[..., None]
    rnn = nn_rnn.RNN(LSTMCell(H))
    layer = TimeDistributed(rnn)
    variables = {'params': {'module': reference.random_variables(rnn, x[:, 0])['params']}}
    got = layer.apply(variables, x, mask=mask, return_sequences=False)
    for t in range(3):
        want = rnn.apply(part(variables, 'module'), x[:, t], mask=mask[:, t], return_sequences=False)
        reference.assert_close(got[:, t], want, 1e-6)
    np.testing.assert_array_equal(np.asarray(got)[lengths == 0], 0)


@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (MASK[:, :-1], r'mask \(4, 5\)'),
        (MASK.T, r'mask \(6, 4\)'),
        (MASK[:, 0], r'mask \(4,\)'),
        (MASK.astype(np.float32), 'mask.*float32'),
        (np.ones((B, T, F), bool), r'mask \(4, 6, 3\)'),
        (np.ones((B, T, 1), bool), r'mask \(4, 6, 1\)'),
    ],
)
def test_a_mask_that_does_not_fit_a_time_distributed_module_is_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        TimeDistributed(nn.Dense(2)).init(jax.random.key(0), draw(B, T, F), mask=mask)


def test_a_whole_step_is_masked_for_a_recurrent_layer_under_time_distribution():
    """A mask [B, T] over [B, T, S, F] is that of all S steps within."""
    x, mask = draw(2, 3, 4, F), np.array([[True, False, True], [False, True, True]])
    for rnn in (
        nn_rnn.RNN(LSTMCell(H)),
        Bidirectional(nn_rnn.RNN(LSTMCell(H)), nn_rnn.RNN(GRUCell(H))),
        Stack([nn_rnn.RNN(GRUCell(H))]),
    ):
        layer = TimeDistributed(rnn)
        variables = {'params': {'module': reference.random_variables(rnn, x[:, 0])['params']}}
        got = layer.apply(variables, x, mask=mask)
        want = layer.apply(variables, x, mask=np.broadcast_to(mask[..., None], x.shape[:3]))
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(np.asarray(got)[~mask], 0)


WORDS = (2, 3, 4, F)  # [B, T, S, F]


def layer_call(layer, shape, **fixed):
    """name, size -> a call of the layer with an argument of that shape."""
    return lambda name, size: layer.init(jax.random.key(0), jnp.ones(shape), **fixed, **{name: np.ones(size, bool)})


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(
    ('name', 'size', 'call'),
    [
        *(('mask', size, layer_call(TimeDistributed(nn.Dense(2)), (B, T, F))) for size in ((B, T, 1), (B, T, F), (B,))),
        *(('mask', size, layer_call(TimeDistributed(nn.LayerNorm()), (B, T, F))) for size in ((B, T, F), (T, B))),
        *(('mask', size, layer_call(TimeDistributed(nn.Dense(2)), WORDS)) for size in ((2, 3, 4), WORDS)),
        *(
            ('mask', size, layer_call(TimeDistributed(layer), WORDS))
            for layer in (
                nn_rnn.RNN(GRUCell(H)),
                Bidirectional(nn_rnn.RNN(GRUCell(H)), nn_rnn.RNN(GRUCell(H))),
                Stack([nn_rnn.RNN(GRUCell(H))]),
            )
            for size in ((2, 4), (2, 3, 3), WORDS, (2,))
        ),
        *(
            ('mask', size, layer_call(TimeDistributed(Masked()), (B, T, F)))
            for size in ((T, B), (B, T, 1), (B, T, F, 1))
        ),
        *(
            (name, size, layer_call(layer, (B, T, F)))
            for layer in (nn_rnn.RNN(GRUCell(H)), Stateful(nn_rnn.RNN(GRUCell(H))))
            for name in ('mask', 'resets')
            for size in ((B, T, 1), (T, B), (B,))
        ),
        (
            'seq_lengths',
            (B, 1),
            lambda _, n: nn_rnn.RNN(GRUCell(H)).init(KEY, jnp.ones((B, T, F)), seq_lengths=np.ones(n, int)),
        ),
        (
            'mask',
            (B, T, 1),
            lambda _, n: losses.cross_entropy(jnp.ones((B, T, 5)), np.ones((B, T), int), np.ones(n, bool)),
        ),
        ('mask', (T, B), lambda _, n: losses.squared_error(jnp.ones((B, T, 5)), jnp.ones((B, T, 5)), np.ones(n, bool))),
        ('mask', (T,), lambda _, n: losses.frame_nll(jnp.ones((B, T, 5)), jnp.ones((B, T, 5)), np.ones(n, bool))),
        ('labels', (B, T, 1), lambda _, n: losses.cross_entropy(jnp.ones((B, T, 5)), np.ones(n, int))),
        ('outputs', (B, T), lambda _, n: losses.squared_error(jnp.ones(n), jnp.ones((B, T, 1)))),
    ],
)
def test_a_shape_that_a_message_asks_for_is_accepted(name, size, call):
    with pytest.raises(ValueError) as error:
        call(name, size)
    asked = re.search(rf'{name} {re.escape(str(size))}.*?(\(.*?\))', str(error.value))
    assert asked, error.value
    call(name, ast.literal_eval(asked[1]))


@pytest.mark.parametrize('shape', [(0, T, F), (B, 0, F), (0, 0, F)])
def test_time_distributed_works_without_rows_and_without_steps(shape):
    y, variables = TimeDistributed(nn.Dense(2)).init_with_output(jax.random.key(0), jnp.ones(shape))
    assert y.shape == (*shape[:2], 2) and shapes(variables['params']['module']) == {'kernel': (F, 2), 'bias': (2,)}


# --- layers within layers --------------------------------------------------------------------------


def test_a_pair_of_outputs_is_not_read_as_a_batch():
    pair = Bidirectional(nn_rnn.RNN(GRUCell(H)), nn_rnn.RNN(GRUCell(H)), 'none')
    with pytest.raises(ValueError, match="merge_mode='none'"):
        Stack([pair, nn_rnn.RNN(GRUCell(H))]).init(jax.random.key(0), draw(B, T, F))


def test_a_layer_that_goes_backward_within_a_stack_keeps_resets_in_their_places():
    """What it hands on is in the order of the inputs; no output depends on both sides of a reset."""
    layer = Stack([nn_rnn.RNN(GRUCell(H), reverse=True), nn_rnn.RNN(GRUCell(H))])
    variables, x = start(layer)
    resets = np.zeros((B, T), bool)
    resets[:, 2] = True
    slopes = jax.jit(jax.jacrev(lambda x: layer.apply(variables, x, resets=resets).sum((0, -1))))(x)
    reach = np.abs(slopes).max((1, 3)) > 1e-7
    np.testing.assert_array_equal(
        reach, np.block([[np.ones((2, 2)), np.zeros((2, 4))], [np.zeros((4, 2)), np.ones((4, 4))]]) > 0
    )


@pytest.mark.parametrize(
    ('layer', 'options', 'message'),
    [
        (Bidirectional(nn_rnn.RNN(GRUCell(H)), nn_rnn.RNN(GRUCell(H))), {'reverse': True}, 'reverse'),
        (Bidirectional(*[nn_rnn.RNN(cell) for cell in [GRUCell(H)] * 2]), {}, 'forward_rnn.*backward_rnn'),
        (Stack([nn_rnn.RNN(GRUCell(F)), nn_rnn.RNN(GRUCell(F), reverse=True)], residual=True), {}, 'keep_order=True'),
        (Stateful(nn_rnn.RNN(GRUCell(H))), {'carry_history': True}, 'carry_history'),
    ],
)
def test_layers_that_would_mislead_are_refused(layer, options, message):
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), draw(B, T, F), **options)


def test_deterministic_reaches_every_stack_within():
    def inner():
        return Stack([nn_rnn.RNN(GRUCell(H)), nn_rnn.RNN(GRUCell(H))], dropout=0.5)

    layer = Stack([Bidirectional(inner(), inner()), inner(), Stateful(inner())], dropout=0.5)
    variables, x = start(layer)
    variables, rngs = {'params': variables['params']}, {'dropout': jax.random.key(0)}
    still = layer.apply(variables, x)
    np.testing.assert_array_equal(layer.apply(variables, x, deterministic=True, rngs=rngs), still)
    assert (layer.apply(variables, x, rngs=rngs) != still).any()


def test_a_window_without_a_real_step_neither_begins_a_stream_nor_ends_it():
    """Of no steps, or masked in some rows; a row begins with its first real step."""
    layer, x = Stateful(nn_rnn.RNN(LSTMCell(H))), draw(B, T, F)
    variables = layer.init(jax.random.key(0), x)
    _, state = layer.apply(variables, x[:, :3], seq_lengths=np.array([3, 1, 0, 2]), mutable=['carry'])
    assert state['carry']['stream'].started.tolist() == [True, True, False, True]
    _, after = layer.apply({**variables, **state}, x[:, :0], mutable=['carry'])
    jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize('norm', [nn.LayerNorm, nn.RMSNorm])
def test_a_normalisation_over_features_is_not_given_the_mask_of_steps(norm):
    layer, x = TimeDistributed(norm()), draw(B, T, F)
    variables = layer.init(jax.random.key(0), x)
    want = np.where(MASK[..., None], layer.apply(variables, x), 0)
    np.testing.assert_array_equal(layer.apply(variables, x, mask=MASK), want)
