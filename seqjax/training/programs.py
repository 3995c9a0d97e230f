"""The compiled programs of a run, for one seed or for replicas, and the one training loop.

The loop is a generator of chunks of training steps; the host is visited between chunks only.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from seqjax import types
from seqjax.training import evaluation, sharding
from seqjax.training import step as training_step
from seqjax.training.sharding import MeshShardings
from seqjax.types import Arrays, Metrics, Task, TrainState

TrainChunkFn = Callable[..., tuple[TrainState, Metrics, dict[str, Metrics]]]

MAX_VMAP_SIZE = 65_536  # rows times numbers of the largest weight, up to which replicas are computed by one `vmap`


def make_train_chunk(
    model: nn.Module, task: Task, tx: optax.GradientTransformation, *, steps_per_call: int, replicas: bool = False
) -> TrainChunkFn:
    """Returns a compiled train_chunk(data, evals, state, n) -> (state, metrics, evals), n <= `steps_per_call`.

    n is an argument, so that the last and shorter chunk needs no second compilation. The leaves of the metrics are
    [chunk], of which the first n are set. With `replicas`, the state has a leading axis R, and the metrics are
    [chunk, R].
    """
    static = task._replace(data=(), evals={})

    def train_chunk(data, evals, state, n):
        full = static._replace(data=data, evals=evals)
        # Its own jit, so that the shapes of the metrics and the loop's body come from a single trace.
        step = jax.jit(partial(training_step.train_step, model, full, tx))
        metrics = jax.tree.map(lambda x: jnp.zeros((steps_per_call, *x.shape), x.dtype), jax.eval_shape(step, state)[1])

        def body(i, carry):
            state, metrics = carry
            state, new = step(state)
            return state, jax.tree.map(lambda all_steps, one: all_steps.at[i].set(one), metrics, new)

        state, metrics = jax.lax.fori_loop(0, n, body, (state, metrics))
        evals = evaluation.evaluate(model, full, state)
        config = task.early_stopping
        return state if config is None else training_step.update_best(config, state, evals), metrics, evals

    return jax.jit(_replicated(task, train_chunk) if replicas else train_chunk)


def _replicated(task: Task, train_chunk: TrainChunkFn) -> TrainChunkFn:
    """Returns the same for many states, the replicas sharded over the mesh in effect.

    Small replicas are computed by one `vmap`, which costs little more than one of them; products of many larger
    matrices in a batch are slower than one after the other, so those are mapped.
    """
    rows = max((x.shape[0] for x in jax.tree.leaves(types.batch_shapes(task)) if x.ndim), default=1)

    def by_vmap(data, evals, state, n):
        return jax.vmap(train_chunk, in_axes=(None, None, 0, None), out_axes=(0, 1, 0))(data, evals, state, n)

    def in_turn(data, evals, state, n):
        state, metrics, evals = jax.lax.map(lambda one: train_chunk(data, evals, one, n), state)
        return state, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), metrics), evals

    def many(data, evals, state, n):
        largest = sharding.largest_size((state.params, state.variables)) // len(state.step)
        how = by_vmap if rows * largest <= MAX_VMAP_SIZE else in_turn
        return how(data, evals, state, n)

    return sharding.shard_replicas(many)


def steps_taken(state: TrainState) -> int:
    """Returns the step count; all replicas have the same, so the local shard is enough."""
    step = state.step
    return int(np.max(step.addressable_data(0) if isinstance(step, jax.Array) else step))


def train(
    model: nn.Module,
    task: Task,
    tx: optax.GradientTransformation,
    state: TrainState,
    *,
    steps: int,
    steps_per_call: int,
    train_chunk: TrainChunkFn | None = None,
    extra_sync_every: Sequence[int] = (),
    data_fn: Callable[[int, int], Arrays] | None = None,
) -> Iterator[tuple[TrainState, Metrics, dict[str, Metrics]]]:
    """Trains to step `steps`, and yields at every multiple of `steps_per_call` and at the end.

    Args:
      model, task, tx: called as model(batch.inputs); what it is trained on; the optimizer.
      state: from `init_state`, or of an earlier session.
      steps: the step to reach, counted from the run's beginning.
      steps_per_call: training steps between two visits of the host.
      train_chunk: from `make_train_chunk` for the same model, task, optimiser and chunk; made here by default.
      extra_sync_every: the host is visited at every multiple of these, too.
      data_fn: data_fn(first_step, num_steps) returns the data for those steps; `task.data` by default.

    Yields:
      The state, the metrics of every step of the chunk (NumPy, [n] or [n, R]), the metrics of every split.
    """
    if train_chunk is None:
        train_chunk = make_train_chunk(model, task, tx, steps_per_call=steps_per_call)
    done = steps_taken(state)
    while done < steps:
        n = min(steps - done, *(eval_every - done % eval_every for eval_every in (steps_per_call, *extra_sync_every)))
        data = task.data if data_fn is None else data_fn(done, n)
        state, metrics, evals = train_chunk(data, task.evals, state, n)
        done += n
        metrics, evals = jax.device_get((metrics, evals))
        yield state, jax.tree.map(lambda x, n=n: x[:n], metrics), evals


class CompiledPrograms(NamedTuple):
    """Programs of a run, compiled before its first step, so that compiling is timed apart from training."""

    init: Callable[..., TrainState]  # seed, uint32 -> TrainState
    train_chunk: TrainChunkFn  # see make_train_chunk
    predict: Callable[..., Arrays] | None  # (state, inputs) -> outputs
    shapes: tuple[TrainState, Metrics, dict[str, Metrics]]  # of the outputs of `train_chunk`


def compile_programs(
    model: nn.Module,
    task: Task,
    tx: optax.GradientTransformation,
    inputs: Arrays | None,
    *,
    steps_per_call: int,
    replicas: int | None = None,
    shardings: MeshShardings | None = None,
    inspect: Callable[[Any], None] = lambda program: None,
) -> CompiledPrograms:
    """Compiles the programs of a run, or with `replicas` those of that many seeds together (leading axis R).

    Args:
      model, task, tx: see `train`.
      inputs: those of the predictions; None: no program for predictions.
      steps_per_call: training steps of a chunk.
      replicas: R, or None for one seed without that axis.
      shardings: where the state lies; what is for the host is replicated. None: one device.
      inspect: gets the jaxpr of each program before it is compiled, and may raise.
    """

    def mapped(f, **axes):
        return f if replicas is None else jax.vmap(f, **axes)

    seed = jax.ShapeDtypeStruct(() if replicas is None else (replicas,), jnp.uint32)
    init = mapped(lambda seed: training_step.init_state(model, task, tx, jax.random.key(seed)))
    state = jax.eval_shape(init, seed)
    of_state, replicated = (None, None) if shardings is None else (shardings.state(state), shardings.replicated)
    in_shardings, out_shardings = (replicated, replicated, of_state, replicated), (of_state, replicated, replicated)
    apply_all = mapped(partial(evaluation.apply, model), in_axes=(0, None))
    in_effect = contextlib.nullcontext if shardings is None else shardings.in_effect
    predict = None
    if inputs is not None:
        predict = jax.jit(apply_all, in_shardings=(of_state, replicated), out_shardings=replicated)
    with in_effect():
        train_chunk = jax.jit(
            make_train_chunk(model, task, tx, steps_per_call=steps_per_call, replicas=replicas is not None),
            in_shardings=in_shardings,
            out_shardings=out_shardings,
        )
        if jax.config.jax_disable_jit or jax.config.jax_debug_nans or jax.config.jax_debug_infs:
            # Nothing is compiled ahead: JAX runs each operation by itself, or again by itself to find where a NaN is.
            shapes = jax.eval_shape(train_chunk, task.data, task.evals, state, 0)
            init = jax.jit(init, out_shardings=of_state)
            return CompiledPrograms(init, _within(in_effect, train_chunk), predict, shapes)
        traced = train_chunk.trace(task.data, task.evals, state, 0)
        inspect(traced.jaxpr)
        train_chunk = traced.lower()
    if predict is not None:
        traced = predict.trace(state, inputs)
        inspect(traced.jaxpr)
        predict = traced.lower().compile()
    init = jax.jit(init, out_shardings=of_state).lower(seed).compile()
    return CompiledPrograms(init, train_chunk.compile(), predict, train_chunk.out_info)


def _within(context: Callable[[], contextlib.AbstractContextManager[Any]], f: TrainChunkFn) -> TrainChunkFn:
    """Returns f, called within the context."""

    def call(*args):
        with context():
            return f(*args)

    return call
