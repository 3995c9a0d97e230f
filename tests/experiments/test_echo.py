"""Echo: the task, both ways to feed it; and the experiment, which goes on in another process bit for bit."""

import json

import jax
import numpy as np
import pytest

from benchmarks import soak
from experiments import echo as experiments_echo
from seqjax import training
from seqjax.cli import command_line
from seqjax.config import ModelConfig
from seqjax.errors import UserError
from seqjax.nn.build import build_model
from seqjax.tasks import echo
from tests.experiments.test_td import command

DELAY, WINDOW = 3, 5


def batches(feed, count, **options):
    """The first batches of a task, as symbols, answers and what counts."""
    task = echo.echo(feed, delay=DELAY, window=WINDOW, batch_size=2, length=24, **options)
    for step in range(count):
        batch = task.batch(task.data, jax.random.key(0), step)
        symbols = batch.inputs.values if feed == 'stream' else batch.inputs
        yield np.asarray(symbols), np.asarray(batch.targets), np.asarray(batch.mask), batch.inputs


def test_an_answer_is_the_symbol_of_some_steps_before():
    for delay in (0, 1, 4):
        symbols, answers = echo.series(5, 50, delay)
        np.testing.assert_array_equal(answers[delay:], symbols[: 50 - delay])
        assert symbols.min() == 0 and symbols.max() == 7


def test_a_stream_hands_on_all_that_its_rows_have():
    """Two rows of 12 steps in windows of 5: read in order, and an answer counts where its row has shown its symbol."""
    symbols, answers = echo.series(0, 24, DELAY)
    got = list(batches('stream', 3))
    for row in range(2):
        seen, given, counts = (np.concatenate([batch[i][row] for batch in got])[:12] for i in range(3))
        np.testing.assert_array_equal(seen, symbols[12 * row : 12 * row + 12])
        np.testing.assert_array_equal(counts, np.arange(12) >= DELAY)
        np.testing.assert_array_equal(given[counts], answers[12 * row : 12 * row + 12][counts])
    assert [bool(inputs.resets.any()) for *_, inputs in got] == [True, False, False]
    assert not any(batch[2][:, 12 % WINDOW :].any() for batch in got[2:])


def test_shuffled_windows_each_stand_alone():
    """Four windows of 5 of 24 symbols, two a step: every epoch all of them; an answer counts within its window."""
    symbols, answers = echo.series(0, 24, DELAY)
    want = {tuple(symbols[i : i + WINDOW]): answers[i : i + WINDOW] for i in range(0, 20, WINDOW)}
    got = list(batches('shuffle', 6))
    for first in (0, 2, 4):
        seen = [tuple(row) for batch in got[first : first + 2] for row in batch[0]]
        assert sorted(seen) == sorted(want)
    for shown, given, counts, _ in got:
        np.testing.assert_array_equal(counts, np.broadcast_to(np.arange(WINDOW) >= DELAY, (2, WINDOW)))
        for row in range(2):
            np.testing.assert_array_equal(given[row], want[tuple(shown[row])])


@pytest.mark.parametrize(
    ('feed', 'options', 'told'),
    [
        ('strem', {}, "feed='strem'"),
        ('shuffle', {'delay': 16}, 'delay=16'),
        ('stream', {'delay': 100, 'length': 100}, 'delay=100'),
        ('stream', {'delay': -1}, 'delay=-1'),
        ('stream', {'length': 10}, 'window=16'),
    ],
)
def test_a_task_without_an_answer_is_refused(feed, options, told):
    with pytest.raises(ValueError, match=told):
        echo.echo(feed, **{'delay': 4, **options})


@pytest.mark.slow
@pytest.mark.parametrize(('feed', 'least'), [('stream', 4), ('shuffle', 3)])
def test_a_flagfiles_claim_holds(feed, least, monkeypatch):
    """A short version: of four seeds at least so many echo, and after one step none names a third rightly."""
    argv = [f'--flagfile=echo_{feed}', '--num_seeds=4', '--noplot']
    values = command_line.parse(experiments_echo.FLAGS, experiments_echo.EXPERIMENT.defaults, argv)
    answers = experiments_echo.run(**values)
    assert sum(right >= experiments_echo.SUCCESS_ACCURACY * answers.count for right in answers.right) >= least
    untrained = experiments_echo.run(**values | {'steps': 1})
    assert all(right < untrained.count / 3 for right in untrained.right)


FLAGS = ('--dropout=0.3', '--layers=2', '--schedule=cosine', '--decay_steps=12', '--clip_norm=0.5', '--hidden=5')
KINDS = {'stream': ('--feed=stream', '--length=300'), 'shuffle': ('--feed=shuffle', '--num_seeds=3', '--length=300')}


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_ten_steps_are_five_and_a_new_process_and_five(kind, tmp_path):
    """With truncated backpropagation or shuffled epochs, dropout, a schedule and clipping, and another chunk size."""
    flags = [*KINDS[kind], *FLAGS, '--window=8', '--batch_size=4', '--noplot']
    for folder, steps, steps_per_call in (('straight', 10, 5), ('parts', 5, 5), ('parts', 10, 2)):
        own = [
            f'--workdir={tmp_path / folder}',
            f'--steps={steps}',
            f'--steps_per_call={steps_per_call}',
            '--checkpoint_every=4',
        ]
        done = command(*flags, *own, module='echo')
        assert done.returncode == 0, done.stderr
    assert 'step 5 ' in done.stdout
    soak.compare(tmp_path / 'parts', tmp_path / 'straight')
    held, straight = (json.loads((tmp_path / name / 'summary.json').read_text()) for name in ('parts', 'straight'))
    assert held['answers'] == straight['answers'] and held['last_loss'] == straight['last_loss']


def test_what_does_not_go_together_is_told(tmp_path):
    with pytest.raises(UserError, match='--feed=shuffle --delay=20'):
        experiments_echo.run(feed='shuffle', delay=20)
    with pytest.raises(UserError, match='--dropout=0.1.*--layers=1'):
        experiments_echo.run(dropout=0.1)
    with pytest.raises(UserError, match='--schedule=cosine.*--decay_steps=None'):
        experiments_echo.run(schedule='cosine')


def test_the_carry_of_a_stream_is_part_of_what_is_saved(tmp_path):
    """The State holds it, so that a run that goes on remembers what lies before its window."""
    task = echo.echo('stream', delay=DELAY, window=WINDOW, batch_size=2, length=24)
    model = build_model(task.spec, ModelConfig(hidden=4))
    tx = experiments_echo.EXPERIMENT.make_optimizer(experiments_echo.EXPERIMENT.defaults)
    state = training.init_state(model, task, tx, jax.random.key(0))
    assert len(jax.tree.leaves(state.variables['carry'])) >= 2
