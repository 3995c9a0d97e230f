"""Sharding of the rows of a batch over the devices of the mesh in effect, by `jax.shard_map`.

Without it the compiler reduces the gradients of the weights over devices at every step of a recurrence. Here each
device processes its rows over all steps, and sums over rows are reduced once, at the end. `seqjax.training.sharding`
defines the mesh and the shardings of all other arrays.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr
from jax.interpreters import partial_eval
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

ROWS = 'data'  # the mesh axis over which rows are sharded


def num_shards(rows: int) -> int:
    """Returns the number of shards of a batch of `rows` rows: the size of the mesh axis 'data', or 1 for no sharding.

    It is 1 without a mesh in effect (`jax.set_mesh`), with fewer rows than devices on that axis, inside a `shard_map`,
    and if another mesh axis has a size above 1, as GSPMD then shards the rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    others = [size for name, size in mesh.shape.items() if name != ROWS and size > 1]
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if others or types.get(ROWS) != AxisType.Auto:
        return 1
    count = mesh.shape.get(ROWS, 1)
    return count if isinstance(rows, int) and rows >= count else 1  # no symbolic dimension of `jax.export`


def is_automatic() -> bool:
    """Returns True if a mesh in effect has an axis over which GSPMD shards arrays, outside of a `shard_map`."""
    return any(size > 1 for size in _axis_sizes(AxisType.Auto))


def shards_on_this_host() -> int:
    """Returns the number of devices of this process that run the same call at the same time, in a `shard_map`."""
    return min(math.prod(_axis_sizes(AxisType.Manual)), jax.local_device_count())


def _axis_sizes(kind: AxisType) -> list[int]:
    """Returns the sizes of the axes of this type of the mesh in effect."""
    mesh = jax.sharding.get_abstract_mesh()
    return [size for size, type_ in zip(mesh.axis_sizes, mesh.axis_types, strict=True) if type_ == kind]


def used_inputs(jaxpr: ClosedJaxpr) -> list[bool]:
    """Returns for each input of a traced function whether an output depends on it.

    >>> used_inputs(jax.make_jaxpr(lambda x, y: x * y)(1.0, 2.0))
    [True, True]
    >>> used_inputs(jax.make_jaxpr(lambda x, y: y**2)(1.0, 2.0))
    [False, True]
    """
    return partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))[1]


def shard_over_rows(run: Callable[..., Any], shards: int) -> Callable[..., Any]:
    """Returns `run` with the rows of its batch sharded over the mesh axis 'data'; `run` itself if `shards` is 1.

    If the number of rows is not divisible by `shards`, rows of zeros are added, and removed from the results.

    Args:
      run: (steps, carry [B, ...], weights, reset_carry [B, ...]) -> (last carry, *outputs [T, B, ...]).
      shards: number of shards, see `num_shards`.
    """
    if shards == 1:
        return run

    def local(*arguments):
        last, *others = run(*arguments)
        return last, others

    def padded(steps, carry, weights, reset_carry):
        rows = steps.inputs.shape[1]
        more = -rows % shards

        def pad(x, axis):
            return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])

        def cut(x, axis):
            return lax.slice_in_dim(x, 0, rows, axis=axis)

        by_row, by_step = P(ROWS), P(None, ROWS)
        sharded = jax.shard_map(
            local,
            in_specs=(by_step, by_row, P(), by_row),
            out_specs=(by_row, by_step),
            check_vma=False,  # `linear_map` has no rule for it
        )
        steps, carry, reset_carry = (
            jax.tree.map(partial(pad, axis=axis), x) for x, axis in ((steps, 1), (carry, 0), (reset_carry, 0))
        )
        last, others = sharded(steps, carry, weights, reset_carry)
        return jax.tree.map(partial(cut, axis=0), last), *jax.tree.map(partial(cut, axis=1), others)

    return padded
