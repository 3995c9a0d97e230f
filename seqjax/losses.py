"""Masked losses, each a Mean that is not divided yet.

A masked element changes nothing: not the value, not the count, not the gradient, whatever it holds.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seqjax.task import Batch, Mean


def squared_error(outputs: jax.Array, targets: jax.Array, mask: jax.Array) -> Mean:
    """Squared error over every element that the mask lets through.

    Args:
      outputs: [B, ...] or [B, T, ...], floating.
      targets: the same shape as `outputs`.
      mask: [B] or [B, T], bool: a leading part of that shape; its trailing axes count as one.

    Returns:
      Mean(sum of squared errors, number of elements counted).

    Raises:
      ValueError: `outputs` and `targets` differ in shape, or `mask` is not a leading part of it.

    >>> mask = jnp.array([[True, True, False], [True, False, False]])
    >>> outputs, targets = jnp.zeros((2, 3)), jnp.sqrt(jnp.array([[1.0, 3.0, 99.0], [2.0, 98.0, 97.0]]))
    >>> round(float(squared_error(outputs, targets, mask).compute()), 6)
    2.0
    """
    if outputs.shape != targets.shape:
        raise ValueError(f'outputs {outputs.shape} and targets {targets.shape} must have the same shape')
    if mask.shape != outputs.shape[: mask.ndim]:
        raise ValueError(f'mask {mask.shape} must be a leading part of the shape of outputs {outputs.shape}')
    weights = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (outputs.ndim - mask.ndim)), outputs.shape)
    # The mask goes inside the square: a NaN in padding must not reach the gradient either.
    errors = jnp.where(weights, outputs - targets, 0)
    return Mean(jnp.sum(errors**2), jnp.sum(weights, dtype=errors.dtype))


def mean_squared_error(outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
    """A Task's loss: the squared error over all targets of the batch that count."""
    return {'loss': squared_error(outputs, batch.targets, batch.mask)}
