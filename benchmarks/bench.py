"""Measure time and memory of seqjax, PyTorch, Flax and Keras in one run on one machine.

    python -m benchmarks.bench               # about half an hour; ./run.sh bench does the same
    python -m benchmarks.bench --quick       # small versions, under two minutes
    python -m benchmarks.bench --parts=rows --rows=32x100x64x128 --random=0

Each library has a process of its own, which is idle while another is measured. In every round each library is measured
once, in random order, and times of the same round are compared. Before a row is timed, all libraries must compute the
same results from the same weights. A pilot selects the best setting of PyTorch: one thread or all, and the usual
allocator or one that keeps freed memory.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import itertools
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

import seqjax
from benchmarks.peers import cases, scores, table
from benchmarks.peers import client as peers_client
from benchmarks.peers.cases import Case
from benchmarks.peers.client import Client
from benchmarks.peers.scores import Check, Timing, Timings
from benchmarks.peers.table import Memory
from seqjax import errors, files
from seqjax.cli import command as cli_command
from seqjax.cli import default_workdir, flag_tables
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import BoolParser, ChoiceParser, IntParser, ListParser, PathParser
from seqjax.errors import UserError
from seqjax.reporting import plots, text_tables
from seqjax.runs import directory, result_files
from seqjax.runs import memory as runs_memory
from seqjax.runs.append_log import AppendLog
from seqjax.runs.directory import Workdir

TIMINGS, MEMORY, TEXT, PICTURE = 'timings.csv', 'memory.csv', 'bench.md', 'bench.png'
FILES = (directory.SUMMARY, TIMINGS, MEMORY, TEXT, PICTURE)
PEERS = (scores.TORCH, scores.FLAX, scores.KERAS)
PARTS = ('rows', 'streaming', 'replicas', 'start', 'backends', 'growth')
NOTEBOOK = 'many_to_one'  # setup of the notebook for which the whole process is timed
# Every step allocates its arrays again. Huge pages (set by run.sh for all experiments) make that faster for XLA;
# an allocator that keeps freed memory, or both, for PyTorch.
HUGE = 'glibc.malloc.hugetlb=1'
KEEPING = 'glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=20000000000'
ON_JAX = {'GLIBC_TUNABLES': HUGE}
# A small step is faster without dispatch to another thread, as in `seqjax.cli.predict --stdin`.
SYNCHRONOUS = {cases.SYNCHRONOUS: '1'}
ALLOCATORS = {
    'usual allocator': {},
    'keeping allocator': {'GLIBC_TUNABLES': KEEPING},
    'keeping allocator with huge pages': {'GLIBC_TUNABLES': f'{KEEPING}:{HUGE}'},
}


class BenchmarkConfig(NamedTuple):
    """Sizes and numbers of measurements."""

    seconds: float  # time of a visit
    rounds: int  # default number of rounds
    slow_rounds: int | None  # rounds of workloads that take seconds (start, compilation); None: as many as `rounds`
    rows: Sequence[Case]
    random: int  # default number of random rows
    flops: float  # maximal FLOPs of a random row's training step
    streams: Sequence[Case]
    replicas: tuple[int, int]  # seeds, epochs
    backends: Sequence[tuple[str, str, Case]]  # cell, backend, case
    growth: dict[str, Sequence[Sequence[int]]]  # sizes of each curve
    product: int  # side of the matrices


def _streams(*units: int) -> tuple[Case, ...]:
    return tuple(Case(1, 1, 1 if unit == min(units) else 64, unit) for unit in units)


def _growth(steps: Sequence[int], rows: Sequence[int], units: Sequence[int], seeds: Sequence[int], epochs: int) -> Any:
    return {
        'growth over T': [Case(4, n, 8, 64) for n in steps],
        'growth over B': [Case(n, 64, 8, 64) for n in rows],
        'growth over H': [Case(16, 64, 8, n) for n in units],
        'growth over replicas': [(n, epochs) for n in seeds],
        scores.COMPILING: [Case(4, n, 8, 64) for n in sorted({steps[-1], *steps[::2]})],
    }


SELECTED = (  # cell, backend, and a case for which it is selected on CPUs, with or without the native kernels
    ('lstm', 'native', Case(1, 1000, 1, 32)),
    ('lstm', 'native', Case(15, 114, 8, 28)),
    ('lstm', 'native', Case(32, 100, 64, 128)),
    ('lstm', 'native', Case(32, 128, 64, 1024)),
    ('lstm', 'rows', Case(15, 114, 8, 28)),
    ('lstm', 'rows', Case(32, 100, 64, 128)),
    ('lstm', 'rows', Case(4, 4096, 8, 64)),  # recomputes pre-activations
    ('lstm', 'columns', Case(32, 128, 64, 1024)),
    ('gru', 'native', Case(32, 100, 64, 128)),
    ('gru', 'native', Case(64, 64, 128, 512)),
    ('gru', 'rows', Case(32, 100, 64, 128)),
    ('gru', 'rows', Case(64, 64, 128, 512)),
)

FULL = BenchmarkConfig(
    seconds=0.2,
    rounds=5,
    slow_rounds=None,
    rows=cases.ROWS,
    random=6,
    flops=cases.FLOPS,
    streams=_streams(32, 128, 512, 1024),
    replicas=(1000, 100),
    backends=SELECTED,
    growth=_growth(
        [64, 256, 1024, 2048, 4096, 8192, 16_384],
        [1, 4, 16, 64, 256, 1024, 4096],
        [16, 32, 64, 128, 256, 512, 1024],
        [10, 100, 1000, 10_000, 25_000, 50_000, 100_000],
        20,
    ),
    product=4096,
)
QUICK = BenchmarkConfig(
    seconds=0.05,
    rounds=3,
    slow_rounds=1,
    rows=tuple(cases.quick(row) for row in cases.ROWS),
    random=1,
    flops=cases.QUICK_FLOPS,
    streams=_streams(32, 512),
    replicas=(1000, 20),
    backends=tuple((cell, name, cases.quick(case)) for cell, name, case in SELECTED if case.units < 64),
    growth=_growth([256, 1024, 2048, 4096], [4, 64, 512], [32, 128, 512], [250, 1000, 4000], 10),
    product=1024,
)


class SizeParser(flags.ArgumentParser):
    """Parser for the sizes of a row."""

    def parse(self, argument: Any) -> str:
        try:
            case = Case(*map(int, str(argument).split('x')))
        except (TypeError, ValueError):
            case = None
        if case is None or min(case) < 1 or str(case) != str(argument):
            raise ValueError('must be BxTxFxH, integers of at least 1, such as 32x100x64x128')
        return str(case)

    def flag_type(self) -> str:
        return 'BxTxFxH'


FLAGS = {
    'quick': Flag(BoolParser(), 'small versions, in two minutes'),
    'seed': Flag(
        IntParser(0, 2**32 - 1), 'seed of the random rows and of the order in a round; random by default, and printed'
    ),
    'rounds': Flag(IntParser(1, 1000), 'number of rounds, whose median is reported; by default 5, with --quick 3'),
    'rows': Flag(ListParser(SizeParser()), 'sizes of the layers, instead of the default six rows'),
    'random': Flag(IntParser(0, 1000), 'number of random rows; by default 6, with --quick 1, with --rows 0'),
    'peers': Flag(ListParser(ChoiceParser(*PEERS)), 'libraries to compare with'),
    'parts': Flag(ListParser(ChoiceParser(*PARTS)), 'parts of the benchmark to run'),
    **{name: flag_tables.SHARED[name] for name in ('workdir', 'overwrite', 'plot')},
    'page': Flag(PathParser('file'), 'Markdown page whose tables are replaced, docs/speed.md'),
}


def run(
    *,
    quick: bool = False,
    seed: int | None = None,
    rounds: int | None = None,
    rows: Sequence[str] | None = None,
    random: int | None = None,
    peers: Sequence[str] = PEERS,
    parts: Sequence[str] = PARTS,
    workdir: str | None = None,
    overwrite: bool = False,
    plot: bool = True,
    page: str | None = None,
) -> list[Check]:
    """Measures time and memory of seqjax and other libraries.

    Every argument is a flag, described in `FLAGS`. Without `workdir` no file is written.

    Returns:
      The checks; an empty list if the folder has a finished run, which is shown again.

    Raises:
      UserError (a ValueError): an argument is invalid, the folder has another run, or the results of a library differ
        from ours.
    """
    settings = flag_tables.check(FLAGS, locals(), cli_command.default_values(run))
    page = settings.pop('page')
    for row in settings['rows'] or ():
        rows, steps, features, units = cases.sizes(row)
        numbers = rows * steps * (features + 10 * units) + 24 * units * (features + units)
        runs_memory.check_bytes(f'--rows={row}', 4 * numbers)
    with directory.open_workdir(settings, 'bench', names=FILES) as (folder, summary):
        if summary is None:
            if folder.path is not None:
                folder.clear()
            return _run(settings, folder, page)
        print(f'{folder.path} has finished results, which are shown again (use --overwrite to measure again)\n')
        with files.reading(folder.file(TEXT)):
            print(folder.file(TEXT).read_text(encoding='utf-8'))
        return []


def _run(settings: dict[str, Any], folder: Workdir, page: str | None) -> list[Check]:
    """Runs the benchmark, and writes its results to the folder."""
    seed = int.from_bytes(os.urandom(4), 'little') if settings['seed'] is None else settings['seed']
    print(f'random rows and order of --seed={seed}')
    machine = describe()
    print(machine)
    summary = {'experiment': 'bench', 'finished': False, 'flags': settings, 'seed': seed, 'machine': machine}
    folder.write_summary(summary)
    with Bench(settings, folder, np.random.default_rng(seed)) as bench:
        bench.run()
    origin = (
        f'Medians of {bench.rounds()[-1]} rounds, with their quartiles; random rows of seed {seed}; '
        f'seqjax {seqjax.__version__}.'
    )
    text = table.markdown(bench.timings, bench.memory, machine, origin)
    folder.write(TEXT, lambda path: path.write_text(text + '\n', encoding='utf-8'))
    _write_memory(folder, bench.memory)
    if settings['plot']:
        _picture(folder, bench.timings)
    if page is not None:
        text_tables.replace_block(files.expand('page', page), 'bench', text)
    folder.write_summary(summary | {'finished': True})
    print('\n' + text)
    if folder.path is not None:
        print('\n' + folder.listing())
    return scores.checks(bench.timings, bench.memory)


def _write_memory(folder: Workdir, memory: Memory) -> None:
    result_files.write_table(folder, MEMORY, ['row', 'peer', 'bytes'], ([*key, count] for key, count in memory.items()))


def _picture(folder: Workdir, timings: Timings) -> None:
    try:
        figure = table.draw(timings)
    except ImportError:
        print(plots.NO_MATPLOTLIB)
        return
    result_files.write_figure(folder, figure, PICTURE)


# --- measurements ----------------------------------------------------------------------------------


class Candidate(NamedTuple):
    """A library with one of its settings, and its worker process."""

    peer: str
    setting: str
    threads: int | None
    client: Client


class Bench:
    """The parts of a benchmark run, its worker processes and results; a context manager."""

    def __init__(self, settings: dict[str, Any], folder: Workdir, rng: np.random.Generator):
        self.settings, self.rng, self.config = settings, rng, QUICK if settings['quick'] else FULL
        self.peers = installed(settings['peers'])
        self.timings, self.memory = Timings(), {}
        self.stack, self.clients = contextlib.ExitStack(), {}
        path = folder.file(TIMINGS) if folder.writes else None
        self.log = AppendLog(path, ','.join(Timing._fields) + '\n')

    def __enter__(self) -> Bench:
        self.log.open(None)
        self.stack.callback(self.log.close)
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def run(self) -> None:
        """Runs the parts of --parts."""
        parts = {
            'rows': self.all_rows,
            'streaming': lambda: self.compare_rows(self.config.streams, (cases.STREAMING,)),
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
        rows = list(self.config.rows) if own_rows is None else [Case(*cases.sizes(row)) for row in own_rows]
        if count is None:
            count = self.config.random if own_rows is None else 0
        rows += cases.draw(self.rng, count, self.config.flops)
        self.compare_rows(dict.fromkeys(rows), scores.LAYER)

    def compare_rows(self, rows: Sequence[Case], whats: Sequence[str]) -> None:
        """Measures workloads of several rows in every library."""
        for row in rows:
            self.product()
            for what in whats:
                self.compare(row, what, [scores.OURS, *self.peers])

    def replicas(self) -> None:
        """Measures the notebook's model with many seeds."""
        self.compare(
            self.config.replicas, scores.REPLICAS, [scores.OURS, *(peer for peer in self.peers if peer == scores.FLAX)]
        )

    def compare(self, sizes: Sequence[int], what: str, peers: Sequence[str]) -> None:
        """Measures a workload in several libraries: checks equal results, selects settings, then runs the rounds."""
        row, candidates = name_of(sizes), self.candidates(peers, what)
        request = {'do': 'prepare', 'name': what, 'what': what, 'sizes': list(sizes)}
        for client, reply in peers_client.ask_all({candidate.client: request for candidate in candidates}).items():
            if reply['temporaries'] is not None:
                self.memory[row, client.peer] = reply['temporaries']
        if what != scores.REPLICAS:  # replicas have different initial parameters in each library
            check_same(candidates, what, row)
        prepared, candidates = candidates, self.fastest(candidates, row, what)
        for turn in self.rounds():
            for n in self.rng.permutation(len(candidates)):
                self.visit(candidates[n], what, row, what, turn)
        peers_client.ask_all({candidate.client: {'do': 'forget'} for candidate in prepared})
        times = [f'{table.NAMES[c.peer]} {table.span(self.timings.median(row, what, c.peer))}' for c in candidates]
        print(f'{what} {row}: {", ".join(times)}', flush=True)

    def candidates(self, peers: Sequence[str], what: str) -> list[Candidate]:
        """Returns PyTorch in each of its settings, and the libraries on JAX with huge pages.

        Libraries on JAX measure streams without asynchronous dispatch.
        """
        candidates = []
        for peer in peers:
            if peer == scores.TORCH:
                for allocator, changes in ALLOCATORS.items():
                    client = self.client(peer, allocator, changes)
                    for n in sorted({1, cores()}):
                        candidates.append(Candidate(peer, f'{n} thread{"s" * (n > 1)}, {allocator}', n, client))
            else:
                setting, changes = ('at once', ON_JAX | SYNCHRONOUS) if what == cases.STREAMING else ('', ON_JAX)
                candidates.append(Candidate(peer, setting, None, self.client(peer, setting, changes)))
        return candidates

    def client(self, peer: str, setting: str, changes: dict[str, str]) -> Client:
        """Returns the worker process of a library, and starts it at the first call."""
        if (peer, setting) not in self.clients:
            self.clients[peer, setting] = self.stack.enter_context(Client(peer, changes))
        return self.clients[peer, setting]

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
        for (cell, backend, case), (words, what) in itertools.product(self.config.backends, scores.BACKENDS.items()):
            row, names = f'{cell} {case}', (scores.PLAIN, backend)
            for name in names:
                ours.client.ask('prepare', name=name, what='backend', sizes=[what, cell, name, *case])
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
    return 'x'.join(map(str, sizes))


def check_same(candidates: Sequence[Candidate], what: str, row: str) -> None:
    """Raises UserError if the results of two libraries differ."""
    saved: dict[str, dict[str, np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {c.peer: (c.client, str(Path(folder) / f'{c.peer}.npz')) for c in candidates}
        peers_client.ask_all({client: {'do': 'save', 'name': what, 'path': path} for client, path in paths.values()})
        for peer, (_, path) in paths.items():
            with np.load(path) as results:
                saved[peer] = dict(results)
    for peer, arrays in saved.items():
        cases.check_equal(saved[scores.OURS], arrays, peer, f'{what} {row}')


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


# --- machine ---------------------------------------------------------------------------------------


def installed(peers: Sequence[str]) -> list[str]:
    """Returns the libraries that are installed, and warns of the others."""
    available = []
    for peer in peers:
        if importlib.util.find_spec(peer) is None:
            errors.warn(
                f'{table.NAMES[peer]} is not installed: its columns are missing, and its checks are not measured; '
                'pip install "seqjax[bench]"'
            )
        else:
            available.append(peer)
    return available


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


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


DEFAULTS = cli_command.default_values(run)
COMMAND = Command(
    'bench',
    __doc__,
    run,
    FlagTable(FLAGS, DEFAULTS),
    lambda values: default_workdir.default_workdir(values, DEFAULTS, 'bench'),
)
main = COMMAND.main


if __name__ == '__main__':
    COMMAND.execute()
