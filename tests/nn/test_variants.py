"""Every variant of a cell against its paper's equations in NumPy, values and all gradients; and its limit laws."""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seqjax import training as seqjax_training
from seqjax.nn import activations, initializers, losses, rnn
from seqjax.nn.cells.cell import HiddenCarry
from seqjax.nn.cells.gru_cell import GRUCell
from seqjax.nn.cells.linear_cells import LRUCell, MinGRUCell, MinLSTMCell, RGLRUCell
from seqjax.nn.cells.lstm_cell import LSTMCarry, LSTMCell
from seqjax.nn.cells.simple_cell import SimpleRNNCell
from seqjax.nn.initializers import ConstantGate
from seqjax.nn.models import SequenceToVector
from seqjax.nn.wrappers import Bidirectional
from seqjax.types import Batch, Task
from tests.helpers import equations, reference

B, T, F, H, P = 2, 4, 2, 3, 2
KEY = jax.random.key(5)


class Case(NamedTuple):
    step: object  # of `equations`
    cell: nn.Module
    training: bool = False


def gaussian(z):
    return jnp.exp(-z * z)


HALF = {'recurrent_dropout': 0.5}
STEP = {'recurrent_dropout': 0.4, 'recurrent_dropout_mask': 'step'}
ZONE = {'zoneout_h': 0.3}
CASES = [
    Case(equations.gers_2000, LSTMCell(H)),
    Case(equations.arctan, LSTMCell(H, activation=jnp.arctan, recurrent_activation=gaussian)),
    Case(equations.hochreiter_1997, LSTMCell(H, forget='none')),
    Case(equations.greff_2017, LSTMCell(H, forget='coupled')),
    Case(equations.gers_2002, LSTMCell(H, peepholes=True)),
    Case(equations.gers_2002_without_forget_gate, LSTMCell(H, peepholes=True, forget='none')),
    Case(equations.greff_2017_peepholes, LSTMCell(H, peepholes=True, forget='coupled')),
    Case(equations.sak_2014, LSTMCell(H, peepholes=True, projection=P)),
    Case(equations.ba_2016_lstm, LSTMCell(H, layer_norm=True)),
    Case(equations.gal_2016_lstm, LSTMCell(H, **HALF), True),
    Case(equations.semeniuta_2016_lstm, LSTMCell(H, **STEP), True),
    Case(equations.merity_2018_lstm, LSTMCell(H, drop_connect=0.3), True),
    Case(equations.krueger_2017_lstm, LSTMCell(H, zoneout_h=0.3, zoneout_c=0.6), True),
    Case(equations.krueger_2017_lstm, LSTMCell(H, zoneout_h=0.3, zoneout_c=0.6), False),
    Case(equations.cho_2014, GRUCell(H, reset_after=False)),
    Case(equations.keras_gru, GRUCell(H)),
    Case(equations.gal_2016_gru, GRUCell(H, reset_after=False, **HALF), True),
    Case(equations.gal_2016_gru_after, GRUCell(H, **HALF), True),
    Case(equations.cho_2014, GRUCell(H, reset_after=False, **STEP), True),
    Case(equations.keras_gru, GRUCell(H, **STEP), True),
    Case(equations.merity_2018_gru, GRUCell(H, reset_after=False, drop_connect=0.3), True),
    Case(equations.krueger_2017_gru, GRUCell(H, **ZONE), True),
    Case(equations.krueger_2017_gru, GRUCell(H, **ZONE), False),
    Case(equations.ba_2016_gru, GRUCell(H, layer_norm=True)),
    Case(equations.ba_2016_gru_before, GRUCell(H, layer_norm=True, reset_after=False)),
    Case(equations.elman_1990, SimpleRNNCell(H)),
    Case(equations.ba_2016_simple, SimpleRNNCell(H, layer_norm=True)),
    Case(equations.gal_2016_simple, SimpleRNNCell(H, **HALF), True),
    Case(equations.semeniuta_2016_simple, SimpleRNNCell(H, **STEP), True),
    Case(equations.merity_2018_simple, SimpleRNNCell(H, drop_connect=0.3), True),
    Case(equations.krueger_2017_simple, SimpleRNNCell(H, **ZONE), True),
    Case(equations.feng_2024_mingru, MinGRUCell(H)),
    Case(equations.feng_2024_mingru_positive, MinGRUCell(H, activation=activations.positive)),
    Case(equations.feng_2024_minlstm, MinLSTMCell(H)),
    Case(equations.feng_2024_minlstm_positive, MinLSTMCell(H, activation=activations.positive)),
    Case(equations.orvieto_2023, LRUCell(H, outputs=P)),
    Case(equations.de_2024, RGLRUCell(H)),
]


def features(cell):
    """The type of a cell, and the options that it was given."""
    fields = [field for field in dataclasses.fields(cell) if field.name not in ('features', 'parent', 'name')]
    return [type(cell), *(field.name for field in fields if getattr(cell, field.name) != field.default)]


def name_of(case):
    return f'{case.step.__name__}-{"training" if case.training else "evaluation"}'


def drawn_by(layer, variables, rngs):
    """What each of the T steps draws, as the equations take it: 0 or 1 / (1 - rate), and 0 or 1 for what is kept."""
    cell = layer.cell
    if not rngs:
        rates = {'keep_c': getattr(cell, 'zoneout_c', 0), 'keep_h': getattr(cell, 'zoneout_h', 0)}
        return [rates] * T
    masks = layer.apply(variables, method=lambda layer: layer.cell.draw_dropout_masks((B,)), rngs=rngs)
    steps = []
    for t in range(T):
        key = jax.random.fold_in(masks.key, t)

        def kept(part, rate, key=key):
            return np.asarray(jax.random.bernoulli(jax.random.fold_in(key, part), rate, (B, H)), float)

        drawn = {'hidden': masks.hidden, 'kernel': masks.kernel, 'keep_c': 0.0, 'keep_h': 0.0}
        if getattr(cell, 'zoneout_c', 0):
            drawn['keep_c'] = kept(1, cell.zoneout_c)
        if cell.zoneout_h:
            drawn['keep_h'] = kept(2, cell.zoneout_h)
        if cell.recurrent_dropout_mask == 'step':
            drawn['candidate'] = kept(0, 1 - cell.recurrent_dropout) / (1 - cell.recurrent_dropout)
        drawn = {
            name: value if isinstance(value, float) else np.asarray(value)
            for name, value in drawn.items()
            if value is not None
        }
        steps.append(drawn)
    return steps


def complex_step(f, tree):
    """The derivatives of a real function of a tree of arrays, exact to rounding."""
    leaves, structure = jax.tree.flatten(tree)
    slopes = [np.zeros(leaf.shape) for leaf in leaves]
    for n, leaf in enumerate(leaves):
        for index in np.ndindex(leaf.shape):
            moved = leaf.astype(complex)
            moved[index] += 1e-30j
            slopes[n][index] = f(structure.unflatten([*leaves[:n], moved, *leaves[n + 1 :]])).imag / 1e-30
    return structure.unflatten(slopes)


@pytest.mark.representative(by=lambda case: features(case.cell))
@pytest.mark.parametrize('case', CASES, ids=name_of)
def test_a_variant_and_all_its_gradients_equal_the_papers_equations(case, x64):
    """Outputs, the carry, and gradients of every parameter, of inputs and of the carry: relative 1e-10."""
    layer = rnn.RNN(case.cell.clone(param_dtype=jnp.float64))
    rng = np.random.default_rng(3)
    x = rng.normal(size=(B, T, F))
    own = jax.eval_shape(lambda: layer.cell.initialize_carry(KEY, (B, F)))
    variables = jax.tree.map(np.asarray, reference.random_variables(layer, x))
    first = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), own)
    rngs = {'dropout': KEY} if case.training else {}
    args = {'params': variables['params']['cell'], 'carry': tuple(first), 'x': x}
    drawn = drawn_by(layer, variables, rngs)
    weights = None

    def by_hand(args):
        carry, outputs = args['carry'], []
        for t in range(T):
            carry, y = case.step(args['params'], carry, args['x'][:, t], drawn[t])
            outputs.append(y)
        return carry, np.stack(outputs, 1)

    want = by_hand(args)
    weights = jax.tree.map(lambda y: rng.normal(size=y.shape), want)

    def total(results):
        return sum((w * y).sum() for w, y in zip(jax.tree.leaves(weights), jax.tree.leaves(results), strict=True))

    def ours(args):
        carry = type(first)(*args['carry'])
        run = functools.partial(layer.apply, {'params': {'cell': args['params']}}, rngs=rngs, return_carry=True)
        carry, outputs = run(args['x'], initial_carry=carry)
        return total((tuple(carry), outputs)), (tuple(carry), outputs)

    grads, got = jax.jit(jax.grad(ours, has_aux=True))(args)
    wanted = complex_step(lambda args: total(by_hand(args)), args)
    for which, (mine, theirs) in {'values': (got, want), 'gradients': (grads, wanted)}.items():
        pairs = zip(jax.tree_util.tree_leaves_with_path(theirs), jax.tree.leaves(mine), strict=True)
        for (path, right), value in pairs:
            reference.assert_close(value, right, 1e-10, f'{which}{jax.tree_util.keystr(path)}')
            assert np.abs(right).max() > 1e-4, f'{which}{jax.tree_util.keystr(path)} says nothing'


# --- other libraries -------------------------------------------------------------------------------


@pytest.mark.parametrize('packed', [False, True])
def test_projection_and_all_gradients_equal_pytorchs_proj_size(packed, x64):
    """Both directions, from given carries, of rows of several lengths: outputs, states, all gradients."""
    torch = pytest.importorskip('torch', reason='PyTorch is a reference here, where it is installed')
    rng = np.random.default_rng(0)
    layer = Bidirectional(*(rnn.RNN(LSTMCell(H, projection=P, param_dtype=jnp.float64)) for _ in range(2)))
    x, lengths = rng.normal(size=(B, T, F)), np.array([T, 2]) if packed else None
    params = jax.tree.map(np.asarray, reference.random_variables(layer, x)['params'])
    h, c = rng.normal(size=(2, B, P)), rng.normal(size=(2, B, H))
    weights = [rng.normal(size=shape) for shape in ((B, T, 2 * P), (2, B, P), (2, B, H))]

    def ours(params, x, h, c):
        carry = tuple(LSTMCarry(*pair) for pair in zip(c, h, strict=True))
        carry, y = layer.apply({'params': params}, x, initial_carry=carry, seq_lengths=lengths, return_carry=True)
        results = y, jnp.stack([part.h for part in carry]), jnp.stack([part.c for part in carry])
        return sum((w * y).sum() for w, y in zip(weights, results, strict=True)), results

    grads, got = jax.jit(jax.grad(ours, (0, 1, 2, 3), has_aux=True))(params, x, h, c)
    names = {
        'weight_ih': 'kernel',
        'weight_hh': 'recurrent_kernel',
        'bias_ih': 'bias',
        'weight_hr': 'projection_kernel',
    }
    module = torch.nn.LSTM(F, H, batch_first=True, bidirectional=True, proj_size=P, dtype=torch.float64)
    cells = {'_l0': 'forward_rnn', '_l0_reverse': 'backward_rnn'}
    with torch.no_grad():
        for suffix, direction in cells.items():
            getattr(module, f'bias_hh{suffix}').zero_()
            for theirs, mine in names.items():
                getattr(module, theirs + suffix).copy_(torch.from_numpy(params[direction]['cell'][mine].T.copy()))
    leaves = [torch.tensor(leaf, requires_grad=True) for leaf in (x, h, c)]
    inputs = leaves[0]
    if packed:
        inputs = torch.nn.utils.rnn.pack_padded_sequence(inputs, torch.from_numpy(lengths), batch_first=True)
    y, state = module(inputs, tuple(leaves[1:]))
    if packed:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=T)
    sum((torch.from_numpy(w) * y).sum() for w, y in zip(weights, (y, *state), strict=True)).backward()
    for mine, theirs in zip(got, (y, *state), strict=True):
        reference.assert_close(mine, theirs.detach().numpy(), 1e-10)
    for mine, theirs in zip(grads[1:], leaves, strict=True):
        reference.assert_close(mine, theirs.grad.numpy(), 1e-10)
    for suffix, direction in cells.items():
        for theirs, mine in names.items():
            want = getattr(module, theirs + suffix).grad.numpy().T
            reference.assert_close(grads[0][direction]['cell'][mine], want, 1e-10, theirs + suffix)


def test_C06_peepholes_have_the_numbers_of_onnx():
    """ONNX's published test lstm_with_peepholes: all weights 0.1, no bias."""
    x = np.array([[[1, 2, 3, 4]], [[5, 6, 7, 8]]], np.float32)
    layer = rnn.RNN(LSTMCell(3, peepholes=True))
    params = {'kernel': (4, 12), 'recurrent_kernel': (3, 12), 'peephole': (9,)}
    params = {name: np.full(shape, 0.1, np.float32) for name, shape in params.items()} | {'bias': np.zeros(12)}
    outputs = layer.apply({'params': {'cell': params}}, x)
    np.testing.assert_allclose(outputs[:, 0], [[0.3750691] * 3, [0.6801309] * 3], rtol=1e-6)


def test_C06_peepholes_equal_onnx_over_time(x64):
    """Random weights, given states; ONNX has the gates i, o, f, c and the peepholes i, o, f."""
    onnx = pytest.importorskip('onnx', reason='ONNX is a reference here, where it is installed')
    pytest.importorskip('onnx.reference')
    rng = np.random.default_rng(1)
    layer, x = rnn.RNN(LSTMCell(H, peepholes=True, param_dtype=jnp.float64)), rng.normal(size=(B, T, F))
    params = jax.tree.map(np.asarray, reference.random_variables(layer, x))['params']['cell']
    c, h = rng.normal(size=(2, B, H))

    def reordered(weights, order):
        parts = np.split(weights, len(order), axis=-1)
        return np.concatenate([parts[n] for n in order], axis=-1).T[None]

    bias = reordered(params['bias'], [0, 3, 1, 2])
    feeds = {
        'X': x.swapaxes(0, 1),
        'W': reordered(params['kernel'], [0, 3, 1, 2]),
        'R': reordered(params['recurrent_kernel'], [0, 3, 1, 2]),
        'B': np.concatenate([bias, np.zeros_like(bias)], axis=-1),
        'initial_h': h[None],
        'initial_c': c[None],
        'P': reordered(params['peephole'], [0, 2, 1]),
    }
    helper, double = onnx.helper, onnx.TensorProto.DOUBLE
    names = ['X', 'W', 'R', 'B', '', 'initial_h', 'initial_c', 'P']
    graph = helper.make_graph(
        [helper.make_node('LSTM', names, ['Y', 'Y_h', 'Y_c'], hidden_size=H)],
        'one_node',
        [helper.make_tensor_value_info(name, double, value.shape) for name, value in feeds.items()],
        [helper.make_tensor_value_info(name, double, None) for name in ('Y', 'Y_h', 'Y_c')],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 14)])
    y, y_h, *_ = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    carry, outputs = layer.apply({'params': {'cell': params}}, x, initial_carry=(c, h), return_carry=True)
    reference.assert_close(outputs.swapaxes(0, 1), y[:, 0], 1e-10)
    reference.assert_close(carry.h, y_h[0], 1e-10)


# --- limit laws ------------------------------------------------------------------------------------

KINDS = {'lstm': LSTMCell, 'gru': GRUCell, 'gru_before': functools.partial(GRUCell, reset_after=False)}
KINDS['simple'] = SimpleRNNCell
DROPS = {
    'sequence': {'recurrent_dropout': 0.5},
    'step': {'recurrent_dropout': 0.5, 'recurrent_dropout_mask': 'step'},
    'drop_connect': {'drop_connect': 0.5},
    'zoneout': {'zoneout_h': 0.5},
}


@functools.cache
def plain(kind):
    layer = rnn.RNN(KINDS[kind](H))
    x = np.random.default_rng(0).normal(size=(B, T, F)).astype(np.float32)
    return layer, jax.tree.map(np.asarray, reference.random_variables(layer, x)), x


def run(layer, variables, x, key=None, **options):
    rngs = {} if key is None else {'dropout': key}
    return layer.apply(variables, x, rngs=rngs, return_carry=True, **options)


@pytest.mark.representative(1)
@pytest.mark.parametrize('drop', ['sequence', 'step', 'drop_connect'])
@pytest.mark.parametrize('kind', KINDS)
def test_D05_without_training_a_cell_that_drops_is_plain_bit_for_bit(kind, drop):
    """No stream, or `deterministic`; and where there is nothing to drop, a stream changes nothing."""
    layer, variables, x = plain(kind)
    want = run(layer, variables, x)
    dropping = rnn.RNN(KINDS[kind](H, **DROPS[drop]))
    for got in (
        run(dropping, variables, x),
        run(dropping, variables, x, KEY, deterministic=True),
        run(layer, variables, x, KEY),
    ):
        reference.assert_trees_equal(got, want)
    assert np.abs(run(dropping, variables, x, KEY)[1] - want[1]).max() > 1e-2
    with pytest.raises(Exception, match='dropout'):  # Flax's own: there is no such stream
        run(dropping, variables, x, deterministic=False)


@pytest.mark.parametrize('key', [None, KEY])
@pytest.mark.parametrize('kind', KINDS)
def test_C10_zoneout_0_is_plain_and_1_keeps_the_initial_carry(kind, key):
    layer, variables, x = plain(kind)
    rates = ['zoneout_h', 'zoneout_c'] if kind == 'lstm' else ['zoneout_h']
    nothing, all_of_it = (rnn.RNN(KINDS[kind](H, **dict.fromkeys(rates, rate))) for rate in (0, 1))
    reference.assert_trees_equal(run(nothing, variables, x, key), run(layer, variables, x, key))
    own = layer.cell.initialize_carry(KEY, (B, F))
    first = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf) + np.arange(1.0, 1 + H, dtype=np.float32)), own)
    carry, outputs = run(all_of_it, variables, x, key, initial_carry=first)
    reference.assert_trees_equal(carry, first)
    np.testing.assert_array_equal(outputs, np.broadcast_to(np.arange(1.0, 1 + H), (B, T, H)))


def test_C10_zoneout_in_evaluation_is_the_mean_of_training():
    """Of one step: over 4,000 draws, within five standard errors, and no state between old and new is ever drawn."""
    rate, rows = 0.3, 4000
    _, variables, x = plain('gru')
    layer, old = rnn.RNN(GRUCell(H, zoneout_h=rate)), jnp.full((rows, H), 0.7)
    x = jnp.broadcast_to(x[:1, :1], (rows, 1, F))
    drawn = np.asarray(run(layer, variables, x, KEY, initial_carry=old)[1][:, 0])
    new = np.asarray(rnn.RNN(GRUCell(H)).apply(variables, x, initial_carry=old)[0, 0])
    assert ((drawn == np.float32(0.7)) | (np.abs(drawn - new) < 1e-6)).all()
    expected = run(layer, variables, x, initial_carry=old)[1][0, 0]
    np.testing.assert_allclose(expected, rate * 0.7 + (1 - rate) * new, rtol=1e-6)
    error = np.abs(0.7 - new) * np.sqrt(rate * (1 - rate) / rows)
    assert (np.abs(drawn.mean(0) - expected) < 5 * error).all()


@pytest.mark.parametrize('kind', KINDS)
def test_C10_layer_normalisation_does_not_see_the_scale_of_its_input(kind):
    """Scaled weights of inputs and of states give the same outputs, and without it they do not."""
    layer, x = rnn.RNN(KINDS[kind](H, layer_norm=True)), plain(kind)[2]
    variables = jax.tree.map(np.asarray, reference.random_variables(layer, x))
    variables['params']['cell'] |= {
        name: 10 * variables['params']['cell'][name] for name in ('kernel', 'recurrent_kernel')
    }

    def scaled(variables, kernel, recurrent):
        cell = variables['params']['cell']
        new = {'kernel': kernel * cell['kernel'], 'recurrent_kernel': recurrent * cell['recurrent_kernel']}
        return {'params': {'cell': {**cell, **new}}}

    factors = (50, 50) if kind == 'simple' else (50, 7)  # there the sum is normalised
    want = layer.apply(variables, x)
    np.testing.assert_allclose(layer.apply(scaled(variables, *factors), x), want, atol=1e-4)
    bare, weights, _ = plain(kind)
    assert np.abs(bare.apply(scaled(weights, *factors), x) - bare.apply(weights, x)).max() > 0.1


@pytest.mark.parametrize('kind', KINDS)
def test_D03_masks_of_a_sequence_stay_over_time_and_differ_over_rows(kind):
    rows, units = 64, 32
    cell = KINDS[kind](units, recurrent_dropout=0.5)
    masks = rnn.RNN(cell).apply({}, method=lambda layer: layer.cell.draw_dropout_masks((rows,)), rngs={'dropout': KEY})
    assert masks.hidden.shape == (rows, units) and masks.kernel is None
    assert set(np.unique(masks.hidden)) == {0.0, 2.0} and abs(np.mean(masks.hidden) - 1) < 0.1
    assert len(np.unique(np.asarray(masks.hidden), axis=0)) == rows
    np.testing.assert_array_equal(masks.at(3).hidden, masks.at(7).hidden)
    np.testing.assert_array_equal(masks.at(3).hidden, masks.hidden)
    assert (jax.random.key_data(masks.at(3).key) != jax.random.key_data(masks.at(7).key)).any()


def test_a_dropped_unit_is_seen_by_no_later_step_of_its_row_and_by_every_step_of_others():
    """The gradient of the last output with respect to the first carry is 0 for dropped units, of each row by itself."""
    units, rows = 6, 5
    layer = rnn.RNN(SimpleRNNCell(units, recurrent_dropout=0.5))
    x = np.random.default_rng(0).normal(size=(rows, T, F)).astype(np.float32)
    variables = reference.random_variables(layer, x)
    masks = layer.apply(variables, method=lambda layer: layer.cell.draw_dropout_masks((rows,)), rngs={'dropout': KEY})
    history = jnp.zeros((rows, units))

    def reach(first):
        return layer.apply(variables, x[:, :1], initial_carry=HiddenCarry(first), rngs={'dropout': KEY}).sum()

    slopes = jax.grad(reach)(history)
    np.testing.assert_array_equal(slopes != 0, masks.hidden != 0)


@pytest.mark.representative(1)
@pytest.mark.parametrize('drop', DROPS)
@pytest.mark.parametrize('kind', ['lstm', 'gru', 'simple'])
def test_two_training_steps_draw_different_masks_and_one_key_the_same(kind, drop):
    """Through `training.train_step`, with a learning rate of 0: what differs from step to step is the draw."""
    x = np.random.default_rng(0).normal(size=(8, T, F)).astype(np.float32)
    model = SequenceToVector(rnn.RNN(KINDS[kind](8, **DROPS[drop])), nn.Dense(1))
    data = Batch(x, np.ones((8, 1), np.float32), np.ones(8, bool))
    task, still = Task(losses.mean_squared_error, lambda data, key, step: data, data), optax.sgd(0.0)
    first = seqjax_training.init_state(model, task, still, KEY)
    step = jax.jit(functools.partial(seqjax_training.train_step, model, task, still))

    def walk(state):
        found = []
        for _ in range(3):
            state, metrics = step(state)
            found.append(float(metrics['loss'].compute()))
        return found

    found = walk(first)
    assert len(set(found)) == 3
    assert walk(first) == found
    assert walk(first._replace(key=jax.random.key(6))) != found


@pytest.mark.parametrize('drop', ['step', 'zoneout'])
def test_what_is_drawn_at_a_step_depends_on_its_number_alone(drop):
    """A run over the first steps of a longer sequence draws the same there."""
    layer, (_, variables, x) = rnn.RNN(LSTMCell(H, **DROPS[drop])), plain('lstm')
    whole, part = (run(layer, variables, inputs, KEY)[1] for inputs in (x, x[:, :2]))
    np.testing.assert_array_equal(whole[:, :2], part)


# --- what is refused -------------------------------------------------------------------------------

INITS = ('kernel_init', 'recurrent_kernel_init', 'bias_init')


@pytest.mark.parametrize(
    ('make', 'options', 'message'),
    [
        (LSTMCell, {'forget': 'no'}, "forget='no'"),
        (LSTMCell, {'projection': 0}, 'projection=0'),
        (LSTMCell, {'zoneout_c': 1.5}, 'zoneout_c=1.5'),
        (LSTMCell, {'zoneout_h': None}, 'zoneout_h=None'),
        (GRUCell, {'zoneout_h': -0.1}, 'zoneout_h=-0.1'),
        (GRUCell, {'recurrent_dropout': 1.0}, 'recurrent_dropout=1.0'),
        (SimpleRNNCell, {'drop_connect': float('nan')}, 'drop_connect=nan'),
        (LSTMCell, {**HALF, 'recurrent_dropout_mask': 'row'}, "mask='row'"),
        (LSTMCell, {'recurrent_dropout_mask': 'step'}, "'step'"),
        (GRUCell, {'init_scheme': 'glorot'}, "init_scheme='glorot'"),
        (LSTMCell, {'peephole_init': initializers.uniform_init(1.0)}, 'peephole_init'),
        (
            SimpleRNNCell,
            {'init_scheme': 'flax', **dict.fromkeys(INITS, initializers.uniform_init(1.0))},
            "'flax'",
        ),
        (LRUCell, {'bias_init': ConstantGate()}, 'bias_init'),
        (LRUCell, {'r_min': 0.9, 'r_max': 0.5}, 'r_min=0.9'),
        (LRUCell, {'max_phase': 7.0}, 'max_phase=7.0'),
        (LRUCell, {'outputs': 0}, 'outputs=0'),
    ],
)
def test_an_option_that_cannot_be_or_does_nothing_is_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(H, **options)


@pytest.mark.parametrize('make', [LSTMCell, GRUCell, SimpleRNNCell])
def test_layer_normalisation_of_one_unit_is_refused_where_it_leaves_nothing(make):
    with pytest.raises(ValueError, match='layer_norm=True'):
        make(1, layer_norm=True)
