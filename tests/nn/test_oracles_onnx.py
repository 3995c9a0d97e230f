"""Outputs and final states against the reference evaluator of ONNX."""

import jax
import numpy as np
import pytest

from seqjax.nn.cells.cell import HiddenCarry
from seqjax.nn.cells.lstm_cell import LSTMCarry
from tests.helpers import reference
from tests.helpers.oracles import (
    CELLS,
    F64,
    B,
    H,
    T,
    apply,
    stack,
    stack_args,
    stack_cells,
)


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
