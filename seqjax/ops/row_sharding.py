"""Sharding of the rows of a batch over the devices of the mesh in effect, by `jax.shard_map`.

Without it the compiler reduces the gradients of the weights over devices at every step of a recurrence. Here each
device processes its rows over all steps, and sums over rows are reduced once, at the end. `seqjax.training.sharding`
defines the mesh and the shardings of all other arrays.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
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
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return any(size > 1 and kind == AxisType.Auto for size, kind in axes)


def output_depends_on(f: Callable[..., Any], x: Any, *others: Any) -> bool:
    """Returns True if f(x, *others) depends on any leaf of x; only shapes and dtypes of the arguments matter.

    >>> output_depends_on(lambda x, y: x * y, 1.0, 2.0), output_depends_on(lambda x, y: y**2, 1.0, 2.0)
    (True, False)
    """
    jaxpr = jax.make_jaxpr(f)(x, *others).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return any(used[: len(jax.tree.leaves(x))])


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
