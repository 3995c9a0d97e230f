"""Cells, RNN and Bidirectional, with all gradients, against Flax."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import rnn as nn_rnn
from seqjax.nn.wrappers import Bidirectional
from tests.helpers import reference
from tests.helpers.oracles import (
    F32,
    F64,
    LENGTHS,
    VALID,
    B,
    F,
    H,
    T,
    apply,
    assert_same,
    differentiated,
    draw,
    draw_weights,
)

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


def flax_run(layer, valid, carry=True):
    """Outputs, of real steps alone where there are lengths, and the final carry."""

    def run(args, lengths):
        results = layer.apply(
            args['weights'], args['inputs'], initial_carry=args['carry'], seq_lengths=lengths, return_carry=carry
        )
        last, outputs = results if carry else ((), results)
        if lengths is not None:
            outputs = jnp.where(valid.reshape(valid.shape + (1,) * (outputs.ndim - valid.ndim)), outputs, 0)
        return {'outputs': outputs, 'carry': last}

    return differentiated(run)


def compare_flax(ours, theirs, inputs, lengths, valid, carry=True):
    """The same variables in both; from a random initial carry."""
    args = {'weights': draw_weights(theirs, inputs), 'inputs': inputs}
    shapes, tree = jax.tree.flatten(jax.eval_shape(lambda: theirs.apply(args['weights'], inputs, return_carry=True)[0]))
    args['carry'] = tree.unflatten([draw(*x.shape, seed=30 + i) / 2 for i, x in enumerate(shapes)])
    got = flax_run(ours, valid, carry)(args, lengths=lengths)
    with jax.numpy_rank_promotion('allow'):
        want = flax_run(theirs, valid, carry)(args, lengths=lengths)
    assert_same(got, want, 1e-10)


@pytest.mark.representative(1)
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
    ours, theirs = (rnn(FLAX_CELLS[name](param_dtype=F64), **options) for rnn in (nn_rnn.RNN, nn.RNN))
    compare_flax(ours, theirs, inputs, LENGTHS, VALID.T if time_major else VALID)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('time_major', [False, True])
def test_bidirectional_and_all_gradients_equal_flax(x64, time_major):
    """With lengths, side by side; and, time first, merged by a function."""
    inputs = draw(B, T, F, seed=2)
    inputs = np.swapaxes(inputs, 0, 1) if time_major else inputs
    options = {'time_major': time_major}
    merge = {'merge_mode': jnp.subtract}, {'merge_fn': jnp.subtract}
    cells = [nn.GRUCell(H, param_dtype=F64), nn.SimpleCell(H, param_dtype=F64)]
    ours = Bidirectional(*map(nn_rnn.RNN, cells), **options, **(merge[0] if time_major else {}))
    theirs = nn.Bidirectional(*map(nn.RNN, cells), **options, **(merge[1] if time_major else {}))
    compare_flax(ours, theirs, inputs, LENGTHS, VALID.T if time_major else VALID)


@pytest.mark.parametrize(
    ('order', 'time_major', 'lengths'),
    [('forward', False, False), ('reverse', True, False), ('reverse', False, True), ('kept', True, True)],
)
def test_several_batch_axes_equal_flax(x64, order, time_major, lengths):
    """Inputs [2, 2, T, F] or [T, 2, 2, F]. With lengths, Flax takes one batch axis alone for the final carry."""
    inputs, valid, lengths = (
        draw(2, 2, T, F, seed=2),
        VALID.reshape(2, 2, T),
        LENGTHS.reshape(2, 2) if lengths else None,
    )
    if time_major:
        inputs, valid = np.moveaxis(inputs, 2, 0), np.moveaxis(valid, 2, 0)
    options = {**ORDERS[order], 'time_major': time_major}
    ours, theirs = (rnn(nn.SimpleCell(H, param_dtype=F64), **options) for rnn in (nn_rnn.RNN, nn.RNN))
    compare_flax(ours, theirs, inputs, lengths, valid, carry=lengths is None)


@pytest.mark.parametrize('directions', [1, 2])
def test_a_random_initial_carry_is_that_of_flax(directions):
    """Drawn from `init_key` as Flax draws it, and in two directions for each anew."""
    inputs, key = draw(B, T, F, seed=2, dtype=F32), jax.random.key(5)
    cells = [nn.SimpleCell(H, carry_init=nn.initializers.normal(1)) for _ in range(directions)]
    ours, theirs = list(map(nn_rnn.RNN, cells)), list(map(nn.RNN, cells))
    ours, theirs = (ours[0], theirs[0]) if directions == 1 else (Bidirectional(*ours), nn.Bidirectional(*theirs))
    weights = draw_weights(theirs, inputs)
    got, want = (apply(layer, weights, inputs, init_key=key) for layer in (ours, theirs))
    reference.assert_close(got, want, 1e-5)
    assert np.abs(got - apply(ours, weights, inputs)).max() > 1e-3
