"""Baselines for forecasting: last value, seasonal naive and autoregression.

Each takes a series, NaN if a value is missing, and returns forecasts [origins, H] for the H steps after each origin,
the index of the last value that is known.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BLOCK = 2**16  # rows in memory at a time
MAX_FIT_COST = 2e9  # maximum number of multiplications of all regressions: a few seconds


def forward_fill(values: np.ndarray, lag: int = 1, start: float = 0.0) -> np.ndarray:
    """Fills missing values [n, ...] with the value `lag` rows before, repeatedly; `start` if there is none.

    >>> forward_fill(np.array([np.nan, 2.0, np.nan, 4.0]), start=7.0).tolist()
    [7.0, 2.0, 2.0, 4.0]
    """
    known = ~np.isnan(values)
    if known.all():
        return values.copy()
    place = np.where(known, np.arange(len(values)).reshape(-1, *[1] * (values.ndim - 1)), -1)
    padded_length = -(-len(values) // lag) * lag  # a multiple of the season
    place = np.concatenate([place, np.full((padded_length - len(values), *values.shape[1:]), -1)])
    place = np.maximum.accumulate(place.reshape(-1, lag, *values.shape[1:]), 0).reshape(-1, *values.shape[1:])
    place = place[: len(values)]
    return np.where(place < 0, start, np.take_along_axis(values, np.maximum(place, 0), 0))


def seasonal_naive(values: np.ndarray, origins: np.ndarray, horizon: int, season: int = 1) -> np.ndarray:
    """Returns the latest value that is known at an origin, a whole number of seasons before the target; 0 without one.

    Values [n], origins [K] -> [K, horizon]. With season=1, the forecast is the last value ("persistence").

    >>> seasonal_naive(np.arange(5.0), np.array([3]), horizon=3, season=2).tolist()
    [[2.0, 3.0, 2.0]]
    """
    ahead = np.arange(1, horizon + 1)
    places = origins[:, None] + ahead - season * -(-ahead // season)
    return np.where(places < 0, 0.0, forward_fill(values, season)[np.maximum(places, 0)])


class Autoregression(NamedTuple):
    """x_t = intercept + weights . (x_{t-1}, ..., x_{t-p}) + noise."""

    intercept: float
    weights: np.ndarray  # [p], weight of the latest value first


def _triangle(values: np.ndarray, order: int, first: int) -> tuple[np.ndarray, int]:
    """Returns R of the QR factors of rows (1, x_{t-1}, ..., x_{t-order}, x_t), t from `first`, and the number of rows.

    Rows with a missing value are ignored. The factor is computed block by block, so a long series needs no matrix of
    its length. It contains the regressions of all lower orders.
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
    """Fits an autoregression by least squares with an intercept, conditional on the first `order` values.

    Rows with a missing value are ignored.

    Raises ValueError if the series [n] has fewer than 2 * order + 2 values.
    """
    if len(values) < 2 * order + 2:
        raise ValueError(f'order={order} needs at least {2 * order + 2} values, but the series has {len(values)}')
    triangle, _ = _triangle(values, order, order)
    solution = np.linalg.lstsq(triangle[: order + 1, : order + 1], triangle[: order + 1, -1], rcond=None)[0]
    return Autoregression(float(solution[0]), solution[1:])


def max_order(count: int, seasons: Sequence[int] = (), fits: int = 1) -> int:
    """Returns the highest order that is tried for a series of `count` values.

    It is 24, or one more than the longest season for which `fits` regressions are cheap; at most a tenth of `count`.

    >>> max_order(100), max_order(8000), max_order(8000, [24, 168]), max_order(1000, [24, 168])
    (10, 24, 169, 25)
    """
    seasonal_orders = [
        season + 1 for season in seasons if season < count // 10 and fits * count * season**2 < MAX_FIT_COST
    ]
    return max(1, min(max([24, *seasonal_orders]), count // 10))


def best_order(values: np.ndarray, highest: int) -> int:
    """Returns the order from 1 to `highest` with the lowest AIC (Akaike 1974), all fitted to the rows of the highest.

    AIC = n log(sum of squares / n) + 2 (order + 1), for Gaussian noise.
    """
    triangle, count = _triangle(values, highest, highest)
    # The residual sum of squares of an order is the sum over the target column below the rows of its lags.
    residuals = np.array([(triangle[order + 1 :, -1] ** 2).sum() for order in range(1, highest + 1)])
    smallest = np.finfo(float).tiny
    scores = count * np.log(np.maximum(residuals / max(count, 1), smallest)) + 2 * (np.arange(1, highest + 1) + 1)
    return int(np.argmin(scores)) + 1


def autoregressive(model: Autoregression, values: np.ndarray, origins: np.ndarray, horizon: int) -> np.ndarray:
    """Returns forecasts [K, H] by repeated one-step forecasts; missing values are forward filled.

    Before the start, the series is the mean of the process, or the first value if the process has none.
    """
    weights, order = model.weights, len(model.weights)
    slack = 1 - weights.sum()
    known = forward_fill(values, start=float(values[~np.isnan(values)][0]))
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
