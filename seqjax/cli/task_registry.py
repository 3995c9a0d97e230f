"""Registry of synthetic tasks: the functions of seqjax/tasks by name, and others as MODULE:FUNCTION."""

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from seqjax import options
from seqjax.cli import command_line, parsers, registry
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import NameParser
from seqjax.cli.task_experiment import TaskExperiment
from seqjax.errors import UserError
from seqjax.runs.signals import Terminated
from seqjax.tasks.synthetic import SyntheticTask
from seqjax.training.success_results import SuccessResults

T = TypeVar('T')
HINT = (
    'a task is a function that returns a SyntheticTask of seqjax.tasks; its arguments are of type int, float, bool or '
    'Literal and have defaults'
)

NAMES = tuple(sorted(registry.tasks()))


def find(task: str, flag: str = 'task') -> TaskExperiment:
    """Returns the experiment of a task; MODULE may be in the current directory.

    Args:
      task: a name of `NAMES`, or MODULE:FUNCTION, a function that returns a SyntheticTask (or a TaskExperiment).
      flag: name of the flag in messages.

    Raises:
      UserError: the task does not exist or is invalid.
    """
    argument = f'--{flag}={task}'
    if ':' not in task:
        if task not in NAMES:
            raise UserError(
                f'{argument} must be one of {", ".join(NAMES)}, or MODULE:FUNCTION{options.nearest(task, NAMES, str)}'
            )
        return TaskExperiment(getattr(importlib.import_module(registry.tasks()[task]), task))
    module, _, name = task.partition(':')
    if not all(part.isidentifier() for part in [*module.split('.'), name]):
        raise UserError(f'{argument} must have the form MODULE:FUNCTION, such as my_module:my_task')
    parsers.import_from_cwd()
    failure = f'{module} cannot be imported from {os.getcwd()}'
    attribute = _attempt(argument, failure, lambda: getattr(importlib.import_module(module), name, None))
    if isinstance(attribute, TaskExperiment):
        return attribute
    if not callable(attribute) or isinstance(attribute, type):
        problem = (
            'is a class'
            if isinstance(attribute, type)
            else 'does not exist'
            if attribute is None
            else 'is not a function'
        )
        raise UserError(f'{argument}: {name!r} of {module} {problem}; {HINT}')
    experiment = _attempt(
        argument,
        'its arguments cannot become flags',
        lambda: TaskExperiment(attribute, name=getattr(attribute, '__name__', name)),
    )
    synthetic_task = _attempt(
        argument,
        'the function failed with its default arguments',
        lambda: experiment.synthetic_task(experiment.defaults),
    )
    if not isinstance(synthetic_task, SyntheticTask):
        raise UserError(f'{argument} returns {type(synthetic_task).__name__} instead of SyntheticTask; {HINT}')
    return experiment


def _attempt(argument: str, failure: str, action: Callable[[], T]) -> T:
    """Returns the result of `action`, which runs user code; raises UserError if it raises or exits."""
    try:
        return action()
    except (Terminated, UserError):
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f'{argument}: {failure} ({type(error).__name__}: {error}); {HINT}') from error


TASK_FLAG = Flag(
    NameParser(), f'task: one of {", ".join(NAMES)}; or MODULE:FUNCTION, a function that returns a SyntheticTask'
)


def task_command(
    name: str,
    doc: str,
    *,
    default: str,
    wrap: Callable[[TaskExperiment], TaskExperiment] = lambda experiment: experiment,
) -> Command:
    """Returns a command for any task; its flags depend on --task.

    Args:
      name: name of the command.
      doc: docstring of its module.
      default: default task.
      wrap: function from the experiment of a task to the experiment that is run.
    """

    def find_experiment(task: str) -> TaskExperiment:
        return wrap(find(TASK_FLAG.parser.parse(task)))

    def run(task: str | None = None, **values: Any) -> SuccessResults:
        """Runs the experiment of `task`, or of the default task; further arguments are flags of the task."""
        return find_experiment(default if task is None else task).run(**values)

    def table(argv: Sequence[str]) -> FlagTable:
        """Returns --task and the flags of the task on the command line, or of the default task if it is invalid."""
        try:
            experiment = find_experiment(command_line.peek(argv, 'task', default))
        except ValueError:  # reported when the command runs
            experiment = find_experiment(default)
        return FlagTable({'task': TASK_FLAG, **experiment.FLAGS}, {'task': default, **experiment.defaults})

    def complete(values: dict[str, Any]) -> dict[str, Any]:
        return find_experiment(values['task']).default_workdir(values, name, *values['task'].split(':'))

    return Command(name, doc, run, table, complete)
