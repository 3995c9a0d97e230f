"""The default run directory of a command: a pure function of its flags.

    runs/td/many_to_many                  all defaults
    runs/td/many_to_many-3f9c1e           --learning_rate=0.1
    runs/forecast/sales-lstm-80b2aa       --data=sales.csv --target=sold

Processes of one run, resumed runs and concurrent runs agree on it without a look at the disk.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from seqjax.runs import directory

HASH_DIGITS = 6
LONGEST_NAME = 60  # characters of a part of the path


def default_workdir(
    values: dict[str, Any],
    defaults: Mapping[str, Any],
    *names: str,
    named: Sequence[str] = (),
    steps: str = 'steps',
    suffix: str = '',
) -> dict[str, Any]:
    """Returns the flags with the default --workdir filled in where none is given.

    Args:
      values, defaults: of all flags of the command.
      names: parts of the path below runs/, such as the experiment and the cell.
      named: flags that `names` says already, or of which one run directory may hold several values.
      steps: the flag of the training steps, which may grow and is not counted.
      suffix: the usual suffix of --data, which the path leaves out.
    """
    if values['workdir'] is not None:
        return values
    ignored = {*directory.NON_SEMANTIC_FLAGS, *named, steps, 'data'}
    counted = [name for name in values if name in defaults and name not in ignored]
    differing = {name: values[name] for name in counted if values[name] != defaults[name]}
    parts = [safe_name(name) for name in names]
    if list(names) != parts:
        differing['names'] = list(names)
    data = values.get('data')
    if data is not None:
        stem = safe_name(PurePath(data.rpartition(':')[2]).stem)
        parts[-1] = f'{stem}-{parts[-1]}'
        if data != stem + suffix:
            differing['data'] = data
    if differing:
        text = json.dumps(differing, sort_keys=True, ensure_ascii=False)
        # Bytes of a path that are not UTF-8 are surrogates, whatever the locale.
        parts[-1] += f'-{hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:HASH_DIGITS]}'
    return {**values, 'workdir': os.path.join('runs', *parts)}


def safe_name(name: str) -> str:
    """Returns a name that every file system takes."""
    return re.sub(r'[^A-Za-z0-9._-]+', '_', name).lstrip('.-')[:LONGEST_NAME] or '_'
