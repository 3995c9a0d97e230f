"""Diagnosis of a loss that is not finite: the last state with finite parameters, and the largest gradient there."""

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
    """Returns the index of the first of losses [n] that is not finite, or None if all are.

    For losses [n, R] it is the first step at which the losses of all replicas are not finite.
    """
    finite = np.isfinite(loss) if loss.ndim == 1 else np.isfinite(loss).any(axis=1)
    return None if finite.all() else int(np.argmin(finite))


def last_finite(run: Any, task: Task, state: TrainState, good: int) -> tuple[int, TrainState, dict[str, Metrics]]:
    """Retrains from `state` for the largest n <= `good` steps after which parameters are finite, or 0 steps if none.

    The parameters may already be infinite or NaN after `good` steps, because a step computes its loss before its
    update. With replicas, the parameters of one replica have to be finite.

    Returns:
      n, and the state and the split metrics after n steps.
    """
    for n in range(good, -1, -1):
        after, _, evals = run.programs.train_chunk(task.data, task.evals, state, n)
        if n == 0 or _any_finite(run, after):
            break
    return n, after, jax.device_get(evals)


def _any_finite(run: Any, state: TrainState) -> bool:
    """Returns True if all parameters of a state are finite; with replicas, if the parameters of at least one are."""

    def finite(params):
        return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]).all()

    f = finite if run.width is None else jax.vmap(finite)
    return bool(np.asarray(jax.jit(f, out_shardings=run.replicated)(state.params)).any())


def _largest_gradient(run: Any, task: Task, state: TrainState, count: int | None) -> tuple[str, float]:
    """Returns the parameter whose gradient at the next step has the largest absolute element: its name, that element.

    NaN and infinity count as the largest. `count` is the number of seeds without padding; None for one seed.
    """

    def sizes(state):
        return jax.tree.map(lambda x: jnp.abs(x).max(initial=0), training_step.gradients(run.model, task, state)[0])

    f = sizes if count is None else jax.vmap(sizes)
    arrays = parameters.flatten_with_names(jax.device_get(jax.jit(f, out_shardings=run.replicated)(state)))
    largest = {name: np.max(without_padding(x, count)) for name, x in arrays.items()}
    name = max(largest, key=lambda name: largest[name] if np.isfinite(largest[name]) else np.inf)
    return name, float(largest[name])


def without_padding(x: Arrays, count: int | None) -> Arrays:
    """Returns the first `count` replicas of x [..., R]; x unchanged if `count` is None (a run of one seed)."""
    return x if count is None else x[..., :count]


def error(
    run: Any, task: Task, state: TrainState, metrics: Metrics, *, step: int, finite: int, good: int, count: int | None
) -> UserError:
    """Returns, without raising it, the error for a chunk with a loss that is not finite.

    Args:
      run: the `CompiledRun`.
      task: the task with the data of the chunk.
      state: the state after `finite` steps of the chunk.
      metrics: metrics of all steps of the chunk.
      step: number of training steps before the chunk.
      finite: number of steps of the chunk after which the parameters are still finite.
      good: number of steps of the chunk before the first loss that is not finite.
      count: number of seeds in the group; None for one seed.
    """
    name, size = _largest_gradient(run, task, state, count)
    values = without_padding(chunk_result.mean_values(metrics['loss']), count)[good]
    seeds, words = '' if count is None else f' of all {count} seeds', ', '.join(sorted(set(map(str, values.flat))))
    return UserError(
        f'the loss{seeds} is not finite: {words} at step {step + good + 1:,} of {run.steps:,}; the largest absolute '
        f'gradient at step {step + finite + 1:,} is {size:.3g}, in {name}; use a smaller --learning_rate, or '
        '--clip_norm=1'
    )
