"""The end of the line that asks: processes of workers, and what becomes of one that fails."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqjax.errors import UserError

ROOT = Path(__file__).parent.parent.parent
NOT_THEIRS = ('JAX_COMPILATION_CACHE_DIR', 'JAX_NUM_CPU_DEVICES', 'GLIBC_TUNABLES', 'OMP_NUM_THREADS', 'XLA_FLAGS')

PLAIN_ERRORS = {'JAX_TRACEBACK_FILTERING': 'off'}  # the last line of a traceback is then what went wrong


def environment(**changes: str) -> dict[str, str]:
    """That of a process to be measured: what this one was told about caches, devices and threads does not reach it."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH', '')]))
    kept = {name: value for name, value in os.environ.items() if name not in NOT_THEIRS}
    return kept | {'PYTHONPATH': path, 'JAX_PLATFORMS': 'cpu', **PLAIN_ERRORS} | changes


class Client:
    """A worker's process, as a context."""

    def __init__(self, peer: str, changes: Mapping[str, str]):
        self.peer, self.errors = peer, tempfile.TemporaryFile('w+')  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, '-c', f'from benchmarks.peers import worker; worker.main({peer!r})'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment(**changes),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:  # in a long call
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The reply to a request; the worker does nothing when it has come.

        Raises:
          UserError: the process has ended.
        """
        self.send(do, **request)
        return self.reply()

    def send(self, do: str, **request: Any) -> None:
        """A request alone, so that several workers may be busy at once."""
        with contextlib.suppress(BrokenPipeError):  # `reply` tells its last words
            self.process.stdin.write(json.dumps({'do': do, **request}) + '\n')
            self.process.stdin.flush()

    def reply(self) -> dict[str, Any]:
        """What came of the request that was sent; waits for it. Raises UserError where the process has ended."""
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.errors.seek(0)
        words = self.errors.read().split('\n')
        said = next((line for line in reversed(words) if line.strip()), 'nothing')
        raise UserError(f'the process of {self.peer} ended with {code} and said {said!r}; leave it out with --peers')


def ask_all(requests: Mapping[Client, Mapping[str, Any]]) -> dict[Client, dict[str, Any]]:
    """The replies of several workers that are busy at once: nothing that is timed."""
    for one, request in requests.items():
        one.send(**request)
    return {one: one.reply() for one in requests}
