"""What the flags of an experiment ask for: model, optimizer, compiled run; task and held-out sequences."""

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

# Hochreiter and Schmidhuber (1997) test on as many sequences, and look back at 2,000.
HELD_OUT = 2560
SPLITS = {'validation': 2**32 - 1, 'test': 2**32 - 2}  # seeds of their draws, which no run has
TESTED = 256  # sequences at a time
GATES = {'lstm': 4, 'gru': 3}  # of the recurrent kernel; other cells have at least one


def named(settings: Mapping[str, Any], names: Iterable[str]) -> str:
    """--length=5 --rule=add, for a sentence."""
    return ' '.join(f'--{name}={settings[name]}' for name in names)


def gates(cell: str) -> int:
    """How many gates lie side by side in the recurrent kernel of a cell, at least."""
    return GATES.get(cell.partition('(')[0], 1)


def make_model(spec: ModelSpec, config: ModelConfig, inputs: Arrays | None = None) -> nn.Module:
    """The model that the flags ask for; raises UserError where it cannot be."""
    try:
        return build.build_model(spec, config, inputs)
    except ValueError as error:
        sentence = flag_tables.as_flags(error, flag_tables.flags_of(ModelConfig))
        if not sentence.startswith('--'):
            names = dict.fromkeys(['cell', *seqjax_config.changed(config)])
            together = ' do not go together' if len(names) > 1 else ''
            sentence = f'{named(vars(config), names)}{together}: {sentence}'
        raise UserError(sentence) from error


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """The optimizer that the flags ask for; raises UserError where it cannot be."""
    try:
        return optimizers.make_optimizer(config)
    except ValueError as error:
        raise UserError(f'{named(vars(config), ("schedule", "decay_steps"))}: {error}') from error


def compile_seeds(
    model: nn.Module, task: Task, config: TrainConfig, run: RunConfig, folder: Workdir, steps: int
) -> CompiledRun:
    """Compiles a run of replicas that is evaluated every `config.eval_every` steps.

    A checkpoint stands at an evaluation, so that the metrics since the last one need no place in it.
    """
    eval_every = config.eval_every
    saved = dataclasses.replace(run, checkpoint_every=-(-run.checkpoint_every // eval_every) * eval_every)
    how = {'steps': steps, 'steps_per_call': eval_every, 'num_seeds': config.num_seeds, 'workdir': folder}
    return training.compile_run(model, task, make_optimizer(config), None, **how, **flag_tables.keeping(vars(saved)))


def task_of(problem: SyntheticTask, settings: Settings) -> Task:
    """Returns the task: fresh sequences at every step, or the problem's examples in an order of their own."""
    batch_size = settings.train.batch_size
    if problem.examples is None:
        return Task(problem.loss_fn, lambda data, key, step: problem.sample(key, batch_size))
    examples = problem.examples().train

    def batch(data: tuple[jax.Array, Batch], key: jax.Array, step: jax.Array) -> Batch:
        order, examples = data
        rows, real = windows.epoch_rows(order, step, len(examples.mask), batch_size)
        part = jax.tree.map(lambda x: x[rows], examples)
        return part._replace(mask=part.mask & real.reshape(-1, *[1] * (part.mask.ndim - 1)))

    return Task(problem.loss_fn, batch, (jax.random.key(settings.train.seed), examples))


def unseen(problem: SyntheticTask, split: str) -> Batch:
    """The sequences of a split [N, ...], which no training step draws."""
    if problem.examples is not None:
        return getattr(problem.examples(), split)
    return jax.jit(lambda: problem.sample(jax.random.key(SPLITS[split]), HELD_OUT))()
