"""Errors that a user can fix."""

import sys


class UserError(ValueError):
    """What a person can mend; its message is one sentence that names the thing, the value and the remedy."""


def warn(sentence: str) -> None:
    """For a person, while a run goes on."""
    print(f'warning: {sentence}', file=sys.stderr, flush=True)
