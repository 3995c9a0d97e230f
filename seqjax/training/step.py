"""The initial training state, one training step, and early stopping, all pure functions of the state.

Step n depends on the seed and on n only, so the results of a run do not depend on the length of its chunks.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from seqjax import types
from seqjax.training import sharding
from seqjax.types import BestParameters, EarlyStopping, Metrics, Params, Task, TrainState, Variables

INIT = 2**32 - 1  # folded into the key of the seed for the initial parameters; larger than any step, an int32
INITIAL_BEST = float(np.finfo(np.float32).max)  # best metric before any evaluation; JAX_DEBUG_INFS forbids infinity


def init_state(model: nn.Module, task: Task, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """Returns the training state of one seed before its first step.

    It depends on the key and on the shapes of a batch, not on the data. The model is called as model(batch.inputs). The
    key of a seed is jax.random.key(seed).
    """
    shapes = types.batch_shapes(task).inputs

    @jax.jit
    def init(key):
        params_key, _ = jax.random.split(jax.random.fold_in(key, jnp.uint32(INIT)))
        inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        variables = model.init({'params': params_key}, inputs)
        params = variables.pop('params')
        best = None
        if task.early_stopping is not None:
            best = BestParameters(jnp.float32(INITIAL_BEST), jnp.int32(0), params, types.without_carry(variables))
        return TrainState(jnp.int32(0), key, params, variables, tx.init(params), best)

    return init(key)


def train_step(
    model: nn.Module, task: Task, tx: optax.GradientTransformation, state: TrainState
) -> tuple[TrainState, Metrics]:
    """Returns the state after one training step, and the metrics of its batch, computed before the update."""
    grads, metrics, variables = gradients(model, task, state)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, variables=variables, opt_state=opt_state), metrics


def gradients(model: nn.Module, task: Task, state: TrainState) -> tuple[Params, Metrics, Variables]:
    """Returns gradients of the mean loss, metrics and updated variables of the next training step, without updating.

    Rows of the batch are sharded over the devices of the current mesh if `sharding.can_shard` allows it.
    """
    batch_key, model_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    batch = task.batch(task.data, batch_key, state.step)
    if sharding.can_shard(model, task, state, batch, model_key):
        return sharding.sharded_gradients(model, task, state, batch, model_key)
    return sharding.batch_gradients(model, task, state.params, state.variables, batch, model_key)


def should_stop(config: EarlyStopping, state: TrainState) -> jax.Array:
    """Returns True, per seed ([] or [R]), if the last `patience` evaluations did not improve the monitored metric."""
    return state.step - state.best.step >= _max_steps_without_improvement(config)


def _max_steps_without_improvement(config: EarlyStopping) -> int:
    return min(config.patience * config.eval_every, 2**31 - 1)  # a step is an int32


def update_best(config: EarlyStopping, state: TrainState, evals: dict[str, Metrics]) -> TrainState:
    """Returns the state with the current parameters as best ones, if their evaluation is the best so far.

    Returns the state unchanged if the step is not a multiple of `config.eval_every`, or the metric is not lower. A seed
    that has stopped early is not updated either, although it is trained until its replica group stops.

    Args:
      config: monitored split and metric, and patience.
      state: state of one seed after a chunk.
      evals: metrics of every split for this state.
    """
    mean = evals[config.split][config.metric]
    value = mean.compute().astype(jnp.float32)
    evaluated = (state.step > 0) & (state.step % config.eval_every == 0)
    # An improvement at the last evaluation within the patience still counts, hence <=.
    waiting = state.step - state.best.step <= _max_steps_without_improvement(config)
    better = evaluated & waiting & (mean.count > 0) & (value < state.best.value)  # NaN is not better
    new = BestParameters(value, state.step, state.params, types.without_carry(state.variables))
    return state._replace(best=jax.tree.map(partial(jnp.where, better), new, state.best))
