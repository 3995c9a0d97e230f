"""Masks of RNN, in values and gradients."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import rnn
from seqjax.nn.cells.lstm_cell import LSTMCell
from tests.helpers import reference
from tests.helpers.layers import (
    CELLS,
    MASKS,
    PADDINGS,
    B,
    F,
    H,
    T,
    assert_equal,
    assert_same,
    draw,
    everything,
    flip,
    own_carry,
    started,
)


def row_by_row(layer, variables, x, mask, first, reverse):
    """Each row's real steps alone: the carry, and outputs put back in their places."""
    width = jax.eval_shape(layer.apply, variables, x).shape[-1]
    outputs, carries = np.zeros((B, T, width), np.float32), []
    run = jax.jit(functools.partial(layer.apply, return_carry=True, reverse=reverse, keep_order=True))
    for row in range(B):
        carry = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], first)
        if mask[row].any():
            carry, y = run(variables, x[row : row + 1, mask[row]], initial_carry=carry)
            outputs[row, mask[row]] = y[0]
        carries.append(carry)
    return outputs, jax.tree.map(lambda *parts: jnp.concatenate(parts), *carries)


@pytest.mark.representative(every=7)
@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize(('name', 'mask'), [('lstm', 'right'), ('lstm', 'left'), *((name, 'holes') for name in CELLS)])
def test_L09_a_mask_of_any_form_is_each_rows_real_steps_alone(name, mask, reverse):
    """Right, left, with holes, and rows without a real step: outputs, and the carry of the last step."""
    layer, variables, x = started(name)
    flags = MASKS[mask]
    leaves, structure = jax.tree.flatten(own_carry(name))
    first = structure.unflatten([draw(*leaf.shape, seed=n) for n, leaf in enumerate(leaves)])
    want = row_by_row(layer, variables, x, flags, first, reverse)
    options = {'initial_carry': first, 'return_carry': True, 'reverse': reverse}
    carry, outputs = layer.apply(variables, x, mask=flags, keep_order=True, **options)
    assert_same((outputs, carry), want, 1e-5)
    np.testing.assert_array_equal(np.asarray(outputs)[~flags], 0)
    assert_equal(jax.tree.map(lambda leaf: leaf[2], carry), jax.tree.map(lambda leaf: leaf[2], first))


@pytest.mark.representative(every=6, first=2)
@pytest.mark.parametrize(
    ('name', 'mask', 'masked_output', 'reverse'),
    [
        ('lstm', 'right', 'zero', False),
        ('lstm', 'left', 'zero', True),
        ('lstm', 'holes', 'hold', True),
        ('gru', 'holes', 'zero', True),
        ('gru', 'right', 'hold', True),
        ('relu', 'holes', 'hold', False),
        *((name, 'holes', ('zero', 'hold')[n % 2], n % 3 > 0) for n, name in enumerate(CELLS)),
    ],
)
def test_padding_changes_no_value_and_no_gradient(name, mask, masked_output, reverse):
    """Bit for bit, be it 1e30, NaN or infinite; what is masked gets a gradient of 0; all are finite."""
    layer, variables, x = started(name, masked_output=masked_output)
    flags = MASKS[mask]
    step = jax.jit(jax.value_and_grad(functools.partial(everything, layer, mask=flags, reverse=reverse), (0, 1)))
    want = step(variables, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(want))
    np.testing.assert_array_equal(np.asarray(want[1][1])[~flags], 0)
    assert (np.abs(np.asarray(want[1][1])[flags]).max(-1) > 0).all()
    for padding in PADDINGS:
        assert_equal(step(variables, np.where(flags[..., None], x, np.float32(padding))), want)


@pytest.mark.representative(every=6, first=4)
@pytest.mark.parametrize(
    ('name', 'how', 'given'),
    [('lstm', 'lengths', True), *((name, 'mask', n % 2 == 0) for n, name in enumerate(CELLS))],
)
def test_a_batch_without_a_real_step_hands_its_carry_on(name, how, given):
    """Length 0 and a mask of False: outputs 0, the initial carry as it was, gradients 0 for weights and inputs."""
    layer, variables, _ = started(name)
    x = np.full((B, T, F), np.nan, np.float32)
    first = jax.tree.map(lambda leaf: jnp.asarray(draw(*leaf.shape, seed=2)) if given else leaf, own_carry(name))
    options = {'seq_lengths': np.zeros(B, int)} if how == 'lengths' else {'mask': np.zeros((B, T), bool)}

    @jax.jit
    def run(variables, x, first):
        whole = functools.partial(layer.apply, variables, x, initial_carry=first if given else None, **options)
        grads = jax.grad(functools.partial(everything, layer, **options), (0, 1))(variables, x, first)
        return *whole(return_carry=True), whole(return_sequences=False, reverse=True), grads

    carry, outputs, summary, grads = run(variables, x, first)
    np.testing.assert_array_equal(outputs, np.zeros((B, T, outputs.shape[-1])))
    assert_equal(carry, first)
    np.testing.assert_array_equal(summary, outputs[:, 0])
    for grad in jax.tree.leaves(grads):
        np.testing.assert_array_equal(grad, np.zeros(grad.shape))


class Doubled(LSTMCell):
    """A cell whose output is not its state."""

    @nn.compact
    def __call__(self, carry, inputs):
        carry, h = super().__call__(carry, inputs)
        return carry, 2 * h


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('unroll', [1, T])
def test_M07_what_is_held_is_the_last_output(unroll, reverse):
    """Not the state: output = 2 h. Rolled and unrolled loops agree."""
    layer, variables, x = started('lstm')
    doubled = rnn.RNN(Doubled(H), unroll=unroll, masked_output='hold', reverse=reverse)
    flags = MASKS['holes']
    plain = layer.apply(variables, x, mask=flags, reverse=reverse)
    got, want = np.asarray(doubled.apply(variables, x, mask=flags)), 2 * np.asarray(plain)
    for row, step in itertools.product(range(B), range(T)):
        before = [t for t in range(step + 1) if flags[row, t]]
        reference.assert_close(got[row, step], want[row, before[-1]] if before else np.zeros(H), 1e-6)


def test_hold_in_the_order_of_the_inputs_keeps_what_masked_steps_hold():
    """With reverse, keep_order flips the real steps alone: what masked ones hold is the same in both orders."""
    layer, variables, x = started('gru')
    flags = MASKS['holes']
    run = functools.partial(layer.apply, variables, x, mask=flags, reverse=True, masked_output='hold')
    processed, kept = run(keep_order=False), run(keep_order=True)
    assert_same(flip(kept, flags), processed)
    np.testing.assert_array_equal(np.asarray(kept)[~flags], np.asarray(processed)[~flags])


def test_M09_an_accelerator_gives_the_same_numbers():
    """Right, left and with holes: within 1e-5 of the CPU, with float32 products."""
    devices = [device for device in jax.devices() if device.platform != 'cpu']
    if not devices:
        pytest.skip('there is no accelerator here')
    layer, variables, x = started('lstm')
    with jax.default_matmul_precision('float32'):
        for flags in MASKS.values():
            runs = []
            for device in (jax.devices('cpu')[0], devices[0]):
                with jax.default_device(device):
                    runs.append(jax.device_get(layer.apply(variables, x, mask=flags, return_carry=True)))
            assert_same(*runs, 1e-5)
