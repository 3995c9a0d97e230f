"""Functions that open, read and atomically replace files, with errors that name the file."""

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
    """Context manager for writing the file `path`: turns an OSError of its body into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f'cannot write {path}: {error.strerror or error}; fix the cause, or choose another --workdir'
        ) from error


# Exceptions that readers of JSON, CSV and .npz files raise if a file is missing or corrupt.
DAMAGED = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, ArithmeticError, RuntimeError),
    *(csv.Error, zlib.error, zipfile.BadZipFile, tokenize.TokenError, MemoryError),
)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Context manager for reading `path`, a file of a finished run: turns the exceptions DAMAGED into a UserError."""
    try:
        yield
    except UserError:
        raise
    except DAMAGED as error:
        reason = f'{error} is missing' if isinstance(error, KeyError) else getattr(error, 'strerror', None) or error
        raise UserError(
            f'{path} of a finished run cannot be read ({reason}); repeat the command of that run with --overwrite'
        ) from error


SPECIAL_FILES = ((stat.S_ISFIFO, 'a pipe'), (stat.S_ISSOCK, 'a socket'), (stat.S_ISCHR, 'a device'))


def open_file(path: Path, mode: str = 'rb', **options: Any) -> Any:
    """Opens a regular file for reading; refuses pipes, sockets and devices, which could block.

    `mode` and `options` are arguments of the built-in `open`.

    Raises:
      OSError: the path cannot be opened, or is not a regular file; its `strerror` gives the reason.
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
    """Context manager that opens a data file of the user; raises UserError if opening or reading it fails."""
    try:
        with open_file(path, mode, **options) as file:
            yield file
    except OSError as error:
        raise UserError(
            f'{path} cannot be read: {error.strerror or error}; correct the path, or use another file'
        ) from error


def sha256(path: Path) -> str:
    """Returns the SHA-256 checksum of a file in hexadecimal; raises OSError if the file cannot be read."""
    with open_file(path) as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def read_json(path: Path) -> Any:
    with open_file(path, 'r', encoding='utf-8') as file:
        return json.load(file)


def expand(flag: str, path: str) -> Path:
    """Returns the path passed to --FLAG with ~ and ~user expanded; raises UserError if that user does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~user does not exist
        raise UserError(f'--{flag}={path}: no such user or home directory; use another path') from error


def user_cache(name: str) -> Path:
    """Returns the folder seqjax/NAME in XDG_CACHE_HOME, or in ~/.cache if that is not set or not absolute.

    The XDG base directory specification 0.8 says that a relative XDG_CACHE_HOME is ignored.

    Raises:
      RuntimeError: the user's home is needed and unknown.
    """
    path = os.environ.get('XDG_CACHE_HOME', '')
    return (Path(path) if os.path.isabs(path) else Path.home() / '.cache') / 'seqjax' / name


def replace(target: Path, write: Callable[[Path], Any]) -> None:
    """Creates or replaces the file `target` atomically.

    Calls write(path) with a temporary path in the same directory, and renames that file to `target`. If `write` raises,
    `target` is unchanged.
    """
    temporary = target.with_name(f'.{os.getpid()}-{target.name}')  # keeps the suffix, which decides the format
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flushes a file or a directory to disk with fsync."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_rows(file: Any, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes CSV to an open text file: the header `columns`, then one line per row."""
    table = csv.writer(file, lineterminator='\n')
    table.writerow(columns)
    table.writerows(rows)
