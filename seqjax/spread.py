"""The rows of a batch over the devices of the mesh in effect, by `jax.shard_map`.

Left to itself, the compiler adds up the gradients of the weights at every step of a recurrence. Here each device takes
its own rows all the way through, and what is summed over rows is added up once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters import partial_eval
from jax.sharding import AxisType

ROWS = 'data'  # the axis of a mesh over which rows are spread


def parts(rows: int) -> int:
    """Into how many the rows are divided: 1 where no mesh is in effect (`jax.set_mesh`), or there are fewer rows.

    Where other axes divide the weights, the compiler sees to both; and rows that are divided are not divided again.
    """
    mesh = jax.sharding.get_abstract_mesh()
    others = [size for name, size in mesh.shape.items() if name != ROWS and size > 1]
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if others or types.get(ROWS) != AxisType.Auto:
        return 1
    count = mesh.shape.get(ROWS, 1)
    return count if isinstance(rows, int) and rows >= count else 1  # not of a symbolic dimension of `jax.export`


def depends(f: Callable[..., Any], x: Any, *others: Any) -> bool:
    """Whether f(x, *others) depends on any leaf of x; shapes and dtypes of them are enough.

    >>> depends(lambda x, y: x * y, 1.0, 2.0), depends(lambda x, y: y**2, 1.0, 2.0)
    (True, False)
    """
    jaxpr = jax.make_jaxpr(f)(x, *others).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return any(used[: len(jax.tree.leaves(x))])
