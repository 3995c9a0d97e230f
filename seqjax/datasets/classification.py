"""Shared code for classifying time series and images: loss, splits, batches, baselines and accuracy.

An example is one series or one image. It is one value of the accuracy, one item that the bootstrap resamples, and one
row of predictions.csv.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from seqjax.datasets.baselines import class_baselines
from seqjax.datasets.dataset import (
    ConfusionMatrix,
    Dataset,
    ItemScores,
    MetricSpec,
    PredictionInputs,
    Table,
    fit_splits,
)
from seqjax.errors import UserError
from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import LossFn
from seqjax.types import Arrays, Batch, Mean, ModelSpec

BATCH_SIZE = 64  # B of evaluation and prediction, the same for all files, since rounding depends on it
MAX_SHOWN_CLASSES = 20  # maximum number of classes, or of frequent errors, in printed lines and messages

METRIC = MetricSpec('accuracy', higher_is_better=True, format_spec='.1%')


# --- model -----------------------------------------------------------------------------------------


def spec(features: int, classes: int, steps: int) -> ModelSpec:
    """Returns the ModelSpec of a classifier with `classes` logits after the last step of inputs [B, T, `features`].

    `steps`, the length of the longest sequence, is the memory span of chrono initialization.
    """
    return ModelSpec('last', classes, features=features, memory_span=steps)


def postprocess(logits: Arrays, batch: Batch) -> Arrays:
    """Returns the logits unchanged, as predictions; `batch` is not used."""
    return logits


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax of logits [..., O] over the O classes, [..., O] float64."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def make_loss(weights: np.ndarray | None) -> LossFn:
    """Returns a loss function with two means: 'loss', the cross-entropy, and 'wrong', the fraction of wrong classes.

    `weights` [O] are class weights of 'loss'; None weights all examples equally. 'loss' is the sum of the weighted
    cross-entropies divided by the sum of the weights, over unmasked examples. 'wrong' is not weighted;
    an example with a non-finite logit is wrong.
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
    """Returns class weights [O] if `word` is 'balanced', and None if it is 'none'.

    The weight of a class is the count of the most frequent class in labels [N], divided by the count of that class.

    >>> class_weights('balanced', np.array([0, 1, 1, 1])).tolist()
    [3.0, 1.0]
    """
    if word == 'none':
        return None
    counts = np.bincount(labels)
    return counts.max() / counts


class Splits(NamedTuple):
    """Training, validation and test examples, each an `Images` or a `LabelledSeries`."""

    train: Any
    validation: Any
    test: Any


# --- splits and batches ----------------------------------------------------------------------------


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns two ascending arrays of indices into labels [N]: the remaining ones and the randomly selected ones.

    Of each class, `fraction` of the indices, rounded, are selected, but at least one remains. Equal arguments give
    equal results.

    >>> stratified_split(np.array([0, 1, 0, 1, 0, 0, 2]), 0.5, seed=0)[1].tolist()
    [1, 4, 5]
    """
    rng = np.random.RandomState(seed)  # draws the same numbers in every version of NumPy
    selected = [
        rng.permutation(rows)[: min(round(fraction * len(rows)), len(rows) - 1)]
        for rows in (np.flatnonzero(labels == label) for label in np.unique(labels))
    ]
    selected = np.sort(np.concatenate(selected))
    return np.setdiff1d(np.arange(len(labels)), selected), selected


def batches(read: Callable[[np.ndarray], Arrays], labels: np.ndarray) -> Batch:
    """Returns N examples in order as M batches, leaves [M, B, ...]; masked copies of the last one pad the last batch.

    Args:
      read: function from indices of examples [M, B] to inputs [M, B, ...].
      labels: class indices [N]; below 0 if unknown, in which case the example is masked and its target is 0.
    """
    rows = np.arange(math.ceil(len(labels) / BATCH_SIZE) * BATCH_SIZE).reshape(-1, BATCH_SIZE)
    valid, rows = rows < len(labels), np.minimum(rows, len(labels) - 1)
    return Batch(read(rows), np.maximum(labels[rows], 0).astype(np.int32), valid & (labels[rows] >= 0))


def flatten_batches(predictions: Arrays, count: int) -> np.ndarray:
    """Returns the logits of all examples, [count, O], from logits of batches [M, B, O]; drops padding at the end."""
    logits = np.asarray(predictions)
    return logits.reshape(-1, logits.shape[-1])[:count]


def predicted_classes(logits: np.ndarray) -> np.ndarray:
    """Returns the index [...] of the largest of the logits [..., O]; -1 where one of the O logits is not finite."""
    return np.where(np.isfinite(logits).all(-1), logits.argmax(-1), -1)


def columns(classes: Sequence[str]) -> list[str]:
    return [*(f'probability of {name}' for name in classes), 'predicted']


def prediction_row(logits: np.ndarray, classes: Sequence[str]) -> list[Any]:
    """Returns the values of `columns` for logits [O] of one example: class probabilities, then the predicted class."""
    return [*probabilities(logits).tolist(), classes[int(np.argmax(logits))]]


def prediction_inputs(
    inputs: Batch, labels: np.ndarray, classes: Sequence[str], description: Sequence[str] = ()
) -> PredictionInputs:
    """Returns the PredictionInputs of N examples, with a table that has one row per example.

    A row has the index of the example from 0, the values of `columns`, and its true class ('truth', '' if unknown).
    The column 'truth' is left out if no label is known.

    Args:
      inputs: batches of the examples, from `batches`.
      labels: class indices [N]; below 0 if unknown.
      classes: names of the classes.
      description: lines that describe the file.
    """

    def table(predictions: Arrays) -> Table:
        labelled = labels.max() >= 0
        rows = (
            [index, *prediction_row(logits, classes), *([classes[label] if label >= 0 else ''] if labelled else [])]
            for index, (logits, label) in enumerate(zip(flatten_batches(predictions, len(labels)), labels, strict=True))
        )
        return ['index', *columns(classes), *(['truth'] if labelled else [])], rows

    return PredictionInputs(inputs, table, description)


def parse_numbers(line: str, count: int) -> np.ndarray:
    """Returns the numbers [count] float32 of one time step, parsed from a line; NaN for '?' or 'nan'.

    Raises UserError if the line does not have exactly `count` numbers separated by commas.
    """
    line = line.strip()
    if line.count(',') + 1 != count:
        raise UserError(f'{line[:80]!r} has {line.count(",") + 1} comma-separated values; write {count} per line')
    try:
        return np.loadtxt([line.replace('?', 'nan') or '-'], np.float32, delimiter=',', comments=None, ndmin=1)
    except ValueError as error:
        raise UserError(
            f'{line[:80]!r} has an empty value or one that is not a number; write numbers separated by commas, and ? '
            'for a missing one'
        ) from error


# --- baselines and metrics -------------------------------------------------------------------------


def _fit_values(split: str, values: Callable[[str], np.ndarray]) -> np.ndarray:
    """Returns the values, concatenated, of the splits on which the baselines of `split` are fitted."""
    return np.concatenate([values(name) for name in fit_splits(split)])


def baselines(
    name: str, features: Callable[[str], np.ndarray], labels: Callable[[str], np.ndarray]
) -> dict[str, Callable[[str], np.ndarray]]:
    """Returns two baselines by name: 'most frequent class', and a logistic regression that is called `name`.

    A baseline is a function from 'validation' or 'test' to the predicted class indices [N] of that split. It is fitted
    on the splits `fit_splits`.

    Args:
      name: name of the logistic regression.
      features: function from a split name to features [N, K], inputs of the logistic regression.
      labels: function from a split name to class indices [N].
    """

    def most_frequent(split: str) -> np.ndarray:
        return class_baselines.most_frequent(_fit_values(split, labels), len(labels(split)))

    def logistic(split: str) -> np.ndarray:
        return class_baselines.logistic(_fit_values(split, features), _fit_values(split, labels), features(split))

    return {'most frequent class': most_frequent, name: logistic}


def svm_baseline(
    name: str, features: Callable[[str], np.ndarray], labels: Callable[[str], np.ndarray], standardize: bool
) -> tuple[dict[str, Callable[[str], np.ndarray]], list[str]]:
    """Returns a support vector machine as the baseline {`name`: function}, and printed lines about it.

    Its C is the one that is best on validation, the lowest in a tie. If there are too many examples, there is no
    baseline, but a line that says so. The arguments are as in `baselines`; for `standardize` see `class_baselines.svm`.
    """
    count, size = len(_fit_values('test', labels)), features('validation').shape[1]
    if not class_baselines.svm_is_cheap(count, size):
        return {}, [f'no {name} baseline, since it is slow for {count:,} examples of {size:,} features']

    @functools.cache
    def predict(split: str, cost: float) -> np.ndarray:
        fitted = _fit_values(split, features), _fit_values(split, labels)
        return class_baselines.svm(*fitted, features(split), cost, standardize)

    def right(cost: float) -> int:
        return int((predict('validation', cost) == labels('validation')).sum())

    return {name: lambda split: predict(split, max(class_baselines.SVM_COSTS, key=right))}, []


def make_dataset(
    classes: Sequence[str],
    labels: Mapping[str, np.ndarray],
    baseline_predictions: Mapping[str, Callable[[str], np.ndarray]],
    **fields: Any,
) -> Dataset:
    """Returns a Dataset for classification, with accuracy as its metric and a confusion matrix as its figure.

    Args:
      classes: names of the classes.
      labels: class indices [N] of the splits 'validation' and 'test'.
      baseline_predictions: baselines by name, functions from a split name to predicted class indices [N].
      **fields: all fields of Dataset but metric, items, baselines, summary and figure_data, which are set here.
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
    """Returns the mean recall of the classes in `labels`; recall is the fraction of a class that is predicted right.

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
    """Returns the printed lines of a confusion matrix, with a row for each true class.

    With more than `MAX_SHOWN_CLASSES` classes, returns lines with the most frequent errors instead.
    """
    counts = confusion_counts(predicted, labels, len(classes))
    if len(classes) > MAX_SHOWN_CLASSES:
        np.fill_diagonal(counts, 0)
        worst = np.argsort(-counts, axis=None, kind='stable')[:MAX_SHOWN_CLASSES]
        places = [np.unravel_index(place, counts.shape) for place in worst if counts.flat[place]]
        return ['most frequent errors:'] + [
            f'  {classes[i]} predicted as {classes[j]}: {counts[i, j]}' for i, j in places
        ]
    names = [name if len(name) <= 12 else name[:11] + '…' for name in classes]
    width = max(map(len, [*names, str(counts.max())]))
    head = [f'{"":{width}}  ' + ' '.join(f'{name:>{width}}' for name in names)]
    rows = [
        f'{name:>{width}}  ' + ' '.join(f'{n:{width}d}' for n in row) for name, row in zip(names, counts, strict=True)
    ]
    return ['confusion matrix (rows: true class, columns: predicted class):', *head, *rows]


def confusion_counts(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns a confusion matrix: the number of examples by [true class, predicted class], int64.

    Examples with a prediction below 0, for which a logit is not finite, are not counted.

    >>> confusion_counts(np.array([1, 1, -1]), np.array([0, 1, 1]), 2).tolist()
    [[0, 1], [0, 1]]
    """
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels[predicted >= 0], predicted[predicted >= 0]), 1)
    return counts


def check_two_classes(name: str, counts: Mapping[str, int]) -> None:
    """Raises UserError with `name` if `counts`, the number of examples by class, has fewer than two classes."""
    if len(counts) < 2:
        only = ''.join(counts)
        raise UserError(f'{name} has only one class, {only!r}; use data with two or more classes')


def format_class_counts(counts: Mapping[str, int]) -> str:
    """Returns a line with the number of classes and the counts of at most the `MAX_SHOWN_CLASSES` largest ones.

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
