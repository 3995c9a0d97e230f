"""Several processes on this machine compute one run: the numbers of one, saved together, ended together."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import echo, temporal_order
from seqjax.cli import classify
from seqjax.runs import multihost
from tests.helpers import kinds

ROOT = Path(__file__).parent.parent.parent
RUN = {'cell': 'simple', 'hidden': 4, 'window': 6, 'batch_size': 8, 'length': 400, 'plot': False}
FLAGS = [f'--{name}={value}' for name, value in RUN.items()]


def free_port():
    with socket.socket() as found:
        found.bind(('localhost', 0))
        return found.getsockname()[1]


def start(folder, count, *flags, heartbeat_timeout=10, slurm=False, experiment='echo', always=FLAGS):
    """So many processes of one run, each with one device."""
    port, job = free_port(), str(os.getpid() % 4000 + 10_000)
    for index in range(count):
        own = {'JAX_NUM_CPU_DEVICES': '1', 'PYTHONPATH': str(ROOT), 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
        together = f'localhost:{port},{count},{index}'
        if slurm:
            together = 'auto'
            own |= {'SLURM_JOB_ID': job, 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': str(count)}
            own |= {'SLURM_PROCID': str(index), 'SLURM_LOCALID': str(index)}
        words = [
            *always,
            f'--workdir={folder}',
            f'--distributed={together}',
            f'--heartbeat_timeout={heartbeat_timeout}',
            *flags,
        ]
        command = [sys.executable, '-m', f'experiments.{experiment}', *words]
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
        yield subprocess.Popen(command, env=os.environ | own, **pipes)


def ended(running):
    """The exit codes and outputs of all, which must end by themselves."""
    outputs = [process.communicate(timeout=200) for process in running]
    return [process.returncode for process in running], outputs


def losses(folder):
    with (folder / 'metrics.csv').open() as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row['step']) for row in rows] == list(range(1, len(rows) + 1))
    return np.array([row['loss'] for row in rows], float)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """The losses of one process on one device."""
    folder = tmp_path_factory.mktemp('straight')
    echo.run(**RUN, steps=24, workdir=str(folder))
    return losses(folder)


@pytest.mark.parametrize('four', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_and_four_processes_are_one_and_go_on_as_each_other(four, straight, tmp_path):
    """Two under a SLURM of five variables, four that go on from there, one that ends it: one curve, to 1e-5."""
    codes, outputs = ended(list(start(tmp_path, 2, '--steps=10', slurm=True)))
    assert codes == [0, 0], outputs
    assert 'a batch of 8 on 2 cpu devices' in outputs[0][0]  # the first one talks
    assert all(line.startswith('[Gloo]') for line in outputs[1][0].splitlines())
    if four:
        codes, outputs = ended(list(start(tmp_path, 4, '--steps=16')))
        assert codes == [0] * 4 and 'step 10 ' in outputs[0][0], outputs
    echo.run(**RUN, steps=24, workdir=str(tmp_path))
    np.testing.assert_allclose(losses(tmp_path), straight, rtol=1e-5)
    assert not (tmp_path / '.lock').exists()


@pytest.mark.slow
def test_the_seeds_of_a_study_over_two_processes_are_those_of_one(tmp_path):
    """Their looks, and what they are tested with."""
    flags = {'length': 10, 'hidden': 4, 'steps': 6, 'eval_every': 3, 'num_seeds': 3}
    straight = temporal_order.run(**flags, plot=False)
    words = [*(f'--{name}={value}' for name, value in flags.items()), '--noplot']
    codes, outputs = ended(list(start(tmp_path / 'w', 2, experiment='temporal_order', always=words)))
    assert codes == [0, 0], outputs
    shared = temporal_order.run(**flags, plot=False, workdir=str(tmp_path / 'w'))  # shown again
    np.testing.assert_allclose(shared.evals, straight.evals, rtol=1e-5)
    for one, other in zip(shared.seeds, straight.seeds, strict=True):
        assert one.test == pytest.approx(other.test, rel=1e-5)


@pytest.mark.slow
def test_a_file_that_two_processes_learn_from_gives_what_it_gives_one(tmp_path):
    """The key that orders the epochs goes to the devices of both; and training anew on both parts does."""
    pytest.importorskip('sklearn', reason='a baseline needs scikit-learn (the extra "data")')
    kinds.archive(tmp_path / 's.ts')
    flags = {'data': str(tmp_path / 's.ts'), 'hidden': 4, 'steps': 16, 'num_seeds': 3, 'batch_size': 8, 'refit': True}
    words = [*(f'--{name}={value}' for name, value in flags.items()), '--noplot']
    codes, outputs = ended(list(start(tmp_path / 'two', 2, experiment='classify', always=words)))
    assert codes == [0, 0], outputs
    classify.run(**flags, plot=False, workdir=str(tmp_path / 'one'))
    with np.load(tmp_path / 'one/models.npz') as one, np.load(tmp_path / 'two/models.npz') as two:
        for name in one:
            np.testing.assert_allclose(one[name], two[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_replicas_over_two_processes_are_those_of_one(tmp_path):
    flags = ['--num_seeds=3', '--steps=8', '--checkpoint_every=4']
    codes, outputs = ended(list(start(tmp_path / 'two', 2, *flags)))
    assert codes == [0, 0] and '3 replicas on 2 cpu devices' in outputs[0][0], outputs
    echo.run(**RUN, num_seeds=3, steps=8, workdir=str(tmp_path / 'one'))
    found = [np.load(tmp_path / name / 'replicas.npz')['loss'] for name in ('two', 'one')]
    np.testing.assert_allclose(*found, rtol=1e-5)


def wait_for_rows(folder, running):
    """Until the run has logged and saved something."""
    while not list(folder.glob('checkpoints/[0-9]*')):
        assert all(process.poll() is None for process in running), ended(running)
        time.sleep(0.05)


@pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX')
@pytest.mark.parametrize('number', [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_peer_that_dies_or_hangs_ends_the_run_which_then_goes_on(number, tmp_path):
    """The others end by themselves, the hanging one found out by its heart; all started again come to the same end."""
    flags = ['--steps=100000', '--checkpoint_every=20', '--steps_per_call=20']
    running = list(start(tmp_path, 2, *flags))
    wait_for_rows(tmp_path, running)
    running[1].send_signal(number)
    try:
        out, err = running[0].communicate(timeout=60)
    finally:
        running[1].kill()
    assert running[0].returncode not in (0, 2)  # JAX ends the process, with 1 or by an abort
    if number == signal.SIGKILL:
        assert running[0].returncode == 75, err
        assert 'Traceback' not in err
    running[1].communicate()
    held = max(int(path.name) for path in tmp_path.glob('checkpoints/[0-9]*'))
    echo.run(**RUN, steps=held + 20, workdir=str(tmp_path))
    shutil.rmtree(tmp_path / 'checkpoints')
    got = losses(tmp_path)
    echo.run(**RUN, steps=held + 20, workdir=str(tmp_path), overwrite=True)
    np.testing.assert_allclose(got, losses(tmp_path), rtol=1e-4)  # the loss is below 1e-3 where it differs by more


@pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX')
def test_a_signal_to_one_of_them_ends_all_after_the_same_step(tmp_path):
    running = list(start(tmp_path, 2, '--steps=100000', '--checkpoint_every=20', '--steps_per_call=20'))
    wait_for_rows(tmp_path, running)
    running[1].send_signal(signal.SIGTERM)
    codes, outputs = ended(running)
    assert codes == [75, 75], outputs
    said = [err.splitlines()[-1] for _, err in outputs]
    assert said[0] == said[1] and 'SIGTERM' in said[0]


# --- what a person can get wrong -------------------------------------------------------------------


@pytest.mark.parametrize(
    'text',
    [
        '',
        'on',
        'a:1,2',
        'a:1,2,2',
        'a:0,2,0',
        'a:65536,2,0',
        ':1,2,0',
        'a:1,0,0',
        'a:1,2,-1',
        'a:x,2,0',
        'AUTO',
        'a:1,２,0',
    ],
)
def test_what_is_no_process_is_refused(text, capsys):
    with pytest.raises(ValueError, match='HOST:PORT,COUNT,INDEX'):
        multihost.parse(text)
    assert echo.main([f'--distributed={text}']) == 2
    assert f'--distributed={text}' in capsys.readouterr().err


def one(*flags):
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    env = {name: value for name, value in env.items() if not name.startswith('SLURM')}
    command = [sys.executable, '-m', 'experiments.echo', *flags]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)


def test_a_port_that_is_taken_and_a_cluster_that_is_not_there_are_told():
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen()
        done = one(f'--distributed=localhost:{taken.getsockname()[1]},2,0')
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and '--distributed' in done.stderr
    done = one('--distributed=auto')
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'SLURM' in done.stderr


def test_alone_everything_is_the_first():
    assert not multihost.is_multiprocess() and multihost.is_process0() and multihost.allreduce_max(15) == 15
    assert multihost.broadcast_from_process0(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        multihost.broadcast_from_process0(lambda: 1 / 0)
