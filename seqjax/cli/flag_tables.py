"""Tables of flags, made of configurations, and checks of their values.

Values go through the parsers from either side: the command line by `Command.main`, Python and notebooks by `check`.
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
    Cache,
    CellName,
    Choice,
    Fraction,
    MeshParser,
    Name,
    Number,
    Others,
    Place,
    Positive,
    Switch,
    Whole,
)
from seqjax.config import RunConfig, TrainConfig
from seqjax.errors import UserError
from seqjax.runs import memory, multihost
from seqjax.training.session import CheckpointConfig


class Flag(NamedTuple):
    parser: flags.ArgumentParser
    help: str
    group: str = ''  # of --help; the command's own flags have none


class FlagTable(NamedTuple):
    """The flags of a command."""

    flags: Mapping[str, Flag]
    defaults: Mapping[str, Any]


PARSERS = {  # of fields that their type and bounds alone do not tell
    'cell': CellName(),
    'mesh': MeshParser(),
    'keep_best': Name(),
}


def flags_of(*configs: type, without: Iterable[str] = ()) -> dict[str, Flag]:
    """The flags of the fields of configurations, see `seqjax.config`; those of a task's own class have no group."""
    found = {}
    for config in configs:
        group = config.__name__.removesuffix('Config').lower() if config in seqjax_config.CONFIGS else ''
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
        return {None: Number, seqjax_config.FRACTION: Fraction, seqjax_config.POSITIVE: Positive}[bounds]()
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
    'heartbeat_timeout': Flag(Whole(1), 'seconds after which a process that is not heard of ends the run', 'process'),
}
ALONE = {'distributed': multihost.OFF, 'heartbeat_timeout': 100}
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

    Raises UserError where a value is refused; the sentence names the flag and the value.
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
    checkpoints = CheckpointConfig(settings['checkpoint_every'], settings['max_to_keep'], settings['keep_best'])
    return {'checkpoints': checkpoints, 'devices': settings['mesh']}


def matmul_precision(word: str) -> contextlib.AbstractContextManager[None]:
    """What is traced within has products of that precision; 'default' leaves JAX's own setting as it is."""
    return contextlib.nullcontext() if word == 'default' else jax.default_matmul_precision(word)


def check_seeds(seed: int, num_seeds: int | None, sets: int = 1) -> None:
    """Raises UserError where the last of the seeds is no 32-bit number."""
    last = seed + sets * (num_seeds or 1) - 1
    if last >= 2**32:
        raise UserError(
            f'--seed={seed} with --num_seeds={num_seeds} ends at seed {last}; the last must be below {2**32}'
        )


def check_every(eval_every: int, name: str, steps: int) -> None:
    """Raises UserError where nothing would ever be looked at."""
    if eval_every > steps:
        raise UserError(
            f'--eval_every={eval_every} is more than --{name}={steps}, so nothing would be looked at; choose fewer'
        )


def check_memory(numbers: int, sizes: Mapping[str, Any]) -> None:
    """Raises UserError where a run of so many float32 numbers cannot fit this machine's memory."""
    memory.check_bytes(memory.named_sizes(sizes), 4 * numbers)


def unknown(name: str, table: Mapping[str, Flag]) -> str:
    words = (name, name.removeprefix('no'))
    near = next(filter(None, (options.nearest(word, table, '--{}'.format) for word in words)), '')
    return f'unknown flag --{name}{near or "; --help lists the flags"}'
