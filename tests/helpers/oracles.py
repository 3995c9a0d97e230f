"""Comparison of recurrent layers with independent implementations (Keras, PyTorch, ONNX, JAX, Flax, NumPy).

Both sides compute a dict of results from the same tree of inputs, weights (in our layout) and initial carry. Compared
are the results, and the gradients of one random weighting of all of them with respect to that whole tree.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seqjax.nn import rnn as nn_rnn
from seqjax.nn.cells.cell import HiddenCarry
from seqjax.nn.cells.gru_cell import GRUCell
from seqjax.nn.cells.lstm_cell import LSTMCarry, LSTMCell
from seqjax.nn.cells.simple_cell import SimpleRNNCell
from seqjax.nn.wrappers import Bidirectional, Stack
from tests.helpers import reference

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
VALID = np.arange(T) < LENGTHS[:, None]
QUICK = {'xla_backend_optimization_level': 0}  # to compile: each program runs a few times, on small arrays


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


def draw_args(kind, dtype=F64):
    """Weights of one RNN, inputs and an initial carry."""
    inputs = draw(B, T, F, seed=2, dtype=dtype)
    weights = draw_weights(nn_rnn.RNN(CELLS[kind](H, param_dtype=dtype)), inputs)
    return {'weights': weights, 'inputs': inputs, 'carry': draw_carry(kind, dtype)}


@functools.cache
def stack(kind, count, directions, dtype):
    """A stack of `count` layers in one or two directions."""

    def rnn():
        return nn_rnn.RNN(CELLS[kind](H, param_dtype=dtype))

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
