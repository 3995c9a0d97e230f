"""Output heads of forecasting models, and their losses: point, Gaussian and quantile forecasts.

The key 'likelihood' of the preprocessing is the head. Axes are as in `seqjax.datasets.forecasting`.
"""

import math
from collections.abc import Mapping
from functools import partial
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.datasets import forecast_preprocessing, recursive_forecasts, schemas
from seqjax.datasets.dataset import PostprocessFn
from seqjax.datasets.recursive_forecasts import Feedback
from seqjax.nn import losses
from seqjax.tasks.synthetic import LossFn
from seqjax.types import Batch, Mean, ModelSpec

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # levels of quantile forecasts, from 'quantile' or 'gaussian'
NUM_OUTPUTS = {'point': 1, 'gaussian': 2, 'quantile': len(QUANTILES)}  # K of each head: outputs per forecast value
SCALE = schemas.list_of(schemas.number(), 2)  # rule for [mean, standard deviation]


def spec(preprocessing: Mapping[str, Any]) -> ModelSpec:
    """Returns the ModelSpec of a forecasting model with the preprocessing of a run."""
    targets, numbers = len(preprocessing['targets']), NUM_OUTPUTS[preprocessing['likelihood']]
    is_direct, horizon = preprocessing['strategy'] == 'direct', preprocessing['horizon']
    calendar, lag = 2 * len(preprocessing['cycles']), preprocessing['lag']
    feedback = partial(Feedback, targets=targets, horizon=horizon, numbers=numbers, calendar=calendar, lag=lag)
    return ModelSpec(
        'per_step',
        outputs=(horizon if is_direct else 1) * targets * numbers,
        features=len(forecast_preprocessing.channels(preprocessing)),
        causal=True,
        memory_span=preprocessing['window'],
        wrap_model=None if is_direct else feedback,
    )


def postprocess(preprocessing: Mapping[str, Any]) -> PostprocessFn:
    """Returns the function (outputs, batch) -> scaled forecasts: points [B, T, H, C, 1] or quantiles [B, T, H, C, 5].

    The head 'point' has points; 'gaussian' and 'quantile' have quantiles.
    """
    return lambda outputs, batch: quantiles(forecasts(outputs, batch, preprocessing), preprocessing['likelihood'])


def forecasts(outputs: jax.Array, batch: Batch, preprocessing: Mapping[str, Any]) -> jax.Array:
    """Returns outputs reshaped to [B, T, H, C, K], scaled like the training split, with known values added if direct.

    With the strategy 'direct' and a lag, the latest known value a whole number of lags before each target is added: to
    the mean of a Gaussian, or to all K numbers. 'recursive' outputs have it already, and H = 1 in training.
    """
    values = outputs.astype(jnp.float32).reshape(
        *outputs.shape[:2], -1, len(preprocessing['targets']), NUM_OUTPUTS[preprocessing['likelihood']]
    )
    if preprocessing['strategy'] == 'recursive' or batch.targets.past is None:
        return values
    known = recursive_forecasts.latest(batch.targets.past, *values.shape[1:3], preprocessing['lag'])
    return values.at[..., 0].add(known) if preprocessing['likelihood'] == 'gaussian' else values + known[..., None]


def stack_targets(values: jax.Array, steps: int, horizon: int) -> jax.Array:
    """Returns targets [B, T, H, C] from values [B, T + H, C]: for each step t, the H values at t + 1 to t + H."""
    return jnp.stack([values[:, step : step + steps] for step in range(1, horizon + 1)], 2)


def quantiles(outputs: jax.Array, head: str) -> jax.Array:
    """Returns points [..., 1] for the head 'point', otherwise ascending quantiles [..., 5], of `forecasts` [..., K]."""
    if head == 'gaussian':
        normal = jnp.array([NormalDist().inv_cdf(level) for level in QUANTILES], jnp.float32)
        return outputs[..., :1] + recursive_forecasts.deviation(outputs)[..., None] * normal.reshape(
            *[1] * (outputs.ndim - 1), -1
        )
    return jnp.sort(outputs, -1)


def loss_fn(preprocessing: Mapping[str, Any]) -> LossFn:
    """Returns a loss function with two means over known targets, scaled like the training split.

    'loss' is the loss of the head. 'squared_error' belongs to its point forecasts: points, means or medians.
    """

    def compute_losses(outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        predicted = forecasts(outputs, batch, preprocessing)
        steps, horizon = predicted.shape[1:3]
        targets = stack_targets(batch.targets.values, steps, horizon)
        mask = stack_targets(batch.targets.valid, steps, horizon) & batch.mask[..., None, None]
        points = predicted[
            ..., NUM_OUTPUTS[preprocessing['likelihood']] // 2 if preprocessing['likelihood'] == 'quantile' else 0
        ]
        squared = losses.squared_error(points, targets, mask)
        loss = {'point': lambda *_: squared, 'gaussian': gaussian, 'quantile': pinball}[preprocessing['likelihood']]
        return {'loss': loss(predicted, targets, mask), 'squared_error': squared}

    return compute_losses


def gaussian(outputs: jax.Array, targets: jax.Array, mask: jax.Array) -> Mean:
    """Returns the mean negative log-likelihood in nats of unmasked targets [...] under Gaussians.

    `outputs` [..., 2] are the mean and the log of the standard deviation of each target.
    """
    scale = recursive_forecasts.deviation(outputs)
    error = jnp.where(mask, targets - outputs[..., 0], 0) / scale
    return _mean(0.5 * error**2 + jnp.log(scale) + 0.5 * math.log(2 * math.pi), mask)


def pinball(outputs: jax.Array, targets: jax.Array, mask: jax.Array) -> Mean:
    """Returns the mean quantile loss (Koenker and Bassett 1978) of unmasked targets [...], averaged over `QUANTILES`.

    `outputs` [..., 5] are the quantiles of each target.
    """
    levels = jnp.array(QUANTILES, outputs.dtype).reshape(*[1] * targets.ndim, -1)
    error = jnp.where(mask, targets, 0)[..., None] - jnp.where(mask[..., None], outputs, 0)
    return _mean(jnp.maximum(levels * error, (levels - 1) * error).mean(-1), mask)


def _mean(values: jax.Array, mask: jax.Array) -> Mean:
    return Mean(jnp.where(mask, values, 0).sum(), mask.sum(dtype=values.dtype))
