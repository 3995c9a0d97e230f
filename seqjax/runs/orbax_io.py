"""Reading and writing arrays of a checkpoint with Orbax."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
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

# A failed call of Orbax closes its event loop while tensorstore is still writing, and before other writes have started.
LOOP_CLOSED = 'Event loop is closed'
NEVER_AWAITED = r"coroutine '.*' was never awaited"
LONGEST_WAIT = 2.0  # seconds to wait for the threads of a failed call, which may never end


@contextlib.contextmanager
def quiet_orbax() -> Iterator[Any]:
    """Context manager that imports and yields `orbax.checkpoint`, and drops its log messages.

    The first import takes 0.2 s. Unraisable errors 'Event loop is closed' of a failed call are dropped as well; all
    other exceptions propagate. A caller that handles one calls `discard(error)`, which waits for the call's threads and
    writes, before the context ends.
    """
    import orbax.checkpoint as ocp

    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == LOOP_CLOSED):
            before(unraisable)

    sys.unraisablehook = hook
    try:
        with _filtered('absl', lambda record: f'{os.sep}orbax{os.sep}' not in record.pathname):
            yield ocp
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = before


@contextlib.contextmanager
def _filtered(name: str, accept: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Context manager that drops the records of the logger `name` for which `accept` returns False."""
    logger = logging.getLogger(name)
    logger.addFilter(accept)
    try:
        yield
    finally:
        logger.removeFilter(accept)


def discard(error: BaseException) -> None:
    """Cleans up after a failed call of Orbax: waits for its threads and writes, and frees the tasks of `error`."""
    import tensorstore

    deadline = time.monotonic() + LONGEST_WAIT
    for thread in threading.enumerate():
        if type(thread).__module__.startswith('orbax.'):
            threading.Thread.join(thread, max(0.0, deadline - time.monotonic()))
    writes = [x for x in gc.get_objects() if type(x) is tensorstore.Future]
    while writes:
        with contextlib.suppress(Exception):  # an error of the write is ignored
            writes.pop().exception(timeout=max(0.0, deadline - time.monotonic()))
    chain: BaseException | None = error
    with warnings.catch_warnings(), _filtered('asyncio', lambda record: False):
        warnings.filterwarnings('ignore', NEVER_AWAITED, RuntimeWarning)
        while chain is not None:
            traceback.clear_frames(chain.__traceback__)
            chain = chain.__cause__ or chain.__context__
        gc.collect()


def warm_up() -> None:
    """Starts to import Orbax in a background thread, and returns immediately."""
    threading.Thread(target=importlib.import_module, args=('orbax.checkpoint',), daemon=True).start()


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Returns all arrays of a verified checkpoint by name, such as params/head/kernel; PRNG keys are integers.

    Raises:
      UserError: this version of Orbax cannot read the checkpoint.
    """
    path = (folder / manifest.STATE).resolve()
    with quiet_orbax() as ocp:
        try:
            with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
                tree = reader.metadata(path).item_metadata.tree
                restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
                return parameters.flatten_with_names(
                    reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=restore_args))
                )
        except Exception as error:  # of many types
            discard(error)
            version = manifest.parse_metadata(files.read_json(folder / directory.METADATA)).versions.get(
                'orbax-checkpoint', '(version unknown)'
            )
            raise UserError(
                f'{folder} is valid, but Orbax {ocp.__version__} cannot read it ({manifest.first_line(error)}); '
                f'install Orbax {version}, which wrote it'
            ) from error


def read_state(folder: Path, metadata: CheckpointMetadata, like: TrainState) -> TrainState:
    """Returns the TrainState of a verified checkpoint in the structure of `like`: NumPy arrays, PRNG keys as integers.

    Raises:
      UserError: the checkpoint is of another model or optimizer; the message names an array that differs.
    """
    expected = manifest.describe(like)
    for name in [*expected, *metadata.leaves]:
        leaves = metadata.leaves.get(name), expected.get(name)
        if leaves[0] != leaves[1]:
            actual, wanted = ('missing' if x is None else f'{x[1]} {x[0]}' for x in leaves)
            raise UserError(
                f'{folder} belongs to another model or optimizer: {name} is {actual} there and {wanted} in this run; '
                'choose another --workdir, or use --overwrite to train again'
            )
    arrays = read_arrays(folder)

    def leaf(name, x):
        return np.zeros(x.shape, x.dtype) if 0 in x.shape else arrays[name]

    return jax.tree.unflatten(
        jax.tree.structure(like), [leaf(name, x) for name, x in parameters.flatten_with_names(like).items()]
    )


def with_keys(state: TrainState, like: TrainState) -> TrainState:
    """Returns a TrainState of `read_state` with PRNG keys, as in `like`, instead of integers; can be compiled."""

    def leaf(x, want):
        return (
            jax.random.wrap_key_data(x, impl=jax.random.key_impl(jnp.empty((), want.dtype)))
            if parameters.is_key(want)
            else x
        )

    return jax.tree.map(leaf, state, like)
