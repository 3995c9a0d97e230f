"""Streaming of batches from the host, for data that do not fit into device memory.

Batches are made on the host by grain, while the device computes earlier steps. Results do not change: a batch is the
same function of the step as on the device.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import types
from seqjax.types import Batch, Task

NO_GRAIN = 'grain is not installed: pip install "seqjax[stream]"'
NEXT = 'next_index'  # key in grain's state
NUM_THREADS, PREFETCH = 2, 16  # threads that make batches, and batches made in advance


class Chunk(NamedTuple):
    """Data of a task on the device: the batches of a chunk of training steps."""

    first: Any  # [] int32: step of the first batch
    batches: Batch  # leaves [chunk, B, ...]


def streamed(task: Task, steps_per_call: int) -> Task:
    """Returns the same task with a `Chunk` as its data."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((steps_per_call, *x.shape), x.dtype), types.batch_shapes(task))
    return task._replace(data=Chunk(jax.ShapeDtypeStruct((), jnp.int32), shapes), batch=_batch_of_chunk)


def _batch_of_chunk(data: Chunk, key: jax.Array, step: jax.Array) -> Batch:
    del key
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, step - data.first, keepdims=False), data.batches)


class StepSource:
    """Data source for grain: the batch of a training step."""

    def __init__(self, task: Task, steps: int):
        host = jax.devices('cpu')[0]
        self.data, self.count = jax.device_put(task.data, host), steps
        self.batch = jax.jit(task.batch)
        with jax.default_device(host):
            self.key = jax.random.key(0)  # unused: the batches of such a task depend on data and step only

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, step: int) -> Batch:
        return jax.device_get(self.batch(self.data, self.key, np.int32(step)))


class Feed:
    """Iterator over the chunks of a run, from a given step.

    Args:
      task: the task whose data stay on the host; its batches must not depend on the key.
      steps: number of steps of the run.
      steps_per_call: maximal number of steps of a chunk.
      step: first step, counted from 0.
      state: `state` of the feed of the run that is resumed; None if there was no feed.

    Raises:
      ImportError: grain is not installed.
    """

    def __init__(
        self, task: Task, *, steps: int, steps_per_call: int, step: int = 0, state: dict[str, Any] | None = None
    ):
        import grain

        options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=PREFETCH)
        self.iterator = iter(grain.MapDataset.source(StepSource(task, steps)).to_iter_dataset(options))
        self.steps_per_call = steps_per_call
        self.iterator.set_state({**self.iterator.get_state(), **(state or {}), NEXT: step})

    @property
    def state(self) -> dict[str, Any]:
        """State of grain's iterator: the index of the next batch."""
        return self.iterator.get_state()

    def take(self, first: int, count: int) -> Chunk:
        """Returns the batches of `count` steps, padded to a full chunk with the last batch."""
        batches = [next(self.iterator) for _ in range(count)]
        batches += batches[-1:] * (self.steps_per_call - count)
        return Chunk(np.int32(first), jax.tree.map(lambda *xs: np.stack(xs), *batches))
