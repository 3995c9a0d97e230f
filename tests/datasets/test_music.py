"""Piano rolls as a run learns from them: windows, whole pieces in rows, scores by piece, predictions, and streams."""

import math
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.cli import dataset_test, flag_tables, music
from seqjax.cli.settings import Settings
from seqjax.datasets import polyphonic_music
from seqjax.datasets.baselines import note_baselines
from seqjax.datasets.polyphonic_music import PackedPieces
from seqjax.errors import UserError
from seqjax.nn import models
from seqjax.types import BestParameters

LENGTHS = {'train': (7, 2, 12, 5), 'validation': (4, 9), 'test': (9, 3, 4, 2, 6)}


def pieces(lengths, seed=0, low=20, high=60):
    """Random frames in a part of the keys."""
    draw, made = np.random.default_rng(seed), []
    for count in lengths:
        made.append(np.zeros((count, 88), np.uint8))
        made[-1][:, low:high] = draw.random((count, high - low)) < 0.2
    return made


@pytest.fixture(scope='module')
def parts():
    return {part: pieces(lengths, seed) for seed, (part, lengths) in enumerate(LENGTHS.items())}


def dataset(parts, **options):
    return polyphonic_music.dataset('rolls.mat', parts, **{'batch_size': 3, 'window': 4, **options})


def batches_of(data, count, key=0):
    draw = jax.jit(data.batch)
    return [jax.device_get(draw(data.data, jax.random.key(key + step), step)) for step in range(count)]


def followers(parts):
    """Every frame that training reads -> those that follow it somewhere, and those that begin a piece."""
    follow, begin = {}, set()
    for piece in parts['train']:
        begin.add(piece[0].tobytes())
        for before, now in zip(piece[:-1], piece[1:], strict=True):
            follow.setdefault(before.tobytes(), set()).add(now.tobytes())
    return follow, begin


def test_training_reads_frames_and_what_follows_them_in_the_same_piece(parts):
    follow, begin = followers(parts)
    for batch in batches_of(dataset(parts), 20):
        values, _, mask, resets = batch.inputs
        assert values.shape == batch.targets.shape == (3, 4, 88) and values.dtype == np.float32
        assert (mask == batch.mask).all()
        for i, t in np.argwhere(batch.mask):
            frame = values[i, t].astype(np.uint8).tobytes()
            assert batch.targets[i, t].tobytes() in follow[frame]
            assert resets[i, t] == (frame in begin)
            if t and not resets[i, t]:  # within a piece
                assert (values[i, t] == batch.targets[i, t - 1]).all()


def test_an_epoch_reads_about_as_much_as_there_is_and_from_everywhere(parts):
    data = dataset(parts)
    count = sum(LENGTHS['train']) - len(LENGTHS['train'])
    assert data.steps_per_epoch == math.ceil(math.ceil(count / 4) / 3) == 2
    assert sum(batch.mask.sum() for batch in batches_of(data, 2)) == math.ceil(count / 4) * 4
    read = np.concatenate([batch.targets[batch.mask] for batch in batches_of(data, 400)])
    _, times = np.unique(read, axis=0, return_counts=True)
    assert len(times) == count and times.min() > 0.75 * times.mean() and times.max() < 1.5 * times.mean()


def test_windows_longer_than_all_pieces_begin_again(parts):
    (batch,) = batches_of(dataset(parts, window=50, batch_size=1), 1)
    assert batch.inputs.resets.sum() >= 8 and batch.mask.all()


def test_equal_steps_read_equal_windows_and_seeds_have_other_orders(parts):
    one, same, other = (batches_of(dataset(parts, seed=seed), 3) for seed in (0, 0, 1))
    as_bytes = [b''.join(batch.targets.tobytes() for batch in batches) for batches in (one, same, other)]
    assert as_bytes[0] == as_bytes[1] != as_bytes[2]


@pytest.mark.parametrize(('low', 'high'), [(1, 30), (50, 86)])
def test_transposition_moves_a_whole_piece_and_loses_no_note(low, high):
    edge = pieces((6,), 1, low, high)[0]
    edge[:, [low, high]] = 1
    reach = set(range(max(-5, -low), min(5, 87 - high) + 1))
    data = dataset({'train': [edge], 'validation': [edge], 'test': [edge]}, transpose=5, window=5)
    seen = set()
    for batch in batches_of(data, 60):
        moved = np.concatenate([batch.inputs.values[:1, 0], batch.targets[0]])
        start = next(i for i in range(5) if (batch.inputs.resets[0, i]))
        by = int(np.flatnonzero(batch.inputs.values[0].any(0))[0]) - low
        assert (batch.inputs.values[0, start] == np.roll(edge[0], by)).all()
        assert {row.tobytes() for row in moved.astype(np.uint8)} <= {row.tobytes() for row in np.roll(edge, by, axis=1)}
        seen.add(by)
    assert seen == reach


def test_without_transposition_nothing_is_said_of_it_and_silence_is_not_moved(parts):
    assert not any('transpose' in line for line in dataset(parts).description)
    still = [np.zeros((4, 88), np.uint8)]
    data = dataset({'train': still, 'validation': still, 'test': still}, transpose=3)
    assert not batches_of(data, 1)[0].targets.any() and any('0 of 88' in line for line in data.description)


# --- evaluation ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(2, 30), min_size=1, max_size=40), st.integers(0, 10))
def test_every_piece_is_whole_in_one_row_and_no_two_overlap(lengths, more):
    given = pieces(lengths)
    packed = PackedPieces.pack(given, max(lengths) - 1 + more)
    batch = packed.batches()
    count, rows, steps = batch.mask.shape
    assert rows == polyphonic_music.BATCH_SIZE and steps == max(lengths) - 1 + more
    assert batch.mask.sum() == sum(lengths) - len(lengths) and batch.inputs.resets.sum() == len(lengths)
    # No row could be spared: two that are half empty would be one.
    assert sum(2 * row.sum() <= steps for row in batch.mask.reshape(-1, steps) if row.any()) <= 1
    for values, other in ((batch.inputs.values, slice(-1)), (batch.targets, slice(1, None))):
        assert all((one == piece[other]).all() for one, piece in zip(packed.unpack(values), given, strict=True))
    assert all(one[0] and not one[1:].any() for one in packed.unpack(batch.inputs.resets))
    assert all(one.all() for one in packed.unpack(batch.mask))


@pytest.fixture(scope='module')
def trained(parts):
    """A model (with random weights), and what it says to a batch."""
    model = models.sequence_model('per_step', 88, features=6)
    variables = model.init(jax.random.key(1), jnp.zeros((1, 1, 88)))
    # As large as trained ones are, so that what came before matters.
    variables = jax.tree.map(lambda x: 3 * x, variables)

    best = BestParameters(jnp.float32(0), jnp.int32(0), variables['params'], {})
    answer = partial(dataset_test.make_predictor(model, polyphonic_music.postprocess), best)
    return jax.jit(lambda inputs: model.apply(variables, inputs)), answer


def test_a_piece_scores_what_it_scores_alone(parts, trained):
    """Whatever stands beside it, or before it in its row."""
    data, (apply, answer) = dataset(parts), trained
    items = data.items(answer(data.test.batches))
    assert items.counts.tolist() == [count - 1 for count in LENGTHS['test']]
    alone = np.zeros((len(parts['test']), max(LENGTHS['test']), 88), np.float32)
    for row, piece in zip(alone, parts['test'], strict=True):
        row[: len(piece)] = piece
    logits = np.asarray(apply(jnp.asarray(alone)), np.float64)
    for row, piece, total in zip(logits, parts['test'], items.totals, strict=True):
        forecast = row[: len(piece) - 1]
        assert total == pytest.approx(np.logaddexp(0, np.where(piece[1:], -forecast, forecast)).sum(), rel=1e-5)


def test_the_score_is_that_of_the_items(parts, trained):
    data, (apply, answer) = dataset(parts), trained
    batch = jax.tree.map(lambda x: x[0], data.test.batches)
    items = data.items(answer(data.test.batches))
    loss = data.loss_fn(apply(batch.inputs), batch)['loss']
    assert data.metric.value(items.totals.sum(), items.counts.sum()) == pytest.approx(float(loss.compute()), rel=1e-5)


def test_baselines_have_the_items_of_the_test(parts, trained):
    data, (_, answer) = dataset(parts), trained
    for forecast in data.baselines.values():
        assert forecast('test').counts.tolist() == data.items(answer(data.test.batches)).counts.tolist()
        assert forecast('validation').counts.tolist() == [3, 8]


@pytest.mark.parametrize(
    ('name', 'baseline'), [('note frequencies', note_baselines.marginal), ('Markov chain', note_baselines.markov)]
)
def test_baselines_learn_from_validation_before_the_test(parts, name, baseline):
    found = dataset(parts).baselines[name]
    expected = baseline(parts['train'], parts['validation'])
    np.testing.assert_array_equal(found('validation').totals, expected.totals)
    expected = baseline([*parts['train'], *parts['validation']], parts['test'])
    np.testing.assert_array_equal(found('test').totals, expected.totals)
    assert (expected.totals != baseline(parts['train'], parts['test']).totals).all()


def rows_of(prediction_inputs, answer):
    columns, rows = prediction_inputs.table(answer(prediction_inputs.batches))
    return [dict(zip(columns, row, strict=True)) for row in rows]


@pytest.mark.parametrize('chosen', [['test'], ['train', 'validation', 'test']])
def test_predictions_for_the_file_are_those_of_its_test_bit_for_bit(parts, trained, chosen):
    data, (_, answer) = dataset(parts), trained
    found = rows_of(
        polyphonic_music.prediction_inputs({part: parts[part] for part in chosen}, data.preprocessing['steps']), answer
    )
    assert len(found) == sum(len(piece) - 1 for part in chosen for piece in parts[part])
    assert [row for row in found if row['split'] == 'test'] == rows_of(data.test, answer)


def test_a_row_tells_of_a_frame_what_sounds_and_what_was_forecast(parts, trained):
    data, (apply, answer) = dataset(parts), trained
    found = rows_of(data.test, answer)
    logits = apply(jnp.asarray(parts['test'][1][None, :-1], jnp.float32))[0]
    assert [(row['piece'], row['frame']) for row in found][8:10] == [(2, 2), (2, 3)]
    for row, frame, forecast in zip(found[8:10], parts['test'][1][1:], np.asarray(logits), strict=True):
        assert row['sounding'] == polyphonic_music.as_text(frame) and row['forecast'] == polyphonic_music.as_text(
            forecast > 0
        )
        assert row['nll'] == pytest.approx(np.logaddexp(0, np.where(frame, -forecast, forecast)).sum(), rel=1e-4)


def test_a_longer_piece_than_any_of_the_run_is_predicted(parts, trained):
    prediction_inputs = polyphonic_music.prediction_inputs(
        {'test': pieces((40,), 5)}, dataset(parts).preprocessing['steps']
    )
    assert prediction_inputs.batches.mask.shape == (1, 8, 39) and len(rows_of(prediction_inputs, trained[1])) == 39


def test_what_training_knows_already_is_told(parts):
    again = {**parts, 'test': [*parts['test'], parts['train'][0]]}
    assert any('1 of test' in line for line in dataset(again).description)
    assert not any('1 of test' in line for line in dataset(parts).description)


# --- a stream --------------------------------------------------------------------------------------


def test_a_line_is_the_numbers_of_notes_and_is_written_so():
    stream = polyphonic_music.stream()
    for line, notes in (('60 64 67', [39, 43, 46]), ('-', []), (' 108  21 21', [0, 87])):
        frame = stream.parse(line)
        assert frame.dtype == np.float32 and np.flatnonzero(frame).tolist() == notes
        assert (stream.parse(polyphonic_music.as_text(frame)) == frame).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text('0123456789 -.,e\t٣', max_size=12) | st.lists(st.integers(-9, 200)).map(lambda x: ' '.join(map(str, x))))
def test_any_line_is_a_frame_or_a_sentence(line):
    try:
        frame = polyphonic_music.parse(line)
    except UserError as error:
        assert '21 to 108' in str(error)
    else:
        assert frame.shape == (88,) and set(frame.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize('line', ['20', '109', '60,64', '6e1', '60 -', '٦٠', '1' * 99, '60 C4'])
def test_what_is_no_note_is_refused(line):
    with pytest.raises(UserError, match='21 to 108'):
        polyphonic_music.parse(line)


def test_the_next_frame_and_its_likeliest_notes_are_told():
    logits = np.full(88, -1e4)
    logits[[39, 46, 43]] = 2.0, 1.0, -1.0
    assert list(polyphonic_music.stream().values(logits, np.zeros(88)))[0] == '60 67'
    told = [pair.split(':') for pair in polyphonic_music.stream().values(logits, np.zeros(88))[1].split()]
    assert [note for note, _ in told] == ['60', '67', '64', '21', '22', '23']
    shares = [float(share) for _, share in told]
    np.testing.assert_allclose(shares[:3], 1 / (1 + np.exp(-logits[[39, 46, 43]])), rtol=1e-12)
    assert shares[3] < 1e-30


# --- the kind --------------------------------------------------------------------------------------


def test_the_kind_reads_a_file_and_predicts_a_part_of_it(parts, tmp_path):
    io = pytest.importorskip('scipy.io', reason='.mat files need SciPy: pip install "seqjax[data]"')
    held = {}
    for part, key in (('train', 'traindata'), ('validation', 'validdata'), ('test', 'testdata')):
        held[key] = np.empty((1, len(parts[part])), object)
        held[key][0] = parts[part]
    path = str(tmp_path / 'rolls.mat')
    io.savemat(path, held)
    flags = flag_tables.check(music.EXPERIMENT.OWN, music.EXPERIMENT.own_defaults, music.EXPERIMENT.own_defaults)
    data = music.EXPERIMENT.dataset(Settings.of({**flags, 'data': path, 'batch_size': 2, 'seed': 3}))
    assert data.name == 'rolls.mat' and data.spec == music.EXPERIMENT.spec(data.preprocessing)
    for part, count in (('test', 1), ('validation', 1), ('all', 3)):
        batches = music.EXPERIMENT.prediction_inputs(Settings.of({}), data.preprocessing, path, part).batches
        assert len(batches.mask) == count
    assert (batches.targets[-1] == data.test.batches.targets[0]).all()
    io.savemat(path, {'validdata': held['validdata']})
    batches = music.EXPERIMENT.prediction_inputs(Settings.of({}), data.preprocessing, path, 'all').batches
    assert len(batches.mask) == 1
    with pytest.raises(UserError, match='testdata'):
        music.EXPERIMENT.prediction_inputs(Settings.of({}), data.preprocessing, path, 'test')
    with pytest.raises(UserError, match='traindata'):
        music.EXPERIMENT.dataset(Settings.of({**flags, 'data': path, 'batch_size': 2, 'seed': 3}))


def test_a_window_that_no_memory_holds_is_refused():
    with pytest.raises(UserError, match='--window=2000000000'):
        music.EXPERIMENT.run(data='rolls.mat', window=2_000_000_000)


def test_published_pieces_are_looked_at_and_fill_most_of_their_rows():
    path = Path(__file__).parent.parent.parent.parent / 'shared' / 'data' / 'Nottingham.mat'
    if not path.exists():
        pytest.skip(f'{path} is not here')
    pytest.importorskip('scipy.io', reason='.mat files need SciPy: pip install "seqjax[data]"')
    data = music.EXPERIMENT.dataset(
        Settings.of({'data': str(path), 'batch_size': 16, 'window': 64, 'transpose': 0, 'seed': 0})
    )
    assert re.findall(r'[\d,]+\d', data.description[0]) == ['694', '40', '1,788', '255', '175,867']
    assert any('1 of validation' in line and '1 of test' in line for line in data.description)
    for batches in (data.validation, data.test.batches):
        assert batches.mask.shape[1:] == (8, 1792) and batches.mask.mean() > 0.75
