"""Independent references in float64 NumPy, written by hand, and comparisons with them.

They use neither the library nor automatic differentiation. Axes are named as in `seqjax`.
"""

import jax
import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# name -> (function, derivative, points where it is not differentiable)
ACTIVATIONS = {
    'sigmoid': (sigmoid, lambda x: sigmoid(x) * (1 - sigmoid(x)), ()),
    'hard_sigmoid': (
        lambda x: np.minimum(np.maximum(x / 6 + 0.5, 0), 1),
        lambda x: np.where(np.abs(x) < 3, 1 / 6, 0),
        (-3, 3),
    ),
    'keras2_hard_sigmoid': (
        lambda x: np.minimum(np.maximum(0.2 * x + 0.5, 0), 1),
        lambda x: np.where(np.abs(x) < 2.5, 0.2, 0),
        (-2.5, 2.5),
    ),
}


def lstm(inputs, c, h, kernel, recurrent_kernel, bias, activation='sigmoid'):
    """inputs [B, T, F], c and h [B, H] -> outputs [B, T, H], (c, h), and a tape for `lstm_backward`."""
    act, units = ACTIVATIONS[activation][0], h.shape[1]
    outputs, steps = [], []
    for t in range(inputs.shape[1]):
        z = inputs[:, t] @ kernel + h @ recurrent_kernel + bias
        zi, zf, zg, zo = (z[:, n * units : (n + 1) * units] for n in range(4))
        new_c = act(zf) * c + act(zi) * np.tanh(zg)
        new_h = act(zo) * np.tanh(new_c)
        steps.append((z, c, h, new_c))
        c, h = new_c, new_h
        outputs.append(h)
    return np.stack(outputs, 1), (c, h), (inputs, kernel, recurrent_kernel, activation, steps)


def preactivations(tape):
    """Returns the pre-activations of the gates i, f, o at every step."""
    z = np.stack([step[0] for step in tape[-1]])
    i, f, _, o = np.split(z, 4, axis=-1)
    return np.stack([i, f, o])


def lstm_backward(tape, d_outputs, d_c, d_h):
    """Backpropagates from the last step to the first; returns gradients by name from those of the results of `lstm`."""
    inputs, kernel, recurrent_kernel, activation, steps = tape
    act, slope, _ = ACTIVATIONS[activation]
    grads = {
        'inputs': np.zeros_like(inputs),
        'kernel': np.zeros_like(kernel),
        'recurrent_kernel': np.zeros_like(recurrent_kernel),
        'bias': np.zeros(kernel.shape[1]),
    }
    for t in reversed(range(len(steps))):
        z, c, h, new_c = steps[t]
        zi, zf, zg, zo = np.split(z, 4, axis=1)
        d_h = d_h + d_outputs[:, t]
        squashed = np.tanh(new_c)
        d_new_c = d_c + d_h * act(zo) * (1 - squashed**2)
        d_z = np.concatenate(
            [
                d_new_c * np.tanh(zg) * slope(zi),
                d_new_c * c * slope(zf),
                d_new_c * act(zi) * (1 - np.tanh(zg) ** 2),
                d_h * squashed * slope(zo),
            ],
            axis=1,
        )
        grads['inputs'][:, t] = d_z @ kernel.T
        grads['kernel'] += inputs[:, t].T @ d_z
        grads['recurrent_kernel'] += h.T @ d_z
        grads['bias'] += d_z.sum(0)
        d_c, d_h = d_new_c * act(zf), d_z @ recurrent_kernel.T
    return {**grads, 'c': d_c, 'h': d_h}


def adam(param, grads, learning_rate, epsilon, b1=0.9, b2=0.999):
    """Returns the parameter after each of `grads`, by Keras's formula: epsilon added before the bias correction."""
    m = v = np.zeros_like(param)
    path = []
    for t, grad in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * grad
        v = b2 * v + (1 - b2) * grad**2
        rate = learning_rate * np.sqrt(1 - b2**t) / (1 - b1**t)
        param = param - rate * m / (np.sqrt(v) + epsilon)
        path.append(param)
    return np.stack(path)


def random_variables(module, *args, seed=1):
    """Draws variables of a Flax module without its initializers: all numbers are distinct, including biases."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(module.init, jax.random.key(0), *args))
    rng = np.random.default_rng(seed)
    return tree.unflatten([rng.normal(size=leaf.shape).astype(leaf.dtype) for leaf in leaves])


def is_uniform(draws, bound):
    """Returns True if draws are uniform on -bound .. bound, by their maximum, mean, second and fourth moment."""
    x = np.asarray(draws, np.float64) / bound
    moments = np.abs([x.mean(), (x**2).mean() * 3 - 1, (x**4).mean() * 5 - 1])
    noise = 4 / np.sqrt(x.size)  # at least four standard errors
    return bool(0.98 < np.abs(x).max() <= 1 + 1e-6 and (moments < noise).all())


def assert_close(got, want, rtol, name=''):
    """Asserts equality of each element to `rtol`, or to a tenth of `rtol` of the largest, as sums near 0 cancel."""
    want = np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol / 10 * np.abs(want).max(), err_msg=name)


def assert_trees_equal(got, want):
    """Asserts bitwise equality of structure, types and values."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for path, x in jax.tree_util.tree_leaves_with_path(got):
        y = dict(jax.tree_util.tree_leaves_with_path(want))[path]
        assert x.dtype == y.dtype, jax.tree_util.keystr(path)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


def assert_near(got, want, tolerance):
    """Asserts equality of each array to a fraction of its largest number."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, path
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all() and np.isfinite(b).all(), path
        atol = tolerance * max(np.abs(b).max(initial=0), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=str(path))
