"""Masks with holes, resets and both directions against NumPy loops, with all gradients."""

import functools

import jax
import numpy as np
import pytest

from seqjax.nn import rnn
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.nn.wrappers import Bidirectional
from tests.helpers import reference
from tests.helpers.oracles import (
    CELLS,
    F64,
    MASKS,
    B,
    H,
    T,
    apply,
    assert_same,
    cotangents,
    differentiated,
    draw,
    draw_args,
)

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
                carry = args['reset_carry']
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
    layer = rnn.RNN(cell, reverse=reverse, keep_order=True, return_carry=True, learn_initial_carry=True)
    names = ('initial_carry_c', 'initial_carry_h') if kind == 'lstm' else ('initial_carry_h',)

    def run(args, mask, resets):
        params = {'cell': args['weights'], **dict(zip(names, args['reset_carry'], strict=True))}
        carry, outputs = layer.apply(
            {'params': params}, args['inputs'], initial_carry=args['carry'], mask=mask, resets=resets
        )
        return {'outputs': outputs, 'carry': tuple(carry)}

    return differentiated(run)


def walk_args(kind):
    args = draw_args(kind)
    args['carry'] = tuple(args['carry'])
    args['reset_carry'] = tuple(draw(H, seed=20 + i) / 2 for i in range(len(args['carry'])))
    return {**args, 'weights': args['weights']['params']['cell']}


WHOLE, NO_RESETS = np.ones((B, T), bool), np.zeros((B, T), bool)
# At real and at masked steps of MASKS['holes'], at the first and the last step, at neighbours, and in a row of padding.
RESETS = np.array([[0, 0, 1, 1, 0, 1], [0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]], bool)


@pytest.mark.representative(by=lambda kind, reverse, mask, resets: [kind, reverse, (id(mask), id(resets))])
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
    zeros = {**args, 'reset_carry': tuple(np.zeros_like(part) for part in args['reset_carry'])}
    other = jax.tree.map(lambda x: 0.7 * x, {'weights': args['weights'], 'carry': args['carry']})
    other = {**zeros, **other}
    forward, backward = walk(kind, zeros, holes, resets, False), walk(kind, other, holes, resets, True)

    layer = Bidirectional(*(rnn.RNN(CELLS[kind](H, param_dtype=F64)) for _ in range(2)), return_carry=True)
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
    layer = rnn.RNN(LSTMCell(H, param_dtype=F64), reverse=reverse, keep_order=True, return_carry=True)
    options['initial_carry'] = args['carry']
    carry, outputs = apply(layer, args['weights'], args['inputs'], **options)
    history, _ = apply(layer, args['weights'], args['inputs'], carry_history=True, **options)
    visited = history.h[:, :0:-1] if reverse else history.h[:, 1:]
    np.testing.assert_array_equal(np.where(MASKS['holes'][..., None], visited, 0), outputs)
    for name in ('c', 'h'):
        np.testing.assert_array_equal(getattr(history, name)[:, 0], getattr(args['carry'], name))
        np.testing.assert_allclose(getattr(history, name)[:, -1], getattr(carry, name), rtol=1e-10, err_msg=name)
