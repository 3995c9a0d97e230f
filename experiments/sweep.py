"""One experiment under many settings, each with many seeds: a tidy table, and a figure with intervals.

    python -m experiments.sweep --experiment=td --flagfile=many_to_many --grid=learning_rate:1e-3,3e-3 --replicas=50
    python -m experiments.sweep --experiment=echo --grid=cell:lstm,gru --grid=delay:2,4,8

Every flag of the experiment is one of the sweep. Settings that differ in their learning rates alone share a program and
run side by side; the others follow each other. A sweep that was stopped goes on where it was.
"""

from __future__ import annotations

import csv
import importlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import launch, studies
from experiments.launch import Choice, Command, Flag, Grid, Name, Table, Whole
from experiments.run_directory import default_workdir
from seqjax import files, optim, report, training
from seqjax.files import UserError
from seqjax.progress import Progress, progress
from seqjax.task import TrainState
from seqjax.training.chunk_result import ChunkResult, latest_values, metric_names
from seqjax.training.observers import Observer, ProgressBar
from seqjax.training.replicas import ReplicaGroup, pad_replicas
from seqjax.training.run import CompiledRun, StateOverride
from seqjax.training.session import TrainSession
from seqjax.training.summary import new_summary

NAME, TABLE, VALUES = 'sweep', 'sweep.csv', 'values.f32'
FILES = (files.SUMMARY, TABLE, files.CURVE)
EXPERIMENTS = ('td', 'echo', *studies.NAMES)  # which have make_model, make_task, make_optimiser and STEPS
LOOKS = 20  # at the metrics, by default
MOST_SETTINGS = 10_000
ROW = 100  # float32 numbers that the rows of a look at a run take, at least
RATE = 'learning_rate'
# Flags of an experiment that a sweep has itself, or has no use for.
NOT_OURS = ('seed', 'replicas', 'workdir', 'overwrite', 'picture', 'chunk', 'every', 'best')
NOT_OURS += ('until', 'to_the_end', 'split')

OWN = {
    'experiment': Flag(Choice(*EXPERIMENTS), 'what is run'),
    'grid': Flag(Grid(), "a flag of the experiment, and its values; repeated, every value of one with every other's"),
    'every': Flag(Whole(1), 'steps between two looks at the metrics; a twentieth of the steps by default'),
    'metric': Flag(Name(), 'the metric of the figure'),
    **{name: launch.SHARED[name] for name in ('seed', 'replicas', 'workdir', 'overwrite', 'picture')},
}
OWN_DEFAULTS = {'experiment': 'td', 'grid': None, 'every': None, 'metric': 'loss', 'seed': 0, 'replicas': 10}
OWN_DEFAULTS |= {'workdir': None, 'overwrite': False, 'picture': True}


class Row(NamedTuple):
    """A value of a metric; in sweep.csv the flags of the grid stand before it."""

    setting: tuple[Any, ...]  # the values of the grid's flags
    seed: int
    step: int
    metric: str
    value: float


# Settings that share a program: the place of their checkpoints, the flags of one of them, and those of all.
Program = tuple[str, dict[str, Any], dict[tuple[Any, ...], dict[str, Any]]]
Programs = Sequence[Program]


class SweepRun(NamedTuple):
    """One run of a sweep."""

    setting: tuple[Any, ...]
    seed: int
    rate: float


# --- flags -----------------------------------------------------------------------------------------


def module_of(experiment: str) -> Any:
    """Returns what has make_model, make_task, make_optimiser and the flags: a module, or its study."""
    module = importlib.import_module(f'experiments.{experiment}')
    return getattr(module, 'STUDY', module)


def _defaults(module: Any) -> dict[str, Any]:
    return module.defaults if hasattr(module, 'defaults') else launch.default_values(module.run)


def table_of(experiment: str) -> tuple[dict[str, Flag], dict[str, Any]]:
    """The flags of a sweep of that experiment, and their defaults."""
    module = module_of(experiment)
    defaults = _defaults(module)
    theirs = {name: flag for name, flag in module.FLAGS.items() if name not in NOT_OURS}
    return OWN | theirs, OWN_DEFAULTS | {name: defaults[name] for name in theirs}


def run(**values: Any) -> list[Row]:
    """Runs one experiment under many settings, each with many seeds.

    Arguments are the flags of the sweep (`OWN`) and those of the experiment; `grid` is a dictionary of lists, or a list
    of NAME:VALUE,VALUE. Without `workdir` nothing is kept.

    Raises:
      UserError (a ValueError): an argument is refused, or the folder holds another sweep.
    """
    first = {'experiment': OWN['experiment']}  # it decides which other flags there are
    table, defaults = table_of(launch.check(first, OWN_DEFAULTS | values, OWN_DEFAULTS)['experiment'])
    launch.check_known(values, table)
    given = defaults | values
    axes = _axes(given.pop('grid'), table)
    table = {name: flag for name, flag in table.items() if name != 'grid'}
    settings = launch.check(table, given, defaults)
    settings['grid'] = [[name, list(found)] for name, found in axes.items()]
    module = module_of(settings['experiment'])
    launch.check_seeds(settings['seed'], settings['replicas'])
    every_setting = _combine(settings, axes, module)
    steps = {one[module.STEPS] for one in every_setting.values()}
    if module.STEPS in axes:
        raise UserError(f'--grid={module.STEPS}:... is of no use: the table has every step up to --{module.STEPS}')
    settings[module.STEPS] = max(steps)
    settings['every'] = settings['every'] or max(1, min(steps) // LOOKS)
    launch.check_every(settings['every'], module.STEPS, min(steps))
    programs = list(_programs(every_setting, module))
    _check_sizes(settings, programs, module)
    with files.open_workdir(settings, NAME, names=FILES, steps=module.STEPS) as (folder, summary):
        return _run(settings, every_setting, programs, module, folder, summary)


def _check_sizes(settings: dict[str, Any], programs: Programs, module: Any) -> None:
    """Raises UserError where a program, or the table of all values, exceeds the memory."""
    replicas, every = settings['replicas'], settings['every']
    looks = sum(shared[module.STEPS] // every * len(several) for _, shared, several in programs)
    sizes = {'replicas': replicas, module.STEPS: settings[module.STEPS], 'every': every}
    launch.check_memory(ROW * looks * replicas, sizes)
    for _, shared, several in programs:
        chunks = {'replicas': len(several) * replicas, 'every': every, 'chunk': every}
        numbers, named = module.sizes(**shared | chunks)
        launch.check_memory(numbers, named | {'chunk': None} | sizes)


def _axes(grid: Any, table: Mapping[str, Flag]) -> dict[str, list[Any]]:
    """The flags of the grid with their parsed values."""
    pairs = grid.items() if isinstance(grid, Mapping) else [_pair(item) for item in grid or ()]
    axes: dict[str, list[Any]] = {}
    for name, values in pairs:
        if name not in table or name in OWN or name in axes:
            why = 'twice in the grid' if name in axes else 'no flag of the experiment that a grid can vary'
            near = launch.nearest(name, set(table) - set(OWN))
            raise UserError(f'--grid={name} is {why}{near}')
        axes[name] = []
        for value in values:
            try:
                axes[name].append(table[name].parser.parse(value))
            except ValueError as error:
                raise UserError(f'--grid={name}:{value} {error}') from error
        if not axes[name] or len(set(map(repr, axes[name]))) < len(axes[name]):
            raise UserError(f'--grid={name} must have one or more values, all different')
    return axes


def _pair(item: Any) -> tuple[str, Sequence[Any]]:
    """A tuple is what the command line has parsed already."""
    try:
        return item if isinstance(item, tuple) else Grid().parse(item)
    except ValueError as error:
        raise UserError(f'--grid={item} {error}') from error


def _combine(
    settings: dict[str, Any], axes: dict[str, list[Any]], module: Any
) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The values of the grid's flags -> all flags of the experiment."""
    defaults, found = _defaults(module), {}
    count = math.prod(map(len, axes.values()))
    if count > MOST_SETTINGS:
        named = ' '.join(f'--grid={name} of {len(values)} values' for name, values in axes.items())
        raise UserError(f'{named} makes {count:,} settings; choose values that make at most {MOST_SETTINGS:,}')
    for setting in itertools.product(*axes.values()):
        one = defaults | {name: settings[name] for name in module.FLAGS if name in settings}
        one |= dict(zip(axes, setting, strict=True))
        found[setting] = getattr(module, 'complete', dict)(one)
    return found


# --- the sweep -------------------------------------------------------------------------------------


def _run(
    settings: dict[str, Any],
    every_setting: dict[tuple[Any, ...], dict[str, Any]],
    programs: Programs,
    module: Any,
    folder: files.Workdir,
    summary: dict[str, Any] | None,
) -> list[Row]:
    """Runs what there is to run, or reads it, and shows it."""
    names = [name for name, _ in settings['grid']]
    if summary is None:
        with launch.matmul_precision(settings['matmul_precision']):
            rows = _train(settings, every_setting, programs, module, folder)
    else:
        print(f'{folder.path} holds this sweep, finished: shown again (--overwrite does it anew)\n')
        rows = _read(folder, settings['grid'])
    _check_metric(settings['metric'], dict.fromkeys(row.metric for row in rows))
    shown = [row for row in rows if row.metric == settings['metric']]
    print('\n'.join(_lines(names, shown, settings)))
    if settings['picture']:
        _picture(folder, names, shown, settings)
    if folder.path is not None:
        print('\n' + folder.listing())
    return rows


def _check_metric(metric: str, names: Iterable[str]) -> None:
    if metric not in names:
        raise UserError(f'--metric={metric} is no metric of this sweep; there are {", ".join(names)}')


def _train(
    settings: dict[str, Any],
    every_setting: dict[tuple[Any, ...], dict[str, Any]],
    programs: Programs,
    module: Any,
    folder: files.Workdir,
) -> list[Row]:
    summary = new_summary(NAME, settings, [])
    folder.write_summary(summary)
    seeds = range(settings['seed'], settings['seed'] + settings['replicas'])
    rows = []
    total = sum(one[module.STEPS] * len(seeds) for one in every_setting.values())
    with progress(total, 'seed-step') as shown:
        for place, shared, several in programs:
            runs = [SweepRun(setting, seed, one[RATE]) for setting, one in several.items() for seed in seeds]
            rows += SharedProgram(settings, shared, module, folder, len(runs)).rows(place, runs, shown)
    places = {setting: i for i, setting in enumerate(every_setting)}
    rows.sort(key=lambda row: (places[row.setting], row.seed, row.step))
    _write(folder, [name for name, _ in settings['grid']], rows)
    folder.write_summary(summary | {'finished': True})
    return rows


def _programs(every_setting: dict[tuple[Any, ...], dict[str, Any]], module: Any) -> Iterator[Program]:
    """Settings that share a program: where their checkpoints lie, the flags of one of them, and those of all."""
    shared: dict[str, tuple[str, dict[tuple[Any, ...], dict[str, Any]]]] = {}
    for i, (setting, one) in enumerate(every_setting.items()):
        others = {name: value for name, value in one.items() if name != RATE}
        same = repr(others) if _rate_is_free(one, module) else str(i)
        shared.setdefault(same, (f'setting_{i}', {}))[1][setting] = one
    for place, several in shared.values():
        yield place, next(iter(several.values())), several


def _rate_is_free(one: dict[str, Any], module: Any) -> bool:
    """Whether the optimiser takes its learning rate from its state, where each run may have its own."""
    tx = module.make_optimiser(one)
    return optim.rates_in_state(jax.eval_shape(tx.init, {'x': jax.ShapeDtypeStruct((1,), np.float32)}))


class SharedProgram(NamedTuple):
    """Settings that share a program."""

    settings: dict[str, Any]  # the sweep's
    shared: dict[str, Any]  # the experiment's, of one of them
    module: Any
    folder: files.Workdir
    count: int  # of runs

    def rows(self, place: str, runs: Sequence[SweepRun], bar: Progress) -> list[Row]:
        """Returns all values of all runs."""
        compiled, free = self.compile(), _rate_is_free(self.shared, self.module)
        names = metric_names(compiled.programs)
        _check_metric(self.settings['metric'], [*names, RATE])
        values = MetricLog(len(names), self.settings['every'])
        # Where not every run has the rate of the program, and then also in a group of one rate.
        own = np.array([run.rate for run in runs], np.float32)

        def folder(group: ReplicaGroup) -> str:
            return f'{place}/lanes_{group.first}_to_{group.first + len(group.seeds) - 1}'

        def override(group: ReplicaGroup) -> StateOverride | None:
            rates = own[group.first : group.first + len(group.seeds)]
            if (rates == np.float32(self.shared[RATE])).all():
                return None
            return StateOverride(_with_rates, pad_replicas(rates, compiled.width))

        training.train_seeds(
            compiled,
            [run.seed for run in runs],
            [values, ProgressBar(bar, label=lambda session: folder(session.group))],
            place=folder,
            override=override,
        )
        return list(self._rows(runs, names, values.groups, compiled, free))

    def compile(self) -> CompiledRun:
        model, task = self.module.make_model(self.shared), self.module.make_task(self.shared)
        how = {'steps': self.shared[self.module.STEPS], 'chunk': self.settings['every'], 'replicas': self.count}
        if hasattr(self.module, 'max_width'):
            how['max_width'] = self.module.max_width(**self.shared)
        how |= launch.keeping(self.settings | {'best': None})
        tx = self.module.make_optimiser(self.shared)
        return training.compile_run(model, task, tx, None, **how, workdir=self.folder)._replace(allow_divergence=True)

    def _rows(
        self,
        runs: Sequence[SweepRun],
        names: Sequence[str],
        groups: Sequence[np.ndarray],
        compiled: CompiledRun,
        free: bool,
    ) -> Iterator[Row]:
        steps = self.settings['every'] * np.arange(1, len(groups[0]) + 1)
        rates = optim.learning_rates(compiled.tx, steps - 1)
        for i, run in enumerate(runs):
            values = groups[i // compiled.group_width][:, :, i % compiled.group_width]
            for evaluation, step in enumerate(steps.tolist()):
                found = [*values[evaluation], run.rate if free else rates[evaluation]]
                for metric, value in zip([*names, RATE], found, strict=True):
                    yield Row(run.setting, run.seed, step, metric, float(value))


class MetricLog(Observer):
    """Metrics of the last step before every evaluation, [evaluations, metrics, n] of each group."""

    log_name = VALUES

    def __init__(self, metrics: int, eval_every: int):
        self.metrics, self.eval_every = metrics, eval_every
        self.groups: list[np.ndarray] = []

    def on_start(self, session: TrainSession, restored: bytes) -> None:
        self.groups.append(np.frombuffer(restored, '<f4').reshape(-1, self.metrics, session.num_seeds))

    def on_chunk(self, session: TrainSession, chunk: ChunkResult) -> bytes:
        if chunk.end % self.eval_every:
            return b''
        values = latest_values(chunk).astype('<f4')
        self.groups[-1] = np.concatenate([self.groups[-1], values[None]])
        return values.tobytes()


def _with_rates(state: TrainState, rates: np.ndarray) -> TrainState:
    return state._replace(opt_state=optim.with_rates(state.opt_state, rates))


# --- what is shown ---------------------------------------------------------------------------------


def _words(names: Sequence[str], setting: Sequence[Any]) -> str:
    return ' '.join(f'{name}={value}' for name, value in zip(names, setting, strict=True)) or 'the one setting'


def _lines(names: Sequence[str], rows: Sequence[Row], settings: dict[str, Any]) -> Iterator[str]:
    """A table: each setting with the median of its seeds at the end, and the 95% interval of that median."""
    end = max(row.step for row in rows)
    words = {setting: _words(names, setting) for setting in dict.fromkeys(row.setting for row in rows)}
    width = max(map(len, words.values()))
    seeds, few = settings['replicas'], settings['replicas'] < report.FEWEST
    interval = 'their range' if few else 'its 95% interval'
    yield f'{settings["metric"]} at step {end:,}: the median of {seeds:,} seed{"s" * (seeds > 1)} and {interval}\n'
    for setting, said in words.items():
        values = np.array([row.value for row in rows if row.setting == setting and row.step == end])
        low, median, high = report.median_interval(values)
        failed = int((~np.isfinite(values)).sum())
        yield f'{said:<{width}}  {median:>10.4g}  ({low:.4g} to {high:.4g})' + (
            f'  {failed} diverged' if failed else ''
        )


def _picture(folder: files.Workdir, names: Sequence[str], rows: Sequence[Row], settings: dict[str, Any]) -> None:
    """The metric against the step: for each setting the median over seeds, with its 95% interval."""
    try:
        figure, (axis,) = report.new_figure(1, f'{settings["experiment"]}: median of {settings["replicas"]:,} seeds', 8)
    except ImportError:
        print('\n' + report.NO_PICTURE)
        return
    found = list(dict.fromkeys(row.setting for row in rows))
    for i, setting in enumerate(found):
        steps, curve = _curve([row for row in rows if row.setting == setting])
        report.draw_band(axis, steps, curve, report.shade(i / max(len(found) - 1, 1)), _words(names, setting))
    positive = all(row.value > 0 for row in rows if np.isfinite(row.value))
    axis.set(xlabel='step', ylabel=settings['metric'], yscale='log' if positive else 'linear')
    if len(found) <= 12:
        axis.legend(frameon=False, fontsize=9)
    files.write_picture(folder, figure)


def _curve(rows: Sequence[Row]) -> tuple[list[int], np.ndarray]:
    """The steps, and the interval of the median at each, [steps, 3]."""
    by_step: dict[int, list[float]] = {}
    for row in rows:
        by_step.setdefault(row.step, []).append(row.value)
    return list(by_step), np.array([report.median_interval(np.array(values)) for values in by_step.values()])


# --- the table -------------------------------------------------------------------------------------


def _write(folder: files.Workdir, names: Sequence[str], rows: Sequence[Row]) -> None:
    lines = ([*row.setting, row.seed, row.step, row.metric, float(row.value)] for row in rows)
    files.write_table(folder, TABLE, [*names, *Row._fields[1:]], lines)


def _read(folder: files.Workdir, grid: Sequence[Sequence[Any]]) -> list[Row]:
    path, known = folder.file(TABLE), [{str(value): value for value in values} for _, values in grid]
    with files.reading(path), files.open_file(path, 'r', newline='', encoding='utf-8') as lines:
        table = csv.reader(lines)
        if next(table, []) != [*(name for name, _ in grid), *Row._fields[1:]]:
            raise ValueError('the columns are not those of the run')
        rows = []
        for *setting, seed, step, metric, value in table:
            found = tuple(values[word] for values, word in zip(known, setting, strict=True))
            rows.append(Row(found, int(seed), int(step), metric, float(value)))
        if not rows:
            raise ValueError('it has no rows')
        return rows


def table_for(argv: Sequence[str]) -> Table:
    """The flags of a sweep of the experiment that is asked for."""
    experiment = launch.peek(argv, 'experiment', OWN_DEFAULTS['experiment'])
    return Table(*table_of(experiment if experiment in EXPERIMENTS else OWN_DEFAULTS['experiment']))


def with_workdir(values: dict[str, Any]) -> dict[str, Any]:
    """The flags with the default --workdir."""
    # The steps decide --every where that is not given.
    steps = 'every' if values['every'] is None else module_of(values['experiment']).STEPS
    _, defaults = table_of(values['experiment'])
    return default_workdir(values, defaults, NAME, values['experiment'], named=['experiment'], steps=steps)


COMMAND = Command(NAME, __doc__, run, table_for, with_workdir)
main = COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
