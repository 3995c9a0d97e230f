"""Optional packages (the extra "data"), and files inside installed packages."""

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from seqjax.errors import UserError

INSIDE = re.compile(r'([A-Za-z_]\w+):([^:\0]+)')  # PACKAGE:PATH; a single letter is a drive


def need(module: str, what: Any) -> ModuleType:
    """Imports a module; raises UserError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.partition('.')[0]
        raise UserError(f"{what} needs {root}, which is not installed: pip install 'seqjax[data]'") from error


def locate(path: str) -> Path:
    """Returns the path of a file, or of PACKAGE:PATH inside an installed package; an existing path has precedence.

    Nothing is imported. Raises UserError if the package or the file does not exist.

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
            f'{path} does not exist, and the package {package} is not installed; correct the path, or install it'
        )
    for place in places:
        if (Path(place) / inside).exists():
            return Path(place) / inside
    raise UserError(f'{path}: the installed package {package} has no file {inside}; correct the path')
