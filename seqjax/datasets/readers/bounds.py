"""Limits on the columns and bytes of a file, so that a small compressed or malformed file cannot exhaust memory."""

from typing import NamedTuple

from seqjax.errors import UserError

DEFAULT_MAX_COLUMNS = 10_000
DEFAULT_MAX_BYTES = 4 * 2**30


class Bounds(NamedTuple):
    """Limits for one file; the fields are the flags --max_columns and --max_bytes."""

    columns: int = DEFAULT_MAX_COLUMNS  # maximum number of columns of a table, or of channels of a series
    bytes: int = DEFAULT_MAX_BYTES  # maximum number of bytes of the content after decompression

    def check_columns(self, where: object, count: int, what: str = 'columns') -> None:
        """Raises UserError if `count` columns are more than allowed.

        `where`, a path with a line if known, starts the message; `what` names the columns in it.
        """
        if count > self.columns:
            raise UserError(
                f'{where} has {count:,} {what}, more than --max_columns={self.columns}; check the file, or pass '
                f'--max_columns={count} to read it'
            )

    def check_bytes(self, where: object, size: int, what: str = 'has', copies: int = 1) -> None:
        """Raises UserError if `size` bytes of decompressed content are more than the limit divided by `copies`.

        Reading takes `copies` times as much memory as the content. The message starts with `where`, a path with a line
        if known, and `what`, the words before "more than".
        """
        if size > self.bytes // copies:
            limit = '--max_bytes' if copies == 1 else f'--max_bytes / {copies}'
            raise UserError(
                f'{where} {what} more than {self.bytes // copies:,} bytes ({limit}); check the file, or pass a larger '
                '--max_bytes to read it'
            )


DEFAULT = Bounds()
