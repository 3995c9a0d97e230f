"""Opening, reading and atomically replacing files, with errors that name the file."""

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
    """Context manager that raises UserError if the file system refuses a write."""
    try:
        yield
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror or error}; choose another --workdir') from error


# Errors that readers of JSON, CSV and .npz files raise for corrupt files.
DAMAGED = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, ArithmeticError, RuntimeError),
    *(csv.Error, zlib.error, zipfile.BadZipFile, tokenize.TokenError, MemoryError),
)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Context manager that raises UserError if a file of a finished run is missing or corrupt."""
    try:
        yield
    except UserError:
        raise
    except DAMAGED as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(
            f'{path} of a finished run cannot be read ({reason}); use --overwrite to train again'
        ) from error


SPECIAL_FILES = ((stat.S_ISFIFO, 'a pipe'), (stat.S_ISSOCK, 'a socket'), (stat.S_ISCHR, 'a device'))


def open_file(path: Path, mode: str = 'rb', **options: Any) -> Any:
    """Opens a regular file for reading, without blocking on a pipe or a device.

    Raises:
      OSError: it cannot be opened, or is not a regular file; `strerror` is the reason.
    """
    mode_of_file = os.stat(path).st_mode
    if stat.S_ISDIR(mode_of_file):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode_of_file):
        kind = next((name for is_kind, name in SPECIAL_FILES if is_kind(mode_of_file)), 'a device')
        raise OSError(errno.EINVAL, f'it is {kind}, not a file', str(path))
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | getattr(os, 'O_NONBLOCK', 0)), **options)


@contextlib.contextmanager
def open_data(path: Path, mode: str = 'rb', **options: Any) -> Iterator[Any]:
    """Opens a data file; raises UserError if it cannot be opened or read."""
    try:
        with open_file(path, mode, **options) as file:
            yield file
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror or error}; use another file') from error


def sha256(path: Path) -> str:
    """Returns the checksum of a file; raises OSError if it cannot be read."""
    with open_file(path) as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def read_json(path: Path) -> Any:
    with open_file(path, 'r', encoding='utf-8') as file:
        return json.load(file)


def expand(flag: str, path: str) -> Path:
    """Returns the path of a flag with ~ and ~user expanded."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~user does not exist
        raise UserError(f'--{flag}={path}: no such user or home directory; use another path') from error


def replace(target: Path, write: Callable[[Path], Any]) -> None:
    """Replaces `target` atomically, by `write` to a temporary file in the same directory."""
    temporary = target.with_name(f'.{os.getpid()}-{target.name}')  # keeps the suffix, which decides the format
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flushes a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_rows(file: Any, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes rows as CSV with a header to an open file."""
    table = csv.writer(file, lineterminator='\n')
    table.writerow(columns)
    table.writerows(rows)
