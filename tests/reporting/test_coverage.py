"""Share of simulated experiments whose 95% confidence interval has the truth in it, for each kind of interval.

The large version prints the tables of docs/statistics.md, in about twenty minutes:

    python -m pytest -m slow -s tests/reporting/test_coverage.py
"""

import numpy as np
import pytest
from scipy import stats

from seqjax.datasets.dataset import ItemScores, MetricSpec
from seqjax.reporting import significance, statistics

MEAN, RMSE = MetricSpec('loss'), MetricSpec('RMSE', root=True)


SPREADS = {'alike': 0.001, 'differ': 0.1}  # standard deviation of the seeds' losses


@pytest.fixture
def few_resamples(monkeypatch):
    """A few seconds for all the tests that are not slow."""
    monkeypatch.setattr(statistics, 'MIN_RESAMPLES', 1_999)
    monkeypatch.setattr(statistics, 'MAX_ELEMENTS', 2**14)
    monkeypatch.setattr(significance, 'NUM_RESAMPLES', 200)


def covers(interval, truth):
    return interval[0] <= truth <= interval[-1]


# --- shares of seeds -------------------------------------------------------------------------------


def wilson_coverage(count, p):
    """The exact probability, from that of each number of successes."""
    hits = [covers(statistics.wilson_interval(k, count), p) for k in range(count + 1)]
    return float(stats.binom.pmf(np.arange(count + 1), count, p) @ hits)


@pytest.mark.parametrize('count', [10, 30])
def test_shares_of_seeds(count):
    """Some are below 95% and some above, since the number of successes is an integer; and 95% over all shares."""
    assert all(0.92 <= wilson_coverage(count, p) <= 0.985 for p in (0.5, 0.9, 0.97))
    assert np.mean([wilson_coverage(count, p) for p in np.linspace(0.01, 0.99, 99)]) == pytest.approx(0.953, abs=0.007)


# --- means of bounded scores -----------------------------------------------------------------------


def bimodal(rng, shape):
    """Nine of ten seeds succeed, at 0.998 to 1.0; the others fail, at 0.5 to 0.7."""
    return np.where(rng.random(shape) < 0.9, rng.uniform(0.998, 1.0, shape), rng.uniform(0.5, 0.7, shape))


SCORES = {  # name -> (rng, shape) -> scores, and their true mean
    'bell in the middle, Beta(20, 20)': (lambda rng, shape: rng.beta(20, 20, shape), 0.5),
    'skewed to 1, Beta(10, 1)': (lambda rng, shape: rng.beta(10, 1, shape), 10 / 11),
    'skewed to 1, Beta(10, 0.3)': (lambda rng, shape: rng.beta(10, 0.3, shape), 10 / 10.3),
    'two modes, 10% of seeds fail': (bimodal, 0.9 * 0.999 + 0.1 * 0.6),
    '0 or 1, 90% are 1': (lambda rng, shape: (rng.random(shape) < 0.9).astype(float), 0.9),
}


def student(values):
    mean, half_width = statistics.mean_interval(values)
    return mean - half_width, mean, mean + half_width


def wilson_of_mean(values):
    return statistics.wilson_interval(values.sum(), len(values))


def mean_coverage(interval, name, count, experiments, seed=0):
    """Share of the experiments whose interval has the true mean in it, and the mean width of the interval."""
    draw, truth = SCORES[name]
    found = [interval(values) for values in draw(np.random.default_rng(seed), (experiments, count))]
    return np.mean([covers(x, truth) for x in found]), np.mean([x[-1] - x[0] for x in found])


@pytest.mark.parametrize('name', SCORES)
def test_means_of_bounded_scores(name, few_resamples):
    covered, _ = mean_coverage(statistics.bounded_mean_interval, name, 30, 300)
    assert covered >= 0.91  # 2.5 standard errors below 94%


def test_failures_that_no_seed_had_are_in_the_interval_of_the_share_alone(few_resamples):
    """With ten seeds, a tenth of which fails, no seed fails in 35% of the experiments; docs/statistics.md says so."""
    covered, _ = mean_coverage(statistics.bounded_mean_interval, 'two modes, 10% of seeds fail', 10, 300)
    assert covered == pytest.approx(1 - 0.9**10, abs=0.07)
    assert statistics.wilson_interval(10, 10)[0] < 0.9


def item_coverage(seeds, items, experiments, with_items, seed=0):
    """Seeds that are tested on the same few items, of which one in twenty is hard; the mean is over both."""
    rng, hits = np.random.default_rng(seed), 0
    for _ in range(experiments):
        hard = rng.random(items) < 0.05
        right = np.where(hard, rng.beta(4, 4, (seeds, 1)), 0.998)  # a seed's share of right answers
        values = (rng.random((seeds, items)) < right).mean(1)
        hits += covers(statistics.bounded_mean_interval(values, items=items if with_items else None), 0.9731)
    return hits / experiments


def test_means_over_few_items(few_resamples):
    assert item_coverage(10, 250, 200, with_items=False) < 0.85
    assert item_coverage(10, 250, 200, with_items=True) >= 0.95


# --- medians ---------------------------------------------------------------------------------------


def median_coverage(count, failing, experiments, seed=0):
    """Needed sequences with an exponential distribution; a fraction of the seeds, the slowest ones, fails."""
    limit = stats.expon.ppf(1 - failing)
    values = np.random.default_rng(seed).exponential(size=(experiments, count))
    found = [statistics.censored_median(np.where(x < limit, x, np.inf)) for x in values]
    return np.mean([x.lower <= np.log(2) <= x.upper for x in found])


@pytest.mark.parametrize('failing', [0.0, 0.3])
def test_medians(failing):
    assert all(0.945 <= median_coverage(count, failing, 1_000) <= 0.99 for count in (6, 10, 30))


# --- improvements over a baseline ------------------------------------------------------------------


def improvement_coverage(metric, items, seeds, spread, experiments, seed=0):
    """A model that is better by 0.1, whose seeds have the standard deviation `spread`.

    Items are blocks of 11 values, and the last one a block of 5. The errors of model and baseline correlate.
    """
    rng, hits = np.random.default_rng(seed), 0
    counts = np.array([11] * (items - 1) + [5])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    for _ in range(experiments):
        shared, own = rng.normal(size=counts.sum()), rng.normal(size=(2, counts.sum()))
        mine, theirs = 0.9 * shared + 0.19**0.5 * own  # of variance 1
        shifts = rng.normal(0, spread, seeds)
        if metric.root:
            ours, theirs = ((0.9 + shifts[:, None]) * mine) ** 2, theirs**2
        else:
            ours, theirs = 0.9 + shifts[:, None] + mine, 1 + theirs
        *ours, theirs = [ItemScores(np.add.reduceat(x, starts), counts) for x in (*ours, theirs)]
        result = significance.improvement(metric, ours, theirs)
        truth = 0.1 if seeds > 1 else 0.1 - shifts[0]  # the interval of one seed is about that seed
        hits += abs(result.mean - truth) <= result.half_width
    return hits / experiments


@pytest.mark.parametrize('seeds', [1, 10])
@pytest.mark.parametrize('metric', [MEAN, RMSE], ids=lambda metric: metric.name)
def test_improvements_on_nine_items(metric, seeds, few_resamples):
    covered = improvement_coverage(metric, 9, seeds, SPREADS['alike'], 1_000)
    assert covered == pytest.approx(0.95, abs=0.02)  # three standard errors


@pytest.mark.parametrize('metric', [MEAN, RMSE], ids=lambda metric: metric.name)
def test_improvements_where_seeds_and_items_matter(metric, few_resamples):
    assert 0.94 <= improvement_coverage(metric, 9, 10, SPREADS['differ'], 500) <= 0.985


# --- the tables of docs/statistics.md ----------------------------------------------------------------


def print_table(*rows):
    print('\n\n' + '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows))


@pytest.mark.slow
def test_large_shares():
    rows = [['seeds', *(f'p = {p}' for p in (0.5, 0.9, 0.97))]]
    for count in (10, 30, 100):
        rows.append([str(count), *(f'{wilson_coverage(count, p):.1%}' for p in (0.5, 0.9, 0.97))])
    print_table(*rows)


@pytest.mark.slow
@pytest.mark.parametrize('name', SCORES)
def test_large_bounded_means(name):
    rows = []
    for count in (3, 5, 10, 30, 100):
        kinds = student, statistics.bounded_mean_interval, wilson_of_mean
        found = [mean_coverage(kind, name, count, 2_000) for kind in kinds]
        rows.append([name, str(count), *(f'{share:.1%} ({width:.3f})' for share, width in found)])
    print_table(*rows)


@pytest.mark.slow
def test_large_items():
    rows = [['seeds', 'items', 'seeds only', 'seeds and items']]
    for seeds in (3, 10, 30):
        for items in (250, 2560):
            found = [item_coverage(seeds, items, 1_000, with_items) for with_items in (False, True)]
            rows.append([str(seeds), str(items), *(f'{share:.1%}' for share in found)])
    print_table(*rows)


@pytest.mark.slow
def test_large_medians():
    rows = [['seeds', 'none fails', '30% fail']]
    for count in (6, 10, 30, 100):
        rows.append([str(count), *(f'{median_coverage(count, failing, 10_000):.1%}' for failing in (0.0, 0.3))])
    print_table(*rows)


@pytest.mark.slow
def test_large_improvements():
    rows = [['items', 'seeds', *(f'{metric.name}, seeds {size}' for metric in (MEAN, RMSE) for size in SPREADS)]]
    for items in (9, 30):
        for seeds in (1, 3, 10, 30):
            cells = [
                f'{improvement_coverage(metric, items, seeds, spread, 4_000):.1%}'
                for metric in (MEAN, RMSE)
                for spread in SPREADS.values()
            ]
            rows.append([str(items), str(seeds), *cells])
    print_table(*rows)
