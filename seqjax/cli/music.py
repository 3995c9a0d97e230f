"""Predict the notes of the next frame of piano rolls.

    seqjax music --data=JSB_Chorales.mat --flagfile=experiments/flags/jsb.flags --workdir=runs/jsb
    seqjax predict --workdir=runs/jsb --data=JSB_Chorales.mat --split=test --out=frames.csv

The .mat file has three cell arrays of pieces [T, 88], 0 or 1 for each key of a piano: traindata, validdata, testdata.
The metric is the negative log-likelihood of a frame in nats, summed over its 88 notes and averaged over the frames
t = 2..T of all pieces of a split, so a long piece counts more than a short one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqjax.cli import dataset_experiment
from seqjax.cli.dataset_experiment import DatasetExperiment
from seqjax.cli.flag_tables import Flag
from seqjax.cli.parsers import IntParser
from seqjax.cli.settings import Settings
from seqjax.datasets import polyphonic_music, schemas
from seqjax.datasets.dataset import Dataset, OnlinePredictor, PredictionInputs
from seqjax.datasets.readers import piano_rolls


class Music(DatasetExperiment):
    """Experiment on piano rolls of a .mat file with separate training, validation and test pieces."""

    name = 'music'
    suffix = '.mat'
    OWN = {
        'window': Flag(IntParser(1), 'number of frames of a training window, which starts at a random frame'),
        'transpose': Flag(
            IntParser(0, piano_rolls.NOTES - 1),
            'data augmentation: training transposes pieces at random by at most this many semitones, up or down; 0, as '
            'in published results, disables it',
        ),
    }
    own_defaults = {
        **{'window': 64, 'transpose': 0, 'batch_size': 16, 'hidden': 150, 'eval_every': 100, 'patience': 8},
        # Tuned for an LSTM on the validation split of JSB Chorales.
        **{'input_dropout': 0.2, 'output_dropout': 0.5, 'weight_decay': 0.01},
    }

    def sizes(self, settings: Settings) -> tuple[int, dict[str, Any]]:
        numbers, flags = super().sizes(settings)
        frame = 2 * piano_rolls.NOTES + settings.model.hidden
        numbers += settings.train.batch_size * settings.options['window'] * frame
        return numbers, {'window': settings.options['window'], **flags}

    def dataset(self, settings: Settings) -> Dataset:
        path = settings.options['data']
        arguments = {name: settings.flags[name] for name in ('batch_size', 'window', 'transpose', 'seed')}
        return polyphonic_music.dataset(
            Path(path).name,
            piano_rolls.read_rolls(path, piano_rolls.KEYS, dataset_experiment.bounds_of(settings.options)),
            **arguments,
        )

    def check_preprocessing(self, settings: Settings, preprocessing: Any) -> Mapping[str, Any]:
        return schemas.check(preprocessing, {'steps': schemas.integer(1, schemas.MAX_STEPS)})

    spec = staticmethod(lambda preprocessing: polyphonic_music.spec())
    postprocess = staticmethod(lambda preprocessing: polyphonic_music.postprocess)

    def prediction_inputs(
        self, settings: Settings, preprocessing: Mapping[str, Any], path: str, split: str = 'all'
    ) -> PredictionInputs:
        rolls = piano_rolls.read_rolls(
            path, [] if split == 'all' else [split], dataset_experiment.bounds_of(settings.options)
        )
        return polyphonic_music.prediction_inputs(rolls, preprocessing['steps'])

    def stream(self, settings: Settings, preprocessing: Mapping[str, Any]) -> OnlinePredictor:
        return polyphonic_music.stream()


EXPERIMENT = Music()
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main
