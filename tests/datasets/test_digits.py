"""Images as sequences: what is a step, what is held out, and both doors."""

import csv
import gzip
import io
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.cli import digits, predict
from seqjax.cli.settings import Settings
from seqjax.datasets import sequential_images
from seqjax.datasets.baselines import class_baselines
from seqjax.datasets.readers.images import Images
from tests.helpers.kinds import refused, same

OPTIONS = {
    **{'test_count': 10, 'validation_fraction': 0.25, 'order': 'rows', 'permute': False},
    **{'batch_size': 4, 'seed': 0},
}


def draw(count=50, seed=0):
    """Images of 4 x 5 pixels up to 200: class 3 is bright above, class 7 below."""
    rng = np.random.RandomState(seed)
    labels = rng.permutation(np.arange(count) % 2)
    values = rng.randint(0, 101, (count, 4, 5))
    values[np.arange(count), labels * 2] += 100
    values[0, 0, 0] = 200
    return Images(values.astype(np.uint8), np.array([3, 7], np.uint8)[labels])


def idx(values):
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f'>{values.ndim}I', *values.shape) + values.tobytes()


def make(images, test=None, **options):
    return sequential_images.dataset('x', images, test, **{**OPTIONS, **options})


def test_the_last_images_are_the_test_and_those_before_them_validate():
    images = draw()
    data = make(images)
    scaled = (images.values / np.float32(200)).astype(np.float32)
    np.testing.assert_array_equal(data.data['images'], images.values[:30])
    np.testing.assert_array_equal(data.validation.inputs[0, :10], scaled[30:40])
    np.testing.assert_array_equal(data.test.batches.inputs[0, :10], scaled[40:])
    labels = (images.labels == 7).astype(int)
    np.testing.assert_array_equal(data.data['labels'], labels[:30])
    np.testing.assert_array_equal(data.test.batches.targets[0, :10], labels[40:])
    assert data.validation.mask.sum() == data.test.batches.mask.sum() == 10 and data.preprocessing['classes'] == [
        '3',
        '7',
    ]


def test_what_is_held_out_decides_no_scale():
    images = draw()
    images.values[30:] = 255
    assert make(images).preprocessing['maximum'] == 200


def test_a_file_for_the_test_leaves_all_others_to_learn_from():
    data = make(draw(), ('y', draw(count=70, seed=1)))
    assert len(data.data['images']) == 38 and data.validation.mask.sum() == 12
    assert data.test.batches.mask.shape == (2, 64) and data.test.batches.mask.sum() == 70
    assert any('70 of y' in line for line in data.description)


@pytest.mark.parametrize('order, shape', [('rows', (4, 5)), ('pixels', (20, 1))])
@pytest.mark.parametrize('permute', [False, True])
def test_steps_are_rows_or_pixels_in_one_order_for_all_images(order, shape, permute):
    images = draw()
    data = make(images, order=order, permute=permute)
    assert (data.spec.memory_span, data.spec.features) == shape
    batch = data.batch(data.data, jax.random.key(0), jnp.int32(0))
    assert batch.inputs.shape == (4, *shape) and batch.inputs.dtype == jnp.float32
    pixels = images.values.reshape(50, -1)
    order = data.preprocessing['permutation'] or list(range(20))
    assert sorted(order) == list(range(20)) and (order != list(range(20))) == permute
    np.testing.assert_array_equal(data.data['images'].reshape(30, -1), pixels[:30][:, order])
    want = (pixels[40:][:, order] / np.float32(200)).astype(np.float32)
    np.testing.assert_array_equal(data.test.batches.inputs[0, :10].reshape(10, -1), want)


def test_the_order_of_the_pixels_is_the_same_for_all_runs():
    one, other = (make(draw(seed=seed), permute=True, seed=seed).preprocessing['permutation'] for seed in (0, 1))
    assert one == other and one[:5] == [11, 0, 4, 12, 14]


def test_an_epoch_reads_every_image_once_as_numbers_up_to_one():
    data = make(draw())
    seen, make_batch = [], jax.jit(data.batch)
    for step in range(data.steps_per_epoch):
        batch = jax.device_get(make_batch(data.data, jax.random.key(step), jnp.int32(step)))
        rows = zip(batch.inputs.reshape(4, -1), batch.targets, batch.mask, strict=True)
        seen += [(*np.round(x * 200).astype(int), int(y)) for x, y, real in rows if real]
    want = [(*x.ravel().astype(int), int(y)) for x, y in zip(data.data['images'], data.data['labels'], strict=True)]
    assert data.steps_per_epoch == 8 and sorted(seen) == sorted(want)


def test_images_stay_bytes_until_a_batch_is_made():
    assert make(draw()).data['images'].dtype == np.uint8


@pytest.mark.parametrize('permute', [False, True])
def test_unseen_images_go_through_what_the_test_went_through(permute):
    images, test = draw(), draw(count=70, seed=1)
    data = make(images, ('y', test), permute=permute)
    preprocessing = json.loads(json.dumps(data.preprocessing))
    same(sequential_images.prediction_inputs('y', test, preprocessing).batches, data.test.batches)
    unknown = sequential_images.prediction_inputs('y', test._replace(labels=None), preprocessing)
    same(unknown.batches.inputs, data.test.batches.inputs)
    assert not unknown.batches.mask.any()
    assert unknown.table(np.zeros((2, 64, 2)))[0][-1] == 'predicted'
    assert data.test.table(np.zeros((2, 64, 2)))[0][-1] == 'truth'
    assert (
        sequential_images.spec(preprocessing)[:2] == data.spec[:2]
        and sequential_images.spec(preprocessing).features == 5
    )


def test_what_cannot_be_learned_from_is_refused():
    images = draw()
    for words, action in [
        ('--labels', lambda: make(images._replace(labels=None))),
        (
            '--test_labels',
            lambda: make(images, ('y', images._replace(labels=None))),
        ),
        ('--test_size=50', lambda: make(images, test_count=50)),
        ('--validation_fraction=0.001', lambda: make(images, validation_fraction=0.001)),
        ('--validation_fraction=1', lambda: make(images, validation_fraction=1.0)),
        ('3 x 5', lambda: make(images, ('y', images._replace(values=images.values[:, :3])))),
        (
            '3 x 5',
            lambda: sequential_images.prediction_inputs(
                'y', Images(images.values[:, :3], None), make(images).preprocessing
            ),
        ),
        ('image 1', lambda: make(images, ('y', images._replace(labels=images.labels * 0 + 8)))),
        ("'3'", lambda: make(images._replace(labels=images.labels * 0 + 3))),
        ('x', lambda: make(images._replace(values=images.values * 0))),
    ]:
        refused(words, action)


def test_baselines_see_the_pixels():
    data = make(draw())
    assert data.baselines['logistic regression of the pixels']('test').totals.mean() == 1
    for split in ('validation', 'test'):
        assert 0.2 <= data.baselines['most frequent class'](split).totals.mean() <= 0.8


def hard(count=90):
    """Images whose class is a noisy product of two pixels."""
    rng = np.random.RandomState(4)
    values = rng.randint(0, 201, (count, 4, 5)).astype(np.uint8)
    first, second = values[:, 0, 0] / 100 - 1, values[:, 3, 4] / 100 - 1
    return Images(values, np.where(first * second + 0.1 * rng.normal(size=count) > 0, 7, 3).astype(np.uint8))


def test_an_svm_has_the_best_cost_on_validation_and_learns_from_validation_before_the_test():
    svc = pytest.importorskip('sklearn.svm', reason='is the reference').SVC
    images = hard()
    pixels, labels = images.values.reshape(90, -1).astype(float), (images.labels == 7).astype(int)
    train, validation, both, test = slice(60), slice(60, 80), slice(80), slice(80, 90)

    def right(cost, fitted, scored):
        machine = svc(C=cost).fit(pixels[fitted], labels[fitted])
        return (machine.predict(pixels[scored]) == labels[scored]).astype(float)

    totals = {cost: right(cost, train, validation).sum() for cost in class_baselines.SVM_COSTS}
    best = max(totals, key=totals.get)
    assert best != class_baselines.SVM_COSTS[0] and totals[best] > totals[class_baselines.SVM_COSTS[0]]
    found = make(images).baselines['RBF SVM of the pixels']
    assert found('validation').totals.tolist() == right(best, train, validation).tolist()
    assert found('test').totals.tolist() == right(best, both, test).tolist() != right(best, train, test).tolist()


def test_an_svm_that_would_be_slow_is_left_out_with_a_line(monkeypatch):
    monkeypatch.setattr(class_baselines, 'MAX_SVM_WORK', 40**2 * 50)
    for count, cheap in ((50, True), (51, False)):
        data = make(draw(count), test_count=10)
        assert ('RBF SVM of the pixels' in data.baselines) == cheap
        assert any('RBF SVM' in line and f'{count - 10} examples' in line for line in data.description) != cheap


# --- both doors ------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with files as MNIST has them, a finished run, and what it found."""
    folder = tmp_path_factory.mktemp('run')
    for word, images in (('train', draw(60, seed=2)), ('t10k', draw(70, seed=3))):
        (folder / f'{word}-images-idx3-ubyte.gz').write_bytes(gzip.compress(idx(images.values)))
        (folder / f'{word}-labels-idx1-ubyte').write_bytes(idx(images.labels))
    small = {
        'hidden': 8,
        'cell': 'gru',
        'num_seeds': 2,
        'learning_rate': 0.02,
        'plot': False,
        'steps': 60,
        'eval_every': 10,
    }
    [result] = digits.run(data=str(folder / 'train-images-idx3-ubyte.gz'), workdir=folder / 'out', **small)
    return folder, result


def test_a_model_learns_what_it_sees(trained):
    _, result = trained
    assert result.values.min() > 0.9 and result.baselines['most frequent class'] < 0.6


@pytest.mark.parametrize(
    'flags', [{'data': 't10k-images-idx3-ubyte.gz'}, {'data': 'train-images-idx3-ubyte.gz', 'split': 'test'}]
)
def test_predictions_of_the_test_are_those_of_the_run_to_the_bit(trained, flags):
    folder, _ = trained
    out = folder / 'found.csv'
    flags = flags | {'data': str(folder / flags['data'])}
    predict.run(workdir=str(folder / 'out'), out=str(out), overwrite=True, **flags)
    assert out.read_bytes() == (folder / 'out' / 'predictions.csv').read_bytes()


def test_labels_that_the_run_was_told_of_are_those_of_its_files_in_predictions(trained):
    folder, _ = trained
    for file in ('a', 'b'):
        (folder / file).write_bytes(idx(draw(60, seed=4).values))
    (folder / 'c').write_bytes(idx(draw(60, seed=4).labels))
    flags = {'data': str(folder / 'a'), 'labels': str(folder / 'c')}
    settings = Settings.of(digits.EXPERIMENT.defaults | flags)
    preprocessing = json.loads((folder / 'out' / 'summary.json').read_text())['preprocessing']
    found = [
        digits.EXPERIMENT.prediction_inputs(settings, preprocessing, str(folder / file)).batches.mask.sum()
        for file in ('a', 'b')
    ]
    assert found == [60, 0]


def test_rows_that_come_one_at_a_time_end_where_the_whole_image_does(trained, monkeypatch, capsys):
    folder, _ = trained
    image = draw(70, seed=3).values[0]
    monkeypatch.setattr('sys.stdin', io.StringIO('\n'.join(','.join(map(str, row)) for row in image) + '\n'))
    predict.run(workdir=str(folder / 'out'), stdin=True)
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    with (folder / 'out' / 'predictions.csv').open() as file:
        want = next(csv.DictReader(file))
    assert len(found) == 4 and found[-1]['predicted'] == want['predicted']
    assert abs(float(found[-1]['probability of 3']) - float(want['probability of 3'])) < 1e-5


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--data=none'], 'none'),
        (['--data=digits', '--labels=x'], '--data=digits'),
        (['--data=digits', '--test_data=digits', '--test_labels=x'], '--test_labels=x cannot be used with --test_data'),
        (['--data=x', '--test_labels=x'], '--test_data'),
        (['--data=x'], '--labels'),
        (['--data=x', '--labels=x'], '00 00 08 01'),
        (['--data=x', '--scan_order=columns'], '--scan_order=columns'),
    ],
)
def test_mistakes_end_with_one_sentence(in_tmp, capsys, flags, words):
    (in_tmp / 'x').write_bytes(idx(draw().values))
    assert digits.main(flags) == 2
    err = capsys.readouterr().err
    assert words in err and err.count('\n') == 1, err
