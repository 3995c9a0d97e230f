"""The best State of every seed, and when a seed has been trained enough."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seqjax import training as seqjax_training
from seqjax.errors import UserError
from seqjax.runs import directory
from seqjax.training import fit_results
from seqjax.training.fit_results import FitResult
from seqjax.training.observers import EvaluationLog
from seqjax.types import Batch, BestParameters, EarlyStopping, Mean, Task

# Of a look of a seed: what validation says there, whatever the model.
SCRIPT = np.array([[3, 2, 4, 5, 1, 1, 1, 1], [5, 4, 3, 2, 2, 2, 2, 9], [np.nan, 6, np.nan, 5, 7, 8, 1, 0]], np.float32)


def batch(data, key, step):
    return Batch(jnp.ones((2, 3)), jnp.ones((2, 1)), jnp.ones(2, bool))


class Counter(nn.Module):
    """Its only weight, which counts the steps."""

    @nn.compact
    def __call__(self, x):
        return x[:, :1] * 0 + self.param('steps', nn.initializers.zeros, ())


def scripted(row, eval_every=2, patience=2):
    """A task whose weight 'steps' is the number of steps taken, and whose validation loss is `row` at each look."""

    def loss(outputs, batch):
        steps = outputs[0, 0]
        look = jnp.clip((steps / eval_every).round().astype(int) - 1, 0, len(row) - 1)
        watched = jnp.asarray(row)[look]
        training = -steps  # whose gradient takes one step up, by sgd(1)
        is_validation = batch.targets[0, 0] == 0
        return {'loss': Mean(jnp.where(is_validation, watched, training), jnp.float32(1))}

    validation = Batch(np.ones((1, 2, 3), np.float32), np.zeros((1, 2, 1), np.float32), np.ones((1, 2), bool))
    return Counter(), Task(loss, batch, (), {'validation': validation}, EarlyStopping(eval_every, patience))


def run(learned, steps=16, seeds=(0,), folder=None, eval_every=2, checkpoint_every=10**6, rate=1.0):
    settings = {'workdir': folder and str(folder), 'overwrite': False, 'steps': steps}
    with directory.open_workdir(settings, 'x', names=(fit_results.TABLE, fit_results.MODELS)) as (workdir, _):
        how = {
            'steps': steps,
            'steps_per_call': eval_every,
            'checkpoints': seqjax_training.CheckpointConfig(checkpoint_every),
            'workdir': workdir,
        }
        compiled = seqjax_training.compile_run(*learned, optax.sgd(rate), None, **how, num_seeds=len(seeds))
        found = seqjax_training.train_with_early_stopping(compiled._replace(allow_divergence=True), np.array(seeds))
        fit_results.write_evals(workdir, found, eval_every)
        fit_results.write_models(workdir, found)
        return found


@pytest.mark.parametrize(
    ('row', 'patience', 'best_step', 'value', 'looks'),
    [
        (SCRIPT[0], 2, 4, 2.0, 4),  # the 1 comes after its patience
        (SCRIPT[0], 3, 10, 1.0, 8),
        (SCRIPT[1], 2, 8, 2.0, 6),  # as good again is not better
        (SCRIPT[2], 2, 8, 5.0, 6),  # NaN is not better, and ends nothing
        (SCRIPT[2], 3, 16, 0.0, 8),
    ],
)
def test_the_best_look_is_kept_and_patience_ends_the_run(row, patience, best_step, value, looks):
    found = run(scripted(row, patience=patience))
    assert found.best.step.tolist() == [best_step] and found.best.value.tolist() == [value]
    assert found.best.params['steps'].tolist() == [best_step]  # the very parameters of that look
    shown = found.evals[0, :, found.metrics.index('validation/loss')]
    np.testing.assert_array_equal(shown, row[:looks])


def noisy():
    """A linear model of noise, whose seeds stop at different looks."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)).astype(np.float32), rng.normal(size=(40, 1)).astype(np.float32)

    def draw(data, key, step):
        rows = jax.random.randint(key, (4,), 0, 20)
        return Batch(data[0][rows], data[1][rows], jnp.ones(4, bool))

    def loss(outputs, batch):
        return {'loss': Mean(jnp.square(outputs - batch.targets).sum(), jnp.float32(batch.mask.size))}

    validation = Batch(x[None, 20:], y[None, 20:], np.ones((1, 20), bool))
    return nn.Dense(1), Task(loss, draw, (x[:20], y[:20]), {'validation': validation}, EarlyStopping(2, 3))


def test_a_seed_ends_as_it_would_alone():
    """What others train on beside it, after its own patience is over, changes neither its best nor its looks."""
    task = noisy()
    together = run(task, rate=0.1, steps=60, seeds=(0, 1, 2, 3))
    lengths = (~np.isnan(together.evals).all(-1)).sum(1)
    assert len(set(lengths.tolist())) > 1
    for i, seed in enumerate(together.seeds):
        alone = run(task, rate=0.1, steps=60, seeds=(seed,))
        assert alone.best.step[0] == together.best.step[i]
        np.testing.assert_allclose(alone.best.value[0], together.best.value[i], rtol=1e-5)
        np.testing.assert_allclose(alone.evals[0], together.evals[i, : lengths[i]], rtol=1e-5)
    assert together.best_seed() == int(np.argmin(together.best.value))


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, monkeypatch):
    task = noisy()
    run(task, rate=0.1, steps=60, seeds=(0, 1), folder=tmp_path / 'whole')
    real, calls = EvaluationLog.on_chunk, iter(range(100))

    def stop(self, session, steps_per_call):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return real(self, session, steps_per_call)

    monkeypatch.setattr(EvaluationLog, 'on_chunk', stop)
    with pytest.raises(KeyboardInterrupt):
        run(task, rate=0.1, steps=60, seeds=(0, 1), folder=tmp_path / 'stopped', checkpoint_every=2)
    monkeypatch.setattr(EvaluationLog, 'on_chunk', real)
    assert run(task, rate=0.1, steps=60, seeds=(0, 1), folder=tmp_path / 'stopped', checkpoint_every=2).resumed
    assert (tmp_path / 'whole' / fit_results.TABLE).read_bytes() == (
        tmp_path / 'stopped' / fit_results.TABLE
    ).read_bytes()
    with (
        np.load(tmp_path / 'whole' / fit_results.MODELS) as one,
        np.load(tmp_path / 'stopped' / fit_results.MODELS) as other,
    ):
        assert sorted(one) == sorted(other) and all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_where_no_loss_was_ever_finite_it_says_so():
    with pytest.raises(UserError, match='2.*--learning_rate'):
        run(scripted(np.full(8, np.nan, np.float32)), seeds=(0, 1))


def test_a_task_that_watches_for_nothing_keeps_no_best():
    model, task = noisy()
    task = task._replace(early_stopping=None)
    assert seqjax_training.init_state(model, task, optax.sgd(1.0), jax.random.key(0)).best is None


def test_what_is_written_is_read_again(tmp_path):
    found = run(noisy(), steps=20, seeds=(4, 5), folder=tmp_path)
    like = jax.eval_shape(nn.Dense(1).init, jax.random.key(0), jnp.ones((1, 3)))
    seeds, best = fit_results.read_models(tmp_path / fit_results.MODELS, dict(like))
    assert seeds.tolist() == [4, 5]
    assert jax.tree.structure(best) == jax.tree.structure(found.best)
    assert all(
        a.tobytes() == b.tobytes() for a, b in zip(jax.tree.leaves(best), jax.tree.leaves(found.best), strict=True)
    )
    other = jax.eval_shape(nn.Dense(2).init, jax.random.key(0), jnp.ones((1, 3)))
    with pytest.raises(UserError, match='params/bias'):
        fit_results.read_models(tmp_path / fit_results.MODELS, dict(other))
    (tmp_path / fit_results.MODELS).write_bytes(b'PK')
    with pytest.raises(UserError, match='models.npz'):
        fit_results.read_models(tmp_path / fit_results.MODELS, dict(like))


TREES = [
    {'w': jnp.arange(3.0).astype(jnp.bfloat16), 'v': jnp.float16(0.1), 'n': np.arange(2)},
    {'a.b': jnp.ones(1), 'a': {'b': jnp.zeros(1), '': jnp.ones(2)}, 'file': jnp.ones(3), 'A': jnp.ones(4)},
    {'x.npy': jnp.ones(1), 'y': {'x.npy': jnp.zeros(1)}},
]


@pytest.mark.parametrize('params', TREES)
def test_parameters_of_any_dtype_and_key_are_read_again(params, tmp_path):
    assert_read_again(params, tmp_path)


@pytest.mark.parametrize(
    ('params', 'named'),
    [
        ({'a/b': jnp.ones(1), 'a': {'b': jnp.zeros(1)}}, "'params/a/b'"),
        ({'x.npy': jnp.ones(1), 'x': jnp.zeros(1)}, 'params/x.npy'),
        ({'a\0b': jnp.ones(1)}, r"'params/a\\x00b'"),
    ],
)
def test_keys_that_the_file_cannot_keep_apart_are_refused(params, named, tmp_path):
    with pytest.raises(UserError, match=named):
        assert_read_again(params, tmp_path)
    assert not (tmp_path / fit_results.MODELS).exists()


def assert_read_again(params, folder):
    best = BestParameters(
        np.zeros(2, np.float32), np.zeros(2, np.int32), jax.tree.map(lambda x: np.stack([x, x]), params), {}
    )
    settings = {'workdir': str(folder), 'overwrite': False}
    with directory.open_workdir(settings, 'x', names=(fit_results.MODELS,)) as (workdir, _):
        fit_results.write_models(workdir, FitResult(np.arange(2), [], np.zeros((2, 0, 0)), best))
    _, got = fit_results.read_models(folder / fit_results.MODELS, {'params': params})
    assert jax.tree.structure(got.params) == jax.tree.structure(params)
    for one, other in zip(jax.tree.leaves(got.params), jax.tree.leaves(best.params), strict=True):
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes()
