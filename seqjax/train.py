"""One training step, and the one loop that scans it: a generator of chunks.

The host is visited between chunks only. What happens at step n depends on the seed and on n alone, so a run's
numbers do not depend on the length of its chunks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from seqjax import spread
from seqjax.task import (
    Arrays,
    Batch,
    Best,
    Mean,
    Params,
    State,
    Task,
    Watch,
    batch_shapes,
)

Metrics = dict[str, Mean]
Variables = Mapping[str, Arrays]
Advance = Callable[..., tuple[State, Metrics, dict[str, Metrics]]]

CARRY = 'carry'  # the collection in which a stateful model keeps where its stream stands, leaves [B, ...]
WORST = float(np.finfo(np.float32).max)  # of a watched metric before the first look; JAX_DEBUG_INFS takes no infinity
INIT = 2**32 - 1  # the "step" whose key draws the initial parameters; a real step is an int32


def init_state(task: Task, tx: optax.GradientTransformation, key: jax.Array) -> State:
    """The state before the first step, from nothing but the key and the shapes of the data.

    Args:
      task: what is learned.
      tx: the optimiser.
      key: the run's seed, jax.random.key(seed).
    """
    shapes = batch_shapes(task).inputs

    @jax.jit
    def init(key):
        params_key, _ = jax.random.split(jax.random.fold_in(key, jnp.uint32(INIT)))
        inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        variables = task.model.init({'params': params_key}, inputs)
        params = variables.pop('params')
        best = None
        if task.watch is not None:
            best = Best(jnp.float32(WORST), jnp.int32(0), params, _without_carry(variables))
        return State(jnp.int32(0), key, params, variables, tx.init(params), best)

    return init(key)


def apply(task: Task, state: State, inputs: Arrays) -> Arrays:
    """The model's outputs, without dropout; a stateful model starts anew, and the state stays as it is."""
    return task.model.apply({'params': state.params, **_without_carry(state.variables)}, inputs)


def predict(task: Task, state: State, inputs: Arrays, *, batch_size: int) -> Arrays:
    """The model's outputs for inputs [N, ...], `batch_size` rows at a time; any N, whatever the batch in training was.

    Raises:
      ValueError: the arrays of `inputs` differ in N, or `batch_size` is below 1.
    """
    counts = sorted({len(x) for x in jax.tree.leaves(inputs)})
    if len(counts) != 1 or batch_size < 1:
        raise ValueError(
            f'inputs must have one N on axis 0 and have {counts}; batch_size={batch_size} must be at least 1'
        )
    count, batches = counts[0], max(1, -(-counts[0] // batch_size))

    def split(x):  # padded with zeros, which no other row sees
        x = jnp.pad(jnp.asarray(x), [(0, batches * batch_size - count), *[(0, 0)] * (np.ndim(x) - 1)])
        return x.reshape(batches, batch_size, *x.shape[1:])

    outputs = jax.lax.map(partial(apply, task, state), jax.tree.map(split, inputs))
    return jax.tree.map(lambda y: y.reshape(batches * batch_size, *y.shape[2:])[:count], outputs)


def train_step(
    task: Task, tx: optax.GradientTransformation, state: State, *, accumulate: int = 1
) -> tuple[State, Metrics]:
    """One step: the old state in, the new state out, with the metrics of the parameters before the update.

    With `accumulate` the batch is taken in that many parts, whose gradients are weighted by what they count: the step
    is that of the whole batch, in the memory of a part.
    """
    grads, metrics, variables = gradients(task, state, accumulate=accumulate)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, variables=variables, opt_state=opt_state), metrics


def gradients(task: Task, state: State, *, accumulate: int = 1) -> tuple[Params, Metrics, Variables]:
    """What the next step sees: the gradients of its mean loss, its metrics, and the variables after its batch."""
    batch_key, model_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    batch = task.batch(task.data, batch_key, state.step)
    if accumulate != 1:
        return _accumulate(task, state, batch, model_key, accumulate)
    if _divides(task, state, batch, model_key):
        return _over_devices(task, state, batch, model_key)
    return _gradients(task, state.params, state.variables, batch, model_key)


def _gradients(
    task: Task, params: Params, variables: Variables, batch: Batch, key: jax.Array, *, divide: bool = True
) -> tuple[Params, Metrics, Variables]:
    """Gradients of the mean loss, or of its total; metrics; and the variables after the batch."""

    def loss_fn(params):
        # 'dropout' is the stream that says "training"; whatever else a model draws comes from 'params'.
        rngs = dict(zip(('params', 'dropout'), jax.random.split(key), strict=True))
        outputs, new = task.model.apply(
            {'params': params, **variables}, batch.inputs, rngs=rngs, mutable=list(variables)
        )
        metrics = task.loss(outputs, batch)
        loss = metrics['loss']
        return loss.compute() if divide else loss.total, (metrics, new)

    grads, (metrics, new) = jax.grad(loss_fn, has_aux=True)(params)
    return grads, metrics, new


def _divides(task: Task, state: State, batch: Batch, key: jax.Array) -> bool:
    """Whether devices may take their rows each by itself, and all give the numbers of one device.

    Not where the model draws (each would draw for its own rows), or keeps statistics of all rows.
    """
    rows = {x.shape[0] if x.ndim else 0 for x in jax.tree.leaves(batch)}
    count = spread.parts(min(rows))
    if count == 1 or len(rows) > 1 or _without_carry(state.variables):
        return False
    return not _draws(task, state.params, state.variables, batch, key)


def _draws(task: Task, params: Params, variables: Variables, batch: Batch, key: jax.Array) -> bool:
    """Whether the model draws in training; shapes and dtypes of its arguments are enough."""
    return spread.depends(lambda key, *rest: _gradients(task, *rest, key), key, params, variables, batch)


def worth_dividing(task: Task, work: int, widest: int) -> bool:
    """Whether devices that share one memory gain by taking the rows of a batch each by itself; nothing is computed.

    The largest weight must take part in so many products, that of its numbers with the steps of all rows: less is done
    before the devices have heard of it. It must have no more than `widest` numbers: what does not fit into the caches
    of a core is better read once, by all cores together. And the model must not draw, see `_divides`.
    """
    key, batch = jax.eval_shape(lambda: jax.random.key(0)), batch_shapes(task)
    variables = dict(jax.eval_shape(task.model.init, key, batch.inputs))
    params = variables.pop('params', {})
    steps, largest = max((math.prod(x.shape[:2]) for x in jax.tree.leaves(batch.inputs)), default=0), _largest(params)
    return steps * largest >= work and largest <= widest and not _draws(task, params, variables, batch, key)


def _largest(tree: Any) -> int:
    return max((x.size for x in jax.tree.leaves(tree)), default=0)


def _over_devices(task: Task, state: State, batch: Batch, key: jax.Array) -> tuple[Params, Metrics, Variables]:
    """As `_gradients`, each device with its rows of the batch and of the carries; totals are added up at the end.

    Where the rows cannot be divided, a few follow that count for nothing.
    """
    count = len(batch.mask)
    more = -count % spread.parts(count)

    def padded(tree):
        return jax.tree.map(lambda x: jnp.pad(x, [(0, more), *[(0, 0)] * (x.ndim - 1)]), tree)

    def part(params, carries, batch):
        grads, metrics, new = _gradients(task, params, carries, batch, key, divide=False)
        return jax.lax.psum((grads, metrics), spread.ROWS), new

    rows = P(spread.ROWS)
    part = jax.shard_map(part, in_specs=(P(), rows, rows), out_specs=(P(), rows), check_vma=False)
    (grads, metrics), carries = part(state.params, padded(state.variables), padded(batch))
    return _divide(grads, metrics), metrics, jax.tree.map(lambda x: x[:count], carries)


def _divide(grads: Params, metrics: Metrics) -> Params:
    """Gradients of the total loss -> those of its mean."""
    count = jnp.maximum(metrics['loss'].count, 1)
    return jax.tree.map(lambda total: (total / count).astype(total.dtype), grads)


def _accumulate(
    task: Task, state: State, batch: Batch, key: jax.Array, parts: int
) -> tuple[Params, Metrics, Variables]:
    """As `_gradients`, the batch in `parts` one after the other. Sums are kept in float32 or wider."""
    rows = {len(x) for x in jax.tree.leaves(batch)}
    if parts < 1:
        raise ValueError(f'accumulate={parts} must be at least 1: the parts in which a step takes its batch')
    if any(count % parts for count in rows):
        raise ValueError(f'accumulate={parts} must divide the rows of the batch, {sorted(rows)}')
    carries, others = _rows_of(state.variables), _without_carry(state.variables)

    def split(tree):
        return jax.tree.map(lambda x: x.reshape(parts, len(x) // parts, *x.shape[1:]), tree)

    def part(carry, x):
        sums, others, i = carry
        batch, carries = x
        grads, metrics, new = _gradients(
            task, state.params, {**others, **carries}, batch, jax.random.fold_in(key, i), divide=False
        )
        sums = jax.tree.map(lambda total, x: total + x.astype(total.dtype), sums, (grads, metrics))
        return (sums, _without_carry(new), i + 1), _rows_of(new)

    xs = split((batch, carries))
    first = jax.tree.map(lambda x: x[0], xs)
    shapes = jax.eval_shape(partial(_gradients, task, state.params), {**others, **first[1]}, first[0], key)[:2]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes)
    (sums, others, _), carries = jax.lax.scan(part, (zeros, others, 0), xs)
    grads, metrics = sums
    grads = jax.tree.map(lambda mean, x: mean.astype(x.dtype), _divide(grads, metrics), state.params)
    carries = jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), carries)
    return grads, metrics, {**others, **carries}


def _without_carry(variables: Variables) -> Variables:
    return {name: value for name, value in variables.items() if name != CARRY}


def _rows_of(variables: Variables) -> Variables:
    """The carries, whose leaves are [B, ...]."""
    return {name: value for name, value in variables.items() if name == CARRY}


def evaluate(task: Task, state: State) -> dict[str, Metrics]:
    """The metrics of every split of `task.evals`, summed over its batches on the device; see `over_batches`."""
    return {
        split: jax.tree.map(partial(jnp.sum, axis=0), over_batches(task, state, batches, task.loss))
        for split, batches in task.evals.items()
    }


def over_batches(task: Task, state: State, batches: Batch, f: Callable[[Arrays, Batch], Arrays]) -> Arrays:
    """f(outputs, batch) of one batch after the other, without dropout.

    A stateful model starts anew and goes on from batch to batch: the windows of one stream. Training's carry is
    neither read nor written.

    Args:
      task: its model alone is of interest.
      state: its parameters and variables alone are.
      batches: leaves [N, B, ...].
      f: what is wanted of a batch.

    Returns:
      What `f` gives, leaves [N, ...].
    """
    one = partial(one_batch, task, state, f)
    carry = before_batches(one, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches))
    return jax.lax.scan(one, carry, batches)[1]


def one_batch(
    task: Task, state: State, f: Callable[[Arrays, Batch], Arrays], carry: Variables, batch: Batch
) -> tuple[Variables, Arrays]:
    """The carry of a stateful model before a batch -> that after it, and f(outputs, batch)."""
    fixed = {'params': state.params, **_without_carry(state.variables)}
    outputs, new = task.model.apply({**fixed, **carry}, batch.inputs, mutable=[CARRY])
    return _rows_of(new), f(outputs, batch)


def before_batches(one: Callable[[Variables, Batch], tuple[Variables, Arrays]], batch: Batch) -> Variables:
    """The carry before the first batch, of whose leaves shapes and dtypes are enough.

    All zeros is a stream that has not begun; for a model without one there is nothing to carry.
    """
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, {}, batch)[0])


def over(watch: Watch, state: State) -> jax.Array:
    """Whether as many looks as its patience allows went by without a better one; [], or [R] with replicas."""
    return state.step - state.best.step >= _most_waiting(watch)


def _most_waiting(watch: Watch) -> int:
    """Steps without a better look that the patience allows: no more than a step, an int32, can count."""
    return min(watch.patience * watch.every, 2**31 - 1)


def _keep_best(watch: Watch, state: State, evals: dict[str, Metrics]) -> State:
    """The State after a look: what comes once `over` is true is not looked at, though others may train on beside it."""
    mean = evals[watch.split][watch.metric]
    value = mean.compute().astype(jnp.float32)
    at_look = (state.step > 0) & (state.step % watch.every == 0)
    # One look late: at the last one that its patience allows, a better one still counts.
    waiting = state.step - state.best.step <= _most_waiting(watch)
    better = at_look & waiting & (mean.count > 0) & (value < state.best.value)  # NaN is not better
    new = Best(value, state.step, state.params, _without_carry(state.variables))
    return state._replace(best=jax.tree.map(partial(jnp.where, better), new, state.best))


def make_advance(
    task: Task, tx: optax.GradientTransformation, *, chunk: int, replicas: bool = False, accumulate: int = 1
) -> Advance:
    """Compiles `chunk` steps into one call: advance(data, evals, state, n) -> (state, metrics, evals).

    It takes n <= chunk steps, n being an argument, so that the last and shorter chunk needs no second compilation.
    The leaves of the metrics are [chunk], of which the first n mean something. With `replicas`, the state has a
    leading axis R, and the metrics are [chunk, R]. For `accumulate` see `train_step`.
    """
    static = task._replace(data=(), evals={})

    def advance(data, evals, state, n):
        full = static._replace(data=data, evals=evals)
        # Its own jit, so that the shapes of the metrics and the loop's body come from a single trace.
        step = jax.jit(partial(train_step, full, tx, accumulate=accumulate))
        metrics = jax.tree.map(lambda x: jnp.zeros((chunk, *x.shape), x.dtype), jax.eval_shape(step, state)[1])

        def body(i, carry):
            state, metrics = carry
            state, new = step(state)
            return state, jax.tree.map(lambda all_steps, one: all_steps.at[i].set(one), metrics, new)

        state, metrics = jax.lax.fori_loop(0, n, body, (state, metrics))
        evals = evaluate(full, state)
        return state if task.watch is None else _keep_best(task.watch, state, evals), metrics, evals

    return jax.jit(_replicated(task, advance) if replicas else advance)


SIDE_BY_SIDE = 65_536  # rows times numbers of the largest weight, up to which replicas are computed at once


def _replicated(task: Task, advance: Advance) -> Advance:
    """The same for many states, each device of the mesh in effect with its own.

    Small replicas are computed side by side, as one operation for all costs little more than for one. Larger ones take
    turns: the products of many small matrices side by side are slower than one after the other.
    """
    rows = max((x.shape[0] for x in jax.tree.leaves(batch_shapes(task)) if x.ndim), default=1)

    def side_by_side(data, evals, state, n):
        return jax.vmap(advance, in_axes=(None, None, 0, None), out_axes=(0, 1, 0))(data, evals, state, n)

    def in_turn(data, evals, state, n):
        state, metrics, evals = jax.lax.map(lambda one: advance(data, evals, one, n), state)
        return state, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), metrics), evals

    def many(data, evals, state, n):
        largest = _largest((state.params, state.variables)) // len(state.step)
        how = side_by_side if rows * largest <= SIDE_BY_SIDE else in_turn
        return how(data, evals, state, n)

    each, by_step = P(spread.ROWS), P(None, spread.ROWS)
    if spread.parts(2**31) == 1:
        return many
    return jax.shard_map(many, in_specs=(P(), P(), each, P()), out_specs=(each, by_step, each), check_vma=False)


class Placement(Protocol):
    """Where arrays lie, where that is more than one device; `seqjax.mesh.Layout` is one."""

    def in_effect(self) -> contextlib.AbstractContextManager[Any]:
        """What programs are traced in."""

    @property
    def whole(self) -> jax.sharding.Sharding:
        """Of what every device has."""

    def state(self, shapes: State) -> Any:
        """Shapes -> shardings."""


class Programs(NamedTuple):
    """All that a run executes, compiled before its first step, so that compiling is timed apart from training."""

    init: Callable[..., State]  # seed, uint32 -> State
    advance: Advance  # see make_advance
    predict: Callable[..., Arrays] | None  # (state, inputs) -> outputs
    shapes: tuple[State, Metrics, dict[str, Metrics]]  # of what `advance` gives


def compile_programs(
    task: Task,
    tx: optax.GradientTransformation,
    inputs: Arrays | None,
    *,
    chunk: int,
    replicas: int | None = None,
    placement: Placement | None = None,
    inspect: Callable[[Any], None] = lambda program: None,
) -> Programs:
    """Compiles the programs of a run, or with `replicas` those of that many runs side by side (leading axis R).

    Without `inputs` there is no program for predictions. With `placement` the State lies where it says, and all that
    is for the host is on every device.

    `inspect` gets the jaxpr of each before it is compiled, and may raise.
    """

    def mapped(f, **axes):
        return f if replicas is None else jax.vmap(f, **axes)

    seed = jax.ShapeDtypeStruct(() if replicas is None else (replicas,), jnp.uint32)
    init = mapped(lambda seed: init_state(task, tx, jax.random.key(seed)))
    state = jax.eval_shape(init, seed)
    lies, whole = (None, None) if placement is None else (placement.state(state), placement.whole)
    given, taken = (whole, whole, lies, whole), (lies, whole, whole)
    apply_all = mapped(partial(apply, task), in_axes=(0, None))
    in_effect = contextlib.nullcontext if placement is None else placement.in_effect
    predict = None
    if inputs is not None:
        predict = jax.jit(apply_all, in_shardings=(lies, whole), out_shardings=whole)
    with in_effect():
        advance = jax.jit(
            make_advance(task, tx, chunk=chunk, replicas=replicas is not None), in_shardings=given, out_shardings=taken
        )
        if jax.config.jax_disable_jit or jax.config.jax_debug_nans or jax.config.jax_debug_infs:
            # Nothing is compiled ahead: JAX runs each operation by itself, or again by itself to find where a NaN is.
            shapes = jax.eval_shape(advance, task.data, task.evals, state, 0)
            return Programs(jax.jit(init, out_shardings=lies), _within(in_effect, advance), predict, shapes)
        traced = advance.trace(task.data, task.evals, state, 0)
        inspect(traced.jaxpr)
        advance = traced.lower()
    if predict is not None:
        traced = predict.trace(state, inputs)
        inspect(traced.jaxpr)
        predict = traced.lower().compile()
    init = jax.jit(init, out_shardings=lies).lower(seed).compile()
    return Programs(init, advance.compile(), predict, advance.out_info)


def _within(context: Callable[[], contextlib.AbstractContextManager[Any]], f: Advance) -> Advance:
    """f, called within the context."""

    def call(*args):
        with context():
            return f(*args)

    return call


def steps_taken(state: State) -> int:
    """Replicas march in step, and so what this process holds of them says it."""
    step = state.step
    return int(np.max(step.addressable_data(0) if isinstance(step, jax.Array) else step))


def train(
    task: Task,
    tx: optax.GradientTransformation,
    state: State,
    *,
    steps: int,
    chunk: int,
    accumulate: int = 1,
    advance: Advance | None = None,
    visits: Sequence[int] = (),
    feed: Callable[[int, int], Arrays] | None = None,
) -> Iterator[tuple[State, Metrics, dict[str, Metrics]]]:
    """Trains until `steps` steps have been taken in all, and yields at every multiple of `chunk`, and at the end.

    Args:
      task: what is learned.
      tx: the optimiser.
      state: from `init_state`, or where a run was left.
      steps: the step to reach, counted from the run's beginning.
      chunk: steps between two visits of the host.
      accumulate: parts in which a step takes its batch, see `train_step`.
      advance: what `make_advance` gave for the same task, optimiser, chunk and accumulate; made here by default.
      visits: the host is visited at every multiple of these, too.
      feed: gives the data of the steps from one on, and so many; the task's own by default.

    Yields:
      The state, the metrics of every step of the chunk (NumPy, [n] or [n, R]), the metrics of every split.
    """
    if advance is None:
        advance = make_advance(task, tx, chunk=chunk, accumulate=accumulate)
    done = steps_taken(state)
    while done < steps:
        n = min(steps - done, *(every - done % every for every in (chunk, *visits)))
        data = task.data if feed is None else feed(done, n)
        state, metrics, evals = advance(data, task.evals, state, n)
        done += n
        metrics, evals = jax.device_get((metrics, evals))
        yield state, jax.tree.map(lambda x, n=n: x[:n], metrics), evals
