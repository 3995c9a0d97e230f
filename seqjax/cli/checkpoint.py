"""The checkpoints of a run: lists them, verifies every byte of them, exports what was learned.

    seqjax checkpoint --workdir=runs/td/many_to_many
    seqjax checkpoint --workdir=runs/td/many_to_many --export=weights.npz

What is exported is read back by `numpy.load`: arrays by name, params/rnn/cell/kernel; of replicas with a leading axis.
"""

import contextlib
import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqjax import files
from seqjax.cli import command, flag_tables
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import Place, Switch, Whole
from seqjax.errors import UserError
from seqjax.runs import checkpoint_manager, directory, orbax_io
from seqjax.runs.checkpoint_manager import CheckpointManager
from seqjax.runs.manifest import CheckpointMetadata, CorruptCheckpointError

LEARNED = ('params/', 'variables/')

FLAGS = {
    'workdir': Flag(Place(), 'the folder of the run'),
    'place': Flag(Place(), 'a folder below its checkpoints, where there are several'),
    'step': Flag(Whole(0), 'export this step instead of the newest sound one'),
    'export': Flag(Place('file'), 'write what was learned here, as an .npz file'),
    'everything': Flag(Switch(), "export the optimiser's state, the step and the key, too"),
}


class CheckpointRow(NamedTuple):
    """A checkpoint."""

    path: Path
    size: int  # bytes
    saved: float  # seconds since 1970
    about: CheckpointMetadata | None  # None where it is damaged
    fault: str | None


def run(
    *,
    workdir: str | None = None,
    place: str | None = None,
    step: int | None = None,
    export: str | None = None,
    everything: bool = False,
) -> list[CheckpointRow]:
    """Lists and verifies the checkpoints of a run, and exports one of them; `FLAGS` explains the arguments.

    Raises UserError (a ValueError) where there is no checkpoint, one is damaged, or the one to export is not there.
    """
    settings = flag_tables.check(FLAGS, locals(), command.default_values(run))
    if settings['workdir'] is None:
        raise UserError('--workdir is missing: the folder of the run')
    folder = files.expand('workdir', settings['workdir']) / directory.CHECKPOINTS / (settings['place'] or '')
    found = {path: verify_all(path) for path in checkpoint_manager.checkpoint_folders(folder)}
    if not found:
        raise UserError(f'{folder} holds no checkpoint; --workdir is the folder that a run had')
    for path, rows in found.items():
        _show(path, rows)
    if settings['export'] is not None:
        _export(files.expand('export', settings['export']), found, settings)
    damaged = [row for rows in found.values() for row in rows if row.fault is not None]
    if damaged:
        count = sum(map(len, found.values()))
        raise UserError(
            f'{len(damaged)} of {count} checkpoints cannot be used, the first of them {damaged[0].path} '
            f'({damaged[0].fault}); the run goes on from the newest sound one'
        )
    return [row for rows in found.values() for row in rows]


def verify_all(folder: Path) -> list[CheckpointRow]:
    """Every checkpoint in a folder, with all of its bytes read."""
    store, rows = CheckpointManager(folder, writes=False), []
    for step in store.steps():
        path = store.path(step)
        try:
            about, fault = store.check(step), None
        except CorruptCheckpointError as error:
            about, fault = None, str(error)
        try:
            rows.append(CheckpointRow(path, _size(path), os.lstat(path).st_mtime, about, fault))
        except FileNotFoundError:
            continue  # a run that goes on takes its old ones away
    return rows


def _size(path: Path) -> int:
    """Bytes of the files of a folder, as far as they can be listed; a file may vanish meanwhile."""
    size = 0
    for file in (os.path.join(place, name) for place, _, names in os.walk(path) for name in names):
        with contextlib.suppress(OSError):
            size += os.lstat(file).st_size
    return size


def _show(folder: Path, rows: list[CheckpointRow]) -> None:
    first = next((row.about for row in rows if row.about is not None), None)
    print(f'{folder}{os.sep}' + ('' if first is None else f'  a run of {first.experiment}'))
    print('      step        size  saved             ')
    for path, size, saved, about, fault in rows:
        when = datetime.fromtimestamp(saved).strftime('%Y-%m-%d %H:%M')
        words = f'cannot be used: {fault}'
        if about is not None:
            values = {name: 'not finite' if x is None else f'{x:.4g}' for name, x in about.metrics.items()}
            words = ', '.join(['sound', *(f'{name} {value}' for name, value in values.items())])
        print(f'{int(path.name):>10,}  {size / 1000:>7,.0f} kB  {when}  {words}')


def _export(target: Path, found: dict[Path, list[CheckpointRow]], settings: dict[str, Any]) -> None:
    """Writes the arrays of one checkpoint, or of one checkpoint of every group of seeds."""
    if target.suffix != '.npz':
        raise UserError(f'--export={target} must end in .npz')
    if len({_group(path)[0] for path in found}) > 1:
        tops = {path: next(top for top in path.parents if top.name == directory.CHECKPOINTS) for path in found}
        places = ', '.join(sorted({str(_group(path)[0].relative_to(top)) for path, top in tops.items()}))
        raise UserError(f'there are several kinds of checkpoints; choose one with --place, of {places}')
    chosen = [_choose(path, rows, settings['step']) for path, rows in found.items()]
    if len({row.about.step for row in chosen}) > 1:
        steps = ', '.join(f'{row.path}' for row in chosen)
        raise UserError(f'the groups of seeds are at different steps ({steps}); choose one with --step')
    parts = [_arrays(row, settings['everything']) for row in chosen]
    arrays = {
        name: np.concatenate([part[name] for part in parts]) if len(parts) > 1 else parts[0][name] for name in parts[0]
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        files.replace(target, lambda path: np.savez(path, **arrays))
    except OSError as error:
        raise UserError(f'cannot write --export={target}: {error.strerror or error}; choose another file') from error
    print(f'\n{target}: {len(arrays)} arrays of step {chosen[0].about.step:,}')


def _choose(folder: Path, rows: list[CheckpointRow], step: int | None) -> CheckpointRow:
    sound = [row for row in rows if row.about is not None and step in (None, row.about.step)]
    if not sound:
        has = ', '.join(row.path.name for row in rows if row.about is not None) or 'none'
        raise UserError(f'{folder} has no sound checkpoint{"" if step is None else f" of --step={step}"}; it has {has}')
    return sound[-1]


def _arrays(row: CheckpointRow, everything: bool) -> dict[str, np.ndarray]:
    """By name; of a group of seeds without what filled it up."""
    arrays, count = orbax_io.read_arrays(row.path), _group(row.path.parent)[1]
    wanted = {name: x for name, x in arrays.items() if everything or name.startswith(LEARNED)}
    return wanted if count is None else {name: x[:count] for name, x in wanted.items()}


def _group(folder: Path) -> tuple[Path, int | None]:
    """The folder that a group of seeds is one of, and how many they are; a folder that is none is itself."""
    match = re.fullmatch(r'seeds_(\d+)_to_(\d+)', folder.name)
    return (folder, None) if match is None else (folder.parent, int(match[2]) - int(match[1]) + 1)


COMMAND = Command('checkpoint', __doc__, run, FlagTable(FLAGS, command.default_values(run)))
main = COMMAND.main
