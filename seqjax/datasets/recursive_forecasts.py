"""Recursive forecasts of several steps, by a one-step model that reads its own forecasts.

Axes are as in `seqjax.datasets.forecasting`.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

NUM_SAMPLES = 200  # number of sampled paths of a Gaussian forecast of several steps
MAX_LOG_DEVIATION = 6.9077  # bound of the log of a scaled standard deviation, which is from 1/1000 to 1000


class RecursiveInputs(NamedTuple):
    """Inputs of a model with recursive forecasts: inputs of T origins, and of the H - 1 steps after the last origin."""

    values: jax.Array  # [B, T + H - 1, F]; after an origin, only the calendar features are read
    past: jax.Array | None  # [B, lag - 1 + T, C] or None, see `seqjax.datasets.forecast_batching.ForecastTargets`


def latest(past: jax.Array, steps: int, horizon: int, lag: int) -> jax.Array:
    """Returns for each target the latest value known at its origin, a whole number of lags before it: [B, T, H, C].

    `past` is [B, lag - 1 + T, C], `steps` is T and `horizon` is H.
    """
    return jnp.stack([past[:, ahead % lag : ahead % lag + steps] for ahead in range(horizon)], 2)


def deviation(outputs: jax.Array) -> jax.Array:
    """Returns standard deviations [...], from 1/1000 to 1000, of outputs [..., 2]: (mean, log standard deviation)."""
    return jnp.exp(jnp.clip(outputs[..., 1], -MAX_LOG_DEVIATION, MAX_LOG_DEVIATION))


class Feedback(nn.Module):
    """Module that forecasts the next H steps after every step of a series with a one-step model.

    The model forecasts the first of the H steps from the inputs, and each later step after reading its own forecast of
    the step before. In training, when there is a random stream 'dropout', only the first step is forecast. A Gaussian
    forecast of a later step has the mean and variance of the model's forecasts over `NUM_SAMPLES` sampled paths, which
    are drawn with a fixed key.
    """

    model: nn.Module  # one-step model: [B, T, F] -> [B, T, C * K]
    targets: int  # C, number of targets, which are the first features
    horizon: int  # H
    numbers: int  # K: 1 for points, 2 for (mean, log of the standard deviation)
    calendar: int  # number of calendar features, the last ones; those between targets and them are 0 after the origin
    lag: int | None  # outputs are added to the value `lag` steps before the target; None to add nothing

    def __call__(self, inputs: RecursiveInputs | jax.Array) -> jax.Array:
        """Returns outputs [B, T, H * C * K]; [B, T, C * K] in training and initialization.

        For a plain array instead of RecursiveInputs, returns the outputs of the one-step model.
        """
        if not isinstance(inputs, RecursiveInputs):
            return self.model(inputs)
        values, past = inputs
        steps = values.shape[1] - self.horizon + 1
        known = None if past is None else latest(past, steps, min(self.horizon, self.lag), self.lag)
        if self.has_rng('dropout') or self.is_initializing() or self.horizon == 1:
            outputs = self.model(values[:, :steps])
            forecasts = outputs.reshape(*outputs.shape[:2], self.targets, self.numbers)
            forecasts = forecasts if known is None else forecasts.at[..., 0].add(known[:, :, 0])
            return forecasts.reshape(outputs.shape)
        # The steps after each origin are a sequence of their own, so [T, B, ...] is merged into T * B rows.
        carries, first = self._carries(values[:, :steps])
        known = None if known is None else _rows(jnp.moveaxis(known, 2, 0).swapaxes(1, 2), 1)
        first = first if known is None else first.at[..., 0].add(known[0])
        ahead = jnp.stack([values[:, h : h + steps] for h in range(1, self.horizon)]).swapaxes(1, 2)
        forecasts = self._later_steps(carries, first, _rows(ahead, 1), known)
        forecasts = forecasts.reshape(self.horizon, steps, -1, self.targets * self.numbers)
        return forecasts.transpose(2, 1, 0, 3).reshape(values.shape[0], steps, -1)

    def _carries(self, values: jax.Array) -> tuple[Any, jax.Array]:
        """Returns the carry after each of T steps, leaves [T * B, ...], and the outputs there, [T * B, C, K]."""

        def step(model, carry, value):
            carry, outputs = model(value[:, None], initial_carry=carry, return_carry=True)
            return carry, (carry, outputs)

        over_time = _scan(step)
        carry, outputs = self.model(values[:, :1], return_carry=True)
        _, later = over_time(self.model, carry, values[:, 1:].swapaxes(0, 1))
        joined = jax.tree.map(lambda x, xs: _rows(jnp.concatenate([x[None], xs])), (carry, outputs), later)
        return joined[0], joined[1].reshape(-1, self.targets, self.numbers)

    def _later_steps(self, carries: Any, first: jax.Array, ahead: jax.Array, known: jax.Array | None) -> jax.Array:
        """Returns forecasts [H, N, C, K] of N = T * B origins.

        Args:
          carries: carries at the origins, leaves [N, ...].
          first: forecasts of the first step, [N, C, K].
          ahead: inputs of the later steps, [H - 1, N, F].
          known: values [min(H, lag), N, C] that outputs are added to; None to add nothing.
        """
        if self.numbers == 1:
            return self._path(self.model, carries, first, ahead, known, None)

        def accumulate(model, sums, key):
            forecasts = self._path(model, carries, first, ahead, known, key)
            mean, square = forecasts[..., 0] - first[None, ..., 0], deviation(forecasts) ** 2
            return (sums[0] + mean, sums[1] + mean**2 + square), None

        zero = jnp.zeros((self.horizon, *first.shape[:-1]), first.dtype)
        keys = jax.random.split(jax.random.key(0), NUM_SAMPLES)
        (means, squares), _ = _scan(accumulate)(self.model, (zero, zero), keys)
        mean = means / NUM_SAMPLES
        variance = jnp.maximum(squares / NUM_SAMPLES - mean**2, jnp.exp(-2 * MAX_LOG_DEVIATION))
        mixed = jnp.stack([mean + first[None, ..., 0], 0.5 * jnp.log(variance)], -1)
        return jnp.concatenate([first[None], mixed[1:]])

    def _path(
        self,
        model: nn.Module,
        carries: Any,
        first: jax.Array,
        ahead: jax.Array,
        known: jax.Array | None,
        key: jax.Array | None,
    ) -> jax.Array:
        """Returns forecasts [H, N, C, K] along one path, with the arguments of `_later_steps`.

        The model reads the means of its forecasts if `key` is None, otherwise samples drawn with the key.
        """
        count = self.horizon - 1
        keys = None if key is None else jax.random.split(key, count)

        def step(model, state, x):
            carry, forecasts, read = state  # read: [H, N, C], values of the steps ahead
            place, value, key = x
            drawn = forecasts[..., 0]
            if key is not None:
                drawn += deviation(forecasts) * jax.random.normal(key, drawn.shape)
            read = read.at[place - 1].set(drawn)
            fed = jnp.zeros_like(value).at[:, : self.targets].set(drawn)
            if self.calendar:
                fed = fed.at[:, -self.calendar :].set(value[:, -self.calendar :])
            carry, outputs = model(fed[:, None], initial_carry=carry, return_carry=True)
            forecasts = outputs.reshape(forecasts.shape)
            if known is not None:
                before = jnp.where(place < self.lag, known[jnp.minimum(place, len(known) - 1)], read[place - self.lag])
                forecasts = forecasts.at[..., 0].add(before)
            return (carry, forecasts, read), forecasts

        read = jnp.zeros((self.horizon, *first.shape[:-1]), first.dtype)
        _, forecasts = _scan(step)(model, (carries, first, read), (jnp.arange(1, count + 1), ahead, keys))
        return jnp.concatenate([first[None], forecasts])


def _scan(f: Any) -> Any:
    """Returns f(model, carry, x) -> (carry, y) as a scan over the first axis of xs, with shared parameters."""
    return nn.scan(f, variable_broadcast='params', split_rngs={'params': False})


def _rows(x: jax.Array, axis: int = 0) -> jax.Array:
    """Returns x with the axes `axis` and `axis` + 1 merged into one."""
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
