"""Many seeds at once are many runs, one by one."""

import jax
import numpy as np
import pytest

from seqjax import sweep, train
from seqjax.tasks.td import SETUPS
from tests import reference

WIDTH = 6


def run(compiled, seeds, *, steps, chunk):
    """The losses [R, steps] of groups of WIDTH, and the parameters and predictions of all replicas after them."""
    task, tx, programs = compiled
    losses, ends = np.full((len(seeds), steps), np.nan, np.float32), []
    for part in sweep.sweep(task, tx, seeds, steps=steps, chunk=chunk, width=WIDTH, programs=programs):
        new = (part.metrics['loss'].total / part.metrics['loss'].count).T
        losses[part.first : part.first + len(new), part.step : part.step + new.shape[1]] = new
        if part.step + new.shape[1] == steps:
            end, count = (part.state.params, programs.predict(part.state, task.data.inputs)), len(new)
            ends.append(jax.tree.map(lambda x, count=count: np.asarray(x)[:count], end))
    return losses, *jax.tree.map(lambda *groups: np.concatenate(groups), *ends)


@pytest.mark.parametrize('setup', SETUPS)
def test_replicas_agree_with_single_runs(compiled_td, setup):
    """Six seeds, 200 steps: losses to absolute 1e-6, and to relative 1e-5 while they are above 1e-3."""
    seeds = np.array([0, 1, 2, 7, 100, 2**32 - 1])
    losses, params, predictions = run(compiled_td(setup, WIDTH), seeds, steps=200, chunk=80)
    assert (losses[:, -1] < 0.8 * losses[:, 0]).all()
    assert len(np.unique(losses[:, 0])) == 6
    task, tx, programs = compiled_td(setup)
    for n, seed in enumerate(seeds):
        state = programs.init(np.uint32(seed))
        reference.assert_trees_equal(state.key, jax.random.key(int(seed)))
        ((state, metrics, _),) = train.train(task, tx, state, steps=200, chunk=200, advance=programs.advance)
        want = metrics['loss'].total / metrics['loss'].count
        np.testing.assert_allclose(losses[n], want, rtol=0, atol=1e-6)
        large = want > 1e-3
        assert large.sum() > 50
        np.testing.assert_allclose(losses[n][large], want[large], rtol=1e-5)
        np.testing.assert_allclose(predictions[n], programs.predict(state, task.data.inputs), rtol=0, atol=1e-5)
        for got, weights in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(got[n], weights, rtol=0, atol=1e-5)


def test_a_last_group_that_was_filled_up_gives_the_same_numbers(compiled_td):
    """Eight seeds in groups of six: the last two bit for bit as in a full group; losses of all steps come back."""
    compiled = compiled_td('many_to_one', WIDTH)
    got = run(compiled, np.arange(8), steps=11, chunk=4)
    full = run(compiled, np.arange(12), steps=11, chunk=4)
    assert got[0].shape == (8, 11) and np.isfinite(full[0]).all()
    assert len(np.unique(full[0])) == full[0].size
    reference.assert_trees_equal(got, jax.tree.map(lambda x: x[:8], full))


def test_every_chunk_of_every_group_is_yielded_with_its_place(compiled_td):
    """Groups in turn, chunks in turn; the last ones shorter, their metrics without what filled them up."""
    task, tx, programs = compiled_td('one_to_one', WIDTH)
    parts = list(sweep.sweep(task, tx, np.arange(8), steps=6, chunk=4, width=WIDTH, programs=programs))
    places = [(part.first, part.step, *part.metrics['loss'].total.shape) for part in parts]
    assert places == [(0, 0, 4, 6), (0, 4, 2, 6), (6, 0, 4, 2), (6, 4, 2, 2)]
    np.testing.assert_array_equal([part.state.step for part in parts], [[4] * 6, [6] * 6, [4] * 6, [6] * 6])


@pytest.mark.parametrize('max_width', [1, 2, 7, 256])
def test_group_width_splits_into_the_fewest_and_narrowest_groups(max_width):
    """No wider than allowed; as few groups as that allows; no narrower width gives as few."""
    for count in range(1, 600, 7):
        width = sweep.group_width(count, max_width)
        groups = -(-count // width)
        assert 1 <= width <= min(max_width, count)
        assert groups == -(-count // max_width)
        assert width == 1 or -(-count // (width - 1)) > groups
