"""The command: flags to a run, errors to exit codes, and what it changes of the process."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import gc
import inspect
import io
import math
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax

from seqjax.cli import command_line, compilation_cache, flag_tables, registry
from seqjax.cli.app import BROKEN_PIPE, USER_ERROR
from seqjax.cli.flag_tables import FlagTable
from seqjax.cli.parsers import Switch
from seqjax.errors import UserError
from seqjax.runs import multihost, signals
from seqjax.runs.signals import Interrupted, Terminated
from seqjax.training import sharding

MOST_CORES = 256  # devices that are made up on a CPU; each has threads


def help_text(command: Command, called: str, table: FlagTable, full: bool = False) -> str:
    """The command's flags, with their kinds and defaults: its own first, then the common ones in groups.

    Args:
      command: what is asked about.
      called: how it is called.
      table: its flags.
      full: tell all of the common flags, too; else their first words.
    """
    lines = [command.summary, '', f'{called} [--flagfile=FILE] [flags]', *command.examples, '']
    own = [name for name, flag in table.flags.items() if not flag.group]
    for name in own:
        lines += _flag_lines(name, table, True)
    for group in dict.fromkeys(flag.group for flag in table.flags.values() if flag.group):
        lines += ['', f'{group}:'] if own else [f'{group}:']
        for name in (name for name, flag in table.flags.items() if flag.group == group):
            lines += _flag_lines(name, table, full)
    lines += ['', '  --flagfile=(file)', '        read flags from a file, one a line; flags that follow it win']
    lines += [] if full else ['  --helpfull', '        tell all of every flag']
    return '\n'.join(lines)


def _flag_lines(name: str, table: FlagTable, full: bool) -> list[str]:
    """A flag in the list of --help."""
    parser, text, _ = table.flags[name]
    switch, value = isinstance(parser, Switch), table.defaults[name]
    head = f'  --[no]{name}' if switch else f'  --{name}=({parser.flag_type()})'
    if switch:
        value = str(value).lower()
    elif isinstance(value, tuple):
        value = ','.join(map(str, value))
    default = '' if value is None else f' (default: {value})'
    if full:
        return [head, textwrap.indent(textwrap.fill(text + default, 92), ' ' * 8)]
    short = re.split(r'[;:(]', text)[0].rstrip()
    return [f'{head:<34}  {short}{default}']


def default_values(run: Callable[..., Any]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(run).parameters.items()}


def use_cores(asked: str | None, processes_text: str) -> None:
    """On a CPU every core is a device, and more are made up where so many are asked for.

    JAX_NUM_CPU_DEVICES in the environment is left alone.
    """
    if 'JAX_NUM_CPU_DEVICES' in os.environ:
        return
    count = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    if asked is not None:
        address, wanted = multihost.parse(processes_text), math.prod(sharding.parse_mesh(asked).values())
        count = max(count, wanted) if address is None else -(-wanted // address.count)
        count = min(count, MOST_CORES)
    with contextlib.suppress(RuntimeError):  # JAX has begun: its devices are what they are
        jax.config.update('jax_num_cpu_devices', count)


def join(text: str, heartbeat_timeout: int) -> None:
    """Joins the other processes of the run; only the first one talks.

    Raises:
      UserError: they cannot be found.
    """
    try:
        multihost.start(text, heartbeat_timeout)
    except ValueError as error:
        raise UserError(
            f'--distributed={text} finds no SLURM, Kubernetes, Cloud TPU or Open MPI here; name the processes with '
            'HOST:PORT,COUNT,INDEX'
        ) from error
    except OSError as error:
        raise UserError(f'--distributed={text} cannot be: {error.strerror}; choose another port') from error
    except RuntimeError as error:
        raise UserError(f'--distributed={text} cannot join: {" ".join(str(error).split())[:200]}') from error
    signals.restore_python_handlers()
    if text != multihost.OFF and not multihost.is_process0():
        sys.stdout = open(os.devnull, 'w', errors='backslashreplace')  # noqa: SIM115


@dataclasses.dataclass(frozen=True)
class Command:
    """A command with its flags, run by its name: `seqjax NAME`, or `python -m experiments.NAME` in a clone.

    A module of this folder that has one as COMMAND is found and listed, see `seqjax.cli.registry`.
    """

    name: str  # that of its module
    doc: str  # of its module: the first line says what it does, and indented lines are examples
    run: Callable[..., Any]  # its arguments are the flags
    table: FlagTable | Callable[[Sequence[str]], FlagTable]  # where it depends on the command line, a function of that
    complete: Callable[[dict[str, Any]], dict[str, Any]] = dict  # fills in a default --workdir

    @property
    def summary(self) -> str:
        return self.doc.splitlines()[0]

    @property
    def examples(self) -> list[str]:
        """Lines of commands."""
        found = re.search(r'^    (?:python -m |seqjax ).*(?:\n(?:    .*)?)*', self.doc, re.MULTILINE)
        return found[0].rstrip().splitlines() if found else []

    def table_for(self, argv: Sequence[str]) -> FlagTable:
        """The flags that there are on a command line."""
        return self.table(argv) if callable(self.table) else self.table

    def whole_table(self, argv: Sequence[str]) -> FlagTable:
        """With the flags of the command line alone."""
        table, defaults = self.table_for(argv)
        if 'mesh' in table:
            table, defaults = {**table, **flag_tables.TOGETHER}, {**defaults, **flag_tables.ALONE}
        return FlagTable({**table, **flag_tables.KEPT}, {**defaults, **dict.fromkeys(flag_tables.KEPT)})

    def parse(self, argv: list[str]) -> dict[str, Any]:
        """The value of every flag; raises UserError where one is refused."""
        return command_line.parse(*self.table_for(argv), argv)

    def main(self, argv: list[str] | None = None, called: str | None = None) -> int:
        """Runs the command; returns the exit code."""
        return main(self, argv, called or registry.called(self.name))

    def execute(self, argv: list[str] | None = None, called: str | None = None) -> NoReturn:
        """Runs the command as the whole process."""
        begin()
        leave(self.main(argv, called))


def begin() -> None:
    """All that a command changes of the interpreter, once: what the imports brought is no garbage."""
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(command: Command, argv: list[str] | None, called: str) -> int:
    """Runs a command from the command line.

    Args:
      command: what is run.
      argv: without the program's name; of this process by default.
      called: how the command is called, for messages.

    Returns:
      The exit code: 0 finished, 2 a person's mistake, 75 stopped by SIGTERM, 130 by SIGINT.
    """
    name = called.removeprefix('python -m ')
    if sys.stdout is None:  # closed by whoever called
        sys.stdout = open(os.devnull, 'w')  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal or a pipe cannot encode is escaped
            stream.reconfigure(errors='backslashreplace')
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if {'--help', '-help', '-h', '--helpfull', '--helpshort'} & set(argv):
            print(help_text(command, called, command.whole_table(argv), '--helpfull' in argv), flush=True)
            return 0
        parsed = command_line.parse(*command.whole_table(argv), argv)
        values = command.complete(parsed)
        together = {word: values.pop(word) for word in flag_tables.ALONE if word in values}
        compilation_cache.keep_compiled(values.pop('compilation_cache'))
        with signals.handle_signals(defer=False):
            if together:
                use_cores(values['mesh'], together['distributed'])
                join(together['distributed'], together['heartbeat_timeout'])
            if 'workdir' in values and values['workdir'] != parsed['workdir']:
                print(f'run directory: {values["workdir"]} (--workdir names another)\n', flush=True)
            command.run(**values)
            sys.stdout.flush()
            multihost.stop()
    except UserError as error:
        sys.stdout.flush()
        print(f'{name}: {command_line.one_line(str(error))}', file=sys.stderr)
        return USER_ERROR
    except (Terminated, Interrupted) as stopped:
        print(f'\n{name}: {stopped.message}', file=sys.stderr)
        return signals.exit_code(stopped)
    except jax.errors.JaxRuntimeError as error:
        if not multihost.is_multiprocess():
            raise
        reason = ' '.join(str(error).split())[:200]
        print(f'{name}: another process of the run is gone ({reason}); start all of them again', file=sys.stderr)
        return signals.EXIT_CODES[signal.SIGTERM]  # so that a scheduler does
    except OSError as error:
        if error.filename is not None:  # a file: ours to handle, and not handled
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader of our output went away, as `| head` does
            return BROKEN_PIPE
        print(f'{name}: cannot write the output: {error.strerror}; send it elsewhere', file=sys.stderr)
        return USER_ERROR
    return 0


def leave(code: int) -> NoReturn:
    """Ends the process: writes what is buffered, and calls what others have registered with atexit."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed stream has nothing left to say
            stream.flush()
    atexit._run_exitfuncs()
    signals.end_process(code)
