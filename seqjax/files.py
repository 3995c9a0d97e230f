"""The folder of a run: who may write there, whose run it holds, and files that are never left half written."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import hashlib
import json
import math
import os
import shutil
import socket
import stat
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqjax import processes

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None

METRICS, SUMMARY, CURVE, REPLICAS, CHECKPOINTS = (
    'metrics.csv',
    'summary.json',
    'curve.png',
    'replicas.npz',
    'checkpoints',
)
FILES = (METRICS, SUMMARY, CURVE, REPLICAS)  # what a run leaves in its folder, beside its checkpoints
LOCK = '.lock'
ABOUT = 'about.json'  # in every checkpoint
CHECKSUM = 'sha256'  # in summary.json, of all else there
# Settings that change what is shown, kept or done where, but no number: a run may go on with others of them.
NO_NUMBER = (
    'workdir',
    'overwrite',
    'picture',
    'chunk',
    'mesh',
    'on_host',
    'checkpoint_every',
    'keep',
    'best',
    'metric',
    'max_columns',
    'max_bytes',
)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system that has none


class UserError(ValueError):
    """What a person can mend; its message is one sentence that names the thing, the value and the remedy."""


def warn(sentence: str) -> None:
    """For a person, while a run goes on."""
    print(f'warning: {sentence}', file=sys.stderr, flush=True)


# --- files -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the file system refuses into a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror or error}; choose another --workdir') from error


# What is raised by readers of JSON, CSV and .npz files that are damaged.
DAMAGED = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, ArithmeticError, RuntimeError),
    *(csv.Error, zlib.error, zipfile.BadZipFile, tokenize.TokenError, MemoryError),
)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what is wrong with a file of a finished run into a sentence."""
    try:
        yield
    except UserError:
        raise
    except DAMAGED as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{path} of a finished run cannot be read ({reason}); --overwrite trains again') from error


NO_FILE = ((stat.S_ISFIFO, 'a pipe'), (stat.S_ISSOCK, 'a socket'), (stat.S_ISCHR, 'a device'))


def open_file(path: Path, mode: str = 'rb', **options: Any) -> Any:
    """Opens an ordinary file for reading, and never waits for a pipe or a device.

    Raises:
      OSError: it cannot be opened, or is not an ordinary file; `strerror` says why.
    """
    require_file(path)
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | getattr(os, 'O_NONBLOCK', 0)), **options)


def require_file(path: Path) -> int:
    """Returns the size of an ordinary file in bytes; raises OSError if it is something else."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for holds, name in NO_FILE if holds(status.st_mode)), 'a device')
        raise OSError(errno.EINVAL, f'it is {kind}, not a file', str(path))
    return status.st_size


@contextlib.contextmanager
def open_data(path: Path, mode: str = 'rb', **options: Any) -> Iterator[Any]:
    """Opens a file of data; raises UserError if it cannot be opened or read."""
    try:
        with open_file(path, mode, **options) as file:
            yield file
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror or error}; name another file') from error


def sha256(path: Path) -> str:
    """Returns the checksum of a file; raises OSError if it cannot be read."""
    with open_file(path) as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def read_json(path: Path) -> Any:
    with open_file(path, 'r', encoding='utf-8') as file:
        return json.load(file)


def expand(flag: str, path: str) -> Path:
    """The path that a flag names, with ~ for the home of its owner."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UserError(f'--{flag}={path} is in the home of somebody who is not here; choose another') from error


def replace(target: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file beside `target` and moves it there, so that `target` is never half written."""
    temporary = target.with_name(f'.{os.getpid()}-{target.name}')  # keeps the suffix, by which writers choose
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Returns when what was written to a file or a folder has reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Mark(NamedTuple):
    """How far a journal was written."""

    length: int  # bytes
    sha256: str  # of these bytes


class Journal:
    """A file that only grows; a checkpoint keeps its mark, and a run that goes on cuts off what came after it.

    Without a path nothing is kept.
    """

    def __init__(self, path: Path | None, header: str = ''):
        self.path, self.header, self.file = path, header.encode(), None
        self.digest, self.length = hashlib.sha256(), 0

    def fault(self, mark: Mark) -> str | None:
        """What is wrong with the part of the file that the mark describes, in words; None where all is there."""
        try:
            with open_file(self.path) as file:
                held = file.read(mark.length)
        except OSError as error:
            return f'{self.path} cannot be read ({error.strerror})'
        if len(held) < mark.length:
            return f'{self.path} has lost rows'
        return None if hashlib.sha256(held).hexdigest() == mark.sha256 else f'{self.path} was changed'

    def begin(self, mark: Mark | None) -> bytes:
        """Opens the file for more: cut off at the mark, or without one begun anew. Gives what it holds then."""
        if self.path is None:
            return b''
        self.close()
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_fifo() or self.path.is_socket():  # to open it would wait for whoever reads it
                raise OSError(errno.EINVAL, 'it is a pipe or a socket, not a file', str(self.path))
            # No buffer whose rest would be refused again when it closes.
            self.file = self.path.open('wb' if mark is None else 'rb+', buffering=0)
            held = b'' if mark is None else self.file.read(mark.length)
            self.digest, self.length = hashlib.sha256(held), len(held)
            if mark is None:
                self.append(self.header)
            else:
                self.file.truncate(mark.length)
        return held[len(self.header) :]

    def append(self, data: bytes) -> None:
        if self.path is None:
            return
        self.digest.update(data)
        self.length += len(data)
        with writing(self.path):
            while data:  # a disk that is nearly full takes a part
                data = data[self.file.write(data) :]

    def mark(self) -> Mark:
        """After this all that was written until now is on the disk."""
        if self.path is not None and self.path.is_file():  # not a device
            with writing(self.path):
                os.fsync(self.file.fileno())
        return Mark(self.length, self.digest.hexdigest())

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def format_whole_numbers(rows: Iterable[Sequence[int]]) -> bytes:
    """Lines for a journal, read back by `whole_numbers`."""
    return ''.join(','.join(map(str, row)) + '\n' for row in rows).encode()


def whole_numbers(lines: bytes) -> list[list[int]]:
    """
    >>> whole_numbers(format_whole_numbers([(1, 2), (3, 4)]))
    [[1, 2], [3, 4]]
    """
    return [[int(word) for word in line.split(',')] for line in lines.decode().splitlines()]


# --- the folder ------------------------------------------------------------------------------------


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
        return self.path is not None and processes.is_first()

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

    def journal(self, place: str, name: str) -> Journal:
        """One that is kept beside the checkpoints at `place`."""
        return Journal(self.path / CHECKPOINTS / place / name if self.writes else None)

    def log(self, header: str) -> Journal:
        """metrics.csv, to which rows are added."""
        return Journal(self.path / METRICS if self.writes else None, header)

    def files(self) -> list[Path]:
        """Those that runs leave here."""
        return [file for name in (*self.names, CHECKPOINTS) if os.path.lexists(file := self.file(name))]

    def listing(self) -> str:
        """For a person: the folder, and what runs left there."""
        names = sorted(file.name + (os.sep if file.is_dir() else '') for file in self.files())
        return f'results: {self.path}{os.sep} {" ".join(names)}'

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """Within, what is wrong with the summary of a finished run becomes a sentence."""
        return contextlib.nullcontext() if self.path is None else reading(self.file(SUMMARY))

    def write(self, name: str, write: Callable[[Path], Any]) -> None:
        """Has a file written whole, where it is for this process to write."""
        if self.writes:
            target = self.file(name)
            with writing(target):
                replace(target, write)

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

    def refuse_another_run(self, experiment: str, held: dict[str, Any]) -> None:
        """Raises UserError where a run with the settings `held` cannot go on, or be shown, as ours."""
        if experiment != self.experiment:
            raise UserError(
                f'{self.path} holds a run of {experiment}, and this one is of {self.experiment}; '
                'choose another --workdir, or --overwrite to replace it'
            )
        for name in sorted(held.keys() | self.settings.keys()):
            old, new = held.get(name), self.settings.get(name)
            fewer = name == self.steps and isinstance(old, int) and isinstance(new, int)
            if name in (*NO_NUMBER, *([self.steps] if fewer else [])) or old == new:
                continue
            before, now = (f'without --{name}' if x is None else f'with --{name}={x}' for x in (old, new))
            raise UserError(
                f'{self.path} holds a run {before}, and this one is {now}; '
                'choose another --workdir, or --overwrite to replace it'
            )

    def refuse_fewer_steps(self, taken: int) -> None:
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
      experiment: what is run.
      names: the files that the experiment leaves.
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
    folder = expand('workdir', path)
    workdir = Workdir(folder, experiment, names, settings, steps)
    with contextlib.ExitStack() as stack:

        def take():
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                read_only = not overwrite and not _writable(folder) and bool(workdir.files())
                if not read_only:
                    stack.enter_context(_lock(folder))
                    if overwrite:
                        workdir.clear()
            try:
                return _finished(workdir)
            except OSError as error:
                raise UserError(
                    f'{error.filename or folder} cannot be read: {error.strerror}; choose another --workdir'
                ) from error

        yield workdir, processes.share(take)


def _writable(folder: Path) -> bool:
    """Whether a file can be made there: asked before the training, not after it."""
    probe = folder / f'.{os.getpid()}-probe'
    try:
        probe.write_bytes(b'')
        probe.unlink()
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return False
        raise
    return True


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds the folder. The system lets go of it when the process dies, however that happens."""
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            held = _take(handle, path, folder)
        except BaseException:
            os.close(handle)
            raise
        if not held or _is_still(path, handle):
            break
        os.close(handle)  # whoever held it took it away just now
    try:
        os.truncate(handle, 0)
        os.write(handle, f'process {os.getpid()} on {socket.gethostname()}'.encode())
        yield
    finally:
        with contextlib.suppress(OSError):  # somebody removed the folder: there is nothing left to let go of
            path.unlink()
        os.close(handle)


def _take(handle: int, path: Path, folder: Path) -> bool:
    """Whether the lock could be had; False where the file system has none.

    Raises:
      UserError: another process holds it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        who = os.pread(handle, 200, 0).decode(errors='replace') or 'another process'
        raise UserError(f'{folder} is being written by {who}; wait for it, or choose another --workdir') from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warn(f'the file system of {folder} has no locks: take care that no other run writes there')
        return False
    return True


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _finished(workdir: Workdir) -> dict[str, Any] | None:
    """The summary of a finished run with our settings; None where there is something to do."""
    if not workdir.files():
        return None
    if not workdir.file(SUMMARY).exists() and _has_checkpoints_of(workdir):
        return None
    summary = read_summary(workdir)
    workdir.refuse_another_run(summary['experiment'], summary['flags'])
    if not summary['finished']:
        return None
    had, asked = summary['flags'].get(workdir.steps), workdir.settings.get(workdir.steps)
    if had == asked:
        return summary
    workdir.refuse_fewer_steps(had)
    return None


def _has_checkpoints_of(workdir: Workdir) -> bool:
    """Whether there are checkpoints of this run, for each of them knows whose it is; raises UserError for another's."""
    for path in workdir.file(CHECKPOINTS).rglob(ABOUT):
        try:
            about = read_json(path)
            held = str(about['experiment']), dict(about['flags'])
        except (OSError, ValueError, LookupError, TypeError):  # a damaged one is told when it is to be used
            continue
        workdir.refuse_another_run(*held)
        return True
    return False


def read_summary(workdir: Workdir) -> dict[str, Any]:
    """The summary of the run that a folder holds; raises UserError where it cannot be read, or was changed."""
    try:
        summary = read_json(workdir.file(SUMMARY))
        held = summary.pop(CHECKSUM, None)
        if not (
            isinstance(summary['flags'], dict)
            and isinstance(summary['finished'], bool)
            and isinstance(summary['experiment'], str)
        ):
            raise ValueError('its flags, finished or experiment are of another type')
        if held is not None and held != checksum(summary):
            raise ValueError('it was changed or is damaged: its checksum differs')
    except DAMAGED as error:
        saved = any(workdir.file(CHECKPOINTS).rglob(ABOUT))
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


# --- what is kept in it ----------------------------------------------------------------------------


def read_losses(workdir: Workdir, steps: int, replicas: int | None) -> np.ndarray:
    """The losses of a finished run, [steps] or [R, steps]."""
    if replicas is not None:
        return read_replicas(workdir, 'loss', (replicas, steps))
    path = workdir.file(METRICS)
    with reading(path), open_file(path, 'r', newline='') as lines:
        return np.array([float(row['loss']) for row in csv.DictReader(lines)], np.float32).reshape(steps)


def read_replicas(workdir: Workdir, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One array of replicas.npz."""
    return read_arrays(workdir.file(REPLICAS), {name: (shape, None)})[name]


def write_replicas(workdir: Workdir, **arrays: np.ndarray) -> None:
    """replicas.npz: arrays with a leading axis R."""
    write_arrays(workdir, REPLICAS, **arrays)


def write_arrays(workdir: Workdir, name: str, **arrays: np.ndarray) -> None:
    """A file of arrays by name, as NumPy has it."""
    workdir.write(name, lambda path: np.savez(path, **arrays))


class Expected(NamedTuple):
    """What an array of a file must be."""

    shape: tuple[int | None, ...]  # None for an axis of any length
    dtype: Any  # None for any real number


def read_arrays(path: Path, expected: Mapping[str, Expected | tuple], others: bool = True) -> dict[str, np.ndarray]:
    """Arrays of an .npz file, whose names, shapes, dtypes and sizes are checked before any of them is read.

    Args:
      path: the file.
      expected: of each array that is read.
      others: whether the file may hold other arrays.

    Raises:
      UserError: it cannot be read, or an array is not as expected; the sentence names it.
    """
    with reading(path), open_file(path) as file, zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix('.npy'): info for info in archive.infolist()}
        if len(members) < len(archive.infolist()) or (not others and members.keys() - expected.keys()):
            raise ValueError('it holds arrays that are not those of the run')
        for name in expected:
            if name not in members:
                raise ValueError(f'it is of another run: there is no {name}')
        sizes = {name: _checked(archive, members[name], name, Expected(*want)) for name, want in expected.items()}
        return {name: _array(archive, members[name], head) for name, head in sizes.items()}


def _checked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, want: Expected) -> tuple[Any, ...]:
    """The header of an array: its own size, shape, order and dtype; raises ValueError if it is not as expected."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise ValueError(f'{name} is of a version of the format that NumPy did not write here: {version}')
        shape, fortran, dtype = read[version](file)
        begin = file.tell()
    same = len(shape) == len(want.shape) and all(y in (None, x) for x, y in zip(shape, want.shape, strict=True))
    if not same or (dtype != want.dtype if want.dtype is not None else dtype.kind not in 'iuf'):
        kind = 'numbers' if want.dtype is None else want.dtype
        raise ValueError(f'it is of another run: {name} is {dtype} {shape}, and must be {kind} {want.shape}')
    if member.file_size != begin + math.prod(shape) * dtype.itemsize:
        raise ValueError(f'{name} has {member.file_size:,} bytes, and its header says {shape} of {dtype}')
    return begin, shape, fortran, dtype


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, head: tuple[Any, ...]) -> np.ndarray:
    begin, shape, fortran, dtype = head
    content = archive.read(member)  # whose checksum it verifies
    if len(content) != member.file_size:
        raise ValueError(f'{member.filename} is cut')
    return np.frombuffer(content, dtype, offset=begin).reshape(shape, order='F' if fortran else 'C')


def write_table(workdir: Workdir, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file with a header."""

    def write(path):
        with path.open('w', newline='', encoding='utf-8') as file:
            write_rows(file, columns, rows)

    workdir.write(name, write)


def write_rows(file: Any, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """CSV with a header, into an open file."""
    table = csv.writer(file, lineterminator='\n')
    table.writerow(columns)
    table.writerows(rows)


def write_picture(workdir: Workdir, figure: Any, name: str = CURVE) -> None:
    workdir.write(name, lambda path: figure.savefig(path, dpi=120))
