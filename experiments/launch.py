"""The shared flags, and the only translation from flags to arguments.

An experiment is a module with a function `run(*, ...)`, whose defaults are the defaults of its flags, and a table
`FLAGS` that gives each argument its parser and its help. Both doors go through the parsers: the command line by
`main`, Python and notebooks by `check`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import gc
import inspect
import io
import math
import operator
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from absl import flags

from experiments.compiled import OFF, keep_compiled
from seqjax import files, memory, processes, signals
from seqjax.cli import registry
from seqjax.config import FRACTION, POSITIVE, RunConfig, TrainConfig
from seqjax.files import UserError
from seqjax.models import CELLS, find_cell
from seqjax.training.session import CheckpointConfig
from seqjax.training.sharding import parse_mesh

FLAGFILES = Path(__file__).parent / 'flags'
MISTAKE, BROKEN_PIPE = 2, 141
LONGEST = 1000  # characters of a sentence
MOST_CORES = 256  # devices that are made up on a CPU; each has threads


# --- parsers: from a flag's text, or from a plain value --------------------------------------------


def _plain_number(argument: Any) -> Any:
    """Python's numbers may hold underscores and the digits of every script, and bool is one; a flag's are plain."""
    odd = isinstance(argument, str) and (not argument.isascii() or '_' in argument)
    if odd or isinstance(argument, bool | np.bool_):
        raise ValueError
    return argument


def _float_or_nan(argument: Any) -> float:
    try:
        return float(_plain_number(argument))
    except (TypeError, ValueError, OverflowError):
        return math.nan


class Whole(flags.ArgumentParser):
    """A whole number from `minimum` to `maximum`."""

    def __init__(self, minimum: int, maximum: int = 2**31 - 1):
        self.minimum, self.maximum = minimum, maximum

    def parse(self, argument: Any) -> int:
        try:
            argument = _plain_number(argument)
            value = int(argument) if isinstance(argument, str) else operator.index(argument)
        except (TypeError, ValueError):
            value = None
        if value is None or not self.minimum <= value <= self.maximum:
            raise ValueError(f'must be a whole number from {self.minimum} to {self.maximum}')
        return value

    def flag_type(self) -> str:
        return 'whole number'


class Real(flags.ArgumentParser):
    """A number for which `holds` is true; the classes below are its kinds."""

    kind: str
    words: str  # what it must be

    def holds(self, value: float) -> bool:
        """Whether a number is one of this kind; NaN, which stands for what is no number, never is."""
        raise NotImplementedError

    def parse(self, argument: Any) -> float:
        value = _float_or_nan(argument)
        if not self.holds(value):
            raise ValueError(self.words)
        return value

    def flag_type(self) -> str:
        return self.kind


SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class Positive(Real):
    """A positive number that float32 can hold."""

    kind, words = 'positive number', f'must be a positive and finite number, from {SMALLEST:.1e} to {LARGEST:.1e}'

    def holds(self, value: float) -> bool:
        return SMALLEST <= value <= LARGEST


class Number(Real):
    """A finite number."""

    kind, words = 'number', 'must be a finite number'

    def holds(self, value: float) -> bool:
        return abs(value) <= LARGEST


class Share(Real):
    """A share: over 0, at most 1."""

    kind, words = 'share', 'must be a number over 0 and at most 1'

    def holds(self, value: float) -> bool:
        return 0 < value <= 1


class Fraction(Real):
    """A share that leaves something: from 0 to below 1."""

    kind, words = 'fraction', 'must be a number from 0 to below 1'

    def holds(self, value: float) -> bool:
        return 0 <= value < 1


class Choice(flags.ArgumentParser):
    """One of a few words."""

    def __init__(self, *words: str):
        self.words = words

    def parse(self, argument: Any) -> str:
        if argument not in self.words:
            raise ValueError(f'must be one of {", ".join(self.words)}{nearest(str(argument), self.words)}')
        return argument

    def flag_type(self) -> str:
        return ' | '.join(self.words)


class Many(flags.ArgumentParser):
    """Values that another parser takes, separated by commas."""

    def __init__(self, parser: flags.ArgumentParser, distinct: bool = True):
        self.parser, self.distinct = parser, distinct

    def parse(self, argument: Any) -> list[Any]:
        values = _split(argument) if isinstance(argument, str) else argument
        values = values if isinstance(values, Iterable) else [values]
        try:
            parsed = [self.parser.parse(value) for value in values]
        except TypeError:
            parsed = []
        if not parsed or (self.distinct and len(set(parsed)) < len(parsed)):
            different = ', all different' if self.distinct else ''
            raise ValueError(f'must be one or more values{different}, separated by commas')
        return parsed

    def flag_type(self) -> str:
        return f'{self.parser.flag_type()},...'


def _split(text: str) -> list[str]:
    """At commas, but for those in parentheses.

    >>> _split('lstm(peepholes=True,forget=none),gru')
    ['lstm(peepholes=True,forget=none)', 'gru']
    """
    return re.split(r',(?![^(]*\))', text)


LONGEST_PATH, LONGEST_NAME = 3000, 255  # bytes; Linux takes 4095 and 255, and a run adds names of its own


class Place(flags.ArgumentParser):
    """The path of a folder, or of a file."""

    def __init__(self, kind: str = 'folder'):
        self.kind = kind

    def parse(self, argument: Any) -> str:
        text = os.fspath(argument) if isinstance(argument, str | os.PathLike) else ''
        # Half a surrogate pair stands for a byte that the locale cannot decode; Orbax takes no such folder.
        known = _is_path(text) if self.kind == 'file' else _encodable(text)
        if not text.strip() or '\0' in text or not known:
            raise ValueError(f'must be the path of a {self.kind}')
        path = os.fsencode(text)
        if len(path) > LONGEST_PATH or max(map(len, path.split(os.fsencode(os.sep)))) > LONGEST_NAME:
            raise ValueError(
                f'must be a path of at most {LONGEST_PATH} bytes, with names of at most {LONGEST_NAME}; choose another'
            )
        return text

    def flag_type(self) -> str:
        return self.kind


class Cache(Place):
    """A folder, or none."""

    def flag_type(self) -> str:
        return f'{self.kind} | {OFF}'


class Name(flags.ArgumentParser):
    """A word that the run must know."""

    def parse(self, argument: Any) -> str:
        if not isinstance(argument, str) or not argument.strip() or not _encodable(argument):
            raise ValueError('must be a name')
        return argument

    def flag_type(self) -> str:
        return 'name'


class Text(flags.ArgumentParser):
    """Any text that is not empty."""

    def parse(self, argument: Any) -> str:
        if not isinstance(argument, str) or not argument or not _encodable(argument):
            raise ValueError('must be a text that is not empty')
        return argument

    def flag_type(self) -> str:
        return 'text'


def _is_path(text: str) -> bool:
    """Returns True if the system can be given the text as a path."""
    try:
        return bool(os.fsencode(text))
    except UnicodeEncodeError:
        return False


def _encodable(text: str) -> bool:
    """Whether UTF-8 can hold it: not half a surrogate pair, which a terminal gives for a byte that is no text."""
    return text.encode('utf-8', 'ignore').decode() == text


class Axes(flags.ArgumentParser):
    """A mesh of devices."""

    def parse(self, argument: Any) -> str:
        parse_mesh(argument if isinstance(argument, str) else '')
        return argument

    def flag_type(self) -> str:
        return 'data:N[,model:M]'


class Others(flags.ArgumentParser):
    """How a process finds those that it works with."""

    def parse(self, argument: Any) -> str:
        processes.parse(argument)
        return argument

    def flag_type(self) -> str:
        return 'off | auto | HOST:PORT,COUNT,INDEX'


class Grid(flags.ArgumentParser):
    """A flag and the values that it takes in turn; the flag may be repeated."""

    def parse(self, argument: Any) -> tuple[str, list[str]]:
        name, colon, values = argument.partition(':') if isinstance(argument, str) else ('', '', '')
        if not name or not colon or not all(values.split(',')):
            raise ValueError('must be NAME:VALUE,VALUE,..., such as learning_rate:1e-3,3e-3')
        return name, values.split(',')

    def flag_type(self) -> str:
        return 'NAME:VALUE,...'


class Switch(flags.BooleanParser):
    """True or false."""

    def parse(self, argument: Any) -> bool:
        try:
            return super().parse(bool(argument) if isinstance(argument, np.bool_) else argument)
        except (TypeError, ValueError, AttributeError):
            raise ValueError('must be true or false') from None


class Flag(NamedTuple):
    parser: flags.ArgumentParser
    help: str
    group: str = ''  # of --help; the command's own flags have none


class Table(NamedTuple):
    """The flags of a command."""

    flags: Mapping[str, Flag]
    defaults: Mapping[str, Any]


class CellName(flags.ArgumentParser):
    """A cell by its name or as MODULE:CLASS, with options in parentheses behind it."""

    def parse(self, argument: Any) -> str:
        text = argument if isinstance(argument, str) and _encodable(argument) else ''
        if ':' in text:
            import_from_here()
        try:
            find_cell(text)
        except ValueError as error:
            raise ValueError(str(error).removeprefix(f'cell={text} ')) from error
        return text

    def flag_type(self) -> str:
        return f'{" | ".join(CELLS)} | MODULE:CLASS'


# --- flags of the configurations --------------------------------------------------------------------

PARSERS = {  # of fields that their type and bounds alone do not tell
    'cell': CellName(),
    'mesh': Axes(),
    'best': Name(),
}


def flags_of(*configs: type, without: Iterable[str] = ()) -> dict[str, Flag]:
    """The flags of the fields of configurations, see `seqjax.config`."""
    found = {}
    for config in configs:
        group = config.__name__.removesuffix('Config').lower()
        for field in dataclasses.fields(config):
            if field.name not in without:
                parser = PARSERS.get(field.name) or _parser_of(field)
                found[field.name] = Flag(parser, field.metadata['help'], group)
    return found


def _parser_of(field: dataclasses.Field) -> flags.ArgumentParser:
    """By the type, the bounds and the choices of a field."""
    bounds, choices = field.metadata['bounds'], field.metadata['choices']
    if choices:
        return Choice(*choices)
    kind = field.type.removesuffix(' | None')
    if kind == 'int':
        least, most = bounds
        return Whole(least) if most is None else Whole(least, most)
    if kind == 'float':
        return {None: Number, FRACTION: Fraction, POSITIVE: Positive}[bounds]()
    return {'bool': Switch, 'str': Place}[kind]()


def defaults_of(*configs: Any, without: Iterable[str] = ()) -> dict[str, Any]:
    """The values of configurations, by the names of their flags."""
    values = {name: value for config in configs for name, value in vars(config).items()}
    return {name: value for name, value in values.items() if name not in without}


def as_flags(sentence: Any, names: Iterable[str]) -> str:
    """A sentence of the library, which names arguments, as one that names flags.

    >>> as_flags('dropout=0.5 does nothing with layers=1', ['dropout', 'layers'])
    '--dropout=0.5 does nothing with --layers=1'
    """
    return re.sub(rf'(?<![\w-])({"|".join(map(re.escape, names))})=', r'--\1=', str(sentence))


# In the order of their help.
SHARED = flags_of(TrainConfig, RunConfig)
SHARED = {name: SHARED[name] for name in list(SHARED)[list(SHARED).index('learning_rate') :]}


# Of the command line alone, which JAX must know before it begins.
TOGETHER = {
    'distributed': Flag(
        Others(),
        'the processes that compute the run together: HOST:PORT of process 0, how many there are, and which this one '
        'is; auto asks SLURM, Kubernetes, Cloud TPU or Open MPI',
        'process',
    ),
    'heartbeat': Flag(Whole(1), 'seconds after which a process that is not heard of ends the run', 'process'),
}
ALONE = {'distributed': processes.OFF, 'heartbeat': 100}
KEPT = {
    'compilation_cache': Flag(
        Cache(),
        'where compiled programs stay, so that the next start need not compile; off keeps none. By default '
        'JAX_COMPILATION_CACHE_DIR of the environment, or seqjax/jax in the cache of the user (XDG_CACHE_HOME, '
        '~/.cache), which is kept below 1 GB',
        'process',
    ),
}


def check(table: Mapping[str, Flag], values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values through the parsers; None stays None where it is the default.

    Raises:
      UserError: a value is refused; the sentence names the flag and the value.
    """
    checked = {}
    for name, flag in table.items():
        value = values[name]
        try:
            checked[name] = None if value is None and defaults[name] is None else flag.parser.parse(value)
        except ValueError as error:
            raise UserError(f'--{name}={value} {error}') from error
    return checked


def check_known(values: Mapping[str, Any], table: Mapping[str, Flag]) -> None:
    """Raises UserError where a value is of no flag."""
    for name in values:
        if name not in table:
            raise UserError(unknown(name, table))


def keeping(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns when a run saves and where it is computed, for `compile_run`, as its flags say."""
    checkpoints = CheckpointConfig(settings['checkpoint_every'], settings['keep'], settings['best'])
    return {'checkpoints': checkpoints, 'devices': settings['mesh']}


def matmul_precision(word: str) -> contextlib.AbstractContextManager[None]:
    """What is traced within has products of that precision; 'default' leaves JAX's own setting as it is."""
    return contextlib.nullcontext() if word == 'default' else jax.default_matmul_precision(word)


def check_seeds(seed: int, replicas: int | None, sets: int = 1) -> None:
    """Raises UserError where the last of the seeds is no 32-bit number."""
    last = seed + sets * (replicas or 1) - 1
    if last >= 2**32:
        raise UserError(f'--seed={seed} with --replicas={replicas} ends at seed {last}; the last must be below {2**32}')


def check_every(every: int, name: str, steps: int) -> None:
    """Raises UserError where nothing would ever be looked at."""
    if every > steps:
        raise UserError(f'--every={every} is more than --{name}={steps}, so nothing would be looked at; choose fewer')


def check_memory(numbers: int, sizes: Mapping[str, Any]) -> None:
    """Raises UserError where a run of so many float32 numbers cannot fit this machine's memory."""
    memory.check_bytes(memory.named_sizes(sizes), 4 * numbers)


def import_from_here() -> None:
    """Modules of the folder where the command was given are found, too."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def nearest(word: str, words: Any) -> str:
    near = difflib.get_close_matches(word, list(words), 1)
    return f'; did you mean {near[0]}?' if near else ''


# --- the command line ------------------------------------------------------------------------------


def define(table: Mapping[str, Flag], defaults: Mapping[str, Any]) -> flags.FlagValues:
    """The flags of an experiment, on values of its own: nothing global."""
    values = flags.FlagValues()
    for name, flag in table.items():
        if isinstance(flag.parser, Grid):
            flags.DEFINE_multi(flag.parser, flags.ArgumentSerializer(), name, None, flag.help, flag_values=values)
        elif isinstance(flag.parser, Switch):
            flags.DEFINE_boolean(name, defaults[name], flag.help, flag_values=values)
            values[name].parser = flag.parser  # absl's own has no sentence for what it refuses
        else:
            flags.DEFINE(flag.parser, name, defaults[name], flag.help, flag_values=values)
    return values


def parse(table: Mapping[str, Flag], defaults: Mapping[str, Any], argv: list[str]) -> dict[str, Any]:
    """argv (without the program) -> the value of every flag.

    Raises:
      UserError: a flag, a value or a flagfile is wrong.
    """
    try:
        values = define(table, defaults)
        values.set_gnu_getopt(True)
        rest = values(['', *find_flagfiles(argv)])[1:]
        if len(rest) == 1 and 'data' in table and values['data'].value is None:
            values['data'].value = table['data'].parser.parse(rest.pop())
    except flags.UnrecognizedFlagError as error:
        raise UserError(unknown(error.flagname, table)) from error
    except flags.IllegalFlagValueError as error:
        raise UserError(_plain(str(error))) from error
    except (flags.Error, ValueError) as error:  # a ValueError: --nopicture=true
        raise UserError(f'{_plain(str(error))}; --help lists the flags') from error
    if rest:
        raise UserError(f'{rest[0]!r} is no flag: {_way_to_say(rest[0], table)}; --help lists them')
    return {name: values[name].value for name in table}


def _way_to_say(word: str, table: Mapping[str, Flag]) -> str:
    """How what stands alone is said by a flag."""
    if word.endswith('.flags'):
        return f'a file of flags is read with --flagfile={word}'
    files = [name for name, flag in table.items() if isinstance(flag.parser, Place) and flag.parser.kind == 'file']
    known = [name for name in files if name == 'data'] or files
    said = f'a file is given with {" or ".join(f"--{name}=FILE" for name in known)}, and ' if known else ''
    return f'{said}flags are written --name=value'


def unknown(name: str, table: Mapping[str, Flag]) -> str:
    near = nearest(name, table) or nearest(name.removeprefix('no'), table)
    return f'unknown flag --{name}{near.replace("mean ", "mean --") or "; --help lists the flags"}'


def _plain(message: str) -> str:
    """One line, without absl's lead."""
    return ' '.join(message.split()).removeprefix('flag ').replace(': must be', ' must be')


def find_flagfiles(argv: Iterable[str], within: tuple[Path, ...] = ()) -> list[str]:
    """Puts the lines of a flagfile in its place; it may name one that comes with the package, or another flagfile."""
    found = []
    words = iter(argv)
    for word in words:
        name, equals, path = word.partition('=')
        if name not in ('--flagfile', '-flagfile'):
            found.append(word)
            continue
        if not equals:
            path = next(words, '')
        file = _find_flagfile(path, within)
        if file in within:
            raise UserError(f'flagfile {path!r} reads itself; take that line out')
        lines = [line.strip() for line in _read_flagfile(path, file).split('\n')]
        lines = [line for line in lines if line and not line.startswith(('#', '//'))]
        found += find_flagfiles(lines, (*within, file))
    return found


def peek(argv: Iterable[str], name: str, default: str) -> str:
    """The last value of a flag that decides which others there are; what is wrong is told when all are parsed."""
    value, words = default, []
    with contextlib.suppress(UserError):
        words = find_flagfiles(argv)
    for word, following in zip(words, [*words, default][1:], strict=True):
        flag, equals, text = word.partition('=')
        if flag in (f'--{name}', f'-{name}'):
            value = text if equals else following
    return value


def _read_flagfile(path: str, file: Path) -> str:
    """The text of a flagfile; raises UserError where it cannot be read, or is not UTF-8."""
    try:
        text = file.read_text(encoding='utf-8-sig')  # some editors begin with a byte-order mark
    except OSError as error:
        raise UserError(f'flagfile {path!r} cannot be read: {error.strerror or error}') from error
    except UnicodeDecodeError:
        text = '\0'
    if '\0' in text:  # as UTF-16 has, with a byte-order mark or without
        raise UserError(f'flagfile {path!r} is not UTF-8 text; save it as UTF-8, with one --name=value a line')
    return text


def _find_flagfile(path: str, within: tuple[Path, ...] = ()) -> Path:
    name = Path(path).name
    candidates = [files.expand('flagfile', path)]
    candidates += [file.parent / path for file in within[-1:]]  # beside the flagfile that names it
    if Path(path).parent in (Path('.'), Path('experiments/flags')):  # a path to elsewhere means that place alone
        candidates += [FLAGFILES / name, FLAGFILES / f'{name}.flags']
    for candidate in candidates:
        with contextlib.suppress(OSError, ValueError):  # a name that no file can have
            if candidate.is_file():
                return candidate
    known = sorted(file.name for file in FLAGFILES.glob('*.flags'))
    raise UserError(f'flagfile {path!r} is not a file; those that come with the package: {", ".join(known)}')


def help_text(command: Command, called: str, table: Table, full: bool = False) -> str:
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


def _flag_lines(name: str, table: Table, full: bool) -> list[str]:
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


def one_line(sentence: str) -> str:
    """As a terminal can show it: what is not printable escaped, and values of more than a few lines cut."""
    plain = ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in sentence)
    return plain if len(plain) <= LONGEST else f'{plain[: LONGEST // 2]} ... {plain[-LONGEST // 2 :]}'


def use_cores(asked: str | None, processes_text: str) -> None:
    """On a CPU every core is a device, and more are made up where so many are asked for.

    JAX_NUM_CPU_DEVICES in the environment is left alone.
    """
    if 'JAX_NUM_CPU_DEVICES' in os.environ:
        return
    count = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    if asked is not None:
        address, wanted = processes.parse(processes_text), math.prod(parse_mesh(asked).values())
        count = max(count, wanted) if address is None else -(-wanted // address.count)
        count = min(count, MOST_CORES)
    with contextlib.suppress(RuntimeError):  # JAX has begun: its devices are what they are
        jax.config.update('jax_num_cpu_devices', count)


def join(text: str, heartbeat: int) -> None:
    """Joins the other processes of the run; only the first one talks.

    Raises:
      UserError: they cannot be found.
    """
    try:
        processes.start(text, heartbeat)
    except ValueError as error:
        raise UserError(
            f'--distributed={text} finds no SLURM, Kubernetes, Cloud TPU or Open MPI here; name the processes with '
            'HOST:PORT,COUNT,INDEX'
        ) from error
    except OSError as error:
        raise UserError(f'--distributed={text} cannot be: {error.strerror}; choose another port') from error
    except RuntimeError as error:
        raise UserError(f'--distributed={text} cannot join: {" ".join(str(error).split())[:200]}') from error
    signals.take_back()
    if text != processes.OFF and not processes.is_first():
        sys.stdout = open(os.devnull, 'w', errors='backslashreplace')  # noqa: SIM115


@dataclasses.dataclass(frozen=True)
class Command:
    """What is run by its name: `python -m experiments.NAME` or `python -m seqjax NAME`.

    A module of this folder that has one as COMMAND is found and listed, see `seqjax.cli.registry`.
    """

    name: str  # that of its module
    doc: str  # of its module: the first line says what it does, and indented lines are examples
    run: Callable[..., Any]  # its arguments are the flags
    table: Table | Callable[[Sequence[str]], Table]  # where it depends on the command line, a function of that
    complete: Callable[[dict[str, Any]], dict[str, Any]] = dict  # fills in a default --workdir

    @property
    def summary(self) -> str:
        return self.doc.splitlines()[0]

    @property
    def examples(self) -> list[str]:
        """Lines of commands."""
        found = re.search(r'^    python -m .*(?:\n(?:    .*)?)*', self.doc, re.MULTILINE)
        return found[0].rstrip().splitlines() if found else []

    def table_for(self, argv: Sequence[str]) -> Table:
        """The flags that there are on a command line."""
        return self.table(argv) if callable(self.table) else self.table

    def whole_table(self, argv: Sequence[str]) -> Table:
        """With the flags of the command line alone."""
        table, defaults = self.table_for(argv)
        if 'mesh' in table:
            table, defaults = {**table, **TOGETHER}, {**defaults, **ALONE}
        return Table({**table, **KEPT}, {**defaults, **dict.fromkeys(KEPT)})

    def parse(self, argv: list[str]) -> dict[str, Any]:
        """The value of every flag; raises UserError where one is refused."""
        return parse(*self.table_for(argv), argv)

    def main(self, argv: list[str] | None = None, called: str | None = None) -> int:
        """Runs the command; returns the exit code."""
        return main(self, argv, called or f'python -m {registry.PACKAGE}.{self.name}')

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
        parsed = parse(*command.whole_table(argv), argv)
        values = command.complete(parsed)
        together = {word: values.pop(word) for word in ALONE if word in values}
        keep_compiled(values.pop('compilation_cache'))
        with signals.asked(later=False):
            if together:
                use_cores(values['mesh'], together['distributed'])
                join(together['distributed'], together['heartbeat'])
            if 'workdir' in values and values['workdir'] != parsed['workdir']:
                print(f'run directory: {values["workdir"]} (--workdir names another)\n', flush=True)
            command.run(**values)
            sys.stdout.flush()
            processes.stop()
    except UserError as error:
        sys.stdout.flush()
        print(f'{name}: {one_line(str(error))}', file=sys.stderr)
        return MISTAKE
    except (signals.Terminated, signals.Interrupted) as stopped:
        print(f'\n{name}: {stopped.message}', file=sys.stderr)
        return signals.code(stopped)
    except jax.errors.JaxRuntimeError as error:
        if not processes.several():
            raise
        reason = ' '.join(str(error).split())[:200]
        print(f'{name}: another process of the run is gone ({reason}); start all of them again', file=sys.stderr)
        return signals.CODES[signal.SIGTERM]  # so that a scheduler does
    except OSError as error:
        if error.filename is not None:  # a file: ours to handle, and not handled
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader of our output went away, as `| head` does
            return BROKEN_PIPE
        print(f'{name}: cannot write the output: {error.strerror}; send it elsewhere', file=sys.stderr)
        return MISTAKE
    return 0


def leave(code: int) -> NoReturn:
    """Ends the process at once: everything is written, and taking the interpreter down would take 0.3 s."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed stream has nothing left to say
            stream.flush()
    os._exit(code)
