"""Classification of whole time series of any length, with any number of channels.

Each channel is scaled to mean 0 and standard deviation 1 over the steps of the training series. A channel that is
constant there is 0 everywhere. With missing='mask', a missing or infinite value is 0 after scaling, and each channel
has an indicator that is 1 where it is missing.
"""

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
MAX_SCALED = 1e9  # bound of scaled values, so that float32 can square them
MIN_RELATIVE_DEVIATION = 1e-6  # of a channel's mean; a smaller deviation is rounding of float32

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
    """Returns series and their classes as a Dataset.

    Args:
      name, series: the name and the content of the file.
      test: the name and the content of the test file; None to hold out `test_fraction` of `series`.
      validation_fraction: the fraction of the remaining series that is held out for validation.
      missing: 'refuse' or 'mask'.
      weights: the class weights of the loss: 'none' or 'balanced'.
      batch_size, seed: the training batch size, and the seed of the order in each epoch.

    Raises:
      UserError: a split is empty or has one class, or the files do not match; the message names the file.
    """
    for file_name, file_series in ((name, series), *([test] if test else [])):
        _check_missing(file_name, file_series, missing)
    splits = split(name, series, test, test_fraction, validation_fraction)
    preprocessing = _fit_preprocessing(name, series, splits.train, missing)
    labels = {'validation': splits.validation.labels, 'test': splits.test.labels}

    def summaries(split: str) -> np.ndarray:
        split_series = getattr(splits, split)
        return class_baselines.summaries(split_series.values, split_series.lengths)

    return classification.make_dataset(
        preprocessing['classes'],
        labels,
        classification.baselines('logistic regression', summaries, lambda split: getattr(splits, split).labels),
        name=name,
        description=_describe(series, splits, test[0] if test else None, preprocessing),
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


SCHEMA = {
    'classes': schemas.list_of(schemas.text(1), 2, distinct=True),
    'mean': schemas.list_of(schemas.number(), 1),
    'factor': schemas.list_of(schemas.number(-1), 1),
    'missing': schemas.choice('refuse', 'mask'),
    'steps': schemas.integer(1, schemas.MAX_STEPS),
}


def check_preprocessing(preprocessing: Any, missing: str) -> Preprocessing:
    """Returns the preprocessing of a run that was read from a file; raises UserError if it is invalid."""
    schemas.check(preprocessing, SCHEMA, {'missing': missing})
    schemas.require(len(preprocessing['mean']) == len(preprocessing['factor']), 'mean and factor of different lengths')
    schemas.require(schemas.NAMES.holds(preprocessing.get('declared', [])), "no list of names as 'declared'")
    return preprocessing


def spec(preprocessing: Preprocessing) -> ModelSpec:
    """Returns the ModelSpec; F is twice the number of channels if missing values are masked."""
    features = len(preprocessing['mean']) * (2 if preprocessing['missing'] == 'mask' else 1)
    return classification.spec(features, len(preprocessing['classes']), preprocessing['steps'])


def prediction_inputs(name: str, series: LabelledSeries, preprocessing: Preprocessing) -> PredictionInputs:
    """Returns series to predict; their classes may be unknown.

    Raises UserError if the channels or classes do not match training, or values are missing.
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
    """Returns an online predictor; a line is a step, its channels separated by commas."""
    classes, channels = preprocessing['classes'], len(preprocessing['mean'])

    def parse(line: str) -> np.ndarray:
        values = classification.parse_numbers(line, channels)
        if preprocessing['missing'] == 'refuse' and not np.isfinite(values).all():
            raise UserError(
                f'{line.strip()[:80]!r} has a missing or infinite value, but the model was trained with '
                '--missing=refuse; train one with --missing=mask'
            )
        return scaled(values[None], preprocessing)[0]

    return OnlinePredictor(
        parse,
        classification.columns(classes),
        lambda outputs, _: classification.prediction_row(np.asarray(outputs), classes),
    )


# --- splits ----------------------------------------------------------------------------------------


def take(series: LabelledSeries, rows: np.ndarray) -> LabelledSeries:
    """Returns the series of some rows, in the order of the rows."""
    ends = np.cumsum(series.lengths)
    parts = [series.values[ends[row] - series.lengths[row] : ends[row]] for row in rows]
    return series._replace(values=np.concatenate(parts), lengths=series.lengths[rows], labels=series.labels[rows])


def _joined(first: LabelledSeries, second: LabelledSeries) -> LabelledSeries:
    fields = ('values', 'lengths', 'labels')
    return first._replace(**{name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in fields})


def _labelled(name: str, series: LabelledSeries) -> LabelledSeries:
    """Returns the series with only the classes that occur; raises UserError if one has no class."""
    if not series.classes:
        raise UserError(f'{name} has @classLabel false; use a file whose series have classes')
    for row in np.flatnonzero(series.labels == ts_format.UNKNOWN)[:1]:
        raise UserError(
            f'{name}: series {row + 1} of {len(series.labels):,} has no class; add it, or remove the series'
        )
    classification.check_two_classes(name, _counts(series))
    occur, labels = np.unique(series.labels, return_inverse=True)
    classes = tuple(series.classes[place] for place in occur)
    return series._replace(labels=labels.astype(np.int32), classes=classes)


def _counts(series: LabelledSeries) -> dict[str, int]:
    """Returns the number of series of each class that occurs."""
    occur, counts = np.unique(series.labels, return_counts=True)
    return {series.classes[place]: int(count) for place, count in zip(occur, counts, strict=True)}


def split(
    name: str,
    series: LabelledSeries,
    test: tuple[str, LabelledSeries] | None,
    test_fraction: float,
    validation_fraction: float,
) -> Splits:
    """Splits the series of a file, with only the classes that occur in it; see `dataset`."""
    declared, series = series.classes, _labelled(name, series)
    if test is None:
        rest, test_rows = classification.stratified_split(series.labels, test_fraction, TEST)
        _check_not_empty(name, test_rows, 'test', test_fraction)
        rest, test_series = take(series, rest), take(series, test_rows)
    else:
        rest, test_series = series, _match_classes(*test, series.classes, declared, series.values.shape[1])
        for row in np.flatnonzero(test_series.labels == ts_format.UNKNOWN)[:1]:
            raise UserError(f'{test[0]}: series {row + 1} has no class; add it, or remove the series')
    train, validation = classification.stratified_split(rest.labels, validation_fraction, VALIDATION)
    _check_not_empty(name, validation, 'validation', validation_fraction)
    return Splits(take(rest, train), take(rest, validation), test_series)


def _check_not_empty(name: str, rows: np.ndarray, flag: str, fraction: float) -> None:
    if not len(rows):
        raise UserError(
            f'--{flag}_fraction={fraction:g} of each class of {name} is less than one series; use a larger fraction'
        )


def _match_classes(
    name: str, series: LabelledSeries, classes: Sequence[str], declared: Sequence[str], channels: int
) -> LabelledSeries:
    """Returns the series with labels that are indices of the training `classes`, which are a subset of `declared`."""
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
    labels = mapped[series.labels]  # UNKNOWN is the last one
    for row in np.flatnonzero(labels == ts_format.UNKNOWN - 1)[:1]:
        raise UserError(
            f'{name}, series {row + 1}: class {series.classes[series.labels[row]]!r} is not among the training classes '
            f'{", ".join(map(repr, classes[: classification.MAX_SHOWN_CLASSES]))}; remove the series'
        )
    return series._replace(labels=labels, classes=tuple(classes))


def _check_missing(name: str, series: LabelledSeries, missing: str) -> None:
    """Raises UserError if a value is missing or infinite and missing='refuse'."""
    if missing == 'mask':
        return
    places = np.argwhere(~np.isfinite(series.values))
    for place, channel in places[:1]:
        ends = np.cumsum(series.lengths)
        row = int(np.searchsorted(ends, place, side='right'))
        step = place - (ends[row] - series.lengths[row])
        raise UserError(
            f'{name} has {len(places):,} missing or infinite values, the first in series {row + 1} at '
            f'step {step + 1} of channel {channel + 1}; use --missing=mask in training, or remove the series'
        )


# --- preprocessing and batches ---------------------------------------------------------------------


def _fit_preprocessing(name: str, series: LabelledSeries, train: LabelledSeries, missing: str) -> dict[str, Any]:
    """Returns the preprocessing; `series` are all of the file, and the scaling is fitted to `train`."""
    means, factors = [], []
    for channel in train.values.T:
        known = channel[np.isfinite(channel)].astype(np.float64)
        mean, deviation = (float(known.mean()), float(known.std())) if known.size else (0.0, 0.0)
        means.append(mean)
        factors.append(1 / deviation if deviation > MIN_RELATIVE_DEVIATION * abs(mean) else 0.0)
    if not any(factors):
        raise UserError(f'{name} has only constant channels in its training split; use other data')
    return {
        'classes': list(train.classes),
        'declared': list(series.classes),
        'mean': means,
        'factor': factors,  # 1 / standard deviation; 0 for a constant channel
        'missing': missing,
        'steps': int(series.lengths.max()),
    }


def scaled(values: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Returns model inputs [S, F] float32 from steps [S, C], NaN if missing."""
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
    """Returns batches padded to the longest series of the training file, or of this one if it is longer."""
    steps = max(preprocessing['steps'], int(series.lengths.max()))
    values, starts = scaled(series.values, preprocessing), np.cumsum(series.lengths) - series.lengths

    def read(rows):
        places = np.arange(steps)
        index = np.minimum(starts[rows][..., None] + places, len(values) - 1)
        valid = places < series.lengths[rows][..., None]
        return Sequences(np.where(valid[..., None], values[index], 0), series.lengths[rows].astype(np.int32))

    return classification.batches(read, series.labels)


def _training_data(train: LabelledSeries, preprocessing: Preprocessing, seed: int) -> dict[str, Any]:
    """Returns the series concatenated, since padded they could take many times as much memory."""
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
    gone = f'{missing:,} of {series.values.size:,} values missing' if missing else 'no missing values'
    return f'{len(lengths):,} series of {steps} steps, {series.values.shape[1]} channels; {gone}'


def _describe(series: LabelledSeries, splits: Splits, test_name: str | None, preprocessing: Preprocessing) -> list[str]:
    train, validation, test = (f'{len(split_series.lengths):,}' for split_series in splits)

    constant = [str(place) for place, factor in enumerate(preprocessing['factor'], 1) if not factor]
    return [
        _sizes(series),
        classification.format_class_counts(_counts(series)),
        f'training: {train} series, validation: {validation} (stratified by class), '
        + (f'test: {test} of {test_name}' if test_name else f'test: {test} (stratified by class)'),
        *([f'constant channels, set to 0: {", ".join(constant)}'] if constant else []),
    ]
