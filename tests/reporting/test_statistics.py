"""Intervals of means, medians and differences over seeds, beside SciPy's own where it has them."""

import numpy as np
import pytest
from scipy import stats

from seqjax.reporting import statistics, text_tables
from seqjax.reporting.statistics import bounded_mean_interval, share_difference_interval

SKEWED = np.array([0.99, 1.0, 0.97, 1.0, 0.98, 1.0, 1.0, 0.88])


# --- SciPy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(('successes', 'count'), [(0, 10), (7, 10), (299, 300)])
def test_a_share_has_scipys_wilson_interval(successes, count):
    assert statistics.wilson_interval(successes, count) == pytest.approx(
        tuple(stats.binomtest(successes, count).proportion_ci(method='wilson')), abs=1e-7
    )


@pytest.mark.parametrize('count', [2, 5, 40])
def test_a_mean_has_scipys_student_interval(count):
    values = np.random.default_rng(count).normal(size=count)
    mean, half_width = statistics.mean_interval(values)
    expected = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert (mean - half_width, mean + half_width) == pytest.approx(expected)


@pytest.mark.parametrize('count', [6, 17, 100])
def test_a_median_has_scipys_interval(count):
    values = np.random.default_rng(count).exponential(size=count)
    low, _, high = statistics.median_interval(values)
    assert (low, high) == tuple(stats.quantile_test(values, p=0.5).confidence_interval(0.95))


def bca_edges(values, level):
    """Efron and Tibshirani 1993, equations 14.10 to 14.15, with the bootstrap distribution of 300,000 resamples."""
    count = len(values)
    resampled = values[np.random.default_rng(7).integers(0, count, (300_000, count))].mean(1)
    bias = stats.norm.ppf(np.mean(resampled < values.mean()) + np.mean(resampled == values.mean()) / 2)
    others = (values.sum() - values) / (count - 1)
    residuals = others.mean() - others
    acceleration = (residuals**3).sum() / (6 * (residuals**2).sum() ** 1.5)
    edges = []
    for z in stats.norm.ppf([(1 - level) / 2, (1 + level) / 2]):
        edges.append(np.quantile(resampled, stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))))
    return edges


@pytest.mark.parametrize('count', [12, 40])
def test_a_bounded_mean_has_the_bca_interval_of_the_expanded_level(count):
    values = np.random.default_rng(count).beta(8, 2, count)
    level = 1 - 2 * stats.norm.cdf(-np.sqrt(count / (count - 1)) * stats.t.ppf(0.975, count - 1))
    low, mean, high = bounded_mean_interval(values)
    expected = bca_edges(values, level)
    assert mean == pytest.approx(values.mean()) and (low, high) == pytest.approx(expected, abs=0.04 * np.ptp(expected))


# --- means of bounded scores -----------------------------------------------------------------------


@pytest.mark.parametrize('count', [1, 2, 3, 5, 6, 10, 40])
@pytest.mark.parametrize('shape', [(20, 20), (10, 0.3), (0.1, 0.1)])
def test_the_interval_of_a_bounded_mean_is_within_the_bounds_and_around_the_mean(count, shape):
    rng = np.random.default_rng(count)
    for _ in range(5):
        values = rng.beta(*shape, count)
        for items in (None, 250):
            low, mean, high = bounded_mean_interval(values, items=items)
            assert 0 <= low <= mean <= high <= 1 and low < high and mean == pytest.approx(values.mean())


def test_the_interval_depends_on_the_values_alone():
    """Not on their order, their scale or whether they count what is right or wrong; and it is the same every time."""
    interval = bounded_mean_interval(SKEWED)
    assert bounded_mean_interval(SKEWED) == bounded_mean_interval(SKEWED[::-1]) == interval
    assert bounded_mean_interval(200 * SKEWED - 100, -100, 100) == pytest.approx([200 * x - 100 for x in interval])
    assert bounded_mean_interval(1 - SKEWED) == pytest.approx([1 - x for x in interval[::-1]], abs=1e-12)


@pytest.mark.parametrize('count', [1, 3, 10])
@pytest.mark.parametrize('value', [0.0, 0.3, 1.0])
def test_equal_values_have_wilsons_interval(count, value):
    low, mean, high = bounded_mean_interval(np.full(count, value))
    assert mean == pytest.approx(value) and (low, high) == pytest.approx(
        statistics.wilson_interval(value * count, count)
    )
    low, mean, high = bounded_mean_interval(np.full(count, 50 * value), 0, 50)
    assert low == pytest.approx(50 * statistics.wilson_interval(value * count, count)[0]) and mean == 50 * value


def test_few_values_have_students_interval_within_the_bounds():
    values = np.array([0.95, 0.97, 1.0])
    mean, half_width = statistics.mean_interval(values)
    assert bounded_mean_interval(values) == pytest.approx((mean - half_width, mean, 1.0))


def test_few_items_widen_the_interval_and_many_do_not():
    plain, few, many = (bounded_mean_interval(SKEWED, items=items) for items in (None, 250, 10**9))
    assert many == pytest.approx(plain, abs=1e-4)
    wilson = statistics.wilson_interval(0.9775 * 250, 250)
    for edge in (0, 2):
        distance = np.hypot(plain[edge] - 0.9775, wilson[edge > 0] - 0.9775)
        assert abs(few[edge] - 0.9775) == pytest.approx(min(distance, 1 - 0.9775 if edge else 1))
    assert few[0] < plain[0] - 0.001


def test_values_that_are_no_scores_have_no_interval():
    assert np.isnan(bounded_mean_interval(np.array([0.5, np.nan]))).all()
    with pytest.raises(ValueError, match=r'from 0\.5 to 1\.5.*\[0, 1\]'):
        bounded_mean_interval(np.array([0.5, 1.5]))


def test_intervals_are_combined_side_by_side():
    assert statistics.combine_intervals((0.6, 0.9, 0.95), (0.5, 0.9, 0.9)) == pytest.approx((0.4, 0.9, 0.95))
    assert statistics.combine_intervals((0.6, 0.9, 0.95)) == pytest.approx((0.6, 0.9, 0.95))


# --- differences of shares -------------------------------------------------------------------------


def test_differences_of_shares_are_paired():
    """Seeds that differ much, of two cells that differ by nearly the same on each of them."""
    first = np.random.default_rng(0).uniform(0.1, 0.8, 12)
    second = first - 0.1 + np.random.default_rng(1).normal(0, 0.01, 12)
    low, mean, high = share_difference_interval(first, second)
    assert 0.09 < low < mean < high < 0.11 and (low, mean, high) == bounded_mean_interval(first - second, -1, 1)
    with_items = share_difference_interval(first, second, items=250)
    assert with_items[0] < low and with_items[2] > high


def test_equal_differences_have_the_combined_interval_of_both():
    """Each side has the distances of both Wilson intervals in quadrature (Newcombe 1998, method 10)."""
    assert share_difference_interval(np.ones(10), np.ones(10)) == pytest.approx((-0.27753, 0, 0.27753), abs=1e-5)
    low, mean, high = share_difference_interval(np.zeros(4), np.ones(4))
    edge = statistics.wilson_interval(0, 4)[1]
    assert (low, mean, high) == pytest.approx((-1.0, -1.0, -1 + 2**0.5 * edge))
    assert np.isnan(share_difference_interval(np.array([np.nan]), np.ones(1))).all()


# --- text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('interval', 'spec', 'text'),
    [
        ((0.9892, 0.9968, 1.0), '.1%', '99.7% (98.9% to 100.0%)'),
        ((0.99993, 0.99998, 1.0), '.1%', '100.00% (99.99% to 100.00%)'),
        ((1 - 1e-9, 1.0, 1.0), '.1%', '100.0% (100.0% to 100.0%)'),
        ((-0.01, 0.002, 0.03), '+.2%', '+0.20% (-1.00% to +3.00%)'),
        ((361.0, 500.0, 500.0), ',.0f', '500 (361 to 500)'),
        ((np.nan, np.nan, np.nan), '.2%', 'nan%'),
    ],
)
def test_a_bounded_interval_as_text(interval, spec, text):
    assert text_tables.format_bounded(interval, spec) == text


@pytest.mark.parametrize(
    ('values', 'text'),
    [
        ([10, 20, 30, 40, 50, 60, 70], '40 (95% CI 10 to 70)'),
        ([10, 20, 30, 40, 50, np.inf, np.nan], '40 (95% CI 10 to over 100), 2 of 7 failed'),
        ([10, 20, np.inf, np.inf, np.inf, np.inf, np.inf], 'over 100 (95% CI 10 to over 100), 5 of 7 failed'),
        ([10, 20, 30], '20 (range 10 to 30)'),
        ([10, 30, np.inf, np.inf], 'over 100 (range 10 to over 100), 2 of 4 failed'),
        ([np.inf] * 6, 'over 100, 6 of 6 failed'),
        ([10], '10'),
    ],
)
def test_a_censored_median_as_text(values, text):
    assert text_tables.format_censored(statistics.censored_median(np.array(values, float)), 100) == text
