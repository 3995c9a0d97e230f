"""Confidence intervals and quantiles over seeds."""

import math
import warnings
from typing import NamedTuple

import numpy as np

Interval = tuple[float, float, float]  # (lower edge, estimate, upper edge) of a 95% confidence interval
Z95 = 1.959964  # the normal distribution's 97.5% quantile
BANDS = (0.025, 0.25, 0.5, 0.75, 0.975)  # quantiles: the edges of the 95% and 50% bands, and the median


def wilson_interval(successes: float, count: int) -> tuple[float, float]:
    """Returns the edges of the 95% confidence interval of the proportion successes / count (Wilson 1927, equation 2).

    `successes` may be a sum of values from 0 to 1.

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


class CensoredMedian(NamedTuple):
    """Median, with its 95% confidence interval, of values that may only be known to be above a limit."""

    lower: float  # edges and median are infinite where they are above the limit
    median: float
    upper: float
    failures: int  # number of values above the limit
    count: int  # number of all values


def censored_median(values: np.ndarray) -> CensoredMedian:
    """Returns the median of values [R], where NaN or infinity stands for a seed that failed: a value above the limit.

    The interval is distribution-free, see `median_interval`; so a failed seed counts without an assumed value.

    >>> censored_median(np.array([3.0, 1.0, 2.0, np.nan, 5.0, 4.0, np.inf]))
    CensoredMedian(lower=1.0, median=4.0, upper=inf, failures=2, count=7)
    """
    return CensoredMedian(*median_interval(values), int((~np.isfinite(values)).sum()), len(values))


def t_quantile(degrees_of_freedom: float) -> float:
    """Returns the 97.5% quantile of Student's t distribution; `degrees_of_freedom` need not be an integer.

    >>> round(t_quantile(9), 3)
    2.262
    """
    from scipy.special import stdtrit  # installed with JAX; importing it takes a tenth of a second

    return float(stdtrit(degrees_of_freedom, 0.975))


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean of values [R] and half the width of its 95% confidence interval by Student's t (Student 1908).

    It is for values without bounds, such as losses; see `bounded_mean_interval` for shares. For a single value, the
    half width is infinite.

    >>> [round(x, 3) for x in mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))]
    [2.5, 2.054]
    """
    count = len(values)
    if count < 2:
        return float(np.mean(values)), math.inf
    error = np.std(values, ddof=1) / count**0.5
    return float(np.mean(values)), float(t_quantile(count - 1) * error)


def excludes_zero(interval: Interval) -> bool:
    """Returns True if 0 is outside the interval, so that the estimate differs significantly from it."""
    return interval[0] > 0 or interval[2] < 0


def combine_intervals(*intervals: Interval) -> Interval:
    """Returns the interval of an estimate with several independent errors, from an interval for each of the errors.

    The distances of the edges from the estimate, which is the estimate of the first interval, are added in quadrature,
    each side by itself (Zou and Donner 2008).

    >>> combine_intervals((0.6, 0.9, 0.95), (0.5, 0.9, 0.9))
    (0.4, 0.9, 0.95)
    """
    middle = intervals[0][1]
    lower, upper = (math.hypot(*(interval[edge] - interval[1] for interval in intervals)) for edge in (0, 2))
    return middle - lower, middle, middle + upper


MIN_RESAMPLES = 9_999  # least number of bootstrap resamples of the values
MAX_ELEMENTS = 2**20  # largest size (resamples x values) of an array of the bootstrap
MIN_BOOTSTRAP_COUNT = 6  # least number of values of a bootstrap; its interval is within the range of the values


def bounded_mean_interval(
    values: np.ndarray, low: float = 0.0, high: float = 1.0, items: int | None = None
) -> Interval:
    """Returns (lower edge, mean, upper edge) of the 95% confidence interval of the mean of values [R] in [low, high].

    The interval is a BCa bootstrap (Efron 1987), with a confidence level that is expanded for few values (Hesterberg
    2015); for fewer than MIN_BOOTSTRAP_COUNT values, it is Student's t. If all values are equal, it is Wilson's
    interval of the proportion (mean - low) / (high - low) of R. The edges are within [low, high]. The same values
    always have the same interval, in any order. If a value is NaN, all three numbers are NaN.

    Args:
      values: a score of each seed, such as a share of correct answers.
      low: smallest possible value.
      high: largest possible value.
      items: number of test items whose mean is a value. All seeds share them; their own sampling error, Wilson's of
        a proportion of `items`, is combined with the error of the seeds. By default, it is left out.

    Raises:
      ValueError: a value is not within [low, high].

    >>> [round(x, 3) for x in bounded_mean_interval(np.array([0.99, 1.0, 0.97, 1.0, 0.98, 1.0, 1.0, 0.88]))]
    [0.909, 0.978, 0.996]
    >>> [round(x, 4) for x in bounded_mean_interval(np.ones(10))]
    [0.7225, 1.0, 1.0]
    """
    values = np.asarray(values, np.float64)
    if np.isnan(values).any():
        return math.nan, math.nan, math.nan
    if values.min() < low or values.max() > high:
        raise ValueError(f'values from {values.min():g} to {values.max():g} are not within [{low:g}, {high:g}]')
    mean, scale = float(np.mean(values)), high - low
    shares = np.round((values - low) / scale * 2**40) / 2**40  # their sums are exact, so that equal means are equal
    if shares.mean() > 0.5:  # shares of errors and of correct answers have the same interval
        upper, _, lower = (1 - x for x in _mean_share_interval(1 - shares, items))
    else:
        lower, _, upper = _mean_share_interval(shares, items)
    return min(low + scale * lower, mean), mean, max(low + scale * upper, mean)


def share_difference_interval(ours: np.ndarray, theirs: np.ndarray, items: int | None = None) -> Interval:
    """Returns the 95% confidence interval, with the mean, of ours [R] - theirs [R]: shares from 0 to 1, paired by seed.

    The interval is that of a bounded mean. If all differences are equal, the intervals of both means are combined as if
    they were independent (Newcombe 1998, method 10). `items` are as in `bounded_mean_interval`; the errors of both
    means on the items are combined in the same way, which is too wide if both models fail on the same items.

    >>> [round(x, 4) for x in share_difference_interval(np.ones(10), np.ones(10))]
    [-0.2775, 0.0, 0.2775]
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    difference = ours - theirs
    if np.isnan(difference).any():
        return math.nan, math.nan, math.nan
    means, mean = (float(ours.mean()), float(theirs.mean())), float(difference.mean())

    def minus(a: Interval, b: Interval) -> Interval:
        lower, _, upper = combine_intervals((a[0] - a[1], 0.0, a[2] - a[1]), (b[1] - b[2], 0.0, b[1] - b[0]))
        return mean + lower, mean, mean + upper

    if np.ptp(difference) > 1e-9:
        interval = bounded_mean_interval(difference, -1.0, 1.0)
    else:
        interval = minus(bounded_mean_interval(ours), bounded_mean_interval(theirs))
    if items is not None:
        interval = combine_intervals(interval, minus(*(_proportion_interval(x, items) for x in means)))
    return max(interval[0], -1.0), mean, min(interval[2], 1.0)


def _mean_share_interval(shares: np.ndarray, items: int | None) -> Interval:
    """Returns the interval of `bounded_mean_interval` for shares [R] from 0 to 1."""
    shares = np.sort(shares)  # the bootstrap depends on the order
    mean = float(shares.mean())
    edges = _varied_edges(shares) if shares[-1] - shares[0] > 1e-9 else None
    interval = _proportion_interval(mean, len(shares)) if edges is None else (edges[0], mean, edges[1])
    if items is not None:
        interval = combine_intervals(interval, _proportion_interval(mean, items))
    return max(interval[0], 0.0), mean, min(interval[2], 1.0)


def _proportion_interval(share: float, count: int) -> Interval:
    """Returns Wilson's interval of a share of `count`, which need not be a share of integers."""
    lower, upper = wilson_interval(share * count, count)
    return lower, share, upper


def _varied_edges(values: np.ndarray) -> tuple[float, float] | None:
    """Returns the edges of the interval of the mean of values [R] that are not all equal; None if it is undefined."""
    count = len(values)
    if count < MIN_BOOTSTRAP_COUNT:
        mean, half_width = mean_interval(values)
        return mean - half_width, mean + half_width
    from scipy import special, stats  # installed with JAX; importing stats takes half a second

    level = 1 - 2 * special.ndtr(-((count / (count - 1)) ** 0.5) * t_quantile(count - 1))
    with warnings.catch_warnings(), np.errstate(all='ignore'):
        warnings.simplefilter('ignore')  # of an undefined interval
        interval = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=max(MIN_RESAMPLES, MAX_ELEMENTS // count),  # the tails of few values need more resamples
            batch=max(1, MAX_ELEMENTS // count),
            confidence_level=level,
            method='BCa',
            random_state=np.random.default_rng(0),  # the keyword of all versions of SciPy
        ).confidence_interval
    edges = float(interval.low), float(interval.high)
    return edges if np.isfinite(edges).all() else None


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
