"""One training step, and the one loop that scans it: a generator of chunks.

The host is visited between chunks only. What happens at step n depends on the seed and on n alone, so a run's
numbers do not depend on the length of its chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seqjax.task import Arrays, Mean, State, Task

Metrics = dict[str, Mean]
Advance = Callable[..., tuple[State, Metrics, dict[str, Metrics]]]

INIT = 2**32 - 1  # the "step" whose key draws the initial parameters; a real step is an int32


def init_state(task: Task, tx: optax.GradientTransformation, key: jax.Array) -> State:
    """The state before the first step, from nothing but the key and the shapes of the data.

    Args:
      task: what is learned.
      tx: the optimiser.
      key: the run's seed, jax.random.key(seed).
    """
    shapes = jax.eval_shape(task.batch, task.data, key, jnp.int32(0)).inputs

    @jax.jit
    def init(key):
        params_key, other_key = jax.random.split(jax.random.fold_in(key, jnp.uint32(INIT)))
        inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        variables = task.model.init({'params': params_key, 'default': other_key}, inputs)
        params = variables.pop('params')
        return State(jnp.int32(0), key, params, variables, tx.init(params))

    return init(key)


def apply(task: Task, state: State, inputs: Arrays) -> Arrays:
    """The model's outputs; the state's variables stay as they are."""
    return task.model.apply({'params': state.params, **state.variables}, inputs)


def train_step(task: Task, tx: optax.GradientTransformation, state: State) -> tuple[State, Metrics]:
    """One step: the old state in, the new state out, with the metrics of the parameters before the update."""
    batch_key, model_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    batch = task.batch(task.data, batch_key, state.step)

    def loss_fn(params):
        outputs, variables = task.model.apply(
            {'params': params, **state.variables},
            batch.inputs,
            rngs={'default': model_key},
            mutable=list(state.variables),
        )
        metrics = task.loss(outputs, batch)
        return metrics['loss'].compute(), (metrics, variables)

    grads, (metrics, variables) = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return State(state.step + 1, state.key, params, variables, opt_state), metrics


def evaluate(task: Task, state: State) -> dict[str, Metrics]:
    """The metrics of every split of `task.evals`, summed over its batches on the device."""

    def metrics(batch):
        return task.loss(apply(task, state, batch.inputs), batch)

    return {
        split: jax.tree.map(partial(jnp.sum, axis=0), jax.lax.map(metrics, batches))
        for split, batches in task.evals.items()
    }


def make_advance(task: Task, tx: optax.GradientTransformation, *, chunk: int, replicas: bool = False) -> Advance:
    """Compiles `chunk` steps into one call: advance(data, evals, state, n) -> (state, metrics, evals).

    It takes n <= chunk steps, n being an argument, so that the last and shorter chunk needs no second compilation.
    The leaves of the metrics are [chunk], of which the first n mean something. With `replicas`, the state has a
    leading axis R, and the metrics are [chunk, R].
    """
    static = task._replace(data=(), evals={})

    def advance(data, evals, state, n):
        full = static._replace(data=data, evals=evals)
        # Its own jit, so that the shapes of the metrics and the loop's body come from a single trace.
        step = jax.jit(partial(train_step, full, tx))
        metrics = jax.tree.map(lambda x: jnp.zeros((chunk, *x.shape), x.dtype), jax.eval_shape(step, state)[1])

        def body(i, carry):
            state, metrics = carry
            state, new = step(state)
            return state, jax.tree.map(lambda all_steps, one: all_steps.at[i].set(one), metrics, new)

        state, metrics = jax.lax.fori_loop(0, n, body, (state, metrics))
        return state, metrics, evaluate(full, state)

    if replicas:
        advance = jax.vmap(advance, in_axes=(None, None, 0, None), out_axes=(0, 1, 0))
    return jax.jit(advance)


class Programs(NamedTuple):
    """All that a run executes, compiled before its first step, so that compiling is timed apart from training."""

    init: jax.stages.Compiled  # seed, uint32 -> State
    advance: jax.stages.Compiled  # see make_advance
    predict: jax.stages.Compiled  # (state, inputs) -> outputs


def compile_programs(
    task: Task, tx: optax.GradientTransformation, inputs: Arrays, *, chunk: int, replicas: int | None = None
) -> Programs:
    """Compiles the programs of a run, or with `replicas` those of that many runs side by side (leading axis R)."""

    def mapped(f, **axes):
        return jax.jit(f if replicas is None else jax.vmap(f, **axes))

    seed = jax.ShapeDtypeStruct(() if replicas is None else (replicas,), jnp.uint32)
    init = mapped(lambda seed: init_state(task, tx, jax.random.key(seed))).lower(seed)
    advance = make_advance(task, tx, chunk=chunk, replicas=replicas is not None)
    advance = advance.lower(task.data, task.evals, init.out_info, 0)
    predict = mapped(partial(apply, task), in_axes=(0, None)).lower(init.out_info, inputs)
    return Programs(init.compile(), advance.compile(), predict.compile())


def train(
    task: Task,
    tx: optax.GradientTransformation,
    state: State,
    *,
    steps: int,
    chunk: int,
    advance: Advance | None = None,
) -> Iterator[tuple[State, Metrics, dict[str, Metrics]]]:
    """Trains until `steps` steps have been taken in all, and yields after every `chunk` of them.

    Args:
      task: what is learned.
      tx: the optimiser.
      state: from `init_state`, or where a run was left.
      steps: the step to reach, counted from the run's beginning.
      chunk: steps between two visits of the host.
      advance: what `make_advance` gave for the same task, optimiser and chunk; made here by default.

    Yields:
      The state, the metrics of every step of the chunk (NumPy, [n] or [n, R]), the metrics of every split.
    """
    if advance is None:
        advance = make_advance(task, tx, chunk=chunk)
    done = int(np.max(state.step))  # replicas march in step
    while done < steps:
        n = min(chunk, steps - done)
        state, metrics, evals = advance(task.data, task.evals, state, n)
        done += n
        metrics, evals = jax.device_get((metrics, evals))
        yield state, jax.tree.map(lambda x, n=n: x[:n], metrics), evals
