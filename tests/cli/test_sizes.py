"""Sizes: what exceeds the memory is refused before it is taken, by the flags that decide it; what fits is not."""

import re
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import echo, td
from seqjax import training
from seqjax.cli import flag_tables, registry, sweep, task_registry, text
from seqjax.cli.dataset_experiment import Sampling, TrainedModel
from seqjax.cli.settings import Settings
from seqjax.errors import UserError
from seqjax.nn import models
from seqjax.runs import memory
from seqjax.tasks import counting
from seqjax.training import compilation
from seqjax.types import Batch, BestParameters, EarlyStopping, TrainState
from tests.helpers import kinds

GB = 10**9


class Reached(Exception):
    """A run would begin."""


@pytest.fixture
def stopped(in_tmp, monkeypatch):
    """What begins to compile has had its sizes accepted, on a machine of 8 GB."""

    def stop(*args, **kwargs):
        raise Reached

    monkeypatch.setattr(compilation, 'compile_run', stop)
    monkeypatch.setattr('benchmarks.bench.Bench.run', stop)
    monkeypatch.setattr('seqjax.cli.command.use_cores', lambda *_: None)
    monkeypatch.setattr(memory, 'available_bytes', lambda: 8 * GB)


# --- refused before memory is taken ----------------------------------------------------------------


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(
    ('name', 'flags', 'words'),
    [
        ('adding', '--eval_every=1000000000 --steps=1000000000', '--eval_every=1000000000'),
        ('adding', '--eval_every=2147483647 --steps=2147483647', '--eval_every=2147483647'),
        ('adding', '--num_seeds=1000000000', '--num_seeds=1000000000'),
        ('adding', '--length=100000 --batch_size=10000', '--length=100000 .*--batch_size=10000'),
        ('adding', '--length=2147483647', '--length=2147483647'),
        ('adding', '--layers=1000000', '--layers=1000000'),
        ('addition', '--digits=9 --examples=1000000000', '--examples=1000000000'),
        ('anbn', '--longest=1000000000', '--longest=1000000000'),
        ('copy_memory', '--delay=2147483647', '--delay=2147483647'),
        ('cycle_navigation', '--longest=1000000000', '--longest=1000000000'),
        ('cycle_navigation', '--cycle=1000000000', '--cycle=1000000000'),
        ('dyck', '--longest=1000000', '--longest=1000000'),
        ('dyck', '--deepest=1000000000', '--deepest=1000000000'),
        ('dyck', '--kinds=1000000000', '--kinds=1000000000'),
        ('modular_arithmetic', '--modulus=100000', '--modulus=100000'),
        ('recall', '--keys=1000000000', '--keys=1000000000'),
        ('recall', '--values=2147483647', '--values=2147483647'),
        ('reversal', '--longest=1000000000', '--longest=1000000000'),
        ('sorting', '--symbols=1000000000', '--symbols=1000000000'),
        ('sorting', '--longest=100000', '--longest=100000'),
        ('temporal_order', '--length=1000000000', '--length=1000000000'),
        ('lengths', '--max_test_length=1000000000', '--max_test_length=1000000000'),
        ('lengths', '--task=dyck --max_test_length=1000000', '--max_test_length=1000000'),
        (
            'lengths',
            '--max_test_length=100000 --sequences_per_length=100000',
            '--max_test_length=100000 --sequences_per_length=100000',
        ),
        ('lengths', '--num_lengths=1000000000', '--num_lengths=1000000000'),
        ('lengths', '--task=adding', '--task=adding'),
        ('compare', '--hidden=1000000 --tasks=parity', '--hidden=1000000'),
        ('sweep', '--num_seeds=2147483647', '--num_seeds=2147483647'),
        (
            'sweep',
            '--eval_every=1 --epochs=100000 --num_seeds=10000',
            '--num_seeds=10000 .*--epochs=100000 --eval_every=1',
        ),
        ('sweep', '--grid=length:2,1000000000', '--length=1000000000'),
        ('td', '--steps_per_call=2147483647 --epochs=2147483647', '--epochs=2147483647 .*--steps_per_call=2147483647'),
        ('td', '--num_seeds=100000 --epochs=100000', '--epochs=100000 --num_seeds=100000'),
        ('sweep', '--eval_every=1000000000 --epochs=1000000000', '--eval_every=1000000000'),
        ('sweep', '--eval_every=1 --epochs=1000000000 --num_seeds=1', '--epochs=1000000000'),
        ('echo', '--delay=1000000000 --length=2000000000', '--length=2000000000 --delay=1000000000'),
        ('echo', '--window=50000 --batch_size=50000', '--window=50000 --batch_size=50000'),
        ('echo', '--num_seeds=1000000 --steps=1000000', '--steps=1000000 --num_seeds=1000000'),
        ('begin', '--eval_every=1000000000 --steps=1000000000', '--eval_every=1000000000'),
        ('begin', '--hidden=100000', '--hidden=100000'),
        ('begin', '--batch_size=2147483647', '--batch_size=2147483647'),
        ('begin', '--num_seeds=1000000000', '--num_seeds=1000000000'),
        ('bench', '--rows=1000000x1000000x1x1', '--rows=1000000x1000000x1x1'),
        ('bench', '--random=1000000000', '--random=1000000000'),
        ('soak', '--steps=2147483647', '--steps=2147483647'),
    ],
)
def test_sizes_that_no_memory_holds_end_in_a_sentence(name, flags, words, stopped, capsys):
    module = kinds if name == 'begin' else registry.module(name)
    Path('data').write_text('40')
    own = ['--data=data'] if name == 'begin' else []
    assert module.main([*own, *flags.split()]) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1
    assert re.search(words, err), err


def test_a_grid_of_too_many_settings_is_refused_before_it_is_made(stopped):
    values = list(range(1, 1001))
    with pytest.raises(UserError, match='--grid=length.*--grid=hidden'):
        sweep.run(grid={'length': values, 'hidden': values}, plot=False)


# --- what fits is accepted -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'flags'),
    [
        ('td', '--flagfile=many_to_many --num_seeds=1000'),
        ('td', '--epochs=100000000 --hidden=1'),
        ('sweep', '--metric=exact --grid=learning_rate:1e-3,0.1 --epochs=100 --eval_every=5 --num_seeds=1000'),
        ('echo', '--flagfile=echo_stream'),
        ('adding', '--hidden=1024 --length=500 --batch_size=32'),  # replicas of this size take turns
        ('adding', '--flagfile=adding_1000'),
        ('begin', '--patience=200000000'),
        ('begin', '--hidden=1024 --batch_size=128'),
        ('sweep', '--grid=learning_rate:1e-3,3e-3 --num_seeds=50'),
    ],
)
def test_what_runs_today_is_not_refused(name, flags, stopped):
    module = kinds if name == 'begin' else registry.module(name)
    Path('data').write_text('40')
    with pytest.raises(Reached):
        module.main([*(['--data=data'] if name == 'begin' else []), *flags.split()])


def test_patience_is_unlimited():
    """A step is an int32; so many steps of patience are not."""
    state = TrainState(
        jnp.int32(2**31 - 2), None, None, {}, None, BestParameters(jnp.float32(1), jnp.int32(0), None, {})
    )
    for eval_every, patience in ((1, 200_000_000), (500, 200_000_000), (2**31 - 1, 2**31 - 1)):
        assert bool(training.should_stop(EarlyStopping(eval_every, patience), state)) == (
            eval_every * patience <= 2**31 - 2
        )


# --- the estimate ----------------------------------------------------------------------------------


def measured(model, task, tx, chunk, replicas):
    """The estimate of the training steps, and what XLA says of the compiled program."""

    def init(seed):
        return training.init_state(model, task, tx, jax.random.key(seed))

    seeds = jax.ShapeDtypeStruct((replicas,), jnp.uint32)
    state = jax.eval_shape(jax.vmap(init), seeds)
    traced = training.make_train_chunk(model, task, tx, steps_per_call=chunk, replicas=True).trace(
        task.data, task.evals, state, 0
    )
    found = traced.lower().compile().memory_analysis()
    sizes = found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes
    return memory.peak_bytes(traced.jaxpr), sum(sizes)


@pytest.mark.representative(every=2, first=1)
@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        ('adding', {'num_seeds': 2, 'length': 200}),
        ('sorting', {'num_seeds': 1, 'symbols': 2000, 'attention': 'dot'}),
    ],
)
def test_the_estimate_of_a_study_is_that_of_xla(name, settings):
    one = task_registry.find(name)
    flags = one.check(settings).flags
    estimate, real = measured(
        one.make_model(flags), one.make_task(flags), one.make_optimizer(flags), flags['eval_every'], 2
    )
    settings = flags
    assert real / 4 < estimate < 4 * real
    assert real / 16 < 4 * one.sizes(**settings)[0]  # with the unseen sequences; before anything is traced


def test_the_estimate_of_the_first_experiment_is_that_of_xla():
    settings = td.EXPERIMENT.complete(td.EXPERIMENT.defaults) | {'length': 100, 'hidden': 50, 'num_seeds': 50}
    one = td.EXPERIMENT
    estimate, real = measured(one.make_model(settings), one.make_task(settings), one.make_optimizer(settings), 100, 50)
    assert real / 4 < estimate < 4 * real
    assert real / 4 < 4 * one.sizes(**settings)[0] < 4 * real


def test_the_estimate_knows_what_lives_at_once():
    """Three arrays of 4 MB: the argument, and of the others two at a time."""

    def chain(x):
        for _ in range(5):
            x = jnp.sort(x)
        return x

    program = jax.make_jaxpr(chain)(jax.ShapeDtypeStruct((10**6,), jnp.float32))
    assert memory.peak_bytes(program) == 3 * 4 * 10**6


def test_a_program_that_exceeds_the_memory_is_refused_before_it_is_compiled(monkeypatch):
    monkeypatch.setattr(flag_tables, 'check_memory', lambda *_: None)
    monkeypatch.setattr(memory, 'available_bytes', lambda: 10**6)
    with pytest.raises(UserError, match='--hidden=300'):
        td.run(hidden=300, epochs=1, plot=False)
    with pytest.raises(UserError, match='--window=2000'):
        echo.run(window=2000, steps=1, plot=False)


def test_a_program_for_a_gpu_is_not_compared_with_the_memory_of_the_machine(monkeypatch):
    monkeypatch.setattr(memory, 'available_bytes', lambda: 10)
    program = jax.make_jaxpr(jnp.sort)(jnp.zeros(100))
    with pytest.raises(UserError, match='--hidden=3'):
        memory.check({'hidden': 3}, program)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    memory.check({'hidden': 3}, program)


def test_a_container_with_less_memory_than_the_machine(tmp_path, monkeypatch):
    most = memory.available_bytes()
    limit = tmp_path / 'memory.max'
    monkeypatch.setattr(memory, 'CGROUP', (limit, tmp_path / 'none'))
    for text_of_limit, expected in (('max\n', None), ('4096\n', 4096)):
        limit.write_text(text_of_limit)
        assert memory.available_bytes() == expected or (expected is None and memory.available_bytes() >= most)


# --- texts that are written ------------------------------------------------------------------------


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(('length', 'samples'), [(10, 10**9), (10**9, 1), (10**5, 10**5), (2**31 - 1, 2**31 - 1)])
def test_texts_that_no_memory_holds_are_refused(length, samples):
    kind = text.EXPERIMENT
    preprocessing = {'tokenizer': 'characters', 'known': 'ab', 'window': 4}
    spec = kind.spec(preprocessing)
    how = {'cell': 'lstm', 'features': 4, 'vocabulary': spec.vocabulary, 'stateful': True}
    model = models.sequence_model(spec.output, spec.outputs, **how)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
    trained = TrainedModel(
        kind, Settings.of({'hidden': 4}), preprocessing, model, 0, BestParameters(0.0, 0, params, {})
    )
    with pytest.raises(UserError, match=f'--num_samples={samples} --max_new_tokens={length}'):
        kind.write(trained, 'ab', Sampling(length, 1.0, samples, 0))
    assert len(kind.write(trained, 'ab', Sampling(3, 1.0, 2, 0))) == 2


# --- long strings of brackets ----------------------------------------------------------------------


@pytest.mark.parametrize(('longest', 'deepest'), [(1100, 3), (1400, 1), (12, 10)])
def test_the_chances_of_brackets_are_exact_in_strings_of_any_length(longest, deepest):
    """Against fractions: the numbers of walks of over 1,024 steps exceed a float64."""
    ways, table = counting._ways(longest, deepest), counting._chances(longest, deepest)
    for place in (2, longest // 2 // 2 * 2, longest - 2):
        left = [length - place for length in range(max(2, place), longest + 1, 2)]
        weights = {rest: Fraction(1, ways[rest + place][0]) for rest in left}
        opens = sum(ways[rest - 1][1] * weights[rest] for rest in left if rest)
        ends = weights.get(0, Fraction(0))
        expected = np.array([float(opens / (opens + ends)), 0, float(ends / (opens + ends))])
        np.testing.assert_allclose(table[place, 0], expected, rtol=1e-6)
    assert np.isfinite(table).all()


def test_a_long_string_of_brackets_is_drawn():
    problem = counting.dyck(longest=1100, deepest=2)
    batch = problem.sample(jax.random.key(0), 3)
    assert isinstance(batch, Batch) and np.isfinite(problem.reference_losses['entropy floor'])
