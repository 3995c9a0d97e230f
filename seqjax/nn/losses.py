"""Masked losses and metrics, each a Mean of total and count.

A masked element affects neither total, count nor gradient, even if it is NaN. If all elements are masked, the mean and
its gradient are 0. Axes beyond those in `seqjax`: V classes or words, N bits of a frame.

The arguments are (outputs, targets, mask). The mask is bool [B] or [B, T], True at elements that count, and covers the
leading axes of the targets; None if all elements count.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seqjax import validation
from seqjax.ops import masking
from seqjax.types import Batch, Mean

# --- helpers ---------------------------------------------------------------------------------------


def _weights(mask: jax.Array | None, shape: tuple[int, ...], name: str) -> jax.Array:
    """Returns the mask, which covers the leading axes of `shape`, broadcast to `shape`; all True if it is None."""
    if mask is None:
        return jnp.ones(shape, bool)
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    if mask.ndim > len(shape):
        raise ValueError(f'mask {mask.shape} must have the shape {shape} of {name}, or of its leading axes')
    mask = masking.as_flags(mask, shape[: mask.ndim], of=f'{name} {shape}')
    return jnp.broadcast_to(masking.expand(mask, len(shape)), shape)


def _mean(values: jax.Array, weights: jax.Array) -> Mean:
    """Returns Mean(sum of the values where `weights` is True, number of those values)."""
    return Mean(jnp.sum(jnp.where(weights, values, 0)), jnp.sum(weights, dtype=values.dtype))


def _floats(outputs: jax.Array, name: str = 'outputs') -> jax.Array:
    outputs = jnp.asarray(outputs)
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ValueError(f'{name} {outputs.shape} are {outputs.dtype} and must be floating-point numbers')
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))  # half precision loses too much


def _same_shape(outputs: jax.Array, targets: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
    outputs, targets = _floats(outputs, name), jnp.asarray(targets)
    # A silent broadcast would average over unintended pairs.
    validation.check_shape(name, outputs.shape, targets.shape, 'the same shape as targets')
    return outputs, targets.astype(outputs.dtype)


def _labels(logits: jax.Array, labels: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns logits [..., V], labels [...] with 0 at masked elements, and the mask [...], True at labels that count.

    Raises:
      ValueError: a shape or dtype is wrong, or (not in compiled code) an unmasked label is not from 0 to V-1.
    """
    logits, labels = _floats(logits, 'logits'), jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f'labels {labels.shape} are {labels.dtype} and must be integers, each the index of a class')
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f'logits {logits.shape} must be [..., V] with V of at least 1, the number of classes')
    validation.check_shape(
        'labels', labels.shape, logits.shape[:-1], f'the shape of logits {logits.shape} without the last axis'
    )
    weights, classes = _weights(mask, labels.shape, 'labels'), logits.shape[-1]
    labels = jnp.where(weights, labels, 0)
    reason = f'classes on the last axis of logits {logits.shape}; mask the labels of padding'
    validation.check_range('labels', labels, classes - 1, reason)
    # A uint8 cannot be compared with 256 classes.
    return logits, labels.astype(jnp.promote_types(labels.dtype, jnp.int32)), weights


def squared_error(outputs: jax.Array, targets: jax.Array, mask: jax.Array | None = None) -> Mean:
    """Returns the squared error as a Mean over all unmasked elements.

    Args:
      outputs: [B, ...] or [B, T, ...], floating-point.
      targets: array of the same shape as `outputs`.
      mask: bool [B] or [B, T], True at elements that count; all elements count by default.

    Returns:
      Mean(sum of squared errors, number of unmasked elements).

    Raises:
      ValueError: `outputs` are not floating-point, `targets` have another shape, or `mask` has a wrong shape or dtype.

    >>> mask = jnp.array([[True, True, False], [True, False, False]])
    >>> outputs, targets = jnp.zeros((2, 3)), jnp.sqrt(jnp.array([[1.0, 3.0, 99.0], [2.0, 98.0, 97.0]]))
    >>> round(float(squared_error(outputs, targets, mask).compute()), 6)
    2.0
    """
    outputs, targets = _same_shape(outputs, targets, 'outputs')
    weights = _weights(mask, outputs.shape, 'outputs')
    # Masked before the loss: NaN in padding would make the gradient NaN.
    errors = masking.zero(outputs, weights) - masking.zero(targets, weights)
    return _mean(errors**2, weights)


def cross_entropy(logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> Mean:
    """Returns the softmax cross-entropy in nats as a Mean over all unmasked labels.

    Logits are [B, T, V] or [B, V], labels integers [B, T] or [B]. In compiled code, which cannot raise, an unmasked
    label that is not from 0 to V-1 makes the total NaN.

    Raises:
      ValueError: a shape or dtype is wrong, or an unmasked label is not from 0 to V-1.
    """
    logits, labels, weights = _labels(logits, labels, mask)
    valid = _are_classes(labels, logits)
    values = optax.softmax_cross_entropy_with_integer_labels(masking.zero(logits, weights), jnp.where(valid, labels, 0))
    if not validation.is_concrete(labels):
        values = jnp.where(valid, values, jnp.nan)
    return _mean(values, weights)


def frame_nll(logits: jax.Array, targets: jax.Array, mask: jax.Array | None = None) -> Mean:
    """Returns the negative log-likelihood in nats of frames of N independent bits, as a Mean over unmasked frames.

    Logits and targets (0 or 1) are [B, T, N]. The loss of a frame is the sum over its N bits, the convention for the
    notes of polyphonic music (Boulanger-Lewandowski et al. 2012).

    Raises:
      ValueError: a shape or dtype is wrong.
    """
    logits, targets = _same_shape(logits, targets, 'logits')
    if logits.ndim < 2:
        raise ValueError(f'logits {logits.shape} must be [B, T, N] or [B, N]: frames of N bits')
    weights = _weights(mask, logits.shape[:-1], 'frames')
    values = optax.sigmoid_binary_cross_entropy(masking.zero(logits, weights), masking.zero(targets, weights))
    return _mean(values.sum(axis=-1), weights)


def accuracy(logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> Mean:
    """Returns the fraction of unmasked labels that have the largest logit, as a Mean; NaN logits count as wrong.

    Shapes and errors are as in `cross_entropy`. In compiled code, which cannot raise, an unmasked label that is not
    from 0 to V-1 makes the total NaN.
    """
    logits, labels, weights = _labels(logits, labels, mask)
    correct = (jnp.argmax(logits, axis=-1) == labels) & ~jnp.isnan(logits).any(axis=-1)
    return _mean(jnp.where(_are_classes(labels, logits), correct.astype(jnp.float32), jnp.nan), weights)


def _are_classes(labels: jax.Array, logits: jax.Array) -> jax.Array:
    return (labels >= 0) & (labels < logits.shape[-1])


def bits_per_character(mean: Mean) -> jax.Array:
    """Returns the mean of a cross-entropy of characters in nats, converted to bits per character."""
    return mean.compute() / jnp.log(2.0)


# --- losses of a Task ------------------------------------------------------------------------------


def mean_squared_error(outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
    """Returns {'loss': squared error over all unmasked targets of the batch}, as the `loss` of a `Task`."""
    return {'loss': squared_error(outputs, batch.targets, batch.mask)}


def classification(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    """Returns 'loss' (cross-entropy) and 'accuracy' over all unmasked targets of a batch, as the `loss` of a `Task`."""
    return {
        'loss': cross_entropy(logits, batch.targets, batch.mask),
        'accuracy': accuracy(logits, batch.targets, batch.mask),
    }
