"""Images in the idx format of MNIST (LeCun et al. 1998), optionally gzipped, and scikit-learn's digits.

images   00 00 08 03   N   height   width   then N * height * width bytes
labels   00 00 08 01   N                    then N bytes

N, height and width are big-endian integers of 4 bytes.
"""

import gzip
import math
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqjax import files
from seqjax.datasets.readers import bounds as readers_bounds
from seqjax.datasets.readers import optional_packages
from seqjax.datasets.readers.bounds import Bounds
from seqjax.errors import UserError

DIGITS = 'digits'  # path that stands for scikit-learn's 1,797 images of 8 x 8 pixels
BYTES = 8  # idx's code for unsigned bytes
GZIP = b'\x1f\x8b'
PIECE = 2**20  # bytes that are decompressed at a time


class Images(NamedTuple):
    """Images and their classes, if known."""

    values: np.ndarray  # [N, height, width] uint8
    labels: np.ndarray | None  # [N] uint8 classes; None if unknown


def read_images(path: str | Path, labels: str | Path | None = None, bounds: Bounds = readers_bounds.DEFAULT) -> Images:
    """Returns images and labels of idx files, or scikit-learn's digits for the path 'digits'.

    Without `labels`, the label file is the one in the same folder that is named like in MNIST: train-labels-idx1-ubyte
    for train-images-idx3-ubyte. If it does not exist, the labels are None.

    Raises:
      UserError: a file cannot be read, is not an idx file of bytes, is truncated or too large; the numbers of images
        and labels differ; or scikit-learn is not installed.
    """
    if str(path) == DIGITS:
        digits = optional_packages.need('sklearn.datasets', f'--data={DIGITS}').load_digits()
        return Images(digits.images.astype(np.uint8), digits.target.astype(np.uint8))
    path = Path(path)
    values = read_idx(path, 3, bounds)
    labels = Path(labels) if labels is not None else sibling_file(path, 'images', 'labels', 'idx3', 'idx1')
    if labels is None:
        return Images(values, None)
    classes = read_idx(labels, 1, bounds)
    if len(classes) != len(values):
        raise UserError(
            f'{labels} has {len(classes):,} labels, but {path} has {len(values):,} images; pass matching files'
        )
    return Images(values, classes)


def sibling_file(path: Path, *words: str) -> Path | None:
    """Returns the file in the same folder that is named like `path` with words replaced; None if there is none.

    `words` are pairs: old, new, ... The first must occur in the name. The file may differ from the new name in case,
    dots for dashes, and .gz. Of several files, one with exactly the new name is preferred, then one equal but for .gz.

    >>> sibling_file(Path('no/such/train-images-idx3-ubyte'), 'train', 't10k') is None
    True
    """
    name = path.name
    if words[0] not in name.lower():
        return None
    for old, new in zip(words[::2], words[1::2], strict=True):
        name = re.sub(old, new, name, flags=re.IGNORECASE)
    try:
        names = os.listdir(path.parent)
    except OSError:  # the folder may not be listable although its files are readable
        names = [name, f'{name}.gz', name.removesuffix('.gz')]
    names = [other for other in names if _plain(other) == _plain(name) and os.path.isfile(path.with_name(other))]
    names.sort(key=lambda other: (other != name, _ungzipped(other) != _ungzipped(name), other))
    return path.with_name(names[0]) if names else None


def _ungzipped(name: str) -> str:
    return re.sub(r'\.gz$', '', name, flags=re.IGNORECASE)


def _plain(name: str) -> str:
    return _ungzipped(name).lower().replace('.', '-')


def read_idx(path: Path, axes: int, bounds: Bounds = readers_bounds.DEFAULT) -> np.ndarray:
    """Returns the uint8 array, with `axes` axes, of an idx file or gzipped idx file; it cannot be written to.

    Raises UserError if the file is invalid, has another type or number of axes, or is too large.
    """
    with files.open_data(path) as file:
        gzipped = file.read(2) == GZIP
        file.seek(0)
        try:
            return _values(path, gzip.open(file) if gzipped else file, axes, bounds)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f'{path} is a corrupt gzip file ({error}); download it again') from error


def _values(path: Path, file: Any, axes: int, bounds: Bounds) -> np.ndarray:
    """Returns the values of an open idx file, read after its header was checked; see `read_idx`."""
    size = 4 + 4 * axes
    head = file.read(size)
    if len(head) < 4 or head[:2] != b'\0\0':
        raise UserError(
            f'{path} is not an idx file: it starts with {head[:4].hex(" ") or "nothing"} instead of 00 00; '
            'use another file'
        )
    if head[2] != BYTES or head[3] != axes:
        kind = 'image' if axes == 3 else 'label'
        raise UserError(
            f'{path} starts with {head[:4].hex(" ")}, but {kind} files start with 00 00 08 0{axes}; use another file'
        )
    if len(head) < size:
        raise UserError(f'{path} ends within its header, after {len(head)} bytes; download it again')
    shape = struct.unpack(f'>{axes}I', head[4:])
    count, sizes = math.prod(shape), ' x '.join(map(str, shape))
    if not count:
        raise UserError(f'{path} is empty: its header declares {sizes} values; use another file')
    plain = not isinstance(file, gzip.GzipFile)
    has = os.fstat(file.fileno()).st_size - size if plain else None
    content = b''
    if has is None or has == count:
        bounds.check_bytes(path, size + count)
        content = file.read(count + 1) if plain else _read(file, count + 1)
        has = len(content)
    if has != count:
        many = f'{has:,}' if has < count or plain else f'more than {count:,}'
        raise UserError(
            f'{path} has {many} bytes of values, but its header declares {sizes} = {count:,} bytes; download it again'
        )
    values = np.frombuffer(content, np.uint8).reshape(shape)
    values.flags.writeable = False
    return values


def _read(file: Any, size: int) -> bytearray:
    """Returns at most `size` bytes of a file, read in chunks so that memory is allocated only for bytes that exist."""
    content = bytearray()
    while len(content) < size and (piece := file.read(min(PIECE, size - len(content)))):
        content += piece
    return content
