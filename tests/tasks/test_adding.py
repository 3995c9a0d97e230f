"""Adding and multiplication: the law of their sequences, their score, and what is known of the best constant."""

import jax
import numpy as np
import pytest

from seqjax.tasks import adding
from seqjax.types import Batch

COUNT = 1000


def draw(seed=0, count=COUNT, **options):
    return jax.device_get(adding.adding(**options).sample(jax.random.key(seed), count))


def told(numbers, marks, rule):
    """What a sequence comes to, by the source's words."""
    x, y = (number for number, mark in zip(numbers, marks, strict=True) if mark == 1)
    return 0.5 + (x + y) / 4 if rule == 'add' else x * y


@pytest.mark.parametrize('rule', ['add', 'multiply'])
@pytest.mark.parametrize('length', [22, 57, 100])
def test_sequences_are_those_of_the_source(length, rule):
    batch = draw(length=length, rule=rule)
    values, lengths, mask, resets = batch.inputs
    assert values.shape == (COUNT, length + length // 10, 2) and mask is None and resets is None and batch.mask.all()
    assert set(lengths) == set(range(length, length + length // 10 + 1))
    low = -1 if rule == 'add' else 0
    firsts, seconds = [], []
    for (numbers, marks), size, target in zip(values.transpose(0, 2, 1), lengths, batch.targets[:, 0], strict=True):
        assert not numbers[size:].any() and not marks[size:].any()
        assert (numbers[:size] >= low).all() and (numbers[:size] <= 1).all()
        places = np.flatnonzero(marks == 1)
        assert len(places) == 2 and marks[size - 1] == -1 and (marks[0] == -1 or places[0] == 0)
        assert (marks[1 : size - 1] >= 0).all() and set(marks) <= {-1, 0, 1}
        assert abs(target - told(numbers, marks, rule)) < 1e-6
        if places[0] == 0:
            assert numbers[0] == (0 if rule == 'add' else 1)
        firsts.append(places[0])
        seconds.append(places[1])
    # One of the first ten, and another one of those before the middle.
    assert min(firsts) == 0 and max(firsts) <= 9 and max(seconds) == length // 2 - 1
    assert abs(np.mean(np.array(firsts) == 0) - (0.1 + 0.9 / (length // 2 - 1))) < 4 * (0.25 / COUNT) ** 0.5
    assert abs(values[..., 0][np.arange(values.shape[1])[None] < lengths[:, None]].mean() - (low + 1) / 2) < 0.02


def test_equal_keys_draw_equal_sequences_and_others_do_not():
    one, same, other = (draw(seed, 8).inputs.values.tobytes() for seed in (0, 0, 1))
    assert one == same != other


@pytest.mark.parametrize('rule', ['add', 'multiply'])
def test_the_best_constant_is_the_mean_of_many_targets(rule):
    targets = draw(count=100_000, length=22, rule=rule).targets
    figure = adding.adding(length=22, rule=rule).reference_losses['best constant']
    assert abs(targets.var() / figure - 1) < 0.02


def test_right_is_an_error_below_four_hundredths():
    score = adding.adding().loss_fn
    outputs = np.array([[0.539], [0.541], [0.461], [np.nan]], np.float32)
    found = score(outputs, Batch(None, np.full((4, 1), 0.5, np.float32), np.ones(4, bool)))['wrong']
    assert (found.total, found.count) == (2, 4)


def test_a_constant_answers_most_sequences_wrongly():
    """The goal is out of an untrained model's reach."""
    batch = draw(count=2560)
    found = adding.adding().loss_fn(np.full((2560, 1), 0.5, np.float32), batch)
    assert 0.7 < found['wrong'].compute() < 0.9


def test_too_short_a_length_is_refused():
    with pytest.raises(ValueError, match='length=21'):
        adding.adding(length=21)
