"""Order of outputs and of axes: `reverse`, `keep_order`, `time_major`."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import rnn
from tests.helpers.layers import (
    CELLS,
    MASKS,
    B,
    H,
    Sum,
    T,
    assert_same,
    column,
    flip,
    started,
)


def test_M04_each_row_is_reversed_by_its_own_length():
    x, lengths = column(1, 2, 3, 9), jnp.array([3])
    total = rnn.RNN(Sum())
    forward = total.apply({}, x, seq_lengths=lengths)
    backward = total.apply({}, x, seq_lengths=lengths, reverse=True, keep_order=True)
    np.testing.assert_array_equal(forward[0, :, 0], [1, 3, 6, 0])
    np.testing.assert_array_equal(backward[0, :, 0], [6, 5, 3, 0])
    processed = total.apply({}, x, seq_lengths=lengths, reverse=True)
    np.testing.assert_array_equal(processed[0, :, 0], [3, 5, 6, 0])


@pytest.mark.parametrize('mask', [None, *MASKS])
@pytest.mark.parametrize('masked_output', ['zero', 'hold'])
def test_B05_the_two_orders_are_each_other_flipped_over_real_steps(mask, masked_output):
    """And reverse is a forward run over inputs that were flipped so."""
    layer, variables, x = started('lstm', masked_output=masked_output)
    flags = None if mask is None else MASKS[mask]
    run = functools.partial(layer.apply, variables, mask=flags, return_carry=True)
    carry, processed = run(x, reverse=True)
    same_carry, kept = run(x, reverse=True, keep_order=True)
    flipped = np.asarray(flip(x, flags))
    forward = run(flipped)
    assert_same((carry, processed), forward)
    assert_same(same_carry, carry)
    assert_same(flip(kept, flags), processed)
    assert np.abs(np.asarray(kept) - np.asarray(run(x)[1])).max() > 0.1  # reverse does something


@pytest.mark.parametrize(
    ('given', 'options'),
    [
        ('nothing', {}),
        ('nothing', {'reverse': True}),
        ('lengths', {'reverse': True}),
        ('mask', {'reverse': True, 'keep_order': True}),
        ('resets', {'reverse': True, 'keep_order': True}),
    ],
)
def test_M14_time_major_is_the_transpose(given, options):
    """In all of reverse, order, lengths, masks and resets, which stay [B] and [B, T]; by field and by call."""
    layer, variables, x = started('lstm')
    extra = {
        'nothing': {},
        'lengths': {'seq_lengths': np.array([3, 6, 0, 1])},
        'mask': {'mask': MASKS['holes']},
        'resets': {'resets': MASKS['holes']},
    }[given]
    carry, outputs = layer.apply(variables, x, return_carry=True, **extra, **options)
    turned = x.swapaxes(0, 1)
    for time_major, call in ((rnn.RNN(CELLS['lstm'], time_major=True), {}), (layer, {'time_major': True})):
        same, transposed = time_major.apply(variables, turned, return_carry=True, **extra, **options, **call)
        assert transposed.shape == (T, B, H)
        assert_same((same, transposed.swapaxes(0, 1)), (carry, outputs))
        last = time_major.apply(variables, turned, return_sequences=False, **extra, **options, **call)
        assert_same(last, layer.apply(variables, x, return_sequences=False, **extra, **options))
