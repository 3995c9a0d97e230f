"""Classes of series: splits that do not leak, what a model reads, scores, predictions, and both doors."""

import csv
import io
import json

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from seqjax.cli import classify, predict
from seqjax.datasets import classification, time_series_classification
from seqjax.datasets.baselines import class_baselines
from seqjax.datasets.readers import ts_format
from seqjax.datasets.readers.ts_format import LabelledSeries
from seqjax.errors import UserError
from seqjax.tasks import synthetic
from seqjax.types import Batch
from tests.helpers.kinds import refused, same

NAN = np.nan
OPTIONS = {
    **{'test_fraction': 0.25, 'validation_fraction': 0.25, 'missing': 'refuse', 'weights': 'none'},
    **{'batch_size': 4, 'seed': 0},
}


def draw(count=40, seed=0, classes=('left', 'right'), longest=9):
    """Series of 5 to 9 steps: of two channels one has its pulse first, and the class says which."""
    rng = np.random.RandomState(seed)
    lengths, labels = rng.randint(5, longest + 1, count), np.arange(count) % 2
    values = rng.normal(size=(lengths.sum(), 2)).astype(np.float32) * 0.1 + [3, -2]
    for start, length, label in zip(np.cumsum(lengths) - lengths, lengths, labels, strict=True):
        first, second = np.sort(rng.permutation(np.arange(1, length - 1))[:2])
        values[start + first, label] += 1
        values[start + second, 1 - label] += 1
    return LabelledSeries(values.astype(np.float32), lengths, labels.astype(np.int32), tuple(classes))


def write(file, series, labelled=True):
    ends = np.cumsum(series.lengths)
    lines = ['@classLabel ' + (f'true {" ".join(series.classes)}' if labelled else 'false'), '@data']
    for end, length, label in zip(ends, series.lengths, series.labels, strict=True):
        words = [','.join(f'{x:.9g}' for x in channel) for channel in series.values[end - length : end].T]
        lines.append(':'.join([*words, *([series.classes[label] if label >= 0 else '?'] if labelled else [])]))
    file.write_text('\n'.join(lines).replace('nan', '?') + '\n')
    return file


def make(series, test=None, **options):
    return time_series_classification.dataset('x.ts', series, test, **{**OPTIONS, **options})


# --- what sequences with a class share -------------------------------------------------------------


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_of_each_class_the_same_share_is_held_out_and_one_stays(labels, share, seed):
    labels = np.array(labels)
    kept, held = classification.stratified_split(labels, share, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    for label in np.unique(labels):
        count, out = (labels == label).sum(), (labels[held] == label).sum()
        assert out == min(round(share * count), count - 1)


def test_what_is_held_out_is_decided_by_the_seed_alone():
    labels = np.arange(60) % 3
    one, same_one, other = (classification.stratified_split(labels, 0.5, seed)[1].tolist() for seed in (1, 1, 2))
    assert one == same_one != other


def test_batches_keep_the_order_and_mask_what_fills_them_up_or_is_unknown():
    labels = np.arange(70) % 3
    labels[5] = ts_format.UNKNOWN
    found = classification.batches(lambda rows: rows * 10, labels)
    assert found.inputs.shape == found.targets.shape == found.mask.shape == (2, 64)
    assert found.inputs.ravel()[:70].tolist() == list(range(0, 700, 10)) and (found.inputs.ravel()[70:] == 690).all()
    assert not found.mask.ravel()[70:].any() and np.flatnonzero(~found.mask.ravel()[:70]).tolist() == [5]
    assert (found.targets.ravel()[:70][labels >= 0] == labels[labels >= 0]).all()


def batch_of(labels, mask):
    return Batch(None, jnp.array(labels, jnp.int32), jnp.array(mask))


def test_the_weighted_loss_is_that_of_a_set_with_rare_classes_repeated():
    rng = np.random.RandomState(0)
    logits, labels = rng.normal(size=(5, 3)).astype(np.float32), [0, 1, 1, 2, 2]
    mask = [True, True, False, True, True]
    weights = np.array([3.0, 2.0, 1.0])
    found = jax.jit(classification.make_loss(weights))(logits, batch_of(labels, mask))
    times = [0, 0, 0, 1, 1, 3, 4]
    plain = jax.jit(synthetic.classification)(logits[times], batch_of(np.array(labels)[times], [True] * 7))
    np.testing.assert_allclose(found['loss'].compute(), plain['loss'].compute(), rtol=1e-6)
    assert found['wrong'] == jax.jit(synthetic.classification)(logits, batch_of(labels, mask))['wrong']


def test_nothing_that_is_masked_reaches_the_weighted_loss_or_its_gradient():
    score, labels = classification.make_loss(np.array([2.0, 1.0])), [0, 1]

    def loss(logits):
        return score(logits, batch_of(labels, [True, False]))['loss'].compute()

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.array([[1.0, 2.0], [NAN, 1e30]]))
    assert np.isfinite(value) and np.isfinite(slope).all() and not slope[1].any() and slope[0].all()


def test_weights_say_how_much_rarer_a_class_is():
    labels = np.array([1, 1, 0, 2, 1, 2, 1])
    assert classification.class_weights('balanced', labels).tolist() == [4, 1, 2]
    assert classification.class_weights('none', labels) is None


def test_probabilities_of_large_and_small_logits():
    found = classification.probabilities(np.array([[0, np.log(3)], [1e4, 0], [-1e4, -1e4]], np.float32))
    np.testing.assert_allclose(found, [[0.25, 0.75], [1, 0], [0.5, 0.5]], atol=1e-7)


def test_confusion_has_the_truth_in_rows():
    lines = classification.confusion(np.array([0, 1, 1, -1]), np.array([0, 0, 1, 1]), ['a', 'long name of a class'])
    assert [line.split() for line in lines[1:]] == [
        ['a', 'long', 'name', 'o…'],
        ['a', '1', '1'],
        ['long', 'name', 'o…', '0', '1'],
    ]


def test_of_many_classes_the_commonest_mistakes_are_told():
    labels = np.arange(30).repeat(2)
    guess = labels.copy()
    guess[[4, 5, 8]] = 7
    assert classification.confusion(guess, labels, [f'c{i}' for i in range(30)])[1:] == [
        '  c2 predicted as c7: 2',
        '  c4 predicted as c7: 1',
    ]


def test_an_answer_that_is_no_number_is_never_right():
    assert classification.predicted_classes(np.array([[0.0, 1.0], [NAN, 1.0], [np.inf, 0.0]])).tolist() == [1, -1, -1]
    assert classification.balanced_accuracy(np.array([0, 0, -1]), np.array([0, 0, 1])) == 0.5


@pytest.mark.parametrize('line, want', [('1,2', [1, 2]), (' 1.5 , ? ', [1.5, NAN]), ('-1e3,nan', [-1000, NAN])])
def test_a_step_from_a_line(line, want):
    np.testing.assert_array_equal(classification.parse_numbers(line, 2), np.array(want, np.float32))


@pytest.mark.parametrize('line', ['1', '1,2,3', '', '1,x', '1,', ',', '1;2', 'x' * 999 + ',1', '1,\0'])
def test_a_line_that_is_no_step_is_refused(line):
    with pytest.raises(UserError):
        classification.parse_numbers(line, 2)


# --- series: splits, scaling, batches --------------------------------------------------------------


def rows_of(batch):
    """The real rows of batches, each cut to its length."""
    values, lengths = batch.inputs.values, batch.inputs.seq_lengths
    flat = values.reshape(-1, *values.shape[-2:])
    return [flat[i, :n] for i, n in enumerate(lengths.ravel()) if batch.mask.ravel()[i]]


def test_each_series_is_in_one_part_and_scaled_as_the_training_part_says():
    series = draw()
    data = make(series)
    train = [x for x in np.split(data.data['values'], np.cumsum(data.data['lengths'])[:-1])]
    parts = [train, rows_of(data.validation), rows_of(data.test.batches)]
    assert [len(part) for part in parts] == [22, 8, 10]
    flat = np.concatenate(train)
    np.testing.assert_allclose([flat.mean(0), flat.std(0)], [[0, 0], [1, 1]], atol=1e-5)
    back = [x / np.array(data.preprocessing['factor']) + data.preprocessing['mean'] for part in parts for x in part]
    want = np.split(series.values, np.cumsum(series.lengths)[:-1])
    keys = [sorted(np.round(np.concatenate([x[0], x[-1]]), 3).tolist() for x in of) for of in (back, want)]
    np.testing.assert_allclose(*keys, atol=2e-3)


@pytest.mark.parametrize('part', ['validation', 'test'])
def test_what_is_held_out_changes_nothing_of_what_is_learned_from(part):
    series = draw()
    parts = time_series_classification.split('x', series, None, 0.25, 0.25)
    target = getattr(parts, part).values
    changed = series.values.copy()
    hit = (changed[:, None] == target[None]).all(-1).any(-1)
    assert hit.sum() == len(target)
    changed[hit] += 100
    one, other = make(series), make(series._replace(values=changed))
    assert one.preprocessing == other.preprocessing
    same(one.data['values'], other.data['values'])


def test_an_epoch_reads_every_series_once_whole_and_zero_behind_its_end():
    data = make(draw(), batch_size=5)
    assert data.steps_per_epoch == 5
    seen, make_batch = [], jax.jit(data.batch)
    for step in range(data.steps_per_epoch):
        batch = jax.device_get(make_batch(data.data, jax.random.key(step), jnp.int32(step)))
        values, lengths = batch.inputs.values, batch.inputs.seq_lengths
        assert values.shape == (5, 9, 2) and not values[np.arange(9)[None] >= lengths[:, None]].any()
        seen += [
            (tuple(x[:n].ravel()), int(y))
            for x, n, y, m in zip(values, lengths, batch.targets, batch.mask, strict=True)
            if m
        ]
    parts = np.split(data.data['values'], np.cumsum(data.data['lengths'])[:-1])
    assert sorted(seen) == sorted((tuple(x.ravel()), int(y)) for x, y in zip(parts, data.data['labels'], strict=True))


def test_missing_values_are_refused_or_are_zero_beside_a_channel_that_says_so():
    series = draw()
    series.values[[3, -4], [0, 1]] = NAN, np.inf
    refused(
        'series 1 at step 4 of channel 1',
        lambda: make(series),
    )
    data = make(series, missing='mask')
    assert data.spec.features == 4
    rows = np.concatenate([data.data['values'], *rows_of(data.validation), *rows_of(data.test.batches)])
    assert rows[:, 2:].sum(0).tolist() == [1, 1] and set(rows[:, 2:].ravel()) == {0, 1}
    assert not rows[:, :2][rows[:, 2:] == 1].any() and np.isfinite(rows).all()
    assert any('2 of' in line and 'missing' in line for line in data.description)
    everywhere = draw()
    everywhere.values[np.cumsum(everywhere.lengths) - 1, 0] = NAN
    assert make(everywhere, missing='mask').preprocessing['factor'][0] > 1


def test_a_constant_channel_is_told_and_left_at_zero():
    series = draw()
    series.values[:, 1] = 7e6
    data = make(series)
    assert any('constant' in line and line.endswith(': 2') for line in data.description)
    assert not data.data['values'][:, 1].any()
    far = series._replace(values=series.values * np.float32(1e30))
    assert np.isfinite(
        time_series_classification.prediction_inputs('y', far, data.preprocessing).batches.inputs.values
    ).all()
    series.values[:, 0] = 0
    refused('x', lambda: make(series))


def relabel(series, **changes):
    return series._replace(**changes)


def test_what_cannot_be_learned_from_is_refused():
    series = draw()
    unknown = series.labels.copy()
    unknown[6] = ts_format.UNKNOWN
    for words, action in [
        ("'left'", lambda: make(relabel(series, labels=series.labels * 0))),
        ('@classLabel', lambda: make(relabel(series, labels=series.labels * 0 + ts_format.UNKNOWN, classes=()))),
        ('series 7', lambda: make(relabel(series, labels=unknown))),
        ('--validation_fraction=0.01', lambda: make(series, validation_fraction=0.01)),
        ('--test_fraction=0.01', lambda: make(series, test_fraction=0.01)),
        ('y.ts', lambda: make(series, ('y.ts', relabel(series, labels=unknown)))),
        (
            "'up'",
            lambda: make(series, ('y.ts', relabel(series, classes=('up', 'right')))),
        ),
        (
            'y.ts',
            lambda: make(series, ('y.ts', relabel(series, values=series.values[:, :1]))),
        ),
    ]:
        refused(words, action)


def test_a_class_that_is_declared_and_does_not_occur_is_none():
    series = draw(classes=('left', 'Right', 'never'))
    assert make(series).preprocessing['classes'] == ['left', 'Right']
    swapped = relabel(series, classes=('RIGHT', 'Left', 'never'), labels=1 - series.labels)
    found = time_series_classification.prediction_inputs('y', swapped, make(series).preprocessing)
    assert (found.batches.targets.ravel()[:40] == series.labels).all()


@pytest.mark.parametrize(
    'declared, other, labels',
    [
        (('A', 'a', 'never'), ('A', 'a'), [0, 1]),
        (('A', 'a', 'never'), ('a', 'A'), [1, 0]),
        (('left', 'Right', 'never'), ('LEFT', 'right'), [0, 1]),
        (('caf\u00e9', 'b', 'never'), ('cafe\u0301', 'B'), [0, 1]),
        (('a', 'b', 'A'), ('A', 'b'), "'A'"),
        (('a', 'b', 'never'), ('a', 'A'), "'A'"),
        (('a', 'b', 'never'), ('a', 'c'), "'c'"),
        (('a', 'b', 'never'), ('a', 'never'), "'never'"),
        (('1', '2', 'never'), ('1', '2.0'), "'2.0'"),
    ],
)
def test_classes_of_another_file_are_those_of_the_same_name(declared, other, labels):
    """`declared` are the classes in the head of the training file, of which the first two occur."""
    series, test = draw(classes=declared), draw(count=8, seed=1, classes=other)
    preprocessing = json.loads(json.dumps(make(series).preprocessing))
    for action in (
        lambda: time_series_classification.prediction_inputs('y', test, preprocessing).batches,
        lambda: make(series, ('y', test)).test.batches,
    ):
        if isinstance(labels, str):
            refused(labels, action)
        else:
            assert action().targets.ravel()[:8].tolist() == labels * 4


def test_unseen_series_go_through_what_the_test_went_through():
    series, test = draw(), draw(seed=1, count=30)
    data = make(series, ('y.ts', test))
    preprocessing = json.loads(json.dumps(data.preprocessing))
    same(time_series_classification.prediction_inputs('y', test, preprocessing).batches, data.test.batches)
    assert (
        time_series_classification.spec(preprocessing)[:2] == data.spec[:2]
        and time_series_classification.spec(preprocessing).features == 2
    )
    for longest, steps in ((20, 20), (6, 9)):
        found = time_series_classification.prediction_inputs('z', draw(longest=longest), preprocessing).batches
        assert found.inputs.values.shape[2] == steps


def test_predictions_have_the_truth_where_it_is_known():
    data = make(draw())
    series = draw(count=3)
    labels = series.labels.copy()
    labels[1] = ts_format.UNKNOWN
    answers = np.zeros((1, 64, 2), np.float32)
    answers[0, :3] = [[0, np.log(3)], [2, 0], [0, 1]]
    columns, rows = time_series_classification.prediction_inputs(
        'y', relabel(series, labels=labels), data.preprocessing
    ).table(answers)
    assert columns == ['index', 'probability of left', 'probability of right', 'predicted', 'truth']
    rows = list(rows)
    np.testing.assert_allclose(rows[0][1:3], [0.25, 0.75], atol=1e-6)
    assert [(row[0], *row[3:]) for row in rows] == [(0, 'right', 'left'), (1, 'left', ''), (2, 'right', 'left')]
    unlabelled = relabel(series, labels=labels * 0 + ts_format.UNKNOWN, classes=())
    assert (
        time_series_classification.prediction_inputs('y', unlabelled, data.preprocessing).table(answers)[0][-1]
        == 'predicted'
    )


def test_baselines_know_all_but_the_part_they_are_asked_about():
    data = make(draw())
    for split, count in (('validation', 8), ('test', 10)):
        for baseline in data.baselines.values():
            items = baseline(split)
            assert items.totals.shape == (count,) and (items.counts == 1).all() and set(items.totals) <= {0, 1}
        assert data.baselines['most frequent class'](split).totals.sum() == count / 2


def test_an_svm_reads_summaries_of_different_lengths_and_all_values_of_one_length():
    svc = pytest.importorskip('sklearn.svm', reason='is the reference').SVC
    data, series = make(draw()), draw()
    assert list(data.baselines) == ['most frequent class', 'logistic regression', 'RBF SVM']
    even = LabelledSeries(series.values[:200], np.full(40, 5), series.labels, series.classes)
    data = make(even)
    found = data.baselines['RBF SVM of all values']
    splits = time_series_classification.split('x.ts', even, None, 0.25, 0.25)
    mean, deviation = splits.train.values.mean(0), splits.train.values.std(0)
    features = [((part.values - mean) / deviation).reshape(len(part.labels), -1) for part in splits]

    def right(cost, split):
        fitted = slice(1 if split == 1 else 2)
        machine = svc(C=cost).fit(
            np.concatenate(features[fitted]), np.concatenate([part.labels for part in splits[fitted]])
        )
        return (machine.predict(features[split]) == splits[split].labels).astype(float).tolist()

    best = max(class_baselines.SVM_COSTS, key=lambda cost: sum(right(cost, 1)))
    assert found('validation').totals.tolist() == right(best, 1)
    assert found('test').totals.tolist() == right(best, 2)


def test_items_and_words_about_the_test():
    data = make(draw())
    truth = data.test.batches.targets
    answers = np.eye(2, dtype=np.float32)[truth]
    assert data.items(answers).totals.tolist() == [1] * 10
    assert data.items(1 - answers).totals.tolist() == [0] * 10
    lines = data.summary(answers)
    assert 'accuracy 100.0%, balanced accuracy 100.0%' in lines[0] and 'accuracy 50.0%' in lines[1]
    assert [line.split() for line in lines[-2:]] == [['left', '5', '0'], ['right', '0', '5']]


# --- both doors ------------------------------------------------------------------------------------

SMALL = {
    'hidden': 16,
    'cell': 'gru',
    'num_seeds': 2,
    'learning_rate': 0.02,
    'plot': False,
    'steps': 240,
    'eval_every': 20,
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with NAME_TRAIN.ts, NAME_TEST.ts, a finished run, and what it found."""
    folder = tmp_path_factory.mktemp('run')
    write(folder / 'pulses_TRAIN.ts', draw(100, seed=2))
    write(folder / 'pulses_TEST.ts', draw(70, seed=3))
    [result] = classify.run(data=str(folder / 'pulses_TRAIN.ts'), workdir=folder / 'out', **SMALL)
    return folder, result


def predictions(folder, **flags):
    out = folder / 'found.csv'
    predict.run(workdir=str(folder / 'out'), out=str(out), overwrite=True, **flags)
    return out.read_bytes()


def test_an_order_that_no_summary_tells_is_learned(trained):
    _, result = trained
    assert result.values.min() > 0.9 > 0.75 > max(result.baselines.values())


@pytest.mark.parametrize('flags', [{'data': 'pulses_TEST.ts'}, {'data': 'pulses_TRAIN.ts', 'split': 'test'}])
def test_predictions_of_the_test_are_those_of_the_run_to_the_bit(trained, flags):
    folder, _ = trained
    flags = flags | {'data': str(folder / flags['data'])}
    assert predictions(folder, **flags) == (folder / 'out' / 'predictions.csv').read_bytes()


def test_series_without_classes_have_the_same_predictions(trained):
    folder, _ = trained
    write(folder / 'new.ts', draw(70, seed=3), labelled=False)
    rows = [
        list(csv.reader(io.StringIO(text.decode())))
        for text in (
            predictions(folder, data=str(folder / 'new.ts')),
            (folder / 'out' / 'predictions.csv').read_bytes(),
        )
    ]
    assert rows[0] == [row[:-1] for row in rows[1]]


def test_steps_that_come_one_at_a_time_end_where_the_whole_series_does(trained, monkeypatch, capsys):
    folder, _ = trained
    series = draw(70, seed=3)
    ends = np.cumsum(series.lengths)
    parts = [series.values[end - n : end] for end, n in zip(ends[:3], series.lengths[:3], strict=True)]
    text = '\n\n'.join('\n'.join(','.join(f'{x:.9g}' for x in step) for step in part) for part in parts)
    monkeypatch.setattr('sys.stdin', io.StringIO(text + '\n'))
    predict.run(workdir=str(folder / 'out'), stdin=True)
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    with (folder / 'out' / 'predictions.csv').open() as file:
        want = list(csv.DictReader(file))[:3]
    assert len(found) == ends[2]
    for row, other in zip([found[end - 1] for end in ends[:3]], want, strict=True):
        assert row['predicted'] == other['predicted']
        assert abs(float(row['probability of left']) - float(other['probability of left'])) < 1e-5


@pytest.mark.parametrize(
    'flags, words',
    [
        ([], '--data'),
        (['--data=none.ts'], 'none.ts'),
        (['--data=none:none.ts'], 'none'),
        (['--data=x.ts', '--missing=fill'], '--missing=fill'),
        (['--data=x.ts', '--test_data=cut.ts'], 'cut.ts'),
        (['--data=x.ts', '--validation_fraction=0'], '--validation_fraction=0'),
    ],
)
def test_mistakes_end_with_one_sentence(in_tmp, capsys, flags, words):
    write(in_tmp / 'x.ts', draw())
    (in_tmp / 'cut.ts').write_text('@classLabel true left right\n@data\n1,2:3,')
    assert classify.main(flags) == 2
    err = capsys.readouterr().err
    assert words in err and err.count('\n') == 1, err
