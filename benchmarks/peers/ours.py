"""The work by seqjax, on all cores as its runs are."""

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
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.tasks import td
from seqjax.training import compile_programs, optimizers, sharding
from seqjax.training import replicas as training_replicas
from seqjax.training.sharding import MeshShardings
from seqjax.training.step import gradients
from seqjax.types import Batch, Task, TrainState


def place(model: nn.Module, task: Task, rows: int | None, replicas: int | None = None) -> MeshShardings | None:
    """Returns the shardings of a run of the task with so many rows, or replicas."""
    pays = partial(sharding.data_parallel_pays, model, task)
    return sharding.select_mesh(None, rows=rows, replicas=replicas, pays=pays)[0]


class Where(NamedTuple):
    """Where the arrays of a program lie, and what it is traced in."""

    rows: Any
    whole: Any
    tracing: contextlib.AbstractContextManager[Any]

    @classmethod
    def of(cls, model: nn.Module, task: Task, rows: int) -> Where:
        layout = place(model, task, rows)
        if layout is None:
            return cls(None, None, contextlib.nullcontext())
        divided = layout.on(sharding.DATA) if rows % layout.size == 0 else layout.replicated
        return cls(divided, layout.replicated, layout.in_effect())


def _task(case: Case, given: Arrays) -> tuple[nn.Module, Task]:
    """The layer alone as a model, and the mean squared error over all steps."""
    data = Batch(given.inputs, given.targets, np.ones((case.batch, case.steps), bool))
    return nn_rnn.RNN(LSTMCell(case.units)), Task(nn_losses.mean_squared_error, lambda data, key, step: data, data)


class Ours(JaxPeer):
    """seqjax."""

    def __init__(self) -> None:
        command.use_cores(None, 'off')

    def layer(self, case: Case, weights: Mapping[str, np.ndarray]) -> JaxLayer:
        cell = LSTMCell(case.units)
        rnn = nn_rnn.RNN(cell)
        return JaxLayer(
            params={'cell': dict(weights)},
            apply=lambda params, inputs: rnn.apply({'params': params}, inputs),
            step=lambda params, carry, inputs: cell.apply({'params': params['cell']}, carry, inputs),
            carry=cell.initialize_carry(None, (case.batch, case.features)),
            shared=lambda params: params['cell'],
        )

    def lowered_forward(self, case: Case, layer: JaxLayer, given: Arrays) -> tuple[Any, tuple[Any, ...]]:
        """Where a run would evaluate."""
        where = Where.of(*_task(case, given), case.batch)
        arguments = (jax.device_put(layer.params, where.whole), jax.device_put(given.inputs, where.rows))
        with where.tracing:
            return jax.jit(layer.apply).lower(*arguments), arguments

    def lowered(self, case: Case, layer: JaxLayer, given: Arrays) -> tuple[Any, tuple[Any, ...]]:
        """The step of a run (`training.gradients`), where a run would take it."""
        model, task = _task(case, given)
        where = Where.of(model, task, case.batch)

        def loss_and_gradients(params, data):
            state = TrainState(jnp.int32(0), jax.random.key(0), params, {}, ())
            grads, metrics, _ = gradients(model, task._replace(data=data), state)
            return metrics['loss'].compute(), grads

        arguments = (jax.device_put(layer.params, where.whole), jax.device_put(task.data, where.rows))
        with where.tracing:
            return jax.jit(loss_and_gradients).lower(*arguments), arguments

    def backend(self, what: str, cell: str, name: str, *sizes: int) -> Work:
        """A case by one of our backends, on one device."""
        case = Case(*sizes)
        given, rnn = cases.arrays(case), nn_rnn.RNN(models.CELLS[cell](case.units), backend=name)
        variables = rnn.init(jax.random.key(cases.SEED), given.inputs[:1, :1])
        layer = JaxLayer(variables, rnn.apply, step=None, carry=None, shared=None)
        lower = super().lowered_forward if what == cases.FORWARD else super().lowered
        lowered, arguments = lower(case, layer, given)
        program = lowered.compile()
        return Work(lambda: jax.block_until_ready(program(*arguments)), dict)

    def replicas(self, count: int, epochs: int) -> Work:
        """So many epochs of the notebook's many-to-many run for that many seeds, in the groups of a run."""
        task, width = td.td('many_to_many'), training_replicas.group_width(count)
        model = build_model(task.spec, ModelConfig(hidden=5))
        layout, tx = place(model, task, None, width), optimizers.adam(1e-3, 1e-7)
        programs = compile_programs(model, task, tx, None, steps_per_call=epochs, replicas=width, shardings=layout)
        groups = training_replicas.replica_groups(np.arange(count, dtype=np.uint32), width)
        states = [programs.init(jnp.asarray(training_replicas.pad_replicas(group.seeds, width))) for group in groups]
        losses = [None] * len(states)

        def call():
            for i, state in enumerate(states):
                states[i], metrics, _ = programs.train_chunk(task.data, task.evals, state, epochs)
                losses[i] = jax.block_until_ready(metrics['loss'])  # as a run, which looks at it before it goes on
            return states, losses

        return Work(call, lambda: {'loss': jnp.concatenate([loss.compute()[-1] for loss in losses])[:count]})
