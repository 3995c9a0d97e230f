"""The manifest of a checkpoint: metadata of its run, and checksums of its files."""

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
LINE = re.compile(r'([0-9a-f]{64})  (.+)')  # a line of the manifest: checksum and file
FOOTER = '# {count} files; sha256 of the lines above: {sha256}\n'  # a comment to sha256sum


class CorruptCheckpointError(Exception):
    """Error for a checkpoint that cannot be used; the message gives the reason."""


class CheckpointMetadata(NamedTuple):
    """Metadata of a checkpoint, saved as about.json."""

    step: int  # number of training steps taken
    experiment: str  # name of the experiment
    flags: Mapping[str, Any]  # flags of the run
    logs: Mapping[str, LogOffset]  # offset of each append-only log
    metrics: Mapping[str, float | None]  # values at that step; None if not finite
    leaves: Mapping[str, list[Any]]  # [shape, dtype] of each array of the TrainState, by name
    versions: Mapping[str, str]  # versions of PACKAGES
    feed: Mapping[str, Any] | None = None  # state of the iterator of streamed data


@functools.cache  # read from disk, and needed at every save
def versions() -> dict[str, str]:
    """Returns {package: installed version} for PACKAGES."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def describe(state: TrainState) -> dict[str, list[Any]]:
    """Returns {name: [shape, dtype]} for every array of a TrainState.

    Raises:
      UserError: two arrays have the same name, here or in Orbax, which joins keys with dots.
    """
    orbax_names: dict[str, str] = {}
    for keys, _ in parameters.key_paths(state):
        name, other = '/'.join(keys), orbax_names.setdefault('.'.join(keys), '/'.join(keys))
        if name != other:
            raise UserError(
                f'the arrays {other} and {name} have the same name in a checkpoint; rename the key that contains a "."'
            )
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in parameters.flatten_with_names(state).items()}


def to_orbax_tree(state: TrainState) -> dict[str, Any]:
    """Returns the arrays that Orbax saves: PRNG keys as integers, and None for empty arrays, which Orbax rejects."""

    def leaf(x):
        return None if 0 in x.shape else jax.random.key_data(x) if parameters.is_key(x) else x

    return jax.tree.map(leaf, state)._asdict()


def write_manifest(folder: Path) -> None:
    """Writes the manifest, the sha256 of every file in and below a folder, and flushes all of the files to disk."""
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
    """Verifies the checksum of every file of a checkpoint, and returns its metadata.

    Raises:
      CorruptCheckpointError: a file is missing, unreadable or corrupt.
    """
    name = MANIFEST
    try:
        with seqjax_files.open_file(folder / MANIFEST, 'r', encoding='utf-8') as file:
            text = file.read()
        for name, want in _parse_checksums(text).items():
            if seqjax_files.sha256(folder / name) != want:
                raise CorruptCheckpointError(f'{name} is corrupt')
        name = directory.METADATA
        return parse_metadata(seqjax_files.read_json(folder / directory.METADATA))
    except FileNotFoundError:
        raise CorruptCheckpointError(f'{name} is missing') from None
    except OSError as error:
        raise CorruptCheckpointError(f'{name} cannot be read ({error.strerror})') from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CorruptCheckpointError(f'{name} is corrupt') from error


def parse_metadata(content: Any) -> CheckpointMetadata:
    """Returns the metadata from the parsed about.json; raises TypeError or a similar error if a value is invalid."""
    metadata = CheckpointMetadata(
        **content | {'logs': {name: LogOffset(*offset) for name, offset in content['logs'].items()}}
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
        raise TypeError('about.json has a value of the wrong type')
    return metadata


def _parse_checksums(text: str) -> dict[str, str]:
    """Returns {file: sha256} from the text of a manifest; raises ValueError if the manifest itself is corrupt."""
    *lines, last = text.splitlines(keepends=True) or ['']
    above = ''.join(lines)
    if last != FOOTER.format(count=len(lines), sha256=hashlib.sha256(above.encode()).hexdigest()):
        raise ValueError
    return {match[2]: match[1] for line in lines if (match := LINE.fullmatch(line.rstrip('\n')))}


def first_line(error: BaseException) -> str:
    """Returns the type and message of an error as one line, shortened to 200 characters."""
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
