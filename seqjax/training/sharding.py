"""Shardings of all arrays of a run, on a mesh of devices with named axes, by `jax.sharding`.

The axis 'data' shards the rows of a batch, or the replicas if there are any; 'model' shards the last axis of weights.
GSPMD adds the communication; results equal single-device results up to rounding. `seqjax.ops.row_sharding` shards a
recurrence over the rows of its batch on this mesh.
"""

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from seqjax import types as seqjax_types
from seqjax.ops import row_sharding
from seqjax.ops.native import recurrent
from seqjax.types import Batch, Metrics, Params, Task, TrainState, Variables

DATA, MODEL = row_sharding.ROWS, 'model'
# Conditions for sharding over CPU cores by default: minimal number of multiplications with the largest weight in a
# training step, and maximal number of elements of that weight.
MIN_PRODUCTS, MAX_WEIGHT = 4_000_000, 1_200_000
MIN_PER_DEVICE = 8  # minimal number of rows or replicas per device for which all devices are used by default


def parse_mesh(text: str) -> dict[str, int]:
    """Returns the axes of a mesh and their sizes, from the text of --mesh.

    Raises:
      ValueError: the text is not data:N or data:N,model:M with N and M from 1 to 999,999.

    >>> parse_mesh('data:4'), parse_mesh('data:4,model:2')
    ({'data': 4}, {'data': 4, 'model': 2})
    """
    match = re.fullmatch(rf'{DATA}:([1-9][0-9]{{0,5}})(?:,{MODEL}:([1-9][0-9]{{0,5}}))?', text, re.ASCII)
    if match is None:
        raise ValueError(f'must be {DATA}:N or {DATA}:N,{MODEL}:M with N and M from 1 to 999,999, such as {DATA}:4')
    return {DATA: int(match[1])} | ({} if match[2] is None else {MODEL: int(match[2])})


class MeshShardings(NamedTuple):
    """A mesh, and the sharding of every array of a run on it."""

    mesh: Mesh
    replicas: bool  # True if 'data' shards replicas, False if it shards rows of batches

    @property
    def size(self) -> int:
        """Number of shards of the rows of a batch, or of the replicas: the size of the mesh axis 'data'."""
        return self.mesh.shape[DATA]

    def on(self, *axes: str | None) -> NamedSharding:
        """Returns the sharding of an array; `axes` names the mesh axis of each array axis, None for not sharded."""
        return NamedSharding(self.mesh, P(*axes))

    @property
    def replicated(self) -> NamedSharding:
        """Sharding that replicates an array on all devices of the mesh."""
        return self.on()

    def in_effect(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context manager that sets the mesh; programs traced in it have sharded rows or replicas."""
        return jax.set_mesh(self.mesh)

    def state(self, shapes: TrainState) -> TrainState:
        """Returns the sharding of every array of a TrainState with these shapes.

        With replicas, the leading axis R is sharded by 'data'. Otherwise rows of carries are sharded by 'data', and the
        last axis of weights by 'model', if divisible.
        """
        if self.replicas:
            return jax.tree.map(lambda _: self.on(DATA), shapes)
        weights = jax.tree.map(self._weight, shapes)
        carries = {
            name: jax.tree.map(self._rows, x) for name, x in shapes.variables.items() if name == seqjax_types.CARRY
        }
        return weights._replace(variables={**weights.variables, **carries})

    def _rows(self, x: Any) -> NamedSharding:
        """Returns the sharding of an array by rows, axis 0; replicated if their number is not divisible by `size`."""
        return self.on(DATA) if x.shape[0] % self.size == 0 else self.replicated

    def _weight(self, x: Any) -> NamedSharding:
        count = self.mesh.shape.get(MODEL, 1)
        divisible = count > 1 and len(x.shape) >= 2 and x.shape[-1] % count == 0
        return self.on(*[None] * (len(x.shape) - 1), MODEL) if divisible else self.replicated

    def task(self, task: Task) -> Task:
        """Returns the task with the rows of its training batches sharded; unchanged if replicas are sharded instead."""
        if self.replicas:
            return task

        def batch(data, key, step):
            rows = task.batch(data, key, step)
            return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self._rows(x)), rows)

        return task._replace(batch=batch)


def select_mesh(
    requested: str | None, *, rows: int | None, replicas: int | None, pays: Callable[[int, int], bool] | None = None
) -> tuple[MeshShardings | None, str]:
    """Returns the shardings of a run on the requested mesh, or on a mesh selected by default, and a line for the user.

    Args:
      requested: a mesh such as 'data:4'; None selects all devices or one, whichever should be faster.
      rows: B, number of rows of a batch; not used with replicas.
      replicas: R, number of replicas, which are sharded instead of rows; None for no replicas.
      pays: pays(min_products, max_weight) returns True if sharding a batch over CPU cores is faster; see
        `data_parallel_pays`.

    Returns:
      The shardings, None for one device; and a line that describes the choice, empty if JAX has only one device and no
      mesh is requested.

    Raises:
      ValueError: `requested` is invalid, needs more devices than JAX has, has a model axis with replicas, does not
        divide the rows, or leaves out devices of a run of several processes.
    """
    devices, subject = jax.devices(), f'{replicas} replicas' if replicas else f'a batch of {rows}'
    if requested is None:
        axes, line = _default(devices, subject, rows, replicas, pays)
    else:
        axes, line = parse_mesh(requested), f'{requested} of {_count_devices(devices)} for {subject}'
    count = math.prod(axes.values())
    if count > len(devices):
        raise ValueError(f'needs {count} devices, but JAX has {_count_devices(devices)}; use a mesh of fewer devices')
    if replicas and axes.get(MODEL, 1) > 1:
        raise ValueError(f'shards weights, which is not supported with --num_seeds; use --mesh={DATA}:{count}')
    if requested is not None and not replicas and rows % axes[DATA]:
        remainder = rows % axes[DATA]
        raise ValueError(
            f'needs a batch size divisible by {axes[DATA]}, but it is {rows} (remainder {remainder}); use another mesh '
            'or batch size'
        )
    if jax.process_count() > 1 and count < len(devices):
        raise ValueError(
            f'uses {count} of {len(devices)} devices, but must use all devices of the {jax.process_count()} processes'
        )
    if count == 1:
        return None, line
    types = (AxisType.Auto,) * len(axes)
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=devices[:count])
    return MeshShardings(mesh, bool(replicas)), line


def _count_devices(devices: list[Any]) -> str:
    return f'{len(devices)} {devices[0].platform} device{"s" if len(devices) > 1 else ""}'


def _default(
    devices: list[Any], subject: str, rows: int | None, replicas: int | None, pays: Callable[[int, int], bool] | None
) -> tuple[Mapping[str, int], str]:
    """Returns the axes of the default mesh, and a line that describes the choice, empty if there is only one device.

    The mesh has all devices in a run of several processes, or if each device gets at least MIN_PER_DEVICE replicas or
    rows. For rows, it must also be faster on CPUs, whose cores share their memory (`pays`), and the number of rows must
    be divisible on other devices. Otherwise the mesh has one device.
    """
    count = len(devices)
    if count == 1:
        return {DATA: 1}, ''
    is_faster = (replicas or rows) >= MIN_PER_DEVICE * count
    if is_faster and not replicas:
        is_cpu = devices[0].platform == 'cpu'
        is_faster = pays is not None and pays(MIN_PRODUCTS, MAX_WEIGHT) if is_cpu else rows % count == 0
    if is_faster or jax.process_count() > 1:
        return {DATA: count}, f'{subject} on {_count_devices(devices)}'
    return {DATA: 1}, f'{subject} on 1 of {_count_devices(devices)} (use --mesh=data:{count} for all)'


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
    """Returns gradients of the loss, metrics, and updated variables of a training step, without sharding.

    The loss is the mean over unmasked targets, or their total if `mean` is False.
    """

    def loss_fn(params):
        # Models train if there is a 'dropout' key; other random numbers of a model come from the 'params' key.
        rngs = dict(zip(('params', 'dropout'), jax.random.split(key), strict=True))
        outputs, new = model.apply({'params': params, **variables}, batch.inputs, rngs=rngs, mutable=list(variables))
        metrics = task.loss(outputs, batch)
        loss = metrics['loss']
        return loss.compute() if mean else loss.total, (metrics, new)

    grads, (metrics, new) = jax.grad(loss_fn, has_aux=True)(params)
    return grads, metrics, new


def can_shard(model: nn.Module, task: Task, state: TrainState, batch: Batch, key: jax.Array) -> bool:
    """Returns True if a batch can be split by rows over the devices of the current mesh with unchanged results.

    It cannot if there is only one shard, arrays of the batch differ in their number of rows, the model is stochastic
    (each device would draw for its own rows), or it has variables other than carries, such as statistics of all rows.
    """
    rows = {x.shape[0] if x.ndim else 0 for x in jax.tree.leaves(batch)}
    count = row_sharding.num_shards(min(rows))
    if count == 1 or len(rows) > 1 or seqjax_types.without_carry(state.variables):
        return False
    return not _is_stochastic(_trace(model, task, state.params, state.variables, batch, key))


def _trace(
    model: nn.Module, task: Task, params: Params, variables: Variables, batch: Batch, key: jax.Array
) -> ClosedJaxpr:
    """Returns `batch_gradients` traced with the key as first input; arguments may be `jax.ShapeDtypeStruct`."""
    return jax.make_jaxpr(lambda key, *rest: batch_gradients(model, task, *rest, key))(key, params, variables, batch)


def _is_stochastic(step: ClosedJaxpr) -> bool:
    """Returns True if results of a training step, see `_trace`, depend on the key."""
    return row_sharding.used_inputs(step)[0]


def data_parallel_pays(model: nn.Module, task: Task, min_products: int, max_weight: int) -> bool:
    """Returns True if sharding a batch over the cores of a CPU should be faster than one device with all of them.

    A heuristic that only traces the model. The largest weight must take part in at least `min_products` multiplications
    (its size times the time steps of all rows), because below that, dispatch overhead dominates. It must have at most
    `max_weight` elements, because a weight that exceeds the caches of a core is better read once for all cores. The
    model must be deterministic, see `can_shard`. The native kernels use all cores of one device, and are faster so.
    """
    key, batch = jax.eval_shape(lambda: jax.random.key(0)), seqjax_types.batch_shapes(task)
    variables = dict(jax.eval_shape(model.init, key, batch.inputs))
    params = variables.pop('params', {})
    steps = max((math.prod(x.shape[:2]) for x in jax.tree.leaves(batch.inputs)), default=0)
    largest = largest_size(params)
    if steps * largest < min_products or largest > max_weight:
        return False
    step = _trace(model, task, params, variables, batch, key)
    return not recurrent.is_called_by(step) and not _is_stochastic(step)


def largest_size(tree: Any) -> int:
    """Returns the number of elements of the largest array of a tree; 0 for a tree without arrays."""
    return max((x.size for x in jax.tree.leaves(tree)), default=0)


def sharded_gradients(
    model: nn.Module, task: Task, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[Params, Metrics, Variables]:
    """Returns gradients of the mean loss, metrics and updated carries, with the rows of the batch sharded over devices.

    The devices compute gradients and totals of their own rows, which are summed at the end. Masked rows are appended if
    the number of rows is not divisible by the number of shards.
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
    counted = jnp.maximum(metrics['loss'].count, 1)  # gradients of the total loss -> of the mean loss
    grads = jax.tree.map(lambda total: (total / counted).astype(total.dtype), grads)
    return grads, metrics, jax.tree.map(lambda x: x[:count], carries)


def shard_replicas(train_chunk: Callable[..., Any]) -> Callable[..., Any]:
    """Returns train_chunk(data, evals, state [R, ...], n) with axis R sharded over the current mesh.

    Returns `train_chunk` unchanged if there is no mesh, or only one shard.
    """
    if row_sharding.num_shards(2**31) == 1:
        return train_chunk
    by_replica, by_step = P(DATA), P(None, DATA)
    return jax.shard_map(
        train_chunk,
        in_specs=(P(), P(), by_replica, P()),
        out_specs=(by_replica, by_step, by_replica),
        check_vma=False,
    )
