"""Scans of a cell over time: sequential, fused, parallel, and in rematerialized segments."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqjax.nn.cells.cell import RecurrentOutput
from seqjax.ops import common, masking

Carry = Any  # a tree of arrays [*B, ...]


class SequenceInputs(NamedTuple):
    """Inputs and flags of all time steps, with time as the first axis."""

    inputs: jax.Array  # [T, *B, F]
    valid: jax.Array | None = None  # [T, *B] bool, True at valid steps; None if all are valid
    resets: jax.Array | None = None  # [T, *B] bool, True at steps before which the carry is reset; None: never
    index: jax.Array | None = None  # [T] index of the time step, for cells that draw random numbers


class ScanOptions(NamedTuple):
    """Options of a scan over time."""

    reverse: bool  # True to process the steps from last to first; outputs keep the places of their inputs
    history: bool  # True to return the carry after each step
    unroll: int | None  # time steps per iteration of the compiled loop; None: see `ops.common.select_unroll`
    lift: Mapping[str, Any]  # arguments of `nn.scan`: variable_axes, variable_broadcast, variable_carry, split_rngs
    reset_carry: Carry | None  # the carry after a reset; may be None without resets
    dropout_masks: Any  # masks of a stochastic cell for the sequence; None without dropout
    call: Callable[..., Any]  # (cell, carry, inputs, index) -> (carry, outputs)
    backend: str  # backend of a fused cell, see `seqjax.ops.lstm` and `seqjax.ops.gru`


def sequential_scan(cell: nn.Module, carry: Carry, steps: SequenceInputs, options: ScanOptions) -> RecurrentOutput:
    """Runs any cell step by step by `nn.scan`; masked steps leave the carry unchanged."""

    def step(cell, carry, x):
        if x.resets is not None:
            carry = masking.select(x.resets, options.reset_carry, carry)
        new, y = options.call(cell, carry, x.inputs, x.index)
        new = jax.tree.map(
            lambda new, old: new.astype(old.dtype), new, carry
        )  # the carry of a loop has a constant dtype
        if x.valid is not None:
            new = masking.select(x.valid, new, carry)
        return new, (y, new if options.history else None)

    count, sizes = steps.inputs.shape[0], [x.size for x in jax.tree.leaves(carry)]
    unroll = options.unroll if common.is_static(count) else 1
    if unroll is None:
        unroll = common.select_unroll(count, max(sizes, default=1)) if common.is_static(*sizes) else 1
    scan = nn.scan(step, **options.lift, in_axes=0, out_axes=0, reverse=options.reverse, unroll=unroll)
    last, (outputs, carries) = scan(cell, carry, steps)
    return RecurrentOutput(last, outputs, carries)


def fused_scan(cell: Any, carry: Carry, steps: SequenceInputs, options: ScanOptions) -> RecurrentOutput:
    """Runs a cell with `fused` True over time by its `run_fused`, with the batch axes *B merged into one for it."""
    count, *batch, features = steps.inputs.shape

    def rows(x, axes):
        return None if x is None else x.reshape(*x.shape[:axes], math.prod(batch), *x.shape[axes + len(batch) :])

    def batched(x, axes):
        return x.reshape(*x.shape[:axes], *batch, x.shape[-1])

    def as_carry(tree, axes):
        return jax.tree.unflatten(jax.tree.structure(carry), [batched(x, axes) for x in jax.tree.leaves(tree)])

    inputs, mask, resets = (rows(x, 1) for x in (steps.inputs, steps.valid, steps.resets))
    reset_carry = None if options.reset_carry is None else jax.tree.map(lambda x: rows(x, 0), options.reset_carry)
    arguments = {
        'reverse': options.reverse,
        'history': options.history,
        'unroll': options.unroll,
        'backend': options.backend,
    }
    flat = jax.tree.map(lambda x: rows(x, 0), carry)
    arguments |= {'mask': mask, 'resets': resets, 'reset_carry': reset_carry}
    result = cell.run_fused(flat, inputs, options.dropout_masks, **arguments)
    carries = as_carry(result.carries, 1) if options.history else None
    return RecurrentOutput(as_carry(result.last, 0), batched(result.outputs, 1), carries)


def parallel_scan(cell: Any, carry: Carry, steps: SequenceInputs, options: ScanOptions) -> RecurrentOutput:
    """Runs a linear cell by `jax.lax.associative_scan` of h' = a h + b.

    A masked step has a = 1 and b = 0, a step after a reset a = 0 and b = a reset_carry + b.
    """
    decay, update, read = cell.affine(steps.inputs)
    state, reset_carry = cell.state(carry), None if options.reset_carry is None else cell.state(options.reset_carry)
    shape = steps.inputs.shape[:1] + state.shape
    decay, update = (jnp.broadcast_to(x, shape).astype(state.dtype) for x in (decay, update))
    if steps.valid is not None:
        decay = masking.select(steps.valid, decay, jnp.ones_like(decay))
        update = masking.zero(update, steps.valid)
    resets: tuple[jax.Array, ...] = ()
    if steps.resets is not None:  # the state before a reset is dropped, not multiplied by 0: it may be infinite
        update = masking.select(steps.resets, decay * reset_carry[None] + update, update)
        decay, resets = masking.zero(decay, ~steps.resets), (steps.resets,)
    if shape[0]:
        first = -1 if options.reverse else 0
        initial = masking.zero(state, ~steps.resets[first]) if resets else state
        update = update.at[first].add(decay[first] * initial)
    _, states, *_ = jax.lax.associative_scan(_compose, (decay, update, *resets), reverse=options.reverse)
    last = state if not shape[0] else states[0 if options.reverse else -1]
    return RecurrentOutput(cell.carry(last), read(states), cell.carry(states) if options.history else None)


def _compose(first: Sequence[jax.Array], second: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Returns (a, b) of the map h -> a h + b that applies `first` (a, b) and then `second` (a, b).

    With resets, the maps are (a, b, reset), where `reset` is True if the map drops h, and then a = 0.
    """
    if len(second) == 2:
        return first[0] * second[0], first[1] * second[0] + second[1]
    update = masking.zero(first[1], ~second[2])
    return first[0] * second[0], update * second[0] + second[1], first[2] | second[2]


def segmented_scan(
    run: Callable[..., RecurrentOutput],
    cell: nn.Module,
    carry: Carry,
    steps: SequenceInputs,
    options: ScanOptions,
    count: int,
    batch: tuple[int, ...],
) -> RecurrentOutput:
    """Applies a scan to about `count` segments of the time steps in turn, to save memory (Chen et al. 2016).

    Each segment has ceil(T / count) steps; masked steps pad the last one if T is not divisible by that number. The
    forward pass saves only the outputs and the carry before each segment; the backward pass recomputes the rest. `run`
    is a scan of this module, `batch` the sizes of the batch axes *B.
    """
    total = steps.inputs.shape[0]
    length = max(1, -(-total // count))
    count = -(-total // length)
    if count * length > total and steps.valid is None:
        steps = steps._replace(valid=jnp.ones((total, *batch), bool))

    def split(x):
        x = jnp.pad(x, [(0, count * length - total), *[(0, 0)] * (x.ndim - 1)])
        return x.reshape(count, length, *x.shape[1:])

    def segment(cell, carry, steps):
        last, *rest = run(cell, carry, steps, options)
        return last, rest

    segment = nn.remat(segment, prevent_cse=False)
    scan = nn.scan(segment, **options.lift, in_axes=0, out_axes=0, reverse=options.reverse)
    last, rest = scan(cell, carry, jax.tree.map(split, steps))
    return RecurrentOutput(last, *jax.tree.map(lambda x: x.reshape(count * length, *x.shape[2:])[:total], rest))
