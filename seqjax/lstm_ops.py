"""The recurrence of the LSTM as an array function: one signature, several ways to compute it.

`_plain` is the recurrence as the equations of `seqjax.cells.LSTMCell` have it, differentiated by JAX. `_fast` computes
the same numbers and brings its own backward pass, which

- carries the gradients of c and h alone from step to step, so that a step needs one product and not three;
- takes the gradients of the weights from chunks of steps: one large product for each is faster than a small one for
  every step, and needs less memory, and rounds less, than one of all steps;
- keeps of each step h, c and what the gates come from, 6 H numbers a row, where JAX by itself keeps about 14 H; or h
  and c alone where more would not fit into the caches, and makes the rest once more, a chunk at a time.

`_Rows`, `_Narrow` and `_Columns` are ways for the numbers of a step to lie in memory. `BACKENDS` has all ways by name,
and `choose` says which is taken where; `./run.sh bench` measures what they are worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from seqjax import masks
from seqjax.linear_map import linear_map
from seqjax.ops import (
    ALL,
    FEW,
    SMALL,
    Rows,
    Steps,
    as_steps,
    at,
    beside,
    check_floats,
    check_weights,
    flat,
    flip,
    in_chunks,
    known,
    loop,
    sum_of_products,
    wide,
)
from seqjax.row_sharding import num_shards, shard_over_rows


class State(NamedTuple):
    """What an LSTM remembers between two steps; also the gradients of that."""

    c: jax.Array  # [B, H]
    h: jax.Array  # [B, H]


class Weights(NamedTuple):
    """Gates i, f, g, o side by side; also the gradients."""

    kernel: jax.Array  # [F, 4H]
    recurrent_kernel: jax.Array  # [H, 4H]
    bias: jax.Array  # [4H]


class Run(NamedTuple):
    """What a recurrence gives; also the gradients of that."""

    last: State
    outputs: jax.Array  # [T, B, H]: h after each step
    cells: jax.Array | None  # [T, B, H]: c after each step; None where it is not asked for


def lstm(
    inputs: jax.Array,
    carry: tuple[jax.Array, jax.Array],
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    *,
    seq_lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    fresh: tuple[jax.Array, jax.Array] | None = None,
    reverse: bool = False,
    history: bool = False,
    unroll: int | None = None,
    backend: str = 'auto',
) -> Run:
    """The LSTM of `seqjax.cells.LSTMCell`, with tanh and sigmoid, over time, which is the first axis.

    Gradients reach inputs, carry, weights and fresh in every backend, in reverse mode, in forward mode (`jax.jvp`,
    `jax.jacfwd`), and in both again (`jax.hessian`). Forward mode costs what it costs with 'plain'.

    The rows are spread over the axis 'data' of the mesh in effect (`jax.set_mesh`), where there is one.

    Args:
      inputs: [T, B, F].
      carry: c and h before the first step, each [B, H], in a dtype that they keep.
      kernel: [F, 4H], gates i, f, g, o side by side, in the dtype of the inputs, as are the other weights.
      recurrent_kernel: [H, 4H].
      bias: [4H].
      seq_lengths: integers [B], 0 to T: how many steps of each row are real, counted from the first.
      mask: bool [T, B]: which steps are real. At others c and h stay as they were, and the output is that h; their
        inputs reach nothing, as long as they are finite.
      resets: bool [T, B]: before which steps, in the order in which they are taken, c and h become those of `fresh`.
      fresh: c and h, each [B, H]; zeros by default.
      reverse: whether steps are taken from the last to the first; outputs keep the places of their inputs.
      history: whether c after each step is given, too.
      unroll: steps in one iteration of the plain backend's compiled loop; by default as `seqjax.ops.loop` says.
      backend: a key of `BACKENDS`; by default as `choose` says. Where T or B is symbolic (`jax.export`), it is 'plain'.

    Raises:
      ValueError: an argument does not fit the others; the message names it.

    >>> x, zeros, bias = jnp.ones((7, 2, 3)), jnp.zeros((2, 5)), jnp.zeros(20)
    >>> run = lstm(x, (zeros, zeros), jnp.ones((3, 20)), jnp.ones((5, 20)), bias, seq_lengths=jnp.array([7, 4]))
    >>> run.outputs.shape, bool((run.outputs[3, 1] == run.last.h[1]).all())
    ((7, 2, 5), True)
    """
    masks.check_choice('backend', backend, ('auto', *BACKENDS))
    if unroll is not None and unroll < 1:
        raise ValueError(f'unroll={unroll} must be at least 1: the steps in one iteration of the compiled loop')
    carry, weights = _state('carry', carry), Weights(kernel, recurrent_kernel, bias)
    fresh = jax.tree.map(jnp.zeros_like, carry) if fresh is None else _state('fresh', fresh)
    steps = as_steps(inputs, seq_lengths, mask, resets)
    _check(steps, carry, weights, fresh)
    count, rows, _ = inputs.shape
    devices = num_shards(rows)
    share, hidden = -(-rows // devices), recurrent_kernel.shape[0]  # rows of a device
    if backend == 'auto' or not known(count, rows) or not count:
        backend = choose(count, share, hidden, jax.default_backend())
    how = {'history': history}
    if backend == 'plain':
        how['unroll'] = (unroll if known(count) else 1) or loop(count, share * hidden)
    if reverse:
        steps = flip(steps)
    last, *others = shard_over_rows(partial(BACKENDS[backend], **how), devices)(steps, carry, weights, fresh)
    return Run(last, *(flip(others) if reverse else others))


def choose(steps: int, rows: int, hidden: int, platform: str = 'cpu') -> str:
    """The backend for T, B (on one device) and H.

    B H up to 512, T up to 8    plain, all steps unrolled
    B = 1, H up to 128          small
    H up to 32                  narrow
    H from 900 on, B from 8 on  columns
    else                        rows
    T or B symbolic             plain

    Measured on CPUs. On a GPU (an H200) the last four are ahead for H up to 512, else columns. A TPU, where nothing has
    been measured yet, has plain.
    """
    if (
        not known(steps, rows)
        or not steps
        or platform not in ('cpu', 'gpu')
        or (steps <= ALL and rows * hidden <= SMALL)
    ):
        return 'plain'
    if platform == 'gpu':
        return 'ahead' if hidden <= LAUNCHED else 'columns'
    if rows == 1 and hidden <= ALONE:
        return 'small'
    if hidden <= NARROW:
        return 'narrow'
    return 'columns' if hidden >= WIDE and rows >= MATRIX else 'rows'


ALONE, NARROW, WIDE, LAUNCHED = 128, 32, 900, 512
MATRIX = 8  # columns; fewer are multiplied as so many vectors


def _state(name: str, pair: Any) -> State:
    if len(pair) != 2:
        raise ValueError(f'{name} has {len(pair)} parts and must have 2, c and h')
    return State(*pair)


def _check(steps: Steps, carry: State, weights: Weights, fresh: State) -> None:
    """Raises ValueError where an array has not the shape or the dtype that the others say."""
    (_, rows, features), dtype = steps.inputs.shape, steps.inputs.dtype
    check_floats('inputs', dtype)
    hidden = carry.h.shape[-1] if carry.h.ndim else 0
    shapes = {'kernel': (features, 4 * hidden), 'recurrent_kernel': (hidden, 4 * hidden), 'bias': (4 * hidden,)}
    why = f'inputs {steps.inputs.shape} and a carry of {hidden} units'
    check_weights(weights, shapes, dtype, why)
    for name, state in (('carry', carry), ('fresh', fresh)):
        for part in state._fields:
            value, like = getattr(state, part), getattr(carry, part).dtype
            masks.check_shape(f'{name}.{part}', value.shape, (rows, hidden), why)
            check_floats(f'{name}.{part}', value.dtype)
            if value.dtype != like:
                raise ValueError(f'{name}.{part} is {value.dtype} and must be {like}, as a carry keeps its dtype')


# --- the plain recurrence --------------------------------------------------------------------------


def _plain(
    steps: Steps, carry: State, weights: Weights, fresh: State, *, history: bool = False, unroll: int = 1
) -> Run:
    """The equations, one step after the other; JAX differentiates them in whatever way."""

    return _scan(steps, lambda x: x @ weights.kernel, carry, weights, fresh, history=history, unroll=unroll)


def _scan(
    steps: Steps,
    of_inputs: Callable[[jax.Array], jax.Array],
    carry: State,
    weights: Weights,
    fresh: State,
    *,
    history: bool,
    unroll: int,
) -> Run:
    """`of_inputs` gives what those of a step add to its sums, [B, 4H], beside h and the bias."""
    dtype = steps.inputs.dtype

    def step(state, x):
        if x.resets is not None:
            state = masks.select(x.resets, fresh, state)
        z = of_inputs(x.inputs) + state.h.astype(dtype) @ weights.recurrent_kernel + weights.bias[None]
        i, f, g, o = jnp.split(z, 4, axis=-1)
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        new = State(c.astype(state.c.dtype), h.astype(state.h.dtype))
        if x.real is not None:
            new = masks.select(x.real, new, state)
        return new, (new.h.astype(dtype), new.c if history else None)

    last, (outputs, cells) = lax.scan(step, carry, steps, unroll=unroll)
    return Run(last, outputs, cells)


def _ahead(steps: Steps, carry: State, weights: Weights, fresh: State, *, history: bool = False) -> Run:
    """As `_plain`, with one product for the inputs of all steps, and `AT_ONCE` steps in one iteration of the loop.

    For GPUs, on which it takes longer to start an operation than to compute most of these.
    """
    ready = steps._replace(inputs=steps.inputs @ weights.kernel)
    return _scan(ready, lambda x: x, carry, weights, fresh, history=history, unroll=AT_ONCE)


AT_ONCE = 8


# --- how the numbers of a step lie -----------------------------------------------------------------


MANY = 2**20  # sums, which no cache of a core holds for long
DEAR = 128  # units, from which on a product costs more than to read what it gave


class _Rows(Rows):
    """A row of the batch is a row in memory: states [B, H], gates [B, 4H].

    Inputs and a 1 stand beside h, and the kernel and the bias below the recurrent kernel, so that one product makes all
    sums of a step, and one of a chunk the gradients of all weights. What is kept are the sums; or nothing, where there
    are many of them and they are soon made again.
    """

    def again(self, steps: int, rows: int, hidden: int) -> bool:
        """Whether the sums are made again."""
        return 4 * steps * rows * hidden >= MANY and hidden < DEAR

    def prepare(self, weights: Weights) -> jax.Array:
        """What every step multiplies with, [H + F + 1, 4H]."""
        return jnp.concatenate([weights.recurrent_kernel, weights.kernel, weights.bias[None]])

    def sums(self, matrix: jax.Array, inputs: jax.Array, h: jax.Array) -> jax.Array:
        """inputs [B, F], h [B, H] -> [B, 4H]; or all of a chunk, [B, n, ...]."""
        return beside(h, inputs) @ matrix

    def keep(self, sums: jax.Array) -> jax.Array:
        """What of them is kept for the backward pass."""
        return sums

    def gates(self, kept: jax.Array) -> list[jax.Array]:
        """-> i, f, g, o, each [B, H]."""
        return _gates(kept, self.axis)

    def prepare_back(self, weights: Weights) -> jax.Array:
        """What every step multiplies its gradients with, [4H, H]."""
        return weights.recurrent_kernel.T

    def back(self, matrix: jax.Array, dz: jax.Array) -> jax.Array:
        """dz [B, 4H] -> the gradient of h, [B, H]."""
        return dz @ matrix

    def weights(self, room: jax.Array, inputs: jax.Array, h: jax.Array) -> jax.Array:
        """inputs [B, n, F], old h [B, n, H] -> what a chunk adds to the gradients of the weights, [H + F + 1, 4H]."""
        return sum_of_products(flat(beside(h, inputs)).T, flat(room))

    def as_weights(self, gradients: jax.Array, hidden: int) -> Weights:
        return Weights(gradients[hidden:-1], gradients[:hidden], gradients[-1])

    def inputs(self, room: jax.Array, kernel: jax.Array) -> jax.Array:
        """-> the gradients of the inputs of a chunk, [B, n, F]."""
        return room @ kernel.T


class _Narrow(_Rows):
    """As `_Rows`, but the gates are kept: what a backward step has to compute is then so plain that XLA makes vector
    code of it for a few units, too.

    All gates are made in one pass over the sums, as both functions of every sum: half of that is for nothing, and
    faster than four parts put together.
    """

    def again(self, steps: int, rows: int, hidden: int) -> bool:
        return False

    def keep(self, sums: jax.Array) -> jax.Array:
        is_g = jnp.arange(sums.shape[-1]) // (sums.shape[-1] // 4) == 2
        return jnp.where(is_g[None], jnp.tanh(sums), jax.nn.sigmoid(sums))

    def gates(self, kept: jax.Array) -> list[jax.Array]:
        return jnp.split(kept, 4, axis=self.axis)


class _Columns:
    """As `_Rows`, but a row of the batch is a column in memory: states [H, B], gates [4H, B].

    The product of a large matrix with a narrow one is up to 1.6 times as fast as the other way round. What is kept are
    the gates, which is faster here than to make them again. Gradients lie as [4H, n, B], ready for a chunk's product.
    """

    axis, chunk = 0, 32

    def turn(self, x: jax.Array) -> jax.Array:
        return x.T

    def flags(self, flags: jax.Array) -> jax.Array:
        return flags[None]

    def prepare(self, weights: Weights) -> Weights:
        return Weights(weights.kernel.T, weights.recurrent_kernel.T, weights.bias[:, None])

    def again(self, steps: int, rows: int, hidden: int) -> bool:
        return False  # its products are what its time goes into

    def sums(self, matrix: Weights, inputs: jax.Array, h: jax.Array) -> jax.Array:
        return matrix.kernel @ inputs.T + matrix.recurrent_kernel @ h.astype(inputs.dtype) + matrix.bias

    def keep(self, sums: jax.Array) -> jax.Array:
        return jnp.concatenate(_gates(sums, self.axis))

    def gates(self, kept: jax.Array) -> list[jax.Array]:
        return jnp.split(kept, 4)

    def prepare_back(self, weights: Weights) -> jax.Array:
        return weights.recurrent_kernel

    def back(self, matrix: jax.Array, dz: jax.Array) -> jax.Array:
        return matrix @ dz

    def room(self, count: int, rows: int, width: int, dtype: Any) -> jax.Array:
        return jnp.zeros((width, count, rows), dtype)

    def put(self, room: jax.Array, dz: jax.Array, k: jax.Array) -> jax.Array:
        return lax.dynamic_update_index_in_dim(room, dz, k, 1)

    def weights(self, room: jax.Array, inputs: jax.Array, h: jax.Array) -> Weights:
        """Each of them transposed."""
        dz = room.reshape(len(room), math.prod(room.shape[1:]))
        bias = dz.sum(axis=1, dtype=wide(dz.dtype))
        return Weights(*(sum_of_products(dz, flat(jnp.swapaxes(x, 0, 1))) for x in (inputs, h)), bias)

    def as_weights(self, gradients: Weights, hidden: int) -> Weights:
        return Weights(*(x.T for x in gradients))

    def inputs(self, room: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.einsum('fg,gnb->bnf', kernel, room)


def _gates(z: jax.Array, axis: int) -> list[jax.Array]:
    i, f, g, o = jnp.split(z, 4, axis=axis)
    return [jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)]


# --- the fast recurrence ---------------------------------------------------------------------------


class _How(NamedTuple):
    """What is known before anything is traced."""

    form: Any  # _Rows(), _Narrow() or _Columns()
    history: bool
    again: bool  # whether the backward pass makes the sums once more


class _Kept(NamedTuple):
    """What the forward pass leaves for the backward pass."""

    steps: Steps  # with inputs [B, T, F]
    carry: State
    weights: Weights
    fresh: State
    last: State  # as it lies
    outputs: jax.Array  # [B, T, H]
    cells: jax.Array  # [T, ...] c before each step, as it lies
    kept: jax.Array | None  # [T, ...] see `keep` of the form; None where the sums are made again


class _Back(NamedTuple):
    """What the backward pass carries from a step to the one before it."""

    state: State  # gradients of c and h after the step, as they lie
    c: jax.Array  # after the step
    fresh: State | None  # gradients so far
    weights: Any  # gradients so far, see `weights` of the form
    inputs: jax.Array  # [B, T, F] gradients so far


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _fast(how: _How, steps: Steps, carry: State, weights: Weights, fresh: State) -> Run:
    return _forward(how._replace(again=True), steps, carry, weights, fresh)[0]  # there is nothing to keep it for


def _forward(how: _How, steps: Steps, carry: State, weights: Weights, fresh: State) -> tuple[Run, _Kept]:
    form, inputs = how.form, jnp.swapaxes(steps.inputs, 0, 1)
    matrix, begin = form.prepare(weights), _turn(form, fresh)

    def step(before, x):
        state, outputs = before
        old = state if x.resets is None else _where(form.flags(x.resets), begin, state)
        sums = form.sums(matrix, at(inputs, x.inputs), old.h)
        kept = None if how.again else form.keep(sums)
        i, f, g, o = _gates(sums, form.axis) if how.again else form.gates(kept)
        c = f * old.c + i * g
        h = o * jnp.tanh(c)
        new = State(c.astype(old.c.dtype), h.astype(old.h.dtype))
        if x.real is not None:
            new = _where(form.flags(x.real), new, old)
        h = form.turn(new.h).astype(outputs.dtype)
        return (new, lax.dynamic_update_index_in_dim(outputs, h, x.inputs, 1)), (state.c, kept)

    outputs = jnp.zeros_like(inputs, shape=(*inputs.shape[:2], weights.recurrent_kernel.shape[0]))
    numbered = steps._replace(inputs=jnp.arange(inputs.shape[1]))
    (last, outputs), (cells, kept) = lax.scan(step, (_turn(form, carry), outputs), numbered)
    after = None
    if how.history:
        after = jax.vmap(form.turn)(jnp.concatenate([cells[1:], last.c[None]]))
    run = Run(_turn(form, last), jnp.swapaxes(outputs, 0, 1), after)
    return run, _Kept(steps._replace(inputs=inputs), carry, weights, fresh, last, outputs, cells, kept)


@_fast.defjvp
def _fast_jvp(how: _How, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Run, Run]:
    run, kept = _forward(how, *primals)
    arguments = (tangents[0].inputs, *tangents[1:])
    return run, linear_map(partial(_tangents, how), partial(_backward, how), kept, arguments, like=run)


def _tangents(how: _How, kept: _Kept, tangents: tuple[Any, ...]) -> Run:
    """Forward mode is that of the plain recurrence."""
    inputs = jnp.swapaxes(kept.steps.inputs, 0, 1)
    return _plain_jvp(kept.steps._replace(inputs=inputs), kept.carry, kept.weights, kept.fresh, tangents, how.history)[
        1
    ]


def _plain_jvp(
    steps: Steps,
    carry: State,
    weights: Weights,
    fresh: State,
    tangents: tuple[Any, ...],
    history: bool,
    unroll: int = 1,
) -> tuple[Run, Run]:
    """What `_plain` gives, and its tangents for those of inputs, carry, weights and fresh."""

    def plain(inputs, *others):
        return _plain(steps._replace(inputs=inputs), *others, history=history, unroll=unroll)

    return jax.jvp(plain, (steps.inputs, carry, weights, fresh), tangents)


def _backward(how: _How, kept: _Kept, gradients: Run) -> tuple[Any, ...]:
    """Gradients of inputs, carry, weights and fresh."""
    form, (steps, carry, weights, fresh, *_) = how.form, kept
    gradients = gradients._replace(outputs=jnp.swapaxes(gradients.outputs, 0, 1))
    back = _Back(
        state=_turn(form, gradients.last),
        c=kept.last.c,
        fresh=None if steps.resets is None else jax.tree.map(jnp.zeros_like, _turn(form, fresh)),
        weights=None,
        inputs=jnp.zeros_like(steps.inputs),
    )
    step = _back_step(how, kept, gradients)
    again = partial(form.sums, form.prepare(weights)) if how.again else None
    back = in_chunks(form, step, back, steps, kept.outputs, carry.h, fresh.h, weights.kernel, again)
    hidden = kept.outputs.shape[-1]
    of_weights = jax.tree.map(lambda x, like: x.astype(like.dtype), form.as_weights(back.weights, hidden), weights)
    of_fresh = jax.tree.map(jnp.zeros_like, fresh) if back.fresh is None else _turn(form, back.fresh)
    return jnp.swapaxes(back.inputs, 0, 1), _turn(form, back.state), of_weights, of_fresh


def _back_step(how: _How, kept: _Kept, gradients: Run) -> Callable[..., tuple[_Back, jax.Array]]:
    """-> (t, what is carried after step t, its sums made again) -> what is carried before it, and dz as it lies."""
    form, steps, begin = how.form, kept.steps, _turn(how.form, kept.fresh)
    matrix = form.prepare_back(kept.weights)

    def step(t, back, again):
        state = State(back.state.c, back.state.h + form.turn(at(gradients.outputs, t)).astype(back.state.h.dtype))
        if how.history:
            state = state._replace(c=state.c + form.turn(gradients.cells[t]))
        passed = None
        if steps.real is not None:  # the gradients of a masked step pass it by
            real, none = form.flags(steps.real[t]), jax.tree.map(jnp.zeros_like, state)
            state, passed = _where(real, state, none), _where(real, none, state)
        before = kept.cells[t]
        anew = None if steps.resets is None else form.flags(steps.resets[t])
        old_c = before if anew is None else jnp.where(anew, begin.c, before)
        i, f, g, o = _gates(again, form.axis) if how.again else form.gates(kept.kept[t])
        squashed = jnp.tanh(back.c)
        dc = state.c + state.h * o * (1 - squashed**2)
        sums = [dc * g * i * (1 - i), dc * old_c * f * (1 - f), dc * i * (1 - g**2), state.h * squashed * o * (1 - o)]
        dz = jnp.concatenate(sums, axis=form.axis).astype(steps.inputs.dtype)
        old = State((dc * f).astype(state.c.dtype), form.back(matrix, dz).astype(state.h.dtype))
        if passed is not None:
            old = jax.tree.map(jnp.add, old, passed)
        fresh = back.fresh
        if anew is not None:
            none = jax.tree.map(jnp.zeros_like, old)
            fresh, old = jax.tree.map(jnp.add, fresh, _where(anew, old, none)), _where(anew, none, old)
        return back._replace(state=old, c=before, fresh=fresh), dz

    return step


def _turn(form: Any, state: State) -> State:
    return jax.tree.map(form.turn, state)


def _where(flags: jax.Array, x: State, y: State) -> State:
    return jax.tree.map(partial(jnp.where, flags), x, y)


# --- small ones ------------------------------------------------------------------------------------


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _small(how: _How, steps: Steps, carry: State, weights: Weights, fresh: State) -> Run:
    """Where a step is so small that what counts is how many operations it has, and not what they compute.

    The forward pass has fewest as `_Rows` has it, and forward and backward pass together as JAX makes them from a plain
    loop of some steps in one.
    """
    return _forward(how._replace(again=True), steps, carry, weights, fresh)[0]


@_small.defjvp
def _small_jvp(how: _How, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Run, Run]:
    return _plain_jvp(*primals, (tangents[0].inputs, *tangents[1:]), how.history, FEW)


def _with(run: Callable[..., Run], form: Any) -> Callable[..., Run]:
    def backend(steps, carry, *others, history=False):
        again = form.again(*steps.inputs.shape[:2], carry.h.shape[-1])
        return run(_How(form, history, again), steps, carry, *others)

    return backend


BACKENDS: dict[str, Callable[..., Run]] = {
    'plain': _plain,
    'ahead': _ahead,
    'rows': _with(_fast, _Rows()),
    'narrow': _with(_fast, _Narrow()),
    'columns': _with(_fast, _Columns()),
    'small': _with(_small, _Rows()),
}
