"""Forecasts without a network: the last value, the value a season before, and autoregression.

Each takes a series, NaN where a value is missing, and gives forecasts [origins, H] for the 1 to H steps that follow
each origin, the place of the last value that is known.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BLOCK = 2**16  # rows that are worked on at a time
CHEAP = 2e9  # multiplications of regressions: a few seconds


def carried(values: np.ndarray, lag: int = 1, start: float = 0.0) -> np.ndarray:
    """Values [n, ...] with the one `lag` places before where one is missing, as often as it takes; else `start`.

    >>> carried(np.array([np.nan, 2.0, np.nan, 4.0]), start=7.0).tolist()
    [7.0, 2.0, 2.0, 4.0]
    """
    known = ~np.isnan(values)
    if known.all():
        return values.copy()
    place = np.where(known, np.arange(len(values)).reshape(-1, *[1] * (values.ndim - 1)), -1)
    whole = -(-len(values) // lag) * lag  # rows of a season, one below the other
    place = np.concatenate([place, np.full((whole - len(values), *values.shape[1:]), -1)])
    place = np.maximum.accumulate(place.reshape(-1, lag, *values.shape[1:]), 0).reshape(-1, *values.shape[1:])
    place = place[: len(values)]
    return np.where(place < 0, start, np.take_along_axis(values, np.maximum(place, 0), 0))


def seasonal(values: np.ndarray, origins: np.ndarray, horizon: int, season: int = 1) -> np.ndarray:
    """The latest value known at an origin that lies a whole number of seasons before the target; 0 where there is none.

    Of values [n], at origins [K], for 1 to `horizon` steps: [K, H]. With season=1 it is the last value, "persistence".

    >>> seasonal(np.arange(5.0), np.array([3]), horizon=3, season=2).tolist()
    [[2.0, 3.0, 2.0]]
    """
    ahead = np.arange(1, horizon + 1)
    places = origins[:, None] + ahead - season * -(-ahead // season)
    return np.where(places < 0, 0.0, carried(values, season)[np.maximum(places, 0)])


class Autoregression(NamedTuple):
    """x_t = intercept + weights . (x_{t-1}, ..., x_{t-p}) + noise."""

    intercept: float
    weights: np.ndarray  # [p], of the value before first


def _triangle(values: np.ndarray, order: int, first: int) -> tuple[np.ndarray, int]:
    """R of the QR factors of rows (1, x_{t-1}, ..., x_{t-order}, x_t), t from `first`; and how many rows are known.

    It is found block by block, and has the regression of every lower order within it.
    """
    triangle, count = np.zeros((0, order + 2)), 0
    for start in range(first, len(values), BLOCK):
        times = np.arange(start, min(start + BLOCK, len(values)))
        lags = values[times[:, None] - np.arange(1, order + 1)]
        rows = np.concatenate([np.ones((len(times), 1)), lags, values[times, None]], 1)
        rows = rows[~np.isnan(rows).any(1)]
        count += len(rows)
        triangle = np.linalg.qr(np.concatenate([triangle, rows]), mode='r')
    missing = order + 2 - len(triangle)
    return np.concatenate([triangle, np.zeros((max(missing, 0), order + 2))]), count


def fit(values: np.ndarray, order: int) -> Autoregression:
    """By least squares with an intercept, conditional on the first `order` values; rows with a missing one left out.

    Raises ValueError where the series [n] has fewer than 2 * order + 2 values.
    """
    if len(values) < 2 * order + 2:
        raise ValueError(f'order={order} needs {2 * order + 2} values and has {len(values)}')
    triangle, _ = _triangle(values, order, order)
    solved = np.linalg.lstsq(triangle[: order + 1, : order + 1], triangle[: order + 1, -1], rcond=None)[0]
    return Autoregression(float(solved[0]), solved[1:])


def most_orders(count: int, seasons: Sequence[int] = (), fits: int = 1) -> int:
    """Returns the highest order that is tried for a series of `count` values.

    It is 24, or one more than the longest season for which `fits` regressions stay cheap; and a tenth of `count`.

    >>> most_orders(100), most_orders(8000), most_orders(8000, [24, 168]), most_orders(1000, [24, 168])
    (10, 24, 169, 25)
    """
    reached = [season + 1 for season in seasons if season < count // 10 and fits * count * season**2 < CHEAP]
    return max(1, min(max([24, *reached]), count // 10))


def best_order(values: np.ndarray, most: int) -> int:
    """The order from 1 to `most` with the lowest AIC (Akaike 1974), all on the rows that the highest leaves.

    n log(sum of squares / n) + 2 (order + 1), for Gaussian noise.
    """
    triangle, count = _triangle(values, most, most)
    # What the lags up to an order leave of the target: the part of its column that lies below their rows.
    left = np.array([(triangle[order + 1 :, -1] ** 2).sum() for order in range(1, most + 1)])
    smallest = np.finfo(float).tiny
    scores = count * np.log(np.maximum(left / max(count, 1), smallest)) + 2 * (np.arange(1, most + 1) + 1)
    return int(np.argmin(scores)) + 1


def autoregressive(model: Autoregression, values: np.ndarray, origins: np.ndarray, horizon: int) -> np.ndarray:
    """Forecasts [K, H] of one step, each read as known by the next; missing values are the ones before them.

    Before the beginning of the series stands the value to which the model returns, or the first where there is none.
    """
    weights, order = model.weights, len(model.weights)
    slack = 1 - weights.sum()
    known = carried(values, start=float(values[~np.isnan(values)][0]))
    before = model.intercept / slack if abs(slack) > 1e-6 else known[0]
    padded = np.concatenate([np.full(order, before), known])
    forecasts = np.empty((len(origins), horizon))
    for start in range(0, len(origins), BLOCK):
        part = slice(start, start + BLOCK)
        lags = padded[origins[part, None] + order - np.arange(order)]
        for step in range(horizon):
            forecasts[part, step] = model.intercept + lags @ weights
            lags = np.concatenate([forecasts[part, step, None], lags[:, :-1]], 1)
    return forecasts
