"""Types shared by tasks, models and training.

Data flow: flags -> Task and model -> TrainState -> scan of training steps -> metrics of a chunk -> run -> report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Arrays = Any  # a pytree of arrays
Params = Any  # the 'params' collection of a Flax module
Variables = Mapping[str, Arrays]  # the other collections of a Flax module, by name

CARRY = 'carry'  # Flax collection of a stateful model's carries, leaves [B, ...]


class Sequences(NamedTuple):
    """Sequences with optional lengths, mask and resets; a plain tuple (values, lengths) is accepted too."""

    values: jax.Array  # [B, T, F], or tokens [B, T]
    seq_lengths: jax.Array | None = None  # [B] integers, number of valid steps of each row
    mask: jax.Array | None = None  # [B, T] bool, True at valid steps
    resets: jax.Array | None = None  # [B, T] bool, True at steps before which the carry is reset


class Batch(NamedTuple):
    """Batch of a training step or an evaluation."""

    inputs: Arrays  # [B, T, F], tokens [B, T], or Sequences: the argument of the model
    targets: Arrays  # [B, T, ...] or [B, ...]
    mask: jax.Array  # [B, T] or [B] bool, True at targets that count


class Mean(NamedTuple):
    """Mean as total and count, so that means of batches can be merged.

    >>> halves = Mean(jnp.array(6.0), jnp.array(3.0)).merge(Mean(jnp.array(2.0), jnp.array(1.0)))
    >>> float(halves.compute())
    2.0
    """

    total: jax.Array  # sum of the values
    count: jax.Array  # type: ignore[assignment]  # number of the values

    def merge(self, other: Mean) -> Mean:
        """Returns the mean over the values of both. (`+` would concatenate the tuples.)"""
        return Mean(self.total + other.total, self.count + other.count)

    def compute(self) -> jax.Array:
        """Returns total / count; 0 with gradient 0 if count is 0."""
        return jnp.where(self.count > 0, self.total / jnp.maximum(self.count, 1), 0.0)


Metrics = dict[str, Mean]


class EarlyStopping(NamedTuple):
    """Early-stopping configuration: monitored metric (lower is better) and patience."""

    eval_every: int  # training steps between evaluations
    patience: int  # evaluations without improvement before stopping
    split: str = 'validation'
    metric: str = 'loss'


class Task(NamedTuple):
    """Task that a model is trained on: batches, loss and evaluation splits, without the model."""

    loss: Callable[[Arrays, Batch], dict[str, Mean]]  # (outputs, batch) -> means by name; training minimizes 'loss'
    batch: Callable[[Arrays, jax.Array, jax.Array], Batch]  # (data, key, step) -> Batch; pure
    data: Arrays = ()  # data of `batch`, an argument of the compiled code instead of a constant
    evals: Mapping[str, Batch] = {}  # split -> batches, leaves [N, B, ...]
    early_stopping: EarlyStopping | None = None  # None: train all steps, and keep the last TrainState
    spec: ModelSpec | None = None  # inputs and outputs of its models; None for a custom model


def batch_shapes(task: Task) -> Batch:
    """Shapes and dtypes of a training batch; nothing is computed."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(task.batch, task.data, key, jax.ShapeDtypeStruct((), jnp.int32))


class BestParameters(NamedTuple):
    """Parameters of the evaluation with the lowest value of the monitored metric so far."""

    value: jax.Array  # [] float32; the largest float32 before the first evaluation
    step: jax.Array  # [] int32, number of training steps at that evaluation
    params: Params
    variables: Variables  # without carries


class TrainState(NamedTuple):
    """Training state of one seed; with model and task it determines the next training step."""

    step: jax.Array  # [] int32, number of training steps
    key: jax.Array  # [] PRNG key of the seed, folded with the step and never split
    params: Params
    variables: Variables  # mutable Flax collections: carries, statistics
    opt_state: optax.OptState
    best: BestParameters | None = None  # with early stopping


def without_carry(variables: Variables) -> Variables:
    """Returns the collections other than the carries."""
    return {name: value for name, value in variables.items() if name != CARRY}


def carry_of(variables: Variables) -> Variables:
    """Returns the collection of the carries, with leaves [B, ...]; empty for a model without carries."""
    return {name: value for name, value in variables.items() if name == CARRY}


OUTPUTS = ('last', 'per_step', 'seq2seq')


class ModelSpec(NamedTuple):
    """Inputs and outputs of a model."""

    output: str  # 'last': one output after the last step; 'per_step'; 'seq2seq': tokens, by a decoder
    outputs: int  # O, size of an output; with 'seq2seq' the number of target tokens
    features: int | None = None  # F of inputs [B, T, F]; None for tokens
    vocabulary: int | None = None  # V of tokens [B, T]; None for inputs [B, T, F]
    stateful: bool = False  # True for windows of a stream: the carry is kept from batch to batch
    causal: bool = False  # True if an output predicts later inputs, which the model must not read
    memory_span: int | None = None  # time steps over which a cell should remember, for chrono initialization
    head_init: Callable[..., jax.Array] | None = None  # initializer of the head's kernel; None for Flax's default
    unroll: int | None = None  # see `seqjax.nn.rnn.RNN`
    wrap_model: Callable[[Any], Any] | None = None  # wraps the built model, for example to feed back its own forecasts
