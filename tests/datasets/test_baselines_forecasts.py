"""Forecasts without a network, against statsmodels, loops and published numbers."""

import numpy as np
import pytest

from seqjax.datasets.baselines import forecast_baselines
from seqjax.datasets.baselines.forecast_baselines import Autoregression


@pytest.fixture
def series():
    """A series with two real lags, far from 0."""
    rng = np.random.default_rng(3)
    values = np.zeros(400)
    for t in range(2, 400):
        values[t] = 0.7 * values[t - 1] - 0.4 * values[t - 2] + rng.normal()
    return values + 50


def rmse(forecasts, truth):
    return float(np.sqrt(np.mean((forecasts - truth) ** 2)))


def test_sunspots_are_forecast_as_well_as_is_known():
    """Yearly sunspots, one step ahead: trained on 1700 to 1920, tested on 1921 to 2008."""
    sunspots = pytest.importorskip('statsmodels.datasets', reason='has the sunspots').sunspots
    values = sunspots.load_pandas().data['SUNACTIVITY'].to_numpy()
    origins = np.arange(220, 308)
    model = forecast_baselines.fit(values[:221], 9)
    assert round(rmse(forecast_baselines.autoregressive(model, values, origins, 1)[:, 0], values[221:]), 2) == 17.44
    assert round(rmse(forecast_baselines.seasonal_naive(values, origins, 1)[:, 0], values[221:]), 2) == 30.44
    assert (
        forecast_baselines.best_order(values[:221], forecast_baselines.max_order(221)) == 18
    )  # by statsmodels' AIC, too


def test_square_roots_forecast_sunspots_better():
    """The mean of a square is more than the square of a mean: 15.44 without the variance."""
    sunspots = pytest.importorskip('statsmodels.datasets', reason='has the sunspots').sunspots
    values = sunspots.load_pandas().data['SUNACTIVITY'].to_numpy()
    model, origins = forecast_baselines.fit(np.sqrt(values[:221]), 9), np.arange(220, 308)
    told = forecast_baselines.autoregressive_squares(model, np.sqrt(values), origins, 1)[:, 0]
    assert round(rmse(told, values[221:]), 2) == 15.21
    assert round(rmse(told - model.variance, values[221:]), 2) == 15.44


@pytest.mark.parametrize('order', [1, 2, 7])
def test_autoregression_is_that_of_statsmodels(series, order):
    autoreg = pytest.importorskip('statsmodels.tsa.ar_model', reason='is the reference').AutoReg
    theirs, mine = autoreg(series, order).fit(), forecast_baselines.fit(series, order)
    np.testing.assert_allclose([mine.intercept, *mine.weights], theirs.params, rtol=1e-8)
    np.testing.assert_allclose(
        forecast_baselines.autoregressive(mine, series, np.array([399]), 12)[0], theirs.forecast(12), rtol=1e-8
    )
    assert mine.variance == pytest.approx(theirs.sigma2, rel=1e-8)
    variances = theirs.get_prediction(400, 411).var_pred_mean
    np.testing.assert_allclose(forecast_baselines.error_variances(mine, 12), variances, rtol=1e-8)


def test_the_order_is_that_of_statsmodels(series):
    select = pytest.importorskip('statsmodels.tsa.ar_model', reason='is the reference').ar_select_order
    for values in (series, np.cumsum(series - 50), series[:60]):
        assert forecast_baselines.best_order(values, 12) == len(select(values, 12, ic='aic').ar_lags)
    assert (
        forecast_baselines.max_order(5),
        forecast_baselines.max_order(100),
        forecast_baselines.max_order(10**6),
    ) == (1, 10, 24)


def test_a_long_series_is_fitted_block_by_block(series, monkeypatch):
    whole, order = forecast_baselines.fit(series, 3), forecast_baselines.best_order(series, 9)
    forecasts = forecast_baselines.autoregressive(whole, series, np.arange(5, 300), 4)
    monkeypatch.setattr('seqjax.datasets.baselines.forecast_baselines.BLOCK', 37)
    parts = forecast_baselines.fit(series, 3)
    np.testing.assert_allclose([parts.intercept, *parts.weights], [whole.intercept, *whole.weights], rtol=1e-9)
    assert forecast_baselines.best_order(series, 9) == order
    np.testing.assert_allclose(
        forecast_baselines.autoregressive(whole, series, np.arange(5, 300), 4), forecasts, rtol=1e-12
    )


def test_a_series_without_noise_has_a_solution():
    """A line and a wave leave nothing, and are told without error, though their lags depend on each other."""
    times = np.arange(60.0)
    for values in (3 * times - 5, np.sin(times * np.pi / 3), (-1.0) ** times):
        model = forecast_baselines.fit(values, 4)
        np.testing.assert_allclose(
            forecast_baselines.autoregressive(model, values, np.array([30, 50]), 1)[:, 0], values[[31, 51]], atol=1e-8
        )
        assert forecast_baselines.best_order(values, 5) <= 5


def test_missing_values_are_left_out_of_a_fit_and_carried_on_in_a_forecast(series):
    holes = series.copy()
    holes[[100, 101, 200]] = np.nan
    rows = [t for t in range(2, 400) if not np.isnan(holes[t - 2 : t + 1]).any()]
    design = np.array([[1, holes[t - 1], holes[t - 2]] for t in rows])
    expected = np.linalg.lstsq(design, holes[rows], rcond=None)[0]
    model = forecast_baselines.fit(holes, 2)
    np.testing.assert_allclose([model.intercept, *model.weights], expected, rtol=1e-8)
    told = forecast_baselines.autoregressive(model, holes, np.array([101]), 1)[0, 0]
    assert told == pytest.approx(model.intercept + model.weights.sum() * holes[99])


def test_before_the_beginning_stands_the_mean_of_the_model():
    model = Autoregression(2.0, np.array([0.5, 0.25]))
    told = forecast_baselines.autoregressive(model, np.array([np.nan, 3.0]), np.array([0, 1]), 2)
    before, first = 2 / 0.25, 3.0  # the first value is missing: that which comes is the nearest known
    one = 2 + 0.5 * first + 0.25 * before
    np.testing.assert_allclose(told[0], [one, 2 + 0.5 * one + 0.25 * first])


def test_seasonal_forecasts_are_the_latest_known_value_of_the_phase():
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    values[rng.random(40) < 0.3] = np.nan
    for season in (1, 3, 7):
        found = forecast_baselines.seasonal_naive(values, np.arange(40), 9, season)
        for origin in range(40):
            for step in range(1, 10):
                places = [t for t in range(origin, -1, -1) if (origin + step - t) % season == 0]
                known = [values[t] for t in places if not np.isnan(values[t])]
                assert found[origin, step - 1] == (known[0] if known else 0)


def test_values_are_carried_by_column():
    values = np.array([[np.nan, 1.0], [2.0, np.nan], [np.nan, np.nan], [5.0, 6.0]])
    assert forecast_baselines.forward_fill(values).tolist() == [[0, 1], [2, 1], [2, 1], [5, 6]]
    assert forecast_baselines.forward_fill(values, lag=2).tolist() == [[0, 1], [2, 0], [0, 1], [5, 6]]


def test_too_few_values_are_refused():
    with pytest.raises(ValueError, match='order=3'):
        forecast_baselines.fit(np.arange(7.0), 3)


@pytest.mark.parametrize('horizon', [1, 4])
def test_squares_of_forecast_roots_have_the_mean_of_many_paths(horizon):
    model = Autoregression(1.0, np.array([0.6, 0.2]), variance=0.3)
    roots, rng = np.array([4.0, 6.0, 5.0]), np.random.default_rng(0)
    paths = np.tile(roots, (200_000, 1))
    for _ in range(horizon):
        step = 1 + 0.6 * paths[:, -1] + 0.2 * paths[:, -2] + np.sqrt(0.3) * rng.normal(size=len(paths))
        paths = np.concatenate([paths, step[:, None]], 1)
    told = forecast_baselines.autoregressive_squares(model, roots, np.array([2]), horizon)
    np.testing.assert_allclose(told[0], (paths[:, 3:] ** 2).mean(0), rtol=2e-3)


def test_a_negative_root_is_none_and_an_unstable_model_stays_finite():
    model = Autoregression(-9.0, np.array([0.5]), variance=0.25)
    assert forecast_baselines.autoregressive_squares(model, np.array([4.0]), np.array([0]), 1).tolist() == [[0.25]]
    model = Autoregression(0.0, np.array([1.5]), variance=1.0)
    told = forecast_baselines.autoregressive_squares(model, np.array([4.0]), np.array([0]), 1500)
    assert np.isfinite(told).all() and (np.diff(told[0]) >= 0).all()
