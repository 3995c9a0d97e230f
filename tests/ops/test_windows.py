"""Streams and epochs: nothing is left out, nothing is seen twice, rows keep their places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.ops import windows as ops_windows


def test_S01_row_i_goes_on_in_row_i():
    rows = ops_windows.stream_rows(np.arange(12), batch_size=2, window=3)
    windows = [ops_windows.stream_window(rows, step, 3) for step in range(3)]
    np.testing.assert_array_equal(windows[0][0], [[0, 1, 2], [6, 7, 8]])
    np.testing.assert_array_equal(windows[1][0], [[3, 4, 5], [9, 10, 11]])
    np.testing.assert_array_equal(windows[2][0], windows[0][0])
    assert all(mask.all() for _, mask, _ in windows)
    starts = [resets.tolist() for _, _, resets in windows]
    begun, going = [[True, False, False]] * 2, [[False] * 3] * 2
    assert starts == [begun, going, begun]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(count=st.integers(1, 40), batch=st.integers(1, 6), window=st.integers(1, 9))
def test_S03_every_number_of_the_series_is_read_once_in_its_order(count, batch, window):
    """Whatever N, B and T are: row after row, the real steps are the series."""
    rows = ops_windows.stream_rows(np.arange(count), batch, window)
    steps = rows.mask.shape[1] // window
    parts = [ops_windows.stream_window(rows, step, window) for step in range(steps)]
    values = np.concatenate([values for values, _, _ in parts], axis=1)
    mask = np.concatenate([mask for _, mask, _ in parts], axis=1)
    np.testing.assert_array_equal(values[mask], np.arange(count))
    assert (np.diff(mask.astype(int), axis=1) <= 0).all()  # padding on the right alone
    assert mask.shape == (batch, steps * window)


def test_a_window_is_cut_on_the_device_and_compiled_once():
    """Trees of arrays with further axes go together; the step is an argument."""
    series = {'x': np.random.default_rng(0).normal(size=(11, 2)).astype(np.float32), 'y': np.arange(11)}
    rows = ops_windows.stream_rows(series, batch_size=3, window=2)
    cut = jax.jit(lambda step: ops_windows.stream_window(rows, step, 2))
    for step in range(4):
        values, mask, _ = cut(step)
        np.testing.assert_array_equal(values['x'][mask], series['x'][values['y'][mask]])
    assert cut._cache_size() == 1


@pytest.mark.parametrize(
    ('series', 'batch', 'window', 'message'),
    [
        (np.ones(0), 1, 1, r'\[0\]'),
        ((np.ones(3), np.ones(4)), 1, 1, r'\[3, 4\]'),
        (np.ones(3), 0, 1, 'batch_size=0'),
        (np.ones(3), 1, 0, 'window=0'),
    ],
)
def test_what_is_no_stream_is_refused(series, batch, window, message):
    with pytest.raises(ValueError, match=message):
        ops_windows.stream_rows(series, batch, window)


def test_rows_of_another_window_are_refused():
    with pytest.raises(ValueError, match='window=4'):
        ops_windows.stream_window(ops_windows.stream_rows(np.arange(12), 2, 3), 0, 4)


# --- epochs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('count', [1, 2, 3, 4, 5, 15, 16, 17, 64, 65, 100, 1000, 4097])
def test_shuffled_is_an_order_of_all(count):
    """Each of 0 .. count-1 once, for every key; a place alone gives what it gives among the others."""
    for seed in range(3):
        key = jax.random.key(seed)
        order = np.asarray(ops_windows.shuffled(key, jnp.arange(count), count))
        np.testing.assert_array_equal(np.sort(order), np.arange(count))
        assert ops_windows.shuffled(key, jnp.int32(count // 2), count) == order[count // 2]


def test_all_orders_of_five_are_about_equally_likely():
    """Chi-square over where each of five goes, and over which neighbours meet, for 4,000 keys."""
    keys = jax.random.split(jax.random.key(0), 4000)
    orders = np.asarray(jax.vmap(lambda key: ops_windows.shuffled(key, jnp.arange(5), 5))(keys))
    for value in range(5):
        where = np.bincount((orders == value).argmax(1), minlength=5)
        assert ((where - 800) ** 2 / 800).sum() < 25  # 4 degrees of freedom; the 99.99% quantile is 23.5
    pairs = np.bincount(orders[:, 0] * 5 + orders[:, 1], minlength=25)
    assert (pairs[[0, 6, 12, 18, 24]] == 0).all()
    assert ((pairs[pairs > 0] - 200) ** 2 / 200).sum() < 55 and (pairs > 0).sum() == 20  # 19; 99.99%: 50.8


@pytest.mark.parametrize(('count', 'batch_size'), [(10, 4), (12, 4), (3, 5), (1, 1)])
def test_an_epoch_reads_every_row_once_in_an_order_of_its_own(count, batch_size):
    key, batches = jax.random.key(1), -(-count // batch_size)
    epochs = []
    for epoch in range(4):
        parts = [ops_windows.epoch_rows(key, epoch * batches + i, count, batch_size) for i in range(batches)]
        assert all(rows.shape == mask.shape == (batch_size,) for rows, mask in parts)
        epochs.append(np.concatenate([np.asarray(rows)[np.asarray(mask)] for rows, mask in parts]))
        np.testing.assert_array_equal(np.sort(epochs[-1]), np.arange(count))
        assert all(((rows >= 0) & (rows < count)).all() for rows, _ in parts)
    assert count < 10 or len({epoch.tobytes() for epoch in epochs}) == 4


@pytest.mark.parametrize(('count', 'batch_size', 'name'), [(0, 1, 'count=0'), (5, 0, 'batch_size=0')])
def test_no_rows_are_refused(count, batch_size, name):
    with pytest.raises(ValueError, match=name):
        ops_windows.epoch_rows(jax.random.key(0), 0, count, batch_size)
