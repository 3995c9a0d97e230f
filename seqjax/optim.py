"""The optax transformation that a run asks for."""

from __future__ import annotations

from typing import Any

import optax

B1, B2 = 0.9, 0.999  # Kingma and Ba 2015, and the default of Keras, PyTorch and optax


SCHEDULES = ('constant', 'cosine')


def schedule(name: str, learning_rate: float, decay_steps: int | None = None) -> float | optax.Schedule:
    """The learning rate at a step: constant, or falling to 0 over `decay_steps` as half a cosine.

    The steps of the decay are their own number, so that a run that is asked for more steps stays the same until there.

    Raises:
      ValueError: `name` is no schedule, or `decay_steps` is missing or of no use.
    """
    if name not in SCHEDULES:
        raise ValueError(f'schedule={name!r} must be one of {", ".join(SCHEDULES)}')
    if (decay_steps is None) != (name == 'constant'):
        raise ValueError(f'schedule={name} {"needs" if decay_steps is None else "has no use for"} decay_steps')
    return learning_rate if name == 'constant' else optax.cosine_decay_schedule(learning_rate, decay_steps)


def rates_in_state(opt_state: optax.OptState) -> bool:
    """Whether the learning rate is a number in the optimiser's state, and not a function of the step."""
    held = optax.tree_utils.tree_get_all_with_path(opt_state, 'learning_rate')
    scheduled = optax.tree_utils.tree_get_all_with_path(opt_state, 'hyperparams_states')
    return len(held) == 1 and not any('learning_rate' in states for _, states in scheduled)


def with_rates(opt_state: optax.OptState, rates: Any) -> optax.OptState:
    """The optimiser's state with another learning rate, or with one for each replica [R]."""
    return optax.tree_utils.tree_set(opt_state, learning_rate=rates)


def adam(
    learning_rate: float | optax.Schedule,
    epsilon: float,
    clip_norm: float | None = None,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015) with epsilon where Keras puts it; gradients beyond `clip_norm` are scaled to it first.

    Keras adds epsilon to the square root of the second moment *before* the bias correction (the paper's
    "epsilon hat", section 2), optax after it. The two are the same when optax's is epsilon / sqrt(1 - B2^t) at
    step t. That matters where gradients are small, as at the end of the notebook's second experiment.

    `weight_decay` is decoupled (Loshchilov and Hutter 2019, algorithm 2): each step takes that share, times the
    learning rate, off every parameter.
    """
    how = {
        'learning_rate': learning_rate,
        'b1': B1,
        'b2': B2,
        'eps': lambda count: epsilon / (1 - B2 ** (count + 1)) ** 0.5,
    }
    if weight_decay:
        adam = optax.inject_hyperparams(optax.adamw)(**how, weight_decay=weight_decay)
    else:
        adam = optax.inject_hyperparams(optax.adam)(**how)
    return adam if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), adam)
