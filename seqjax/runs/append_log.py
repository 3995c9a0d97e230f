"""Append-only logs, which a checkpoint can cut back to where they were."""

import errno
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from seqjax import files


class LogOffset(NamedTuple):
    """How far a journal was written."""

    length: int  # bytes
    sha256: str  # of these bytes


class AppendLog:
    """A file that only grows; a checkpoint keeps its offset, and a run that goes on cuts off what came after it.

    Without a path nothing is kept.
    """

    def __init__(self, path: Path | None, header: str = ''):
        self.path, self.header, self.file = path, header.encode(), None
        self.digest, self.length = hashlib.sha256(), 0

    def fault(self, offset: LogOffset) -> str | None:
        """What is wrong with the part of the file that the offset describes, in words; None where all is there."""
        try:
            with files.open_file(self.path) as file:
                held = file.read(offset.length)
        except OSError as error:
            return f'{self.path} cannot be read ({error.strerror})'
        if len(held) < offset.length:
            return f'{self.path} has lost rows'
        if not held.startswith(self.header):
            return f'{self.path} has other columns'
        return None if hashlib.sha256(held).hexdigest() == offset.sha256 else f'{self.path} was changed'

    def open(self, offset: LogOffset | None) -> bytes:
        """Opens the file for more: cut off at the offset, or without one begun anew. Gives what it holds then."""
        if self.path is None:
            return b''
        self.close()
        with files.writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_fifo() or self.path.is_socket():  # to open it would wait for whoever reads it
                raise OSError(errno.EINVAL, 'it is a pipe or a socket, not a file', str(self.path))
            # No buffer whose rest would be refused again when it closes.
            self.file = self.path.open('wb' if offset is None else 'rb+', buffering=0)
            held = b'' if offset is None else self.file.read(offset.length)
            self.digest, self.length = hashlib.sha256(held), len(held)
            if offset is None:
                self.append(self.header)
            else:
                self.file.truncate(offset.length)
        return held[len(self.header) :]

    def append(self, data: bytes) -> None:
        if self.path is None:
            return
        self.digest.update(data)
        self.length += len(data)
        with files.writing(self.path):
            while data:  # a disk that is nearly full takes a part
                data = data[self.file.write(data) :]

    def offset(self) -> LogOffset:
        """After this all that was written until now is on the disk."""
        if self.path is not None and self.path.is_file():  # not a device
            with files.writing(self.path):
                os.fsync(self.file.fileno())
        return LogOffset(self.length, self.digest.hexdigest())

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def format_ints(rows: Iterable[Sequence[int]]) -> bytes:
    """Lines for a journal, read back by `parse_ints`."""
    return ''.join(','.join(map(str, row)) + '\n' for row in rows).encode()


def parse_ints(lines: bytes) -> list[list[int]]:
    """
    >>> parse_ints(format_ints([(1, 2), (3, 4)]))
    [[1, 2], [3, 4]]
    """
    return [[int(word) for word in line.split(',')] for line in lines.decode().splitlines()]
