"""Kill runs at random moments, and compare their results with the results of undisturbed runs.

    python -m benchmarks.soak --kills=100

Each run is killed by SIGKILL while it starts, trains or saves, and resumed by the same command with another
--steps_per_call, until it finishes. Its metrics.csv and every array of its last checkpoint must then be the same as in
an undisturbed run, byte for byte. The runs use truncated backpropagation or shuffled epochs, two layers with dropout, a
learning rate schedule and gradient clipping, with one seed or several.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqjax.cli import command as cli_command
from seqjax.cli import default_workdir, flag_tables
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import ChoiceParser, IntParser, ListParser
from seqjax.errors import UserError
from seqjax.runs import checkpoint_manager, directory, orbax_io
from seqjax.runs.checkpoint_manager import CheckpointManager
from seqjax.training import progress
from seqjax.training.progress import Progress

COMMON = ('--layers=2', '--dropout=0.2', '--schedule=cosine', '--clip_norm=1', '--noplot', '--hidden=16')
RUNS = {
    'stream': ('--feed=stream', *COMMON),
    'shuffle': ('--feed=shuffle', '--num_seeds=3', *COMMON),
}
START_FRACTION = 0.25  # fraction of kills that may happen while a run starts; the others wait for its first rows

CHUNKS = (30, 77)  # values of --steps_per_call: few, so that their programs are in the compilation cache

FLAGS = {
    'kills': Flag(IntParser(1), 'number of kills'),
    'runs': Flag(ListParser(ChoiceParser(*RUNS)), 'runs to kill, one after the other'),
    'steps': Flag(IntParser(10, (2**31 - 1) // 2), 'training steps of each run'),
    'checkpoint_every': Flag(IntParser(1), 'training steps between two checkpoints'),
    'seconds': Flag(IntParser(1), 'maximal training time before a kill, in seconds'),
    **{name: flag_tables.SHARED[name] for name in ('seed', 'workdir', 'overwrite')},
}


class SoakResult(NamedTuple):
    """Counts of kills and runs."""

    kills: int
    finished: int  # runs that finished
    training: int  # kills after a run's first rows


def run(
    *,
    kills: int = 100,
    runs: Sequence[str] = tuple(RUNS),
    steps: int = 20_000,
    checkpoint_every: int = 500,
    seconds: int = 2,
    seed: int = 0,
    workdir: str | None = None,
    overwrite: bool = False,
) -> SoakResult:
    """Kills runs of experiments.echo at random moments, and compares their results with an undisturbed run.

    Every argument is a flag, described in `FLAGS`; `seed` is for the random moments.

    Raises:
      UserError (a ValueError): an argument is invalid, or a run differs from the undisturbed run.
    """
    settings = flag_tables.check(FLAGS, locals(), cli_command.default_values(run))
    if settings['workdir'] is None:
        raise UserError('--workdir is missing; pass a folder for the runs')
    with directory.open_workdir(settings, 'soak', names=tuple(RUNS)) as (folder, _):
        folder.clear()
        soak = Soak(folder.path, settings, np.random.default_rng(settings['seed']))
        result = soak.run()
    print(
        f'\n{result.kills:,} kills, {result.training:,} of them after the first rows of a run: metrics.csv and every '
        f'array of the last checkpoint of all {result.finished:,} runs are the same as in the undisturbed runs, '
        'byte for byte.'
    )
    return result


class Soak:
    """Runs, kills and compares."""

    def __init__(self, folder: Path, settings: dict[str, Any], rng: np.random.Generator):
        self.folder, self.settings, self.rng = folder, settings, rng
        self.kills = self.training = self.finished = 0

    def run(self) -> SoakResult:
        for name in self.settings['runs']:
            print(f'{name}: an undisturbed run')
            self.start(self.folder / name / 'undisturbed', RUNS[name]).communicate()
        with progress.progress(self.settings['kills'], 'kill') as bar:
            while self.kills < self.settings['kills']:
                name = self.settings['runs'][self.finished % len(self.settings['runs'])]
                self.disturb(self.folder / name / 'killed', RUNS[name], bar)
                compare(self.folder / name / 'killed', self.folder / name / 'undisturbed')
                shutil.rmtree(self.folder / name / 'killed')
                self.finished += 1
        return SoakResult(self.kills, self.finished, self.training)

    def disturb(self, folder: Path, flags: Sequence[str], bar: Progress) -> None:
        """Kills and resumes a run until it finishes, or until there were enough kills."""
        while True:
            before = _log_bytes(folder)
            process = self.start(folder, flags)
            is_last = self.kills == self.settings['kills']
            if not is_last and self.rng.random() >= START_FRACTION:
                while process.poll() is None and _log_bytes(folder) == before:
                    time.sleep(0.01)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(None if is_last else self.rng.uniform(0, self.settings['seconds']))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                self.kills += 1
                self.training += _log_bytes(folder) != before
                bar.show(self.kills, 1, f'{self.finished} runs finished')
            _, stderr = process.communicate()
            if process.returncode not in (0, -signal.SIGKILL):
                raise UserError(f'a run in {folder} ended with exit code {process.returncode}: {stderr.strip()}')
            if process.returncode == 0:
                return

    def start(self, folder: Path, flags: Sequence[str]) -> subprocess.Popen[str]:
        """Starts a run with a random --steps_per_call, which does not change results."""
        steps, chunk = self.settings['steps'], int(self.rng.choice(CHUNKS))
        run_flags = [f'--{name}={self.settings[name]}' for name in ('steps', 'checkpoint_every')]
        run_flags += [f'--decay_steps={2 * steps}', f'--steps_per_call={chunk}', f'--workdir={folder}']
        command = [sys.executable, '-m', 'experiments.echo', *flags, *run_flags]
        path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get('PYTHONPATH', '')])
        pipes = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.PIPE, 'text': True}
        return subprocess.Popen(command, env=os.environ | {'PYTHONPATH': path}, **pipes)


def _log_bytes(folder: Path) -> int:
    """Returns the size of a run's logs in bytes."""
    logs = [folder / directory.METRICS, *folder.glob(f'{directory.CHECKPOINTS}/*/losses.f32')]
    return sum(log.stat().st_size for log in logs if log.exists())


def compare(folder: Path, other: Path) -> None:
    """Raises UserError if the results of two runs differ."""
    if (folder / directory.METRICS).read_bytes() != (other / directory.METRICS).read_bytes():
        raise UserError(f'{folder / directory.METRICS} differs from {other / directory.METRICS}')
    ends = []
    for top in (folder, other):
        managers = {
            path.relative_to(top): CheckpointManager(path, writes=False)
            for path in checkpoint_manager.checkpoint_folders(top / directory.CHECKPOINTS)
        }
        ends.append({path: orbax_io.read_arrays(x.path(x.steps()[-1])) for path, x in managers.items()})
    if ends[0].keys() != ends[1].keys():
        raise UserError(f'{folder} and {other} have different replica groups')
    for path, arrays in ends[0].items():
        for name, array in arrays.items():
            if array.tobytes() != ends[1][path][name].tobytes():
                raise UserError(f'{name} differs between {folder / path} and {other / path}')


DEFAULTS = cli_command.default_values(run)
COMMAND = Command(
    'soak',
    __doc__,
    run,
    FlagTable(FLAGS, DEFAULTS),
    lambda values: default_workdir.default_workdir(values, DEFAULTS, 'soak'),
)
main = COMMAND.main


if __name__ == '__main__':
    COMMAND.execute()
