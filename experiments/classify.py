"""Classes of whole time series, from a .ts file of the UCR and UEA archive.

    python -m experiments.classify --data=sktime:datasets/data/JapaneseVowels/JapaneseVowels_TRAIN.ts

Where a file is called NAME_TRAIN.ts and NAME_TEST.ts lies beside it, that one is the test.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.fitting import Kind, bounds_of
from experiments.launch import Choice, Flag, Place, Share
from experiments.settings import Settings
from seqjax.dataset import Answers, Dataset, Stream, Unseen
from seqjax.datasets import classify as classes
from seqjax.datasets import labelled_series
from seqjax.readers.archive import Series, read_series
from seqjax.readers.extra import locate
from seqjax.types import ModelSpec

TRAIN, TEST = '_TRAIN.ts', '_TEST.ts'  # how the archive calls its files


class Classify(Kind):
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
        return labelled_series.dataset(
            *_read(options, options['data']),
            test_share=options['test'],
            validation_share=options['validation'],
            missing=options['missing'],
            weights=options['class_weights'],
            batch_size=settings.train.batch_size,
            seed=settings.train.seed,
        )

    def check_recipe(self, settings: Settings, recipe: Any) -> Mapping[str, Any]:
        return labelled_series.check_recipe(recipe, settings.options['missing'])

    def spec(self, recipe: Mapping[str, Any]) -> ModelSpec:
        return labelled_series.spec(recipe)

    def answers(self, recipe: Mapping[str, Any]) -> Answers:
        return classes.answers

    def unseen(self, settings: Settings, recipe: Mapping[str, Any], path: str) -> Unseen:
        options = settings.options
        if options['part'] == 'all':
            file = locate(path)
            return labelled_series.unseen(file.name, read_series(file, bounds_of(options)), recipe)
        shares = options['test'], options['validation']
        parts = labelled_series.split(*_read(options, path), *shares)
        return labelled_series.unseen(f'the {options["part"]} part of {path}', getattr(parts, options['part']), recipe)

    def stream(self, settings: Settings, recipe: Mapping[str, Any]) -> Stream:
        return labelled_series.stream(recipe)


def _read(settings: Mapping[str, Any], data: str) -> tuple[str, Series, tuple[str, Series] | None]:
    """The name of a file, its series, and both of the file for the test; None where there is none."""
    path, bounds = locate(data), bounds_of(settings)
    other = beside(path) if settings['test_data'] is None else locate(settings['test_data'])
    return path.name, read_series(path, bounds), None if other is None else (other.name, read_series(other, bounds))


def beside(path: Path) -> Path | None:
    """The file for the test that the archive has beside one to train on; None where there is none."""
    if not path.name.endswith(TRAIN):
        return None
    other = path.with_name(path.name.removesuffix(TRAIN) + TEST)
    return other if os.path.isfile(other) else None


KIND = Classify()
COMMAND = KIND.command(__doc__)
FLAGS, run, main = KIND.FLAGS, KIND.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
