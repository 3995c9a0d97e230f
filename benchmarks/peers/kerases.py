"""Workloads in Keras 3 on its JAX backend: its LSTM as a pure function under `jax.jit`, as in its own trainer.

Keras is imported when the class is instantiated, in its worker only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from benchmarks.peers.cases import Case
from benchmarks.peers.jaxes import JaxLayer, JaxPeer

NAMES = ('kernel', 'recurrent_kernel', 'bias')  # in the order of Keras's weights


class Keras(JaxPeer):
    """Keras 3."""

    def __init__(self) -> None:
        os.environ['KERAS_BACKEND'] = 'jax'  # read when Keras is imported
        import keras

        self.keras = keras

    def layer(self, case: Case, weights: Mapping[str, np.ndarray]) -> JaxLayer:
        lstm = self.keras.layers.LSTM(case.units, return_sequences=True)
        lstm.build((case.batch, case.steps, case.features))
        # State of the dropout seeds, which are not used.
        others, seeds = ([x.value for x in part.non_trainable_variables] for part in (lstm, lstm.cell))
        zeros = jnp.zeros((case.batch, case.units))

        def step(params, carry, inputs):
            (outputs, carry), _ = lstm.cell.stateless_call(params, seeds, inputs, carry)
            return carry, outputs

        return JaxLayer(
            params=[weights[name] for name in NAMES],
            apply=lambda params, inputs: lstm.stateless_call(params, others, inputs)[0],
            step=step,
            carry=[zeros, zeros],
            shared=lambda params: dict(zip(NAMES, params, strict=True)),
        )
