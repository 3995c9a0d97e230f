"""Autoregression of square roots as a baseline of a file: scores, what it is fitted on, and when it is left out."""

from types import SimpleNamespace

import numpy as np
import pytest

from seqjax.cli import dataset_test
from seqjax.datasets import forecast_report
from seqjax.datasets.baselines import forecast_baselines
from seqjax.datasets.baselines.series_baselines import FittedAutoregressions
from seqjax.datasets.forecast_batching import Split
from tests.datasets import test_forecast
from tests.datasets.test_forecast_seasons import make

ROOTS = 'AR(2) of square roots'


def counts(count=120, seed=0):
    """Counts that rise and fall in 11 steps, noisier where there are more."""
    rng = np.random.default_rng(seed)
    return rng.poisson(30 * (1.1 + np.sin(2 * np.pi * np.arange(count) / 11))).astype(float)


def squared_error(values, stop, origins, horizon=1):
    """The sum by least squares of square roots before `stop`, one row of a matrix after the other."""
    roots, total = np.sqrt(values), 0.0
    rows = [t for t in range(2, stop) if not np.isnan(roots[t - 2 : t + 1]).any()]
    design = np.array([[1, roots[t - 1], roots[t - 2]] for t in rows])
    weights = np.linalg.lstsq(design, roots[rows], rcond=None)[0]
    noise = np.mean((design @ weights - roots[rows]) ** 2)
    for origin in origins:
        lags, response = [roots[origin], roots[origin - 1]], [0.0, 1.0]
        for step in range(1, horizon + 1):
            forecast = weights[0] + weights[1:] @ lags
            variance = noise * np.sum(np.square(response))
            total += np.nan_to_num((max(forecast, 0) ** 2 + variance - values[origin + step]) ** 2)
            lags, response = [forecast, lags[0]], [*response, weights[1:] @ response[:-3:-1]]
    return total


@pytest.mark.parametrize('horizon', [1, 3])
def test_scores_are_those_of_least_squares_on_square_roots(horizon):
    values = counts()
    made = make(values, gap=None, horizon=horizon)
    assert list(made.baselines) == ['persistence', 'AR(2)', ROOTS]
    for split, stop, end in (('validation', 72, 96), ('test', 96, 120)):
        expected = squared_error(values, stop, range(stop - 1, end - horizon), horizon)
        assert made.baselines[ROOTS](split).totals.sum() == pytest.approx(expected, rel=1e-9)


def test_the_unit_of_the_file_does_not_matter():
    one, other = (make(scale * counts(), gap=None).baselines[ROOTS]('test') for scale in (1, 1e-5))
    np.testing.assert_allclose(one.totals, other.totals * 1e10, rtol=1e-9)


def test_validation_is_learned_from_before_the_test_and_the_test_never():
    values, changed, later = counts(), counts(), counts()
    changed[80] += 500
    later[96:] += 500
    one, other, third = (make(x, gap=None) for x in (values, changed, later))
    for name in ('AR(2)', ROOTS):
        scores = [made.baselines[name]('test').totals[-1] for made in (one, other)]  # far after the changed value
        assert scores[0] != scores[1]
        equal = [made.baselines[name]('validation').totals for made in (one, third)]
        np.testing.assert_array_equal(*equal)


@pytest.mark.parametrize(('place', 'present'), [(10, False), (80, False), (100, True), (None, True)])
def test_it_is_left_out_if_a_target_is_negative_before_the_test(place, present):
    values = counts()
    values[[3, 90]] = 0
    if place is not None:
        values[place] = -1
    made = make(values, gap=None)
    assert (ROOTS in made.baselines) == present
    assert all(np.isfinite(score(split).totals).all() for score in made.baselines.values() for split in ('test',))


def test_all_targets_of_all_series_are_forecast_or_none():
    table = test_forecast.draw(missing=0.05)
    assert not any('roots' in name for name in test_forecast.make(table, mask=True).baselines)
    for series in table.series:
        series.values[:] = np.abs(series.values)
    made = test_forecast.make(table, mask=True)
    assert dataset_test.validation_values(made).keys() == {'persistence', '7 steps before', 'AR(2)', ROOTS}
    assert np.array_equal(made.baselines[ROOTS]('test').counts, made.baselines['AR(2)']('test').counts)
    total = 0.0
    for series, split, (mean, deviation) in zip(
        table.series, test_forecast.SPLITTING, (part.scale for part in test_forecast.parts_of(made, table)), strict=True
    ):
        for c in (0, 1):
            values = series.values[:, c]
            origins = np.arange(split.test - 1, len(values) - test_forecast.HORIZON)
            model = forecast_baselines.fit(np.sqrt(values[: split.test]), 2)
            told = forecast_baselines.autoregressive_squares(model, np.sqrt(values), origins, test_forecast.HORIZON)
            for k, origin in enumerate(origins):
                actual = values[origin + 1 : origin + 1 + test_forecast.HORIZON]
                total += np.nansum(((told[k] - actual) / deviation[c]) ** 2)
    assert made.baselines[ROOTS]('test').totals.sum() == pytest.approx(total, rel=1e-9)


def test_the_order_is_chosen_by_aic_of_the_square_roots():
    select = pytest.importorskip('statsmodels.tsa.ar_model', reason='is the reference').ar_select_order
    values = counts(400)
    for series in (values, np.sqrt(values)):
        fitted = FittedAutoregressions.fit([series[:, None]], [Split(240, 320)], [], None, 'test')
        order = len(select(series[:240], forecast_baselines.max_order(240), ic='aic').ar_lags)
        assert fitted.name == f'AR({order})'


def test_the_table_by_steps_ahead_keeps_long_names_apart(monkeypatch):
    names = ['model', 'AR(10 to 24)', 'AR(10 to 24) of square roots']
    told = {name: [SimpleNamespace(series=0, errors=np.ones((1, 2, 1)))] for name in names}
    monkeypatch.setattr(forecast_report, 'errors', lambda forecast, *_: forecast.errors)
    options = {'original_units': True, 'horizon': 2, 'likelihood': 'point'}
    _, header, *rows = forecast_report.summarize(told, [None], options)
    assert header.endswith('   ' + names[-1]) and [len(row) for row in rows] == [len(header)] * 2
