"""Many seeds at once are many runs, one by one; and sweeps of settings are the runs of each setting."""

import csv
import json

import jax
import numpy as np
import pytest

from experiments import echo
from experiments import td as experiments_td
from seqjax import training
from seqjax.cli import sweep, sweep_grid
from seqjax.cli.sweep import SweepRow
from seqjax.errors import UserError
from seqjax.runs.directory import Workdir
from seqjax.tasks import td
from seqjax.training import optimizers, replicas
from seqjax.training import programs as training_programs
from seqjax.training.session import TrainSession
from tests.helpers import reference

WIDTH = 6


def run(compiled, seeds, *, steps, steps_per_call):
    """The losses [R, steps] of a group, and the parameters and predictions after them."""
    model, task, tx, programs = compiled
    state = programs.init(replicas.pad_replicas(np.asarray(seeds), WIDTH).astype(np.uint32))
    chunks = list(
        training.train(
            model, task, tx, state, steps=steps, steps_per_call=steps_per_call, train_chunk=programs.train_chunk
        )
    )
    losses = np.concatenate([metrics['loss'].total / metrics['loss'].count for _, metrics, _ in chunks])
    state, count = chunks[-1][0], len(seeds)
    end = (state.params, programs.predict(state, task.data.inputs))
    return losses.T[:count], *jax.tree.map(lambda x: np.asarray(x)[:count], end)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('setup', td.SETUPS)
def test_replicas_agree_with_single_runs(compiled_td, setup):
    """Six seeds, 200 steps: losses to absolute 1e-6, and to relative 1e-5 while they are above 1e-3."""
    seeds = np.array([0, 1, 2, 7, 100, 2**32 - 1])
    losses, params, predictions = run(compiled_td(setup, WIDTH), seeds, steps=200, steps_per_call=80)
    assert (losses[:, -1] < 0.8 * losses[:, 0]).all()
    assert len(np.unique(losses[:, 0])) == 6
    model, task, tx, programs = compiled_td(setup)
    for n, seed in enumerate(seeds):
        state = programs.init(np.uint32(seed))
        reference.assert_trees_equal(state.key, jax.random.key(int(seed)))
        ((state, metrics, _),) = training.train(
            model, task, tx, state, steps=200, steps_per_call=200, train_chunk=programs.train_chunk
        )
        want = metrics['loss'].total / metrics['loss'].count
        np.testing.assert_allclose(losses[n], want, rtol=0, atol=1e-6)
        large = want > 1e-3
        assert large.sum() > 50
        np.testing.assert_allclose(losses[n][large], want[large], rtol=1e-5)
        np.testing.assert_allclose(predictions[n], programs.predict(state, task.data.inputs), rtol=0, atol=1e-5)
        for got, weights in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(got[n], weights, rtol=0, atol=1e-5)


def test_a_group_that_was_filled_up_gives_the_same_numbers(compiled_td):
    """Two seeds in a group of six: bit for bit as in a full group."""
    compiled = compiled_td('many_to_one', WIDTH)
    got, full = (
        run(compiled, [6, 7], steps=11, steps_per_call=4),
        run(compiled, range(6, 12), steps=11, steps_per_call=4),
    )
    assert got[0].shape == (2, 11) and np.isfinite(full[0]).all()
    assert len(np.unique(full[0])) == full[0].size
    reference.assert_trees_equal(got, jax.tree.map(lambda x: x[:2], full))


@pytest.mark.parametrize('max_width', [1, 2, 7, 256])
def test_group_width_splits_into_the_fewest_and_narrowest_groups(max_width):
    """No wider than allowed; as few groups as that allows; no narrower width gives as few."""
    for count in range(1, 600, 7):
        width = replicas.group_width(count, max_width)
        groups = -(-count // width)
        assert 1 <= width <= min(max_width, count)
        assert groups == -(-count // max_width)
        assert width == 1 or -(-count // (width - 1)) > groups
        found = list(replicas.replica_groups(np.arange(count), width))
        assert len(found) == groups and [group.first for group in found] == list(range(0, count, width))
        np.testing.assert_array_equal(np.concatenate([group.seeds for group in found]), np.arange(count))


def test_small_models_lie_side_by_side_in_larger_numbers(monkeypatch):
    """The notebook's are a thousand, and no model's group is narrower than it always was."""
    widths = [
        experiments_td.EXPERIMENT.max_width(setup='many_to_many', length=5, hidden=hidden)
        for hidden in (5, 10, 100, 1000)
    ]
    assert widths[0] == replicas.MAX_TINY_WIDTH > widths[1] > widths[2] == widths[3] == replicas.MAX_WIDTH
    monkeypatch.setattr(replicas, 'MAX_TINY_WIDTH', 4)
    monkeypatch.setattr(replicas, 'MAX_WIDTH', 2)
    compiled, original = [], training_programs.compile_programs
    monkeypatch.setattr(
        training_programs, 'compile_programs', lambda *args, **how: compiled.append(how) or original(*args, **how)
    )
    experiments_td.run(setup='many_to_one', epochs=2, num_seeds=7, plot=False)
    sweep.run(**RATES | {'num_seeds': 4, 'epochs': 4})
    assert [how['replicas'] for how in compiled] == [4, 4]


# --- the command -----------------------------------------------------------------------------------

RATES = {'experiment': 'td', 'setup': 'many_to_one', 'epochs': 12, 'eval_every': 4, 'num_seeds': 3, 'seed': 5}
RATES |= {'grid': {'learning_rate': [1e-3, 0.02]}, 'plot': False}


def test_settings_side_by_side_are_the_runs_of_each_setting(monkeypatch):
    """Two learning rates with three seeds, in one program: the losses of td.run with each, at every look."""
    compiled, original = [], training_programs.compile_programs
    monkeypatch.setattr(
        training_programs, 'compile_programs', lambda *args, **how: compiled.append(how) or original(*args, **how)
    )
    rows = sweep.run(**RATES)
    assert [how['replicas'] for how in compiled] == [6]
    assert [(row.setting, row.seed, row.step) for row in rows] == [
        ((rate,), seed, step) for rate in (1e-3, 0.02) for seed in (5, 6, 7) for step in (4, 8, 12) for _ in range(2)
    ]
    assert all(row.value == row.setting[0] for row in rows if row.metric == 'learning_rate')
    rows = [row for row in rows if row.metric == 'loss']
    for rate in (1e-3, 0.02):
        losses = experiments_td.run(
            setup='many_to_one', epochs=12, learning_rate=rate, seed=5, num_seeds=3, plot=False
        ).metrics['loss']
        got = [row.value for row in rows if row.setting == (rate,)]
        np.testing.assert_allclose(got, losses[:, [3, 7, 11]].ravel(), rtol=1e-5)


def test_a_group_of_one_rate_has_that_rate(monkeypatch):
    """Groups are as wide as there are seeds, so that none but the first has the rate of the program."""
    together = sweep.run(**RATES)
    monkeypatch.setattr(replicas, 'group_width', lambda *_: 3)
    apart = sweep.run(**RATES)
    assert [row[:4] for row in apart] == [row[:4] for row in together]
    np.testing.assert_allclose([row.value for row in apart], [row.value for row in together], rtol=1e-5)


def test_rates_of_all_groups_are_set_by_one_program(monkeypatch):
    """The rates are its argument."""
    monkeypatch.setattr(replicas, 'group_width', lambda *_: 2)
    traced, original = [], optimizers.with_rates
    monkeypatch.setattr(optimizers, 'with_rates', lambda *args: traced.append(1) or original(*args))
    sweep.run(**RATES | {'grid': {'learning_rate': [1e-3, 0.02, 0.03]}, 'epochs': 4})
    assert len(traced) == 1


def test_settings_of_other_shapes_follow_each_other(in_tmp, capsys):
    """Through the command line: cells and delays of the echo, every metric of it, in a tidy table."""
    argv = '--experiment=echo --grid=cell:gru,simple --grid=delay:1,2 --steps=6 --eval_every=3 --num_seeds=2 --hidden=3'
    assert sweep.main([*argv.split(), '--length=200', '--workdir=w', '--metric=accuracy']) == 0
    out = capsys.readouterr().out
    assert 'accuracy' in out and 'step 6' in out
    assert all(f'cell={cell} delay={delay} ' in out for cell in ('gru', 'simple') for delay in (1, 2))
    with (in_tmp / 'w/sweep.csv').open() as lines:
        table = list(csv.DictReader(lines))
    assert list(table[0]) == ['cell', 'delay', 'seed', 'step', 'metric', 'value']
    assert len(table) == 4 * 2 * 2 * 3 and {row['metric'] for row in table} == {'loss', 'accuracy', 'learning_rate'}
    echo.run(cell='simple', delay=2, steps=6, num_seeds=2, hidden=3, length=200, plot=False, workdir='e')
    want = np.load('e/replicas.npz')['loss'][:, [2, 5]]
    got = [
        float(row['value']) for row in table if (row['cell'], row['delay'], row['metric']) == ('simple', '2', 'loss')
    ]
    np.testing.assert_allclose(got, want.ravel(), rtol=1e-5)
    assert sweep.main([*argv.split(), '--length=200', '--workdir=w']) == 0
    again = capsys.readouterr().out
    assert 'step 6' in again
    assert (in_tmp / 'w/curve.png').stat().st_size > 10_000


def test_the_share_of_exact_seeds_is_that_of_runs_of_their_own(in_tmp, capsys):
    """For each learning rate and number of epochs; and the table, the picture and a second look have that share."""
    flags = ['--epochs=70', '--eval_every=10', '--num_seeds=20', '--grid=learning_rate:0.02,0.1', '--metric=exact']
    assert sweep.main([*flags, '--workdir=w']) == 0
    shown = capsys.readouterr().out
    with (in_tmp / 'w/sweep.csv').open() as lines:
        table = [row for row in csv.DictReader(lines) if row['metric'] == 'exact']
    assert len(table) == 2 * 20 * 7 and {row['value'] for row in table} == {'0.0', '1.0'}
    for rate, epochs in (('0.02', 70), ('0.1', 50), ('0.1', 70)):
        alone = experiments_td.run(learning_rate=float(rate), epochs=epochs, num_seeds=20, plot=False)
        rows = [row for row in table if (row['learning_rate'], row['step']) == (rate, str(epochs))]
        count = sum(row['value'] == '1.0' for row in rows)
        assert (count, len(rows)) == (alone.summary['seeds']['exact'], 20)
        low, high = alone.summary['seeds']['interval']
        told = f'{count} of 20  {count / 20:.1%} ({low:.1%} to {high:.1%})'
        assert epochs < 70 or told in ' '.join(shown.split(f'learning_rate={rate} ')[1].splitlines()[:1])
    capsys.readouterr()
    assert sweep.main([*flags, '--workdir=w']) == 0
    again = capsys.readouterr().out
    assert [line for line in again.splitlines() if ' of 20 ' in line] == [
        line for line in shown.splitlines() if ' of 20 ' in line
    ]
    assert experiments_td.main(['--epochs=5', '--workdir=w']) == 2 and 'sweep' in capsys.readouterr().err


def test_a_sweep_that_measures_keeps_its_logs_apart(in_tmp, monkeypatch):
    """Stopped, and asked for another metric, it begins anew instead of mistaking one log for another."""
    original, trained = TrainSession.train, []

    def fails(self):
        for part in original(self):
            trained.append(part.step)
            yield part
            if len(trained) == 2:
                raise ZeroDivisionError

    monkeypatch.setattr(TrainSession, 'train', fails)
    settings = {**RATES, 'checkpoint_every': 4, 'workdir': 'w'}
    with pytest.raises(ZeroDivisionError):
        sweep.run(**settings)
    rows = sweep.run(**settings, metric='exact')
    assert trained == [0, 4, 0, 4, 8]
    assert {row.metric for row in rows} == {'loss', 'exact', 'learning_rate'}


def test_echo_is_measured_on_other_sequences():
    how = {'steps': 6, 'num_seeds': 2, 'hidden': 3, 'length': 200, 'plot': False}
    rows = sweep.run(experiment='echo', metric='right', eval_every=6, **how)
    answers = echo.run(**how)
    assert [row.value for row in rows if row.metric == 'right'] == pytest.approx(
        [right / answers.count for right in answers.right]
    )


@pytest.mark.representative(every=2, first=1)
@pytest.mark.parametrize('rates', [[0.01], [0.01, 0.02]])
def test_the_table_has_the_learning_rate_of_a_schedule(rates):
    """Half a cosine, whose rate at the last step before a look is by hand."""
    how = {'experiment': 'even_pairs', 'steps': 4, 'eval_every': 2, 'num_seeds': 2, 'plot': False, 'hidden': 2}
    rows = sweep.run(**how, schedule='cosine', decay_steps=8, grid={'learning_rate': rates})
    got = [row.value for row in rows if row.metric == 'learning_rate']
    want = [rate * (1 + np.cos(np.pi * step / 8)) / 2 for rate in rates for _ in range(2) for step in (1, 3)]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_sweep_that_was_stopped_goes_on(in_tmp, monkeypatch):
    """Settings that were done are not trained again, and the table is as if nothing had happened."""
    settings = {**RATES, 'grid': {'hidden': [2, 3]}, 'checkpoint_every': 4}
    sweep.run(**settings, workdir='a')
    original, trained = TrainSession.train, []

    def fails(self):
        for part in original(self):
            trained.append(part.step)
            if len(trained) == 5:  # in the second setting
                raise ZeroDivisionError
            yield part

    monkeypatch.setattr(TrainSession, 'train', fails)
    with pytest.raises(ZeroDivisionError):
        sweep.run(**settings, workdir='b')
    sweep.run(**settings, workdir='b')
    assert trained == [0, 4, 8, 0, 4, 4, 8]
    assert (in_tmp / 'a/sweep.csv').read_bytes() == (in_tmp / 'b/sweep.csv').read_bytes()


def test_a_setting_that_diverges_is_a_row_of_the_table(capsys):
    """The others go on, and the table says how many seeds failed."""
    sweep.run(**{**RATES, 'grid': {'learning_rate': [1e30, 1e-3]}})
    table = capsys.readouterr().out
    assert '3 diverged' in table and table.count('diverged') == 1
    rows = sweep.run(**{**RATES, 'grid': {'adam_epsilon': [1e-7, 1e-3]}})
    assert np.isfinite([row.value for row in rows]).all()


@pytest.mark.parametrize(
    ('flags', 'told'),
    [
        ('--experiment=ech', 'echo'),
        (
            '--grid=setp:one_to_one',
            '--grid=setp',
        ),
        ('--grid=setup:one_to_on', '--grid=setup:one_to_on'),
        ('--grid=setup', '--grid=setup'),
        ('--grid=setup:one_to_one,', '--grid=setup'),
        ('--grid=seed:1,2', '--grid=seed'),
        ('--grid=hidden:1,1', '--grid=hidden'),
        ('--grid=hidden:1 --grid=hidden:2', '--grid=hidden'),
        ('--grid=epochs:3,4', '--grid=epochs'),
        ('--eval_every=7 --epochs=5', '--eval_every=7'),
        ('--metric=los --epochs=2', '--metric=los'),
        ('--keep_best=loss', '--keep_best'),
    ],
)
def test_what_a_person_can_get_wrong(flags, told, in_tmp, capsys):
    assert sweep.main(flags.split()) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and told in err


def test_python_is_told_as_well():
    with pytest.raises(UserError, match='--lenght.*--length'):
        sweep.run(lenght=3)
    with pytest.raises(UserError, match='--grid=x'):
        sweep.run(grid=['x'])


def test_the_flags_of_the_experiment_are_those_of_the_sweep(capsys):
    assert sweep.main(['--help', '--experiment=echo']) == 0
    out = capsys.readouterr().out
    assert '--delay=(' in out and '--grid=(' in out and '--setup' not in out
    assert json.dumps(sweep_grid.OWN_DEFAULTS)  # plain values


TABLE = 'delay,seed,step,metric,value\n1,0,3,loss,0.5\n'


@pytest.mark.parametrize(
    'content',
    [
        '',
        '\n',
        TABLE.splitlines()[0],
        TABLE.replace('delay', 'cell'),
        TABLE + '1,0\n',
        TABLE + '2,0,3,loss,0.5\n',
        TABLE + 'x\0',
    ],
)
def test_a_table_that_was_damaged_is_refused(tmp_path, content):
    (tmp_path / 'sweep.csv').write_text(TABLE)
    folder, grid = Workdir(tmp_path), [['delay', [1]]]
    assert sweep._read(folder, grid) == [SweepRow((1,), 0, 3, 'loss', 0.5)]
    (tmp_path / 'sweep.csv').write_text(content)
    with pytest.raises(UserError, match='sweep.csv'):
        sweep._read(folder, grid)
