"""The lock of a run directory."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from seqjax import errors
from seqjax.errors import UserError

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None
LOCK = '.lock'
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system that has none


def is_writable(folder: Path) -> bool:
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
def hold(folder: Path) -> Iterator[None]:
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
    """Whether the lock could be had; False where the file system has none. Raises UserError where another holds it."""
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
        errors.warn(f'the file system of {folder} has no locks: take care that no other run writes there')
        return False
    return True


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
