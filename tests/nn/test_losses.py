"""Masked elements change nothing, and means of parts are the mean of the whole."""

import inspect
import itertools

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


def test_binary_cross_entropy_and_frame_nll_equal_their_formulas():
    """The one counts bits, the other frames; targets may be bool or numbers from 0 to 1."""
    logits, targets, mask = bits_case()
    want = -np.where(targets, log_sigmoid(logits), log_sigmoid(-logits))[mask].sum()
    for given in (targets, targets.astype(np.float32)):
        bits, frames = losses.binary_cross_entropy(logits, given, mask), losses.frame_nll(logits, given, mask)
        reference.assert_close(bits.total, want, 1e-5)
        reference.assert_close(frames.total, want, 1e-5)
        assert (bits.count, frames.count) == (3 * mask.sum(), mask.sum())
    soft = np.full_like(logits, 0.25)
    want = -(0.25 * log_sigmoid(logits) + 0.75 * log_sigmoid(-logits))[mask].sum()
    reference.assert_close(losses.binary_cross_entropy(logits, soft, mask).total, want, 1e-5)


def test_absolute_error_equals_its_formula():
    outputs, targets, mask = draw((4, 3, 2), 2)
    got = losses.absolute_error(outputs, targets, mask)
    reference.assert_close(got.total, np.abs(outputs - targets)[mask].sum(), 1e-6)
    assert got.count == 2 * mask.sum()
    grads = jax.grad(lambda outputs: losses.absolute_error(outputs, targets, mask).total)(outputs)
    np.testing.assert_array_equal(grads, np.where(mask[..., None], np.sign(outputs - targets), 0))


def test_accuracy_and_exact_match():
    """By hand: rows with every counted label right, one wrong, wrong only where masked, and none counted."""
    labels = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]])
    answers = np.array([[0, 1, 2], [0, 1, 1], [0, 1, 1], [1, 1, 1]])
    mask = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 0, 0]], bool)
    logits = np.eye(3, dtype=np.float32)[answers]
    assert losses.accuracy(logits, labels, mask) == (7, 8)
    assert losses.exact_match(logits, labels, mask) == (2, 3)
    assert losses.exact_match(logits, labels) == (1, 4)
    logits[0, 0] = np.nan  # a model that has diverged is right about nothing, though argmax of NaN is 0
    assert losses.accuracy(logits, labels, mask) == (6, 8)


def brute_ctc(logits, labels, blank=0):
    """Sums over every path of classes that collapses to the labels."""
    logp, total = log_softmax(logits), 0.0
    for path in itertools.product(range(logits.shape[1]), repeat=logits.shape[0]):
        merged = [c for i, c in enumerate(path) if i == 0 or c != path[i - 1]]
        if [c for c in merged if c != blank] == list(labels):
            total += np.exp(sum(logp[t, c] for t, c in enumerate(path)))
    return -np.log(total)


def test_ctc_sums_over_all_alignments():
    """Rows of their own lengths, a repeated label among them, no labels, and no frames; against enumeration."""
    logits = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    labels, frames, counts = np.array([[1, 2, 1], [2, 2, 0], [0, 0, 0], [1, 0, 0]]), [5, 4, 3, 0], [3, 2, 0, 0]
    mask, label_mask = np.arange(5) < np.array(frames)[:, None], np.arange(3) < np.array(counts)[:, None]
    want = [brute_ctc(logits[b, : frames[b]], labels[b, : counts[b]]) for b in range(3)]
    got = losses.ctc(logits, labels, mask, label_mask)
    reference.assert_close(got.total, sum(want), 1e-5)
    assert got.count == 3
    grad = jax.grad(lambda logits: losses.ctc(logits, labels, mask, label_mask).compute())
    spoilt = np.where(mask[..., None], logits, np.nan)
    np.testing.assert_array_equal(grad(spoilt), grad(logits))
    assert np.isfinite(grad(logits)).all() and (np.asarray(grad(logits))[~mask] == 0).all()
    swapped = losses.ctc(logits[..., [1, 2, 0]], np.where(label_mask, labels - 1, 7), mask, label_mask, blank=2)
    reference.assert_close(swapped.total, got.total, 1e-6)


def draw_ctc(seed, blank, scale):
    """Lengths and labels of 6 rows, repeats, rows without labels and impossible ones among them."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(6, 7, 5)).astype(np.float32)
    labels = rng.choice([c for c in range(5) if c != blank], size=(6, 4))
    labels[1] = labels[1, 0]
    return logits, labels, np.array([7, 4, 3, 1, 5, rng.integers(1, 8)]), np.array([4, 4, 0, 1, 3, rng.integers(5)])


@pytest.mark.parametrize('zero_infinity', [False, True])
@pytest.mark.parametrize(('seed', 'blank', 'scale'), [(0, 0, 1), (1, 4, 1), (2, 2, 10), (3, 0, 1000), (4, 4, 1e6)])
def test_ctc_is_that_of_pytorch(seed, blank, scale, zero_infinity):
    """Every row and its gradient, compiled; row 1 has four equal labels and 4 frames, so that no alignment exists."""
    torch = pytest.importorskip('torch', reason='PyTorch is the reference here: pip install "seqjax[test]"')
    logits, labels, frames, counts = draw_ctc(seed, blank, scale)
    mask, label_mask = np.arange(7) < frames[:, None], np.arange(4) < counts[:, None]
    theirs = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    log_p = theirs.log_softmax(-1).transpose(0, 1)
    sizes = map(torch.tensor, (labels, frames, counts))
    want = torch.nn.functional.ctc_loss(log_p, *sizes, blank=blank, reduction='none', zero_infinity=zero_infinity)
    want[torch.isfinite(want)].sum().backward()

    def each(logits):
        def one(*row):
            return losses.ctc(*(x[None] for x in row), blank=blank, zero_infinity=zero_infinity).total

        values = jax.vmap(one)(logits, labels, mask, label_mask)
        return values.sum(), values

    grads, got = jax.jit(jax.grad(each, has_aux=True))(logits)
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grads, np.nan_to_num(theirs.grad.numpy()), atol=2e-4)  # NaN of an infinite loss
    assert got[1] == (0 if zero_infinity else np.inf) and not grads[1].any() and (got >= 0).all()
    together = losses.ctc(logits, labels, mask, label_mask, blank, True)  # not refused
    assert together.count == 6
    reference.assert_close(together.total, got[np.isfinite(got)].sum(), 1e-5)


ctc_and_gradient = jax.jit(jax.value_and_grad(lambda logits, labels: losses.ctc(logits, labels).total))


@pytest.mark.parametrize('certain', [20.0, 50.0, 1e4, 1e30])
@pytest.mark.parametrize('labels', [[], [1], [1, 1], [2, 1]])
def test_ctc_of_a_certain_answer_is_not_negative(labels, certain):
    path = [0, *(c for label in labels for c in (label, 0))]
    logits = np.eye(3, dtype=np.float32)[path][None] * certain
    value, grads = ctc_and_gradient(logits, np.array([labels], int))
    assert 0 <= value < 1e-6 and np.isfinite(grads).all()


@pytest.mark.parametrize(
    ('changed', 'value'),
    [
        ({'labels': [[1, 5], [2, 3]]}, np.nan),  # no class
        ({'labels': [[1, -1], [2, 3]]}, np.nan),
        ({'labels': [[0, 1], [2, 3]]}, np.nan),  # the blank
        ({'mask': [[True, False, True, True], [True] * 4]}, np.nan),
        ({'label_mask': [[False, True], [True, True]]}, np.nan),
        ({'mask': [[True, False, False, False], [True] * 4]}, np.inf),  # one frame, two labels
        ({'labels': [[1, 1], [2, 3]], 'mask': [[True, True, False, False], [True] * 4]}, np.inf),
    ],
)
def test_compiled_ctc_gives_no_plausible_number_for_what_cannot_be(changed, value):
    """Without compiling it is refused; compiled, the other row has the gradient that it has alone."""
    plain = {'labels': [[1, 2], [2, 3]], 'mask': [[True] * 4] * 2, 'label_mask': [[True] * 2] * 2}
    args = {name: np.array(x) for name, x in (plain | changed).items()}
    logits = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    with pytest.raises(ValueError, match='labels|mask|frames'):
        losses.ctc(logits, **args)
    gradient = jax.jit(jax.value_and_grad(lambda logits, args: losses.ctc(logits, **args).total))
    got, grads = gradient(logits, args)
    np.testing.assert_equal(float(got), value)
    alone = gradient(logits[1:], {name: x[1:] for name, x in args.items()})[1]
    np.testing.assert_allclose(grads[1:], alone, rtol=1e-5, atol=1e-6)
    assert not grads[0].any()


@pytest.mark.parametrize('label', [-1, 5, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize('loss', [losses.cross_entropy, losses.accuracy, losses.exact_match])
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
    'absolute_error': (losses.absolute_error, lambda: draw((4, 6, 3), 2)),
    'cross_entropy': (losses.cross_entropy, softmax_case),
    'binary_cross_entropy': (losses.binary_cross_entropy, bits_case),
    'frame_nll': (losses.frame_nll, bits_case),
    'accuracy': (losses.accuracy, softmax_case),
    'exact_match': (losses.exact_match, softmax_case),
}


def test_every_loss_is_among_those_that_are_tested():
    functions = {name: f for name, f in vars(losses).items() if inspect.isfunction(f) and not name.startswith('_')}
    assert {name for name, f in functions.items() if 'mask' in f.__annotations__} == {*MASKED, 'ctc'}


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


def test_perplexity_and_bits_come_from_totals():
    """Of two parts with 3 labels at 0 nats and one at log 16: 2, where the mean of perplexities would be 8.5."""
    parts = [Mean(jnp.float32(0), jnp.float32(3)), Mean(jnp.log(16.0), jnp.float32(1))]
    merged = parts[0].merge(parts[1])
    np.testing.assert_allclose(losses.perplexity(merged), 2, rtol=1e-6)
    np.testing.assert_allclose(losses.bits_per_character(merged), 1, rtol=1e-6)
    assert np.mean([losses.perplexity(part) for part in parts]) > 8
    uniform = losses.cross_entropy(np.zeros((1, 4, V), np.float32), np.zeros((1, 4), int))
    np.testing.assert_allclose(losses.perplexity(uniform), V, rtol=1e-6)
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
    (losses.absolute_error, (FLOATS, FLOATS[..., 0]), r'outputs \(2, 3, 5\)'),
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
    (losses.exact_match, (FLOATS[:, 0], np.ones(2, int)), r'labels \(2,\)'),
    (losses.frame_nll, (FLOATS[0, 0], FLOATS[0, 0]), r'logits \(5,\)'),
    (losses.ctc, (FLOATS, np.ones((3, 2), int)), r'logits \(2, 3, 5\).*labels \(3, 2\)'),
    (losses.ctc, (FLOATS, np.ones((2, 2))), 'labels.*float32'),
    (losses.ctc, (FLOATS, np.ones((2, 2), int), None, None, V), 'blank=5'),
    (losses.ctc, (FLOATS, np.zeros((2, 2), int)), r'labels\[0, 0\].*blank=0'),
    (losses.ctc, (FLOATS, np.full((2, 2), 9)), r'labels\[0, 0\].*9'),
    (losses.ctc, (FLOATS[:, :2], np.ones((2, 2), int)), 'row 0'),
    (
        losses.ctc,
        (FLOATS, np.array([[1, 2], [1, 2]]), np.array([[1, 0, 1], [1, 1, 1]], bool)),
        'mask',
    ),
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


def test_ctc_without_a_frame_counts_nothing():
    assert losses.ctc(np.zeros((2, 0, 5), np.float32), np.ones((2, 2), int)) == (0, 0)
