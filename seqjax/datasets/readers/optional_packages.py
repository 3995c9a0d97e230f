"""Libraries that only data need, the extra "data"; and files that lie inside of an installed package."""

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from seqjax.errors import UserError

INSIDE = re.compile(r'([A-Za-z_]\w+):([^:\0]+)')  # PACKAGE:PATH; one letter would be a drive


def need(module: str, what: Any) -> ModuleType:
    """The module; raises UserError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.partition('.')[0]
        raise UserError(f"{what} needs {root}, which is not installed: pip install 'seqjax[data]'") from error


def locate(path: str) -> Path:
    """The file of a path, or of PACKAGE:PATH, which names one inside an installed package; a path that exists wins.

    Nothing is imported. Raises UserError where there is no such package, or no such file in it.

    >>> locate('seqjax:datasets/readers/optional_packages.py').name
    'optional_packages.py'
    """
    found = INSIDE.fullmatch(path)
    if found is None or Path(path).exists():
        return Path(path)
    package, inside = found.groups()
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a module that came from no file, such as __main__
        spec = None
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise UserError(
            f'{path}: there is no file of this name, and {package} is not installed: name a file, or install it'
        )
    for place in places:
        if (Path(place) / inside).exists():
            return Path(place) / inside
    raise UserError(f'{path}: the installed package {package} has no file {inside}')
