"""Sequences that have a class each: what all of them share, whatever they are made of.

A series or an image is one item: of the metric, of its interval, of predictions.csv.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from seqjax.datasets.baselines import class_baselines
from seqjax.datasets.dataset import ConfusionMatrix, Dataset, Items, Measure, Table, Unseen
from seqjax.errors import UserError
from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import LossFn
from seqjax.types import Arrays, Batch, Mean, ModelSpec

BATCH = 64  # B of validation, test and predictions: batches of one shape give the same bits
WIDEST = 20  # classes of which a whole confusion matrix is shown

MEASURE = Measure('accuracy', higher=True, spec='.1%')


# --- the model -------------------------------------------------------------------------------------


def spec(features: int, classes: int, steps: int) -> ModelSpec:
    """One logit for each class; F features, and as many steps as the longest that were trained on."""
    return ModelSpec('last', classes, features=features, memory_span=steps)


def answers(logits: Arrays, batch: Batch) -> Arrays:
    """Logits of every class, as they are."""
    return logits


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Of classes, [..., O] float64."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def scoring(weights: np.ndarray | None) -> LossFn:
    """Cross-entropy and the share of wrong answers; `weights` [O], each at least 1, are of the classes in the loss.

    The weighted loss is divided by the sum of the weights, so that their scale says nothing.
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
    """Of classes that occur in labels [N]: how often the commonest one does / how often it does; none for 'none'.

    >>> class_weights('balanced', np.array([0, 1, 1, 1])).tolist()
    [3.0, 1.0]
    """
    if word == 'none':
        return None
    counts = np.bincount(labels)
    return counts.max() / counts


class Splits(NamedTuple):
    """The items of a run, images or series, by what they are used for."""

    train: Any
    validation: Any
    test: Any


# --- splits and batches ----------------------------------------------------------------------------


def stratified(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that stay and rows that are held out, ascending: the same share of each class, of which one stays at least.

    Labels [N], the share and the seed decide which; nothing else does.

    >>> stratified(np.array([0, 1, 0, 1, 0, 0, 2]), 0.5, seed=0)[1].tolist()
    [1, 4, 5]
    """
    draw = np.random.RandomState(seed)  # NumPy keeps its numbers from version to version
    held = [
        draw.permutation(rows)[: min(round(share * len(rows)), len(rows) - 1)]
        for rows in (np.flatnonzero(labels == label) for label in np.unique(labels))
    ]
    held = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held), held


def batches(read: Callable[[np.ndarray], Arrays], labels: np.ndarray) -> Batch:
    """All items in their order, leaves [M, B, ...]; the last batch is filled up with the last item, masked.

    `read` takes rows [M, B] to inputs [M, B, ...]; labels [N] are below 0 where unknown, which is masked too.
    """
    rows = np.arange(math.ceil(len(labels) / BATCH) * BATCH).reshape(-1, BATCH)
    real, rows = rows < len(labels), np.minimum(rows, len(labels) - 1)
    return Batch(read(rows), np.maximum(labels[rows], 0).astype(np.int32), real & (labels[rows] >= 0))


def flat(answers: Arrays, count: int) -> np.ndarray:
    """Logits of batches [M, B, O] -> of the items [count, O]."""
    logits = np.asarray(answers)
    return logits.reshape(-1, logits.shape[-1])[:count]


def predicted(logits: np.ndarray) -> np.ndarray:
    """The most probable class of each row; below 0 where no number says which."""
    return np.where(np.isfinite(logits).all(-1), logits.argmax(-1), -1)


def columns(classes: Sequence[str]) -> list[str]:
    return [*(f'probability of {name}' for name in classes), 'predicted']


def answer(logits: np.ndarray, classes: Sequence[str]) -> list[Any]:
    """The probabilities of one item, and its most probable class: what stands in `columns`."""
    return [*probabilities(logits).tolist(), classes[int(np.argmax(logits))]]


def asked(inputs: Batch, labels: np.ndarray, classes: Sequence[str], look: Sequence[str] = ()) -> Unseen:
    """Items to predict: their batches, and the rows of predictions.csv; `labels` [N], below 0 where unknown."""

    def table(answers: Arrays) -> Table:
        told = labels.max() >= 0
        rows = (
            [index, *answer(logits, classes), *([classes[label] if label >= 0 else ''] if told else [])]
            for index, (logits, label) in enumerate(zip(flat(answers, len(labels)), labels, strict=True))
        )
        return ['index', *columns(classes), *(['truth'] if told else [])], rows

    return Unseen(inputs, table, look)


def numbers(line: str, count: int) -> np.ndarray:
    """One step from a line of text: [count] float32, NaN where it says ? or nan; raises UserError where it is none."""
    line = line.strip()
    if line.count(',') + 1 != count:
        raise UserError(f'{line[:80]!r} has {line.count(",") + 1} numbers, and a step has {count}, separated by commas')
    try:
        return np.loadtxt([line.replace('?', 'nan') or '-'], np.float32, delimiter=',', comments=None, ndmin=1)
    except ValueError as error:
        raise UserError(
            f'{line[:80]!r} holds what is no number; a step is {count} of them, with commas between'
        ) from error


# --- the comparison --------------------------------------------------------------------------------


def baselines(
    name: str, features: Callable[[str], np.ndarray], labels: Callable[[str], np.ndarray]
) -> dict[str, Callable[[str], np.ndarray]]:
    """The most frequent class, and logistic regression (called `name`) of features [N, K]: split -> labels [N].

    Both are fitted to what is trained on; for the test to the validation part, too, as nothing of them is chosen by it.
    """

    def fitted_to(split: str, of: Callable[[str], np.ndarray]) -> np.ndarray:
        return np.concatenate([of(part) for part in (['train'] if split == 'validation' else ['train', 'validation'])])

    def most_frequent(split: str) -> np.ndarray:
        return class_baselines.most_frequent(fitted_to(split, labels), len(labels(split)))

    def logistic(split: str) -> np.ndarray:
        return class_baselines.logistic(fitted_to(split, features), fitted_to(split, labels), features(split))

    return {'most frequent class': most_frequent, name: logistic}


def compared(
    classes: Sequence[str],
    labels: Mapping[str, np.ndarray],
    guesses: Mapping[str, Callable[[str], np.ndarray]],
    **parts: Any,
) -> Dataset:
    """A Dataset whose items are right or wrong.

    `labels` [N] are by split; `guesses` are baselines by name: one of the splits -> labels [N]; `parts` are the other
    fields of Dataset.
    """
    guess = {name: functools.cache(make) for name, make in guesses.items()}

    def found(answers: Arrays) -> np.ndarray:
        return predicted(flat(answers, len(labels['test'])))

    def baseline(name: str) -> Callable[[str], Items]:
        return lambda split: _items(guess[name](split), labels[split])

    def tell(answers: Arrays) -> list[str]:
        others = {name: make('test') for name, make in guess.items()}
        return _scores({'the model': found(answers), **others}, labels['test']) + confusion(
            found(answers), labels['test'], classes
        )

    return Dataset(
        measure=MEASURE,
        items=lambda answers: _items(found(answers), labels['test']),
        baselines={name: baseline(name) for name in guess},
        tell=tell,
        figure_data=lambda answers: ConfusionMatrix(pairs(found(answers), labels['test'], len(classes)), classes),
        **parts,
    )


def _items(guess: np.ndarray, labels: np.ndarray) -> Items:
    return Items((guess == labels).astype(np.float64), np.ones(len(labels)))


def balanced_accuracy(guess: np.ndarray, labels: np.ndarray) -> float:
    """The mean over classes of the share of each that is right; classes that do not occur do not count.

    >>> balanced_accuracy(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1]))
    0.5
    """
    return float(np.mean([(guess[labels == label] == label).mean() for label in np.unique(labels)]))


def _scores(guesses: Mapping[str, np.ndarray], labels: np.ndarray) -> list[str]:
    width = max(map(len, guesses))
    return [
        f'{name:{width}}  accuracy {(guess == labels).mean():.1%}, '
        f'balanced accuracy {balanced_accuracy(guess, labels):.1%}'
        for name, guess in guesses.items()
    ]


def confusion(guess: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Lines: a row for the truth, a column for what was predicted; of many classes the commonest mistakes."""
    counts = pairs(guess, labels, len(classes))
    if len(classes) > WIDEST:
        np.fill_diagonal(counts, 0)
        worst = np.argsort(-counts, axis=None, kind='stable')[:WIDEST]
        places = [np.unravel_index(place, counts.shape) for place in worst if counts.flat[place]]
        return ['commonest mistakes:'] + [f'  {classes[i]} as {classes[j]}: {counts[i, j]}' for i, j in places]
    names = [name if len(name) <= 12 else name[:11] + '…' for name in classes]
    width = max(map(len, [*names, str(counts.max())]))
    head = [f'{"":{width}}  ' + ' '.join(f'{name:>{width}}' for name in names)]
    rows = [
        f'{name:>{width}}  ' + ' '.join(f'{n:{width}d}' for n in row) for name, row in zip(names, counts, strict=True)
    ]
    return ['rows the truth, columns what was predicted:', *head, *rows]


def pairs(guess: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """How often each class is taken for each: [truth, prediction] int64; guesses below 0 do not count.

    >>> pairs(np.array([1, 1, -1]), np.array([0, 1, 1]), 2).tolist()
    [[0, 1], [0, 1]]
    """
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels[guess >= 0], guess[guess >= 0]), 1)
    return counts


def check_two_classes(name: str, counts: Mapping[str, int]) -> None:
    """Raises UserError where there is nothing to tell apart; `counts` are of classes that occur."""
    if len(counts) < 2:
        only = ''.join(counts)
        raise UserError(f'{name} has one class only, {only!r}; there must be two or more to tell apart')


def listed(counts: Mapping[str, int]) -> str:
    """Classes with their numbers, for the first look; the commonest of many.

    >>> listed({'left': 3, 'right': 2})
    '2 classes: left 3, right 2'
    """
    most = sorted(counts.items(), key=lambda item: -item[1])[:WIDEST] if len(counts) > WIDEST else counts.items()
    dots = ', ...' if len(counts) > WIDEST else ''
    return f'{len(counts)} classes: ' + ', '.join(f'{name} {count:,}' for name, count in most) + dots
