"""Reader of piano rolls in .mat files, such as JSB Chorales and Nottingham in the code of Bai et al. 2018."""

import math
import os
import struct
import warnings
import zlib
from collections.abc import Collection, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from seqjax import files
from seqjax.datasets.readers import bounds as readers_bounds
from seqjax.datasets.readers import optional_packages
from seqjax.datasets.readers.bounds import Bounds
from seqjax.errors import UserError

KEYS = {'train': 'traindata', 'validation': 'validdata', 'test': 'testdata'}  # split -> variable of the file
NOTES = 88  # keys of a piano
LOWEST = 21  # MIDI number of the first column, the key A0
MIN_FRAMES = 2  # one input frame and one target frame
Pieces = list[np.ndarray]  # each [T, 88] uint8: 1 where a note sounds, otherwise 0


def read_rolls(path: str, splits: Collection[str] = (), bounds: Bounds = readers_bounds.DEFAULT) -> dict[str, Pieces]:
    """Returns the pieces of a .mat file by split: the splits in `splits`, or by default all in the file.

    The file has the variables `traindata`, `validdata` and `testdata`, each a cell array of pieces [T, 88] of 0 and 1.
    A column is a key of the piano, MIDI numbers 21 to 108, and a row is a frame.

    Raises:
      UserError: SciPy is not installed; the file cannot be read, or has no variable for one of `splits`, or none of
        the three; a piece is invalid, and the message names it.
    """
    variables = load(
        optional_packages.locate(path), optional_packages.need('scipy.io', path), list(KEYS.values()), bounds
    )
    splits = splits or [split for split, key in KEYS.items() if key in variables] or KEYS
    return {split: _pieces(path, KEYS[split], variables) for split in splits}


def _pieces(path: str, key: str, variables: dict[str, Any]) -> Pieces:
    if key not in variables:
        raise UserError(f'{path} has no variable {key}; use a file with {", ".join(KEYS.values())}')
    cells = variables[key]
    if not isinstance(cells, np.ndarray) or cells.dtype != object:
        raise UserError(
            f'{path}: {key} is not a cell array; save a cell array of pieces [T, {NOTES}], '
            'in Python an array of dtype object'
        )
    if not cells.size:
        raise UserError(f'{path}: {key} is empty; add at least one piece to each of {", ".join(KEYS.values())}')
    return [_piece(f'{path}: piece {number} of {key}', piece) for number, piece in enumerate(cells.ravel(), 1)]


def _piece(name: str, piece: Any) -> np.ndarray:
    """Returns a piece as uint8 [T, 88]; raises UserError, which starts with `name`, if it is not a piano roll."""
    if not isinstance(piece, np.ndarray) or piece.dtype.kind not in 'buif' or piece.ndim != 2:
        raise UserError(f'{name} is not a matrix of numbers; save a dense matrix [T, {NOTES}], frames by notes')
    frames, notes = piece.shape
    if notes != NOTES:
        turned = '; transpose it' if frames == NOTES else '; write a column for each of them'
        raise UserError(f'{name} has {notes} columns instead of {NOTES}, the MIDI numbers 21 to 108{turned}')
    if frames < MIN_FRAMES:
        raise UserError(f'{name} has {frames} frames and needs at least {MIN_FRAMES}; remove the piece')
    for frame, note in np.argwhere((piece != 0) & (piece != 1))[:1]:
        raise UserError(
            f'{name} has {piece[frame, note]:g} at frame {frame + 1}, column {note + 1}; use 1 for '
            'notes that are on and 0 for others'
        )
    return piece.astype(np.uint8)


COPIES = 4  # copies of the decompressed content in memory
HEAD, HDF5 = 128, 0x0200  # bytes before the first element; the version number of files that are HDF5
NUMBERS, MATRIX, COMPRESSED = (*range(1, 8), 9, 12, 13, 16, 17, 18), 14, 15  # element types
NUMERIC = range(4, 16)  # matrix classes of numbers: no cells, structures or objects
SPARSE, COMPLEX = 5, 0x800  # a matrix class and a flag
OF_MATRICES = range(1, 4)  # matrix classes: cells, structures and objects
FULL = (*range(1, 5), *range(6, 16))  # matrix classes that store every item: all but sparse ones and functions


def load(path: Path, io: Any, names: list[str], bounds: Bounds = readers_bounds.DEFAULT) -> dict[str, Any]:
    """Returns those variables `names` that a .mat file of version 5 to 7 has, by name; `io` is the module scipy.io.

    Raises UserError if the file cannot be read, is invalid or too large, or is of version 7.3.
    """
    with files.open_data(path) as file:
        bounds.check_bytes(path, os.fstat(file.fileno()).st_size)
        data = file.read()
    try:
        _check_file(data, _Unpacked(path, bounds))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            warnings.simplefilter('error', io.matlab.MatReadWarning)  # for a variable that occurs twice
            return io.loadmat(BytesIO(data), variable_names=names)
    except UserError:
        raise
    except NotImplementedError as error:
        raise UserError(
            f'{path} is a .mat file of version 7.3, which is HDF5; save it as version 7, in MATLAB with -v7'
        ) from error
    except Exception as error:  # SciPy raises errors of any type for invalid files
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
        raise UserError(f'{path} cannot be read as a .mat file ({reason}); use another file') from error


class _Unpacked:
    """Decompressor of the elements of a file, which limits their total size."""

    def __init__(self, path: Path, bounds: Bounds):
        self.path, self.bounds, self.size = path, bounds, 0

    def unpack(self, content: memoryview, order: str) -> memoryview:
        """Returns a decompressed element.

        Raises UserError if the elements so far are larger than the limit, and ValueError if this one is truncated or
        larger than its tag declares.
        """
        kind, size = struct.unpack(order + 'II', zlib.decompressobj().decompress(content, 8))
        size = 8 + (0 if kind >> 16 else size)
        self.size += size
        self.bounds.check_bytes(self.path, self.size, 'expands to', COPIES)
        stream = zlib.decompressobj()
        data = stream.decompress(content, size + 8)  # a few more bytes, to detect the end
        if not stream.eof:
            raise ValueError('a compressed element is truncated, or larger than its tag declares')
        return memoryview(data)


def _check_file(data: bytes, unpacked: _Unpacked) -> None:
    """Checks the elements of a .mat file, since SciPy crashes the process for an unknown type.

    Raises ValueError if one is invalid, and NotImplementedError for version 7.3.
    """
    order = {b'IM': '<', b'MI': '>'}.get(data[HEAD - 2 : HEAD])
    if order is None:
        raise ValueError('its first 128 bytes are not the header of a .mat file')
    if struct.unpack(order + 'H', data[HEAD - 4 : HEAD - 2])[0] == HDF5:
        raise NotImplementedError
    _check_elements(memoryview(data)[HEAD:], order, unpacked)


def _check_elements(data: memoryview, order: str, unpacked: _Unpacked) -> None:
    for kind, content in _elements(data, order):
        if kind == COMPRESSED:
            _check_elements(unpacked.unpack(content, order), order, unpacked)
        elif kind == MATRIX and len(content):
            _check_matrix(content, order, unpacked)


def _check_matrix(data: memoryview, order: str, unpacked: _Unpacked) -> None:
    parts = list(_elements(data, order))
    flags = int(np.frombuffer(parts[0][1], order + 'u4')[0])
    kind, count = flags & 0xFF, 4 + 2 * (flags & 0xFF == SPARSE) + bool(flags & COMPLEX)
    if kind in NUMERIC and (len(parts) != count or not {part for part, _ in parts} <= set(NUMBERS)):
        raise ValueError(
            f'a matrix of numbers has {len(parts)} data elements instead of {count}, or one of them is not numeric'
        )
    least = 8 if kind in OF_MATRICES else 1  # bytes of an item
    if kind in FULL and math.prod(np.frombuffer(parts[1][1], order + 'i4').tolist()) * least > len(data):
        raise ValueError('a matrix declares more values than it has')  # SciPy would allocate the memory
    _check_elements(data, order, unpacked)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yields the type and content of each element in `data`; raises ValueError if one is invalid or truncated."""
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ValueError('it ends within an element')
        kind, size = struct.unpack(order + 'II', data[at : at + 8])
        first = at + 8
        if kind >> 16:  # up to four bytes are stored within the tag
            kind, size, first = kind & 0xFFFF, kind >> 16, at + 4
        if kind not in (*NUMBERS, MATRIX, COMPRESSED) or first + size > len(data) or (first < at + 8 and size > 4):
            raise ValueError(f'it has an invalid or truncated element of type {kind} with {size:,} bytes')
        yield kind, data[first : first + size]
        at = first + size if kind == COMPRESSED else at + 8 + (first - at) // 8 * -(-size // 8) * 8
