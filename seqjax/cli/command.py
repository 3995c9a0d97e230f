"""Commands of the command line: they parse flags, call a function, and turn exceptions into exit codes."""

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
from seqjax.ops.native import library
from seqjax.runs import multihost, signals
from seqjax.runs.signals import Interrupted, Terminated
from seqjax.training import sharding

MAX_CPU_DEVICES = 256  # most JAX CPU devices of one process for --mesh; each device has threads of its own
GROUPS = {'model': 'Model', 'train': 'Training', 'run': 'Run', 'process': 'Process'}  # headings in --help by group


def help_text(command: Command, invocation: str, table: FlagTable, full: bool = False) -> str:
    """Returns the --help text of a command: its summary, an example, its own flags, then the common flags in groups.

    Args:
      command: the command.
      invocation: how the command is invoked, such as `seqjax run`.
      table: the flags of the command.
      full: print the complete text of the common flags instead of the part before its first semicolon.
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
    lines = textwrap.wrap(text.split('; ')[0] + default, 80, break_on_hyphens=False)
    lines = [' ' * 36 + line for line in lines]
    return [head, *lines] if len(head) > 34 else [f'{head:<36}{lines[0].strip()}', *lines[1:]]


def default_values(run: Callable[..., Any]) -> dict[str, Any]:
    """Returns {argument name: default value} of a function whose arguments all have a default."""
    return {name: parameter.default for name, parameter in inspect.signature(run).parameters.items()}


def use_cores(mesh: str | None, processes_text: str) -> None:
    """Sets the number of JAX CPU devices of this process: one per core, or more if --mesh needs more.

    With --mesh it is at most MAX_CPU_DEVICES. With --mesh and --distributed=HOST:PORT,COUNT,INDEX, it is this process's
    equal part of the mesh. Does nothing if JAX_NUM_CPU_DEVICES is set in the environment or JAX is already initialized.

    Args:
      mesh: value of --mesh.
      processes_text: value of --distributed.
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


def select_native(choice: str | None) -> None:
    """Sets the use of the native kernels for this process, see `seqjax.ops.native.library`; None keeps it.

    Raises:
      UserError: the environment variable is invalid.
      UnavailableError: the kernels are required and cannot be built; JAX is not initialized to see if this is a CPU.
    """
    if choice is not None:
        os.environ[library.VARIABLE] = choice
    try:
        required = library.setting() == library.REQUIRE
    except ValueError as error:
        raise UserError(str(error)) from error
    if required:
        library.load('float32')


def init_distributed(text: str, heartbeat_timeout: int) -> None:
    """Connects this process to the others of a distributed run; all but process 0 then discard their standard output.

    With 'off' the run has one process: nothing is connected or discarded.

    Args:
      text: value of --distributed.
      heartbeat_timeout: the run ends if a process does not respond for this many seconds.

    Raises:
      UserError: 'auto' detects no cluster, the port cannot be used, or the processes cannot connect.
    """
    try:
        multihost.start(text, heartbeat_timeout)
    except ValueError as error:
        raise UserError(
            f'--distributed={text}: none of SLURM, Kubernetes, Cloud TPU and Open MPI was detected; use '
            '--distributed=HOST:PORT,COUNT,INDEX'
        ) from error
    except OSError as error:
        raise UserError(
            f'--distributed={text}: the port cannot be used ({error.strerror}); use another port in all processes'
        ) from error
    except RuntimeError as error:
        raise UserError(
            f'--distributed={text} failed to connect: {" ".join(str(error).split())[:200]}; start all '
            'processes of the run, on machines that can reach process 0'
        ) from error
    signals.restore_python_handlers()
    if text != multihost.OFF and not multihost.is_process0():
        sys.stdout = open(os.devnull, 'w', errors='backslashreplace')  # noqa: SIM115


@dataclasses.dataclass(frozen=True)
class Command:
    """Command of the command line: a function, and the flags that become its arguments.

    A module of seqjax/cli that defines a `COMMAND` is run as `seqjax NAME`; one of experiments/ or benchmarks/, in a
    clone of the repository, as `python -m experiments.NAME`. NAME is the module's name.
    """

    name: str  # name of its module
    doc: str  # docstring of its module: the first line is the summary, indented lines are examples
    run: Callable[..., Any]  # function whose arguments are the flags
    table: FlagTable | Callable[[Sequence[str]], FlagTable]  # a function of argv if the flags depend on argv
    complete: Callable[[dict[str, Any]], dict[str, Any]] = dict  # flag values -> the same with the default --workdir

    @property
    def summary(self) -> str:
        return self.doc.splitlines()[0]

    @property
    def examples(self) -> list[str]:
        """Lines of the indented block with example command lines in `doc`; empty if there is none."""
        match = re.search(r'^    (?:python -m |seqjax ).*(?:\n(?:    .*)?)*', self.doc, re.MULTILINE)
        return match[0].rstrip().splitlines() if match else []

    def table_for(self, argv: Sequence[str]) -> FlagTable:
        """Returns the flags that `run` accepts, and their defaults; they may depend on the command line `argv`."""
        return self.table(argv) if callable(self.table) else self.table

    def full_table(self, argv: Sequence[str]) -> FlagTable:
        """Returns `table_for(argv)` plus the flags that exist on the command line only.

        These are --compilation_cache, --native and, for a command with --mesh, --distributed and --heartbeat_timeout.
        """
        table, defaults = self.table_for(argv)
        if 'mesh' in table:
            table, defaults = (
                {**table, **flag_tables.DISTRIBUTED_FLAGS},
                {**defaults, **flag_tables.DISTRIBUTED_DEFAULTS},
            )
        return FlagTable({**table, **flag_tables.CACHE_FLAGS}, {**defaults, **dict.fromkeys(flag_tables.CACHE_FLAGS)})

    def parse(self, argv: list[str]) -> dict[str, Any]:
        """Returns {name: value} of all flags of `table_for(argv)`; raises UserError if a flag or a value is invalid."""
        return command_line.parse(*self.table_for(argv), argv)

    def main(self, argv: list[str] | None = None, invocation: str | None = None) -> int:
        """Runs the command with `argv`, by default the arguments of this process; returns the exit code, see `main`."""
        return main(self, argv, invocation or registry.invocation(self.name))

    def execute(self, argv: list[str] | None = None, invocation: str | None = None) -> NoReturn:
        """Runs the command and ends the process with the exit code of `main`; does not return."""
        begin()
        exit_process(self.main(argv, invocation))


def begin() -> None:
    """Undoes `seqjax.cli.app.begin`: enables garbage collection, and restores the handlers of SIGINT and SIGTERM.

    Objects that exist already, such as the imported modules, are excluded from garbage collection.
    """
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(command: Command, argv: list[str] | None, invocation: str) -> int:
    """Parses the flags of a command and runs it; prints an error message instead of raising UserError.

    Args:
      command: the command.
      argv: arguments without the program's name; by default the arguments of this process.
      invocation: how the command is invoked, such as `seqjax run`; messages start with it.

    Returns:
      The exit code: 0 for success and --help, 2 for a user error or an output that cannot be written, 75 after SIGTERM
      or if another process of a distributed run has ended, 130 after SIGINT, 141 if the reader closed the output pipe.
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
            select_native(values.pop('native'))
            if distributed:
                use_cores(values['mesh'], distributed['distributed'])
                init_distributed(distributed['distributed'], distributed['heartbeat_timeout'])
            if 'workdir' in values and values['workdir'] != parsed['workdir']:
                print(f'Run directory: {values["workdir"]} (use --workdir to change it)\n', flush=True)
            command.run(**values)
            sys.stdout.flush()
            multihost.stop()
    except (UserError, library.UnavailableError) as error:
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
        print(
            f'{name}: the distributed run failed, probably because another process has ended ({reason}); restart all '
            'processes',
            file=sys.stderr,
        )
        return signals.EXIT_CODES[signal.SIGTERM]  # a scheduler restarts them on this code
    except OSError as error:
        if error.filename is not None:  # an unhandled error of a file is a bug
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has closed the pipe, as `| head` does
            return BROKEN_PIPE
        print(
            f'{name}: cannot write to the standard output: {error.strerror}; redirect it to another file',
            file=sys.stderr,
        )
        return USER_ERROR
    return 0


def exit_process(code: int) -> NoReturn:
    """Flushes the standard output and error, and ends the process with an exit code, without calling atexit functions.

    Those of JAX would wait for the other processes of a run, which may have died.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a stream may be closed
            stream.flush()
    signals.end_process(code)
