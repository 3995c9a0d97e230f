"""Description of the machine: installed libraries, cores and versions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.peers import scores
from seqjax import errors

PINS = hasattr(os, 'sched_getaffinity')  # the system can restrict a process to some of its cores


def installed(peers: Sequence[str]) -> list[str]:
    """Returns the libraries that are installed, and warns of the others; ours is installed, with any setting."""
    available = []
    for peer in peers:
        if peer != scores.NATIVE_OFF and importlib.util.find_spec(peer) is None:
            errors.warn(
                f'{scores.NAMES[peer]} is not installed: its columns are missing, and its checks are not measured; '
                'pip install "seqjax[bench]"'
            )
        else:
            available.append(peer)
    return available


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if PINS else os.cpu_count() or 1


def describe() -> str:
    """Returns the machine and the versions as a sentence."""
    versions = ', '.join(_versions(('jax', 'jaxlib', 'flax', 'torch', 'keras', 'numpy')))
    return f'{_processor()}, {cores()} core{"s" * (cores() > 1)}, Python {platform.python_version()}, {versions}.'


def _processor() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text(encoding='utf-8').splitlines() if info.exists() else []
    names = (line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    return next(names, platform.processor() or platform.machine())


def _versions(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield f'{name} {importlib.metadata.version(name)}'
