"""Optimizers and learning rate schedules of runs, as Optax transformations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seqjax import config as seqjax_config
from seqjax.config import TrainConfig

B1, B2 = 0.9, 0.999  # Kingma and Ba 2015, and the default of Keras, PyTorch and optax


def schedule(name: str, learning_rate: float, decay_steps: int | None = None) -> float | optax.Schedule:
    """Returns the learning rate itself for 'constant', or for 'cosine' its cosine decay to 0 over `decay_steps` steps.

    The decay does not depend on the number of steps of the run, so a run that is continued with more steps keeps its
    learning rates; they are 0 after `decay_steps`.

    Raises:
      ValueError: `name` is not a schedule, 'cosine' has no `decay_steps`, or 'constant' has `decay_steps`.
    """
    if name not in seqjax_config.SCHEDULES:
        raise ValueError(f'schedule={name!r} must be one of {", ".join(seqjax_config.SCHEDULES)}')
    if (decay_steps is None) != (name == 'constant'):
        raise ValueError(
            f'schedule={name} '
            f'{"needs decay_steps; set it" if decay_steps is None else "does not use decay_steps; remove it"}'
        )
    return learning_rate if name == 'constant' else optax.cosine_decay_schedule(learning_rate, decay_steps)


def rates_in_state(opt_state: optax.OptState) -> bool:
    """Returns True if the learning rate is a constant in the state of the optimizer, not a schedule of the step."""
    rates = optax.tree_utils.tree_get_all_with_path(opt_state, 'learning_rate')
    scheduled = optax.tree_utils.tree_get_all_with_path(opt_state, 'hyperparams_states')
    return len(rates) == 1 and not any('learning_rate' in states for _, states in scheduled)


def with_rates(opt_state: optax.OptState, rates: Any) -> optax.OptState:
    """Returns the optimizer state with the constant learning rate replaced by `rates`: [], or one per replica [R]."""
    dtype = optax.tree_utils.tree_get(opt_state, 'learning_rate').dtype
    return optax.tree_utils.tree_set(opt_state, learning_rate=jnp.asarray(rates, dtype))


def learning_rates(tx: optax.GradientTransformation, steps: np.ndarray) -> np.ndarray:
    """Returns the learning rates at training steps [n], counted from 0, as float32 [n].

    All are NaN unless the state of the optimizer has exactly one learning rate.

    >>> learning_rates(adam(schedule('cosine', 0.5, 8), 1e-7), np.array([0, 4, 8])).round(6).tolist()
    [0.5, 0.25, 0.0]
    """
    rate = getattr(tx, 'learning_rate', None)
    if isinstance(rate, float):  # nothing is compiled
        return np.full(len(steps), rate, np.float32)
    param = jnp.zeros(())

    @jax.jit
    def at(count):
        # The integers of a state are step counts.
        state = jax.tree.map(lambda x: count if jnp.issubdtype(x.dtype, jnp.integer) else x, tx.init(param))
        _, state = tx.update(param, state, param)
        named = optax.tree_utils.tree_get_all_with_path(state, 'learning_rate')
        return [x for _, x in named if isinstance(x, jax.Array)]  # without the state of a schedule

    rates = jax.lax.map(at, jnp.asarray(steps, jnp.int32))
    # NaN is made on the host, because `jax_debug_nans` would stop the run.
    return np.asarray(rates[0], np.float32) if len(rates) == 1 else np.full(len(steps), np.nan, np.float32)


class OptimizerWithRate(optax.GradientTransformation):
    """Gradient transformation that also has its learning rate, a constant or a schedule, as an attribute."""

    learning_rate: float | optax.Schedule


def adam(
    learning_rate: float | optax.Schedule,
    epsilon: float,
    clip_norm: float | None = None,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Returns Adam with epsilon as in Keras, optional gradient clipping and optional decoupled weight decay (AdamW).

    Keras adds epsilon to the square root of the second moment *before* the bias correction (the paper's
    "epsilon hat", section 2), optax after it. The two are the same when optax's is epsilon / sqrt(1 - B2^t) at
    step t. The difference matters for small gradients, as at the end of the notebook's second experiment.

    Norms, moments and updates are computed in the widest floating dtype of the parameters, and at least in float32: in
    bfloat16 B2 = 0.999 would be 1, and in float16 epsilon 1e-8 would be 0. Updates have the dtypes of the gradients.

    Args:
      learning_rate: a constant or a schedule.
      epsilon: added to the square root of the second moment before the bias correction.
      clip_norm: maximal global norm of the gradients; None for no clipping.
      weight_decay: every step subtracts weight_decay * learning rate * parameter from each parameter; 0 for none.

    References:
      Kingma and Ba 2015, Adam: a method for stochastic optimization.
      Loshchilov and Hutter 2019, Decoupled weight decay regularization, algorithm 2.
    """
    hyperparams = {
        'learning_rate': learning_rate,
        'b1': B1,
        'b2': B2,
        'eps': lambda count: epsilon / (1 - B2 ** (count + 1)) ** 0.5,
    }
    if weight_decay:
        adam = optax.inject_hyperparams(optax.adamw)(**hyperparams, weight_decay=weight_decay)
    else:
        adam = optax.inject_hyperparams(optax.adam)(**hyperparams)
    clipped = adam if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), adam)
    tx = OptimizerWithRate(*_in_widest_dtype(clipped))
    tx.learning_rate = learning_rate
    return tx


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Returns the Adam optimizer of a configuration; raises ValueError if `schedule` and `decay_steps` do not fit."""
    rate = schedule(config.schedule, config.learning_rate, config.decay_steps)
    return adam(rate, config.adam_epsilon, config.clip_norm, config.weight_decay)


def _in_widest_dtype(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns `tx`, computing in the widest dtype of all floating parameters and at least in float32.

    The optimizer state has this dtype; the updates have the dtypes of the gradients.
    """

    def widen(tree, params):
        dtype = jnp.result_type(jnp.float32, *(x.dtype for x in jax.tree.leaves(params) if _is_floating(x)))
        return jax.tree.map(lambda x: x.astype(dtype) if _is_floating(x) else x, tree)

    def init(params):
        return tx.init(widen(params, params))

    def update(grads, state, params=None):
        like = grads if params is None else params
        updates, state = tx.update(widen(grads, like), state, widen(params, like))
        return jax.tree.map(lambda update, grad: update.astype(grad.dtype), updates, grads), state

    return optax.GradientTransformation(init, update)


def _is_floating(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)
