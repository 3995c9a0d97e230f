"""The command line: flags, flagfiles and help, with absl."""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from seqjax import files as seqjax_files
from seqjax.cli import flag_tables, registry
from seqjax.cli.flag_tables import Flag
from seqjax.cli.parsers import Grid, Place, Switch
from seqjax.errors import UserError

LONGEST = 1000  # characters of a sentence


def flagfile_folder() -> Path:
    """Returns the folder of the repository's flagfiles, which a wheel has not."""
    return next(iter(registry.folders('experiments')), Path('experiments')) / 'flags'


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
    """argv (without the program) -> the value of every flag; raises UserError if a flag or a flagfile is wrong."""
    try:
        values = define(table, defaults)
        values.set_gnu_getopt(True)
        rest = values(['', *find_flagfiles(argv)])[1:]
        if len(rest) == 1 and 'data' in table and values['data'].value is None:
            values['data'].value = table['data'].parser.parse(rest.pop())
    except flags.UnrecognizedFlagError as error:
        raise UserError(flag_tables.unknown(error.flagname, table)) from error
    except flags.IllegalFlagValueError as error:
        raise UserError(_plain(str(error))) from error
    except (flags.Error, ValueError) as error:  # a ValueError: --noplot=true
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
    candidates = [seqjax_files.expand('flagfile', path)]
    candidates += [file.parent / path for file in within[-1:]]  # beside the flagfile that names it
    if Path(path).parent in (Path('.'), Path('experiments/flags')):  # a path to elsewhere means that place alone
        candidates += [flagfile_folder() / name, flagfile_folder() / f'{name}.flags']
    for candidate in candidates:
        with contextlib.suppress(OSError, ValueError):  # a name that no file can have
            if candidate.is_file():
                return candidate
    known = ', '.join(sorted(file.name for file in flagfile_folder().glob('*.flags')))
    raise UserError(f'flagfile {path!r} is not a file' + (f'; those of the repository: {known}' if known else ''))


def one_line(sentence: str) -> str:
    """As a terminal can show it: what is not printable escaped, and values of more than a few lines cut."""
    plain = ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in sentence)
    return plain if len(plain) <= LONGEST else f'{plain[: LONGEST // 2]} ... {plain[-LONGEST // 2 :]}'
