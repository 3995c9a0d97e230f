"""The settings of a model and of its training, each with its default, its bounds and a line of help.

Commands make their flags of these classes, so an option is written down once: here.
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
    """A field of a configuration.

    Args:
      default: its default.
      help: what it is, for --help.
      bounds: FRACTION or POSITIVE of a float, (least, most) of an int, PATH of a text.
      choices: all values that a text may have; any where there are none.
    """
    return dataclasses.field(default=default, metadata={'help': help, 'bounds': bounds, 'choices': choices})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The recurrent model of a run, see `seqjax.nn.build.build_model`."""

    cell: str = option('lstm', 'the recurrent cell')
    hidden: int = option(32, 'units of a layer', (1, None))
    layers: int = option(1, 'recurrent layers', (1, 100))
    bidirectional: bool = option(False, 'read in both directions')
    dropout: float = option(0.0, 'share of values that is dropped between two layers', FRACTION)
    input_dropout: float = option(0.0, 'share of the values that the first layer reads that is dropped', FRACTION)
    output_dropout: float = option(0.0, 'share of the values that the head reads that is dropped', FRACTION)
    recurrent_dropout: float = option(
        0.0, 'share of the hidden state that is dropped, the same units at every step', FRACTION
    )
    drop_connect: float = option(0.0, 'share of the recurrent kernel that is dropped, the same for all steps', FRACTION)
    forget_bias_init: str = option(
        'default',
        'how the gate that keeps begins: constant at a bias of 1; chrono so that units keep for 1 step up to the '
        "longest sequence; uniform spread evenly; default is the cell's own",
        choices=('default', *GATE_BIAS_NAMES),
    )
    parallel: bool = option(False, 'take all steps at once, for cells whose recurrence is linear')
    attention: str = option(
        'none', 'how a decoder looks back at its source, where sequences are written', choices=ATTENTIONS
    )
    scheduled_sampling: float = option(0.0, 'share of tokens that a decoder reads of its own in training', FRACTION)

    @property
    def title(self) -> str:
        """Its cell and its size, as in lstm(32)."""
        return f'{self.cell}({self.hidden})'


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training of the seeds of a run."""

    batch_size: int = option(16, 'sequences in a training step', (1, None))
    steps: int = option(6250, 'training steps at most', (1, None))
    eval_every: int | None = option(
        None,
        'steps between two evaluations; by default as the task has it, of a dataset an epoch or 500, if that is less; '
        'never more than --steps',
        (1, None),
    )
    success_threshold: float | None = option(
        None, "a seed has solved the task where an evaluation's mean is at most this; by default as the task has it"
    )
    train_all_steps: bool = option(False, 'train all --steps, also where the task is solved')
    split: str = option(
        'validation',
        'the unseen sequences that a seed is tested on: choose settings by validation, and report test',
        choices=SPLITS,
    )
    patience: int = option(10, 'evaluations without a lower validation loss after which a seed is done', (1, None))
    refit: bool = option(
        False,
        'once the steps of the best evaluation are known, train anew for as many, the median of the seeds, with the '
        'validation split in what is trained on',
    )
    weight_decay: float = option(
        0.0, 'share of every parameter, times the learning rate, that each step takes off it', FRACTION
    )
    schedule: str = option('constant', 'of the learning rate', choices=SCHEDULES)
    decay_steps: int | None = option(None, 'steps until --schedule=cosine is at 0', (1, None))
    clip_norm: float | None = option(None, 'gradients beyond this norm are scaled down to it', POSITIVE)
    learning_rate: float = option(3e-3, "Adam's step size", POSITIVE)
    adam_epsilon: float = option(1e-7, "Adam's epsilon, where Keras puts it: before the bias correction", POSITIVE)
    seed: int = option(0, 'decides every random number; the first seed with --num_seeds', (0, 2**32 - 1))
    num_seeds: int | None = option(10, 'train this many seeds side by side: --seed and those that follow', (1, None))
    matmul_precision: str = option(
        'default',
        "of matrix products, in JAX's words: by default a TPU takes bfloat16 and a recent GPU TensorFloat-32; highest "
        'is float32, high lies between; a CPU has float32 always',
        choices=PRECISIONS,
    )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where a run is kept, and where it is computed; nothing here changes what is computed."""

    workdir: str | None = option(None, 'the run directory; by default one in runs/ for each set of flags', PATH)
    overwrite: bool = option(False, 'replace the results that --workdir holds')
    plot: bool = option(True, 'draw curve.png (needs matplotlib, the extra "plots")')
    mesh: str | None = option(
        None,
        'devices, and how they are used: data:N divides the rows of a batch, or replicas, among N of them; '
        'data:N,model:M the columns of the weights among M, too. By default all, where that is useful',
    )
    checkpoint_every: int = option(1000, 'steps between two checkpoints; there is one at the end, too', (1, None))
    max_to_keep: int = option(2, 'how many of the newest checkpoints stay', (1, None))
    keep_best: str | None = option(
        None,
        'keep the checkpoint with the lowest value of this metric, too, or with max:NAME the highest; the median of '
        'replicas decides',
    )
    steps_per_call: int = option(
        100, 'steps on the device between two visits of the host; changes no number', (1, None)
    )


CONFIGS = (ModelConfig, TrainConfig, RunConfig)


def changed(config: Any) -> list[str]:
    """The names of the fields whose values are not their defaults."""
    fields = dataclasses.fields(config)
    return [field.name for field in fields if getattr(config, field.name) != field.default]
