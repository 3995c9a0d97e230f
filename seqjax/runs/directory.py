"""The run directory: its files, its summary, and the check that it belongs to the run."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from seqjax import files as seqjax_files
from seqjax.errors import UserError
from seqjax.runs import lock, multihost
from seqjax.runs.append_log import AppendLog

METRICS, SUMMARY, CURVE, REPLICAS, CHECKPOINTS = (
    'metrics.csv',
    'summary.json',
    'curve.png',
    'replicas.npz',
    'checkpoints',
)
FILES = (METRICS, SUMMARY, CURVE, REPLICAS)  # files of a run, without its checkpoints
METADATA = 'about.json'  # file in every checkpoint
CHECKSUM = 'sha256'  # key in summary.json: checksum of the other keys
# Flags that do not change results: a run may be resumed with other values.
NON_SEMANTIC_FLAGS = (
    'workdir',
    'overwrite',
    'plot',
    'steps_per_call',
    'mesh',
    'stream_from_host',
    'checkpoint_every',
    'max_to_keep',
    'keep_best',
    'metric',
    'max_columns',
    'max_bytes',
)


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A run directory. If the path is None, no file is written."""

    path: Path | None
    experiment: str = ''  # name of the experiment
    names: Sequence[str] = FILES  # files of the run; other files are not touched
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # the run's flags
    steps: str = 'steps'  # flag of the number of training steps, which a later session may increase

    @property
    def writes(self) -> bool:
        """True if this process writes the files."""
        return self.path is not None and multihost.is_process0()

    def file(self, name: str) -> Path:
        """Returns the path of the file `name` in the directory."""
        return self.path / name

    def has(self, name: str) -> bool:
        """Returns False if the file `name` does not exist, and True if it exists or cannot be checked."""
        try:
            os.lstat(self.file(name))
        except FileNotFoundError:
            return False
        except OSError:  # opening the file reports the error
            return True
        return True

    def append_log(self, place: str, name: str) -> AppendLog:
        """Returns the append-only log checkpoints/PLACE/NAME; it is a no-op unless this process writes the files."""
        return AppendLog(self.path / CHECKPOINTS / place / name if self.writes else None)

    def metrics_log(self, header: str) -> AppendLog:
        """Returns metrics.csv as an append-only log; it is a no-op unless this process writes the files."""
        return AppendLog(self.path / METRICS if self.writes else None, header)

    def files(self) -> list[Path]:
        """Returns the paths of the files `names` and of the folder of checkpoints, if they exist."""
        return [file for name in (*self.names, CHECKPOINTS) if os.path.lexists(file := self.file(name))]

    def listing(self) -> str:
        """Returns a line of text with the directory and the files of the run."""
        names = sorted(file.name + (os.sep if file.is_dir() else '') for file in self.files())
        return f'results: {self.path}{os.sep} {" ".join(names)}'

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """Context manager that raises UserError if values of summary.json are invalid; a no-op without a path."""
        return contextlib.nullcontext() if self.path is None else seqjax_files.reading(self.file(SUMMARY))

    def write(self, name: str, write: Callable[[Path], Any]) -> None:
        """Writes the file `name` atomically by `write`, a function of a path, if this process writes the files."""
        if self.writes:
            target = self.file(name)
            with seqjax_files.writing(target):
                seqjax_files.replace(target, write)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes summary.json with its checksum."""
        summary = json.loads(json.dumps(summary, allow_nan=False))
        summary.pop(CHECKSUM, None)

        def write(path):
            text = json.dumps(summary | {CHECKSUM: checksum(summary)}, indent=2, allow_nan=False)
            path.write_text(text + '\n', encoding='utf-8')

        self.write(SUMMARY, write)

    def clear(self) -> None:
        """Deletes the files `names` and the checkpoints; other files are kept."""
        for file in self.files():
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            else:
                file.unlink()

    def check_same_run(self, experiment: str, settings: dict[str, Any]) -> None:
        """Raises UserError if the run in the directory is another experiment, or another flag changes its results.

        Args:
          experiment: name of the experiment of the run in the directory.
          settings: flags of the run in the directory; NON_SEMANTIC_FLAGS and the number of steps may differ.
        """
        if experiment != self.experiment:
            raise UserError(
                f'{self.path} contains a run of {experiment}, and this is a run of {self.experiment}; '
                'choose another --workdir, or use --overwrite to replace it'
            )
        for name in sorted(settings.keys() | self.settings.keys()):
            old, new = settings.get(name), self.settings.get(name)
            is_step_count = name == self.steps and isinstance(old, int) and isinstance(new, int)
            if name in NON_SEMANTIC_FLAGS or is_step_count or old == new:
                continue
            before, now = (f'without --{name}' if x is None else f'with --{name}={x}' for x in (old, new))
            raise UserError(
                f'{self.path} contains a run {before}, and this run is {now}; '
                'choose another --workdir, or use --overwrite to replace it'
            )

    def check_steps(self, steps_taken: int) -> None:
        """Raises UserError if the run in the directory has already taken more steps than the flag of steps allows."""
        steps = self.settings.get(self.steps)
        if steps is not None and steps < steps_taken:
            raise UserError(
                f'{self.path} contains a run that has taken {steps_taken:,} steps, more than --{self.steps}={steps}; '
                'choose another --workdir, or use --overwrite to replace it'
            )


@contextlib.contextmanager
def open_workdir(
    settings: dict[str, Any], experiment: str, *, names: Sequence[str] = FILES, steps: str = 'steps'
) -> Iterator[tuple[Workdir, dict[str, Any] | None]]:
    """Context manager that creates and locks a run directory.

    Args:
      settings: the run's flags, with JSON types. 'workdir' is the directory (None: no file is written); 'overwrite'
        removes the files of an earlier run.
      experiment: name of the experiment.
      names: files of the run.
      steps: name of the flag with the number of steps; it may be larger than in an earlier run.

    Yields:
      The directory, and the summary of a finished run with the same settings, or None.

    Raises:
      UserError: the directory cannot be written, is in use, or contains another run and `overwrite` is not set.
    """
    path, overwrite = settings['workdir'], settings['overwrite']
    if path is None:
        yield Workdir(None, experiment, names, settings, steps), None
        return
    folder = seqjax_files.expand('workdir', path)
    workdir = Workdir(folder, experiment, names, settings, steps)
    with contextlib.ExitStack() as stack:

        def prepare():
            with seqjax_files.writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                read_only = not overwrite and not lock.is_writable(folder) and bool(workdir.files())
                if not read_only:
                    stack.enter_context(lock.hold(folder))
                    if overwrite:
                        workdir.clear()
            try:
                return _finished(workdir)
            except OSError as error:
                raise UserError(
                    f'{error.filename or folder} cannot be read: {error.strerror}; choose another --workdir'
                ) from error

        yield workdir, multihost.broadcast_from_process0(prepare)


def _finished(workdir: Workdir) -> dict[str, Any] | None:
    """Returns the summary of a finished run with the same settings; None if there is none, or steps are left.

    Raises:
      UserError: the directory contains another run, or a finished one with more steps; or its summary.json is corrupt,
        or missing although there are other files of a run and no readable checkpoint.
    """
    if not workdir.files():
        return None
    if not workdir.file(SUMMARY).exists() and _has_checkpoints_of(workdir):
        return None
    summary = read_summary(workdir)
    workdir.check_same_run(summary['experiment'], summary['flags'])
    if not summary['finished']:
        return None
    old_steps = summary['flags'].get(workdir.steps)
    if old_steps == workdir.settings.get(workdir.steps):
        return summary
    workdir.check_steps(old_steps)
    return None


def _metadata_files(workdir: Workdir) -> Iterator[Path]:
    """Yields the metadata files of all checkpoints in readable folders."""
    for place, _, names in os.walk(workdir.file(CHECKPOINTS)):
        if METADATA in names:
            yield Path(place, METADATA)


def _has_checkpoints_of(workdir: Workdir) -> bool:
    """Returns True if there are checkpoints of this run; raises UserError if they are of another run."""
    for path in _metadata_files(workdir):
        try:
            metadata = seqjax_files.read_json(path)
            experiment, settings = str(metadata['experiment']), dict(metadata['flags'])
        except (OSError, ValueError, LookupError, TypeError):  # reported if it is restored
            continue
        workdir.check_same_run(experiment, settings)
        return True
    return False


def read_summary(workdir: Workdir) -> dict[str, Any]:
    """Returns the content of summary.json; raises UserError if it is missing, corrupt or was changed."""
    try:
        summary = seqjax_files.read_json(workdir.file(SUMMARY))
        stored_checksum = summary.pop(CHECKSUM, None)
        if not (
            isinstance(summary['flags'], dict)
            and isinstance(summary['finished'], bool)
            and isinstance(summary['experiment'], str)
        ):
            raise ValueError('"flags", "finished" or "experiment" has the wrong type')
        if stored_checksum is not None and stored_checksum != checksum(summary):
            raise ValueError('it was changed or is corrupt: its checksum differs')
    except seqjax_files.DAMAGED as error:
        has_checkpoints = any(_metadata_files(workdir))
        reason = getattr(error, 'strerror', None) or repr(error)
        raise UserError(
            f'{workdir.path} contains a run whose {SUMMARY} cannot be read ({reason}); '
            + (f'remove {SUMMARY} to resume from the checkpoints, ' if has_checkpoints else '')
            + 'choose another --workdir, or use --overwrite to replace it'
        ) from error
    return summary


def checksum(summary: dict[str, Any]) -> str:
    """Returns the sha256 of a summary as JSON, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()
