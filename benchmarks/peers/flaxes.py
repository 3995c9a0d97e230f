"""Workloads in Flax Linen: its RNN with its GRU cell or the faster of its LSTM cells, under `jax.jit`."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers import cases
from benchmarks.peers.cases import Case
from benchmarks.peers.jaxes import JaxLayer, JaxPeer, Work
from seqjax.tasks import td

CELLS = {cases.LSTM: nn.OptimizedLSTMCell, cases.GRU: nn.GRUCell}
GATES = {cases.LSTM: 'ifgo', cases.GRU: 'zrn'}
BIASED = {cases.LSTM: 'h', cases.GRU: 'i'}  # part with the biases: recurrent or input; n of the GRU has both


class Flax(JaxPeer):
    """Flax Linen."""

    def layer(self, case: Case, weights: Mapping[str, np.ndarray]) -> JaxLayer:
        cell = CELLS[case.cell](case.units)
        rnn = nn.RNN(cell)
        return JaxLayer(
            params={'cell': from_shared(weights, case.cell)},
            apply=lambda params, inputs: rnn.apply({'params': params}, inputs),
            step=lambda params, carry, inputs: cell.apply({'params': params['cell']}, carry, inputs),
            carry=cell.initialize_carry(jax.random.key(0), (case.batch, case.features)),
            shared=lambda params: to_shared(params['cell'], case.cell),
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


def from_shared(weights: Mapping[str, np.ndarray], cell: str) -> dict[str, dict[str, np.ndarray]]:
    """Returns Flax's parameters: a kernel for each gate, and one bias for each gate, for n of the GRU two."""
    gates = GATES[cell]
    blocks = {name: dict(zip(gates, np.split(x, len(gates), axis=-1), strict=True)) for name, x in weights.items()}
    sides = {'i': blocks['kernel'], 'h': blocks['recurrent_kernel']}
    params = {f'{side}{gate}': {'kernel': kernels[gate]} for side, kernels in sides.items() for gate in gates}
    for gate, bias in blocks['bias'].items():
        params[f'{BIASED[cell]}{gate}']['bias'] = bias
    if cell == cases.GRU:  # the recurrent biases of z and r are 0
        params['hn']['bias'] = blocks['recurrent_bias']['n']
    return params


def to_shared(params: Mapping[str, Mapping[str, jax.Array]], cell: str) -> dict[str, jax.Array]:
    """Returns Flax's gradients in the shapes of `cases.Arrays.weights`."""

    def joined(name, *layers):
        return jnp.concatenate([params[layer][name] for layer in layers], axis=-1)

    shared = {
        'kernel': joined('kernel', *(f'i{gate}' for gate in GATES[cell])),
        'recurrent_kernel': joined('kernel', *(f'h{gate}' for gate in GATES[cell])),
        'bias': joined('bias', *(f'{BIASED[cell]}{gate}' for gate in GATES[cell])),
    }
    if cell == cases.GRU:  # z and r have one bias, whose gradient is the gradient of both of ours
        shared['recurrent_bias'] = joined('bias', 'iz', 'ir', 'hn')
    return shared
