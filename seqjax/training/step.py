"""The initial training state and one training step, both pure functions.

Step n depends on the seed and on n alone, so the numbers of a run do not depend on the length of its chunks.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from seqjax import types
from seqjax.training import batch_gradients, early_stopping, sharding
from seqjax.types import Best, Metrics, Params, Task, TrainState, Variables

INIT = 2**32 - 1  # the "step" whose key draws the initial parameters; a real step is an int32


def init_state(model: nn.Module, task: Task, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """Returns the training state before the first step, a function of the key and the shapes of the data alone.

    Args:
      model: called as model(batch.inputs).
      task: what it is trained on.
      tx: the optimiser.
      key: the run's seed, jax.random.key(seed).
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
            best = Best(jnp.float32(early_stopping.INITIAL_BEST), jnp.int32(0), params, types.without_carry(variables))
        return TrainState(jnp.int32(0), key, params, variables, tx.init(params), best)

    return init(key)


def train_step(
    model: nn.Module, task: Task, tx: optax.GradientTransformation, state: TrainState
) -> tuple[TrainState, Metrics]:
    """Takes one training step; returns the new state, and the metrics of the parameters before the update."""
    grads, metrics, variables = gradients(model, task, state)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, variables=variables, opt_state=opt_state), metrics


def gradients(model: nn.Module, task: Task, state: TrainState) -> tuple[Params, Metrics, Variables]:
    """Returns gradients of the mean loss, metrics and updated variables for the next training step."""
    batch_key, model_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    batch = task.batch(task.data, batch_key, state.step)
    if sharding.can_shard(model, task, state, batch, model_key):
        return sharding.sharded_gradients(model, task, state, batch, model_key)
    return batch_gradients.batch_gradients(model, task, state.params, state.variables, batch, model_key)
