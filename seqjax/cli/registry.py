"""The commands that there are: modules that have a COMMAND, which are read, not imported."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

PACKAGE = 'experiments'


@functools.cache
def modules() -> dict[str, Path]:
    """The file of each command, by its name."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    files = sorted((path for folder in folders for path in Path(folder).glob('*.py')), key=lambda path: path.stem)
    return {path.stem: path for path in files if has(path, 'COMMAND')}


def has(path: Path, name: str) -> bool:
    """Returns True if a module assigns a name."""
    return re.search(rf'^{name} = ', path.read_text(encoding='utf-8'), re.MULTILINE) is not None


def summary(name: str) -> str:
    """The first line of the docstring of a command's module."""
    doc = ast.get_docstring(ast.parse(modules()[name].read_text(encoding='utf-8')))
    return (doc or '').partition('\n')[0]


def module(name: str) -> Any:
    """The module of a command, which is imported."""
    return importlib.import_module(f'{PACKAGE}.{name}')


def find(name: str) -> Any:
    """A command by its name: the `seqjax.cli.command.Command` of its module."""
    return module(name).COMMAND
