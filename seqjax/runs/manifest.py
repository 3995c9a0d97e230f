"""The manifest of a checkpoint: checksums of its files, and what it is a checkpoint of."""

import functools
import hashlib
import importlib.metadata
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from seqjax import files as seqjax_files
from seqjax.errors import UserError
from seqjax.runs import directory, parameters
from seqjax.runs.append_log import LogOffset
from seqjax.types import TrainState

STATE, MANIFEST = 'state', 'checksums'
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
LINE = re.compile(r'([0-9a-f]{64})  (.+)')  # of the seal
FOOTER = '# {count} files; sha256 of the lines above: {sha256}\n'  # sha256sum takes it for a comment


class CorruptCheckpointError(Exception):
    """A step that cannot be used; its message says why."""


class CheckpointMetadata(NamedTuple):
    """What a checkpoint says of itself."""

    step: int
    experiment: str
    flags: Mapping[str, Any]
    logs: Mapping[str, LogOffset]  # by name
    metrics: Mapping[str, float | None]  # at that step; None where not finite
    leaves: Mapping[str, list[Any]]  # the TrainState's arrays: name -> shape, dtype
    versions: Mapping[str, str]
    feed: Mapping[str, Any] | None = None  # where the iterator of streamed data stood


@functools.cache  # asked at every save, and looked up on the disk
def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def describe(state: TrainState) -> dict[str, list[Any]]:
    """Name -> shape and dtype, of every array of a TrainState.

    Raises UserError where two arrays have one name, here or in Orbax, which joins keys with dots.
    """
    found: dict[str, str] = {}
    for words, _ in parameters.key_paths(state):
        name, other = '/'.join(words), found.setdefault('.'.join(words), '/'.join(words))
        if name != other:
            raise UserError(f'a checkpoint cannot keep {other} and {name} apart; rename the key that contains a "."')
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in parameters.flatten_with_names(state).items()}


def to_orbax_tree(state: TrainState) -> dict[str, Any]:
    """Keys as numbers, and nothing in place of arrays without elements, which Orbax refuses."""

    def leaf(x):
        return None if 0 in x.shape else jax.random.key_data(x) if parameters.is_key(x) else x

    return jax.tree.map(leaf, state)._asdict()


def write_manifest(folder: Path) -> None:
    """Writes the checksums of all files of a folder; afterwards all of it is on the disk."""
    files = sorted(path for path in folder.rglob('*') if path.is_file() and path.name != MANIFEST)
    lines = []
    for path in files:
        seqjax_files.sync(path)
        lines.append(f'{seqjax_files.sha256(path)}  {path.relative_to(folder).as_posix()}\n')
    text = ''.join(lines)
    text += FOOTER.format(count=len(files), sha256=hashlib.sha256(text.encode()).hexdigest())
    (folder / MANIFEST).write_text(text, encoding='utf-8')
    seqjax_files.sync(folder / MANIFEST)
    for path in [folder, *folder.rglob('*')]:
        if path.is_dir():
            seqjax_files.sync(path)


def verify_manifest(folder: Path) -> CheckpointMetadata:
    """Reads every byte of a checkpoint and gives what it says of itself; raises CorruptCheckpointError if damaged."""
    name = MANIFEST
    try:
        with seqjax_files.open_file(folder / MANIFEST, 'r', encoding='utf-8') as file:
            text = file.read()
        for name, want in _parse_checksums(text).items():
            if seqjax_files.sha256(folder / name) != want:
                raise CorruptCheckpointError(f'{name} is damaged')
        name = directory.METADATA
        return parse_metadata(seqjax_files.read_json(folder / directory.METADATA))
    except FileNotFoundError:
        raise CorruptCheckpointError(f'{name} is missing') from None
    except OSError as error:
        raise CorruptCheckpointError(f'{name} cannot be read ({error.strerror})') from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CorruptCheckpointError(f'{name} is damaged') from error


def parse_metadata(held: Any) -> CheckpointMetadata:
    """What about.json holds; raises ValueError or TypeError where it is of other types."""
    metadata = CheckpointMetadata(
        **held | {'logs': {name: LogOffset(*offset) for name, offset in held['logs'].items()}}
    )
    offsets = metadata.logs.values()
    if not (
        type(metadata.step) is int
        and isinstance(metadata.experiment, str)
        and all(isinstance(x, dict) for x in (metadata.flags, metadata.metrics, metadata.leaves, metadata.versions))
        and all(
            type(offset.length) is int and offset.length >= 0 and isinstance(offset.sha256, str) for offset in offsets
        )
        and all(x is None or type(x) in (int, float) for x in metadata.metrics.values())
    ):
        raise TypeError('about.json has values of other types')
    return metadata


def _parse_checksums(text: str) -> dict[str, str]:
    """name -> sha256; raises ValueError where the seal itself is damaged."""
    *lines, last = text.splitlines(keepends=True) or ['']
    above = ''.join(lines)
    if last != FOOTER.format(count=len(lines), sha256=hashlib.sha256(above.encode()).hexdigest()):
        raise ValueError
    return {match[2]: match[1] for line in lines if (match := LINE.fullmatch(line.rstrip('\n')))}


def first_line(error: BaseException) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
