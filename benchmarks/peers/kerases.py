"""Workloads in Keras 3 on its JAX backend: its LSTM or GRU as a pure function under `jax.jit`, as in its own trainer.

Keras is imported when the class is instantiated, in its worker only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import cases
from benchmarks.peers.cases import Case
from benchmarks.peers.jaxes import JaxLayer, JaxPeer

CARRIES = {cases.LSTM: 2, cases.GRU: 1}  # number of arrays [B, H] of a carry


class Keras(JaxPeer):
    """Keras 3."""

    def __init__(self) -> None:
        os.environ['KERAS_BACKEND'] = 'jax'  # read when Keras is imported
        import keras

        self.keras = keras

    def layer(self, case: Case, weights: Mapping[str, np.ndarray]) -> JaxLayer:
        kind = {cases.LSTM: self.keras.layers.LSTM, cases.GRU: self.keras.layers.GRU}[case.cell]
        layer = kind(case.units, return_sequences=True)
        layer.build((case.batch, case.steps, case.features))
        # State of the dropout seeds, which are not used.
        others, seeds = ([x.value for x in part.non_trainable_variables] for part in (layer, layer.cell))
        zeros = jnp.zeros((case.batch, case.units))

        def step(params, carry, inputs):
            (outputs, carry), _ = layer.cell.stateless_call(params, seeds, inputs, carry)
            return carry, outputs

        return JaxLayer(
            params=from_shared(weights),
            apply=lambda params, inputs: layer.stateless_call(params, others, inputs)[0],
            step=step,
            carry=[zeros] * CARRIES[case.cell],
            shared=to_shared,
        )


def from_shared(weights: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Returns Keras's parameters: both kernels, and the bias [4H] of an LSTM or the biases [2, 3H] of a GRU."""
    biases = [weights[name] for name in ('bias', 'recurrent_bias') if name in weights]
    return [weights['kernel'], weights['recurrent_kernel'], np.stack(biases) if len(biases) > 1 else biases[0]]


def to_shared(params: Sequence[jax.Array]) -> dict[str, jax.Array]:
    """Returns Keras's parameters or gradients in the shapes of `cases.Arrays.weights`."""
    kernel, recurrent_kernel, bias = params
    biases = {'bias': bias} if bias.ndim == 1 else {'bias': bias[0], 'recurrent_bias': bias[1]}
    return {'kernel': kernel, 'recurrent_kernel': recurrent_kernel, **biases}
