"""Tables of flags, built from the classes of `seqjax.config`, and validation of flag values.

The same parsers validate values from the command line (`Command.main`) and from Python (`check`).
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
from absl import flags

from seqjax import config as seqjax_config
from seqjax import options
from seqjax.cli.parsers import (
    BoolParser,
    CacheParser,
    CellParser,
    ChoiceParser,
    FloatParser,
    FractionParser,
    IntParser,
    ListParser,
    MeshParser,
    NameParser,
    PathParser,
    PositiveParser,
    ProcessesParser,
)
from seqjax.config import RunConfig, TrainConfig
from seqjax.errors import UserError
from seqjax.ops.native import library
from seqjax.runs import memory, multihost
from seqjax.training.session import CheckpointConfig


class Flag(NamedTuple):
    """Flag of a command, without its name and default value."""

    parser: flags.ArgumentParser  # parses and validates a value
    help: str  # text in --help
    group: str = ''  # key of the heading in --help, such as train; empty for the command's own flags


class FlagTable(NamedTuple):
    """The flags of a command and their default values, by name."""

    flags: Mapping[str, Flag]
    defaults: Mapping[str, Any]


PARSERS = {  # parsers of the fields whose type, bounds and choices do not determine one
    'cell': CellParser(),
    'mesh': MeshParser(),
    'keep_best': NameParser(),
}


def flags_of(*configs: type, without: Iterable[str] = ()) -> dict[str, Flag]:
    """Returns {name: Flag} for the fields of configuration classes, except those in `without`.

    The flags of ModelConfig, TrainConfig and RunConfig have a heading in --help; flags of another class have none.
    """
    table = {}
    for config in configs:
        group = config.__name__.removesuffix('Config').lower() if config in seqjax_config.CONFIGS else ''
        for field in dataclasses.fields(config):
            if field.name not in without:
                parser = PARSERS.get(field.name) or _parser_of(field)
                table[field.name] = Flag(parser, field.metadata['help'], group)
    return table


def _parser_of(field: dataclasses.Field) -> flags.ArgumentParser:
    """Returns the parser for the type, bounds and choices of a field."""
    bounds, choices = field.metadata['bounds'], field.metadata['choices']
    if choices:
        return ChoiceParser(*choices)
    kind = field.type.removesuffix(' | None')
    if kind == 'int':
        minimum, maximum = bounds
        return IntParser(minimum) if maximum is None else IntParser(minimum, maximum)
    if kind == 'float':
        return {None: FloatParser, seqjax_config.FRACTION: FractionParser, seqjax_config.POSITIVE: PositiveParser}[
            bounds
        ]()
    if kind == 'list[float]':
        return ListParser(FloatParser(), distinct=False)
    return {'bool': BoolParser, 'str': PathParser}[kind]()


def defaults_of(*configs: Any, without: Iterable[str] = ()) -> dict[str, Any]:
    """Returns {name: value} of the fields of configuration instances, except those in `without`."""
    values = {name: value for config in configs for name, value in vars(config).items()}
    return {name: value for name, value in values.items() if name not in without}


def as_flags(message: Any, names: Iterable[str]) -> str:
    """Returns an error message of the library with each NAME=VALUE of the given names written as --NAME=VALUE.

    >>> as_flags('dropout=0.5 does nothing with layers=1', ['dropout', 'layers'])
    '--dropout=0.5 does nothing with --layers=1'
    """
    return re.sub(rf'(?<![\w-])({"|".join(map(re.escape, names))})=', r'--\1=', str(message))


# Flags of every `FixedStepsExperiment`: those from --learning_rate on, in the order of --help.
SHARED = flags_of(TrainConfig, RunConfig)
SHARED = {name: SHARED[name] for name in list(SHARED)[list(SHARED).index('learning_rate') :]}


# Flags of the command line only, not of `run` in Python: JAX needs them before it is initialized.
DISTRIBUTED_FLAGS = {
    'distributed': Flag(
        ProcessesParser(),
        'processes of a distributed run; HOST:PORT is the address of process 0, COUNT the number of processes, INDEX '
        'the index of this process; auto detects them from SLURM, Kubernetes, Cloud TPU or Open MPI',
        'process',
    ),
    'heartbeat_timeout': Flag(
        IntParser(1),
        'seconds after which a distributed run ends if one of its processes does not respond',
        'process',
    ),
}
DISTRIBUTED_DEFAULTS = {'distributed': multihost.OFF, 'heartbeat_timeout': 100}
CACHE_FLAGS = {
    'compilation_cache': Flag(
        CacheParser(),
        'folder of the persistent compilation cache, or off (default: JAX_COMPILATION_CACHE_DIR, or seqjax/jax in the '
        'user cache, XDG_CACHE_HOME or ~/.cache, limited to 1 GB)',
        'process',
    ),
    'native': Flag(
        ChoiceParser(*library.CHOICES),
        'native kernels of the LSTM and the GRU on a CPU: if a C++ compiler can build them, off, or require them '
        f'(default: {library.VARIABLE}, or {library.AUTO})',
        'process',
    ),
}


def check(table: Mapping[str, Flag], values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {name: parsed value} of all flags of `table`; None is not parsed if it is the default of the flag.

    Raises:
      UserError: a value is invalid. The message names the flag and the value.
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
    """Raises UserError if a name in `values` is not a flag of `table`."""
    for name in values:
        if name not in table:
            raise UserError(unknown_flag(name, table))


def checkpoint_kwargs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments `checkpoints` and `devices` of `compile_run`, from flag values."""
    checkpoints = CheckpointConfig(settings['checkpoint_every'], settings['max_to_keep'], settings['keep_best'])
    return {'checkpoints': checkpoints, 'devices': settings['mesh']}


def matmul_precision(word: str) -> contextlib.AbstractContextManager[None]:
    """Returns a context manager that sets JAX's precision of matrix products; 'default' keeps JAX's setting."""
    return contextlib.nullcontext() if word == 'default' else jax.default_matmul_precision(word)


def check_seeds(seed: int, num_seeds: int | None, num_sets: int = 1) -> None:
    """Raises UserError if the last of `num_sets * num_seeds` consecutive seeds from `seed` on is 2**32 or more."""
    last = seed + num_sets * (num_seeds or 1) - 1
    if last >= 2**32:
        raise UserError(
            f'--seed={seed} with --num_seeds={num_seeds}: the last seed is {last}, but must be below {2**32}; use a '
            'smaller --seed'
        )


def check_eval_every(eval_every: int, name: str, steps: int) -> None:
    """Raises UserError if `eval_every` is greater than `steps`, the value of --`name`: no evaluation would be made."""
    if eval_every > steps:
        raise UserError(
            f'--eval_every={eval_every} is greater than --{name}={steps}: the run would have no evaluation; decrease '
            '--eval_every'
        )


def check_memory(numbers: int, sizes: Mapping[str, Any]) -> None:
    """Raises UserError if `numbers` float32 values exceed the memory of this machine; the message shows `sizes`."""
    memory.check_bytes(memory.named_sizes(sizes), 4 * numbers)


def unknown_flag(name: str, table: Mapping[str, Flag]) -> str:
    """Returns the message that --`name` is unknown, with the most similar flag of `table` if there is one."""
    words = (name, name.removeprefix('no'))
    suggestion = next(filter(None, (options.nearest(word, table, '--{}'.format) for word in words)), '')
    return f'unknown flag --{name}{suggestion or "; --help lists the flags"}'
