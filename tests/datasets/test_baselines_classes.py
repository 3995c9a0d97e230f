"""The baselines of classes: summaries by hand, and that the regression finds what there is to find."""

import numpy as np

from seqjax.datasets.baselines import class_baselines


def test_the_most_frequent_class_is_told_of_all():
    assert class_baselines.most_frequent(np.array([1, 2, 2, 0]), 3).tolist() == [2, 2, 2]


def test_summaries_are_of_each_channel_over_what_is_known():
    nan = np.nan
    values = np.array([[1, 10], [nan, 20], [4, nan], [7, nan]], np.float32)
    found = class_baselines.summaries(values, np.array([3, 1]))
    want = [[2.5, 15, 1.5, 5, 1, 10, 4, 20], [7, nan, 0, nan, 7, nan, 7, nan]]
    np.testing.assert_array_equal(found, want)


def test_regression_finds_a_class_that_stands_in_one_number():
    rng = np.random.RandomState(0)
    labels = rng.randint(0, 3, 120)
    values = rng.normal(size=(120, 4)) * [1, 1e6, 1, 1]
    values[:, 2] = labels * 100 + 5000  # the scales of the others must not matter
    found = class_baselines.logistic(values[:90], labels[:90], values[90:])
    assert (found == labels[90:]).mean() > 0.95
    assert (class_baselines.most_frequent(labels[:90], 30) == labels[90:]).mean() < 0.6


def test_missing_constant_and_huge_numbers_are_no_end_to_it():
    """A warning would be an error here."""
    rng = np.random.RandomState(1)
    labels = np.arange(40) % 2
    values = np.stack([rng.normal(size=40), np.full(40, 3.0), np.full(40, np.nan), labels + 0.1], -1)
    values[::3, 0] = np.nan
    values[0, 0] = 1e38
    assert (class_baselines.logistic(values[:30], labels[:30], values[30:]) == labels[30:]).all()
