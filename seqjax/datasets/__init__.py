"""Datasets from users' files, with splits, batches, metrics and baselines.

`forecasting`, `language_modeling`, `polyphonic_music`, `sequential_images` and `time_series_classification` each turn
the content of one kind of file into a `Dataset`. The other modules support these five.
"""

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
