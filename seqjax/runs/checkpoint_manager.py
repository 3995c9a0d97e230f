"""The checkpoints of a run: written by Orbax in the background, with a checksum of every file, verified before use.

    checkpoints/500/state/      the whole TrainState, written by Orbax
    checkpoints/500/about.json  the run's flags and versions, the offsets of its logs, its metrics; shapes of arrays
    checkpoints/500/checksums   sha256 of each of these files, in the format of sha256sum; written last

A folder has a temporary name until it is complete. `sha256sum -c checksums` verifies it as well.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from seqjax import errors, files
from seqjax.errors import UserError
from seqjax.runs import directory, manifest, multihost, orbax_io
from seqjax.runs.manifest import CheckpointMetadata, CorruptCheckpointError
from seqjax.types import TrainState

STEP = '0|[1-9][0-9]*'  # pattern of the name of a checkpoint's folder: the number of training steps
DISK_MARGIN = 1.2  # free disk space that a save needs, relative to the bytes of its arrays


def checkpoint_folders(folder: Path) -> Iterator[Path]:
    """Yields each folder, at or below `folder`, that directly contains checkpoints, in the order of their names.

    Raises:
      UserError: a folder cannot be listed.
    """
    for path, below, _ in os.walk(folder, onerror=_refuse_unreadable):
        if any(re.fullmatch(STEP, name) for name in below):
            yield Path(path)
        below[:] = [name for name in below if not re.fullmatch(rf'\..*|corrupt-.*|{STEP}', name)]
        below.sort(key=lambda name: [int(x) if x.isdigit() else x for x in re.split(r'(\d+)', name)])


def _refuse_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise UserError(f'{error.filename} cannot be read: {error.strerror}; check its permissions') from error


def _prepare_folder(folder: Path, size: int) -> None:
    """Creates an empty folder, replacing an old one; raises OSError if the disk has no space for `size` bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if shutil.disk_usage(folder).free < DISK_MARGIN * size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _move(path: Path, target: Path) -> None:
    """Renames the folder `path` to `target`, after deleting the folder `target` if it exists."""
    if target.is_dir():
        shutil.rmtree(target)
    os.rename(path, target)


def _os_error_message(error: BaseException) -> str | None:
    """Returns the message of a file system error, or None for another kind of error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    code = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore raises ValueError
    return os.strerror(int(code[1])) if code else None


def parse_metric(keep_best: str) -> tuple[int, str]:
    """Returns the sign (1 if the lowest value is the best, -1 if the highest is) and the name of a metric.

    >>> parse_metric('loss'), parse_metric('min:loss'), parse_metric('max:validation/accuracy')
    ((1, 'loss'), (1, 'loss'), (-1, 'validation/accuracy'))
    """
    return (-1 if keep_best.startswith('max:') else 1), keep_best.removeprefix('max:').removeprefix('min:')


class PendingSave(NamedTuple):
    """A save that runs in the background."""

    step: int
    future: Future[None]


class CheckpointManager:
    """Saves and restores the checkpoints of a replica group, in one folder.

    Args:
      folder: folder of the checkpoints; the first save creates it.
      max_to_keep: number of newest checkpoints that are kept.
      keep_best: metric whose best checkpoint is kept as well, see `parse_metric`.
      writes: True to delete unfinished saves of killed processes at the start; False to read checkpoints only.
    """

    def __init__(self, folder: Path, *, max_to_keep: int = 2, keep_best: str | None = None, writes: bool = True):
        self.folder, self.max_to_keep = folder, max_to_keep
        self.sign, self.keep_best = (1, None) if keep_best is None else parse_metric(keep_best)
        self.last_step: int | None = None  # of the checkpoint that was saved or restored last
        self.orbax, self.thread, self.pending = None, None, None
        self.quiet = contextlib.ExitStack()  # silences Orbax from the start of a save to its end
        if writes and multihost.is_process0() and os.path.isdir(folder):
            for path in folder.glob('.*-*'):  # left by a process that was killed
                shutil.rmtree(path, ignore_errors=True)

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, valid or corrupt, in ascending order.

        Raises:
          UserError: the folder cannot be listed.
        """
        try:
            names = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f'{self.folder} cannot be read: {error.strerror}; choose another --workdir') from error
        return sorted(int(name) for name in names if re.fullmatch(STEP, name))

    def path(self, step: int) -> Path:
        """Returns the folder of the checkpoint of `step`."""
        return self.folder / str(step)

    def check(self, step: int) -> CheckpointMetadata:
        """Verifies the checksums and the step of a checkpoint, and returns its metadata.

        Raises:
          CorruptCheckpointError: a file is missing or corrupt, or the metadata have another step.
        """
        metadata = manifest.verify_manifest(self.path(step))
        if metadata.step != step:
            raise CorruptCheckpointError(f'its metadata have step {metadata.step:,} instead of {step:,}')
        return metadata

    def restore(
        self, like: TrainState, fault: Callable[[CheckpointMetadata], str | None]
    ) -> tuple[TrainState, CheckpointMetadata] | None:
        """Restores the newest valid checkpoint; returns None if there is no checkpoint.

        Newer checkpoints that are not valid are skipped with a warning, and renamed to corrupt-STEP.

        Args:
          like: the structure of the TrainState, with shapes and dtypes.
          fault: returns a reason, other than a checksum, not to use a checkpoint, or None; may raise UserError.

        Returns:
          The state as `orbax_io.read_state` reads it, and its metadata.

        Raises:
          UserError: there are checkpoints, but none is valid; or the newest valid one is of another model.
        """
        newest = multihost.broadcast_from_process0(partial(self._newest, fault))
        if newest is None:
            return None
        metadata = CheckpointMetadata(*newest)
        self.last_step = metadata.step
        return orbax_io.read_state(self.path(metadata.step), metadata, like), metadata

    def _newest(self, fault: Callable[[CheckpointMetadata], str | None]) -> tuple[Any, ...] | None:
        """Returns the metadata of the newest valid checkpoint as a tuple, and renames newer, invalid ones."""
        skipped = {}
        for step in reversed(self.steps()):
            try:
                metadata = self.check(step)
                reason = fault(metadata)
            except CorruptCheckpointError as error:
                reason = str(error)
            if reason is None:
                break
            skipped[step] = reason
        else:
            if not skipped:
                return None
            reasons = '; '.join(f'step {step}: {reason}' for step, reason in skipped.items())
            raise UserError(f'no checkpoint in {self.folder} is valid ({reasons}); use --overwrite to start again')
        for other, reason in skipped.items():
            errors.warn(
                f'the checkpoint of step {other:,} in {self.folder} is not valid, and is renamed to corrupt-{other}; '
                f'step {step:,} is restored instead: {reason}'
            )
            with files.writing(self.path(other)):
                _move(self.path(other), self.folder / f'corrupt-{other}')
        return tuple(metadata)

    def save(self, state: TrainState, metadata: CheckpointMetadata) -> None:
        """Starts a save in the background, unless the step is saved already; returns when the arrays are copied.

        Raises:
          UserError: the files of this save, or of the one before, cannot be written.
        """
        self.wait()
        if metadata.step == self.last_step:
            return
        unfinished, tree = self.folder / f'.saving-{metadata.step}', manifest.to_orbax_tree(state)
        size = sum(x.nbytes for x in jax.tree.leaves(tree))
        with self._user_errors(metadata.step):
            multihost.broadcast_from_process0(lambda: _prepare_folder(unfinished, size))
            ocp = self.quiet.enter_context(orbax_io.quiet_orbax())
            if self.orbax is None:
                # Otherwise its threads wait for minutes for a folder that cannot be created.
                options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
                self.orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), async_options=options)
                self.thread = ThreadPoolExecutor(1)
            self.orbax.save((unfinished / manifest.STATE).resolve(), args=ocp.args.PyTreeSave(tree))
            self.pending = PendingSave(metadata.step, self.thread.submit(self._finish, unfinished, metadata))

    def _finish(self, unfinished: Path, metadata: CheckpointMetadata) -> None:
        """Waits for Orbax, writes metadata and manifest, renames the folder, and deletes old checkpoints.

        It runs in the background thread.
        """
        self.orbax.wait_until_finished()
        if multihost.is_process0():
            (unfinished / directory.METADATA).write_text(
                json.dumps(metadata._asdict(), indent=1, allow_nan=False), encoding='utf-8'
            )
            manifest.write_manifest(unfinished)
            os.rename(unfinished, self.path(metadata.step))
            files.sync(self.folder)
            self._prune()
        self.last_step = metadata.step

    @contextlib.contextmanager
    def _user_errors(self, step: int) -> Iterator[None]:
        """Context manager for the save of `step`: closes Orbax and raises UserError after a file system error."""
        try:
            yield
        except Exception as error:  # Orbax raises tensorstore's exceptions, of many types
            reason = _os_error_message(error)
            if reason is None:
                raise
            with self.quiet:
                self._close_orbax(has_failed=True)
                orbax_io.discard(error)
            saved = 'nothing is saved yet' if self.last_step is None else f'step {self.last_step:,} is saved'
            raise UserError(
                f'cannot save step {step:,} in {self.folder}: {reason} ({saved}); fix the cause and run the same '
                'command to resume'
            ) from error

    def raise_if_failed(self) -> None:
        """Raises UserError if the save in the background has already failed; does not wait for it."""
        if self.pending is not None and self.pending.future.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the save in the background; raises UserError if it failed."""
        pending, self.pending = self.pending, None
        if pending is not None:
            with self._user_errors(pending.step):
                pending.future.result()
            self.quiet.close()

    def close(self) -> None:
        """Waits for the save in the background, then closes Orbax and its threads; raises UserError if it failed."""
        with self.quiet:
            try:
                self.wait()
            finally:
                self._close_orbax()

    def _close_orbax(self, has_failed: bool = False) -> None:
        """Closes Orbax and the thread of saves; the next save opens them again.

        Args:
          has_failed: a save has failed, so file system errors of Orbax's other threads are ignored.
        """
        if self.orbax is not None:
            self.thread.shutdown()  # its task may still use Orbax
            orbax, self.orbax = self.orbax, None
            try:
                orbax.close()
            except Exception as error:  # of many types, as in a save
                if not has_failed or _os_error_message(error) is None:
                    raise

    def _prune(self) -> None:
        steps = self.steps()
        steps_to_keep = {*steps[-self.max_to_keep :], self.best_step()}
        for step in steps:
            if step not in steps_to_keep:
                _move(self.path(step), gone := self.folder / f'.gone-{step}')
                shutil.rmtree(gone)

    def best_step(self) -> int | None:
        """Returns the step of the checkpoint with the best value of metric `keep_best`; None if none has a value."""
        values = {step: value for step in self.steps() if (value := self._value(step)) is not None}
        return min(values, key=lambda step: self.sign * values[step]) if values else None

    def _value(self, step: int) -> float | None:
        if self.keep_best is None:
            return None
        try:
            return manifest.parse_metadata(files.read_json(self.path(step) / directory.METADATA)).metrics.get(
                self.keep_best
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError):  # a corrupt checkpoint is not the best
            return None
