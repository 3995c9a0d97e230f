"""Baselines for the series of a file: persistence, seasonal naive, and autoregressions of values and of square roots.

Axes in addition to those in `seqjax`: C target columns, H forecast horizon in steps, k origins (the last rows read).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seqjax.datasets.baselines import forecast_baselines
from seqjax.datasets.baselines.forecast_baselines import Autoregression
from seqjax.datasets.forecast_batching import Forecasts, OriginRanges, Split
from seqjax.datasets.forecast_preprocessing import PreparedSeries

BaselineFn = Callable[[OriginRanges], list[Forecasts]]


class FittedAutoregressions(NamedTuple):
    """Autoregressions of the targets of several series, one for each target of each series."""

    series: Sequence[np.ndarray]  # values [n, C] of each series
    models: Sequence[Sequence[Autoregression]]  # by series and target

    @classmethod
    def fit(
        cls,
        series: Sequence[np.ndarray],
        splits: Sequence[Split],
        seasons: Sequence[int],
        order: int | None,
        split_name: str,
    ) -> 'FittedAutoregressions':
        """Returns autoregressions that are fitted on all rows before the split `split_name`, 'validation' or 'test'.

        If `order` is None, each series and target has the order with the lowest AIC on the training split.
        """
        models = []
        for values, split in zip(series, splits, strict=True):
            end, columns = split.validation, range(values.shape[1])
            highest = forecast_baselines.max_order(end, seasons, len(series) * values.shape[1])
            orders = [order or forecast_baselines.best_order(values[:end, i], highest) for i in columns]
            stop = end if split_name == 'validation' else split.test
            models.append([forecast_baselines.fit(values[:stop, i], p) for i, p in zip(columns, orders, strict=True)])
        return cls(series, models)

    @property
    def name(self) -> str:
        """Name with the orders, such as 'AR(9)' or 'AR(2 to 9)'."""
        orders = [len(model.weights) for models in self.models for model in models]
        low, high = min(orders), max(orders)
        return f'AR({low})' if low == high else f'AR({low} to {high})'


def baselines(
    prepared_series: Sequence[PreparedSeries],
    preprocessing: Mapping[str, Any],
    splits: Sequence[Split],
    order: int | None,
    split_name: str,
) -> dict[str, BaselineFn]:
    """Returns the baselines by name: persistence, seasonal naive for each season, and autoregression.

    A baseline is a function from origin ranges to Forecasts of each series. If no target is negative before the test
    split, there is a second autoregression, of the square roots of the targets. For `order` and `split_name`, see
    `FittedAutoregressions.fit`.
    """
    horizon, seasons = preprocessing['horizon'], preprocessing['seasons']
    targets = [prepared.series.values[:, : prepared.values.shape[1]] for prepared in prepared_series]
    means, deviations = zip(*(prepared.scale for prepared in prepared_series), strict=True)
    scaled = [(values - mean) / deviation for values, mean, deviation in zip(targets, means, deviations, strict=True)]

    def baseline(forecast: Callable[[int, int, np.ndarray], np.ndarray]) -> BaselineFn:
        """Returns the baseline of a function (series index, target index, origins [k]) -> scaled forecasts [k, H]."""

        def forecast_ranges(origin_ranges: OriginRanges) -> list[Forecasts]:
            return [of_series(series, np.arange(*span)) for series, span in enumerate(origin_ranges)]

        def of_series(series: int, origins: np.ndarray) -> Forecasts:
            values = np.stack([forecast(series, place, origins) for place in range(scaled[series].shape[1])], -1)
            return Forecasts(series, origins, (values * deviations[series] + means[series])[..., None])

        return forecast_ranges

    def seasonal(season: int) -> BaselineFn:
        return baseline(
            lambda i, j, origins: forecast_baselines.seasonal_naive(scaled[i][:, j], origins, horizon, season)
        )

    ar = FittedAutoregressions.fit(scaled, splits, seasons, order, split_name)
    by_name = {'persistence': seasonal(1)} | {f'{season} steps before': seasonal(season) for season in seasons}
    by_name[ar.name] = baseline(
        lambda i, j, origins: forecast_baselines.autoregressive(ar.models[i][j], scaled[i][:, j], origins, horizon)
    )
    if not any((values[: split.test] < 0).any() for values, split in zip(targets, splits, strict=True)):
        # Later negative values count as 0.
        roots = [np.sqrt(np.maximum(values, 0) / spread) for values, spread in zip(targets, deviations, strict=True)]
        root_ar = FittedAutoregressions.fit(roots, splits, seasons, order, split_name)
        by_name[f'{root_ar.name} of square roots'] = baseline(
            lambda i, j, origins: (
                forecast_baselines.autoregressive_squares(root_ar.models[i][j], roots[i][:, j], origins, horizon)
                - means[i][j] / deviations[i][j]
            )
        )
    return by_name
