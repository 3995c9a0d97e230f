"""Precision and memory: half precision within a loop, and segments that the backward pass computes again."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict

from seqjax import training
from seqjax.nn import losses, models, rnn
from seqjax.nn.cells.gru_cell import GRUCell
from seqjax.nn.cells.linear_cells import LRUCell, MinGRUCell, MinLSTMCell
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.nn.cells.simple_cell import SimpleRNNCell
from seqjax.nn.wrappers import Bidirectional
from seqjax.types import Batch, Task
from tests.helpers import reference

KEY = jax.random.key(0)
B, T, F, H = 3, 50, 4, 8
HALF = jnp.bfloat16
VARIANTS = {
    **{name: cell(H) for name, cell in models.CELLS.items()},
    'lstm_norm': LSTMCell(H, layer_norm=True),
    'lstm_projected': LSTMCell(H, projection=4, peepholes=True, forget='coupled'),
    'gru_norm': GRUCell(H, layer_norm=True, reset_after=False),
    'simple_norm': SimpleRNNCell(H, layer_norm=True),
}
FEW = ('lstm', 'gru', 'mingru', 'lru', 'simple_norm')


@functools.cache
def begun(cell, **how):
    layer, x = rnn.RNN(cell, **how), np.random.default_rng(0).normal(size=(B, T, F)).astype(np.float32)
    return layer, layer.init(KEY, x), x


# --- half precision --------------------------------------------------------------------------------


@pytest.mark.representative(
    by=lambda name, parallel: [name] if name in FEW and parallel == hasattr(VARIANTS[name], 'affine') else []
)
@pytest.mark.parametrize('parallel', [False, True])
@pytest.mark.parametrize('name', VARIANTS)
def test_N03_bfloat16_is_within_2e_2_of_float32_over_50_steps(name, parallel):
    """Parameters and carry stay float32, outputs are bfloat16, gradients come back float32."""
    cell = VARIANTS[name]
    if parallel and not hasattr(cell, 'affine'):
        pytest.skip('this cell goes step by step')
    layer, variables, x = begun(cell, parallel=parallel)
    half = rnn.RNN(cell.clone(dtype=HALF), parallel=parallel)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(jax.eval_shape(half.init, KEY, x)))
    carry, outputs = jax.jit(functools.partial(half.apply, return_carry=True))(variables, x)
    exact_carry, exact = jax.jit(functools.partial(layer.apply, return_carry=True))(variables, x)
    assert outputs.dtype == HALF and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(carry))
    if not getattr(cell, 'layer_norm', False):  # see the next test
        for got, want in zip(jax.tree.leaves((carry, outputs)), jax.tree.leaves((exact_carry, exact)), strict=True):
            np.testing.assert_allclose(np.float32(got), want, atol=2e-2 * max(1, np.abs(want).max()))
    grads = jax.eval_shape(jax.grad(lambda v: jnp.sum(half.apply(v, x).astype(jnp.float32) ** 2)), variables)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))


def round_to_half(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(HALF).astype(jnp.float32), tree)


@pytest.mark.parametrize('name', ['lstm_norm', 'gru_norm', 'simple_norm'])
def test_N03_layer_normalisation_loses_no_more_than_the_rounding_of_weights_and_inputs(name):
    """It makes a small state large, and its rounding too: float32 throughout loses as much once they are rounded."""
    layer, variables, x = begun(VARIANTS[name])
    exact = layer.apply(variables, x)
    half = np.float32(rnn.RNN(VARIANTS[name].clone(dtype=HALF)).apply(variables, x))
    rounded = layer.apply(round_to_half(variables), round_to_half(x))
    assert np.abs(half - exact).mean() < min(2e-2, 5 * np.abs(rounded - exact).mean())


def test_N03_products_are_computed_in_half_precision():
    """By the program: every product of the layer has bfloat16 on both sides, and the loop carries float32."""
    _, variables, x = begun(LSTMCell(H))
    text = jax.jit(rnn.RNN(LSTMCell(H, dtype=HALF)).apply).lower(variables, x).as_text()
    products = [line for line in text.splitlines() if 'stablehlo.dot_general' in line]
    assert products and all('xbf16>' in line and 'xf32>' not in line for line in products)
    (loop,) = (line for line in text.splitlines() if 'stablehlo.while' in line)
    assert f'tensor<{B}x{H}xf32>' in text[text.index(loop) :].split('cond', 1)[0]


def test_N03_a_carry_keeps_its_dtype_through_the_loop_whatever_a_cell_makes_of_it():
    """Flax's GRU of bfloat16 parameters computes its state in float32 here, which a loop would refuse."""
    normal = nn.initializers.lecun_normal()  # its own, orthogonal, is not to be had in half precision
    layer, x = (
        rnn.RNN(nn.GRUCell(H, recurrent_kernel_init=normal, dtype=jnp.float32, param_dtype=HALF)),
        jnp.ones((B, T, F)),
    )
    variables = layer.init(KEY, x)
    carry, _ = layer.apply(variables, x, return_carry=True)
    assert carry.dtype == HALF


@pytest.mark.representative(every=4)
@pytest.mark.parametrize('cell', models.CELLS)
def test_N03_a_model_in_half_precision_trains_with_a_loss_in_float32(cell):
    """Tokens through embedding, cell and head, all told by one argument; parameters and optimiser stay float32."""
    model = models.sequence_model('per_step', 5, cell=cell, features=8, vocabulary=5, dtype=HALF)
    tokens = np.random.default_rng(0).integers(0, 5, (4, 12))
    data = Batch(tokens, np.roll(tokens, 1, axis=1), np.ones((4, 12), bool))
    task, tx = Task(losses.classification, lambda data, key, step: data, data), optax.adam(1e-2)
    state = training.init_state(model, task, tx, KEY)
    assert model.apply({'params': state.params}, tokens).dtype == HALF
    seen = []
    for new, metrics, _ in training.train(model, task, tx, state, steps=60, steps_per_call=60):
        seen.append(metrics['loss'])
    assert seen[0].total.dtype == np.float32
    curve = seen[0].total / seen[0].count
    assert curve[-1] < 0.75 * curve[0]
    for leaf in jax.tree.leaves((new.params, new.opt_state)):
        assert leaf.dtype in (jnp.float32, jnp.int32)


def test_param_dtype_reaches_every_part(x64):
    model = models.sequence_model(
        'last', 2, features=4, vocabulary=5, param_dtype=jnp.float64, layers=2, bidirectional=True
    )
    variables = jax.eval_shape(model.init, KEY, jnp.zeros((2, 3), int))
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(variables))
    carry, _ = jax.eval_shape(functools.partial(model.apply, return_carry=True), variables, jnp.zeros((2, 3), int))
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(carry))


# --- segments --------------------------------------------------------------------------------------


def compared(layer, segments, variables, x, **options):
    """Loss and gradients with one segment, and with that many."""

    def run(segments):
        parted = layer.clone(remat_segments=segments)

        def loss(variables, x):
            carry, outputs = parted.apply(variables, x, return_carry=True, **options)
            return sum(jnp.mean(leaf**2) for leaf in jax.tree.leaves((carry, outputs)))

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(variables, x)

    return run(1), run(segments)


@pytest.mark.representative(
    by=lambda name, segments, form: [] if form != 'steps' and name in ('lstm', 'gru') else [name, form, segments]
)
@pytest.mark.parametrize('segments', [2, 7, T, 1000])
@pytest.mark.parametrize('name', ['lstm', 'gru', 'mingru', 'lru'])
@pytest.mark.parametrize('form', ['steps', 'at once, with a mask and resets'])
def test_N09_segments_change_neither_loss_nor_gradient(name, segments, form):
    """To 1e-6: counts that divide T and that do not, and more than there are steps; both orders."""
    parallel = form != 'steps'
    if parallel and not hasattr(VARIANTS[name], 'affine'):
        pytest.skip('this cell goes step by step')
    layer, variables, x = begun(VARIANTS[name], parallel=parallel)
    flags = np.random.default_rng(1).random((2, B, T)) < 0.8
    options = {'mask': flags[0], 'resets': ~flags[1], 'reverse': True} if parallel else {}
    want, got = compared(layer, segments, variables, x, **options)
    for right, value in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        reference.assert_close(value, right, 1e-5)
    reference.assert_close(got[0], want[0], 1e-6)


@pytest.mark.representative(every=3)
@pytest.mark.parametrize(
    'cell',
    [
        LSTMCell(H, recurrent_dropout=0.3, zoneout_h=0.1, zoneout_c=0.2, drop_connect=0.1),
        LSTMCell(H, recurrent_dropout=0.3, recurrent_dropout_mask='step'),
        GRUCell(H, recurrent_dropout=0.3),
    ],
)
def test_N09_segments_draw_what_the_whole_draws(cell):
    """A mask of the sequence is one for all segments, and a step draws by its number."""
    layer, variables, x = begun(cell)
    want, got = compared(layer, 6, variables, x, rngs={'dropout': jax.random.key(3)})
    for right, value in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        reference.assert_close(value, right, 1e-5)


@pytest.mark.representative(every=4)
@pytest.mark.parametrize(
    ('cell', 'parallel'), [(LSTMCell(16), False), (MinGRUCell(16), False), (MinLSTMCell(16), True), (LRUCell(16), True)]
)
def test_N09_memory_falls_over_4096_steps(cell, parallel):
    """By XLA's own analysis, of loss and gradient: 64 segments take less than half of the temporary memory of one."""
    x = jnp.zeros((4, 4096, F))
    variables = jax.eval_shape(rnn.RNN(cell).init, KEY, x)

    def temporary(segments):
        layer = rnn.RNN(cell, parallel=parallel, remat_segments=segments)
        grad = jax.jit(jax.value_and_grad(lambda v: jnp.sum(layer.apply(v, x, return_sequences=False) ** 2)))
        return grad.lower(variables).compile().memory_analysis().temp_size_in_bytes

    assert temporary(64) < 0.5 * temporary(1)


def test_what_segments_do_not_go_with_is_refused():
    with pytest.raises(ValueError, match='remat_segments=0'):
        rnn.RNN(LSTMCell(H), remat_segments=0)
    with pytest.raises(ValueError, match='remat_segments'):
        rnn.RNN(LSTMCell(H), remat_segments=2, variable_axes={'intermediates': 0})


def test_gates_can_be_looked_at_over_time():
    """They are sown by every step; a scan stacks them where it is told to."""
    layer, variables, x = begun(LSTMCell(H), variable_axes=FrozenDict(intermediates=0))
    outputs, sown = layer.apply({'params': variables['params']}, x, mutable=['intermediates'])
    gates = {name: values[0] for name, values in sown['intermediates']['cell'].items()}
    assert {name: value.shape for name, value in gates.items()} == dict.fromkeys('ifgo', (T, B, H))
    assert np.abs(gates['o'].swapaxes(0, 1)).max() <= 1
    assert (np.abs(outputs) <= gates['o'].swapaxes(0, 1)).all()


# --- a cell of one's own ---------------------------------------------------------------------------


class Leaky(nn.RNNCellBase):
    features: int

    @nn.compact
    def __call__(self, h, x):
        h = 0.9 * h + 0.1 * jnp.tanh(nn.Dense(self.features)(jnp.concatenate([x, h], -1)))
        return h, h

    def initialize_carry(self, rng, shape):
        return jnp.zeros((*shape[:-1], self.features))

    num_feature_axes = 1


def test_adding_a_cell_takes_one_class():
    """Ten lines, by Flax's protocol; it trains, with masks and segments, in both directions."""
    rng = np.random.default_rng(0)
    x, lengths = rng.normal(size=(32, 12, 2)).astype(np.float32), rng.integers(6, 13, 32)
    real = np.arange(12) < lengths[:, None]
    y = np.where(real[..., None], np.cumsum(x, axis=1)[..., :1] / 3, 0)
    model = models.sequence_model('per_step', 1, cell=Leaky, features=32, bidirectional=True, remat_segments=3)
    task = Task(losses.mean_squared_error, lambda data, key, step: data, Batch((x, lengths), y, real))
    tx = optax.adam(1e-2)
    state = training.init_state(model, task, tx, KEY)
    ((_, metrics, _),) = training.train(model, task, tx, state, steps=300, steps_per_call=300)
    curve = metrics['loss'].total / metrics['loss'].count
    assert curve[-1] < 0.1 * np.var(y[real]) < curve[0]


def test_a_cell_that_is_wrapped_by_both_directions_has_its_own_draws():
    """Forward and backward drop by masks of their own."""
    layer = Bidirectional(*(rnn.RNN(SimpleRNNCell(H, recurrent_dropout=0.5)) for _ in range(2)), merge_mode='none')
    x = jnp.ones((1, 2, F))
    same = layer.init(KEY, x)['params']['forward_rnn']
    variables = {'params': {'forward_rnn': same, 'backward_rnn': same}}
    forward, backward = layer.apply(variables, x, rngs={'dropout': KEY})
    assert np.abs(forward[:, 1] - backward[:, 0]).max() > 1e-3
