"""The step and the loop: the same bits however a run is cut, one trace, and nothing random but the seed."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from seqjax import training
from seqjax.config import ModelConfig
from seqjax.nn import losses as nn_losses
from seqjax.nn.build import build_model
from seqjax.tasks import td
from seqjax.training import optimizers
from seqjax.types import Batch, Mean, Task
from tests.helpers import reference

ROWS, FEATURES, OUTPUTS, SIZE = 20, 3, 2, 4
STEPS = 10
TX = optimizers.adam(0.01, 1e-7)
RNG = np.random.default_rng(0)
DATA = tuple(RNG.normal(size=(ROWS, n)).astype(np.float32) for n in (FEATURES, OUTPUTS))
EVALS = {
    name: Batch(
        RNG.normal(size=(count, SIZE, FEATURES)).astype(np.float32),
        RNG.normal(size=(count, SIZE, OUTPUTS)).astype(np.float32),
        # Batches count 1, 2, ... rows, so that the mean of their means is not the mean.
        np.arange(SIZE) <= np.arange(count)[:, None],
    )
    for name, count in {'valid': 3, 'test': 2}.items()
}


def draw_batch(data, key, step):
    """Rows chosen by the key, and by the step whether they are masked; what was drawn goes along as targets."""
    inputs, targets = data
    rows = jax.random.randint(key, (SIZE,), 0, ROWS)
    mask = jnp.arange(SIZE) != step % SIZE
    return Batch(inputs[rows], (targets[rows], step, jax.random.uniform(key)), mask)


def loss(outputs, batch):
    """The squared error; for training batches also the step and the number drawn, as batch saw them."""
    if not isinstance(batch.targets, tuple):
        return {'loss': nn_losses.squared_error(outputs, batch.targets, batch.mask)}
    targets, step, drawn = batch.targets
    one = jnp.float32(1)
    metrics = {'step': Mean(step.astype(jnp.float32), one), 'drawn': Mean(drawn, one)}
    return metrics | {'loss': nn_losses.squared_error(outputs, targets, batch.mask)}


class Counting(nn.Module):
    """A dense layer that counts its calls in the collection 'stats' and adds the count to its outputs."""

    @nn.compact
    def __call__(self, inputs):
        calls = self.variable('stats', 'calls', lambda: jnp.int32(0))
        if self.is_mutable_collection('stats') and not self.is_initializing():
            calls.value += 1
        return nn.Dense(OUTPUTS)(inputs) + calls.value.astype(jnp.float32)


class Noisy(nn.Module):
    """A dense layer that adds the same random number to all of its outputs."""

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(OUTPUTS)(inputs) + jax.random.normal(self.make_rng('default'))


MODEL = nn.Dense(OUTPUTS)
TASK = Task(loss, draw_batch, DATA)
EVALUATED = TASK._replace(evals=EVALS)


@functools.cache
def compiled(steps_per_call, evaluated=False):
    """What every test of TASK, or of EVALUATED, can share."""
    return training.make_train_chunk(MODEL, EVALUATED if evaluated else TASK, TX, steps_per_call=steps_per_call)


first_state = jax.jit(lambda seed, data: training.init_state(MODEL, TASK._replace(data=data), TX, jax.random.key(seed)))


def start(seed=3, data=DATA):
    return first_state(np.uint32(seed), data)


def train_all(task, state, train_chunk, *, model=MODEL, steps=STEPS, steps_per_call=STEPS):
    """The last state, the metrics of every step by name [steps], and the evaluations after every chunk."""
    chunks = list(
        training.train(model, task, TX, state, steps=steps, steps_per_call=steps_per_call, train_chunk=train_chunk)
    )
    return chunks[-1][0], join(*(metrics for _, metrics, _ in chunks)), [evals for *_, evals in chunks]


def join(*metrics):
    return jax.tree.map(lambda *parts: np.concatenate(parts), *metrics)


# --- one step --------------------------------------------------------------------------------------


def test_train_step_equals_a_step_by_hand():
    """Gradient descent on a masked linear regression: the loss before the update, the parameters after it."""
    batch = Batch(DATA[0], DATA[1], np.arange(ROWS) % 3 != 0)
    task = Task(loss, lambda data, key, step: batch)
    tx = optax.sgd(0.1)
    state = training.init_state(MODEL, task, tx, jax.random.key(0))
    params = {name: np.float64(x) for name, x in state.params.items()}
    errors = (DATA[0] @ params['kernel'] + params['bias'] - DATA[1]) * batch.mask[:, None]
    count = OUTPUTS * batch.mask.sum()
    new, metrics = jax.jit(lambda state: training.train_step(MODEL, task, tx, state))(state)
    assert metrics['loss'].count == count
    reference.assert_close(metrics['loss'].compute(), (errors**2).sum() / count, 1e-5)
    reference.assert_close(new.params['kernel'], params['kernel'] - 0.2 * DATA[0].T @ errors / count, 1e-5)
    reference.assert_close(new.params['bias'], params['bias'] - 0.2 * errors.sum(0) / count, 1e-5)
    assert new.step == 1 and new.step.dtype == jnp.int32
    reference.assert_trees_equal(new.key, state.key)


def test_the_first_state_is_a_function_of_the_seed():
    """The same seed gives the same state, bit for bit, whatever the data hold; another seed gives others."""
    reference.assert_trees_equal(training.init_state(MODEL, TASK, TX, jax.random.key(3)), start())
    reference.assert_trees_equal(start(data=jax.tree.map(np.negative, DATA)), start())
    assert (start(seed=4).params['kernel'] != start().params['kernel']).all()
    assert start().step == 0
    assert start().variables == {}


# --- the loop --------------------------------------------------------------------------------------


def test_the_length_of_chunks_changes_no_bit():
    """Chunks of 1, 3, 7 and 100 steps: the same losses and the same last state."""
    want_state, want_metrics, _ = train_all(TASK, start(), compiled(1), steps_per_call=1)
    assert want_metrics['loss'].total.shape == (STEPS,)
    assert len(set(want_metrics['loss'].total)) == STEPS
    for steps_per_call in (3, 7, 100):
        state, metrics, _ = train_all(TASK, start(), compiled(steps_per_call), steps_per_call=steps_per_call)
        reference.assert_trees_equal(metrics, want_metrics)
        reference.assert_trees_equal(state, want_state)


def test_a_run_that_was_stopped_goes_on_bit_for_bit():
    """Five steps, then on from that state to the tenth: the same losses and last state as ten at once."""
    want_state, want_metrics, _ = train_all(TASK, start(), compiled(100), steps_per_call=100)
    halfway, before, _ = train_all(TASK, start(), compiled(3), steps=5, steps_per_call=3)
    assert halfway.step == 5
    state, after, _ = train_all(TASK, halfway, compiled(3), steps_per_call=3)
    reference.assert_trees_equal(join(before, after), want_metrics)
    reference.assert_trees_equal(state, want_state)
    assert list(training.train(MODEL, TASK, TX, state, steps=STEPS, steps_per_call=3)) == []  # there already


def test_an_lstm_too_is_trained_bit_for_bit_in_any_chunks():
    """The td task: steps one by one, and four with a stop and six more in chunks of four."""
    task = td.td('many_to_many')
    model = build_model(task.spec, ModelConfig(hidden=5))
    state = training.init_state(model, task, TX, jax.random.key(0))
    single, four = (
        training.make_train_chunk(model, task, TX, steps_per_call=steps_per_call) for steps_per_call in (1, 4)
    )
    want_state, want_metrics, _ = train_all(task, state, single, model=model, steps_per_call=1)
    halfway, before, _ = train_all(task, state, four, model=model, steps=4, steps_per_call=4)
    state, after, _ = train_all(task, halfway, four, model=model, steps_per_call=4)
    reference.assert_trees_equal(join(before, after), want_metrics)
    reference.assert_trees_equal(state, want_state)


def test_step_and_a_new_key_reach_the_batch():
    """Steps 0, 1, 2, ...; draws that differ at every step, and depend on the seed and on nothing else."""
    _, metrics, _ = train_all(TASK, start(), compiled(100))
    np.testing.assert_array_equal(metrics['step'].total, np.arange(STEPS))
    assert len(set(metrics['drawn'].total)) == STEPS
    np.testing.assert_array_equal(metrics['loss'].count, (SIZE - 1) * OUTPUTS)
    other = start()._replace(params=jax.tree.map(lambda x: np.asarray(x) + 1, start().params))
    _, again, _ = train_all(TASK, other, compiled(3), steps_per_call=3)
    np.testing.assert_array_equal(again['drawn'].total, metrics['drawn'].total)
    assert (again['loss'].total != metrics['loss'].total).all()
    _, another, _ = train_all(TASK, start(seed=4), compiled(100))
    assert not set(another['drawn'].total) & set(metrics['drawn'].total)


def test_the_model_draws_anew_at_every_step():
    """With a learning rate of 0 and the same batch, the outputs differ by the noise alone; the seed repeats it."""
    batch = Batch(DATA[0][:1], DATA[1][:1], np.ones(1, bool))
    model, task = Noisy(), Task(lambda outputs, _: {'loss': Mean(outputs.sum(), jnp.float32(1))}, lambda *_: batch)
    tx = optax.sgd(0.0)
    first = jax.jit(lambda seed: training.init_state(model, task, tx, jax.random.key(seed)))
    how = {'steps': 6, 'steps_per_call': 6, 'train_chunk': training.make_train_chunk(model, task, tx, steps_per_call=6)}
    states = [first(np.uint32(seed)) for seed in (3, 3, 4)]
    losses = [next(training.train(model, task, tx, s, **how))[1]['loss'].total for s in states]
    assert len(set(losses[0])) == 6
    np.testing.assert_array_equal(losses[1], losses[0])
    assert (losses[2] - losses[0]).std() > 0.1  # not the same noise on other parameters


def test_N06_a_step_is_traced_and_compiled_once():
    """Ten steps in chunks of 4, 4 and 2: Python calls batch once; a second run with what was compiled, never."""
    calls = []

    def counted(*args):
        calls.append(args)
        return draw_batch(*args)

    task, state = TASK._replace(batch=counted), start()
    train_all(task, state, None, steps_per_call=4)
    assert len(calls) == 1
    advance = training.make_train_chunk(MODEL, task, TX, steps_per_call=4)
    for _ in range(2):
        train_all(task, state, advance, steps_per_call=4)
    assert len(calls) == 2
    if hasattr(advance, '_cache_size'):
        assert advance._cache_size() == 1


def test_evaluations_are_means_over_all_batches_of_a_split():
    """Against NumPy, for the parameters after the chunk; every counted element weighs the same."""
    state, _, evals = train_all(EVALUATED, start(), compiled(5, evaluated=True), steps_per_call=5)
    assert len(evals) == 2 and set(evals[-1]) == {'valid', 'test'}
    kernel, bias = (np.float64(state.params[name]) for name in ('kernel', 'bias'))
    for split, batches in EVALS.items():
        errors = (batches.inputs @ kernel + bias - batches.targets)[batches.mask]
        mean = evals[-1][split]['loss']
        assert mean.count == errors.size
        reference.assert_close(mean.total, (errors**2).sum(), 1e-5)
        assert evals[0][split]['loss'].total != mean.total


def test_evaluating_changes_no_bit_of_the_training():
    """With and without splits to evaluate: the same losses and the same last state."""
    state, metrics, _ = train_all(EVALUATED, start(), compiled(5, evaluated=True), steps_per_call=5)
    want_state, want_metrics, evals = train_all(TASK, start(), compiled(7), steps_per_call=7)
    assert evals == [{}, {}]
    reference.assert_trees_equal(metrics, want_metrics)
    reference.assert_trees_equal(state, want_state)


def test_mutable_collections_travel_in_the_state():
    """A model that counts its calls: one a step, over chunks; evaluation sees the count and leaves it alone."""
    model, task = Counting(), TASK._replace(evals=EVALS)
    state = training.init_state(model, task, TX, jax.random.key(3))
    assert state.variables == {'stats': {'calls': 0}}
    assert set(state.params) == {'Dense_0'}
    chunks = list(training.train(model, task, TX, state, steps=STEPS, steps_per_call=4))
    assert [int(state.variables['stats']['calls']) for state, *_ in chunks] == [4, 8, 10]
    state, _, evals = chunks[-1]
    dense = {name: np.float64(x) for name, x in state.params['Dense_0'].items()}
    batches = EVALS['valid']
    errors = (batches.inputs @ dense['kernel'] + dense['bias'] + STEPS - batches.targets)[batches.mask]
    reference.assert_close(evals['valid']['loss'].total, (errors**2).sum(), 1e-5)


# --- what is compiled ------------------------------------------------------------------------------


def test_no_program_holds_the_data():
    """Neither what trains nor what draws the first state: both stay as small with ten thousand rows."""
    data = tuple(np.random.default_rng(n).normal(size=(10_000, n)).astype(np.float32) for n in (FEATURES, OUTPUTS))
    evals = jax.tree.map(lambda x: np.repeat(x, 1000, axis=0), EVALS)
    task, state = TASK._replace(data=data, evals=evals), start()
    advance = training.make_train_chunk(MODEL, task, TX, steps_per_call=3)
    programs = [
        (advance, (data, evals, state, 3)),
        (lambda seed: training.init_state(MODEL, task, TX, jax.random.key(seed)), (np.uint32(0),)),
    ]
    for program, args in programs:
        lowered = jax.jit(program).lower(*args)
        assert len(lowered.as_text()) < 200_000  # the data alone would be 400,000 digits
        assert all(np.size(const) < 1000 for const in jax.make_jaxpr(program)(*args).consts)


def test_what_is_compiled_serves_other_data():
    """Called with other data of the same shape, it trains on these."""
    other = jax.tree.map(lambda x: np.sin(3 * x), DATA)
    task = TASK._replace(data=other)
    got = train_all(task, start(), compiled(3), steps_per_call=3)
    want = train_all(task, start(), None, steps_per_call=3)
    reference.assert_trees_equal(got, want)
    assert got[1]['loss'].total[0] != train_all(TASK, start(), compiled(3), steps_per_call=3)[1]['loss'].total[0]
