"""What a file of data gives a run: how it is fed, scored and split, and what there is to beat.

A file of `seqjax/datasets/` has functions that return a Dataset, from arrays that `seqjax/readers/` gave.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax.tasks.synthetic import LossFn
from seqjax.types import Arrays, Batch, ModelSpec


class Items(NamedTuple):
    """A metric by parts that belong together (series, pieces, stretches of a text): an interval draws them anew."""

    totals: np.ndarray  # [N] sums over the part
    counts: np.ndarray  # [N] of how many values


class Measure(NamedTuple):
    """What a model and a baseline are compared by."""

    name: str  # 'accuracy', 'RMSE', 'bits per character'
    higher: bool = False  # whether more is better
    root: bool = False  # the square root of the mean, as in RMSE
    spec: str = '.4g'  # how a value is written
    unit: str = ''  # of the data, or what the name does not say

    def value(self, totals: Any, counts: Any) -> Any:
        """Of sums over items."""
        mean = np.asarray(totals, np.float64) / np.asarray(counts, np.float64)
        return np.sqrt(mean) if self.root else mean


Table = tuple[Sequence[str], Iterable[Sequence[Any]]]  # names of columns, and rows


Answers = Callable[[Arrays, Batch], Arrays]  # (outputs, batch) -> what the host is given of them, leaves [B, ...]


class Unseen(NamedTuple):
    """Data that a trained model is asked about."""

    batches: Batch  # leaves [M, B, ...]; a stateful model begins anew at the first and goes on to the last
    table: Callable[[Arrays], Table]  # from `Dataset.answers` of all batches, leaves [M, B, ...]: a row a prediction
    look: Sequence[str] = ()  # lines about the file
    tell: Callable[[Arrays], Sequence[str]] = lambda answers: ()  # lines about what was answered


class ConfusionMatrix(NamedTuple):
    """How often each class was predicted for each true class."""

    counts: np.ndarray  # [K, K]: a row a true class
    classes: Sequence[str]


class ForecastCurve(NamedTuple):
    """One-step-ahead forecasts of a stretch of a series."""

    name: str
    times: np.ndarray  # [N] steps or dates
    actual: np.ndarray  # [N]
    forecasts: np.ndarray  # [N]
    band: tuple[np.ndarray, np.ndarray] | None = None  # [N] each: the lower and the upper end of the 90% interval


class Dataset(NamedTuple):
    """A file of data, ready for any recurrent model."""

    name: str  # in a sentence: 'JapaneseVowels_TRAIN.ts'
    look: Sequence[str]  # the first look, a line each: rows, lengths, channels, missing values, classes, the splits
    spec: ModelSpec  # settings and recipe alone decide it
    answers: Answers
    recipe: Mapping[str, Any]  # as JSON has it: all that a prediction must know of the data that were trained on
    loss_fn: LossFn  # (outputs, batch) -> named means; training lowers 'loss', and validation stops by it
    batch: Callable[[Arrays, jax.Array, jax.Array], Batch]  # (data, key, step) -> Batch, as in Task
    data: Arrays  # its argument: the part that is trained on
    epoch: int  # steps that read about as much as there is to train on
    validation: Batch  # leaves [N, B, ...]
    test: Unseen  # touched once, at the end
    measure: Measure
    items: Callable[[Arrays], Items]  # of the test, from its answers, leaves [M, B, ...]
    baselines: Mapping[str, Callable[[str], Items]]  # by name: a split -> its items, those of the test as above
    tell: Callable[[Arrays], Sequence[str]] = lambda answers: ()  # lines about the test, such as a confusion matrix
    both: Callable[[], Arrays] | None = None  # the argument of `batch` with the validation part in it, too
    figure_data: Callable[[Arrays], ConfusionMatrix | ForecastCurve] | None = None  # of the test, from its answers


class OnlinePredictor(NamedTuple):
    """Observations that come one at a time, as lines of text; an empty line begins another sequence."""

    parse: Callable[[str], np.ndarray | None]  # a line -> [F] float32, or a token []; None: sequences begin anew
    columns: Sequence[str]  # what is written of each answer
    values: Callable[[np.ndarray, np.ndarray], Sequence[Any]]  # (outputs [O], what was parsed) -> one a column
    restart: Callable[[], None] = lambda: None  # told that another sequence begins
    series: Callable[[], Any] = lambda: None  # the sequence of the last line; each has a carry of its own
    rows: int = 1  # equal rows that a step computes, so that it rounds as a batch of a file does
    takes_empty: bool = False  # whether `parse` decides about empty lines, too
