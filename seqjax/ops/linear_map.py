"""Linear maps with a custom transpose, which allow a custom backward pass together with forward mode.

`jax.custom_vjp` does not support `jax.jvp`. A function with a `jax.custom_jvp` rule that computes its tangents by
`linear_map` has both modes: forward mode calls the map, and reverse mode, which transposes it, calls the transpose.
(`jax.custom_derivatives.linear_call` does this without `jax.vmap` and without second derivatives.)
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

linear_map_p = Primitive('linear_map')
linear_map_p.multiple_results = True


def linear_map(
    call: Callable[[Any, Any], Any], transpose: Callable[[Any, Any], Any], residuals: Any, arguments: Any, like: Any
) -> Any:
    """Returns call(residuals, arguments), a linear map of the arguments, which reverse mode transposes by `transpose`.

    Args:
      call: (residuals, arguments) -> result, linear in the arguments.
      transpose: (residuals, cotangents of the result of `call`) -> cotangents of the arguments.
      residuals: a tree of arrays, on which the map depends.
      arguments: a tree of floating-point arrays.
      like: a tree of arrays with the shapes and dtypes of the result of `call`.
    """
    leaves, tree = jax.tree.flatten((residuals, arguments))
    likes, out_tree = jax.tree.flatten(like)
    residual_tree, count = jax.tree.structure(residuals), len(jax.tree.leaves(residuals))

    def flat_call(*leaves: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(call(*jax.tree.unflatten(tree, leaves)))

    def flat_transpose(*leaves: jax.Array) -> list[jax.Array]:
        residuals, cotangents = jax.tree.unflatten(residual_tree, leaves[:count]), leaves[count:]
        return jax.tree.leaves(transpose(residuals, jax.tree.unflatten(out_tree, cotangents)))

    avals = tuple(map(jax.typeof, likes))
    out = linear_map_p.bind(*leaves, call=flat_call, transpose=flat_transpose, count=count, avals=avals)
    return jax.tree.unflatten(out_tree, out)


def _call(*leaves: jax.Array, call: Callable[..., list[jax.Array]], **_: Any) -> list[jax.Array]:
    return call(*leaves)


def _jvp(primals: list[Any], tangents: list[Any], *, call: Callable[..., Any], count: int, **how: Any) -> Any:
    """JVP rule: applies the map to the tangents; if residuals have tangents too, JAX differentiates `call` instead."""
    if any(type(tangent) is not ad.Zero for tangent in tangents[:count]):
        return jax.jvp(call, tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))
    how |= {'call': call, 'count': count}
    arguments = map(ad.instantiate_zeros, tangents[count:])
    return linear_map_p.bind(*primals, **how), linear_map_p.bind(*primals[:count], *arguments, **how)


def _transpose(cotangents: list[Any], *leaves: Any, transpose: Callable[..., Any], count: int, **_: Any) -> list[Any]:
    """Transpose rule: returns the cotangents of the arguments; None for residuals and for known arguments."""
    new = transpose(*leaves[:count], *map(ad.instantiate_zeros, cotangents))
    unknown = map(ad.is_undefined_primal, leaves[count:])
    return [None] * count + [x if needed else None for x, needed in zip(new, unknown, strict=True)]


def _batch(
    leaves: list[Any],
    axes: list[int | None],
    *,
    call: Callable[..., list[jax.Array]],
    transpose: Callable[..., list[jax.Array]],
    count: int,
    avals: tuple[Any, ...],
) -> tuple[list[jax.Array], list[int]]:
    """Batching rule of `jax.vmap`; cotangents of an argument without the mapped axis are summed over that axis."""
    residual_axes, argument_axes = tuple(axes[:count]), axes[count:]
    places = [axis or 0 for axis in argument_axes]
    mapped_call = jax.vmap(call, in_axes=tuple(axes))
    mapped_transpose = jax.vmap(transpose, in_axes=residual_axes + (0,) * len(avals), out_axes=places)

    def batched_transpose(*leaves: jax.Array) -> list[jax.Array]:
        new = mapped_transpose(*leaves)
        return [x.sum(axis=0) if axis is None else x for x, axis in zip(new, argument_axes, strict=True)]

    avals = tuple(map(jax.typeof, jax.eval_shape(mapped_call, *leaves)))
    out = linear_map_p.bind(*leaves, call=mapped_call, transpose=batched_transpose, count=count, avals=avals)
    return out, [0] * len(out)


linear_map_p.def_impl(_call)
linear_map_p.def_abstract_eval(lambda *_, avals, **__: list(avals))
ad.primitive_jvps[linear_map_p] = _jvp
ad.primitive_transposes[linear_map_p] = _transpose
batching.primitive_batchers[linear_map_p] = _batch
mlir.register_lowering(linear_map_p, mlir.lower_fun(_call, multiple_results=True))
