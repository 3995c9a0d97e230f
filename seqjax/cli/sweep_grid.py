"""Grid of a sweep: its flags, their values, and the settings that share a compiled program."""

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
from seqjax.cli.parsers import GridParser, IntParser, NameParser
from seqjax.errors import UserError
from seqjax.training import optimizers

REQUIRED = (
    'make_model',
    'make_task',
    'make_optimizer',
    'sizes',
    'FLAGS',
    'STEPS',
)  # attributes of an experiment that can be swept
MAX_SETTINGS = 10_000
RATE = 'learning_rate'
# Flags of an experiment that a sweep replaces or does not support.
EXCLUDED = ('seed', 'num_seeds', 'workdir', 'overwrite', 'plot', 'steps_per_call', 'eval_every', 'keep_best')
EXCLUDED += ('success_threshold', 'train_all_steps', 'split')

OWN = {
    'experiment': Flag(
        NameParser(),
        f'experiment: one of td, echo, {", ".join(task_registry.NAMES)}; MODULE:FUNCTION, a task of your own; or '
        'MODULE, a module with make_model, make_task, make_optimizer, sizes, FLAGS and STEPS',
    ),
    'grid': Flag(
        GridParser(), 'flag of the experiment and its values; repeat --grid to run all combinations of several flags'
    ),
    'eval_every': Flag(IntParser(1), 'training steps between evaluations; by default a twentieth of the steps'),
    'metric': Flag(
        NameParser(),
        'metric that is printed and plotted, such as loss; td has exact (1 if a seed predicts every target to one '
        'decimal, else 0), and echo has accuracy (fraction of correct symbols in training) and right (in the test)',
    ),
    **{name: flag_tables.SHARED[name] for name in ('seed', 'num_seeds', 'workdir', 'overwrite', 'plot')},
}
OWN_DEFAULTS = {'experiment': 'td', 'grid': None, 'eval_every': None, 'metric': 'loss', 'seed': 0, 'num_seeds': 10}
OWN_DEFAULTS |= {'workdir': None, 'overwrite': False, 'plot': True}


# Settings that share a program: folder of their checkpoints, flags of the first setting, {setting: flags}.
Program = tuple[str, dict[str, Any], dict[tuple[Any, ...], dict[str, Any]]]
Programs = Sequence[Program]


def find_experiment(experiment: str) -> Any:
    """Returns the object with the attributes `REQUIRED` that --experiment names.

    It is the experiment of a task (a name or MODULE:FUNCTION), EXPERIMENT of a module, or the module itself. A module
    is searched as `experiment`, and then in the package `experiments`.

    Raises:
      UserError: the experiment does not exist, cannot be imported, or lacks an attribute.
    """
    if experiment in task_registry.NAMES or ':' in experiment:
        return task_registry.find(experiment, 'experiment')
    parsers.import_from_cwd()
    for name in (experiment, f'experiments.{experiment}') if re.fullmatch(r'\w+(\.\w+)*', experiment) else ():
        try:
            module = importlib.import_module(name)
        except Exception as error:  # user code can raise any exception
            if isinstance(error, ModuleNotFoundError) and f'{name}.'.startswith(f'{error.name}.'):
                continue  # the module does not exist
            raise UserError(
                f'--experiment={experiment} cannot be imported ({type(error).__name__}: {error}); fix the module'
            ) from error
        candidate = getattr(module, 'EXPERIMENT', module)
        if all(hasattr(candidate, attribute) for attribute in REQUIRED):
            return candidate
    suggestion = options.nearest(experiment, ('td', 'echo', *task_registry.NAMES), str)
    raise UserError(
        f'--experiment={experiment} must be one of td, echo, {", ".join(task_registry.NAMES)}; MODULE:FUNCTION; or a '
        f'MODULE with {", ".join(REQUIRED)}{suggestion}'
    )


def _defaults(experiment: Any) -> dict[str, Any]:
    """Returns the default values of the flags of an experiment."""
    return experiment.defaults if hasattr(experiment, 'defaults') else command.default_values(experiment.run)


def table_of(name: str) -> tuple[dict[str, Flag], dict[str, Any]]:
    """Returns the flags of a sweep of the experiment `name`, without those in `EXCLUDED`, and their defaults."""
    experiment = find_experiment(name)
    defaults = _defaults(experiment)
    table = {flag_name: flag for flag_name, flag in experiment.FLAGS.items() if flag_name not in EXCLUDED}
    return OWN | table, OWN_DEFAULTS | {flag_name: defaults[flag_name] for flag_name in table}


def grid_axes(grid: Any, table: Mapping[str, Flag]) -> dict[str, list[Any]]:
    """Returns {flag: parsed values} for --grid.

    Args:
      grid: {flag: values}, or a list of NAME:VALUE,VALUE or (flag, values); None for no grid.
      table: flags of the sweep, which include the flags of the experiment.

    Raises:
      UserError: a flag is repeated or cannot be varied, or a value is invalid or repeated.
    """
    pairs = grid.items() if isinstance(grid, Mapping) else [_pair(item) for item in grid or ()]
    axes: dict[str, list[Any]] = {}
    for name, values in pairs:
        if name not in table or name in OWN or name in axes:
            reason = 'is repeated, pass all values at once' if name in axes else 'is not a flag that a grid can vary'
            suggestion = options.nearest(name, sorted(set(table) - set(OWN) - set(axes)), str)
            raise UserError(f'--grid={name} {reason}{"" if name in axes else suggestion}')
        axes[name] = []
        for value in values:
            try:
                axes[name].append(table[name].parser.parse(value))
            except ValueError as error:
                raise UserError(f'--grid={name}:{value} {error}') from error
        if not axes[name] or len(set(map(repr, axes[name]))) < len(axes[name]):
            raise UserError(f'--grid={name} must have one or more distinct values')
    return axes


def _pair(item: Any) -> tuple[str, Sequence[Any]]:
    """Returns (flag, values) for NAME:VALUE,VALUE; returns a tuple unchanged."""
    try:
        return item if isinstance(item, tuple) else GridParser().parse(item)
    except ValueError as error:
        raise UserError(f'--grid={item} {error}') from error


def combine(
    settings: dict[str, Any], axes: dict[str, list[Any]], experiment: Any
) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Returns all settings of a grid, {values of the grid's flags: all flags of the experiment}.

    Raises:
      UserError: there are more than MAX_SETTINGS settings, or flags contradict each other.
    """
    defaults, every_setting = _defaults(experiment), {}
    count = math.prod(map(len, axes.values()))
    if count > MAX_SETTINGS:
        grid = ' '.join(f'--grid={name} of {len(values)} values' for name, values in axes.items())
        raise UserError(f'{grid}: the grid has {count:,} settings, more than {MAX_SETTINGS:,}; use fewer values')
    for setting in itertools.product(*axes.values()):
        flags = defaults | {name: settings[name] for name in experiment.FLAGS if name in settings}
        flags |= dict(zip(axes, setting, strict=True))
        every_setting[setting] = getattr(experiment, 'complete', dict)(flags)
    return every_setting


def programs(every_setting: dict[tuple[Any, ...], dict[str, Any]], experiment: Any) -> Iterator[Program]:
    """Yields each group of settings that differ only in the learning rate, as a `Program`.

    A learning rate schedule is compiled into the program, so a setting with one is a group of its own.
    """
    shared: dict[str, tuple[str, dict[tuple[Any, ...], dict[str, Any]]]] = {}
    for i, (setting, flags) in enumerate(every_setting.items()):
        other_flags = {name: value for name, value in flags.items() if name != RATE}
        key = repr(other_flags) if rate_is_in_state(flags, experiment) else str(i)
        shared.setdefault(key, (f'setting_{i}', {}))[1][setting] = flags
    for place, group in shared.values():
        yield place, next(iter(group.values())), group


def rate_is_in_state(flags: dict[str, Any], experiment: Any) -> bool:
    """Returns True if the optimizer reads the learning rate from its state, so that each run can have another rate."""
    tx = experiment.make_optimizer(flags)
    return optimizers.rates_in_state(jax.eval_shape(tx.init, {'x': jax.ShapeDtypeStruct((1,), np.float32)}))
