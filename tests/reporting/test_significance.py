"""Who beats whom, by how much, and whether that may be chance."""

import numpy as np
import pytest

from seqjax.datasets.dataset import ItemScores, MetricSpec
from seqjax.reporting import significance
from seqjax.reporting.significance import Improvement

ERROR, RIGHT = (
    MetricSpec('RMSE', root=True, unit='spots'),
    MetricSpec('accuracy', higher_is_better=True, format_spec='.1%'),
)


def squares(rng, scale, count=400):
    return ItemScores((scale * rng.normal(size=count)) ** 2, np.ones(count))


def test_a_measure_is_the_mean_over_all_values_or_its_root():
    assert ERROR.value(18.0, 2) == 3.0
    assert RIGHT.value(np.array([1.0, 3.0]), 4).tolist() == [0.25, 0.75]


def test_the_gain_is_in_the_measures_own_units_and_positive_where_the_model_is_better():
    counts = np.array([2, 3])
    theirs = ItemScores(np.array([8.0, 12.0]), counts)  # RMSE 2
    ours = [ItemScores(np.array([2.0, 3.0]), counts), ItemScores(np.array([4.5, 6.75]), counts)]  # 1 and 1.5
    assert significance.improvement(ERROR, ours, theirs).mean == pytest.approx(0.75)
    assert significance.improvement(MetricSpec('score', higher_is_better=True), ours, theirs).mean == pytest.approx(
        -(4 - (1 + 2.25) / 2)
    )


def test_with_one_seed_the_interval_is_that_of_the_items():
    """Of a mean of paired differences: 1.96 standard errors."""
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(3, 2, 900), rng.normal(3.2, 1, 900)
    ones = np.ones(900)
    found = significance.improvement(MetricSpec('loss'), [ItemScores(ours, ones)], ItemScores(theirs, ones))
    assert found.half_width == pytest.approx(1.96 * np.std(ours - theirs) / 30, rel=0.08)


def test_what_both_get_wrong_together_widens_nothing():
    """The items are paired: a model that is better by the same everywhere is surely better."""
    theirs = np.random.default_rng(2).normal(3, 2, 300)
    found = significance.improvement(
        MetricSpec('loss'), [ItemScores(theirs - 0.5, np.ones(300))], ItemScores(theirs, np.ones(300))
    )
    assert found.mean == pytest.approx(0.5) and found.half_width < 1e-9 and found.significant


def test_seeds_that_differ_widen_the_interval():
    theirs = ItemScores(np.full(50, 1.0), np.ones(50))
    same, apart = ([ItemScores(np.full(50, 1 + x), np.ones(50)) for x in shifts] for shifts in ((0.1, 0.1), (0.0, 0.2)))
    assert significance.improvement(MetricSpec('loss'), same, theirs).half_width < 1e-9
    assert significance.improvement(MetricSpec('loss'), apart, theirs).half_width == pytest.approx(
        12.706 * 0.1, rel=1e-3
    )  # Student, 1 d.f.


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """A model that is truly better by 0.1: 300 experiments of three seeds, whose interval misses it in about 5%."""
    rng, missed = np.random.default_rng(3), 0
    for _ in range(300):
        hard = rng.normal(size=60)
        shift = rng.normal(0, 0.05, 3)
        ours = [ItemScores(1 + hard + x + rng.normal(0, 0.3, 60), np.ones(60)) for x in shift]
        theirs = ItemScores(1.1 + hard + rng.normal(0, 0.3, 60), np.ones(60))
        found = significance.improvement(MetricSpec('loss'), ours, theirs)
        missed += abs(found.mean - 0.1) > found.half_width
    assert missed <= 24  # 5% of 300 is 15, and its 99% quantile 24


def test_other_items_are_refused():
    with pytest.raises(ValueError, match='items'):
        significance.improvement(
            ERROR, [ItemScores(np.ones(3), np.ones(3))], ItemScores(np.ones(3), np.array([1, 2, 1]))
        )


def test_items_without_values_change_nothing():
    rng = np.random.default_rng(4)
    ours, theirs = squares(rng, 1), squares(rng, 2)
    longer = [ItemScores(np.append(x.totals, 0.0), np.append(x.counts, 0)) for x in (ours, theirs)]
    found = significance.improvement(ERROR, [longer[0]], longer[1])
    assert found.mean == pytest.approx(significance.improvement(ERROR, [ours], theirs).mean) and np.isfinite(
        found.half_width
    )


@pytest.mark.parametrize(
    ('gain', 'words'),
    [
        (Improvement(0.5, 0.1), '0.5 ± 0.1'),
        (Improvement(0.5, 0.6), '0.5 ± 0.6'),
        (Improvement(-0.5, 0.6), '0.5 ± 0.6'),
        (Improvement(-0.5, 0.1), '0.5 ± 0.1'),
    ],
)
def test_use_the_baseline_is_an_answer(gain, words):
    sentence = significance.verdict(ERROR, gain, 'lstm', 'AR')
    assert (
        words in sentence
        and 'spots' in sentence
        and '95%' in sentence
        and ('baseline' in sentence) == (gain.mean < gain.half_width)
    )


def test_the_best_baseline_is_the_one_with_the_best_value():
    assert (
        significance.best_name(ERROR, {'a': 2.0, 'b': 1.0}) == 'b'
        and significance.best_name(RIGHT, {'a': 2.0, 'b': 1.0}) == 'a'
    )


def test_one_item_alone_is_no_ground_for_a_verdict():
    ours, theirs = ItemScores(np.array([1.0]), np.array([3])), ItemScores(np.array([9.0]), np.array([3]))
    for seeds in (1, 3):
        found = significance.improvement(ERROR, [ours] * seeds, theirs)
        assert found.mean > 0 and found.half_width == np.inf and not found.significant
        assert 'AR(1)' in significance.verdict(ERROR, found, 'lstm', 'AR(1)')
