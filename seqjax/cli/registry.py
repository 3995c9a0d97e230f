"""The commands and the tasks that there are: modules are read for them, not imported."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

PACKAGE = 'seqjax.cli'
RESEARCH = ('experiments', 'benchmarks')  # of a clone, run as python -m PACKAGE.NAME
TASKS = 'seqjax.tasks'


def folders(package: str) -> list[Path]:
    """Returns the folders of a package; none if there is no such package here."""
    spec = importlib.util.find_spec(package)
    return [] if spec is None else list(map(Path, spec.submodule_search_locations or ()))


@functools.cache
def modules(package: str = PACKAGE) -> dict[str, Path]:
    """Returns the file of each command of a package, by its name; none if there is no such package here."""
    files = sorted((path for folder in folders(package) for path in folder.glob('*.py')), key=lambda path: path.stem)
    return {
        path.stem: path
        for path in files
        if re.search(r'^COMMAND = ', path.read_text(encoding='utf-8'), re.MULTILINE) is not None
    }


@functools.cache
def tasks() -> dict[str, str]:
    """Returns the module of each task of the library, by its name: public functions that return a SyntheticTask."""
    return {
        node.name: f'{TASKS}.{path.stem}'
        for folder in folders(TASKS)
        for path in folder.glob('*.py')
        for node in ast.parse(path.read_text(encoding='utf-8')).body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith('_')
        and isinstance(node.returns, ast.Name)
        and node.returns.id == 'SyntheticTask'
    }


def called(name: str) -> str:
    """Returns how a command is run: seqjax NAME, or python -m experiments.NAME in a clone."""
    packages = [package for package in RESEARCH if name not in modules() and name in modules(package)]
    return f'python -m {packages[0]}.{name}' if packages else f'seqjax {name}'


def summary(name: str) -> str:
    """Returns the first line of the docstring of a command's module."""
    doc = ast.get_docstring(ast.parse(modules()[name].read_text(encoding='utf-8')))
    return (doc or '').partition('\n')[0]


def module(name: str) -> Any:
    """Imports the module of a command."""
    package = next(package for package in (PACKAGE, *RESEARCH) if name in modules(package))
    return importlib.import_module(f'{package}.{name}')


def find(name: str) -> Any:
    """Returns a command by its name: the `seqjax.cli.command.Command` of its module."""
    return module(name).COMMAND
