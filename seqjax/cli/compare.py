"""Compare cells on several tasks over the same seeds.

    seqjax compare --tasks=adding,temporal_order --cells=lstm,gru,mingru --num_seeds=10
    seqjax compare --tasks=adding --cells=lstm,gru --max_params=5000 --length=50

The command has the flags of the model and of training, and all that the tasks share. A flag that is not set has the
default of each task. If --tasks is a command for a dataset, such as forecast, the flags are the command's flags. A
comparison that was stopped resumes when it is rerun.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax.cli import (
    command_line,
    comparison,
    default_workdir,
    figures,
    flag_tables,
    registry,
    task_flags,
    task_registry,
    task_report,
    task_setup,
)
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import CellParser, IntParser, ListParser, NameParser
from seqjax.cli.settings import Settings
from seqjax.cli.task_experiment import TaskExperiment
from seqjax.errors import UserError
from seqjax.reporting import plots, statistics, text_tables
from seqjax.runs import directory, result_files
from seqjax.runs.directory import Workdir
from seqjax.tasks import synthetic
from seqjax.training import success_results
from seqjax.training.success_results import SuccessResults

NAME, TABLE = 'compare', 'compare.csv'
FILES = (directory.SUMMARY, TABLE, directory.CURVE)
MAX_HIDDEN = 4096  # largest --hidden that --max_params selects
SHARED = ('workdir', 'overwrite', 'plot')  # flags of the comparison as a whole, not of its single runs

OWN = {
    'tasks': Flag(
        ListParser(NameParser()),
        f'tasks: {", ".join(task_registry.NAMES)}, or MODULE:FUNCTION for a function that returns a SyntheticTask; or '
        'one command for a dataset, such as forecast',
    ),
    'cells': Flag(ListParser(CellParser()), 'cells to compare; the others are compared with the first one'),
    'max_params': Flag(
        IntParser(1),
        'maximal number of parameters of a model: each cell on each task gets the largest --hidden that it allows, at '
        f'most {MAX_HIDDEN}; --hidden must not be set',
    ),
}
OWN_DEFAULTS = {'tasks': ['adding'], 'cells': ['lstm', 'gru'], 'max_params': None}


class Entry(NamedTuple):
    """One run of a comparison: a cell on a task."""

    task: str  # name, or MODULE:FUNCTION
    cell: str  # value of --cell
    hidden: int  # units per recurrent layer
    params: int  # number of parameters of the model
    settings: Settings  # of the run; its workdir is None until it is trained
    experiment: TaskExperiment  # experiment of the task

    @property
    def folder(self) -> str:
        """Run directory relative to the directory of the comparison, such as adding/lstm."""
        return f'{self.task.replace(":", ".")}/{default_workdir.safe_name(self.cell)}'


# --- flags -----------------------------------------------------------------------------------------


def dataset_experiment_of(tasks: Sequence[str]) -> Any:
    """Returns the DatasetExperiment if `tasks` is a single command for a dataset, such as forecast; None otherwise."""
    if len(tasks) > 1 or tasks[0] not in registry.modules():
        return None
    return getattr(registry.module(tasks[0]), 'EXPERIMENT', None)


def table_of(tasks: Sequence[str]) -> tuple[dict[str, Flag], dict[str, Any]]:
    """Returns the flags of a comparison of `tasks` and their defaults; None means each task's own default."""
    dataset_experiment = dataset_experiment_of(tasks)
    if dataset_experiment is not None:
        dataset_flags = {name: flag for name, flag in dataset_experiment.FLAGS.items() if name not in ('cell', 'cells')}
        own = {name: OWN[name] for name in ('tasks', 'cells')}
        return own | dataset_flags, OWN_DEFAULTS | {name: dataset_experiment.defaults[name] for name in dataset_flags}
    experiments = [task_registry.find(task) for task in tasks]
    shared = [
        name
        for name in experiments[0].own_flags
        if name not in OWN and all(name in experiment.own_flags for experiment in experiments)
    ]
    own = {name: experiments[0].FLAGS[name] for name in shared}
    table = OWN | own | {name: flag for name, flag in task_flags.FLAGS.items() if name != 'cell'}
    shared_defaults = {name: task_flags.DEFAULTS[name] for name in (*SHARED, 'seed', 'num_seeds')}
    return table, dict.fromkeys(table) | OWN_DEFAULTS | shared_defaults | {'train_all_steps': True}


def run(**values: Any) -> list[Any]:
    """Trains every cell on every task with the same seeds, and prints, writes and returns the test results.

    Arguments are the flags of the command; `tasks` and `cells` are lists. Seeds are trained for all steps. Without
    `workdir`, no files are written. If the only task is a command for a dataset, such as `forecast`, its `run` is
    called with `cells` and the other arguments, which are then flags of that command.

    Returns:
      A pair (Entry, SuccessResults) for each task and cell; for a dataset, a CellResult for each cell.

    Raises:
      UserError (a ValueError): arguments are invalid or incompatible, or the folder contains another run.
    """
    tasks = flag_tables.check({'tasks': OWN['tasks']}, OWN_DEFAULTS | values, OWN_DEFAULTS)['tasks']
    table, defaults = table_of(tasks)
    flag_tables.check_known(values, table)
    dataset_experiment = dataset_experiment_of(tasks)
    if dataset_experiment is not None:
        cells = flag_tables.check({'cells': OWN['cells']}, OWN_DEFAULTS | values, OWN_DEFAULTS)['cells']
        return dataset_experiment.run(**{name: x for name, x in values.items() if name not in OWN}, cells=cells)
    settings = flag_tables.check(table, defaults | values, defaults)
    if settings['max_params'] is not None and settings['hidden'] is not None:
        raise UserError(
            f'--hidden={settings["hidden"]} cannot be used with --max_params={settings["max_params"]}, which selects '
            '--hidden; remove one of them'
        )
    entries = [entry_of(settings, task, cell) for task in settings['tasks'] for cell in settings['cells']]
    # Tasks and cells may be added to a comparison; each run checks its own flags.
    shared = {name: value for name, value in settings.items() if name not in ('tasks', 'cells')}

    def train(entry: Entry, folder: Workdir) -> tuple[Entry, SuccessResults]:
        print(f'{entry.task}, {entry.cell}({entry.hidden}), {entry.params:,} parameters')
        path = None if folder.path is None else str(folder.path / entry.folder)
        run_settings, experiment = entry.settings.replace(workdir=path), entry.experiment
        with directory.open_workdir(run_settings.flags, experiment.name) as (inner, summary):
            task = experiment.synthetic_task(run_settings.options)
            return entry, experiment.outcome(task, run_settings, inner, summary)

    def show(folder: Workdir, results: Sequence[tuple[Entry, SuccessResults]]) -> None:
        num_items = {entry.task: _num_items(entry) for entry, _ in results}
        print('\n'.join(['', *table_lines(results, num_items), '', *difference_lines(results, num_items)]))
        if settings['plot']:
            _plot(folder, results)

    return comparison.compare_runs(shared, NAME, FILES, entries, train, _write, show)


def entry_of(settings: Mapping[str, Any], task: str, cell: str) -> Entry:
    """Returns the run of a cell on a task, with the --hidden that --max_params selects if it is set.

    Raises:
      UserError: a setting is invalid for the cell or the task.
    """
    experiment = task_registry.find(task)
    explicit = {name: value for name, value in settings.items() if value is not None and name in experiment.FLAGS}
    flags = experiment.defaults | explicit | {'cell': cell, 'workdir': None, 'plot': False}
    if settings['max_params'] is not None:
        flags['hidden'] = _largest_hidden(experiment, flags, settings['max_params'])
    run_settings = experiment.check(flags)
    params = count_params(experiment, run_settings.flags)
    return Entry(task, cell, run_settings.model.hidden, params, run_settings, experiment)


def count_params(experiment: TaskExperiment, flags: Mapping[str, Any]) -> int:
    """Returns the number of parameters of the model for the flags, from their shapes; no parameter is initialized."""
    task = experiment.synthetic_task(flags)
    inputs = synthetic.input_shapes(task)
    model = task_setup.make_model(task.spec, Settings.of(flags).model, inputs)
    return text_tables.count_params(jax.eval_shape(model.init, jax.random.key(0), inputs)['params'])


def _largest_hidden(experiment: TaskExperiment, settings: dict[str, Any], params: int) -> int:
    """Returns the largest --hidden, up to MAX_HIDDEN, whose model has at most `params` parameters; by bisection.

    Raises:
      UserError: the model has more parameters even with --hidden=1.
    """
    low, high = 0, MAX_HIDDEN + 1
    while high - low > 1:
        middle = (low + high) // 2
        if count_params(experiment, settings | {'hidden': middle}) <= params:
            low = middle
        else:
            high = middle
    if not low:
        minimum = count_params(experiment, settings | {'hidden': 1})
        raise UserError(
            f'--max_params={params} is too small: {settings["cell"]} with one unit has {minimum} parameters on '
            f'{experiment.name}; use --max_params={minimum} or more'
        )
    return low


# --- tables and figure ---------------------------------------------------------------------------------


def table_lines(
    results: Sequence[tuple[Entry, SuccessResults]], num_items: Mapping[str, int] | None = None
) -> Iterator[str]:
    """Yields the lines of a text table: for each cell on each task, successful seeds, test loss and error rate.

    Loss and error rate are means over the seeds whose test loss is finite, with 95% confidence intervals. The interval
    of the error rate includes the sampling error of the test sequences, if `num_items` has their number by task.
    """
    seeds = len(results[0][1].seeds)
    yield f'Mean of {seeds} seeds with 95% CI\n'
    yield f'{"task":<20}{"cell":<9}{"units":>6}{"params":>9}{"success":>9}{"loss":>24}{"wrong":>28}'
    for entry, outcome in results:
        successes = len(success_results.successful(outcome.seeds))
        (loss, wrong), failed = _finite(values_of(outcome))
        interval = statistics.bounded_mean_interval(wrong, items=(num_items or {}).get(entry.task))
        yield (
            f'{entry.task:<20}{entry.cell:<9}{entry.hidden:>6}{entry.params:>9,}{f"{successes}/{seeds}":>9}'
            f'{text_tables.format_interval(loss):>24}{text_tables.format_bounded(interval, ".2%"):>28}{failed}'
        )


def difference_lines(
    results: Sequence[tuple[Entry, SuccessResults]], num_items: Mapping[str, int] | None = None
) -> Iterator[str]:
    """Yields text lines: test loss and error rate of each cell minus the values of the first cell on the same task.

    Differences are means over seeds. They are paired by seed: both cells had the same training sequences. The interval
    of the error rate includes the sampling error of the test sequences, if `num_items` has their number by task.
    """
    yield 'Differences A - B over the same seeds, mean with 95% CI (negative: A is better than B)\n'
    for entry, outcome in results:
        first = next((e, o) for e, o in results if e.task == entry.task)
        if first[0].cell == entry.cell:
            continue
        (loss, *ours), (other_loss, *theirs) = values_of(outcome), values_of(first[1])
        (difference, wrong, other_wrong), failed = _finite(np.stack([loss - other_loss, *ours, *theirs]))
        mean, half = statistics.mean_interval(difference)
        items = (num_items or {}).get(entry.task)
        interval = statistics.share_difference_interval(wrong, other_wrong, items=items)
        is_significant = abs(mean) > half or statistics.excludes_zero(interval)
        yield (
            f'{entry.task:<20}{f"{entry.cell} - {first[0].cell}":<20}'
            f'loss {text_tables.format_interval(difference, "+.4g")}   '
            f'wrong {text_tables.format_bounded(interval, "+.2%")}'
            f'{"" if is_significant else "   (not statistically significant)"}{failed}'
        )


def values_of(outcome: SuccessResults) -> np.ndarray:
    """Returns the test loss (row 0) and error rate (row 1) of each seed, [2, R]."""
    return np.array([[seed.test[name] for seed in outcome.seeds] for name in ('loss', synthetic.WRONG)])


def _num_items(entry: Entry) -> int:
    """Returns the number of test sequences of a run."""
    return task_report.num_held_out(entry.experiment.synthetic_task(entry.settings.options), entry.settings)


def _finite(values: np.ndarray) -> tuple[np.ndarray, str]:
    """Returns the columns of values [N, R] with a finite loss, which is row 0, and a text that counts the others.

    If no loss is finite, the values are NaN [N, 1]. The text is empty if all losses are finite.
    """
    finite = np.isfinite(values[0])
    failed = '' if finite.all() else f'   {(~finite).sum()} diverged'
    return values[:, finite] if finite.any() else np.full((len(values), 1), np.nan), failed


def _plot(folder: Workdir, results: Sequence[tuple[Entry, SuccessResults]]) -> None:
    """Writes curve.png: per task, the metric of its success criterion in training, median over seeds with 95% CI."""
    tasks = list(dict.fromkeys(entry.task for entry, _ in results))

    def draw(axes: Any) -> None:
        for axis, task in zip(axes, tasks, strict=True):
            _draw_task(axis, task, [(entry, outcome) for entry, outcome in results if entry.task == task])

    title = f'Median of {len(results[0][1].seeds)} seeds with 95% CI'
    figures.write_figure(folder, len(tasks), title, draw)


def _draw_task(axis: Any, task: str, results: Sequence[tuple[Entry, SuccessResults]]) -> None:
    """Draws the metric of a task's success criterion against training sequences: for each cell, median and 95% CI."""
    for i, (entry, outcome) in enumerate(results):
        metric = task_report.success_criterion(
            entry.experiment.synthetic_task(entry.settings.options), entry.settings
        ).metric
        evals = outcome.evals[:, :, outcome.metrics.index(metric)]
        curve = np.array([statistics.median_interval(values) for values in evals.T])
        steps = entry.settings.train.eval_every * entry.settings.train.batch_size * np.arange(1, len(curve) + 1)
        plots.draw_band(axis, steps, curve, i, len(results), f'{entry.cell}({entry.hidden})')
    axis.set(xlabel='training sequences', ylabel=task_report.metric_label(metric))
    plots.add_legend(axis, task)


def _write(folder: Workdir, results: Sequence[tuple[Entry, SuccessResults]]) -> None:
    """Writes compare.csv: a row for each seed of each cell on each task."""

    def rows() -> Iterator[list[Any]]:
        for entry, outcome in results:
            for seed in outcome.seeds:
                sequences = '' if seed.sequences is None else seed.sequences
                values = (float(seed.test[name]) for name in ('loss', synthetic.WRONG))
                yield [entry.task, entry.cell, entry.hidden, entry.params, seed.seed, sequences, *values]

    columns = ['task', 'cell', 'hidden', 'params', 'seed', 'sequences_to_success', 'loss', synthetic.WRONG]
    result_files.write_table(folder, TABLE, columns, rows())


def table_for(argv: Sequence[str]) -> FlagTable:
    """Returns flags and defaults of a comparison of --tasks in `argv`, or of the default task if --tasks is invalid."""
    try:
        tasks = OWN['tasks'].parser.parse(command_line.peek(argv, 'tasks', OWN_DEFAULTS['tasks'][0]))
        return FlagTable(*table_of(tasks))
    except ValueError:  # `run` reports the error
        return FlagTable(*table_of(OWN_DEFAULTS['tasks']))


def with_workdir(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the flag values with the default --workdir, unless --workdir is set."""
    dataset_experiment = dataset_experiment_of(values['tasks'])
    if dataset_experiment is not None:
        flags = {name: value for name, value in values.items() if name not in OWN}
        flags |= {'cells': values['cells'], 'cell': dataset_experiment.defaults['cell']}
        return values | {'workdir': dataset_experiment.default_workdir(flags)['workdir']}
    tasks = '-'.join(values['tasks']).replace(':', '.')
    is_short = values['steps'] is not None and values['steps'] < max(
        task_registry.find(task).eval_every for task in values['tasks']
    )
    # The default of --eval_every depends on --steps of a short run.
    steps = 'eval_every' if is_short and values['eval_every'] is None else 'steps'
    _, defaults = table_of(values['tasks'])
    return default_workdir.default_workdir(values, defaults, NAME, tasks, excluded=['tasks', 'cells'], steps=steps)


COMMAND = Command(NAME, __doc__, run, table_for, with_workdir)
FLAGS, main = table_of(OWN_DEFAULTS['tasks'])[0], COMMAND.main
