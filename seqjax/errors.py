"""User errors and warnings."""

import sys


class UserError(ValueError):
    """Error that the user can fix, such as an invalid argument; the message names the value and the fix."""


def warn(message: str) -> None:
    """Prints `warning: MESSAGE` to stderr; raises nothing."""
    print(f'warning: {message}', file=sys.stderr, flush=True)
