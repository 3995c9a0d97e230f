"""Classification of whole time series of any length, with any number of channels.

Each channel is scaled to mean 0 and standard deviation 1 over the time steps of the training split. A channel that is
constant in the training split is set to 0 everywhere. With missing='mask', a missing or infinite value is 0 after
scaling, and each channel has an indicator, which is 1 where its value is missing or infinite.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.datasets import classification, schemas
from seqjax.datasets.baselines import class_baselines
from seqjax.datasets.classification import Splits
from seqjax.datasets.dataset import Dataset, OnlinePredictor, PredictionInputs
from seqjax.datasets.readers import ts_format
from seqjax.datasets.readers.ts_format import LabelledSeries
from seqjax.errors import UserError
from seqjax.ops import windows
from seqjax.types import Batch, ModelSpec, Sequences

VALIDATION, TEST = 1, 2  # random seeds of the splits, the same for all runs so that they can be compared
MAX_SCALED = 1e9  # bound of absolute scaled values, so that float32 can square them
MIN_RELATIVE_DEVIATION = 1e-6  # deviation / |mean| of a channel up to which it counts as constant

Preprocessing = Mapping[str, Any]


def dataset(
    name: str,
    series: LabelledSeries,
    test: tuple[str, LabelledSeries] | None,
    *,
    test_fraction: float,
    validation_fraction: float,
    missing: str,
    weights: str,
    batch_size: int,
    seed: int,
) -> Dataset:
    """Returns the Dataset for classifying the series of a file.

    Args:
      name, series: name and content of the file with the training series.
      test: name and content of the test file; None to use `test_fraction` of the series of each class as test split.
      test_fraction: see `test`; not used with a test file.
      validation_fraction: fraction of the remaining series of each class that are the validation split.
      missing: 'refuse' to raise UserError for missing or infinite values, 'mask' to set them to 0 with indicators.
      weights: class weights of the loss, 'none' or 'balanced'.
      batch_size: number of series of a training batch.
      seed: seed of the order of the series in each epoch.

    Raises:
      UserError: a value or a class is missing, the file has one class or only constant channels, a split is empty, or
        the test file does not match. The message names the file.
    """
    for file_name, file_series in ((name, series), *([test] if test else [])):
        _check_missing(file_name, file_series, missing)
    splits = split(name, series, test, test_fraction, validation_fraction)
    preprocessing = _fit_preprocessing(name, series, splits.train, missing)
    baselines, baseline_lines = _baselines(splits, preprocessing)

    return classification.make_dataset(
        preprocessing['classes'],
        {'validation': splits.validation.labels, 'test': splits.test.labels},
        baselines,
        name=name,
        description=_describe(series, splits, test[0] if test else None, preprocessing) + baseline_lines,
        spec=spec(preprocessing),
        postprocess=classification.postprocess,
        preprocessing=preprocessing,
        loss_fn=classification.make_loss(classification.class_weights(weights, splits.train.labels)),
        batch=_training(preprocessing['steps'], batch_size),
        data=_training_data(splits.train, preprocessing, seed),
        train_plus_validation=lambda: _training_data(_joined(splits.train, splits.validation), preprocessing, seed),
        steps_per_epoch=-(-len(splits.train.lengths) // batch_size),
        validation=_batches(splits.validation, preprocessing),
        test=classification.prediction_inputs(
            _batches(splits.test, preprocessing), splits.test.labels, preprocessing['classes']
        ),
    )


def _baselines(
    splits: Splits, preprocessing: Preprocessing
) -> tuple[dict[str, Callable[[str], np.ndarray]], list[str]]:
    """Returns baselines by name, and printed lines about them; see `classification.baselines` and `svm_baseline`.

    The support vector machine reads all scaled values if all series have the same length, otherwise `summaries`.
    """

    @functools.cache
    def summaries(split: str) -> np.ndarray:
        split_series = getattr(splits, split)
        return class_baselines.summaries(split_series.values, split_series.lengths)

    def values(split: str) -> np.ndarray:
        split_series = getattr(splits, split)
        return scaled(split_series.values, preprocessing).reshape(len(split_series.lengths), -1)

    def labels(split: str) -> np.ndarray:
        return getattr(splits, split).labels

    baselines = classification.baselines('logistic regression', summaries, labels)
    if len(np.unique(np.concatenate([split_series.lengths for split_series in splits]))) == 1:
        svm, lines = classification.svm_baseline('RBF SVM of all values', values, labels, standardize=False)
    else:
        svm, lines = classification.svm_baseline('RBF SVM', summaries, labels, standardize=True)
    return baselines | svm, lines


SCHEMA = {
    'classes': schemas.list_of(schemas.text(1), 2, distinct=True),
    'mean': schemas.list_of(schemas.number(), 1),
    'factor': schemas.list_of(schemas.number(-1), 1),
    'missing': schemas.choice('refuse', 'mask'),
    'steps': schemas.integer(1, schemas.MAX_STEPS),
}


def check_preprocessing(preprocessing: Any, missing: str) -> Preprocessing:
    """Returns the preprocessing that was read from a run directory, unchanged.

    Raises UserError if it is invalid, or contradicts --missing=`missing`, a flag of the run.
    """
    schemas.check(preprocessing, SCHEMA, {'missing': missing})
    schemas.require(
        len(preprocessing['mean']) == len(preprocessing['factor']), "lists 'mean' and 'factor' of different lengths"
    )
    schemas.require(
        schemas.NAMES.holds(preprocessing.get('declared', [])),
        "a value of 'declared' that is not a list of different names",
    )
    return preprocessing


def spec(preprocessing: Preprocessing) -> ModelSpec:
    """Returns the ModelSpec; F is the number of channels, or twice that, with indicators, for missing='mask'."""
    features = len(preprocessing['mean']) * (2 if preprocessing['missing'] == 'mask' else 1)
    return classification.spec(features, len(preprocessing['classes']), preprocessing['steps'])


def prediction_inputs(name: str, series: LabelledSeries, preprocessing: Preprocessing) -> PredictionInputs:
    """Returns the PredictionInputs of series with or without classes.

    Raises UserError if the number of channels differs from training, a class is not a training class, or a value is
    missing or infinite in a run with --missing=refuse.
    """
    series = _match_classes(
        name, series, preprocessing['classes'], preprocessing.get('declared', ()), len(preprocessing['mean'])
    )
    _check_missing(name, series, preprocessing['missing'])
    unknown = int((series.labels == ts_format.UNKNOWN).sum())
    description = [_sizes(series), f'{len(series.labels) - unknown:,} series with a class, {unknown:,} without']
    return classification.prediction_inputs(
        _batches(series, preprocessing), series.labels, preprocessing['classes'], description
    )


def stream(preprocessing: Preprocessing) -> OnlinePredictor:
    """Returns an online predictor: a line is a time step, the comma-separated, unscaled values of its channels."""
    classes, channels = preprocessing['classes'], len(preprocessing['mean'])

    def parse(line: str) -> np.ndarray:
        values = classification.parse_numbers(line, channels)
        if preprocessing['missing'] == 'refuse' and not np.isfinite(values).all():
            raise UserError(
                f'{line.strip()[:80]!r} has a missing or infinite value, but the model was trained with '
                '--missing=refuse; write a finite number, or train a model with --missing=mask'
            )
        return scaled(values[None], preprocessing)[0]

    return OnlinePredictor(
        parse,
        classification.columns(classes),
        lambda outputs, _: classification.prediction_row(np.asarray(outputs), classes),
    )


# --- splits ----------------------------------------------------------------------------------------


def take(series: LabelledSeries, rows: np.ndarray) -> LabelledSeries:
    """Returns the series with the indices `rows`, in the order of `rows`."""
    ends = np.cumsum(series.lengths)
    parts = [series.values[ends[row] - series.lengths[row] : ends[row]] for row in rows]
    return series._replace(values=np.concatenate(parts), lengths=series.lengths[rows], labels=series.labels[rows])


def _joined(first: LabelledSeries, second: LabelledSeries) -> LabelledSeries:
    fields = ('values', 'lengths', 'labels')
    return first._replace(**{name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in fields})


def _labelled(name: str, series: LabelledSeries) -> LabelledSeries:
    """Returns the series with `classes` reduced to the classes that occur, and labels that index them.

    Raises UserError if a series has no class, or all have the same.
    """
    if not series.classes:
        raise UserError(f'{name} has @classLabel false; use a file whose series have classes')
    for row in np.flatnonzero(series.labels == ts_format.UNKNOWN)[:1]:
        raise UserError(
            f'{name}: series {row + 1} of {len(series.labels):,} has no class; add its class, or remove the series'
        )
    classification.check_two_classes(name, _counts(series))
    occur, labels = np.unique(series.labels, return_inverse=True)
    classes = tuple(series.classes[place] for place in occur)
    return series._replace(labels=labels.astype(np.int32), classes=classes)


def _counts(series: LabelledSeries) -> dict[str, int]:
    """Returns the number of series by class, for the classes that occur."""
    occur, counts = np.unique(series.labels, return_counts=True)
    return {series.classes[place]: int(count) for place, count in zip(occur, counts, strict=True)}


def split(
    name: str,
    series: LabelledSeries,
    test: tuple[str, LabelledSeries] | None,
    test_fraction: float,
    validation_fraction: float,
) -> Splits:
    """Returns the training, validation and test series, whose labels index the classes that occur in `series`.

    Arguments and errors are as in `dataset`.
    """
    declared, series = series.classes, _labelled(name, series)
    if test is None:
        rest, test_rows = classification.stratified_split(series.labels, test_fraction, TEST)
        _check_not_empty(name, test_rows, 'test', test_fraction)
        rest, test_series = take(series, rest), take(series, test_rows)
    else:
        rest, test_series = series, _match_classes(*test, series.classes, declared, series.values.shape[1])
        for row in np.flatnonzero(test_series.labels == ts_format.UNKNOWN)[:1]:
            raise UserError(f'{test[0]}: series {row + 1} has no class; add its class, or remove the series')
    train, validation = classification.stratified_split(rest.labels, validation_fraction, VALIDATION)
    _check_not_empty(name, validation, 'validation', validation_fraction)
    return Splits(take(rest, train), take(rest, validation), test_series)


def _check_not_empty(name: str, rows: np.ndarray, flag: str, fraction: float) -> None:
    if not len(rows):
        raise UserError(
            f'--{flag}_fraction={fraction:g} leaves the {flag} split of {name} empty, as each class keeps at least one '
            'other series; use a larger fraction, or more series per class'
        )


def _match_classes(
    name: str, series: LabelledSeries, classes: Sequence[str], declared: Sequence[str], channels: int
) -> LabelledSeries:
    """Returns the series with labels that index the training `classes`, a subset of those the training file declares.

    Raises UserError if the number of channels is not `channels`, or a series has another class. Series without a class
    keep the label UNKNOWN.
    """
    if series.values.shape[1] != channels:
        raise UserError(
            f'{name} has {series.values.shape[1]} channels, but the training file has {channels}; use '
            'files with the same number of channels'
        )
    same = ts_format.matching(series.classes, classes, declared)
    places = {same(label): place for place, label in enumerate(classes)}
    mapped = np.array(
        [places.get(same(label), ts_format.UNKNOWN - 1) for label in series.classes] + [ts_format.UNKNOWN], np.int32
    )
    labels = mapped[series.labels]  # UNKNOWN is -1, the index of the last element
    for row in np.flatnonzero(labels == ts_format.UNKNOWN - 1)[:1]:
        raise UserError(
            f'{name}, series {row + 1}: class {series.classes[series.labels[row]]!r} is not among the training classes '
            f'{", ".join(map(repr, classes[: classification.MAX_SHOWN_CLASSES]))}; remove the series'
        )
    return series._replace(labels=labels, classes=tuple(classes))


def _check_missing(name: str, series: LabelledSeries, missing: str) -> None:
    """Raises UserError if `missing` is 'refuse' and a value is missing or infinite."""
    if missing == 'mask':
        return
    places = np.argwhere(~np.isfinite(series.values))
    for place, channel in places[:1]:
        ends = np.cumsum(series.lengths)
        row = int(np.searchsorted(ends, place, side='right'))
        step = place - (ends[row] - series.lengths[row])
        raise UserError(
            f'{name} has {len(places):,} missing or infinite values, the first in series {row + 1} at '
            f'step {step + 1} of channel {channel + 1}; use --missing=mask in training, or remove such series'
        )


# --- preprocessing and batches ---------------------------------------------------------------------


def _fit_preprocessing(name: str, series: LabelledSeries, train: LabelledSeries, missing: str) -> dict[str, Any]:
    """Returns the preprocessing, with the scaling of channels fitted on `train`.

    `series`, all of the training file, has the declared classes and the maximum number of time steps.
    """
    means, factors = [], []
    for channel in train.values.T:
        known = channel[np.isfinite(channel)].astype(np.float64)
        mean, deviation = (float(known.mean()), float(known.std())) if known.size else (0.0, 0.0)
        means.append(mean)
        factors.append(1 / deviation if deviation > MIN_RELATIVE_DEVIATION * abs(mean) else 0.0)
    if not any(factors):
        raise UserError(f'{name} has only constant or missing channels in its training split; use other data')
    return {
        'classes': list(train.classes),
        'declared': list(series.classes),
        'mean': means,
        'factor': factors,  # 1 / standard deviation; 0 for a constant channel
        'missing': missing,
        'steps': int(series.lengths.max()),
    }


def scaled(values: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Returns model inputs [S, F] float32 from unscaled values [S, C] of S time steps, NaN or infinite if missing."""
    channels = values.shape[1]
    mask = preprocessing['missing'] == 'mask'
    features = np.zeros((len(values), 2 * channels if mask else channels), np.float32)
    for place in range(channels):
        column = values[:, place].astype(np.float64)
        known = np.isfinite(column)
        column = (np.where(known, column, 0) - preprocessing['mean'][place]) * preprocessing['factor'][place]
        features[:, place] = np.where(known, np.clip(column, -MAX_SCALED, MAX_SCALED), 0)
        if mask:
            features[:, channels + place] = ~known
    return features


def _batches(series: LabelledSeries, preprocessing: Preprocessing) -> Batch:
    """Returns evaluation batches, padded to the longest series of the training file, or of `series` if it is longer."""
    steps = max(preprocessing['steps'], int(series.lengths.max()))
    values, starts = scaled(series.values, preprocessing), np.cumsum(series.lengths) - series.lengths

    def read(rows):
        places = np.arange(steps)
        index = np.minimum(starts[rows][..., None] + places, len(values) - 1)
        valid = places < series.lengths[rows][..., None]
        return Sequences(np.where(valid[..., None], values[index], 0), series.lengths[rows].astype(np.int32))

    return classification.batches(read, series.labels)


def _training_data(train: LabelledSeries, preprocessing: Preprocessing, seed: int) -> dict[str, Any]:
    """Returns the `data` of training batches: the series concatenated, since padding could take much more memory."""
    return {
        'values': scaled(train.values, preprocessing),
        'starts': (np.cumsum(train.lengths) - train.lengths).astype(np.int32),
        'lengths': train.lengths.astype(np.int32),
        'labels': train.labels,
        'order': jax.random.key(seed),
    }


def _training(steps: int, batch_size: int) -> Callable[[Any, jax.Array, jax.Array], Batch]:
    def batch(data, key, step):
        rows, valid = windows.epoch_rows(data['order'], step, len(data['labels']), batch_size)
        places, lengths = jnp.arange(steps)[None], data['lengths'][rows]
        index = jnp.minimum(data['starts'][rows][:, None] + places, len(data['values']) - 1)
        within = places < lengths[:, None]
        values = jnp.where(within[..., None], data['values'][index], 0)
        return Batch(Sequences(values, lengths), data['labels'][rows], valid)

    return batch


# --- description -----------------------------------------------------------------------------------


def _sizes(series: LabelledSeries) -> str:
    lengths, missing = series.lengths, int((~np.isfinite(series.values)).sum())
    steps = f'{lengths.min():,}' if lengths.min() == lengths.max() else f'{lengths.min():,} to {lengths.max():,}'
    gone = f'{missing:,} of {series.values.size:,} values missing or infinite' if missing else 'no missing values'
    return f'{len(lengths):,} series of {steps} steps, {series.values.shape[1]} channels; {gone}'


def _describe(series: LabelledSeries, splits: Splits, test_name: str | None, preprocessing: Preprocessing) -> list[str]:
    train, validation, test = (f'{len(split_series.lengths):,}' for split_series in splits)

    constant = [str(place) for place, factor in enumerate(preprocessing['factor'], 1) if not factor]
    return [
        _sizes(series),
        classification.format_class_counts(_counts(series)),
        f'training: {train} series, validation: {validation} (stratified by class), '
        + (f'test: {test} of {test_name}' if test_name else f'test: {test} (stratified by class)'),
        *([f'constant channels, set to 0, by number from 1: {", ".join(constant)}'] if constant else []),
    ]
