"""File-based datasets: splits, batches, metrics and baselines.

The modules of `seqjax/datasets/` return a `Dataset` from the arrays that `seqjax/datasets/readers/` read.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax.tasks.synthetic import LossFn
from seqjax.types import Arrays, Batch, ModelSpec


class ItemScores(NamedTuple):
    """Totals and counts of a metric for each item (series, piece, block of a text); the bootstrap resamples items."""

    totals: np.ndarray  # [N] sum of the metric over the values of each item
    counts: np.ndarray  # [N] number of values of each item


class MetricSpec(NamedTuple):
    """Specification of the metric by which a model and the baselines are compared."""

    name: str  # 'accuracy', 'RMSE', 'bits per character'
    higher_is_better: bool = False
    root: bool = False  # True for the square root of a mean, as in RMSE
    format_spec: str = '.4g'  # format specification of values
    unit: str = ''  # unit of values; empty if the name includes it

    def value(self, totals: Any, counts: Any) -> Any:
        """Returns the metric for sums of totals and counts over items."""
        mean = np.asarray(totals, np.float64) / np.asarray(counts, np.float64)
        return np.sqrt(mean) if self.root else mean


Table = tuple[Sequence[str], Iterable[Sequence[Any]]]  # column names and rows


PostprocessFn = Callable[[Arrays, Batch], Arrays]  # (model outputs, batch) -> predictions, leaves [B, ...]


class PredictionInputs(NamedTuple):
    """Inputs of a trained model: batches and the table of their predictions."""

    batches: Batch  # leaves [M, B, ...]; a stateful model starts at the first batch and keeps its carry to the last
    table: Callable[[Arrays], Table]  # predictions of all batches, leaves [M, B, ...] -> one row for each prediction
    description: Sequence[str] = ()  # lines that describe the file
    summary: Callable[[Arrays], Sequence[str]] = lambda predictions: ()  # lines that summarize the predictions


class ConfusionMatrix(NamedTuple):
    """Number of predictions of each class for each true class."""

    counts: np.ndarray  # [K, K]: true class by predicted class
    classes: Sequence[str]


class ForecastCurve(NamedTuple):
    """One-step-ahead forecasts of a section of a series."""

    name: str
    times: np.ndarray  # [N] row numbers or dates
    actual: np.ndarray  # [N]
    forecasts: np.ndarray  # [N]
    band: tuple[np.ndarray, np.ndarray] | None = None  # [N] each: bounds of the 90% interval


class Dataset(NamedTuple):
    """A file of data after reading, splitting and preprocessing, ready for any recurrent model."""

    name: str  # name for messages, such as 'JapaneseVowels_TRAIN.ts'
    description: Sequence[str]  # lines about rows, lengths, channels, missing values, classes and splits
    spec: ModelSpec  # depends on the settings and the preprocessing alone
    postprocess: PostprocessFn
    preprocessing: Mapping[str, Any]  # JSON values that predictions need, fitted on the training split
    loss_fn: LossFn  # (outputs, batch) -> named means; 'loss' is minimized, and monitored for early stopping
    batch: Callable[[Arrays, jax.Array, jax.Array], Batch]  # (data, key, step) -> Batch, as in Task
    data: Arrays  # argument of `batch`: the training split
    steps_per_epoch: int  # training steps that read about as much as the training split has
    validation: Batch  # leaves [N, B, ...]
    test: PredictionInputs  # evaluated once, after training
    metric: MetricSpec
    items: Callable[[Arrays], ItemScores]  # predictions of the test split, leaves [M, B, ...] -> its item scores
    baselines: Mapping[str, Callable[[str], ItemScores]]  # by name: split -> item scores, in the order of `items`
    summary: Callable[[Arrays], Sequence[str]] = lambda predictions: ()  # test lines, such as a confusion matrix
    train_plus_validation: Callable[[], Arrays] | None = None  # argument of `batch`: both splits, for --refit
    figure_data: Callable[[Arrays], ConfusionMatrix | ForecastCurve] | None = None  # of the test predictions


class OnlinePredictor(NamedTuple):
    """Online prediction for observations that arrive as lines of text; an empty line starts a new sequence."""

    parse: Callable[[str], np.ndarray | None]  # line -> [F] float32, or a token []; None resets all sequences
    columns: Sequence[str]  # column names of the output
    values: Callable[[np.ndarray, np.ndarray], Sequence[Any]]  # (outputs [O], parsed line) -> one value a column
    restart: Callable[[], None] = lambda: None  # called when a new sequence starts
    series: Callable[[], Any] = lambda: None  # key of the sequence of the last line; each sequence has its own carry
    rows: int = 1  # equal rows in a step, so that it rounds like a batch of a file
    takes_empty: bool = False  # True if `parse` handles empty lines as well
