"""Optional packages, which the extra "data" installs, and paths of files inside installed packages."""

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from seqjax.errors import UserError

INSIDE = re.compile(r'([A-Za-z_]\w+):([^:\0]+)')  # PACKAGE:PATH; a single letter before the colon is a Windows drive


def need(module: str, what: Any) -> ModuleType:
    """Imports and returns a module; raises UserError, which starts with `what` (a file), if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.partition('.')[0]
        raise UserError(
            f"{what} needs {root}, which is not installed; install it with pip install 'seqjax[data]'"
        ) from error


def locate(path: str) -> Path:
    """Returns the path of a file, where PACKAGE:PATH means the file PATH inside an installed package.

    If `path` itself exists, it is returned. The package is not imported. Raises UserError if the package, or the file
    in it, does not exist; a path without a package is not checked.

    >>> locate('seqjax:datasets/readers/optional_packages.py').name
    'optional_packages.py'
    """
    match = INSIDE.fullmatch(path)
    if match is None or Path(path).exists():
        return Path(path)
    package, inside = match.groups()
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a module without a file, such as __main__
        spec = None
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise UserError(
            f'{path} does not exist, and the package {package} is not installed; correct the path, or install '
            'the package'
        )
    for place in places:
        if (Path(place) / inside).exists():
            return Path(place) / inside
    raise UserError(f'{path}: the installed package {package} has no file {inside}; correct the path')
