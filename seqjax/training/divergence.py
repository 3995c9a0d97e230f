"""Diagnosis of a loss that is not finite: the last finite state, and the largest gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.errors import UserError
from seqjax.runs import parameters
from seqjax.training import chunk_result
from seqjax.training import step as training_step
from seqjax.types import Arrays, Metrics, Task, TrainState


def first_divergence(loss: np.ndarray) -> int | None:
    """Returns the first step of losses [n] that is not finite, or of [n, R] not finite for any replica; else None."""
    finite = np.isfinite(loss) if loss.ndim == 1 else np.isfinite(loss).any(axis=1)
    return None if finite.all() else int(np.argmin(finite))


def last_finite(run: Any, task: Task, state: TrainState, good: int) -> tuple[int, TrainState, dict[str, Metrics]]:
    """Returns the most steps n <= `good` after which the parameters are finite, with the state and evaluations there.

    The update before the first loss that is not finite may already have been too large.
    """
    for n in range(good, -1, -1):
        after, _, evals = run.programs.train_chunk(task.data, task.evals, state, n)
        if n == 0 or _any_finite(run, after):
            break
    return n, after, jax.device_get(evals)


def _any_finite(run: Any, state: TrainState) -> bool:
    """Returns True if all parameters are finite; with replicas, all parameters of at least one replica."""

    def finite(params):
        return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]).all()

    f = finite if run.width is None else jax.vmap(finite)
    return bool(np.asarray(jax.jit(f, out_shardings=run.replicated)(state.params)).any())


def _largest_gradient(run: Any, task: Task, state: TrainState, count: int | None) -> tuple[str, float]:
    """Returns the name of the parameter with the largest gradient at the next step, and that gradient.

    A gradient that is not finite counts as the largest.
    """

    def sizes(state):
        return jax.tree.map(lambda x: jnp.abs(x).max(initial=0), training_step.gradients(run.model, task, state)[0])

    f = sizes if count is None else jax.vmap(sizes)
    arrays = parameters.flatten_with_names(jax.device_get(jax.jit(f, out_shardings=run.replicated)(state)))
    largest = {name: np.max(without_padding(x, count)) for name, x in arrays.items()}
    name = max(largest, key=lambda name: largest[name] if np.isfinite(largest[name]) else np.inf)
    return name, float(largest[name])


def without_padding(x: Arrays, count: int | None) -> Arrays:
    """Returns [..., R] without the padding replicas; unchanged for a run of one seed."""
    return x if count is None else x[..., :count]


def error(
    run: Any, task: Task, state: TrainState, metrics: Metrics, *, step: int, finite: int, good: int, count: int | None
) -> UserError:
    """Returns the error for a loss that is not finite, in a chunk that follows `step` steps and has these metrics.

    Args:
      run: the `CompiledRun`.
      task: the task with the data of the chunk.
      state: the last finite state.
      metrics: metrics of the chunk.
      step: number of steps before the chunk.
      finite: number of steps of the chunk after which the parameters are still finite.
      good: number of steps of the chunk with a finite loss.
      count: number of seeds in the group; None for one seed.
    """
    name, size = _largest_gradient(run, task, state, count)
    value = without_padding(chunk_result.mean_values(metrics['loss']), count)[good].flat[0]
    seeds = '' if count is None else f' of all {count} seeds'
    return UserError(
        f'the loss{seeds} is {value} at step {step + good + 1:,} of {run.steps:,}, and the largest gradient at step '
        f'{step + finite + 1:,} is {size:.3g}, in {name}; use a smaller --learning_rate, or --clip_norm=1'
    )
