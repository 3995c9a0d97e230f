"""Time and memory beside PyTorch, Flax and Keras, measured in one run on one machine.

    python -m benchmarks.bench               # about half an hour; ./run.sh bench does the same
    python -m benchmarks.bench --quick       # small versions, under two minutes
    python -m benchmarks.bench --parts=rows --rows=32x100x64x128 --random=0

Each library works in a process of its own, which waits while another is measured. In every round all are visited once,
in an order drawn anew; what is compared are the two times of one round. Before a row is timed, all libraries must
compute the same numbers from the same weights. PyTorch is first tried with one thread and with all, with the usual
allocator and with one that keeps what it had; the best of these goes into the rounds.
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
from benchmarks.peers.scores import Gate, Timing, Timings
from benchmarks.peers.table import Memory
from seqjax import errors, files
from seqjax.cli import command as cli_command
from seqjax.cli import default_workdir, flag_tables
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import Choice, Many, Switch, Whole
from seqjax.errors import UserError
from seqjax.reporting import plots
from seqjax.runs import directory, result_files
from seqjax.runs import memory as runs_memory
from seqjax.runs.append_log import AppendLog
from seqjax.runs.directory import Workdir

TIMINGS, MEMORY, TEXT, PICTURE = 'timings.csv', 'memory.csv', 'bench.md', 'bench.png'
FILES = (directory.SUMMARY, TIMINGS, MEMORY, TEXT, PICTURE)
PEERS = (scores.TORCH, scores.FLAX, scores.KERAS)
PARTS = ('rows', 'streaming', 'replicas', 'start', 'backends', 'growth')
NOTEBOOK = 'many_to_one'  # whose process is timed as a whole
# Every array of a step is made of pages anew: huge ones are fewer (as run.sh has it for all experiments), and an
# allocator that gives nothing back needs none. XLA gains from the first, PyTorch from the second, or from both.
HUGE = 'glibc.malloc.hugetlb=1'
KEEPING = 'glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=20000000000'
ON_JAX = {'GLIBC_TUNABLES': HUGE}
# One small step is over before another thread has heard of it, so `seqjax.cli.predict --stdin` does without one.
AT_ONCE = {cases.AT_ONCE: '1'}
ALLOCATORS = {
    'usual allocator': {},
    'keeping allocator': {'GLIBC_TUNABLES': KEEPING},
    'keeping allocator with huge pages': {'GLIBC_TUNABLES': f'{KEEPING}:{HUGE}'},
}


class Extent(NamedTuple):
    """How much is measured."""

    seconds: float  # of a visit
    rounds: int  # by default
    slow_rounds: int | None  # of what takes seconds: starting, compiling; as many as of all else where it is None
    rows: Sequence[Case]
    random: int
    flops: float  # of a random row's training step, at most
    streams: Sequence[Case]
    replicas: tuple[int, int]  # seeds, epochs
    backends: Sequence[tuple[str, str, Case]]  # cell, backend, and what it is for
    growth: dict[str, Sequence[Sequence[int]]]
    product: int  # the side of the matrices


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


CHOSEN = (  # cells, their backends, and what these are chosen for on CPUs
    ('lstm', 'small', Case(1, 1000, 1, 32)),
    ('lstm', 'narrow', Case(15, 114, 8, 28)),
    ('lstm', 'rows', Case(32, 100, 64, 128)),
    ('lstm', 'rows', Case(4, 4096, 8, 64)),  # whose sums are made again
    ('lstm', 'columns', Case(32, 128, 64, 1024)),
    ('gru', 'rows', Case(32, 100, 64, 128)),
    ('gru', 'rows', Case(64, 64, 128, 512)),
)

FULL = Extent(
    seconds=0.2,
    rounds=5,
    slow_rounds=None,
    rows=cases.ROWS,
    random=6,
    flops=cases.FLOPS,
    streams=_streams(32, 128, 512, 1024),
    replicas=(1000, 100),
    backends=CHOSEN,
    growth=_growth(
        [64, 256, 1024, 2048, 4096, 8192, 16_384],
        [1, 4, 16, 64, 256, 1024, 4096],
        [16, 32, 64, 128, 256, 512, 1024],
        [10, 100, 1000, 10_000, 25_000, 50_000, 100_000],
        20,
    ),
    product=4096,
)
QUICK = Extent(
    seconds=0.05,
    rounds=3,
    slow_rounds=1,
    rows=tuple(cases.quick(row) for row in cases.ROWS),
    random=1,
    flops=cases.QUICK_FLOPS,
    streams=_streams(32, 512),
    replicas=(1000, 20),
    backends=tuple((cell, name, cases.quick(case)) for cell, name, case in CHOSEN if case.units < 64),
    growth=_growth([256, 1024, 2048, 4096], [4, 64, 512], [32, 128, 512], [250, 1000, 4000], 10),
    product=1024,
)


class Size(flags.ArgumentParser):
    """The sizes of a row."""

    def parse(self, argument: Any) -> str:
        try:
            case = Case(*map(int, str(argument).split('x')))
        except (TypeError, ValueError):
            case = None
        if case is None or min(case) < 1 or str(case) != str(argument):
            raise ValueError('must be BxTxFxH, whole numbers from 1 on, such as 32x100x64x128')
        return str(case)

    def flag_type(self) -> str:
        return 'BxTxFxH'


FLAGS = {
    'quick': Flag(Switch(), 'small versions, which take two minutes and say less'),
    'seed': Flag(
        Whole(0, 2**32 - 1), 'decides the random rows and the order of the visits; drawn, and told, by default'
    ),
    'rounds': Flag(
        Whole(1, 1000), 'how often each library is visited, medians are over them; by default 5, with --quick 3'
    ),
    'rows': Flag(Many(Size()), 'sizes of the layers, instead of the usual six'),
    'random': Flag(Whole(0, 1000), 'how many more rows are drawn; by default 6, with --quick 1, with --rows none'),
    'peers': Flag(Many(Choice(*PEERS)), 'with whom we are compared'),
    'parts': Flag(Many(Choice(*PARTS)), 'what is measured'),
    **{name: flag_tables.SHARED[name] for name in ('workdir', 'overwrite', 'plot')},
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
) -> list[Gate]:
    """Measures time and memory beside PyTorch, Flax and Keras.

    Every argument is a flag of the command line, where `FLAGS` explains it. Without `workdir` nothing is kept.

    Returns:
      The gates; none of a folder's finished run, which is shown again.

    Raises:
      UserError (a ValueError): an argument is refused, the folder holds another run, or a library computes something
        else than we do.
    """
    settings = flag_tables.check(FLAGS, locals(), cli_command.default_values(run))
    for row in settings['rows'] or ():
        rows, steps, features, units = cases.sizes(row)
        numbers = rows * steps * (features + 10 * units) + 24 * units * (features + units)
        runs_memory.check_bytes(f'--rows={row}', 4 * numbers)
    with directory.open_workdir(settings, 'bench', names=FILES) as (folder, summary):
        if summary is None:
            if folder.path is not None:
                folder.clear()
            return _run(settings, folder)
        print(f'{folder.path} holds this run, finished: shown again (--overwrite measures anew)\n')
        with files.reading(folder.file(TEXT)):
            print(folder.file(TEXT).read_text(encoding='utf-8'))
        return []


def _run(settings: dict[str, Any], folder: Workdir) -> list[Gate]:
    """Measures, and leaves the results in the folder, the timings as they come."""
    drawn = int.from_bytes(os.urandom(4), 'little') if settings['seed'] is None else settings['seed']
    print(f'random rows and the order of visits by --seed={drawn}')
    machine = describe()
    print(machine)
    summary = {'experiment': 'bench', 'finished': False, 'flags': settings, 'seed': drawn, 'machine': machine}
    folder.write_summary(summary)
    with Bench(settings, folder, np.random.default_rng(drawn)) as bench:
        bench.run()
    words = f'Medians of {bench.rounds()[-1]} rounds, with their quartiles; random rows of seed {drawn}'
    origin = f'{words}; seqjax {seqjax.__version__}.'
    text = table.markdown(bench.timings, bench.memory, machine, origin)
    folder.write(TEXT, lambda path: path.write_text(text + '\n', encoding='utf-8'))
    _write_memory(folder, bench.memory)
    if settings['plot']:
        _picture(folder, bench.timings)
    folder.write_summary(summary | {'finished': True})
    print('\n' + text)
    if folder.path is not None:
        print('\n' + folder.listing())
    return scores.gates(bench.timings, bench.memory)


def _write_memory(folder: Workdir, memory: Memory) -> None:
    result_files.write_table(folder, MEMORY, ['row', 'peer', 'bytes'], ([*key, count] for key, count in memory.items()))


def _picture(folder: Workdir, timings: Timings) -> None:
    try:
        figure = table.draw(timings)
    except ImportError:
        print(plots.NO_MATPLOTLIB)
        return
    result_files.write_figure(folder, figure, PICTURE)


# --- what is measured ------------------------------------------------------------------------------


class Contender(NamedTuple):
    """A library with its settings, in a process that waits."""

    peer: str
    setting: str
    threads: int | None
    client: Client


class Bench:
    """The processes, what was measured so far, and each part of the run; a context."""

    def __init__(self, settings: dict[str, Any], folder: Workdir, rng: np.random.Generator):
        self.settings, self.rng, self.extent = settings, rng, QUICK if settings['quick'] else FULL
        self.peers = present(settings['peers'])
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
        """All parts that are asked for."""
        parts = {
            'rows': self.all_rows,
            'streaming': lambda: self.every(self.extent.streams, (cases.STREAMING,)),
            'replicas': self.replicas,
            'start': self.start,
            'backends': self.backends,
            'growth': self.growth,
        }
        for name, part in parts.items():
            if name in self.settings['parts']:
                part()

    def rounds(self, slow: bool = False) -> range:
        """Their numbers, from 1."""
        count = self.settings['rounds'] or self.extent.rounds
        return range(1, (self.extent.slow_rounds or count if slow else count) + 1)

    def all_rows(self) -> None:
        """The usual rows, or those that were asked for, and random ones."""
        asked, count = self.settings['rows'], self.settings['random']
        rows = list(self.extent.rows) if asked is None else [Case(*cases.sizes(row)) for row in asked]
        if count is None:
            count = self.extent.random if asked is None else 0
        rows += cases.draw(self.rng, count, self.extent.flops)
        self.every(dict.fromkeys(rows), scores.LAYER)

    def every(self, rows: Sequence[Case], whats: Sequence[str]) -> None:
        """Each of these rows by every library."""
        for row in rows:
            self.product()
            for what in whats:
                self.compare(row, what, [scores.OURS, *self.peers])

    def replicas(self) -> None:
        """The notebook's model for many seeds."""
        self.compare(
            self.extent.replicas, scores.REPLICAS, [scores.OURS, *(peer for peer in self.peers if peer == scores.FLAX)]
        )

    def compare(self, sizes: Sequence[int], what: str, peers: Sequence[str]) -> None:
        """One row by several libraries: the same work, the best settings, then the rounds."""
        row, contenders = name_of(sizes), self.contenders(peers, what)
        request = {'do': 'prepare', 'name': what, 'what': what, 'sizes': list(sizes)}
        for one, reply in peers_client.ask_all({contender.client: request for contender in contenders}).items():
            if reply['temporaries'] is not None:
                self.memory[row, one.peer] = reply['temporaries']
        if what != scores.REPLICAS:  # which begin with random numbers of their own
            check_same(contenders, what, row)
        prepared, contenders = contenders, self.fastest(contenders, row, what)
        for turn in self.rounds():
            for n in self.rng.permutation(len(contenders)):
                self.visit(contenders[n], what, row, what, turn)
        peers_client.ask_all({contender.client: {'do': 'forget'} for contender in prepared})
        words = [f'{table.NAMES[c.peer]} {table.span(self.timings.median(row, what, c.peer))}' for c in contenders]
        print(f'{what} {row}: {", ".join(words)}', flush=True)

    def contenders(self, peers: Sequence[str], what: str) -> list[Contender]:
        """PyTorch in each of its settings, the others, all on JAX, with huge pages; streams without a second thread."""
        found = []
        for peer in peers:
            if peer == scores.TORCH:
                for words, changes in ALLOCATORS.items():
                    process = self.client(peer, words, changes)
                    threads = sorted({1, cores()})
                    found += [Contender(peer, f'{n} thread{"s" * (n > 1)}, {words}', n, process) for n in threads]
            else:
                words, changes = ('at once', ON_JAX | AT_ONCE) if what == cases.STREAMING else ('', ON_JAX)
                found.append(Contender(peer, words, None, self.client(peer, words, changes)))
        return found

    def client(self, peer: str, words: str, changes: dict[str, str]) -> Client:
        """The process of a library, which is started when it is first needed."""
        if (peer, words) not in self.clients:
            self.clients[peer, words] = self.stack.enter_context(Client(peer, changes))
        return self.clients[peer, words]

    def visit(self, contender: Contender, name: str, row: str, what: str, turn: int) -> float:
        """Measures once, and keeps it."""
        reply = contender.client.ask('measure', name=name, seconds=self.extent.seconds, threads=contender.threads)
        self.keep(Timing(row, what, contender.peer, contender.setting, turn, reply['seconds']))
        return reply['seconds']

    def keep(self, timing: Timing) -> None:
        self.timings.all.append(timing)
        words = ('"' + str(word) + '"' if ',' in str(word) else str(word) for word in timing)
        self.log.append((','.join(words) + '\n').encode())

    def fastest(self, contenders: Sequence[Contender], row: str, what: str) -> list[Contender]:
        """A pilot decides with which of its settings a library goes into the rounds."""
        found = []
        for peer in dict.fromkeys(contender.peer for contender in contenders):
            own = [contender for contender in contenders if contender.peer == peer]
            if len(own) > 1:
                pilot = [(contender.setting, self.visit(contender, what, row, what, 0)) for contender in own]
                own = [contender for contender in own if contender.setting == scores.best(pilot)]
            found += own
        return found

    def product(self) -> None:
        """The matrix product alone: what the machine can do just now."""
        (ours,), size = self.contenders([scores.OURS], ''), self.extent.product
        ours.client.ask('prepare', name=scores.PRODUCT, what=scores.PRODUCT, sizes=[size])
        self.visit(ours, scores.PRODUCT, str(size), scores.PRODUCT, 1)

    def growth(self) -> None:
        """How our times grow; all sizes of a curve are visited in every round."""
        (ours,) = self.contenders([scores.OURS], '')
        for what, curve in self.extent.growth.items():
            work = {'growth over replicas': scores.REPLICAS, scores.COMPILING: 'compiling'}.get(what, cases.TRAINING)
            for sizes in curve:
                ours.client.ask('prepare', name=name_of(sizes), what=work, sizes=list(sizes))
            for turn in self.rounds(slow=what == scores.COMPILING):
                for n in self.rng.permutation(len(curve)):
                    self.visit(ours, name_of(curve[n]), name_of(curve[n]), what, turn)
            ours.client.ask('forget')
            print(f'{what}: exponent {self.timings.exponent(what):.3f}', flush=True)

    def backends(self) -> None:
        """Each of ours beside the plain recurrence, where it is chosen on CPUs."""
        (ours,) = self.contenders([scores.OURS], '')
        for (cell, backend, case), (words, what) in itertools.product(self.extent.backends, scores.BACKENDS.items()):
            row, names = f'{cell} {case}', (scores.PLAIN, backend)
            for name in names:
                ours.client.ask('prepare', name=name, what='backend', sizes=[what, cell, name, *case])
            for turn in self.rounds():
                for name in self.rng.permutation(names):
                    self.visit(ours._replace(peer=str(name)), str(name), row, words, turn)
            ours.client.ask('forget')
            found = [f'{name} {table.span(self.timings.median(row, words, name))}' for name in names]
            print(f'{words} {row}: {", ".join(found)}', flush=True)

    def start(self) -> None:
        """The notebook's training as a whole process, beside Keras's."""
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
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


def check_same(contenders: Sequence[Contender], what: str, row: str) -> None:
    """Raises UserError where two libraries do not compute the same numbers."""
    saved: dict[str, dict[str, np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {one.peer: (one.client, str(Path(folder) / f'{one.peer}.npz')) for one in contenders}
        peers_client.ask_all({one: {'do': 'save', 'name': what, 'path': path} for one, path in paths.values()})
        for peer, (_, path) in paths.items():
            with np.load(path) as held:
                saved[peer] = dict(held)
    for peer, arrays in saved.items():
        cases.check_equal(saved[scores.OURS], arrays, peer, f'{what} {row}')


def start_commands(folder: Path, keras: bool) -> dict[tuple[str, tuple[str, ...]], Callable[[int], Any]]:
    """Peer and what is measured -> starts the process of a round and waits for it.

    Keras keeps no compiled programs: one start of it is both.
    """
    ours = [sys.executable, '-m', 'experiments.td', f'--flagfile={NOTEBOOK}', '--noplot', '--overwrite']

    def start(command: Sequence[str], cache: str) -> None:
        changes = peers_client.environment(XDG_CACHE_HOME=str(folder / cache))
        done = subprocess.run(command, env=changes, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ['nothing'])[-1]
            raise UserError(f'{" ".join(command)} ended with {done.returncode} and said {said!r}; run it by hand')

    commands = {
        (scores.OURS, (scores.WARM,)): lambda turn: start([*ours, f'--workdir={folder / "run"}'], 'warm'),
        (scores.OURS, (scores.COLD,)): lambda turn: start([*ours, f'--workdir={folder / "run"}'], f'cold_{turn}'),
    }
    script = [sys.executable, str(Path(cases.__file__).parent / 'keras_td.py')]
    if keras:
        commands[scores.KERAS, (scores.WARM, scores.COLD)] = lambda turn: start(script, 'keras')
    return commands


def seconds_of(command: Callable[[int], Any], turn: int) -> float:
    start = time.perf_counter()
    command(turn)
    return time.perf_counter() - start


# --- the machine -----------------------------------------------------------------------------------


def present(peers: Sequence[str]) -> list[str]:
    """Those that are installed; of the others it is told that they are not."""
    found = []
    for peer in peers:
        if importlib.util.find_spec(peer) is None:
            errors.warn(
                f'{table.NAMES[peer]} is not installed: its columns are left out, and what is judged by it is not; '
                'pip install "seqjax[bench]"'
            )
        else:
            found.append(peer)
    return found


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def describe() -> str:
    """The machine and the versions, in a sentence."""
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
