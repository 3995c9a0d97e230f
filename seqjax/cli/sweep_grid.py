"""The grid of a sweep: its flags, their values, and the settings that share a program."""

import importlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from seqjax import options
from seqjax.cli import command, flag_tables, parsers, task_registry
from seqjax.cli.flag_tables import Flag
from seqjax.cli.parsers import Grid, Name, Whole
from seqjax.errors import UserError
from seqjax.training import optimizers

CONTRACT = ('make_model', 'make_task', 'make_optimiser', 'sizes', 'FLAGS', 'STEPS')  # of a module that is swept
MOST_SETTINGS = 10_000
RATE = 'learning_rate'
# Flags of an experiment that a sweep has itself, or has no use for.
NOT_OURS = ('seed', 'num_seeds', 'workdir', 'overwrite', 'plot', 'steps_per_call', 'eval_every', 'keep_best')
NOT_OURS += ('success_threshold', 'train_all_steps', 'split')

OWN = {
    'experiment': Flag(
        Name(),
        f'what is run: one of {", ".join(task_registry.NAMES)}; MODULE:FUNCTION, a task of your own; or MODULE, one '
        'with make_model, make_task, make_optimiser and sizes, such as experiments.td, or td for short',
    ),
    'grid': Flag(Grid(), "a flag of the experiment, and its values; repeated, every value of one with every other's"),
    'eval_every': Flag(Whole(1), 'steps between two looks at the metrics; a twentieth of the steps by default'),
    'metric': Flag(
        Name(), 'the metric of the figure; exact of td and right of echo are there where they are asked for'
    ),
    **{name: flag_tables.SHARED[name] for name in ('seed', 'num_seeds', 'workdir', 'overwrite', 'plot')},
}
OWN_DEFAULTS = {'experiment': 'td', 'grid': None, 'eval_every': None, 'metric': 'loss', 'seed': 0, 'num_seeds': 10}
OWN_DEFAULTS |= {'workdir': None, 'overwrite': False, 'plot': True}


# Settings that share a program: the place of their checkpoints, the flags of one of them, and those of all.
Program = tuple[str, dict[str, Any], dict[tuple[Any, ...], dict[str, Any]]]
Programs = Sequence[Program]


def module_of(experiment: str) -> Any:
    """Returns what has make_model, make_task, make_optimiser, sizes and the flags: a module, or a task's experiment."""
    if experiment in task_registry.NAMES or ':' in experiment:
        return task_registry.find(experiment, 'experiment')
    parsers.import_from_here()
    for name in (experiment, f'experiments.{experiment}') if re.fullmatch(r'\w+(\.\w+)*', experiment) else ():
        try:
            module = importlib.import_module(name)
        except Exception as error:  # code of the user
            if isinstance(error, ModuleNotFoundError) and f'{name}.'.startswith(f'{error.name}.'):
                continue  # there is no such module
            raise UserError(
                f'--experiment={experiment} cannot be imported ({type(error).__name__}: {error})'
            ) from error
        found = getattr(module, 'STUDY', module)
        if all(hasattr(found, part) for part in CONTRACT):
            return found
    near = options.nearest(experiment, ('td', 'echo', *task_registry.NAMES), str)
    raise UserError(
        f'--experiment={experiment} must be one of td, echo, {", ".join(task_registry.NAMES)}; MODULE:FUNCTION; or a '
        f'MODULE with {", ".join(CONTRACT)}{near}'
    )


def _defaults(module: Any) -> dict[str, Any]:
    return module.defaults if hasattr(module, 'defaults') else command.default_values(module.run)


def table_of(experiment: str) -> tuple[dict[str, Flag], dict[str, Any]]:
    """The flags of a sweep of that experiment, and their defaults."""
    module = module_of(experiment)
    defaults = _defaults(module)
    theirs = {name: flag for name, flag in module.FLAGS.items() if name not in NOT_OURS}
    return OWN | theirs, OWN_DEFAULTS | {name: defaults[name] for name in theirs}


def grid_axes(grid: Any, table: Mapping[str, Flag]) -> dict[str, list[Any]]:
    """The flags of the grid with their parsed values."""
    pairs = grid.items() if isinstance(grid, Mapping) else [_pair(item) for item in grid or ()]
    axes: dict[str, list[Any]] = {}
    for name, values in pairs:
        if name not in table or name in OWN or name in axes:
            why = 'twice in the grid' if name in axes else 'no flag of the experiment that a grid can vary'
            near = options.nearest(name, sorted(set(table) - set(OWN)), str)
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


def combine(settings: dict[str, Any], axes: dict[str, list[Any]], module: Any) -> dict[tuple[Any, ...], dict[str, Any]]:
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


def programs(every_setting: dict[tuple[Any, ...], dict[str, Any]], module: Any) -> Iterator[Program]:
    """Settings that share a program: where their checkpoints lie, the flags of one of them, and those of all."""
    shared: dict[str, tuple[str, dict[tuple[Any, ...], dict[str, Any]]]] = {}
    for i, (setting, one) in enumerate(every_setting.items()):
        others = {name: value for name, value in one.items() if name != RATE}
        same = repr(others) if rate_is_free(one, module) else str(i)
        shared.setdefault(same, (f'setting_{i}', {}))[1][setting] = one
    for place, several in shared.values():
        yield place, next(iter(several.values())), several


def rate_is_free(one: dict[str, Any], module: Any) -> bool:
    """Whether the optimiser takes its learning rate from its state, where each run may have its own."""
    tx = module.make_optimiser(one)
    return optimizers.rates_in_state(jax.eval_shape(tx.init, {'x': jax.ShapeDtypeStruct((1,), np.float32)}))
