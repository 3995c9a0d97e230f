"""The checkpoints of a run: written by Orbax in the background, with a checksum of every file, verified before use.

    checkpoints/500/state/      the whole TrainState, written by Orbax
    checkpoints/500/about.json  the run's flags and versions, the offsets of its logs, its metrics, names and shapes
    checkpoints/500/checksums   sha256 of all of these, as sha256sum writes it; written last

A step appears under its number only when it is whole; `sha256sum -c checksums` in its folder verifies it, too.
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

STEP = '0|[1-9][0-9]*'  # the name of a checkpoint
DISK_MARGIN = 1.2  # the room that a save needs, against the bytes of its arrays


def checkpoint_folders(folder: Path) -> Iterator[Path]:
    """The folders at or below one that hold checkpoints, in the order of their names.

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
        raise UserError(f'{error.filename} cannot be read: {error.strerror}') from error


def _prepare_folder(folder: Path, size: int) -> None:
    """An empty folder for arrays of so many bytes; raises OSError where the disk has no room for them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if shutil.disk_usage(folder).free < DISK_MARGIN * size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _move(path: Path, target: Path) -> None:
    """Takes a step's name away; what bore the new one is removed."""
    if target.is_dir():
        shutil.rmtree(target)
    os.rename(path, target)


def _refusal(error: BaseException) -> str | None:
    """What the file system said, where an error of a save comes from there."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    code = re.search(r"os_error_code='(\d+)'", str(error))  # of tensorstore, which raises ValueError
    return os.strerror(int(code[1])) if code else None


def parse_metric(keep_best: str) -> tuple[int, str]:
    """The metric that the best checkpoint goes by, after -1 where its highest value is the best, and 1 for the lowest.

    >>> parse_metric('loss'), parse_metric('min:loss'), parse_metric('max:validation/accuracy')
    ((1, 'loss'), (1, 'loss'), (-1, 'validation/accuracy'))
    """
    return (-1 if keep_best.startswith('max:') else 1), keep_best.removeprefix('max:').removeprefix('min:')


class PendingSave(NamedTuple):
    """A save that goes on in the background."""

    step: int
    future: Future[None]


class CheckpointManager:
    """The checkpoints of one run, by step, in one folder.

    Args:
      folder: made by the first save.
      max_to_keep: how many of the newest stay.
      keep_best: a metric, see `parse_metric`; the checkpoint with its best value stays, too.
      writes: whether the folder is ours to change; else nothing in it is touched.
    """

    def __init__(self, folder: Path, *, max_to_keep: int = 2, keep_best: str | None = None, writes: bool = True):
        self.folder, self.max_to_keep = folder, max_to_keep
        self.sign, self.keep_best = (1, None) if keep_best is None else parse_metric(keep_best)
        self.last: int | None = None  # the step that was saved or restored last
        self.orbax, self.thread, self.pending = None, None, None
        self.quiet = contextlib.ExitStack()  # from the start of a save until nothing of it goes on
        if writes and multihost.is_process0() and os.path.isdir(folder):
            for path in folder.glob('.*-*'):  # left by a process that died
                shutil.rmtree(path, ignore_errors=True)

    def steps(self) -> list[int]:
        """All that bear a step's name, sound or not, in ascending order.

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
        return self.folder / str(step)

    def check(self, step: int) -> CheckpointMetadata:
        """What a step says of itself; raises Unsound where anything is wrong with it."""
        metadata = manifest.verify_manifest(self.path(step))
        if metadata.step != step:
            raise CorruptCheckpointError(f'it is the checkpoint of step {metadata.step:,}')
        return metadata

    def restore(
        self, like: TrainState, fault: Callable[[CheckpointMetadata], str | None]
    ) -> tuple[TrainState, CheckpointMetadata] | None:
        """The newest sound step, see `read_state`; None where there is no checkpoint at all.

        Steps that are not sound are named in a warning, and set aside where a newer save may take their place.

        Args:
          like: the structure of the TrainState, with shapes and dtypes.
          fault: says in words why a step cannot be used for another reason; may raise UserError.

        Raises:
          UserError: no step is sound.
        """
        found = multihost.broadcast_from_process0(partial(self._newest, fault))
        if found is None:
            return None
        metadata = CheckpointMetadata(*found)
        self.last = metadata.step
        return orbax_io.read_state(self.path(metadata.step), metadata, like), metadata

    def _newest(self, fault: Callable[[CheckpointMetadata], str | None]) -> tuple[Any, ...] | None:
        """What the newest sound step says of itself; others are named and set aside."""
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
            told = '; '.join(f'step {step}: {reason}' for step, reason in skipped.items())
            raise UserError(f'no checkpoint in {self.folder} can be used ({told}); --overwrite begins anew')
        for other, reason in skipped.items():
            errors.warn(
                f'the checkpoint of step {other:,} in {self.folder} is skipped for that of step {step:,}: {reason}'
            )
            with files.writing(self.path(other)):
                _move(self.path(other), self.folder / f'corrupt-{other}')
        return tuple(metadata)

    def save(self, state: TrainState, metadata: CheckpointMetadata) -> None:
        """Begins to save; returns as soon as the arrays are copied.

        Raises:
          UserError: the disk refuses, now or at the save before.
        """
        self.wait()
        if metadata.step == self.last:
            return
        unfinished, plain = self.folder / f'.saving-{metadata.step}', manifest.to_orbax_tree(state)
        size = sum(x.nbytes for x in jax.tree.leaves(plain))
        with self._saving(metadata.step):
            multihost.broadcast_from_process0(lambda: _prepare_folder(unfinished, size))
            ocp = self.quiet.enter_context(orbax_io.quiet_orbax())
            if self.orbax is None:
                # Else its threads wait for minutes for a folder that cannot be made.
                options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
                self.orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), async_options=options)
                self.thread = ThreadPoolExecutor(1)
            self.orbax.save((unfinished / manifest.STATE).resolve(), args=ocp.args.PyTreeSave(plain))
            self.pending = PendingSave(metadata.step, self.thread.submit(self._finish, unfinished, metadata))

    def _finish(self, unfinished: Path, metadata: CheckpointMetadata) -> None:
        """Waits for Orbax, seals the step and gives it its name. In the background."""
        self.orbax.wait_until_finished()
        if multihost.is_process0():
            (unfinished / directory.METADATA).write_text(
                json.dumps(metadata._asdict(), indent=1, allow_nan=False), encoding='utf-8'
            )
            manifest.write_manifest(unfinished)
            os.rename(unfinished, self.path(metadata.step))
            files.sync(self.folder)
            self._prune()
        self.last = metadata.step

    @contextlib.contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """Turns what the disk refuses into a sentence."""
        try:
            yield
        except Exception as error:  # Orbax raises what tensorstore does, of many kinds
            reason = _refusal(error)
            if reason is None:
                raise
            with self.quiet:
                self._end_orbax(told=True)
                orbax_io.discard(error)
            kept = 'nothing is saved yet' if self.last is None else f'the run is kept up to step {self.last:,}'
            raise UserError(
                f'cannot save step {step:,} in {self.folder}: {reason}; {kept}: mend that, and the same command goes on'
            ) from error

    def raise_if_failed(self) -> None:
        """Raises UserError where a save has failed until now."""
        if self.pending is not None and self.pending.future.done():
            self.wait()

    def wait(self) -> None:
        """Returns when what was to be saved is; raises UserError where it could not be."""
        pending, self.pending = self.pending, None
        if pending is not None:
            with self._saving(pending.step):
                pending.future.result()
            self.quiet.close()

    def close(self) -> None:
        with self.quiet:
            try:
                self.wait()
            finally:
                self._end_orbax()

    def _end_orbax(self, told: bool = False) -> None:
        """Closes what a first save opened; a next one opens it anew.

        Args:
          told: a save has failed and that is told: Orbax, whose threads may each have met the same full disk, raises
            in turn what the others have seen.
        """
        if self.orbax is not None:
            self.thread.shutdown()  # which may still use Orbax
            orbax, self.orbax = self.orbax, None
            try:
                orbax.close()
            except Exception as error:  # of many kinds, as in a save
                if not told or _refusal(error) is None:
                    raise

    def _prune(self) -> None:
        steps = self.steps()
        kept = {*steps[-self.max_to_keep :], self.best_step()}
        for step in steps:
            if step not in kept:
                _move(self.path(step), gone := self.folder / f'.gone-{step}')
                shutil.rmtree(gone)

    def best_step(self) -> int | None:
        """The step with the best value of the metric; None where none has a finite one."""
        values = {step: value for step in self.steps() if (value := self._value(step)) is not None}
        return min(values, key=lambda step: self.sign * values[step]) if values else None

    def _value(self, step: int) -> float | None:
        if self.keep_best is None:
            return None
        try:
            return manifest.parse_metadata(files.read_json(self.path(step) / directory.METADATA)).metrics.get(
                self.keep_best
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError):  # not sound: nobody's best
            return None
