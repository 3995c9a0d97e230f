"""Whole series that have a class each: of any length, with any number of channels.

Each channel is scaled to mean 0 and standard deviation 1 over the steps of the series that are trained on. A channel
that is constant there says nothing, and is 0 everywhere. With missing='mask' a value that is missing or infinite is 0
after scaling, and for each channel a second one is 1 where it is missing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.datasets import classification, recipes
from seqjax.datasets.baselines import class_baselines
from seqjax.datasets.classification import Splits
from seqjax.datasets.dataset import Dataset, OnlinePredictor, Unseen
from seqjax.datasets.readers import ts_format
from seqjax.datasets.readers.ts_format import LabelledSeries
from seqjax.errors import UserError
from seqjax.ops import windows
from seqjax.types import Batch, ModelSpec, Sequences

VALIDATION, TEST = 1, 2  # seeds of what is held out: of their own, so that runs can be compared
FARTHEST = 1e9  # standard deviations; what is farther off says no more, and float32 can compute with it
STILL = 1e-6  # of a channel's size: float32 does not know what is smaller

Recipe = Mapping[str, Any]


def dataset(
    name: str,
    series: LabelledSeries,
    test: tuple[str, LabelledSeries] | None,
    *,
    test_share: float,
    validation_share: float,
    missing: str,
    weights: str,
    batch_size: int,
    seed: int,
) -> Dataset:
    """Series whose classes are to be learned.

    Args:
      name, series: of the file, and what it holds.
      test: the same of the file for the test; None to hold out `test_share` of `series`.
      validation_share: of the others.
      missing: refuse, or mask.
      weights: of the classes in the loss: none, or balanced.
      batch_size, seed: of training, and of the order of its epochs.

    Raises:
      UserError: there is nothing to learn, or the parts do not fit each other; the sentence says what.
    """
    for given, held in ((name, series), *([test] if test else [])):
        _check_missing(given, held, missing)
    parts = split(name, series, test, test_share, validation_share)
    recipe = _recipe(name, series, parts.train, missing)
    labels = {'validation': parts.validation.labels, 'test': parts.test.labels}

    def summaries(split: str) -> np.ndarray:
        part = getattr(parts, split)
        return class_baselines.summaries(part.values, part.lengths)

    return classification.compared(
        recipe['classes'],
        labels,
        classification.baselines('logistic regression', summaries, lambda split: getattr(parts, split).labels),
        name=name,
        look=_look(series, parts, test[0] if test else None, recipe),
        spec=spec(recipe),
        answers=classification.answers,
        recipe=recipe,
        loss_fn=classification.scoring(classification.class_weights(weights, parts.train.labels)),
        batch=_training(recipe['steps'], batch_size),
        data=_training_data(parts.train, recipe, seed),
        both=lambda: _training_data(_joined(parts.train, parts.validation), recipe, seed),
        epoch=-(-len(parts.train.lengths) // batch_size),
        validation=_batches(parts.validation, recipe),
        test=classification.asked(_batches(parts.test, recipe), parts.test.labels, recipe['classes']),
    )


SCHEMA = {
    'classes': recipes.several(recipes.text(1), 2, distinct=True),
    'mean': recipes.several(recipes.number(), 1),
    'factor': recipes.several(recipes.number(-1), 1),
    'missing': recipes.choice('refuse', 'mask'),
    'steps': recipes.whole(1, recipes.MOST_STEPS),
}


def check_recipe(recipe: Any, missing: str) -> Recipe:
    """Returns a recipe that was read from a file; raises UserError if it is invalid."""
    recipes.check(recipe, SCHEMA, {'missing': missing})
    recipes.require(len(recipe['mean']) == len(recipe['factor']), 'mean and factor of different lengths')
    recipes.require(recipes.NAMES.holds(recipe.get('declared', [])), "no list of names as 'declared'")
    return recipe


def spec(recipe: Recipe) -> ModelSpec:
    """F is twice the channels where missing values are masked."""
    features = len(recipe['mean']) * (2 if recipe['missing'] == 'mask' else 1)
    return classification.spec(features, len(recipe['classes']), recipe['steps'])


def unseen(name: str, series: LabelledSeries, recipe: Recipe) -> Unseen:
    """Series to predict; their classes may be unknown.

    Raises UserError where there are other channels, classes that were not trained on, or missing values.
    """
    series = _fitting(name, series, recipe['classes'], recipe.get('declared', ()), len(recipe['mean']))
    _check_missing(name, series, recipe['missing'])
    unknown = int((series.labels == ts_format.UNKNOWN).sum())
    look = [_sizes(series), f'{len(series.labels) - unknown:,} series have a class, {unknown:,} have none']
    return classification.asked(_batches(series, recipe), series.labels, recipe['classes'], look)


def stream(recipe: Recipe) -> OnlinePredictor:
    """A line is a step, its channels separated by commas; the answer is for the steps so far."""
    classes, channels = recipe['classes'], len(recipe['mean'])

    def parse(line: str) -> np.ndarray:
        values = classification.numbers(line, channels)
        if recipe['missing'] == 'refuse' and not np.isfinite(values).all():
            raise UserError(
                f'{line.strip()[:80]!r} has a value that is missing or infinite, and the model was trained with '
                '--missing=refuse; train one with --missing=mask'
            )
        return scaled(values[None], recipe)[0]

    return OnlinePredictor(
        parse, classification.columns(classes), lambda outputs, _: classification.answer(np.asarray(outputs), classes)
    )


# --- what is refused, and what is split ------------------------------------------------------------


def take(series: LabelledSeries, rows: np.ndarray) -> LabelledSeries:
    """The series of some rows, in their order."""
    ends = np.cumsum(series.lengths)
    parts = [series.values[ends[row] - series.lengths[row] : ends[row]] for row in rows]
    return series._replace(values=np.concatenate(parts), lengths=series.lengths[rows], labels=series.labels[rows])


def _joined(one: LabelledSeries, other: LabelledSeries) -> LabelledSeries:
    fields = ('values', 'lengths', 'labels')
    return one._replace(**{name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in fields})


def _labelled(name: str, series: LabelledSeries) -> LabelledSeries:
    """The same series with those classes only that occur; all must have one."""
    if not series.classes:
        raise UserError(f'{name} has @classLabel false, so there is nothing to learn from; its series need classes')
    for row in np.flatnonzero(series.labels == ts_format.UNKNOWN)[:1]:
        raise UserError(f'{name} has no class for series {row + 1} of {len(series.labels):,}; take it out, or tell it')
    classification.check_two_classes(name, _counts(series))
    occur, labels = np.unique(series.labels, return_inverse=True)
    classes = tuple(series.classes[place] for place in occur)
    return series._replace(labels=labels.astype(np.int32), classes=classes)


def _counts(series: LabelledSeries) -> dict[str, int]:
    """How often each class does occur."""
    occur, counts = np.unique(series.labels, return_counts=True)
    return {series.classes[place]: int(count) for place, count in zip(occur, counts, strict=True)}


def split(
    name: str,
    series: LabelledSeries,
    test: tuple[str, LabelledSeries] | None,
    test_share: float,
    validation_share: float,
) -> Splits:
    """The parts of a run on a file, with those classes only that occur in it; see `dataset`."""
    declared, series = series.classes, _labelled(name, series)
    if test is None:
        rest, held = classification.stratified(series.labels, test_share, TEST)
        _check_some(name, held, 'test', test_share)
        rest, held_out = take(series, rest), take(series, held)
    else:
        rest, held_out = series, _fitting(*test, series.classes, declared, series.values.shape[1])
        for row in np.flatnonzero(held_out.labels == ts_format.UNKNOWN)[:1]:
            raise UserError(f'{test[0]} has no class for series {row + 1}, and a test needs all of them')
    train, validation = classification.stratified(rest.labels, validation_share, VALIDATION)
    _check_some(name, validation, 'validation', validation_share)
    return Splits(take(rest, train), take(rest, validation), held_out)


def _check_some(name: str, rows: np.ndarray, flag: str, share: float) -> None:
    if not len(rows):
        raise UserError(
            f'--{flag}_fraction={share:g} of each class of {name} is empty; use a larger fraction, or more data'
        )


def _fitting(
    name: str, series: LabelledSeries, classes: Sequence[str], declared: Sequence[str], channels: int
) -> LabelledSeries:
    """Returns the series with labels as places in `classes`, that were trained on, out of those `declared` there."""
    if series.values.shape[1] != channels:
        raise UserError(
            f'{name} has {series.values.shape[1]} channels, and {channels} were trained on; they must agree'
        )
    same = ts_format.matching(series.classes, classes, declared)
    places = {same(label): place for place, label in enumerate(classes)}
    mapped = np.array(
        [places.get(same(label), ts_format.UNKNOWN - 1) for label in series.classes] + [ts_format.UNKNOWN], np.int32
    )
    labels = mapped[series.labels]  # UNKNOWN is the last one
    for row in np.flatnonzero(labels == ts_format.UNKNOWN - 1)[:1]:
        raise UserError(
            f'{name} has the class {series.classes[series.labels[row]]!r} in series {row + 1}, not trained on;'
            f' these were: {", ".join(map(repr, classes[: classification.WIDEST]))}'
        )
    return series._replace(labels=labels, classes=tuple(classes))


def _check_missing(name: str, series: LabelledSeries, missing: str) -> None:
    """Raises UserError where a value is missing or infinite and that is to be refused."""
    if missing == 'mask':
        return
    places = np.argwhere(~np.isfinite(series.values))
    for place, channel in places[:1]:
        ends = np.cumsum(series.lengths)
        row = int(np.searchsorted(ends, place, side='right'))
        step = place - (ends[row] - series.lengths[row])
        raise UserError(
            f'{name} has {len(places):,} values that are missing or infinite, the first of them in series {row + 1} at '
            f'step {step + 1} of channel {channel + 1}; a model trained with --missing=mask is told where they are'
        )


# --- what the model reads --------------------------------------------------------------------------


def _recipe(name: str, series: LabelledSeries, train: LabelledSeries, missing: str) -> dict[str, Any]:
    """`series` are all of the file that is trained on, and `train` the part that the scaling is fitted to."""
    means, factors = [], []
    for channel in train.values.T:
        known = channel[np.isfinite(channel)].astype(np.float64)
        mean, deviation = (float(known.mean()), float(known.std())) if known.size else (0.0, 0.0)
        means.append(mean)
        factors.append(1 / deviation if deviation > STILL * abs(mean) else 0.0)
    if not any(factors):
        raise UserError(f'{name} has no channel that changes in the series to train on; there is nothing to learn from')
    return {
        'classes': list(train.classes),
        'declared': list(series.classes),
        'mean': means,
        'factor': factors,  # 1 / standard deviation; 0 of a channel that is constant
        'missing': missing,
        'steps': int(series.lengths.max()),
    }


def scaled(values: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Steps as the model reads them: [S, C], NaN where missing -> [S, F] float32."""
    channels = values.shape[1]
    mask = recipe['missing'] == 'mask'
    found = np.zeros((len(values), 2 * channels if mask else channels), np.float32)
    for place in range(channels):
        column = values[:, place].astype(np.float64)
        known = np.isfinite(column)
        column = (np.where(known, column, 0) - recipe['mean'][place]) * recipe['factor'][place]
        found[:, place] = np.where(known, np.clip(column, -FARTHEST, FARTHEST), 0)
        if mask:
            found[:, channels + place] = ~known
    return found


def _batches(series: LabelledSeries, recipe: Recipe) -> Batch:
    """Padded to the longest of the file that was trained on, or of this one where it has longer ones."""
    steps = max(recipe['steps'], int(series.lengths.max()))
    values, starts = scaled(series.values, recipe), np.cumsum(series.lengths) - series.lengths

    def read(rows):
        places = np.arange(steps)
        index = np.minimum(starts[rows][..., None] + places, len(values) - 1)
        real = places < series.lengths[rows][..., None]
        return Sequences(np.where(real[..., None], values[index], 0), series.lengths[rows].astype(np.int32))

    return classification.batches(read, series.labels)


def _training_data(train: LabelledSeries, recipe: Recipe, seed: int) -> dict[str, Any]:
    """The series one behind the other: padded they could take many times as much."""
    return {
        'values': scaled(train.values, recipe),
        'starts': (np.cumsum(train.lengths) - train.lengths).astype(np.int32),
        'lengths': train.lengths.astype(np.int32),
        'labels': train.labels,
        'order': jax.random.key(seed),
    }


def _training(steps: int, batch_size: int) -> Callable[[Any, jax.Array, jax.Array], Batch]:
    def batch(data, key, step):
        rows, real = windows.epoch_rows(data['order'], step, len(data['labels']), batch_size)
        places, lengths = jnp.arange(steps)[None], data['lengths'][rows]
        index = jnp.minimum(data['starts'][rows][:, None] + places, len(data['values']) - 1)
        within = places < lengths[:, None]
        values = jnp.where(within[..., None], data['values'][index], 0)
        return Batch(Sequences(values, lengths), data['labels'][rows], real)

    return batch


# --- what is told -----------------------------------------------------------------------------------


def _sizes(series: LabelledSeries) -> str:
    lengths, missing = series.lengths, int((~np.isfinite(series.values)).sum())
    steps = f'{lengths.min():,}' if lengths.min() == lengths.max() else f'{lengths.min():,} to {lengths.max():,}'
    gone = f'{missing:,} of {series.values.size:,} values are missing' if missing else 'no value is missing'
    return f'{len(lengths):,} series of {steps} steps, {series.values.shape[1]} channels; {gone}'


def _look(series: LabelledSeries, parts: Splits, other: str | None, recipe: Recipe) -> list[str]:
    train, validation, test = (f'{len(part.lengths):,}' for part in parts)
    drawn = 'the same share of each class, drawn by a seed of its own'
    still = [str(place) for place, factor in enumerate(recipe['factor'], 1) if not factor]
    return [
        _sizes(series),
        classification.listed(_counts(series)),
        f'{train} series to train on, {validation} for validation ({drawn}), '
        + (f'{test} of {other} for the test' if other else f'{test} for the test (likewise)'),
        *([f'channels that are constant where it is trained, and left at 0: {", ".join(still)}'] if still else []),
    ]
