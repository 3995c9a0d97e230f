"""The GRU cell."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqjax.nn import activations, initializers
from seqjax.nn.activations import Activation
from seqjax.nn.cells import cell
from seqjax.nn.cells.cell import DropoutMasks, HiddenCarry, RecurrentCell, RecurrentOutput
from seqjax.nn.initializers import GateBias, Initializer
from seqjax.ops import gru
from seqjax.ops.gru import GRUWeights


class GRUCell(RecurrentCell):
    """Gated recurrent unit (Cho et al. 2014, equations 5 to 8), with the reset gate after or before the product.

        z, r = recurrent_activation(x W + b + h U + d) each with its own third of W, U, b and d
        n    = activation(x W + b + r * (h U + d))  with `reset_after`: PyTorch; Keras's default; ONNX
                                                    linear_before_reset=1
        n    = activation(x W + b + (r * h) U)      without: Cho et al.; Keras reset_after=False; ONNX's default
        h'   = z * h + (1 - z) * n

    Parameters: `kernel` [F, 3H] (W), `recurrent_kernel` [H, 3H] (U), `bias` [3H] (b), and with `reset_after`
    `recurrent_bias` [3H] (d): 3 ((F + 1) H + H^2) numbers, or 3 ((F + 2) H + H^2). Without `reset_after` the second
    bias of ONNX only adds to the first. The default initializers are Keras's.

    Variants as in `RecurrentCell`. With `layer_norm` the gates z and r are normalized together, and n separately (Ba et
    al. 2016, equations 26 to 28, with biases). With `recurrent_dropout_mask='step'` the masks apply to n.
    """

    reset_after: bool = True
    activation: str | Activation = activations.TANH  # a key of ACTIVATIONS, or a function
    recurrent_activation: str | Activation = activations.SIGMOID  # of the gates z, r

    @property
    def roles(self) -> tuple[str, ...]:
        return (initializers.KEEP, '', '')

    def _default_bias(self) -> Initializer:
        return self._scheme.bias if self.reset_after else super()._default_bias()

    @nn.compact
    def __call__(
        self,
        carry: HiddenCarry,
        inputs: jax.Array,
        *,
        dropout_masks: DropoutMasks | None = None,
        deterministic: bool | None = None,
    ) -> tuple[HiddenCarry, jax.Array]:
        """Runs one time step: carry h [B, H], inputs [B, F] -> (new carry, outputs [B, H])."""
        (h,) = carry = cell.hidden_carry(carry)
        self._check_carry(carry, inputs, self.features)
        dropout_masks, act = self._call_masks(dropout_masks, deterministic, inputs), self.recurrent_activation
        xw, dropped, recurrent_kernel, bias = self._products(inputs, h, dropout_masks)
        split = [2 * self.features]
        x_gates, x_n = jnp.split(xw, split, axis=-1)
        u_gates, u_n = jnp.split(recurrent_kernel, split, axis=-1)
        b_gates, b_n = jnp.split(bias, split, axis=-1)
        if self.reset_after:
            products = jnp.split(dropped @ recurrent_kernel, split, axis=-1)
            d_gates, d_n = jnp.split(self._recurrent_bias(xw), split, axis=-1)
        else:
            products, d_gates = [dropped @ u_gates], 0
        gates = self._norm('input_norm', x_gates) + b_gates + (self._norm('recurrent_norm', products[0]) + d_gates)
        z, r = jnp.split(act(gates), 2, axis=-1)
        if self.reset_after:
            inner = r * (self._norm('recurrent_norm_n', products[1]) + d_n)
        else:
            inner = self._norm('recurrent_norm_n', (r * dropped) @ u_n)
        n = self.activation(self._norm('input_norm_n', x_n) + b_n + inner)
        for name, value in {'z': z, 'r': r, 'n': n}.items():
            self.sow('intermediates', name, value)
        new = self._zoneout(
            self.zoneout_h, z * h + (1 - z) * self._drop_candidate(n, dropout_masks), h, dropout_masks, 2
        )
        return HiddenCarry(new), new.astype(xw.dtype)

    @property
    def fused_weight_names(self) -> tuple[str, ...]:
        """Names of the weights of `run_fused`, which must exist."""
        return GRUWeights._fields if self.reset_after else GRUWeights._fields[:-1]

    @property
    def fused(self) -> bool:
        """True if `run_fused` supports the cell: tanh, sigmoid, and no variant except `reset_after` and DropConnect."""
        kinds = (self.activation, self.recurrent_activation)
        return kinds == (activations.TANH, activations.SIGMOID) and self._has_standard_step(GRUCell)

    def run_fused(
        self,
        carry: HiddenCarry,
        inputs: jax.Array,
        dropout_masks: DropoutMasks | None,
        *,
        history: bool,
        reset_carry: Any,
        **options: Any,
    ) -> RecurrentOutput:
        """Runs all time steps of inputs [T, B, F] by `seqjax.ops.gru.gru`, which also gets `options`."""
        h, reset_carry = cell.hidden_carry(carry).h, None if reset_carry is None else cell.hidden_carry(reset_carry).h
        inputs, kernel, recurrent_kernel, bias, *recurrent_bias = self._fused_weights(inputs, h, dropout_masks)
        weights = (kernel, recurrent_kernel, bias, recurrent_bias[0] if self.reset_after else None)
        options |= {'reset_carry': reset_carry, 'reset_after': self.reset_after}
        last, outputs = gru.gru(inputs, h, *weights, **options)
        return RecurrentOutput(HiddenCarry(last), outputs, HiddenCarry(outputs.astype(h.dtype)) if history else None)

    def _recurrent_bias(self, xw: jax.Array) -> jax.Array:
        # A gate bias is applied once, in `bias`.
        bias_init = None if isinstance(self.bias_init, GateBias) else self.bias_init
        init = bias_init or self._scheme.recurrent_bias
        return cell.row(self.param('recurrent_bias', init, xw.shape[-1:], self.param_dtype).astype(xw.dtype), xw)
