"""Reversal and sorting: their sequences, the law of lengths and symbols, their figures, and what `wrong` means."""

import itertools
import math
import re
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import reversal, sorting
from seqjax.tasks import reorder

BOTH = pytest.mark.parametrize(
    ('make', 'order'),
    [(reorder.reversal, lambda symbols: symbols[::-1]), (reorder.sorting, sorted)],
    ids=['reversal', 'sorting'],
)


def draw(problem, count, seed):
    return jax.jit(problem.sample, static_argnums=1)(jax.random.key(seed), count)


def rows(batch):
    """(source, length, answer that the decoder reads, answer, mask) of each sequence, as lists."""
    (source, answer), targets, mask = jax.device_get(batch)
    return zip(*(x.tolist() for x in (source.values, source.seq_lengths, answer, targets, mask)), strict=True)


@BOTH
def test_answers_are_the_symbols_in_their_order(make, order):
    problem = make(longest=7, symbols=5)
    batch = draw(problem, 1000, 1)
    assert batch.inputs[0].values.shape == (1000, 7) and batch.targets.shape == batch.mask.shape == (1000, 8)
    assert batch.inputs[0].values.dtype == batch.targets.dtype == jnp.int32 and batch.mask.dtype == bool
    for source, length, read, answer, mask in rows(batch):
        symbols = source[:length]
        assert 0 not in symbols and source[length:] == [0] * (7 - length)
        assert read == answer == order(symbols) + [reorder.END] + [0] * (7 - length)
        assert mask == [True] * (length + 1) + [False] * (7 - length)
    assert (problem.spec.output, problem.spec.outputs, problem.spec.vocabulary) == ('seq2seq', 6, 6)


@BOTH
def test_lengths_and_symbols_are_drawn_evenly(make, order):
    source = jax.device_get(draw(make(longest=7, symbols=5), 7000, 2).inputs[0])
    lengths = np.bincount(source.seq_lengths, minlength=8)
    assert len(lengths) == 8 and lengths[0] == 0
    assert np.abs(lengths[1:] - 1000).max() < 4 * math.sqrt(7000 / 7 * 6 / 7)
    for place in range(7):  # also beside each other: nothing is known of a symbol by the one before
        symbols = source.values[source.seq_lengths > place][:, max(place - 1, 0) : place + 1]
        classes = np.bincount(((symbols - 1) @ 5 ** np.arange(symbols.shape[1])).ravel(), minlength=5)
        share = 5.0 ** -symbols.shape[1]
        assert len(classes) == round(1 / share)
        assert np.abs(classes / len(symbols) - share).max() < 4 * math.sqrt(share * (1 - share) / len(symbols))


@BOTH
def test_lengths_that_are_given(make, order):
    lengths = jnp.array([1, 9, 4, 12])
    batch = jax.jit(make(longest=3, symbols=2).draw, static_argnums=2)(jax.random.key(0), lengths, 12)
    assert batch.inputs[0].values.shape == (4, 12) and batch.targets.shape == (4, 13)
    for (source, length, _, answer, mask), wanted in zip(rows(batch), lengths.tolist(), strict=True):
        assert length == wanted and 0 not in source[:length] and sum(mask) == length + 1
        assert answer == order(source[:length]) + [reorder.END] * (13 - length)


@BOTH
def test_equal_keys_give_equal_sequences_and_others_do_not(make, order):
    problem = make()
    one, same, other = (jax.tree.leaves(draw(problem, 50, seed)) for seed in (3, 3, 4))
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert not any((a == b).all() for a, b in zip(one, other, strict=True))
    # The lengths and the symbols are two draws: the length tells nothing of the first symbol.
    source = jax.device_get(draw(make(longest=2, symbols=2), 4000, 0).inputs[0])
    both = np.bincount(2 * source.seq_lengths + source.values[:, 0] - 3, minlength=4)
    assert np.abs(both / 4000 - 0.25).max() < 4 * math.sqrt(3 / 16 / 4000)


@BOTH
@pytest.mark.parametrize(('longest', 'symbols'), [(4, 3), (1, 5), (5, 1), (3, 2)])
def test_figures_by_counting_all_sequences(make, order, longest, symbols):
    """Token by token: what a constant loses, and what is lost by the odds of each token behind the answer so far."""
    everywhere, behind = Counter(), defaultdict(Counter)
    for length in range(1, longest + 1):
        for source in itertools.product(range(1, symbols + 1), repeat=length):
            answer = [*order(list(source)), reorder.END]
            for i, token in enumerate(answer):
                everywhere[token] += symbols**-length
                behind[tuple(answer[:i])][token] += symbols**-length

    def loss(counts):
        return -sum(n * math.log(n / counts.total()) for n in counts.values())

    tokens = everywhere.total()
    assert make(longest, symbols).reference_losses == {
        'best constant': pytest.approx(loss(everywhere) / tokens, abs=1e-12),
        'without the source': pytest.approx(sum(map(loss, behind.values())) / tokens, abs=1e-12),
    }


@BOTH
def test_the_best_constant_is_what_the_score_gives_it(make, order):
    problem = make(longest=6, symbols=4)
    batch = draw(problem, 20_000, 5)
    end = 1 / 4.5
    odds = jnp.log(jnp.array([end] + [(1 - end) / 4] * 4))
    loss = problem.loss_fn(jnp.broadcast_to(odds, (*batch.mask.shape, 5)), batch)['loss'].compute()
    assert loss == pytest.approx(problem.reference_losses['best constant'], abs=0.005)


def test_figures_of_long_sequences_are_numbers():
    figures = reorder.sorting(longest=300, symbols=1000).reference_losses
    assert 0 < figures['without the source'] < figures['best constant'] < math.log(1001)


@BOTH
def test_wrong_is_where_greedy_decoding_finds_another_answer(make, order):
    """A decoder that is right at most tokens, and whose odds are those of a hash of source and answer so far."""
    problem = make(longest=5, symbols=3)
    batch = draw(problem, 60, 0)

    def odds(source, before):
        logits = np.random.default_rng([*source, 9, *before]).normal(size=4)
        answer = [*order(source), reorder.END]
        if list(before) == answer[: len(before)] and len(before) < len(answer):
            logits[answer[len(before)]] += 2.5
        return logits

    forced, decoded = np.zeros((*batch.mask.shape, 4)), []
    for row, (source, length, read, answer, _) in enumerate(rows(batch)):
        for i in range(len(answer)):
            forced[row, i] = odds(source[:length], read[:i])
        found = []
        while len(found) < 6 and reorder.END not in found:
            found.append(int(odds(source[:length], found).argmax()))
        decoded.append(found == answer[: length + 1])
    total, count = problem.loss_fn(jnp.asarray(forced, jnp.float32), batch)['wrong']
    assert (total, count) == (60 - sum(decoded), 60) and 10 < total < 50


@pytest.mark.parametrize('make', [reorder.reversal, reorder.sorting])
@pytest.mark.parametrize(
    ('options', 'words'),
    [({'longest': 0}, 'longest=0'), ({'symbols': 0}, 'symbols=0')],
)
def test_what_cannot_be_is_refused(make, options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)


@pytest.mark.parametrize('experiment', [reversal, sorting])
def test_arguments_are_flags(experiment):
    experiment = experiment.EXPERIMENT
    assert experiment.own_flags == ('longest', 'symbols')
    problem = experiment.synthetic_task(experiment.defaults | {'longest': 3, 'symbols': 2})
    assert re.findall(r'\d+', problem.name) == ['1', '3', '2'] and problem.success.at_most == 0.01
