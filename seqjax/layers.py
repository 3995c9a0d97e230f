"""Over time: a cell carried by `nn.scan`, any module spread by `nn.vmap`."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax


class RNN(nn.Module):
    """Carries a cell over time: the parameters are shared by all steps, so their count does not depend on T.

    The cell is any that follows the protocol of `flax.linen.RNNCellBase`.
    """

    cell: nn.RNNCellBase
    unroll: int = 1  # steps in one iteration of the compiled loop: a matter of speed alone

    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Any = None,
        return_sequences: bool = True,
        return_carry: bool = False,
    ) -> Any:
        """Runs over axis 1.

        Args:
          inputs: [B, T, F].
          initial_carry: what a call with `return_carry` gave; the cell's own (zeros) by default.
          return_sequences: all outputs [B, T, H], or the last one [B, H] alone.
          return_carry: also return the carry after the last step.

        Returns:
          outputs, or (carry, outputs) as `flax.linen.RNN` does.

        Raises:
          ValueError: `inputs` is not [B, T, F], or has no step.
        """
        if inputs.ndim != 3 or inputs.shape[1] == 0:
            raise ValueError(f'inputs {inputs.shape} must be [B, T, F] with at least one step T')
        if initial_carry is None:
            # The key is for cells whose first carry is random; ours is zeros.
            initial_carry = self.cell.initialize_carry(jax.random.key(0), inputs.shape[:1] + inputs.shape[2:])
        steps = nn.scan(
            lambda cell, carry, x: cell(carry, x),
            variable_broadcast='params',
            split_rngs={'params': False},
            in_axes=1,
            out_axes=1,
            unroll=self.unroll,
        )
        carry, outputs = steps(self.cell, initial_carry, inputs)
        if not return_sequences:
            outputs = outputs[:, -1]
        return (carry, outputs) if return_carry else outputs


class TimeDistributed(nn.Module):
    """Applies one module to every time step: [B, T, ...] -> [B, T, ...], one set of parameters for all steps.

    Random streams (dropout) are drawn anew at every step.

    >>> import jax.numpy as jnp
    >>> layer = TimeDistributed(nn.Dense(2))
    >>> params = layer.init(jax.random.key(0), jnp.ones((3, 7, 4)))
    >>> jax.tree.map(jnp.shape, params)
    {'params': {'module': {'bias': (2,), 'kernel': (4, 2)}}}
    """

    module: nn.Module

    def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """inputs [B, T, ...] -> outputs [B, T, ...]; further arguments reach every step as they are."""
        if inputs.ndim < 2:
            raise ValueError(f'inputs {inputs.shape} must be [B, T, ...]: the time axis is axis 1')
        spread = nn.vmap(
            lambda module, x: module(x, *args, **kwargs),
            variable_axes={'params': None},
            split_rngs={'params': False, nn.DenyList(('params',)): True},
            in_axes=1,
            out_axes=1,
        )
        return spread(self.module, inputs)
