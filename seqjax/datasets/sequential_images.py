"""Images read as sequences, row by row or pixel by pixel (Le et al. 2015), each of one class.

In Le et al. 2015, "A simple way to initialize recurrent networks of rectified linear units", the pixels of MNIST come
one at a time, in the order of the scan or in one that is drawn once and is the same for all images.

What is held out are the last images: the writers of the first ones are, in files that keep their order, other people.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.datasets import classification, recipes
from seqjax.datasets.classification import Splits
from seqjax.datasets.dataset import Dataset, OnlinePredictor, Unseen
from seqjax.datasets.readers.images import Images
from seqjax.errors import UserError
from seqjax.ops import windows
from seqjax.types import Batch, ModelSpec

PERMUTATION = 92916  # its seed: one order for all runs, so that they can be compared

Recipe = Mapping[str, Any]


def dataset(
    name: str,
    images: Images,
    test: tuple[str, Images] | None,
    *,
    test_count: int,
    validation_share: float,
    order: str,
    permute: bool,
    batch_size: int,
    seed: int,
) -> Dataset:
    """Images whose classes are to be learned.

    Args:
      name, images: of the file, and what it holds.
      test: the same of the file for the test; None to hold out the last `test_count` of `images`.
      validation_share: of the others; the last of them.
      order: rows, a step a row; or pixels, a step a pixel.
      permute: whether the pixels come in another order, the same for all images.
      batch_size, seed: of training, and of the order of its epochs.

    Raises:
      UserError: there is nothing to learn, or the parts do not fit each other; the sentence says what.
    """
    train, validation, held_out = split(name, images, test, test_count, validation_share)
    counts = dict(zip(*(x.tolist() for x in np.unique(train.labels, return_counts=True)), strict=True))
    classification.check_two_classes(f'the part of {name} to train on', {str(label): n for label, n in counts.items()})
    recipe = _recipe(name, train, list(counts), order, permute)
    labels = {
        'train': _labels(name, train, recipe),
        'validation': _labels(name, validation, recipe),
        'test': _labels(test[0] if test else name, held_out, recipe),
    }

    parts = {'train': train, 'validation': validation, 'test': held_out}

    def pixels(split: str) -> np.ndarray:
        return parts[split].values.reshape(len(parts[split].values), -1).astype(np.float32)

    def data(values: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        # As bytes; they become numbers from 0 to 1 in the batch, which takes a quarter of the memory.
        return {
            'images': _steps(values, recipe),
            'labels': labels.astype(np.int32),
            'order': jax.random.key(seed),
        }

    return classification.compared(
        recipe['classes'],
        labels,
        classification.baselines('logistic regression of the pixels', pixels, labels.__getitem__),
        name=name,
        look=_look(train, validation, held_out, counts, test[0] if test else None, recipe),
        spec=spec(recipe),
        answers=classification.answers,
        recipe=recipe,
        loss_fn=classification.scoring(None),
        batch=_training(recipe['maximum'], batch_size),
        data=data(train.values, labels['train']),
        both=lambda: data(
            np.concatenate([train.values, validation.values]), np.concatenate([labels['train'], labels['validation']])
        ),
        epoch=-(-len(train.values) // batch_size),
        validation=_batches(validation, labels['validation'], recipe),
        test=classification.asked(_batches(held_out, labels['test'], recipe), labels['test'], recipe['classes']),
    )


SIDE = recipes.whole(1, 2**16)
SCHEMA = {
    'classes': recipes.several(recipes.choice(*map(str, range(256))), 2, distinct=True),
    'maximum': recipes.whole(1, 255),
    'height': SIDE,
    'width': SIDE,
    'scan_order': recipes.choice('rows', 'pixels'),
    'permutation': recipes.optional(recipes.several(recipes.whole(0))),
}


def check_recipe(recipe: Any, order: str, permute: bool) -> Recipe:
    """Returns a recipe that was read from a file; raises UserError if it is invalid."""
    recipes.check(recipe, SCHEMA, {'scan_order': order})
    labels, pixels = list(map(int, recipe['classes'])), recipe['height'] * recipe['width']
    recipes.require(labels == sorted(labels), f'classes that do not ascend: {labels}')
    recipes.require(pixels <= recipes.MOST_STEPS, f'images of {pixels:,} pixels')
    drawn = recipe['permutation']
    recipes.require((drawn is not None) == permute, f'permutation={str(drawn)[:80]}, and --permute is {permute}')
    recipes.require(drawn is None or sorted(drawn) == list(range(pixels)), 'a permutation that is none')
    return recipe


def spec(recipe: Recipe) -> ModelSpec:
    steps, features = _shape(recipe)
    return classification.spec(features, len(recipe['classes']), steps)


def unseen(name: str, images: Images, recipe: Recipe) -> Unseen:
    """Images to predict; their classes may be unknown. Raises UserError where size or classes are others."""
    height, width = images.values.shape[1:]
    if (height, width) != (recipe['height'], recipe['width']):
        raise UserError(
            f'{name} has images of {height} x {width} pixels, and trained on were {recipe["height"]} x '
            f'{recipe["width"]}; they must agree'
        )
    labels = np.full(len(images.values), -1) if images.labels is None else _labels(name, images, recipe)
    told = 'their classes are known' if images.labels is not None else 'their classes are not known'
    look = [f'{len(labels):,} images of {height} x {width} pixels; {told}']
    return classification.asked(_batches(images, labels, recipe), labels, recipe['classes'], look)


def stream(recipe: Recipe) -> OnlinePredictor:
    """A line is a step: the pixels of a row, or one pixel, as the file has them and in the order of the training."""
    features, classes = _shape(recipe)[1], recipe['classes']

    def parse(line: str) -> np.ndarray:
        values = classification.numbers(line, features)
        if not np.isfinite(values).all():
            raise UserError(f'{line.strip()[:80]!r} has a value that is missing or infinite; a pixel has a number')
        return values / np.float32(recipe['maximum'])

    return OnlinePredictor(
        parse, classification.columns(classes), lambda outputs, _: classification.answer(np.asarray(outputs), classes)
    )


def split(
    name: str, images: Images, test: tuple[str, Images] | None, test_count: int, validation_share: float
) -> Splits:
    """The parts of a run on a file; see `dataset`."""
    for (given, held), flag in zip(
        ((name, images), *([test] if test else [])), ('labels', 'test_labels'), strict=False
    ):
        if held.labels is None:
            raise UserError(f'{given} needs labels, and has none beside it; pass --{flag}, their file')
    count = len(images.values)
    if test is None and test_count >= count:
        raise UserError(f'--test_size={test_count} leaves none of the {count:,} images of {name}; choose fewer')
    first = count - (0 if test is not None else test_count)
    kept = first - round(validation_share * first)
    if not 0 < kept < first:
        raise UserError(
            f'--validation_fraction={validation_share:g} of {first:,} images leaves an empty training or '
            'validation split; use another fraction, or more images'
        )
    held_out = test[1] if test is not None else _cut(images, first, count)
    if held_out.values.shape[1:] != images.values.shape[1:]:
        theirs, ours = (' x '.join(map(str, part.values.shape[1:])) for part in (held_out, images))
        raise UserError(f'{test[0]} has images of {theirs} pixels, and {name} of {ours}; they must agree')
    return Splits(_cut(images, 0, kept), _cut(images, kept, first), held_out)


def _cut(images: Images, start: int, stop: int) -> Images:
    return Images(images.values[start:stop], images.labels[start:stop])


def _labels(name: str, images: Images, recipe: Recipe) -> np.ndarray:
    """Places in the classes [N] int64; raises UserError where one was not trained on."""
    classes = np.array(recipe['classes'], int)
    for label in np.setdiff1d(images.labels, classes)[:1]:
        row = int(np.argmax(images.labels == label))
        raise UserError(
            f'{name} has the class {label} in image {row + 1}, and trained on were only {", ".join(recipe["classes"])}'
        )
    return np.searchsorted(classes, images.labels)


def _recipe(name: str, train: Images, classes: list[int], order: str, permute: bool) -> dict[str, Any]:
    height, width = train.values.shape[1:]
    maximum = int(train.values.max())
    if not maximum:
        raise UserError(f'{name} has only black images where it is to be trained on; there is nothing to learn from')
    # NumPy keeps the numbers of this generator from version to version.
    drawn = np.random.RandomState(PERMUTATION).permutation(height * width).tolist() if permute else None
    return {
        'classes': [str(label) for label in classes],
        'maximum': maximum,
        'height': height,
        'width': width,
        'scan_order': order,
        'permutation': drawn,
    }


def _shape(recipe: Recipe) -> tuple[int, int]:
    """T and F."""
    height, width = recipe['height'], recipe['width']
    return (height, width) if recipe['scan_order'] == 'rows' else (height * width, 1)


def _steps(values: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Images [N, height, width] -> sequences of bytes [N, T, F]."""
    pixels = values.reshape(len(values), -1)
    if recipe['permutation'] is not None:
        pixels = pixels[:, recipe['permutation']]
    return pixels.reshape(len(values), *_shape(recipe))


def _batches(images: Images, labels: np.ndarray, recipe: Recipe) -> Batch:
    steps = _steps(images.values, recipe)
    return classification.batches(lambda rows: steps[rows] / np.float32(recipe['maximum']), labels)


def _training(maximum: int, batch_size: int) -> Callable[[Any, jax.Array, jax.Array], Batch]:
    def batch(data, key, step):
        rows, real = windows.epoch_rows(data['order'], step, len(data['labels']), batch_size)
        return Batch(data['images'][rows].astype(jnp.float32) / maximum, data['labels'][rows], real)

    return batch


def _look(
    train: Images, validation: Images, test: Images, counts: Mapping[int, int], other: str | None, recipe: Recipe
) -> list[str]:
    steps, features = _shape(recipe)
    permuted = ', the pixels in another order that is the same for all' if recipe['permutation'] is not None else ''
    given = f'{len(test.values):,} of {other} for the test' if other else f'the last {len(test.values):,} for the test'
    return [
        f'images of {recipe["height"]} x {recipe["width"]} pixels from 0 to {recipe["maximum"]}, '
        f'read as {steps:,} steps of {features}{permuted}',
        f'{classification.listed({str(label): count for label, count in counts.items()})} where it is trained',
        f'{len(train.values):,} images to train on, the {len(validation.values):,} after them for validation, {given}',
    ]
