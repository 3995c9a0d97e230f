"""Masked losses and metrics, each a Mean of total and count.

A masked element affects neither value, count nor gradient, whatever it is. If all elements are masked, the mean and its
gradient are 0. Axes beyond those in `seqjax`: V classes or words, N labels.

The arguments are (outputs, targets, mask); the mask is bool, [B] or [B, T], a leading part of the targets' shape, or
None.
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
    """Returns the mask broadcast to `shape`."""
    if mask is None:
        return jnp.ones(shape, bool)
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    if mask.ndim > len(shape):
        raise ValueError(f'mask {mask.shape} must be a leading part of the shape of {name} {shape}')
    mask = masking.as_flags(mask, shape[: mask.ndim], of=f'{name} {shape}')
    return jnp.broadcast_to(masking.expand(mask, len(shape)), shape)


def _mean(values: jax.Array, weights: jax.Array) -> Mean:
    """Returns the sum and count of values at True weights."""
    return Mean(jnp.sum(jnp.where(weights, values, 0)), jnp.sum(weights, dtype=values.dtype))


def _floats(outputs: jax.Array, name: str = 'outputs') -> jax.Array:
    outputs = jnp.asarray(outputs)
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ValueError(f'{name} {outputs.shape} are {outputs.dtype} and must be floating')
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))  # half precision loses too much


def _same_shape(outputs: jax.Array, targets: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
    outputs, targets = _floats(outputs, name), jnp.asarray(targets)
    # A silent broadcast would average over unintended pairs.
    validation.check_shape(name, outputs.shape, targets.shape, 'the same shape as targets')
    return outputs, targets.astype(outputs.dtype)


def _labels(logits: jax.Array, labels: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns logits [..., V], labels [...] with 0 at masked elements, and weights [...].

    Raises:
      ValueError: shapes or dtypes do not fit, or an unmasked label is not from 0 to V-1.
    """
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
    reason = f'the classes on the last axis of logits {logits.shape}; mask labels that are padding'
    validation.check_range('labels', labels, classes - 1, reason)
    # A uint8 cannot be compared with 256 classes.
    return logits, labels.astype(jnp.promote_types(labels.dtype, jnp.int32)), weights


def squared_error(outputs: jax.Array, targets: jax.Array, mask: jax.Array | None = None) -> Mean:
    """Computes the squared error over all unmasked elements.

    Args:
      outputs: [B, ...] or [B, T, ...], floating.
      targets: array of the same shape as `outputs`.
      mask: [B] or [B, T], bool, a leading part of that shape.

    Returns:
      Mean(sum of squared errors, number of elements counted).

    Raises:
      ValueError: `outputs` and `targets` differ in shape, or `mask` is not a leading part of it.

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
    """Computes the softmax cross-entropy in nats of logits [B, T, V] or [B, V] and labels [B, T] or [B].

    In compiled code, which cannot raise, a label that is not a class makes the total NaN.

    Raises:
      ValueError: shapes or dtypes do not fit, or an unmasked label is not a class.
    """
    logits, labels, weights = _labels(logits, labels, mask)
    valid = _are_classes(labels, logits)
    values = optax.softmax_cross_entropy_with_integer_labels(masking.zero(logits, weights), jnp.where(valid, labels, 0))
    if not validation.is_concrete(labels):
        values = jnp.where(valid, values, jnp.nan)
    return _mean(values, weights)


def frame_nll(logits: jax.Array, targets: jax.Array, mask: jax.Array | None = None) -> Mean:
    """Computes the negative log-likelihood of frames of independent bits: logits and targets [B, T, N].

    It is summed over the N notes of a frame and averaged over frames, the convention for polyphonic music
    (Boulanger-Lewandowski et al. 2012).

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    logits, targets = _same_shape(logits, targets, 'logits')
    if logits.ndim < 2:
        raise ValueError(f'logits {logits.shape} must have at least 2 axes: frames, and their bits on the last axis')
    weights = _weights(mask, logits.shape[:-1], 'frames')
    values = optax.sigmoid_binary_cross_entropy(masking.zero(logits, weights), masking.zero(targets, weights))
    return _mean(values.sum(axis=-1), weights)


def accuracy(logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> Mean:
    """Computes the fraction of correct labels; NaN logits count as wrong. Shapes and errors as in `cross_entropy`.

    In compiled code a label that is not a class makes the total NaN.
    """
    logits, labels, weights = _labels(logits, labels, mask)
    correct = (jnp.argmax(logits, axis=-1) == labels) & ~jnp.isnan(logits).any(axis=-1)
    return _mean(jnp.where(_are_classes(labels, logits), correct.astype(jnp.float32), jnp.nan), weights)


def _are_classes(labels: jax.Array, logits: jax.Array) -> jax.Array:
    return (labels >= 0) & (labels < logits.shape[-1])


def bits_per_character(mean: Mean) -> jax.Array:
    """Converts the cross-entropy of characters, a Mean in nats, to bits per character."""
    return mean.compute() / jnp.log(2.0)


# --- losses of a Task ------------------------------------------------------------------------------


def mean_squared_error(outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
    """Returns a Task's loss: the squared error over all unmasked targets of the batch."""
    return {'loss': squared_error(outputs, batch.targets, batch.mask)}


def classification(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    """Returns a Task's loss, the cross-entropy, and the accuracy as a further metric."""
    return {
        'loss': cross_entropy(logits, batch.targets, batch.mask),
        'accuracy': accuracy(logits, batch.targets, batch.mask),
    }
