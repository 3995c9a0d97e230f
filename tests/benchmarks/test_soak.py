"""The soak, short; and that it would see a difference."""

import shutil

import pytest

from benchmarks import soak
from experiments import echo
from seqjax.errors import UserError


def test_runs_that_are_killed_end_as_undisturbed_ones(tmp_path, capsys):
    """Two SIGKILLs, of a run with everything on; the long version is `./run.sh soak --kills=100`."""
    outcome = soak.run(kills=2, runs=['stream'], steps=800, checkpoint_every=60, seconds=1, workdir=str(tmp_path))
    assert outcome.kills == 2 and outcome.finished >= 1 and outcome.training >= 1


@pytest.fixture(scope='module')
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ended') / 'run'
    echo.run(workdir=str(folder), steps=6, hidden=4, window=8, length=100, plot=False)
    return folder


def shorten(folder):
    path = folder / 'metrics.csv'
    path.write_bytes(path.read_bytes()[:-1])


def forget_the_last_step(folder):
    shutil.rmtree(folder / 'checkpoints' / '6')
    echo.run(workdir=str(folder), steps=5, hidden=4, window=8, length=100, plot=False, overwrite=True)
    shutil.copy(folder.parent / 'other' / 'metrics.csv', folder / 'metrics.csv')


@pytest.mark.parametrize(('change', 'told'), [(shorten, 'metrics.csv'), (forget_the_last_step, 'checkpoint')])
def test_a_difference_is_told(change, told, ended, tmp_path):
    one, other = tmp_path / 'one', tmp_path / 'other'
    for folder in (one, other):
        shutil.copytree(ended, folder)
    soak.compare(one, other)
    change(one)
    with pytest.raises(UserError, match=told):
        soak.compare(one, other)


def test_a_run_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(soak.RUNS, 'stream', ('--delay=-1',))
    with pytest.raises(UserError, match='--delay=-1'):
        soak.run(kills=1, runs=['stream'], workdir=str(tmp_path))
