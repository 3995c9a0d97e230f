"""Opening, reading and replacing files, with errors that name the file."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from seqjax.errors import UserError


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

    Raises OSError where it cannot be opened, or is not an ordinary file; `strerror` says why.
    """
    mode_of_file = os.stat(path).st_mode
    if stat.S_ISDIR(mode_of_file):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode_of_file):
        kind = next((name for holds, name in NO_FILE if holds(mode_of_file)), 'a device')
        raise OSError(errno.EINVAL, f'it is {kind}, not a file', str(path))
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | getattr(os, 'O_NONBLOCK', 0)), **options)


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


def write_rows(file: Any, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """CSV with a header, into an open file."""
    table = csv.writer(file, lineterminator='\n')
    table.writerow(columns)
    table.writerows(rows)
