"""Streaming of batches from the host, for data that do not fit into device memory.

Threads of grain compute batches on the host while the device trains on earlier ones. Results do not change: the batch
of a training step is the same as without streaming.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import types
from seqjax.types import Batch, Task

NO_GRAIN = 'grain is not installed: pip install "seqjax[stream]"'
NEXT = 'next_index'  # key of the index of the next batch in the state of grain's iterator
NUM_THREADS, PREFETCH = 2, 16  # threads that compute batches; batches computed in advance


class Chunk(NamedTuple):
    """Batches of a chunk of training steps: `Task.data` of a streamed task."""

    first: Any  # [] int32, training step of the first batch, counted from 0
    batches: Batch  # leaves [steps_per_call, B, ...]


def streamed(task: Task, steps_per_call: int) -> Task:
    """Returns the task with the shapes of a `Chunk` as its data, and a `batch` function that reads from it."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((steps_per_call, *x.shape), x.dtype), types.batch_shapes(task))
    return task._replace(data=Chunk(jax.ShapeDtypeStruct((), jnp.int32), shapes), batch=_batch_of_chunk)


def _batch_of_chunk(data: Chunk, key: jax.Array, step: jax.Array) -> Batch:
    del key
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, step - data.first, keepdims=False), data.batches)


class StepSource:
    """Data source for grain: item i is the batch of training step i, computed on the CPU.

    Args:
      task: its batches must not depend on the key.
      steps: number of items.
    """

    def __init__(self, task: Task, steps: int):
        host = jax.devices('cpu')[0]
        self.data, self.count = jax.device_put(task.data, host), steps
        self.batch = jax.jit(task.batch)
        with jax.default_device(host):
            self.key = jax.random.key(0)  # an argument of `batch` that such a task ignores

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, step: int) -> Batch:
        return jax.device_get(self.batch(self.data, self.key, np.int32(step)))


class Feed:
    """Streams the chunks of a run in order, from a given training step on; see `take`.

    Args:
      task: the task whose data stay on the host; its batches must not depend on the key.
      steps: number of training steps of the run.
      steps_per_call: maximal number of training steps in a chunk.
      step: first training step, counted from 0.
      state: `state` of the feed in the checkpoint that is resumed; None for a new run.

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
        """State of grain's iterator, for a checkpoint; includes the index of the next batch."""
        return self.iterator.get_state()

    def take(self, first: int, count: int) -> Chunk:
        """Returns the next `count` batches; copies of the last one fill the chunk up to `steps_per_call`.

        Args:
          first: training step of the first of these batches; stored, not used to seek.
          count: number of batches, from 1 to `steps_per_call`.
        """
        batches = [next(self.iterator) for _ in range(count)]
        batches += batches[-1:] * (self.steps_per_call - count)
        return Chunk(np.int32(first), jax.tree.map(lambda *xs: np.stack(xs), *batches))
