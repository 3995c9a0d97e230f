"""List, verify and export the checkpoints of a run.

    seqjax checkpoint --workdir=runs/td/many_to_many
    seqjax checkpoint --workdir=runs/td/many_to_many --export=weights.npz

An export has the parameters at the step of the checkpoint. The results of a run with early stopping are from its
best parameters, which are in its models.npz, and with --full_state also in the export. `numpy.load` reads an export:
arrays by name, such as params/rnn/cell/kernel. If the run has --num_seeds, set or by default, the first axis of every
array is the seed.
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
from seqjax.cli.parsers import BoolParser, IntParser, PathParser
from seqjax.errors import UserError
from seqjax.runs import checkpoint_manager, directory, orbax_io
from seqjax.runs.checkpoint_manager import CheckpointManager
from seqjax.runs.manifest import CheckpointMetadata, CorruptCheckpointError

TRAINED = ('params/', 'variables/')  # prefixes of the names of the arrays that are exported without --full_state

FLAGS = {
    'workdir': Flag(PathParser(), 'run directory that contains the checkpoints (required)'),
    'replica_group': Flag(
        PathParser(),
        'folder below checkpoints/ to list and export (default: all); required for --export of a sweep or of a run '
        'with --refit',
    ),
    'step': Flag(IntParser(0), 'training step of the checkpoint to export; by default the newest valid one'),
    'export': Flag(
        PathParser('file'),
        '.npz file for the parameters at the step of the checkpoint; by default nothing is exported',
    ),
    'full_state': Flag(
        BoolParser(), 'with --export, also export the optimizer state, the step, the random key and the best parameters'
    ),
}


class CheckpointRow(NamedTuple):
    """Result of verifying one checkpoint."""

    path: Path  # folder of the checkpoint
    size: int  # bytes of all its files
    saved: float  # time of its last change, in seconds since 1970
    metadata: CheckpointMetadata | None  # None if the checkpoint is corrupt
    error: str | None  # reason why the checkpoint is corrupt; None if it is valid


def run(
    *,
    workdir: str | None = None,
    replica_group: str | None = None,
    step: int | None = None,
    export: str | None = None,
    full_state: bool = False,
) -> list[CheckpointRow]:
    """Verifies, prints and returns all checkpoints of a run; exports one to an .npz file if `export` is set.

    `FLAGS` explains the arguments.

    Raises:
      UserError (a ValueError): an argument is invalid, there is no checkpoint, the export fails, or a checkpoint is
        corrupt (raised after the list is printed and the file of `export` is written).
    """
    settings = flag_tables.check(FLAGS, locals(), command.default_values(run))
    if settings['workdir'] is None:
        raise UserError('--workdir is missing; pass the run directory that contains checkpoints/')
    folder = files.expand('workdir', settings['workdir']) / directory.CHECKPOINTS / (settings['replica_group'] or '')
    checkpoints = {path: verify_all(path) for path in checkpoint_manager.checkpoint_folders(folder)}
    if not checkpoints:
        raise UserError(
            f'{folder} contains no checkpoints; pass a run directory with checkpoints as --workdir, and correct '
            '--replica_group if it is set'
        )
    for path, rows in checkpoints.items():
        _show(path, rows)
    if settings['export'] is not None:
        _export(files.expand('export', settings['export']), checkpoints, settings)
    corrupt = [row for rows in checkpoints.values() for row in rows if row.error is not None]
    if corrupt:
        count = sum(map(len, checkpoints.values()))
        raise UserError(
            f'{len(corrupt)} of {count} checkpoints are corrupt, such as {corrupt[0].path} ({corrupt[0].error}); '
            'rerun the command of the run to resume from the newest valid checkpoint, with --overwrite if none is valid'
        )
    return [row for rows in checkpoints.values() for row in rows]


def verify_all(folder: Path) -> list[CheckpointRow]:
    """Returns the result of verifying the checksums of every checkpoint of a replica group, in ascending order of step.

    A corrupt checkpoint is returned with its `error`; it raises no exception.
    """
    manager, rows = CheckpointManager(folder, writes=False), []
    for step in manager.steps():
        path = manager.path(step)
        try:
            metadata, reason = manager.check(step), None
        except CorruptCheckpointError as error:
            metadata, reason = None, str(error)
        try:
            rows.append(CheckpointRow(path, _size(path), os.lstat(path).st_mtime, metadata, reason))
        except FileNotFoundError:
            continue  # a run in progress deletes its old checkpoints
    return rows


def _size(path: Path) -> int:
    """Returns the total size in bytes of all files below `path`; files that are deleted meanwhile are skipped."""
    size = 0
    for file in (os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names):
        with contextlib.suppress(OSError):
            size += os.lstat(file).st_size
    return size


def _show(folder: Path, rows: list[CheckpointRow]) -> None:
    """Prints the folder of a replica group, and a line for each checkpoint: step, size, time, status and metrics."""
    first = next((row.metadata for row in rows if row.metadata is not None), None)
    print(f'{folder}{os.sep}' + ('' if first is None else f'  run of {first.experiment}'))
    print('      step        size  saved             ')
    for path, size, saved, metadata, error in rows:
        when = datetime.fromtimestamp(saved).strftime('%Y-%m-%d %H:%M')
        status = f'corrupt: {error}'
        if metadata is not None:
            values = {name: 'not finite' if x is None else f'{x:.4g}' for name, x in metadata.metrics.items()}
            status = ', '.join(['valid', *(f'{name} {value}' for name, value in values.items())])
        print(f'{int(path.name):>10,}  {size / 1000:>7,.0f} kB  {when}  {status}')


def _export(target: Path, checkpoints: dict[Path, list[CheckpointRow]], settings: dict[str, Any]) -> None:
    """Writes the arrays of a checkpoint to `target`, an .npz file.

    If the run has several groups seeds_X_to_Y, the checkpoints of all are joined along the seed axis.

    Raises:
      UserError: `target` is invalid, there are groups of other names, or no checkpoint or no common step to export.
    """
    if target.suffix != '.npz':
        raise UserError(f'--export={target} must end in .npz')
    if len({_group(path)[0] for path in checkpoints}) > 1:
        tops = {path: next(top for top in path.parents if top.name == directory.CHECKPOINTS) for path in checkpoints}
        groups = ', '.join(sorted({str(_group(path)[0].relative_to(top)) for path, top in tops.items()}))
        raise UserError(
            f'--export={target} needs one replica group, but the run has several; pass one of these folders, or a '
            f'folder in it, as --replica_group: {groups}'
        )
    rows_to_export = [_select(path, rows, settings['step']) for path, rows in checkpoints.items()]
    if len({row.metadata.step for row in rows_to_export}) > 1:
        paths = ', '.join(f'{row.path}' for row in rows_to_export)
        raise UserError(
            f'the newest valid checkpoints of the replica groups are of different steps ({paths}); pass a step that '
            'all groups have as --step, or one of the groups as --replica_group'
        )
    group_arrays = [_arrays(row, settings['full_state']) for row in rows_to_export]
    arrays = {
        name: np.concatenate([group[name] for group in group_arrays]) if len(group_arrays) > 1 else x
        for name, x in group_arrays[0].items()
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        files.replace(target, lambda path: np.savez(path, **arrays))
    except OSError as error:
        raise UserError(f'--export={target} cannot be written: {error.strerror or error}; use another file') from error
    print(f'\n{target}: exported {len(arrays)} arrays of step {rows_to_export[0].metadata.step:,}')


def _select(folder: Path, rows: list[CheckpointRow], step: int | None) -> CheckpointRow:
    """Returns the newest valid checkpoint in `rows`, or the one at `step` if set; raises UserError if there is none."""
    valid = [row for row in rows if row.metadata is not None and step in (None, row.metadata.step)]
    if not valid:
        names = ', '.join(row.path.name for row in rows if row.metadata is not None) or 'none'
        raise UserError(
            f'{folder} has no valid checkpoint{"" if step is None else f" of --step={step}"}; the steps with a valid '
            f'checkpoint are: {names}'
        )
    return valid[-1]


def _arrays(row: CheckpointRow, full_state: bool) -> dict[str, np.ndarray]:
    """Returns {name: array} of a checkpoint, without padding replicas; only trained arrays unless `full_state`."""
    arrays, count = orbax_io.read_arrays(row.path), _group(row.path.parent)[1]
    selected = {name: x for name, x in arrays.items() if full_state or name.startswith(TRAINED)}
    return selected if count is None else {name: x[:count] for name, x in selected.items()}


def _group(folder: Path) -> tuple[Path, int | None]:
    """Returns the parent and the number of seeds of a folder seeds_X_to_Y; (folder, None) for any other name."""
    match = re.fullmatch(r'seeds_(\d+)_to_(\d+)', folder.name)
    return (folder, None) if match is None else (folder.parent, int(match[2]) - int(match[1]) + 1)


COMMAND = Command('checkpoint', __doc__, run, FlagTable(FLAGS, command.default_values(run)))
main = COMMAND.main
