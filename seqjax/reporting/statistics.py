"""Confidence intervals and quantiles over seeds."""

import math

import numpy as np

Z95 = 1.959964  # the normal distribution's 97.5% quantile
BANDS = (0.025, 0.25, 0.5, 0.75, 0.975)  # quantiles: the edges of the 95% and 50% bands, and the median


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Returns the edges of the 95% confidence interval of the proportion successes / count (Wilson 1927, equation 2).

    >>> [round(x, 4) for x in wilson_interval(93, 100)]
    [0.8625, 0.9657]
    """
    p, z = successes / count, Z95**2 / count
    middle = (p + z / 2) / (1 + z)
    half_width = (p * (1 - p) * z + z * z / 4) ** 0.5 / (1 + z)
    return max(0.0, middle - half_width), min(1.0, middle + half_width)


MIN_MEDIAN_COUNT = 6  # least number of values for a 95% confidence interval of the median


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Returns (lower edge, median, upper edge) of the 95% confidence interval of the median of values [R].

    The interval is distribution-free (Conover 1999, section 3.2). NaN counts as infinity. For fewer than
    MIN_MEDIAN_COUNT values, the edges are their minimum and maximum, with a confidence below 95%.

    >>> median_interval(np.arange(1.0, 21.0))
    (6.0, 10.5, 15.0)
    """
    values = np.sort(np.where(np.isnan(values), np.inf, values))
    count = len(values)
    # The largest rank r with P(fewer than r of `count` fair coins show heads) <= 2.5%; none exists for few values.
    below = np.cumsum([math.comb(count, k) for k in range(count + 1)]) / 2.0**count
    rank = max(1, int((below <= 0.025).sum()))
    return float(values[rank - 1]), float(np.median(values)), float(values[count - rank])


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean of values [R] and half the width of its 95% confidence interval by Student's t (Student 1908).

    For a single value, the half width is infinite.

    >>> [round(x, 3) for x in mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))]
    [2.5, 2.054]
    """
    from scipy.special import (
        stdtrit,  # installed with JAX; importing it takes a tenth of a second
    )

    count = len(values)
    if count < 2:
        return float(np.mean(values)), math.inf
    error = np.std(values, ddof=1) / count**0.5
    return float(np.mean(values)), float(stdtrit(count - 1, 0.975) * error)


def loss_quantiles(losses: np.ndarray) -> np.ndarray:
    """Returns the quantiles BANDS over the replicas of losses [R, steps], as [5, steps].

    A loss that is not finite counts as the largest float32.
    """
    blocks = [_quantiles(losses[:, i : i + COLUMNS]) for i in range(0, losses.shape[1], COLUMNS)]
    return np.concatenate(blocks, axis=1)


COLUMNS = 64  # steps copied at a time, because the losses of many replicas are the largest array of a run


def _quantiles(losses: np.ndarray) -> np.ndarray:
    rows = losses.T.copy()
    rows[~np.isfinite(rows)] = np.finfo(np.float32).max
    return np.quantile(rows, BANDS, axis=1, overwrite_input=True)
