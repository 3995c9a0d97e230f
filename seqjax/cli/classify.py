"""Classify time series from a .ts file of the UCR and UEA archives.

    seqjax classify --data=sktime:datasets/data/JapaneseVowels/JapaneseVowels_TRAIN.ts

If --data is NAME_TRAIN.ts and its folder contains NAME_TEST.ts, NAME_TEST.ts is the test split by default.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqjax.cli import dataset_experiment
from seqjax.cli.dataset_experiment import DatasetExperiment
from seqjax.cli.flag_tables import Flag
from seqjax.cli.parsers import ChoiceParser, PathParser, PositiveFractionParser
from seqjax.cli.settings import Settings
from seqjax.datasets import classification, time_series_classification
from seqjax.datasets.dataset import Dataset, OnlinePredictor, PredictionInputs
from seqjax.datasets.readers import optional_packages, ts_format
from seqjax.datasets.readers.ts_format import LabelledSeries

TRAIN, TEST = '_TRAIN.ts', '_TEST.ts'  # endings of the names of the archive's training and test files


class Classify(DatasetExperiment):
    """Experiment on classifying whole time series, of different lengths and with one or several channels."""

    name = 'classify'
    suffix = '.ts'
    data_help = '.ts file, or PACKAGE:PATH for a file inside an installed package'
    OWN = {
        'test_data': Flag(
            PathParser('file'),
            f'.ts file of the test split; by default NAME{TEST} in the same folder if --data is NAME{TRAIN}',
        ),
        'test_fraction': Flag(
            PositiveFractionParser(),
            'fraction of the series of each class to use as the test split, if there is no test file',
        ),
        'validation_fraction': Flag(
            PositiveFractionParser(),
            'fraction of the series of each class outside the test split to use as the validation split',
        ),
        'missing': Flag(
            ChoiceParser('refuse', 'mask'),
            'missing or infinite values: refuse stops with an error; mask sets them to 0 after scaling, and adds an '
            'input for each channel that is 1 where its value is missing',
        ),
        'class_weights': Flag(
            ChoiceParser('none', 'balanced'),
            'weights in the training and validation loss: none weights each series equally, balanced each class',
        ),
    }
    own_defaults = {
        'test_data': None,
        'test_fraction': 0.2,
        'validation_fraction': 0.2,
        'missing': 'refuse',
        'class_weights': 'none',
    }

    def dataset(self, settings: Settings) -> Dataset:
        options = settings.options
        return time_series_classification.dataset(
            *_read(options, options['data']),
            test_fraction=options['test_fraction'],
            validation_fraction=options['validation_fraction'],
            missing=options['missing'],
            weights=options['class_weights'],
            batch_size=settings.train.batch_size,
            seed=settings.train.seed,
        )

    def check_preprocessing(self, settings: Settings, preprocessing: Any) -> Mapping[str, Any]:
        return time_series_classification.check_preprocessing(preprocessing, settings.options['missing'])

    spec = staticmethod(time_series_classification.spec)
    postprocess = staticmethod(lambda preprocessing: classification.postprocess)

    def prediction_inputs(
        self, settings: Settings, preprocessing: Mapping[str, Any], path: str, split: str = 'all'
    ) -> PredictionInputs:
        options = settings.options
        if split == 'all':
            file = optional_packages.locate(path)
            return time_series_classification.prediction_inputs(
                file.name, ts_format.read_series(file, dataset_experiment.bounds_of(options)), preprocessing
            )
        fractions = options['test_fraction'], options['validation_fraction']
        splits = time_series_classification.split(*_read(options, path), *fractions)
        return time_series_classification.prediction_inputs(
            f'the {split} split of {path}', getattr(splits, split), preprocessing
        )

    def stream(self, settings: Settings, preprocessing: Mapping[str, Any]) -> OnlinePredictor:
        return time_series_classification.stream(preprocessing)


def _read(settings: Mapping[str, Any], data: str) -> tuple[str, LabelledSeries, tuple[str, LabelledSeries] | None]:
    """Returns (name, series, test) of the file `data`; `test` is (name, series) of the test file, None without one."""
    path, bounds = optional_packages.locate(data), dataset_experiment.bounds_of(settings)
    test = test_file(path) if settings['test_data'] is None else optional_packages.locate(settings['test_data'])
    return (
        path.name,
        ts_format.read_series(path, bounds),
        None if test is None else (test.name, ts_format.read_series(test, bounds)),
    )


def test_file(path: Path) -> Path | None:
    """Returns NAME_TEST.ts next to the file `path` NAME_TRAIN.ts; None if it does not exist, or for other names."""
    if not path.name.endswith(TRAIN):
        return None
    test = path.with_name(path.name.removesuffix(TRAIN) + TEST)
    return test if os.path.isfile(test) else None


EXPERIMENT = Classify()
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main
