"""Forward mode through every backend, and with reverse mode in any order: the numbers of the plain recurrence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import rnn
from seqjax.nn.cells.gru_cell import GRUCell
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.nn.wrappers import Bidirectional
from seqjax.ops import gru, lstm
from tests.helpers import backends
from tests.helpers.reference import assert_close, assert_near

T, B, F, H = 3, 2, 2, 3


def arrays(gates, state):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape) / 2)

    return {
        'inputs': draw(T, B, F),
        'state': draw(state, B, H),
        'reset_carry': draw(state, B, H),
        'weights': (draw(F, gates * H), draw(H, gates * H), *(draw(gates * H) for _ in range(1 if gates == 4 else 2))),
    }


def run(x, backend):
    """All outputs, in a row; every mask and option in use."""
    how = {'mask': jnp.array([[1, 1], [0, 1], [1, 1]]), 'resets': jnp.array([[0, 0], [0, 1], [0, 0]]), 'reverse': True}
    if len(x['state']) == 2:
        got = lstm.lstm(
            x['inputs'],
            tuple(x['state']),
            *x['weights'],
            reset_carry=tuple(x['reset_carry']),
            history=True,
            backend=backend,
            **how,
        )
    else:
        got = gru.gru(
            x['inputs'], x['state'][0], *x['weights'], reset_carry=x['reset_carry'][0], backend=backend, **how
        )
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(got)])


def total(x, backend):
    return jnp.sin(run(x, backend)).sum()


def tangents_of(x):
    return jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), x)


def rows(x):
    return jnp.stack([x, 2 * x])


TRANSFORMS = {
    'jvp': lambda f, x, t: jax.jvp(f, (x,), (t,)),
    'jvp of jit': lambda f, x, t: jax.jvp(jax.jit(f), (x,), (t,)),
    'linearize': lambda f, x, t: jax.linearize(f, x)[1](t),
    'jvp of remat': lambda f, x, t: jax.jvp(jax.checkpoint(f), (x,), (t,)),
    'vmap of jvp': lambda f, x, t: jax.vmap(lambda t: jax.jvp(f, (x,), (t,))[1])(jax.tree.map(rows, t)),
    'jvp of vmap': lambda f, x, t: jax.jvp(
        lambda inputs: jax.vmap(lambda inputs: f(x | {'inputs': inputs}))(inputs),
        (rows(x['inputs']),),
        (rows(t['inputs']),),
    ),
    'grad': lambda f, x, t: jax.grad(f)(x),
    'grad of vmap': lambda f, x, t: jax.grad(
        lambda x: jax.vmap(lambda inputs: f(x | {'inputs': inputs}))(rows(x['inputs'])).sum()
    )(x),
    'jvp of grad': lambda f, x, t: jax.jvp(jax.grad(f), (x,), (t,)),
    'grad of jvp': lambda f, x, t: jax.grad(lambda x: jax.jvp(f, (x,), (t,))[1])(x),
}


@functools.cache
def transformed(gates, backend, transform):
    x = arrays(gates, gates - 2)
    return jax.jit(lambda x, t: TRANSFORMS[transform](lambda x: total(x, backend), x, t))(x, tangents_of(x))


@pytest.mark.representative(every=3)
@pytest.mark.parametrize(
    ('gates', 'backend', 'transform'),
    [
        *((gates, 'rows', transform) for gates in (4, 3) for transform in TRANSFORMS),
        *(
            (4, name, how)
            for name in backends.available(('columns', 'native'))
            for how in ('jvp of jit', 'grad of vmap')
        ),
    ],
)
def test_a_transformed_backend_equals_the_transformed_plain_recurrence(x64, gates, backend, transform):
    assert_near(transformed(gates, backend, transform), transformed(gates, 'plain', transform), 1e-10)


def test_tangents_are_differences(x64):
    """By hand: (f(x + e t) - f(x - e t)) / 2 e."""
    x = arrays(4, 2)
    t = tangents_of(x)
    f = jax.jit(lambda x: run(x, 'rows'))
    above, below = (f(jax.tree.map(lambda a, b, e=e: a + e * b, x, t)) for e in (1e-6, -1e-6))
    assert_close(jax.jit(lambda x, t: jax.jvp(f, (x,), (t,))[1])(x, t), (above - below) / 2e-6, 1e-6)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(
    ('layer', 'steps'),
    [
        (rnn.RNN(LSTMCell(6)), 12),
        (rnn.RNN(GRUCell(40), remat_segments=2), 5),
        (Bidirectional(rnn.RNN(GRUCell(33)), rnn.RNN(LSTMCell(6))), 9),
    ],
)
def test_layers_have_forward_mode_at_any_size(layer, steps):
    """The derivative along t is the gradient times t."""
    x = jax.random.normal(jax.random.key(1), (3, steps, 4))
    v = layer.init(jax.random.key(0), x)
    t = tangents_of(v)

    def loss(v):
        return (layer.apply(v, x) ** 2).sum()

    gradient, (_, slope) = jax.jit(lambda v, t: (jax.grad(loss)(v), jax.jvp(loss, (v,), (t,))))(v, t)
    products = jax.tree.map(lambda g, t: (g * t).sum(), gradient, t)
    assert_close(slope, sum(jax.tree.leaves(products)), 1e-4)
