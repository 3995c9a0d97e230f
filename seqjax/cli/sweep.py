"""One experiment under many settings, each with many seeds: a tidy table, and a figure with intervals.

    seqjax sweep --experiment=td --flagfile=many_to_many --grid=learning_rate:1e-3,3e-3 --num_seeds=50
    seqjax sweep --experiment=td --epochs=65 --eval_every=5 --grid=learning_rate:1e-3,0.01,0.1 --metric=exact
    seqjax sweep --experiment=echo --grid=cell:lstm,gru --grid=delay:2,4,8

Every flag of the experiment is one of the sweep. Settings that differ in their learning rates alone share a program and
run side by side; the others follow each other. A sweep that was stopped goes on where it was.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from seqjax import files, training
from seqjax.cli import command_line, default_workdir, flag_tables, sweep_grid
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import FlagTable
from seqjax.cli.settings import Settings
from seqjax.cli.sweep_grid import Programs
from seqjax.errors import UserError
from seqjax.reporting import plots, statistics
from seqjax.runs import directory, result_files
from seqjax.runs.directory import Workdir
from seqjax.training import chunk_result, optimizers, progress, run_summary
from seqjax.training import replicas as training_replicas
from seqjax.training.chunk_result import ChunkResult
from seqjax.training.compiled_run import CompiledRun, StateOverride
from seqjax.training.observers import Observer, ProgressBar
from seqjax.training.progress import Progress
from seqjax.training.replicas import ReplicaGroup
from seqjax.training.session import TrainSession
from seqjax.types import TrainState

NAME, TABLE, VALUES = 'sweep', 'sweep.csv', 'values.f32'
FILES = (directory.SUMMARY, TABLE, directory.CURVE)
LOOKS = 20  # at the metrics, by default
Measure = Callable[[TrainSession, TrainState], np.ndarray]  # a metric of each seed of a group [n], of its outputs
ROW = 100  # float32 numbers that the rows of a look at a run take, at least


class SweepRow(NamedTuple):
    """A value of a metric; in sweep.csv the flags of the grid stand before it."""

    setting: tuple[Any, ...]  # the values of the grid's flags
    seed: int
    step: int
    metric: str
    value: float


class Sweep(NamedTuple):
    """An experiment under many settings."""

    settings: dict[str, Any]  # the flags of the sweep
    every_setting: dict[tuple[Any, ...], dict[str, Any]]  # the values of the grid's flags -> all of the experiment
    programs: Programs
    module: Any


class SweepRun(NamedTuple):
    """One run of a sweep."""

    setting: tuple[Any, ...]
    seed: int
    rate: float


def run(**values: Any) -> list[SweepRow]:
    """Runs one experiment under many settings, each with many seeds.

    Arguments are the flags of the sweep (`OWN`) and those of the experiment; `grid` is a dictionary of lists, or a list
    of NAME:VALUE,VALUE. Without `workdir` nothing is kept.

    Raises UserError (a ValueError) where an argument is refused, or the folder holds another sweep.
    """
    first = {'experiment': sweep_grid.OWN['experiment']}  # it decides which other flags there are
    table, defaults = sweep_grid.table_of(
        flag_tables.check(first, sweep_grid.OWN_DEFAULTS | values, sweep_grid.OWN_DEFAULTS)['experiment']
    )
    flag_tables.check_known(values, table)
    given = defaults | values
    axes = sweep_grid.grid_axes(given.pop('grid'), table)
    table = {name: flag for name, flag in table.items() if name != 'grid'}
    settings = flag_tables.check(table, given, defaults)
    settings['grid'] = [[name, list(found)] for name, found in axes.items()]
    module = sweep_grid.module_of(settings['experiment'])
    flag_tables.check_seeds(settings['seed'], settings['num_seeds'])
    every_setting = sweep_grid.combine(settings, axes, module)
    steps = {one[module.STEPS] for one in every_setting.values()}
    if module.STEPS in axes:
        raise UserError(f'--grid={module.STEPS}:... is of no use: the table has every step up to --{module.STEPS}')
    settings[module.STEPS] = max(steps)
    settings['eval_every'] = settings['eval_every'] or max(1, min(steps) // LOOKS)
    flag_tables.check_every(settings['eval_every'], module.STEPS, min(steps))
    sweep = Sweep(settings, every_setting, list(sweep_grid.programs(every_setting, module)), module)
    _check_sizes(sweep)
    with directory.open_workdir(settings, NAME, names=FILES, steps=module.STEPS) as (folder, summary):
        return _run(sweep, folder, summary)


def _check_sizes(sweep: Sweep) -> None:
    """Raises UserError where a program, or the table of all values, exceeds the memory."""
    settings, _, programs, module = sweep
    num_seeds, eval_every = settings['num_seeds'], settings['eval_every']
    looks = sum(shared[module.STEPS] // eval_every * len(several) for _, shared, several in programs)
    sizes = {'num_seeds': num_seeds, module.STEPS: settings[module.STEPS], 'eval_every': eval_every}
    flag_tables.check_memory(ROW * looks * num_seeds, sizes)
    for _, shared, several in programs:
        chunks = {'num_seeds': len(several) * num_seeds, 'eval_every': eval_every, 'steps_per_call': eval_every}
        numbers, named = module.sizes(**shared | chunks)
        flag_tables.check_memory(numbers, named | {'steps_per_call': None} | sizes)


def _run(sweep: Sweep, folder: Workdir, summary: dict[str, Any] | None) -> list[SweepRow]:
    """Runs what there is to run, or reads it, and shows it."""
    settings = sweep.settings
    names = [name for name, _ in settings['grid']]
    if summary is None:
        with flag_tables.matmul_precision(settings['matmul_precision']):
            rows = _train(sweep, folder)
    else:
        print(f'{folder.path} holds this sweep, finished: shown again (--overwrite does it anew)\n')
        rows = _read(folder, settings['grid'])
    _check_metric(settings['metric'], dict.fromkeys(row.metric for row in rows))
    shown = [row for row in rows if row.metric == settings['metric']]
    print('\n'.join(_lines(names, shown, settings)))
    if settings['plot']:
        _picture(folder, names, shown, settings)
    if folder.path is not None:
        print('\n' + folder.listing())
    return rows


def _check_metric(metric: str, names: Iterable[str]) -> None:
    if metric not in names:
        raise UserError(f'--metric={metric} is no metric of this sweep; there are {", ".join(names)}')


def _train(sweep: Sweep, folder: Workdir) -> list[SweepRow]:
    settings, every_setting, programs, module = sweep
    summary = run_summary.new_summary(NAME, settings, [])
    folder.write_summary(summary)
    seeds = range(settings['seed'], settings['seed'] + settings['num_seeds'])
    rows = []
    total = sum(one[module.STEPS] * len(seeds) for one in every_setting.values())
    with progress.progress(total, 'seed-step') as shown:
        for place, shared, several in programs:
            runs = [SweepRun(setting, seed, one[sweep_grid.RATE]) for setting, one in several.items() for seed in seeds]
            rows += SharedProgram(settings, shared, module, folder, len(runs)).rows(place, runs, shown)
    places = {setting: i for i, setting in enumerate(every_setting)}
    rows.sort(key=lambda row: (places[row.setting], row.seed, row.step))
    names = [name for name, _ in settings['grid']]
    lines = ([*row.setting, row.seed, row.step, row.metric, float(row.value)] for row in rows)
    result_files.write_table(folder, TABLE, [*names, *SweepRow._fields[1:]], lines)
    folder.write_summary(summary | {'finished': True})
    return rows


class SharedProgram(NamedTuple):
    """Settings that share a program."""

    settings: dict[str, Any]  # the sweep's
    shared: dict[str, Any]  # the experiment's, of one of them
    module: Any
    folder: Workdir
    count: int  # of runs

    def rows(self, place: str, runs: Sequence[SweepRun], bar: Progress) -> list[SweepRow]:
        """Returns all values of all runs."""
        (compiled, measure), free = self.compile(), sweep_grid.rate_is_free(self.shared, self.module)
        names = chunk_result.metric_names(compiled.programs)
        measured = [self.module.measured] if hasattr(self.module, 'measured') else []
        _check_metric(self.settings['metric'], [*names, *measured, sweep_grid.RATE])
        if measure is not None:  # the logs of such a sweep have one value more
            names, place = [*names, *measured], f'{place}_{measured[0]}'
        values = MetricLog(len(names), self.settings['eval_every'], measure)
        # Where not every run has the rate of the program, and then also in a group of one rate.
        own = np.array([run.rate for run in runs], np.float32)

        def folder(group: ReplicaGroup) -> str:
            return f'{place}/lanes_{group.first}_to_{group.first + len(group.seeds) - 1}'

        def override(group: ReplicaGroup) -> StateOverride | None:
            rates = own[group.first : group.first + len(group.seeds)]
            if (rates == np.float32(self.shared[sweep_grid.RATE])).all():
                return None
            return StateOverride(_with_rates, training_replicas.pad_replicas(rates, compiled.width))

        training.train_seeds(
            compiled,
            [run.seed for run in runs],
            [values, ProgressBar(bar, label=lambda session: folder(session.group))],
            subfolder=folder,
            override=override,
        )
        return list(self._rows(runs, names, values.groups, compiled, free))

    def compile(self) -> tuple[CompiledRun, Measure | None]:
        """Returns the run, and what measures its seeds where the metric that is asked for is measured on outputs."""
        model, task = self.module.make_model(self.shared), self.module.make_task(self.shared)
        inputs, measure = None, None
        if self.settings['metric'] == getattr(self.module, 'measured', None):
            settings = Settings.of(self.shared)
            inputs = self.module.test_inputs(task, settings)

            def measure(session: TrainSession, state: TrainState) -> np.ndarray:
                outputs = np.asarray(session.run.programs.predict(state, inputs))
                return self.module.measure(outputs[: session.num_seeds], settings)

        how = {
            'steps': self.shared[self.module.STEPS],
            'steps_per_call': self.settings['eval_every'],
            'num_seeds': self.count,
        }
        if hasattr(self.module, 'max_width'):
            how['max_width'] = self.module.max_width(**self.shared)
        how |= flag_tables.keeping(self.settings | {'keep_best': None})
        tx = self.module.make_optimiser(self.shared)
        compiled = training.compile_run(model, task, tx, inputs, **how, workdir=self.folder)
        return compiled._replace(allow_divergence=True), measure

    def _rows(
        self,
        runs: Sequence[SweepRun],
        names: Sequence[str],
        groups: Sequence[np.ndarray],
        compiled: CompiledRun,
        free: bool,
    ) -> Iterator[SweepRow]:
        steps = self.settings['eval_every'] * np.arange(1, len(groups[0]) + 1)
        rates = optimizers.learning_rates(compiled.tx, steps - 1)
        for i, run in enumerate(runs):
            values = groups[i // compiled.group_width][:, :, i % compiled.group_width]
            for evaluation, step in enumerate(steps.tolist()):
                found = [*values[evaluation], run.rate if free else rates[evaluation]]
                for metric, value in zip([*names, sweep_grid.RATE], found, strict=True):
                    yield SweepRow(run.setting, run.seed, step, metric, float(value))


class MetricLog(Observer):
    """Metrics of the last step before every evaluation, [evaluations, metrics, n] of each group.

    Args:
      metrics: how many there are, with what is measured.
      eval_every: training steps between two evaluations.
      measure: gives a further metric, after the step; None for none.
    """

    log_name = VALUES

    def __init__(self, metrics: int, eval_every: int, measure: Measure | None = None):
        self.metrics, self.eval_every, self.measure = metrics, eval_every, measure
        self.groups: list[np.ndarray] = []

    def on_start(self, session: TrainSession, restored: bytes) -> None:
        self.groups.append(np.frombuffer(restored, '<f4').reshape(-1, self.metrics, session.num_seeds))

    def on_chunk(self, session: TrainSession, chunk: ChunkResult) -> bytes:
        if chunk.end % self.eval_every:
            return b''
        values = chunk_result.latest_values(chunk).astype('<f4')
        if self.measure is not None:
            values = np.concatenate([values, self.measure(session, chunk.state)[None].astype('<f4')])
        self.groups[-1] = np.concatenate([self.groups[-1], values[None]])
        return values.tobytes()


def _with_rates(state: TrainState, rates: np.ndarray) -> TrainState:
    return state._replace(opt_state=optimizers.with_rates(state.opt_state, rates))


def _words(names: Sequence[str], setting: Sequence[Any]) -> str:
    return ' '.join(f'{name}={value}' for name, value in zip(names, setting, strict=True)) or 'the one setting'


def _lines(names: Sequence[str], rows: Sequence[SweepRow], settings: dict[str, Any]) -> Iterator[str]:
    """A table: each setting with the median of its seeds at the end, or their share, and its 95% interval."""
    end = max(row.step for row in rows)
    words = {setting: _words(names, setting) for setting in dict.fromkeys(row.setting for row in rows)}
    width = max(map(len, words.values()))
    seeds, few = settings['num_seeds'], settings['num_seeds'] < statistics.MIN_MEDIAN_COUNT
    if _is_share(rows):
        yield f'{settings["metric"]} at step {end:,}: the share of {seeds:,} seeds and its 95% interval\n'
        for setting, said in words.items():
            count = sum(int(row.value) for row in rows if row.setting == setting and row.step == end)
            low, high = statistics.wilson_interval(count, seeds)
            yield f'{said:<{width}}  {count:>6,} of {seeds:,}  {count / seeds:.1%} ({low:.1%} to {high:.1%})'
        return
    interval = 'their range' if few else 'its 95% interval'
    yield f'{settings["metric"]} at step {end:,}: the median of {seeds:,} seed{"s" * (seeds > 1)} and {interval}\n'
    for setting, said in words.items():
        values = np.array([row.value for row in rows if row.setting == setting and row.step == end])
        low, median, high = statistics.median_interval(values)
        failed = int((~np.isfinite(values)).sum())
        yield f'{said:<{width}}  {median:>10.4g}  ({low:.4g} to {high:.4g})' + (
            f'  {failed} diverged' if failed else ''
        )


def _is_share(rows: Sequence[SweepRow]) -> bool:
    """Returns True if every value of the metric is 0 or 1, so that its mean over seeds is a share of them."""
    return all(row.value in (0, 1) for row in rows)


def _picture(folder: Workdir, names: Sequence[str], rows: Sequence[SweepRow], settings: dict[str, Any]) -> None:
    """The metric against the step: for each setting the median or the share of seeds, with its 95% interval."""
    what = 'share' if _is_share(rows) else 'median'
    try:
        figure, (axis,) = plots.new_figure(1, f'{settings["experiment"]}: {what} of {settings["num_seeds"]:,} seeds', 8)
    except ImportError:
        print('\n' + plots.NO_MATPLOTLIB)
        return
    found = list(dict.fromkeys(row.setting for row in rows))
    for i, setting in enumerate(found):
        steps, curve = _curve([row for row in rows if row.setting == setting], what == 'share')
        plots.draw_band(axis, steps, curve, i, len(found), _words(names, setting))
    positive = all(row.value > 0 for row in rows if np.isfinite(row.value))
    axis.set(
        xlabel='training step',
        ylabel=f'{settings["metric"]}, {what} and 95% interval',
        yscale='log' if positive else 'linear',
    )
    if len(found) <= 12:
        plots.add_legend(axis)
    result_files.write_figure(folder, figure)


def _curve(rows: Sequence[SweepRow], share: bool) -> tuple[list[int], np.ndarray]:
    """The steps, and at each the median or the share with its interval, [steps, 3]."""
    by_step: dict[int, list[float]] = {}
    for row in rows:
        by_step.setdefault(row.step, []).append(row.value)
    if share:
        intervals = [(statistics.wilson_interval(int(sum(x)), len(x)), sum(x) / len(x)) for x in by_step.values()]
        return list(by_step), np.array([(low, middle, high) for (low, high), middle in intervals])
    return list(by_step), np.array([statistics.median_interval(np.array(values)) for values in by_step.values()])


def _read(folder: Workdir, grid: Sequence[Sequence[Any]]) -> list[SweepRow]:
    path, known = folder.file(TABLE), [{str(value): value for value in values} for _, values in grid]
    with files.reading(path), files.open_file(path, 'r', newline='', encoding='utf-8') as lines:
        table = csv.reader(lines)
        if next(table, []) != [*(name for name, _ in grid), *SweepRow._fields[1:]]:
            raise ValueError('the columns are not those of the run')
        rows = []
        for *setting, seed, step, metric, value in table:
            found = tuple(values[word] for values, word in zip(known, setting, strict=True))
            rows.append(SweepRow(found, int(seed), int(step), metric, float(value)))
        if not rows:
            raise ValueError('it has no rows')
        return rows


def table_for(argv: Sequence[str]) -> FlagTable:
    """The flags of a sweep of the experiment that is asked for."""
    experiment = command_line.peek(argv, 'experiment', sweep_grid.OWN_DEFAULTS['experiment'])
    return FlagTable(*sweep_grid.table_of(experiment))


def with_workdir(values: dict[str, Any]) -> dict[str, Any]:
    """The flags with the default --workdir."""
    # The steps decide --eval_every where that is not given.
    steps = 'eval_every' if values['eval_every'] is None else sweep_grid.module_of(values['experiment']).STEPS
    _, defaults = sweep_grid.table_of(values['experiment'])
    return default_workdir.default_workdir(
        values, defaults, NAME, values['experiment'], named=['experiment'], steps=steps
    )


COMMAND = Command(NAME, __doc__, run, table_for, with_workdir)
main = COMMAND.main
