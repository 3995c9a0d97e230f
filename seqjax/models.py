"""Compositions of layers: a sequence to one vector, a sequence to a sequence."""

from __future__ import annotations

import flax.linen as nn
import jax


class SequenceToVector(nn.Module):
    """Reads a sequence and answers once, from the last output."""

    rnn: nn.Module  # [B, T, F] -> [B, H], called with return_sequences=False
    head: nn.Module  # [B, H] -> [B, O]

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """inputs [B, T, F] -> [B, O]."""
        return self.head(self.rnn(inputs, return_sequences=False))


class SequenceToSequence(nn.Module):
    """Answers at every step."""

    rnn: nn.Module  # [B, T, F] -> [B, T, H]
    head: nn.Module  # [B, T, H] -> [B, T, O]: usually TimeDistributed(nn.Dense(O))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """inputs [B, T, F] -> [B, T, O]."""
        return self.head(self.rnn(inputs))
