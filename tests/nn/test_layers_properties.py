"""Properties of RNN over every cell and random masks, resets and carries."""

import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.nn import models, rnn
from tests.helpers import reference
from tests.helpers.layers import (
    CELLS,
    FORMS,
    MASKS,
    PADDINGS,
    B,
    F,
    T,
    assert_equal,
    assert_same,
    draw,
    flip,
    own_carry,
    started,
)

SOME = settings(max_examples=4, deadline=None, derandomize=True, database=None)  # of every cell and form
SEEDS = st.integers(0, 2**32 - 1)
NAMES = list(CELLS)
FORWARD = [{}, {'masked_output': 'hold'}]
BACKWARD = [{'reverse': True, **order, **output} for order in ({}, {'keep_order': True}) for output in FORWARD]
# Grouped by name, so that the properties of a cell use the same compiled programs.
every_name = pytest.mark.parametrize('name', NAMES, scope='module')


def options_of(name):
    """One way forward and one backward for each name, with the same output of masked steps; all among four names.

    Compiling is most of the time here, and the ways are the same code for every cell that takes step after step.
    """
    n = NAMES.index(name)
    return FORWARD[n % 2], BACKWARD[n % 4]


def test_properties_are_tried_with_every_cell_that_has_a_name():
    assert {type(cell) for cell in CELLS.values()} >= set(models.CELLS.values())


@functools.cache
def program(name, unroll=1, **options):
    """A compiled call: (variables, x, mask, resets, initial_carry) -> (carry, outputs)."""
    layer = rnn.RNN(CELLS[name], unroll=unroll, **FORMS.get(name, {}))

    def run(variables, x, mask, resets, carry):
        return layer.apply(
            variables, x, mask=mask, resets=resets, initial_carry=carry, return_carry=True, **dict(options)
        )

    return jax.jit(run)


def example(name, seed):
    """Inputs, mask, resets and a carry, from a seed alone."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(B, T, F)).astype(np.float32)
    carry = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), own_carry(name))
    kind = rng.integers(3)
    lengths = rng.integers(0, T + 1, B)
    mask = [np.arange(T) < lengths[:, None], np.arange(T) >= lengths[:, None], rng.random((B, T)) < 0.6][kind]
    return x, mask, rng.random((B, T)) < 0.2, carry


@pytest.mark.representative(every=5)
@every_name
@SOME
@given(seed=SEEDS)
def test_L11_a_row_does_not_depend_on_its_neighbours(name, seed):
    """Nor on the batch: alone, as one of four, and among other rows, to 1e-6."""
    arrays, variables, other = example(name, seed), started(name)[1], example(name, seed + 1)
    mixed = jax.tree.map(lambda a, b: np.concatenate([a[:1], b[1:]]), arrays, other)
    for options in options_of(name):
        run = program(name, **options)
        want = first_row(run(variables, *arrays))
        assert_same(run(variables, *first_row(arrays)), want)
        assert_equal(first_row(run(variables, *mixed)), want)


def first_row(tree):
    return jax.tree.map(lambda leaf: leaf[:1], tree)


@pytest.mark.parametrize('rows', [1, 7, 64])
def test_L11_predictions_do_not_depend_on_the_batch(rows):
    layer, variables, _ = started('lstm')
    x = draw(64, T, F, seed=5)
    lengths = np.random.default_rng(0).integers(0, T + 1, 64)
    want = layer.apply(variables, x, seq_lengths=lengths)
    reference.assert_close(layer.apply(variables, x[:rows], seq_lengths=lengths[:rows]), want[:rows], 1e-6)


@pytest.mark.representative(every=5)
@every_name
@SOME
@given(seed=SEEDS)
def test_L06_rows_in_another_order_are_the_same_rows(name, seed):
    """f(x[p], mask[p]) = f(x, mask)[p], states too."""
    arrays, variables = example(name, seed), started(name)[1]
    order = np.random.default_rng(seed).permutation(B)
    for options in options_of(name):
        run = program(name, **options)
        got = run(variables, *jax.tree.map(lambda leaf: leaf[order], arrays))
        assert_same(got, jax.tree.map(lambda leaf: leaf[order], run(variables, *arrays)))


@pytest.mark.representative(every=5)
@every_name
@SOME
@given(seed=SEEDS, bad=st.sampled_from(PADDINGS), left=st.booleans())
def test_more_padding_changes_nothing(name, seed, bad, left):
    """On either side, whatever it holds: outputs and the carry stay."""
    x, mask, resets, carry = example(name, seed)
    resets[:, 0] = False  # with padding on its left it would stand between two steps
    width, variables = [(0, 0), (2, 0) if left else (0, 2)], started(name)[1]
    padded = np.pad(x, [*width, (0, 0)], constant_values=bad), np.pad(mask, width), np.pad(resets, width)
    for options in options_of(name):
        run = program(name, **options)
        last, outputs = run(variables, *padded, carry)
        cut = outputs[:, 2:] if left else outputs[:, :T]
        assert_same((last, cut), run(variables, x, mask, resets, carry))


def cuts(name):
    """Where a run is split: before the first step, after it, in the middle, after the last; each is a program more."""
    ends, middle = (0, T), (T // 2,)
    return ends + middle if name in FORMS else (ends, (1,), middle)[NAMES.index(name) % 3]


@pytest.mark.representative(every=5)
@every_name
@SOME
@given(seed=SEEDS)
def test_S04_splitting_a_run_anywhere_changes_nothing(name, seed):
    """Even before the first step or after the last; the carry goes over."""
    *arrays, carry = example(name, seed)
    variables, run = started(name)[1], program(name)
    want = run(variables, *arrays, carry)
    for cut in cuts(name):
        middle, first = run(variables, *(leaf[:, :cut] for leaf in arrays), carry)
        last, second = run(variables, *(leaf[:, cut:] for leaf in arrays), middle)
        assert_same((last, np.concatenate([first, second], axis=1)), want)


@pytest.mark.representative(every=5)
@every_name
@SOME
@given(seed=SEEDS)
def test_reversing_is_flipping(name, seed):
    """reverse = a forward run over flipped real steps, the outputs flipped back where the order is kept."""
    x, mask, resets, carry = example(name, seed)
    variables, (forth, back), resets = started(name)[1], options_of(name), np.zeros_like(resets)
    got = program(name, **back)(variables, x, mask, resets, carry)
    flipped = np.asarray(flip(x, mask))
    forward = program(name, **forth)(variables, flipped, mask, resets, carry)
    if back.get('keep_order'):
        forward = (forward[0], flip(forward[1], mask))
    assert_same(got, forward)


@functools.cache
def row_program(name, **options):
    """As `program`, each row by itself under vmap."""
    layer = started(name)[0]

    def run(variables, x, mask, resets, carry):
        return layer.apply(
            variables, x, mask=mask, resets=resets, initial_carry=carry, return_carry=True, **dict(options)
        )

    return jax.jit(jax.vmap(run, (None, 0, 0, 0, 0)))


@pytest.mark.representative(every=5)
@every_name
@SOME
@given(seed=SEEDS)
def test_unrolled_loops_and_vmap_agree(name, seed):
    """One layer run in three ways, of which each of the two others is tried in one direction."""
    arrays, variables, n = example(name, seed), started(name)[1], NAMES.index(name)
    for place, options in enumerate(options_of(name)):
        want = program(name, **options)(variables, *arrays)
        if place == n // 4 % 2:
            assert_same(row_program(name, **options)(variables, *arrays), want)
        elif not FORMS.get(name, {}).get('parallel'):
            assert_same(program(name, unroll=(2, T + 5)[n // 2 % 2], **options)(variables, *arrays), want)


def test_eager_equals_jit():
    """With jit turned off, every step runs by itself."""
    layer, variables, x = started('lstm')
    want = layer.apply(variables, x, mask=MASKS['holes'], return_carry=True)
    with jax.disable_jit():
        assert_same(layer.apply(variables, x, mask=MASKS['holes'], return_carry=True), want)


@pytest.mark.representative(every=6)
@pytest.mark.parametrize(
    ('name', 'mask', 'reverse'),
    [('lstm', None, False), *((name, 'holes', n % 2 == 0) for n, name in enumerate(CELLS))],
)
def test_an_output_depends_on_the_real_steps_up_to_its_own_and_on_no_other(name, mask, reverse):
    """By gradients at the beginning, in the middle and at the end; backward it is from its own step on."""
    layer, variables, x = started(name)
    flags = np.ones((B, T), bool) if mask is None else MASKS[mask]
    run = functools.partial(layer.apply, variables, mask=flags, reverse=reverse, keep_order=True)
    slopes = np.abs(jax.jit(jax.jacrev(lambda x: run(x).sum(-1)))(x)).max(-1)  # [B, T, B, T]
    for row, step in itertools.product(range(B), (0, T // 2, T - 1)):
        side = np.arange(T) >= step if reverse else np.arange(T) <= step
        want = np.zeros((B, T), bool)
        want[row] = side & flags[row] & flags[row, step]
        got = slopes[row, step] > 0
        # A relu may be shut, so what is reached is a part of what may be.
        assert not (got & ~want).any()
        if name != 'relu':
            np.testing.assert_array_equal(got, want)
