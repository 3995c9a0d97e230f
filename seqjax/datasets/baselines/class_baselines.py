"""Baselines for classification: the most frequent class, logistic regression, and a support vector machine (SVM)."""

import warnings
from typing import Any

import numpy as np

from seqjax.datasets.readers import optional_packages

MAX_ITERATIONS = 1000  # maximum number of iterations of the optimizer of the logistic regression
SVM_COSTS = (1.0, 10.0, 100.0)  # values of the parameter C of the SVM from which validation selects
MAX_SVM_ITERATIONS = 100_000  # maximum number of iterations of the optimizer of the SVM
MAX_SVM_WORK = 1e9  # maximum examples^2 x features (50 or more) of the SVM: about 2 seconds for each fit on a CPU core


def most_frequent(labels: np.ndarray, count: int) -> np.ndarray:
    """Returns `count` predictions [count] int64, each the most frequent of labels [N], the lowest in a tie.

    >>> most_frequent(np.array([2, 0, 2]), 2).tolist()
    [2, 2]
    """
    return np.full(count, np.bincount(labels).argmax())


def summaries(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns features [N, 4 C] float64 of N series: C means, C standard deviations, C first and C last values.

    `values` [S, C] are the concatenated series, whose lengths [N] sum to S. NaN and infinite values are ignored; if a
    channel of a series has no other values, its four features are NaN.

    >>> summaries(np.array([[1.0], [np.nan], [3.0], [5.0]]), np.array([3, 1])).tolist()
    [[2.0, 1.0, 1.0, 3.0], [5.0, 0.0, 5.0, 5.0]]
    """
    ends = np.cumsum(lengths)
    return np.stack([_summary(values[end - n : end].T) for end, n in zip(ends, lengths, strict=True)])


def _summary(channels: np.ndarray) -> np.ndarray:
    """Returns the means, standard deviations, first and last values [4 C] of channels [C, T], see `summaries`."""
    statistics = np.full((4, len(channels)), np.nan)
    for place, channel in enumerate(channels):
        known = channel[np.isfinite(channel)].astype(np.float64)
        if known.size:
            statistics[:, place] = known.mean(), known.std(), known[0], known[-1]
    return statistics.ravel()


def logistic(values: np.ndarray, labels: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Returns the labels [M] that a logistic regression (L2, C = 1) predicts for the features `inputs` [M, K].

    It is fitted to training features `values` [N, K] and labels [N], at least two different ones. Features are
    standardized by the training features, and NaN is replaced by their mean.

    Raises UserError if scikit-learn is not installed.
    """
    what = 'the logistic regression baseline'
    scaler = optional_packages.need('sklearn.preprocessing', what).StandardScaler()
    regression = optional_packages.need('sklearn.linear_model', what).LogisticRegression(max_iter=MAX_ITERATIONS)
    return _fit_predict(regression, scaler, values, labels, inputs)


def svm(
    values: np.ndarray, labels: np.ndarray, inputs: np.ndarray, cost: float = 1.0, standardize: bool = True
) -> np.ndarray:
    """Returns the labels [M] that a support vector machine predicts for the features `inputs` [M, K].

    Its kernel is exp(-|x - y|^2 / (K v)), with the variance v of all training features together. Each pair of classes
    has its own machine, and the class with the most votes is predicted.

    Args:
      values, labels: training features [N, K] and labels [N], at least two different ones.
      inputs: features [M, K].
      cost: the parameter C; lower values regularize more.
      standardize: True to standardize each feature as in `logistic`; False for features in one unit, such as pixels.

    Raises:
      UserError: scikit-learn is not installed.
    """
    what = 'the RBF SVM baseline'
    scaler = optional_packages.need('sklearn.preprocessing', what).StandardScaler(
        with_mean=standardize, with_std=standardize
    )
    machine = optional_packages.need('sklearn.svm', what).SVC(
        C=cost, kernel='rbf', gamma='scale', max_iter=MAX_SVM_ITERATIONS
    )
    return _fit_predict(machine, scaler, values, labels, inputs)


def svm_is_cheap(count: int, features: int) -> bool:
    """Returns True if an SVM can be fitted to `count` examples in seconds; its time grows with their square.

    >>> svm_is_cheap(1500, 64), svm_is_cheap(60_000, 784)
    (True, False)
    """
    return count**2 * max(features, 50) <= MAX_SVM_WORK


def _fit_predict(model: Any, scaler: Any, values: np.ndarray, labels: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Returns the predictions [M] of a scikit-learn model for `inputs` [M, K], after `scaler`; NaN becomes 0."""
    with warnings.catch_warnings():
        # Huge values such as 1e38 overflow; a model that has not converged is still a baseline.
        warnings.simplefilter('ignore')
        known = np.nan_to_num(scaler.fit_transform(values))
        return model.fit(known, labels).predict(np.nan_to_num(scaler.transform(inputs)))
