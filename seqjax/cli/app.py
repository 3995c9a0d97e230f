"""The program `seqjax`: lists the commands, and runs one.

python -m seqjax
python -m seqjax forecast sales.csv --target=sold
"""

from __future__ import annotations

import difflib
import gc
import os
import signal
import sys
from typing import NoReturn

from seqjax.cli import registry
from seqjax.runs import signals

USER_ERROR, BROKEN_PIPE = 2, 141  # exit codes


def begin() -> None:
    """All that the program changes of the interpreter while a command is imported; `Command.execute` ends it.

    A fifth of a start would go into searching what the imports bring for garbage; and a signal ends a process in which
    nothing has begun without a traceback of the imports.
    """
    gc.disable()
    for number in signals.EXIT_CODES:
        signal.signal(number, signals.exit_immediately)


def overview() -> str:
    """The commands, a line each."""
    names = list(registry.modules())
    width = max(map(len, names), default=0)
    lines = [f'  {name:<{width}}  {registry.summary(name)}' for name in names]
    return '\n'.join(['seqjax COMMAND [FILE] [flags]; seqjax COMMAND --help lists its flags', '', *lines])


def main(argv: list[str] | None = None) -> int:
    """Lists the commands; returns the exit code, 2 where there is none of the name."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ('--help', '-h', '-help', 'help', '--helpfull', '--helpshort'):
        try:
            print(overview(), flush=True)
        except BrokenPipeError:  # the reader of the output went away, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        return 0
    near = difflib.get_close_matches(words[0], registry.modules(), 1)
    hint = f'did you mean {near[0]}?' if near else 'seqjax alone lists them'
    if words[0] in registry.tasks():
        hint = f'seqjax run --task={words[0]} runs the task'
    print(f'seqjax: {words[0]!r} is not a command; {hint}', file=sys.stderr)
    return USER_ERROR


def execute() -> NoReturn:
    """Runs the command that the command line names; the whole process."""
    if len(sys.argv) < 2 or sys.argv[1] not in registry.modules():
        sys.exit(main())
    begin()
    name = sys.argv[1]
    registry.find(name).execute(sys.argv[2:], f'seqjax {name}')
