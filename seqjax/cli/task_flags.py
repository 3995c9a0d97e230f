"""The flags of a synthetic task: the arguments of the function that makes it."""

import inspect
import re
import typing
from collections.abc import Callable
from typing import Any

from absl import flags

from seqjax import config
from seqjax.cli import flag_tables
from seqjax.cli.flag_tables import Flag
from seqjax.cli.parsers import Choice, Number, Switch, Whole
from seqjax.config import ModelConfig, RunConfig, TrainConfig
from seqjax.errors import UserError
from seqjax.tasks.synthetic import SyntheticTask

# Fields of the configurations that are of no use to a synthetic task.
OTHERS = ('input_dropout', 'output_dropout', 'recurrent_dropout', 'drop_connect', 'patience', 'refit', 'weight_decay')
OTHERS += ('steps_per_call',)
FLAGS = flag_tables.flags_of(*config.CONFIGS, without=OTHERS)
DEFAULTS = flag_tables.defaults_of(ModelConfig(), TrainConfig(), RunConfig(), without=OTHERS)
# Names of flags that every command has, and of absl's own.
RESERVED = {'task', *flag_tables.flags_of(*config.CONFIGS), *flag_tables.TOGETHER, *flag_tables.KEPT}
RESERVED |= {'flagfile', 'undefok', 'help', 'helpfull', 'helpshort', 'h'}


def options_of(make: Callable[..., SyntheticTask]) -> tuple[dict[str, Flag], dict[str, Any]]:
    """The flags of a problem and their defaults.

    Raises UserError where an argument has no default, a type that no flag has, or the name of a flag of the command.
    """
    table, defaults, types = {}, {}, typing.get_type_hints(make)
    for name, parameter in inspect.signature(make).parameters.items():
        who = f'{getattr(make, "__qualname__", make)}({name}=...)'
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(f'{who} cannot be passed by its name: its arguments are flags')
        if parameter.default is parameter.empty:
            raise UserError(f'{who} needs a default: its arguments are flags')
        if name in RESERVED:
            raise UserError(f'{who} is the name of a flag of every task: its arguments are flags')
        parser = _parser(types.get(name))
        if parser is None:
            raise UserError(
                f'{who} of type {types.get(name, "none")} is no flag: its arguments are int, float, bool or Literal of '
                'texts'
            )
        try:
            default = parser.parse(parameter.default)
        except ValueError as error:
            raise UserError(f'{who}: its default {parameter.default!r} {error}') from error
        table[name], defaults[name] = Flag(parser, _help(make, name)), default
    return table, defaults


def _parser(kind: Any) -> flags.ArgumentParser | None:
    words = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    if words:
        return Choice(*words) if all(isinstance(word, str) for word in words) else None
    return {int: Whole(0), float: Number(), bool: Switch()}.get(kind) if isinstance(kind, type) else None


def _help(make: Callable[..., SyntheticTask], name: str) -> str:
    """What the docstring says of an argument."""
    found = re.search(rf'^( +){name}: (.+(?:\n\1 +.+)*)', inspect.getdoc(make) or '', re.MULTILINE)
    return ' '.join(found[2].split()).rstrip('.') if found else 'of the task'
