"""Classify images that are read as sequences, row by row or pixel by pixel (Le et al. 2015).

    seqjax digits --data=digits
    seqjax digits --data=train-images-idx3-ubyte.gz --scan_order=pixels --permute

`--data=digits` selects scikit-learn's 1,797 images of 8 x 8 pixels. Any other file must be in the format of MNIST
(idx); its labels and the test images (t10k-...) are read from the same folder.
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
    """Experiment on classifying images of one size, with a byte per pixel, that are read by rows or by pixels."""

    name = 'digits'
    data_help = (
        f"{readers_images.DIGITS} for scikit-learn's 8 x 8 images, or a file of images in the format of MNIST (idx), "
        'optionally gzipped'
    )
    OWN = {
        'labels': Flag(
            PathParser('file'),
            'idx file of the labels; by default train-labels-... in the same folder if --data is train-images-...',
        ),
        'test_data': Flag(
            PathParser('file'),
            'idx file of the test images; by default t10k-... in the same folder if --data is train-...',
        ),
        'test_labels': Flag(
            PathParser('file'),
            'idx file of the test labels; by default t10k-labels-... in the same folder if the test images are '
            't10k-images-...',
        ),
        'test_size': Flag(
            IntParser(1), 'number of images at the end of --data to use as the test split, if there is no test file'
        ),
        'validation_fraction': Flag(
            PositiveFractionParser(),
            'fraction of the images of --data outside the test split to use as the validation split, from their end',
        ),
        'scan_order': Flag(
            ChoiceParser('rows', 'pixels'), 'time steps of a sequence: the rows of an image, or its pixels'
        ),
        'permute': Flag(
            BoolParser(), 'permute the pixels of every image before the scan, by one fixed random permutation'
        ),
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


def _read(path: str, labels: str | None, bounds: Bounds, prefix: str = '') -> tuple[str, Images]:
    """Reads idx files or scikit-learn's digits; returns the name of the file, and its images with labels if known.

    `prefix` precedes the names of the flags in messages: 'test_' for the test file.
    """
    if path == readers_images.DIGITS:
        if labels is not None:
            raise UserError(
                f'--{prefix}labels={labels} cannot be used with --{prefix}data={readers_images.DIGITS}, which has '
                f'labels; remove --{prefix}labels'
            )
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
        return _read(str(path), labels, dataset_experiment.bounds_of(settings), 'test_')
    if labels is not None:
        raise UserError(f'--test_labels={labels} needs --test_data; pass the file of the test images as --test_data')
    return None


EXPERIMENT = Digits()
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main
