"""Parsing of the command line and of flagfiles with absl."""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from seqjax import files as seqjax_files
from seqjax.cli import flag_tables, registry
from seqjax.cli.flag_tables import Flag
from seqjax.cli.parsers import BoolParser, GridParser, PathParser
from seqjax.errors import UserError

MAX_MESSAGE = 1000  # characters of an error message; a longer one loses its middle


def flagfile_folder() -> Path:
    """Returns the folder experiments/flags of the repository; it does not exist if seqjax is installed as a wheel."""
    return next(iter(registry.folders('experiments')), Path('experiments')) / 'flags'


def define(table: Mapping[str, Flag], defaults: Mapping[str, Any]) -> flags.FlagValues:
    """Returns new absl FlagValues with the flags of a table and their defaults; absl's global flags do not change."""
    values = flags.FlagValues()
    for name, flag in table.items():
        if isinstance(flag.parser, GridParser):
            flags.DEFINE_multi(flag.parser, flags.ArgumentSerializer(), name, None, flag.help, flag_values=values)
        elif isinstance(flag.parser, BoolParser):
            flags.DEFINE_boolean(name, defaults[name], flag.help, flag_values=values)
            values[name].parser = flag.parser  # absl's own parser has no error message
        else:
            flags.DEFINE(flag.parser, name, defaults[name], flag.help, flag_values=values)
    return values


def parse(table: Mapping[str, Flag], defaults: Mapping[str, Any], argv: list[str]) -> dict[str, Any]:
    """Returns {name: value} of every flag in `table`; raises UserError if a flag, a value or a flagfile is invalid.

    A single word that belongs to no flag is the value of --data, if `table` has --data and it is not set.

    Args:
      table: flags by name.
      defaults: default value of each flag.
      argv: arguments without the program's name.
    """
    try:
        values = define(table, defaults)
        values.set_gnu_getopt(True)
        words = values(['', *expand_flagfiles(argv)])[1:]
        if len(words) == 1 and 'data' in table and values['data'].value is None:
            values['data'].value = table['data'].parser.parse(words.pop())
    except flags.UnrecognizedFlagError as error:
        raise UserError(flag_tables.unknown_flag(error.flagname, table)) from error
    except flags.IllegalFlagValueError as error:
        raise UserError(_plain(str(error))) from error
    except (flags.Error, ValueError) as error:  # a ValueError: --noplot=true
        raise UserError(f'{_plain(str(error))}; --help lists the flags') from error
    if words:
        raise UserError(f'{words[0]!r} is not a flag; {_suggestion(words[0], table)}')
    return {name: values[name].value for name in table}


def _suggestion(word: str, table: Mapping[str, Flag]) -> str:
    """Returns the end of a message about a word that is not a flag: how to pass a flagfile, a file or a flag."""
    if word.endswith('.flags'):
        return f'use --flagfile={word} to read a flagfile'
    files = [name for name, flag in table.items() if isinstance(flag.parser, PathParser) and flag.parser.kind == 'file']
    names = [name for name in files if name == 'data'] or files
    usage = f'use {" or ".join(f"--{name}=FILE" for name in names)} for a file, and ' if names else 'use '
    return f'{usage}--NAME=VALUE for a flag (--help lists the flags)'


def _plain(message: str) -> str:
    """Returns an error message of absl as one line, without the word 'flag ' at its start."""
    return ' '.join(message.split()).removeprefix('flag ').replace(': must be', ' must be')


def expand_flagfiles(argv: Iterable[str], parents: tuple[Path, ...] = ()) -> list[str]:
    """Returns `argv` with each --flagfile replaced by the lines of its file, recursively, without comments.

    The value of --flagfile is a path, or the name of a file in experiments/flags, with or without .flags.

    Args:
      argv: arguments of the command line, or lines of a flagfile.
      parents: the flagfiles that include these lines, from outside to inside.

    Raises:
      UserError: a flagfile does not exist, cannot be read, or includes itself.
    """
    expanded = []
    words = iter(argv)
    for word in words:
        name, equals, path = word.partition('=')
        if name not in ('--flagfile', '-flagfile'):
            expanded.append(word)
            continue
        if not equals:
            path = next(words, '')
        file = _find_flagfile(path, parents)
        if file in parents:
            raise UserError(
                f'flagfile {path!r} includes itself, directly or by another flagfile; remove the line --flagfile={path}'
            )
        lines = [line.strip() for line in _read_flagfile(path, file).split('\n')]
        lines = [line for line in lines if line and not line.startswith(('#', '//'))]
        expanded += expand_flagfiles(lines, (*parents, file))
    return expanded


def peek(argv: Iterable[str], name: str, default: str) -> str:
    """Returns the last value of --`name` in `argv` and its flagfiles as text; `default` if the flag is not set.

    For use before all flags are parsed. If a flagfile is invalid, the result is `default`; `parse` reports the error.
    """
    value, words = default, []
    with contextlib.suppress(UserError):
        words = expand_flagfiles(argv)
    for word, following in zip(words, [*words, default][1:], strict=True):
        flag, equals, text = word.partition('=')
        if flag in (f'--{name}', f'-{name}'):
            value = text if equals else following
    return value


def _read_flagfile(path: str, file: Path) -> str:
    """Returns the text of a flagfile; raises UserError if it cannot be read or is not UTF-8."""
    try:
        text = file.read_text(encoding='utf-8-sig')  # some editors write a byte-order mark
    except OSError as error:
        raise UserError(f'flagfile {path!r} cannot be read: {error.strerror or error}; use another file') from error
    except UnicodeDecodeError:
        text = '\0'
    if '\0' in text:  # UTF-16 text contains null bytes
        raise UserError(f'flagfile {path!r} is not UTF-8 text; save it as UTF-8, with one --NAME=VALUE per line')
    return text


def _find_flagfile(path: str, parents: tuple[Path, ...] = ()) -> Path:
    """Returns the path of the flagfile `path`; raises UserError if it does not exist.

    It is looked up in the current folder, next to the flagfile that includes it and, if `path` has no folder, in
    experiments/flags, also as `path`.flags.
    """
    name = Path(path).name
    candidates = [seqjax_files.expand('flagfile', path)]
    candidates += [file.parent / path for file in parents[-1:]]  # relative to the flagfile that includes it
    if Path(path).parent in (Path('.'), Path('experiments/flags')):  # not for a path to another folder
        candidates += [flagfile_folder() / name, flagfile_folder() / f'{name}.flags']
    for candidate in candidates:
        with contextlib.suppress(OSError, ValueError):  # the name may not be a valid file name
            if candidate.is_file():
                return candidate
    known = ', '.join(sorted(file.name for file in flagfile_folder().glob('*.flags')))
    raise UserError(
        f'flagfile {path!r} does not exist; correct the path'
        + (f', or use a flagfile of the repository: {known}' if known else '')
    )


def one_line(sentence: str) -> str:
    """Returns a message with unprintable characters escaped; of more than MAX_MESSAGE characters, the middle is cut."""
    plain = ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in sentence)
    return plain if len(plain) <= MAX_MESSAGE else f'{plain[: MAX_MESSAGE // 2]} ... {plain[-MAX_MESSAGE // 2 :]}'
