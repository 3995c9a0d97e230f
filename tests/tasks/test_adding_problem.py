"""Adding problem: sums by a slow loop, the law of numbers and marks, the loss of the best constant."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import adding_problem as experiment
from seqjax.tasks import adding_problem


def draw(length, count, seed=0):
    problem = adding_problem.adding_problem(length=length)
    return problem, jax.device_get(jax.jit(problem.sample, static_argnums=1)(jax.random.key(seed), count))


def test_the_target_is_the_sum_of_the_two_marked_numbers():
    problem, batch = draw(9, 500)
    assert batch.inputs.shape == (500, 9, 2) and batch.targets.shape == (500, 1) and batch.mask.all()
    for steps, (target,) in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        marked = [number for number, mark in steps if mark == 1]
        assert len(marked) == 2 and {mark for _, mark in steps} == {0.0, 1.0}
        assert target == pytest.approx(sum(marked))
    assert (problem.spec.output, problem.spec.outputs, problem.spec.features) == ('last', 1, 2)


def test_every_pair_of_steps_is_as_likely_and_numbers_are_uniform():
    length, count = 6, 30_000
    _, batch = draw(length, count)
    places = np.sort(np.nonzero(batch.inputs[..., 1])[1].reshape(count, 2), 1)
    pairs = np.bincount(places @ [length, 1], minlength=length**2)
    likely = [first * length + second for first in range(length) for second in range(first + 1, length)]
    share = count / len(likely)
    assert set(np.nonzero(pairs)[0]) == set(likely)
    assert np.abs(pairs[likely] - share).max() < 4.5 * math.sqrt(share)
    numbers = np.histogram(batch.inputs[..., 0], bins=10, range=(0, 1))[0]
    assert numbers.sum() == batch.inputs[..., 0].size
    assert np.abs(numbers - numbers.mean()).max() < 4.5 * math.sqrt(numbers.mean())


def test_the_best_constant_is_one_and_its_loss_the_variance():
    problem, batch = draw(5, 60_000)
    found = problem.loss_fn(jnp.ones_like(batch.targets), batch)
    assert abs(found['loss'].compute() - problem.reference_losses['best constant']) < 0.003
    assert problem.reference_losses['best constant'] == pytest.approx(1 / 6)
    near = problem.loss_fn(batch.targets + np.array([[0.039], [0.041]] * 30_000), batch)
    assert near['wrong'] == (30_000, 60_000)
    assert problem.success.metric == 'loss' and 0 < problem.success.at_most < 0.1


def test_a_key_is_a_draw_and_too_short_a_length_is_refused():
    one, again, other = (draw(7, 20, seed)[1] for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.array_equal(one.inputs, other.inputs)
    with pytest.raises(ValueError, match='length=1'):
        adding_problem.adding_problem(length=1)


def test_its_experiment_takes_its_defaults():
    assert experiment.EXPERIMENT.name == 'adding_problem' and experiment.EXPERIMENT.check({}).train.batch_size == 32
