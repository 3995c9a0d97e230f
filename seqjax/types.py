"""Types shared by tasks, models and training.

Data flow: flags -> Task and model -> TrainState -> chunks of training steps -> metrics -> results of a run -> report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Arrays = Any  # a pytree of arrays
Params = Any  # the 'params' collection of a Flax module
Variables = Mapping[str, Arrays]  # the collections of a Flax module other than 'params', by name

CARRY = 'carry'  # Flax collection of a stateful model's carries, leaves [B, ...]


class Sequences(NamedTuple):
    """Sequences with optional lengths, mask and resets; models also accept a plain tuple (values, seq_lengths).

    A time step is valid if both `seq_lengths` and `mask` include it; None includes all steps.
    """

    values: jax.Array  # [B, T, F], or tokens [B, T]
    seq_lengths: jax.Array | None = None  # [B] integers: the first so many steps of each row are valid
    mask: jax.Array | None = None  # [B, T] bool, True at valid steps
    resets: jax.Array | None = None  # [B, T] bool, True at steps before which the carry is reset; None: no resets


class Batch(NamedTuple):
    """Batch of sequences with targets, for a training step or an evaluation."""

    inputs: Arrays  # [B, T, F], tokens [B, T], or Sequences: the argument of the model
    targets: Arrays  # [B, T, ...] or [B, ...]
    mask: jax.Array  # [B, T] or [B] bool, True at targets that count in the loss and the metrics


class Mean(NamedTuple):
    """Mean of a metric, stored as total and count, so that the means of several batches can be merged.

    >>> halves = Mean(jnp.array(6.0), jnp.array(3.0)).merge(Mean(jnp.array(2.0), jnp.array(1.0)))
    >>> float(halves.compute())
    2.0
    """

    total: jax.Array  # sum of the values
    count: jax.Array  # type: ignore[assignment]  # number of the values

    def merge(self, other: Mean) -> Mean:
        """Returns the Mean over all values of `self` and `other`. (`+` would concatenate the tuples.)"""
        return Mean(self.total + other.total, self.count + other.count)

    def compute(self) -> jax.Array:
        """Returns total / count; 0 with gradient 0 if count is 0."""
        return jnp.where(self.count > 0, self.total / jnp.maximum(self.count, 1), 0.0)


Metrics = dict[str, Mean]


class EarlyStopping(NamedTuple):
    """Early-stopping configuration: monitored metric (lower is better) and patience."""

    eval_every: int  # training steps between evaluations
    patience: int  # evaluations without improvement before stopping
    split: str = 'validation'  # monitored split, a key of `Task.evals`
    metric: str = 'loss'  # monitored metric of that split, a key of the means that `Task.loss` returns


class Task(NamedTuple):
    """Task that a model is trained on: batches, loss, evaluation splits and early stopping, without the model."""

    loss: Callable[[Arrays, Batch], dict[str, Mean]]  # (outputs, batch) -> Mean by name; training minimizes 'loss'
    batch: Callable[[Arrays, jax.Array, jax.Array], Batch]  # (data, key, step) -> Batch; pure
    data: Arrays = ()  # first argument of `batch`; passed to compiled code as an argument, not as a constant
    evals: Mapping[str, Batch] = {}  # split name -> its N batches, leaves [N, B, ...]
    early_stopping: EarlyStopping | None = None  # None: train all steps, and keep the last parameters
    spec: ModelSpec | None = None  # inputs and outputs that a model for this task must have; None for a custom model


def batch_shapes(task: Task) -> Batch:
    """Returns the shapes and dtypes of a training batch as `jax.ShapeDtypeStruct`; no batch is computed."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(task.batch, task.data, key, jax.ShapeDtypeStruct((), jnp.int32))


class BestParameters(NamedTuple):
    """Parameters at the evaluation with the lowest monitored metric so far; initially those before the first step."""

    value: jax.Array  # [] float32, the lowest metric; the largest float32 until an evaluation has a finite value
    step: jax.Array  # [] int32, number of training steps before that evaluation; 0 for the initial parameters
    params: Params
    variables: Variables  # collections other than params and carries, at that evaluation


class TrainState(NamedTuple):
    """Training state of one seed; with model, task and optimizer it determines the next training step.

    With replicas, every leaf has a leading axis R.
    """

    step: jax.Array  # [] int32, number of training steps taken
    key: jax.Array  # [] PRNG key of the seed, constant; each training step folds its number into a copy
    params: Params
    variables: Variables  # Flax collections other than params, such as carries and batch statistics
    opt_state: optax.OptState
    best: BestParameters | None = None  # None without early stopping


def without_carry(variables: Variables) -> Variables:
    """Returns the Flax collections without the carries (the collection CARRY)."""
    return {name: value for name, value in variables.items() if name != CARRY}


def carry_of(variables: Variables) -> Variables:
    """Returns a dict with only the collection CARRY, leaves [B, ...]; an empty dict for a model without carries."""
    return {name: value for name, value in variables.items() if name == CARRY}


OUTPUTS = ('last', 'per_step', 'seq2seq')


class ModelSpec(NamedTuple):
    """Specification of the inputs and outputs that a task needs of its model."""

    output: str  # 'last': one after the last step; 'per_step': one at every step; 'seq2seq': tokens of a decoder
    outputs: int  # O, size of an output vector; with 'seq2seq' the number of different target tokens
    features: int | None = None  # F of inputs [B, T, F]; None for tokens
    vocabulary: int | None = None  # V, number of different tokens in inputs [B, T]; None for inputs [B, T, F]
    stateful: bool = False  # True if batches are windows of a stream: the carry is kept from batch to batch
    causal: bool = False  # True if outputs must not depend on later inputs: bidirectional models are refused
    memory_span: int | None = None  # time steps over which a cell should remember, for chrono initialization
    head_init: Callable[..., jax.Array] | None = None  # initializer of the head's kernel; None for Flax's default
    unroll: int | None = None  # time steps per loop iteration, see `seqjax.nn.rnn.RNN`; None for its default
    wrap_model: Callable[[Any], Any] | None = None  # model -> wrapped model, such as one that feeds back its forecasts
