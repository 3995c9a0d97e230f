"""Adam as Keras writes it, also where gradients are so small that the place of epsilon decides."""

import jax
import numpy as np
import optax
import pytest

from seqjax import optim
from tests import reference

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
    got = follow(optim.adam(RATE, EPSILON), param, grads)
    assert moved_alike(got[:1], want[:1], param, 1e-4)
    assert moved_alike(got, want, param, 1e-4)
    assert not moved_alike(follow(optax.adam(RATE, eps=EPSILON), param, grads), want, param, 1e-2)


@pytest.mark.parametrize('epsilon', [1e-7, 1e-5])
def test_adam_equals_the_formula(epsilon, x64):
    """Keras's formula by hand, to 1e-11 in float64: epsilon joins the root before the bias is corrected."""
    param, grads = map(np.float64, draw())
    want = reference.adam(param, grads, RATE, epsilon)
    assert moved_alike(follow(optim.adam(RATE, epsilon), param, grads), want, param, 1e-11)
    theirs = follow(optax.adam(RATE, eps=epsilon), param, grads)
    assert not moved_alike(theirs, want, param, 1e-2)
    # Only small gradients tell optax's Adam apart: where they are large, epsilon has no part.
    large = SCALES == 1
    assert moved_alike(theirs[:, large], want[:, large], param[large], 2e-3)


def test_float32_keeps_the_formula_too():
    """From zeros, where float32 shows every move: 2e-5, at every step and for gradients of every scale."""
    param, grads = draw()
    want = reference.adam(np.zeros(param.shape), np.float64(grads), RATE, EPSILON)
    assert moved_alike(follow(optim.adam(RATE, EPSILON), 0 * param, grads), want, 0, 2e-5)


def test_a_schedule_is_the_rate_of_each_step():
    """Half a cosine from the rate to 0; beyond its end it stays there. Constant is the plain number."""
    rates = optim.schedule('cosine', 0.5, 8)
    want = 0.5 * (1 + np.cos(np.pi * np.minimum(np.arange(12), 8) / 8)) / 2
    np.testing.assert_allclose([rates(step) for step in range(12)], want, rtol=1e-6, atol=1e-8)
    assert optim.schedule('constant', 0.5) == 0.5
    param, grads = draw()
    steady, falling = (
        follow(optim.adam(rate, EPSILON), param, grads) for rate in (RATE, optim.schedule('cosine', RATE, STEPS))
    )
    moves = [np.abs(np.diff(path, axis=0)).mean(axis=1) for path in (steady, falling)]
    assert moves[1][0] == pytest.approx(moves[0][0], rel=0.01) and moves[1][-1] < 0.01 * moves[0][-1]


@pytest.mark.parametrize(
    ('args', 'told'),
    [
        (('linear', 0.1), "schedule='linear' must be one of constant, cosine"),
        (('cosine', 0.1), 'schedule=cosine needs decay_steps'),
        (('constant', 0.1, 5), 'schedule=constant has no use for decay_steps'),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(args, told):
    with pytest.raises(ValueError, match=told):
        optim.schedule(*args)


def test_gradients_beyond_a_norm_are_scaled_to_it():
    """As if they had come so; smaller ones are left alone."""
    param, grads = draw()
    norms = np.linalg.norm(grads, axis=1, keepdims=True)
    limit = float(np.median(norms))
    scaled = (grads * np.minimum(1, limit / norms)).astype(np.float32)
    assert 0 < (norms > limit).sum() < STEPS
    got, want = (
        follow(tx, param, g)
        for tx, g in ((optim.adam(RATE, EPSILON, limit), grads), (optim.adam(RATE, EPSILON), scaled))
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-8)
