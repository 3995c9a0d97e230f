"""Many seeds at once are many runs, one by one."""

import jax
import numpy as np
import pytest

from seqjax import optim, sweep, train
from seqjax.tasks.td import SETUPS, td
from tests import reference

TX = optim.adam(0.003, 1e-7)


def run(task, seeds, *, steps, chunk, width, programs=None):
    """Losses [R, steps], and the parameters of all replicas."""
    programs = programs or compiled(task, chunk, width)
    losses, params = np.full((len(seeds), steps), np.nan, np.float32), []
    for part in sweep.sweep(task, TX, seeds, steps=steps, chunk=chunk, width=width, programs=programs):
        new = part.metrics['loss'].compute().T
        losses[part.first : part.first + len(new), part.step : part.step + new.shape[1]] = new
        if part.step + new.shape[1] == steps:
            params.append(jax.tree.map(lambda x, n=len(new): np.asarray(x[:n]), part.state.params))
    return losses, jax.tree.map(lambda *groups: np.concatenate(groups), *params)


def compiled(task, chunk, width):
    return train.compile_programs(task, TX, task.data.inputs, chunk=chunk, replicas=width)


@pytest.mark.parametrize('setup', SETUPS)
def test_replicas_agree_with_single_runs(setup):
    """Six seeds, 200 steps: losses to absolute 1e-6 always, and to relative 1e-5 while they are above 1e-3."""
    task, seeds, steps = td(setup), np.array([0, 1, 2, 7, 100, 2**32 - 1]), 200
    losses, params = run(task, seeds, steps=steps, chunk=80, width=6)
    assert losses[:, -1].max() < 0.5 * losses[:, 0].min()  # they learn, so the losses are of many sizes
    programs = train.compile_programs(task, TX, task.data.inputs, chunk=steps)
    for n, seed in enumerate(seeds):
        state = programs.init(jax.random.key(int(seed)))
        ((state, metrics, _),) = train.train(task, TX, state, steps=steps, chunk=steps, advance=programs.advance)
        want = metrics['loss'].total / metrics['loss'].count
        np.testing.assert_allclose(losses[n], want, rtol=0, atol=1e-6)
        large = want > 1e-3
        assert large.sum() > 50
        np.testing.assert_allclose(losses[n][large], want[large], rtol=1e-5)
        jax.tree.map(lambda x, y, n=n: np.testing.assert_allclose(x[n], y, rtol=1e-3, atol=1e-4), params, state.params)


def test_a_last_group_that_was_filled_up_gives_the_same_numbers():
    """Five seeds in groups of three: seeds 3 and 4 bit for bit as in a group with a sixth; all steps come back."""
    task, how = td('many_to_one'), {'steps': 11, 'chunk': 4, 'width': 3}
    programs = compiled(task, 4, 3)
    losses, params = run(task, np.arange(5), **how, programs=programs)
    full_losses, full_params = run(task, np.arange(6), **how, programs=programs)
    assert losses.shape == (5, 11) and np.isfinite(losses).all()
    assert len(np.unique(full_losses)) == full_losses.size
    np.testing.assert_array_equal(losses, full_losses[:5])
    reference.assert_trees_equal(params, jax.tree.map(lambda x: x[:5], full_params))


def test_every_chunk_of_every_group_is_yielded_with_its_place():
    """Groups in turn, chunks in turn; the last ones shorter, their metrics without what filled them up."""
    task = td('one_to_one')
    programs = compiled(task, 4, 3)
    parts = list(sweep.sweep(task, TX, np.arange(5), steps=6, chunk=4, width=3, programs=programs))
    places = [(part.first, part.step, *part.metrics['loss'].total.shape) for part in parts]
    assert places == [(0, 0, 4, 3), (0, 4, 2, 3), (3, 0, 4, 2), (3, 4, 2, 2)]
    np.testing.assert_array_equal([part.state.step for part in parts], [[4] * 3, [6] * 3, [4] * 3, [6] * 3])


@pytest.mark.parametrize('max_width', [1, 2, 7, 256])
def test_group_width_splits_into_the_fewest_groups_and_fills_up_as_little_as_can_be(max_width):
    """No wider than allowed; as few groups as that allows; no narrower width gives as few."""
    for count in range(1, 600, 7):
        width = sweep.group_width(count, max_width)
        groups = -(-count // width)
        assert 1 <= width <= min(max_width, count)
        assert groups == -(-count // max_width)
        assert width == 1 or -(-count // (width - 1)) > groups


def test_keys_are_those_of_the_seeds():
    """Bit for bit jax.random.key(seed), up to the largest seed."""
    seeds = [0, 1, 12345, 2**31, 2**32 - 1]
    for got, seed in zip(sweep.make_keys(np.array(seeds)), seeds, strict=True):
        reference.assert_trees_equal(got, jax.random.key(seed))
