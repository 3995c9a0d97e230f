"""Checkpoints: written by Orbax in the background, sealed with a checksum of every file, verified before use.

    checkpoints/500/state/      what Orbax wrote: the whole TrainState
    checkpoints/500/about.json  the run's flags and versions, the marks of its journals, its metrics, names and shapes
    checkpoints/500/checksums   sha256 of all of these, as sha256sum writes it; written last

A step appears under its number only when it is whole; `sha256sum -c checksums` in its folder verifies it, too.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import processes
from seqjax.files import (
    ABOUT,
    Mark,
    UserError,
    open_file,
    read_json,
    sha256,
    sync,
    warn,
    writing,
)
from seqjax.parameters import is_key, load, named, save, words_of  # noqa: F401
from seqjax.task import TrainState

STATE, SEAL = 'state', 'checksums'
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
STEP = '0|[1-9][0-9]*'  # the name of a checkpoint
LINE = re.compile(r'([0-9a-f]{64})  (.+)')  # of the seal
LAST = '# {count} files; sha256 of the lines above: {sha256}\n'  # sha256sum takes it for a comment
ROOM = 1.2  # the room that a save needs, against the bytes of its arrays


class Unsound(Exception):
    """A step that cannot be used; its message says why."""


class About(NamedTuple):
    """What a checkpoint says of itself."""

    step: int
    experiment: str
    flags: Mapping[str, Any]
    journals: Mapping[str, Mark]  # by name
    metrics: Mapping[str, float | None]  # at that step; None where not finite
    leaves: Mapping[str, list[Any]]  # the TrainState's arrays: name -> shape, dtype
    versions: Mapping[str, str]
    feed: Mapping[str, Any] | None = None  # where the iterator of streamed data stood


@functools.cache  # asked at every save, and looked up on the disk
def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


# --- the TrainState as Orbax takes it -------------------------------------------------------------------


def describe(state: TrainState) -> dict[str, list[Any]]:
    """Name -> shape and dtype, of every array of a TrainState.

    Raises:
      UserError: two arrays have one name, here or in Orbax, which joins keys with dots.
    """
    found: dict[str, str] = {}
    for words, _ in words_of(state):
        name, other = '/'.join(words), found.setdefault('.'.join(words), '/'.join(words))
        if name != other:
            raise UserError(f'a checkpoint cannot keep {other} and {name} apart; rename the key that contains a "."')
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in named(state).items()}


def _plain(state: TrainState) -> dict[str, Any]:
    """Keys as numbers, and nothing in place of arrays without elements, which Orbax refuses."""

    def leaf(x):
        return None if 0 in x.shape else jax.random.key_data(x) if is_key(x) else x

    return jax.tree.map(leaf, state)._asdict()


# --- the seal --------------------------------------------------------------------------------------


def seal(folder: Path) -> None:
    """Writes the checksums of all files of a folder; afterwards all of it is on the disk."""
    files = sorted(path for path in folder.rglob('*') if path.is_file() and path.name != SEAL)
    lines = []
    for path in files:
        sync(path)
        lines.append(f'{sha256(path)}  {path.relative_to(folder).as_posix()}\n')
    text = ''.join(lines)
    text += LAST.format(count=len(files), sha256=hashlib.sha256(text.encode()).hexdigest())
    (folder / SEAL).write_text(text, encoding='utf-8')
    sync(folder / SEAL)
    for path in [folder, *folder.rglob('*')]:
        if path.is_dir():
            sync(path)


def verify(folder: Path) -> About:
    """Reads every byte of a checkpoint and gives what it says of itself.

    Raises:
      Unsound: a file is missing, changed or cannot be read.
    """
    name = SEAL
    try:
        with open_file(folder / SEAL, 'r', encoding='utf-8') as file:
            text = file.read()
        for name, want in _sealed(text).items():
            if sha256(folder / name) != want:
                raise Unsound(f'{name} is damaged')
        name = ABOUT
        return _about(read_json(folder / ABOUT))
    except FileNotFoundError:
        raise Unsound(f'{name} is missing') from None
    except OSError as error:
        raise Unsound(f'{name} cannot be read ({error.strerror})') from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise Unsound(f'{name} is damaged') from error


def _about(held: Any) -> About:
    """What about.json holds; raises ValueError or TypeError where it is of other types."""
    about = About(**held | {'journals': {name: Mark(*mark) for name, mark in held['journals'].items()}})
    marks = about.journals.values()
    if not (
        type(about.step) is int
        and isinstance(about.experiment, str)
        and all(isinstance(x, dict) for x in (about.flags, about.metrics, about.leaves, about.versions))
        and all(type(mark.length) is int and mark.length >= 0 and isinstance(mark.sha256, str) for mark in marks)
        and all(x is None or type(x) in (int, float) for x in about.metrics.values())
    ):
        raise TypeError('about.json has values of other types')
    return about


def _sealed(text: str) -> dict[str, str]:
    """name -> sha256; raises ValueError where the seal itself is damaged."""
    *lines, last = text.splitlines(keepends=True) or ['']
    above = ''.join(lines)
    if last != LAST.format(count=len(lines), sha256=hashlib.sha256(above.encode()).hexdigest()):
        raise ValueError
    return {match[2]: match[1] for line in lines if (match := LINE.fullmatch(line.rstrip('\n')))}


# --- Orbax -----------------------------------------------------------------------------------------


def _orbax() -> Any:
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
    threading.Thread(target=_orbax, daemon=True).start()


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a verified checkpoint by name; keys as the numbers that they are made of.

    Raises:
      UserError: Orbax cannot read what was written, as its checksums show, without a fault.
    """
    ocp, path = _orbax(), (folder / STATE).resolve()
    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
        try:
            tree = reader.metadata(path).item_metadata.tree
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            return named(reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=how)))
        except Exception as error:  # of no common kind
            written = _about(read_json(folder / ABOUT)).versions.get('orbax-checkpoint', 'of an unknown version')
            raise UserError(
                f'{folder} is sound, but Orbax {ocp.__version__} cannot read it ({_line(error)}); '
                f'it was written by Orbax {written}: install that one'
            ) from error


def stores(folder: Path) -> Iterator[Path]:
    """The folders at or below one that hold checkpoints, in the order of their names.

    Raises:
      UserError: a folder cannot be listed.
    """
    for path, below, _ in os.walk(folder, onerror=_refuse_unreadable):
        if any(re.fullmatch(STEP, name) for name in below):
            yield Path(path)
        below[:] = [name for name in below if not re.fullmatch(rf'\..*|unsound-.*|{STEP}', name)]
        below.sort(key=lambda name: [int(x) if x.isdigit() else x for x in re.split(r'(\d+)', name)])


def _refuse_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise UserError(f'{error.filename} cannot be read: {error.strerror}') from error


def read_state(folder: Path, about: About, like: TrainState) -> TrainState:
    """The TrainState of a verified checkpoint, in the structure of `like`, with arrays of NumPy, and keys as numbers.

    Raises:
      UserError: it is of another model or optimiser; the sentence names an array that differs.
    """
    want = describe(like)
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

    return jax.tree.unflatten(jax.tree.structure(like), [leaf(name, x) for name, x in named(like).items()])


def with_keys(state: TrainState, like: TrainState) -> TrainState:
    """A TrainState as it was read, with keys for their numbers. For compiled code: where it goes, it may be spread."""

    def leaf(x, want):
        return jax.random.wrap_key_data(x, impl=jax.random.key_impl(jnp.empty((), want.dtype))) if is_key(want) else x

    return jax.tree.map(leaf, state, like)


def _make_room(folder: Path, size: int) -> None:
    """An empty folder for arrays of so many bytes; raises OSError where the disk has no room for them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if shutil.disk_usage(folder).free < ROOM * size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _move(path: Path, target: Path) -> None:
    """Takes a step's name away; what bore the new one is removed."""
    if target.is_dir():
        shutil.rmtree(target)
    os.rename(path, target)


def _line(error: BaseException) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]


def _refusal(error: BaseException) -> str | None:
    """What the file system said, where an error of a save comes from there."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    code = re.search(r"os_error_code='(\d+)'", str(error))  # of tensorstore, which raises ValueError
    return os.strerror(int(code[1])) if code else None


# --- the steps that are kept -----------------------------------------------------------------------


def goal(best: str) -> tuple[int, str]:
    """The metric that the best checkpoint goes by, after -1 where its highest value is the best, and 1 for the lowest.

    >>> goal('loss'), goal('min:loss'), goal('max:validation/accuracy')
    ((1, 'loss'), (1, 'loss'), (-1, 'validation/accuracy'))
    """
    return (-1 if best.startswith('max:') else 1), best.removeprefix('max:').removeprefix('min:')


class Pending(NamedTuple):
    """A save that goes on in the background."""

    step: int
    future: Future[None]


class Store:
    """The checkpoints of one run, by step, in one folder.

    Args:
      folder: made by the first save.
      keep: how many of the newest stay.
      best: a metric, see `goal`; the checkpoint with its best value stays, too.
      writes: whether the folder is ours to change; else nothing in it is touched.
    """

    def __init__(self, folder: Path, *, keep: int = 2, best: str | None = None, writes: bool = True):
        self.folder, self.keep = folder, keep
        self.sign, self.best = (1, None) if best is None else goal(best)
        self.last: int | None = None  # the step that was saved or restored last
        self.orbax, self.thread, self.pending = None, None, None
        if writes and processes.is_first() and os.path.isdir(folder):
            for path in folder.glob('.*-*'):  # left by a process that died
                shutil.rmtree(path, ignore_errors=True)

    def steps(self) -> list[int]:
        """All that bear a step's name, sound or not, in ascending order.

        Raises:
          UserError: the folder cannot be listed.
        """
        try:
            names = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f'{self.folder} cannot be read: {error.strerror}; choose another --workdir') from error
        return sorted(int(name) for name in names if re.fullmatch(STEP, name))

    def path(self, step: int) -> Path:
        return self.folder / str(step)

    def check(self, step: int) -> About:
        """What a step says of itself; raises Unsound where anything is wrong with it."""
        about = verify(self.path(step))
        if about.step != step:
            raise Unsound(f'it is the checkpoint of step {about.step:,}')
        return about

    def restore(self, like: TrainState, fault: Callable[[About], str | None]) -> tuple[TrainState, About] | None:
        """The newest sound step, see `read_state`; None where there is no checkpoint at all.

        Steps that are not sound are named in a warning, and set aside where a newer save may take their place.

        Args:
          like: the structure of the TrainState, with shapes and dtypes.
          fault: says in words why a step cannot be used for another reason; may raise UserError.

        Raises:
          UserError: no step is sound.
        """
        found = processes.share(partial(self._newest, fault))
        if found is None:
            return None
        about = About(*found)
        self.last = about.step
        return read_state(self.path(about.step), about, like), about

    def _newest(self, fault: Callable[[About], str | None]) -> tuple[Any, ...] | None:
        """What the newest sound step says of itself; others are named and set aside."""
        skipped = {}
        for step in reversed(self.steps()):
            try:
                about = self.check(step)
                reason = fault(about)
            except Unsound as error:
                reason = str(error)
            if reason is None:
                break
            skipped[step] = reason
        else:
            if not skipped:
                return None
            told = '; '.join(f'step {step}: {reason}' for step, reason in skipped.items())
            raise UserError(f'no checkpoint in {self.folder} can be used ({told}); --overwrite begins anew')
        for other, reason in skipped.items():
            warn(f'the checkpoint of step {other:,} in {self.folder} is skipped for that of step {step:,}: {reason}')
            with writing(self.path(other)):
                _move(self.path(other), self.folder / f'unsound-{other}')
        return tuple(about)

    def save(self, state: TrainState, about: About) -> None:
        """Begins to save; returns as soon as the arrays are copied.

        Raises:
          UserError: the disk refuses, now or at the save before.
        """
        self.wait()
        if about.step == self.last:
            return
        unfinished, plain = self.folder / f'.saving-{about.step}', _plain(state)
        size = sum(x.nbytes for x in jax.tree.leaves(plain))
        with self._saving(about.step):
            processes.share(lambda: _make_room(unfinished, size))
            ocp = _orbax()
            if self.orbax is None:
                self.orbax, self.thread = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler()), ThreadPoolExecutor(1)
            self.orbax.save((unfinished / STATE).resolve(), args=ocp.args.PyTreeSave(plain))
            self.pending = Pending(about.step, self.thread.submit(self._finish, unfinished, about))

    def _finish(self, unfinished: Path, about: About) -> None:
        """Waits for Orbax, seals the step and gives it its name. In the background."""
        self.orbax.wait_until_finished()
        if processes.is_first():
            (unfinished / ABOUT).write_text(json.dumps(about._asdict(), indent=1, allow_nan=False), encoding='utf-8')
            seal(unfinished)
            os.rename(unfinished, self.path(about.step))
            sync(self.folder)
            self._prune()
        self.last = about.step

    @contextlib.contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """Turns what the disk refuses into a sentence."""
        try:
            yield
        except Exception as error:  # Orbax raises what tensorstore does, of many kinds
            reason = _refusal(error)
            if reason is None:
                raise
            self._end_orbax(told=True)
            kept = 'nothing is saved yet' if self.last is None else f'the run is kept up to step {self.last:,}'
            raise UserError(
                f'cannot save step {step:,} in {self.folder}: {reason}; {kept}: mend that, and the same command goes on'
            ) from error

    def heed(self) -> None:
        """Raises UserError where a save has failed until now."""
        if self.pending is not None and self.pending.future.done():
            self.wait()

    def wait(self) -> None:
        """Returns when what was to be saved is; raises UserError where it could not be."""
        pending, self.pending = self.pending, None
        if pending is not None:
            with self._saving(pending.step):
                pending.future.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._end_orbax()

    def _end_orbax(self, told: bool = False) -> None:
        """Closes what a first save opened; a next one opens it anew.

        Args:
          told: a save has failed and that is told: Orbax, whose threads may each have met the same full disk, raises
            in turn what the others have seen.
        """
        if self.orbax is not None:
            self.thread.shutdown()  # which may still use Orbax
            orbax, self.orbax = self.orbax, None
            try:
                orbax.close()
            except Exception as error:  # of many kinds, as in a save
                if not told or _refusal(error) is None:
                    raise

    def _prune(self) -> None:
        steps = self.steps()
        kept = {*steps[-self.keep :], self.best_step()}
        for step in steps:
            if step not in kept:
                _move(self.path(step), gone := self.folder / f'.gone-{step}')
                shutil.rmtree(gone)

    def best_step(self) -> int | None:
        """The step with the best value of the metric; None where none has a finite one."""
        values = {step: value for step in self.steps() if (value := self._value(step)) is not None}
        return min(values, key=lambda step: self.sign * values[step]) if values else None

    def _value(self, step: int) -> float | None:
        if self.best is None:
            return None
        try:
            return _about(read_json(self.path(step) / ABOUT)).metrics.get(self.best)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):  # not sound: nobody's best
            return None
