"""The simple recurrent cell."""

import flax.linen as nn
import jax

from seqjax.nn import activations
from seqjax.nn.activations import Activation
from seqjax.nn.cells import cell
from seqjax.nn.cells.cell import DropoutMasks, HiddenCarry, RecurrentCell


class SimpleRNNCell(RecurrentCell):
    """The simple recurrent network (Elman 1990): h' = activation(x W + h U + b).

    Parameters: `kernel` [F, H] (W), `recurrent_kernel` [H, H] (U), `bias` [H] (b), that is (F + 1) H + H^2 numbers.
    The default initializers are Keras's.

    Variants as in `RecurrentCell`. With `layer_norm` the sum x W + h U is normalized (Ba et al. 2016, equation 4).
    With `recurrent_dropout_mask='step'` the masks apply to h in h U.
    """

    activation: str | Activation = activations.TANH  # a key of ACTIVATIONS, or a function

    @property
    def roles(self) -> tuple[str, ...]:
        return ('',)

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
        dropout_masks = self._call_masks(dropout_masks, deterministic, inputs)
        xw, dropped, recurrent_kernel, bias = self._products(inputs, h, dropout_masks)
        product = self._drop_candidate(dropped, dropout_masks) @ recurrent_kernel
        new = self.activation(self._norm('norm', xw + product) + bias)
        new = self._zoneout(self.zoneout_h, new, h, dropout_masks, 2)
        return HiddenCarry(new), new.astype(xw.dtype)
