"""Truncated backpropagation through the one training loop: windows of a stream, the carry in the State."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seqjax import training
from seqjax.nn import losses, models, rnn
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.ops import windows as ops_windows
from seqjax.types import Batch, Sequences, Task
from tests.helpers import reference

V, H, B, T = 7, 6, 3, 4
SERIES = np.random.default_rng(0).integers(0, V, 61)
TX = optax.adam(1e-2)


def rows_of(series, batch=B):
    return ops_windows.stream_rows((series[:-1], series[1:]), batch, T)


def window_batch(rows, key, step):
    (inputs, targets), mask, resets = ops_windows.stream_window(rows, step, T)
    return Batch(Sequences(inputs, mask=mask, resets=resets), targets, mask)


def eval_batches(series, batch):
    """A stream's windows as batches [N, B, ...] of a split."""
    rows = rows_of(series, batch)
    windows = [window_batch(rows, None, step) for step in range(rows.mask.shape[1] // T)]
    # No resets: that evaluation starts anew is not the data's doing.
    windows = [window._replace(inputs=window.inputs._replace(resets=None)) for window in windows]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *windows)


def stream_model(stateful=True):
    return models.sequence_model('per_step', V, features=H, vocabulary=V, layers=2, stateful=stateful)


MODEL, PLAIN = stream_model(), stream_model(stateful=False)
TASK = Task(losses.classification, window_batch, rows_of(SERIES), {'valid': eval_batches(SERIES[:30], 2)})
WINDOWS = TASK.data.mask.shape[1] // T


@functools.cache
def compiled():
    return training.make_train_chunk(MODEL, TASK, TX, steps_per_call=3)


@functools.cache
def start(seed=0):
    return training.init_state(MODEL, TASK, TX, jax.random.key(seed))


def run(state, steps):
    """-> the last state, the metrics of all steps, the evaluations of all chunks."""
    parts = list(training.train(MODEL, TASK, TX, state, steps=steps, steps_per_call=3, train_chunk=compiled()))
    metrics = jax.tree.map(lambda *xs: np.concatenate(xs), *[metrics for _, metrics, _ in parts])
    return parts[-1][0], metrics, [evals for _, _, evals in parts]


def by_hand(steps):
    """The same training with no State, no stream and no windows of ours: the carry is handed on in a Python loop."""
    model, rows = PLAIN, TASK.data
    params = {**start().params}
    params['rnn'] = params['rnn']['rnn']
    opt_state, carry, totals = TX.init(params), None, []

    @jax.jit
    def step(params, opt_state, inputs, targets, mask, carry):
        def loss_fn(params):
            new, logits = model.apply(
                {'params': params}, Sequences(inputs, mask=mask), initial_carry=carry, return_carry=True
            )
            logp = jnp.where(mask, jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0], 0)
            return -logp.sum() / mask.sum(), (new, -logp.sum())

        grads, (new, total) = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = TX.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, new, total

    for n in range(steps):
        place = n % WINDOWS
        carry = None if place == 0 else jax.lax.stop_gradient(carry)
        (inputs, targets), mask = rows.values, rows.mask
        cut = slice(place * T, place * T + T)
        params, opt_state, carry, total = step(params, opt_state, inputs[:, cut], targets[:, cut], mask[:, cut], carry)
        totals.append(total)
    return params, carry, np.array(totals)


def test_training_on_a_stream_is_the_loop_that_hands_the_carry_on():
    """Losses, parameters and carry, over more than one reading of the series: at its beginning rows start anew."""
    steps = 2 * WINDOWS + 1
    params, carry, totals = by_hand(steps)
    state, metrics, _ = run(start(), steps)
    reference.assert_close(metrics['loss'].total, totals, 1e-5)
    mine = {**state.params, 'rnn': state.params['rnn']['rnn']}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), mine, params)
    stream = state.variables['carry']['rnn']['stream']
    assert stream.started.all()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), stream.carry, carry)


def test_what_the_stream_carries_matters():
    """Without it the losses differ from the second window on, and not in the first."""
    params = {**start().params, 'rnn': start().params['rnn']['rnn']}
    state = training.init_state(PLAIN, TASK, TX, jax.random.key(0))._replace(params=params)
    _, metrics, _ = next(iter(training.train(PLAIN, TASK, TX, state, steps=3, steps_per_call=3)))
    want = run(start(), 3)[1]
    reference.assert_close(metrics['loss'].total[0], want['loss'].total[0], 1e-6)
    assert (np.abs(metrics['loss'].total[1:] - want['loss'].total[1:]) > 1e-5).all()


def test_a_stream_that_was_stopped_goes_on_bit_for_bit():
    """After a State of any step, chunks or none."""
    whole, metrics, _ = run(start(), 8)
    middle, first, _ = run(start(), 5)
    end, second, _ = run(middle, 8)
    reference.assert_trees_equal(end, whole)
    joined = jax.tree.map(lambda x, y: np.concatenate([x, y]), first, second)
    reference.assert_trees_equal(joined, metrics)


def test_evaluation_reads_its_own_stream_and_leaves_trainings_alone():
    """Its batches are windows of one run from a fresh carry, in another batch size; training does not notice."""
    state, _, evals = run(start(), 5)
    params = {**state.params, 'rnn': state.params['rnn']['rnn']}
    (inputs, targets), mask = rows_of(SERIES[:30], 2)
    want = losses.classification(
        PLAIN.apply({'params': params}, Sequences(jnp.asarray(inputs), mask=mask)), Batch(None, targets, mask)
    )
    for name in ('loss', 'accuracy'):
        reference.assert_close(evals[-1]['valid'][name].total, want[name].total, 1e-5)
        assert evals[-1]['valid'][name].count == want[name].count
    unseen = TASK._replace(evals={})
    parts = list(training.train(MODEL, unseen, TX, start(), steps=5, steps_per_call=3))
    reference.assert_trees_equal(parts[-1][0], state)


def test_predictions_start_anew_in_any_batch():
    """As a fresh run, whatever training's stream holds."""
    state, _, _ = run(start(), 3)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, V, (10, 5)))
    want = PLAIN.apply({'params': {**state.params, 'rnn': state.params['rnn']['rnn']}}, tokens)
    reference.assert_close(training.apply(MODEL, state, tokens), want, 1e-5)
    reference.assert_close(training.predict(MODEL, state, tokens, batch_size=4), want, 1e-5)


# --- dropout, and predictions in batches --------------------------------------------------


class Dropping(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = rnn.RNN(LSTMCell(8))(x)
        return nn.Dense(1)(nn.Dropout(0.5)(x, deterministic=not self.has_rng('dropout')))


def fixed_task(rows=8):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(rows, 5, 2)).astype(np.float32), rng.normal(size=(rows, 5, 1)).astype(np.float32)
    mask = np.arange(5) < rng.integers(0, 6, rows)[:, None]
    return Task(losses.mean_squared_error, lambda data, key, step: data, Batch(x, y, mask))


def test_D05_training_drops_and_evaluation_does_not():
    """The stream 'dropout' is there in a training step alone."""
    model, task = Dropping(), fixed_task()
    task = task._replace(evals={'same': jax.tree.map(lambda x: x[None], task.data)})
    state = training.init_state(model, task, TX, jax.random.key(0))
    _, metrics = training.train_step(model, task, TX, state)
    still = training.evaluate(model, task, state)['same']['loss']
    assert abs(still.total - metrics['loss'].total) > 1e-3
    assert training.evaluate(model, task, state)['same']['loss'].total == still.total
    _, other = training.train_step(model, task, TX, state._replace(step=jnp.int32(1)))
    assert abs(other['loss'].total - metrics['loss'].total) > 1e-4


@pytest.mark.representative(every=2, first=1)
@pytest.mark.parametrize('batch_size', [1, 4, 10, 64])
def test_S03_ten_rows_in_batches_of_any_size_are_ten_predictions(batch_size):
    """The last batch need not be full; sequences bring their lengths along."""
    model = models.sequence_model('last', 2, features=4)
    x, lengths = np.random.default_rng(0).normal(size=(10, 6, 3)).astype(np.float32), np.arange(10) % 7
    data = Batch((x, lengths), x[:, 0, :2], x[:, 0, 0] < 9)
    task = Task(losses.mean_squared_error, lambda data, key, step: data, data)
    state = training.init_state(model, task, TX, jax.random.key(0))
    want = training.apply(model, state, (x, lengths))
    got = training.predict(model, state, (x, lengths), batch_size=batch_size)
    assert got.shape == (10, 2)
    reference.assert_close(got, want, 1e-6)


@pytest.mark.parametrize(
    ('inputs', 'size', 'words'),
    [
        ((np.ones((3, 2)), np.ones(4)), 2, r'inputs .*\[3, 4\]'),
        (np.ones((3, 2)), 0, 'batch_size=0'),
        ({}, 2, 'inputs has no arrays'),
    ],
)
def test_inputs_that_cannot_be_cut_into_batches_are_refused(inputs, size, words):
    state = training.init_state(nn.Dense(1), fixed_task(), TX, jax.random.key(0))
    with pytest.raises(ValueError, match=words):
        training.predict(nn.Dense(1), state, inputs, batch_size=size)


def test_predictions_of_no_steps_have_none():
    model = models.sequence_model('per_step', 1, features=4)
    state = training.init_state(model, fixed_task(), TX, jax.random.key(0))
    assert training.predict(model, state, np.ones((3, 0, 2), np.float32), batch_size=2).shape == (3, 0, 1)
