"""The compiled kernels: built once by the machine's C++ compiler, and kept in the user's cache.

The environment variable SEQJAX_NATIVE decides: `auto` (the default) uses the kernels if they can be built, `off` does
not, and `require` raises if they cannot be built.

A failure of the compiler is kept in the cache, too, as `recurrent-KEY.failed`, and is not repeated for a day. `require`
compiles again, and so does a change of what KEY depends on, such as the compiler.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib

from seqjax import files

VARIABLE = 'SEQJAX_NATIVE'
AUTO, OFF, REQUIRE = CHOICES = ('auto', 'off', 'require')
COMPILERS = ('c++', 'g++', 'clang++')  # tried in this order if the environment variable CXX is not set
SOURCES = ('recurrent.cc', 'recurrent.h', 'forward.h', 'backward.h', 'product.h', 'scratch.h', 'team.h', 'simd.h')
FLAGS = ('-O2', '-std=c++17', '-shared', '-fPIC', '-fno-math-errno', '-fno-trapping-math', '-ffp-contract=fast')
PREFIX, CALLS = 'seqjax', ('forward', 'backward')  # names of the custom calls
REALS = {'float32': 'float', 'float64': 'double'}  # types in C++
FOLDER = 'native'  # in the user's cache
TIMEOUT = 600  # seconds for the compiler; ziglang takes 90 on two cores
RETRY_AFTER = 24 * 3600  # seconds for which a failure is remembered: a header may be installed, which no key shows
KEEP = 90 * 24 * 3600  # seconds for which an unused file is kept
TEMPORARY = re.compile('Killed|No space left|quota exceeded|out of memory|memory exhausted|annot allocate memory')
USED: set[str] = set()  # dtypes whose kernels this process has used


def supports(platform: str, *arrays: Any) -> bool:
    """Returns True if the kernels can be used on this platform for arrays of these dtypes, which must be the same."""
    dtypes = {x.dtype.name for x in jax.tree.leaves(arrays)}
    if platform != 'cpu' or len(dtypes) != 1 or not dtypes <= set(REALS) or load(*dtypes).key is None:
        return False
    USED.update(dtypes)
    return True


def reason(platform: str, dtype: str) -> str:
    """Returns why the kernels for a dtype are not used, as the end of a message; empty if they are, or do not exist."""
    library = load(dtype) if platform == 'cpu' and dtype in REALS else None
    return '' if library is None or library.key is not None else f': {library.reason}'


class Library(NamedTuple):
    """The result of loading the kernels."""

    key: str | None  # suffix of the names of the custom calls; None if the kernels are not used
    reason: str  # where the kernels are, or why they are not used


class UnavailableError(RuntimeError):
    """Error of required kernels that are not available."""


class BuildError(RuntimeError):
    """Failure of the compiler, or to load its file, that is likely to happen again; the first line is a summary."""


def setting() -> str:
    """Returns the value of SEQJAX_NATIVE; raises ValueError if it is not one of `CHOICES`."""
    choice = os.environ.get(VARIABLE) or AUTO
    if choice not in CHOICES:
        raise ValueError(f'{VARIABLE}={choice} must be one of {", ".join(CHOICES)}')
    return choice


def load(dtype: str) -> Library:
    """Returns the kernels for a key of `REALS`, which are compiled and registered with JAX at the first call.

    Raises:
      ValueError: SEQJAX_NATIVE is not one of `CHOICES`.
      UnavailableError: SEQJAX_NATIVE is `require`, and the kernels cannot be built.
    """
    choice = setting()
    if choice == OFF:
        return Library(None, f'off by {VARIABLE}={OFF}')
    library = _load(dtype)
    if library.key is None and choice == REQUIRE:
        problem = f'{VARIABLE}={REQUIRE}, but the native kernels are not available'
        raise UnavailableError(f'{problem}: {library.reason}; use {AUTO} to run without them')
    return library


@functools.cache
def _load(dtype: str) -> Library:
    compiler = find_compiler()
    if compiler is None:
        cxx = os.environ.get('CXX', '').strip()
        missing = 'no C++ compiler was found; install g++ or clang++, or seqjax with the extra "native"'
        return Library(None, f'CXX={cxx} is not a command; correct or unset it' if cxx else missing)
    try:
        key = _key(compiler, dtype)
        failure = files.user_cache(FOLDER) / f'recurrent-{key}.failed'
        path = _find(key)
        if path is None and setting() != REQUIRE and _is_recent(failure):
            message = failure.read_text('utf-8', 'replace')
            return Library(None, f'{_summary(message)}; delete {failure} to compile again')
        path = path or _build(compiler, key, dtype)
        _register(path, key)
    except BuildError as error:
        message = str(error)
        with contextlib.suppress(OSError):
            files.replace(failure, lambda path: path.write_text(message, 'utf-8', 'replace'))
        return Library(None, _summary(message))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return Library(None, ' '.join(str(error).split())[-300:])
    with contextlib.suppress(OSError):  # the cache may be read-only
        failure.unlink()
    return Library(key, str(path))


def _is_recent(failure: Path) -> bool:
    """Returns True if the file of a failure exists and is less than `RETRY_AFTER` seconds old."""
    return failure.exists() and time.time() - failure.stat().st_mtime < RETRY_AFTER


def _summary(message: str) -> str:
    """Returns the first line of a message of `BuildError`, and the first one after it that names an error."""
    first, *lines = [' '.join(line.split()) for line in message.splitlines() if line.strip()] or ['']
    errors = [line for line in lines if 'error' in line.lower()] or lines[-1:]
    return ': '.join([first, *errors[:1]])[:500]


def find_compiler() -> tuple[str, ...] | None:
    """Returns the command of the C++ compiler: CXX with its arguments, or the first of `COMPILERS`, or ziglang's.

    Returns None if there is none, also if CXX is set and is not a command.
    """
    try:
        words = shlex.split(os.environ.get('CXX', ''))
    except ValueError:  # a quotation mark is missing
        return None
    for name, *arguments in [words] if words else [[name] for name in COMPILERS]:
        path = shutil.which(name)
        if path is not None:
            return (path, *arguments)
    try:
        import ziglang  # the extra "native"
    except ImportError:
        return None
    path = None if words else shutil.which('zig', path=os.pathsep.join(ziglang.__path__))
    return None if path is None else (path, 'c++')


def _key(compiler: tuple[str, ...], dtype: str) -> str:
    """Returns a hash of all that the compiled file depends on: dtype, sources, flags, compiler, CPU and jaxlib."""
    programs = [os.stat(path) for path in map(shutil.which, compiler) if path is not None]  # also g++ of "ccache g++"
    parts = [*compiler, *(f'{program.st_size} {program.st_mtime_ns}' for program in programs)]
    parts += [*FLAGS, *_machine_flags(), jaxlib.__version__]
    parts += [dtype, _cpu(), *((Path(__file__).parent / name).read_text() for name in SOURCES)]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]


def _cpu() -> str:
    """Returns the name and the instruction sets of the CPU."""
    try:
        lines = Path('/proc/cpuinfo').read_text().split('\n\n')[0].splitlines()
    except OSError:
        return platform.processor()
    return '\n'.join(line for line in lines if line.startswith(('model name', 'flags', 'Features', 'CPU part')))


def _machine_flags() -> tuple[str, ...]:
    return ('-mcpu=native',) if platform.machine() in ('aarch64', 'arm64') else ('-march=native',)


def _find(key: str) -> Path | None:
    """Returns a compiled file whose content has the hash in its name; None if there is none, or it is damaged.

    Loading a truncated file would end the process.
    """
    for path in files.user_cache(FOLDER).glob(f'recurrent-{key}-*.so'):
        if path.stem.endswith(_content_hash(path)):
            with contextlib.suppress(OSError):
                os.utime(path)  # as `_remove_unused` reads it
            return path
    return None


def _content_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _build(compiler: tuple[str, ...], key: str, dtype: str) -> Path:
    """Compiles the kernels; the file appears complete or not at all."""
    start, folder, name = time.perf_counter(), files.user_cache(FOLDER), shlex.join(compiler)
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).parent / SOURCES[0]
    if Path(compiler[0]).stem == 'zig':
        print(f'Compiling the native kernels for {dtype} by zig, for one or two minutes', file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as temporary:
        out = Path(temporary) / 'recurrent.so'
        options = (f'-DSEQJAX_REAL={REALS[dtype]}', '-isystem', jax.ffi.include_dir(), '-o', str(out))
        command = [*compiler, *FLAGS, *_machine_flags(), *options, str(source)]
        variables = {'LC_ALL': 'C', 'ZIG_GLOBAL_CACHE_DIR': temporary, 'ZIG_LOCAL_CACHE_DIR': temporary}
        done = subprocess.run(
            command,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            errors='replace',
            timeout=TIMEOUT,
            check=False,
        )
        if done.returncode or not out.exists():
            lasting = done.returncode >= 0 and not TEMPORARY.search(done.stderr)  # negative: killed by a signal
            message = f'{name} failed with exit status {done.returncode}\n{done.stderr}'
            raise BuildError(message) if lasting else RuntimeError(message)
        path = folder / f'recurrent-{key}-{_content_hash(out)}.so'
        os.replace(out, path)
    seconds = time.perf_counter() - start
    print(f'Compiled the native kernels for {dtype} in {seconds:.0f} s: {path}', file=sys.stderr, flush=True)
    _remove_unused(folder)
    return path


def _remove_unused(folder: Path) -> None:
    """Deletes what was not used for `KEEP` seconds; a process that has loaded a file keeps it."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEEP:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _register(path: Path, key: str) -> None:
    """Loads the compiled file and registers its custom calls with JAX; deletes the file if it cannot be loaded."""
    try:
        library = ctypes.CDLL(str(path))
        calls = {call: getattr(library, f'{PREFIX}_{call}') for call in CALLS}
    except (OSError, AttributeError) as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise BuildError(f'the compiled file cannot be loaded\n{error}') from error
    for call, function in calls.items():
        jax.ffi.register_ffi_target(f'{PREFIX}_{call}_{key}', jax.ffi.pycapsule(function), platform='cpu')
