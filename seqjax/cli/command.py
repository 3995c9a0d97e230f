"""Commands: they parse flags, run, and map errors to exit codes."""

from __future__ import annotations

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
from seqjax.cli.parsers import BoolParser
from seqjax.errors import UserError
from seqjax.runs import multihost, signals
from seqjax.runs.signals import Interrupted, Terminated
from seqjax.training import sharding

MAX_CPU_DEVICES = 256  # of one process; each has threads of its own
GROUPS = {'model': 'Model', 'train': 'Training', 'run': 'Run', 'process': 'Process'}  # headings in --help


def help_text(command: Command, invocation: str, table: FlagTable, full: bool = False) -> str:
    """Returns the --help text of a command: its summary, an example, its own flags, then the common flags in groups.

    Args:
      command: the command.
      invocation: how the command is invoked, such as `seqjax run`.
      table: the flags of the command.
      full: print the complete text of the common flags instead of its first clause.
    """
    examples = ['Examples:', *command.examples, ''] if command.examples else []
    own = [name for name, flag in table.flags.items() if not flag.group]
    lines = [
        command.summary,
        '',
        f'Usage: {invocation} {"[FILE] " if "data" in table.flags else ""}[--flagfile=FLAGFILE] [flags]',
        '',
        *examples,
    ]
    lines += ['Flags:'] if own else []
    for name in own:
        lines += _flag_lines(name, table, True)
    for group in dict.fromkeys(flag.group for flag in table.flags.values() if flag.group):
        lines += ['', f'{GROUPS[group]} flags:']
        for name in (name for name, flag in table.flags.items() if flag.group == group):
            lines += _flag_lines(name, table, full)
    lines += [
        '',
        '  --flagfile=(file)',
        '        read flags from a file, one per line; later flags override earlier ones',
    ]
    lines += [] if full else ['  --helpfull', '        print the complete help of every flag']
    return '\n'.join(lines)


def _flag_lines(name: str, table: FlagTable, full: bool) -> list[str]:
    """Returns the lines of one flag in --help."""
    parser, text, _ = table.flags[name]
    is_bool, value = isinstance(parser, BoolParser), table.defaults[name]
    head = f'  --[no]{name}' if is_bool else f'  --{name}=({parser.flag_type()})'
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, list | tuple):
        value = ','.join(map(str, value))
    default = '' if value is None else f' (default: {value})'
    if full:
        return [head, textwrap.indent(textwrap.fill(text + default, 92), ' ' * 8)]
    short = re.split(r'[;:(]', text)[0].rstrip()
    return [f'{head:<34}  {short}{default}']


def default_values(run: Callable[..., Any]) -> dict[str, Any]:
    """Returns the default values of the arguments of a function."""
    return {name: parameter.default for name, parameter in inspect.signature(run).parameters.items()}


def use_cores(mesh: str | None, processes_text: str) -> None:
    """Makes every core of a CPU a JAX device, and adds devices if --mesh needs more than there are cores.

    Does nothing if JAX_NUM_CPU_DEVICES is set in the environment.
    """
    if 'JAX_NUM_CPU_DEVICES' in os.environ:
        return
    count = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    if mesh is not None:
        address, mesh_size = multihost.parse(processes_text), math.prod(sharding.parse_mesh(mesh).values())
        count = max(count, mesh_size) if address is None else -(-mesh_size // address.count)
        count = min(count, MAX_CPU_DEVICES)
    with contextlib.suppress(RuntimeError):  # JAX is initialized: its devices cannot change
        jax.config.update('jax_num_cpu_devices', count)


def init_distributed(text: str, heartbeat_timeout: int) -> None:
    """Initializes JAX's distributed service and silences the standard output of all processes but process 0.

    Raises:
      UserError: the other processes cannot be found.
    """
    try:
        multihost.start(text, heartbeat_timeout)
    except ValueError as error:
        raise UserError(
            f'--distributed={text}: SLURM, Kubernetes, Cloud TPU and Open MPI were not detected; use '
            '--distributed=HOST:PORT,COUNT,INDEX'
        ) from error
    except OSError as error:
        raise UserError(f'--distributed={text} is not available: {error.strerror}; use another port') from error
    except RuntimeError as error:
        raise UserError(f'--distributed={text} failed to connect: {" ".join(str(error).split())[:200]}') from error
    signals.restore_python_handlers()
    if text != multihost.OFF and not multihost.is_process0():
        sys.stdout = open(os.devnull, 'w', errors='backslashreplace')  # noqa: SIM115


@dataclasses.dataclass(frozen=True)
class Command:
    """A command and its flags, invoked as `seqjax NAME`, or as `python -m experiments.NAME` in a clone.

    `seqjax.cli.registry` finds and lists every module of this folder that defines a `COMMAND`.
    """

    name: str  # name of its module
    doc: str  # docstring of its module: the first line is the summary, indented lines are examples
    run: Callable[..., Any]  # function whose arguments are the flags
    table: FlagTable | Callable[[Sequence[str]], FlagTable]  # a function if the flags depend on the command line
    complete: Callable[[dict[str, Any]], dict[str, Any]] = dict  # fills in the default --workdir

    @property
    def summary(self) -> str:
        return self.doc.splitlines()[0]

    @property
    def examples(self) -> list[str]:
        """Example command lines of the docstring."""
        match = re.search(r'^    (?:python -m |seqjax ).*(?:\n(?:    .*)?)*', self.doc, re.MULTILINE)
        return match[0].rstrip().splitlines() if match else []

    def table_for(self, argv: Sequence[str]) -> FlagTable:
        """Returns the flags of the command for a given command line."""
        return self.table(argv) if callable(self.table) else self.table

    def full_table(self, argv: Sequence[str]) -> FlagTable:
        """Returns all flags, including flags of the command line alone, such as --distributed."""
        table, defaults = self.table_for(argv)
        if 'mesh' in table:
            table, defaults = (
                {**table, **flag_tables.DISTRIBUTED_FLAGS},
                {**defaults, **flag_tables.DISTRIBUTED_DEFAULTS},
            )
        return FlagTable({**table, **flag_tables.CACHE_FLAGS}, {**defaults, **dict.fromkeys(flag_tables.CACHE_FLAGS)})

    def parse(self, argv: list[str]) -> dict[str, Any]:
        """Returns the value of every flag; raises UserError if a value is invalid."""
        return command_line.parse(*self.table_for(argv), argv)

    def main(self, argv: list[str] | None = None, invocation: str | None = None) -> int:
        """Runs the command; returns the exit code."""
        return main(self, argv, invocation or registry.invocation(self.name))

    def execute(self, argv: list[str] | None = None, invocation: str | None = None) -> NoReturn:
        """Runs the command as the whole process."""
        begin()
        exit_process(self.main(argv, invocation))


def begin() -> None:
    """Restores signal handlers and garbage collection after the imports, which it excludes from later collections."""
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(command: Command, argv: list[str] | None, invocation: str) -> int:
    """Runs a command from the command line.

    Args:
      command: the command.
      argv: arguments without the program's name; by default the arguments of this process.
      invocation: how the command is invoked, for messages.

    Returns:
      The exit code: 0 for success, 2 for a user error, 75 after SIGTERM, 130 after SIGINT.
    """
    name = invocation.removeprefix('python -m ')
    if sys.stdout is None:  # the parent process closed it
        sys.stdout = open(os.devnull, 'w')  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape characters that the terminal or pipe cannot encode
            stream.reconfigure(errors='backslashreplace')
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if {'--help', '-help', '-h', '--helpfull', '--helpshort'} & set(argv):
            print(help_text(command, invocation, command.full_table(argv), '--helpfull' in argv), flush=True)
            return 0
        parsed = command_line.parse(*command.full_table(argv), argv)
        values = command.complete(parsed)
        distributed = {name: values.pop(name) for name in flag_tables.DISTRIBUTED_DEFAULTS if name in values}
        compilation_cache.enable_cache(values.pop('compilation_cache'))
        with signals.handle_signals(defer=False):
            if distributed:
                use_cores(values['mesh'], distributed['distributed'])
                init_distributed(distributed['distributed'], distributed['heartbeat_timeout'])
            if 'workdir' in values and values['workdir'] != parsed['workdir']:
                print(f'Run directory: {values["workdir"]} (use --workdir to change it)\n', flush=True)
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
        print(f'{name}: another process of the run has ended ({reason}); restart all processes', file=sys.stderr)
        return signals.EXIT_CODES[signal.SIGTERM]  # a scheduler restarts them on this code
    except OSError as error:
        if error.filename is not None:  # an unhandled error of a file is a bug
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has closed the pipe, as `| head` does
            return BROKEN_PIPE
        print(f'{name}: cannot write to the standard output: {error.strerror}; redirect it', file=sys.stderr)
        return USER_ERROR
    return 0


def exit_process(code: int) -> NoReturn:
    """Ends the process after flushing its output.

    Functions registered with atexit are not called: JAX's wait for the other processes of a run, which may have died.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a stream may be closed
            stream.flush()
    signals.end_process(code)
