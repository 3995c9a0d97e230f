"""The step and the loop: bit for bit the same however a run is cut, traced once, and a function of the seed alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seqjax import optim, train
from seqjax.losses import squared_error
from seqjax.task import Batch, Mean, Task
from seqjax.tasks.td import td
from tests import reference

ROWS, FEATURES, OUTPUTS, SIZE = 20, 3, 2, 4
STEPS = 10
TX = optim.adam(0.01, 1e-7)
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
        return {'loss': squared_error(outputs, batch.targets, batch.mask)}
    targets, step, drawn = batch.targets
    one = jnp.float32(1)
    metrics = {'step': Mean(step.astype(jnp.float32), one), 'drawn': Mean(drawn, one)}
    return metrics | {'loss': squared_error(outputs, targets, batch.mask)}


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


TASK = Task(nn.Dense(OUTPUTS), loss, draw_batch, DATA)


def train_all(task, state, steps=STEPS, chunk=STEPS, advance=None):
    """The last state, the metrics of every step by name [steps], and the evaluations after every chunk."""
    chunks = list(train.train(task, TX, state, steps=steps, chunk=chunk, advance=advance))
    metrics = jax.tree.map(lambda *parts: np.concatenate(parts), *(part for _, part, _ in chunks))
    return chunks[-1][0], metrics, [evals for *_, evals in chunks]


def start(task=TASK, seed=3):
    return train.init_state(task, TX, jax.random.key(seed))


# --- one step --------------------------------------------------------------------------------------


def test_train_step_equals_a_step_by_hand():
    """Gradient descent on a masked linear regression: the loss before the update, the parameters after it."""
    batch = Batch(DATA[0], DATA[1], np.arange(ROWS) % 3 != 0)
    task = Task(nn.Dense(OUTPUTS), loss, lambda data, key, step: batch)
    tx = optax.sgd(0.1)
    state = train.init_state(task, tx, jax.random.key(0))
    params = {name: np.float64(x) for name, x in state.params.items()}
    errors = (DATA[0] @ params['kernel'] + params['bias'] - DATA[1]) * batch.mask[:, None]
    count = OUTPUTS * batch.mask.sum()
    new, metrics = jax.jit(lambda state: train.train_step(task, tx, state))(state)
    assert metrics['loss'].count == count
    reference.assert_close(metrics['loss'].compute(), (errors**2).sum() / count, 1e-5)
    reference.assert_close(new.params['kernel'], params['kernel'] - 0.2 * DATA[0].T @ errors / count, 1e-5)
    reference.assert_close(new.params['bias'], params['bias'] - 0.2 * errors.sum(0) / count, 1e-5)
    assert new.step == 1 and new.step.dtype == jnp.int32
    reference.assert_trees_equal(new.key, state.key)


def test_the_first_state_is_a_function_of_the_seed():
    """The same seed gives the same state, bit for bit, whatever the data hold; another seed gives others."""
    reference.assert_trees_equal(start(), start())
    reference.assert_trees_equal(start(TASK._replace(data=jax.tree.map(np.negative, DATA))), start())
    assert (start(seed=4).params['kernel'] != start().params['kernel']).all()
    assert start().step == 0


# --- the loop --------------------------------------------------------------------------------------


@pytest.mark.parametrize('task', [TASK, td('many_to_many')], ids=['drawn', 'td'])
def test_the_length_of_chunks_changes_no_bit(task):
    """Chunks of 1, 3, 7 and 100 steps: the same losses and the same last state."""
    want_state, want_metrics, _ = train_all(task, start(task), chunk=1)
    assert want_metrics['loss'].total.shape == (STEPS,)
    assert len(set(want_metrics['loss'].total)) == STEPS
    for chunk in (3, 7, 100):
        state, metrics, _ = train_all(task, start(task), chunk=chunk)
        reference.assert_trees_equal(metrics, want_metrics)
        reference.assert_trees_equal(state, want_state)


@pytest.mark.parametrize('task', [TASK, td('many_to_one')], ids=['drawn', 'td'])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(task):
    """Five steps, then on from that state to the tenth: the same losses and last state as ten at once."""
    advance = train.make_advance(task, TX, chunk=5)
    want_state, want_metrics, _ = train_all(task, start(task), chunk=5, advance=advance)
    halfway, first, _ = train_all(task, start(task), steps=5, chunk=5, advance=advance)
    assert halfway.step == 5
    state, second, _ = train_all(task, halfway, chunk=5, advance=advance)
    reference.assert_trees_equal(jax.tree.map(lambda *parts: np.concatenate(parts), first, second), want_metrics)
    reference.assert_trees_equal(state, want_state)
    assert list(train.train(task, TX, state, steps=STEPS, chunk=5)) == []  # there already


def test_step_and_a_new_key_reach_the_batch():
    """Steps 0, 1, 2, ...; draws that differ at every step, and depend on the seed and on nothing else."""
    _, metrics, _ = train_all(TASK, start())
    np.testing.assert_array_equal(metrics['step'].total, np.arange(STEPS))
    assert len(set(metrics['drawn'].total)) == STEPS
    np.testing.assert_array_equal(metrics['loss'].count, (SIZE - 1) * OUTPUTS)
    other = start()._replace(params=jax.tree.map(lambda x: x + 1, start().params))
    _, again, _ = train_all(TASK, other, chunk=4)
    np.testing.assert_array_equal(again['drawn'].total, metrics['drawn'].total)
    assert (again['loss'].total != metrics['loss'].total).all()
    _, another, _ = train_all(TASK, start(seed=4))
    assert not set(another['drawn'].total) & set(metrics['drawn'].total)


def test_the_model_draws_anew_at_every_step():
    """With a learning rate of 0 and the same batch, the outputs differ by the noise alone; a run repeats them."""
    batch = Batch(DATA[0][:1], DATA[1][:1], np.ones(1, bool))
    task = Task(Noisy(), lambda outputs, _: {'loss': Mean(outputs.sum(), jnp.float32(1))}, lambda *_: batch)
    tx = optim.adam(0.0, 1e-7)
    states = [train.init_state(task, tx, jax.random.key(seed)) for seed in (3, 3, 4)]
    losses = [next(train.train(task, tx, s, steps=6, chunk=6))[1]['loss'].total for s in states]
    assert len(set(losses[0])) == 6
    np.testing.assert_array_equal(losses[1], losses[0])
    shift = losses[2] - losses[0]
    assert shift.std() > 0.1  # not the same noise on other parameters


def test_N06_a_step_is_traced_and_compiled_once():
    """Ten steps in chunks of 4, 4 and 2, and a second run after them: one call of batch in Python in all."""
    calls = []

    def counted(*args):
        calls.append(args)
        return draw_batch(*args)

    task, state = TASK._replace(batch=counted, evals=EVALS), start()
    advance = train.make_advance(task, TX, chunk=4)
    for _ in range(2):
        train_all(task, state, chunk=4, advance=advance)
    assert len(calls) == 1
    if hasattr(advance, '_cache_size'):
        assert advance._cache_size() == 1


def test_evaluations_are_means_over_all_batches_of_a_split():
    """Against NumPy, for the parameters after the chunk; every counted element weighs the same."""
    task = TASK._replace(evals=EVALS)
    state, _, evals = train_all(task, start(), chunk=5)
    assert len(evals) == 2 and set(evals[-1]) == {'valid', 'test'}
    kernel, bias = (np.float64(state.params[name]) for name in ('kernel', 'bias'))
    for split, batches in EVALS.items():
        errors = (batches.inputs @ kernel + bias - batches.targets)[batches.mask]
        mean = evals[-1][split]['loss']
        assert mean.count == errors.size
        reference.assert_close(mean.compute(), (errors**2).mean(), 1e-5)
        assert evals[0][split]['loss'].total != mean.total
    reference.assert_trees_equal(jax.tree.map(np.asarray, jax.jit(lambda s: train.evaluate(task, s))(state)), evals[-1])


def test_evaluating_changes_no_bit_of_the_training():
    """With and without splits to evaluate: the same losses and the same last state."""
    state, metrics, _ = train_all(TASK._replace(evals=EVALS), start(), chunk=5)
    want_state, want_metrics, evals = train_all(TASK, start(), chunk=5)
    assert evals == [{}, {}]
    reference.assert_trees_equal(metrics, want_metrics)
    reference.assert_trees_equal(state, want_state)


def test_mutable_collections_travel_in_the_state():
    """A model that counts its calls: one a step, over chunks; evaluation sees the count and leaves it alone."""
    task = TASK._replace(model=Counting(), evals=EVALS)
    state = start(task)
    assert state.variables == {'stats': {'calls': 0}}
    assert set(state.params) == {'Dense_0'}
    counts = [int(s.variables['stats']['calls']) for s, *_ in train.train(task, TX, state, steps=STEPS, chunk=4)]
    assert counts == [4, 8, 10]
    state, _, evals = train_all(task, state, chunk=4)
    dense = {name: np.float64(x) for name, x in state.params['Dense_0'].items()}
    batches = EVALS['valid']
    errors = (batches.inputs @ dense['kernel'] + dense['bias'] + STEPS - batches.targets)[batches.mask]
    reference.assert_close(evals[-1]['valid']['loss'].compute(), (errors**2).mean(), 1e-5)
    before = jax.tree.map(np.asarray, state.variables)
    train.evaluate(task, state)
    train.apply(task, state, batches.inputs[0])
    reference.assert_trees_equal(jax.tree.map(np.asarray, state.variables), before)


# --- what is compiled ------------------------------------------------------------------------------


def test_data_are_an_argument_of_what_is_compiled():
    """No program holds the data, and the compiled one serves other data of the same shape."""
    data = tuple(
        np.random.default_rng(n).normal(size=(5000, x.shape[1])).astype(np.float32) for n, x in enumerate(DATA)
    )
    task, other = TASK._replace(data=data, evals=EVALS), tuple(-x for x in data)
    state = start(task)
    advance = train.make_advance(task, TX, chunk=3)
    init = jax.jit(lambda key: train.init_state(task, TX, key))
    programs = [advance.lower(task.data, task.evals, state, 3), init.lower(jax.random.key(0))]
    for text in (program.as_text() for program in programs):
        assert len(text) < 200_000  # the data alone would be 800,000 hexadecimal digits
    for jaxpr in (jax.make_jaxpr(advance)(task.data, task.evals, state, 3), jax.make_jaxpr(init)(jax.random.key(0))):
        assert all(np.size(const) < 1000 for const in jaxpr.consts)
    flipped = (
        jax.tree.map(
            np.negative,
            EVALS._replace()
            if hasattr(EVALS, '_replace')
            else {split: batch._replace(mask=~batch.mask) for split, batch in EVALS.items()},
        )
        if False
        else {split: batch._replace(inputs=-batch.inputs) for split, batch in EVALS.items()}
    )
    got = programs[0].compile()(other, flipped, state, 3)
    fresh = task._replace(data=other, evals=flipped)
    want = train.make_advance(fresh, TX, chunk=3)(other, flipped, state, 3)
    reference.assert_trees_equal(got, want)
    assert got[1]['loss'].total[0] != advance(task.data, task.evals, state, 3)[1]['loss'].total[0]


@pytest.mark.parametrize('replicas', [None, 2])
def test_compiled_programs_give_what_the_functions_give(replicas):
    """init, advance and predict, for one run and for two side by side."""
    task = td('many_to_one')
    programs = train.compile_programs(task, TX, task.data.inputs, chunk=3, replicas=replicas)
    keys = [jax.random.key(seed) for seed in (5, 6)]
    state = programs.init(keys[0] if replicas is None else jnp.stack(keys))
    state, metrics, _ = programs.advance(task.data, task.evals, state, 2)
    outputs = programs.predict(state, task.data.inputs)
    for n, key in enumerate(keys[: replicas or 1]):
        single = train.init_state(task, TX, key)
        for step in range(2):
            single, want = train.train_step(task, TX, single)
            total = metrics['loss'].total[step]
            reference.assert_close(total if replicas is None else total[n], want['loss'].total, 1e-5)
        predicted = train.apply(task, single, task.data.inputs)
        reference.assert_close(outputs if replicas is None else outputs[n], predicted, 1e-4)
