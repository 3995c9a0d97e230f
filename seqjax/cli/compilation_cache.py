"""Where compiled programs are kept between runs: a second start is seconds faster."""

import contextlib
import os
import time
from pathlib import Path

import jax

from seqjax import errors, files
from seqjax.errors import UserError

OFF = 'off'
MOST = 10**9  # bytes of programs in the user's cache; the next look takes the oldest of more away
SWEPT, DAY = '.swept', 86_400  # touched by a look, and the seconds between two of them
FULL = b'\0' * 4096  # a disk that has no room for it is full


def keep_compiled(asked: str | None = None) -> None:
    """Keeps compiled programs, by JAX's persistent compilation cache.

    `asked` is a folder, or OFF; by default what JAX was told in the environment, or else a folder of the user's cache,
    where no more than MOST bytes stay. A folder that was asked for and cannot be written raises UserError; the user's
    cache, where that cannot be, is done without.
    """
    if asked == OFF:
        jax.config.update('jax_enable_compilation_cache', False)
        return
    if asked is None and jax.config.jax_compilation_cache_dir is not None:
        _keep_short_ones()
        return
    try:
        folder = _users_cache() if asked is None else files.expand('compilation_cache', asked).absolute()
        _check_writable(folder)
        if asked is None:
            _sweep(folder)
    except (OSError, RuntimeError) as error:  # a RuntimeError: nobody knows where the user's home is
        why = getattr(error, 'strerror', None) or str(error)
        if asked is not None:
            raise UserError(
                f'--compilation_cache={asked} cannot be written: {why}; choose another folder, or {OFF}'
            ) from error
        errors.warn(
            f'no compiled program is kept for the next run ({getattr(error, "filename", None) or "cache"}: {why}); '
            f'--compilation_cache=FOLDER keeps them elsewhere, and --compilation_cache={OFF} does without'
        )
        return
    jax.config.update('jax_compilation_cache_dir', str(folder))
    _keep_short_ones()


def _keep_short_ones() -> None:
    """Also what compiles in less than a second, which JAX does not keep by itself."""
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def _users_cache() -> Path:
    """By the XDG base directory specification 0.8, which has a relative path ignored."""
    told = os.environ.get('XDG_CACHE_HOME', '')
    return (Path(told) if os.path.isabs(told) else Path.home() / '.cache') / 'seqjax' / 'jax'


def _check_writable(folder: Path) -> None:
    """Makes the folder; raises OSError where it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f'.{os.getpid()}-probe'
    try:
        probe.write_bytes(FULL)
    finally:
        probe.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Once a day, takes away the programs that were used the longest ago, until MOST bytes are left.

    JAX's own bound (jax_compilation_cache_max_size) needs another package, and reads the whole folder at every write.
    """
    now, swept = time.time(), folder / SWEPT
    if swept.exists() and 0 <= now - swept.stat().st_mtime < DAY:
        return
    swept.touch()
    size, found = 0, []
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another run may be doing the same
                known = entry.stat()
                if entry.name.endswith('-cache'):
                    found.append((max(known.st_atime, known.st_mtime), known.st_size, entry.path))
                    size += known.st_size
    for _, bytes_of_one, path in sorted(found):
        if size <= MOST:
            break
        Path(path).unlink(missing_ok=True)
        size -= bytes_of_one
