"""A kind of data as small as can be (does a series begin above 0?), and small files for the other ones."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.cli.dataset_experiment import DatasetExperiment
from seqjax.cli.flag_tables import Flag
from seqjax.cli.parsers import FloatParser, IntParser
from seqjax.datasets.dataset import Dataset, ForecastCurve, ItemScores, MetricSpec, OnlinePredictor, PredictionInputs
from seqjax.errors import UserError
from seqjax.ops import windows
from seqjax.tasks import synthetic
from seqjax.types import Batch, ModelSpec

STEPS, ROWS = 6, 8  # of a series, of a batch


def series(path, noise):
    """Numbers of a file -> inputs [N, STEPS, 1], whether each begins above 0 but for some noise."""
    try:
        count = int(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f'{path} must hold a number of series') from error
    rng = np.random.default_rng(count)
    x = rng.normal(size=(count, STEPS, 1)).astype(np.float32)
    return x, (x[:, 0, 0] + noise * rng.normal(size=count) > 0).astype(np.int32)


def batches(x, y):
    """Leaves [N, ROWS, ...]; the last batch is filled up."""
    rest = -len(x) % ROWS
    real = np.arange(len(x) + rest) < len(x)
    x, y = np.concatenate([x, np.zeros((rest, STEPS, 1), np.float32)]), np.concatenate([y, np.zeros(rest, np.int32)])
    return jax.tree.map(lambda leaf: leaf.reshape(-1, ROWS, *leaf.shape[1:]), Batch(x, y, real))


class Begin(DatasetExperiment):
    name = 'begin'
    OWN = {'noise': Flag(FloatParser(), 'hides the answer'), 'held_out': Flag(IntParser(1), 'series to test on')}
    own_defaults = {'noise': 0.0, 'held_out': 12, 'hidden': 4, 'batch_size': ROWS, 'learning_rate': 0.03}

    def spec(self, preprocessing):
        return ModelSpec('last', 2, features=1)

    def postprocess(self, preprocessing):
        return lambda outputs, batch: jax.nn.log_softmax(outputs)

    def dataset(self, settings):
        x, y = series(settings.options['data'], settings.options['noise'])
        n = settings.options['held_out']
        if len(x) < 3 * n:
            raise UserError(f'{settings.options["data"]} has {len(x)} series, too few for --held_out={n}')
        test, validation, rows = slice(n), slice(n, 2 * n), slice(2 * n, None)

        def batch(data, key, step):
            order, x, y = data
            index, real = windows.epoch_rows(order, step, len(y), settings.train.batch_size)
            return Batch(x[index], y[index], real)

        def always(split):
            right = y[test if split == 'test' else validation] == 1
            return ItemScores(right.astype(float), np.ones(n))

        def items(answers):
            right = answers.reshape(-1, 2)[:n].argmax(-1) == y[test]
            return ItemScores(right.astype(float), np.ones(n))

        prediction_inputs = PredictionInputs(batches(x[test], y[test]), self._table(n))
        return Dataset(
            name='begin', description=[f'{len(x)} series'], spec=self.spec({}), postprocess=self.postprocess({}),
            preprocessing={'steps': STEPS}, loss_fn=synthetic.classification, batch=batch,
            data=(jax.random.key(settings.train.seed), x[rows], y[rows]), steps_per_epoch=4,
            validation=batches(x[validation], y[validation]), test=prediction_inputs,
            metric=MetricSpec('accuracy', True, format_spec='.1%'),
            train_plus_validation=lambda: (jax.random.key(settings.train.seed), x[n:], y[n:]), items=items,
            baselines={'always 1': always},
            summary=lambda answers: [f'answers {answers.shape}'],
            figure_data=lambda answers: ForecastCurve('y', answers[0, :, 0], answers[0, :, 1], answers[0, :, 1]),
        )  # fmt: skip

    @staticmethod
    def _table(count):
        return lambda answers: (['no', 'yes'], jnp.exp(answers).reshape(-1, 2)[:count].tolist())

    def prediction_inputs(self, settings, preprocessing, path, split='all'):
        x, y = series(path, settings.options['noise'])
        return PredictionInputs(batches(x, y), self._table(len(x)), [f'{len(x)} series'])

    def stream(self, settings, preprocessing):
        def parse(line):
            try:
                return np.array([float(line)], np.float32)
            except ValueError as error:
                raise UserError(f'{line!r} is no number') from error

        return OnlinePredictor(parse, ['log odds'], lambda outputs, observed: [f'{outputs[1] - outputs[0]:.9g}'])


EXPERIMENT = Begin()
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main


# --- what the tests of several kinds ask ------------------------------------------------------------


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def refused(words, action):
    with pytest.raises(UserError) as caught:
        action()
    assert words in str(caught.value) and '\n' not in str(caught.value), caught.value


# --- files for the other kinds ---------------------------------------------------------------------


def table(path):
    steps = np.arange(120)
    rows = [f'{i},{np.sin(i / 3):.6f},{i % 7}' for i in steps]
    path.write_text('t,wave,day\n' + '\n'.join(rows) + '\n')


def archive(path):
    rng = np.random.default_rng(0)
    lines = [
        '@problemName x',
        '@timeStamps false',
        '@univariate true',
        '@equalLength false',
        '@classLabel true up down',
    ]
    for i in range(60):
        slope = 1 if i % 2 else -1
        values = slope * np.arange(5 + i % 4) + rng.normal(size=5 + i % 4)
        lines.append(','.join(f'{x:.4f}' for x in values) + f':{"up" if slope > 0 else "down"}')
    path.write_text('\n'.join([*lines[:5], '@data', *lines[5:]]) + '\n')


def text(path):
    rng = np.random.default_rng(1)
    path.write_text(''.join(rng.choice(['the ', 'cat ', 'sat ', 'on ', 'a mat. '], 2000)))


def rolls(path):
    scipy_io = pytest.importorskip('scipy.io')
    rng = np.random.default_rng(2)
    cells = {}
    for name, count in (('traindata', 12), ('validdata', 4), ('testdata', 4)):
        pieces = np.empty((1, count), object)
        for i in range(count):
            pieces[0, i] = (rng.random((10 + i, 88)) < 0.05).astype(np.uint8)
        cells[name] = pieces
    scipy_io.savemat(path, cells)
