"""The host half of a run: its folder, its files, and when it stops."""

import contextlib
import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import td
from seqjax import report, train
from seqjax import run as host
from seqjax.sweep import Progress
from seqjax.task import Mean

SETTINGS = {'seed': 1, 'workdir': 'anywhere', 'overwrite': False, 'picture': True, 'chunk': 10}
EPOCHS = 6
FLAGS = [f'--epochs={EPOCHS}', '--nopicture']
KINDS = {'single': [], 'replicas': ['--replicas=2']}


# --- the folder ------------------------------------------------------------------------------------


def finished(folder, **changes):
    """Leaves the summary of a finished run there."""
    folder.mkdir(exist_ok=True)
    summary = {'experiment': 'x', 'finished': True, 'flags': SETTINGS, **changes}
    (folder / 'summary.json').write_text(json.dumps(summary))
    return summary


def test_a_folder_is_made_and_a_finished_run_in_it_is_found(tmp_path):
    folder, summary = host.open_workdir(str(tmp_path / 'a' / 'b'), 'x', SETTINGS, False)
    assert folder.path.is_dir() and summary is None and list(folder.path.iterdir()) == []
    held = finished(folder.path)
    for name in ('workdir', 'overwrite', 'picture', 'chunk'):
        assert host.open_workdir(str(folder.path), 'x', {**SETTINGS, name: 'other'}, False)[1] == held
    finished(folder.path, finished=False)
    assert host.open_workdir(str(folder.path), 'x', SETTINGS, False)[1] is None
    assert host.open_workdir(None, 'x', SETTINGS, False) == (host.Workdir(None), None)


def test_another_run_is_refused_by_the_name_of_the_flag_that_differs(tmp_path):
    finished(tmp_path)
    for settings, words in (
        ({**SETTINGS, 'seed': 2}, ['--seed=1', '--seed=2']),
        ({**SETTINGS, 'new': 3}, ['without --new', '--new=3']),
        ({**SETTINGS, 'seed': None}, ['--seed=1', 'without --seed']),
    ):
        with pytest.raises(host.UserError) as caught:
            host.open_workdir(str(tmp_path), 'x', settings, False)
        assert all(word in str(caught.value) for word in [*words, '--overwrite', '--workdir'])
    with pytest.raises(host.UserError, match='holds a run of x, and this one is of y'):
        host.open_workdir(str(tmp_path), 'y', SETTINGS, False)


def test_overwrite_takes_the_names_that_are_ours(tmp_path):
    finished(tmp_path)
    for name in (*host.FILES, 'notes.txt', 'metrics.csv.bak'):
        (tmp_path / name).write_text('1')
    assert host.open_workdir(str(tmp_path), 'y', SETTINGS, True)[1] is None
    assert {file.name for file in tmp_path.iterdir()} == {'notes.txt', 'metrics.csv.bak'}


@pytest.mark.parametrize('place', ['~nobody_of_this_name/x', 'a\0b'])
def test_a_name_that_is_no_path_is_a_persons_mistake(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(host.UserError, match='workdir'):
        td.run(workdir=place, epochs=EPOCHS, picture=False)


# --- files -----------------------------------------------------------------------------------------


def test_replace_keeps_the_old_file_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / 'summary.json'
    host.replace(target, lambda path: path.write_text('old'))

    def breaks(path):
        path.write_text('half')
        raise OSError(28, 'No space left on device')

    with pytest.raises(host.UserError, match='summary.json: No space left on device'), host.writing(target):
        host.replace(target, breaks)
    assert target.read_text() == 'old' and list(tmp_path.iterdir()) == [target]


def test_metrics_keep_every_bit_of_a_float32(tmp_path):
    """Random bits, subnormal numbers among them, come back from the text as they were, in rows counted from 1."""
    bits = np.random.default_rng(0).integers(0, 2**32, 2000, dtype=np.uint32).view(np.float32)
    values = np.append(bits[np.isfinite(bits)], np.float32([1e-45, 3.4e38, 1 / 3]))
    folder = host.Workdir(tmp_path)
    with host.metrics_file(folder, ['step', 'loss']) as write:
        write(host.enumerate_rows(1, values[:700]))
        assert (tmp_path / 'metrics.csv').read_text().count('\n') == 701  # visible while the run goes on
        write(host.enumerate_rows(701, values[700:]))
    with (tmp_path / 'metrics.csv').open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ['step', 'loss'] and [int(row[0]) for row in rows[1:]] == list(range(1, len(values) + 1))
    np.testing.assert_array_equal(np.array([row[1] for row in rows[1:]], np.float32).view(np.uint32), values.view('u4'))


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='a device that is always full')
@pytest.mark.parametrize('rows', [0, 3, 5000])
def test_a_full_disk_is_told_in_a_sentence(rows, tmp_path):
    """Whether the header, a row or the closing of metrics.csv is refused: what was not written is not tried again."""
    (tmp_path / 'metrics.csv').symlink_to('/dev/full')
    told = 'metrics.csv: No space left on device; choose another --workdir'
    folder = host.Workdir(tmp_path)
    with pytest.raises(host.UserError, match=told), host.metrics_file(folder, ['step', 'loss']) as write:
        write(host.enumerate_rows(1, np.ones(rows, np.float32)))


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = host.Workdir(None)
    folder.write_summary({})
    host.write_replicas(folder, loss=np.ones(3))
    host.write_picture(folder, None)
    with host.metrics_file(folder, ['step']) as write:
        write([(1,)])
    assert list(tmp_path.iterdir()) == []


# --- a finished run that was damaged ---------------------------------------------------------------


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """A finished run of each kind."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr('experiments.launch.keep_compiled', lambda: None)
        for kind, folder in folders.items():
            assert td.main([f'--workdir={folder}', *FLAGS, *KINDS[kind]]) == 0
    return folders


def lose(name):
    def damage(folder):
        summary = json.loads((folder / 'summary.json').read_text())
        del summary[name]
        (folder / 'summary.json').write_text(json.dumps(summary))

    return damage


def change(**changes):
    def damage(folder):
        summary = json.loads((folder / 'summary.json').read_text())
        (folder / 'summary.json').write_text(json.dumps(summary | changes))

    return damage


def fill(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def arrays(**held):
    return lambda folder: np.savez(folder / 'replicas.npz', **held)


def one_array(folder):
    with (folder / 'replicas.npz').open('wb') as file:
        np.save(file, np.ones(3))


HEADER = b'step,loss\n'
DAMAGES = {
    'summary: nothing': ('single', fill('summary.json', b'')),
    'summary: bytes': ('single', fill('summary.json', b'\xff\xfe')),
    'summary: null': ('single', fill('summary.json', b'null')),
    'summary: very deep': ('single', fill('summary.json', b'[' * 100_000)),
    'summary: flags null': ('single', change(flags=None)),
    'summary: flags a list': ('single', change(flags=[1])),
    'summary: a short prediction': ('single', change(predictions=[1.0])),
    'summary: predictions of words': ('single', change(predictions='some')),
    'summary: strange layers': ('single', change(layers=[{'a': 1}])),
    **{
        f'summary: no {name}': ('single', lose(name))
        for name in ('layers', 'predictions', 'first_loss', 'last_loss', 'exact', 'finished')
    },
    'summary: no quantiles': ('replicas', lose('last_loss_quantiles')),
    'summary: an empty share': ('replicas', change(replicas={})),
    'metrics: nothing': ('single', fill('metrics.csv', b'')),
    'metrics: the header alone': ('single', fill('metrics.csv', HEADER)),
    'metrics: other columns': ('single', fill('metrics.csv', b'a,b\n' + b'1,2\n' * EPOCHS)),
    'metrics: words': ('single', fill('metrics.csv', HEADER + b'1,x\n' * EPOCHS)),
    'metrics: a row too few': ('single', fill('metrics.csv', HEADER + b'1,0.5\n' * (EPOCHS - 1))),
    'metrics: half a row': ('single', fill('metrics.csv', HEADER + b'1,0.5\n' * (EPOCHS - 1) + b'6')),
    'replicas: words': ('replicas', fill('replicas.npz', b'words')),
    'replicas: nothing': ('replicas', fill('replicas.npz', b'')),
    'replicas: one array': ('replicas', one_array),
    'replicas: no loss': ('replicas', arrays(predictions=np.ones((2, 5)))),
    'replicas: other shapes': ('replicas', arrays(loss=np.ones((2, EPOCHS)), predictions=np.ones((2, 3)))),
    'replicas: another count': ('replicas', arrays(loss=np.ones((3, EPOCHS)), predictions=np.ones((3, 5)))),
    'replicas: objects': ('replicas', arrays(loss=np.array([{}]), predictions=np.array([{}]))),
    'replicas: missing': ('replicas', lambda folder: (folder / 'replicas.npz').unlink()),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_a_damaged_run_is_told_in_a_sentence(name, done, tmp_path, capsys):
    kind, damage = DAMAGES[name]
    folder = tmp_path / 'run'
    shutil.copytree(done[kind], folder)
    flags = [f'--workdir={folder}', *FLAGS, *KINDS[kind]]
    assert td.main(flags) == 0 and 'shown again' in capsys.readouterr().out
    damage(folder)
    assert td.main(flags) == 2
    told = capsys.readouterr().err
    assert told.startswith('experiments.td: ') and told.count('\n') == 1 and '--overwrite' in told
    assert str(folder) in told


# --- the loop --------------------------------------------------------------------------------------


@pytest.fixture
def replay(monkeypatch):
    """replay(losses) lets a run see these losses, [steps] or [R, steps], instead of training."""

    def prepare(losses):
        losses = np.asarray(losses, np.float32)
        programs = train.Programs(
            init=lambda seed: None, advance=None, predict=lambda state, inputs: np.zeros((3, *np.shape(inputs)))
        )
        monkeypatch.setattr(train, 'compile_programs', lambda *args, **kwargs: programs)

        def fake_train(task, tx, state, *, steps, chunk, advance):
            for step in range(0, steps, chunk):
                new = losses[step : step + chunk]
                yield step, {'loss': Mean(new * 4, np.full_like(new, 4))}, {}

        def fake_sweep(task, tx, seeds, *, steps, chunk, width, programs):
            for first in range(0, len(seeds), width):
                for step in range(0, steps, chunk):
                    new = losses[first : first + width, step : step + chunk].T
                    yield Progress(first, step, step, {'loss': Mean(new * 4, np.full_like(new, 4))}, {})

        monkeypatch.setattr(train, 'train', fake_train)
        monkeypatch.setattr('seqjax.sweep.sweep', fake_sweep)
        monkeypatch.setattr('seqjax.sweep.group_width', lambda count: 3)

    return prepare


@pytest.mark.parametrize('chunk', [1, 4, 100])
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('step', [1, 4, 5, 10])
def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(chunk, bad, step, replay, tmp_path, capsys):
    """Rows up to and with that step stay, and the sentence names it."""
    losses = np.arange(1, 11) / 7
    losses[step - 1 :] = bad
    replay(losses)
    with pytest.raises(host.UserError, match=f'became {bad} at step {step} of 10: try a smaller --learning_rate') as it:
        host.run_one(None, None, 0, 5, steps=10, chunk=chunk, workdir=host.Workdir(tmp_path))
    assert str(tmp_path / 'metrics.csv') in str(it.value)
    rows = (tmp_path / 'metrics.csv').read_text().splitlines()
    assert rows[0] == 'step,loss' and [int(row.split(',')[0]) for row in rows[1:]] == list(range(1, step + 1))
    kept = np.array([row.split(',')[1] for row in rows[1:]], np.float32)
    np.testing.assert_array_equal(kept, losses[:step].astype(np.float32))


@pytest.mark.parametrize('chunk', [1, 4, 100])
def test_many_seeds_go_on_while_one_of_a_group_is_finite(chunk, replay, tmp_path, capsys):
    """Five seeds in groups of three and two: the record holds each loss at its place, diverged ones among them."""
    losses = np.arange(1, 51).reshape(5, 10).astype(np.float32)
    losses[1, 4:], losses[3, 0:] = np.nan, np.inf
    replay(losses)
    record = host.run_many(
        None, None, np.ones(2), np.arange(20, 25), steps=10, chunk=chunk, workdir=host.Workdir(tmp_path)
    )
    np.testing.assert_array_equal(record.losses, losses)
    assert record.outputs.shape == (5, 2)
    with (tmp_path / 'metrics.csv').open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ['step', 'loss', 'loss_q0.025', 'loss_q0.25', 'loss_q0.75', 'loss_q0.975']
    table = np.array(rows[1:], np.float64)
    np.testing.assert_array_equal(table[:, 0], range(1, 11))
    low, q1, median, q3, high = report.loss_quantiles(losses)
    np.testing.assert_allclose(table[:, 1:].T, [median, low, q1, q3, high], rtol=1e-6)


@pytest.mark.parametrize('chunk', [1, 4, 100])
def test_many_seeds_stop_where_a_whole_group_diverged(chunk, replay, tmp_path):
    losses = np.arange(1, 51).reshape(5, 10).astype(np.float32)
    losses[3, 2:], losses[4, 6:] = np.inf, np.nan
    replay(losses)
    with pytest.raises(host.UserError, match=r'of seeds 23 to 24 became (inf|nan) at step 7 of 10: try a smaller'):
        host.run_many(None, None, np.ones(2), np.arange(20, 25), steps=10, chunk=chunk, workdir=host.Workdir(tmp_path))


def test_loss_summary():
    """First and last; with replicas the medians over seeds, and the last loss's quantiles, all fit for JSON."""
    losses = np.random.default_rng(2).uniform(1, 2, size=(40, 6)).astype(np.float32)
    assert host.loss_summary(losses[0]) == {'first_loss': float(losses[0, 0]), 'last_loss': float(losses[0, 5])}
    losses[:2, 5] = np.nan
    got = host.loss_summary(losses)
    assert got['first_loss'] == pytest.approx(np.median(losses[:, 0]), rel=1e-6)
    assert got['last_loss'] == got['last_loss_quantiles']['0.5']
    assert got['last_loss_quantiles']['0.25'] == pytest.approx(
        np.quantile(np.nan_to_num(losses[:, 5], nan=9), 0.25), rel=1e-6
    )
    assert list(got['last_loss_quantiles']) == ['0.025', '0.25', '0.5', '0.75', '0.975']
    json.dumps(got, allow_nan=False)
