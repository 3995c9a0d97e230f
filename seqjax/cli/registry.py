"""Registry of the commands and tasks, found by parsing the modules instead of importing them."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

PACKAGE = 'seqjax.cli'
RESEARCH = ('experiments', 'benchmarks')  # packages of a clone, run as python -m PACKAGE.NAME
TASKS = 'seqjax.tasks'


def folders(package: str) -> list[Path]:
    """Returns the folders of a package; empty if it is not installed."""
    spec = importlib.util.find_spec(package)
    return [] if spec is None else list(map(Path, spec.submodule_search_locations or ()))


@functools.cache
def modules(package: str = PACKAGE) -> dict[str, Path]:
    """Returns {name: file} of the commands of a package; empty if it is not installed."""
    files = sorted((path for folder in folders(package) for path in folder.glob('*.py')), key=lambda path: path.stem)
    return {
        path.stem: path
        for path in files
        if re.search(r'^COMMAND = ', path.read_text(encoding='utf-8'), re.MULTILINE) is not None
    }


@functools.cache
def tasks() -> dict[str, str]:
    """Returns {name: module} of the tasks of the library: the public functions that return a SyntheticTask."""
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
    """Returns how a command is invoked: seqjax NAME, or python -m experiments.NAME in a clone."""
    packages = [package for package in RESEARCH if name not in modules() and name in modules(package)]
    return f'python -m {packages[0]}.{name}' if packages else f'seqjax {name}'


def summary(name: str) -> str:
    """Returns the summary of a command: the first line of its module's docstring."""
    doc = ast.get_docstring(ast.parse(modules()[name].read_text(encoding='utf-8')))
    return (doc or '').partition('\n')[0]


def module(name: str) -> Any:
    """Imports and returns the module of a command."""
    package = next(package for package in (PACKAGE, *RESEARCH) if name in modules(package))
    return importlib.import_module(f'{package}.{name}')


def find(name: str) -> Any:
    """Returns the `seqjax.cli.command.Command` of a name."""
    return module(name).COMMAND
