"""Client of a worker process: starts it, sends requests, and reports its failure."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from seqjax.errors import UserError

ROOT = Path(__file__).parent.parent.parent
REMOVED_VARIABLES = (
    'JAX_COMPILATION_CACHE_DIR',
    'JAX_NUM_CPU_DEVICES',
    'GLIBC_TUNABLES',
    'OMP_NUM_THREADS',
    'XLA_FLAGS',
)

PLAIN_ERRORS = {'JAX_TRACEBACK_FILTERING': 'off'}  # the last line of a traceback is then the error


def environment(**changes: str) -> dict[str, str]:
    """Returns the environment of a process, without this process's settings of caches, devices and threads."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH', '')]))
    inherited = {name: value for name, value in os.environ.items() if name not in REMOVED_VARIABLES}
    return inherited | {'PYTHONPATH': path, 'JAX_PLATFORMS': 'cpu', **PLAIN_ERRORS} | changes


class Client:
    """A worker process; a context manager that ends it.

    Args:
      peer: the library, a key of `worker.PEERS`.
      changes: environment variables.
      cores: CPU cores on which the process runs, with all its threads; None for the cores of this process.
    """

    def __init__(self, peer: str, changes: Mapping[str, str], cores: Set[int] | None = None):
        self.peer, self.errors = peer, tempfile.TemporaryFile('w+')  # noqa: SIM115
        code = f'from benchmarks.peers import worker; worker.main({peer!r})'
        if cores is not None:  # before an import starts a thread
            code = f'import os; os.sched_setaffinity(0, {sorted(cores)}); {code}'
        self.process = subprocess.Popen(
            [sys.executable, '-c', code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment(**changes),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:  # the worker is in a long call
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def end(self) -> None:
        """Ends the process without waiting for its end, so that several may end at the same time."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Sends a request and returns the reply, after which the worker is idle.

        Raises:
          UserError: the process has ended.
        """
        self.send(do, **request)
        return self.reply()

    def send(self, do: str, **request: Any) -> None:
        """Sends a request without waiting, so that several workers may be busy at the same time."""
        with contextlib.suppress(BrokenPipeError):  # `reply` raises the error
            self.process.stdin.write(json.dumps({'do': do, **request}) + '\n')
            self.process.stdin.flush()

    def reply(self) -> dict[str, Any]:
        """Waits for the reply to a request and returns it; raises UserError if the process has ended."""
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().split('\n')
        error = next((line for line in reversed(lines) if line.strip()), 'no message')
        raise UserError(f'the process of {self.peer} ended with exit code {code} ({error}); exclude it with --peers')


def ask_all(requests: Mapping[Client, Mapping[str, Any]]) -> dict[Client, dict[str, Any]]:
    """Sends requests to several workers at the same time and returns their replies; not for timing."""
    for client, request in requests.items():
        client.send(**request)
    return {client: client.reply() for client in requests}
