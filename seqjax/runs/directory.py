"""The run directory: its files, its summary, and which run may use it."""

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
FILES = (METRICS, SUMMARY, CURVE, REPLICAS)  # what a run leaves in its folder, beside its checkpoints
METADATA = 'about.json'  # in every checkpoint
CHECKSUM = 'sha256'  # in summary.json, of all else there
# Settings that change what is shown, kept or done where, but no number: a run may go on with others of them.
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
    """The folder of a run. With path None nothing is kept."""

    path: Path | None
    experiment: str = ''  # what is run
    names: Sequence[str] = FILES  # the files that are ours; nothing else there is touched
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # the run's flags
    steps: str = 'steps'  # the flag that says how many steps there are: it may grow

    @property
    def writes(self) -> bool:
        """Whether it is for this process to write."""
        return self.path is not None and multihost.is_process0()

    def file(self, name: str) -> Path:
        return self.path / name

    def has(self, name: str) -> bool:
        """Returns False if there is surely no such file."""
        try:
            os.lstat(self.file(name))
        except FileNotFoundError:
            return False
        except OSError:  # to open it says what is wrong
            return True
        return True

    def append_log(self, place: str, name: str) -> AppendLog:
        """One that is kept beside the checkpoints at `place`."""
        return AppendLog(self.path / CHECKPOINTS / place / name if self.writes else None)

    def metrics_log(self, header: str) -> AppendLog:
        """metrics.csv, to which rows are added."""
        return AppendLog(self.path / METRICS if self.writes else None, header)

    def files(self) -> list[Path]:
        """Those that runs leave here."""
        return [file for name in (*self.names, CHECKPOINTS) if os.path.lexists(file := self.file(name))]

    def listing(self) -> str:
        """For a person: the folder, and what runs left there."""
        names = sorted(file.name + (os.sep if file.is_dir() else '') for file in self.files())
        return f'results: {self.path}{os.sep} {" ".join(names)}'

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """Within, what is wrong with the summary of a finished run becomes a sentence."""
        return contextlib.nullcontext() if self.path is None else seqjax_files.reading(self.file(SUMMARY))

    def write(self, name: str, write: Callable[[Path], Any]) -> None:
        """Has a file written whole, where it is for this process to write."""
        if self.writes:
            target = self.file(name)
            with seqjax_files.writing(target):
                seqjax_files.replace(target, write)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes summary.json with a checksum of all else that it holds."""
        summary = json.loads(json.dumps(summary, allow_nan=False))
        summary.pop(CHECKSUM, None)

        def write(path):
            text = json.dumps(summary | {CHECKSUM: checksum(summary)}, indent=2, allow_nan=False)
            path.write_text(text + '\n', encoding='utf-8')

        self.write(SUMMARY, write)

    def clear(self) -> None:
        """Takes away what runs left here."""
        for file in self.files():
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            else:
                file.unlink()

    def check_same_run(self, experiment: str, held: dict[str, Any]) -> None:
        """Raises UserError where a run with the settings `held` cannot go on, or be shown, as ours."""
        if experiment != self.experiment:
            raise UserError(
                f'{self.path} holds a run of {experiment}, and this one is of {self.experiment}; '
                'choose another --workdir, or --overwrite to replace it'
            )
        for name in sorted(held.keys() | self.settings.keys()):
            old, new = held.get(name), self.settings.get(name)
            fewer = name == self.steps and isinstance(old, int) and isinstance(new, int)
            if name in (*NON_SEMANTIC_FLAGS, *([self.steps] if fewer else [])) or old == new:
                continue
            before, now = (f'without --{name}' if x is None else f'with --{name}={x}' for x in (old, new))
            raise UserError(
                f'{self.path} holds a run {before}, and this one is {now}; '
                'choose another --workdir, or --overwrite to replace it'
            )

    def check_steps(self, taken: int) -> None:
        """Raises UserError where the run has taken more steps than it is now asked for."""
        asked = self.settings.get(self.steps)
        if asked is not None and asked < taken:
            raise UserError(
                f'{self.path} holds a run that has taken {taken:,} steps, and --{self.steps}={asked} asks for fewer; '
                'choose another --workdir, or --overwrite to replace it'
            )


@contextlib.contextmanager
def open_workdir(
    settings: dict[str, Any], experiment: str, *, names: Sequence[str] = FILES, steps: str = 'steps'
) -> Iterator[tuple[Workdir, dict[str, Any] | None]]:
    """Makes the folder of a run ready, and keeps others from writing there.

    Args:
      settings: the run's flags, as JSON would give them back. 'workdir' is the folder, or None to keep nothing;
        'overwrite' says whether files of ours that are there may be removed.
      experiment, names: what is run, and the files that it leaves.
      steps: the flag that says how many steps the run has; a run that is held may be asked for more.

    Yields:
      The folder, and the summary of a finished run with the same settings if it holds one.

    Raises:
      UserError: it cannot be written, is in use, or holds something else and `overwrite` is not set.
    """
    path, overwrite = settings['workdir'], settings['overwrite']
    if path is None:
        yield Workdir(None, experiment, names, settings, steps), None
        return
    folder = seqjax_files.expand('workdir', path)
    workdir = Workdir(folder, experiment, names, settings, steps)
    with contextlib.ExitStack() as stack:

        def take():
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

        yield workdir, multihost.broadcast_from_process0(take)


def _finished(workdir: Workdir) -> dict[str, Any] | None:
    """The summary of a finished run with our settings; None where there is something to do."""
    if not workdir.files():
        return None
    if not workdir.file(SUMMARY).exists() and _has_checkpoints_of(workdir):
        return None
    summary = read_summary(workdir)
    workdir.check_same_run(summary['experiment'], summary['flags'])
    if not summary['finished']:
        return None
    had, asked = summary['flags'].get(workdir.steps), workdir.settings.get(workdir.steps)
    if had == asked:
        return summary
    workdir.check_steps(had)
    return None


def _metadata_files(workdir: Workdir) -> Iterator[Path]:
    """What checkpoints say of themselves, of those that can be listed."""
    for place, _, names in os.walk(workdir.file(CHECKPOINTS)):
        if METADATA in names:
            yield Path(place, METADATA)


def _has_checkpoints_of(workdir: Workdir) -> bool:
    """Whether there are checkpoints of this run, for each of them knows whose it is; raises UserError for another's."""
    for path in _metadata_files(workdir):
        try:
            about = seqjax_files.read_json(path)
            held = str(about['experiment']), dict(about['flags'])
        except (OSError, ValueError, LookupError, TypeError):  # a damaged one is told when it is to be used
            continue
        workdir.check_same_run(*held)
        return True
    return False


def read_summary(workdir: Workdir) -> dict[str, Any]:
    """The summary of the run that a folder holds; raises UserError where it cannot be read, or was changed."""
    try:
        summary = seqjax_files.read_json(workdir.file(SUMMARY))
        held = summary.pop(CHECKSUM, None)
        if not (
            isinstance(summary['flags'], dict)
            and isinstance(summary['finished'], bool)
            and isinstance(summary['experiment'], str)
        ):
            raise ValueError('its flags, finished or experiment are of another type')
        if held is not None and held != checksum(summary):
            raise ValueError('it was changed or is damaged: its checksum differs')
    except seqjax_files.DAMAGED as error:
        saved = any(_metadata_files(workdir))
        reason = getattr(error, 'strerror', None) or repr(error)
        raise UserError(
            f'{workdir.path} holds files whose {SUMMARY} cannot be read ({reason}); '
            + (f'remove {SUMMARY} to go on from the checkpoints, ' if saved else '')
            + 'choose another --workdir, or --overwrite to replace them'
        ) from error
    return summary


def checksum(summary: dict[str, Any]) -> str:
    """Returns the sha256 of a summary as JSON gives it, whatever the order of its names."""
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()
