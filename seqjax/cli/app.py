"""The `seqjax` program: runs the command that its first argument names, or lists all commands.

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

USER_ERROR, BROKEN_PIPE = 2, 141  # exit codes: invalid input; the reader of the output closed the pipe


def begin() -> None:
    """Disables garbage collection, and makes SIGINT and SIGTERM end the process without a traceback.

    Called before a command is imported; `Command.execute` undoes both afterwards. Garbage collection during the imports
    would take a fifth of the startup time.
    """
    gc.disable()
    for number in signals.EXIT_CODES:
        signal.signal(number, signals.exit_immediately)


def overview() -> str:
    """Returns the text of `seqjax --help`: the usage, and a line with name and summary for each command."""
    names = list(registry.modules())
    width = max(map(len, names), default=0)
    lines = [f'  {name:<{width}}  {registry.summary(name)}' for name in names]
    return '\n'.join(
        [
            'Usage: seqjax COMMAND [FILE] [flags]',
            '',
            'Run `seqjax COMMAND --help` for the flags of a command',
            '',
            *lines,
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Prints the list of commands, or the error that the first word of `argv` is not a command; runs no command.

    Args:
      argv: arguments without the program's name; by default the arguments of this process.

    Returns:
      The exit code: 0 after the list, 141 if the reader closed the pipe, 2 for an unknown command.
    """
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ('--help', '-h', '-help', 'help', '--helpfull', '--helpshort'):
        try:
            print(overview(), flush=True)
        except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        return 0
    near = difflib.get_close_matches(words[0], registry.modules(), 1)
    hint = f'did you mean {near[0]}?' if near else 'run seqjax without arguments for the list of commands'
    for package in registry.RESEARCH:
        if words[0] in registry.modules(package):
            hint = f'run this module with python -m {package}.{words[0]}'
    if words[0] in registry.tasks():
        hint = f'run this task with seqjax run --task={words[0]}'
    print(f'seqjax: {words[0]!r} is not a command; {hint}', file=sys.stderr)
    return USER_ERROR


def execute() -> NoReturn:
    """Runs the command that sys.argv names, or `main` if it names none, and ends the process with the exit code."""
    if len(sys.argv) < 2 or sys.argv[1] not in registry.modules():
        sys.exit(main())
    begin()
    name = sys.argv[1]
    registry.find(name).execute(sys.argv[2:], f'seqjax {name}')
