"""Masked elements change nothing, and means of parts are the mean of the whole."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import losses
from seqjax.types import Mean
from tests.helpers import reference

SHAPES = [((4,), 1), ((4, 3), 1), ((4, 3), 2), ((4, 3, 2), 1), ((4, 3, 2), 2), ((4, 3, 2), 3)]


def draw(shape, mask_ndim, seed=0):
    rng = np.random.default_rng(seed)
    outputs, targets = rng.normal(size=(2, *shape)).astype(np.float32)
    mask = rng.random(shape[:mask_ndim]) < 0.6
    mask.flat[0], mask.flat[1] = True, False
    return outputs, targets, mask


def loss(outputs, targets, mask):
    return losses.squared_error(outputs, targets, mask).compute()


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
    got = losses.squared_error(outputs, targets, mask)
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
        losses.squared_error(jnp.ones(outputs), jnp.ones(targets), jnp.ones(mask, bool))
    assert all(shape in str(error.value) for shape in named)


def test_E05_means_of_parts_merge_into_the_mean_of_the_whole():
    """Four batches of 2 equal one of 8, though they count different numbers of elements."""
    outputs, targets, mask = draw((8, 5, 3), 2)
    whole = losses.squared_error(outputs, targets, mask)
    parts = [losses.squared_error(*(x[n : n + 2] for x in (outputs, targets, mask))) for n in range(0, 8, 2)]
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


# --- classes and bits ------------------------------------------------------------------------------

V = 5
PADDING = (np.nan, np.inf, -np.inf, 1e30)


def softmax_case(shape=(4, 6), seed=0):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(*shape, V)).astype(np.float32)
    labels, mask = rng.integers(0, V, shape), rng.random(shape) < 0.6
    mask.flat[0], mask.flat[1] = True, False
    return logits, labels, mask


def bits_case(shape=(4, 6, 3), seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape[:2]) < 0.6
    mask[0, 0], mask[0, 1] = True, False
    return 2 * rng.normal(size=shape).astype(np.float32), rng.random(shape) < 0.4, mask


def log_softmax(logits):
    z = logits.astype(np.float64)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def log_sigmoid(x):
    return -np.log1p(np.exp(-x.astype(np.float64)))


def test_cross_entropy_equals_its_formula():
    """Total, count and gradient: softmax minus one-hot where a label counts, 0 elsewhere."""
    logits, labels, mask = softmax_case()
    logp = log_softmax(logits)
    want = -np.take_along_axis(logp, labels[..., None], -1)[..., 0]
    got = losses.cross_entropy(logits, labels, mask)
    reference.assert_close(got.total, want[mask].sum(), 1e-6)
    assert got.count == mask.sum()
    grads = jax.grad(lambda logits: losses.cross_entropy(logits, labels, mask).total)(logits)
    reference.assert_close(grads, np.where(mask[..., None], np.exp(logp) - np.eye(V)[labels], 0), 1e-5)


def test_frame_nll_equals_its_formula():
    """It counts frames; targets may be bool or numbers from 0 to 1."""
    logits, targets, mask = bits_case()
    want = -np.where(targets, log_sigmoid(logits), log_sigmoid(-logits))[mask].sum()
    for given in (targets, targets.astype(np.float32)):
        frames = losses.frame_nll(logits, given, mask)
        reference.assert_close(frames.total, want, 1e-5)
        assert frames.count == mask.sum()
    soft = np.full_like(logits, 0.25)
    want = -(0.25 * log_sigmoid(logits) + 0.75 * log_sigmoid(-logits))[mask].sum()
    reference.assert_close(losses.frame_nll(logits, soft, mask).total, want, 1e-5)


def test_accuracy():
    """By hand: rows with every counted label right, one wrong, wrong only where masked, and none counted."""
    labels = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]])
    answers = np.array([[0, 1, 2], [0, 1, 1], [0, 1, 1], [1, 1, 1]])
    mask = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 0, 0]], bool)
    logits = np.eye(3, dtype=np.float32)[answers]
    assert losses.accuracy(logits, labels, mask) == (7, 8)
    logits[0, 0] = np.nan  # a model that has diverged is right about nothing, though argmax of NaN is 0
    assert losses.accuracy(logits, labels, mask) == (6, 8)


@pytest.mark.parametrize('label', [-1, 5, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize('loss', [losses.cross_entropy, losses.accuracy])
def test_compiled_losses_of_what_is_no_class_are_nan(loss, label):
    """Where it counts; where it is masked it changes nothing, and of the others nothing does."""
    logits, labels = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32), np.ones((2, 3), int)
    labels[0, 2] = label
    mask, compiled = np.ones((2, 3), bool), jax.jit(loss)
    assert np.isnan(compiled(logits, labels, mask).total)
    mask[0, 2] = False
    assert compiled(logits, labels, mask) == loss(logits, labels, mask)
    with pytest.raises(ValueError, match=r'labels\[0, 2\]'):
        loss(logits, labels)


MASKED = {
    'squared_error': (losses.squared_error, lambda: draw((4, 6, 3), 2)),
    'cross_entropy': (losses.cross_entropy, softmax_case),
    'frame_nll': (losses.frame_nll, bits_case),
    'accuracy': (losses.accuracy, softmax_case),
}


def test_every_loss_is_among_those_that_are_tested():
    functions = {name: f for name, f in vars(losses).items() if inspect.isfunction(f) and not name.startswith('_')}
    assert {name for name, f in functions.items() if 'mask' in f.__annotations__} == {*MASKED}


@pytest.mark.parametrize('name', MASKED)
def test_padding_changes_no_loss_and_no_gradient(name):
    """NaN, infinite, huge outputs, and labels that are no class: bit for bit as before, gradient 0 there."""
    loss, case = MASKED[name]
    outputs, targets, mask = case()
    step = jax.jit(jax.value_and_grad(lambda outputs, targets: loss(outputs, targets, mask).compute()))
    want = step(outputs, targets)
    assert (np.asarray(want[1])[~mask] == 0).all()
    for padding in PADDING:
        spoilt = np.where(mask.reshape(mask.shape + (1,) * (outputs.ndim - 2)), outputs, np.float32(padding))
        wrong = np.where(mask.reshape(mask.shape + (1,) * (targets.ndim - 2)), targets, -1)
        jax.tree.map(np.testing.assert_array_equal, step(spoilt, wrong.astype(targets.dtype)), want)
        loss(spoilt, wrong.astype(targets.dtype), mask)  # nor is it refused


@pytest.mark.parametrize('name', MASKED)
def test_E07_all_masked_is_0_with_gradient_0(name):
    loss, case = MASKED[name]
    outputs, targets, mask = case()
    value, grads = jax.value_and_grad(lambda outputs: loss(outputs, targets, 0 * mask.astype(int)).compute())(
        np.full_like(outputs, np.nan)
    )
    assert value == 0 and (grads == 0).all()


@pytest.mark.parametrize('name', MASKED)
def test_parts_merge_into_the_whole(name):
    """Totals and counts add up, however unequal the parts; without a mask everything counts."""
    loss, case = MASKED[name]
    outputs, targets, mask = case()
    whole = loss(outputs, targets, mask)
    parts = [loss(outputs[rows], targets[rows], mask[rows]) for rows in (slice(0, 1), slice(1, 4))]
    merged = parts[0].merge(parts[1])
    reference.assert_close(merged.total, whole.total, 1e-6)
    assert merged.count == whole.count
    full, ones = loss(outputs, targets), loss(outputs, targets, np.ones_like(mask))
    assert full == ones and full.count >= whole.count


def test_bits_come_from_totals():
    """Of two parts with 3 labels at 0 nats and one at log 16."""
    parts = [Mean(jnp.float32(0), jnp.float32(3)), Mean(jnp.log(16.0), jnp.float32(1))]
    merged = parts[0].merge(parts[1])
    np.testing.assert_allclose(losses.bits_per_character(merged), 1, rtol=1e-6)
    uniform = losses.cross_entropy(np.zeros((1, 4, V), np.float32), np.zeros((1, 4), int))
    np.testing.assert_allclose(losses.bits_per_character(uniform), np.log2(V), rtol=1e-6)


def test_N03_half_precision_is_summed_in_float32():
    """Ten thousand errors of 1 in bfloat16 are 10,000, which bfloat16 has no number near."""
    outputs = jnp.ones((10_001, 1), jnp.bfloat16)
    got = losses.squared_error(outputs, jnp.zeros_like(outputs))
    assert got.total.dtype == jnp.float32 and got == (10_001, 10_001)


def test_a_label_that_is_no_class_makes_nan_where_it_cannot_be_looked_at():
    logits, labels, mask = softmax_case()
    for wrong in (V, -1):
        labels[0, 0] = wrong
        with pytest.raises(ValueError, match=rf'labels\[0, 0\].*{wrong}'):
            losses.cross_entropy(logits, labels, mask)
        assert np.isnan(jax.jit(losses.cross_entropy)(logits, labels, mask).total)


FLOATS = np.ones((2, 3, V), np.float32)
REFUSED = [
    (losses.squared_error, (FLOATS, FLOATS[:, :2]), r'outputs \(2, 3, 5\)'),
    (losses.squared_error, (FLOATS, FLOATS, np.ones((2, 4), bool)), r'mask \(2, 4\)'),
    (losses.squared_error, (FLOATS, FLOATS, np.ones((2, 3))), 'mask.*float64'),
    (losses.squared_error, (FLOATS.astype(int), FLOATS), r'outputs \(2, 3, 5\).*int32'),
    (
        losses.squared_error,
        (FLOATS[0, 0], FLOATS[0, 0], np.ones((5, 1), bool)),
        r'mask \(5, 1\)',
    ),
    (losses.cross_entropy, (FLOATS, np.ones((2, 3))), r'labels \(2, 3\).*float32'),
    (losses.cross_entropy, (FLOATS, np.ones((2, 4), int)), r'labels \(2, 4\)'),
    (losses.accuracy, (FLOATS[..., :0], np.ones((2, 3), int)), r'logits \(2, 3, 0\)'),
    (losses.frame_nll, (FLOATS[0, 0], FLOATS[0, 0]), r'logits \(5,\)'),
]


@pytest.mark.parametrize(('loss', 'args', 'message'), REFUSED)
def test_what_does_not_fit_a_loss_is_refused_by_name(loss, args, message):
    with pytest.raises(ValueError, match=message):
        loss(*args)


@pytest.mark.parametrize('dtype', [np.uint8, np.int16, np.int32])
def test_labels_of_few_bits_are_compared_with_as_many_classes_as_there_are(dtype):
    """A byte has no 256, the number of bytes."""
    logits = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    labels = np.array([0, 100, 200, 255])
    want = losses.cross_entropy(logits, labels).total
    assert np.isfinite(want) and losses.cross_entropy(logits, labels.astype(dtype)).total == want
    assert jax.jit(losses.cross_entropy)(logits, labels.astype(dtype)).total == pytest.approx(float(want), rel=1e-6)
