"""Memory layouts of the fused LSTM: batch-major, batch-major with the gates kept, feature-major."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from seqjax.ops import common, lstm_scan
from seqjax.ops.common import BackwardLayout, StepInputs
from seqjax.ops.lstm_scan import LSTMState, LSTMWeights

MANY = 2**20  # sums, which no cache of a core holds for long
DEAR = 128  # units, from which on a product costs more than to read what it gave


class BatchMajor(BackwardLayout):
    """A row of the batch is a row in memory: states [B, H], gates [B, 4H].

    Inputs and a 1 stand beside h, and the kernel and the bias below the recurrent kernel, so that one product makes all
    sums of a step, and one of a chunk the gradients of all weights. What is kept are the sums; or nothing, where there
    are many of them and they are soon made again.
    """

    def again(self, steps: int, rows: int, hidden: int) -> bool:
        """Whether the sums are made again."""
        return 4 * steps * rows * hidden >= MANY and hidden < DEAR

    def prepare(self, weights: LSTMWeights) -> jax.Array:
        """What every step multiplies with, [H + F + 1, 4H]."""
        return jnp.concatenate([weights.recurrent_kernel, weights.kernel, weights.bias[None]])

    def sums(self, matrix: jax.Array, inputs: jax.Array, h: jax.Array) -> jax.Array:
        """inputs [B, F], h [B, H] -> [B, 4H]; or all of a chunk, [B, n, ...]."""
        return common.beside(h, inputs) @ matrix

    def keep(self, sums: jax.Array) -> jax.Array:
        """What of them is kept for the backward pass."""
        return sums

    def gates(self, kept: jax.Array) -> list[jax.Array]:
        """-> i, f, g, o, each [B, H]."""
        return lstm_scan.gate_preactivations(kept, self.axis)

    def prepare_back(self, weights: LSTMWeights) -> jax.Array:
        """What every step multiplies its gradients with, [4H, H]."""
        return weights.recurrent_kernel.T

    def back(self, matrix: jax.Array, dz: jax.Array) -> jax.Array:
        """dz [B, 4H] -> the gradient of h, [B, H]."""
        return dz @ matrix

    def weights(self, room: jax.Array, inputs: jax.Array, h: jax.Array) -> jax.Array:
        """inputs [B, n, F], old h [B, n, H] -> what a chunk adds to the gradients of the weights, [H + F + 1, 4H]."""
        return common.sum_of_products(common.flat(common.beside(h, inputs)).T, common.flat(room))

    def as_weights(self, gradients: jax.Array, hidden: int) -> LSTMWeights:
        return LSTMWeights(gradients[hidden:-1], gradients[:hidden], gradients[-1])

    def inputs(self, room: jax.Array, kernel: jax.Array) -> jax.Array:
        """-> the gradients of the inputs of a chunk, [B, n, F]."""
        return room @ kernel.T


class BatchMajorGates(BatchMajor):
    """As `_Rows`, but the gates are kept: what a backward step has to compute is then so plain that XLA makes vector
    code of it for a few units, too.

    All gates are made in one pass over the sums, as both functions of every sum: half of that is for nothing, and
    faster than four parts put together.
    """

    def again(self, steps: int, rows: int, hidden: int) -> bool:
        return False

    def keep(self, sums: jax.Array) -> jax.Array:
        is_g = jnp.arange(sums.shape[-1]) // (sums.shape[-1] // 4) == 2
        return jnp.where(is_g[None], jnp.tanh(sums), jax.nn.sigmoid(sums))

    def gates(self, kept: jax.Array) -> list[jax.Array]:
        return jnp.split(kept, 4, axis=self.axis)


class FeatureMajor:
    """As `_Rows`, but a row of the batch is a column in memory: states [H, B], gates [4H, B].

    The product of a large matrix with a narrow one is up to 1.6 times as fast as the other way round. What is kept are
    the gates, which is faster here than to make them again. Gradients lie as [4H, n, B], ready for a chunk's product.
    """

    axis, chunk = 0, 32

    def turn(self, x: jax.Array) -> jax.Array:
        return x.T

    def flags(self, flags: jax.Array) -> jax.Array:
        return flags[None]

    def prepare(self, weights: LSTMWeights) -> LSTMWeights:
        return LSTMWeights(weights.kernel.T, weights.recurrent_kernel.T, weights.bias[:, None])

    def again(self, steps: int, rows: int, hidden: int) -> bool:
        return False  # its products are what its time goes into

    def sums(self, matrix: LSTMWeights, inputs: jax.Array, h: jax.Array) -> jax.Array:
        return matrix.kernel @ inputs.T + matrix.recurrent_kernel @ h.astype(inputs.dtype) + matrix.bias

    def keep(self, sums: jax.Array) -> jax.Array:
        return jnp.concatenate(lstm_scan.gate_preactivations(sums, self.axis))

    def gates(self, kept: jax.Array) -> list[jax.Array]:
        return jnp.split(kept, 4)

    def prepare_back(self, weights: LSTMWeights) -> jax.Array:
        return weights.recurrent_kernel

    def back(self, matrix: jax.Array, dz: jax.Array) -> jax.Array:
        return matrix @ dz

    def room(self, count: int, rows: int, width: int, dtype: Any) -> jax.Array:
        return jnp.zeros((width, count, rows), dtype)

    def put(self, room: jax.Array, dz: jax.Array, k: jax.Array) -> jax.Array:
        return lax.dynamic_update_index_in_dim(room, dz, k, 1)

    def weights(self, room: jax.Array, inputs: jax.Array, h: jax.Array) -> LSTMWeights:
        """Each of them transposed."""
        dz = room.reshape(len(room), math.prod(room.shape[1:]))
        bias = dz.sum(axis=1, dtype=common.wide(dz.dtype))
        return LSTMWeights(*(common.sum_of_products(dz, common.flat(jnp.swapaxes(x, 0, 1))) for x in (inputs, h)), bias)

    def as_weights(self, gradients: LSTMWeights, hidden: int) -> LSTMWeights:
        return LSTMWeights(*(x.T for x in gradients))

    def inputs(self, room: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.einsum('fg,gnb->bnf', kernel, room)


class LSTMResiduals(NamedTuple):
    """What the forward pass leaves for the backward pass."""

    steps: StepInputs  # with inputs [B, T, F]
    carry: LSTMState
    weights: LSTMWeights
    fresh: LSTMState
    last: LSTMState  # as it lies
    outputs: jax.Array  # [B, T, H]
    cells: jax.Array  # [T, ...] c before each step, as it lies
    kept: jax.Array | None  # [T, ...] see `keep` of the form; None where the sums are made again


class LSTMBackwardCarry(NamedTuple):
    """What the backward pass carries from a step to the one before it."""

    state: LSTMState  # gradients of c and h after the step, as they lie
    c: jax.Array  # after the step
    fresh: LSTMState | None  # gradients so far
    weights: Any  # gradients so far, see `weights` of the form
    inputs: jax.Array  # [B, T, F] gradients so far


def to_layout(form: Any, state: LSTMState) -> LSTMState:
    return jax.tree.map(form.turn, state)
