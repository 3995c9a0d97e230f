"""Copy memory: the law of its sequences, and the loss of whoever remembers nothing."""

import jax
import numpy as np
import pytest

from seqjax.tasks import copy_memory


@pytest.mark.parametrize('delay', [1, 7, 100])
def test_sequences_are_those_of_the_source(delay):
    batch = jax.device_get(copy_memory.copy_memory(delay).sample(jax.random.key(0), 1000))
    assert batch.inputs.shape == (1000, delay + 20, 10) and batch.mask.all()
    np.testing.assert_array_equal(batch.inputs.sum(-1), 1)
    kept = []
    for symbols, targets in zip(batch.inputs.argmax(-1), batch.targets, strict=True):
        assert set(symbols[:10]) <= set(range(1, 9)) and not symbols[10 : delay + 9].any()
        assert (symbols[delay + 9 :] == 9).all() and len(symbols) == delay + 20
        assert not targets[: delay + 10].any() and targets[delay + 10 :].tolist() == symbols[:10].tolist()
        kept.append(symbols[:10])
    shares = np.bincount(np.ravel(kept), minlength=9)[1:] / 10_000
    assert np.abs(shares - 1 / 8).max() < 4 * (7 / 64 / 10_000) ** 0.5


def test_equal_keys_draw_equal_sequences_and_others_do_not():
    one, same, other = (
        np.asarray(copy_memory.copy_memory(3).sample(jax.random.key(seed), 8).targets).tobytes() for seed in (0, 0, 1)
    )
    assert one == same != other


@pytest.mark.parametrize(('delay', 'published'), [(100, 0.173), (1000, 0.0204)])
def test_the_loss_without_a_memory_is_the_sources_and_that_of_such_a_model(delay, published):
    """It knows when to say a symbol, and says each with the same probability."""
    problem = copy_memory.copy_memory(delay)
    assert abs(problem.reference_losses['memoryless'] - published) < 5e-4
    batch = problem.sample(jax.random.key(1), 16)
    told = batch.inputs[..., 9].cumsum(1) > 1
    logits = np.where(told[..., None], [-1e9, *[0] * 8], [0, *[-1e9] * 8])
    found = problem.loss_fn(np.asarray(logits, np.float32), batch)
    assert (
        abs(found['loss'].compute() - problem.reference_losses['memoryless']) < 1e-6 and found['wrong'].compute() == 1
    )


def test_who_remembers_has_no_loss_and_is_at_the_goal():
    problem = copy_memory.copy_memory(5)
    batch = problem.sample(jax.random.key(1), 16)
    found = problem.loss_fn(50 * jax.nn.one_hot(batch.targets, 9), batch)
    assert found['loss'].compute() < problem.success.at_most < 0.2 * problem.reference_losses['memoryless']
    assert found['wrong'].compute() == 0


def test_no_delay_is_refused():
    with pytest.raises(ValueError, match='delay=0'):
        copy_memory.copy_memory(0)
