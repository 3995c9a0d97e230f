"""The compiled programs of a run, for one seed or for replicas, and the training loop `train`.

The loop is a generator that yields after every chunk, that is the training steps of one device call.
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

MAX_VMAP_SIZE = 65_536  # rows of a batch times size of the largest weight, up to which one `vmap` computes all replicas


def make_train_chunk(
    model: nn.Module, task: Task, tx: optax.GradientTransformation, *, steps_per_call: int, replicas: bool = False
) -> TrainChunkFn:
    """Returns a jitted train_chunk(data, evals, state, n) -> (state, metrics, split metrics).

    It takes n <= `steps_per_call` training steps, then evaluates all splits and updates the best parameters. n is an
    argument, so that a shorter chunk needs no second compilation. The leaves of the training metrics are
    [steps_per_call]; only the first n are valid. With `replicas`, the leaves of the state and of the split metrics have
    a leading axis R, and training metrics are [steps_per_call, R].
    """
    static = task._replace(data=(), evals={})

    def train_chunk(data, evals, state, n):
        full = static._replace(data=data, evals=evals)
        # A nested jit, so that the shapes of the metrics and the body of the loop share a single trace.
        step = jax.jit(partial(training_step.train_step, model, full, tx))
        metrics = jax.tree.map(lambda x: jnp.zeros((steps_per_call, *x.shape), x.dtype), jax.eval_shape(step, state)[1])

        def body(i, carry):
            state, metrics = carry
            state, new = step(state)
            return state, jax.tree.map(lambda all_steps, value: all_steps.at[i].set(value), metrics, new)

        state, metrics = jax.lax.fori_loop(0, n, body, (state, metrics))
        evals = evaluation.evaluate(model, full, state)
        config = task.early_stopping
        return state if config is None else training_step.update_best(config, state, evals), metrics, evals

    return jax.jit(_replicated(task, train_chunk) if replicas else train_chunk)


def _replicated(task: Task, train_chunk: TrainChunkFn) -> TrainChunkFn:
    """Returns `train_chunk` for states with a leading axis R, with the replicas sharded over the current mesh.

    Small replicas are computed by one `vmap`, because an operation on all replicas costs little more than on one.
    Larger replicas are computed one after the other, because batched products of their matrices are slower.
    """
    rows = max((x.shape[0] for x in jax.tree.leaves(types.batch_shapes(task)) if x.ndim), default=1)

    def by_vmap(data, evals, state, n):
        return jax.vmap(train_chunk, in_axes=(None, None, 0, None), out_axes=(0, 1, 0))(data, evals, state, n)

    def by_loop(data, evals, state, n):
        state, metrics, evals = jax.lax.map(lambda replica: train_chunk(data, evals, replica, n), state)
        return state, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), metrics), evals

    def replicated(data, evals, state, n):
        largest = sharding.largest_size((state.params, state.variables)) // len(state.step)
        f = by_vmap if rows * largest <= MAX_VMAP_SIZE else by_loop
        return f(data, evals, state, n)

    return sharding.shard_replicas(replicated)


def steps_taken(state: TrainState) -> int:
    """Returns the number of training steps of a state; replicas have the same number, so one shard is read."""
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
    """Trains from the step of `state` to step `steps`; yields after every chunk.

    A chunk ends at every multiple of `steps_per_call`, and at the last step.

    Args:
      model: called as model(batch.inputs).
      task: batches, loss and evaluation splits.
      tx: the optimizer.
      state: from `init_state`, or the last state of an earlier session.
      steps: number of training steps since the start of the run, including earlier sessions, after which to end.
      steps_per_call: maximal number of training steps in a chunk.
      train_chunk: from `make_train_chunk` with the same arguments; None makes it here.
      extra_sync_every: chunks also end at the multiples of each of these numbers of steps.
      data_fn: data_fn(first_step, num_steps) returns the data for the steps of a chunk; None uses `task.data`.

    Yields:
      The state after a chunk, the training metrics of each of its n steps (NumPy, leaves [n] or [n, R]), and the
      metrics of every split after the chunk (NumPy).
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
    """Compiled programs of a run: initialization, training of a chunk, prediction; with replicas, of R seeds."""

    init: Callable[..., TrainState]  # seed, uint32 [] or [R] -> TrainState
    train_chunk: TrainChunkFn  # see `make_train_chunk`
    predict: Callable[..., Arrays] | None  # (state, inputs) -> outputs [B, ...] or [R, B, ...]
    shapes: tuple[TrainState, Metrics, dict[str, Metrics]]  # shapes and dtypes of what `train_chunk` returns


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
    """Compiles the programs of a run before its first step, for one seed or for `replicas` seeds together.

    Under jax_disable_jit, jax_debug_nans or jax_debug_infs, `init` and `train_chunk` are not compiled ahead of time.

    Args:
      model, task, tx: see `train`.
      inputs: inputs [B, ...] of the predictions; None for no prediction program.
      steps_per_call: maximal number of training steps in a chunk.
      replicas: R, the length of the leading axis of the state; None for one seed without that axis.
      shardings: shardings of the state, while data, metrics and outputs are replicated; None for one device.
      inspect: called with the jaxprs of `train_chunk` and `predict` before they are compiled; may raise an exception.
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
            # Not compiled ahead of time: JAX runs operations one by one, or reruns them to locate a NaN.
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
    """Returns f wrapped so that every call runs inside `context()`."""

    def call(*args):
        with context():
            return f(*args)

    return call
