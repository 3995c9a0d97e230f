"""Several axes of batch and of features."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from seqjax.nn import rnn
from tests.helpers import reference
from tests.helpers.layers import (
    MASKS,
    B,
    F,
    H,
    T,
    assert_same,
    draw,
    started,
    variables_of,
)


@pytest.mark.parametrize('reverse', [False, True])
def test_convolutional_cells_take_masks(reverse):
    """Carries [B, height, width, channels]."""
    layer, x = rnn.RNN(nn.ConvLSTMCell(2, (3, 3)), reverse=reverse), draw(2, T, 4, 5, 3)
    variables = variables_of(layer, x)
    flags = MASKS['holes'][:2]
    carry, outputs = layer.apply(
        variables, np.where(flags[..., None, None, None], x, np.nan), mask=flags, return_carry=True
    )
    assert outputs.shape == (2, T, 4, 5, 2)
    for row in range(2):
        alone, y = layer.apply(variables, x[row : row + 1, flags[row]], return_carry=True)
        reference.assert_close(outputs[row, flags[row]], y[0], 1e-5)
        assert_same(jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], carry), alone, 1e-5)


def test_any_number_of_batch_axes():
    """As flax.linen.RNN has it: two axes, and none."""
    layer, variables, x = started('lstm')
    mask, resets = MASKS['holes'], MASKS['left']
    want = layer.apply(variables, x, mask=mask, resets=resets)
    square = layer.apply(variables, x.reshape(2, 2, T, F), mask=mask.reshape(2, 2, T), resets=resets.reshape(2, 2, T))
    reference.assert_close(square.reshape(B, T, H), want, 1e-6)
    reference.assert_close(layer.apply(variables, x[0], mask=mask[0], resets=resets[0]), want[0], 1e-6)
