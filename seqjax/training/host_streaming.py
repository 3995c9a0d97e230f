"""Data that stay on the host: batches are made there, by grain, while the device computes the steps before.

For arrays that do not fit the device. The numbers are those of the same task with its data there: a batch is made
by the same function of the step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import types
from seqjax.types import Batch, Task

NO_GRAIN = 'grain is missing: pip install "seqjax[stream]"'
NEXT = 'next_index'  # in grain's state
THREADS, AHEAD = 2, 16  # that make batches, and how many batches they may be ahead


class Chunk(NamedTuple):
    """What the device gets of the data: the batches of the steps of one chunk."""

    first: Any  # [] int32: the step of the first of them
    batches: Batch  # leaves [chunk, B, ...]


def streamed(task: Task, steps_per_call: int) -> Task:
    """The same task, whose data are one `Chunk` after the other."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((steps_per_call, *x.shape), x.dtype), types.batch_shapes(task))
    return task._replace(data=Chunk(jax.ShapeDtypeStruct((), jnp.int32), shapes), batch=_of_chunk)


def _of_chunk(data: Chunk, key: jax.Array, step: jax.Array) -> Batch:
    del key
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, step - data.first, keepdims=False), data.batches)


class StepSource:
    """What grain reads: the batch of a step."""

    def __init__(self, task: Task, steps: int):
        host = jax.devices('cpu')[0]
        self.data, self.count = jax.device_put(task.data, host), steps
        self.batch = jax.jit(task.batch)
        with jax.default_device(host):
            self.key = jax.random.key(0)  # of no use to a task whose data decide

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, step: int) -> Batch:
        return jax.device_get(self.batch(self.data, self.key, np.int32(step)))


class Feed:
    """The chunks of a run from a step on, of at most `chunk` steps; grain must be installed.

    Args:
      task: whose data are to stay on the host; its batches must not depend on the key.
      steps: of the run.
      steps_per_call: steps of a chunk at most.
      step: the first one, counted from 0.
      state: what `state` gave in the run that goes on; None where there was no feed.

    Raises:
      ImportError: grain is not installed.
    """

    def __init__(
        self, task: Task, *, steps: int, steps_per_call: int, step: int = 0, state: dict[str, Any] | None = None
    ):
        import grain

        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
        self.iterator = iter(grain.MapDataset.source(StepSource(task, steps)).to_iter_dataset(options))
        self.steps_per_call = steps_per_call
        self.iterator.set_state({**self.iterator.get_state(), **(state or {}), NEXT: step})

    @property
    def state(self) -> dict[str, Any]:
        """Grain's own: which batch is next."""
        return self.iterator.get_state()

    def take(self, first: int, count: int) -> Chunk:
        """The batches of `count` steps; a chunk that is not full is filled up with its last one."""
        batches = [next(self.iterator) for _ in range(count)]
        batches += batches[-1:] * (self.steps_per_call - count)
        return Chunk(np.int32(first), jax.tree.map(lambda *xs: np.stack(xs), *batches))
