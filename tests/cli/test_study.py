"""The experiment that every problem has: its flags, what a seed needs, what it leaves, how it goes on."""

import csv
import importlib
import json
import re
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import temporal_order
from seqjax import training, types
from seqjax.cli import run, task_flags, task_registry, task_setup
from seqjax.cli.settings import Settings
from seqjax.cli.task_experiment import TaskExperiment
from seqjax.errors import UserError
from seqjax.nn import initializers, models
from seqjax.ops import windows
from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import Examples, SuccessCriterion, SyntheticTask
from seqjax.training import optimizers, success_results
from seqjax.training.observers import SuccessMonitor
from seqjax.training.success_results import SeedResult
from seqjax.types import Batch, Mean, ModelSpec

SHORT = {'length': 10, 'hidden': 4, 'steps': 6, 'eval_every': 3, 'num_seeds': 2, 'plot': False}
# Reaches its goal in seconds, different seeds at different looks.
LEARNS = SHORT | {
    'hidden': 16,
    'steps': 1500,
    'eval_every': 25,
    'forget_bias_init': 'chrono',
    'learning_rate': 0.01,
    'num_seeds': 3,
}


def first_bit(longest: int = 4, where: Literal['begin', 'end'] = 'begin', noise: float = 0.0) -> SyntheticTask:
    """Names a bit.

    Args:
      longest: bits of
        a string.
      where: the bit stands.
    """
    if longest < 1:
        raise ValueError(f'longest={longest} must be at least 1')

    def sample(key, count):
        bits = jax.random.bernoulli(key, 0.5, (count, longest))
        targets = bits[:, 0 if where == 'begin' else -1].astype(jnp.int32)
        return Batch(bits[..., None].astype(jnp.float32), targets, jnp.ones(count, bool))

    def examples():
        batch = sample(jax.random.key(5), 40)
        parts = [
            jax.tree.map(lambda x, rows=rows: x[rows], batch) for rows in (slice(30), slice(30, 35), slice(35, 40))
        ]
        return Examples(*parts)

    problem = SyntheticTask(
        'a bit',
        sample,
        synthetic.classification,
        ModelSpec('last', 2, features=1),
        reference_losses={'best constant': 0.693},
    )
    return problem._replace(examples=examples) if noise else problem


def argv_of(settings):
    return [f'--no{name}' if value is False else f'--{name}={value}' for name, value in settings.items()]


# --- flags -----------------------------------------------------------------------------------------


def test_the_arguments_of_a_problem_are_flags():
    table, defaults = task_flags.options_of(first_bit)
    assert defaults == {'longest': 4, 'where': 'begin', 'noise': 0.0}
    assert [table[name].parser.parse(text) for name, text in (('longest', '7'), ('where', 'end'), ('noise', '.5'))] == [
        7,
        'end',
        0.5,
    ]
    assert table['longest'].help == 'bits of a string' and table['where'].help == 'the bit stands'
    for name, text in (('longest', '-1'), ('longest', '1.5'), ('where', 'middle'), ('noise', 'x')):
        with pytest.raises(ValueError):
            table[name].parser.parse(text)


def needs(longest: int) -> SyntheticTask: ...


def odd(longest: list = []) -> SyntheticTask: ...  # noqa: B006


def taken(hidden: int = 3) -> SyntheticTask: ...


@pytest.mark.parametrize(('make', 'words'), [(needs, 'needs'), (odd, 'odd'), (taken, 'taken')])
def test_an_argument_that_cannot_be_a_flag_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        TaskExperiment(make)


def test_a_study_gives_both_doors_the_same(in_tmp):
    experiment = TaskExperiment(first_bit, eval_every=2)
    one = experiment.run(longest=3, steps=4, num_seeds=2, workdir='a', plot=False)
    assert experiment.command('').main(['--longest=3', '--steps=4', '--num_seeds=2', '--workdir=b', '--noplot']) == 0
    assert (in_tmp / 'a/evals.csv').read_bytes() == (in_tmp / 'b/evals.csv').read_bytes()
    assert one.evals.shape == (2, 2, 2) and one.metrics == ['loss', 'wrong']


@pytest.mark.parametrize('name', task_registry.NAMES)
def test_every_study_has_help_for_each_of_its_flags(name, capsys):
    experiment = task_registry.find(name)
    module = importlib.import_module(f'experiments.{name}')
    assert module.main(['--helpfull']) == 0
    text = capsys.readouterr().out
    for flag, (_, words, _) in experiment.FLAGS.items():
        assert f'--{flag}=(' in text or f'--[no]{flag}' in text
        assert words != 'argument of the task' and words.split()[0] in text, flag
    assert experiment.name == name and f'experiments.{name} ' in module.__doc__


@pytest.mark.representative(every=17)
@pytest.mark.parametrize('cell', models.CELLS)
@pytest.mark.parametrize('name', task_registry.NAMES)
def test_every_task_takes_every_cell(name, cell):
    """In two layers, in both directions where that is no cheat, with dropout, clipping and a schedule."""
    experiment = task_registry.find(name)
    problem = experiment.synthetic_task(experiment.defaults)
    flags = {'cell': cell, 'hidden': 4, 'layers': 2, 'dropout': 0.5, 'bidirectional': not problem.spec.causal}
    settings = experiment.check(flags | {'clip_norm': 1.0, 'schedule': 'cosine', 'decay_steps': 10})
    task = experiment.make_task(settings.flags)
    inputs = types.batch_shapes(task).inputs
    model = experiment.make_model(settings.flags)
    outputs = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], inputs)
    assert outputs.shape[0] == settings.train.batch_size and outputs.shape[-1] == problem.spec.outputs


@pytest.mark.representative(every=7)
@pytest.mark.parametrize('name', task_registry.NAMES)
def test_every_task_trains_and_is_tested(name, capsys):
    """Two steps of a small model; the scores of what it never saw are numbers."""
    experiment = task_registry.find(name)
    outcome = experiment.run(hidden=4, batch_size=4, steps=2, eval_every=1, num_seeds=1, plot=False)
    assert outcome.evals.shape == (1, 2, len(outcome.metrics)) and np.isfinite(outcome.evals).all()
    assert set(outcome.seeds[0].test) == set(outcome.metrics) >= {'loss', 'wrong'}
    assert all(np.isfinite(x) for x in outcome.seeds[0].test.values())
    assert '1 seed' in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize('cell', models.CELLS)
@pytest.mark.parametrize('forget_bias_init', ['default', *initializers.GATE_BIASES])
def test_every_cell_is_made_or_refused_in_a_sentence(cell, forget_bias_init):
    """Those without a gate that keeps have no bias of it; the others have it."""
    experiment = temporal_order.EXPERIMENT
    settings = experiment.defaults | {'cell': cell, 'hidden': 4, 'length': 20, 'forget_bias_init': forget_bias_init}
    spec, config = experiment.synthetic_task(settings).spec, Settings.of(settings).model
    if forget_bias_init != 'default' and cell in ('simple', 'lru', 'rglru'):
        with pytest.raises(UserError, match=f'--hidden=4 --forget_bias_init={forget_bias_init}'):
            task_setup.make_model(spec, config)
    else:
        task_setup.make_model(spec, config)


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (['--cell=lstmm'], '--cell=lstmm'),
        (['--length=9'], '--length=9 --relevant=two'),
        (['--parallel'], '--parallel=True'),
        (
            ['--attention=dot'],
            '--attention=dot',
        ),
        (['--dropout=0.5'], '--dropout=0.5'),
        (['--steps=100', '--eval_every=30'], '--eval_every=30'),
        (['--eval_every=7000'], '--eval_every=7000'),
        (['--schedule=cosine'], '--schedule=cosine --decay_steps=None'),
        (['--hidden=1', '--forget_bias_init=uniform'], 'features'),
        (['--hidden=100000000'], '--hidden=100000000'),
        (['--length=100000000'], '--length=100000000'),
        (['--matmul_precision=float16'], '--matmul_precision=float16'),
        (['--seed=4294967295'], '4294967304'),
        (['--keep_best=accuracy', '--length=10'], '--keep_best=accuracy'),
        (
            ['--learning_rate=3e38', '--steps=50', '--eval_every=1', '--length=10', '--num_seeds=1'],
            '--learning_rate',
        ),
    ],
)
def test_a_mistake_ends_in_a_sentence_and_exit_code_2(flags, words, in_tmp, capsys):
    assert temporal_order.main([*flags, '--noplot']) == 2
    err = capsys.readouterr().err
    assert words in err.replace('flag ', '') and err.count('\n') == 1


def test_a_model_that_would_see_the_answers_is_refused():
    with pytest.raises(UserError, match='--bidirectional'):
        task_registry.find('copy_memory').run(bidirectional=True, steps=1, num_seeds=1, batch_size=1)


def test_chrono_needs_a_problem_that_says_how_long():
    with pytest.raises(UserError, match='--forget_bias_init=chrono'):
        TaskExperiment(first_bit).run(forget_bias_init='chrono')


def test_python_refuses_unknown_names_and_values_with_a_value_error():
    with pytest.raises(UserError, match='--num_seeds=0'):
        temporal_order.run(num_seeds=0)
    with pytest.raises(UserError, match='--lenght.*--length'):
        temporal_order.run(lenght=10)
    assert issubclass(UserError, ValueError)


# --- what a seed needs -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """A run that nothing stopped, and its table."""
    folder = tmp_path_factory.mktemp('straight') / 'a'
    return temporal_order.run(**LEARNS, workdir=str(folder)), (folder / 'evals.csv').read_bytes()


def test_a_run_by_hand_gives_the_same(in_tmp):
    """The looks, of each seed by itself through `training.train`; and the test, on the sequences of its split."""
    experiment = temporal_order.EXPERIMENT
    outcome = experiment.run(**SHORT, seed=7, split='test')
    settings = experiment.defaults | SHORT
    model, task, tx = experiment.make_model(settings), experiment.make_task(settings), optimizers.adam(3e-3, 1e-7)
    batch = experiment.synthetic_task(settings).sample(
        jax.random.key(task_setup.SPLITS['test']), task_setup.NUM_EVAL_SEQUENCES
    )
    for i, seed in enumerate(outcome.seeds):
        state, looks = training.init_state(model, task, tx, jax.random.key(7 + i)), []
        for state, metrics, _ in training.train(model, task, tx, state, steps=6, steps_per_call=3):
            looks.append([metrics[name].total.sum() / metrics[name].count.sum() for name in ('loss', 'wrong')])
        np.testing.assert_allclose(outcome.evals[i], looks, rtol=1e-5)
        found = task.loss(training.apply(model, state, batch.inputs), batch)
        for name, mean in found.items():
            assert abs(seed.test[name] - mean.compute()) < 1e-5
        assert seed.seed == 7 + i and seed.sequences is None


def test_the_splits_are_different_sequences():
    one, other = (
        TaskExperiment(first_bit).run(steps=2, eval_every=1, num_seeds=1, split=name, plot=False)
        for name in task_setup.SPLITS
    )
    assert one.evals.tobytes() == other.evals.tobytes() and one.seeds != other.seeds


def test_training_stops_where_all_seeds_are_at_the_goal(straight):
    """Far before the end; the number of sequences is that of the first look without an error."""
    outcome, _ = straight
    needed = [seed.sequences for seed in outcome.seeds]
    assert None not in needed and len(set(needed)) > 1 and max(needed) < 1500 * 16 / 2
    assert outcome.evals.shape[1] * 25 * 16 == max(needed)
    for seed, looks in zip(outcome.seeds, outcome.evals, strict=True):
        wrong = looks[:, outcome.metrics.index('wrong')]
        assert (np.flatnonzero(wrong == 0)[0] + 1) * 25 * 16 == seed.sequences and seed.test['wrong'] < 0.05


def test_to_the_end_trains_all_steps_and_tests_there(straight):
    first, second = straight[0], temporal_order.run(**LEARNS | {'steps': 600}, train_all_steps=True)
    assert [seed.sequences for seed in first.seeds] == [seed.sequences for seed in second.seeds]
    assert second.evals.shape[1] == 600 // 25 > first.evals.shape[1]
    np.testing.assert_array_equal(second.evals[:, : first.evals.shape[1]], first.evals)
    assert first.seeds[0].test['loss'] > second.seeds[0].test['loss']


def test_until_moves_the_goal(straight):
    early, (late, _) = temporal_order.run(**LEARNS, success_threshold=0.5), straight
    assert all(a.sequences < b.sequences for a, b in zip(early.seeds, late.seeds, strict=True))
    for seed, looks in zip(early.seeds, early.evals, strict=True):
        wrong = looks[:, early.metrics.index('wrong')]
        assert (np.flatnonzero(wrong <= 0.5)[0] + 1) * 25 * 16 == seed.sequences


def test_a_goal_may_be_of_another_metric():
    """NaN reaches none."""

    def make() -> SyntheticTask:
        def score(outputs, batch):
            half = Mean(jnp.float32(1), jnp.float32(2))
            nan = Mean(jnp.float32(jnp.nan), jnp.float32(1))
            return {'loss': outputs.sum() * 0 + half.total, 'half': half, 'nan': nan, 'wrong': half} | {
                'loss': Mean((outputs**2).sum(), jnp.float32(outputs.size))
            }

        return first_bit()._replace(loss_fn=score, success=SuccessCriterion(0.5, 'half'))

    how = {'steps': 2, 'eval_every': 1, 'num_seeds': 1, 'plot': False, 'batch_size': 2}
    assert TaskExperiment(make).run(**how).seeds[0].sequences == 2

    def never() -> SyntheticTask:
        return make()._replace(success=SuccessCriterion(0.5, 'nan'))

    assert TaskExperiment(never).run(**how).seeds[0].sequences is None


def test_examples_are_read_in_epochs_and_the_split_is_never_trained_on():
    """Each epoch has every example once; the last batch of one counts what is there."""
    experiment = TaskExperiment(first_bit)
    settings = experiment.defaults | {'noise': 1.0, 'batch_size': 8}
    task, examples = experiment.make_task(settings), first_bit(noise=1.0).examples()
    for epoch in range(2):
        rows = []
        for step in range(4 * epoch, 4 * epoch + 4):
            batch = task.batch(task.data, jax.random.key(0), step)
            want, real = windows.epoch_rows(task.data[0], step, 30, 8)
            np.testing.assert_array_equal(batch.inputs, examples.train.inputs[want])
            np.testing.assert_array_equal(batch.mask, real)
            rows += np.asarray(want)[np.asarray(real)].tolist()
        assert sorted(rows) == list(range(30))
    outcome = experiment.run(noise=1.0, batch_size=8, steps=4, eval_every=4, num_seeds=1, split='test', plot=False)
    assert round(outcome.seeds[0].test['wrong'] * 5, 4) in range(6)


# --- what a run leaves -----------------------------------------------------------------------------


def test_what_a_run_leaves_and_shows(in_tmp, capsys):
    """A run that is finished is shown again with the same words; another is refused by the flag that differs."""
    argv = [*argv_of(SHORT), '--plot', '--forget_bias_init=chrono', '--workdir=runs/temporal_order/lstm']
    assert temporal_order.main(argv) == 0
    out = capsys.readouterr().out
    folder = in_tmp / 'runs/temporal_order/lstm'
    assert sorted(path.name for path in folder.iterdir()) == ['checkpoints', 'curve.png', 'evals.csv', 'summary.json']
    summary = json.loads((folder / 'summary.json').read_text())
    assert summary['finished'] and summary['params'] == 4 * (9 * 4 + 16) + 20 and summary['seconds'] > 0
    assert re.search(r'\b10\b.*lstm\(4\): 0 of 2', out.splitlines()[-1])
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert temporal_order.main(argv) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[-1] == out.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert temporal_order.main([*argv, '--hidden=5']) == 2
    assert '--hidden=4' in capsys.readouterr().err
    for text in ('seed,sequences,loss,wrong\n0,a,1,1\n', 'seed\n', 'seed,sequences,loss,wrong\n9,48,1,1\n', ''):
        (folder / 'evals.csv').write_text(text)
        assert temporal_order.main(argv) == 2
        assert 'evals.csv' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('flags', 'rates'),
    [({}, [0.003] * 2), ({'schedule': 'cosine', 'decay_steps': 10, 'learning_rate': 0.01}, [0.0090450850, 0.005])],
)
def test_the_table_has_every_look_of_every_seed(flags, rates, in_tmp):
    """Half a cosine over 10 steps is (1 + cos(pi t / 10)) / 2: steps 2 and 5 are the last before the looks."""
    outcome = temporal_order.run(**SHORT | flags, workdir='w')
    with (in_tmp / 'w/evals.csv').open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(int(row['seed']), int(row['sequences'])) for row in rows] == [(0, 48), (0, 96), (1, 48), (1, 96)]
    for i, name in enumerate(outcome.metrics):
        found = np.array([float(row[name]) for row in rows], np.float32).reshape(2, 2)
        np.testing.assert_array_equal(found, outcome.evals[..., i])
    assert [float(row['learning_rate']) for row in rows] == pytest.approx(rates * 2, rel=1e-6)
    assert outcome.rates == pytest.approx(rates, rel=1e-6)


def test_same_flags_same_bytes_and_replicas_are_seeds_of_their_own(in_tmp):
    both, alone = (
        temporal_order.run(**SHORT, workdir='a'),
        temporal_order.run(**SHORT | {'seed': 1, 'num_seeds': 1}, workdir='b'),
    )
    np.testing.assert_allclose(both.evals[1:], alone.evals, rtol=1e-6)
    before = (in_tmp / 'a/evals.csv').read_bytes()
    temporal_order.run(**SHORT, workdir='a', overwrite=True)
    assert (in_tmp / 'a/evals.csv').read_bytes() == before


@pytest.mark.representative(every=3, first=1)
@pytest.mark.parametrize('eval_every', [25, 70, 1000])
def test_a_run_that_was_stopped_goes_on_with_what_it_had_found(eval_every, straight, in_tmp, monkeypatch):
    """Stopped after a seed was at the goal, by a failure of ours: all is as if nothing had happened."""
    straight, table = straight
    needed, original = [seed.sequences for seed in straight.seeds], SuccessMonitor.run_test

    def fails(self, session, i, states, steps):
        if steps is not None and steps * 16 > min(needed):
            raise ZeroDivisionError
        return original(self, session, i, states, steps)

    monkeypatch.setattr(SuccessMonitor, 'run_test', fails)
    with pytest.raises(ZeroDivisionError):
        temporal_order.run(**LEARNS, workdir='b', checkpoint_every=eval_every)
    monkeypatch.setattr(SuccessMonitor, 'run_test', original)
    again = temporal_order.run(**LEARNS, workdir='b', checkpoint_every=40)
    assert again.seeds == straight.seeds
    assert (in_tmp / 'b/evals.csv').read_bytes() == table
    held = json.loads((in_tmp / 'b/summary.json').read_text())
    assert (held['seconds'] is None) == again.resumed == (eval_every < 1000)


def test_a_run_that_was_stopped_at_its_very_end_is_not_trained_on(straight, in_tmp, monkeypatch):
    """All seeds were at the goal, and only the table was not written yet."""
    (straight, table), original = straight, success_results.write_evals
    monkeypatch.setattr(success_results, 'write_evals', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        temporal_order.run(**LEARNS, workdir='b')
    monkeypatch.setattr(success_results, 'write_evals', original)
    assert temporal_order.run(**LEARNS, workdir='b').seeds == straight.seeds
    assert (in_tmp / 'b/evals.csv').read_bytes() == table


def test_a_seed_that_diverges_is_at_no_goal_and_keeps_its_place(in_tmp):
    """Its test is not finite; files hold that and give it back."""
    seed = SeedResult(3, None, {'loss': float('nan'), 'wrong': 1.0})
    held = json.loads(json.dumps(success_results.to_json(seed), allow_nan=False))
    again = success_results.from_json(held)
    assert again.seed == 3 and again.sequences is None and np.isnan(again.test['loss']) and again.test['wrong'] == 1


def test_mistakes_count_sequences_and_not_steps():
    right = jnp.array([[True, False, False], [True, True, True], [False, False, False], [True, False, True]])
    mask = jnp.array([[True, True, True], [True, True, False], [False, False, False], [True, False, True]])
    assert synthetic.error_rate(right, mask) == (1, 3)


def test_both_forms_of_a_linear_cell_find_the_same(in_tmp):
    want = temporal_order.run(**SHORT, cell='mingru')
    found = temporal_order.run(**SHORT, cell='mingru', parallel=True)
    np.testing.assert_allclose(found.evals, want.evals, rtol=1e-4)


# --- any task --------------------------------------------------------------------------------------


OUTSIDE = """
import sys
from typing import Literal
import jax, jax.numpy as jnp
from seqjax.tasks.synthetic import SyntheticTask, classification
from seqjax.types import Batch, ModelSpec

def my_task(bits: int = 3) -> SyntheticTask:
    def sample(key, count):
        x = jax.random.bernoulli(key, 0.5, (count, bits, 1)).astype(jnp.float32)
        return Batch(x, x[:, 0, 0].astype(int), jnp.ones(count, bool))
    return SyntheticTask('my task', sample, classification, ModelSpec('last', 2, features=1))

def no_task() -> int:
    return 3

number = 3

def needs(bits: int) -> SyntheticTask: ...
def negative(bits: int = -1) -> SyntheticTask: ...
def many(*words: int) -> SyntheticTask: ...
def numbered(bits: Literal[1, 2] = 1) -> SyntheticTask: ...
def unknown_type(bits: 'Nowhere' = 1) -> SyntheticTask: ...
def help(help: bool = True) -> SyntheticTask: ...

def raises() -> SyntheticTask:
    return {}['nothing']

def exits() -> SyntheticTask:
    sys.exit(3)

def unshaped() -> SyntheticTask:
    return my_task()._replace(sample=lambda key, count: jnp.ones(count) + jnp.ones(count + 1))

def no_batch() -> SyntheticTask:
    return my_task()._replace(sample=lambda key, count: jnp.ones(count))
"""


def test_a_task_of_another_module_has_flags_and_files(in_tmp, capsys):

    (in_tmp / 'my_module_7.py').write_text(OUTSIDE)
    (in_tmp / 'my.flags').write_text('--task=my_module_7:my_task\n--bits=2\n--steps=2\n--eval_every=1\n--num_seeds=2\n')
    assert run.main(['--flagfile=my.flags', '--noplot']) == 0
    assert 'my task' in capsys.readouterr().out.splitlines()[-1]
    (folder,) = (in_tmp / 'runs/run/my_module_7/my_task').glob('lstm-*')  # with a hash of the flags
    assert (folder / 'evals.csv').is_file()
    assert run.main(['--flagfile=my.flags', '--bits=x']) == 2
    assert '--bits=x' in capsys.readouterr().err.replace('flag ', '')


@pytest.mark.representative(every=3)
@pytest.mark.parametrize(
    ('task', 'words'),
    [
        ('parityy', '--task=parityy'),
        ('no_module_7:x', 'no_module_7'),
        ('my_module_8:x', "'x'"),
        ('my_module_8:number', "'number'"),
        ('my_module_8:no_task', 'no_task'),
        ('my_module_8:needs', 'needs(bits=...)'),
        ('my_module_8:negative', 'negative(bits=...)'),
        ('my_module_8:many', 'many(words=...)'),
        ('my_module_8:numbered', 'numbered(bits=...)'),
        ('my_module_8:unknown_type', 'NameError'),
        ('my_module_8:raises', 'KeyError'),
        ('my_module_8:exits', 'SystemExit'),
        ('my_module_8:unshaped', '2561'),
        ('my_module_8:no_batch', 'Batch'),
        ('my_module_8:help', 'help(help=...)'),
        ('builtins:dict', "'dict'"),
        ('builtins:print', 'print'),
        ('builtins:len', 'len'),
        ('seqjax.tasks.synthetic:SyntheticTask', 'SyntheticTask'),
        ('exits_8:x', 'exits_8'),
        ('my_module_8:my_task()', 'MODULE:FUNCTION'),
        ('my_module_8:my_task:more', 'MODULE:FUNCTION'),
        ('my_module_8:', 'MODULE:FUNCTION'),
        ('a' * 5000 + ':x', '--task'),
        ('../x:y', 'MODULE:FUNCTION'),
        (':', 'MODULE:FUNCTION'),
        ('broken_8:x', 'broken_8'),
    ],
)
def test_what_is_no_task_is_refused_in_a_sentence(task, words, in_tmp, capsys):

    (in_tmp / 'my_module_8.py').write_text(OUTSIDE)
    (in_tmp / 'broken_8.py').write_text('1 / 0')
    (in_tmp / 'exits_8.py').write_text('import sys\nsys.exit(3)')
    assert run.main([f'--task={task}']) == 2
    err = capsys.readouterr().err
    assert words in err and err.count('\n') == 1
