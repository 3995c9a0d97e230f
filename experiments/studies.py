"""The studies by name: those of this folder, and one for any problem elsewhere."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from experiments import launch
from experiments.fitting import Kind
from experiments.launch import Flag, Name
from experiments.study import Study
from seqjax import signals
from seqjax.files import UserError
from seqjax.problem import Problem
from seqjax.trials import Outcome

T = TypeVar('T')
TASK = (
    'a task is a function that is imported and called: its arguments are int, float, bool or Literal and have '
    'defaults, and it returns a Problem of seqjax.problem'
)

# Read, not imported: which modules have a study. A new one is entered nowhere.
NAMES = tuple(
    sorted(
        file.stem
        for file in Path(__file__).parent.glob('*.py')
        if re.search(r'^STUDY = ', file.read_text(encoding='utf-8'), re.MULTILINE)
    )
)


def find(task: str) -> Study:
    """The study of a task: a name of this folder, or MODULE:FUNCTION, a function that returns a Problem.

    Raises:
      UserError: there is no such task, or it is none.
    """
    if ':' not in task:
        if task not in NAMES:
            raise UserError(
                f'--task={task} must be one of {", ".join(NAMES)}, or MODULE:FUNCTION{launch.nearest(task, NAMES)}'
            )
        return importlib.import_module(f'experiments.{task}').STUDY
    module, _, name = task.partition(':')
    if not all(part.isidentifier() for part in [*module.split('.'), name]):
        raise UserError(f'--task={task} must be MODULE:FUNCTION, such as my_module:my_task')
    fault = f'{module} cannot be imported from {os.getcwd()}'
    found = _attempt(task, fault, lambda: getattr(_imported(module), name, None))
    if isinstance(found, Study):
        return found
    if not callable(found) or isinstance(found, type):
        what = 'is a class' if isinstance(found, type) else 'does not exist' if found is None else 'is not a function'
        raise UserError(f'--task={task}: {name!r} of {module} {what}; {TASK}')
    study = _attempt(task, 'its arguments cannot be read', lambda: Study(found, name=getattr(found, '__name__', name)))
    problem = _attempt(task, 'it cannot be called', lambda: study.problem(study.defaults))
    if not isinstance(problem, Problem):
        raise UserError(f'--task={task} returns {type(problem).__name__}; {TASK}')
    return study


def _attempt(task: str, fault: str, action: Callable[[], T]) -> T:
    """What `action` gives, which runs code of the user; whatever that raises becomes a sentence."""
    try:
        return action()
    except (signals.Terminated, UserError):
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f'--task={task}: {fault} ({type(error).__name__}: {error}); {TASK}') from error


def door(experiment: str) -> Study | Command | Kind:
    """What parses the flags of an experiment of this folder and runs it: a study, a command for any, a kind of data."""
    module = importlib.import_module(f'experiments.{experiment}')
    return next(getattr(module, name) for name in ('STUDY', 'COMMAND', 'KIND') if hasattr(module, name))


def _imported(module: str) -> Any:
    """A module of anyone's, found from the folder where the command was given, too."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(module)


class Command:
    """A command for any task; --task decides which other flags there are.

    Args:
      name: of the module, and of the folder in runs/.
      about: what it does, for --help.
      default: the task, unless another is asked for.
      wrap: makes of a task's study what is run.
    """

    TASK = Flag(Name(), f'one of {", ".join(NAMES)}; or MODULE:FUNCTION, a function of your own that returns a Problem')

    def __init__(self, name: str, about: str, *, default: str, wrap: Callable[[Study], Study] = lambda study: study):
        self.name, self.about, self.default, self.wrap = name, about, default, wrap
        self.FLAGS = {'task': self.TASK, **self.study(default).FLAGS}

    def study(self, task: str) -> Study:
        return self.wrap(find(self.TASK.parser.parse(task)))

    def run(self, task: str | None = None, **values: Any) -> Outcome:
        """Further arguments are the flags of the task."""
        return self.study(self.default if task is None else task).run(**values)

    def parse(self, argv: list[str]) -> dict[str, Any]:
        """The value of every flag; raises UserError where one is refused."""
        return launch.parse(*self._flags(argv), argv)

    def _flags(self, argv: list[str]) -> tuple[dict[str, Flag], dict[str, Any]]:
        """Those of the task that is asked for, and their defaults."""
        try:
            study = self.study(launch.peek(argv, 'task', self.default))
        except ValueError:  # told when it is run
            study = self.study(self.default)
        return {'task': self.TASK, **study.FLAGS}, {'task': self.default, **study.defaults}

    def main(self, argv: list[str] | None = None) -> int:
        argv = sys.argv[1:] if argv is None else list(argv)

        def run(task: str, **values: Any) -> Outcome:
            return self.run(task, **values)

        def complete(values: dict[str, Any]) -> dict[str, Any]:
            return self.study(values['task']).default_workdir(values, self.name, *values['task'].split(':'))

        run.__doc__ = self.about
        table, defaults = self._flags(argv)
        name = f'experiments.{self.name}'
        return launch.main(run, table, argv, name=name, complete=complete, defaults=defaults)
