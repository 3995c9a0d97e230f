"""Checkpoints: whatever happens to their files, what comes back is a TrainState that was saved, or a sentence."""

import contextlib
import errno
import functools
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from seqjax.errors import UserError
from seqjax.runs import checkpoint_manager, manifest, orbax_io, parameters
from seqjax.runs.checkpoint_manager import CheckpointManager
from seqjax.runs.manifest import CheckpointMetadata, CorruptCheckpointError
from seqjax.types import TrainState
from tests.helpers import reference
from tests.helpers.oddities import ODD, odd, ordinary_user

STEPS = (1, 2, 10)  # 10 comes after 2


def state_of(step, size=3):
    """A TrainState with all that it may hold: named tuples, keys, carries without elements, several dtypes."""
    key = jax.random.fold_in(jax.random.key(7), step)
    params = {'head': {'kernel': jax.random.normal(key, (size, 2)), 'bias': jnp.full(2, step, jnp.bfloat16)}}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.inject_hyperparams(optax.adam)(learning_rate=1e-3))
    variables = {
        'carry': {'c': jnp.zeros((0, 4)), 'h.x/y': jnp.arange(4) + step},
        'rng': {'k': jax.random.split(key, 3)},
    }
    variables['flags'] = {'on': jnp.array([True, False]), 'z': jnp.complex64(1 + step * 1j)}
    return TrainState(jnp.int32(step), jax.random.key(3), params, variables, tx.init(params))


def about_of(step, state, **metrics):
    flags = {'seed': 3, 'rates': [0.5, 1e-3], 'name': 'ä'}
    return CheckpointMetadata(step, 'x', flags, {}, metrics, manifest.describe(state), manifest.versions())


def save(store, step, **how):
    state = state_of(step, **how)
    store.save(state, about_of(step, state))
    store.wait()


def restore(folder, fault=lambda about: None, size=3):
    """The TrainState and what the checkpoint says of itself; None where there is none."""
    like = jax.eval_shape(lambda: state_of(0, size=size))
    found = CheckpointManager(folder).restore(like, fault)
    return None if found is None else (jax.jit(lambda state: orbax_io.with_keys(state, like))(found[0]), found[1])


def fine(step):
    """What a TrainState must be to be that of the step."""
    return functools.partial(reference.assert_trees_equal, state_of(step))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Checkpoints of the STEPS, saved once."""
    folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
    store = CheckpointManager(folder, max_to_keep=9)
    for step in STEPS:
        save(store, step)
    store.close()
    return folder


# --- what comes back -------------------------------------------------------------------------------


def test_the_newest_step_comes_back_whole(saved):
    """Bit for bit, in its own types and named tuples; what it says of itself, too."""
    state, about = restore(saved)
    fine(10)(state)
    assert jax.tree.structure(state) == jax.tree.structure(state_of(10))
    want = about_of(10, state_of(10))
    assert about._replace(leaves=None) == want._replace(leaves=None)
    assert about.leaves == json.loads(json.dumps(want.leaves))
    assert CheckpointManager(saved).steps() == list(STEPS)


def test_all_arrays_come_back_by_name_without_a_model(saved):
    arrays = orbax_io.read_arrays(saved / '10')
    assert set(arrays) == set(manifest.describe(state_of(10))) - {'variables/carry/c'}
    np.testing.assert_array_equal(arrays['params/head/kernel'], state_of(10).params['head']['kernel'])
    (rate,) = [
        x
        for name, x in parameters.flatten_with_names(state_of(10)).items()
        if name.endswith('hyperparams/learning_rate')
    ]
    np.testing.assert_array_equal(arrays['opt_state/1/hyperparams/learning_rate'], rate)


@pytest.mark.skipif(shutil.which('sha256sum') is None, reason='sha256sum is not here')
def test_the_seal_is_one_that_sha256sum_understands(saved):
    run = functools.partial(
        subprocess.run, ['sha256sum', '--strict', '-c', 'checksums'], capture_output=True, text=True
    )
    done = run(cwd=saved / '10', check=True)
    files = [path for path in (saved / '10').rglob('*') if path.is_file() and path.name != 'checksums']
    assert done.stdout.count(': OK') == len(files) >= 10 and done.stderr == ''


def test_a_step_of_another_model_is_named_by_an_array(saved):
    like = jax.eval_shape(lambda: state_of(0, size=5))
    told = r'params/head/kernel.*float32 \[3, 2\].*float32 \[5, 2\]'
    with pytest.raises(UserError, match=told):
        CheckpointManager(saved).restore(like, lambda about: None)
    like = jax.eval_shape(lambda: state_of(0)._replace(opt_state=()))
    with pytest.raises(UserError, match=r'opt_state/1/count.*int32 \[\]'):
        CheckpointManager(saved).restore(like, lambda about: None)


def test_a_reason_not_to_use_a_step_sends_back_to_the_one_before(saved, tmp_path, capsys):
    shutil.copytree(saved, tmp_path / 'c')
    state, _ = restore(tmp_path / 'c', lambda about: 'it is odd' if about.step > 1 else None)
    fine(1)(state)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all('step 1' in line and line.endswith('it is odd') for line in told)


def test_nothing_there_is_no_checkpoint(tmp_path):
    assert restore(tmp_path / 'nowhere') is None and restore(tmp_path) is None


# --- faults ----------------------------------------------------------------------------------------


def flip(path, rng):
    held = bytearray(path.read_bytes())
    held[rng.integers(len(held))] ^= 1 << int(rng.integers(8))
    path.write_bytes(held)


def truncate(path, rng):
    os.truncate(path, rng.integers(path.stat().st_size))


def lengthen(path, rng):
    with path.open('ab') as file:
        file.write(rng.bytes(1))


def delete(path, rng):
    path.unlink()


def become_a_folder(path, rng):
    path.unlink()
    path.mkdir()


def become_a_link_to_nowhere(path, rng):
    path.unlink()
    path.symlink_to('nowhere')


FAULTS = [*[flip] * 8, *[truncate] * 4, lengthen, delete, become_a_folder, become_a_link_to_nowhere]


@pytest.mark.parametrize(
    ('faults', 'at_least'),
    [(dict.fromkeys(FAULTS), 70), pytest.param(FAULTS, 200, marks=pytest.mark.slow)],
    ids=['each', 'all'],
)
def test_every_fault_of_every_file_sends_back_to_the_step_before(faults, at_least, saved, tmp_path, capsys):
    """Over 200 faults, a file at a time: the TrainState of the step before comes back, and a warning names the file."""
    rng, count = np.random.default_rng(0), 0
    names = sorted(path.relative_to(saved / '10') for path in (saved / '10').rglob('*') if path.is_file())
    for name in names:
        for fault in faults:
            count += 1
            folder = tmp_path / f'{count}'
            shutil.copytree(saved, folder)
            fault(folder / '10' / name, rng)
            state, about = restore(folder)
            assert about.step == 2, (name, fault)
            fine(2)(state)
            told = capsys.readouterr().err
            assert told.count('\n') == 1 and 'step 10 ' in told and 'step 2' in told
            assert f' {name.as_posix()} ' in told, (name, fault)
            # What was skipped is out of the way of a new save, and not lost.
            assert CheckpointManager(folder).steps() == [1, 2] and (folder / 'corrupt-10').is_dir()
            shutil.rmtree(folder)
    assert count >= at_least


@pytest.mark.parametrize('fault', [flip, truncate, delete, become_a_folder])
def test_where_no_step_is_sound_nothing_comes_back(fault, saved, tmp_path):
    """A sentence that says of every step why; nothing is moved."""
    shutil.copytree(saved, tmp_path / 'c')
    for step in STEPS:
        fault(tmp_path / 'c' / str(step) / 'about.json', np.random.default_rng(0))
    with pytest.raises(UserError, match='step 10: about.json.*step 2.*step 1.*--overwrite'):
        restore(tmp_path / 'c')
    assert CheckpointManager(tmp_path / 'c').steps() == list(STEPS)


@pytest.mark.parametrize(
    'make',
    [
        Path.mkdir,
        Path.touch,
        lambda path: path.symlink_to('nowhere'),
        lambda path: shutil.copytree(path.parent / '2', path),
    ],
)
def test_something_else_under_the_name_of_a_step_is_skipped(make, saved, tmp_path, capsys):
    """An empty folder, a file, a link, the checkpoint of another step."""
    shutil.copytree(saved, tmp_path / 'c')
    make(tmp_path / 'c' / '11')
    state, about = restore(tmp_path / 'c')
    assert about.step == 10
    told = capsys.readouterr().err
    assert 'step 11 ' in told and told.count('\n') == 1


def test_names_that_are_no_steps_are_left_alone(saved, tmp_path):
    shutil.copytree(saved, tmp_path / 'c')
    for name in ('012', '10.bak', '-3', 'best', '1e3', '٣'):
        (tmp_path / 'c' / name).mkdir()
    assert restore(tmp_path / 'c')[1].step == 10
    assert len(list((tmp_path / 'c').iterdir())) == len(STEPS) + 6


def test_a_save_that_was_killed_leaves_nothing_behind(saved, tmp_path):
    """What a dead process had begun is gone when the folder is opened again."""
    shutil.copytree(saved, tmp_path / 'c')
    shutil.copytree(saved / '2', tmp_path / 'c' / '.saving-12')
    shutil.copytree(saved / '2', tmp_path / 'c' / '.gone-1')
    assert restore(tmp_path / 'c')[1].step == 10
    assert sorted(path.name for path in (tmp_path / 'c').iterdir()) == ['1', '10', '2']


# --- the disk --------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """disk(size, 'rw') makes a small disk, or changes one; it goes away with the test."""
    made = []

    def mount(*options):
        done = subprocess.run(['mount', '-t', 'tmpfs', '-o', ','.join(options), 'tmpfs', tmp_path], capture_output=True)
        if done.returncode:
            pytest.skip(f'a small disk needs the right to mount: {done.stderr.decode().strip()}')
        made.append(tmp_path)
        return tmp_path

    yield mount
    if made:
        subprocess.run(['umount', tmp_path], check=True)


@pytest.mark.skipif(shutil.which('mount') is None, reason='mount is not here')
@pytest.mark.parametrize('kilobytes', [8, 40, 60, 80, 100, 150, 250, 400])
def test_a_full_disk_is_told_at_once_and_takes_nothing_away(kilobytes, disk, capfd):
    """Wherever in a save the room ends: a sentence without a traceback, and the step before comes back."""
    folder, size = disk(f'size={kilobytes}k') / 'checkpoints', 500
    store, step = CheckpointManager(folder, max_to_keep=1000), 0
    with pytest.raises(UserError, match='No space left on device') as it:
        while step < 100:
            step += 1
            save(store, step, size=size)
    assert f'step {step} ' in str(it.value).replace(',', '')
    assert step == 1 or f'step {step - 1}' in str(it.value)
    store.close()
    assert 'Traceback' not in capfd.readouterr().err
    found = restore(folder, size=size)
    if step == 1:
        assert found is None
    else:
        reference.assert_trees_equal(found[0], state_of(step - 1, size=size))


def test_what_every_thread_of_a_save_says_of_a_full_disk_is_told_once(tmp_path, monkeypatch):
    """One fails the save; another's error waits in Orbax until it is closed. Then saving works again."""

    class Full(ocp.AsyncCheckpointer):
        def save(self, *args, **how):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            super().close()
            self.save()

    store = CheckpointManager(tmp_path / 'checkpoints')
    with monkeypatch.context() as patch:
        patch.setattr(ocp, 'AsyncCheckpointer', Full)
        with pytest.raises(UserError, match='step 1 .*No space left on device'):
            save(store, 1)
    save(store, 2)
    store.close()
    fine(2)(restore(tmp_path / 'checkpoints')[0])


def interpreter_settings():
    return sys.unraisablehook, list(logging.getLogger('absl').filters), list(warnings.filters)


def unraisable(error):
    sys.unraisablehook(SimpleNamespace(exc_value=error))


def test_the_closed_loop_of_a_failed_call_is_not_reported_and_all_else_is(monkeypatch, caplog):
    """Inside the context alone; afterwards the interpreter's settings are as before."""
    shown, logger = [], logging.getLogger('absl')
    monkeypatch.setattr(sys, 'unraisablehook', lambda unraisable: shown.append(str(unraisable.exc_value)))
    monkeypatch.setattr(logger, 'propagate', True)
    before = interpreter_settings()
    for fails in (False, True):
        shown.clear(), caplog.clear()
        with contextlib.suppress(ZeroDivisionError), orbax_io.quiet_orbax() as package:
            assert package is ocp
            for error in (
                RuntimeError('Event loop is closed'),
                RuntimeError('Event loop is closed, or not'),
                ValueError('Event loop is closed'),
            ):
                unraisable(error)
            for path in (ocp.__file__, __file__):
                logger.handle(logging.LogRecord('absl', logging.ERROR, path, 1, path, (), None))
            if fails:
                raise ZeroDivisionError
        assert shown == ['Event loop is closed, or not', 'Event loop is closed']
        assert [record.pathname for record in caplog.records] == [__file__]
        assert interpreter_settings() == before
    unraisable(RuntimeError('Event loop is closed'))
    assert len(shown) == 3


@pytest.mark.parametrize('fails', [False, True])
def test_a_save_leaves_the_settings_of_the_interpreter_as_they_were(fails, tmp_path, monkeypatch):
    before = interpreter_settings()
    store = CheckpointManager(tmp_path / 'checkpoints')
    if fails:
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        monkeypatch.setattr(manifest, 'write_manifest', lambda folder: (_ for _ in ()).throw(error))
    with pytest.raises(UserError) if fails else contextlib.nullcontext():
        save(store, 1)
    assert interpreter_settings() == before
    store.close()
    assert interpreter_settings() == before
    if not fails:
        orbax_io.read_arrays(tmp_path / 'checkpoints' / '1')
        assert interpreter_settings() == before


def test_coroutines_that_a_failed_call_never_began_are_discarded():
    """They would be reported as never awaited."""

    async def write():
        pass

    def fail():
        never_begun = [write()]
        raise OSError(len(never_begun))

    with pytest.raises(OSError) as caught:
        fail()
    orbax_io.discard(caught.value)
    assert 'never_begun' not in caught.traceback[-1].frame.f_locals
    gc.collect()


@pytest.mark.skipif(shutil.which('mount') is None, reason='mount is not here')
def test_a_disk_without_room_for_folders_is_told_within_seconds(disk):
    """Threads of Orbax would wait ten minutes for a folder that cannot be made."""
    threads, folder = set(threading.enumerate()), disk('nr_inodes=5') / 'checkpoints'
    store = CheckpointManager(folder)
    with pytest.raises(UserError, match='step 1 .*No space left on device'):
        save(store, 1)
    store.close()
    left = set(threading.enumerate()) - threads
    assert not [thread for thread in left if type(thread).__module__.startswith('orbax')]


@pytest.mark.skipif(shutil.which('mount') is None, reason='mount is not here')
def test_a_disk_that_may_not_be_written_is_told(disk, capfd):
    folder = disk('size=4m') / 'checkpoints'
    store = CheckpointManager(folder)
    save(store, 1)
    disk('remount', 'ro')
    with pytest.raises(UserError, match='step 2 .*Read-only file system'):
        save(store, 2)
    store.close()
    fine(1)(restore(folder)[0])
    assert 'Traceback' not in capfd.readouterr().err


# --- the steps that are kept -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ('max_to_keep', 'keep_best', 'want'),
    [
        (1, None, [5]),
        (2, None, [4, 5]),
        (9, None, [1, 2, 3, 4, 5]),
        (1, 'a', [2, 5]),
        (2, 'max:a', [3, 4, 5]),
        (1, 'b', [5]),
    ],
)
def test_the_newest_and_the_best_stay(max_to_keep, keep_best, want, tmp_path):
    """A value that is not finite, or missing, is nobody's best; of equal ones the earlier stays."""
    store = CheckpointManager(tmp_path, max_to_keep=max_to_keep, keep_best=keep_best)
    state = state_of(0)
    for step, a in enumerate((3.0, 1.0, 4.0, 1.0, None), 1):
        store.save(state, about_of(step, state, a=a))
    store.close()
    assert store.steps() == want


def test_a_step_is_saved_once(tmp_path):
    """A run that is at its end is not written again."""
    store = CheckpointManager(tmp_path)
    save(store, 5)
    before = (tmp_path / '5' / 'checksums').stat().st_mtime_ns
    save(store, 5)
    store.close()
    assert (tmp_path / '5' / 'checksums').stat().st_mtime_ns == before
    other = CheckpointManager(tmp_path)
    other.restore(jax.eval_shape(lambda: state_of(0)), lambda about: None)
    save(other, 5)
    assert (tmp_path / '5' / 'checksums').stat().st_mtime_ns == before


def with_params(params):
    return TrainState(jnp.int32(1), jax.random.key(0), jax.tree.map(jnp.float32, params), {}, ())


@pytest.mark.parametrize(
    ('params', 'named'),
    [
        ({'a/b': 1, 'a': {'b': 2}}, "'params/a/b'"),
        ({'a': {'b/c': 1}, 'a/b': {'c': 2}}, "'params/a/b/c'"),
        ({'a.b': 1, 'a': {'b': 2}}, 'params/a.b.*params/a/b|params/a/b.*params/a.b'),
        ({'a\0b': 1}, 'a.*x00b'),
        ({'\udc80': 1}, 'udc80'),
    ],
)
def test_keys_that_no_checkpoint_can_keep_apart_are_refused(params, named, tmp_path):
    """Before anything is written: they were saved, and another array came back, or none."""
    with pytest.raises(UserError, match=named):
        save_state(tmp_path, with_params(params))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'params',
    [
        {'a/b': 1, 'c.d': 2, '/': 3, '.': 4, '..': 5, 'a/': 6},
        {'': 1, 'a': {'': {'': 2}}, ' ': 3},
        {'A': 1, 'a': 2, 'ä': 3, 'a\u0308': 4, "'": 5, '"': 6, '\n': 7},
        {1: 1, 2: {3: 2, 10: 3}, 12: [4, (5, {'x': 6})]},
        {'a': {}, 'b': 1, 'c': [], 'd': None, 'e': ((), {'f': {}})},
        {True: 1, False: {(0, 1): 2, (1, 0): 3}},
    ],
)
def test_odd_keys_come_back(params, tmp_path):
    state = with_params(params)
    save_state(tmp_path, state)
    got, _ = CheckpointManager(tmp_path).restore(jax.eval_shape(lambda: state), lambda about: None)
    assert jax.tree.structure(got.params) == jax.tree.structure(state.params)
    assert list(map(float, jax.tree.leaves(got.params))) == list(map(float, jax.tree.leaves(state.params)))


def save_state(folder, state):
    store = CheckpointManager(folder)
    store.save(state, about_of(1, state))
    store.close()


# --- files that are not files, or may not be read ----------------------------


@pytest.mark.parametrize('name', ['checksums', 'about.json', 'state/_METADATA', '.'])
@pytest.mark.parametrize('kind', ODD[:-1])
def test_what_is_not_a_file_makes_a_step_unsound_at_once(saved, tmp_path, name, kind):
    shutil.copytree(saved / '10', tmp_path / '10')
    path = tmp_path / '10' / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    odd(path.parent, kind, path.name)
    with pytest.raises(CorruptCheckpointError):
        manifest.verify_manifest(tmp_path / '10')


@pytest.mark.parametrize('name', ['checksums', 'about.json', '.'])
def test_a_step_that_may_not_be_read_is_skipped_by_name(saved, tmp_path, name, capsys):
    shutil.copytree(saved, tmp_path / 'c')
    (tmp_path / 'c/10' / name).chmod(0o000)
    with ordinary_user():
        assert restore(tmp_path / 'c')[1].step == 2
    assert 'Permission denied' in capsys.readouterr().err


def test_a_folder_of_checkpoints_that_may_not_be_listed_is_named(saved, tmp_path):
    shutil.copytree(saved, tmp_path / 'c')
    (tmp_path / 'c').chmod(0o300)
    try:
        with ordinary_user():
            for action in (
                lambda: restore(tmp_path / 'c'),
                lambda: list(checkpoint_manager.checkpoint_folders(tmp_path)),
            ):
                with pytest.raises(UserError, match='c .*Permission denied'):
                    action()
    finally:
        (tmp_path / 'c').chmod(0o700)


@pytest.mark.parametrize(
    'changes',
    [{'step': '10'}, {'step': None}, {'logs': [1]}, {'logs': {'x': [1]}}, {'logs': {'x': ['a', 'b']}},
     {'flags': []}, {'metrics': {'loss': 'low'}}, {'leaves': 3}, {'versions': None}, {'experiment': 1}, {'other': 1}],
)  # fmt: skip
def test_a_step_whose_right_checksums_are_of_other_types_is_unsound(saved, tmp_path, changes):
    shutil.copytree(saved / '10', tmp_path / '10')
    path = tmp_path / '10/about.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    manifest.write_manifest(tmp_path / '10')
    with pytest.raises(CorruptCheckpointError, match='about.json'):
        manifest.verify_manifest(tmp_path / '10')
