"""Cells, masks, inputs and comparisons shared by the tests of RNN."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seqjax.nn import rnn
from seqjax.nn.cells.gru_cell import GRUCell
from seqjax.nn.cells.linear_cells import LRUCell, MinGRUCell, MinLSTMCell, RGLRUCell
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.nn.cells.simple_cell import SimpleRNNCell
from seqjax.ops import masking
from tests.helpers import reference

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
# The same cells in other forms: as a parallel scan, or in rematerialized segments.
FORMS = {f'{name}_parallel': {'parallel': True} for name in ('mingru', 'minlstm', 'lru', 'rglru')}
FORMS |= {'lstm_remat': {'remat_segments': 4}, 'lru_parallel_remat': {'parallel': True, 'remat_segments': 4}}
CELLS |= {form: CELLS[form.split('_')[0]] for form in FORMS}


def flip(x, mask=None):
    """Reverses the valid steps of each row, for x [B, T, ...] and mask [B, T]."""
    return jnp.swapaxes(masking.flip(jnp.swapaxes(jnp.asarray(x), 0, 1), None if mask is None else mask.T), 0, 1)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def variables_of(layer, x, scale=0.5, **options):
    shapes = reference.random_variables(WithOptions(layer, options), x)
    return jax.tree.map(lambda w: scale * w, shapes)


class WithOptions:
    """Wraps a layer whose `init` is called with options."""

    def __init__(self, layer, options):
        self.init = functools.partial(layer.init, **options)


@functools.cache
def started(name, **options):
    """Returns a layer over the cell of that name, its variables, and inputs [B, T, F]."""
    layer, x = rnn.RNN(CELLS[name], **FORMS.get(name, {}), **options), draw(B, T, F)
    return layer, variables_of(layer, x), x


def own_carry(name, rows=B):
    return CELLS[name].initialize_carry(jax.random.key(0), (rows, F))


@functools.cache
def compiled(layer, **options):
    return jax.jit(functools.partial(layer.apply, **options))


def assert_same(got, want, atol=1e-6):
    """Asserts equality to `atol`, and to a relative tolerance of ten times as much."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=10 * atol, atol=atol), got, want)


def assert_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def t1(forget_bias=0.0, **options):
    """Returns a layer of one LSTM unit and one feature, and its variables: all weights 0.5."""
    params = {
        'kernel': jnp.full((1, 4), 0.5),
        'recurrent_kernel': jnp.full((1, 4), 0.5),
        'bias': jnp.array([0, forget_bias, 0, 0]),
    }
    return rnn.RNN(LSTMCell(1), **options), {'params': {'cell': params}}


def column(*numbers):
    return jnp.array(numbers, jnp.float32)[None, :, None]


def everything(layer, variables, x, initial_carry=None, **options):
    """Returns a number that depends on all values that a layer returns."""
    carry, outputs = layer.apply(variables, x, initial_carry=initial_carry, return_carry=True, **options)
    weights = np.random.default_rng(7)
    leaves = jax.tree.leaves((carry, outputs))
    return sum(jnp.sum(leaf * weights.normal(size=leaf.shape).astype(np.float32)) for leaf in leaves)


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
