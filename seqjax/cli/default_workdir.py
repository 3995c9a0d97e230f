"""The default run directory of a command, which depends on the values of its flags only.

    runs/td/many_to_many                  all defaults
    runs/td/many_to_many-3f9c1e           --learning_rate=0.1
    runs/forecast/sales-lstm-80b2aa       --data=sales.csv --target=sold

All processes of a run, resumed runs and concurrent runs compute the same directory without reading the disk.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from seqjax.runs import directory

HASH_DIGITS = 6  # hexadecimal digits of the hash of the flags that differ from their defaults
MAX_NAME = 60  # characters of a path component, without hash


def default_workdir(
    values: dict[str, Any],
    defaults: Mapping[str, Any],
    *names: str,
    excluded: Sequence[str] = (),
    steps: str = 'steps',
    suffix: str = '',
) -> dict[str, Any]:
    """Returns `values` with the default --workdir; `values` unchanged if --workdir is set.

    The path is runs/NAMES; for a command with --data, the last name starts with the name of the file. If other flags
    differ from their defaults, the path ends in a hash of their values.

    Args:
      values: values of all flags of the command.
      defaults: default values of the flags.
      names: components of the path below runs/, such as the experiment and the cell.
      excluded: flags that are not hashed, because `names` contains them or runs that differ in them share a directory.
      steps: flag of the training steps, which is not hashed because a run may be extended.
      suffix: usual suffix of --data; the path of --data is hashed, too, if it has another suffix or a folder.
    """
    if values['workdir'] is not None:
        return values
    ignored = {*directory.NON_SEMANTIC_FLAGS, *excluded, steps, 'data'}
    hashed = [name for name in values if name in defaults and name not in ignored]
    changed = {name: values[name] for name in hashed if values[name] != defaults[name]}
    parts = [safe_name(name) for name in names]
    if list(names) != parts:
        changed['names'] = list(names)
    data = values.get('data')
    if data is not None:
        stem = safe_name(PurePath(data.rpartition(':')[2]).stem)
        parts[-1] = f'{stem}-{parts[-1]}'
        if data != stem + suffix:
            changed['data'] = data
    if changed:
        text = json.dumps(changed, sort_keys=True, ensure_ascii=False)
        # Bytes of a path that are not UTF-8 become surrogates in every locale.
        parts[-1] += f'-{hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:HASH_DIGITS]}'
    return {**values, 'workdir': os.path.join('runs', *parts)}


def safe_name(name: str) -> str:
    """Returns `name` as a valid file name of at most MAX_NAME characters.

    Characters other than ASCII letters, digits, '.', '_' and '-' become '_'; '.' and '-' at the start are removed. If
    nothing is left, the name is '_'.
    """
    return re.sub(r'[^A-Za-z0-9._-]+', '_', name).lstrip('.-')[:MAX_NAME] or '_'
