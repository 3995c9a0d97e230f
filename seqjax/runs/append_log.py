"""Append-only logs, which are truncated to a checkpoint's offset when a run resumes."""

import errno
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from seqjax import files


class LogOffset(NamedTuple):
    """Position in an append-only log, with a checksum of the content before it."""

    length: int  # bytes before the position
    sha256: str  # checksum of these bytes


class AppendLog:
    """A file that is only appended to. A checkpoint stores the file's length, to which a resumed run truncates it.

    Args:
      path: the file; if None, nothing is written.
      header: first line of the file, including the line end; empty for none.
    """

    def __init__(self, path: Path | None, header: str = ''):
        self.path, self.header, self.file = path, header.encode(), None
        self.digest, self.length = hashlib.sha256(), 0

    def fault(self, offset: LogOffset) -> str | None:
        """Returns the reason why the content before the offset is not as it was logged, or None if it is valid."""
        try:
            with files.open_file(self.path) as file:
                content = file.read(offset.length)
        except OSError as error:
            return f'{self.path} cannot be read ({error.strerror})'
        if len(content) < offset.length:
            return f'{self.path} is shorter than at the checkpoint'
        if not content.startswith(self.header):
            return f'{self.path} does not have the expected first line'
        return None if hashlib.sha256(content).hexdigest() == offset.sha256 else f'{self.path} was modified'

    def open(self, offset: LogOffset | None) -> bytes:
        """Truncates the file to the offset (None: to the header), opens it, returns the content after the header."""
        if self.path is None:
            return b''
        self.close()
        with files.writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_fifo() or self.path.is_socket():  # opening it would block until there is a reader
                raise OSError(errno.EINVAL, 'it is a pipe or a socket, not a file', str(self.path))
            # Unbuffered: on a full disk, closing a buffered file would fail a second time.
            self.file = self.path.open('wb' if offset is None else 'rb+', buffering=0)
            content = b'' if offset is None else self.file.read(offset.length)
            self.digest, self.length = hashlib.sha256(content), len(content)
            if offset is None:
                self.append(self.header)
            else:
                self.file.truncate(offset.length)
        return content[len(self.header) :]

    def append(self, data: bytes) -> None:
        """Appends data to the open file; does nothing if there is no path."""
        if self.path is None:
            return
        self.digest.update(data)
        self.length += len(data)
        with files.writing(self.path):
            while data:  # on a disk that is nearly full, only a part is written
                data = data[self.file.write(data) :]

    def offset(self) -> LogOffset:
        """Flushes the file to disk and returns the offset of its end."""
        if self.path is not None and self.path.is_file():  # not a device
            with files.writing(self.path):
                os.fsync(self.file.fileno())
        return LogOffset(self.length, self.digest.hexdigest())

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def format_ints(rows: Iterable[Sequence[int]]) -> bytes:
    """Returns rows of integers as lines of a log; the inverse of `parse_ints`."""
    return ''.join(','.join(map(str, row)) + '\n' for row in rows).encode()


def parse_ints(lines: bytes) -> list[list[int]]:
    """Returns the rows of integers that `format_ints` formatted.

    >>> parse_ints(format_ints([(1, 2), (3, 4)]))
    [[1, 2], [3, 4]]
    """
    return [[int(word) for word in line.split(',')] for line in lines.decode().splitlines()]
