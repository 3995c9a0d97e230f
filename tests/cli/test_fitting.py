"""What every kind of data has: a first look, training that stops, one look at the test part, a verdict."""

import csv
import json
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import training
from seqjax.cli import dataset_test, predict, task_setup
from seqjax.errors import UserError
from seqjax.runs import directory
from seqjax.runs.directory import Workdir
from seqjax.types import Task
from tests.helpers import kinds
from tests.helpers.kinds import COMMAND, EXPERIMENT

QUICK = {'data': 'data', 'patience': 2, 'steps': 40, 'num_seeds': 2, 'plot': False}


@pytest.fixture
def data(in_tmp, monkeypatch):
    """A folder with data, where the kind of the tests is an experiment."""
    (in_tmp / 'data').write_text('60')
    monkeypatch.setitem(sys.modules, 'seqjax.cli.begin', kinds)
    return in_tmp


@pytest.fixture(scope='module')
def held(tmp_path_factory):
    folder = tmp_path_factory.mktemp('held')
    (folder / 'data').write_text('60')
    EXPERIMENT.run(**QUICK | {'data': str(folder / 'data')}, workdir=str(folder / 'w'))
    return folder


@pytest.fixture
def trained(data, held):
    """A folder with data, and with a finished run in w."""
    shutil.copytree(held / 'w', data / 'w')
    path = data / 'w/summary.json'
    summary = json.loads(path.read_text())
    Workdir(data / 'w').write_summary(summary | {'flags': summary['flags'] | {'data': 'data'}})
    return data


def argv_of(settings):
    return [f'--no{name}' if value is False else f'--{name}={value}' for name, value in settings.items()]


def test_a_run_looks_learns_and_judges(data, capsys):
    pytest.importorskip('matplotlib')
    argv = argv_of(QUICK | {'workdir': 'w', 'steps': 400, 'patience': 20, 'plot': True, 'num_seeds': 4})
    assert COMMAND.main(argv) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[1] == '  60 series' and 'always 1' in lines[2]
    assert re.search(r'\b20\b', text) and 'answers (2, 8, 2)' in text
    assert 'lstm(4)' in lines[-1] and 'always 1' in lines[-1] and '95%' in lines[-1]
    names = {'checkpoints', 'curve.png', 'evals.csv', 'models.npz', 'predictions.csv', 'summary.json'}
    assert {path.name for path in (data / 'w').iterdir()} == names
    summary = json.loads((data / 'w/summary.json').read_text())
    assert summary['finished'] and summary['preprocessing'] == {'steps': 6}
    assert COMMAND.main(argv) == 0
    again = capsys.readouterr().out.splitlines()
    assert again[-1] == lines[-1] and lines[-7:] == again[-7:]


def test_the_test_part_is_asked_once_for_each_seed_and_only_at_the_end(data, monkeypatch):
    """And what trained knows nothing of it."""
    asked = []
    real = dataset_test.make_predictor

    def counting(model, read):
        program = real(model, read)
        return lambda best, batches: asked.append(best) or program(best, batches)

    monkeypatch.setattr(dataset_test, 'make_predictor', counting)
    one = EXPERIMENT.run(**QUICK)[0]
    assert len(asked) == 2
    x, y = kinds.series('data', 0.0)
    monkeypatch.setattr(kinds, 'series', lambda path, noise: (x, np.concatenate([1 - y[:12], y[12:]])))
    other = EXPERIMENT.run(**QUICK)[0]
    np.testing.assert_allclose(other.values, 1 - one.values)


def test_python_and_the_command_line_do_the_same(trained):
    assert COMMAND.main(argv_of(QUICK | {'workdir': 'b'})) == 0
    for name in ('evals.csv', 'predictions.csv'):
        assert (trained / 'w' / name).read_bytes() == (trained / 'b' / name).read_bytes()


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('finished', [True, False])
def test_a_file_that_changed_since_is_no_run_to_go_on_with(trained, finished, monkeypatch):
    if not finished:
        summary = json.loads((trained / 'w/summary.json').read_text())
        Workdir(trained / 'w').write_summary(summary | {'finished': False})
    (trained / 'data').write_text('61')
    with pytest.raises(UserError, match='--work'):
        EXPERIMENT.run(**QUICK, workdir='w')
    assert EXPERIMENT.run(**QUICK, workdir='w', overwrite=True)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(('steps', 'eval_every', 'looks'), [(11, 4, [4, 8]), (3, 50, [3]), (9, None, [4, 8])])
def test_no_more_steps_are_taken_than_were_asked_for(data, steps, eval_every, looks):
    """The kind of the tests has an epoch of 4."""
    EXPERIMENT.run(**QUICK | {'steps': steps, 'eval_every': eval_every, 'num_seeds': 1}, workdir='w')
    header, *rows = rows_of('w/evals.csv')
    assert [int(row[1]) for row in rows] == looks
    assert header[-1] == 'learning_rate' and {row[-1] for row in rows} == {
        str(np.float32(EXPERIMENT.defaults[header[-1]]))
    }


def test_cells_are_compared_over_the_same_seeds(data, capsys):
    settings = QUICK | {'cells': 'lstm,gru', 'workdir': 'w', 'steps': 8}
    assert COMMAND.main(argv_of(settings)) == 0
    text = capsys.readouterr().out
    with (data / 'w/compare.csv').open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(row['model'], row['seed']) for row in rows] == [
        ('lstm', '0'), ('lstm', '1'), ('gru', '0'), ('gru', '1'), ('always 1', ''),
    ]  # fmt: skip
    assert 'gru - lstm' in text and text.splitlines()[-1].startswith('gru(4) ')
    alone = EXPERIMENT.run(**QUICK | {'steps': 8}, cell='gru')[0]
    assert [float(row['accuracy']) for row in rows[2:4]] == pytest.approx(alone.values.tolist())
    assert COMMAND.main(argv_of(settings | {'cells': 'lstm,gru,mingru'})) == 0  # goes on with what is there


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        ({'data': 'nowhere'}, 'nowhere'),
        ({'held_out': 30}, '--held_out=30'),
        ({'dropout': 0.5}, '--dropout=0.5'),
        ({'cell': 'mingru', 'drop_connect': 0.5}, '--drop_connect=0.5'),
        ({'forget_bias_init': 'chrono'}, '--forget_bias_init=chrono'),
        ({'schedule': 'cosine'}, 'decay_steps'),
        ({'cells': 'lstm,lsmt'}, '--cells=lstm,lsmt'),
        ({'hidden': 10**8}, '--hidden=100000000'),
        ({'patience': 0}, '--patience=0'),
        ({'hiden': 3}, '--hiden'),
    ],
)
def test_what_a_person_gets_wrong_is_told_in_a_sentence(data, flags, words, capsys):
    assert COMMAND.main(argv_of(QUICK | flags)) == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1


def test_without_data_it_says_what_is_missing(in_tmp, capsys):
    assert COMMAND.main([]) == 2
    assert '--data' in capsys.readouterr().err


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('drop', ['input_dropout', 'output_dropout', 'recurrent_dropout', 'drop_connect'])
def test_dropout_acts_in_training_alone(data, drop):
    settings = EXPERIMENT.check(QUICK | {drop: 0.5})
    spec = EXPERIMENT.spec({})
    model = task_setup.make_model(spec, settings.model)
    x = jax.random.normal(jax.random.key(1), (2, 6, 1))
    variables = model.init(jax.random.key(0), x)
    plain = task_setup.make_model(spec, EXPERIMENT.check(QUICK).model)
    np.testing.assert_array_equal(model.apply(variables, x), plain.apply(variables, x))
    one, other = (model.apply(variables, x, rngs={'dropout': jax.random.key(i)}) for i in (2, 3))
    assert not jnp.allclose(one, other)


def test_refit_is_training_anew_on_both_parts_for_the_steps_of_the_median_seed(data):
    """By the plain loop, seed by seed."""
    EXPERIMENT.run(**QUICK | {'steps': 60}, workdir='w')
    EXPERIMENT.run(**QUICK | {'steps': 60}, refit=True, workdir='r')
    with np.load('w/models.npz') as held:
        steps = 4 * round(np.median(held['step']) / 4)  # an epoch of this kind has 4
    settings = EXPERIMENT.check(QUICK)
    dataset = EXPERIMENT.dataset(settings)
    model = task_setup.make_model(dataset.spec, settings.model)
    assert len(dataset.train_plus_validation()[1]) == len(dataset.data[1]) + 12
    task, tx = (
        Task(dataset.loss_fn, dataset.batch, dataset.train_plus_validation()),
        task_setup.make_optimizer(settings.train),
    )
    with np.load('r/models.npz') as held:
        assert held['step'].tolist() == [steps, steps] and 0 < steps < 60
        for place, seed in enumerate(held['seeds']):
            state = training.init_state(model, task, tx, jax.random.key(seed))
            for state, *_ in training.train(model, task, tx, state, steps=steps, steps_per_call=steps):
                pass
            np.testing.assert_allclose(held['params/head/kernel'][place], state.params['head']['kernel'], atol=1e-5)


# --- predictions -----------------------------------------------------------------------------------


def rows_of(path):
    with open(path) as lines:
        return list(csv.reader(lines))


def test_a_finished_run_predicts_its_own_file_as_its_test_did_bit_for_bit(trained, capsys):
    assert predict.main(['--workdir=w', '--data=data', '--out=p.csv']) == 0
    own, whole = rows_of('w/predictions.csv'), rows_of('p.csv')
    assert len(own) == 13 and len(whole) == 61 and whole[:13] == own
    chosen = json.loads((trained / 'w/summary.json').read_text())['result']['chosen']
    assert f'seed {chosen}' in capsys.readouterr().out
    other = 1 - chosen
    assert predict.main(['--workdir=w', '--data=data', f'--seed={other}']) == 0
    out = capsys.readouterr()
    assert out.out.splitlines()[0] == 'no,yes' and f'seed {other}' in out.err
    assert out.out.splitlines()[1:] != [','.join(row) for row in whole[1:]]


def test_what_comes_one_at_a_time_is_what_comes_at_once(trained, capsys, monkeypatch):
    capsys.readouterr()
    found = predict.load('w')
    lines = ['0.5', '-1', '', '2', '0.25', '1']
    monkeypatch.setattr('sys.stdin', iter(f'{line}\n' for line in lines))
    assert predict.main(['--workdir=w', '--stdin']) == 0
    answers = [float(x) for x in capsys.readouterr().out.splitlines()[1:]]
    at_once = []
    for x in ([0.5], [0.5, -1], [2], [2, 0.25], [2, 0.25, 1]):
        out = found.model.apply({'params': found.best.params}, jnp.array(x)[None, :, None])[0]
        at_once.append(float(out[1] - out[0]))
    np.testing.assert_allclose(answers, at_once, rtol=1e-5, atol=1e-6)


def test_a_stream_traces_two_programs_however_long_it_is(trained, monkeypatch):
    found = predict.load('w')
    traces, real = [], type(found.model).__call__

    def counted(self, *args, **kwargs):
        traces.append(1)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(found.model), '__call__', counted)
    assert len(list(predict.predictions_of(found, found.experiment.stream({}, {}), ['1', '2', '', *['3'] * 20]))) == 22
    assert len(traces) == 2


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        ([], '--workdir'),
        (['--workdir=nowhere', '--stdin'], '--workdir=nowhere'),
        (['--workdir=w'], '--data'),
        (['--workdir=w', '--stdin', '--prompt=x'], '--prompt'),
        (['--workdir=w', '--data=nowhere'], 'nowhere'),
        (['--workdir=w', '--data=data', '--seed=7'], '--seed=7'),
        (['--workdir=w', '--data=data', '--out=data'], '--out=data'),
        (['--workdir=w', '--data=data', '--out=no/p.csv'], '--out=no/p.csv'),
        (['--workdir=w', '--prompt=x'], '--prompt'),
        (['--workdir=other', '--stdin'], '--workdir=other'),
        (['--workdir=half', '--stdin'], '--workdir=half'),
        (['--workdir=broken', '--stdin'], 'summary.json'),
        (['--workdir=bare', '--stdin'], 'bare/summary.json'),
    ],
)
def test_what_cannot_be_predicted_is_told_in_a_sentence(trained, argv, words, capsys):
    about = json.loads((trained / 'w/summary.json').read_text())
    bare = {name: about[name] for name in ('experiment', 'flags', 'finished')}
    for name, held in (('other', about | {'experiment': 'td'}), ('half', about | {'finished': False}), ('bare', bare)):
        (trained / name).mkdir()
        Workdir(trained / name).write_summary(held)
    (trained / 'broken').mkdir()
    (trained / 'broken' / directory.SUMMARY).write_text('{')
    capsys.readouterr()
    assert predict.main(argv) == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1
    assert (trained / 'data').read_text() == '60'


def test_a_line_that_is_no_observation_is_named(trained, capsys, monkeypatch):
    monkeypatch.setattr('sys.stdin', iter(['1\n', 'x\n']))
    assert predict.main(['--workdir=w', '--stdin']) == 2
    assert 'line 2' in capsys.readouterr().err
