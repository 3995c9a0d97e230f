"""Of classes: the most frequent one, and logistic regression on numbers that say little of the order."""

import warnings

import numpy as np

from seqjax.datasets.readers import optional_packages

ROUNDS = 1000  # of the regression's optimiser


def most_frequent(labels: np.ndarray, count: int) -> np.ndarray:
    """The commonest of labels [N], the lowest of equals, `count` times: [count] int64.

    >>> most_frequent(np.array([2, 0, 2]), 2).tolist()
    [2, 2]
    """
    return np.full(count, np.bincount(labels).argmax())


def summaries(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Mean, standard deviation, first and last value of each channel, over what is known.

    values [S, C] are series one behind the other, NaN where missing, and lengths [N] sum to S. Returns [N, 4 C]
    float64; NaN where a series knows nothing of a channel.

    >>> summaries(np.array([[1.0], [np.nan], [3.0], [5.0]]), np.array([3, 1])).tolist()
    [[2.0, 1.0, 1.0, 3.0], [5.0, 0.0, 5.0, 5.0]]
    """
    ends = np.cumsum(lengths)
    return np.stack([_summary(values[end - n : end].T) for end, n in zip(ends, lengths, strict=True)])


def _summary(channels: np.ndarray) -> np.ndarray:
    """[C, T] -> [4 C]."""
    found = np.full((4, len(channels)), np.nan)
    for place, channel in enumerate(channels):
        known = channel[np.isfinite(channel)].astype(np.float64)
        if known.size:
            found[:, place] = known.mean(), known.std(), known[0], known[-1]
    return found.ravel()


def logistic(values: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Labels of `asked` [M, K] by logistic regression (L2, C = 1) on standardised numbers; NaN counts as their mean.

    It is fitted to values [N, K] and labels [N], at least two different ones. Raises UserError where scikit-learn is
    not installed.
    """
    what = 'the baseline of logistic regression'
    scaler = optional_packages.need('sklearn.preprocessing', what).StandardScaler()
    regression = optional_packages.need('sklearn.linear_model', what).LogisticRegression(max_iter=ROUNDS)
    with warnings.catch_warnings():
        # Numbers that nobody should give it, such as 1e38; one that has not converged is a baseline, too.
        warnings.simplefilter('ignore')
        known = np.nan_to_num(scaler.fit_transform(values))
        return regression.fit(known, labels).predict(np.nan_to_num(scaler.transform(asked)))
