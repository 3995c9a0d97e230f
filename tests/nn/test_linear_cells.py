"""Linear recurrences in both forms: equal in values and gradients; how they begin. (Equations: test_variants.py.)"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import activations, rnn
from seqjax.nn.cells.linear_cells import LinearCell, LRUCell, MinGRUCell, MinLSTMCell, RGLRUCell
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.nn.wrappers import Bidirectional, Stack
from tests.helpers import reference

B, T, F, H = 3, 9, 2, 4
KEY = jax.random.key(0)
CELLS = {
    'mingru': MinGRUCell(H),
    'mingru_positive': MinGRUCell(H, activation=activations.positive),
    'minlstm': MinLSTMCell(H),
    'lru': LRUCell(H, outputs=3),
    'rglru': RGLRUCell(H),
}
RNG = np.random.default_rng(0)
HOLES = RNG.random((B, T)) < 0.6
RESETS = RNG.random((B, T)) < 0.3
STEPS = {
    'all': {},
    'lengths': {'seq_lengths': np.array([5, T, 0])},
    'holes': {'mask': HOLES},
    'resets': {'resets': RESETS},
    'everything': {'mask': HOLES, 'resets': RESETS, 'seq_lengths': np.array([7, T, 4]), 'masked_output': 'hold'},
}
ORDERS = {'forward': {}, 'reverse': {'reverse': True}, 'kept': {'reverse': True, 'keep_order': True}}


def differentiated(layer, variables, x, first, **options):
    """All that a layer gives, and the gradients of a random weighting of it: of parameters, inputs and carry."""

    def run(variables, x, first):
        results = layer.apply(variables, x, initial_carry=first, return_carry=True, **options)
        rng = np.random.default_rng(7)
        return sum(jnp.sum(y * rng.normal(size=y.shape)) for y in jax.tree.leaves(results)), results

    grads, results = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True))(variables, x, first)
    return results, grads


def drawn(layer, seed=1):
    x = np.random.default_rng(seed).normal(size=(B, T, F))
    variables = jax.tree.map(np.asarray, reference.random_variables(layer, x))
    own = layer.cell.initialize_carry(KEY, (B, F))
    return variables, x, jax.tree.map(lambda leaf: np.random.default_rng(2).normal(size=leaf.shape), own)


@pytest.mark.representative(by=lambda name, steps, order: [(name, steps == 'everything'), steps, order])
@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('steps', STEPS)
@pytest.mark.parametrize('name', CELLS)
def test_both_forms_are_equal_in_values_and_gradients(name, steps, order, x64):
    """With lengths, holes, resets, all of them; given and returned carries: relative 1e-10 in float64."""
    cell = CELLS[name].clone(param_dtype=jnp.float64)
    variables, x, first = drawn(rnn.RNN(cell))
    options = STEPS[steps] | ORDERS[order]
    want, got = (
        differentiated(rnn.RNN(cell, parallel=parallel), variables, x, first, **options) for parallel in (False, True)
    )
    for (path, right), value in zip(jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got), strict=True):
        reference.assert_close(value, right, 1e-10, jax.tree_util.keystr(path))


@pytest.mark.representative(every=2, first=1)
@pytest.mark.parametrize('name', CELLS)
def test_both_forms_give_the_same_history_of_carries(name):
    layer = rnn.RNN(CELLS[name])
    variables, x, first = jax.tree.map(np.float32, drawn(layer))
    run = functools.partial(layer.apply, initial_carry=first, carry_history=True, **STEPS['everything'])
    by_scan, by_steps = (jax.jit(functools.partial(run, parallel=parallel))(variables, x) for parallel in (True, False))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), by_scan, by_steps)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('name', CELLS)
def test_both_forms_agree_in_float32_over_a_thousand_steps(name):
    """Relative 1e-4 of the largest, with the weights that a layer begins with."""
    layer, x = rnn.RNN(CELLS[name]), np.random.default_rng(0).normal(size=(2, 1000, F)).astype(np.float32)
    variables = layer.init(KEY, x)
    run = jax.jit(layer.apply, static_argnames='parallel')
    reference.assert_close(run(variables, x, parallel=True), run(variables, x, parallel=False), 1e-4)


@pytest.mark.parametrize('name', CELLS)
def test_the_parallel_form_has_no_loop(name):
    """By the compiled program: T = 200 steps go through no while, and step by step through one."""
    layer, x = rnn.RNN(CELLS[name]), jnp.zeros((1, 200, F))
    variables = layer.init(KEY, x)

    def loops(**options):
        program = jax.jit(functools.partial(layer.apply, **options)).lower(variables, x).as_text()
        return program.count('stablehlo.while')

    assert loops(parallel=True) == 0 and loops(parallel=False) == 1


def test_one_argument_chooses_the_form_of_whatever_stands_around():
    """Of the layer, or of the call through Stack and Bidirectional; the parameters are the same."""
    x = np.random.default_rng(0).normal(size=(B, T, F)).astype(np.float32)

    def stack(**how):
        return Stack([Bidirectional(*(rnn.RNN(MinGRUCell(H), **how) for _ in range(2))) for _ in range(2)])

    variables = stack().init(KEY, x)
    want = stack().apply(variables, x)
    for got in (stack(parallel=True).apply(variables, x), stack().apply(variables, x, parallel=True)):
        np.testing.assert_allclose(got, want, atol=1e-6)
    text = jax.jit(functools.partial(stack().apply, parallel=True)).lower(variables, x).as_text()
    assert 'stablehlo.while' not in text


@pytest.mark.parametrize(
    ('layer', 'message'),
    [
        (lambda: rnn.RNN(LSTMCell(H), parallel=True), 'parallel=True.*LSTMCell'),
        (lambda: rnn.RNN(nn.GRUCell(H), parallel=True), 'GRUCell'),
        (lambda: rnn.RNN(MinGRUCell(H), parallel=True, unroll=2), 'parallel=True'),
        (lambda: rnn.RNN(MinGRUCell(H), parallel=True, split_rngs={}), 'unroll above 1, variable_axes'),
    ],
)
def test_what_cannot_be_taken_all_at_once_is_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        layer()


def test_a_call_cannot_ask_an_lstm_for_all_steps_at_once():
    with pytest.raises(ValueError, match='LSTMCell'):
        rnn.RNN(LSTMCell(H)).init(KEY, jnp.zeros((B, T, F)), parallel=True)


# --- how they begin, and where they saturate -------------------------------------------------------


def test_the_eigenvalues_of_an_lru_begin_in_their_ring():
    """Evenly by area: |lambda|^2 is uniform; phases are uniform; gamma makes the states' variance one."""
    cell = LRUCell(20_000, r_min=0.6, r_max=0.9, max_phase=1.0, outputs=1)
    params = rnn.RNN(cell).init(KEY, jnp.zeros((1, 2, 1)))['params']['cell']
    size, phase = np.exp(-np.exp(params['nu_log'])), np.exp(params['theta_log'])
    assert 0.6 <= size.min() < 0.601 and 0.899 < size.max() <= 0.9
    assert reference.is_uniform((size**2 - (0.36 + 0.81) / 2) / ((0.81 - 0.36) / 2), 1)
    assert reference.is_uniform(2 * phase - 1, 1)
    np.testing.assert_allclose(np.exp(params['gamma_log']), np.sqrt(1 - size**2), rtol=1e-3)


def test_an_rglru_begins_where_it_keeps_90_to_99_9_percent():
    """a^8 of sigmoid(L), at r = 1: evenly."""
    layer, x = rnn.RNN(RGLRUCell(100)), jnp.zeros((1, 2, 1))
    decay = jax.vmap(lambda key: layer.init(key, x)['params']['cell']['decay'])(jax.random.split(KEY, 200))
    share = (1 / (1 + np.exp(-np.float64(decay)))) ** 8
    assert reference.is_uniform((share - 0.9495) / 0.0495, 1)


@pytest.mark.representative(1)
@pytest.mark.parametrize('parallel', [False, True])
@pytest.mark.parametrize('name', CELLS)
def test_gates_that_are_shut_or_open_altogether_have_finite_gradients(name, parallel):
    """Inputs of a million: a sum of two gates that are 0, a root of 0."""
    layer = rnn.RNN(CELLS[name], parallel=parallel)
    variables, x, _ = jax.tree.map(np.float32, drawn(layer))
    grads = jax.jit(jax.grad(lambda v, x: layer.apply(v, x).sum() / 1e6, (0, 1)))(variables, np.float32(1e6) * x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_a_linear_cell_is_one_method():
    """An exponential moving average, in both forms, with whatever RNN has: nothing else is written."""

    class Average(LinearCell):
        @nn.compact
        def affine(self, inputs):
            keep = nn.sigmoid(self.param('keep', nn.initializers.zeros, (self.features,)))
            keep = jnp.broadcast_to(keep, inputs.shape)
            return keep, (1 - keep) * inputs, lambda state: state

    x, layer = np.ones((B, T, H), np.float32), rnn.RNN(Average(H))
    variables = layer.init(KEY, x)
    want = 1 - 0.5 ** np.arange(1, T + 1)
    for parallel in (False, True):
        outputs = layer.apply(variables, x, parallel=parallel, seq_lengths=np.array([T, T, 2]))
        np.testing.assert_allclose(outputs[0, :, 0], want, rtol=1e-6)
        np.testing.assert_allclose(outputs[2, :, 0], [*want[:2], *[0] * (T - 2)], rtol=1e-6)
