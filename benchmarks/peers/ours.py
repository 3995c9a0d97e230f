"""Workloads in seqjax, on all CPU cores."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import cases
from benchmarks.peers.cases import Arrays, Case
from benchmarks.peers.jaxes import JaxLayer, JaxPeer, Work
from seqjax.cli import command
from seqjax.config import ModelConfig
from seqjax.nn import losses as nn_losses
from seqjax.nn import models
from seqjax.nn import rnn as nn_rnn
from seqjax.nn.build import build_model
from seqjax.tasks import td
from seqjax.training import compile_programs, optimizers, sharding
from seqjax.training import replicas as training_replicas
from seqjax.training.sharding import MeshShardings
from seqjax.training.step import gradients
from seqjax.types import Batch, Task, TrainState


def select_shardings(
    model: nn.Module, task: Task, rows: int | None, replicas: int | None = None
) -> MeshShardings | None:
    """Returns the shardings of a run with the given number of rows, or replicas."""
    pays = partial(sharding.data_parallel_pays, model, task)
    return sharding.select_mesh(None, rows=rows, replicas=replicas, pays=pays)[0]


class Placement(NamedTuple):
    """Shardings of a program's arrays, and the context in which it is traced."""

    rows: Any  # sharding of arrays with rows
    replicated: Any  # sharding of other arrays
    tracing: contextlib.AbstractContextManager[Any]

    @classmethod
    def of(cls, model: nn.Module, task: Task, rows: int) -> Placement:
        shardings = select_shardings(model, task, rows)
        if shardings is None:
            return cls(None, None, contextlib.nullcontext())
        by_rows = shardings.on(sharding.DATA) if rows % shardings.size == 0 else shardings.replicated
        return cls(by_rows, shardings.replicated, shardings.in_effect())


def _task(case: Case, arrays: Arrays) -> tuple[nn.Module, Task]:
    """Returns the layer as a model, and the task with the mean squared error over all time steps."""
    data = Batch(arrays.inputs, arrays.targets, np.ones((case.batch, case.steps), bool))
    model = nn_rnn.RNN(models.CELLS[case.cell](case.units))
    return model, Task(nn_losses.mean_squared_error, lambda data, key, step: data, data)


class Ours(JaxPeer):
    """seqjax."""

    def __init__(self) -> None:
        command.use_cores(None, 'off')

    def layer(self, case: Case, weights: Mapping[str, np.ndarray]) -> JaxLayer:
        cell = models.CELLS[case.cell](case.units)
        rnn = nn_rnn.RNN(cell)

        def step(params, carry, inputs):
            options = {'initial_carry': carry, 'return_carry': True}
            carry, outputs = rnn.apply({'params': params}, inputs[:, None], **options)
            return carry, outputs[:, 0]

        return JaxLayer(
            params={'cell': dict(weights)},
            apply=lambda params, inputs: rnn.apply({'params': params}, inputs),
            step=step,
            carry=cell.initialize_carry(None, (case.batch, case.features)),
            shared=lambda params: params['cell'],
        )

    def lowered_forward(self, case: Case, layer: JaxLayer, arrays: Arrays) -> tuple[Any, tuple[Any, ...]]:
        """Returns the lowered forward pass and its arguments, with the shardings of a run."""
        placement = Placement.of(*_task(case, arrays), case.batch)
        arguments = (jax.device_put(layer.params, placement.replicated), jax.device_put(arrays.inputs, placement.rows))
        with placement.tracing:
            return jax.jit(layer.apply).lower(*arguments), arguments

    def lowered(self, case: Case, layer: JaxLayer, arrays: Arrays) -> tuple[Any, tuple[Any, ...]]:
        """Returns the lowered training step (`training.gradients`) and its arguments, with the shardings of a run."""
        model, task = _task(case, arrays)
        placement = Placement.of(model, task, case.batch)

        def loss_and_gradients(params, data):
            state = TrainState(jnp.int32(0), jax.random.key(0), params, {}, ())
            grads, metrics, _ = gradients(model, task._replace(data=data), state)
            return metrics['loss'].compute(), grads

        arguments = (jax.device_put(layer.params, placement.replicated), jax.device_put(task.data, placement.rows))
        with placement.tracing:
            return jax.jit(loss_and_gradients).lower(*arguments), arguments

    def backend(self, what: str, name: str, *sizes: Any) -> Work:
        """Returns a forward pass or training step with a given backend, on one device."""
        case = Case(*sizes)
        arrays, rnn = cases.arrays(case), nn_rnn.RNN(models.CELLS[case.cell](case.units), backend=name)
        variables = rnn.init(jax.random.key(cases.SEED), arrays.inputs[:1, :1])
        layer = JaxLayer(variables, rnn.apply, step=None, carry=None, shared=None)
        lower = super().lowered_forward if what == cases.FORWARD else super().lowered
        lowered, arguments = lower(case, layer, arrays)
        program = lowered.compile()
        return Work(lambda: jax.block_until_ready(program(*arguments)), dict)

    def replicas(self, count: int, epochs: int) -> Work:
        """Returns `epochs` training steps of the notebook's many-to-many model for `count` seeds, in replica groups."""
        task, width = td.td('many_to_many'), training_replicas.group_width(count)
        model = build_model(task.spec, ModelConfig(hidden=5))
        shardings, tx = select_shardings(model, task, None, width), optimizers.adam(1e-3, 1e-7)
        programs = compile_programs(model, task, tx, None, steps_per_call=epochs, replicas=width, shardings=shardings)
        groups = training_replicas.replica_groups(np.arange(count, dtype=np.uint32), width)
        states = [programs.init(jnp.asarray(training_replicas.pad_replicas(group.seeds, width))) for group in groups]
        losses = [None] * len(states)

        def call():
            for i, state in enumerate(states):
                states[i], metrics, _ = programs.train_chunk(task.data, task.evals, state, epochs)
                losses[i] = jax.block_until_ready(metrics['loss'])  # a run waits for the loss of each chunk as well
            return states, losses

        return Work(call, lambda: {'loss': jnp.concatenate([loss.compute()[-1] for loss in losses])[:count]})
