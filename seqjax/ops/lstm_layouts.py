"""Memory layouts of the fused LSTM: batch-major and feature-major."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from seqjax.ops import common, lstm_scan
from seqjax.ops.common import BackwardLayout, StepInputs
from seqjax.ops.lstm_scan import LSTMState, LSTMWeights

RECOMPUTE_MIN_SIZE = 2**20  # number of pre-activations from which on they exceed the cache of a core
RECOMPUTE_MAX_UNITS = 128  # H from which on recomputing pre-activations is slower than loading them


class BatchMajor(BackwardLayout):
    """Batch-major layout, in which a row of the batch is a row in memory: states [B, H], gates [B, 4H].

    One product [h, x, 1] @ [recurrent kernel; kernel; bias] computes all pre-activations of a step, and one product per
    chunk the gradients of all weights. The pre-activations are saved, or recomputed if T B H is large and H is small.
    """

    def should_recompute(self, steps: int, rows: int, hidden: int) -> bool:
        """Returns True if the backward pass recomputes the pre-activations, False if it loads the saved ones."""
        return 4 * steps * rows * hidden >= RECOMPUTE_MIN_SIZE and hidden < RECOMPUTE_MAX_UNITS

    def step_matrix(self, weights: LSTMWeights) -> jax.Array:
        """Returns the matrix [H + F + 1, 4H] by which a forward step multiplies [h, x, 1]."""
        return jnp.concatenate([weights.recurrent_kernel, weights.kernel, weights.bias[None]])

    def preactivations(self, matrix: jax.Array, inputs: jax.Array, h: jax.Array) -> jax.Array:
        """Returns pre-activations [B, 4H] from inputs [B, F] and h [B, H] of a step; of n steps all are [B, n, ...]."""
        return common.concat_ones(h, inputs) @ matrix

    def save(self, preactivations: jax.Array) -> jax.Array:
        """Returns the array to save for the backward pass: here the pre-activations."""
        return preactivations

    def gates(self, residuals: jax.Array) -> list[jax.Array]:
        """Returns the gates i, f, g, o, each [B, H], from the array that `save` returned."""
        return lstm_scan.activate_gates(residuals, self.axis)

    def backward_matrix(self, weights: LSTMWeights) -> jax.Array:
        """Returns the matrix [4H, H] by which a backward step multiplies the gradients dz of the pre-activations."""
        return weights.recurrent_kernel.T

    def h_gradient(self, matrix: jax.Array, dz: jax.Array) -> jax.Array:
        """Returns the gradient of the h that a step reads, [B, H], from dz [B, 4H] and `backward_matrix`."""
        return dz @ matrix

    def weights(self, buffer: jax.Array, inputs: jax.Array, h: jax.Array) -> jax.Array:
        """Returns the weight gradients [H + F + 1, 4H] of a chunk, from its inputs [B, n, F] and old h [B, n, H]."""
        return common.sum_of_products(
            common.flatten_steps(common.concat_ones(h, inputs)).T, common.flatten_steps(buffer)
        )

    def as_weights(self, gradients: jax.Array, hidden: int) -> LSTMWeights:
        """Returns `gradients`, the sum over all chunks of the results of `weights`, as `LSTMWeights`; `hidden` is H."""
        return LSTMWeights(gradients[hidden:-1], gradients[:hidden], gradients[-1])

    def inputs(self, buffer: jax.Array, kernel: jax.Array) -> jax.Array:
        """Returns the input gradients [B, n, F] of a chunk."""
        return buffer @ kernel.T


class FeatureMajor:
    """Feature-major layout, in which a row of the batch is a column in memory: states [H, B], gates [4H, B].

    The product of a large matrix with a narrow one is up to 1.6 times as fast as the other way round. The gates are
    saved, which is faster here than recomputing them. The buffer of gradients is [4H, n, B], as the products of a chunk
    need it.
    """

    axis, chunk = 0, 32

    def to_layout(self, x: jax.Array) -> jax.Array:
        return x.T

    def flags(self, flags: jax.Array) -> jax.Array:
        return flags[None]

    def step_matrix(self, weights: LSTMWeights) -> LSTMWeights:
        return LSTMWeights(weights.kernel.T, weights.recurrent_kernel.T, weights.bias[:, None])

    def should_recompute(self, steps: int, rows: int, hidden: int) -> bool:
        return False  # products take most of the time

    def preactivations(self, matrix: LSTMWeights, inputs: jax.Array, h: jax.Array) -> jax.Array:
        return matrix.kernel @ inputs.T + matrix.recurrent_kernel @ h.astype(inputs.dtype) + matrix.bias

    def save(self, preactivations: jax.Array) -> jax.Array:
        return jnp.concatenate(lstm_scan.activate_gates(preactivations, self.axis))

    def gates(self, residuals: jax.Array) -> list[jax.Array]:
        return jnp.split(residuals, 4)

    def backward_matrix(self, weights: LSTMWeights) -> jax.Array:
        return weights.recurrent_kernel

    def h_gradient(self, matrix: jax.Array, dz: jax.Array) -> jax.Array:
        return matrix @ dz

    def buffer(self, count: int, rows: int, width: int, dtype: Any) -> jax.Array:
        return jnp.zeros((width, count, rows), dtype)

    def write(self, buffer: jax.Array, dz: jax.Array, k: jax.Array) -> jax.Array:
        return lax.dynamic_update_index_in_dim(buffer, dz, k, 1)

    def weights(self, buffer: jax.Array, inputs: jax.Array, h: jax.Array) -> LSTMWeights:
        """Returns the weight gradients of a chunk as `LSTMWeights`, each transposed."""
        dz = buffer.reshape(len(buffer), math.prod(buffer.shape[1:]))
        bias = dz.sum(axis=1, dtype=common.accumulator_dtype(dz.dtype))
        return LSTMWeights(
            *(common.sum_of_products(dz, common.flatten_steps(jnp.swapaxes(x, 0, 1))) for x in (inputs, h)), bias
        )

    def as_weights(self, gradients: LSTMWeights, hidden: int) -> LSTMWeights:
        return LSTMWeights(*(x.T for x in gradients))

    def inputs(self, buffer: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.einsum('fg,gnb->bnf', kernel, buffer)


class LSTMResiduals(NamedTuple):
    """Arguments and intermediate values that the forward pass saves for the backward pass."""

    steps: StepInputs  # with inputs [B, T, F] instead of [T, B, F]
    carry: LSTMState  # before the first step
    weights: LSTMWeights
    reset_carry: LSTMState
    last: LSTMState  # after the last step, in the layout
    outputs: jax.Array  # [B, T, H]: h after each step
    cells: jax.Array  # [T, ...]: c before each step, and before its reset, in the layout
    saved: jax.Array | None  # [T, ...] result of `layout.save`; None if pre-activations are recomputed


class LSTMBackwardCarry(NamedTuple):
    """Carry of the backward pass from a time step to the step before it: gradients, and c."""

    state: LSTMState  # gradients of c and h between these steps, in the layout
    c: jax.Array  # c between these steps, in the layout
    reset_carry: LSTMState | None  # sum of gradients so far, in the layout; None without resets
    weights: Any  # sum of gradients so far, see `BatchMajor.weights`
    inputs: jax.Array  # [B, T, F], gradients of the chunks so far


def state_to_layout(layout: Any, state: LSTMState) -> LSTMState:
    """Converts c and h of a state from [B, H] to the layout, or back."""
    return jax.tree.map(layout.to_layout, state)
