"""Masked elements change nothing, and means of parts are the mean of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.losses import squared_error
from seqjax.task import Mean
from tests import reference

SHAPES = [((4,), 1), ((4, 3), 1), ((4, 3), 2), ((4, 3, 2), 1), ((4, 3, 2), 2), ((4, 3, 2), 3)]


def draw(shape, mask_ndim, seed=0):
    rng = np.random.default_rng(seed)
    outputs, targets = rng.normal(size=(2, *shape)).astype(np.float32)
    mask = rng.random(shape[:mask_ndim]) < 0.6
    mask.flat[0], mask.flat[1] = True, False
    return outputs, targets, mask


def loss(outputs, targets, mask):
    return squared_error(outputs, targets, mask).compute()


@pytest.mark.parametrize(('shape', 'mask_ndim'), SHAPES)
def test_squared_error_equals_a_loop_over_the_counted_elements(shape, mask_ndim):
    """Total, count, mean and gradient, for masks of every rank up to that of the outputs."""
    outputs, targets, mask = draw(shape, mask_ndim)
    total, count, grads = 0.0, 0, np.zeros(shape)
    for index in np.ndindex(shape):
        if mask[index[:mask_ndim]]:
            error = float(outputs[index]) - float(targets[index])
            total, count = total + error**2, count + 1
            grads[index] = 2 * error
    got = squared_error(outputs, targets, mask)
    reference.assert_close(got.total, total, 1e-5)
    assert got.count == count
    reference.assert_close(got.compute(), total / count, 1e-5)
    reference.assert_close(jax.grad(loss)(outputs, targets, mask), grads / count, 1e-5)


def test_E01_the_mean_is_over_counted_elements():
    """Squared errors 1, 3 and 2 are counted of [[1, 3, 99], [2, 98, 97]]: 2.0, not 1.0 (divided by all)."""
    targets = np.sqrt(np.array([[1, 3, 99], [2, 98, 97]], np.float32))
    mask = np.array([[1, 1, 0], [1, 0, 0]], bool)
    np.testing.assert_allclose(loss(np.zeros_like(targets), targets, mask), 2.0, rtol=1e-6)


@pytest.mark.parametrize(('shape', 'mask_ndim'), [((4, 3), 2), ((4, 3, 2), 2), ((4, 3, 2), 1)])
def test_padding_changes_neither_value_nor_gradient(shape, mask_ndim):
    """Bit for bit, whatever stands in the outputs, in the targets or in both."""
    outputs, targets, mask = draw(shape, mask_ndim)
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    want = step(outputs, targets, mask)
    assert (np.asarray(want[1][0])[~mask] == 0).all()
    for padding in (np.nan, np.inf, -np.inf, 1e30):
        spoilt_outputs, spoilt_targets = outputs.copy(), targets.copy()
        spoilt_outputs[~mask] = padding
        spoilt_targets[~mask] = padding
        spoilt = (spoilt_outputs, targets), (outputs, spoilt_targets), (spoilt_outputs, spoilt_targets)
        for args in spoilt:
            reference.assert_trees_equal(step(*args, mask), want)


@pytest.mark.parametrize('content', [1.5, np.nan, np.inf])
def test_E07_nothing_counted_is_loss_0_with_gradient_0(content):
    """Finite zeros, not 0/0, also where everything that is not counted is NaN."""
    outputs, targets = np.full((2, 3), content, np.float32), np.zeros((2, 3), np.float32)
    mask = np.zeros((2, 3), bool)
    value, grads = jax.value_and_grad(loss, argnums=(0, 1))(outputs, targets, mask)
    assert value == 0
    for grad in grads:
        np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize(
    ('outputs', 'targets', 'mask', 'named'),
    [
        ((4, 3), (4, 1), (4,), ('(4, 3)', '(4, 1)')),
        ((4, 3), (3,), (4,), ('(4, 3)', '(3,)')),
        ((4, 3, 1), (4, 3), (4, 3), ('(4, 3, 1)', '(4, 3)')),
        ((4, 3), (4, 3), (3,), ('(3,)', '(4, 3)')),
        ((4, 3), (4, 3), (4, 1), ('(4, 1)', '(4, 3)')),
        ((4, 3), (4, 3), (4, 3, 1), ('(4, 3, 1)', '(4, 3)')),
        ((4, 3), (4, 3), (1, 4, 3), ('(1, 4, 3)', '(4, 3)')),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(outputs, targets, mask, named):
    """Nothing is broadcast; the message names both shapes."""
    with pytest.raises(ValueError, match='must') as error:
        squared_error(jnp.ones(outputs), jnp.ones(targets), jnp.ones(mask, bool))
    assert all(shape in str(error.value) for shape in named)


def test_E05_means_of_parts_merge_into_the_mean_of_the_whole():
    """Four batches of 2 equal one of 8, though they count different numbers of elements."""
    outputs, targets, mask = draw((8, 5, 3), 2)
    whole = squared_error(outputs, targets, mask)
    parts = [squared_error(*(x[n : n + 2] for x in (outputs, targets, mask))) for n in range(0, 8, 2)]
    assert len({float(part.count) for part in parts}) > 1
    merged = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3]))
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.compute(), whole.compute(), rtol=1e-6)
    mean_of_means = np.mean([part.compute() for part in parts])
    assert abs(mean_of_means / whole.compute() - 1) > 1e-3  # what a Mean is there to avoid


def test_mean_computes_under_jit_grad_and_vmap():
    """total / count, with gradient 1 / count for the total; both 0 where the count is."""
    total, count = np.array([3.5, 7.25, -2.0], np.float32), np.array([2.0, 5.0, 0.0], np.float32)

    def compute(total, count):
        return Mean(total, count).compute()

    got, slopes = jax.jit(jax.vmap(jax.value_and_grad(compute)))(total, count)
    np.testing.assert_allclose(got, [1.75, 1.45, 0], rtol=1e-6)
    np.testing.assert_allclose(slopes, [0.5, 0.2, 0], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(compute)(np.float32('nan'), np.float32(0)), 0)
