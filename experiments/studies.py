"""The studies by name: those of this folder, and one for any problem elsewhere."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import launch
from experiments.fitting import Kind
from experiments.launch import Flag, Name
from experiments.study import Study
from seqjax.files import UserError
from seqjax.problem import Problem
from seqjax.trials import Outcome

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
    found = getattr(_imported(module, task), name, None)
    if isinstance(found, Study):
        return found
    if not callable(found):
        raise UserError(f'--task={task}: {module} has no function {name!r} that returns a Problem')
    study = Study(found)
    problem = study.problem(study.defaults)
    if not isinstance(problem, Problem):
        raise UserError(f'--task={task} must return a Problem of seqjax.problem, and returns {type(problem).__name__}')
    return study


def door(experiment: str) -> Study | Command | Kind:
    """What parses the flags of an experiment of this folder and runs it: a study, a command for any, a kind of data."""
    module = importlib.import_module(f'experiments.{experiment}')
    return next(getattr(module, name) for name in ('STUDY', 'COMMAND', 'KIND') if hasattr(module, name))


def _imported(module: str, task: str) -> Any:
    """A module of anyone's, found from the folder where the command was given, too."""
    if not all(part.isidentifier() for part in module.split('.')):
        raise UserError(f'--task={task} must be MODULE:FUNCTION, such as my_module:my_task')
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a module of theirs may raise
        raise UserError(
            f'--task={task}: {module} cannot be imported from {os.getcwd()} ({type(error).__name__}: {error})'
        ) from error


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
