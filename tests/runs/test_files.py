"""The folder of a run: its lock, its files and logs, and what is said of damaged ones."""

import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import td
from seqjax import files
from seqjax.errors import UserError
from seqjax.runs import directory, lock, result_files
from seqjax.runs.append_log import AppendLog, LogOffset
from seqjax.runs.directory import Workdir
from tests.helpers.oddities import ODD, odd, ordinary_user

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {'seed': 1, 'workdir': 'anywhere', 'overwrite': False, 'plot': True, 'steps_per_call': 10}
EPOCHS = 6
FLAGS = [f'--epochs={EPOCHS}', '--noplot']
KINDS = {'single': [], 'num_seeds': ['--num_seeds=2']}


# --- the folder ------------------------------------------------------------------------------------


def opened(folder, experiment='x', **changes):
    """The folder and the summary of a finished run, as open_workdir gives them; what it held is let go."""
    settings = {**SETTINGS, 'workdir': str(folder), **changes}
    with directory.open_workdir(settings, experiment) as (workdir, summary):
        return workdir, summary


def finished(folder, **changes):
    """Leaves the summary of a finished run there."""
    folder.mkdir(exist_ok=True)
    summary = {'experiment': 'x', 'finished': True, 'flags': SETTINGS, **changes}
    (folder / 'summary.json').write_text(json.dumps(summary))
    return summary


def test_a_folder_is_made_and_a_finished_run_in_it_is_found(tmp_path):
    folder, summary = opened(tmp_path / 'a' / 'b')
    assert folder.path.is_dir() and summary is None and list(folder.path.iterdir()) == []
    held = finished(folder.path)
    for name in directory.NON_SEMANTIC_FLAGS:
        assert opened(folder.path, **({} if name in ('workdir', 'overwrite') else {name: 'other'}))[1] == held
    finished(folder.path, finished=False)
    assert opened(folder.path)[1] is None
    with directory.open_workdir({**SETTINGS, 'workdir': None}, 'x') as (nowhere, summary):
        assert nowhere.path is None and summary is None


def test_another_run_is_refused_by_the_name_of_the_flag_that_differs(tmp_path):
    finished(tmp_path)
    for settings, words in (
        ({**SETTINGS, 'seed': 2}, ['--seed=1', '--seed=2']),
        ({**SETTINGS, 'new': 3}, ['without --new', '--new=3']),
        ({**SETTINGS, 'seed': None}, ['--seed=1', 'without --seed']),
    ):
        with pytest.raises(UserError) as caught:
            opened(tmp_path, **settings | {'workdir': str(tmp_path)})
        assert all(word in str(caught.value) for word in [*words, '--overwrite', '--workdir'])
    with pytest.raises(UserError, match='x.* y'):
        opened(tmp_path, 'y')


def test_overwrite_takes_the_names_that_are_ours(tmp_path):
    finished(tmp_path)
    for name in (*directory.FILES, 'notes.txt', 'metrics.csv.bak'):
        (tmp_path / name).write_text('1')
    assert opened(tmp_path, 'y', overwrite=True)[1] is None
    assert {file.name for file in tmp_path.iterdir()} == {'notes.txt', 'metrics.csv.bak'}


@pytest.mark.parametrize('place', ['~nobody_of_this_name/x', 'a\0b'])
def test_a_name_that_is_no_path_is_a_persons_mistake(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='workdir'):
        td.run(workdir=place, epochs=EPOCHS, plot=False)


# --- files -----------------------------------------------------------------------------------------


def test_replace_keeps_the_old_file_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / 'summary.json'
    files.replace(target, lambda path: path.write_text('old'))

    def breaks(path):
        path.write_text('half')
        raise OSError(28, 'No space left on device')

    with pytest.raises(UserError, match='summary.json.*No space left on device'), files.writing(target):
        files.replace(target, breaks)
    assert target.read_text() == 'old' and list(tmp_path.iterdir()) == [target]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Workdir(None)
    folder.write_summary({})
    result_files.write_replicas(folder, loss=np.ones(3))
    result_files.write_figure(folder, None)
    log = folder.append_log('x', 'y')
    assert log.open(None) == b''
    log.append(b'1')
    log.close()
    assert list(tmp_path.iterdir()) == []


# --- logs --------------------------------------------------------------------------------------


def test_a_journal_goes_on_where_its_mark_was(tmp_path):
    """What came after the offset is cut off, a torn line too; what comes then is marked as if nothing had happened."""
    straight, stopped = (AppendLog(tmp_path / name, 'head\n') for name in ('straight', 'stopped'))
    for log in (straight, stopped):
        assert log.open(None) == b''
        log.append(b'1\n2\n')
    offset = stopped.offset()
    assert offset == straight.offset() and offset.length == len(b'head\n1\n2\n')
    stopped.append(b'3\nto')
    stopped.close()
    again = AppendLog(stopped.path, 'head\n')
    assert again.fault(offset) is None and again.open(offset) == b'1\n2\n'
    assert stopped.path.read_bytes() == b'head\n1\n2\n'
    for log in (straight, again):
        log.append(b'4\n')
    assert again.offset() == straight.offset() and stopped.path.read_bytes() == straight.path.read_bytes()
    again.open(None)
    assert stopped.path.read_bytes() == b'head\n'
    for log in (straight, again):
        log.close()


@pytest.mark.parametrize(
    'damage',
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b'head\n1\n'),
        lambda path: path.write_bytes(b'head\n1\n3\n4\n'),
    ],
)
def test_a_journal_that_does_not_bear_its_mark_says_so(damage, tmp_path):
    log = AppendLog(tmp_path / 'log', 'head\n')
    log.open(None)
    log.append(b'1\n2\n')
    offset = log.offset()
    log.close()
    damage(log.path)
    assert str(log.path) in log.fault(offset)


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='a device that is always full')
@pytest.mark.parametrize('rows', [0, 3, 5000])
def test_a_full_disk_is_told_in_a_sentence(rows, tmp_path):
    """Whether the header, a row or the closing of metrics.csv is refused: what was not written is not tried again."""
    (tmp_path / 'metrics.csv').symlink_to('/dev/full')
    told = 'metrics.csv.*No space left on device.*--workdir'
    log = AppendLog(tmp_path / 'metrics.csv', 'step\n' if rows == 0 else '')
    with pytest.raises(UserError, match=told):
        log.open(None)
        log.append(b'1,0.5\n' * rows)
    log.close()


# --- the lock --------------------------------------------------------------------------------------


def test_two_cannot_write_in_one_folder(tmp_path):
    """Not from this process, and not from another; the sentence says who is there. Afterwards no lock is left."""
    code = 'import sys; sys.argv.pop(0)\nfrom experiments import td\nsys.exit(td.main(sys.argv))'
    with directory.open_workdir({**SETTINGS, 'workdir': str(tmp_path)}, 'x'):
        with pytest.raises(UserError, match=f'{os.getpid()}'):
            opened(tmp_path)
        argv = [sys.executable, '-c', code, f'--workdir={tmp_path}', '--epochs=1', '--overwrite']
        env = os.environ | {'PYTHONPATH': str(ROOT)}
        done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False, timeout=120)
        assert done.returncode == 2 and f'process {os.getpid()}' in done.stderr and done.stderr.count('\n') == 1
    assert list(tmp_path.iterdir()) == []
    assert opened(tmp_path)[1] is None


def test_the_lock_of_a_dead_process_is_no_lock(tmp_path):
    code = f"""
import os, sys
from seqjax.runs import directory
settings = {{'workdir': {str(tmp_path)!r}, 'overwrite': False}}
with directory.open_workdir(settings, 'x'):
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, '-c', code], env=os.environ | {'PYTHONPATH': str(ROOT)}, check=False)
    assert done.returncode == -9 and (tmp_path / lock.LOCK).exists()
    assert opened(tmp_path)[1] is None and not (tmp_path / lock.LOCK).exists()


def test_a_file_system_without_locks_is_told_once(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(lock.fcntl, 'flock', refuse)
    assert opened(tmp_path)[1] is None
    assert capsys.readouterr().err.count('\n') == 1 and list(tmp_path.iterdir()) == []


# --- more steps ------------------------------------------------------------------------------------


def test_a_finished_run_may_be_asked_for_more_steps_and_not_for_fewer(tmp_path):
    finished(tmp_path, flags={**SETTINGS, 'steps': 10})
    assert opened(tmp_path, steps=10)[1] is not None
    assert opened(tmp_path, steps=20)[1] is None
    with pytest.raises(UserError, match='--steps=9'):
        opened(tmp_path, steps=9)
    with pytest.raises(UserError, match='--steps=10'):
        opened(tmp_path)


# --- a finished run that was damaged ---------------------------------------------------------------


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """A finished run of each kind."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr('seqjax.cli.compilation_cache.enable_cache', lambda _: None)
        for kind, folder in folders.items():
            assert td.main([f'--workdir={folder}', *FLAGS, *KINDS[kind]]) == 0
    return folders


def lose(name):
    def damage(folder):
        summary = json.loads((folder / 'summary.json').read_text())
        del summary[name]
        Workdir(folder).write_summary(summary)

    return damage


def change(**changes):
    def damage(folder):
        summary = json.loads((folder / 'summary.json').read_text())
        Workdir(folder).write_summary(summary | changes)

    return damage


def fill(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def arrays(**held):
    return lambda folder: np.savez(folder / 'replicas.npz', **held)


def one_array(folder):
    with (folder / 'replicas.npz').open('wb') as file:
        np.save(file, np.ones(3))


HEADER = b'step,loss,learning_rate\n'
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
    'summary: no quantiles': ('num_seeds', lose('last_loss_quantiles')),
    'summary: an empty share': ('num_seeds', change(seeds={})),
    'metrics: nothing': ('single', fill('metrics.csv', b'')),
    'metrics: the header alone': ('single', fill('metrics.csv', HEADER)),
    'metrics: other columns': ('single', fill('metrics.csv', b'a,b\n' + b'1,2\n' * EPOCHS)),
    'metrics: words': ('single', fill('metrics.csv', HEADER + b'1,x\n' * EPOCHS)),
    'metrics: a row too few': ('single', fill('metrics.csv', HEADER + b'1,0.5\n' * (EPOCHS - 1))),
    'metrics: half a row': ('single', fill('metrics.csv', HEADER + b'1,0.5\n' * (EPOCHS - 1) + b'6')),
    'replicas: words': ('num_seeds', fill('replicas.npz', b'words')),
    'replicas: nothing': ('num_seeds', fill('replicas.npz', b'')),
    'replicas: one array': ('num_seeds', one_array),
    'replicas: no loss': ('num_seeds', arrays(predictions=np.ones((2, 5)))),
    'replicas: other shapes': ('num_seeds', arrays(loss=np.ones((2, EPOCHS)), predictions=np.ones((2, 3)))),
    'replicas: another count': ('num_seeds', arrays(loss=np.ones((3, EPOCHS)), predictions=np.ones((3, 5)))),
    'replicas: objects': ('num_seeds', arrays(loss=np.array([{}]), predictions=np.array([{}]))),
    'replicas: missing': ('num_seeds', lambda folder: (folder / 'replicas.npz').unlink()),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_a_damaged_run_is_told_in_a_sentence(name, done, tmp_path, capsys):
    kind, damage = DAMAGES[name]
    folder = tmp_path / 'run'
    shutil.copytree(done[kind], folder)
    flags = [f'--workdir={folder}', *FLAGS, *KINDS[kind]]
    assert td.main(flags) == 0
    damage(folder)
    assert td.main(flags) == 2
    told = capsys.readouterr().err
    assert told.count('\n') == 1 and '--overwrite' in told
    assert str(folder) in told


@pytest.mark.parametrize('header', ['step,loss,rate\n', 'step\n', 'a,b\n'])
def test_a_journal_of_other_columns_is_not_added_to(header, tmp_path):
    """Even where its checksum is right: rows of another version of the program would be read as ours."""
    log = AppendLog(tmp_path / 'metrics.csv', 'step,loss\n')
    log.open(None)
    log.append(b'1,0.5\n')
    offset = log.offset()
    log.close()
    assert log.fault(offset) is None
    assert 'metrics.csv' in AppendLog(tmp_path / 'metrics.csv', header).fault(offset)


# --- what stands in place of a file, and what may not be read ----------------------------------------


@pytest.mark.parametrize('kind', ODD)
def test_only_a_file_is_opened_and_nothing_is_waited_for(tmp_path, kind):
    path = odd(tmp_path, kind)
    for open_one in (files.open_file, files.read_json, files.sha256):
        with pytest.raises(OSError) as caught:
            open_one(path)
        assert caught.value.strerror
    with pytest.raises(UserError, match=path.name), files.open_data(path):
        pass


@pytest.mark.parametrize('kind', ['pipe', 'socket', 'folder', 'loop'])
def test_a_journal_in_place_of_which_something_else_stands_is_refused(tmp_path, kind):
    path = odd(tmp_path, kind)
    assert AppendLog(path).fault(LogOffset(0, '')) is not None
    for offset in (None, LogOffset(0, '')):
        with pytest.raises(UserError, match='odd'):
            AppendLog(path).open(offset)


@pytest.mark.parametrize('mode', [0o000, 0o300, 0o500])
@pytest.mark.parametrize('place', ['', 'summary.json', 'checkpoints'])
def test_a_folder_that_may_not_be_read_or_written_ends_in_a_sentence(tmp_path, place, mode):
    folder = tmp_path / 'run'
    finished(folder, finished=False)
    (folder / 'checkpoints').mkdir()
    (folder / place).chmod(mode)
    try:
        with ordinary_user(), contextlib.suppress(UserError):
            opened(folder)
            assert mode > 0 or place == 'checkpoints'
    finally:
        (folder / place).chmod(0o700)


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_every_flipped_bit_of_a_summary_is_found(tmp_path):
    workdir = Workdir(tmp_path, 'x')
    workdir.write_summary(
        {'experiment': 'x', 'finished': True, 'flags': {'seed': 1.5e-3, 'name': 'ä'}, 'seconds': None}
    )
    path = tmp_path / 'summary.json'
    content, want = path.read_bytes(), directory.read_summary(workdir)
    for place in range(len(content)):
        path.write_bytes(flipped(content, place))
        try:
            assert directory.read_summary(workdir) == want or b'"sha256"' not in path.read_bytes(), place
        except UserError as error:
            assert 'summary.json' in str(error)
