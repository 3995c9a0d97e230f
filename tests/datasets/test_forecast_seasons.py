"""Seasons that a model is compared with, series that are too short to learn from, and values written in full."""

import csv
import io
import json
import re

import numpy as np
import pytest

from seqjax import files
from seqjax.cli import dataset_report, dataset_test
from seqjax.cli.dataset_report import CellResult
from seqjax.datasets import forecast_seasons, forecasting
from seqjax.datasets.baselines import forecast_baselines
from seqjax.datasets.dataset import MetricSpec
from seqjax.datasets.forecast_batching import Split
from seqjax.datasets.readers import dates as readers_dates
from seqjax.datasets.readers.dates import Frequency
from seqjax.datasets.readers.table_columns import Series
from seqjax.datasets.readers.table_sources import Columns
from seqjax.datasets.readers.tables import SeriesTable
from seqjax.errors import UserError
from seqjax.reporting.significance import Improvement
from tests.datasets.test_forecast import outputs_of

RECIPE = {'covariates': [], 'date': 'day', 'id': None, 'mask': False, 'seasons': None, 'lag': 1, 'horizon': 1}
RECIPE |= {'window': 4, 'strategy': 'direct', 'likelihood': 'point', 'calendar': False, 'skip_short': False}
HOUR = np.timedelta64(1, 'h')


def dates(count, gap):
    return np.datetime64('2021-01-01', 'us') + np.arange(count) * gap


def make(values, gap=HOUR, split=None, **changes):
    """A data set of one series; without dates if `gap` is None."""
    values = np.asarray(values, float)
    count = len(values)
    when = None if gap is None else dates(count, gap)
    table = SeriesTable(
        Columns(['x'], [], None if gap is None else 'day'),
        [Series(None, values[:, None], np.arange(1, count + 1), when)],
    )
    preprocessing = RECIPE | {'date': None if gap is None else 'day'} | changes
    return forecasting.dataset(
        'x.csv', table, [split or Split(count * 6 // 10, count * 8 // 10)], preprocessing, batch_size=4, order=2
    )


def week(count, noise=0.1, seed=0):
    """Hours of a load whose days differ within a week."""
    rng, hour = np.random.default_rng(seed), np.arange(count)
    return np.sin(2 * np.pi * hour / 24) * (1 + (hour // 24) % 7) + noise * rng.normal(size=count)


# --- values in full ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('level', 'deviation'), [(1e9, 1.0), (0.0, 1e-12), (-3e12, 0.5), (12345.678, 1e3), (1e15, 4.0)]
)
def test_the_table_of_forecasts_has_the_error_that_the_measure_has(level, deviation):
    values = level + deviation * np.random.default_rng(0).normal(size=60).cumsum()
    made = make(values, gap=None)
    answers = outputs_of(made, made.test.batches, value=0.1)
    out = io.StringIO()
    files.write_rows(out, *made.test.table(answers))
    rows = list(csv.DictReader(out.getvalue().splitlines()))
    assert [float(row['actual']) for row in rows] == values[48:].tolist()
    told, actual = (np.array([float(row[name]) for row in rows]) for name in ('forecast', 'actual'))
    np.testing.assert_allclose(told, values[47:-1] + 0.1 * values[:36].std(), rtol=1e-15, atol=1e-6 * deviation)
    items = made.items(answers)
    expected = np.sqrt(items.totals.sum() / items.counts.sum())
    assert np.sqrt(np.mean((told - actual) ** 2)) == pytest.approx(expected, rel=1e-12)


# --- seasons ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('found', 'seasons'),
    [
        (readers_dates.infer_frequency(dates(99, HOUR)), [24, 168]),
        (readers_dates.infer_frequency(dates(99, np.timedelta64(30, 'm'))), [48, 336]),
        (readers_dates.infer_frequency(dates(99, np.timedelta64(15, 'm'))), [96, 672]),
        (readers_dates.infer_frequency(dates(99, np.timedelta64(1, 'm'))), [60, 1440, 10080]),
        (readers_dates.infer_frequency(dates(99, HOUR * 24)), [7, 365]),
        (readers_dates.infer_frequency(dates(99, HOUR * 24 * 7)), [52]),
        (Frequency('weekdays', 1), [5, 260]),
        (Frequency('months', 1), [12]),
        (Frequency('ends of months', 1), [12]),
        (Frequency('months', 3), [4]),
        (Frequency('months', 12), []),
        (Frequency('months', 24), []),
        (Frequency('months', 5), []),
        (Frequency('microseconds', 1_000_003), []),
        (Frequency('microseconds', 1_000_000), [60, 3600, 86400, 604800]),
    ],
)
def test_a_frequency_has_its_usual_seasons(found, seasons):
    assert forecast_seasons.usual(found) == seasons


def test_hours_are_compared_with_the_day_and_the_week_whatever_season_was_passed():
    for given in (None, [24], [168], [12, 24]):
        made = make(week(600), seasons=given)
        seasons = sorted({24, 168} | set(given or ()))
        assert [name for name in made.baselines if 'before' in name] == [f'{season} steps before' for season in seasons]
        assert made.preprocessing['season'] == 168 and made.preprocessing['lag'] == 1
    rmse = dataset_test.validation_values(made)
    assert rmse['168 steps before'] < 0.2 < rmse['24 steps before']
    x = week(600)
    assert rmse['168 steps before'] == pytest.approx(np.sqrt(np.mean((x[360:480] - x[192:312]) ** 2)), rel=1e-12)
    assert '168' in '\n'.join(made.description)


def test_the_season_is_chosen_on_validation_and_not_on_the_test_part():
    values = week(600)
    values[480:] = np.tile(values[480:504], 5)  # only here is the day before better
    made = make(values)
    assert made.preprocessing['season'] == 168
    test = {name: one('test').totals.sum() for name, one in made.baselines.items()}
    assert test['24 steps before'] < test['168 steps before']


@pytest.mark.parametrize(
    ('count', 'seasons', 'tried', 'left_out'),
    [
        (240, None, [24], [168]),
        (30, None, [], [24, 168]),
        (240, [24, 500], [24], [168, 500]),
        (600, [500, 24], [24, 168], [500]),
    ],
)
def test_a_season_that_the_training_part_is_too_short_for_is_left_out(count, seasons, tried, left_out):
    made = make(week(count), seasons=seasons)
    assert made.preprocessing['seasons'] == tried and made.preprocessing['season'] in (tried or [None])
    shown = '\n'.join(made.description)
    assert all(str(season) in shown for season in left_out)


def test_seasons_that_are_all_too_long_are_refused():
    with pytest.raises(UserError, match='--season=400'):
        make(week(600), seasons=[500, 400])


def test_relative_to_a_season_is_relative_to_the_one_that_is_best_on_validation():
    made = make(week(600), lag='season', seasons=[12])
    assert made.preprocessing['lag'] == 168
    mine = made.items(outputs_of(made, made.test.batches))
    np.testing.assert_allclose(mine.totals, made.baselines['168 steps before']('test').totals, rtol=1e-4)
    with pytest.raises(UserError, match='--residual=season.*--season'):
        make(week(30), lag='season')
    assert make(week(600), gap=None, lag='season', seasons=[24]).preprocessing['lag'] == 24


def test_without_dates_no_season_is_tried():
    assert [name for name in make(week(100), gap=None).baselines] == ['persistence', 'AR(2)']


def test_the_order_of_an_autoregression_reaches_the_season_where_there_are_rows_enough():
    assert forecast_baselines.max_order(500, [24, 168]) == 25
    assert forecast_baselines.max_order(2000, [24, 168]) == 169
    assert forecast_baselines.max_order(2000, [24, 168], fits=1000) == 25
    assert forecast_baselines.max_order(2000) == 24 and forecast_baselines.max_order(20, [12]) == 2
    assert forecast_baselines.max_order(10**6, [60, 1440]) == 24


def test_the_verdict_is_about_the_baseline_that_is_best_on_validation_and_names_a_better_one():
    gains = {
        'persistence': Improvement(3.0, 0.1),
        '24 steps before': Improvement(1.0, 0.1),
        'AR(2)': Improvement(-0.5, 0.1),
    }
    values = {'persistence': 5.0, '24 steps before': 3.0, 'AR(2)': 1.5}
    result = CellResult('lstm', 4, 9, [0], np.array([2.0]), values, gains, 0, [], '24 steps before')
    line = dataset_report.conclusion(MetricSpec('RMSE', root=True), result)
    assert re.search(r'24 steps before.* 1\b.*AR\(2\).*1\.5', line)
    gains['AR(2)'] = Improvement(0.5, 0.1)
    assert 'AR(2)' not in dataset_report.conclusion(MetricSpec('RMSE', root=True), result)
    assert dataset_report.conclusion(MetricSpec('RMSE', root=True), result._replace(baseline=None)).count('AR(2)') == 1
    gains['persistence'] = Improvement(3.0, np.inf)
    written = json.loads(json.dumps(dataset_report.to_json(result._replace(summary_lines=['0.5%'])), allow_nan=False))
    again = dataset_report.from_json(written)
    assert again.baseline == '24 steps before' and again.gains == gains and again.summary_lines == ['0.5%']
    earlier = {'tell' if name == 'summary_lines' else name: value for name, value in written.items()}
    assert dataset_report.from_json(earlier).summary_lines == ['0.5%']


# --- series that are too short ----------------------------------------------------------------------


def shops(lengths, constant=()):
    rng, series = np.random.default_rng(0), []
    for place, length in enumerate(lengths, 1):
        values = rng.normal(size=(length, 1)).cumsum(0)
        values[:] = 3 if place in constant else values
        series.append(Series(f'shop {place}', values, np.arange(length), dates(length, 24 * HOUR)))
    splits = [Split(round(length * 0.7), round(length * 0.85)) for length in lengths]
    return SeriesTable(Columns(['x'], [], 'day', 'shop'), series), splits


def of_shops(table, splits, **changes):
    return forecasting.dataset(
        'shops.csv', table, splits, RECIPE | {'id': 'shop', 'window': 20} | changes, batch_size=4, order=2
    )


@pytest.mark.parametrize(
    ('lengths', 'constant', 'count', 'names'),
    [
        ((60, 20, 60, 60, 20, 60), (), '2 of 6', "'shop 2', 'shop 5'"),
        ((60, 60, 60), (3,), '1 of 3', "'shop 3'"),
        ((60, 20, 60), (1,), '2 of 3', "'shop 1', 'shop 2'"),
        ((20,) * 8 + (60,), (), '8 of 9', "'shop 1', 'shop 2', 'shop 3', 'shop 4', 'shop 5'"),
    ],
)
def test_series_that_are_too_short_or_constant_are_counted_and_named_or_left_out(lengths, constant, count, names):
    table, splits = shops(lengths, constant)
    with pytest.raises(UserError, match=f'{count} series .*{names}.*--skip_short'):
        of_shops(table, splits)
    made = of_shops(table, splits, skip_short=True)
    left_out = made.preprocessing['left_out']
    assert len(left_out) == int(count[0]) and set(made.preprocessing['scales']) == {
        one.name for one in table.series
    } - {*left_out}
    assert names in '\n'.join(made.description)
    prediction_inputs = forecasting.prediction_inputs('new.csv', table, made.preprocessing, batch_size=4)
    told = {row[0] for row in prediction_inputs.table(outputs_of(made, prediction_inputs.batches))[1]}
    assert told == set(made.preprocessing['scales']) and names in '\n'.join(prediction_inputs.description)
    with pytest.raises(UserError, match='new.csv'):
        forecasting.prediction_inputs(
            'new.csv',
            table._replace(series=[table.series[lengths.index(20) if 20 in lengths else 2]]),
            made.preprocessing,
            batch_size=4,
        )


def test_where_no_series_is_left_skipping_helps_nothing():
    table, splits = shops((20, 20))
    for skip in (False, True):
        with pytest.raises(UserError, match='2 of 2') as caught:
            of_shops(table, splits, skip_short=skip)
        assert '--skip_short' not in str(caught.value)


def test_one_series_that_was_learned_from_may_be_short_in_a_new_file():
    table, splits = shops((60, 20, 60))
    made = of_shops(table, splits, skip_short=True)
    one = table.series[0]
    short = one._replace(values=one.values[:1], rows=one.rows[:1], dates=one.dates[:1])
    prediction_inputs = forecasting.prediction_inputs(
        'new.csv', table._replace(series=[short, table.series[1]]), made.preprocessing, batch_size=4
    )
    assert len(list(prediction_inputs.table(outputs_of(made, prediction_inputs.batches))[1])) == 1
