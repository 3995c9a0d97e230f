"""The one place that decides where the arrays of a run lie: a mesh of devices with named axes, by `jax.sharding`.

The axis 'data' has the rows of a batch, or replicas with `replicas`; 'model' has the columns of the weights. GSPMD adds
the communication; the numbers are those of one device but for rounding. `seqjax.ops.row_sharding` shards a recurrence
over the rows of its batch in the mesh that is made here.
"""

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from seqjax import types as seqjax_types
from seqjax.ops import row_sharding
from seqjax.types import Batch, Metrics, Params, Task, TrainState, Variables

DATA, MODEL = row_sharding.ROWS, 'model'
# Between cores of a CPU: least products of numbers with the largest weight, and most numbers of that weight.
MIN_PRODUCTS, MAX_WEIGHT = 4_000_000, 1_200_000
MIN_PER_DEVICE = 8  # rows or replicas of a device, from which on all devices are used by default


def parse_mesh(text: str) -> dict[str, int]:
    """Returns the axes and their sizes; raises ValueError if the text is not of this form.

    >>> parse_mesh('data:4'), parse_mesh('data:4,model:2')
    ({'data': 4}, {'data': 4, 'model': 2})
    """
    match = re.fullmatch(rf'{DATA}:([1-9][0-9]{{0,5}})(?:,{MODEL}:([1-9][0-9]{{0,5}}))?', text, re.ASCII)
    if match is None:
        raise ValueError(f'must be {DATA}:N or {DATA}:N,{MODEL}:M, such as {DATA}:4')
    return {DATA: int(match[1])} | ({} if match[2] is None else {MODEL: int(match[2])})


class MeshShardings(NamedTuple):
    """A mesh, and the sharding of every array of a run on it."""

    mesh: Mesh
    replicas: bool  # whether 'data' has replicas instead of rows

    @property
    def size(self) -> int:
        """Number of shards of the batch, or of the replicas."""
        return self.mesh.shape[DATA]

    def on(self, *axes: str | None) -> NamedSharding:
        """Returns the sharding of an array whose axes are divided by these mesh axes."""
        return NamedSharding(self.mesh, P(*axes))

    @property
    def replicated(self) -> NamedSharding:
        """Sharding for replicated arrays."""
        return self.on()

    def in_effect(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which programs are traced, so that their rows, or replicas, are sharded."""
        return jax.set_mesh(self.mesh)

    def state(self, shapes: TrainState) -> TrainState:
        """Returns the sharding of every array of a TrainState: replicas or carries by 'data', weights by 'model'."""
        if self.replicas:
            return jax.tree.map(lambda _: self.on(DATA), shapes)
        weights = jax.tree.map(self._weight, shapes)
        carries = {
            name: jax.tree.map(self._rows, x) for name, x in shapes.variables.items() if name == seqjax_types.CARRY
        }
        return weights._replace(variables={**weights.variables, **carries})

    def _rows(self, x: Any) -> NamedSharding:
        """Rows that are not divisible are replicated."""
        return self.on(DATA) if x.shape[0] % self.size == 0 else self.replicated

    def _weight(self, x: Any) -> NamedSharding:
        count = self.mesh.shape.get(MODEL, 1)
        divisible = count > 1 and len(x.shape) >= 2 and x.shape[-1] % count == 0
        return self.on(*[None] * (len(x.shape) - 1), MODEL) if divisible else self.replicated

    def task(self, task: Task) -> Task:
        """Returns the same task, the rows of its batches sharded."""
        if self.replicas:
            return task

        def batch(data, key, step):
            rows = task.batch(data, key, step)
            return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self._rows(x)), rows)

        return task._replace(batch=batch)


def select_mesh(
    requested: str | None, *, rows: int | None, replicas: int | None, pays: Callable[[int, int], bool] | None = None
) -> tuple[MeshShardings | None, str]:
    """Selects the devices of a run, and describes them in a line, which is empty if there is only one.

    Args:
      requested: such as 'data:4'; None takes all devices if that pays, else one, for which no mesh is returned.
      rows, replicas: B, or with replicas R, which is divided among the devices.
      pays: pays(min_products, max_weight) returns True if sharding a batch over CPU cores pays; called only where it
        decides. See `data_parallel_pays`.

    Raises:
      ValueError: there are fewer devices, or the rows are not divisible.
    """
    devices, what = jax.devices(), f'{replicas} replicas' if replicas else f'a batch of {rows}'
    if requested is None:
        axes, line = _default(devices, what, rows, replicas, pays)
    else:
        axes, line = parse_mesh(requested), f'{requested} of {_named(devices)} for {what}'
    count = math.prod(axes.values())
    if count > len(devices):
        raise ValueError(f'needs {count} devices, and there are {_named(devices)}')
    if replicas and axes.get(MODEL, 1) > 1:
        raise ValueError(f'divides weights by {MODEL}:{axes[MODEL]}, and replicas are divided by {DATA} alone')
    if requested is not None and not replicas and rows % axes[DATA]:
        raise ValueError(f'cannot divide {what} by {axes[DATA]}; choose sizes that divide')
    if jax.process_count() > 1 and count < len(devices):
        raise ValueError(f'leaves devices without work, and {jax.process_count()} processes need all of theirs')
    if count == 1:
        return None, line
    types = (AxisType.Auto,) * len(axes)
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=devices[:count])
    return MeshShardings(mesh, bool(replicas)), line


def _named(devices: list[Any]) -> str:
    return f'{len(devices)} {devices[0].platform} device{"s" if len(devices) > 1 else ""}'


def _default(
    devices: list[Any], what: str, rows: int | None, replicas: int | None, pays: Callable[[int, int], bool] | None
) -> tuple[Mapping[str, int], str]:
    """All devices if each has enough to do.

    Cores of a CPU share one memory: whether sharding a batch over them pays depends on the model.
    """
    count, many = len(devices), replicas or rows
    if count == 1:
        return {DATA: 1}, ''
    useful = many >= MIN_PER_DEVICE * count
    if useful and not replicas:
        cores = devices[0].platform == 'cpu'
        useful = pays is not None and pays(MIN_PRODUCTS, MAX_WEIGHT) if cores else rows % count == 0
    if useful or jax.process_count() > 1:
        return {DATA: count}, f'{what} on {_named(devices)}'
    return {DATA: 1}, f'{what} on 1 of {_named(devices)} (--mesh=data:{count} takes them all)'


def batch_gradients(
    model: nn.Module,
    task: Task,
    params: Params,
    variables: Variables,
    batch: Batch,
    key: jax.Array,
    *,
    mean: bool = True,
) -> tuple[Params, Metrics, Variables]:
    """Returns gradients of the mean loss (or of its total), metrics, and the variables after the batch; not sharded."""

    def loss_fn(params):
        # 'dropout' is the stream that says "training"; whatever else a model draws comes from 'params'.
        rngs = dict(zip(('params', 'dropout'), jax.random.split(key), strict=True))
        outputs, new = model.apply({'params': params, **variables}, batch.inputs, rngs=rngs, mutable=list(variables))
        metrics = task.loss(outputs, batch)
        loss = metrics['loss']
        return loss.compute() if mean else loss.total, (metrics, new)

    grads, (metrics, new) = jax.grad(loss_fn, has_aux=True)(params)
    return grads, metrics, new


def can_shard(model: nn.Module, task: Task, state: TrainState, batch: Batch, key: jax.Array) -> bool:
    """Returns True if each device may take its rows of the batch by itself with the numbers of one device.

    False if the model draws (each device would draw for its own rows), or keeps statistics of all rows.
    """
    rows = {x.shape[0] if x.ndim else 0 for x in jax.tree.leaves(batch)}
    count = row_sharding.num_shards(min(rows))
    if count == 1 or len(rows) > 1 or seqjax_types.without_carry(state.variables):
        return False
    return not _is_stochastic(model, task, state.params, state.variables, batch, key)


def _is_stochastic(
    model: nn.Module, task: Task, params: Params, variables: Variables, batch: Batch, key: jax.Array
) -> bool:
    """Returns True if the model draws in training; shapes and dtypes of the arguments are enough."""
    return row_sharding.output_depends_on(
        lambda key, *rest: batch_gradients(model, task, *rest, key), key, params, variables, batch
    )


def data_parallel_pays(model: nn.Module, task: Task, min_products: int, max_weight: int) -> bool:
    """Returns True if sharding a batch over the cores of a CPU is faster than one device with all of them.

    A heuristic, for which nothing is computed. The largest weight must take part in at least `min_products` products of
    numbers, its size times the steps of all rows: below it, dispatch overhead dominates. It must have no more than
    `max_weight` numbers: what does not fit into the caches of a core is better read once, by all cores together. And
    the model must be deterministic, see `can_shard`.
    """
    key, batch = jax.eval_shape(lambda: jax.random.key(0)), seqjax_types.batch_shapes(task)
    variables = dict(jax.eval_shape(model.init, key, batch.inputs))
    params = variables.pop('params', {})
    steps = max((math.prod(x.shape[:2]) for x in jax.tree.leaves(batch.inputs)), default=0)
    largest = largest_size(params)
    if steps * largest < min_products or largest > max_weight:
        return False
    return not _is_stochastic(model, task, params, variables, batch, key)


def largest_size(tree: Any) -> int:
    """Returns the size of the largest array of a tree."""
    return max((x.size for x in jax.tree.leaves(tree)), default=0)


def sharded_gradients(
    model: nn.Module, task: Task, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[Params, Metrics, Variables]:
    """Returns the same as `batch_gradients`, each device with its rows of the batch and of the carries.

    Totals are added up at the end. Rows that do not count are appended if their number is not divisible.
    """
    count = len(batch.mask)
    more = -count % row_sharding.num_shards(count)

    def padded(tree):
        return jax.tree.map(lambda x: jnp.pad(x, [(0, more), *[(0, 0)] * (x.ndim - 1)]), tree)

    def shard(params, carries, batch):
        grads, metrics, new = batch_gradients(model, task, params, carries, batch, key, mean=False)
        return jax.lax.psum((grads, metrics), DATA), new

    rows = P(DATA)
    shard = jax.shard_map(shard, in_specs=(P(), rows, rows), out_specs=(P(), rows), check_vma=False)
    (grads, metrics), carries = shard(state.params, padded(seqjax_types.carry_of(state.variables)), padded(batch))
    counted = jnp.maximum(metrics['loss'].count, 1)  # gradients of the total loss -> those of its mean
    grads = jax.tree.map(lambda total: (total / counted).astype(total.dtype), grads)
    return grads, metrics, jax.tree.map(lambda x: x[:count], carries)


def shard_replicas(train_chunk: Callable[..., Any]) -> Callable[..., Any]:
    """Shards train_chunk(data, evals, state [R, ...], n) over the replicas, if a mesh is in effect."""
    if row_sharding.num_shards(2**31) == 1:
        return train_chunk
    by_replica, by_step = P(DATA), P(None, DATA)
    return jax.shard_map(
        train_chunk,
        in_specs=(P(), P(), by_replica, P()),
        out_specs=(by_replica, by_step, by_replica),
        check_vma=False,
    )
