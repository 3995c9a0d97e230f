"""Forecasting from end to end: a file is learned from, and a finished run predicts as its own test did."""

import csv
import io

import numpy as np
import pytest

from seqjax.cli import forecast, predict
from seqjax.datasets import forecast_batching
from seqjax.errors import UserError

pytest.importorskip('pandas', reason='reads tables: pip install "seqjax[data]"')

FLAGS = {'target': ['x'], 'date': 'day', 'id': 'who', 'window': 8, 'horizon': 3, 'season': 7, 'hidden': 4}
FLAGS |= {'steps': 4, 'eval_every': 2, 'num_seeds': 2, 'batch_size': 4, 'plot': False}


def write(path, *, length=60, missing=0.0, names='ab'):
    """Two series of days, with a covariate."""
    rng = np.random.default_rng(0)
    lines = ['day,who,x,z']
    for who in names:
        values = rng.normal(size=(length, 2)).cumsum(0).round(3)
        for step, (x, z) in enumerate(values):
            shown = '' if rng.random() < missing else x
            lines.append(f'{np.datetime64("2020-01-01") + np.timedelta64(step, "D")},{who},{shown},{z}')
    path.write_text('\n'.join(lines) + '\n')
    return lines


def rows_of(path):
    with path.open(newline='') as file:
        return list(csv.reader(file))


def predicted(capsys, monkeypatch, workdir, *lines):
    """What --stdin answers."""
    monkeypatch.setattr('sys.stdin', io.StringIO(''.join(line + '\n' for line in lines)))
    capsys.readouterr()
    predict.run(workdir=str(workdir), stdin=True)
    return list(csv.reader(capsys.readouterr().out.splitlines()))


@pytest.mark.parametrize(
    ('changes', 'chunk'),
    [
        (
            {'covariates': ['z'], 'calendar': True, 'likelihood': 'quantile', 'residual': 'season', 'missing': 'mask'},
            4096,
        ),
        ({'likelihood': 'gaussian', 'strategy': 'recursive', 'calendar': True}, 16),
    ],
)
def test_a_run_predicts_what_its_test_said_bit_for_bit(in_tmp, capsys, monkeypatch, changes, chunk):
    """On the file of the training: its test's rows, whole or alone; and one row after the other, but for rounding."""
    monkeypatch.setattr(forecast_batching, 'CHUNK', chunk)
    monkeypatch.setattr(forecast_batching, 'CONTEXT', 2)
    monkeypatch.setattr('seqjax.datasets.recursive_forecasts.NUM_SAMPLES', 5)
    lines = write(in_tmp / 'x.csv', missing=0.1 if 'missing' in changes else 0.0)
    (result,) = forecast.run(data='x.csv', workdir='run', **FLAGS, **changes)
    assert set(result.baselines) >= {'persistence', '7 steps before'} and np.isfinite(result.values).all()
    assert any('%' in line for line in result.summary_lines)
    header, *own = rows_of(in_tmp / 'run' / 'predictions.csv')
    assert header == ['series', 'origin', 'date', 'target', 'step', 'forecast'] + [
        f'{side} {name}' for name in ('90%', '50%') for side in ('lower', 'upper')
    ] + ['actual']
    assert len(own) == 2 * (9 - 3 + 1) * 3
    predict.run(workdir='run', data='x.csv', out='all.csv')
    predict.run(workdir='run', data='x.csv', out='test.csv', split='test')
    _, *rows = rows_of(in_tmp / 'all.csv')
    assert [header, *own] == rows_of(in_tmp / 'test.csv')
    assert len(rows) == 2 * 60 * 3 and set(map(tuple, own)) <= set(map(tuple, rows))
    assert [row[:5] for row in rows[-3:]] == [
        ['b', '2020-02-29', f'2020-03-0{step}', 'x', str(step)] for step in (1, 2, 3)
    ]
    if changes.get('strategy') == 'recursive':
        with pytest.raises(UserError, match='--strategy=recursive'):
            predict.run(workdir='run', stdin=True)
        return
    # As the file has them; then all anew, the series mixed and the columns in another order, as a header line says.
    mixed = [
        ','.join([who, x, 'text', z, day])
        for one in zip(lines[1:61], lines[61:], strict=True)
        for day, who, x, z in map(lambda line: line.split(','), one)
    ]
    columns, *told = predicted(
        capsys, monkeypatch, 'run', '\ufeff' + lines[0], *lines[1:], '', 'who,x,other,z,day', *mixed
    )
    assert columns[:2] == ['x+1', 'x+1 lower 90%'] and len(told) == 240
    expected = np.array([row[5:10] for row in rows], float).reshape(120, 15)
    np.testing.assert_allclose(np.array(told[:120], float), expected, atol=2e-6)
    expected = expected.reshape(2, 60, 15).swapaxes(0, 1).reshape(120, 15)
    np.testing.assert_allclose(np.array(told[120:], float), expected, atol=2e-6)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run on one series without dates, of which rows are asked one at a time."""
    folder = tmp_path_factory.mktemp('finished')
    rng = np.random.default_rng(1)
    (folder / 'x.csv').write_text(
        'x;z\n' + ''.join(f'{x:.3f};{z:.3f}\n' for x, z in rng.normal(size=(60, 2))).replace('.', ',')
    )
    flags = {name: value for name, value in FLAGS.items() if name not in ('date', 'id', 'season')}
    flags |= {'covariates': ['z'], 'separator': ';', 'decimal': ',', 'validation_from': '41', 'test_from': '51'}
    forecast.run(data=str(folder / 'x.csv'), workdir=str(folder / 'run'), **flags)
    return folder


def test_a_run_without_dates_counts_rows(finished):
    header, *rows = rows_of(finished / 'run' / 'predictions.csv')
    assert header == ['origin', 'row', 'target', 'step', 'forecast', 'actual']
    assert rows[0][:4] == ['50', '51', 'x', '1'] and rows[-1][:4] == ['57', '60', 'x', '3']


def test_months_with_thousands_signs_and_a_time_zone_are_the_same_in_a_file_in_another_file_and_in_a_stream(
    in_tmp, capsys, monkeypatch
):
    """All three give the same numbers but for the rounding of float32, and read what pandas reads."""
    pandas = pytest.importorskip('pandas')
    days = pandas.date_range('2010-01-01', periods=90, freq='MS')
    values = (np.random.default_rng(0).normal(size=90).cumsum() * 100 + 12_000).round()
    lines = ['note,month,sold,price'] + [
        f'"a, b",{day:%d/%m/%Y},"{int(value):,}",{place}.5'
        for place, (day, value) in enumerate(zip(days, values, strict=True))
    ]
    (in_tmp / 'x.csv').write_text('\n'.join(lines) + '\n')
    (in_tmp / 'y.csv').write_text('\r\n'.join([lines[0], *lines[31:]]) + '\r\n', encoding='utf-8-sig')
    flags = {'target': 'sold', 'date': 'month', 'date_format': '%d/%m/%Y', 'thousands': ',', 'window': 8}
    flags |= {'time_zone': 'Europe/Berlin', 'hidden': 4, 'steps': 20, 'eval_every': 10, 'num_seeds': 1, 'plot': False}
    (result,) = forecast.run(data='x.csv', workdir='run', **flags)
    assert '12 steps before' in result.baselines
    predict.run(workdir='run', data='x.csv', out='all.csv')
    predict.run(workdir='run', data='y.csv', out='second.csv')
    (columns, *told), (_, *own) = rows_of(in_tmp / 'all.csv'), rows_of(in_tmp / 'run' / 'predictions.csv')
    assert columns == ['origin', 'date', 'target', 'step', 'forecast', 'actual']
    assert own == told[-len(own) - 1 : -1]
    # pandas, by its own means.
    read = pandas.read_csv('x.csv', thousands=',')
    when = pandas.to_datetime(read['month'], dayfirst=True)
    assert pandas.to_datetime([row[0] for row in told]).tolist() == when.tolist()
    assert [float(row[-1]) for row in told[:-1]] == read['sold'][1:].tolist() and told[-1][-1] == ''
    assert told[-1][:2] == ['2017-06-01', '2017-07-01']
    error = np.array([float(row[4]) - float(row[5]) for row in own])
    assert np.sqrt(np.mean(error**2)) == pytest.approx(result.values[0], rel=1e-12)
    # The second file begins later, and is also what a stream is given: whole, with its header, or line by line.
    second = [row[4] for row in rows_of(in_tmp / 'second.csv')[1:]]
    streamed = predicted(
        capsys,
        monkeypatch,
        'run',
        '\ufeff' + lines[0],
        *lines[31:],
        '',
        'price,sold,month',
        *(f'0,"{line.split(chr(34))[3]}",{line.split(",")[2]}' for line in lines[1:]),
    )
    streamed = np.array(streamed[1:], float)[:, 0]
    np.testing.assert_allclose(streamed[:60], np.array(second, float), rtol=1e-8)  # float32 in deviations of 250
    np.testing.assert_allclose(streamed[60:], np.array([row[4] for row in told], float), rtol=1e-8)


def test_lines_that_are_no_row_are_refused(finished):
    found = predict.load(str(finished / 'run'))
    parse = found.experiment.stream(found.settings, found.preprocessing).parse
    assert parse('0,5;0,5').shape == (2,)
    for line, words in {
        '1,0': "1 values, .*2 are expected: 'x', 'z'",
        '1,0;two': "column 'z': 'two' is not a number",
        '1,0;': "column 'z' has no value, and the run has --missing=refuse",
        '1,0;inf': "column 'z': 'inf' is not a number; write a finite",
        '1,0;1e300': 'is 1e\\+300, more than 1e\\+15 standard deviations',
    }.items():
        with pytest.raises(UserError, match=words):
            parse(line)


def test_other_columns_are_refused_by_name(finished, in_tmp):
    (in_tmp / 'y.csv').write_text('x;zz\n1;2\n')
    with pytest.raises(UserError, match="'z'.*--covariates.*'zz'"):
        predict.run(workdir=str(finished / 'run'), data='y.csv', out='out.csv')
    (in_tmp / 'y.csv').write_text('x;z\n1;2\n')
    predict.run(workdir=str(finished / 'run'), data='y.csv', out='out.csv')  # one row is enough to look ahead of it
    assert [row[:2] for row in rows_of(in_tmp / 'out.csv')[1:]] == [['1', '2'], ['1', '3'], ['1', '4']]
    with pytest.raises(UserError, match='--validation_from=41'):
        predict.run(workdir=str(finished / 'run'), data='y.csv', out='o.csv', split='test')


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(
    ('flags', 'line', 'refused'),
    [({'thousands': ','}, '1,100', '1.100,0'), ({}, '985', '1.015')],
)
def test_a_run_keeps_how_its_numbers_are_written(in_tmp, capsys, monkeypatch, flags, line, refused):
    """A file and a line are read as the file of the training."""
    values = [940 + 15 * (step % 10) for step in range(60)]
    (in_tmp / 'x.csv').write_text('x\n' + ''.join(f'{value:,}\n' if flags else f'{value}\n' for value in values))
    short = {name: value for name, value in FLAGS.items() if name not in ('date', 'id', 'season', 'target')}
    how = short | {'separator': ';', 'num_seeds': 1, 'horizon': 1} | flags
    forecast.run(data='x.csv', workdir='run', **how)
    assert f'{60:>5}        0' in capsys.readouterr().out
    assert [float(row[-1]) for row in rows_of(in_tmp / 'run' / 'predictions.csv')[1:]] == values[-9:]
    predict.run(workdir='run', data='x.csv', out='out.csv')
    assert 'median' in capsys.readouterr().out
    assert [float(row[-1]) for row in rows_of(in_tmp / 'out.csv')[1:-1]] == values[1:]
    (in_tmp / 'y.csv').write_text(f'x\n{refused}\n{line}\n')
    with pytest.raises(UserError, match=f"y.csv.*row 1.*'x'.*'{refused}'"):
        predict.run(workdir='run', data='y.csv', out='out2.csv')
    assert len(predicted(capsys, monkeypatch, 'run', line, line)) == 3
    with pytest.raises(UserError, match=f"line 2.*'x'.*'{refused}'"):
        predicted(capsys, monkeypatch, 'run', line, refused)


def test_an_id_that_was_not_trained_on_is_refused(in_tmp, capsys, monkeypatch):
    write(in_tmp / 'x.csv')
    flags = {**FLAGS, 'season': None, 'num_seeds': 1}
    forecast.run(data='x.csv', workdir='run', **flags)
    write(in_tmp / 'y.csv', names='ac')
    with pytest.raises(UserError, match="y.csv.*'c'.*'a', 'b'"):
        predict.run(workdir='run', data='y.csv', out='out.csv')
    with pytest.raises(UserError, match="line 2.*'c'"):
        predicted(capsys, monkeypatch, 'run', '2020-01-01,a,1,2', '2020-01-01,c,1,2')
    with pytest.raises(UserError, match="line 3.*'day'.*'2020-01-01'.*2020-01-02"):
        predicted(capsys, monkeypatch, 'run', '2020-01-02,a,1,2', '2020-01-01,b,1,2', '2020-01-01,a,1,2')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'calendar': True, 'date': None}, '--calendar'),
        ({'residual': 'season', 'season': None, 'date': None}, '--residual=season.*--season'),
        ({'strategy': 'recursive', 'covariates': ['z']}, '--covariates'),
        ({'strategy': 'recursive', 'likelihood': 'quantile'}, '--likelihood=quantile'),
        ({'test_from': '2020-02-20'}, '--test_from'),
        ({'test_fraction': 0.0}, '--test_fraction=0'),
        ({'test_fraction': 0.6, 'validation_fraction': 0.5}, '--test_fraction=0.6'),
        ({'validation_from': '2020-02-20', 'test_from': '2020-02-10'}, '--test_from=2020-02-10'),
        ({'validation_from': 'soon', 'test_from': '2020-02-10'}, '--validation_from=soon'),
        ({'validation_from': '2019', 'test_from': '2020-02-10'}, '2019'),
        ({'date': None, 'validation_from': '2020-01-05', 'test_from': '9'}, '2020-01-05'),
        ({'window': 60}, '--window=60'),
        ({'ar_order': 30}, '--ar_order=30'),
        ({'separator': 'ab'}, '--separator=ab'),
        ({'decimal': ';'}, '--decimal='),
        ({'thousands': '_'}, '--thousands=_'),
        ({'decimal': ',', 'thousands': ','}, '--decimal=, and --thousands=,'),
        ({'max_columns': 3}, 'x.csv.*--max_columns=3'),
        ({'max_bytes': 20}, '--max_bytes'),
        ({'target': ['x', 'x']}, '--target='),
        ({'target': ['x'], 'covariates': ['x']}, '--covariates=x'),
        ({'bidirectional': True}, '--bidirectional'),
    ],
)
def test_flags_that_do_not_go_together_are_refused(in_tmp, changes, words):
    write(in_tmp / 'x.csv')
    with pytest.raises(UserError, match=words):
        forecast.run(data='x.csv', **{**FLAGS, **changes})


@pytest.mark.parametrize(
    ('text', 'name'),
    [(',', ','), ('.', '.'), ("'", "'"), ('\u2019', "'"), (' ', 'space'), ('\u00a0', 'space'), ('\u202f', 'space')],
)
def test_a_thousands_sign_is_given_as_it_is_or_by_name(text, name):
    parse = forecast.FLAGS['thousands'].parser.parse
    assert parse(text) == parse(name) == name
