"""Adam as Keras writes it, also where gradients are so small that the place of epsilon decides."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seqjax.training import optimizers
from tests.helpers import reference

RATE, EPSILON, STEPS = 1e-3, 1e-7, 50
SCALES = np.repeat([1.0, 1e-3, 1e-6, 1e-8], 6)  # of the gradients: from far above epsilon to far below


def draw():
    """Parameters as small as Adam's moves, so that float32 shows these; gradients [STEPS, ...]."""
    rng = np.random.default_rng(0)
    param, grads = rng.normal(scale=1e-3, size=SCALES.shape), rng.normal(0.3, 1, size=(STEPS, *SCALES.shape))
    return param.astype(np.float32), (grads * SCALES).astype(np.float32)


def follow(tx, param, grads):
    """The parameters after every step, [steps, ...]."""

    @jax.jit
    def run(param, grads):
        def step(carry, grad):
            param, state = carry
            updates, state = tx.update(grad, state, param)
            param = optax.apply_updates(param, updates)
            return (param, state), param

        return jax.lax.scan(step, (param, tx.init(param)), grads)[1]

    return np.asarray(run(param, grads))


def moved_alike(got, want, start, rtol):
    """Whether all moves from the start agree to `rtol` of the largest one of the same element."""
    moves, errors = np.abs(want - start), np.abs(got - want)
    return bool((errors <= rtol * np.maximum.accumulate(moves)).all())


def test_adam_equals_keras(keras):
    """The first step and 50 steps of Keras's own Adam with epsilon 1e-7; optax's own Adam is told apart."""
    param, grads = draw()
    with jax.numpy_rank_promotion('allow'):
        variable = keras.Variable(param)
        optimizer = keras.optimizers.Adam(RATE, epsilon=EPSILON)
        optimizer.build([variable])
        slots = [v.value for v in optimizer.variables]

        @jax.jit
        def run(param, slots, grads):
            def step(carry, grad):
                (param,), slots = optimizer.stateless_apply(carry[1], [grad], [carry[0]])
                return (param, slots), param

            return jax.lax.scan(step, (param, slots), grads)[1]

        want = np.asarray(run(param, slots, grads))
    got = follow(optimizers.adam(RATE, EPSILON), param, grads)
    assert moved_alike(got[:1], want[:1], param, 1e-4)
    assert moved_alike(got, want, param, 1e-4)
    assert not moved_alike(follow(optax.adam(RATE, eps=EPSILON), param, grads), want, param, 1e-2)


@pytest.mark.parametrize('epsilon', [1e-7, 1e-5])
def test_adam_equals_the_formula(epsilon, x64):
    """Keras's formula by hand, to 1e-11 in float64: epsilon joins the root before the bias is corrected."""
    param, grads = map(np.float64, draw())
    want = reference.adam(param, grads, RATE, epsilon)
    assert moved_alike(follow(optimizers.adam(RATE, epsilon), param, grads), want, param, 1e-11)
    theirs = follow(optax.adam(RATE, eps=epsilon), param, grads)
    assert not moved_alike(theirs, want, param, 1e-2)
    # Only small gradients tell optax's Adam apart: where they are large, epsilon has no part.
    large = SCALES == 1
    assert moved_alike(theirs[:, large], want[:, large], param[large], 2e-3)


def test_float32_keeps_the_formula_too():
    """From zeros, where float32 shows every move: 2e-5, at every step and for gradients of every scale."""
    param, grads = draw()
    want = reference.adam(np.zeros(param.shape), np.float64(grads), RATE, EPSILON)
    assert moved_alike(follow(optimizers.adam(RATE, EPSILON), 0 * param, grads), want, 0, 2e-5)


def test_a_schedule_is_the_rate_of_each_step():
    """Half a cosine from the rate to 0; beyond its end it stays there. Constant is the plain number."""
    rates = optimizers.schedule('cosine', 0.5, 8)
    want = 0.5 * (1 + np.cos(np.pi * np.minimum(np.arange(12), 8) / 8)) / 2
    np.testing.assert_allclose([rates(step) for step in range(12)], want, rtol=1e-6, atol=1e-8)
    assert optimizers.schedule('constant', 0.5) == 0.5
    param, grads = draw()
    steady, falling = (
        follow(optimizers.adam(rate, EPSILON), param, grads)
        for rate in (RATE, optimizers.schedule('cosine', RATE, STEPS))
    )
    moves = [np.abs(np.diff(path, axis=0)).mean(axis=1) for path in (steady, falling)]
    assert moves[1][0] == pytest.approx(moves[0][0], rel=0.01) and moves[1][-1] < 0.01 * moves[0][-1]


@pytest.mark.parametrize(
    ('args', 'told'),
    [
        (('linear', 0.1), "schedule='linear'"),
        (('cosine', 0.1), 'schedule=cosine'),
        (('constant', 0.1, 5), 'schedule=constant'),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(args, told):
    with pytest.raises(ValueError, match=told):
        optimizers.schedule(*args)


def test_gradients_beyond_a_norm_are_scaled_to_it():
    """As if they had come so; smaller ones are left alone."""
    param, grads = draw()
    norms = np.linalg.norm(grads, axis=1, keepdims=True)
    limit = float(np.median(norms))
    scaled = (grads * np.minimum(1, limit / norms)).astype(np.float32)
    assert 0 < (norms > limit).sum() < STEPS
    got, want = (
        follow(tx, param, g)
        for tx, g in ((optimizers.adam(RATE, EPSILON, limit), grads), (optimizers.adam(RATE, EPSILON), scaled))
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-8)


DTYPES = {'float16': 1e-3, 'bfloat16': 8e-3, 'float32': 5e-5, 'float64': 1e-10}  # to which updates are right


def numpy_updates(params, grads, rates, epsilon, clip_norm=None, weight_decay=0.0):
    """The updates of Adam in float64, with the parameters held where they are."""
    mu = nu = np.zeros_like(params)
    for t, grad in enumerate(grads, 1):
        norm = np.sqrt((grad**2).sum())
        grad = grad if clip_norm is None or norm < clip_norm else grad / norm * clip_norm
        mu, nu = 0.9 * mu + 0.1 * grad, 0.999 * nu + 0.001 * grad**2
        root = np.sqrt(nu / (1 - 0.999**t)) + epsilon / np.sqrt(1 - 0.999**t)
        yield -rates[t - 1] * (mu / (1 - 0.9**t) / root + weight_decay * params)


@pytest.mark.representative
@pytest.mark.parametrize('weight_decay', [0.0, 0.1])
@pytest.mark.parametrize('clip_norm', [None, 1.0])
@pytest.mark.parametrize('schedule', [('constant', 0.01, None), ('cosine', 0.01, 12)])
@pytest.mark.parametrize('dtype', DTYPES)
def test_adam_in_every_dtype_is_the_formula(dtype, schedule, clip_norm, weight_decay, x64):
    """Epsilon is 0 in float16, and B2 is 1 in bfloat16; gradients are among those whose square underflows there."""
    rng = np.random.default_rng(0)
    params, grads = rng.normal(size=8), rng.normal(size=(10, 8)) * np.repeat([3.0, 1e-2, 1e-4, 1e-6], 2)
    params, grads = (jnp.asarray(x, dtype) for x in (params, grads))
    rates = [0.01 if schedule[0] == 'constant' else 0.005 * (1 + np.cos(np.pi * t / 12)) for t in range(10)]
    tx = optimizers.adam(optimizers.schedule(*schedule), 1e-8, clip_norm, weight_decay)
    state, update = tx.init(params), jax.jit(tx.update)
    wide = [np.asarray(x, np.float64) for x in (params, grads)]
    for t, want in enumerate(numpy_updates(*wide, rates, 1e-8, clip_norm, weight_decay)):
        got, state = update(grads[t], state, params)
        assert got.dtype == jnp.dtype(dtype)
        np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=DTYPES[dtype], atol=1e-7)
    assert _rates(state)[0] == pytest.approx(rates[-1], rel=1e-5)


@pytest.mark.parametrize('dtypes', [('bfloat16', 'float32'), ('float32', 'float16'), ('float16', 'bfloat16')])
def test_parameters_of_several_dtypes_are_updated_in_theirs(dtypes):
    params = {name: jnp.full(3, 0.5, name) for name in dtypes}
    tx = optimizers.adam(0.01, 1e-7, clip_norm=1e6, weight_decay=0.01)
    state = tx.init(params)
    for _ in range(3):
        updates, state = jax.jit(tx.update)(params, state, params)
    for name in dtypes:
        assert updates[name].dtype == jnp.dtype(name)
        np.testing.assert_allclose(np.float32(updates[name]), -0.01 * (1 + 0.01 * 0.5), rtol=1e-2)


def test_a_norm_beyond_the_range_of_float16_is_scaled():
    params = jnp.full(1000, 1.0, jnp.float16)
    tx = optimizers.adam(0.01, 1e-7, clip_norm=1.0)
    updates, _ = tx.update(params * 60_000, tx.init(params), params)
    np.testing.assert_allclose(np.float32(updates), -0.01, rtol=1e-3)


@pytest.mark.parametrize('dtype', ['float16', 'float64'])
def test_rates_of_replicas_have_the_dtype_of_the_state(dtype, x64):
    tx = optimizers.adam(1e-3, 1e-7)
    state = jax.vmap(tx.init)(jnp.zeros((3, 2), dtype))
    rates = np.array([1e-3, 0.02, 1e-8], np.float32)
    other = optimizers.with_rates(state, rates)
    assert jax.tree.map(lambda x: x.dtype, other) == jax.tree.map(lambda x: x.dtype, state)
    updates, _ = jax.vmap(tx.update)(jnp.ones((3, 2), dtype), other, jnp.zeros((3, 2), dtype))
    np.testing.assert_allclose(np.float64(updates[:, 0]), -np.float64(rates), rtol=1e-2, atol=1e-8)


@pytest.mark.parametrize(
    ('tx', 'want'),
    [
        (optimizers.adam(0.003, 1e-7), [0.003] * 4),
        (
            optimizers.adam(optimizers.schedule('cosine', 0.5, 4), 1e-7, clip_norm=1.0),
            [0.5, 0.4267767, 0.25, 0.0732233],
        ),
        (optimizers.adam(lambda step: 0.1 / (1 + step), 1e-7, weight_decay=0.1), [0.1, 0.05, 0.1 / 3, 0.025]),
        (optax.sgd(0.1), [np.nan] * 4),
    ],
)
def test_the_learning_rates_are_those_of_the_updates(tx, want):
    """By hand, and by what the state holds after each step."""
    got = optimizers.learning_rates(tx, np.arange(4))
    np.testing.assert_allclose(got, np.float32(want), rtol=1e-6)
    param, held = jnp.zeros(2), []
    state = tx.init(param)
    for _ in range(4):
        _, state = tx.update(param, state, param)
        held.append(next((float(x) for x in [*_rates(state), np.nan]), None))
    np.testing.assert_array_equal(got, np.float32(held))


def _rates(state):
    return [x for _, x in optax.tree_utils.tree_get_all_with_path(state, 'learning_rate') if hasattr(x, 'dtype')]
