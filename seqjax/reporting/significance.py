"""Whether a model beats a baseline on what neither has seen, by how much, and how sure that is."""

import math
from typing import NamedTuple

import numpy as np

from seqjax.datasets.dataset import Items, Measure
from seqjax.reporting import statistics

DRAWS = 1000  # of the items
AT_ONCE = 2**24  # numbers that a draw of items holds


class Improvement(NamedTuple):
    """How much better the model is, in the measure's own units; above 0 it is better."""

    mean: float
    half_width: float  # of the 95% interval

    @property
    def significant(self) -> bool:
        return abs(self.mean) > self.half_width


def improvement(measure: Measure, ours: list[Items], theirs: Items, seed: int = 0) -> Improvement:
    """The mean over seeds of the difference between a model and a baseline, on the same items.

    Two things are drawn by chance, the seeds and the items. The interval has the variance of both: that of the mean
    over seeds, by Student's t, and that of the items, by a paired bootstrap of the seeds' mean (Efron and Tibshirani
    1993, chapter 8.4). One seed alone gives the second. `ours` are the items [N] of each seed, and `theirs` the
    baseline's; ValueError is raised where they are not the same ones.
    """
    counts = np.asarray(theirs.counts, np.float64)
    if any(not np.array_equal(items.counts, theirs.counts) for items in ours):
        raise ValueError('the model and the baseline were scored on different items')
    totals = np.stack([np.asarray(items.totals, np.float64) for items in (*ours, theirs)])  # [R + 1, N]
    signs = 1 if measure.higher else -1
    values = measure.value(totals.sum(1), counts.sum())
    each = signs * (values[:-1] - values[-1])
    drawn = np.concatenate(list(_drawn(measure, totals, counts, np.random.default_rng(seed))), axis=1)
    # One item has no spread to draw from.
    of_items = statistics.Z95 * np.std(signs * (drawn[:-1].mean(0) - drawn[-1])) if len(counts) > 1 else math.inf
    mean, of_seeds = statistics.mean_interval(each)
    return Improvement(mean, math.hypot(of_items, of_seeds if len(ours) > 1 else 0.0))


def _drawn(measure: Measure, totals: np.ndarray, counts: np.ndarray, rng: np.random.Generator):
    """Values [R + 1, draws] of items drawn with replacement, a few draws at a time."""
    count, left = len(counts), DRAWS
    while left:
        some = min(left, max(1, AT_ONCE // count))
        times = rng.multinomial(count, np.full(count, 1 / count), some).astype(np.float64)  # [some, N]
        part = times @ counts
        good = part > 0
        yield measure.value(totals @ times[good].T, part[good])
        left -= some


def best_name(measure: Measure, values: dict[str, float]) -> str:
    """The name with the best value."""
    return (max if measure.higher else min)(values, key=values.__getitem__)


def verdict(measure: Measure, found: Improvement, who: str, whom: str) -> str:
    """In words: who beats whom by how much; where that is not clear, the baseline is the advice."""
    unit = f' {measure.unit}' if measure.unit else ''
    interval = (
        f'± {found.half_width:{measure.spec}} (95% interval)' if math.isfinite(found.half_width) else '(no interval)'
    )
    by = f'{abs(found.mean):{measure.spec}}{unit} {interval}'
    if not found.significant:
        more = 'better' if found.mean > 0 else 'worse'
        return (
            f'{who} is {more} than {whom} by {by}, which may be chance: use the baseline, which is simpler, or '
            'find out with more --num_seeds, or with more to test on'
        )
    if found.mean > 0:
        return f'{who} beats {whom} by {by}'
    return f'{who} is worse than {whom} by {by}: use the baseline'
