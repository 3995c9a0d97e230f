"""Flags of a synthetic task: the arguments of the function that returns it, and the flags of all tasks."""

import inspect
import re
import typing
from collections.abc import Callable
from typing import Any

from absl import flags

from seqjax import config
from seqjax.cli import flag_tables
from seqjax.cli.flag_tables import Flag
from seqjax.cli.parsers import BoolParser, ChoiceParser, FloatParser, IntParser
from seqjax.config import ModelConfig, RunConfig, TrainConfig
from seqjax.errors import UserError
from seqjax.tasks.synthetic import SyntheticTask

# Configuration fields that do not apply to synthetic tasks.
UNUSED = ('input_dropout', 'output_dropout', 'recurrent_dropout', 'drop_connect', 'patience', 'refit', 'weight_decay')
UNUSED += ('steps_per_call',)
FLAGS = flag_tables.flags_of(*config.CONFIGS, without=UNUSED)
DEFAULTS = flag_tables.defaults_of(ModelConfig(), TrainConfig(), RunConfig(), without=UNUSED)
# Names that an argument of a task cannot have: the flags of every task, and absl's flags.
RESERVED = {'task', *flag_tables.flags_of(*config.CONFIGS), *flag_tables.DISTRIBUTED_FLAGS, *flag_tables.CACHE_FLAGS}
RESERVED |= {'flagfile', 'undefok', 'help', 'helpfull', 'helpshort', 'h'}


def options_of(make: Callable[..., SyntheticTask]) -> tuple[dict[str, Flag], dict[str, Any]]:
    """Returns the flags and the default values for the arguments of `make`, the function that returns a task.

    Raises:
      UserError: an argument has no default, an invalid default, an unsupported type, or the name of another flag; or it
        is positional-only, *args or **kwargs.
    """
    table, defaults, types = {}, {}, typing.get_type_hints(make)
    for name, parameter in inspect.signature(make).parameters.items():
        argument = f'{getattr(make, "__qualname__", make)}({name}=...)'
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(
                f'{argument} must be a keyword argument, not *args, **kwargs or positional-only: it becomes a flag'
            )
        if parameter.default is parameter.empty:
            raise UserError(f'{argument} needs a default value in the signature, because it becomes a flag')
        if name in RESERVED:
            raise UserError(f'{argument} has the name of a flag of every task; rename the argument')
        parser = _parser(types.get(name))
        if parser is None:
            raise UserError(
                f'{argument} has the unsupported type {types.get(name, "(no annotation)")}; use int, float, bool or '
                'Literal of strings'
            )
        try:
            default = parser.parse(parameter.default)
        except ValueError as error:
            raise UserError(f'{argument}: the default {parameter.default!r} {error}') from error
        table[name], defaults[name] = Flag(parser, _help(make, name)), default
    return table, defaults


def _parser(kind: Any) -> flags.ArgumentParser | None:
    """Returns the flag parser for a type: int, float, bool or Literal of strings; None for other types."""
    words = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    if words:
        return ChoiceParser(*words) if all(isinstance(word, str) for word in words) else None
    return {int: IntParser(0), float: FloatParser(), bool: BoolParser()}.get(kind) if isinstance(kind, type) else None


def _help(make: Callable[..., SyntheticTask], name: str) -> str:
    """Returns the help of an argument from the docstring of `make`; a fixed text if it is not described there."""
    match = re.search(rf'^( +){name}: (.+(?:\n\1 +.+)*)', inspect.getdoc(make) or '', re.MULTILINE)
    return ' '.join(match[2].split()).rstrip('.') if match else 'argument of the task'
