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
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import launch, studies
from experiments.launch import Choice, Flag, Grid, Name, Whole
from experiments.run_directory import default_workdir
from seqjax import files, optim, report
from seqjax import run as host
from seqjax import sweep as groups_of
from seqjax.files import UserError
from seqjax.progress import Progress, progress
from seqjax.task import State

NAME, TABLE, VALUES = 'sweep', 'sweep.csv', 'values.f32'
FILES = (files.SUMMARY, TABLE, files.CURVE)
EXPERIMENTS = ('td', 'echo', *studies.NAMES)  # which have make_task, make_optimiser and STEPS
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


class Lane(NamedTuple):
    """One run of a sweep."""

    setting: tuple[Any, ...]
    seed: int
    rate: float


# --- flags -----------------------------------------------------------------------------------------


def module_of(experiment: str) -> Any:
    """What has make_task, make_optimiser and the flags: a module, or its study."""
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
    summary = host.new_summary(NAME, settings, [])
    folder.write_summary(summary)
    seeds = range(settings['seed'], settings['seed'] + settings['replicas'])
    rows = []
    total = sum(one[module.STEPS] * len(seeds) for one in every_setting.values())
    with progress(total, 'seed-step') as shown:
        for place, shared, several in programs:
            lanes = [Lane(setting, seed, one[RATE]) for setting, one in several.items() for seed in seeds]
            rows += Study(settings, shared, module, folder, len(lanes)).rows(place, lanes, shown)
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


class Study(NamedTuple):
    """Settings that share a program."""

    settings: dict[str, Any]  # the sweep's
    shared: dict[str, Any]  # the experiment's, of one of them
    module: Any
    folder: files.Workdir
    count: int  # of lanes

    def rows(self, place: str, lanes: Sequence[Lane], shown: Progress) -> list[Row]:
        """All values of all lanes."""
        how = {
            'steps': self.shared[self.module.STEPS],
            'chunk': self.settings['every'],
            'replicas': self.count,
            'workdir': self.folder,
        }
        task, tx = self.module.make_task(self.shared), self.module.make_optimiser(self.shared)
        if hasattr(self.module, 'max_width'):
            how['max_width'] = self.module.max_width(**self.shared)
        plan = host.prepare(task, tx, None, **how, **launch.keeping(self.settings | {'best': None}))
        plan, names, rows = plan._replace(tolerant=True), host.metric_names(plan.programs), []
        _check_metric(self.settings['metric'], [*names, RATE])
        free = _rate_is_free(self.shared, self.module)
        for group in groups_of.groups(np.arange(self.count), plan.group):
            mine = [lanes[i] for i in group.seeds]
            its_place = f'{place}/lanes_{group.seeds[0]}_to_{group.seeds[-1]}'
            values = self.values(plan, its_place, mine, len(names), shown)
            steps = self.settings['every'] * np.arange(1, len(values) + 1)
            rates = optim.learning_rates(tx, steps - 1)
            for i, lane in enumerate(mine):
                for look, step in enumerate(steps.tolist()):
                    found = [*values[look, :, i], lane.rate if free else rates[look]]
                    for metric, value in zip([*names, RATE], found, strict=True):
                        rows.append(Row(lane.setting, lane.seed, step, metric, float(value)))
        return rows

    def values(
        self,
        plan: host.Plan,
        place: str,
        lanes: Sequence[Lane],
        metrics: int,
        shown: Progress,
    ) -> np.ndarray:
        """What a group of lanes showed at every look, [looks, metrics, lanes]."""
        every, count, log = self.settings['every'], len(lanes), self.folder.journal(place, VALUES)
        rates = np.array([lane.rate for lane in lanes], np.float32)
        begin = None
        if (rates != np.float32(self.shared[RATE])).any():  # also where a group has but one rate, another's
            begin = host.Begin(_with_rates, groups_of.fill(rates, plan.width))
        with plan.leg([lane.seed for lane in lanes], {VALUES: log}, place=place, begin=begin) as leg:
            looks = [np.frombuffer(leg.held[VALUES], '<f4').reshape(-1, metrics, count)]
            shown.begin(place, leg.taken, leg.taken == plan.steps, self.folder.path, plan.chunk * count)
            for part in leg.train():
                new = len(part.metrics['loss'].total)
                if (part.step + new) % every == 0:
                    now = host.latest(part).astype('<f4')
                    log.append(now.tobytes())
                    looks.append(now[None])
                shown.show((part.step + new) * count, new * count)
            shown.end(plan.steps * count, plan.steps * count)
        return np.concatenate(looks)


def _with_rates(state: State, rates: np.ndarray) -> State:
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


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    experiment = launch.peek(argv, 'experiment', OWN_DEFAULTS['experiment'])
    table, defaults = table_of(experiment if experiment in EXPERIMENTS else OWN_DEFAULTS['experiment'])

    def complete(values: dict[str, Any]) -> dict[str, Any]:
        # The steps decide --every where that is not given.
        steps = 'every' if values['every'] is None else module_of(values['experiment']).STEPS
        return default_workdir(values, defaults, NAME, values['experiment'], named=['experiment'], steps=steps)

    return launch.main(run, table, argv, name='experiments.sweep', complete=complete, defaults=defaults)


if __name__ == '__main__':
    launch.leave(main())
