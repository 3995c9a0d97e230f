"""Where a run is computed: a mesh of devices with named axes, by `jax.sharding`.

The axis 'data' has the rows of a batch, or replicas where there are replicas; 'model' has the columns of the weights.
The compiler adds what the devices have to tell each other; the numbers are those of one device but for rounding.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from seqjax import spread
from seqjax.task import State, Task
from seqjax.train import CARRY

DATA, MODEL = spread.ROWS, 'model'
# Between which cores of a CPU divide a batch: products of numbers with the largest weight, and numbers of that weight.
WORK, WIDEST = 4_000_000, 1_200_000
USEFUL = 8  # rows or replicas of a device, from which on it is used without being asked for


def parse(text: str) -> dict[str, int]:
    """The axes and their sizes.

    Raises:
      ValueError: the text is not of this form.

    >>> parse('data:4'), parse('data:4,model:2')
    ({'data': 4}, {'data': 4, 'model': 2})
    """
    match = re.fullmatch(rf'{DATA}:([1-9][0-9]{{0,5}})(?:,{MODEL}:([1-9][0-9]{{0,5}}))?', text, re.ASCII)
    if match is None:
        raise ValueError(f'must be {DATA}:N or {DATA}:N,{MODEL}:M, such as {DATA}:4')
    return {DATA: int(match[1])} | ({} if match[2] is None else {MODEL: int(match[2])})


class Layout(NamedTuple):
    """Which part of what lies on which device."""

    mesh: Mesh
    replicas: bool  # whether 'data' has replicas, not rows

    @property
    def size(self) -> int:
        """Parts that the batch, or the replicas, are divided into."""
        return self.mesh.shape[DATA]

    def on(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, P(*axes))

    @property
    def whole(self) -> NamedSharding:
        """All of it on every device."""
        return self.on()

    def in_effect(self) -> contextlib.AbstractContextManager[Any]:
        """What programs are traced in, so that their rows, or replicas, are spread; see `seqjax.spread`."""
        return jax.set_mesh(self.mesh)

    def state(self, shapes: State) -> State:
        """The sharding of every array of a State: replicas, or carries, over 'data', and weights over 'model'."""
        if self.replicas:
            return jax.tree.map(lambda _: self.on(DATA), shapes)
        weights = jax.tree.map(self._weight, shapes)
        carries = {name: jax.tree.map(self._rows, x) for name, x in shapes.variables.items() if name == CARRY}
        return weights._replace(variables={**weights.variables, **carries})

    def _rows(self, x: Any) -> NamedSharding:
        """Rows that cannot be divided lie on every device."""
        return self.on(DATA) if x.shape[0] % self.size == 0 else self.whole

    def _weight(self, x: Any) -> NamedSharding:
        count = self.mesh.shape.get(MODEL, 1)
        divides = count > 1 and len(x.shape) >= 2 and x.shape[-1] % count == 0
        return self.on(*[None] * (len(x.shape) - 1), MODEL) if divides else self.whole

    def task(self, task: Task) -> Task:
        """The same task, each device with its rows of a batch."""
        if self.replicas:
            return task

        def batch(data, key, step):
            rows = task.batch(data, key, step)
            return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self._rows(x)), rows)

        return task._replace(batch=batch)


def choose(
    asked: str | None, *, rows: int | None, replicas: int | None, pays: Callable[[int, int], bool] | None = None
) -> tuple[Layout | None, str]:
    """The devices of a run, and a line that says so.

    Args:
      asked: such as 'data:4'; None takes all devices where that is useful, else one.
      rows: B, that is to be divided among them; of no interest where there are replicas.
      replicas: R, which are divided instead where there are any.
      pays: whether a model whose largest weight takes part in so many products, and has no more than so many numbers,
        gains by cores that divide its batch; asked only where it decides. See `train.worth_dividing`.

    Returns:
      None for one device; and no line where there is but one.

    Raises:
      ValueError: so many devices are not there, or do not divide the rows.
    """
    devices, what = jax.devices(), f'{replicas} replicas' if replicas else f'a batch of {rows}'
    if asked is None:
        axes, line = _default(devices, what, rows, replicas, pays)
    else:
        axes, line = parse(asked), f'{asked} of {_named(devices)} for {what}'
    count = math.prod(axes.values())
    if count > len(devices):
        raise ValueError(f'needs {count} devices, and there are {_named(devices)}')
    if replicas and axes.get(MODEL, 1) > 1:
        raise ValueError(f'divides weights by {MODEL}:{axes[MODEL]}, and replicas are divided by {DATA} alone')
    if asked is not None and not replicas and rows % axes[DATA]:
        raise ValueError(f'divides {what} by {axes[DATA]}, which leaves a rest; choose sizes that divide')
    if jax.process_count() > 1 and count < len(devices):
        raise ValueError(f'leaves devices without work, and {jax.process_count()} processes need all of theirs')
    if count == 1:
        return None, line
    types = (AxisType.Auto,) * len(axes)
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=devices[:count])
    return Layout(mesh, bool(replicas)), line


def _named(devices: list[Any]) -> str:
    return f'{len(devices)} {devices[0].platform} device{"s" if len(devices) > 1 else ""}'


def _default(
    devices: list[Any], what: str, rows: int | None, replicas: int | None, pays: Callable[[int, int], bool] | None
) -> tuple[Mapping[str, int], str]:
    """All devices where each has enough to do.

    Cores of a CPU share one memory: whether they gain by dividing a batch depends on the model.
    """
    count, many = len(devices), replicas or rows
    if count == 1:
        return {DATA: 1}, ''
    useful = many >= USEFUL * count
    if useful and not replicas:
        cores = devices[0].platform == 'cpu'
        useful = pays is not None and pays(WORK, WIDEST) if cores else rows % count == 0
    if useful or jax.process_count() > 1:
        return {DATA: count}, f'{what} on {_named(devices)}'
    return {DATA: 1}, f'{what} on 1 of {_named(devices)} (--mesh=data:{count} takes them all)'
