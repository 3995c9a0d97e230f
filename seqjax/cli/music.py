"""Piano rolls: the notes of the next frame, from all frames before it.

    seqjax music --data=JSB_Chorales.mat --flagfile=experiments/flags/jsb.flags --workdir=runs/jsb
    seqjax predict --workdir=runs/jsb --data=JSB_Chorales.mat --part=test --out=frames.csv

The file has three cell arrays of pieces [T, 88], 0 or 1 for each key of a piano: traindata, validdata, testdata. The
score is the negative log-likelihood in nats of a frame, the sum over its 88 notes; the mean is over the frames t = 2..T
of all pieces of a part, so that a long piece counts for more than a short one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqjax.cli import dataset_experiment
from seqjax.cli.dataset_experiment import DatasetExperiment
from seqjax.cli.flag_tables import Flag
from seqjax.cli.parsers import Whole
from seqjax.cli.settings import Settings
from seqjax.datasets import polyphonic_music, recipes
from seqjax.datasets.dataset import Dataset, OnlinePredictor, Unseen
from seqjax.datasets.readers import piano_rolls


class Music(DatasetExperiment):
    """Piano rolls in a .mat file, whose training, validation and test pieces are in cell arrays of their own."""

    name = 'music'
    suffix = '.mat'
    OWN = {
        'window': Flag(Whole(1), 'frames of a training window, which may begin and end anywhere'),
        'transpose': Flag(
            Whole(0, piano_rolls.NOTES - 1),
            'training moves pieces by up to so many semitones; no published figure has that',
        ),
    }
    own_defaults = {
        **{'window': 64, 'transpose': 0, 'batch_size': 16, 'hidden': 150, 'eval_every': 100, 'patience': 8},
        # Chosen for an LSTM on the validation part of JSB Chorales.
        **{'input_dropout': 0.2, 'output_dropout': 0.5, 'weight_decay': 0.01},
    }

    def sizes(self, settings: Settings) -> tuple[int, dict[str, Any]]:
        numbers, named = super().sizes(settings)
        frame = 2 * piano_rolls.NOTES + settings.model.hidden
        numbers += settings.train.batch_size * settings.options['window'] * frame
        return numbers, {'window': settings.options['window'], **named}

    def dataset(self, settings: Settings) -> Dataset:
        path = settings.options['data']
        chosen = {name: settings.flags[name] for name in ('batch_size', 'window', 'transpose', 'seed')}
        return polyphonic_music.music(
            Path(path).name,
            piano_rolls.read_rolls(path, piano_rolls.KEYS, dataset_experiment.bounds_of(settings.options)),
            **chosen,
        )

    def check_recipe(self, settings: Settings, recipe: Any) -> Mapping[str, Any]:
        return recipes.check(recipe, {'steps': recipes.whole(1, recipes.MOST_STEPS)})

    spec = staticmethod(lambda recipe: polyphonic_music.spec())
    answers = staticmethod(lambda recipe: polyphonic_music.answers)

    def unseen(self, settings: Settings, recipe: Mapping[str, Any], path: str) -> Unseen:
        part = settings.options['part']
        rolls = piano_rolls.read_rolls(
            path, [] if part == 'all' else [part], dataset_experiment.bounds_of(settings.options)
        )
        return polyphonic_music.unseen(rolls, recipe['steps'])

    def stream(self, settings: Settings, recipe: Mapping[str, Any]) -> OnlinePredictor:
        return polyphonic_music.stream()


KIND = Music()
COMMAND = KIND.command(__doc__)
FLAGS, run, main = KIND.FLAGS, KIND.run, COMMAND.main
