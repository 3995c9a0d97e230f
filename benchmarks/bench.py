"""Measure time and memory of seqjax, PyTorch, Flax and Keras in one run on one machine.

    python -m benchmarks.bench               # under 25 minutes on two cores; ./run.sh bench does the same
    python -m benchmarks.bench --quick       # small versions, in two to three minutes
    python -m benchmarks.bench --parts=rows --rows='32x100x64x128,gru 32x100x64x128'

The parts are:

    rows         forward pass and training step of an LSTM and a GRU (reset gate after the product), B x T x F x H
    streaming    one time step of one sequence
    one_core     some rows in seqjax and PyTorch, in processes that run on one core and with one thread
    replicas     many seeds of a small model
    start        a whole run as a process, with and without a compilation cache
    backends     our backends, relative to the plain recurrence
    growth       our time over T, B, H and replicas

Each library has a process of its own, which is idle while another is measured. In every round each library is measured
once, in random order, and times of the same round are compared. Before a row is timed, all libraries must compute the
same results from the same weights. A pilot selects the best setting of PyTorch: one thread or all, and the usual
allocator or one that keeps freed memory. In the rows that are not random, seqjax without its native kernels is measured
as one more library.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

import seqjax
from benchmarks.peers import bench_config, cases, machine, scores, table
from benchmarks.peers.measure import Bench
from benchmarks.peers.scores import Check, Timings
from benchmarks.peers.table import Memory
from seqjax import files
from seqjax.cli import command as cli_command
from seqjax.cli import default_workdir, flag_tables
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import BoolParser, ChoiceParser, IntParser, ListParser, PathParser
from seqjax.reporting import plots, text_tables
from seqjax.runs import directory, result_files
from seqjax.runs import memory as runs_memory
from seqjax.runs.directory import Workdir

TIMINGS, MEMORY, TEXT, PICTURE = 'timings.csv', 'memory.csv', 'bench.md', 'bench.png'
FILES = (directory.SUMMARY, TIMINGS, MEMORY, TEXT, PICTURE)
PEERS = (scores.TORCH, scores.FLAX, scores.KERAS, scores.NATIVE_OFF)
PARTS = ('rows', 'streaming', 'one_core', 'replicas', 'start', 'backends', 'growth')


class SizeParser(flags.ArgumentParser):
    """Parser for the sizes of a row, after the name of the cell if it is not an LSTM."""

    def parse(self, argument: Any) -> str:
        try:
            case = cases.parse(str(argument))
        except (TypeError, ValueError):
            case = None
        names = () if case is None else (str(case), str(case).removeprefix(f'{cases.LSTM} '))
        if str(argument) not in names or case.cell not in cases.GATES or min(case.sizes) < 1:
            raise ValueError(
                "must be BxTxFxH, integers of at least 1, such as 32x100x64x128, or 'gru BxTxFxH' for a GRU"
            )
        return str(argument)

    def flag_type(self) -> str:
        return 'BxTxFxH'


FLAGS = {
    'quick': Flag(BoolParser(), 'small versions, in two to three minutes'),
    'seed': Flag(
        IntParser(0, 2**32 - 1), 'seed of the random rows and of the order in a round; random by default, and printed'
    ),
    'rounds': Flag(IntParser(1, 1000), 'number of rounds, whose median is reported; by default 5, with --quick 3'),
    'rows': Flag(ListParser(SizeParser()), 'sizes of the layers, instead of the default ten rows'),
    'random': Flag(
        IntParser(0, 1000),
        'number of random rows of each cell; by default 6 LSTMs and 2 GRUs, with --quick 1 and 0, with --rows 0',
    ),
    'peers': Flag(
        ListParser(ChoiceParser(*PEERS)), 'libraries to compare with; native_off is seqjax without its native kernels'
    ),
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
        rows, steps, features, units = cases.parse(row).sizes
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
    description = machine.describe()
    print(description)
    summary = {'experiment': 'bench', 'finished': False, 'flags': settings, 'seed': seed, 'machine': description}
    folder.write_summary(summary)
    config = bench_config.QUICK if settings['quick'] else bench_config.FULL
    path = folder.file(TIMINGS) if folder.writes else None
    with Bench(settings, config, path, np.random.default_rng(seed)) as bench:
        bench.run()
    origin = (
        f'Medians of {bench.rounds()[-1]} rounds, with their quartiles; random rows of seed {seed}; '
        f'seqjax {seqjax.__version__}.'
    )
    text = table.markdown(bench.timings, bench.memory, description, origin)
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
