"""Measurements of `benchmarks.bench`: worker processes, pilots and rounds of each part."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers import cases, machine, scores, table
from benchmarks.peers import client as peers_client
from benchmarks.peers.bench_config import BenchmarkConfig
from benchmarks.peers.cases import Case
from benchmarks.peers.client import Client
from benchmarks.peers.scores import Timing, Timings
from seqjax import errors
from seqjax.errors import UserError
from seqjax.ops.native import library
from seqjax.runs.append_log import AppendLog

NOTEBOOK = 'many_to_one'  # setup of the notebook for which the whole process is timed
# Every step allocates its arrays again. Huge pages (set by run.sh for all experiments) make that faster for XLA;
# an allocator that keeps freed memory, or both, for PyTorch.
HUGE = 'glibc.malloc.hugetlb=1'
KEEPING = 'glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=20000000000'
ON_JAX = {'GLIBC_TUNABLES': HUGE}
# A small step is faster without dispatch to another thread, as in `seqjax.cli.predict --stdin`.
SYNCHRONOUS = {cases.SYNCHRONOUS: '1'}
NATIVE_OFF = {library.VARIABLE: library.OFF}
ALLOCATORS = {
    'usual allocator': {},
    'keeping allocator': {'GLIBC_TUNABLES': KEEPING},
    'keeping allocator with huge pages': {'GLIBC_TUNABLES': f'{KEEPING}:{HUGE}'},
}


class Candidate(NamedTuple):
    """A library with one of its settings, and its worker process."""

    peer: str
    setting: str
    threads: int | None
    client: Client


class Bench:
    """The parts of a benchmark run, its worker processes and results; a context manager.

    Args:
      settings: flags of `benchmarks.bench`.
      config: sizes and numbers of measurements.
      path: file to which the timings are appended; None for no file.
      rng: generator of the random rows and of the order in a round.
    """

    def __init__(self, settings: dict[str, Any], config: BenchmarkConfig, path: Path | None, rng: np.random.Generator):
        self.settings, self.rng, self.config = settings, rng, config
        self.peers = machine.installed(settings['peers'])
        self.libraries = [peer for peer in self.peers if peer != scores.NATIVE_OFF]
        self.timings, self.memory = Timings(), {}
        self.stack, self.clients = contextlib.ExitStack(), {}
        self.log = AppendLog(path, ','.join(Timing._fields) + '\n')

    def __enter__(self) -> Bench:
        self.log.open(None)
        self.stack.callback(self.log.close)
        return self

    def __exit__(self, *error: Any) -> None:
        for client in self.clients.values():
            client.end()
        self.stack.__exit__(*error)

    def run(self) -> None:
        """Runs the parts of --parts."""
        parts = {
            'rows': self.all_rows,
            'streaming': self.streaming,
            'one_core': self.one_core,
            'replicas': self.replicas,
            'start': self.start,
            'backends': self.backends,
            'growth': self.growth,
        }
        for name, part in parts.items():
            if name in self.settings['parts']:
                part()

    def rounds(self, slow: bool = False) -> range:
        """Returns the numbers of the rounds, from 1."""
        count = self.settings['rounds'] or self.config.rounds
        return range(1, (self.config.slow_rounds or count if slow else count) + 1)

    def all_rows(self) -> None:
        """Measures the default rows or the rows of --rows, and random rows."""
        own_rows, count = self.settings['rows'], self.settings['random']
        fixed = self.config.rows if own_rows is None else [cases.parse(row) for row in own_rows]
        if count is None and own_rows is not None:
            count = 0
        rows: dict[Case, Sequence[str]] = {}
        for cell in cases.GATES:
            random = self.config.random[cell] if count is None else count
            rows |= {row: self.peers for row in fixed if row.cell == cell}
            rows |= dict.fromkeys(cases.draw(self.rng, random, self.config.flops, cell), self.libraries)
        self.compare_rows(rows, scores.LAYER)

    def compare_rows(self, rows: Mapping[Case, Sequence[str]], whats: Sequence[str]) -> None:
        """Measures workloads of several rows, each in its own list of libraries and in ours."""
        for row, peers in rows.items():
            self.product()
            for what in whats:
                self.compare(row, what, [scores.OURS, *peers])

    def streaming(self) -> None:
        """Measures single time steps."""
        self.compare_rows(dict.fromkeys(self.config.streams, self.libraries), (cases.STREAMING,))

    def one_core(self) -> None:
        """Measures some rows in seqjax and PyTorch, in processes that run on one core."""
        if machine.PINS:
            peers = [peer for peer in self.libraries if peer == scores.TORCH]
            self.compare_rows(dict.fromkeys(self.config.one_core, peers), tuple(scores.ONE_CORE))
        else:
            errors.warn('a process cannot be restricted to one core on this system: part one_core is skipped')

    def replicas(self) -> None:
        """Measures the notebook's model with many seeds."""
        peers = [peer for peer in self.libraries if peer == scores.FLAX]
        self.compare(self.config.replicas, scores.REPLICAS, [scores.OURS, *peers])

    def compare(self, sizes: Sequence[int], what: str, peers: Sequence[str]) -> None:
        """Measures a workload in several libraries: checks equal results, selects settings, then runs the rounds."""
        row, candidates = name_of(sizes), self.candidates(peers, what)
        self.prepare(candidates, sizes, what)
        prepared, candidates = candidates, self.fastest(candidates, row, what)
        for turn in self.rounds():
            for n in self.rng.permutation(len(candidates)):
                self.visit(candidates[n], what, row, what, turn)
        peers_client.ask_all({candidate.client: {'do': 'forget'} for candidate in prepared})
        times = [f'{scores.NAMES[c.peer]} {table.span(self.timings.median(row, what, c.peer))}' for c in candidates]
        print(f'{what} {row}: {", ".join(times)}', flush=True)

    def prepare(self, candidates: Sequence[Candidate], sizes: Sequence[int], what: str) -> None:
        """Prepares a workload in the processes of all candidates, and checks that libraries have equal results."""
        request = {'do': 'prepare', 'name': what, 'what': scores.ONE_CORE.get(what, what), 'sizes': list(sizes)}
        requests, paths = {candidate.client: request for candidate in candidates}, {}
        with tempfile.TemporaryDirectory() as folder:
            if what != scores.REPLICAS:  # replicas have different initial parameters in each library
                for peer, client in {candidate.peer: candidate.client for candidate in candidates}.items():
                    paths[peer] = str(Path(folder) / f'{peer}.npz')
                    requests[client] = request | {'path': paths[peer]}
            replies = peers_client.ask_all(requests)
            check_same(paths, f'{what} {name_of(sizes)}')
        for client, reply in replies.items():
            if what == cases.TRAINING and reply['temporaries'] is not None:
                self.memory[name_of(sizes), client.peer] = reply['temporaries']

    def candidates(self, peers: Sequence[str], what: str) -> list[Candidate]:
        """Returns PyTorch in each of its settings, and the libraries on JAX with huge pages.

        Libraries on JAX measure streams without asynchronous dispatch.
        """
        candidates, one_core = [], what in scores.ONE_CORE
        for peer in peers:
            if peer == scores.TORCH:
                for allocator, changes in ALLOCATORS.items():
                    client = self.client(peer, changes, one_core)
                    for n in sorted({1, 1 if one_core else machine.cores()}):
                        candidates.append(Candidate(peer, f'{n} thread{"s" * (n > 1)}, {allocator}', n, client))
            else:
                setting, changes = ('at once', SYNCHRONOUS) if what == cases.STREAMING else ('', {})
                changes = ON_JAX | changes | (NATIVE_OFF if peer == scores.NATIVE_OFF else {})
                candidates.append(Candidate(peer, setting, None, self.client(peer, changes, one_core)))
        return candidates

    def client(self, peer: str, changes: dict[str, str], one_core: bool) -> Client:
        """Returns the worker process of a library with environment variables, and starts it at the first call."""
        key = (peer, *changes.items(), one_core)
        if key not in self.clients:
            cores = {max(os.sched_getaffinity(0))} if one_core else None
            self.clients[key] = self.stack.enter_context(Client(peer, changes, cores))
        return self.clients[key]

    def visit(self, candidate: Candidate, name: str, row: str, what: str, turn: int) -> float:
        """Measures a workload once, and keeps the timing."""
        reply = candidate.client.ask('measure', name=name, seconds=self.config.seconds, threads=candidate.threads)
        self.keep(Timing(row, what, candidate.peer, candidate.setting, turn, reply['seconds']))
        return reply['seconds']

    def keep(self, timing: Timing) -> None:
        """Appends a timing to the results and to timings.csv."""
        self.timings.records.append(timing)
        words = ('"' + str(word) + '"' if ',' in str(word) else str(word) for word in timing)
        self.log.append((','.join(words) + '\n').encode())

    def fastest(self, candidates: Sequence[Candidate], row: str, what: str) -> list[Candidate]:
        """Returns each library with its best setting in a pilot."""
        selected = []
        for peer in dict.fromkeys(candidate.peer for candidate in candidates):
            own = [candidate for candidate in candidates if candidate.peer == peer]
            if len(own) > 1:
                pilot = [(candidate.setting, self.visit(candidate, what, row, what, 0)) for candidate in own]
                own = [candidate for candidate in own if candidate.setting == scores.best(pilot)]
            selected += own
        return selected

    def product(self) -> None:
        """Measures a matrix product alone, the current peak rate of the machine."""
        (ours,), size = self.candidates([scores.OURS], ''), self.config.product
        ours.client.ask('prepare', name=scores.PRODUCT, what=scores.PRODUCT, sizes=[size])
        self.visit(ours, scores.PRODUCT, str(size), scores.PRODUCT, 1)

    def growth(self) -> None:
        """Measures the growth of our times; every round measures all sizes of a curve."""
        (ours,) = self.candidates([scores.OURS], '')
        for what, curve in self.config.growth.items():
            work = {'growth over replicas': scores.REPLICAS, scores.COMPILING: 'compiling'}.get(what, cases.TRAINING)
            for sizes in curve:
                ours.client.ask('prepare', name=name_of(sizes), what=work, sizes=list(sizes))
            for turn in self.rounds(slow=what == scores.COMPILING):
                for n in self.rng.permutation(len(curve)):
                    self.visit(ours, name_of(curve[n]), name_of(curve[n]), what, turn)
            ours.client.ask('forget')
            print(f'{what}: exponent {self.timings.exponent(what):.3f}', flush=True)

    def backends(self) -> None:
        """Measures each of our backends and the plain recurrence, for a case for which it is selected on CPUs."""
        (ours,) = self.candidates([scores.OURS], '')
        for (backend, case), (words, what) in itertools.product(self.config.backends, scores.BACKENDS.items()):
            row, names = str(case), (scores.PLAIN, backend)
            for name in names:
                ours.client.ask('prepare', name=name, what='backend', sizes=[what, name, *case])
            for turn in self.rounds():
                for name in self.rng.permutation(names):
                    self.visit(ours._replace(peer=str(name)), str(name), row, words, turn)
            ours.client.ask('forget')
            times = [f'{name} {table.span(self.timings.median(row, words, name))}' for name in names]
            print(f'{words} {row}: {", ".join(times)}', flush=True)

    def start(self) -> None:
        """Measures the notebook's training as a whole process, here and in Keras."""
        with tempfile.TemporaryDirectory() as directory_name:
            folder = Path(directory_name)
            commands = start_commands(folder, scores.KERAS in self.peers)
            commands[scores.OURS, (scores.WARM,)](0)  # fills the cache
            for turn in self.rounds(slow=True):
                for n in self.rng.permutation(len(commands)):
                    (peer, whats), command = list(commands.items())[n]
                    seconds = seconds_of(command, turn)
                    for what in whats:
                        self.keep(Timing(NOTEBOOK, what, peer, '', turn, seconds))
        for what in (scores.WARM, scores.COLD):
            print(f'{what}: seqjax {table.span(self.timings.median(NOTEBOOK, what, scores.OURS))}', flush=True)


def name_of(sizes: Sequence[int]) -> str:
    """Returns the name of a case, or of the numbers of another workload, in the results."""
    return str(sizes) if isinstance(sizes, Case) else 'x'.join(map(str, sizes))


def check_same(paths: Mapping[str, str], where: str) -> None:
    """Raises UserError if the results of two libraries, in one .npz file each, differ."""
    saved: dict[str, dict[str, np.ndarray]] = {}
    for peer, path in paths.items():
        with np.load(path) as results:
            saved[peer] = dict(results)
    for peer, arrays in saved.items():
        cases.check_equal(saved[scores.OURS], arrays, peer, where)


def start_commands(folder: Path, keras: bool) -> dict[tuple[str, tuple[str, ...]], Callable[[int], Any]]:
    """Returns a function for each (library, workloads) that runs the process of a round.

    Keras has no compilation cache, so one process is both a warm and a cold start.
    """
    ours = [sys.executable, '-m', 'experiments.td', f'--flagfile={NOTEBOOK}', '--noplot', '--overwrite']

    def start(command: Sequence[str], cache: str) -> None:
        changes = peers_client.environment(XDG_CACHE_HOME=str(folder / cache))
        done = subprocess.run(command, env=changes, capture_output=True, text=True, check=False)
        if done.returncode:
            error = (done.stderr.strip().splitlines() or ['no message'])[-1]
            raise UserError(
                f'{" ".join(command)} ended with exit code {done.returncode} ({error}); run it by itself to see more'
            )

    commands = {
        (scores.OURS, (scores.WARM,)): lambda turn: start([*ours, f'--workdir={folder / "run"}'], 'warm'),
        (scores.OURS, (scores.COLD,)): lambda turn: start([*ours, f'--workdir={folder / "run"}'], f'cold_{turn}'),
    }
    script = [sys.executable, str(Path(cases.__file__).parent / 'keras_td.py')]
    if keras:
        commands[scores.KERAS, (scores.WARM, scores.COLD)] = lambda turn: start(script, 'keras')
    return commands


def seconds_of(command: Callable[[int], Any], turn: int) -> float:
    """Returns the time of a command."""
    start = time.perf_counter()
    command(turn)
    return time.perf_counter() - start
