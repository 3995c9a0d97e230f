"""Lazy imports of the public names of a package, on first use, so that importing a package is fast."""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns `__getattr__`, `__dir__` and `__all__` for a package whose public names are imported on first use.

    The public names are the names in the `from ... import` lines under `if TYPE_CHECKING:` in the `__init__.py` of the
    package, where type checkers and editors find them.

    Args:
      package: `__name__` of the package.
      file: `__file__` of the package, the path of its `__init__.py`.

    >>> import seqjax.nn
    >>> seqjax.nn.LSTMCell.__module__
    'seqjax.nn.cells.lstm_cell'
    """
    tree = ast.parse(Path(file).read_text(encoding='utf-8'))
    branches = [node.body for node in tree.body if isinstance(node, ast.If)]
    imports = [node for body in branches for node in body if isinstance(node, ast.ImportFrom)]
    origin = {alias.asname or alias.name: (str(node.module), alias.name) for node in imports for alias in node.names}

    def load(name: str) -> Any:
        if name not in origin:
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        module, attribute = origin[name]
        if module == package:  # a submodule, not a name in a module
            return importlib.import_module(f'{module}.{attribute}')
        return getattr(importlib.import_module(module), attribute)

    return load, lambda: sorted(origin), sorted(origin)
