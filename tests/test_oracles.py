"""Our recurrent layers against independent oracles: Keras, PyTorch, ONNX, JAX's reference LSTM, Flax, NumPy.

Both sides compute a dict of results from the same tree of inputs, weights (in our layout) and initial carry. Compared
are the results, and the gradients of one random weighting of all of them with respect to that whole tree.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn as jax_rnn

from seqjax.cells import GRUCell, HiddenCarry, LSTMCarry, LSTMCell, SimpleRNNCell
from seqjax.layers import RNN, Bidirectional, Stack, Stateful, TimeDistributed
from tests import reference

B, T, F, H = 4, 6, 3, 5
F64, F32 = 'float64', 'float32'
RTOL = {F64: 1e-10, F32: 1e-5}

CELLS = {
    'lstm': LSTMCell,
    'gru': GRUCell,
    'gru_reset_before': functools.partial(GRUCell, reset_after=False),
    'tanh': SimpleRNNCell,
    'relu': functools.partial(SimpleRNNCell, activation=nn.relu),
}
# Rows that are whole, partly real, and without a real step.
MASKS = {
    'none': None,
    'right': np.arange(T) < np.array([6, 4, 1, 0])[:, None],
    'left': np.arange(T) >= np.array([0, 2, 5, 6])[:, None],
    'holes': np.array([[1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 1, 0], [0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0]], bool),
}
LENGTHS = np.array([6, 1, 4, 3], np.int32)  # none is 0: most oracles refuse that, or read step -1
REAL = np.arange(T) < LENGTHS[:, None]
QUICK = {'xla_backend_optimization_level': 0}  # to compile: each program runs a few times, on small arrays


# --- what all comparisons share --------------------------------------------------------------------


def draw(*shape, seed, dtype=F64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def draw_weights(module, *args, seed=1):
    """Random weights, small enough that no gate is saturated."""
    return jax.tree.map(lambda w: (0.4 * w).astype(w.dtype), reference.random_variables(module, *args, seed=seed))


def apply(module, variables, inputs, **options):
    """`module.apply`, compiled."""
    program = jax.jit(lambda variables, inputs: module.apply(variables, inputs, **options), compiler_options=QUICK)
    return program(variables, inputs)


def cotangents(results, seed=77):
    """How each number of the results weighs; it depends on their names and shapes alone."""
    leaves, tree = jax.tree.flatten(results)
    rng = np.random.default_rng(seed)
    return tree.unflatten([rng.normal(size=leaf.shape) for leaf in leaves])


def differentiated(run):
    """run(args, **data) -> results, as a compiled function that gives the results and gradients of args."""

    def loss(args, data):
        results = run(args, **data)
        weighted = jax.tree.map(lambda x, y: jnp.sum(x * jnp.asarray(y, x.dtype)), results, cotangents(results))
        return sum(jax.tree.leaves(weighted)), results

    program = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)

    def call(args, **data):
        grads, results = program(args, data)
        return {'results': results, 'gradients': grads}

    return call


def assert_same(got, want, rtol):
    """Every number of two trees, by `reference.assert_close`; the trees have the same names."""
    got, want = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (got, want))
    assert list(map(str, got)) == list(map(str, want))
    for path in got:
        name = jax.tree_util.keystr(path)
        assert got[path].shape == want[path].shape, name
        assert got[path].dtype == want[path].dtype, name
        reference.assert_close(got[path], want[path], rtol, name)


def assert_all_reached(tree):
    """That no gradient is all zeros, so that none is equal for nothing."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert np.abs(leaf).max() > 1e-3, jax.tree_util.keystr(path)


def draw_carry(kind, dtype=F64):
    h, c = draw(B, H, seed=3, dtype=dtype) / 2, draw(B, H, seed=4, dtype=dtype)
    return LSTMCarry(c, h) if kind == 'lstm' else HiddenCarry(h)


# --- Keras -----------------------------------------------------------------------------------------


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
    layer = RNN(CELLS[kind](H, param_dtype=dtype), reverse=reverse, keep_order=True, return_carry=True)

    def run(args, mask):
        carry, outputs = layer.apply(args['weights'], args['inputs'], initial_carry=args['carry'], mask=mask)
        return {'outputs': outputs, 'state': keras_state(carry)}

    return differentiated(run)


def draw_args(kind, dtype=F64):
    """Weights of one RNN, inputs and an initial carry."""
    inputs = draw(B, T, F, seed=2, dtype=dtype)
    weights = draw_weights(RNN(CELLS[kind](H, param_dtype=dtype)), inputs)
    return {'weights': weights, 'inputs': inputs, 'carry': draw_carry(kind, dtype)}


def compare_keras(keras, kind, mask, reverse, dtype):
    args, mask = draw_args(kind, dtype), MASKS[mask]
    got = our_run(kind, reverse, dtype)(args, mask=mask)
    with jax.numpy_rank_promotion('allow'):
        want = keras_run(keras, kind, reverse, dtype)(args, mask=mask)
    assert_same(got, want, RTOL[dtype])
    assert_all_reached(got['gradients'])


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
    layer = RNN(SimpleRNNCell(H, param_dtype=F64), reverse=reverse)

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
    layer = RNN(SimpleRNNCell(H, param_dtype=F64), masked_output='hold')
    got = apply(layer, args['weights'], args['inputs'], initial_carry=args['carry'], mask=mask)
    want = keras_outputs(keras, args, mask, unroll=True)
    reference.assert_close(got, want, 1e-10)


@pytest.mark.parametrize('mask', ['none', 'right', 'holes'])
def test_backward_outputs_come_in_the_order_of_keras(keras, x64, mask):
    """Real steps in the order of processing; Keras turns the padding about as well, ours keeps its place."""
    args, mask = draw_args('tanh'), MASKS[mask]
    layer = RNN(SimpleRNNCell(H, param_dtype=F64), reverse=True)
    got = np.asarray(apply(layer, args['weights'], args['inputs'], initial_carry=args['carry'], mask=mask))
    want = np.asarray(keras_outputs(keras, args, mask, go_backwards=True))
    real = np.ones((B, T), bool) if mask is None else mask
    for b in range(B):
        np.testing.assert_allclose(got[b, real[b]], want[b, real[b, ::-1]], rtol=1e-10)


def bidirectional_runs(keras, merge_mode, return_sequences):
    """Ours and Keras's, of two LSTMs."""
    rnns = (RNN(LSTMCell(H, param_dtype=F64)) for _ in range(2))
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
    got = ours(args, mask=REAL)
    with jax.numpy_rank_promotion('allow'):
        want = theirs(args, mask=REAL)
    assert_same(got, want, 1e-10)
    assert_all_reached(got['gradients'])


@pytest.mark.parametrize('mask', ['none', 'right', 'holes'])
def test_time_distributed_and_all_gradients_equal_keras(keras, x64, mask):
    """One dense layer at every step. At masked steps Keras's output is its bias, ours is 0."""
    mask = MASKS[mask]
    layer, inputs = TimeDistributed(nn.Dense(H, param_dtype=F64)), draw(B, T, F, seed=2)
    real = jnp.ones((B, T, 1)) if mask is None else mask[..., None]
    args = {'weights': draw_weights(layer, inputs), 'inputs': inputs}
    with jax.numpy_rank_promotion('allow'):
        theirs = keras_call(keras.layers.TimeDistributed(keras.layers.Dense(H, dtype=F64), dtype=F64))

    def keras_run(args):
        dense = args['weights']['params']['module']
        return {'outputs': jnp.where(real, theirs([dense['kernel'], dense['bias']], args['inputs'], mask=mask), 0)}

    got = differentiated(lambda args: {'outputs': layer.apply(args['weights'], args['inputs'], mask=mask)})(args)
    with jax.numpy_rank_promotion('allow'):
        want = differentiated(keras_run)(args)
    assert_same(got, want, 1e-10)


# --- PyTorch, and JAX's reference LSTM, which has PyTorch's weights ---------------------------------


@pytest.fixture(scope='session')
def torch():
    """PyTorch, imported by the first test that needs it."""
    return pytest.importorskip('torch', reason='PyTorch is a reference here, where it is installed')


@functools.cache
def stack(kind, count, directions, dtype):
    """A stack of `count` layers in one or two directions."""

    def rnn():
        return RNN(CELLS[kind](H, param_dtype=dtype))

    return Stack([Bidirectional(rnn(), rnn()) if directions == 2 else rnn() for _ in range(count)], return_carry=True)


def stack_cells(weights, directions):
    """The cells' weights: layer by layer, forward before backward."""
    params = weights['params']
    names = ('forward_rnn', 'backward_rnn')
    return [
        cell['cell']
        for i in range(len(params))
        for cell in ([params[f'layers_{i}'][n] for n in names] if directions == 2 else [params[f'layers_{i}']])
    ]


def stack_args(kind, count, directions, dtype):
    """Inputs, weights, and for the initial carry h and c [layers and directions, B, H], as PyTorch has them."""
    inputs = draw(B, T, F, seed=2, dtype=dtype)
    args = {'weights': draw_weights(stack(kind, count, directions, dtype), inputs), 'inputs': inputs}
    args['h'] = draw(count * directions, B, H, seed=3, dtype=dtype) / 2
    if kind == 'lstm':
        args['c'] = draw(count * directions, B, H, seed=4, dtype=dtype)
    return args


@functools.cache
def our_stack(kind, count, directions, dtype):
    """Outputs, and final h and c [layers and directions, B, H]."""
    module = stack(kind, count, directions, dtype)

    def run(args, lengths):
        parts = [args[name] for name in ('c', 'h') if name in args]
        make = LSTMCarry if kind == 'lstm' else HiddenCarry
        carries = [make(*part) for part in zip(*parts, strict=True)]
        if directions == 2:
            carries = list(zip(carries[::2], carries[1::2], strict=True))
        carry, outputs = module.apply(
            args['weights'], args['inputs'], initial_carry=tuple(carries), seq_lengths=lengths
        )
        last = jax.tree.leaves(carry)
        results = {'outputs': outputs, 'h': jnp.stack(last[len(parts) - 1 :: len(parts)])}
        return results if kind != 'lstm' else {**results, 'c': jnp.stack(last[::2])}

    return differentiated(run)


def torch_layout(kind, cell):
    """One cell's weights, or their gradients, in PyTorch's shapes and order of gates: the GRU's r before z."""

    def gates(x):
        if kind == 'gru':
            z, r, n = np.split(np.asarray(x), 3, axis=-1)
            x = np.concatenate([r, z, n], axis=-1)
        return np.ascontiguousarray(np.asarray(x).T)

    weights = {'weight_ih': cell['kernel'], 'weight_hh': cell['recurrent_kernel'], 'bias_ih': cell['bias']}
    return {name: gates(x) for name, x in (weights | {'bias_hh': cell.get('recurrent_bias', cell['bias'])}).items()}


def torch_named(kind, weights, count, directions):
    """The same for a stack, by the names of PyTorch's parameters."""
    suffixes = [f'_l{i}{way}' for i in range(count) for way in ('', '_reverse')[:directions]]
    parts = zip(suffixes, stack_cells(weights, directions), strict=True)
    return {name + suffix: x for suffix, cell in parts for name, x in torch_layout(kind, cell).items()}


def torch_run(torch, kind, count, directions, args, lengths):
    """What `our_stack` gives, by PyTorch; its gradients of the weights by name."""
    make = {
        'lstm': torch.nn.LSTM,
        'gru': torch.nn.GRU,
        'tanh': torch.nn.RNN,
        'relu': functools.partial(torch.nn.RNN, nonlinearity='relu'),
    }
    dtype = getattr(torch, args['inputs'].dtype.name)
    module = make[kind](F, H, count, batch_first=True, bidirectional=directions == 2, dtype=dtype)
    with torch.no_grad():
        for name, x in torch_named(kind, args['weights'], count, directions).items():
            # Ours has the sum of both biases, but in the GRU.
            share = 1 if kind == 'gru' else {'bias_ih': 0.25, 'bias_hh': 0.75}.get(name[:7], 1)
            getattr(module, name).copy_(share * torch.from_numpy(x))
    leaves = {name: torch.tensor(args[name], requires_grad=True) for name in ('inputs', 'h', 'c') if name in args}
    x, h, c = (leaves.get(name) for name in ('inputs', 'h', 'c'))
    if lengths is not None:
        x = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.from_numpy(lengths), batch_first=True, enforce_sorted=False
        )
    outputs, state = module(x, h if c is None else (h, c))
    if lengths is not None:
        outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=T)
    results = {'outputs': outputs} | ({'h': state} if c is None else {'h': state[0], 'c': state[1]})
    weighting = cotangents({name: x.detach().numpy() for name, x in results.items()})
    sum((x * torch.tensor(weighting[name], dtype=dtype)).sum() for name, x in results.items()).backward()
    gradients = {name: x.grad.numpy() for name, x in [*leaves.items(), *module.named_parameters()]}
    return {'results': {name: x.detach().numpy() for name, x in results.items()}, 'gradients': gradients}


def compare_torch(torch, kind, count, directions, lengths, dtype):
    args = stack_args(kind, count, directions, dtype)
    got = our_stack(kind, count, directions, dtype)(args, lengths=lengths)
    assert_all_reached(got['gradients'])
    weights = got['gradients'].pop('weights')
    got['gradients'] |= torch_named(kind, weights, count, directions)
    want = torch_run(torch, kind, count, directions, args, lengths)
    assert_same(got, want, RTOL[dtype])


PAIRS = [(1, 1), (1, 2), (2, 1), (2, 2)]


@pytest.mark.parametrize(
    ('kind', 'count', 'directions', 'packed'),
    [(kind, *pair, pair[0] == pair[1]) for kind in ('lstm', 'gru') for pair in PAIRS]
    + [('lstm', 1, 2, True), ('lstm', 2, 1, True), ('lstm', 2, 2, False)]
    + [('tanh', 1, 1, False), ('tanh', 2, 2, True), ('relu', 1, 2, True), ('relu', 2, 1, False)],
)
def test_stacks_and_all_gradients_equal_pytorch(torch, x64, kind, count, directions, packed):
    """Outputs, final states, and gradients of inputs, weights and initial states, with packed sequences and without."""
    compare_torch(torch, kind, count, directions, LENGTHS if packed else None, F64)


@pytest.mark.parametrize('kind', ['lstm', 'gru', 'tanh', 'relu'])
def test_stacks_and_all_gradients_equal_pytorch_in_float32(torch, kind):
    """Relative 1e-5, with packed sequences."""
    compare_torch(torch, kind, 1, 1, LENGTHS, F32)


@pytest.mark.parametrize('directions', [1, 2])
@pytest.mark.parametrize('count', [1, 2])
def test_stacks_and_all_gradients_equal_the_reference_lstm_of_jax(x64, count, directions):
    """`jax.experimental.rnn.lstm_ref`, the reference for its binding to cuDNN, with lengths from 1."""

    def theirs(args, lengths):
        cells = stack_cells(args['weights'], directions)
        kernels, recurrent_kernels = (
            {i: cell[k].T for i, cell in enumerate(cells)} for k in ('kernel', 'recurrent_kernel')
        )
        biases, none = {i: c['bias'] for i, c in enumerate(cells)}, {i: jnp.zeros(4 * H) for i in range(len(cells))}
        weights = kernels, recurrent_kernels, biases, none
        sizes = F, H, count, 0.0, directions == 2
        outputs, h, c = jax_rnn.lstm_ref(args['inputs'], args['h'], args['c'], *weights, lengths, *sizes)
        return {'outputs': jnp.where(REAL[..., None], outputs, 0), 'h': h, 'c': c}

    args = stack_args('lstm', count, directions, F64)
    got = our_stack('lstm', count, directions, F64)(args, lengths=LENGTHS)
    with jax.numpy_rank_promotion('allow'):
        want = differentiated(theirs)(args, lengths=LENGTHS)
    assert_same(got, want, 1e-10)


# --- ONNX ------------------------------------------------------------------------------------------


def onnx_weights(kind, cell):
    """W, R and B of one direction: gates (i, o, f, c), (z, r, h); B has the bias of the inputs, then the recurrent."""

    def gates(x):
        if kind == 'lstm':
            i, f, g, o = np.split(np.asarray(x), 4, axis=-1)
            x = np.concatenate([i, o, f, g], axis=-1)
        return np.asarray(x).T

    bias = gates(cell['bias'])
    both = [bias, gates(cell['recurrent_bias'])] if kind == 'gru' else [0.25 * bias, 0.75 * bias]
    return gates(cell['kernel']), gates(cell['recurrent_kernel']), np.concatenate(both)


def onnx_run(onnx, kind, direction, cells, args):
    """outputs [B, T, directions H], then final h and c [directions, B, H], of a model with one node."""
    feeds = dict(zip('WRB', map(np.stack, zip(*(onnx_weights(kind, c) for c in cells), strict=True)), strict=True))
    feeds |= {'X': np.swapaxes(args['inputs'], 0, 1), 'initial_h': args['h']}
    outputs, inputs = ['Y', 'Y_h'], ['X', 'W', 'R', 'B', '', 'initial_h']
    options = {'hidden_size': H, 'direction': direction}
    if kind == 'lstm':
        feeds, outputs, inputs = {**feeds, 'initial_c': args['c']}, [*outputs, 'Y_c'], [*inputs, 'initial_c']
    if kind.startswith('gru'):
        options['linear_before_reset'] = int(kind == 'gru')
    if kind == 'relu':
        options['activations'] = ['Relu'] * len(cells)
    helper = onnx.helper
    op = {'lstm': 'LSTM', 'gru': 'GRU', 'gru_reset_before': 'GRU', 'tanh': 'RNN', 'relu': 'RNN'}[kind]
    double = onnx.TensorProto.DOUBLE
    graph = helper.make_graph(
        [helper.make_node(op, inputs, outputs, **options)],
        'one_node',
        [helper.make_tensor_value_info(name, double, x.shape) for name, x in feeds.items()],
        [helper.make_tensor_value_info('Y', double, [None] * 4)]
        + [helper.make_tensor_value_info(name, double, [None] * 3) for name in outputs[1:]],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 14)])
    onnx.checker.check_model(model)
    try:
        y, *state = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    except RuntimeError as error:
        if 'Unknown' not in str(error):  # activation, or in older versions direction
            raise
        pytest.skip(f'the evaluator of ONNX does not do this: {error}')
    return np.transpose(y, (2, 0, 1, 3)).reshape(B, T, -1), *state


@pytest.mark.parametrize('direction', ['forward', 'reverse', 'bidirectional'])
@pytest.mark.parametrize('kind', CELLS)
def test_outputs_and_final_states_equal_onnx(x64, kind, direction):
    """From given states. Its evaluator takes no notice of lengths, and knows no ReLU in a recurrent layer."""
    onnx = pytest.importorskip('onnx', reason='ONNX is a reference here, where it is installed')
    pytest.importorskip('onnx.reference')
    directions = 2 if direction == 'bidirectional' else 1
    args = stack_args(kind, 1, directions, F64)
    want = onnx_run(onnx, kind, direction, stack_cells(args['weights'], directions), args)
    lstm = [LSTMCarry(c, h) for c, h in zip(args['c'], args['h'], strict=True)] if kind == 'lstm' else None
    carry = lstm or [HiddenCarry(h) for h in args['h']]
    options = {'reverse': True, 'keep_order': True} if direction == 'reverse' else {}
    layer, weights = stack(kind, 1, directions, F64), args['weights']
    carry = (tuple(carry) if directions == 2 else carry[0],)
    got, outputs = apply(layer, weights, args['inputs'], initial_carry=carry, **options)
    reference.assert_close(outputs, want[0], 1e-10, 'outputs')
    states = jax.tree.leaves(got)
    count = len(states) // directions
    reference.assert_close(np.stack(states[count - 1 :: count]), want[1], 1e-10, 'h')
    if kind == 'lstm':
        reference.assert_close(np.stack(states[::2]), want[2], 1e-10, 'c')


# --- Flax ------------------------------------------------------------------------------------------

FLAX_CELLS = {
    'SimpleCell': functools.partial(nn.SimpleCell, H),
    'LSTMCell': functools.partial(nn.LSTMCell, H),
    'OptimizedLSTMCell': functools.partial(nn.OptimizedLSTMCell, H),
    'GRUCell': functools.partial(nn.GRUCell, H),
    'MGUCell': functools.partial(nn.MGUCell, H),
    'ConvLSTMCell': functools.partial(nn.ConvLSTMCell, 2, kernel_size=(2, 2)),
}
ORDERS = {
    'forward': {},
    'reverse': {'reverse': True},
    'kept': {'reverse': True, 'keep_order': True},
}


def flax_run(layer, real, carry=True):
    """Outputs, of real steps alone where there are lengths, and the final carry."""

    def run(args, lengths):
        results = layer.apply(
            args['weights'], args['inputs'], initial_carry=args['carry'], seq_lengths=lengths, return_carry=carry
        )
        last, outputs = results if carry else ((), results)
        if lengths is not None:
            outputs = jnp.where(real.reshape(real.shape + (1,) * (outputs.ndim - real.ndim)), outputs, 0)
        return {'outputs': outputs, 'carry': last}

    return differentiated(run)


def compare_flax(ours, theirs, inputs, lengths, real, carry=True):
    """The same variables in both; from a random initial carry."""
    args = {'weights': draw_weights(theirs, inputs), 'inputs': inputs}
    shapes, tree = jax.tree.flatten(jax.eval_shape(lambda: theirs.apply(args['weights'], inputs, return_carry=True)[0]))
    args['carry'] = tree.unflatten([draw(*x.shape, seed=30 + i) / 2 for i, x in enumerate(shapes)])
    got = flax_run(ours, real, carry)(args, lengths=lengths)
    with jax.numpy_rank_promotion('allow'):
        want = flax_run(theirs, real, carry)(args, lengths=lengths)
    assert_same(got, want, 1e-10)


@pytest.mark.parametrize(
    ('name', 'order', 'time_major'),
    [('SimpleCell', order, time_major) for order in ORDERS for time_major in (False, True)]
    + [(name, 'reverse', True) for name in FLAX_CELLS if name != 'SimpleCell'],
)
def test_cells_of_flax_and_all_gradients_equal_flax(x64, name, order, time_major):
    """Under our RNN as under `flax.linen.RNN`, with lengths: real steps, final carries, gradients."""
    inputs = draw(*((B, T, 4, 3, 2) if name == 'ConvLSTMCell' else (B, T, F)), seed=2)
    inputs = np.swapaxes(inputs, 0, 1) if time_major else inputs
    options = {**ORDERS[order], 'time_major': time_major, 'return_carry': True}
    ours, theirs = (rnn(FLAX_CELLS[name](param_dtype=F64), **options) for rnn in (RNN, nn.RNN))
    compare_flax(ours, theirs, inputs, LENGTHS, REAL.T if time_major else REAL)


@pytest.mark.parametrize('time_major', [False, True])
def test_bidirectional_and_all_gradients_equal_flax(x64, time_major):
    """With lengths, side by side; and, time first, merged by a function."""
    inputs = draw(B, T, F, seed=2)
    inputs = np.swapaxes(inputs, 0, 1) if time_major else inputs
    options = {'time_major': time_major}
    merge = {'merge_mode': jnp.subtract}, {'merge_fn': jnp.subtract}
    cells = [nn.GRUCell(H, param_dtype=F64), nn.SimpleCell(H, param_dtype=F64)]
    ours = Bidirectional(*map(RNN, cells), **options, **(merge[0] if time_major else {}))
    theirs = nn.Bidirectional(*map(nn.RNN, cells), **options, **(merge[1] if time_major else {}))
    compare_flax(ours, theirs, inputs, LENGTHS, REAL.T if time_major else REAL)


@pytest.mark.parametrize(
    ('order', 'time_major', 'lengths'),
    [('forward', False, False), ('reverse', True, False), ('reverse', False, True), ('kept', True, True)],
)
def test_several_batch_axes_equal_flax(x64, order, time_major, lengths):
    """Inputs [2, 2, T, F] or [T, 2, 2, F]. With lengths, Flax takes one batch axis alone for the final carry."""
    inputs, real, lengths = draw(2, 2, T, F, seed=2), REAL.reshape(2, 2, T), LENGTHS.reshape(2, 2) if lengths else None
    if time_major:
        inputs, real = np.moveaxis(inputs, 2, 0), np.moveaxis(real, 2, 0)
    options = {**ORDERS[order], 'time_major': time_major}
    ours, theirs = (rnn(nn.SimpleCell(H, param_dtype=F64), **options) for rnn in (RNN, nn.RNN))
    compare_flax(ours, theirs, inputs, lengths, real, carry=lengths is None)


@pytest.mark.parametrize('directions', [1, 2])
def test_a_random_initial_carry_is_that_of_flax(directions):
    """Drawn from `init_key` as Flax draws it, and in two directions for each anew."""
    inputs, key = draw(B, T, F, seed=2, dtype=F32), jax.random.key(5)
    cells = [nn.SimpleCell(H, carry_init=nn.initializers.normal(1)) for _ in range(directions)]
    ours, theirs = list(map(RNN, cells)), list(map(nn.RNN, cells))
    ours, theirs = (ours[0], theirs[0]) if directions == 1 else (Bidirectional(*ours), nn.Bidirectional(*theirs))
    weights = draw_weights(theirs, inputs)
    got, want = (apply(layer, weights, inputs, init_key=key) for layer in (ours, theirs))
    reference.assert_close(got, want, 1e-5)
    assert np.abs(got - apply(ours, weights, inputs)).max() > 1e-3


# --- NumPy: masks with holes, resets, both directions ----------------------------------------------


WEIGHTS = ('kernel', 'recurrent_kernel', 'bias')


def lstm_step(w, x, carry):
    _, (c, h), _ = reference.lstm(x[None, None], *(part[None] for part in carry), *(w[name] for name in WEIGHTS))
    return (c[0], h[0])


def gru_step(w, x, carry, reset_after=True):
    (h,) = carry
    wz, wr, wn = np.split(w['kernel'], 3, axis=1)
    uz, ur, un = np.split(w['recurrent_kernel'], 3, axis=1)
    bz, br, bn = np.split(w['bias'], 3)
    dz, dr, dn = np.split(w['recurrent_bias'], 3) if reset_after else np.zeros((3, len(h)))
    z = reference.sigmoid(x @ wz + h @ uz + bz + dz)
    r = reference.sigmoid(x @ wr + h @ ur + br + dr)
    n = np.tanh(x @ wn + bn + (r * (h @ un + dn) if reset_after else (r * h) @ un))
    return (z * h + (1 - z) * n,)


def simple_step(w, x, carry):
    return (np.tanh(x @ w['kernel'] + carry[0] @ w['recurrent_kernel'] + w['bias']),)


STEPS = {
    'lstm': lstm_step,
    'gru': gru_step,
    'gru_reset_before': functools.partial(gru_step, reset_after=False),
    'tanh': simple_step,
}


def walk(kind, args, mask, resets, reverse):
    """Row by row and step by step: outputs in the order of the inputs, and the final carry.

    args: weights, inputs [B, T, F], carry (parts [B, H]), and fresh (parts [H]), from which a row starts anew.
    """
    outputs = np.zeros((B, T, H), args['inputs'].dtype)
    last = [np.zeros_like(part) for part in args['carry']]
    for b in range(B):
        carry = tuple(part[b] for part in args['carry'])
        for t in reversed(range(T)) if reverse else range(T):
            # Nothing passes between the step of a reset and the one before it, be they masked or not.
            border = t + 1 if reverse else t
            if border < T and resets[b, border]:
                carry = args['fresh']
            if mask[b, t]:
                carry = STEPS[kind](args['weights'], args['inputs'][b, t], carry)
                outputs[b, t] = carry[-1]
        for part, x in zip(last, carry, strict=True):
            part[b] = x
    return {'outputs': outputs, 'carry': tuple(last)}


def walk_gradients(kind, args, *options):
    """Of the weighted results, number by number: the imaginary step, a difference that takes none (Squire 1998)."""
    args = jax.tree.map(lambda x: x.astype(complex), args)

    def loss():
        results = walk(kind, args, *options)
        weighted = jax.tree.map(lambda x, y: np.sum(x * y), results, cotangents(results))
        return sum(jax.tree.leaves(weighted))

    def slopes(x):
        found = np.zeros(x.shape)
        for index in np.ndindex(x.shape):
            value, x[index] = x[index], x[index] + 1e-30j
            found[index], x[index] = loss().imag / 1e-30, value
        return found

    return jax.tree.map(slopes, args)


@functools.cache
def our_walk(kind, reverse):
    """The same of ours, with the learned initial carry as that from which a row starts anew."""
    cell = CELLS[kind](H, param_dtype=F64)
    layer = RNN(cell, reverse=reverse, keep_order=True, return_carry=True, learn_initial_carry=True)
    names = ('initial_carry_c', 'initial_carry_h') if kind == 'lstm' else ('initial_carry_h',)

    def run(args, mask, resets):
        params = {'cell': args['weights'], **dict(zip(names, args['fresh'], strict=True))}
        carry, outputs = layer.apply(
            {'params': params}, args['inputs'], initial_carry=args['carry'], mask=mask, resets=resets
        )
        return {'outputs': outputs, 'carry': tuple(carry)}

    return differentiated(run)


def walk_args(kind):
    args = draw_args(kind)
    args['carry'] = tuple(args['carry'])
    args['fresh'] = tuple(draw(H, seed=20 + i) / 2 for i in range(len(args['carry'])))
    return {**args, 'weights': args['weights']['params']['cell']}


WHOLE, NO_RESETS = np.ones((B, T), bool), np.zeros((B, T), bool)
# At real and at masked steps of MASKS['holes'], at the first and the last step, at neighbours, and in a row of padding.
RESETS = np.array([[0, 0, 1, 1, 0, 1], [0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]], bool)


@pytest.mark.parametrize(
    ('mask', 'resets'),
    [(MASKS['holes'], NO_RESETS), (WHOLE, RESETS), (MASKS['holes'], RESETS)],
    ids=['holes', 'resets', 'holes-and-resets'],
)
@pytest.mark.parametrize('reverse', [False, True], ids=['forward', 'reverse'])
@pytest.mark.parametrize('kind', STEPS)
def test_masks_and_resets_and_all_gradients_equal_a_loop(x64, kind, reverse, mask, resets):
    """Outputs, final carries, and gradients of inputs, weights, the given carry and the one of a new beginning."""
    args = walk_args(kind)
    got = our_walk(kind, reverse)(args, mask=mask, resets=resets)
    options = mask, resets, reverse
    want = {'results': walk(kind, args, *options), 'gradients': walk_gradients(kind, args, *options)}
    assert_same(got, want, 1e-10)


@pytest.mark.parametrize('kind', ['lstm', 'gru'])
def test_bidirectional_with_holes_and_resets_equals_two_loops(x64, kind):
    """Outputs, both carries, and the summary, in which each direction has the real step that it met last."""
    args, holes, resets = walk_args(kind), MASKS['holes'], RESETS
    zeros = {**args, 'fresh': tuple(np.zeros_like(part) for part in args['fresh'])}
    other = jax.tree.map(lambda x: 0.7 * x, {'weights': args['weights'], 'carry': args['carry']})
    other = {**zeros, **other}
    forward, backward = walk(kind, zeros, holes, resets, False), walk(kind, other, holes, resets, True)

    layer = Bidirectional(*(RNN(CELLS[kind](H, param_dtype=F64)) for _ in range(2)), return_carry=True)
    cells = {'forward_rnn': {'cell': args['weights']}, 'backward_rnn': {'cell': other['weights']}}
    options = {'initial_carry': (args['carry'], other['carry']), 'mask': holes, 'resets': resets}
    carries, outputs = apply(layer, {'params': cells}, args['inputs'], **options)
    want = np.concatenate([forward['outputs'], backward['outputs']], axis=-1)
    reference.assert_close(outputs, want, 1e-10, 'outputs')
    for got, part in zip(jax.tree.leaves(carries), [*forward['carry'], *backward['carry']], strict=True):
        reference.assert_close(got, part, 1e-10, 'carry')

    _, summary = apply(layer, {'params': cells}, args['inputs'], return_sequences=False, **options)
    ends = [(np.flatnonzero(row)[-1], np.flatnonzero(row)[0]) if row.any() else None for row in holes]
    for b, end in enumerate(ends):
        row = np.zeros(2 * H) if end is None else np.concatenate([want[b, end[0], :H], want[b, end[1], H:]])
        np.testing.assert_allclose(summary[b], row, rtol=1e-10)


@pytest.mark.parametrize('reverse', [False, True], ids=['forward', 'reverse'])
@pytest.mark.parametrize('resets', [NO_RESETS, RESETS], ids=['whole', 'resets'])
def test_the_history_of_the_carry_ends_with_the_final_carry(x64, resets, reverse):
    """With holes and resets too: after each real step h is its output, and what stands last is what is handed on."""
    args, options = draw_args('lstm'), {'mask': MASKS['holes'], 'resets': resets}
    layer = RNN(LSTMCell(H, param_dtype=F64), reverse=reverse, keep_order=True, return_carry=True)
    options['initial_carry'] = args['carry']
    carry, outputs = apply(layer, args['weights'], args['inputs'], **options)
    history, _ = apply(layer, args['weights'], args['inputs'], carry_history=True, **options)
    visited = history.h[:, :0:-1] if reverse else history.h[:, 1:]
    np.testing.assert_array_equal(np.where(MASKS['holes'][..., None], visited, 0), outputs)
    for name in ('c', 'h'):
        np.testing.assert_array_equal(getattr(history, name)[:, 0], getattr(args['carry'], name))
        np.testing.assert_allclose(getattr(history, name)[:, -1], getattr(carry, name), rtol=1e-10, err_msg=name)


# --- the constants of Keras's own tests ------------------------------------------------------------
#
# From keras/src/layers/rnn/{lstm,gru,simple_rnn,bidirectional,stacked_rnn_cells}_test.py of Keras 3.15.1 (Apache 2.0):
# the numbers alone. Inputs count from 0, kernels are .01, recurrent kernels .02, biases .03; with its
# `unit_forget_bias` the biases of the forget gate are 1, not 1.03.


def count(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def constant_weights(module, x, kernel=0.01, recurrent_kernel=0.02, bias=0.03, forget_bias=1.0):
    """Variables of `module` in which each weight has one value."""
    values = {'kernel': kernel, 'recurrent_kernel': recurrent_kernel, 'bias': bias, 'recurrent_bias': bias}

    def fill(path, like):
        filled = np.full(like.shape, values[path[-1].key], like.dtype)
        if path[-1].key == 'bias' and forget_bias is not None and filled.size % 4 == 0:
            filled.reshape(4, -1)[1] = forget_bias
        return filled

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(module.init, jax.random.key(0), x))


def constant_layer(kind, units, x, forget_bias=1.0, bias=0.03, **options):
    """A layer and its variables."""
    layer = RNN(CELLS[kind](units), **options)
    return layer, constant_weights(layer, x, bias=bias, forget_bias=forget_bias if kind == 'lstm' else None)


def assert_constants(got, want):
    """Keras's tests say 1e-5; where their constants are one for all units, so must ours be."""
    want = np.asarray(want)
    want = want if want.ndim == np.ndim(got) else np.repeat(want[..., None], got.shape[-1], axis=-1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('kind', 'shape', 'units', 'options', 'want'),
    [
        ('lstm', (3, 6, 4), 3, {}, [0.6288687, 0.86899155, 0.9460773]),
        ('lstm', (3, 6, 4), 3, {'reverse': True}, [0.35622165, 0.74789524, 0.8872726]),
        ('lstm', (3, 6, 4), 3, {'unroll': 6}, [0.6288687, 0.86899155, 0.9460773]),
        ('lstm', (3, 6, 4), 3, {'forget_bias': 0.03}, [0.57019705, 0.8661914, 0.9459622]),
        ('lstm', (3, 6, 4), 3, {'forget_bias': 0.0, 'bias': 0.0}, [0.54986924, 0.86226785, 0.9443936]),
        ('gru', (3, 6, 4), 3, {}, [0.5217289, 0.6371659, 0.39384964]),
        ('gru', (3, 6, 4), 3, {'reverse': True}, [0.24406259, 0.611516, 0.3928808]),
        ('gru', (3, 6, 4), 3, {'bias': 0.0}, [0.49988455, 0.64701194, 0.4103359]),
        ('gru_reset_before', (3, 6, 4), 3, {}, [0.51447755, 0.6426879, 0.40208298]),
        ('tanh', (2, 3, 4), 4, {}, [0.405432, 0.73605347]),
        ('tanh', (2, 3, 4), 4, {'reverse': True}, [0.11144729, 0.5528889]),
    ],
)
def test_last_outputs_are_the_constants_of_keras(kind, shape, units, options, want):
    """Forward and backward, with and without biases."""
    layer, weights = constant_layer(kind, units, count(*shape), **options)
    assert_constants(apply(layer, weights, count(*shape), return_sequences=False), want)


@pytest.mark.parametrize(
    ('kind', 'units', 'reverse', 'want'),
    [
        ('lstm', 2, False, [[0.20574439, 0.3558822], [0.64930826, 0.66276]]),
        ('lstm', 2, True, [[0.13281618, 0.2790356], [0.5839337, 0.5992567]]),
        ('gru', 2, False, [[0.23774096, 0.33508456], [0.83659905, 1.0227708]]),
        ('gru', 2, True, [[0.13486053, 0.23261218], [0.78257304, 0.9691353]]),
        ('tanh', 4, False, [0.33621645, 0.6262637]),
        ('tanh', 4, True, [0.07344437, 0.43043602]),
    ],
)
def test_given_states_lead_to_the_constants_of_keras(kind, units, reverse, want):
    """All parts of the state count from 0."""
    layer, weights = constant_layer(kind, units, count(2, 4, 3), reverse=reverse)
    carry = (count(2, units),) * (2 if kind == 'lstm' else 1)
    carry, outputs = apply(
        layer, weights, count(2, 4, 3), initial_carry=carry, return_carry=True, return_sequences=False
    )
    assert_constants(outputs, want)
    np.testing.assert_array_equal(carry.h, outputs)


RIGHT = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
HOLES = np.array([[1, 1, 0, 1], [1, 0, 0, 1]], bool)


@pytest.mark.parametrize(
    ('kind', 'units', 'reverse', 'mask', 'want'),
    [
        ('lstm', 2, False, RIGHT, [0.11755939, 0.28556206]),
        ('lstm', 2, True, RIGHT[:, ::-1], [0.15341201, 0.3844719]),
        ('gru', 2, False, HOLES, [0.19393763, 0.30818558]),
        ('gru', 2, True, HOLES, [0.11669192, 0.28380975]),
        ('tanh', 4, False, HOLES, [0.32951632, 0.61799484]),
        ('tanh', 4, True, HOLES, [0.07376196, 0.43645123]),
    ],
)
def test_last_outputs_with_a_mask_are_the_constants_of_keras(kind, units, reverse, mask, want):
    """Padding right, padding left for the LSTM that goes backward, and holes."""
    layer, weights = constant_layer(kind, units, count(2, 4, 3), reverse=reverse)
    assert_constants(apply(layer, weights, count(2, 4, 3), mask=mask, return_sequences=False), want)


@pytest.mark.parametrize('masked_output', ['hold', 'zero'])
@pytest.mark.parametrize(
    ('kind', 'mask', 'want'),
    [
        ('lstm', RIGHT, [[0.01588910, 0.05552048, 0.11755939, 0.11755939], [0.14185596] + 3 * [0.28556206]]),
        ('gru', HOLES, [[0.03606692, 0.09497581, 0.09497581, 0.19393763], 3 * [0.16051409] + [0.30818558]]),
        ('tanh', HOLES, [[0.0599281, 0.15122814, 0.15122814, 0.32394567], 3 * [0.3969304] + [0.608085]]),
    ],
)
def test_all_outputs_with_a_mask_are_the_constants_of_keras(kind, mask, want, masked_output):
    """What a masked step shows: the output before it, or 0 as with `zero_output_for_mask`."""
    layer, weights = constant_layer(kind, 2, count(2, 4, 3), masked_output=masked_output)
    want = np.where(mask, want, 0) if masked_output == 'zero' else want
    assert_constants(apply(layer, weights, count(2, 4, 3), mask=mask), want)


def test_M13_two_stacked_lstms_with_a_mask_have_the_constants_of_keras():
    """One unit each, kernels of ones: .7793, and .5998 for the row whose last step is masked."""
    x, mask = np.ones((2, 3, 4), np.float32), np.array([[1, 1, 1], [1, 1, 0]], bool)
    layer = Stack([RNN(LSTMCell(1)) for _ in range(2)])
    weights = constant_weights(layer, x, kernel=1, recurrent_kernel=1, bias=0)
    outputs = apply(layer, weights, x, mask=mask, return_sequences=False)
    np.testing.assert_allclose(outputs, [[0.7793], [0.5998]], atol=1e-4)
    lengths = apply(layer, weights, x, seq_lengths=np.array([3, 2]), return_sequences=False)
    np.testing.assert_array_equal(lengths, outputs)


@pytest.mark.parametrize(
    ('kind', 'want'),
    [('lstm', [0.3124785, 0.6863672]), ('gru', [0.29542392, 0.5885018]), ('tanh', [0.40559256, 0.7361247])],
)
def test_S04_the_second_call_has_the_constants_of_keras_stateful(kind, want):
    """The same window twice, rows .3124785 and .6863672 for the LSTM: handed on by hand, and by `Stateful`."""
    x = count(2, 3, 4)
    layer, weights = constant_layer(kind, 4, x)
    carry, _ = apply(layer, weights, x, return_carry=True)
    assert_constants(apply(layer, weights, x, initial_carry=carry, return_sequences=False), want)

    stream, variables = Stateful(layer), {'params': {'rnn': weights['params']}}
    _, kept = apply(stream, variables, x, mutable='carry')
    assert_constants(apply(stream, {**variables, **kept}, x, return_sequences=False), want)


def constant_bidirectional(kind, x, **options):
    layer = Bidirectional(RNN(CELLS[kind](2)), RNN(CELLS[kind](2)), **options)
    return layer, constant_weights(layer, x, forget_bias=1.0 if kind == 'lstm' else None)


def test_B02_bidirectional_states_are_the_constants_of_keras():
    """Both of both directions; handed back they continue, as Keras's stateful layer does."""
    x = count(2, 4, 3)
    layer, weights = constant_bidirectional('lstm', x, return_carry=True)
    (forward, backward), outputs = apply(layer, weights, x, return_sequences=False)
    assert_constants(forward.h, [0.1990008, 0.52335435])
    assert_constants(forward.c, [0.35567185, 1.0492687])
    assert_constants(backward.h, [0.12659755, 0.44717982])
    assert_constants(backward.c, [0.2501858, 0.941473])
    np.testing.assert_array_equal(outputs, np.concatenate([forward.h, backward.h], axis=-1))
    _, again = apply(layer, weights, x, initial_carry=(forward, backward), return_sequences=False)
    assert_constants(again[:, :2], [0.26234663, 0.6137073])
    assert_constants(again[:, 2:], [0.16959146, 0.5381646])


def test_B02_bidirectional_continues_from_the_given_states_of_keras():
    """h and c of the forward layer, then of the backward one: 0 to 3, times 1, 2, 3 and 4."""
    x, states = count(2, 4, 3), [n * count(2, 2) for n in (1, 2, 3, 4)]
    layer, weights = constant_bidirectional('lstm', x)
    carry = LSTMCarry(h=states[0], c=states[1]), LSTMCarry(h=states[2], c=states[3])
    outputs = apply(layer, weights, x, initial_carry=carry, return_sequences=False)
    want = [[0.20794602, 0.4577124, 0.14046375, 0.48191673], [0.6682636, 0.6711909, 0.60943645, 0.60950446]]
    assert_constants(outputs, want)


def test_bidirectional_outputs_are_the_constants_of_keras():
    """Simple layers merged by concat, ave, None and mul; GRUs by sum at every step; GRUs with holes."""
    x = count(2, 3, 4)
    forward, backward = [0.39687276, 0.7237238], [0.10004295, 0.53391594]
    for merge_mode in ('concat', 'ave', None):
        layer, weights = constant_bidirectional('tanh', x, merge_mode=merge_mode)
        got = apply(layer, weights, x, return_sequences=False)
        if merge_mode == 'ave':
            assert_constants(got, [0.24845785, 0.6288199])
        else:
            got = jnp.split(got, 2, axis=-1) if merge_mode else got
            assert_constants(got[0], forward)
            assert_constants(got[1], backward)

    layer, weights = constant_bidirectional('tanh', x, merge_mode='mul')
    other = constant_weights(layer, x, kernel=0.03, bias=0.01, forget_bias=None)
    weights['params']['backward_rnn'] = other['params']['backward_rnn']
    assert_constants(apply(layer, weights, x, return_sequences=False), [0.08374989, 0.6740834])

    layer, weights = constant_bidirectional('gru', x, merge_mode='sum')
    want = [[0.20937867, 0.34462988, 0.40290534], [0.59829646, 0.6734641, 0.6479671]]
    assert_constants(apply(layer, weights, x), want)

    layer, weights = constant_bidirectional('gru', count(2, 4, 3))
    got = apply(layer, weights, count(2, 4, 3), mask=HOLES, return_sequences=False)
    assert_constants(got[:, :2], [0.19393763, 0.30818558])
    assert_constants(got[:, 2:], [0.11669192, 0.28380975])
