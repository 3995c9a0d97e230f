"""The three experiments through both doors: the command line, and Python."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import td
from seqjax.cli import command as cli_command
from seqjax.cli import command_line, registry
from seqjax.cli.dataset_experiment import DatasetExperiment
from seqjax.cli.settings import Settings
from seqjax.ops.native import library
from seqjax.runs.directory import Workdir
from seqjax.training import seeds
from tests.helpers import backends

ROOT = Path(__file__).parent.parent.parent
SHORT = ['--epochs=12', '--steps_per_call=5', '--noplot']
FILES = {'metrics.csv', 'summary.json', 'checkpoints'}


def command(*flags, module='td', **options):
    """A process of its own, as a person starts it."""
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': ''}
    program = ['seqjax', module] if module in registry.modules() else [f'experiments.{module}']
    run = [sys.executable, '-m', *program, *map(str, flags)]
    return subprocess.run(run, capture_output=True, text=True, env=environment, check=False, timeout=300, **options)


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sentence(capsys):
    """The one line on stderr."""
    err = capsys.readouterr().err
    assert err.startswith('experiments.td') and err.count('\n') == 1, err
    return err


# --- what a person can get wrong -------------------------------------------------------------------

WRONG = [
    ('--setup=many_to_may', ['--setup=many_to_may', 'many_to_many']),
    ('--recurrent_activation=relu', ['--recurrent_activation=relu', 'keras2_hard_sigmoid']),
    *[
        (f'--{name}={value}', [f'--{name}={value}'])
        for name in ('length', 'hidden', 'epochs', 'steps_per_call', 'num_seeds')
        for value in ('0', '-3', '2.5', '', 'five', '99999999999999999999')
    ],
    *[
        (f'--{name}={value}', [f'--{name}={value}'])
        for name in ('learning_rate', 'adam_epsilon')
        for value in ('0', '-0.1', 'nan', 'inf', '1e39', '1e-50', '', 'é')
    ],
    ('--seed=-1', ['--seed=-1']),
    ('--seed=4294967296', ['--seed=4294967296', '4294967295']),
    ('--overwrite=maybe', ['overwrite', 'maybe']),
    ('--epoch=5', ['--epoch', '--epochs']),
    ('--noplots', ['--noplots', '--plot']),
    ('--zzz=1', ['--zzz', '--help']),
    ('many_to_one', ["'many_to_one'", '--NAME=VALUE']),
    ('--epochs', ['epochs', '--help']),
    ('--flagfile=nowhere.flags', ['nowhere.flags', 'many_to_many.flags']),
    ('--workdir=', ['--workdir=']),
    ('--hidden=1000000', ['--hidden=1000000']),
    ('--length=2000000000', ['--length=2000000000']),
]


@pytest.mark.parametrize(('flag', 'words'), WRONG, ids=[flag for flag, _ in WRONG])
def test_a_mistake_ends_in_a_sentence_and_exit_code_2(flag, words, in_tmp, capsys):
    assert td.main([flag]) == 2
    told = sentence(capsys)
    for word in words:
        assert word in told
    assert list(in_tmp.iterdir()) == []


def test_the_last_seed_must_be_a_seed(in_tmp, capsys):
    assert td.main(['--seed=4294967295', '--num_seeds=2', *SHORT]) == 2
    assert '--seed=4294967295' in sentence(capsys)


@pytest.mark.parametrize('content', [b'--setup=nothing\n', b'--epoch=5\n', b'\xff\xfe\x00', b'epochs=5\n'])
def test_a_flagfile_with_mistakes(content, in_tmp, capsys):
    (in_tmp / 'mine.flags').write_bytes(content)
    assert td.main(['--flagfile=mine.flags', *SHORT]) == 2
    sentence(capsys)


@pytest.mark.parametrize('where', ['file', 'file/below', '/dev/null/x', '/proc/x', 'n' * 300])
def test_a_workdir_that_cannot_be_written(where, in_tmp, capsys):
    (in_tmp / 'file').write_text('mine')
    assert td.main([f'--workdir={where}', *SHORT]) == 2
    told = sentence(capsys)
    assert '--workdir' in told
    assert (in_tmp / 'file').read_text() == 'mine'


def test_a_disk_that_fills_up_is_told_in_a_sentence(in_tmp, capsys, monkeypatch):
    """What was written before stays."""

    def full(self, *args, **kwargs):
        raise OSError(28, 'No space left on device')

    assert td.main(SHORT) == 0
    capsys.readouterr()
    monkeypatch.setattr(os, 'replace', full)
    assert td.main([*SHORT, '--workdir=other']) == 2
    told = sentence(capsys)
    assert 'No space left' in told and 'summary.json' in told
    assert json.loads((in_tmp / 'runs/td/many_to_many/summary.json').read_text())['finished']


@pytest.mark.parametrize('flags', [[], ['--num_seeds=3']])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_told(flags, in_tmp, capsys):
    argv = ['--learning_rate=1e30', '--epochs=300', '--steps_per_call=7', '--noplot', '--workdir=w', *flags]
    assert td.main(argv) == 2
    told = sentence(capsys)
    assert 'step 2 of 300' in told and '--learning_rate' in told
    summary = json.loads((in_tmp / 'w/summary.json').read_text())
    assert not summary['finished']
    if not flags:
        rows = (in_tmp / 'w/metrics.csv').read_text().splitlines()
        assert rows[0] == 'step,loss,learning_rate' and len(rows) == 3 and np.isfinite(float(rows[1].split(',')[1]))


def test_python_refuses_with_a_value_error():
    for wrong in ({'length': 0}, {'setup': 'x'}, {'learning_rate': np.nan}, {'epochs': True}, {'plot': 'maybe'}):
        with pytest.raises(ValueError, match=f'--{next(iter(wrong))}='):
            td.run(**wrong)


# --- what stays ------------------------------------------------------------------------------------


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(('setup', 'count'), [('one_to_one', 146), ('many_to_one', 170), ('many_to_many', 146)])
def test_what_a_run_leaves_and_shows(setup, count, in_tmp, capsys):
    """metrics.csv, summary.json and curve.png, all in accord with what td.run returns in Python."""
    assert td.main([f'--setup={setup}', '--epochs=12', '--steps_per_call=5']) == 0
    shown = capsys.readouterr().out
    folder = in_tmp / 'runs' / 'td' / setup
    assert {file.name for file in folder.iterdir()} == FILES | {'curve.png'}
    assert (folder / 'curve.png').read_bytes().startswith(b'\x89PNG')
    summary = json.loads((folder / 'summary.json').read_text())
    result = td.run(setup=setup, epochs=np.int64(12), steps_per_call=12)
    with (folder / 'metrics.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row['step']) for row in rows] == list(range(1, 13))
    np.testing.assert_array_equal(np.array([row['loss'] for row in rows], np.float32), result.metrics['loss'])
    assert {row['learning_rate'] for row in rows} == {'0.001'}
    np.testing.assert_array_equal(np.array(summary['predictions'], np.float32), result.predictions)
    assert set(summary['flags']) == set(td.FLAGS) and summary['flags']['epochs'] == 12
    assert summary['params'] == count == sum(layer['params'] for layer in summary['layers'])
    assert [summary['first_loss'], summary['last_loss']] == [float(result.metrics['loss'][i]) for i in (0, -1)]
    assert set(summary['seconds']) == {'compile', 'train'} and summary['device'] and 'jax' in summary['versions']
    assert f'Total params: {count}' in shown and '0.0 0.2 0.4 0.6 0.8' in shown and '-0.000' not in shown
    assert f'(None, {5 if setup != "many_to_many" else "5, 5"})' in shown
    assert setup in shown.strip().splitlines()[-1] and '12' in shown.strip().splitlines()[-1]
    assert type(result.figure).__name__ == 'Figure' and result._repr_png_().startswith(b'\x89PNG')


@pytest.mark.slow
def test_same_flags_same_bytes_whatever_the_chunk(in_tmp):
    """Two processes, and one with another chunk, write the same metrics.csv."""
    for name, steps_per_call in (('a', 10), ('b', 10), ('c', 7)):
        done = command('--epochs=20', f'--steps_per_call={steps_per_call}', '--noplot', f'--workdir={name}', cwd=in_tmp)
        assert done.returncode == 0 and done.stderr == '', done.stderr
    contents = [(in_tmp / name / 'metrics.csv').read_bytes() for name in 'abc']
    assert contents[0] == contents[1] == contents[2] and contents[0].count(b'\n') == 21
    other = command('--epochs=20', '--noplot', '--workdir=d', '--seed=1', cwd=in_tmp)
    assert other.returncode == 0 and (in_tmp / 'd' / 'metrics.csv').read_bytes() != contents[0]


def test_a_finished_run_is_shown_again_and_another_is_refused(in_tmp, capsys):
    assert td.main(SHORT) == 0
    folder = in_tmp / 'runs/td/many_to_many'
    before, first = (folder / 'metrics.csv').stat().st_mtime_ns, capsys.readouterr().out
    assert td.main([*SHORT, '--steps_per_call=3', '--plot']) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[-1] == first.splitlines()[-1]
    assert (folder / 'metrics.csv').stat().st_mtime_ns == before and (folder / 'curve.png').exists()
    for flags, name in ((['--hidden=6'], 'hidden'), (['--seed=2'], 'seed'), (['--num_seeds=4'], 'num_seeds')):
        assert td.main([*SHORT, *flags, f'--workdir={folder}']) == 2
        told = sentence(capsys)
        assert f'--{name}' in told and '--overwrite' in told
    assert td.main([*SHORT, '--hidden=6', f'--workdir={folder}', '--overwrite']) == 0
    assert json.loads((folder / 'summary.json').read_text())['flags']['hidden'] == 6
    assert not (folder / 'curve.png').exists()


def test_overwrite_removes_our_files_alone(in_tmp):
    (in_tmp / 'mine').mkdir()
    (in_tmp / 'mine' / 'thesis.txt').write_text('years of work')
    assert td.main([*SHORT, '--workdir=mine']) == 0
    assert td.main([*SHORT, '--workdir=mine', '--seed=3', '--overwrite']) == 0
    assert (in_tmp / 'mine' / 'thesis.txt').read_text() == 'years of work'


def test_a_folder_that_is_not_ours_or_is_damaged_is_refused(in_tmp, capsys):
    (in_tmp / 'theirs').mkdir()
    (in_tmp / 'theirs' / 'metrics.csv').write_text('their,numbers\n')
    assert td.main([*SHORT, '--workdir=theirs']) == 2
    assert '--overwrite' in sentence(capsys)
    assert (in_tmp / 'theirs' / 'metrics.csv').read_text() == 'their,numbers\n'
    for damage in (lambda path: path.write_text('{"finished"'), lambda path: path.write_text('[]')):
        assert td.main([*SHORT, '--overwrite']) == 0
        damage(in_tmp / 'runs/td/many_to_many/summary.json')
        capsys.readouterr()
        assert td.main(SHORT) == 2
        assert 'summary.json' in sentence(capsys)
    assert td.main([*SHORT, '--overwrite']) == 0
    (in_tmp / 'runs/td/many_to_many/metrics.csv').unlink()
    capsys.readouterr()
    assert td.main(SHORT) == 2
    assert 'metrics.csv' in sentence(capsys)


def test_an_unfinished_run_goes_on(in_tmp, capsys):
    """From its last checkpoint, or where there is none from the beginning; a torn line at the end is cut off."""
    assert td.main([*SHORT, '--checkpoint_every=5', '--max_to_keep=9']) == 0
    folder = in_tmp / 'runs/td/many_to_many'
    path, whole = folder / 'summary.json', (folder / 'metrics.csv').read_bytes()
    held = json.loads(path.read_text())
    for gone, told in (('12', 'step 10 '), ('10', 'step 5 '), ('', '')):
        Workdir(path.parent).write_summary({**held, 'finished': False})
        (folder / 'metrics.csv').write_bytes(whole[: len(whole) * 9 // 10])
        if gone:
            shutil.rmtree(folder / 'checkpoints' / '12')
            shutil.rmtree(folder / 'checkpoints' / gone, ignore_errors=True)
        else:
            shutil.rmtree(folder / 'checkpoints')
        capsys.readouterr()
        assert td.main([*SHORT, '--checkpoint_every=5', '--max_to_keep=9']) == 0
        shown = capsys.readouterr().out
        assert told in shown and len(re.findall(r'\bstep \d', shown)) == bool(told)
        assert (folder / 'metrics.csv').read_bytes() == whole
        now = json.loads(path.read_text())
        other = {'seconds': 0, 'flags': 0, 'sha256': ''}
        assert {**now, **other} == {**held, **other}


@pytest.mark.skipif(not backends.available(['native']), reason='no C++ compiler')
def test_a_run_goes_on_with_and_without_the_native_kernels(in_tmp, monkeypatch):
    monkeypatch.setenv(library.VARIABLE, library.REQUIRE)
    flags = ['--setup=many_to_many', '--hidden=70', '--length=12', '--epochs=12', '--checkpoint_every=5', '--noplot']
    assert td.main([*flags, '--max_to_keep=9', '--workdir=w', '--native=require']) == 0
    folder = in_tmp / 'w'
    assert json.loads((folder / 'summary.json').read_text())['native_kernels'] == ['float32']
    whole = (folder / 'metrics.csv').read_bytes()

    def losses(native):
        held = json.loads((folder / 'summary.json').read_text())
        Workdir(folder).write_summary({**held, 'finished': False})
        for step in ('10', '12'):
            shutil.rmtree(folder / 'checkpoints' / step)
        assert td.main([*flags, '--max_to_keep=9', '--workdir=w', f'--native={native}']) == 0
        return np.genfromtxt(folder / 'metrics.csv', delimiter=',', skip_header=1)

    np.testing.assert_allclose(losses(library.OFF), losses(library.REQUIRE), rtol=1e-5)
    assert (folder / 'metrics.csv').read_bytes() == whole


def test_a_run_whose_summary_is_lost_is_finished_from_its_checkpoints(in_tmp, capsys):
    """Its flags are in the checkpoints, too; while the file is there and cannot be read, a sentence says what to do."""
    assert td.main(SHORT) == 0
    path = in_tmp / 'runs/td/many_to_many/summary.json'
    held = json.loads(path.read_text())
    path.write_text('{')
    capsys.readouterr()
    assert td.main(SHORT) == 2
    assert 'summary.json' in sentence(capsys)
    path.unlink()
    assert td.main([*SHORT, '--seed=1', f'--workdir={path.parent}']) == 2
    assert '--seed=0' in sentence(capsys)
    assert not path.exists()
    assert td.main(SHORT) == 0
    assert 'step 12 ' in capsys.readouterr().out
    other = {'seconds': 0, 'sha256': ''}
    assert {**json.loads(path.read_text()), **other} == {**held, **other}


def test_without_matplotlib_the_run_is_complete(in_tmp, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split('.')[0] == 'matplotlib']:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    assert td.main(['--epochs=12']) == 0
    assert 'matplotlib' in capsys.readouterr().out
    assert {file.name for file in (in_tmp / 'runs/td/many_to_many').iterdir()} == FILES


# --- many seeds ------------------------------------------------------------------------------------


def test_replicas_leave_their_curves_and_the_right_shares(in_tmp, capsys):
    """The share, its interval, the quantiles and the comparison with the notebook are counted here once more."""
    flags = ['--setup=many_to_one', '--num_seeds=40', '--epochs=230', '--seed=3', '--workdir=w']
    assert td.main(flags) == 0
    folder = in_tmp / 'w'
    summary = json.loads((folder / 'summary.json').read_text())
    with np.load(folder / 'replicas.npz') as held:
        losses, predictions = held['loss'], held['predictions']
    assert losses.shape == (40, 230) and predictions.shape == (40, 5)
    targets = np.array([0.0, 0.2, 0.4, 0.6, 0.8])
    right = int((np.round(predictions.astype(float), 1) == targets).all(axis=1).sum())
    found = summary['seeds']
    assert 0 < right < 40 and (found['exact'], found['count'], found['diverged']) == (right, 40, 0)
    share, z = right / 40, 1.959963984540054
    # Wilson 1927: the shares p for which |share - p| is z standard errors sqrt(p (1 - p) / n).
    for p in found['interval']:
        assert abs(abs(share - p) - z * np.sqrt(p * (1 - p) / 40)) < 1e-6
    assert summary['last_loss'] == pytest.approx(np.median(losses[:, -1]), rel=1e-6)
    assert summary['last_loss_quantiles']['0.025'] == pytest.approx(np.quantile(losses[:, -1], 0.025), rel=1e-5)
    with (ROOT / 'experiments/reference/loss_many_to_one.csv').open() as file:
        reference = [(int(r['epoch']), float(r['loss'])) for r in csv.DictReader(file) if int(r['epoch']) <= 230]
    inside = 0
    for epoch, loss in reference:
        low, high = np.quantile(losses[:, epoch - 1], [0.025, 0.975])
        inside += low <= loss <= high
    assert summary['notebook'] == {'epochs': len(reference), 'inside': inside} and len(reference) > 20
    single = td.run(setup='many_to_one', epochs=230, seed=5, plot=False)
    np.testing.assert_allclose(losses[2], single.metrics['loss'], atol=1e-6)
    last = capsys.readouterr().out
    assert f'{right} of 40 seeds ({right / 40:.1%}' in last
    assert td.main(flags) == 0
    (folder / 'replicas.npz').write_bytes(b'PK broken')
    assert td.main(flags) == 2 and 'replicas.npz' in sentence(capsys)


def test_the_notebook_is_compared_at_its_own_settings_alone():
    defaults = Settings.of({**td.EXPERIMENT.defaults, 'epochs': 1000})
    assert td.read_reference(defaults) is not None
    assert td.read_reference(defaults.replace(setup='one_to_one')) is None  # it printed no curve of that
    for name, value in (('hidden', 6), ('length', 4), ('learning_rate', 0.01), ('adam_epsilon', 1e-8)):
        assert td.read_reference(defaults.replace(**{name: value})) is None


def test_within_band_counts():
    losses = np.array([[1.0, 10.0, 5.0, 3.0]]) + np.linspace(0, 1, 41)[:, None]
    curve = np.array([1.5, 9.0, 5.01, 4.5])  # within; below; below the 2.5% quantile; above
    assert td.within_band(np.array([1, 2, 3, 4]), curve, losses) == {'epochs': 4, 'inside': 1}


def test_exact():
    """Rounded to one decimal, as numbers: -0.0 is 0.0, and NaN is never right."""
    targets = np.array([0.0, 0.2, 0.25], np.float32)
    right = np.array([[-0.049, 0.249, 0.29], [0.04, 0.151, 0.21]], np.float32)
    wrong = np.array([[-0.06, 0.2, 0.25], [0.0, 0.26, 0.25], [0.0, 0.2, 0.31], [np.nan, 0.2, 0.25]], np.float32)
    assert td.exact(right, targets).all() and not td.exact(wrong, targets).any()


# --- the command line ------------------------------------------------------------------------------


def test_help_lists_every_flag_and_exits_with_0(capsys):
    assert td.main(['--help']) == 0
    shown = capsys.readouterr().out
    assert all(f'--{name}=' in shown or f'--[no]{name}' in shown for name in td.FLAGS)
    assert shown.index('--setup') < shown.index('--learning_rate') < shown.index('--flagfile=(')
    assert all(flag.help for flag in td.FLAGS.values())


def test_a_later_flag_wins_and_a_packaged_flagfile_is_found_from_anywhere(in_tmp):
    defaults = td.EXPERIMENT.defaults
    values = command_line.parse(td.FLAGS, defaults, ['--epochs=3', '--flagfile=many_to_one', '--hidden=9', '--noplot'])
    assert (values['setup'], values['epochs'], values['hidden'], values['plot']) == ('many_to_one', 500, 9, False)
    (in_tmp / 'mine.flags').write_text('# a comment\n--hidden=7\n--flagfile=inner.flags\n')
    (in_tmp / 'inner.flags').write_text('--length=6\n')
    values = command_line.parse(td.FLAGS, defaults, ['--flagfile', 'mine.flags'])
    assert (values['hidden'], values['length']) == (7, 6)


def test_every_flagfile_opens_with_a_claim_whose_command_parses():
    for path in command_line.flagfile_folder().glob('*.flags'):
        header = [line for line in path.read_text().splitlines() if line.startswith('#')]
        is_claim = any(line.startswith('# Claim:') for line in header)  # its time and results are in docs/results.md
        for word in ('Source:', 'Command:', *(() if is_claim else ('Time:', 'Expect:'))):
            assert sum(word in line for line in header) == 1, (path, word)
        words = next(line for line in header if 'Command:' in line).split('Command:')[1].split()
        command, argv = (' '.join(words[:3]), words[3:]) if words[0] == 'python' else (' '.join(words[:2]), words[2:])
        name = re.split(r'[ .]', command)[-1]
        assert command == registry.invocation(name) and argv[0] == f'--flagfile=experiments/flags/{path.name}'
        module = registry.module(name)
        values = module.COMMAND.parse(argv)
        assert values['num_seeds'] >= (5 if isinstance(getattr(module, 'EXPERIMENT', None), DatasetExperiment) else 10)


def test_output_into_a_pipe_that_closes_ends_without_a_traceback(in_tmp):
    process = subprocess.Popen(
        [sys.executable, '-m', 'experiments.td', '--epochs=5', '--noplot', '--workdir=w'],
        cwd=in_tmp,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    with process.stderr as err:
        assert b'Traceback' not in err.read()
    assert process.wait() == cli_command.BROKEN_PIPE


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_before_the_first_step_is_told(number, code, in_tmp, capsys, monkeypatch):
    """While a run is compiled there is nothing to save: it ends at once."""
    monkeypatch.setattr(seeds, 'train_with_losses', lambda *args, **kwargs: os.kill(os.getpid(), number))
    assert td.main(SHORT) == code
    assert f'stopped by {number.name}' in capsys.readouterr().err
    assert not (in_tmp / 'runs/td/many_to_many/.lock').exists()


@pytest.mark.slow
def test_a_terminal_sees_a_bar(in_tmp):
    """On a pseudo-terminal rich draws; in a pipe there are at most ten plain lines."""
    pty = pytest.importorskip('pty', reason='a terminal needs POSIX')
    master, slave = pty.openpty()
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'TERM': 'xterm', 'COLUMNS': '100'}
    run = [sys.executable, '-m', 'experiments.td', '--epochs=40', '--steps_per_call=2', '--noplot', '--workdir=w']
    process = subprocess.Popen(run, cwd=in_tmp, env=environment, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b''
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(master)
    assert process.wait() == 0
    assert '━'.encode() in shown and b'40/40' in shown and b'loss' in shown
    plain = command('--epochs=40', '--steps_per_call=2', '--noplot', '--workdir=v', cwd=in_tmp).stdout
    assert '━' not in plain and 2 <= sum(line.startswith('epoch') for line in plain.splitlines()) <= 10


@pytest.mark.parametrize('setup', ['one_to_one', 'many_to_one', 'many_to_many'])
def test_numbers_of_ones_own_are_echoed(setup, in_tmp, capsys):
    """Inputs and targets are these numbers, which need not be distinct or between 0 and 1; three decimals are shown."""
    result = td.run(setup=setup, sequence=[0.1, -0.5, 0.1], epochs=1500, learning_rate=0.01, plot=False, workdir='w')
    np.testing.assert_array_equal(result.targets, np.float32([0.1, -0.5, 0.1]))
    assert result.summary['flags']['length'] == 3 and result.summary['exact']
    out = capsys.readouterr().out
    assert f'{result.predictions[1]:.3f}' in out and 'echo 0.1 -0.5 0.1' in out
    assert (
        td.main(
            [
                f'--setup={setup}',
                '--sequence=0.1,-0.5,0.1',
                '--epochs=1500',
                '--learning_rate=0.01',
                '--noplot',
                '--workdir=w',
            ]
        )
        == 0
    )
    assert td.main([f'--setup={setup}', '--sequence=0.1,0.5', '--workdir=w']) == 2


@pytest.mark.parametrize(
    'flags', [['--sequence=0.1,x'], ['--sequence='], ['--sequence=nan'], ['--length=4', '--sequence=1,2']]
)
def test_a_sequence_that_is_invalid_is_refused(flags, capsys):
    assert td.main(flags) == 2
    assert '--sequence' in capsys.readouterr().err
