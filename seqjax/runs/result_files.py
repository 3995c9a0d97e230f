"""Reading and writing the arrays, tables and figures of a run directory."""

import csv
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqjax import files
from seqjax.errors import UserError
from seqjax.runs import directory
from seqjax.runs.directory import Workdir


def read_losses(workdir: Workdir, steps: int, num_seeds: int | None) -> np.ndarray:
    """Returns the losses of a finished run, [R, steps]; [steps] without replicas, that is if `num_seeds` is None."""
    if num_seeds is not None:
        return read_replicas(workdir, 'loss', (num_seeds, steps))
    path = workdir.file(directory.METRICS)
    with files.reading(path), files.open_file(path, 'r', newline='') as lines:
        return np.array([float(row['loss']) for row in csv.DictReader(lines)], np.float32).reshape(steps)


def read_replicas(workdir: Workdir, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the array `name` of replicas.npz; raises UserError if it is missing or does not have `shape`."""
    return read_arrays(workdir.file(directory.REPLICAS), {name: (shape, None)})[name]


def write_replicas(workdir: Workdir, **arrays: np.ndarray) -> None:
    """Writes replicas.npz: arrays by name, each with a leading axis R (seeds)."""
    write_arrays(workdir, directory.REPLICAS, **arrays)


def write_arrays(workdir: Workdir, name: str, **arrays: np.ndarray) -> None:
    """Writes arrays by name to an .npz file; raises UserError for names like 'x' and 'x.npy', which NumPy confuses."""
    for array_name in arrays:
        if f'{array_name}.npy' in arrays:
            raise UserError(
                f'{array_name} and {array_name}.npy have the same name in {name}; rename the key that ends in ".npy"'
            )
    workdir.write(name, lambda path: np.savez(path, **arrays))


Expected = tuple[tuple[int | None, ...], Any]  # shape, None for an axis of any length; dtype, None for any real dtype


def read_arrays(path: Path, expected: Mapping[str, Expected], others: bool = True) -> dict[str, np.ndarray]:
    """Returns the arrays `expected` of an .npz file by name, after checking their names, shapes, dtypes and sizes.

    Args:
      path: the file.
      expected: shape and dtype by name.
      others: True if the file may have other arrays, which are not read.

    Raises:
      UserError: the file cannot be read, or an array is missing or differs from `expected`.
    """
    with files.reading(path), files.open_file(path) as file, zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix('.npy'): info for info in archive.infolist()}
        if len(members) < len(archive.infolist()) or (not others and members.keys() - expected.keys()):
            raise ValueError('it has unexpected or duplicate arrays')
        for name in expected:
            if name not in members:
                raise ValueError(f'it belongs to another run: the array {name} is missing')
        headers = {name: _read_header(archive, members[name], name, *want) for name, want in expected.items()}
        return {name: _read_array(archive, members[name], header) for name, header in headers.items()}


def _read_header(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, want_shape: tuple[int | None, ...], want_dtype: Any
) -> tuple[Any, ...]:
    """Returns an array's header size, shape, True for Fortran order, and dtype; raises ValueError if unexpected."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise ValueError(f'the .npy format version of {name} is {version} and must be (1, 0) or (2, 0)')
        shape, is_fortran, dtype = read[version](file)
        begin = file.tell()
    same = len(shape) == len(want_shape) and all(y in (None, x) for x, y in zip(shape, want_shape, strict=True))
    if not same or (dtype != want_dtype if want_dtype is not None else dtype.kind not in 'iuf'):
        kind = 'numbers' if want_dtype is None else want_dtype
        raise ValueError(
            f'it belongs to another run: {name} is {dtype} {shape} and must be {kind} of shape {want_shape}'
        )
    if member.file_size != begin + math.prod(shape) * dtype.itemsize:
        raise ValueError(f'{name} has {member.file_size:,} bytes, but its header has shape {shape} and dtype {dtype}')
    return begin, shape, is_fortran, dtype


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: tuple[Any, ...]) -> np.ndarray:
    begin, shape, is_fortran, dtype = header
    content = archive.read(member)  # verifies the checksum
    if len(content) != member.file_size:
        raise ValueError(f'{member.filename} is truncated')
    return np.frombuffer(content, dtype, offset=begin).reshape(shape, order='F' if is_fortran else 'C')


def write_table(workdir: Workdir, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes the CSV file `name` of the run directory: a header with `columns`, then `rows`."""

    def write(path):
        with path.open('w', newline='', encoding='utf-8') as file:
            files.write_rows(file, columns, rows)

    workdir.write(name, write)


def write_figure(workdir: Workdir, figure: Any, name: str = directory.CURVE) -> None:
    """Writes a Matplotlib figure as the PNG file `name` of the run directory."""
    workdir.write(name, lambda path: figure.savefig(path, dpi=120))
