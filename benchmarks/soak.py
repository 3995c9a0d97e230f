"""Kills runs at random moments, again and again, and sees whether they end as if nothing had happened.

    python -m benchmarks.soak --kills=100

Each run is killed by SIGKILL while it starts, trains or saves, and started again by the same command with another
--steps_per_call, until it ends. Its metrics.csv and every array of its last checkpoint must then equal those of an
undisturbed run, byte for byte. The runs use truncated backpropagation or shuffled epochs, two layers with dropout, a
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
from seqjax.cli.parsers import Choice, Many, Whole
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
STARTING = 0.25  # the share of kills that may come while a run starts; the others wait for its first rows

CHUNKS = (30, 77)  # steps between two visits of the host: few, so that their programs stay compiled

FLAGS = {
    'kills': Flag(Whole(1), 'how many times a run is killed'),
    'runs': Flag(Many(Choice(*RUNS)), 'which runs, in turn'),
    'steps': Flag(Whole(10, (2**31 - 1) // 2), 'training steps of each run'),
    'checkpoint_every': Flag(Whole(1), 'steps between two checkpoints'),
    'seconds': Flag(Whole(1), 'that a run may train at most until it is killed'),
    **{name: flag_tables.SHARED[name] for name in ('seed', 'workdir', 'overwrite')},
}


class SoakOutcome(NamedTuple):
    """What became of the runs."""

    kills: int
    finished: int  # runs that came to their end
    training: int  # kills that came after a run's first rows


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
) -> SoakOutcome:
    """Kills runs of experiments.echo at random moments, and compares how they end with an undisturbed run.

    Every argument is a flag of the command line, where `FLAGS` explains it; `seed` decides the moments.

    Raises:
      UserError (a ValueError): an argument is refused, or a run did not end as the undisturbed one did.
    """
    settings = flag_tables.check(FLAGS, locals(), cli_command.default_values(run))
    if settings['workdir'] is None:
        raise UserError('--workdir is missing: a folder for the runs')
    with directory.open_workdir(settings, 'soak', names=tuple(RUNS)) as (folder, _):
        folder.clear()
        soak = Soak(folder.path, settings, np.random.default_rng(settings['seed']))
        outcome = soak.run()
    print(
        f'\n{outcome.kills:,} kills, {outcome.training:,} of them after the first rows of a run: all of '
        f'{outcome.finished:,} runs ended as the undisturbed ones did, metrics.csv and every array of the last '
        'checkpoint byte for byte.'
    )
    return outcome


class Soak:
    """Runs, kills and compares."""

    def __init__(self, folder: Path, settings: dict[str, Any], rng: np.random.Generator):
        self.folder, self.settings, self.rng = folder, settings, rng
        self.kills = self.training = self.finished = 0

    def run(self) -> SoakOutcome:
        for name in self.settings['runs']:
            print(f'{name}: an undisturbed run')
            self.start(self.folder / name / 'undisturbed', RUNS[name]).communicate()
        with progress.progress(self.settings['kills'], 'kill') as shown:
            while self.kills < self.settings['kills']:
                name = self.settings['runs'][self.finished % len(self.settings['runs'])]
                self.disturb(self.folder / name / 'killed', RUNS[name], shown)
                compare(self.folder / name / 'killed', self.folder / name / 'undisturbed')
                shutil.rmtree(self.folder / name / 'killed')
                self.finished += 1
        return SoakOutcome(self.kills, self.finished, self.training)

    def disturb(self, folder: Path, flags: Sequence[str], shown: Progress) -> None:
        """One run, killed until it ends, or until there were enough kills."""
        while True:
            before = _rows(folder)
            process = self.start(folder, flags)
            spare = self.kills == self.settings['kills']
            if not spare and self.rng.random() >= STARTING:
                while process.poll() is None and _rows(folder) == before:
                    time.sleep(0.01)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(None if spare else self.rng.uniform(0, self.settings['seconds']))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                self.kills += 1
                self.training += _rows(folder) != before
                shown.show(self.kills, 1, f'{self.finished} runs ended')
            _, said = process.communicate()
            if process.returncode not in (0, -signal.SIGKILL):
                raise UserError(f'a run in {folder} ended with {process.returncode}: {said.strip()}')
            if process.returncode == 0:
                return

    def start(self, folder: Path, flags: Sequence[str]) -> subprocess.Popen[str]:
        """The same command each time, but for the flag that changes no number."""
        steps, chunk = self.settings['steps'], int(self.rng.choice(CHUNKS))
        own = [f'--{name}={self.settings[name]}' for name in ('steps', 'checkpoint_every')]
        own += [f'--decay_steps={2 * steps}', f'--steps_per_call={chunk}', f'--workdir={folder}']
        command = [sys.executable, '-m', 'experiments.echo', *flags, *own]
        path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get('PYTHONPATH', '')])
        how = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.PIPE, 'text': True}
        return subprocess.Popen(command, env=os.environ | {'PYTHONPATH': path}, **how)


def _rows(folder: Path) -> int:
    """How much of a run's log there is, in bytes."""
    logs = [folder / directory.METRICS, *folder.glob(f'{directory.CHECKPOINTS}/*/losses.f32')]
    return sum(log.stat().st_size for log in logs if log.exists())


def compare(folder: Path, other: Path) -> None:
    """Raises UserError where two runs did not end alike."""
    if (folder / directory.METRICS).read_bytes() != (other / directory.METRICS).read_bytes():
        raise UserError(f'{folder / directory.METRICS} is not {other / directory.METRICS}')
    ends = []
    for top in (folder, other):
        found = {
            path.relative_to(top): CheckpointManager(path, writes=False)
            for path in checkpoint_manager.checkpoint_folders(top / directory.CHECKPOINTS)
        }
        ends.append({path: orbax_io.read_arrays(store.path(store.steps()[-1])) for path, store in found.items()})
    if ends[0].keys() != ends[1].keys():
        raise UserError(f'{folder} and {other} have other groups of seeds')
    for path, arrays in ends[0].items():
        for name, array in arrays.items():
            if array.tobytes() != ends[1][path][name].tobytes():
                raise UserError(f'{name} of {folder / path} is not that of {other / path}')


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
