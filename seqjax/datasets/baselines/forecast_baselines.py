"""Baselines for forecasting: last value, seasonal naive, and autoregression of values or of square roots.

Each forecasts the H time steps after each of K origins: [K, H]. A series is [n], NaN if a value is missing. An origin
is the index of the last known value.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BLOCK = 2**16  # maximum number of rows in memory at a time
MAX_ROOT = 1e30  # bound of forecast square roots, so that unstable autoregressions do not overflow
MAX_FIT_COST = 2e9  # maximum number of multiplications of all regressions: a few seconds


def forward_fill(values: np.ndarray, lag: int = 1, start: float = 0.0) -> np.ndarray:
    """Returns values [n, ...] with NaN replaced by the latest known value a multiple of `lag` rows before, or `start`.

    >>> forward_fill(np.array([np.nan, 2.0, np.nan, 4.0]), start=7.0).tolist()
    [7.0, 2.0, 2.0, 4.0]
    """
    known = ~np.isnan(values)
    if known.all():
        return values.copy()
    place = np.where(known, np.arange(len(values)).reshape(-1, *[1] * (values.ndim - 1)), -1)
    padded_length = -(-len(values) // lag) * lag  # a multiple of the lag
    place = np.concatenate([place, np.full((padded_length - len(values), *values.shape[1:]), -1)])
    place = np.maximum.accumulate(place.reshape(-1, lag, *values.shape[1:]), 0).reshape(-1, *values.shape[1:])
    place = place[: len(values)]
    return np.where(place < 0, start, np.take_along_axis(values, np.maximum(place, 0), 0))


def seasonal_naive(values: np.ndarray, origins: np.ndarray, horizon: int, season: int = 1) -> np.ndarray:
    """Returns forecasts [K, horizon]: the latest value known at the origin, whole seasons before the forecast step.

    It is 0 if there is none. `values` [n] are the series, `origins` [K] the indices of the last known values, and
    `season` is a number of time steps; with season=1, the forecast is the last value ("persistence").

    >>> seasonal_naive(np.arange(5.0), np.array([3]), horizon=3, season=2).tolist()
    [[2.0, 3.0, 2.0]]
    """
    ahead = np.arange(1, horizon + 1)
    places = origins[:, None] + ahead - season * -(-ahead // season)
    return np.where(places < 0, 0.0, forward_fill(values, season)[np.maximum(places, 0)])


class Autoregression(NamedTuple):
    """Autoregressive model of order p: x_t = intercept + weights . (x_{t-1}, ..., x_{t-p}) + noise."""

    intercept: float
    weights: np.ndarray  # [p], weight of the latest value first
    variance: float = 0.0  # of the noise: the mean of the squared residuals


def _triangle(values: np.ndarray, order: int, first: int) -> tuple[np.ndarray, int]:
    """Returns the QR factor R [order + 2, order + 2] of a matrix, and the number of rows of the matrix.

    The rows of the matrix are (1, x_{t-1}, ..., x_{t-order}, x_t) for t = first, ..., n - 1; those with a missing value
    are left out. It is factored block by block, so that it is never in memory as a whole. R also gives the regressions
    of all lower orders.
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
    """Returns an autoregression of a series [n], fitted by least squares, conditional on the first `order` values.

    Time steps are ignored if their value or one of the `order` values before is missing.

    Raises ValueError if the series has fewer than 2 * order + 2 values.
    """
    if len(values) < 2 * order + 2:
        raise ValueError(
            f'order={order} needs at least {2 * order + 2} values, but the series has {len(values)}; use a lower order'
        )
    triangle, count = _triangle(values, order, order)
    solution = np.linalg.lstsq(triangle[: order + 1, : order + 1], triangle[: order + 1, -1], rcond=None)[0]
    # R and the matrix have the same squared residuals.
    residuals = triangle[:, -1] - triangle[:, :-1] @ solution
    return Autoregression(float(solution[0]), solution[1:], float(residuals @ residuals) / max(count, 1))


def max_order(count: int, seasons: Sequence[int] = (), fits: int = 1) -> int:
    """Returns the highest order of an autoregression to try for a series of `count` values.

    It is 24, or, if higher, one more than the longest season for which `fits` regressions are cheap; but at most a
    tenth of `count`, and at least 1.

    >>> max_order(100), max_order(8000), max_order(8000, [24, 168]), max_order(1000, [24, 168])
    (10, 24, 169, 25)
    """
    seasonal_orders = [
        season + 1 for season in seasons if season < count // 10 and fits * count * season**2 < MAX_FIT_COST
    ]
    return max(1, min(max([24, *seasonal_orders]), count // 10))


def best_order(values: np.ndarray, highest: int) -> int:
    """Returns the order from 1 to `highest` with the lowest AIC (Akaike 1974) for a series.

    All orders are fitted to the same n time steps, which are known, with `highest` known values before them.
    AIC = n log(sum of squares / n) + 2 (order + 1), for Gaussian noise.
    """
    triangle, count = _triangle(values, highest, highest)
    # The residual sum of squares of an order is the sum over the target column below the rows of its lags.
    residuals = np.array([(triangle[order + 1 :, -1] ** 2).sum() for order in range(1, highest + 1)])
    smallest = np.finfo(float).tiny
    scores = count * np.log(np.maximum(residuals / max(count, 1), smallest)) + 2 * (np.arange(1, highest + 1) + 1)
    return int(np.argmin(scores)) + 1


def autoregressive(model: Autoregression, values: np.ndarray, origins: np.ndarray, horizon: int) -> np.ndarray:
    """Returns forecasts [K, H] of an autoregression; each step after the first uses the forecasts before it.

    Missing values are forward filled. The values before the start of the series are taken to be the mean of the
    process, or the first known value if the weights sum to 1, so that there is no mean.
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


def autoregressive_squares(model: Autoregression, roots: np.ndarray, origins: np.ndarray, horizon: int) -> np.ndarray:
    """Returns forecasts [K, H] of the squares of a series, from an autoregression of the series `roots` [n].

    A square root makes the noise of counts nearly independent of their size (Bartlett 1936). The forecast is the mean
    of a square, m^2 + v, where m is the forecast of the root, at least 0, and v the variance of its error.
    """
    means = np.clip(autoregressive(model, roots, origins, horizon), 0, MAX_ROOT)
    return means**2 + error_variances(model, horizon)


def error_variances(model: Autoregression, horizon: int) -> np.ndarray:
    """Returns the variances [H] of the errors of forecasts 1 to H steps ahead that are due to the noise.

    They are variance * (psi_0^2 + ... + psi_{h-1}^2), where psi_j is the response to a unit of noise j steps before:
    psi_0 = 1, psi_j = weights . (psi_{j-1}, psi_{j-2}, ...) (Box and Jenkins 1970, section 5.1).

    >>> error_variances(Autoregression(0.0, np.array([0.5]), variance=2.0), 3).tolist()
    [2.0, 2.5, 2.625]
    """
    order = len(model.weights)
    psi = np.zeros(order + horizon)  # after `order` zeros
    psi[order] = 1
    for j in range(order + 1, order + horizon):
        psi[j] = np.clip(model.weights @ psi[j - order : j][::-1], -MAX_ROOT, MAX_ROOT)
    return model.variance * np.cumsum(psi[order:] ** 2)
