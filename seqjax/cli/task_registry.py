"""Synthetic tasks by name: the functions of seqjax/tasks, and MODULE:FUNCTION for any other."""

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from seqjax import options
from seqjax.cli import command_line, parsers, registry
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import Name
from seqjax.cli.task_experiment import TaskExperiment
from seqjax.errors import UserError
from seqjax.runs.signals import Terminated
from seqjax.tasks.synthetic import SyntheticTask
from seqjax.training.success_results import SuccessResults

T = TypeVar('T')
TASK = (
    'a task is a function that is imported and called: its arguments are int, float, bool or Literal and have '
    'defaults, and it returns a SyntheticTask of seqjax.tasks'
)

NAMES = tuple(sorted(registry.tasks()))


def find(task: str, flag: str = 'task') -> TaskExperiment:
    """Returns the experiment of a task: a name of `NAMES`, or MODULE:FUNCTION, a function that returns a SyntheticTask.

    `flag` names the task in messages. Raises UserError where there is no such task.
    """
    given = f'--{flag}={task}'
    if ':' not in task:
        if task not in NAMES:
            raise UserError(
                f'{given} must be one of {", ".join(NAMES)}, or MODULE:FUNCTION{options.nearest(task, NAMES, str)}'
            )
        return TaskExperiment(getattr(importlib.import_module(registry.tasks()[task]), task))
    module, _, name = task.partition(':')
    if not all(part.isidentifier() for part in [*module.split('.'), name]):
        raise UserError(f'{given} must be MODULE:FUNCTION, such as my_module:my_task')
    parsers.import_from_here()
    fault = f'{module} cannot be imported from {os.getcwd()}'
    found = _attempt(given, fault, lambda: getattr(importlib.import_module(module), name, None))
    if isinstance(found, TaskExperiment):
        return found
    if not callable(found) or isinstance(found, type):
        what = 'is a class' if isinstance(found, type) else 'does not exist' if found is None else 'is not a function'
        raise UserError(f'{given}: {name!r} of {module} {what}; {TASK}')
    study = _attempt(
        given, 'its arguments cannot be read', lambda: TaskExperiment(found, name=getattr(found, '__name__', name))
    )
    problem = _attempt(given, 'it cannot be called', lambda: study.problem(study.defaults))
    if not isinstance(problem, SyntheticTask):
        raise UserError(f'{given} returns {type(problem).__name__}; {TASK}')
    return study


def _attempt(given: str, fault: str, action: Callable[[], T]) -> T:
    """What `action` gives, which runs code of the user; whatever that raises becomes a sentence."""
    try:
        return action()
    except (Terminated, UserError):
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f'{given}: {fault} ({type(error).__name__}: {error}); {TASK}') from error


TASK_FLAG = Flag(
    Name(), f'one of {", ".join(NAMES)}; or MODULE:FUNCTION, a function of your own that returns a SyntheticTask'
)


def task_command(
    name: str, doc: str, *, default: str, wrap: Callable[[TaskExperiment], TaskExperiment] = lambda study: study
) -> Command:
    """A command for any task; --task decides which other flags there are.

    `default` is the task unless another is asked for; `wrap` makes of a task's experiment what is run.
    """

    def study_of(task: str) -> TaskExperiment:
        return wrap(find(TASK_FLAG.parser.parse(task)))

    def run(task: str | None = None, **values: Any) -> SuccessResults:
        """Further arguments are the flags of the task."""
        return study_of(default if task is None else task).run(**values)

    def table(argv: Sequence[str]) -> FlagTable:
        """The flags of the task that is asked for."""
        try:
            study = study_of(command_line.peek(argv, 'task', default))
        except ValueError:  # told when it is run
            study = study_of(default)
        return FlagTable({'task': TASK_FLAG, **study.FLAGS}, {'task': default, **study.defaults})

    def complete(values: dict[str, Any]) -> dict[str, Any]:
        return study_of(values['task']).default_workdir(values, name, *values['task'].split(':'))

    return Command(name, doc, run, table, complete)
