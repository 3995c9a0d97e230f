"""Cells side by side on several tasks: one table, one figure, with intervals over the same seeds.

    seqjax compare --tasks=adding,temporal_order --cells=lstm,gru,mingru --num_seeds=10
    seqjax compare --tasks=adding --cells=lstm,gru --params=5000 --length=50

Every flag of the model and of the training is one of this command, and those that all the tasks have; what is not given
is as each task has it. A comparison that was stopped goes on where it was.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax.cli import (
    command_line,
    comparison,
    default_workdir,
    flag_tables,
    registry,
    task_flags,
    task_registry,
    task_report,
    task_setup,
)
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import CellName, Many, Name, Whole
from seqjax.cli.settings import Settings
from seqjax.cli.task_experiment import TaskExperiment
from seqjax.errors import UserError
from seqjax.reporting import plots, statistics, text_tables
from seqjax.runs import directory, result_files
from seqjax.runs.directory import Workdir
from seqjax.tasks import synthetic
from seqjax.training.success_results import SuccessResults

NAME, TABLE = 'compare', 'compare.csv'
FILES = (directory.SUMMARY, TABLE, directory.CURVE)
WIDEST = 4096  # units that are tried for a budget of parameters
OURS = ('workdir', 'overwrite', 'plot')  # of the whole comparison; each of its runs has a folder within

OWN = {
    'tasks': Flag(
        Many(Name()),
        f'what is learned: some of {", ".join(task_registry.NAMES)}; MODULE:FUNCTION; or one kind of data, '
        'such as forecast',
    ),
    'cells': Flag(Many(CellName()), 'the cells that are compared, each with the first'),
    'params': Flag(Whole(1), 'the most parameters that a model may have: --hidden is as large as that allows'),
}
OWN_DEFAULTS = {'tasks': ['adding'], 'cells': ['lstm', 'gru'], 'params': None}


class Entry(NamedTuple):
    """One cell on one task."""

    task: str
    cell: str
    hidden: int
    params: int
    settings: Settings
    study: TaskExperiment

    @property
    def folder(self) -> str:
        return f'{self.task.replace(":", ".")}/{default_workdir.safe_name(self.cell)}'


def kind_of(tasks: Sequence[str]) -> Any:
    """The kind of data that is the one task; None where tasks are synthetic ones."""
    if len(tasks) > 1 or tasks[0] not in registry.modules():
        return None
    return getattr(registry.module(tasks[0]), 'KIND', None)


def table_of(tasks: Sequence[str]) -> tuple[dict[str, Flag], dict[str, Any]]:
    """The flags of a comparison over some tasks; None where a task's own default holds."""
    kind = kind_of(tasks)
    if kind is not None:
        theirs = {name: flag for name, flag in kind.FLAGS.items() if name not in ('cell', 'cells')}
        own = {name: OWN[name] for name in ('tasks', 'cells')}
        return own | theirs, OWN_DEFAULTS | {name: kind.defaults[name] for name in theirs}
    found = [task_registry.find(task) for task in tasks]
    shared = [name for name in found[0].own if name not in OWN and all(name in study.own for study in found)]
    own = {name: found[0].FLAGS[name] for name in shared}
    table = OWN | own | {name: flag for name, flag in task_flags.FLAGS.items() if name != 'cell'}
    ours = {name: task_flags.DEFAULTS[name] for name in (*OURS, 'seed', 'num_seeds')}
    return table, dict.fromkeys(table) | OWN_DEFAULTS | ours | {'train_all_steps': True}


def run(**values: Any) -> list[Any]:
    """Trains every cell on every task with the same seeds, all steps, and compares what they end with.

    Arguments are the flags of the command; `tasks` and `cells` are lists. Without `workdir` nothing is kept. Where the
    one task is a kind of data, see `seqjax/datasets/`, the flags are that kind's.

    Raises UserError (a ValueError) where an argument is refused, or two do not go together.
    """
    tasks = flag_tables.check({'tasks': OWN['tasks']}, OWN_DEFAULTS | values, OWN_DEFAULTS)['tasks']
    table, defaults = table_of(tasks)
    flag_tables.check_known(values, table)
    kind = kind_of(tasks)
    if kind is not None:
        cells = flag_tables.check({'cells': OWN['cells']}, OWN_DEFAULTS | values, OWN_DEFAULTS)['cells']
        return kind.run(**{name: x for name, x in values.items() if name not in OWN}, cells=cells)
    settings = flag_tables.check(table, defaults | values, defaults)
    if settings['params'] is not None and settings['hidden'] is not None:
        raise UserError(f'--params={settings["params"]} chooses --hidden, and --hidden={settings["hidden"]} is given')
    entries = [entry_of(settings, task, cell) for task in settings['tasks'] for cell in settings['cells']]
    # Tasks and cells may be added to a comparison; what a run of it depends on, that run compares itself.
    shared = {name: value for name, value in settings.items() if name not in ('tasks', 'cells')}

    def train(entry: Entry, folder: Workdir) -> tuple[Entry, SuccessResults]:
        print(f'{entry.task}, {entry.cell}({entry.hidden}), {entry.params:,} parameters')
        path = None if folder.path is None else str(folder.path / entry.folder)
        one = entry.settings.replace(workdir=path)
        with directory.open_workdir(one.flags, entry.study.name) as (inner, summary):
            return entry, entry.study.outcome(entry.study.problem(one.options), one, inner, summary)

    def show(folder: Workdir, found: Sequence[tuple[Entry, SuccessResults]]) -> None:
        print('\n'.join(['', *table_lines(found), '', *difference_lines(found)]))
        if settings['plot']:
            _picture(folder, found)

    return comparison.compare_runs(shared, NAME, FILES, entries, train, _write, show)


def entry_of(settings: Mapping[str, Any], task: str, cell: str) -> Entry:
    """All settings of one run; raises UserError where they make no sense."""
    study = task_registry.find(task)
    given = {name: value for name, value in settings.items() if value is not None and name in study.FLAGS}
    one = study.defaults | given | {'cell': cell, 'workdir': None, 'plot': False}
    if settings['params'] is not None:
        one['hidden'] = _widest(study, one, settings['params'])
    checked = study.check(one)
    return Entry(task, cell, checked.model.hidden, count_params(study, checked.flags), checked, study)


def count_params(study: TaskExperiment, flags: Mapping[str, Any]) -> int:
    """Of the model that the flags ask for; nothing is computed."""
    problem = study.problem(flags)
    inputs = synthetic.input_shapes(problem)
    model = task_setup.make_model(problem.spec, Settings.of(flags).model, inputs)
    return text_tables.count_params(jax.eval_shape(model.init, jax.random.key(0), inputs)['params'])


def _widest(study: TaskExperiment, settings: dict[str, Any], params: int) -> int:
    """The largest --hidden whose model has at most so many parameters: more units have more."""
    fits, too_wide = 0, WIDEST + 1
    while too_wide - fits > 1:
        middle = (fits + too_wide) // 2
        if count_params(study, settings | {'hidden': middle}) <= params:
            fits = middle
        else:
            too_wide = middle
    if not fits:
        least = count_params(study, settings | {'hidden': 1})
        raise UserError(f'--params={params} is too few: {settings["cell"]} of one unit has {least} on {study.name}')
    return fits


# --- what is shown ---------------------------------------------------------------------------------


def table_lines(found: Sequence[tuple[Entry, SuccessResults]]) -> Iterator[str]:
    """A row for each cell on each task: what the seeds end with, on sequences that they never saw."""
    seeds = len(found[0][1].seeds)
    yield f'mean of {seeds} seeds, and its 95% interval\n'
    yield f'{"task":<20}{"cell":<9}{"units":>6}{"params":>9}{"at goal":>9}{"loss":>24}{"wrong":>20}'
    for entry, outcome in found:
        reached = sum(seed.sequences is not None for seed in outcome.seeds)
        (loss, wrong), failed = _finite(values_of(outcome))
        yield (
            f'{entry.task:<20}{entry.cell:<9}{entry.hidden:>6}{entry.params:>9,}{f"{reached}/{seeds}":>9}'
            f'{text_tables.format_interval(loss):>24}{text_tables.format_interval(wrong, ".2%", ".2%"):>20}{failed}'
        )


def difference_lines(found: Sequence[tuple[Entry, SuccessResults]]) -> Iterator[str]:
    """Each cell against the first one, seed by seed: they had the same sequences, in the same order."""
    yield 'differences over the same seeds, mean and 95% interval: below 0, the first of the two is better\n'
    for entry, outcome in found:
        first = next((e, o) for e, o in found if e.task == entry.task)
        if first[0].cell == entry.cell:
            continue
        (loss, wrong), failed = _finite(values_of(outcome) - values_of(first[1]))
        clear = any(abs(mean) > half for mean, half in map(statistics.mean_interval, (loss, wrong)))
        yield (
            f'{entry.task:<20}{f"{entry.cell} - {first[0].cell}":<20}'
            f'loss {text_tables.format_interval(loss, "+.4g")}   '
            f'wrong {text_tables.format_interval(wrong, "+.2%", ".2%")}'
            f'{"" if clear else "   (no clear difference)"}{failed}'
        )


def values_of(outcome: SuccessResults) -> np.ndarray:
    """[2, R]: the loss and the share of wrong answers that each seed ends with."""
    return np.array([[seed.test[name] for seed in outcome.seeds] for name in ('loss', synthetic.WRONG)])


def _finite(values: np.ndarray) -> tuple[np.ndarray, str]:
    """Values [2, R] of the seeds whose loss is finite, and a word about the others."""
    finite = np.isfinite(values[0])
    failed = '' if finite.all() else f'   {(~finite).sum()} diverged'
    return values[:, finite] if finite.any() else np.full((2, 1), np.nan), failed


def _picture(folder: Workdir, found: Sequence[tuple[Entry, SuccessResults]]) -> None:
    """A panel for each task: the metric of its goal by sequences, the median of each cell with its interval."""
    tasks = list(dict.fromkeys(entry.task for entry, _ in found))
    try:
        figure, axes = plots.new_figure(len(tasks), f'Median of {len(found[0][1].seeds)} seeds with its 95% interval')
    except ImportError:
        print('\n' + plots.NO_MATPLOTLIB)
        return
    for axis, task in zip(axes, tasks, strict=True):
        mine = [(entry, outcome) for entry, outcome in found if entry.task == task]
        for i, (entry, outcome) in enumerate(mine):
            metric = task_report.goal_of(entry.study.problem(entry.settings.options), entry.settings).metric
            looks = outcome.evals[:, :, outcome.metrics.index(metric)]
            curve = np.array([statistics.median_interval(values) for values in looks.T])
            steps = entry.settings.train.eval_every * entry.settings.train.batch_size * np.arange(1, len(curve) + 1)
            plots.draw_band(axis, steps, curve, i, len(mine), f'{entry.cell}({entry.hidden})')
        what = 'fraction of wrong answers' if metric == synthetic.WRONG else metric
        axis.set(xlabel='training sequences', ylabel=what)
        plots.add_legend(axis, task)
    result_files.write_figure(folder, figure)


def _write(folder: Workdir, found: Sequence[tuple[Entry, SuccessResults]]) -> None:
    """compare.csv: a row for each seed."""

    def rows() -> Iterator[list[Any]]:
        for entry, outcome in found:
            for seed in outcome.seeds:
                reached = '' if seed.sequences is None else seed.sequences
                values = (float(seed.test[name]) for name in ('loss', synthetic.WRONG))
                yield [entry.task, entry.cell, entry.hidden, entry.params, seed.seed, reached, *values]

    columns = ['task', 'cell', 'hidden', 'params', 'seed', 'sequences_to_the_goal', 'loss', synthetic.WRONG]
    result_files.write_table(folder, TABLE, columns, rows())


def table_for(argv: Sequence[str]) -> FlagTable:
    """The flags of a comparison over the tasks that are asked for."""
    try:
        tasks = OWN['tasks'].parser.parse(command_line.peek(argv, 'tasks', OWN_DEFAULTS['tasks'][0]))
        return FlagTable(*table_of(tasks))
    except ValueError:  # told when it is run
        return FlagTable(*table_of(OWN_DEFAULTS['tasks']))


def with_workdir(values: dict[str, Any]) -> dict[str, Any]:
    """The flags with the default --workdir."""
    kind = kind_of(values['tasks'])
    if kind is not None:
        theirs = {name: value for name, value in values.items() if name not in OWN}
        found = kind.default_workdir(theirs | {'cells': values['cells'], 'cell': kind.defaults['cell']})
        return values | {'workdir': found['workdir']}
    tasks = '-'.join(values['tasks']).replace(':', '.')
    few = values['steps'] is not None and values['steps'] < max(
        task_registry.find(task).eval_every for task in values['tasks']
    )
    # Few steps decide --eval_every where that is not given.
    steps = 'eval_every' if few and values['eval_every'] is None else 'steps'
    _, defaults = table_of(values['tasks'])
    return default_workdir.default_workdir(values, defaults, NAME, tasks, named=['tasks', 'cells'], steps=steps)


COMMAND = Command(NAME, __doc__, run, table_for, with_workdir)
FLAGS, main = table_of(OWN_DEFAULTS['tasks'])[0], COMMAND.main
