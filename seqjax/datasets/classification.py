"""Classification of sequences: what time series and images have in common.

A series or an image is one item of the metric, of the bootstrap and of predictions.csv.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from seqjax.datasets.baselines import class_baselines
from seqjax.datasets.dataset import ConfusionMatrix, Dataset, ItemScores, MetricSpec, PredictionInputs, Table
from seqjax.errors import UserError
from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import LossFn
from seqjax.types import Arrays, Batch, Mean, ModelSpec

BATCH_SIZE = 64  # B of evaluation and prediction; batches of one shape give the same bits
MAX_SHOWN_CLASSES = 20  # maximum number of classes of a printed confusion matrix

METRIC = MetricSpec('accuracy', higher_is_better=True, format_spec='.1%')


# --- model -----------------------------------------------------------------------------------------


def spec(features: int, classes: int, steps: int) -> ModelSpec:
    """Returns the ModelSpec: F features, one logit for each class, and the longest training series as memory span."""
    return ModelSpec('last', classes, features=features, memory_span=steps)


def postprocess(logits: Arrays, batch: Batch) -> Arrays:
    """Returns the logits unchanged."""
    return logits


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Returns softmax probabilities, [..., O] float64."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def make_loss(weights: np.ndarray | None) -> LossFn:
    """Returns a loss function: cross-entropy and the fraction of wrong predictions.

    `weights` [O] are class weights. The sum of the weighted losses is divided by the weights of all examples, so their
    scale has no effect.
    """
    if weights is None:
        return synthetic.classification

    def loss_fn(logits: Arrays, batch: Batch) -> dict[str, Mean]:
        logits = jnp.where(batch.mask[:, None], logits.astype(jnp.float32), 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        weight = jnp.asarray(weights, jnp.float32)[batch.targets] * batch.mask
        right = (logits.argmax(-1) == batch.targets) & jnp.isfinite(logits).all(-1)
        return {
            'loss': Mean((weight * losses).sum(), weight.sum()),
            synthetic.WRONG: synthetic.error_rate(right, batch.mask),
        }

    return loss_fn


def class_weights(word: str, labels: np.ndarray) -> np.ndarray | None:
    """Returns the count of the most frequent class divided by the count of each class in labels [N]; None for 'none'.

    >>> class_weights('balanced', np.array([0, 1, 1, 1])).tolist()
    [3.0, 1.0]
    """
    if word == 'none':
        return None
    counts = np.bincount(labels)
    return counts.max() / counts


class Splits(NamedTuple):
    """The items of a run, images or series, by split."""

    train: Any
    validation: Any
    test: Any


# --- splits and batches ----------------------------------------------------------------------------


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the remaining and the selected rows, both ascending; each class has the same fraction of selected rows.

    At least one row of each class remains. The split depends on labels [N], the fraction and the seed alone.

    >>> stratified_split(np.array([0, 1, 0, 1, 0, 0, 2]), 0.5, seed=0)[1].tolist()
    [1, 4, 5]
    """
    rng = np.random.RandomState(seed)  # NumPy keeps its numbers from version to version
    selected = [
        rng.permutation(rows)[: min(round(fraction * len(rows)), len(rows) - 1)]
        for rows in (np.flatnonzero(labels == label) for label in np.unique(labels))
    ]
    selected = np.sort(np.concatenate(selected))
    return np.setdiff1d(np.arange(len(labels)), selected), selected


def batches(read: Callable[[np.ndarray], Arrays], labels: np.ndarray) -> Batch:
    """Returns all items in order, leaves [M, B, ...]; the last batch is padded with the last item, masked.

    Args:
      read: function of rows [M, B] that returns inputs [M, B, ...].
      labels: [N]; those below 0 are unknown and masked.
    """
    rows = np.arange(math.ceil(len(labels) / BATCH_SIZE) * BATCH_SIZE).reshape(-1, BATCH_SIZE)
    valid, rows = rows < len(labels), np.minimum(rows, len(labels) - 1)
    return Batch(read(rows), np.maximum(labels[rows], 0).astype(np.int32), valid & (labels[rows] >= 0))


def flatten_batches(predictions: Arrays, count: int) -> np.ndarray:
    """Returns the logits of items [count, O] from the logits of batches [M, B, O]."""
    logits = np.asarray(predictions)
    return logits.reshape(-1, logits.shape[-1])[:count]


def predicted_classes(logits: np.ndarray) -> np.ndarray:
    """Returns the most probable class of each row; -1 if a logit is not finite."""
    return np.where(np.isfinite(logits).all(-1), logits.argmax(-1), -1)


def columns(classes: Sequence[str]) -> list[str]:
    return [*(f'probability of {name}' for name in classes), 'predicted']


def prediction_row(logits: np.ndarray, classes: Sequence[str]) -> list[Any]:
    """Returns the probabilities of one item and its most probable class, in the order of `columns`."""
    return [*probabilities(logits).tolist(), classes[int(np.argmax(logits))]]


def prediction_inputs(
    inputs: Batch, labels: np.ndarray, classes: Sequence[str], description: Sequence[str] = ()
) -> PredictionInputs:
    """Returns items to predict: batches, and the rows of predictions.csv; `labels` [N] are below 0 if unknown."""

    def table(predictions: Arrays) -> Table:
        labelled = labels.max() >= 0
        rows = (
            [index, *prediction_row(logits, classes), *([classes[label] if label >= 0 else ''] if labelled else [])]
            for index, (logits, label) in enumerate(zip(flatten_batches(predictions, len(labels)), labels, strict=True))
        )
        return ['index', *columns(classes), *(['truth'] if labelled else [])], rows

    return PredictionInputs(inputs, table, description)


def parse_numbers(line: str, count: int) -> np.ndarray:
    """Parses one time step from a line: [count] float32, NaN for '?' or 'nan'.

    Raises UserError if the line is not `count` numbers separated by commas.
    """
    line = line.strip()
    if line.count(',') + 1 != count:
        raise UserError(f'{line[:80]!r} has {line.count(",") + 1} values; write {count}, separated by commas')
    try:
        return np.loadtxt([line.replace('?', 'nan') or '-'], np.float32, delimiter=',', comments=None, ndmin=1)
    except ValueError as error:
        raise UserError(
            f'{line[:80]!r} has a value that is not a number; write {count} numbers, separated by commas'
        ) from error


# --- baselines and metrics--------------------------------------------------------------------------


def baselines(
    name: str, features: Callable[[str], np.ndarray], labels: Callable[[str], np.ndarray]
) -> dict[str, Callable[[str], np.ndarray]]:
    """Returns the baselines by name, functions from a split to labels [N]: most frequent class, logistic regression.

    They are fitted to the training split; for the test split, to the validation split as well, since no choice depends
    on it. The logistic regression is called `name` and reads features [N, K].
    """

    def training_values(split: str, values: Callable[[str], np.ndarray]) -> np.ndarray:
        return np.concatenate(
            [values(name) for name in (['train'] if split == 'validation' else ['train', 'validation'])]
        )

    def most_frequent(split: str) -> np.ndarray:
        return class_baselines.most_frequent(training_values(split, labels), len(labels(split)))

    def logistic(split: str) -> np.ndarray:
        return class_baselines.logistic(
            training_values(split, features), training_values(split, labels), features(split)
        )

    return {'most frequent class': most_frequent, name: logistic}


def make_dataset(
    classes: Sequence[str],
    labels: Mapping[str, np.ndarray],
    baseline_predictions: Mapping[str, Callable[[str], np.ndarray]],
    **fields: Any,
) -> Dataset:
    """Returns a Dataset whose metric is accuracy.

    Args:
      classes: names of the classes.
      labels: labels [N] by split.
      baseline_predictions: baselines by name, functions from a split to labels [N].
      **fields: the other fields of Dataset.
    """
    cached = {name: functools.cache(predict) for name, predict in baseline_predictions.items()}

    def test_classes(predictions: Arrays) -> np.ndarray:
        return predicted_classes(flatten_batches(predictions, len(labels['test'])))

    def baseline(name: str) -> Callable[[str], ItemScores]:
        return lambda split: _items(cached[name](split), labels[split])

    def summarize(predictions: Arrays) -> list[str]:
        baseline_classes = {name: predict('test') for name, predict in cached.items()}
        return _scores({'model': test_classes(predictions), **baseline_classes}, labels['test']) + confusion(
            test_classes(predictions), labels['test'], classes
        )

    return Dataset(
        metric=METRIC,
        items=lambda predictions: _items(test_classes(predictions), labels['test']),
        baselines={name: baseline(name) for name in cached},
        summary=summarize,
        figure_data=lambda predictions: ConfusionMatrix(
            confusion_counts(test_classes(predictions), labels['test'], len(classes)), classes
        ),
        **fields,
    )


def _items(predicted: np.ndarray, labels: np.ndarray) -> ItemScores:
    return ItemScores((predicted == labels).astype(np.float64), np.ones(len(labels)))


def balanced_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean over classes of the fraction of correct predictions; classes that do not occur are ignored.

    >>> balanced_accuracy(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1]))
    0.5
    """
    return float(np.mean([(predicted[labels == label] == label).mean() for label in np.unique(labels)]))


def _scores(predictions: Mapping[str, np.ndarray], labels: np.ndarray) -> list[str]:
    width = max(map(len, predictions))
    return [
        f'{name:{width}}  accuracy {(predicted == labels).mean():.1%}, '
        f'balanced accuracy {balanced_accuracy(predicted, labels):.1%}'
        for name, predicted in predictions.items()
    ]


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Returns the lines of a confusion matrix, a row for each true class; of many classes, the most frequent errors."""
    counts = confusion_counts(predicted, labels, len(classes))
    if len(classes) > MAX_SHOWN_CLASSES:
        np.fill_diagonal(counts, 0)
        worst = np.argsort(-counts, axis=None, kind='stable')[:MAX_SHOWN_CLASSES]
        places = [np.unravel_index(place, counts.shape) for place in worst if counts.flat[place]]
        return ['most frequent errors:'] + [f'  {classes[i]} as {classes[j]}: {counts[i, j]}' for i, j in places]
    names = [name if len(name) <= 12 else name[:11] + '…' for name in classes]
    width = max(map(len, [*names, str(counts.max())]))
    head = [f'{"":{width}}  ' + ' '.join(f'{name:>{width}}' for name in names)]
    rows = [
        f'{name:>{width}}  ' + ' '.join(f'{n:{width}d}' for n in row) for name, row in zip(names, counts, strict=True)
    ]
    return ['confusion matrix (rows: true class, columns: predicted class):', *head, *rows]


def confusion_counts(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns the number of predictions of each class for each true class, [truth, prediction] int64.

    Predictions below 0 are ignored.

    >>> confusion_counts(np.array([1, 1, -1]), np.array([0, 1, 1]), 2).tolist()
    [[0, 1], [0, 1]]
    """
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels[predicted >= 0], predicted[predicted >= 0]), 1)
    return counts


def check_two_classes(name: str, counts: Mapping[str, int]) -> None:
    """Raises UserError if fewer than two classes occur; `counts` are counts by class."""
    if len(counts) < 2:
        only = ''.join(counts)
        raise UserError(f'{name} has only one class, {only!r}; use data with two or more')


def format_class_counts(counts: Mapping[str, int]) -> str:
    """Returns classes and their counts in one line; only the most frequent of many.

    >>> format_class_counts({'left': 3, 'right': 2})
    '2 classes: left 3, right 2'
    """
    most = (
        sorted(counts.items(), key=lambda item: -item[1])[:MAX_SHOWN_CLASSES]
        if len(counts) > MAX_SHOWN_CLASSES
        else counts.items()
    )
    dots = ', ...' if len(counts) > MAX_SHOWN_CLASSES else ''
    return f'{len(counts)} classes: ' + ', '.join(f'{name} {count:,}' for name, count in most) + dots
