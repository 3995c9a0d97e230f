"""Construction of models, optimizers, compiled runs, training tasks and test data from settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import optax

from seqjax import config as seqjax_config
from seqjax import training
from seqjax.cli import flag_tables
from seqjax.cli.settings import Settings
from seqjax.config import ModelConfig, RunConfig, TrainConfig
from seqjax.errors import UserError
from seqjax.nn import build
from seqjax.ops import windows
from seqjax.runs.directory import Workdir
from seqjax.tasks.synthetic import SyntheticTask
from seqjax.training import optimizers
from seqjax.training.compiled_run import CompiledRun
from seqjax.types import Arrays, Batch, ModelSpec, Task

NUM_EVAL_SEQUENCES = 2560  # size of a sampled held-out split, as in Hochreiter and Schmidhuber (1997)
SPLITS = {'validation': 2**32 - 1, 'test': 2**32 - 2}  # random seeds from which held-out sequences are drawn
TEST_BATCH_SIZE = 256
GATES = {'lstm': 4, 'gru': 3}  # gates of the recurrent kernel; other cells have at least one


def format_flags(settings: Mapping[str, Any], names: Iterable[str]) -> str:
    """Returns the flags `names` as on the command line, such as --length=5 --rule=add."""
    return ' '.join(f'--{name}={settings[name]}' for name in names)


def gates(cell: str) -> int:
    """Returns a lower bound of the number of gates in the recurrent kernel of a cell."""
    return GATES.get(cell.partition('(')[0], 1)


def make_model(spec: ModelSpec, config: ModelConfig, inputs: Arrays | None = None) -> nn.Module:
    """Returns the model for a spec and a configuration; raises UserError, in terms of flags, if invalid."""
    try:
        return build.build_model(spec, config, inputs)
    except ValueError as error:
        message = flag_tables.as_flags(error, flag_tables.flags_of(ModelConfig))
        if not message.startswith('--'):
            names = dict.fromkeys(['cell', *seqjax_config.changed(config)])
            conflict = ' are incompatible' if len(names) > 1 else ''
            message = f'{format_flags(vars(config), names)}{conflict}: {message}'
        raise UserError(message) from error


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Returns the optimizer of a configuration; raises UserError if it is invalid."""
    try:
        return optimizers.make_optimizer(config)
    except ValueError as error:
        raise UserError(f'{format_flags(vars(config), ("schedule", "decay_steps"))}: {error}') from error


def compile_seeds(
    model: nn.Module, task: Task, config: TrainConfig, run: RunConfig, folder: Workdir, steps: int
) -> CompiledRun:
    """Compiles a run of `config.num_seeds` replicas for `steps` training steps, `config.eval_every` per device call.

    `run.checkpoint_every` is rounded up to a multiple of `config.eval_every`, so that checkpoints are saved at
    evaluations and need not contain the metrics since the last evaluation.
    """
    eval_every = config.eval_every
    run = dataclasses.replace(run, checkpoint_every=-(-run.checkpoint_every // eval_every) * eval_every)
    options = {'steps': steps, 'steps_per_call': eval_every, 'num_seeds': config.num_seeds, 'workdir': folder}
    return training.compile_run(
        model, task, make_optimizer(config), None, **options, **flag_tables.checkpoint_kwargs(vars(run))
    )


def make_training_task(task: SyntheticTask, settings: Settings) -> Task:
    """Returns the training task, whose batches are newly sampled at every training step.

    If the task has a finite set of examples, batches are its training examples, in a new random order in every epoch.
    """
    batch_size = settings.train.batch_size
    if task.examples is None:
        return Task(task.loss_fn, lambda data, key, step: task.sample(key, batch_size))
    examples = task.examples().train

    def batch(data: tuple[jax.Array, Batch], key: jax.Array, step: jax.Array) -> Batch:
        order, examples = data
        rows, valid = windows.epoch_rows(order, step, len(examples.mask), batch_size)
        batch = jax.tree.map(lambda x: x[rows], examples)
        return batch._replace(mask=batch.mask & valid.reshape(-1, *[1] * (batch.mask.ndim - 1)))

    return Task(task.loss_fn, batch, (jax.random.key(settings.train.seed), examples))


def held_out_batch(task: SyntheticTask, split: str) -> Batch:
    """Returns the held-out sequences of `split`, leaves [N, ...]: examples of the task, or else sampled sequences."""
    if task.examples is not None:
        return getattr(task.examples(), split)
    return jax.jit(lambda: task.sample(jax.random.key(SPLITS[split]), NUM_EVAL_SEQUENCES))()
