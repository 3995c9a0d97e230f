"""Every backend is held to the plain recurrence, and that to a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from seqjax import lstm_ops
from seqjax.lstm_ops import lstm

FAST = sorted(set(lstm_ops.BACKENDS) - {'plain'})


def problem(key, count, rows, features, hidden, dtype=jnp.float32):
    """Arguments of `lstm`: inputs, carry, weights, and another carry."""
    shapes = {
        'inputs': (count, rows, features),
        'c': (rows, hidden),
        'h': (rows, hidden),
        'kernel': (features, 4 * hidden),
        'recurrent_kernel': (hidden, 4 * hidden),
        'bias': (4 * hidden,),
        'fresh_c': (rows, hidden),
        'fresh_h': (rows, hidden),
    }
    keys = jax.random.split(key, len(shapes))
    x = {name: jax.random.normal(key, shape, dtype) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
    x['kernel'] /= max(features, 1) ** 0.5
    x['recurrent_kernel'] /= hidden**0.5
    return x


def call(x, **options):
    fresh = (x['fresh_c'], x['fresh_h']) if options.get('resets') is not None else None
    return lstm(
        x['inputs'], (x['c'], x['h']), x['kernel'], x['recurrent_kernel'], x['bias'], fresh=fresh, **options
    )


def values_and_gradients(x, **options):
    """All that a backend gives, and the gradients of a random weighing of all that to all that it is given."""

    def loss(x):
        run = call(x, **options)
        leaves = jax.tree.leaves(run)
        weighings = (jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape) for y in leaves)
        return sum((y.astype(jnp.float32) * w).sum() for y, w in zip(leaves, weighings, strict=True)), run

    (_, run), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
    return run, gradients


def assert_near(got, want, tolerance):
    """Each array to a share of its largest number."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, path
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(initial=0), 1e-3), err_msg=str(path))


def options_of(seed, count, rows):
    """What a seed says: lengths, a mask with holes, resets, the order, the history."""
    rng = np.random.default_rng(seed)
    return {
        'seq_lengths': jnp.asarray(rng.integers(0, count + 1, rows)) if rng.random() < 0.5 else None,
        'mask': jnp.asarray(rng.random((count, rows)) < 0.7) if rng.random() < 0.5 else None,
        'resets': jnp.asarray(rng.random((count, rows)) < 0.2) if rng.random() < 0.5 else None,
        'reverse': bool(rng.random() < 0.5),
        'history': bool(rng.random() < 0.5),
    }


SHAPES = [(1, 1, 1, 1), (2, 3, 1, 4), (16, 2, 3, 5), (17, 4, 12, 3), (33, 1, 2, 8), (70, 3, 9, 6)]


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('seed', range(12))
def test_a_backend_equals_the_plain_recurrence(backend, seed):
    shape = SHAPES[seed % len(SHAPES)]
    x, options = problem(jax.random.key(seed), *shape), options_of(seed, *shape[:2])
    want = values_and_gradients(x, backend='plain', **options)
    assert_near(values_and_gradients(x, backend=backend, **options), want, 1e-5)


def test_spread():
    pass
