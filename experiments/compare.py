"""Cells side by side on several tasks: one table, one figure, with intervals over the same seeds.

    python -m experiments.compare --tasks=adding,temporal_order --cells=lstm,gru,mingru --replicas=10
    python -m experiments.compare --tasks=adding --cells=lstm,gru --params=5000 --length=50

Every flag of the model and of the training is one of this command, and those that all the tasks have; what is not given
is as each task has it. A comparison that was stopped goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import launch, studies
from experiments.launch import Choice, Flag, Many, Name, Whole
from experiments.run_directory import default_workdir
from experiments.study import DEFAULTS, MODEL, TRAINING, Study, goal_of, make_model
from seqjax import files, report
from seqjax.files import UserError
from seqjax.models import CELLS
from seqjax.problem import WRONG, input_shapes
from seqjax.trials import Outcome

NAME, TABLE = 'compare', 'compare.csv'
FILES = (files.SUMMARY, TABLE, files.CURVE)
WIDEST = 4096  # units that are tried for a budget of parameters
OURS = ('workdir', 'overwrite', 'picture')  # of the whole comparison; each of its runs has a folder within

OWN = {
    'tasks': Flag(Many(Name()), f'what is learned: some of {", ".join(studies.NAMES)}; or MODULE:FUNCTION'),
    'cells': Flag(Many(Choice(*CELLS)), 'the cells that are compared, each with the first'),
    'params': Flag(Whole(1), 'the most parameters that a model may have: --hidden is as large as that allows'),
}
OWN_DEFAULTS = {'tasks': ['adding'], 'cells': ['lstm', 'gru'], 'params': None}


class Entry(NamedTuple):
    """One cell on one task."""

    task: str
    cell: str
    hidden: int
    params: int
    settings: dict[str, Any]
    study: Study

    @property
    def folder(self) -> str:
        return f'{self.task.replace(":", ".")}/{self.cell}'


# --- flags -----------------------------------------------------------------------------------------


def table_of(tasks: Sequence[str]) -> tuple[dict[str, Flag], dict[str, Any]]:
    """The flags of a comparison over some tasks; None where a task's own default holds."""
    found = [studies.find(task) for task in tasks]
    shared = [name for name in found[0].own if name not in OWN and all(name in study.own for study in found)]
    own = {name: found[0].FLAGS[name] for name in shared}
    table = OWN | own | {name: flag for name, flag in (MODEL | TRAINING).items() if name != 'cell'}
    ours = {name: DEFAULTS[name] for name in (*OURS, 'seed', 'replicas')}
    return table, dict.fromkeys(table) | OWN_DEFAULTS | ours | {'to_the_end': True}


def run(**values: Any) -> list[tuple[Entry, Outcome]]:
    """Trains every cell on every task with the same seeds, all steps, and compares what they end with.

    Arguments are the flags of the command; `tasks` and `cells` are lists. Without `workdir` nothing is kept.

    Raises:
      UserError (a ValueError): an argument is refused, or two do not go together.
    """
    tasks = launch.check({'tasks': OWN['tasks']}, OWN_DEFAULTS | values, OWN_DEFAULTS)['tasks']
    table, defaults = table_of(tasks)
    launch.check_known(values, table)
    settings = launch.check(table, defaults | values, defaults)
    if settings['params'] is not None and settings['hidden'] is not None:
        raise UserError(f'--params={settings["params"]} chooses --hidden, and --hidden={settings["hidden"]} is given')
    entries = [entry_of(settings, task, cell) for task in settings['tasks'] for cell in settings['cells']]
    # Tasks and cells may be added to a comparison; what a run of it depends on, that run compares itself.
    shared = {name: value for name, value in settings.items() if name not in ('tasks', 'cells')}
    with files.open_workdir(shared, NAME, names=FILES) as (folder, _):
        summary = {'experiment': NAME, 'finished': False, 'flags': shared}
        folder.write_summary(summary)
        found = []
        for entry in entries:
            print(f'{entry.task}, {entry.cell}({entry.hidden}), {entry.params:,} parameters')
            found.append((entry, _outcome(entry, folder)))
        _write(folder, found)
        folder.write_summary(summary | {'finished': True})
        print('\n'.join(['', *table_lines(found), '', *difference_lines(found)]))
        if settings['picture']:
            _picture(folder, found)
        if folder.path is not None:
            print('\n' + folder.listing())
        return found


def entry_of(settings: Mapping[str, Any], task: str, cell: str) -> Entry:
    """All settings of one run; raises UserError where they make no sense."""
    study = studies.find(task)
    given = {name: value for name, value in settings.items() if value is not None and name in study.FLAGS}
    one = study.defaults | given | {'cell': cell, 'workdir': None, 'picture': False}
    if settings['params'] is not None:
        one['hidden'] = _widest(study, one, settings['params'])
    one = study.check(one)
    return Entry(task, cell, one['hidden'], count_params(study, one), one, study)


def count_params(study: Study, settings: Mapping[str, Any]) -> int:
    """Of the model that the settings ask for; nothing is computed."""
    problem = study.problem(settings)
    model = make_model(problem, settings)
    return report.count_params(jax.eval_shape(model.init, jax.random.key(0), input_shapes(problem))['params'])


def _widest(study: Study, settings: dict[str, Any], params: int) -> int:
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


def _outcome(entry: Entry, folder: files.Workdir) -> Outcome:
    """Trains what is not trained yet."""
    path = None if folder.path is None else str(folder.path / entry.folder)
    settings = entry.settings | {'workdir': path}
    with files.open_workdir(settings, entry.study.name) as (inner, summary):
        return entry.study.outcome(entry.study.problem(settings), settings, inner, summary)


# --- what is shown ---------------------------------------------------------------------------------


def table_lines(found: Sequence[tuple[Entry, Outcome]]) -> Iterator[str]:
    """A row for each cell on each task: what the seeds end with, on sequences that they never saw."""
    seeds = len(found[0][1].seeds)
    yield f'mean of {seeds} seeds, and its 95% interval\n'
    yield f'{"task":<20}{"cell":<9}{"units":>6}{"params":>9}{"at goal":>9}{"loss":>24}{"wrong":>20}'
    for entry, outcome in found:
        reached = sum(seed.sequences is not None for seed in outcome.seeds)
        (loss, wrong), failed = _finite(values_of(outcome))
        yield (
            f'{entry.task:<20}{entry.cell:<9}{entry.hidden:>6}{entry.params:>9,}{f"{reached}/{seeds}":>9}'
            f'{report.format_interval(loss):>24}{report.format_interval(wrong, ".2%", ".2%"):>20}{failed}'
        )


def difference_lines(found: Sequence[tuple[Entry, Outcome]]) -> Iterator[str]:
    """Each cell against the first one, seed by seed: they had the same sequences, in the same order."""
    yield 'differences over the same seeds, mean and 95% interval: below 0, the first of the two is better\n'
    for entry, outcome in found:
        first = next((e, o) for e, o in found if e.task == entry.task)
        if first[0].cell == entry.cell:
            continue
        (loss, wrong), failed = _finite(values_of(outcome) - values_of(first[1]))
        clear = any(abs(mean) > half for mean, half in map(report.mean_interval, (loss, wrong)))
        yield (
            f'{entry.task:<20}{f"{entry.cell} - {first[0].cell}":<20}'
            f'loss {report.format_interval(loss, "+.4g")}   wrong {report.format_interval(wrong, "+.2%", ".2%")}'
            f'{"" if clear else "   (no clear difference)"}{failed}'
        )


def values_of(outcome: Outcome) -> np.ndarray:
    """[2, R]: the loss and the share of wrong answers that each seed ends with."""
    return np.array([[seed.test[name] for seed in outcome.seeds] for name in ('loss', WRONG)])


def _finite(values: np.ndarray) -> tuple[np.ndarray, str]:
    """Values [2, R] of the seeds whose loss is finite, and a word about the others."""
    finite = np.isfinite(values[0])
    failed = '' if finite.all() else f'   {(~finite).sum()} diverged'
    return values[:, finite] if finite.any() else np.full((2, 1), np.nan), failed


def _picture(folder: files.Workdir, found: Sequence[tuple[Entry, Outcome]]) -> None:
    """A panel for each task: the metric of its goal by sequences, the median of each cell with its interval."""
    tasks = list(dict.fromkeys(entry.task for entry, _ in found))
    try:
        figure, axes = report.new_figure(len(tasks), f'{len(found[0][1].seeds)} seeds: median and its 95% interval')
    except ImportError:
        print('\n' + report.NO_PICTURE)
        return
    for axis, task in zip(axes, tasks, strict=True):
        mine = [(entry, outcome) for entry, outcome in found if entry.task == task]
        for i, (entry, outcome) in enumerate(mine):
            metric = goal_of(entry.study.problem(entry.settings), entry.settings).metric
            looks = outcome.looks[:, :, outcome.metrics.index(metric)]
            curve = np.array([report.median_interval(values) for values in looks.T])
            steps = entry.settings['every'] * entry.settings['batch_size'] * np.arange(1, len(curve) + 1)
            color = report.shade(i / max(len(mine) - 1, 1))
            report.draw_band(axis, steps, curve, color, f'{entry.cell}({entry.hidden})')
        what = 'share answered wrongly' if metric == WRONG else metric
        axis.set(xlabel='sequences', ylabel=what)
        axis.set_title(task, fontsize=10)
        axis.legend(frameon=False, fontsize=9)
    files.write_picture(folder, figure)


def _write(folder: files.Workdir, found: Sequence[tuple[Entry, Outcome]]) -> None:
    """compare.csv: a row for each seed."""

    def rows() -> Iterator[list[Any]]:
        for entry, outcome in found:
            for seed in outcome.seeds:
                reached = '' if seed.sequences is None else seed.sequences
                values = (float(seed.test[name]) for name in ('loss', WRONG))
                yield [entry.task, entry.cell, entry.hidden, entry.params, seed.seed, reached, *values]

    columns = ['task', 'cell', 'hidden', 'params', 'seed', 'sequences_to_the_goal', 'loss', WRONG]
    files.write_table(folder, TABLE, columns, rows())


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        tasks = OWN['tasks'].parser.parse(launch.peek(argv, 'tasks', OWN_DEFAULTS['tasks'][0]))
        table, defaults = table_of(tasks)
    except ValueError:  # told when it is run
        table, defaults = table_of(OWN_DEFAULTS['tasks'])

    def complete(values: dict[str, Any]) -> dict[str, Any]:
        tasks = '-'.join(values['tasks']).replace(':', '.')
        few = values['steps'] is not None and values['steps'] < max(
            studies.find(task).every for task in values['tasks']
        )
        # Few steps decide --every where that is not given.
        steps = 'every' if few and values['every'] is None else 'steps'
        return default_workdir(values, defaults, NAME, tasks, named=['tasks', 'cells'], steps=steps)

    return launch.main(run, table, argv, name=f'experiments.{NAME}', complete=complete, defaults=defaults)


FLAGS = table_of(OWN_DEFAULTS['tasks'])[0]

if __name__ == '__main__':
    launch.leave(main())
