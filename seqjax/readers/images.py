"""Files of images in the idx format of MNIST (LeCun et al. 1998), also gzipped; and the digits of scikit-learn.

images   00 00 08 03   N   height   width   then N * height * width bytes       big-endian numbers of 4 bytes
labels   00 00 08 01   N                    then N bytes
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqjax.files import UserError
from seqjax.readers.extra import need

DIGITS = 'digits'  # the word for scikit-learn's 1,797 of 8 x 8
BYTES = 8  # idx's code for unsigned bytes
GZIP = b'\x1f\x8b'


class Images(NamedTuple):
    """Images, and the classes that they show if that is known."""

    values: np.ndarray  # [N, height, width] uint8
    labels: np.ndarray | None  # [N] uint8


def read_images(path: str | Path, labels: str | Path | None = None) -> Images:
    """Images of an idx file with the labels of another one; or the digits of scikit-learn, for the word `digits`.

    Args:
      path: of the images.
      labels: of their labels; by default the file that stands beside them under the name that MNIST gives it, if any.

    Raises:
      UserError: a file is no idx file of bytes, is cut, or the two have different numbers.
    """
    if str(path) == DIGITS:
        return _digits()
    path = Path(path)
    values = read_idx(path, axes=3)
    if 0 in values.shape:
        raise UserError(f'{path} has {len(values)} images of {values.shape[1]} x {values.shape[2]} pixels; it is empty')
    beside = beside_of(path, 'images', 'labels', '-idx3', '-idx1')
    labels = Path(labels) if labels is not None else beside
    if labels is None:
        return Images(values, None)
    classes = read_idx(labels, axes=1)
    if len(classes) != len(values):
        raise UserError(f'{labels} has {len(classes):,} labels, and {path} has {len(values):,} images; they must agree')
    return Images(values, classes)


def beside_of(path: Path, *words: str) -> Path | None:
    """The file beside another whose name has other words; None where there is none, or a word is missing in the name.

    >>> beside_of(Path('no/such/train-images-idx3-ubyte'), 'train', 't10k') is None
    True
    """
    name = path.name
    for old, new in zip(words[::2], words[1::2], strict=True):
        name = name.replace(old, new)
    if words[0] not in path.name:
        return None
    gzipped = path.with_name(name + '.gz')
    plain = path.with_name(name.removesuffix('.gz'))
    return next((file for file in (path.with_name(name), gzipped, plain) if file.is_file()), None)


def read_idx(path: Path, axes: int) -> np.ndarray:
    """An idx file of bytes -> uint8 with so many axes; of a plain file nothing is copied.

    Raises:
      UserError: it is of another kind, or has more or fewer bytes than its head says.
    """
    content = _content(path)
    if len(content) < 4 or content[:2] != b'\0\0':
        raise UserError(f'{path} is no idx file: it begins with {content[:4].hex(" ") or "nothing"}, not with 00 00')
    if content[2] != BYTES or content[3] != axes:
        kind = 'images' if axes == 3 else 'labels'
        raise UserError(
            f'{path} begins with {content[:4].hex(" ")}, and {kind} with 00 00 08 0{axes} (bytes); is it another file?'
        )
    head = 4 + 4 * axes
    if len(content) < head:
        raise UserError(f'{path} ends inside of its head, after {len(content)} bytes; fetch it again')
    shape = struct.unpack(f'>{axes}I', content[4:head])
    if len(content) - head != math.prod(shape):
        sizes = ' x '.join(map(str, shape))
        raise UserError(
            f'{path} has {len(content) - head:,} bytes of values, and its head says {sizes}, which are '
            f'{math.prod(shape):,}; fetch it again'
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(GZIP) else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f'{path} is gzipped and damaged ({error}); fetch it again') from error
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror or error}') from error


def _digits() -> Images:
    """1,797 digits of 8 x 8 pixels from 0 to 16, in the order of the data set; they ship inside scikit-learn."""
    digits = need('sklearn.datasets', f'--data={DIGITS}').load_digits()
    return Images(digits.images.astype(np.uint8), digits.target.astype(np.uint8))
