"""The compiled kernels: built once by the machine's C++ compiler, and kept in the user's cache.

The environment variable SEQJAX_NATIVE decides: `auto` (the default) uses the kernels if they can be built, `off` does
not, and `require` raises if they cannot be built.
"""

import ctypes
import functools
import hashlib
import os
import platform
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
COMPILERS = ('c++', 'g++', 'clang++')  # tried in this order, after the environment variable CXX
SOURCES = ('recurrent.cc', 'recurrent.h', 'product.h', 'team.h', 'simd.h')
FLAGS = ('-O2', '-std=c++17', '-shared', '-fPIC', '-fno-math-errno', '-fno-trapping-math', '-ffp-contract=fast')
PREFIX, CALLS = 'seqjax', ('forward', 'backward')  # names of the custom calls
REALS = {'float32': 'float', 'float64': 'double'}  # types in C++
FOLDER = 'native'  # in the user's cache
TIMEOUT = 300  # seconds for the compiler
LOADED: list[str] = []  # dtypes whose kernels this process has loaded


def supports(platform: str, *arrays: Any) -> bool:
    """Returns True if the kernels can be used on this platform for arrays of these dtypes, which must be the same."""
    dtypes = {x.dtype.name for x in jax.tree.leaves(arrays)}
    if platform != 'cpu' or len(dtypes) != 1 or not dtypes <= set(REALS):
        return False
    return load(*dtypes).key is not None


def reason(dtype: str) -> str:
    """Returns why the kernels for a dtype are not used, as the end of a message; empty if they are, or do not exist."""
    library = load(dtype) if dtype in REALS else None
    return '' if library is None or library.key is not None else f': {library.reason}'


class Library(NamedTuple):
    """The result of loading the kernels."""

    key: str | None  # suffix of the names of the custom calls; None if the kernels are not used
    reason: str  # where the kernels are, or why they are not used


def load(dtype: str) -> Library:
    """Returns the kernels for a key of `REALS`, which are compiled and registered with JAX at the first call.

    Raises:
      ValueError: SEQJAX_NATIVE is not one of `CHOICES`.
      RuntimeError: SEQJAX_NATIVE is `require`, and the kernels cannot be built.
    """
    choice = os.environ.get(VARIABLE, AUTO)
    if choice not in CHOICES:
        raise ValueError(f'{VARIABLE}={choice} must be one of {", ".join(CHOICES)}')
    if choice == OFF:
        return Library(None, f'off by {VARIABLE}={OFF}')
    library = _load(dtype)
    if library.key is None and choice == REQUIRE:
        raise RuntimeError(f'{VARIABLE}={REQUIRE}, but the native kernels are not available: {library.reason}')
    return library


@functools.cache
def _load(dtype: str) -> Library:
    compiler = find_compiler()
    if compiler is None:
        return Library(None, 'no C++ compiler was found; install g++ or clang++, or seqjax with the extra "native"')
    try:
        key = _key(compiler, dtype)
        path = _find(key) or _build(compiler, key, dtype)
        _register(path, key)
        LOADED.append(dtype)
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        return Library(None, ' '.join(str(error).split())[-300:])
    return Library(key, str(path))


def find_compiler() -> tuple[str, ...] | None:
    """Returns the command of the C++ compiler: CXX, or the first of `COMPILERS`, or ziglang's."""
    for name in filter(None, (os.environ.get('CXX'), *COMPILERS)):
        path = shutil.which(name)
        if path is not None:
            return (path,)
    try:
        import ziglang  # noqa: F401  (the extra "native")
    except ImportError:
        return None
    return (sys.executable, '-m', 'ziglang', 'c++')


def _key(compiler: tuple[str, ...], dtype: str) -> str:
    """Returns a hash of all that the compiled file depends on: dtype, sources, flags, compiler, CPU and jaxlib."""
    status = os.stat(os.path.realpath(compiler[0]))
    parts = [*compiler, str(status.st_size), str(status.st_mtime_ns), *FLAGS, *_machine_flags(), jaxlib.__version__]
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
            return path
    return None


def _content_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _build(compiler: tuple[str, ...], key: str, dtype: str) -> Path:
    """Compiles the kernels; the file appears complete or not at all."""
    start, folder = time.perf_counter(), files.user_cache(FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).parent / SOURCES[0]
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        out = Path(temporary) / 'recurrent.so'
        options = (f'-DSEQJAX_REAL={REALS[dtype]}', '-isystem', jax.ffi.include_dir(), '-o', str(out))
        command = [*compiler, *FLAGS, *_machine_flags(), *options, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        if done.returncode:
            raise RuntimeError(f'{compiler[-1]} failed: {done.stderr}')
        path = folder / f'recurrent-{key}-{_content_hash(out)}.so'
        os.replace(out, path)
    seconds = time.perf_counter() - start
    print(f'Compiled the native kernels for {dtype} in {seconds:.0f} s: {path}', file=sys.stderr, flush=True)
    return path


def _register(path: Path, key: str) -> None:
    """Loads the compiled file and registers its custom calls with JAX."""
    library = ctypes.CDLL(str(path))
    for call in CALLS:
        capsule = jax.ffi.pycapsule(getattr(library, f'{PREFIX}_{call}'))
        jax.ffi.register_ffi_target(f'{PREFIX}_{call}_{key}', capsule, platform='cpu')
