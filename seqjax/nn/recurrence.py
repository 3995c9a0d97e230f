"""How a cell is carried over time: step by step, fused, all steps at once, in segments computed again backward."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqjax.nn.cells.cell import OverTime
from seqjax.ops import common, masking

Carry = Any  # a tree of arrays [*B, ...]


class SequenceInputs(NamedTuple):
    """What the steps are, time first: each [T, *B, ...], or None for what there is not."""

    inputs: jax.Array  # [T, *B, F]
    real: jax.Array | None = None  # [T, *B] bool: which steps are real
    resets: jax.Array | None = None  # [T, *B] bool: before which steps the carry is made new
    index: jax.Array | None = None  # [T] the number of the step, for a cell that draws


class Scan(NamedTuple):
    """How steps are taken; the arguments of `nn.scan` among it."""

    reverse: bool
    history: bool
    unroll: int | None  # None for what suits the sizes
    lift: Mapping[str, Any]  # variable_axes, variable_broadcast, variable_carry, split_rngs
    fresh: Carry | None  # what a reset begins with
    noise: Any  # what a cell that drops has drawn for the sequence; None where nothing is dropped
    call: Callable[..., Any]  # (cell, carry, inputs, index) -> (carry, outputs)
    backend: str  # see `seqjax.ops.lstm` and `seqjax.ops.gru`


def step_by_step(cell: nn.Module, carry: Carry, steps: SequenceInputs, how: Scan) -> OverTime:
    """`nn.scan` of the cell: any cell."""

    def step(cell, carry, x):
        if x.resets is not None:
            carry = masking.select(x.resets, how.fresh, carry)
        new, y = how.call(cell, carry, x.inputs, x.index)
        new = jax.tree.map(lambda new, old: new.astype(old.dtype), new, carry)  # a loop's carry has one dtype
        if x.real is not None:
            new = masking.select(x.real, new, carry)
        return new, (y, new if how.history else None)

    count, sizes = steps.inputs.shape[0], [x.size for x in jax.tree.leaves(carry)]
    unroll = how.unroll if common.known(count) else 1
    if unroll is None:
        unroll = common.loop(count, max(sizes, default=1)) if common.known(*sizes) else 1
    scan = nn.scan(step, **how.lift, in_axes=0, out_axes=0, reverse=how.reverse, unroll=unroll)
    last, (outputs, carries) = scan(cell, carry, steps)
    return OverTime(last, outputs, carries)


def fused(cell: Any, carry: Carry, steps: SequenceInputs, how: Scan) -> OverTime:
    """All steps by an array function, for a cell that has one and says `fused`; any number of batch axes."""
    count, *batch, features = steps.inputs.shape

    def rows(x, axes):
        return None if x is None else x.reshape(*x.shape[:axes], math.prod(batch), *x.shape[axes + len(batch) :])

    def batched(x, axes):
        return x.reshape(*x.shape[:axes], *batch, x.shape[-1])

    def as_carry(tree, axes):
        return jax.tree.unflatten(jax.tree.structure(carry), [batched(x, axes) for x in jax.tree.leaves(tree)])

    inputs, mask, resets = (rows(x, 1) for x in (steps.inputs, steps.real, steps.resets))
    fresh = None if how.fresh is None else jax.tree.map(lambda x: rows(x, 0), how.fresh)
    options = {'reverse': how.reverse, 'history': how.history, 'unroll': how.unroll, 'backend': how.backend}
    flat = jax.tree.map(lambda x: rows(x, 0), carry)
    run = cell.over_time(flat, inputs, how.noise, mask=mask, resets=resets, fresh=fresh, **options)
    carries = as_carry(run.carries, 1) if how.history else None
    return OverTime(as_carry(run.last, 0), batched(run.outputs, 1), carries)


def at_once(cell: Any, carry: Carry, steps: SequenceInputs, how: Scan) -> OverTime:
    """`jax.lax.associative_scan` of h' = a h + b, for a linear cell: a masked step has a = 1 and b = 0."""
    decay, update, read = cell.affine(steps.inputs)
    state, fresh = cell.state(carry), None if how.fresh is None else cell.state(how.fresh)
    shape = steps.inputs.shape[:1] + state.shape
    decay, update = (jnp.broadcast_to(x, shape).astype(state.dtype) for x in (decay, update))
    if steps.real is not None:
        decay = masking.select(steps.real, decay, jnp.ones_like(decay))
        update = masking.zero(update, steps.real)
    if steps.resets is not None:  # what was before such a step is not multiplied by 0 but left out
        update = masking.select(steps.resets, decay * fresh[None] + update, update)
        decay = masking.zero(decay, ~steps.resets)
    if shape[0]:
        first = -1 if how.reverse else 0
        update = update.at[first].add(decay[first] * state)
    _, states = jax.lax.associative_scan(_compose, (decay, update), reverse=how.reverse)
    last = state if not shape[0] else states[0 if how.reverse else -1]
    return OverTime(cell.carry(last), read(states), cell.carry(states) if how.history else None)


def _compose(first: Any, second: Any) -> Any:
    """(a, b) of the map h -> a h + b that takes one step after another."""
    return first[0] * second[0], first[1] * second[0] + second[1]


def in_segments(
    run: Callable[..., OverTime],
    cell: nn.Module,
    carry: Carry,
    steps: SequenceInputs,
    how: Scan,
    count: int,
    batch: tuple[int, ...],
) -> OverTime:
    """`run` over `count` segments in turn, each computed again in the backward pass (Chen et al. 2016).

    What is kept in between is a carry for each segment, and the outputs. Where `count` does not divide T, masked steps
    fill the last segment.
    """
    total = steps.inputs.shape[0]
    length = max(1, -(-total // count))
    count = -(-total // length)
    if count * length > total and steps.real is None:
        steps = steps._replace(real=jnp.ones((total, *batch), bool))

    def split(x):
        x = jnp.pad(x, [(0, count * length - total), *[(0, 0)] * (x.ndim - 1)])
        return x.reshape(count, length, *x.shape[1:])

    def segment(cell, carry, steps):
        last, *rest = run(cell, carry, steps, how)
        return last, rest

    segment = nn.remat(segment, prevent_cse=False)
    scan = nn.scan(segment, **how.lift, in_axes=0, out_axes=0, reverse=how.reverse)
    last, rest = scan(cell, carry, jax.tree.map(split, steps))
    return OverTime(last, *jax.tree.map(lambda x: x.reshape(count * length, *x.shape[2:])[:total], rest))
