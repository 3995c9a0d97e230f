"""A model of one step ahead that reads its own forecasts, to tell of more."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

DRAWS = 200  # paths of which a Gaussian forecast of several steps is made
LIMIT = 6.9077  # of the log of a standard deviation, on both sides: a thousandth and a thousand of the data's


class Fed(NamedTuple):
    """What a series is read from, and what its forecasts go on with."""

    values: jax.Array  # [B, T + H - 1, F]: H - 1 steps beyond the last origin, of which the calendar is read
    past: jax.Array | None  # [B, lag - 1 + T, C]: as `seqjax.datasets.forecast_batching.Ahead` has it


def latest(past: jax.Array, steps: int, horizon: int, lag: int) -> jax.Array:
    """[B, T, H, C] of past [B, lag - 1 + T, C]: the latest value a whole number of lags before what is told of."""
    return jnp.stack([past[:, ahead % lag : ahead % lag + steps] for ahead in range(horizon)], 2)


def deviation(told: jax.Array) -> jax.Array:
    """[...] of a Gaussian's (mean, log of the standard deviation) [..., 2]."""
    return jnp.exp(jnp.clip(told[..., 1], -LIMIT, LIMIT))


class Feedback(nn.Module):
    """Tells H steps at every step of a series: the first from what it read, each further one from its own before it.

    In training, where there is a stream for dropout, the next step alone is told. Of a Gaussian, each further step has
    the mean and the variance, over `DRAWS` drawn paths, of what the model tells along them; the key is fixed.
    """

    model: nn.Module  # called with [B, T, F], of one step ahead: [B, T, C * K]
    targets: int  # C, the first of the features
    horizon: int  # H
    numbers: int  # K: 1, or 2 for (mean, log of the standard deviation)
    calendar: int  # how many of the last features are known beforehand; all between are 0 in what is fed back
    lag: int | None  # what is told is added to the value as many steps before its target; None: to nothing

    def __call__(self, inputs: Fed | jax.Array) -> jax.Array:
        """[B, T, H * C * K], in the order of these axes; in training [B, T, C * K]. A plain array goes to the model."""
        if not isinstance(inputs, Fed):
            return self.model(inputs)
        values, past = inputs
        steps = values.shape[1] - self.horizon + 1
        known = None if past is None else latest(past, steps, min(self.horizon, self.lag), self.lag)
        if self.has_rng('dropout') or self.is_initializing() or self.horizon == 1:
            outputs = self.model(values[:, :steps])
            told = outputs.reshape(*outputs.shape[:2], self.targets, self.numbers)
            told = told if known is None else told.at[..., 0].add(known[:, :, 0])
            return told.reshape(outputs.shape)
        # What follows each step is a sequence of its own: [T, B, ...] is taken as rows.
        carries, first = self._carries(values[:, :steps])
        known = None if known is None else _rows(jnp.moveaxis(known, 2, 0).swapaxes(1, 2), 1)
        first = first if known is None else first.at[..., 0].add(known[0])
        ahead = jnp.stack([values[:, h : h + steps] for h in range(1, self.horizon)]).swapaxes(1, 2)
        told = self._further(carries, first, _rows(ahead, 1), known)
        told = told.reshape(self.horizon, steps, -1, self.targets * self.numbers)
        return told.transpose(2, 1, 0, 3).reshape(values.shape[0], steps, -1)

    def _carries(self, values: jax.Array) -> tuple[Any, jax.Array]:
        """The carry after every step, leaves [T * B, ...], and what is told there, [T * B, C, K]."""

        def one(model, carry, value):
            carry, outputs = model(value[:, None], initial_carry=carry, return_carry=True)
            return carry, (carry, outputs)

        over_time = _scan(one)
        carry, outputs = self.model(values[:, :1], return_carry=True)
        _, others = over_time(self.model, carry, values[:, 1:].swapaxes(0, 1))
        both = jax.tree.map(lambda x, xs: _rows(jnp.concatenate([x[None], xs])), (carry, outputs), others)
        return both[0], both[1].reshape(-1, self.targets, self.numbers)

    def _further(self, carries: Any, first: jax.Array, ahead: jax.Array, known: jax.Array | None) -> jax.Array:
        """[H, N, C, K] from carries and first [N, C, K], with the inputs of the steps that follow [H - 1, N, F]."""
        if self.numbers == 1:
            return self._path(self.model, carries, first, ahead, known, None)

        def draw(model, sums, key):
            told = self._path(model, carries, first, ahead, known, key)
            mean, square = told[..., 0] - first[None, ..., 0], deviation(told) ** 2
            return (sums[0] + mean, sums[1] + mean**2 + square), None

        zero = jnp.zeros((self.horizon, *first.shape[:-1]), first.dtype)
        keys = jax.random.split(jax.random.key(0), DRAWS)
        (means, squares), _ = _scan(draw)(self.model, (zero, zero), keys)
        mean = means / DRAWS
        variance = jnp.maximum(squares / DRAWS - mean**2, jnp.exp(-2 * LIMIT))
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
        """As `_further`, along one path: of means, or drawn with a key."""
        count = self.horizon - 1
        keys = None if key is None else jax.random.split(key, count)

        def one(model, state, x):
            carry, told, read = state  # read: [H, N, C], what stands for the steps ahead
            place, value, key = x
            drawn = told[..., 0]
            if key is not None:
                drawn += deviation(told) * jax.random.normal(key, drawn.shape)
            read = read.at[place - 1].set(drawn)
            fed = jnp.zeros_like(value).at[:, : self.targets].set(drawn)
            if self.calendar:
                fed = fed.at[:, -self.calendar :].set(value[:, -self.calendar :])
            carry, outputs = model(fed[:, None], initial_carry=carry, return_carry=True)
            told = outputs.reshape(told.shape)
            if known is not None:
                before = jnp.where(place < self.lag, known[jnp.minimum(place, len(known) - 1)], read[place - self.lag])
                told = told.at[..., 0].add(before)
            return (carry, told, read), told

        read = jnp.zeros((self.horizon, *first.shape[:-1]), first.dtype)
        _, told = _scan(one)(model, (carries, first, read), (jnp.arange(1, count + 1), ahead, keys))
        return jnp.concatenate([first[None], told])


def _scan(f: Any) -> Any:
    """f(model, carry, x) over the first axis of xs, with the same parameters at every step."""
    return nn.scan(f, variable_broadcast='params', split_rngs={'params': False})


def _rows(x: jax.Array, axis: int = 0) -> jax.Array:
    """Two axes as one."""
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
