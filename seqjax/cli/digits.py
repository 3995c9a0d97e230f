"""Classify images that are read as sequences, row by row or pixel by pixel (Le et al. 2015).

    seqjax digits --data=digits
    seqjax digits --data=train-images-idx3-ubyte.gz --scan_order=pixels --permute

`--data=digits` are scikit-learn's 1,797 digits of 8 x 8 pixels. Any file in the format of MNIST (idx) is read, with its
labels and its test split (t10k-images-...) from the same folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqjax.cli import dataset_experiment
from seqjax.cli.dataset_experiment import DatasetExperiment
from seqjax.cli.flag_tables import Flag
from seqjax.cli.parsers import BoolParser, ChoiceParser, IntParser, PathParser, PositiveFractionParser
from seqjax.cli.settings import Settings
from seqjax.datasets import classification, sequential_images
from seqjax.datasets.dataset import Dataset, OnlinePredictor, PredictionInputs
from seqjax.datasets.readers import images as readers_images
from seqjax.datasets.readers import optional_packages
from seqjax.datasets.readers.bounds import Bounds
from seqjax.datasets.readers.images import Images
from seqjax.errors import UserError


class Digits(DatasetExperiment):
    """Experiment on the classification of images of one size, in bytes."""

    name = 'digits'
    data_help = (
        f"{readers_images.DIGITS} for scikit-learn's 8 x 8 images; or a file of images in the format of MNIST (idx), "
        'optionally gzipped'
    )
    OWN = {
        'labels': Flag(PathParser('file'), 'idx file of the labels; by default the MNIST file in the same folder'),
        'test_data': Flag(
            PathParser('file'), 'idx file of the test images; by default t10k-... if --data is train-...'
        ),
        'test_labels': Flag(
            PathParser('file'), 'idx file of the test labels; by default the MNIST file in the same folder'
        ),
        'test_size': Flag(IntParser(1), 'number of test images, the last ones, if there is no test file'),
        'validation_fraction': Flag(
            PositiveFractionParser(), 'fraction of the remaining images in the validation split, the last ones'
        ),
        'scan_order': Flag(ChoiceParser('rows', 'pixels'), 'time steps: the rows of an image, or its pixels'),
        'permute': Flag(BoolParser(), 'permute the pixels, with one fixed random permutation for all images'),
    }
    own_defaults = {
        **{'labels': None, 'test_data': None, 'test_labels': None, 'test_size': 297, 'validation_fraction': 0.1},
        **{'scan_order': 'rows', 'permute': False},
    }

    def dataset(self, settings: Settings) -> Dataset:
        options = settings.options
        return sequential_images.dataset(
            *_read(options['data'], options['labels'], dataset_experiment.bounds_of(options)),
            _read_test(options),
            test_count=options['test_size'],
            validation_fraction=options['validation_fraction'],
            order=options['scan_order'],
            permute=options['permute'],
            batch_size=settings.train.batch_size,
            seed=settings.train.seed,
        )

    def check_preprocessing(self, settings: Settings, preprocessing: Any) -> Mapping[str, Any]:
        return sequential_images.check_preprocessing(
            preprocessing, settings.options['scan_order'], settings.options['permute']
        )

    spec = staticmethod(sequential_images.spec)
    postprocess = staticmethod(lambda preprocessing: classification.postprocess)

    def prediction_inputs(
        self, settings: Settings, preprocessing: Mapping[str, Any], path: str, split: str = 'all'
    ) -> PredictionInputs:
        options = settings.options
        labels = {options['data']: options['labels'], options['test_data']: options['test_labels']}
        name, images = _read(path, labels.get(path), dataset_experiment.bounds_of(options))
        if split == 'all':
            return sequential_images.prediction_inputs(name, images, preprocessing)
        test = _read_test({**options, 'data': path})
        splits = sequential_images.split(name, images, test, options['test_size'], options['validation_fraction'])
        return sequential_images.prediction_inputs(
            f'the {split} split of {name}', getattr(splits, split), preprocessing
        )

    def stream(self, settings: Settings, preprocessing: Mapping[str, Any]) -> OnlinePredictor:
        return sequential_images.stream(preprocessing)


def _read(path: str, labels: str | None, bounds: Bounds) -> tuple[str, Images]:
    """Returns the name of a file and its images."""
    if path == readers_images.DIGITS:
        if labels is not None:
            raise UserError(f'--labels={labels} has no effect with --data={readers_images.DIGITS}; remove it')
        return readers_images.DIGITS, readers_images.read_images(readers_images.DIGITS)
    file = optional_packages.locate(path)
    return file.name, readers_images.read_images(
        file, None if labels is None else optional_packages.locate(labels), bounds
    )


def _read_test(settings: Mapping[str, Any]) -> tuple[str, Images] | None:
    """Returns the name and the images of the test file; None if the test split is taken from --data."""
    path, labels = settings['test_data'], settings['test_labels']
    if path is None and settings['data'] != readers_images.DIGITS:
        path = readers_images.sibling_file(Path(optional_packages.locate(settings['data'])), 'train', 't10k')
    if path is not None:
        return _read(str(path), labels, dataset_experiment.bounds_of(settings))
    if labels is not None:
        raise UserError(f'--test_labels={labels} needs --test_data; pass the test images')
    return None


EXPERIMENT = Digits()
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main
