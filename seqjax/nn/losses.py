"""Masked losses and metrics, each a Mean that is not divided yet.

A masked element changes nothing: not the value, not the count, not the gradient, whatever it holds. Where everything
is masked the mean is 0 and so is its gradient. Axes beyond those in `seqjax`: V classes or words, N labels.

Each takes (outputs, targets, mask); the mask is bool, [B] or [B, T], a leading part of the targets' shape, or None.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seqjax import validation
from seqjax.ops import masking
from seqjax.types import Batch, Mean


def _weights(mask: jax.Array | None, shape: tuple[int, ...], name: str) -> jax.Array:
    """The mask over an array of `shape`, bool."""
    if mask is None:
        return jnp.ones(shape, bool)
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    if mask.ndim > len(shape):
        raise ValueError(f'mask {mask.shape} must be a leading part of the shape of {name} {shape}')
    mask = masking.as_flags(mask, shape[: mask.ndim], of=f'{name} {shape}')
    return jnp.broadcast_to(masking.expand(mask, len(shape)), shape)


def _mean(values: jax.Array, weights: jax.Array) -> Mean:
    """Sum and count where the weights are True."""
    return Mean(jnp.sum(jnp.where(weights, values, 0)), jnp.sum(weights, dtype=values.dtype))


def _floats(outputs: jax.Array, name: str = 'outputs') -> jax.Array:
    outputs = jnp.asarray(outputs)
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ValueError(f'{name} {outputs.shape} are {outputs.dtype} and must be floating')
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))  # half precision is no place for a loss


def _same_shape(outputs: jax.Array, targets: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
    outputs, targets = _floats(outputs, name), jnp.asarray(targets)
    # A silent broadcast would average over pairs that nobody meant.
    validation.check_shape(name, outputs.shape, targets.shape, 'the same shape as targets')
    return outputs, targets.astype(outputs.dtype)


def _labels(logits: jax.Array, labels: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """logits [..., V], labels [...] with 0 where they are masked, weights [...]; ValueError of what does not fit."""
    logits, labels = _floats(logits, 'logits'), jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f'labels {labels.shape} are {labels.dtype} and must be integers, the index of a class')
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f'logits {logits.shape} must have classes on their last axis')
    validation.check_shape(
        'labels', labels.shape, logits.shape[:-1], f'the shape of logits {logits.shape} without classes'
    )
    weights, classes = _weights(mask, labels.shape, 'labels'), logits.shape[-1]
    labels = jnp.where(weights, labels, 0)
    reason = f'the classes on the last axis of logits {logits.shape}; mask it if it is padding'
    validation.check_range('labels', labels, classes - 1, reason)
    # A byte cannot be compared with 256 classes.
    return logits, labels.astype(jnp.promote_types(labels.dtype, jnp.int32)), weights


def squared_error(outputs: jax.Array, targets: jax.Array, mask: jax.Array | None = None) -> Mean:
    """Squared error over every element that the mask lets through: outputs and targets of one shape.

    The mask, bool, is [B] or [B, T], a leading part of that shape; its trailing axes count as one.

    >>> mask = jnp.array([[True, True, False], [True, False, False]])
    >>> outputs, targets = jnp.zeros((2, 3)), jnp.sqrt(jnp.array([[1.0, 3.0, 99.0], [2.0, 98.0, 97.0]]))
    >>> round(float(squared_error(outputs, targets, mask).compute()), 6)
    2.0
    """
    outputs, targets = _same_shape(outputs, targets, 'outputs')
    weights = _weights(mask, outputs.shape, 'outputs')
    # The mask goes inside: NaN in padding must not meet the loss, or its gradient would be NaN too.
    errors = masking.zero(outputs, weights) - masking.zero(targets, weights)
    return _mean(errors**2, weights)


def cross_entropy(logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> Mean:
    """Softmax cross-entropy in nats: logits [B, T, V] or [B, V], integer labels [B, T] or [B]; counts labels.

    Under a transformation, where labels cannot be looked at, a label that is no class makes the total NaN.

    Raises ValueError where shapes or dtypes do not fit; or a label that counts is no class.
    """
    logits, labels, weights = _labels(logits, labels, mask)
    fine = _are_classes(labels, logits)
    values = optax.softmax_cross_entropy_with_integer_labels(masking.zero(logits, weights), jnp.where(fine, labels, 0))
    if not validation.is_concrete(labels):
        values = jnp.where(fine, values, jnp.nan)
    return _mean(values, weights)


def frame_nll(logits: jax.Array, targets: jax.Array, mask: jax.Array | None = None) -> Mean:
    """Negative log-likelihood of frames of independent bits: logits and targets [B, T, N]; counts frames.

    Summed over the N notes of a frame and averaged over frames, as polyphonic music is scored (Boulanger-Lewandowski et
    al. 2012).
    """
    logits, targets = _same_shape(logits, targets, 'logits')
    if logits.ndim < 2:
        raise ValueError(f'logits {logits.shape} must have frames, whose bits are the last axis')
    weights = _weights(mask, logits.shape[:-1], 'frames')
    values = optax.sigmoid_binary_cross_entropy(masking.zero(logits, weights), masking.zero(targets, weights))
    return _mean(values.sum(axis=-1), weights)


def accuracy(logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> Mean:
    """Share of labels whose logit is the largest; shapes and errors as `cross_entropy`. NaN is never right.

    Under a transformation a label that is no class makes the total NaN.
    """
    logits, labels, weights = _labels(logits, labels, mask)
    right = (jnp.argmax(logits, axis=-1) == labels) & ~jnp.isnan(logits).any(axis=-1)
    return _mean(jnp.where(_are_classes(labels, logits), right.astype(jnp.float32), jnp.nan), weights)


def _are_classes(labels: jax.Array, logits: jax.Array) -> jax.Array:
    return (labels >= 0) & (labels < logits.shape[-1])


def bits_per_character(mean: Mean) -> jax.Array:
    """The cross-entropy of characters in bits, of a Mean in nats that all parts were merged into first."""
    return mean.compute() / jnp.log(2.0)


def mean_squared_error(outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
    """A Task's loss: the squared error over all targets of the batch that count."""
    return {'loss': squared_error(outputs, batch.targets, batch.mask)}


def classification(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    """A Task's loss: cross-entropy, with the accuracy beside it."""
    return {
        'loss': cross_entropy(logits, batch.targets, batch.mask),
        'accuracy': accuracy(logits, batch.targets, batch.mask),
    }
