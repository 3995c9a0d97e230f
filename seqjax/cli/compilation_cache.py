"""Persistent cache of compiled JAX programs, which saves seconds of compilation at later starts."""

import contextlib
import os
import time
from pathlib import Path

import jax

from seqjax import errors, files
from seqjax.errors import UserError

OFF = 'off'
MAX_BYTES = 10**9  # limit of the default cache folder; the least recently used programs beyond it are deleted
SWEPT, DAY = '.swept', 86_400  # file whose time is the time of the last sweep; seconds between two sweeps
PROBE = b'\0' * 4096  # written to check that the disk is not full


def enable_cache(path: str | None = None) -> None:
    """Enables JAX's persistent compilation cache in the folder `path`, or disables it if `path` is OFF.

    Args:
      path: folder of the cache, or OFF. None for JAX_COMPILATION_CACHE_DIR of the environment or, if that is not set,
        seqjax/jax in the user's cache, which is limited to MAX_BYTES.

    Raises:
      UserError: the folder `path` cannot be written. If the default folder cannot be written, a warning is printed
        instead, and nothing is cached.
    """
    if path == OFF:
        jax.config.update('jax_enable_compilation_cache', False)
        return
    if path is None and jax.config.jax_compilation_cache_dir is not None:
        _cache_short_compilations()
        return
    try:
        folder = files.user_cache('jax') if path is None else files.expand('compilation_cache', path).absolute()
        _check_writable(folder)
        if path is None:
            _sweep(folder)
    except (OSError, RuntimeError) as error:  # a RuntimeError: the user's home is unknown
        reason = getattr(error, 'strerror', None) or str(error)
        if path is not None:
            raise UserError(
                f'--compilation_cache={path} cannot be written: {reason}; use another folder, or '
                f'--compilation_cache={OFF}'
            ) from error
        errors.warn(
            f'the default compilation cache cannot be written, so programs are compiled at every start '
            f'({getattr(error, "filename", None) or "cache"}: {reason}); '
            f'use --compilation_cache=FOLDER, or --compilation_cache={OFF} to disable it'
        )
        return
    jax.config.update('jax_compilation_cache_dir', str(folder))
    _cache_short_compilations()


def _cache_short_compilations() -> None:
    """Makes JAX also cache programs that compile in less than a second, unless the environment sets another limit."""
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def _check_writable(folder: Path) -> None:
    """Creates the folder if it does not exist; raises OSError if no file can be written in it."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f'.{os.getpid()}-probe'
    try:
        probe.write_bytes(PROBE)
    finally:
        probe.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Deletes the least recently used programs, at most once a day, until at most MAX_BYTES are left.

    JAX's own limit (jax_compilation_cache_max_size) needs another package, reads the whole folder at every write, and
    stops caching if one of its bookkeeping files is missing.
    """
    now, swept = time.time(), folder / SWEPT
    if swept.exists() and 0 <= now - swept.stat().st_mtime < DAY:
        return
    swept.touch()
    size, programs = 0, []
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another run may sweep at the same time
                status = entry.stat()
                if entry.name.endswith('-cache'):
                    programs.append((max(status.st_atime, status.st_mtime), status.st_size, entry.path))
                    size += status.st_size
    for _, program_size, path in sorted(programs):
        if size <= MAX_BYTES:
            break
        Path(path).unlink(missing_ok=True)
        size -= program_size
