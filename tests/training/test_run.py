"""The host half of a run: what a run logs and saves, goes on from, and how it ends."""

import csv
import json
import os
import re
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seqjax import training
from seqjax.errors import UserError
from seqjax.nn import losses as nn_losses
from seqjax.reporting import statistics
from seqjax.runs import directory, signals
from seqjax.runs.checkpoint_manager import CheckpointManager
from seqjax.training import observers, replicas, run_summary
from seqjax.training import programs as training_programs
from seqjax.training.session import CheckpointConfig
from seqjax.types import Batch, Task
from tests.helpers import reference

ROWS, FEATURES = 4, 3
SETTINGS = {'workdir': None, 'overwrite': False, 'seed': 0}
NEVER = 10**6  # a step that no run here reaches


def batch(data, key, step):
    """Targets drawn from the key; from step data['bad'] on not finite, from data['huge'] on far too large."""
    inputs, targets = (
        jax.random.normal(k, (ROWS, n)) for k, n in zip(jax.random.split(key), (FEATURES, 1), strict=True)
    )
    targets = jnp.where(step + 1 >= data['bad'], data['value'], targets)
    return Batch(inputs, jnp.where(step + 1 >= data['huge'], 1e18, targets), jnp.ones(ROWS, bool))


def task_of(bad=NEVER, value=np.nan, huge=NEVER):
    data = {'bad': np.int32(bad), 'value': np.float32(value), 'huge': np.int32(huge)}
    return Task(nn_losses.mean_squared_error, batch, data)


MODEL, TX = nn.Dense(1), optax.sgd(0.1)
INPUTS = np.ones((2, FEATURES), np.float32)


@pytest.fixture(autouse=True, scope='module')
def compiled_once():
    """Lets runs of one model, task and size share their programs, which get the data as an argument."""
    programs, compile_programs = {}, training_programs.compile_programs

    def compiled(model, task, tx, inputs, *, steps_per_call, replicas, shardings, inspect):
        key = model, task.loss, task.batch, tx, steps_per_call, replicas
        assert shardings is None and inputs is INPUTS
        if key not in programs:
            sizes = {'steps_per_call': steps_per_call, 'replicas': replicas}
            programs[key] = compile_programs(model, task, tx, inputs, **sizes, inspect=inspect)
        return programs[key]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(training_programs, 'compile_programs', compiled)
        yield


def run_one(
    folder,
    task=None,
    *,
    model=MODEL,
    steps=10,
    steps_per_call=4,
    save_every=NEVER,
    max_to_keep=100,
    keep_best=None,
    seed=0,
    tx=TX,
    **settings,
):
    """A run of one seed in a folder, or nowhere."""
    settings = {**SETTINGS, 'workdir': folder and str(folder), 'seed': seed, 'steps': steps, **settings}
    how = {
        'steps': steps,
        'steps_per_call': steps_per_call,
        'checkpoints': CheckpointConfig(save_every, max_to_keep, keep_best),
    }
    with directory.open_workdir(settings, 'x') as (workdir, _):
        compiled = training.compile_run(model, task or task_of(), tx, INPUTS, workdir=workdir, **how)
        return training.train_with_losses(compiled, INPUTS, np.array([seed]))


def run_many(
    folder, task=None, *, seeds=(20, 21, 22, 23, 24), steps=10, steps_per_call=4, save_every=NEVER, max_to_keep=100
):
    settings = {**SETTINGS, 'workdir': folder and str(folder), 'steps': steps}
    how = {'steps': steps, 'steps_per_call': steps_per_call, 'checkpoints': CheckpointConfig(save_every, max_to_keep)}
    with directory.open_workdir(settings, 'x') as (workdir, _):
        how |= {'workdir': workdir, 'num_seeds': len(seeds)}
        compiled = training.compile_run(MODEL, task or task_of(), TX, INPUTS, **how)
        return training.train_with_losses(compiled, INPUTS, np.array(seeds))


@pytest.fixture
def threes(monkeypatch):
    """Five seeds are a group of three and one of two."""
    monkeypatch.setattr(replicas, 'MAX_WIDTH', 3)
    monkeypatch.setattr(replicas, 'group_width', lambda *_: 3)


def rows(folder):
    with (folder / 'metrics.csv').open() as file:
        return list(csv.reader(file))


def saved(folder, place=''):
    return CheckpointManager(folder / 'checkpoints' / place).steps()


# --- the log ---------------------------------------------------------------------------------------


def test_metrics_keep_every_bit_of_a_float32():
    """Random bits, subnormal numbers among them, come back from the text as they were, in rows counted from 1."""
    bits = np.random.default_rng(0).integers(0, 2**32, 2000, dtype=np.uint32).view(np.float32)
    values = np.append(bits[np.isfinite(bits)], np.float32([1e-45, 3.4e38, 1 / 3]))
    text = observers.format_rows(1, values[:700]) + observers.format_rows(701, values[700:])
    table = [row.split(',') for row in text.splitlines()]
    assert [int(row[0]) for row in table] == list(range(1, len(values) + 1))
    np.testing.assert_array_equal(np.array([row[1] for row in table], np.float32).view(np.uint32), values.view('u4'))


def test_the_log_is_visible_while_the_run_goes_on(tmp_path, monkeypatch):
    """After every chunk the rows so far are in the file."""
    seen, original = [], training_programs.train

    def watched(*args, **kwargs):
        for part in original(*args, **kwargs):
            yield part
            seen.append(len(rows(tmp_path)) - 1)

    monkeypatch.setattr(training_programs, 'train', watched)
    run_one(tmp_path, steps=10, steps_per_call=4)
    assert seen == [4, 8, 10]


# --- going on --------------------------------------------------------------------------------------


def test_ten_steps_are_five_and_five(tmp_path):
    """The state, the log and the outputs bit for bit, with another chunk and other settings of no number."""
    straight = run_one(tmp_path / 'straight', steps_per_call=10)
    for steps, steps_per_call, save_every in ((5, 4, 2), (6, 3, 100), (10, 1, 7)):
        record = run_one(
            tmp_path / 'parts',
            steps=steps,
            steps_per_call=steps_per_call,
            save_every=save_every,
            max_to_keep=steps_per_call,
        )
    reference.assert_trees_equal((record.losses, record.outputs), (straight.losses, straight.outputs))
    reference.assert_trees_equal(record.state, straight.state)
    assert (tmp_path / 'parts' / 'metrics.csv').read_bytes() == (tmp_path / 'straight' / 'metrics.csv').read_bytes()


@pytest.mark.parametrize(
    ('save_every', 'steps_per_call', 'want'), [(3, 4, [3, 6, 9, 10]), (4, 3, [4, 8, 10]), (NEVER, 4, [10])]
)
def test_it_saves_every_so_many_steps_and_at_the_end(save_every, steps_per_call, want, tmp_path):
    run_one(tmp_path, save_every=save_every, steps_per_call=steps_per_call)
    assert saved(tmp_path) == want


def test_the_newest_and_the_best_stay(tmp_path):
    """Of the metric by name, or with max: the highest; what is not finite is nobody's best."""
    losses = run_one(None).losses
    for best, pick in (('loss', np.argmin), ('min:loss', np.argmin), ('max:loss', np.argmax)):
        folder = tmp_path / best
        run_one(folder, save_every=1, max_to_keep=2, keep_best=best)
        assert saved(folder) == sorted({int(pick(losses)) + 1, 9, 10}), best
    with pytest.raises(UserError, match='--keep_best=los'):
        run_one(tmp_path / 'other', keep_best='los')


def test_another_run_is_not_gone_on_with(tmp_path):
    """Whether summary.json says whose it is or, where that is lost, the checkpoint."""
    run_one(tmp_path, steps=5)
    with pytest.raises(UserError, match='--seed=0.*--seed=1'):
        run_one(tmp_path, seed=1)
    with pytest.raises(UserError, match='--steps=4'):
        run_one(tmp_path, steps=4)
    with pytest.raises(UserError, match=r'params/bias.*float32 \[1\]'):
        run_one(tmp_path, model=nn.Dense(1, use_bias=False))


def test_groups_of_seeds_go_on_each_from_its_own_checkpoint(tmp_path, threes):
    straight = run_many(tmp_path / 'straight')
    for steps, steps_per_call in ((3, 2), (7, 4), (10, 3)):
        record = run_many(tmp_path / 'parts', steps=steps, steps_per_call=steps_per_call, save_every=2)
    reference.assert_trees_equal((record.losses, record.outputs), (straight.losses, straight.outputs))
    assert (tmp_path / 'parts' / 'metrics.csv').read_bytes() == (tmp_path / 'straight' / 'metrics.csv').read_bytes()
    assert saved(tmp_path / 'parts', 'seeds_20_to_22') == [2, 3, 4, 6, 7, 8, 10]
    assert saved(tmp_path / 'parts', 'seeds_23_to_24') == [2, 3, 4, 6, 7, 8, 10]


def test_a_log_that_lost_rows_sends_the_run_back_to_an_earlier_checkpoint(tmp_path, capsys):
    straight = run_one(tmp_path, save_every=2).losses
    whole = (tmp_path / 'metrics.csv').read_bytes()
    (tmp_path / 'metrics.csv').write_bytes(whole[: len(whole) * 3 // 4])
    again = run_one(tmp_path, save_every=2)
    np.testing.assert_array_equal(again.losses, straight)
    assert (tmp_path / 'metrics.csv').read_bytes() == whole
    told = capsys.readouterr().err.splitlines()
    assert all('step 6' in line for line in told) and len(told) == 2
    (tmp_path / 'metrics.csv').unlink()
    with pytest.raises(UserError, match='metrics.csv'):
        run_one(tmp_path, save_every=2)


# --- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('number', 'kind', 'code'), [(signal.SIGTERM, SystemExit, 75), (signal.SIGINT, KeyboardInterrupt, 130)]
)
def test_a_signal_ends_a_run_that_then_goes_on(number, kind, code, tmp_path, monkeypatch, capsys):
    """It finishes its chunk, saves, says how to go on; the same command then ends as if nothing had happened."""
    straight, original = run_one(None), training_programs.train

    def signalled(*args, **kwargs):
        for i, part in enumerate(original(*args, **kwargs)):
            if i == 1:
                os.kill(os.getpid(), number)
            yield part

    monkeypatch.setattr(training_programs, 'train', signalled)
    with pytest.raises(kind) as caught:
        run_one(tmp_path)
    assert signals.exit_code(caught.value) == code
    assert number.name in caught.value.message and 'step 8' in caught.value.message
    assert number.name in capsys.readouterr().err
    assert saved(tmp_path) == [8] and len(rows(tmp_path)) == 9
    monkeypatch.setattr(training_programs, 'train', original)
    reference.assert_trees_equal(run_one(tmp_path).state, straight.state)


def test_without_a_folder_a_signal_is_what_it_always_was(monkeypatch):
    """In a notebook an interrupt ends a run at once."""
    original = training_programs.train

    def signalled(*args, **kwargs):
        yield next(original(*args, **kwargs))
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(training_programs, 'train', signalled)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            run_one(None)
    finally:
        signal.signal(signal.SIGINT, before)


# --- losses that are not finite --------------------------------------------------------------------


@pytest.fixture(scope='module')
def finite():
    """The losses of a run that stays finite."""
    return run_one(None).losses


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(
    ('steps_per_call', 'bad', 'value'),
    [(4, 1, np.nan), (4, 4, np.inf), (4, 5, np.nan), (1, 5, np.nan), (100, 10, np.inf)],
)
def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(steps_per_call, bad, value, finite, tmp_path):
    """Rows up to and with that step stay; the state before it is saved; the sentence names step and gradient."""
    for _ in range(2):  # the same command comes to the same end
        with pytest.raises(UserError, match=f'{value}.*step {bad}.*--learn') as it:
            run_one(tmp_path, task_of(bad, value), steps_per_call=steps_per_call)
        assert re.search(rf'step {bad} .*{value}', str(it.value))
        assert f'step {bad - 1} ' in str(it.value)
        table = rows(tmp_path)
        assert table[0] == ['step', 'loss', 'learning_rate'] and [int(row[0]) for row in table[1:]] == list(
            range(1, bad + 1)
        )
        kept = np.array([row[1] for row in table[1:]], np.float32)
        np.testing.assert_array_equal(kept, [*finite[: bad - 1], value])
        assert saved(tmp_path)[-1] == bad - 1


def test_the_state_that_is_kept_is_finite(tmp_path):
    """An update that overflows spoils the parameters a step before the loss shows it: the step before that is kept."""
    tx = optax.sgd(lambda count: jnp.where(count == 4, 1e25, 0.1))
    with pytest.raises(UserError, match='(nan|inf).*step 6') as caught:
        run_one(tmp_path, task_of(huge=5), tx=tx, steps_per_call=7)
    assert 'step 4 ' in str(caught.value)
    assert re.search(r'step 5 .*\d\.?\d*e\+18', str(caught.value))


def test_without_a_folder_the_sentence_is_the_same_but_for_what_is_kept():
    with pytest.raises(UserError, match='nan.*step 5.* nan.*(kernel|bias)'):
        run_one(None, task_of(5))


def per_seed(data, key, step):
    """As `batch`, not finite for those seeds whose draw says so."""
    found = batch(data, key, step)
    return found._replace(
        targets=jnp.where((jax.random.key_data(key)[0] % 16 == 0) & (step >= 4), jnp.nan, found.targets)
    )


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('steps_per_call', [4, 100])
def test_many_seeds_go_on_while_one_of_a_group_is_finite(steps_per_call, threes, tmp_path):
    """The record holds each loss at its place, diverged ones among them, and metrics.csv their bands."""
    record = run_many(tmp_path, task_of()._replace(batch=per_seed), steps_per_call=steps_per_call)
    assert record.losses.shape == (5, 10) and record.outputs.shape == (5, 2, 1)
    diverged = ~np.isfinite(record.losses).all(axis=1)
    assert 0 < diverged.sum() < 5 and np.isfinite(record.losses[:, :4]).all()
    for i, seed in enumerate(range(20, 25)):
        if not diverged[i]:
            np.testing.assert_allclose(record.losses[i], run_one(None, seed=seed).losses, rtol=1e-5)
    table = rows(tmp_path)
    assert table[0] == ['step', 'loss', 'loss_q0.025', 'loss_q0.25', 'loss_q0.75', 'loss_q0.975', 'learning_rate']
    table = np.array(table[1:], np.float64)
    np.testing.assert_array_equal(table[:, 0], range(1, 11))
    low, q1, median, q3, high = statistics.loss_quantiles(record.losses)
    np.testing.assert_allclose(table[:, 1:-1].T, [median, low, q1, q3, high], rtol=1e-6)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('steps_per_call', [4, 100])
def test_many_seeds_stop_where_a_whole_group_diverged(steps_per_call, threes, tmp_path):
    with pytest.raises(UserError, match='3.* nan.*step 7'):
        run_many(tmp_path, task_of(7), steps_per_call=steps_per_call)
    assert saved(tmp_path, 'seeds_20_to_22')[-1] == 6


# --- the summary -----------------------------------------------------------------------------------


def test_loss_summary():
    """First and last; with replicas the medians over seeds, and the last loss's quantiles, all fit for JSON."""
    losses = np.random.default_rng(2).uniform(1, 2, size=(40, 6)).astype(np.float32)
    assert run_summary.loss_summary(losses[0]) == {'first_loss': float(losses[0, 0]), 'last_loss': float(losses[0, 5])}
    losses[:2, 5] = np.nan
    got = run_summary.loss_summary(losses)
    assert got['first_loss'] == pytest.approx(np.median(losses[:, 0]), rel=1e-6)
    assert got['last_loss'] == got['last_loss_quantiles']['0.5']
    assert got['last_loss_quantiles']['0.25'] == pytest.approx(
        np.quantile(np.nan_to_num(losses[:, 5], nan=9), 0.25), rel=1e-6
    )
    assert list(got['last_loss_quantiles']) == ['0.025', '0.25', '0.5', '0.75', '0.975']
    json.dumps(got, allow_nan=False)
