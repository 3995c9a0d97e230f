"""Arrays of a checkpoint, written and read by Orbax."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import files
from seqjax.errors import UserError
from seqjax.runs import directory, manifest, parameters
from seqjax.runs.manifest import CheckpointMetadata
from seqjax.types import TrainState


def import_orbax() -> Any:
    """The package, without its reports of errors that reach us as exceptions anyway. It takes 0.2 s to import."""
    import orbax.checkpoint as ocp

    logger = logging.getLogger('absl')
    if _not_orbax not in logger.filters:
        logger.addFilter(_not_orbax)
        sys.unraisablehook = partial(_not_left_over, sys.unraisablehook)
        warnings.filterwarnings('ignore', NEVER_AWAITED, RuntimeWarning)
    return ocp


def _not_orbax(record: logging.LogRecord) -> bool:
    return f'{os.sep}orbax{os.sep}' not in record.pathname


# Where a save has failed, what tensorstore still had under way finds Orbax's event loop closed, and what had not begun
# is never awaited.
NEVER_AWAITED = r"coroutine 'async_serialize.*' was never awaited"
LEFT_OVER = re.compile(rf'Event loop is closed|{NEVER_AWAITED}')


def _not_left_over(hook: Callable[[Any], None], unraisable: Any) -> None:
    value = unraisable.exc_value
    if not (isinstance(value, RuntimeError | RuntimeWarning) and LEFT_OVER.fullmatch(str(value))):
        hook(unraisable)


def warm_up() -> None:
    """Imports Orbax in the background, while something else is compiled."""
    threading.Thread(target=import_orbax, daemon=True).start()


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a verified checkpoint by name; keys as the numbers that they are made of.

    Raises:
      UserError: Orbax cannot read what was written, as its checksums show, without a fault.
    """
    ocp, path = import_orbax(), (folder / manifest.STATE).resolve()
    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
        try:
            tree = reader.metadata(path).item_metadata.tree
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            return parameters.named(reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=how)))
        except Exception as error:  # of no common kind
            written = manifest.parse_metadata(files.read_json(folder / directory.ABOUT)).versions.get(
                'orbax-checkpoint', 'of an unknown version'
            )
            raise UserError(
                f'{folder} is sound, but Orbax {ocp.__version__} cannot read it ({manifest.first_line(error)}); '
                f'it was written by Orbax {written}: install that one'
            ) from error


def read_state(folder: Path, about: CheckpointMetadata, like: TrainState) -> TrainState:
    """The TrainState of a verified checkpoint, in the structure of `like`, with arrays of NumPy, and keys as numbers.

    Raises:
      UserError: it is of another model or optimiser; the sentence names an array that differs.
    """
    want = manifest.describe(like)
    for name in [*want, *about.leaves]:
        held, asked = about.leaves.get(name), want.get(name)
        if held != asked:
            has, needs = ('no such array' if x is None else f'{x[1]} {x[0]}' for x in (held, asked))
            raise UserError(
                f'{folder} is of another model or optimiser: for {name} it has {has}, and this run has {needs}; '
                'choose another --workdir, or --overwrite to train again'
            )
    arrays = read_arrays(folder)

    def leaf(name, x):
        return np.zeros(x.shape, x.dtype) if 0 in x.shape else arrays[name]

    return jax.tree.unflatten(jax.tree.structure(like), [leaf(name, x) for name, x in parameters.named(like).items()])


def with_keys(state: TrainState, like: TrainState) -> TrainState:
    """A TrainState as it was read, with keys for their numbers. For compiled code: where it goes, it may be spread."""

    def leaf(x, want):
        return (
            jax.random.wrap_key_data(x, impl=jax.random.key_impl(jnp.empty((), want.dtype)))
            if parameters.is_key(want)
            else x
        )

    return jax.tree.map(leaf, state, like)
