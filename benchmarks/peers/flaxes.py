"""Workloads in Flax Linen: its RNN with the faster of its LSTM cells, under `jax.jit`."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers.cases import Case
from benchmarks.peers.jaxes import JaxLayer, JaxPeer, Work
from seqjax.tasks import td

GATES = 'ifgo'


class Flax(JaxPeer):
    """Flax Linen."""

    def layer(self, case: Case, weights: Mapping[str, np.ndarray]) -> JaxLayer:
        cell = nn.OptimizedLSTMCell(case.units)
        rnn = nn.RNN(cell)
        return JaxLayer(
            params={'cell': from_shared(weights)},
            apply=lambda params, inputs: rnn.apply({'params': params}, inputs),
            step=lambda params, carry, inputs: cell.apply({'params': params['cell']}, carry, inputs),
            carry=cell.initialize_carry(jax.random.key(0), (case.batch, case.features)),
            shared=lambda params: to_shared(params['cell']),
        )

    def replicas(self, count: int, epochs: int) -> Work:
        """Returns `epochs` training steps of the notebook's many-to-many model for `count` seeds, under `jax.vmap`."""
        model, tx, data = Notebook(), optax.adam(1e-3, eps=1e-7), td.td('many_to_many').data

        def init(key):
            params = model.init(key, data.inputs)
            return params, tx.init(params), jnp.inf

        def loss(params):
            return jnp.mean((model.apply(params, data.inputs) - data.targets) ** 2)

        def step(state):
            params, moments, _ = state
            value, grads = jax.value_and_grad(loss)(params)
            updates, moments = tx.update(grads, moments, params)
            return optax.apply_updates(params, updates), moments, value

        states = jax.jit(jax.vmap(init))(jax.random.split(jax.random.key(0), count))
        program = jax.jit(lambda states: jax.lax.fori_loop(0, epochs, lambda _, states: jax.vmap(step)(states), states))
        program = program.lower(states).compile()

        def call():
            nonlocal states
            states = jax.block_until_ready(program(states))

        return Work(call, lambda: {'loss': states[2]})


class Notebook(nn.Module):
    """LSTM(5, return_sequences=True), TimeDistributed(Dense(1))."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns outputs [B, T, 1] for inputs [B, T, 1]."""
        return nn.Dense(1)(nn.RNN(nn.OptimizedLSTMCell(5))(inputs))


def from_shared(weights: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Returns Flax's parameters: a kernel for each gate, and the bias in the recurrent part."""
    blocks = {name: np.split(array, 4, axis=-1) for name, array in weights.items()}
    inner = {f'i{gate}': {'kernel': blocks['kernel'][n]} for n, gate in enumerate(GATES)}
    outer = {
        f'h{gate}': {'kernel': blocks['recurrent_kernel'][n], 'bias': blocks['bias'][n]} for n, gate in enumerate(GATES)
    }
    return inner | outer


def to_shared(params: Mapping[str, Mapping[str, jax.Array]]) -> dict[str, jax.Array]:
    """Returns Flax's parameters in the shapes of `cases.Arrays.weights`."""

    def joined(side, name):
        return jnp.concatenate([params[f'{side}{gate}'][name] for gate in GATES], axis=-1)

    return {'kernel': joined('i', 'kernel'), 'recurrent_kernel': joined('h', 'kernel'), 'bias': joined('h', 'bias')}
