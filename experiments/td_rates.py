"""How many epochs each learning rate needs until an experiment works, as a share of seeds.

    python -m experiments.td_rates
    python -m experiments.td_rates --setup=one_to_one --rates=0.001,0.01 --epochs=1500

The fewest epochs that bring the share to --share are chosen on one set of seeds and confirmed on as many others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from experiments import td
from seqjax import training
from seqjax.cli import command, default_workdir, flag_tables
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import Many, Positive, Share, Whole
from seqjax.reporting import plots, statistics, text_tables
from seqjax.runs import append_log, directory, result_files
from seqjax.runs.directory import Workdir
from seqjax.tasks import td as tasks_td
from seqjax.training import optimizers, progress, run_summary
from seqjax.training.chunk_result import ChunkResult
from seqjax.training.observers import Observer, ProgressBar
from seqjax.training.session import TrainSession
from seqjax.types import Task

SHARES, PICTURE = 'shares.csv', 'shares.png'
EXACT = 'exact.csv'  # of each group of seeds, beside its checkpoints
FILES = (directory.SUMMARY, SHARES, PICTURE)

FLAGS = {
    **{name: td.FLAGS[name] for name in ('setup', 'length', 'hidden', 'recurrent_activation', 'adam_epsilon', 'seed')},
    'rates': Flag(Many(Positive()), 'learning rates, separated by commas'),
    'epochs': Flag(Whole(1), 'training steps at most'),
    'every': Flag(Whole(1), 'epochs between two looks at the predictions; the last look is at a multiple of it'),
    'share': Flag(Share(), 'of seeds that must predict every target to one decimal: the low end of its 95% interval'),
    'replicas': Flag(Whole(1), 'seeds to choose on, and as many others to confirm on'),
    **{name: flag_tables.SHARED[name] for name in ('matmul_precision', 'workdir', 'overwrite', 'picture')},
    **{name: flag_tables.SHARED[name] for name in ('mesh', 'checkpoint_every', 'keep', 'best')},
}


class Point(NamedTuple):
    """A share of seeds, a row of shares.csv."""

    learning_rate: float
    epochs: int
    exact: int
    count: int


def run(
    *,
    setup: str = 'many_to_many',
    length: int = 5,
    hidden: int = 5,
    recurrent_activation: str = 'sigmoid',
    adam_epsilon: float = 1e-7,
    seed: int = 0,
    rates: Sequence[float] = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1),
    epochs: int = 2000,
    every: int = 5,
    share: float = 0.99,
    replicas: int = 1000,
    matmul_precision: str = 'default',
    workdir: str | None = None,
    overwrite: bool = False,
    picture: bool = True,
    mesh: str | None = None,
    checkpoint_every: int = 10_000,
    keep: int = 2,
    best: str | None = None,
) -> list[Point]:
    """How many epochs each learning rate needs until the experiment works.

    Every argument is a flag of the command line, where `FLAGS` explains it. Without `workdir` nothing is kept.

    Returns:
      The points of the curves, on the first `replicas` seeds.

    Raises:
      UserError (a ValueError): an argument is refused, or the folder holds another study.
    """
    settings = flag_tables.check(FLAGS, locals(), command.default_values(run))
    flag_tables.check_seeds(settings['seed'], settings['replicas'], sets=2)
    numbers, sizes = td.sizes(**settings, chunk=settings['every'])
    points = len(settings['rates']) * (settings['epochs'] // settings['every'])
    flag_tables.check_memory(numbers + 60 * points, {**sizes, 'chunk': None, 'every': settings['every']})
    flag_tables.check_every(settings['every'], 'epochs', settings['epochs'])
    with directory.open_workdir(settings, 'td_rates', names=FILES, steps='epochs') as (folder, summary):
        if summary is None:
            with flag_tables.matmul_precision(settings['matmul_precision']):
                summary = _study(settings, folder)
        else:
            print(f'{folder.path} holds this study, finished: shown again (--overwrite does it anew)')
        points = [Point(*point) for point in summary['points']]
        if settings['picture']:
            _picture(folder, points, settings)
        print()
        for rate in settings['rates']:
            print(_needs(rate, fewest([p for p in points if p.learning_rate == rate], settings['share']), settings))
        if folder.path is not None:
            print(folder.listing())
        print('\n' + _conclusion(summary, settings))
        return points


def _study(settings: dict[str, Any], folder: Workdir) -> dict[str, Any]:
    """All curves, and the confirmation of the best point; left in the folder."""
    first, count = settings['seed'], settings['replicas']
    model, task = td.make_model(settings), td.make_task(settings)
    study = Study(model, task, tasks_td.sequence(settings['length']), settings, folder)
    layers = text_tables.model_layers(model, task.data.inputs)
    summary = run_summary.new_summary('td_rates', settings, layers)
    folder.write_summary(summary)
    points = []
    for rate in settings['rates']:
        print(f'learning rate {rate:g}, seeds {first} to {first + count - 1}')
        points += study.curve(f'rate_{rate!r}', rate, np.arange(first, first + count), settings['epochs'])
    best, confirmed = fewest(points, settings['share']), None
    if best is not None:
        print('confirming on other seeds')
        others = np.arange(first + count, first + 2 * count)
        place = f'confirmed_{best.learning_rate!r}_{best.epochs}'
        confirmed = study.curve(place, best.learning_rate, others, best.epochs)[-1]
    write_points(folder, points)
    summary |= {'finished': True, 'points': points, 'fewest': best, 'confirmed': confirmed}
    folder.write_summary(summary)
    return summary


def _conclusion(summary: dict[str, Any], settings: dict[str, Any]) -> str:
    if summary['fewest'] is None:
        return f'{settings["setup"]}: no learning rate reaches a share of {settings["share"]:.1%}.'
    first, count = settings['seed'] + settings['replicas'], settings['replicas']
    return (
        f'{settings["setup"]}: {_in_words(Point(*summary["fewest"]))}; on seeds {first} to {first + count - 1}, '
        f'which chose nothing, {_in_words(Point(*summary["confirmed"]))}.'
    )


class Study(NamedTuple):
    """What all curves share."""

    model: nn.Module
    task: Task
    targets: np.ndarray  # [length]
    settings: dict[str, Any]
    folder: Workdir

    def curve(self, place: str, rate: float, seeds: np.ndarray, epochs: int) -> list[Point]:
        """Trains `seeds`, with checkpoints at `place`, and counts every few epochs those that are exact."""
        every, inputs = self.settings['every'], self.task.data.inputs
        how = {'steps': epochs, 'chunk': every, 'replicas': len(seeds), 'workdir': self.folder}
        how |= flag_tables.keeping(self.settings)
        run = training.compile_run(
            self.model, self.task, optimizers.adam(rate, self.settings['adam_epsilon']), inputs, **how
        )
        exact = ExactCounts(inputs, self.targets, epochs, every)

        def label(session: TrainSession) -> str:
            return f'{place}/{session.group}'

        with progress.progress(len(seeds) * epochs, 'seed-epoch') as bar:
            training.train_seeds(
                run, seeds, [exact, ProgressBar(bar, exact, label)], place=lambda group: f'{place}/{group}'
            )
        return [Point(rate, (i + 1) * every, int(n), len(seeds)) for i, n in enumerate(exact.total)]


class ExactCounts(Observer):
    """Number of exact seeds after every few epochs, [epochs // every]."""

    log_name = EXACT

    def __init__(self, inputs: np.ndarray, targets: np.ndarray, epochs: int, every: int):
        self.inputs, self.targets, self.every = inputs, targets, every
        self.total = np.zeros(epochs // every, int)
        self.latest = self.count = 0  # exact seeds of the group, and its seeds

    def on_start(self, session: TrainSession, restored: bytes) -> None:
        self.latest, self.count = 0, session.num_seeds
        for epoch, n in append_log.whole_numbers(restored):
            self._add(epoch, n)

    def _add(self, epoch: int, n: int) -> None:
        self.total[epoch // self.every - 1] += n
        self.latest = n

    def on_chunk(self, session: TrainSession, chunk: ChunkResult) -> bytes:
        if chunk.end % self.every:
            return b''
        outputs = np.asarray(session.run.programs.predict(chunk.state, self.inputs))[: self.count]
        self._add(chunk.end, td.exact(outputs.reshape(self.count, -1), self.targets).sum())
        return append_log.format_whole_numbers([(chunk.end, self.latest)])

    def status(self) -> str:
        return f'{self.latest:,} of {self.count:,} exact'


def fewest(points: Sequence[Point], share: float) -> Point | None:
    """The point with the fewest epochs that reaches the share; among equals the one with the most exact seeds.

    Its whole 95% interval must: of many points that are looked at, the first to touch the share is often a lucky one.
    """
    reached = [p for p in points if statistics.share_interval(p.exact, p.count)[0] >= share]
    return min(reached, key=lambda p: (p.epochs, -p.exact)) if reached else None


def _in_words(point: Point) -> str:
    low, high = statistics.share_interval(point.exact, point.count)
    return (
        f'learning rate {point.learning_rate:g} makes {point.exact:,} of {point.count:,} seeds '
        f'({point.exact / point.count:.1%}; 95% interval {low:.1%} to {high:.1%}) exact in {point.epochs:,} epochs'
    )


def _needs(rate: float, point: Point | None, settings: dict[str, Any]) -> str:
    if point is None:
        return f'learning rate {rate:g} does not reach {settings["share"]:.1%} within {settings["epochs"]:,} epochs'
    return _in_words(point)


def write_points(folder: Workdir, points: Sequence[Point]) -> None:
    """shares.csv: a row for every point."""
    rows = ([*p, p.exact / p.count, *statistics.share_interval(p.exact, p.count)] for p in points)
    result_files.write_table(folder, SHARES, [*Point._fields, 'share', 'low', 'high'], rows)


def _picture(folder: Workdir, points: Sequence[Point], settings: dict[str, Any]) -> None:
    """The share of seeds against the epochs, a curve for each learning rate."""
    title = f'{settings["setup"]}: share of {settings["replicas"]:,} seeds that predict every target to one decimal'
    try:
        figure, (axis,) = plots.new_figure(1, title, width=8)
    except ImportError:
        print(plots.NO_PICTURE)
        return
    for i, rate in enumerate(settings['rates']):
        curve = [p for p in points if p.learning_rate == rate]
        color = plots.shade(i / max(len(settings['rates']) - 1, 1))
        axis.plot([p.epochs for p in curve], [p.exact / p.count for p in curve], color=color, label=f'{rate:g}')
    axis.axhline(settings['share'], color=plots.GREY, lw=1, ls=':')
    axis.set(xlabel='epochs', ylabel='share of seeds', xscale='log', ylim=(0, 1.02))
    axis.legend(title='learning rate', frameon=False, fontsize=9)
    result_files.write_picture(folder, figure, PICTURE)


DEFAULTS = command.default_values(run)
COMMAND = Command(
    'td_rates',
    __doc__,
    run,
    FlagTable(FLAGS, DEFAULTS),
    lambda values: default_workdir.default_workdir(
        values, DEFAULTS, 'td_rates', values['setup'], named=['setup'], steps='epochs'
    ),
)
main = COMMAND.main


if __name__ == '__main__':
    COMMAND.execute()
