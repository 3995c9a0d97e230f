"""Length generalisation: what is tested is what a model answers at each length, in few compilations."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import training
from seqjax.cli import lengths, task_registry, task_setup
from seqjax.cli.lengths import Lengths
from seqjax.training.success_results import SeedResult, SuccessResults

SHORT = {'longest': 4, 'hidden': 4, 'batch_size': 8, 'steps': 4, 'eval_every': 2, 'num_seeds': 2, 'plot': False}
SHORT |= {'max_test_length': 40, 'num_lengths': 5, 'sequences_per_length': 32}


@pytest.mark.representative(every=3)
@pytest.mark.parametrize('task', ['parity', 'modular_arithmetic', 'anbn'])
def test_a_length_is_tested_on_fresh_sequences_of_that_length(task):
    """By hand: the parameters at the end, on sequences without any padding but their own."""
    experiment = Lengths(task_registry.find(task))
    outcome = lengths.run(task=task, **SHORT, success_threshold=1.0)  # at the goal from the first look on
    assert outcome.evals.shape[1] == 2 and all(seed.sequences == 16 for seed in outcome.seeds)
    settings = experiment.check(SHORT)
    problem, model, built = (
        experiment.synthetic_task(settings.options),
        experiment.make_model(settings.flags),
        experiment.make_task(settings.flags),
    )
    tx = experiment.make_optimizer(settings.flags)
    state = training.init_state(model, built, tx, jax.random.key(1))
    for state, _, _ in training.train(model, built, tx, state, steps=4, steps_per_call=2):
        pass
    tested, right = lengths.curves(outcome.seeds)
    assert tested.tolist() == lengths.select_lengths(problem, settings) and right.shape == (2, len(tested))
    assert task != 'anbn' or not (tested % 2).any()
    draw = jax.jit(problem.draw, static_argnums=2)
    wrong = jax.jit(lambda x: problem.loss_fn(training.apply(model, state, x.inputs), x)['wrong'].compute())
    for length, found in zip(tested.tolist(), right[1], strict=True):
        key = jax.random.fold_in(jax.random.key(task_setup.SPLITS['validation']), length)
        longest = next(size for size, among in lengths.padded(tested.tolist()).items() if length in among)
        want = 1 - wrong(draw(key, jnp.full(32, length), longest))
        assert abs(found - want) < 0.04  # a sequence of 32 may be undecided


def test_lengths_cover_what_is_trained_on_and_beyond():
    experiment = Lengths(task_registry.find('parity'))
    settings = experiment.check({'longest': 40, 'max_test_length': 500, 'num_lengths': 10})
    found = lengths.select_lengths(experiment.synthetic_task(settings.options), settings)
    assert found[0] == 1 and found[-1] == 500 and {40, 41} <= set(found) and found == sorted(set(found))
    assert (
        experiment.check({'longest': 7}).options['max_test_length'] == 70
        and lengths.training_length(experiment.synthetic_task(settings.options)) == 40
    )


def test_few_shapes_hold_many_lengths():
    among = lengths.padded(range(1, 501))
    assert list(among) == [16, 32, 64, 128, 256, 512]
    for size, held in among.items():
        assert all(size // 2 < length <= size or size == 16 for length in held)
    assert sorted(length for held in among.values() for length in held) == list(range(1, 501))


def test_the_last_line_is_about_lengths_beyond_those_trained_on():
    experiment = Lengths(task_registry.find('parity'))
    settings = experiment.check({'longest': 4, 'max_test_length': 8, 'num_lengths': 3})
    within = {'within/1': 0.5, 'within/4': 0.5}
    seeds = [
        SeedResult(i, None, within | {'beyond/5': a, 'beyond/8': b})
        for i, (a, b) in enumerate([(0.0, 0.01), (0.0, 0.02)])
    ]
    said = experiment.conclusion(
        experiment.synthetic_task(settings.options),
        SuccessResults(seeds, ['loss', 'wrong'], np.zeros((2, 1, 2))),
        settings,
    )
    assert all(part in said for part in ('5 to 8', '99.2% (', '99.5%', '1 of 2'))


@pytest.mark.slow
def test_a_model_that_learned_the_rule_generalises_and_an_untrained_one_does_not(capsys, optimized):
    """Even pairs in some hundred steps, from 10 to 100."""
    how = {
        'longest': 10,
        'max_test_length': 100,
        'num_lengths': 4,
        'sequences_per_length': 64,
        'hidden': 16,
        'batch_size': 64,
        'plot': False,
    }
    good = lengths.run(task='even_pairs', **how, steps=600, eval_every=100, num_seeds=2, learning_rate=0.01)
    assert '2 of 2 seeds' in capsys.readouterr().out.splitlines()[-1]
    bad = lengths.run(task='even_pairs', **how, steps=1, eval_every=1, num_seeds=2)
    assert '0 of 2 seeds' in capsys.readouterr().out.splitlines()[-1]
    assert lengths.curves(good.seeds)[1][:, -1].min() > 0.99 and lengths.curves(bad.seeds)[1][:, -1].max() < 0.8


def test_a_finished_run_is_shown_again_with_its_curve(in_tmp, capsys):
    argv = [f'--{name}={value}' for name, value in SHORT.items() if name != 'plot'] + ['--workdir=w']
    assert lengths.main([*argv, '--task=parity']) == 0
    out, folder = capsys.readouterr().out, in_tmp / 'w'
    assert (folder / 'curve.png').is_file() and json.loads((folder / 'summary.json').read_text())['finished']
    assert lengths.main([*argv, '--task=parity']) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[-1] == out.splitlines()[-1]
    assert lengths.main([*argv, '--task=parity', '--num_lengths=6']) == 2
    assert '--num_lengths=5' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (['--task=adding'], '--task=adding'),
        (['--longest=40', '--max_test_length=40'], '--max_test_length=40'),
        (['--num_lengths=1'], '--num_lengths=1'),
        (['--task=parityy'], '--task=parityy'),
        (['--train_all_steps'], '--train_all_steps'),
    ],
)
def test_a_mistake_ends_in_a_sentence(flags, words, in_tmp, capsys):
    assert lengths.main([*flags, '--noplot']) == 2
    err = capsys.readouterr().err
    assert words in err.replace('flag --num_lengths', '--num_lengths') and err.count('\n') == 1
