"""Classes of images that are read as sequences, row by row or pixel by pixel (Le et al. 2015).

    seqjax digits --data=digits
    seqjax digits --data=train-images-idx3-ubyte.gz --order=pixels --permute

The first is of scikit-learn's 1,797 digits of 8 x 8 pixels. Any file in the format of MNIST is taken; its labels, and
t10k-images-... for the test, are found beside it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqjax.cli import dataset_experiment
from seqjax.cli.dataset_experiment import DatasetExperiment
from seqjax.cli.flag_tables import Flag
from seqjax.cli.parsers import Choice, Place, Share, Switch, Whole
from seqjax.cli.settings import Settings
from seqjax.datasets import classification, sequential_images
from seqjax.datasets.dataset import Dataset, OnlinePredictor, Unseen
from seqjax.datasets.readers import images as readers_images
from seqjax.datasets.readers import optional_packages
from seqjax.datasets.readers.bounds import Bounds
from seqjax.datasets.readers.images import Images
from seqjax.errors import UserError


class Digits(DatasetExperiment):
    """Images of one size, in bytes."""

    name = 'digits'
    data_help = (
        f"{readers_images.DIGITS} for scikit-learn's images of 8 x 8; or a file of images in the format of MNIST "
        '(idx), also gzipped'
    )
    OWN = {
        'labels': Flag(Place('file'), 'the idx file of their labels; by default the one beside it that MNIST has'),
        'test_data': Flag(Place('file'), 'the images for the test; by default t10k-... beside train-...'),
        'test_labels': Flag(Place('file'), 'the labels of --test_data; by default the file beside it that MNIST has'),
        'test': Flag(Whole(1), 'how many images are held out for the test, without such a file: the last ones'),
        'validation': Flag(Share(), 'share of the other images that is held out for validation: the last ones'),
        'order': Flag(Choice('rows', 'pixels'), 'what a step is: a row of an image, or a pixel'),
        'permute': Flag(Switch(), 'have the pixels in another order, that is drawn once and the same for all images'),
    }
    own_defaults = {
        **{'labels': None, 'test_data': None, 'test_labels': None, 'test': 297, 'validation': 0.1},
        **{'order': 'rows', 'permute': False},
    }

    def dataset(self, settings: Settings) -> Dataset:
        options = settings.options
        return sequential_images.dataset(
            *_read(options['data'], options['labels'], dataset_experiment.bounds_of(options)),
            _test(options),
            test_count=options['test'],
            validation_share=options['validation'],
            order=options['order'],
            permute=options['permute'],
            batch_size=settings.train.batch_size,
            seed=settings.train.seed,
        )

    def check_recipe(self, settings: Settings, recipe: Any) -> Mapping[str, Any]:
        return sequential_images.check_recipe(recipe, settings.options['order'], settings.options['permute'])

    spec = staticmethod(sequential_images.spec)
    answers = staticmethod(lambda recipe: classification.answers)

    def unseen(self, settings: Settings, recipe: Mapping[str, Any], path: str) -> Unseen:
        options = settings.options
        known = {options['data']: options['labels'], options['test_data']: options['test_labels']}
        name, images = _read(path, known.get(path), dataset_experiment.bounds_of(options))
        if options['part'] == 'all':
            return sequential_images.unseen(name, images, recipe)
        here = {**options, 'data': path}
        parts = sequential_images.split(name, images, _test(here), here['test'], here['validation'])
        return sequential_images.unseen(f'the {here["part"]} part of {name}', getattr(parts, here['part']), recipe)

    def stream(self, settings: Settings, recipe: Mapping[str, Any]) -> OnlinePredictor:
        return sequential_images.stream(recipe)


def _read(path: str, labels: str | None, bounds: Bounds) -> tuple[str, Images]:
    """A name, and the images."""
    if path == readers_images.DIGITS:
        if labels is not None:
            raise UserError(
                f'--data={readers_images.DIGITS} comes with labels of its own, and {labels} has no use; leave it out'
            )
        return readers_images.DIGITS, readers_images.read_images(readers_images.DIGITS)
    file = optional_packages.locate(path)
    return file.name, readers_images.read_images(
        file, None if labels is None else optional_packages.locate(labels), bounds
    )


def _test(settings: Mapping[str, Any]) -> tuple[str, Images] | None:
    """What the test is of; None where it is a part of --data."""
    path, labels = settings['test_data'], settings['test_labels']
    if path is None and settings['data'] != readers_images.DIGITS:
        path = readers_images.beside_of(Path(optional_packages.locate(settings['data'])), 'train', 't10k')
    if path is not None:
        return _read(str(path), labels, dataset_experiment.bounds_of(settings))
    if labels is not None:
        raise UserError(f'--test_labels={labels} needs --test_data, the images that they are of')
    return None


KIND = Digits()
COMMAND = KIND.command(__doc__)
FLAGS, run, main = KIND.FLAGS, KIND.run, COMMAND.main
