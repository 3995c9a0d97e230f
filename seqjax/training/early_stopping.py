"""Early stopping: the best parameters so far, and when the patience has run out, as functions of the training state."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import types
from seqjax.types import Best, EarlyStopping, Metrics, TrainState

INITIAL_BEST = float(np.finfo(np.float32).max)  # before the first evaluation; JAX_DEBUG_INFS takes no infinity


def should_stop(config: EarlyStopping, state: TrainState) -> jax.Array:
    """Returns True if the last `patience` evaluations brought no improvement; [], or [R] with replicas."""
    return state.step - state.best.step >= _max_steps_without_improvement(config)


def _max_steps_without_improvement(config: EarlyStopping) -> int:
    return min(config.patience * config.eval_every, 2**31 - 1)  # a step is an int32


def update_best(config: EarlyStopping, state: TrainState, evals: dict[str, Metrics]) -> TrainState:
    """Returns the state after an evaluation; once `should_stop` is true, the best parameters stay as they are.

    A seed that has stopped may be trained on beside others of its replica group.
    """
    mean = evals[config.split][config.metric]
    value = mean.compute().astype(jnp.float32)
    evaluated = (state.step > 0) & (state.step % config.eval_every == 0)
    # An improvement at the last evaluation that the patience allows still counts, hence <=.
    waiting = state.step - state.best.step <= _max_steps_without_improvement(config)
    better = evaluated & waiting & (mean.count > 0) & (value < state.best.value)  # NaN is not better
    new = Best(value, state.step, state.params, types.without_carry(state.variables))
    return state._replace(best=jax.tree.map(partial(jnp.where, better), new, state.best))
