"""Memory layouts of the fused LSTM: batch-major, batch-major with saved gates, feature-major."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from seqjax.ops import common, lstm_scan
from seqjax.ops.common import BackwardLayout, StepInputs
from seqjax.ops.lstm_scan import LSTMState, LSTMWeights

RECOMPUTE_MIN_SIZE = 2**20  # pre-activations, from which on they exceed a core's cache
RECOMPUTE_MAX_UNITS = 128  # units, from which on recomputing is slower than loading the residual


class BatchMajor(BackwardLayout):
    """Batch-major layout, a row of the batch being a row in memory: states [B, H], gates [B, 4H].

    One product [h, x, 1] @ [recurrent kernel; kernel; bias] computes all pre-activations of a step, and one per chunk
    the gradients of all weights. The pre-activations are saved, or recomputed if they are many and cheap.
    """

    def should_recompute(self, steps: int, rows: int, hidden: int) -> bool:
        """Returns True if the backward pass recomputes the pre-activations instead of loading them."""
        return 4 * steps * rows * hidden >= RECOMPUTE_MIN_SIZE and hidden < RECOMPUTE_MAX_UNITS

    def step_matrix(self, weights: LSTMWeights) -> jax.Array:
        """Returns the matrix of the product of a forward step, [H + F + 1, 4H]."""
        return jnp.concatenate([weights.recurrent_kernel, weights.kernel, weights.bias[None]])

    def preactivations(self, matrix: jax.Array, inputs: jax.Array, h: jax.Array) -> jax.Array:
        """Returns the pre-activations [B, 4H] of inputs [B, F] and h [B, H]; or of a chunk, [B, n, ...]."""
        return common.concat_ones(h, inputs) @ matrix

    def save(self, preactivations: jax.Array) -> jax.Array:
        """Returns the array that is saved for the backward pass."""
        return preactivations

    def gates(self, residuals: jax.Array) -> list[jax.Array]:
        """Returns the gates i, f, g, o, each [B, H], from the saved array."""
        return lstm_scan.activate_gates(residuals, self.axis)

    def backward_matrix(self, weights: LSTMWeights) -> jax.Array:
        """Returns the matrix of the product of a backward step, [4H, H]."""
        return weights.recurrent_kernel.T

    def h_gradient(self, matrix: jax.Array, dz: jax.Array) -> jax.Array:
        """Returns the gradient of h [B, H] from dz [B, 4H]."""
        return dz @ matrix

    def weights(self, buffer: jax.Array, inputs: jax.Array, h: jax.Array) -> jax.Array:
        """Returns a chunk's gradients of the weights [H + F + 1, 4H], from inputs [B, n, F] and old h [B, n, H]."""
        return common.sum_of_products(
            common.flatten_steps(common.concat_ones(h, inputs)).T, common.flatten_steps(buffer)
        )

    def as_weights(self, gradients: jax.Array, hidden: int) -> LSTMWeights:
        """Splits the gradients of the weights, summed over chunks."""
        return LSTMWeights(gradients[hidden:-1], gradients[:hidden], gradients[-1])

    def inputs(self, buffer: jax.Array, kernel: jax.Array) -> jax.Array:
        """Returns a chunk's gradients of the inputs, [B, n, F]."""
        return buffer @ kernel.T


class BatchMajorGates(BatchMajor):
    """Batch-major layout with saved gates: backward steps are then simple enough for XLA to vectorize at few units.

    All gates are computed in one pass, as both functions of every pre-activation: half of that is thrown away, which
    is still faster than concatenating four parts.
    """

    def should_recompute(self, steps: int, rows: int, hidden: int) -> bool:
        return False

    def save(self, preactivations: jax.Array) -> jax.Array:
        is_g = jnp.arange(preactivations.shape[-1]) // (preactivations.shape[-1] // 4) == 2
        return jnp.where(is_g[None], jnp.tanh(preactivations), jax.nn.sigmoid(preactivations))

    def gates(self, residuals: jax.Array) -> list[jax.Array]:
        return jnp.split(residuals, 4, axis=self.axis)


class FeatureMajor:
    """Feature-major layout, a row of the batch being a column in memory: states [H, B], gates [4H, B].

    The product of a large matrix with a narrow one is up to 1.6 times as fast as the other way round. The gates are
    saved, which is faster here than recomputing them. Gradients are stored as [4H, n, B], ready for a chunk's product.
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
        """Returns a chunk's gradients of the weights, each transposed."""
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
    """Values that the forward pass saves for the backward pass."""

    steps: StepInputs  # with inputs [B, T, F]
    carry: LSTMState
    weights: LSTMWeights
    reset_carry: LSTMState
    last: LSTMState  # in the layout
    outputs: jax.Array  # [B, T, H]
    cells: jax.Array  # [T, ...] c before each step, in the layout
    saved: jax.Array | None  # [T, ...] result of `layout.save`; None if pre-activations are recomputed


class LSTMBackwardCarry(NamedTuple):
    """Carry of the backward pass from a step to the step before it."""

    state: LSTMState  # gradients of c and h after the step, in the layout
    c: jax.Array  # c after the step
    reset_carry: LSTMState | None  # gradients so far
    weights: Any  # gradients so far, see `layout.weights`
    inputs: jax.Array  # [B, T, F] gradients so far


def state_to_layout(layout: Any, state: LSTMState) -> LSTMState:
    """Converts a state [B, H] to the layout, or back."""
    return jax.tree.map(layout.to_layout, state)
