"""Flips, holds and lengths as arrays; each against a loop over rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.ops import masking
from tests.helpers.layers import flip

B, T = 5, 7
MASK = np.random.default_rng(0).random((B, T)) < 0.6
MASK[0], MASK[1] = True, False


def test_M04_flip_by_length():
    """Each row by its own; a row of length 0 stays."""
    x = jnp.array([[1, 0, 0], [2, 3, 0], [4, 5, 6], [7, 8, 9]])
    got = flip(x, masking.length_mask(jnp.array([1, 2, 3, 0]), 3))
    np.testing.assert_array_equal(got, [[1, 0, 0], [3, 2, 0], [6, 5, 4], [7, 8, 9]])


@pytest.mark.parametrize('trailing', [(), (2,), (2, 3)])
def test_flip_turns_the_real_steps_around_and_leaves_the_others(trailing):
    x = np.arange(B * T * np.prod(trailing, dtype=int)).reshape(B, T, *trailing)
    want = x.copy()
    for row in range(B):
        want[row, MASK[row]] = x[row, MASK[row]][::-1]
    np.testing.assert_array_equal(flip(x, MASK), want)
    np.testing.assert_array_equal(flip(flip(x, MASK), MASK), x)
    np.testing.assert_array_equal(flip(x), x[:, ::-1])


def test_hold_repeats_the_last_real_step_and_before_the_first_what_was_before():
    x, before = np.arange(T * B).reshape(T, B) + 1, -np.arange(B)
    want = np.zeros((T, B), int)
    for row in range(B):
        last = before[row]
        for t in range(T):
            last = x[t, row] if MASK[row, t] else last
            want[t, row] = last
    np.testing.assert_array_equal(masking.hold(jnp.asarray(x), jnp.asarray(MASK.T), jnp.asarray(before)), want)


@pytest.mark.parametrize('dtype', [np.int64, np.int8, np.uint8, np.uint32])
def test_lengths_of_every_integer_dtype(dtype):
    lengths = masking.as_lengths(np.array([0, 3, 7], dtype), (3,), 7, of='x')
    assert lengths.dtype == jnp.int32
    np.testing.assert_array_equal(masking.length_mask(lengths, 7).sum(1), [0, 3, 7])


def test_lengths_may_have_several_batch_axes():
    lengths = masking.as_lengths([[1, 2], [0, 3]], (2, 2), 3, of='x')
    np.testing.assert_array_equal(masking.length_mask(lengths, 3).sum(-1), [[1, 2], [0, 3]])
    with pytest.raises(ValueError, match=r'seq_lengths\[1, 1\].*4'):
        masking.as_lengths([[1, 2], [0, 4]], (2, 2), 3, of='x')


def test_flags_are_looked_at_where_they_can_be():
    """Numbers other than 0 and 1 are refused; under jit they cannot be seen, and count as True."""
    with pytest.raises(ValueError, match='mask.*3'):
        masking.as_flags(np.array([0, 3]), (2,), of='x')
    np.testing.assert_array_equal(
        jax.jit(lambda m: masking.as_flags(m, (2,), of='x'))(jnp.array([0, 3])), [False, True]
    )


@pytest.mark.parametrize('dtype', [np.int32, np.int8, np.uint8, np.uint32])
@pytest.mark.parametrize('steps', [3, 200])
def test_rows_whose_lengths_cannot_be_are_nan_in_compiled_code(steps, dtype):
    """255 steps in a byte are -1 or 255; where lengths are known they are refused."""
    x = np.arange(3 * steps, dtype=np.float32).reshape(3, steps)
    lengths = np.array([2, 0, 255]).astype(dtype)
    got = jax.jit(lambda x, lengths: masking.poison_rows(x, lengths, steps, 1))(x, lengths)
    np.testing.assert_array_equal(got[:2], x[:2])
    assert np.isnan(got[2]).all()
    counted = jax.jit(lambda lengths: masking.as_lengths(lengths, (3,), steps, of='x'))(lengths)
    np.testing.assert_array_equal(counted, [2, 0, steps])
    with pytest.raises(ValueError, match='seq_lengths'):
        masking.as_lengths(lengths, (3,), steps, of='x')
