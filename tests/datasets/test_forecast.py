"""Forecasting: what a model is given, what its answers mean, and that nothing later reaches what is earlier."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import config
from seqjax.datasets import (
    forecast_batching,
    forecast_heads,
    forecast_preprocessing,
    forecast_report,
    forecasting,
)
from seqjax.datasets.baselines import forecast_baselines
from seqjax.datasets.forecast_batching import Split
from seqjax.datasets.readers.date_formats import DateFormat
from seqjax.datasets.readers.table_columns import Series
from seqjax.datasets.readers.table_sources import Columns
from seqjax.datasets.readers.tables import SeriesTable
from seqjax.datasets.recursive_forecasts import Feedback, RecursiveInputs
from seqjax.errors import UserError
from seqjax.nn import models
from seqjax.types import Batch

WINDOW, HORIZON = 6, 3
LENGTHS = (40, 57)
SPLITTING = [Split(25, 32), Split(30, 41)]
START = np.datetime64('2020-03-01', 'us')


def draw(seed=0, missing=0.0, lengths=LENGTHS):
    """A table of two series with two targets and a covariate, all of different scale."""
    rng = np.random.default_rng(seed)
    series = []
    for place, length in enumerate(lengths):
        values = rng.normal(size=(length, 3)).cumsum(0) * [1, 20, 0.1] + [5, -300, 2]
        values[rng.random(values.shape) < missing] = np.nan
        days = START + np.arange(length) * np.timedelta64(1, 'D')
        series.append(Series('ab'[place], values, np.arange(1, length + 1), days))
    return SeriesTable(Columns(['x', 'y'], ['z'], 'day', 'who'), series)


def make(table=None, splits=SPLITTING, **changes):
    """A data set of such a table."""
    preprocessing = {'covariates': ['z'], 'date': 'day', 'id': 'who', 'mask': False, 'seasons': None, 'lag': 1}
    preprocessing |= {
        'horizon': HORIZON,
        'window': WINDOW,
        'strategy': 'direct',
        'likelihood': 'point',
        'calendar': False,
        'skip_short': False,
    }
    return forecasting.dataset('x.csv', table or draw(), splits, preprocessing | changes, batch_size=4, order=2)


def parts_of(made, table):
    return [forecast_preprocessing.prepare_series('x.csv', series, made.preprocessing) for series in table.series]


def outputs_of(made, batches, value=0.0):
    """What a model that always says `value` answers to batches, as the host has it."""
    steps = batches.mask.shape[2]
    outputs = jnp.full((*batches.mask.shape[:2], steps, made.spec.outputs), value)
    return np.asarray(jax.vmap(made.postprocess)(outputs, batches))


# --- what is given ---------------------------------------------------------------------------------


@pytest.mark.parametrize('lag', [1, 5, None])
def test_training_windows_are_pieces_of_the_training_part(lag):
    table = draw(missing=0.1)
    made = make(table, lag=lag, seasons=[5], mask=True)
    parts, seen, batch_of = parts_of(made, table), set(), jax.jit(made.batch)
    for step in range(80):
        batch = jax.device_get(batch_of(made.data, jax.random.key(step), step))
        assert batch.mask.all() and batch.inputs.shape == (
            4,
            WINDOW,
            len(forecast_preprocessing.channels(made.preprocessing)),
        )
        for row in range(4):
            (place,) = [
                (k, s)
                for k, part in enumerate(parts)
                for s in range(SPLITTING[k].validation - WINDOW)
                if np.array_equal(part.inputs[s : s + WINDOW], batch.inputs[row])
            ]
            seen.add(place)
            k, first = place
            end = SPLITTING[k].validation
            for t in range(WINDOW + HORIZON):
                inside = first + t < end
                assert batch.targets.valid[row, t].tolist() == (parts[k].valid[first + t] & inside).tolist()
                expected = parts[k].values[first + t] if inside else np.zeros(2)
                np.testing.assert_array_equal(batch.targets.values[row, t], expected)
            if lag is None:
                assert batch.targets.past is None
                continue
            for t in range(-lag + 1, WINDOW):
                expected = parts[k].past[first + t] if first + t >= 0 else np.zeros(2)
                np.testing.assert_array_equal(batch.targets.past[row, t + lag - 1], expected)
    # All windows, the first and the last of both series among them.
    assert {(0, 0), (0, 25 - WINDOW - 1), (1, 0), (1, 30 - WINDOW - 1)} <= seen
    assert len(seen) == made.data['ends'][-1] == 25 - WINDOW + 30 - WINDOW


def test_what_comes_later_changes_nothing_earlier():
    """Of validation and test nothing reaches training or the scale; of the test nothing reaches validation."""
    whole = make(strategy='direct')
    for name, place in (('validation', 0), ('test', 1)):
        table = draw()
        for series, split in zip(table.series, SPLITTING, strict=True):
            series.values[split[place] :] *= 7.5
        other = make(table)
        same = jax.tree.map(np.array_equal, whole.data, other.data)
        assert all(jax.tree.leaves(same)) and whole.preprocessing == other.preprocessing
        equal = [
            np.array_equal(a, b)
            for a, b in zip(*map(jax.tree.leaves, (whole.validation, other.validation)), strict=True)
        ]
        assert all(equal) == (name == 'test')
        assert not np.array_equal(whole.test.batches.inputs, other.test.batches.inputs)


def test_a_forecast_is_of_the_part_in_which_all_that_it_is_about_lies():
    for part, (first, last) in {'validation': ((25, 31), (30, 40)), 'test': ((32, 39), (41, 56))}.items():
        for (start, stop), a, b in zip(
            forecast_batching.origin_ranges(part, SPLITTING, LENGTHS, HORIZON), first, last, strict=True
        ):
            targets = [t for origin in range(start, stop) for t in range(origin + 1, origin + HORIZON + 1)]
            assert (min(targets), max(targets)) in ((25, 31), (30, 40), (32, 39), (41, 56)) and a and b
    made = make()
    assert made.validation.mask.sum() == 7 - HORIZON + 1 + 11 - HORIZON + 1
    assert made.test.batches.mask.sum() == 8 - HORIZON + 1 + 16 - HORIZON + 1


def test_values_are_scaled_by_the_training_part_of_their_series():
    table = draw()
    made = make(table)
    for series, split in zip(table.series, SPLITTING, strict=True):
        train = series.values[: split.validation]
        scale = np.array(made.preprocessing['scales'][series.name]).T
        np.testing.assert_allclose(scale, [train.mean(0), train.std(0)])
        scaled = forecast_preprocessing.prepare_series('x.csv', series, made.preprocessing).inputs
        np.testing.assert_allclose(scaled, (series.values - scale[0]) / scale[1], rtol=1e-5, atol=1e-6)


def test_a_missing_value_is_0_beside_a_1():
    table = draw(missing=0.2)
    part = parts_of(make(table, mask=True), table)[0]
    missing = np.isnan(table.series[0].values)
    assert forecast_preprocessing.channels(make(table, mask=True).preprocessing)[3:] == [
        'x is missing',
        'y is missing',
        'z is missing',
    ]
    np.testing.assert_array_equal(part.inputs[:, 3:], missing)
    assert not part.inputs[:, :3][missing].any() and part.inputs[:, :3][~missing].all()
    np.testing.assert_array_equal(part.valid, ~missing[:, :2])


def test_the_calendar_has_the_cycles_that_rows_tell_apart():
    def eval_every(gap):
        return START + np.arange(9) * np.timedelta64(gap, 'h')

    assert [forecast_preprocessing.cycles_of(eval_every(gap)) for gap in (1, 24, 24 * 7, 24 * 365)] == [
        ['year', 'week', 'day'],
        ['year', 'week'],
        ['year'],
        [],
    ]
    found = forecast_preprocessing.calendar(
        np.array(['2021-01-04T06', '2021-07-02T12', '2021-01-10T18'], 'datetime64[us]'), ['year', 'week', 'day']
    )
    np.testing.assert_allclose(found[:, 4:], [[1, 0], [0, -1], [-1, 0]], atol=1e-12)  # six, noon, six
    np.testing.assert_allclose(found[[0, 2], 3], np.cos(2 * np.pi * np.array([0.25, 6.75]) / 7))  # Monday, Sunday
    assert found[0, 1] > 0.99 and found[1, 1] < -0.99


# --- what an answer means --------------------------------------------------------------------------


@pytest.mark.parametrize(('lag', 'who'), [(1, 'persistence'), (5, '5 steps before')])
def test_a_network_that_says_0_is_the_baseline_that_it_is_relative_to(lag, who):
    table = draw(missing=0.15)
    made = make(table, lag=lag, seasons=[5], mask=True)
    mine, theirs = made.items(outputs_of(made, made.test.batches)), made.baselines[who]('test')
    np.testing.assert_allclose(mine.totals, theirs.totals, rtol=1e-4)
    np.testing.assert_array_equal(mine.counts, theirs.counts)
    scored = made.loss_fn(
        jnp.zeros((*made.validation.mask.shape[1:], made.spec.outputs)), jax.tree.map(lambda x: x[0], made.validation)
    )
    of_baseline = made.baselines[who]('validation')
    assert len(made.validation.mask) == 1 and scored['loss'].count == of_baseline.counts.sum()
    np.testing.assert_allclose(scored['loss'].total, of_baseline.totals.sum(), rtol=1e-4)


def test_relative_to_nothing_0_is_the_mean_of_the_training_part():
    table = draw()
    made = make(table, lag=None)
    _, rows = made.test.table(outputs_of(made, made.test.batches))
    for row in rows:
        mean = made.preprocessing['scales'][row[0]]['xy'.index(row[3])][0]
        assert float(row[5]) == pytest.approx(mean, rel=1e-8)


def test_items_are_stretches_of_squared_errors_whose_sums_are_the_measure():
    table = draw(lengths=(300,))
    made = make(
        SeriesTable(Columns(['x'], ['y', 'z'], 'day', 'who'), table.series), [Split(100, 200)], covariates=['y', 'z']
    )
    items = made.baselines['persistence']('test')
    x, scale = table.series[0].values[:, 0], 1.0  # one series and one target: in its own units
    errors = np.array([[x[t + h] - x[t] for h in (1, 2, 3)] for t in range(199, 297)])
    assert made.metric.unit == '' and len(items.totals) == 10  # 98 origins in stretches of 10
    np.testing.assert_allclose(items.totals, [(errors[i : i + 10] ** 2).sum() / scale for i in range(0, 98, 10)])
    np.testing.assert_array_equal(items.counts, [30] * 9 + [24])
    assert make().metric.unit == 'training SD'


def test_the_table_has_a_row_for_each_forecast_and_the_future_is_open():
    table = draw()
    made = make(table)
    prediction_inputs = forecasting.prediction_inputs('x.csv', table, made.preprocessing, batch_size=4)
    columns, rows = prediction_inputs.table(outputs_of(made, prediction_inputs.batches))
    rows = list(rows)
    assert columns == ['series', 'origin', 'date', 'target', 'step', 'forecast', 'actual']
    assert len(rows) == sum(LENGTHS) * 2 * HORIZON
    assert rows[-1][:5] == ['b', '2020-04-26', '2020-04-29', 'y', 3] and rows[-1][-1] == ''
    for who, origin, date, target, step, told, actual in rows:
        values = table.series['ab'.index(who)].values[:, 'xy'.index(target)]
        place = int((np.datetime64(origin, 'us') - START) / np.timedelta64(1, 'D'))
        assert np.datetime64(date, 'us') == START + np.timedelta64(place + step, 'D')
        assert float(told) == pytest.approx(values[place], rel=1e-4)  # the last value
        assert (actual == '') == (place + step >= len(values))
        assert actual == '' or float(actual) == pytest.approx(values[place + step])


def test_the_table_has_the_dates_of_the_file_with_their_offsets():
    """The clock of Berlin changed on 2020-03-29."""
    table, change = draw(), np.datetime64('2020-03-29T01')
    zoned = [one._replace(offsets=np.where(one.dates < change, 3600, 7200)) for one in table.series]
    table = table._replace(series=zoned, dates=DateFormat('iso8601', 'Europe/Berlin', True))
    made = make(table, calendar=True)
    assert any('2020-04-26 00:00:00+02:00' in line and 'Europe/Berlin' in line for line in made.description)
    prediction_inputs = forecasting.prediction_inputs('x.csv', table, made.preprocessing, batch_size=4)
    rows = list(prediction_inputs.table(outputs_of(made, prediction_inputs.batches))[1])
    assert rows[0][:3] == ['a', '2020-03-01 00:00:00+01:00', '2020-03-02 00:00:00+01:00']
    assert rows[-1][:3] == ['b', '2020-04-26 00:00:00+02:00', '2020-04-29 00:00:00+02:00']
    assert any('2020-04-26 00:00:00+02:00' in line for line in prediction_inputs.description)


@pytest.mark.parametrize('head', ['gaussian', 'quantile'])
def test_losses_of_intervals_are_those_of_their_equations(head):
    rng = np.random.default_rng(1)
    told, y = (
        rng.normal(size=(3, 4, forecast_heads.NUM_OUTPUTS[head])).astype(np.float32),
        rng.normal(size=(3, 4)).astype(np.float32),
    )
    mask = rng.random((3, 4)) < 0.7
    found = getattr(forecast_heads, {'gaussian': 'gaussian', 'quantile': 'pinball'}[head])(
        jnp.array(told), jnp.array(np.where(mask, y, np.nan)), mask
    )
    total = 0.0
    for i, j in np.argwhere(mask):
        if head == 'gaussian':
            mean, log_scale = told[i, j]
            total += 0.5 * ((y[i, j] - mean) / np.exp(log_scale)) ** 2 + log_scale + 0.5 * np.log(2 * np.pi)
        else:
            over = y[i, j] - told[i, j]
            total += np.mean([max(q * e, (q - 1) * e) for q, e in zip(forecast_heads.QUANTILES, over, strict=True)])
    np.testing.assert_allclose(found.total, total, rtol=1e-5)
    assert found.count == mask.sum()


def test_the_intervals_of_a_right_gaussian_hold_their_share():
    """White noise of standard deviation 1, told as such."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4000, 1)) * 3 + 8
    table = SeriesTable(Columns(['x']), [Series(None, values, np.arange(4000), None)])
    made = make(table, [Split(1000, 1500)], covariates=[], date=None, id=None, lag=None, likelihood='gaussian')
    answers = outputs_of(made, made.test.batches)
    assert answers.shape[-1] == 5 and '%' in made.summary(answers)[-1]
    told = list(
        forecast_batching.collect_forecasts(
            answers,
            parts_of(made, table),
            forecast_batching.evaluation_rows([4000], WINDOW, 4),
            forecast_batching.origin_ranges('test', [Split(1000, 1500)], [4000], HORIZON),
        )
    )
    for name, share in forecast_report.coverage(told, parts_of(made, table)).items():
        assert abs(share - float(name.rstrip('%')) / 100) < 0.02


def test_a_method_without_known_errors_at_a_step_keeps_its_column(monkeypatch):
    """Of three methods at two steps, the second forecasts nothing two steps ahead."""
    errors = {'model': [1.0, 2.0], 'second': [3.0, np.nan], 'third': [5.0, 6.0]}
    told = {name: [SimpleNamespace(series=0, errors=np.reshape(x, (1, 2, 1)))] for name, x in errors.items()}
    monkeypatch.setattr(forecast_report, 'errors', lambda forecast, *_: forecast.errors)
    options = {'original_units': True, 'horizon': 2, 'likelihood': 'point'}
    _, header, one, two = forecast_report.summarize(told, [None], options)
    assert one.split() == ['1', '1', '1', '3', '3', '5', '5'] and two.split() == ['2', '2', '2', '6', '6']
    assert len(header) == len(one) == len(two)


def test_quantiles_are_told_in_rising_order():
    assert forecast_heads.quantiles(jnp.array([[3.0, 1.0, 2.0, 5.0, 4.0]]), 'quantile').tolist() == [[1, 2, 3, 4, 5]]


# --- long series -----------------------------------------------------------------------------------


def test_a_long_series_is_told_of_in_pieces_each_origin_once(monkeypatch):
    monkeypatch.setattr(forecast_batching, 'CHUNK', 10)
    monkeypatch.setattr(forecast_batching, 'CONTEXT', 2)
    rows = forecast_batching.evaluation_rows([57, 20, 23], WINDOW, 4)
    segments = [segment for batch in rows.segments for segment in batch]
    assert rows.steps == 22 and rows.size == 4 and all(len(batch) <= 4 for batch in rows.segments)
    for series, length in enumerate((57, 20, 23)):
        mine = [segment for segment in segments if segment.series == series]
        assert [t for segment in mine for t in range(segment.first, segment.stop)] == list(range(length))
        assert all(one.start == 0 if one.first == 0 else one.first - one.start == 12 for one in mine)
    whole = {}
    for chunk in (10, 4096):  # a network that says 0 depends on no context: both say the same
        monkeypatch.setattr(forecast_batching, 'CHUNK', chunk)
        made = make(draw(missing=0.1), mask=True, lag=5, seasons=[5])
        whole[chunk] = list(made.test.table(outputs_of(made, made.test.batches))[1])
        assert made.test.batches.mask.sum() == 8 - HORIZON + 1 + 16 - HORIZON + 1
    assert whole[10] == whole[4096]


# --- forecasts that are fed back -------------------------------------------------------------------


def looped(answer, series, future, lag, horizon, origin):
    """The forecasts of one origin: the model reads all from the beginning again, its own forecasts at the end."""
    values = list(series[: origin + 1])
    for step in range(horizon):
        padded = np.zeros_like(future)  # one length, one program; what follows is not looked at
        padded[: len(values)] = values
        outputs = answer(padded[None])[0, len(values) - 1]
        before = len(values) - lag if lag else None
        base = 0 if lag is None else (values[before][:2] if before >= 0 else np.zeros(2))
        row = np.zeros_like(series[0])
        row[:2] = np.asarray(outputs) + base
        if step < horizon - 1:
            row[-2:] = future[origin + 1 + step][-2:]
        values.append(row)
    return np.array(values[origin + 1 :])[:, :2]


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('lag', [1, 2, None])
def test_feeding_back_is_reading_on(lag):
    rng = np.random.default_rng(0)
    steps, horizon = 5, 4
    model = models.sequence_model('per_step', 2, cell='gru', features=6, layers=2)
    # Two targets, an indicator that is 0 ahead, and two of the calendar.
    inputs = rng.normal(size=(3, steps + horizon - 1, 5)).astype(np.float32)
    params = model.init(jax.random.key(0), inputs)
    past = None
    if lag is not None:
        past = np.concatenate([np.zeros((3, lag - 1, 2), np.float32), inputs[:, :steps, :2]], 1)
    around = Feedback(model, targets=2, horizon=horizon, numbers=1, calendar=2, lag=lag)
    held = {'params': {'model': params['params']}}
    told = jax.jit(around.apply)(held, RecursiveInputs(inputs, past)).reshape(3, steps, horizon, 2)
    answer = jax.jit(lambda values: model.apply(params, values))
    for row in range(3):
        for origin in range(steps):
            expected = looped(answer, inputs[row, :steps], inputs[row], lag, horizon, origin)
            np.testing.assert_allclose(told[row, origin], expected, atol=2e-5)
    # In training the next step alone is told, and a fresh model has the same parameters.
    trained = around.apply(held, RecursiveInputs(inputs, past), rngs={'dropout': jax.random.key(0)})
    np.testing.assert_allclose(trained, told[:, :, 0], atol=2e-5)
    fresh = jax.eval_shape(around.init, jax.random.key(1), RecursiveInputs(inputs, past))
    assert jax.tree.structure(fresh) == jax.tree.structure(held)


def test_the_variance_of_a_drawn_random_walk_grows_with_every_step():
    """x + noise of standard deviation 0.5, told as such: after h steps the variance is h / 4."""
    model = models.sequence_model('per_step', 2, cell='simple', features=2)
    inputs = np.full((1, 6, 1), 2.0, np.float32)
    params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), inputs))
    (bias,) = (x for x in jax.tree.leaves_with_path(params['params']['head']) if 'bias' in str(x[0]))
    assert bias[1].shape == (2,)
    told = jnp.array([0.0, np.log(0.5)])
    params['params']['head'] = jax.tree.map(lambda x: told if x is bias[1] else x, params['params']['head'])
    around = Feedback(model, targets=1, horizon=4, numbers=2, calendar=0, lag=1)
    told = jax.jit(around.apply)(
        {'params': {'model': params['params']}}, RecursiveInputs(inputs, inputs[:, :3])
    ).reshape(3, 4, 2)
    np.testing.assert_allclose(told[..., 0], 2.0, atol=0.2)
    np.testing.assert_allclose(np.exp(2 * told[..., 1]), np.tile([0.25, 0.5, 0.75, 1.0], (3, 1)), rtol=0.2)


# --- what is refused -------------------------------------------------------------------------------


def test_parts_that_are_too_short_are_refused_by_name():
    for splits, words in {
        (25, 34): None,
        (6, 32): "'a' has 6 .*--window=6 needs 7",
        (25, 27): "'a' has 2 validation rows.*--horizon=3",
        (25, 38): "'a' has 2 test rows.*--horizon=3",
    }.items():
        both = [Split(*splits), SPLITTING[1]]
        if words is None:
            make(splits=both)
        else:
            with pytest.raises(UserError, match=words):
                make(splits=both)
    with pytest.raises(UserError, match='--season=25'):
        make(seasons=[25])
    with pytest.raises(UserError, match='test'):
        table = draw()
        for series in table.series:
            series.values[32:, :2] = np.nan
        make(table, splits=[Split(25, 32), Split(25, 32)], mask=True)


def test_columns_that_cannot_be_scaled_are_refused_by_name():
    for value in (7.0, np.nan):
        table = draw()
        table.series[1].values[:30, 1] = value
        with pytest.raises(UserError, match="'y'.*'b'"):
            make(table, mask=True)
    table = draw()
    table.series[1].values[3, 1] = 1e300
    with pytest.raises(UserError, match='1e\\+300'):
        make(table)
    table = draw()
    table.series[1].values[50, 1] = 1e300
    with pytest.raises(UserError, match="row 51.*'y'.*1e\\+300"):
        make(table)


def test_a_series_that_was_not_trained_on_is_refused_with_those_that_were():
    table = draw()
    made = make(table)
    other = table._replace(series=[table.series[0]._replace(name='c')])
    with pytest.raises(UserError, match="'c'.*'a', 'b'"):
        forecasting.prediction_inputs('x.csv', other, made.preprocessing, batch_size=4)


def test_the_first_look_tells_of_rows_dates_roles_missing_values_and_parts():
    table = draw(missing=0.1)
    made = make(table, mask=True, calendar=True)
    text = '\n'.join(made.description)
    missing = int(np.isnan([v for one in table.series for v in one.values[:, 0]]).sum())
    for words in (
        r'\b97 .*\b2 .*\b40 .*\b57\b',
        '2020-03-01.*2020-04-26.* 1 day',
        'x, y.*z.*year, week.*day.*who',
        f'{missing} of x',
        '55 rows, 2020-03-01 to 2020-03-30',
        '18 rows',
        '24 rows',
    ):
        assert re.search(words, text), words
    days = table.series[0].dates.copy()
    days[10:] += np.timedelta64(3, 'D')
    gap = table._replace(series=[table.series[0]._replace(dates=days), table.series[1]])
    assert "2020-03-10 of series 'a'" in '\n'.join(make(gap, mask=True).description)


def test_baselines_know_only_what_was_known_at_the_origin():
    """Persistence, by hand; and autoregression that is fitted on what stands before the part that it tells of."""
    table = draw()
    made = make(table)
    assert list(made.baselines) == ['persistence', '7 steps before', 'AR(2)'] and config.SPLITS == (
        'validation',
        'test',
    )
    changed = draw()
    for series, split in zip(changed.series, SPLITTING, strict=True):
        series.values[split.test :] += 100
    for score in ('persistence', 'AR(2)'):
        before, after = (one.baselines[score]('validation') for one in (made, make(changed)))
        np.testing.assert_array_equal(before.totals, after.totals)
    part, total = parts_of(made, table)[1], 0.0
    model = [
        forecast_baselines.fit((part.series.values[:30, c] - part.scale[0, c]) / part.scale[1, c], 2) for c in (0, 1)
    ]
    for c in (0, 1):
        scaled = (part.series.values[:, c] - part.scale[0, c]) / part.scale[1, c]
        told = forecast_baselines.autoregressive(model[c], scaled, np.arange(29, 38), HORIZON)
        total += sum((told[k, h] - scaled[29 + k + 1 + h]) ** 2 for k in range(9) for h in range(HORIZON))
    assert made.baselines['AR(2)']('validation').totals[-3:].sum() == pytest.approx(total)
    one, end = made.baselines['AR(2)'], SPLITTING[1].test
    model = [
        forecast_baselines.fit((part.series.values[:end, c] - part.scale[0, c]) / part.scale[1, c], 2) for c in (0, 1)
    ]
    origins, total = np.arange(end - 1, len(part.series.values) - HORIZON), 0.0
    for c in (0, 1):
        scaled = (part.series.values[:, c] - part.scale[0, c]) / part.scale[1, c]
        told = forecast_baselines.autoregressive(model[c], scaled, origins, HORIZON)
        total += sum((told[k, h] - scaled[t + 1 + h]) ** 2 for k, t in enumerate(origins) for h in range(HORIZON))
    counts = one('test').counts
    per_series = int(np.flatnonzero(np.cumsum(counts) == counts.sum() - 2 * HORIZON * len(origins))[0]) + 1
    assert one('test').totals[per_series:].sum() == pytest.approx(total)


def test_a_batch_that_is_no_window_counts_only_what_is_masked_in():
    """Origins that do not count change no score, whatever is there."""
    made = make()
    batch = jax.tree.map(lambda x: x[0], made.validation)
    outputs = jax.random.normal(jax.random.key(0), (*batch.mask.shape, made.spec.outputs))
    noisy = jnp.where(batch.mask[..., None], outputs, jnp.nan)
    for one, other in zip(*(jax.tree.leaves(made.loss_fn(o, Batch(*batch))) for o in (outputs, noisy)), strict=True):
        np.testing.assert_array_equal(one, other)
