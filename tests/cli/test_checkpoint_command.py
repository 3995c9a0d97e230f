"""The command on checkpoints: what it lists, verifies and exports."""

import contextlib
import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import td
from seqjax.cli import checkpoint

RUN = ['--setup=many_to_one', '--epochs=9', '--checkpoint_every=4', '--max_to_keep=5', '--noplot']
PARAMS = {'params/head/bias', 'params/head/kernel', 'params/rnn/cell/bias', 'params/rnn/cell/kernel'}
PARAMS |= {'params/rnn/cell/recurrent_kernel'}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run with checkpoints at 4, 8 and 9."""
    folder = tmp_path_factory.mktemp('trained') / 'one'
    with contextlib.redirect_stdout(io.StringIO()):
        assert td.main([*RUN, f'--workdir={folder}']) == 0
    return folder


@pytest.fixture
def one(trained, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / 'one'))


def test_it_lists_verifies_and_exports(one, capsys):
    target = one / 'out' / 'w.npz'
    assert checkpoint.main([f'--workdir={one}', f'--export={target}']) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if 'valid' in line]
    assert [int(line.split()[0]) for line in lines] == [4, 8, 9] and all(', loss 0.' in line for line in lines)
    assert re.search(rf'{re.escape(str(target))}\b.*\b5 .*\b9\b', out)
    got = np.load(target)
    assert set(got) == PARAMS
    state = td.run(setup='many_to_one', epochs=9, plot=False).state
    np.testing.assert_array_equal(got['params/rnn/cell/kernel'], state.params['rnn']['cell']['kernel'])
    assert checkpoint.main([f'--workdir={one}', f'--export={target}', '--step=4', '--full_state']) == 0
    got = np.load(target)
    assert set(got) > PARAMS | {'step', 'key'} and got['step'] == 4


def test_what_is_damaged_is_named_and_the_newest_sound_step_exported(one, capsys):
    path = one / 'checkpoints' / '9' / 'about.json'
    path.write_bytes(path.read_bytes()[:-1])
    before = sorted(os.listdir(one / 'checkpoints'))
    assert checkpoint.main([f'--workdir={one}', f'--export={one / "w.npz"}']) == 2
    out, err = capsys.readouterr()
    assert 'about.json' in out and 'step 8' in out
    assert '1 of 3' in err and err.count('\n') == 1
    assert sorted(os.listdir(one / 'checkpoints')) == before  # it looks, and touches nothing
    assert checkpoint.main([f'--workdir={one}', f'--export={one / "w.npz"}', '--step=9']) == 2
    assert '--step=9' in capsys.readouterr().err


def test_groups_of_seeds_are_exported_as_one(tmp_path, monkeypatch, capsys):
    """In the order of the seeds, without what filled a group up."""
    monkeypatch.setattr('seqjax.training.replicas.MAX_WIDTH', 2)
    monkeypatch.setattr('seqjax.training.replicas.group_width', lambda *_: 2)
    run = {'setup': 'many_to_one', 'epochs': 3, 'plot': False}
    td.run(**run, num_seeds=3, seed=9, workdir=str(tmp_path / 'three'))
    assert checkpoint.main([f'--workdir={tmp_path / "three"}', f'--export={tmp_path / "w.npz"}']) == 0
    got = np.load(tmp_path / 'w.npz')
    assert got['params/head/bias'].shape == (3, 5)
    for i in range(3):
        want = td.run(**run, seed=9 + i).state.params['rnn']['cell']['kernel']
        np.testing.assert_allclose(got['params/rnn/cell/kernel'][i], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ('flags', 'told'),
    [
        ([], '--workdir'),
        (['--workdir=nowhere'], 'nowhere/checkpoints'),
        (['--workdir=one', '--export=w.txt'], '--export=w.txt'),
        (['--workdir=one', '--export=/dev/null/w.npz'], '--export=/dev/null/w.npz'),
        (['--workdir=one', '--replica_group=x'], 'one'),
    ],
)
def test_what_a_person_can_get_wrong(flags, told, one, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert checkpoint.main(flags) == 2
    err = capsys.readouterr().err
    assert told in err and err.count('\n') == 1
