"""Counts of parameters of every cell and its variants."""

import jax
import numpy as np
import pytest

from seqjax.nn import rnn
from seqjax.nn.cells.gru_cell import GRUCell
from seqjax.nn.cells.linear_cells import LRUCell, MinGRUCell, MinLSTMCell, RGLRUCell
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.nn.cells.simple_cell import SimpleRNNCell
from seqjax.reporting import text_tables


@pytest.mark.parametrize('sizes', [{'F': 3, 'H': 5, 'P': 2}, {'F': 1, 'H': 4, 'P': 4}])
@pytest.mark.parametrize(
    ('cell', 'options', 'count', 'parallel'),
    [
        (LSTMCell, {}, lambda F, H, P: 4 * ((F + 1) * H + H**2), False),
        (GRUCell, {}, lambda F, H, P: 3 * ((F + 2) * H + H**2), False),
        (GRUCell, {'reset_after': False}, lambda F, H, P: 3 * ((F + 1) * H + H**2), False),
        (SimpleRNNCell, {}, lambda F, H, P: (F + 1) * H + H**2, False),
        (MinGRUCell, {}, lambda F, H, P: 2 * (F + 1) * H, True),
        (MinLSTMCell, {}, lambda F, H, P: 3 * (F + 1) * H, True),
        (LRUCell, {}, lambda F, H, P: 3 * H + 2 * H * (F + H) + F * H, True),
        (RGLRUCell, {}, lambda F, H, P: (F + 1) * H + 2 * H**2 + 3 * H, True),
        (LSTMCell, {'forget': 'none'}, lambda F, H, P: 3 * ((F + 1) * H + H**2), False),
        (LSTMCell, {'forget': 'coupled'}, lambda F, H, P: 3 * ((F + 1) * H + H**2), False),
        (LSTMCell, {'peepholes': True}, lambda F, H, P: 4 * ((F + 1) * H + H**2) + 3 * H, False),
        (LSTMCell, {'projection': 'P'}, lambda F, H, P: 4 * ((F + 1) * H + P * H) + H * P, False),
        (LSTMCell, {'layer_norm': True}, lambda F, H, P: 4 * ((F + 1) * H + H**2) + 10 * H, False),
        (GRUCell, {'layer_norm': True}, lambda F, H, P: 3 * ((F + 2) * H + H**2) + 6 * H, False),
        (SimpleRNNCell, {'layer_norm': True}, lambda F, H, P: (F + 1) * H + H**2 + H, False),
    ],
)
def test_a_cell_has_so_many_parameters(cell, options, count, parallel, sizes):
    """For F features, H hidden units and a projection to P; all steps at once where the cell is affine."""
    options = {name: sizes['P'] if value == 'P' else value for name, value in options.items()}
    cell = cell(sizes['H'], **options)
    params = jax.eval_shape(rnn.RNN(cell).init, jax.random.key(0), np.zeros((1, 2, sizes['F']), np.float32))
    assert text_tables.count_params(params) == count(**sizes)
    assert hasattr(cell, 'affine') == parallel
