"""Registry of the commands and tasks, which are found by reading source files instead of importing modules."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

PACKAGE = 'seqjax.cli'
RESEARCH = ('experiments', 'benchmarks')  # packages of a clone of the repository, run as python -m PACKAGE.NAME
TASKS = 'seqjax.tasks'


def folders(package: str) -> list[Path]:
    """Returns the folders of a package, usually one; an empty list if the package cannot be found."""
    spec = importlib.util.find_spec(package)
    return [] if spec is None else list(map(Path, spec.submodule_search_locations or ()))


@functools.cache
def modules(package: str = PACKAGE) -> dict[str, Path]:
    """Returns {command: source file} for the modules of a package that define COMMAND; empty if there is no package."""
    files = sorted((path for folder in folders(package) for path in folder.glob('*.py')), key=lambda path: path.stem)
    return {
        path.stem: path
        for path in files
        if re.search(r'^COMMAND = ', path.read_text(encoding='utf-8'), re.MULTILINE) is not None
    }


@functools.cache
def tasks() -> dict[str, str]:
    """Returns {task: module name} for the public functions of seqjax.tasks annotated to return a SyntheticTask."""
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


def invocation(name: str) -> str:
    """Returns the command line of a command: seqjax NAME, or python -m PACKAGE.NAME for experiments and benchmarks."""
    packages = [package for package in RESEARCH if name not in modules() and name in modules(package)]
    return f'python -m {packages[0]}.{name}' if packages else f'seqjax {name}'


def summary(name: str) -> str:
    """Returns the summary of a command of `seqjax`: the first line of its module's docstring."""
    doc = ast.get_docstring(ast.parse(modules()[name].read_text(encoding='utf-8')))
    return (doc or '').partition('\n')[0]


def module(name: str) -> Any:
    """Imports and returns the module of a command of `seqjax`, experiments or benchmarks."""
    package = next(package for package in (PACKAGE, *RESEARCH) if name in modules(package))
    return importlib.import_module(f'{package}.{name}')


def find(name: str) -> Any:
    """Imports the module of the command `name`, and returns its `seqjax.cli.command.Command`."""
    return module(name).COMMAND
