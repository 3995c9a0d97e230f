"""User errors and warnings."""

import sys


class UserError(ValueError):
    """Error that the user can fix; the message is one sentence with the argument, its value and the fix."""


def warn(message: str) -> None:
    """Prints a warning to stderr."""
    print(f'warning: {message}', file=sys.stderr, flush=True)
