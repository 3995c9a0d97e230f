"""Lock of a run directory, which keeps other processes from writing to it."""

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
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # errors of a file system without locks


def is_writable(folder: Path) -> bool:
    """Returns True if a file can be created in the folder, False if it is read-only; raises other OSErrors."""
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
    """Context manager that holds the lock of a folder, the file .lock; the system releases it if the process dies.

    Holds no lock if the system has none (no fcntl), or, with a warning, if the file system has none.

    Raises:
      UserError: another process holds the lock.
    """
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            is_locked = _acquire(handle, folder)
        except BaseException:
            os.close(handle)
            raise
        if not is_locked or _is_file_of(path, handle):
            break
        os.close(handle)  # the process that held the lock has just removed the file
    try:
        os.truncate(handle, 0)
        os.write(handle, f'process {os.getpid()} on {socket.gethostname()}'.encode())
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder was removed
            path.unlink()
        os.close(handle)


def _acquire(handle: int, folder: Path) -> bool:
    """Locks the open lock file `handle` without waiting; returns False if the system or file system has no locks.

    Raises:
      UserError: another process holds the lock.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(handle, 200, 0).decode(errors='replace') or 'another process'
        raise UserError(f'{folder} is in use by {owner}; wait until it ends, or choose another --workdir') from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        errors.warn(f'the file system of {folder} has no locks: make sure that no other run writes there')
        return False
    return True


def _is_file_of(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
