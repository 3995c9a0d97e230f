"""The types that tasks, models and training share.

Data flow one way: flags -> Task and model -> TrainState -> scan of train steps -> metrics of a chunk -> run -> report.
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

CARRY = 'carry'  # the collection of a stateful model with the carries of its stream, leaves [B, ...]


class Sequences(NamedTuple):
    """Sequences with what is known of their steps; a plain tuple (values, lengths) says as much."""

    values: jax.Array  # [B, T, F], or tokens [B, T]
    seq_lengths: jax.Array | None = None  # [B] integers: how many steps of a row are real
    mask: jax.Array | None = None  # [B, T] bool: which steps are real
    resets: jax.Array | None = None  # [B, T] bool: where a row starts anew


class Batch(NamedTuple):
    """What one training step sees."""

    inputs: Arrays  # [B, T, F], tokens [B, T], or Sequences: what the model is called with
    targets: Arrays  # [B, T, ...] or [B, ...]
    mask: jax.Array  # [B, T] or [B], bool: which targets count


class Mean(NamedTuple):
    """A mean that is not divided yet, so that the means of parts add up to the mean of the whole.

    >>> halves = Mean(jnp.array(6.0), jnp.array(3.0)).merge(Mean(jnp.array(2.0), jnp.array(1.0)))
    >>> float(halves.compute())
    2.0
    """

    total: jax.Array  # sum of the values that count
    count: jax.Array  # type: ignore[assignment]  # how many they are

    def merge(self, other: Mean) -> Mean:
        """The mean of both parts together. (`+` would join the two tuples.)"""
        return Mean(self.total + other.total, self.count + other.count)

    def compute(self) -> jax.Array:
        """total / count, and 0 with gradient 0 where nothing was counted."""
        return jnp.where(self.count > 0, self.total / jnp.maximum(self.count, 1), 0.0)


Metrics = dict[str, Mean]


class EarlyStopping(NamedTuple):
    """Early-stopping configuration: monitored metric (lower is better) and patience."""

    eval_every: int  # training steps between two evaluations
    patience: int  # evaluations without improvement before stopping
    split: str = 'validation'
    metric: str = 'loss'


class Task(NamedTuple):
    """Task that a model is trained on: batches, loss and evaluation splits, without the model."""

    loss: Callable[[Arrays, Batch], dict[str, Mean]]  # (outputs, batch) -> named means; training lowers 'loss'
    batch: Callable[[Arrays, jax.Array, jax.Array], Batch]  # (data, key, step) -> Batch; pure
    data: Arrays = ()  # an argument of the compiled code, never captured by it
    evals: Mapping[str, Batch] = {}  # split -> batches, leaves [N, B, ...]
    early_stopping: EarlyStopping | None = None  # None: train all steps, and keep the last TrainState alone
    spec: ModelSpec | None = None  # inputs and outputs of its models; None for a model of one's own


def batch_shapes(task: Task) -> Batch:
    """Shapes and dtypes of a training batch; nothing is computed."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(task.batch, task.data, key, jax.ShapeDtypeStruct((), jnp.int32))


class Best(NamedTuple):
    """Parameters of the evaluation with the lowest value of the monitored metric so far."""

    value: jax.Array  # [] float32; the largest float32 before the first evaluation
    step: jax.Array  # [] int32: steps taken until then
    params: Params
    variables: Variables  # without carries


class TrainState(NamedTuple):
    """Training state of one seed; the next step is a function of it, the model and the task alone."""

    step: jax.Array  # [] int32: steps taken
    key: jax.Array  # [] PRNG key: the run's seed, folded with the step and never split
    params: Params
    variables: Variables  # mutable Flax collections: carries, statistics
    opt_state: optax.OptState
    best: Best | None = None  # with early stopping


def without_carry(variables: Variables) -> Variables:
    """Returns the collections other than the carries."""
    return {name: value for name, value in variables.items() if name != CARRY}


def carry_of(variables: Variables) -> Variables:
    """Returns the collection of the carries, whose leaves are [B, ...]; empty for a model without one."""
    return {name: value for name, value in variables.items() if name == CARRY}


OUTPUTS = ('last', 'per_step', 'seq2seq')


class ModelSpec(NamedTuple):
    """The inputs that a model reads and the outputs that it returns."""

    output: str  # 'last': one after the last step; 'per_step'; 'seq2seq': tokens, written by a decoder
    outputs: int  # O, numbers of an output; with 'seq2seq' the tokens of the target
    features: int | None = None  # F of inputs [B, T, F]; None for tokens
    vocabulary: int | None = None  # V of inputs that are tokens [B, T]; None for [B, T, F]
    stateful: bool = False  # windows of a stream: the carry goes on from batch to batch
    causal: bool = False  # an output at a step predicts what follows it: a model may not look there
    memory_span: int | None = None  # steps over which a cell should remember, for chrono initialisation
    head_init: Callable[..., jax.Array] | None = None  # initializer of the head's kernel; None for Flax's default
    unroll: int | None = None  # see `seqjax.nn.rnn.RNN`
    wrap_model: Callable[[Any], Any] | None = None  # the usual model -> one that, for example, reads its own forecasts
