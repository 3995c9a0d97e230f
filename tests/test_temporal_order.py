"""Temporal order: its sequences, its score, and the experiment through both doors."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import launch, temporal_order
from seqjax import optim, train
from seqjax.files import UserError
from seqjax.initializers import GATE_BIASES
from seqjax.layers import RNN
from seqjax.linear import MinGRUCell
from seqjax.models import CELLS
from seqjax.task import Batch
from seqjax.tasks.temporal_order import SYMBOLS, longest, sample, score
from seqjax.tasks.temporal_order import temporal_order as task_of

SHORT = {'length': 10, 'hidden': 4, 'steps': 6, 'every': 3, 'replicas': 2, 'picture': False}


# --- the task --------------------------------------------------------------------------------------


@pytest.mark.parametrize('length', [10, 37, 100])
def test_sequences_are_those_of_the_source(length):
    """Lengths, places and symbols by their ranges, both ends of each drawn; the answer is what stands there."""
    batch = jax.device_get(sample(jax.random.key(0), 4000, length))
    values, lengths, mask, resets = batch.inputs
    assert values.shape == (4000, longest(length), 8) and mask is None and resets is None and batch.mask.all()
    np.testing.assert_array_equal(values.sum(-1), 1)
    tenth = length // 10
    assert set(lengths) == set(range(length, length + tenth + 1))
    symbols = np.array(list(SYMBOLS))[values.argmax(-1)]
    assert (symbols[:, 0] == 'E').all() and (symbols[np.arange(4000), lengths - 1] == 'B').all()
    inside = np.arange(longest(length)) < lengths[:, None] - 1
    inside[:, 0] = False
    relevant = np.isin(symbols, ['X', 'Y'])
    assert (relevant.sum(1) == 2).all() and not (relevant & ~inside).any()
    assert set(symbols[inside & ~relevant]) == set('abcd')
    first, second = relevant.argmax(1), longest(length) - 1 - relevant[:, ::-1].argmax(1)
    assert set(first) == set(range(tenth, 2 * tenth + 1))
    assert set(second) == set(range(length // 2, length // 2 + tenth + 1))
    pairs = symbols[np.arange(4000), first] + symbols[np.arange(4000), second]
    np.testing.assert_array_equal(np.array(['XX', 'XY', 'YX', 'YY'])[batch.targets], pairs)
    assert np.abs(np.bincount(batch.targets) / 4000 - 0.25).max() < 0.03


def test_too_short_a_length_is_refused():
    with pytest.raises(ValueError, match='length=9 must be at least 10'):
        sample(jax.random.key(0), 1, 9)


def test_right_is_within_three_tenths_of_every_target():
    """Probabilities .71 .29 0 0 are right and .69 .31 0 0 are not; nor is NaN, nor the largest of an even spread."""
    probabilities = np.array([[0.71, 0.29], [0.69, 0.31], [0.29, 0.71], [np.nan, 1], [0.5, 0.5]])
    logits = np.log(np.pad(probabilities, [(0, 0), (0, 2)], constant_values=1e-9))
    batch = Batch(None, jnp.zeros(5, int), jnp.ones(5, bool))
    found = score(jnp.asarray(logits, jnp.float32), batch)['wrong']
    assert (found.total, found.count) == (4, 5)
    assert score(jnp.asarray(logits, jnp.float32), batch._replace(mask=jnp.arange(5) < 2))['wrong'] == (1, 2)


def test_no_batch_is_drawn_twice():
    task = task_of(RNN(MinGRUCell(4)), length=10, batch_size=8)
    batches = [task.batch((), jax.random.key(seed), 0).inputs.values for seed in range(20)]
    assert len({np.asarray(batch).tobytes() for batch in batches}) == 20


# --- the experiment --------------------------------------------------------------------------------


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, 'keep_compiled', lambda: None)
    return tmp_path


@pytest.mark.parametrize(('name', 'right'), [('temporal_order_chrono', True), ('temporal_order_forget_bias', False)])
def test_a_flagfiles_claim_holds(name, right, capsys, optimized):
    """A short version of each: of four seeds within 10,000 sequences at least three are right, or none."""
    argv = [f'--flagfile={name}', '--replicas=4', '--steps=625', '--nopicture']
    seeds = temporal_order.run(**launch.parse(temporal_order.FLAGS, launch.default_values(temporal_order.run), argv))
    found = [seed for seed in seeds if seed.sequences is not None]
    assert len(found) >= 3 if right else not found
    assert all(seed.wrong <= 25 for seed in found)
    assert all(seed.wrong > 250 for seed in seeds if seed.sequences is None)
    assert f'{len(found)} of 4 seeds' in capsys.readouterr().out.splitlines()[-1]


def test_a_run_by_hand_gives_the_same_errors(in_tmp):
    """The looks at the validation sequences, of each seed by itself through `train.train`."""
    temporal_order.run(**SHORT, workdir='w', seed=7)
    with (in_tmp / 'w/errors.csv').open() as lines:
        rows = [{name: int(value) for name, value in row.items()} for row in csv.DictReader(lines)]
    assert [(row['seed'], row['sequences']) for row in rows] == [(7, 48), (8, 48), (7, 96), (8, 96)]
    layer = temporal_order.make_layer({**SHORT, 'cell': 'lstm', 'gate_bias': 'default', 'parallel': False})
    validation = sample(jax.random.key(temporal_order.VALIDATION_SEED), 256, 10)
    task, tx = task_of(layer, length=10, validation=validation), optim.adam(3e-3, 1e-7)
    for seed in (7, 8):
        state = train.init_state(task, tx, jax.random.key(seed))
        looks = [evals['validation']['wrong'].total for *_, evals in train.train(task, tx, state, steps=6, chunk=3)]
        assert looks == [row['wrong'] for row in rows if row['seed'] == seed]


def test_what_a_run_leaves_and_shows(in_tmp, capsys):
    """A run that is finished is shown again with the same words; another is refused by the flag that differs."""
    argv = [f'--{name}={value}' for name, value in SHORT.items() if name != 'picture']
    assert temporal_order.main([*argv, '--gate_bias=chrono']) == 0
    out = capsys.readouterr().out
    folder = in_tmp / 'runs/temporal_order/lstm/chrono'
    assert sorted(path.name for path in folder.iterdir()) == ['checkpoints', 'curve.png', 'errors.csv', 'summary.json']
    summary = json.loads((folder / 'summary.json').read_text())
    assert summary['finished'] and summary['params'] == 4 * (9 * 4 + 16) + 20
    assert out.splitlines()[-1].startswith('temporal order of length 10, lstm with --gate_bias=chrono: 0 of 2 seeds')
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert temporal_order.main([*argv, '--gate_bias=chrono']) == 0
    again = capsys.readouterr().out
    assert 'shown again' in again and again.splitlines()[-1] == out.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert temporal_order.main([*argv, '--gate_bias=chrono', '--hidden=5']) == 2
    assert 'holds a run with --hidden=4, and this one is with --hidden=5' in capsys.readouterr().err
    (folder / 'errors.csv').write_text('seed,sequences,wrong\n0,a,1\n')
    assert temporal_order.main([*argv, '--gate_bias=chrono']) == 2
    assert 'errors.csv of a finished run cannot be read' in capsys.readouterr().err


def test_same_flags_same_bytes_and_replicas_are_seeds_of_their_own(in_tmp):
    (first, second), (alone,) = (
        temporal_order.run(**SHORT, workdir='a'),
        temporal_order.run(**SHORT | {'seed': 1, 'replicas': 1}, workdir='b'),
    )
    assert second == alone and first.seed == 0
    before = (in_tmp / 'a/errors.csv').read_bytes()
    temporal_order.run(**SHORT, workdir='a', overwrite=True)
    assert (in_tmp / 'a/errors.csv').read_bytes() == before


def test_a_run_that_was_stopped_goes_on_with_what_it_had_found(in_tmp, monkeypatch):
    """Stopped after some looks, by a failure of ours: looks and seeds are as if nothing had happened."""
    settings = SHORT | {'hidden': 16, 'length': 10, 'steps': 1000, 'every': 25, 'gate_bias': 'chrono'}
    straight = temporal_order.run(**settings, workdir='a')
    needed, original = [seed.sequences for seed in straight], temporal_order.Study.look
    assert None not in needed and len(set(needed)) == 2

    def fails(self, part, group, done):
        if done * 16 > min(needed):
            raise ZeroDivisionError
        return original(self, part, group, done)

    monkeypatch.setattr(temporal_order.Study, 'look', fails)
    with pytest.raises(ZeroDivisionError):
        temporal_order.run(**settings, workdir='b', checkpoint_every=25)
    monkeypatch.setattr(temporal_order.Study, 'look', original)
    assert temporal_order.run(**settings, workdir='b', checkpoint_every=70) == straight
    assert (in_tmp / 'b/errors.csv').read_bytes() == (in_tmp / 'a/errors.csv').read_bytes()


def test_training_stops_where_all_seeds_are_right(in_tmp):
    """At length 10 that is far before the end; no look follows the last that was needed."""
    settings = SHORT | {'hidden': 16, 'length': 10, 'steps': 3000, 'every': 25, 'gate_bias': 'chrono'}
    seeds = temporal_order.run(**settings, workdir='w')
    needed = [seed.sequences for seed in seeds]
    assert None not in needed and max(needed) < 3000 * 16 and all(seed.wrong < 100 for seed in seeds)
    with (in_tmp / 'w/errors.csv').open() as lines:
        rows = list(csv.DictReader(lines))
    assert int(rows[-1]['sequences']) == max(needed)
    for seed in seeds:  # the first look without an error
        right = [int(row['sequences']) for row in rows if int(row['seed']) == seed.seed and row['wrong'] == '0']
        assert min(right) == seed.sequences


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (['--cell=lstmm'], '--cell=lstmm must be one of lstm, gru, simple, mingru, minlstm, lru, rglru; did you mean'),
        (['--length=9'], '--length=9 must be a whole number from 10'),
        (
            ['--parallel'],
            '--cell=lstm --hidden=32 --gate_bias=default --parallel=True do not go together: parallel=True',
        ),
        (['--cell=simple', '--gate_bias=chrono'], '--gate_bias=chrono --parallel=False do not go together: bias_init='),
        (['--hidden=1', '--gate_bias=uniform'], 'needs features of at least 2'),
        (['--hidden=100000000'], 'would need about'),
        (['--matmul_precision=float16'], '--matmul_precision=float16 must be one of default, high, highest'),
        (['--seed=4294967295'], 'ends at seed 4294967304'),
        (['--learning_rate=3e38', '--steps=50', '--length=10', '--replicas=1'], 'try a smaller --learning_rate'),
    ],
)
def test_a_mistake_ends_in_a_sentence_and_exit_code_2(flags, words, in_tmp, capsys):
    assert temporal_order.main([*flags, '--nopicture']) == 2
    err = capsys.readouterr().err
    assert words in err.replace('flag ', '') and err.count('\n') == 1


@pytest.mark.parametrize('cell', CELLS)
@pytest.mark.parametrize('gate_bias', ['default', *GATE_BIASES])
def test_every_cell_is_made_or_refused_in_a_sentence(cell, gate_bias):
    """Those without a gate that keeps have no bias of it; the others have it."""
    settings = {'cell': cell, 'hidden': 4, 'length': 20, 'gate_bias': gate_bias, 'parallel': False}
    if gate_bias != 'default' and cell in ('simple', 'lru', 'rglru'):
        with pytest.raises(UserError, match=f'--gate_bias={gate_bias} --parallel=False do not go together: bias_init'):
            temporal_order.make_layer(settings)
    else:
        temporal_order.make_layer(settings)


def test_both_forms_of_a_linear_cell_find_the_same(in_tmp):
    want = temporal_order.run(**SHORT, cell='mingru')
    assert temporal_order.run(**SHORT, cell='mingru', parallel=True) == want


def test_python_refuses_with_a_value_error():
    with pytest.raises(UserError, match='--replicas=0 must be a whole number from 1'):
        temporal_order.run(replicas=0)
    assert issubclass(UserError, ValueError)


def test_matmul_precision_reaches_the_products():
    """By the compiled program; `default` leaves what JAX was told."""
    x = jnp.ones((2, 3, 8))

    def precisions(word):
        with launch.matmul_precision(word):
            layer = RNN(MinGRUCell(4))
            text = jax.jit(layer.init_with_output).lower(jax.random.key(0), x).as_text()
        return {kind for kind in ('HIGHEST', 'HIGH,', 'HIGH]', 'DEFAULT') if kind in text.replace(' ', '')}

    assert 'HIGHEST' in precisions('highest') and 'HIGHEST' not in precisions('default')
    assert precisions('high') and 'HIGHEST' not in precisions('high')
    with jax.default_matmul_precision('highest'):
        assert 'HIGHEST' in precisions('default')
