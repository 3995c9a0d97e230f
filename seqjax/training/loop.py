"""The one training loop: a generator of chunks of training steps; the host is visited between chunks only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import jax
import numpy as np
import optax

from seqjax.training import programs
from seqjax.training.programs import TrainChunkFn
from seqjax.types import Arrays, Metrics, Task, TrainState


def steps_taken(state: TrainState) -> int:
    """Returns the step count; all replicas have the same, so the local shard is enough."""
    step = state.step
    return int(np.max(step.addressable_data(0) if isinstance(step, jax.Array) else step))


def train(
    model: nn.Module,
    task: Task,
    tx: optax.GradientTransformation,
    state: TrainState,
    *,
    steps: int,
    chunk: int,
    train_chunk: TrainChunkFn | None = None,
    extra_sync_every: Sequence[int] = (),
    data_fn: Callable[[int, int], Arrays] | None = None,
) -> Iterator[tuple[TrainState, Metrics, dict[str, Metrics]]]:
    """Trains until `steps` steps have been taken in all, and yields at every multiple of `chunk`, and at the end.

    Args:
      model: called as model(batch.inputs).
      task: what it is trained on.
      tx: the optimiser.
      state: from `init_state`, or of an earlier session.
      steps: the step to reach, counted from the run's beginning.
      chunk: training steps between two visits of the host.
      train_chunk: from `make_train_chunk` for the same model, task, optimiser and chunk; made here by default.
      extra_sync_every: the host is visited at every multiple of these, too.
      data_fn: data_fn(first_step, num_steps) returns the data for those steps; `task.data` by default.

    Yields:
      The state, the metrics of every step of the chunk (NumPy, [n] or [n, R]), the metrics of every split.
    """
    if train_chunk is None:
        train_chunk = programs.make_train_chunk(model, task, tx, chunk=chunk)
    done = steps_taken(state)
    while done < steps:
        n = min(steps - done, *(every - done % every for every in (chunk, *extra_sync_every)))
        data = task.data if data_fn is None else data_fn(done, n)
        state, metrics, evals = train_chunk(data, task.evals, state, n)
        done += n
        metrics, evals = jax.device_get((metrics, evals))
        yield state, jax.tree.map(lambda x, n=n: x[:n], metrics), evals
