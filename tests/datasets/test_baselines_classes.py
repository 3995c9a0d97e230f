"""The baselines of classes: summaries by hand, and that the models find what there is to find."""

import sys

import numpy as np
import pytest

from seqjax.datasets.baselines import class_baselines
from seqjax.errors import UserError


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


@pytest.mark.parametrize('standardize', [True, False])
@pytest.mark.parametrize('cost', [1.0, 10.0])
def test_an_svm_is_that_of_its_equations(cost, standardize):
    """With the kernel written out; both scaled and not, the machine has another answer for some."""
    svc = pytest.importorskip('sklearn.svm', reason='is the reference').SVC
    rng = np.random.RandomState(0)
    values = rng.normal(size=(150, 3)) * [1, 5, 0.2] + [0, 3, 1]
    labels = (values[:, 0] ** 2 + rng.normal(size=150) * 0.5 > 0.7).astype(int) + (values[:, 1] > 4)
    train, inputs = values[:100], values[100:]
    if standardize:
        train, inputs = ((x - train.mean(0)) / train.std(0) for x in (train, inputs))

    def kernel(x, y):
        return np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / (3 * train.var()))

    machine = svc(C=cost, kernel='precomputed').fit(kernel(train, train), labels[:100])
    found = class_baselines.svm(values[:100], labels[:100], values[100:], cost, standardize)
    np.testing.assert_array_equal(found, machine.predict(kernel(inputs, train)))
    other = class_baselines.svm(values[:100], labels[:100], values[100:], cost, not standardize)
    assert (found != other).any()


def test_an_svm_finds_a_circle_and_takes_missing_constant_and_huge_numbers():
    rng = np.random.RandomState(1)
    values = np.concatenate([rng.normal(size=(200, 2)), np.full((200, 1), 3.0), np.full((200, 1), np.nan)], 1)
    labels = ((values[:, :2] ** 2).sum(1) > 1.4).astype(int)
    values[::50, 0], values[1, 1] = np.nan, 1e38
    found = class_baselines.svm(values[2:150], labels[2:150], values[150:], 10.0)
    assert (found == labels[150:]).mean() > 0.85
    assert class_baselines.svm(values[:150], labels[:150], values[150:]).shape == (50,)


@pytest.mark.parametrize(
    ('baseline', 'module'), [(class_baselines.logistic, 'sklearn.linear_model'), (class_baselines.svm, 'sklearn.svm')]
)
def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch, baseline, module):
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    with pytest.raises(UserError, match=r'sklearn.*pip install .*seqjax\[data\]'):
        baseline(np.zeros((4, 2)), np.arange(4) % 2, np.zeros((1, 2)))


def test_an_svm_is_for_few_examples():
    for count, size in ((4472, 1), (4472, 50), (1129, 784)):
        assert class_baselines.svm_is_cheap(count, size) and not class_baselines.svm_is_cheap(count + 1, size)
