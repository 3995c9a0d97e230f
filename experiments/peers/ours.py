"""The work by seqjax, on all cores as its runs are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import launch
from experiments.peers.cases import Case
from experiments.peers.jaxes import JaxPeer, Layer, Work
from seqjax import mesh, optim, sweep, train
from seqjax.cells import LSTMCell
from seqjax.layers import RNN
from seqjax.tasks import td


def place(rows: int | None, replicas: int | None = None) -> mesh.Layout | None:
    """Where a run of so many rows, or replicas, would lie."""
    layout, _ = mesh.choose(None, rows=rows, replicas=replicas)
    return layout


class Ours(JaxPeer):
    """seqjax."""

    def __init__(self) -> None:
        launch.use_cores(None, 'off')

    def places(self, rows: int) -> tuple[Any, Any]:
        layout = place(rows)
        return (None, None) if layout is None else (layout.on(mesh.DATA), layout.whole)

    def layer(self, case: Case, weights: Mapping[str, np.ndarray]) -> Layer:
        cell = LSTMCell(case.units)
        rnn = RNN(cell)
        return Layer(
            params={'cell': dict(weights)},
            apply=lambda params, inputs: rnn.apply({'params': params}, inputs),
            step=lambda params, carry, inputs: cell.apply({'params': params['cell']}, carry, inputs),
            carry=cell.initialize_carry(None, (case.batch, case.features)),
            shared=lambda params: params['cell'],
        )

    def replicas(self, count: int, epochs: int) -> Work:
        """So many epochs of the notebook's many-to-many run for that many seeds, in the groups of a run."""
        task, tx, width = td.td('many_to_many'), optim.adam(1e-3, 1e-7), sweep.group_width(count)
        layout = place(None, width)
        programs = train.compile_programs(task, tx, None, chunk=epochs, replicas=width, placement=layout)
        groups = sweep.groups(np.arange(count, dtype=np.uint32), width)
        states = [programs.init(jnp.asarray(sweep.fill(group.seeds, width))) for group in groups]
        losses = [None] * len(states)

        def call():
            for i, state in enumerate(states):
                states[i], metrics, _ = programs.advance(task.data, task.evals, state, epochs)
                losses[i] = metrics['loss']
            return jax.block_until_ready((states, losses))

        return Work(call, lambda: {'loss': jnp.concatenate([loss.compute()[-1] for loss in losses])[:count]})
