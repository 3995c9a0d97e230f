"""Types of datasets that are read from files: `Dataset`, its metric, predictions, figure data and online predictor.

The readers in `seqjax/datasets/readers/` turn files into arrays; the modules of `seqjax/datasets/` turn these arrays
into a `Dataset`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax.tasks.synthetic import LossFn
from seqjax.types import Arrays, Batch, ModelSpec


class ItemScores(NamedTuple):
    """Total and count of a metric for each item of a split.

    An item is what the bootstrap resamples: a series, an image, a piece of music, or a block of a text or of forecasts.
    """

    totals: np.ndarray  # [N] sum of the values in each item: correct predictions, squared errors, bits or nats
    counts: np.ndarray  # [N] number of values in each item


def fit_splits(split: str) -> tuple[str, ...]:
    """Returns the names of the splits on which every baseline is fitted before it is scored on `split`.

    >>> fit_splits('validation'), fit_splits('test')
    (('train',), ('train', 'validation'))
    """
    return ('train',) if split == 'validation' else ('train', 'validation')


class MetricSpec(NamedTuple):
    """Specification of the metric by which a model and the baselines are compared."""

    name: str  # name in printed lines, such as 'accuracy', 'RMSE' or 'bits per character'
    higher_is_better: bool = False
    root: bool = False  # True if the metric is the square root of the mean of the values, as in RMSE
    format_spec: str = '.4g'  # format specification for printing the metric
    unit: str = ''  # unit of the metric in printed lines; empty to print none

    def value(self, totals: Any, counts: Any) -> Any:
        """Returns totals / counts, or the square root of this ratio if `root`, as float64.

        With the sums of totals and of counts over all items of a split, it is the metric of that split.
        """
        mean = np.asarray(totals, np.float64) / np.asarray(counts, np.float64)
        return np.sqrt(mean) if self.root else mean


Table = tuple[Sequence[str], Iterable[Sequence[Any]]]  # (column names, rows)


PostprocessFn = Callable[[Arrays, Batch], Arrays]  # (model outputs, batch) -> predictions, leaves [B, ...]


class PredictionInputs(NamedTuple):
    """Data to predict with a trained model: batches, and the functions that report their predictions."""

    batches: Batch  # M batches, leaves [M, B, ...]; a stateful model keeps its carry from each batch to the next
    table: Callable[[Arrays], Table]  # predictions of all batches, leaves [M, B, ...] -> content of predictions.csv
    description: Sequence[str] = ()  # printed lines that describe the file
    summary: Callable[[Arrays], Sequence[str]] = lambda predictions: ()  # predictions -> printed lines with metrics


class ConfusionMatrix(NamedTuple):
    """Confusion matrix of the predictions of a test split."""

    counts: np.ndarray  # [K, K] number of examples by [true class, predicted class]
    classes: Sequence[str]  # names of the K classes


class ForecastCurve(NamedTuple):
    """One-step-ahead forecasts of one target in N consecutive rows of a series, and the true values."""

    name: str  # name of the target column
    times: np.ndarray  # [N] dates, or row numbers counted from 1, of the forecast rows
    actual: np.ndarray  # [N] true values, NaN if missing
    forecasts: np.ndarray  # [N] point forecasts, or medians
    band: tuple[np.ndarray, np.ndarray] | None = None  # (lower, upper) bounds [N] of the 90% interval, if any


class Dataset(NamedTuple):
    """Data of a file after reading, splitting and preprocessing, with the loss, the metric and baselines."""

    name: str  # name in messages, such as 'JapaneseVowels_TRAIN.ts'
    description: Sequence[str]  # printed lines about rows, lengths, channels, missing values, classes and splits
    spec: ModelSpec  # inputs and outputs of a model; a function of flags and `preprocessing` alone
    postprocess: PostprocessFn  # turns model outputs into predictions
    preprocessing: Mapping[str, Any]  # JSON values that a run saves to preprocess new files as in training
    loss_fn: LossFn  # (outputs, batch) -> means by name; 'loss' is minimized, and monitored for early stopping
    batch: Callable[[Arrays, jax.Array, jax.Array], Batch]  # (data, key, step) -> training Batch, as in Task
    data: Arrays  # argument `data` of `batch`, with the training split
    steps_per_epoch: int  # training steps of about one pass over the training split; at least 25 for forecasts
    validation: Batch  # batches of the validation split, leaves [N, B, ...]
    test: PredictionInputs  # test split, predicted once, after training
    metric: MetricSpec
    items: Callable[[Arrays], ItemScores]  # predictions of the test split, leaves [M, B, ...] -> their item scores
    baselines: Mapping[str, Callable[[str], ItemScores]]  # by name: split -> item scores, see fit_splits
    summary: Callable[[Arrays], Sequence[str]] = lambda predictions: ()  # test predictions -> printed lines
    train_plus_validation: Callable[[], Arrays] | None = None  # () -> both splits as `data`, for --refit
    figure_data: Callable[[Arrays], ConfusionMatrix | ForecastCurve] | None = None  # test predictions -> plotted data


class OnlinePredictor(NamedTuple):
    """Functions for a prediction after each line of text, which is one time step; an empty line ends all sequences."""

    parse: Callable[[str], np.ndarray | None]  # line -> [F] float32, or a token []; None ends all sequences
    columns: Sequence[str]  # column names of the output
    values: Callable[[np.ndarray, np.ndarray], Sequence[Any]]  # (outputs [O], parsed line) -> a value per column
    restart: Callable[[], None] = lambda: None  # called after all sequences have ended
    series: Callable[[], Any] = lambda: None  # () -> key of the sequence of the last line; each key has its own carry
    rows: int = 1  # copies of the parsed line in a batch, so that numbers are rounded as in batches of a file
    takes_empty: bool = False  # True if `parse` gets empty lines too; otherwise they end all sequences
