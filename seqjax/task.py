"""The types that every module shares: what is learned, and where a run stands.

The data flow one way: flags -> Task -> State -> [scan of train_step] -> chunk of metrics -> run -> report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

Arrays = Any  # a pytree of arrays
Params = Any  # the 'params' collection of a Flax module


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
    count: jax.Array  # how many they are

    def merge(self, other: Mean) -> Mean:
        """The mean of both parts together. (`+` would join the two tuples.)"""
        return Mean(self.total + other.total, self.count + other.count)

    def compute(self) -> jax.Array:
        """total / count, and 0 with gradient 0 where nothing was counted."""
        return jnp.where(self.count > 0, self.total / jnp.maximum(self.count, 1), 0.0)


class Watch(NamedTuple):
    """By what the best State of a run is found, and when the run has gone on long enough without a better one."""

    every: int  # steps between two looks
    patience: int  # looks without a better one, after which there is none any more
    split: str = 'validation'
    metric: str = 'loss'  # the lower, the better


class Task(NamedTuple):
    """What is learned: plain data that is handed to `train`."""

    model: nn.Module  # called as model(batch.inputs)
    loss: Callable[[Arrays, Batch], dict[str, Mean]]  # (outputs, batch) -> named means; training lowers 'loss'
    batch: Callable[[Arrays, jax.Array, jax.Array], Batch]  # (data, key, step) -> Batch; pure
    data: Arrays = ()  # an argument of the compiled code, never captured by it
    evals: Mapping[str, Batch] = {}  # split -> batches, leaves [N, B, ...]
    watch: Watch | None = None  # None: nothing but the last State matters


def batch_shapes(task: Task) -> Batch:
    """Shapes and dtypes of a training batch; nothing is computed."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(task.batch, task.data, key, jax.ShapeDtypeStruct((), jnp.int32))


class Best(NamedTuple):
    """The parameters of the look at which what is watched was lowest."""

    value: jax.Array  # [] float32; infinite before the first look
    step: jax.Array  # [] int32: steps taken until then
    params: Params
    variables: Mapping[str, Arrays]  # without carries


class State(NamedTuple):
    """Where a run stands; the next step is a function of this and the task alone."""

    step: jax.Array  # [] int32: steps taken
    key: jax.Array  # [] PRNG key: the run's seed, folded with the step and never split
    params: Params
    variables: Mapping[str, Arrays]  # mutable Flax collections: carries, statistics
    opt_state: optax.OptState
    best: Best | None = None  # where the task watches for it
