"""Predictions of a model, and the metrics of evaluation splits; both without dropout."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seqjax import types
from seqjax.types import Arrays, Batch, Metrics, Task, TrainState, Variables


def apply(model: nn.Module, state: TrainState, inputs: Arrays) -> Arrays:
    """Returns the outputs of the model for a batch of inputs, without dropout.

    A stateful model starts from its initial carry; the carry in `state` is not read.
    """
    return model.apply({'params': state.params, **types.without_carry(state.variables)}, inputs)


def predict(model: nn.Module, state: TrainState, inputs: Arrays, *, batch_size: int) -> Arrays:
    """Returns the outputs [N, ...] of the model for inputs [N, ...], computed in batches of `batch_size` rows.

    N need not be divisible by `batch_size`. There is no dropout; a stateful model starts every batch from its initial
    carry.

    Raises:
      ValueError: `inputs` has no arrays, its arrays differ in N, or `batch_size` is below 1.
    """
    counts = sorted({len(x) for x in jax.tree.leaves(inputs)})
    if not counts:
        raise ValueError('inputs has no arrays; pass at least one')
    if len(counts) != 1:
        raise ValueError(f'all arrays of inputs must have the same length on axis 0, and they have {counts}')
    if batch_size < 1:
        raise ValueError(f'batch_size={batch_size} must be at least 1')
    count, batches = counts[0], max(1, -(-counts[0] // batch_size))

    def split(x):  # padded with rows of zeros, which do not change other rows
        x = jnp.pad(jnp.asarray(x), [(0, batches * batch_size - count), *[(0, 0)] * (np.ndim(x) - 1)])
        return x.reshape(batches, batch_size, *x.shape[1:])

    outputs = jax.lax.map(partial(apply, model, state), jax.tree.map(split, inputs))
    return jax.tree.map(lambda y: y.reshape(batches * batch_size, *y.shape[2:])[:count], outputs)


def evaluate(model: nn.Module, task: Task, state: TrainState) -> dict[str, Metrics]:
    """Returns the metrics of every split of `task.evals`, each a Mean over all of its batches; without dropout."""
    return {
        split: jax.tree.map(partial(jnp.sum, axis=0), evaluate_batches(model, state, batches, task.loss))
        for split, batches in task.evals.items()
    }


def evaluate_batches(
    model: nn.Module, state: TrainState, batches: Batch, f: Callable[[Arrays, Batch], Arrays]
) -> Arrays:
    """Returns f(outputs, batch) of each of N batches (leaves [N, B, ...]), stacked to [N, ...]; without dropout.

    A stateful model starts the first batch from its initial carry and each later one from the carry of the batch
    before, as for windows of one stream. The carry in `state` is neither read nor changed.
    """
    step = partial(eval_step, model, state, f)
    carry = initial_eval_carry(step, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches))
    return jax.lax.scan(step, carry, batches)[1]


def eval_step(
    model: nn.Module, state: TrainState, f: Callable[[Arrays, Batch], Arrays], carry: Variables, batch: Batch
) -> tuple[Variables, Arrays]:
    """Returns the carry after a batch, and f(outputs, batch), where the model starts from `carry`; without dropout."""
    fixed = {'params': state.params, **types.without_carry(state.variables)}
    outputs, new = model.apply({**fixed, **carry}, batch.inputs, mutable=[types.CARRY])
    return types.carry_of(new), f(outputs, batch)


def initial_eval_carry(step: Callable[[Variables, Batch], tuple[Variables, Arrays]], batch: Batch) -> Variables:
    """Returns the CARRY collection before the first batch, all zeros; empty for a model that is not stateful.

    Zeros make the model start from its initial carry. The leaves of `batch` may be `jax.ShapeDtypeStruct`.

    Args:
      step: `eval_step` of a model and a state: (carry, batch) -> (carry, result).
      batch: one batch, for its shapes.
    """
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(step, {}, batch)[0])
