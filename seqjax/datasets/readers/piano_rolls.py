"""Piano rolls in a .mat file, as JSB Chorales and Nottingham come with the code of Bai et al. 2018."""

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

KEYS = {'train': 'traindata', 'validation': 'validdata', 'test': 'testdata'}  # parts, and how the file names them
NOTES = 88  # of a piano
LOWEST = 21  # MIDI number of the first of them, A0
MIN_FRAMES = 2  # frames: one to read, and one to foretell
Pieces = list[np.ndarray]  # each [T, 88] uint8, 1 where a note sounds


def read_rolls(path: str, parts: Collection[str] = (), bounds: Bounds = readers_bounds.DEFAULT) -> dict[str, Pieces]:
    """The pieces of a file, by part: of `KEYS`, by default what the file has, which must be one at least.

    The file has the variables `traindata`, `validdata` and `testdata`, each a cell array of pieces [T, 88] of 0 and 1;
    a column is a key of the piano, from MIDI number 21 to 108, and a row a frame.

    Raises:
      UserError: SciPy is not installed, or the file is none of this kind; the sentence names what is wrong where.
    """
    held = load(optional_packages.locate(path), optional_packages.need('scipy.io', path), list(KEYS.values()), bounds)
    parts = parts or [part for part, key in KEYS.items() if key in held] or KEYS
    return {part: _pieces(path, KEYS[part], held) for part in parts}


def _pieces(path: str, key: str, held: dict[str, Any]) -> Pieces:
    if key not in held:
        raise UserError(f'{path} has no variable {key}; piano rolls need {", ".join(KEYS.values())}')
    cells = held[key]
    if not isinstance(cells, np.ndarray) or cells.dtype != object:
        raise UserError(
            f'{path}: {key} is no cell array; make it one of pieces [T, {NOTES}], in Python an array of dtype object'
        )
    if not cells.size:
        raise UserError(f'{path}: {key} has no piece; each of {", ".join(KEYS.values())} needs at least one')
    return [_piece(f'{path}: piece {number} of {key}', piece) for number, piece in enumerate(cells.ravel(), 1)]


def _piece(name: str, piece: Any) -> np.ndarray:
    """[T, 88] uint8; raises UserError where it is no piano roll."""
    if not isinstance(piece, np.ndarray) or piece.dtype.kind not in 'buif' or piece.ndim != 2:
        raise UserError(f'{name} is no matrix of numbers; it must be [T, {NOTES}], frames by notes, and not sparse')
    frames, notes = piece.shape
    if notes != NOTES:
        turned = ', and may have to be transposed' if frames == NOTES else ''
        raise UserError(f'{name} has {notes} columns; it must have {NOTES}, MIDI numbers 21 to 108, one a note{turned}')
    if frames < MIN_FRAMES:
        raise UserError(
            f'{name} has {frames} of the {MIN_FRAMES} frames that it needs; take it out: nothing could be foretold'
        )
    for frame, note in np.argwhere((piece != 0) & (piece != 1))[:1]:
        raise UserError(
            f'{name} has {piece[frame, note]:g} at frame {frame + 1}, column {note + 1}; a note sounds, 1, or not, 0'
        )
    return piece.astype(np.uint8)


COPIES = 4  # of what was compressed, while it is read
HEAD, HDF5 = 128, 0x0200  # bytes before the first element; the version whose elements are elsewhere
NUMBERS, MATRIX, COMPRESSED = (*range(1, 8), 9, 12, 13, 16, 17, 18), 14, 15  # types of elements
NUMERIC = range(4, 16)  # classes of matrices whose parts are numbers: no cells, structures or objects
SPARSE, COMPLEX = 5, 0x800  # a class; a flag beside it
OF_MATRICES = range(1, 4)  # cells, structures and objects
FULL = (*range(1, 5), *range(6, 16))  # those that hold each of their items: all but sparse ones and functions


def load(path: Path, io: Any, names: list[str], bounds: Bounds = readers_bounds.DEFAULT) -> dict[str, Any]:
    """Variables of a .mat file of version 5 to 7, by SciPy; raises UserError if it is another, too large or damaged."""
    with files.open_data(path) as file:
        bounds.check_bytes(path, os.fstat(file.fileno()).st_size)
        data = file.read()
    try:
        _check_file(data, _Unpacked(path, bounds))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            warnings.simplefilter('error', io.matlab.MatReadWarning)  # a variable stands there twice
            return io.loadmat(BytesIO(data), variable_names=names)
    except UserError:
        raise
    except NotImplementedError as error:
        raise UserError(f'{path} is a .mat file of version 7.3, which is HDF5; save it with -v7 in MATLAB') from error
    except Exception as error:  # SciPy lets anything through of a file that was changed
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
        raise UserError(f'{path} cannot be read as a .mat file ({reason}); is it cut off, or another file?') from error


class _Unpacked:
    """Decompresses elements, and counts their bytes."""

    def __init__(self, path: Path, bounds: Bounds):
        self.path, self.bounds, self.size = path, bounds, 0

    def unpack(self, content: memoryview, order: str) -> memoryview:
        """Returns an element; its tag says how large it is, and it is decompressed up to that size."""
        kind, size = struct.unpack(order + 'II', zlib.decompressobj().decompress(content, 8))
        size = 8 + (0 if kind >> 16 else size)
        self.size += size
        self.bounds.check_bytes(self.path, self.size, 'expands to', COPIES)
        stream = zlib.decompressobj()
        data = stream.decompress(content, size + 8)  # and a bit more, by which it finds its end
        if not stream.eof:
            raise ValueError('a compressed element is cut off, or larger than its tag says')
        return memoryview(data)


def _check_file(data: bytes, unpacked: _Unpacked) -> None:
    """Raises where the elements of a file are not what they can be; SciPy ends the process at a type that is none."""
    order = {b'IM': '<', b'MI': '>'}.get(data[HEAD - 2 : HEAD])
    if order is None:
        raise ValueError('its first bytes are not those of one')
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
        raise ValueError('a matrix of numbers has other parts')
    least = 8 if kind in OF_MATRICES else 1  # bytes of an item
    if kind in FULL and math.prod(np.frombuffer(parts[1][1], order + 'i4').tolist()) * least > len(data):
        raise ValueError('a matrix is larger than what it holds')  # SciPy would ask for the memory
    _check_elements(data, order, unpacked)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Types and contents of the elements that stand one after the other."""
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ValueError('it ends within an element')
        kind, size = struct.unpack(order + 'II', data[at : at + 8])
        first = at + 8
        if kind >> 16:  # up to four bytes stand within the tag
            kind, size, first = kind & 0xFFFF, kind >> 16, at + 4
        if kind not in (*NUMBERS, MATRIX, COMPRESSED) or first + size > len(data) or (first < at + 8 and size > 4):
            raise ValueError(f'it has an element of type {kind} with {size:,} bytes')
        yield kind, data[first : first + size]
        at = first + size if kind == COMPRESSED else at + 8 + (first - at) // 8 * -(-size // 8) * 8
