"""Datasets: users' files as splits, batches, metrics and baselines; one module for each kind of file."""

from typing import TYPE_CHECKING

from seqjax import lazy

if TYPE_CHECKING:
    from seqjax.datasets import (
        forecasting,
        language_modeling,
        polyphonic_music,
        sequential_images,
        time_series_classification,
    )
    from seqjax.datasets.dataset import Dataset, ItemScores, MetricSpec, OnlinePredictor, PredictionInputs
else:
    __getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
