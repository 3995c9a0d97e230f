"""Classification of images that are read as sequences, row by row or pixel by pixel (Le et al. 2015).

In Le et al. 2015, "A simple way to initialize recurrent networks of rectified linear units", the pixels of MNIST are
read one at a time, in scan order or in one random order that is the same for all images.

The splits keep the order of the file: training, validation and, without a test file, test images. In files of digits in
their original order, the first and the last digits were written by different people.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.datasets import classification, schemas
from seqjax.datasets.classification import Splits
from seqjax.datasets.dataset import Dataset, OnlinePredictor, PredictionInputs
from seqjax.datasets.readers.images import Images
from seqjax.errors import UserError
from seqjax.ops import windows
from seqjax.types import Batch, ModelSpec

PERMUTATION = 92916  # random seed of the pixel order, the same for all runs so that they can be compared

Preprocessing = Mapping[str, Any]


def dataset(
    name: str,
    images: Images,
    test: tuple[str, Images] | None,
    *,
    test_count: int,
    validation_fraction: float,
    order: str,
    permute: bool,
    batch_size: int,
    seed: int,
) -> Dataset:
    """Returns the Dataset for classifying the images of a file.

    Args:
      name, images: name and content of the file with the training images.
      test: name and content of the test file; None to use the last `test_count` of `images` as the test split.
      validation_fraction: fraction of the remaining images that are the validation split, the last ones.
      order: 'rows' for a time step for each row of an image, 'pixels' for one for each pixel.
      permute: True to put the pixels in a fixed random order, the same for all images.
      batch_size: number of images of a training batch.
      seed: seed of the order of the images in each epoch.

    Raises:
      UserError: labels are missing, a split is empty, the training split has one class or only black images, or the
        test split does not match it. The message names the file.
    """
    train, validation, test_images = split(name, images, test, test_count, validation_fraction)
    counts = dict(zip(*(x.tolist() for x in np.unique(train.labels, return_counts=True)), strict=True))
    classification.check_two_classes(f'the training split of {name}', {str(label): n for label, n in counts.items()})
    preprocessing = _fit_preprocessing(name, train, list(counts), order, permute)
    labels = {
        'train': _labels(name, train, preprocessing),
        'validation': _labels(name, validation, preprocessing),
        'test': _labels(test[0] if test else name, test_images, preprocessing),
    }

    splits = {'train': train, 'validation': validation, 'test': test_images}

    def pixels(split: str) -> np.ndarray:
        return splits[split].values.reshape(len(splits[split].values), -1).astype(np.float32)

    def data(values: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        # uint8 takes a quarter of the memory of float32; `batch` scales the values to 0 to 1.
        return {
            'images': _steps(values, preprocessing),
            'labels': labels.astype(np.int32),
            'order': jax.random.key(seed),
        }

    baselines = classification.baselines('logistic regression of the pixels', pixels, labels.__getitem__)
    svm, svm_lines = classification.svm_baseline('RBF SVM of the pixels', pixels, labels.__getitem__, standardize=False)
    return classification.make_dataset(
        preprocessing['classes'],
        labels,
        baselines | svm,
        name=name,
        description=_describe(train, validation, test_images, counts, test[0] if test else None, preprocessing)
        + svm_lines,
        spec=spec(preprocessing),
        postprocess=classification.postprocess,
        preprocessing=preprocessing,
        loss_fn=classification.make_loss(None),
        batch=_training(preprocessing['maximum'], batch_size),
        data=data(train.values, labels['train']),
        train_plus_validation=lambda: data(
            np.concatenate([train.values, validation.values]), np.concatenate([labels['train'], labels['validation']])
        ),
        steps_per_epoch=-(-len(train.values) // batch_size),
        validation=_batches(validation, labels['validation'], preprocessing),
        test=classification.prediction_inputs(
            _batches(test_images, labels['test'], preprocessing), labels['test'], preprocessing['classes']
        ),
    )


SIDE = schemas.integer(1, 2**16)
SCHEMA = {
    'classes': schemas.list_of(schemas.choice(*map(str, range(256))), 2, distinct=True),
    'maximum': schemas.integer(1, 255),
    'height': SIDE,
    'width': SIDE,
    'scan_order': schemas.choice('rows', 'pixels'),
    'permutation': schemas.optional(schemas.list_of(schemas.integer(0))),
}


def check_preprocessing(preprocessing: Any, order: str, permute: bool) -> Preprocessing:
    """Returns the preprocessing that was read from a run directory, unchanged.

    Raises UserError if it is invalid, or contradicts the flags --scan_order=`order` and --permute=`permute` of the run.
    """
    schemas.check(preprocessing, SCHEMA, {'scan_order': order})
    labels, pixels = list(map(int, preprocessing['classes'])), preprocessing['height'] * preprocessing['width']
    schemas.require(labels == sorted(labels), f'classes that are not ascending: {labels}')
    schemas.require(pixels <= schemas.MAX_STEPS, f'images of {pixels:,} pixels, the maximum is {schemas.MAX_STEPS:,}')
    permutation = preprocessing['permutation']
    schemas.require(
        (permutation is not None) == permute, f'permutation={str(permutation)[:80]}, but --permute={permute}'
    )
    schemas.require(
        permutation is None or sorted(permutation) == list(range(pixels)),
        f'a permutation that is not of the {pixels:,} pixels',
    )
    return preprocessing


def spec(preprocessing: Preprocessing) -> ModelSpec:
    steps, features = _shape(preprocessing)
    return classification.spec(features, len(preprocessing['classes']), steps)


def prediction_inputs(name: str, images: Images, preprocessing: Preprocessing) -> PredictionInputs:
    """Returns the PredictionInputs of images with or without labels.

    Raises UserError if the images differ in size from the training images, or a label is not a training class.
    """
    height, width = images.values.shape[1:]
    if (height, width) != (preprocessing['height'], preprocessing['width']):
        raise UserError(
            f'{name} has images of {height} x {width} pixels, but the model was trained on '
            f'{preprocessing["height"]} x {preprocessing["width"]}; use images of the training size'
        )
    labels = np.full(len(images.values), -1) if images.labels is None else _labels(name, images, preprocessing)
    labels_known = 'their classes are known' if images.labels is not None else 'their classes are not known'
    description = [f'{len(labels):,} images of {height} x {width} pixels; {labels_known}']
    return classification.prediction_inputs(
        _batches(images, labels, preprocessing), labels, preprocessing['classes'], description
    )


def stream(preprocessing: Preprocessing) -> OnlinePredictor:
    """Returns an online predictor: a line is a time step, the comma-separated pixels of a row, or one pixel.

    Pixels are unscaled, such as 0 to 255. With --permute, lines must have the permuted order of the pixels.
    """
    features, classes = _shape(preprocessing)[1], preprocessing['classes']

    def parse(line: str) -> np.ndarray:
        values = classification.parse_numbers(line, features)
        if not np.isfinite(values).all():
            raise UserError(
                f'{line.strip()[:80]!r} has a missing or infinite value; write a finite number for each pixel'
            )
        return values / np.float32(preprocessing['maximum'])

    return OnlinePredictor(
        parse,
        classification.columns(classes),
        lambda outputs, _: classification.prediction_row(np.asarray(outputs), classes),
    )


# --- splits and preprocessing ----------------------------------------------------------------------


def split(
    name: str, images: Images, test: tuple[str, Images] | None, test_count: int, validation_fraction: float
) -> Splits:
    """Returns the training, validation and test images, for arguments and errors as in `dataset`."""
    for (file_name, labelled_images), flag in zip(
        ((name, images), *([test] if test else [])), ('labels', 'test_labels'), strict=False
    ):
        if labelled_images.labels is None:
            raise UserError(
                f'{file_name} has no labels: its folder has no label file that is named as in MNIST; rename the '
                f'label file, or pass --{flag}'
            )
    count = len(images.values)
    if test is None and test_count >= count:
        raise UserError(
            f'--test_size={test_count} leaves no training image of the {count:,} in {name}; use a smaller --test_size'
        )
    train_and_validation = count - (0 if test is not None else test_count)
    train_count = train_and_validation - round(validation_fraction * train_and_validation)
    if not 0 < train_count < train_and_validation:
        raise UserError(
            f'--validation_fraction={validation_fraction:g} of {train_and_validation:,} images leaves an empty '
            'training or validation split; use another fraction, or more images'
        )
    test_images = test[1] if test is not None else _slice(images, train_and_validation, count)
    if test_images.values.shape[1:] != images.values.shape[1:]:
        test_shape, shape = (' x '.join(map(str, split.values.shape[1:])) for split in (test_images, images))
        raise UserError(f'{test[0]} has images of {test_shape} pixels, but {name} of {shape}; use images of one size')
    return Splits(_slice(images, 0, train_count), _slice(images, train_count, train_and_validation), test_images)


def _slice(images: Images, start: int, stop: int) -> Images:
    return Images(images.values[start:stop], images.labels[start:stop])


def _labels(name: str, images: Images, preprocessing: Preprocessing) -> np.ndarray:
    """Returns class indices [N] int64 of the labels; raises UserError if a label is not a training class."""
    classes = np.array(preprocessing['classes'], int)
    for label in np.setdiff1d(images.labels, classes)[:1]:
        row = int(np.argmax(images.labels == label))
        raise UserError(
            f'{name}, image {row + 1} of {len(images.labels):,} in the split: class {label} is not among the training '
            f'classes {", ".join(preprocessing["classes"])}; remove the image'
        )
    return np.searchsorted(classes, images.labels)


def _fit_preprocessing(name: str, train: Images, classes: list[int], order: str, permute: bool) -> dict[str, Any]:
    height, width = train.values.shape[1:]
    maximum = int(train.values.max())
    if not maximum:
        raise UserError(f'{name} has only black images (all pixels 0) in the training split; use other images')
    # RandomState draws the same numbers in every version of NumPy.
    permutation = np.random.RandomState(PERMUTATION).permutation(height * width).tolist() if permute else None
    return {
        'classes': [str(label) for label in classes],
        'maximum': maximum,
        'height': height,
        'width': width,
        'scan_order': order,
        'permutation': permutation,
    }


# --- batches ---------------------------------------------------------------------------------------


def _shape(preprocessing: Preprocessing) -> tuple[int, int]:
    """Returns (T, F): (height, width) if rows are the time steps, (height * width, 1) if pixels are."""
    height, width = preprocessing['height'], preprocessing['width']
    return (height, width) if preprocessing['scan_order'] == 'rows' else (height * width, 1)


def _steps(values: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Returns images [N, height, width] as sequences [N, T, F] of the same dtype, with permuted pixels if --permute."""
    pixels = values.reshape(len(values), -1)
    if preprocessing['permutation'] is not None:
        pixels = pixels[:, preprocessing['permutation']]
    return pixels.reshape(len(values), *_shape(preprocessing))


def _batches(images: Images, labels: np.ndarray, preprocessing: Preprocessing) -> Batch:
    steps = _steps(images.values, preprocessing)
    return classification.batches(lambda rows: steps[rows] / np.float32(preprocessing['maximum']), labels)


def _training(maximum: int, batch_size: int) -> Callable[[Any, jax.Array, jax.Array], Batch]:
    def batch(data, key, step):
        rows, valid = windows.epoch_rows(data['order'], step, len(data['labels']), batch_size)
        return Batch(data['images'][rows].astype(jnp.float32) / maximum, data['labels'][rows], valid)

    return batch


# --- description -----------------------------------------------------------------------------------


def _describe(
    train: Images,
    validation: Images,
    test: Images,
    counts: Mapping[int, int],
    test_name: str | None,
    preprocessing: Preprocessing,
) -> list[str]:
    steps, features = _shape(preprocessing)
    permuted = ', in a permuted order of the pixels' if preprocessing['permutation'] is not None else ''
    test_phrase = f'{len(test.values):,} of {test_name}' if test_name else f'the last {len(test.values):,}'
    return [
        f'images of {preprocessing["height"]} x {preprocessing["width"]} pixels from 0 to {preprocessing["maximum"]}, '
        f'read as {steps:,} time steps of {features} pixels{permuted}',
        f'{classification.format_class_counts({str(label): n for label, n in counts.items()})} in the training split',
        f'training: {len(train.values):,} images, validation: the next {len(validation.values):,}, test: {test_phrase}',
    ]
