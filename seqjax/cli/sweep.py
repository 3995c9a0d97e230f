"""Run one experiment with every combination of a grid of settings, each with many seeds.

    seqjax sweep --experiment=td --flagfile=many_to_many --grid=learning_rate:1e-3,3e-3 --num_seeds=50
    seqjax sweep --experiment=td --epochs=65 --eval_every=5 --grid=learning_rate:1e-3,0.01,0.1 --metric=exact
    seqjax sweep --experiment=echo --grid=cell:lstm,gru --grid=delay:2,4,8

The command has the flags of the experiment, except flags that a sweep replaces, such as --steps_per_call. Settings that
differ only in their learning rate share a compiled program and run together if --schedule=constant; the others run one
after the other. A sweep that was stopped resumes when its command is run again.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from seqjax import files, training
from seqjax.cli import command_line, default_workdir, figures, flag_tables, sweep_grid
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
NUM_EVALS = 20  # default number of evaluations
MetricFn = Callable[[TrainSession, TrainState], np.ndarray]  # metric of each seed [n] of a session's replica group
ROW_SIZE = 100  # lower bound of the float32 numbers that the rows of one seed at one evaluation take


class SweepRow(NamedTuple):
    """Value of one metric of one seed at one evaluation: a row of sweep.csv, which has a column for each grid flag."""

    setting: tuple[Any, ...]  # values of the grid's flags, in the order of --grid
    seed: int
    step: int  # training steps before the evaluation
    metric: str
    value: float


class Sweep(NamedTuple):
    """A sweep whose flags were checked: the settings of its grid, the programs that they share, and the experiment."""

    settings: dict[str, Any]  # flags of the command, including defaults
    every_setting: dict[tuple[Any, ...], dict[str, Any]]  # values of the grid's flags -> all flags of the experiment
    programs: Programs
    experiment: Any


class SweepRun(NamedTuple):
    """One seed of one setting of a sweep."""

    setting: tuple[Any, ...]
    seed: int
    rate: float  # learning rate


def run(**values: Any) -> list[SweepRow]:
    """Trains one experiment with every combination of a grid of settings, each with many seeds.

    Arguments are the flags of the sweep (`sweep_grid.OWN`) and of the experiment; `grid` is a dictionary of lists, or a
    list of NAME:VALUE,VALUE. Without `workdir`, no files are written.

    Returns:
      A row for each setting, seed, evaluation and metric.

    Raises:
      UserError (a ValueError): an argument is invalid, or the folder contains another sweep.
    """
    first = {'experiment': sweep_grid.OWN['experiment']}  # the other flags depend on it
    table, defaults = sweep_grid.table_of(
        flag_tables.check(first, sweep_grid.OWN_DEFAULTS | values, sweep_grid.OWN_DEFAULTS)['experiment']
    )
    flag_tables.check_known(values, table)
    flags = defaults | values
    axes = sweep_grid.grid_axes(flags.pop('grid'), table)
    table = {name: flag for name, flag in table.items() if name != 'grid'}
    settings = flag_tables.check(table, flags, defaults)
    settings['grid'] = [[name, list(axis)] for name, axis in axes.items()]
    experiment = sweep_grid.find_experiment(settings['experiment'])
    flag_tables.check_seeds(settings['seed'], settings['num_seeds'])
    every_setting = sweep_grid.combine(settings, axes, experiment)
    steps = {flags[experiment.STEPS] for flags in every_setting.values()}
    if experiment.STEPS in axes:
        name = experiment.STEPS
        raise UserError(
            f'--grid={name} has no effect: sweep.csv has all evaluations up to --{name}; remove it, and pass the '
            f'largest value as --{name}'
        )
    settings[experiment.STEPS] = max(steps)
    settings['eval_every'] = settings['eval_every'] or max(1, min(steps) // NUM_EVALS)
    flag_tables.check_eval_every(settings['eval_every'], experiment.STEPS, min(steps))
    sweep = Sweep(settings, every_setting, list(sweep_grid.programs(every_setting, experiment)), experiment)
    _check_sizes(sweep)
    with directory.open_workdir(settings, NAME, names=FILES, steps=experiment.STEPS) as (folder, summary):
        return _run(sweep, folder, summary)


def _check_sizes(sweep: Sweep) -> None:
    """Raises UserError if a compiled program, or the table of all rows, needs more memory than this machine has."""
    settings, _, programs, experiment = sweep
    num_seeds, eval_every = settings['num_seeds'], settings['eval_every']
    num_evals = sum(shared[experiment.STEPS] // eval_every * len(group) for _, shared, group in programs)
    sizes = {'num_seeds': num_seeds, experiment.STEPS: settings[experiment.STEPS], 'eval_every': eval_every}
    flag_tables.check_memory(ROW_SIZE * num_evals * num_seeds, sizes)
    for _, shared, group in programs:
        chunks = {'num_seeds': len(group) * num_seeds, 'eval_every': eval_every, 'steps_per_call': eval_every}
        numbers, flags = experiment.sizes(**shared | chunks)
        flag_tables.check_memory(numbers, flags | {'steps_per_call': None} | sizes)


def _run(sweep: Sweep, folder: Workdir, summary: dict[str, Any] | None) -> list[SweepRow]:
    """Trains all settings, or reads a finished sweep (if it has a summary), shows --metric and returns all rows."""
    settings = sweep.settings
    names = [name for name, _ in settings['grid']]
    if summary is None:
        with flag_tables.matmul_precision(settings['matmul_precision']):
            rows = _train(sweep, folder)
    else:
        print(f'{folder.path} contains this sweep, finished; showing its results (use --overwrite to rerun it)\n')
        rows = _read(folder, settings['grid'])
    _check_metric(settings['metric'], dict.fromkeys(row.metric for row in rows))
    metric_rows = [row for row in rows if row.metric == settings['metric']]
    print('\n'.join(_lines(names, metric_rows, settings)))
    if settings['plot']:
        _plot(folder, names, metric_rows, settings)
    if folder.path is not None:
        print('\n' + folder.listing())
    return rows


def _check_metric(metric: str, names: Iterable[str]) -> None:
    """Raises UserError if `metric` is not one of `names`, the metrics of the sweep."""
    if metric not in names:
        raise UserError(f'--metric={metric} must be one of {", ".join(names)}')


def _train(sweep: Sweep, folder: Workdir) -> list[SweepRow]:
    """Trains all settings, writes sweep.csv and summary.json, and returns the rows by setting, seed and step."""
    settings, every_setting, programs, experiment = sweep
    summary = run_summary.new_summary(NAME, settings, [])
    folder.write_summary(summary)
    seeds = range(settings['seed'], settings['seed'] + settings['num_seeds'])
    rows = []
    total = sum(flags[experiment.STEPS] * len(seeds) for flags in every_setting.values())
    with progress.progress(total, 'seed-step') as bar:
        for place, shared, group in programs:
            runs = [
                SweepRun(setting, seed, flags[sweep_grid.RATE]) for setting, flags in group.items() for seed in seeds
            ]
            rows += SharedProgram(settings, shared, experiment, folder, len(runs)).rows(place, runs, bar)
    order = {setting: i for i, setting in enumerate(every_setting)}
    rows.sort(key=lambda row: (order[row.setting], row.seed, row.step))
    names = [name for name, _ in settings['grid']]
    lines = ([*row.setting, row.seed, row.step, row.metric, float(row.value)] for row in rows)
    result_files.write_table(folder, TABLE, [*names, *SweepRow._fields[1:]], lines)
    folder.write_summary(run_summary.finished_summary(summary, {}))
    return rows


class SharedProgram(NamedTuple):
    """Settings that share a compiled program, which trains all of their seeds."""

    settings: dict[str, Any]  # flags of the sweep command
    shared: dict[str, Any]  # flags of the experiment for the first of these settings
    experiment: Any
    folder: Workdir
    count: int  # number of runs: settings times seeds

    def rows(self, place: str, runs: Sequence[SweepRun], bar: Progress) -> list[SweepRow]:
        """Trains all runs, with checkpoints below the folder `place`, and returns their rows of sweep.csv."""
        (compiled, metric_fn), has_own_rates = self.compile(), sweep_grid.rate_is_in_state(self.shared, self.experiment)
        names = chunk_result.metric_names(compiled.programs)
        measured = [self.experiment.measured] if hasattr(self.experiment, 'measured') else []
        _check_metric(self.settings['metric'], [*names, *measured, sweep_grid.RATE])
        if metric_fn is not None:  # each log entry then has the measured metric as well
            names, place = [*names, *measured], f'{place}_{measured[0]}'
        values = MetricLog(len(names), self.settings['eval_every'], metric_fn)
        rates = np.array([run.rate for run in runs], np.float32)

        def folder(group: ReplicaGroup) -> str:
            return f'{place}/lanes_{group.first}_to_{group.first + len(group.seeds) - 1}'

        def override(group: ReplicaGroup) -> StateOverride | None:
            group_rates = rates[group.first : group.first + len(group.seeds)]
            if (group_rates == np.float32(self.shared[sweep_grid.RATE])).all():
                return None
            return StateOverride(_with_rates, training_replicas.pad_replicas(group_rates, compiled.width))

        training.train_seeds(
            compiled,
            [run.seed for run in runs],
            [values, ProgressBar(bar, label=lambda session: folder(session.group))],
            subfolder=folder,
            override=override,
        )
        return list(self._rows(runs, names, values.groups, compiled, has_own_rates))

    def compile(self) -> tuple[CompiledRun, MetricFn | None]:
        """Returns the compiled run, and the function that measures --metric on outputs; None for other metrics."""
        model, task = self.experiment.make_model(self.shared), self.experiment.make_task(self.shared)
        inputs, metric_fn = None, None
        if self.settings['metric'] == getattr(self.experiment, 'measured', None):
            settings = Settings.of(self.shared)
            inputs = self.experiment.test_inputs(task, settings)

            def metric_fn(session: TrainSession, state: TrainState) -> np.ndarray:
                outputs = np.asarray(session.run.programs.predict(state, inputs))
                return self.experiment.measure(outputs[: session.num_seeds], settings)

        options = {
            'steps': self.shared[self.experiment.STEPS],
            'steps_per_call': self.settings['eval_every'],
            'num_seeds': self.count,
        }
        if hasattr(self.experiment, 'max_width'):
            options['max_width'] = self.experiment.max_width(**self.shared)
        options |= flag_tables.checkpoint_kwargs(self.settings | {'keep_best': None})
        tx = self.experiment.make_optimizer(self.shared)
        compiled = training.compile_run(model, task, tx, inputs, **options, workdir=self.folder)
        return compiled._replace(allow_divergence=True), metric_fn

    def _rows(
        self,
        runs: Sequence[SweepRun],
        names: Sequence[str],
        groups: Sequence[np.ndarray],
        compiled: CompiledRun,
        has_own_rates: bool,
    ) -> Iterator[SweepRow]:
        """Yields the rows of all runs; `groups` are the values that `MetricLog` logged for each replica group."""
        steps = self.settings['eval_every'] * np.arange(1, len(groups[0]) + 1)
        rates = optimizers.learning_rates(compiled.tx, steps - 1)
        for i, run in enumerate(runs):
            values = groups[i // compiled.group_width][:, :, i % compiled.group_width]
            for evaluation, step in enumerate(steps.tolist()):
                metrics = [*values[evaluation], run.rate if has_own_rates else rates[evaluation]]
                for metric, value in zip([*names, sweep_grid.RATE], metrics, strict=True):
                    yield SweepRow(run.setting, run.seed, step, metric, float(value))


class MetricLog(Observer):
    """Log of all metrics at every evaluation; `groups` has an array [evaluations, metrics, n] for each replica group.

    Training metrics belong to the last training step before the evaluation.

    Args:
      num_metrics: number of metrics, including the metric of `metric_fn`.
      eval_every: training steps between two evaluations.
      metric_fn: (session, state) -> additional metric of each seed [n]; None for no additional metric.
    """

    log_name = VALUES

    def __init__(self, num_metrics: int, eval_every: int, metric_fn: MetricFn | None = None):
        self.num_metrics, self.eval_every, self.metric_fn = num_metrics, eval_every, metric_fn
        self.groups: list[np.ndarray] = []

    def on_start(self, session: TrainSession, restored: bytes) -> None:
        self.groups.append(np.frombuffer(restored, '<f4').reshape(-1, self.num_metrics, session.num_seeds))

    def on_chunk(self, session: TrainSession, chunk: ChunkResult) -> bytes:
        if chunk.end % self.eval_every:
            return b''
        values = chunk_result.latest_values(chunk).astype('<f4')
        if self.metric_fn is not None:
            values = np.concatenate([values, self.metric_fn(session, chunk.state)[None].astype('<f4')])
        self.groups[-1] = np.concatenate([self.groups[-1], values[None]])
        return values.tobytes()


def _with_rates(state: TrainState, rates: np.ndarray) -> TrainState:
    """Returns the state with the learning rates `rates` [R], one for each replica, in the state of the optimizer."""
    return state._replace(opt_state=optimizers.with_rates(state.opt_state, rates))


def _label(names: Sequence[str], setting: Sequence[Any]) -> str:
    """Returns a setting as text, such as cell=gru delay=4, or `without a grid` if there is no flag."""
    return ' '.join(f'{name}={value}' for name, value in zip(names, setting, strict=True)) or 'without a grid'


def _lines(names: Sequence[str], rows: Sequence[SweepRow], settings: dict[str, Any]) -> Iterator[str]:
    """Yields the printed table of --metric at the last step: a heading, and a line for each setting.

    If all values of all settings and steps are 0 or 1, a line has the fraction of seeds with 1 and its 95% CI, else the
    median over seeds with its 95% CI (below 6 seeds, the range) and the number of diverged seeds.
    """
    end = max(row.step for row in rows)
    labels = {setting: _label(names, setting) for setting in dict.fromkeys(row.setting for row in rows)}
    width = max(map(len, labels.values()))
    seeds = settings['num_seeds']
    if _is_fraction(rows):
        yield f'{settings["metric"]} at step {end:,}: fraction of {seeds:,} seeds with 95% CI\n'
        for setting, label in labels.items():
            count = sum(int(row.value) for row in rows if row.setting == setting and row.step == end)
            low, high = statistics.wilson_interval(count, seeds)
            yield f'{label:<{width}}  {count:>6,} of {seeds:,}  {count / seeds:.1%} ({low:.1%} to {high:.1%})'
        return
    interval = 'range' if seeds < statistics.MIN_MEDIAN_COUNT else '95% CI'
    yield f'{settings["metric"]} at step {end:,}: median of {seeds:,} seed{"s" * (seeds > 1)} with {interval}\n'
    for setting, label in labels.items():
        values = np.array([row.value for row in rows if row.setting == setting and row.step == end])
        low, median, high = statistics.median_interval(values)
        failed = int((~np.isfinite(values)).sum())
        yield f'{label:<{width}}  {median:>10.4g}  ({low:.4g} to {high:.4g})' + (
            f'  {failed} diverged' if failed else ''
        )


def _is_fraction(rows: Sequence[SweepRow]) -> bool:
    """Returns True if every value of the metric is 0 or 1, so that its mean is a fraction of seeds."""
    return all(row.value in (0, 1) for row in rows)


def _plot(folder: Workdir, names: Sequence[str], rows: Sequence[SweepRow], settings: dict[str, Any]) -> None:
    """Writes curve.png: --metric (median over seeds, or fraction of seeds, with 95% CI or range) against steps."""
    statistic = 'fraction' if _is_fraction(rows) else 'median'
    is_range = statistic == 'median' and settings['num_seeds'] < statistics.MIN_MEDIAN_COUNT

    def draw(axes: Any) -> None:
        axis, all_settings = axes[0], list(dict.fromkeys(row.setting for row in rows))
        for i, setting in enumerate(all_settings):
            steps, curve = _curve([row for row in rows if row.setting == setting], statistic == 'fraction')
            plots.draw_band(axis, steps, curve, i, len(all_settings), _label(names, setting))
        positive = all(row.value > 0 for row in rows if np.isfinite(row.value))
        axis.set(
            xlabel='training step',
            ylabel=f'{settings["metric"]}, {statistic} with {"range" if is_range else "95% CI"}',
            yscale='log' if positive else 'linear',
        )
        if len(all_settings) <= 12:
            plots.add_legend(axis)

    title = f'{settings["experiment"]}: {statistic} of {settings["num_seeds"]:,} seeds'
    figures.write_figure(folder, 1, title, draw, 8)


def _curve(rows: Sequence[SweepRow], is_fraction: bool) -> tuple[list[int], np.ndarray]:
    """Returns the steps of one setting, and [steps, 3]: lower bound of the 95% CI, median or fraction, upper bound."""
    by_step: dict[int, list[float]] = {}
    for row in rows:
        by_step.setdefault(row.step, []).append(row.value)
    if is_fraction:
        intervals = [(statistics.wilson_interval(int(sum(x)), len(x)), sum(x) / len(x)) for x in by_step.values()]
        return list(by_step), np.array([(low, middle, high) for (low, high), middle in intervals])
    return list(by_step), np.array([statistics.median_interval(np.array(values)) for values in by_step.values()])


def _read(folder: Workdir, grid: Sequence[Sequence[Any]]) -> list[SweepRow]:
    """Returns the rows of sweep.csv of a finished sweep; raises UserError if the file is missing or corrupt."""
    path, grid_values = folder.file(TABLE), [{str(value): value for value in values} for _, values in grid]
    with files.reading(path), files.open_file(path, 'r', newline='', encoding='utf-8') as lines:
        table = csv.reader(lines)
        if next(table, []) != [*(name for name, _ in grid), *SweepRow._fields[1:]]:
            raise ValueError('its columns do not match --grid of the run')
        rows = []
        for *setting, seed, step, metric, value in table:
            values_of_setting = tuple(values[word] for values, word in zip(grid_values, setting, strict=True))
            rows.append(SweepRow(values_of_setting, int(seed), int(step), metric, float(value)))
        if not rows:
            raise ValueError('it has no rows')
        return rows


def table_for(argv: Sequence[str]) -> FlagTable:
    """Returns the flags of a sweep of the experiment that --experiment on the command line names."""
    experiment = command_line.peek(argv, 'experiment', sweep_grid.OWN_DEFAULTS['experiment'])
    return FlagTable(*sweep_grid.table_of(experiment))


def with_workdir(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the flags with the default --workdir, unless it is set."""
    # The default of --eval_every depends on the steps, which are then hashed into the name.
    steps = 'eval_every' if values['eval_every'] is None else sweep_grid.find_experiment(values['experiment']).STEPS
    _, defaults = sweep_grid.table_of(values['experiment'])
    return default_workdir.default_workdir(
        values, defaults, NAME, values['experiment'], excluded=['experiment'], steps=steps
    )


COMMAND = Command(NAME, __doc__, run, table_for, with_workdir)
main = COMMAND.main
