"""Schemes by name against the libraries that they come from, and biases of gates by their distributions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import initializers, rnn
from seqjax.nn.cells.gru_cell import GRUCell
from seqjax.nn.cells.linear_cells import MinGRUCell, MinLSTMCell, RGLRUCell
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.nn.cells.simple_cell import SimpleRNNCell
from seqjax.nn.initializers import ChronoGate, ConstantGate, UniformGate
from tests.helpers import reference

F, H = 6, 4
CELLS = {'lstm': LSTMCell, 'gru': GRUCell, 'simple': SimpleRNNCell}


def draws(cell, features=F, seeds=500):
    """Initial parameters from many seeds: leaves [seeds, ...]."""
    layer, x = rnn.RNN(cell), jnp.zeros((1, 2, features))
    init = jax.jit(jax.vmap(lambda key: layer.init(key, x)['params']['cell']))
    return jax.tree.map(np.asarray, init(jax.random.split(jax.random.key(0), seeds)))


# --- schemes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', CELLS)
def test_pytorchs_scheme_has_the_distribution_of_pytorchs_draws(kind):
    """All within 1 / sqrt(H); where one bias stands for two, their sum: of its bound twice as wide."""
    torch = pytest.importorskip('torch', reason='PyTorch is a reference here, where it is installed')
    ours, bound = draws(CELLS[kind](H, init_scheme='pytorch')), H**-0.5
    make = {'lstm': torch.nn.LSTM, 'gru': torch.nn.GRU, 'simple': torch.nn.RNN}[kind]
    torch.manual_seed(0)
    modules = [dict(make(F, H).named_parameters()) for _ in range(500)]
    theirs = {name: np.stack([module[name].detach().numpy() for module in modules]) for name in modules[0]}
    for mine, name in (('kernel', 'weight_ih_l0'), ('recurrent_kernel', 'weight_hh_l0')):
        assert ours[mine].shape == theirs[name].swapaxes(1, 2).shape
        assert reference.is_uniform(ours[mine], bound) and reference.is_uniform(theirs[name], bound)
    if kind == 'gru':
        assert reference.is_uniform(ours['bias'], bound) and reference.is_uniform(ours['recurrent_bias'], bound)
    else:
        summed = theirs['bias_ih_l0'] + theirs['bias_hh_l0']
        for values in (ours['bias'], summed):
            assert 0.9 * 2 * bound < np.abs(values).max() <= 2 * bound
            assert abs(np.mean(values**2) / (2 * bound**2 / 3) - 1) < 0.05
            assert abs(np.mean(values)) < 0.03


@pytest.mark.parametrize('kind', CELLS)
def test_flaxs_scheme_has_the_distribution_of_flaxs_draws(kind):
    """Truncated normal kernels by their inputs, an orthogonal matrix for each gate, biases of 0."""
    ours = draws(CELLS[kind](H, init_scheme='flax'))
    make = {'lstm': nn.OptimizedLSTMCell, 'gru': nn.GRUCell, 'simple': nn.SimpleCell}[kind]
    x = jnp.zeros((1, 2, F))
    init = jax.vmap(lambda key: nn.RNN(make(H)).init(key, x)['params']['cell'])
    theirs = jax.device_get(init(jax.random.split(jax.random.key(1), 500)))
    gates = {'lstm': ('ii', 'hi'), 'gru': ('in', 'hn'), 'simple': ('i', 'h')}[kind]
    wanted = [theirs[gate]['kernel'] for gate in gates]
    for mine, want in zip((ours['kernel'], ours['recurrent_kernel']), wanted, strict=True):
        for power in (1, 2, 4):
            np.testing.assert_allclose((mine**power).mean(), (want**power).mean(), rtol=0.1, atol=0.02)
        assert abs(np.abs(mine).max() / np.abs(want).max() - 1) < 0.05
    for block in np.split(ours['recurrent_kernel'], ours['recurrent_kernel'].shape[-1] // H, axis=-1):
        np.testing.assert_allclose(block @ block.swapaxes(1, 2), np.tile(np.eye(H), (500, 1, 1)), atol=1e-5)
    for name in ours.keys() & {'bias', 'recurrent_bias'}:
        np.testing.assert_array_equal(ours[name], 0)


@pytest.mark.parametrize('kind', CELLS)
def test_kerass_scheme_is_the_default(kind):
    reference.assert_trees_equal(draws(CELLS[kind](H), seeds=2), draws(CELLS[kind](H, init_scheme='keras'), seeds=2))
    assert list(initializers.SCHEMES) == ['keras', 'pytorch', 'flax']


# --- biases of gates -------------------------------------------------------------------------------


UNITS = 64


def by_gate(cell):
    """The initial biases of each gate, from many seeds side by side."""
    if hasattr(cell, 'recurrent_kernel_init'):
        cell = cell.clone(recurrent_kernel_init=nn.initializers.zeros)  # most of the work
    bias = draws(cell)['bias']
    return np.moveaxis(bias.reshape(len(bias), -1, cell.features), 1, 0).reshape(-1, len(bias) * cell.features)


def test_chrono_makes_units_keep_for_1_to_T_steps():
    """exp(b_f) is uniform from 1 to T - 1, b_i = -b_f, all others 0: of every cell that has such gates."""
    span = 110
    i, f, g, o = by_gate(LSTMCell(UNITS, bias_init=ChronoGate(span)))
    assert reference.is_uniform((np.exp(np.float64(f)) - span / 2) / (span / 2 - 1), 1)
    np.testing.assert_array_equal(i, -f)
    np.testing.assert_array_equal([g, o], 0)
    z, r, n = by_gate(GRUCell(UNITS, bias_init=ChronoGate(span)))
    assert reference.is_uniform((np.exp(np.float64(z)) - span / 2) / (span / 2 - 1), 1)
    np.testing.assert_array_equal([r, n], 0)
    for update, *others in (
        by_gate(LSTMCell(UNITS, forget='coupled', bias_init=ChronoGate(span))),
        by_gate(MinGRUCell(UNITS, bias_init=ChronoGate(span))),
    ):
        assert reference.is_uniform((np.exp(-np.float64(update)) - span / 2) / (span / 2 - 1), 1)
        np.testing.assert_array_equal(others, np.zeros_like(others))
    f, i, n = by_gate(MinLSTMCell(UNITS, bias_init=ChronoGate(span)))
    assert f.min() >= 0 and (i == -f).all() and (n == 0).all()


def test_the_uniform_gate_begins_spread_evenly():
    """sigmoid(b_f) is uniform over (1/H, 1 - 1/H), and b_i = -b_f."""
    i, f, g, o = by_gate(LSTMCell(UNITS, bias_init=UniformGate()))
    assert reference.is_uniform((1 / (1 + np.exp(-np.float64(f))) - 0.5) / (0.5 - 1 / UNITS), 1)
    np.testing.assert_array_equal(i, -f)
    np.testing.assert_array_equal([g, o], 0)
    few = draws(LSTMCell(2, bias_init=UniformGate()))['bias']
    np.testing.assert_allclose(few, 0, atol=1e-6)  # (1/2, 1/2) has one point


def test_the_constant_gate_is_of_the_gate_that_keeps():
    three = {'bias_init': ConstantGate(3.0)}
    for cell, want in (
        (LSTMCell(2, **three), [0, 3, 0, 0]),
        (LSTMCell(2, forget='coupled', **three), [-3, 0, 0]),
        (GRUCell(2, **three), [3, 0, 0]),
        (MinGRUCell(2, **three), [-3, 0]),
        (MinLSTMCell(2, **three), [3, 0, 0]),
    ):
        biases = by_gate(cell)
        np.testing.assert_array_equal(biases, np.broadcast_to(np.array(want)[:, None], biases.shape))


@pytest.mark.parametrize('bias', [ChronoGate(20), UniformGate(), ConstantGate()])
@pytest.mark.parametrize('cell', [SimpleRNNCell, RGLRUCell, lambda n, **how: LSTMCell(n, forget='none', **how)])
def test_a_cell_without_a_gate_that_keeps_refuses_its_bias(cell, bias):
    with pytest.raises(ValueError, match=r'bias_init=\w+\(.*\)'):
        draws(cell(H, bias_init=bias), seeds=1)


@pytest.mark.parametrize('span', [2, 0, -1, True, float('nan')])
def test_a_span_that_is_none_is_refused(span):
    with pytest.raises(ValueError, match=f'span={span}'):
        ChronoGate(span)


def test_the_uniform_gate_of_one_unit_is_refused():
    with pytest.raises(ValueError, match='features'):
        draws(LSTMCell(1, bias_init=UniformGate()), seeds=1)


def test_gate_biases_have_names():
    assert {'constant': ConstantGate, 'chrono': ChronoGate, 'uniform': UniformGate} == initializers.GATE_BIASES
