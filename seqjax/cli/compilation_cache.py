"""Persistent cache of compiled programs, which makes later starts seconds faster."""

import contextlib
import os
import time
from pathlib import Path

import jax

from seqjax import errors, files
from seqjax.errors import UserError

OFF = 'off'
MAX_BYTES = 10**9  # size of the user's cache above which the oldest programs are deleted
SWEPT, DAY = '.swept', 86_400  # file touched by a sweep; seconds between two sweeps
PROBE = b'\0' * 4096  # written to check that the disk is not full


def enable_cache(path: str | None = None) -> None:
    """Enables JAX's persistent compilation cache.

    Args:
      path: folder of the cache, or OFF. By default JAX_COMPILATION_CACHE_DIR of the environment, or else a folder in
        the user's cache, which is limited to MAX_BYTES.

    Raises:
      UserError: `path` cannot be written. If the default folder cannot be written, a warning is issued instead.
    """
    if path == OFF:
        jax.config.update('jax_enable_compilation_cache', False)
        return
    if path is None and jax.config.jax_compilation_cache_dir is not None:
        _cache_short_compilations()
        return
    try:
        folder = _user_cache() if path is None else files.expand('compilation_cache', path).absolute()
        _check_writable(folder)
        if path is None:
            _sweep(folder)
    except (OSError, RuntimeError) as error:  # a RuntimeError: the user's home is unknown
        reason = getattr(error, 'strerror', None) or str(error)
        if path is not None:
            raise UserError(
                f'--compilation_cache={path} cannot be written: {reason}; use another folder, or {OFF}'
            ) from error
        errors.warn(
            f'the compilation cache cannot be written ({getattr(error, "filename", None) or "cache"}: {reason}); '
            f'use --compilation_cache=FOLDER, or --compilation_cache={OFF} to disable it'
        )
        return
    jax.config.update('jax_compilation_cache_dir', str(folder))
    _cache_short_compilations()


def _cache_short_compilations() -> None:
    """Caches programs that compile in less than a second, too, which JAX skips by default."""
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def _user_cache() -> Path:
    """Returns the user's cache folder; a relative XDG_CACHE_HOME is ignored (XDG base directory specification 0.8)."""
    path = os.environ.get('XDG_CACHE_HOME', '')
    return (Path(path) if os.path.isabs(path) else Path.home() / '.cache') / 'seqjax' / 'jax'


def _check_writable(folder: Path) -> None:
    """Creates the folder; raises OSError if it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f'.{os.getpid()}-probe'
    try:
        probe.write_bytes(PROBE)
    finally:
        probe.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Deletes the least recently used programs once a day, until at most MAX_BYTES are left.

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
