"""The work by Keras 3 on its JAX backend: its LSTM as a pure function, through `jax.jit`, as its own trainer has it."""

from __future__ import annotations

import os
from collections.abc import Mapping

os.environ['KERAS_BACKEND'] = 'jax'  # read when Keras is imported

import jax.numpy as jnp
import keras
import numpy as np

from experiments.peers.cases import Case
from experiments.peers.jaxes import JaxPeer, Layer

NAMES = ('kernel', 'recurrent_kernel', 'bias')  # in the order of Keras's weights


class Keras(JaxPeer):
    """Keras 3."""

    def layer(self, case: Case, weights: Mapping[str, np.ndarray]) -> Layer:
        lstm = keras.layers.LSTM(case.units, return_sequences=True)
        lstm.build((case.batch, case.steps, case.features))
        others, zeros = [variable.value for variable in lstm.non_trainable_variables], (case.batch, case.units)

        def step(params, carry, inputs):
            (outputs, carry), _ = lstm.cell.stateless_call(params, [], inputs, carry)
            return carry, outputs

        return Layer(
            params=[weights[name] for name in NAMES],
            apply=lambda params, inputs: lstm.stateless_call(params, others, inputs)[0],
            step=step,
            carry=[jnp.zeros(zeros), jnp.zeros(zeros)],
            shared=lambda params: dict(zip(NAMES, params, strict=True)),
        )
