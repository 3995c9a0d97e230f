"""Classes of whole time series, from a .ts file of the UCR and UEA archive.

    seqjax classify --data=sktime:datasets/data/JapaneseVowels/JapaneseVowels_TRAIN.ts

Where a file is called NAME_TRAIN.ts and NAME_TEST.ts lies beside it, that one is the test.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqjax.cli import dataset_experiment
from seqjax.cli.dataset_experiment import DatasetExperiment
from seqjax.cli.flag_tables import Flag
from seqjax.cli.parsers import Choice, Place, Share
from seqjax.cli.settings import Settings
from seqjax.datasets import classification, time_series_classification
from seqjax.datasets.dataset import Dataset, OnlinePredictor, Unseen
from seqjax.datasets.readers import optional_packages, ts_format
from seqjax.datasets.readers.ts_format import LabelledSeries

TRAIN, TEST = '_TRAIN.ts', '_TEST.ts'  # how the archive calls its files


class Classify(DatasetExperiment):
    """Series of any length, with any number of channels."""

    name = 'classify'
    suffix = '.ts'
    data_help = 'the .ts file; or PACKAGE:PATH, a file that an installed package has'
    OWN = {
        'test_data': Flag(Place('file'), f'the .ts file for the test; NAME{TEST} beside NAME{TRAIN} by default'),
        'test': Flag(Share(), 'share of the series of each class that is held out for the test, without such a file'),
        'validation': Flag(Share(), 'share of the other series of each class that is held out for validation'),
        'missing': Flag(
            Choice('refuse', 'mask'),
            'what is done with missing or infinite values: mask gives the model a 0, and for each channel another one '
            'that says where it is missing',
        ),
        'class_weights': Flag(
            Choice('none', 'balanced'),
            'of the loss, in training and in validation: balanced gives rare classes as much as common ones',
        ),
    }
    own_defaults = {'test_data': None, 'test': 0.2, 'validation': 0.2, 'missing': 'refuse', 'class_weights': 'none'}

    def dataset(self, settings: Settings) -> Dataset:
        options = settings.options
        return time_series_classification.dataset(
            *_read(options, options['data']),
            test_share=options['test'],
            validation_share=options['validation'],
            missing=options['missing'],
            weights=options['class_weights'],
            batch_size=settings.train.batch_size,
            seed=settings.train.seed,
        )

    def check_recipe(self, settings: Settings, recipe: Any) -> Mapping[str, Any]:
        return time_series_classification.check_recipe(recipe, settings.options['missing'])

    spec = staticmethod(time_series_classification.spec)
    answers = staticmethod(lambda recipe: classification.answers)

    def unseen(self, settings: Settings, recipe: Mapping[str, Any], path: str) -> Unseen:
        options = settings.options
        if options['part'] == 'all':
            file = optional_packages.locate(path)
            return time_series_classification.unseen(
                file.name, ts_format.read_series(file, dataset_experiment.bounds_of(options)), recipe
            )
        shares = options['test'], options['validation']
        parts = time_series_classification.split(*_read(options, path), *shares)
        return time_series_classification.unseen(
            f'the {options["part"]} part of {path}', getattr(parts, options['part']), recipe
        )

    def stream(self, settings: Settings, recipe: Mapping[str, Any]) -> OnlinePredictor:
        return time_series_classification.stream(recipe)


def _read(settings: Mapping[str, Any], data: str) -> tuple[str, LabelledSeries, tuple[str, LabelledSeries] | None]:
    """The name of a file, its series, and both of the file for the test; None where there is none."""
    path, bounds = optional_packages.locate(data), dataset_experiment.bounds_of(settings)
    other = beside(path) if settings['test_data'] is None else optional_packages.locate(settings['test_data'])
    return (
        path.name,
        ts_format.read_series(path, bounds),
        None if other is None else (other.name, ts_format.read_series(other, bounds)),
    )


def beside(path: Path) -> Path | None:
    """The file for the test that the archive has beside one to train on; None where there is none."""
    if not path.name.endswith(TRAIN):
        return None
    other = path.with_name(path.name.removesuffix(TRAIN) + TEST)
    return other if os.path.isfile(other) else None


KIND = Classify()
COMMAND = KIND.command(__doc__)
FLAGS, run, main = KIND.FLAGS, KIND.run, COMMAND.main
