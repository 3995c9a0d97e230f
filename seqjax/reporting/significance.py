"""Comparison of a model with a baseline on the test split, with a confidence interval."""

import math
from typing import NamedTuple

import numpy as np

from seqjax.datasets.dataset import ItemScores, MetricSpec
from seqjax.reporting import statistics

NUM_RESAMPLES = 1000  # bootstrap resamples of the items
MAX_ELEMENTS = 2**24  # largest size (resamples x items) of an array of the bootstrap


class Improvement(NamedTuple):
    """Improvement of a model over a baseline, in the unit of the metric; positive if the model is better."""

    mean: float  # mean over seeds
    half_width: float  # half the width of the 95% confidence interval; infinite if it is unknown

    @property
    def significant(self) -> bool:
        """True if the 95% confidence interval excludes 0."""
        return abs(self.mean) > self.half_width


def improvement(metric: MetricSpec, ours: list[ItemScores], theirs: ItemScores, seed: int = 0) -> Improvement:
    """Returns the mean improvement, over seeds, of a model over a baseline on the same items, with a 95% CI.

    Both the seeds and the items are random samples. The interval has the variance of both: of the mean over seeds, by
    Student's t, and of the items, by a paired bootstrap of the mean over seeds (Efron and Tibshirani 1993, chapter
    8.4). The bootstrap's standard deviation is too small for few items, and has an error of its own; it is therefore
    multiplied by sqrt(N / (N - 1)) and by the quantile of Student's t with N - 1 degrees of freedom. If items have
    different counts, N is their effective number (Kish 1965). The half widths of seeds and items are added in
    quadrature, which covers at least 95% for normal errors (Banerjee 1960).

    With one seed the interval has the variance of the items only; with one item its half width is infinite.

    Args:
      metric: metric that is compared.
      ours: item scores [N] of the model, for each seed.
      theirs: item scores [N] of the baseline.
      seed: random seed of the bootstrap.

    Raises:
      ValueError: the model and the baseline were scored on different items.
    """
    counts = np.asarray(theirs.counts, np.float64)
    if any(not np.array_equal(items.counts, theirs.counts) for items in ours):
        raise ValueError(
            'the items of the model and of the baseline differ in number, or in their counts of values; pass scores of '
            'the same items in the same order'
        )
    totals = np.stack([np.asarray(items.totals, np.float64) for items in (*ours, theirs)])  # [R + 1, N]
    signs = 1 if metric.higher_is_better else -1
    values = metric.value(totals.sum(1), counts.sum())
    differences = signs * (values[:-1] - values[-1])
    resampled = np.concatenate(list(_resample(metric, totals, counts, np.random.default_rng(seed))), axis=1)
    item_error, count = math.inf, effective_count(counts)
    if count > 1.01:  # the variance of a single item cannot be estimated
        deviation = np.std(resampled[:-1].mean(0) - resampled[-1])
        item_error = statistics.t_quantile(count - 1) * (count / (count - 1)) ** 0.5 * deviation
    mean, seed_error = statistics.mean_interval(differences)
    return Improvement(mean, math.hypot(item_error, seed_error if len(ours) > 1 else 0.0))


def effective_count(counts: np.ndarray) -> float:
    """Returns the number of items with equal counts that have the same variance as items with `counts` [N].

    >>> effective_count(np.array([11, 11, 11, 11])), round(effective_count(np.array([11, 11, 11, 5])), 2)
    (4.0, 3.72)
    """
    return float(counts.sum() ** 2 / (counts**2).sum())


def _resample(metric: MetricSpec, totals: np.ndarray, counts: np.ndarray, rng: np.random.Generator):
    """Yields the metric [R + 1, n] of each row of `totals`, over items drawn with replacement, n resamples at a time.

    Resamples whose counts sum to 0 are left out.
    """
    num_items, remaining = len(counts), NUM_RESAMPLES
    while remaining:
        n = min(remaining, max(1, MAX_ELEMENTS // num_items))
        times = rng.multinomial(num_items, np.full(num_items, 1 / num_items), n).astype(np.float64)  # [n, N]
        resampled_counts = times @ counts
        valid = resampled_counts > 0
        yield metric.value(totals @ times[valid].T, resampled_counts[valid])
        remaining -= n


def best_name(metric: MetricSpec, values: dict[str, float]) -> str:
    """Returns the name with the best value: the highest if `metric.higher_is_better`, otherwise the lowest."""
    return (max if metric.higher_is_better else min)(values, key=values.__getitem__)


def verdict(metric: MetricSpec, result: Improvement, model: str, baseline: str) -> str:
    """Returns a sentence that compares a model with a baseline.

    It recommends the baseline unless the model is significantly better.
    """
    unit = f' in {metric.unit}' if metric.unit else ''
    interval = f' ± {result.half_width:{metric.format_spec}}' if math.isfinite(result.half_width) else ''
    confidence = '(95% CI)' if interval else '(no confidence interval)'
    direction = 'better' if result.mean > 0 else 'worse'
    difference = f'{abs(result.mean):{metric.format_spec}}{interval} {metric.name}{unit}'
    text = f'{model} is {direction} than {baseline} by {difference}'
    if not result.significant:
        return f'{text} {confidence}: not statistically significant, use the simpler baseline'
    return f'{text} {confidence}: statistically significant' + ('' if result.mean > 0 else ', use the baseline')
