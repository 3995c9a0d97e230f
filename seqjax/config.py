"""Configuration of models, training and runs: defaults, bounds and help texts.

Commands derive their flags from these classes, so each option is defined once, here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

FRACTION = 'from 0 to below 1'
POSITIVE = 'positive'
PATH = 'path'
SPLITS = ('validation', 'test')
ATTENTIONS = ('none', 'additive', 'dot', 'general')
GATE_BIAS_NAMES = ('constant', 'chrono', 'uniform')  # `seqjax.nn.initializers` has their classes
SCHEDULES = ('constant', 'cosine')
PRECISIONS = ('default', 'high', 'highest')


def option(default: Any, help: str, bounds: Any = None, choices: tuple[str, ...] = ()) -> Any:
    """Returns a dataclass field; its metadata defines the command-line flag of the same name.

    Args:
      default: default value.
      help: help text of the flag.
      bounds: FRACTION, POSITIVE or None (any value) for a float; (min, max) for an int, max None for no upper bound;
        PATH for a str.
      choices: allowed values of a str; empty if every str is allowed.
    """
    return dataclasses.field(default=default, metadata={'help': help, 'bounds': bounds, 'choices': choices})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Options of the recurrent model, see `seqjax.nn.build.build_model`."""

    cell: str = option(
        'lstm', "recurrent cell, with options in parentheses, as in 'lstm(peepholes=True)', or MODULE:CLASS"
    )
    hidden: int = option(32, 'number of units per recurrent layer', (1, None))
    layers: int = option(1, 'number of recurrent layers', (1, 100))
    bidirectional: bool = option(
        False, 'run each recurrent layer in both directions, for tasks that do not predict the next step'
    )
    dropout: float = option(0.0, 'fraction of values dropped between recurrent layers', FRACTION)
    input_dropout: float = option(0.0, 'fraction of values dropped before the first recurrent layer', FRACTION)
    output_dropout: float = option(0.0, 'fraction of values dropped before the head', FRACTION)
    recurrent_dropout: float = option(
        0.0, 'fraction of the hidden state dropped, with one mask for all time steps', FRACTION
    )
    drop_connect: float = option(
        0.0, 'fraction of the recurrent kernel dropped, with one mask for all time steps', FRACTION
    )
    forget_bias_init: str = option(
        'default',
        "initialization of the forget gate bias: constant (1), chrono (memory spans from 1 step to the sequence's "
        "length), uniform (gate values uniform in 0 to 1), default (the cell's own)",
        choices=('default', *GATE_BIAS_NAMES),
    )
    parallel: bool = option(False, 'compute all time steps by a parallel scan, for cells with a linear recurrence')
    attention: str = option('none', 'attention of the decoder, for encoder-decoder models', choices=ATTENTIONS)
    scheduled_sampling: float = option(
        0.0,
        "fraction of target tokens replaced by the decoder's own predictions in training; 0 is teacher forcing",
        FRACTION,
    )

    @property
    def title(self) -> str:
        """Cell and number of units per layer as text, such as lstm(32)."""
        return f'{self.cell}({self.hidden})'


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Options of training: batches, steps, early stopping, optimizer and seeds."""

    batch_size: int = option(16, 'number of sequences per training step', (1, None))
    steps: int = option(6250, 'maximal number of training steps', (1, None))
    eval_every: int | None = option(
        None,
        "training steps between evaluations (default: the task's own value, for datasets one epoch, at most 500)",
        (1, None),
    )
    success_threshold: float | None = option(
        None,
        "success criterion: a seed succeeds if its metric is at most this value (default: the task's own)",
    )
    train_all_steps: bool = option(False, 'train all --steps, even if the task is solved earlier')
    split: str = option(
        'validation',
        'held-out split of the final evaluation: validation to choose settings, test for reported results; it changes '
        'only the sequences of that evaluation, the training of a seed is the same',
        choices=SPLITS,
    )
    patience: int = option(
        10, 'evaluations without improvement of the validation loss before early stopping', (1, None)
    )
    refit: bool = option(
        False,
        'after early stopping, train again on the training and validation splits for the median number of steps of the '
        'best evaluations',
    )
    weight_decay: float = option(0.0, 'decoupled weight decay (AdamW), multiplied by the learning rate', FRACTION)
    schedule: str = option('constant', 'learning rate schedule; cosine needs --decay_steps', choices=SCHEDULES)
    decay_steps: int | None = option(
        None,
        'training steps until the learning rate of --schedule=cosine, which needs this flag, reaches 0 and stays there',
        (1, None),
    )
    clip_norm: float | None = option(
        None, 'maximal global norm of the gradients, for gradient clipping (default: no clipping)', POSITIVE
    )
    learning_rate: float = option(3e-3, 'learning rate of Adam', POSITIVE)
    adam_epsilon: float = option(1e-7, 'epsilon of Adam, added before the bias correction as in Keras', POSITIVE)
    seed: int = option(0, 'random seed; with --num_seeds the first of the seeds', (0, 2**32 - 1))
    num_seeds: int | None = option(10, 'number of consecutive seeds to train, starting at --seed', (1, None))
    matmul_precision: str = option(
        'default',
        'precision of matrix products in JAX: default (bfloat16 on TPUs, TensorFloat-32 on recent GPUs), high, highest '
        '(float32); CPUs always use float32',
        choices=PRECISIONS,
    )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Options of files and devices; none of them changes results, except for rounding."""

    workdir: str | None = option(None, 'run directory (default: one in runs/ for each set of flags)', PATH)
    overwrite: bool = option(False, 'replace the results in --workdir')
    plot: bool = option(True, 'draw curve.png (needs matplotlib, the extra "plots")')
    mesh: str | None = option(
        None,
        'device mesh: data:N for data parallelism (the batch or the seeds are sharded over N devices), '
        'data:N,model:M to shard the weights over M devices as well (default: all devices, where that is faster)',
    )
    checkpoint_every: int = option(
        1000,
        'training steps between checkpoints, which some commands round up to a multiple of --eval_every; a last one is '
        'saved at the end',
        (1, None),
    )
    max_to_keep: int = option(2, 'number of latest checkpoints to keep', (1, None))
    keep_best: str | None = option(
        None,
        'also keep the checkpoint with the lowest median over seeds of the metric NAME, or the highest: max:NAME',
    )
    steps_per_call: int = option(
        100, 'training steps compiled into one device call; does not change results', (1, None)
    )


CONFIGS = (ModelConfig, TrainConfig, RunConfig)


def changed(config: Any) -> list[str]:
    """Returns the names of the fields of a configuration whose values differ from their defaults."""
    fields = dataclasses.fields(config)
    return [field.name for field in fields if getattr(config, field.name) != field.default]
