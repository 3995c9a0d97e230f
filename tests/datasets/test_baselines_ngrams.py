"""N-grams: against a dictionary of counts, and as probabilities that sum to one."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from seqjax.datasets.baselines import ngrams


def text(seed, size, count=300):
    """Skewed, so that some n-grams are frequent and many are not there."""
    return (np.random.default_rng(seed).geometric(0.4, count) - 1).clip(0, size - 1).astype(np.uint16)


class Slow:
    """Interpolated modified Kneser-Ney, one probability at a time, from the definition."""

    def __init__(self, tokens, order, size):
        tokens, self.order, self.size = tokens.tolist(), order, size
        grams = {n: [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)] for n in range(1, order + 1)}
        self.counts = {order: Counter(grams[order])}
        for n in range(1, order):
            self.counts[n] = Counter(gram[1:] for gram in set(grams[n + 1]))

    def discounts(self, n):
        n1, n2, n3, n4 = (sum(c == k for c in self.counts[n].values()) for k in (1, 2, 3, 4))
        if not (n1 and n2 and n3):
            return 0.5, 1.0, 1.5
        y = n1 / (n1 + 2 * n2)
        d = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
        return d if 0 < d[0] <= 1 and 0 < d[1] <= 2 and 0 < d[2] <= 3 else (0.5, 1.0, 1.5)

    def p(self, token, context, n):
        if n == 0:
            return 1 / self.size
        context = context[len(context) - (n - 1) :] if n > 1 else ()
        after = {gram: c for gram, c in self.counts[n].items() if gram[:-1] == context}
        lower = self.p(token, context[1:], n - 1)
        if not after:
            return lower
        discount = {gram: self.discounts(n)[min(c, 3) - 1] for gram, c in after.items()}
        own, total = (*context, token), sum(after.values())
        share = (after[own] - discount[own]) / total if own in after else 0
        return share + sum(discount.values()) / total * lower


@pytest.mark.parametrize('order', [1, 2, 3, 5])
@pytest.mark.parametrize('size', [3, 9, 10_001])
def test_probabilities_are_those_of_a_dictionary(order, size):
    train, test = text(0, size), text(1, size, 60)
    slow, bits = Slow(train, order, size), ngrams.fit(train, order, size).bits(test, 0)
    for i, token in enumerate(test.tolist()):
        n = min(order, i + 1)
        assert bits[i] == pytest.approx(-math.log2(slow.p(token, tuple(test[:i].tolist()), n)), abs=1e-9)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('order', [1, 2, 3, 4])
def test_probabilities_sum_to_one_after_every_context(order, seed):
    size = 4
    model = ngrams.fit(text(seed, 3, 40), order, size)  # a token never comes, and many contexts do not
    for context in itertools.product(range(size), repeat=order - 1):
        p = [2 ** -model.bits(np.array([*context, w], np.uint8), order - 1)[0] for w in range(size)]
        assert sum(p) == pytest.approx(1, abs=1e-12) and min(p) > 0


def test_the_discounts_of_the_source_are_used_where_the_counts_allow_them():
    counts = np.repeat([1, 2, 3, 4, 7], [60, 20, 9, 5, 3])
    y = 60 / (60 + 2 * 20)
    found = ngrams._discounts(counts)
    assert found == pytest.approx((1 - 2 * y * 20 / 60, 2 - 3 * y * 9 / 20, 3 - 4 * y * 5 / 9))
    assert ngrams._discounts(np.array([1, 2, 5])) == ngrams.DISCOUNTS
    assert (
        ngrams._discounts(np.repeat([1, 2, 3, 4], [9, 1, 1, 9])) == ngrams.DISCOUNTS
    )  # D2 = 2 - 3 Y would do, D3+ not


def test_a_text_is_looked_up_in_parts_that_know_what_was_before(monkeypatch):
    train, test = text(0, 5), text(1, 5)
    model = ngrams.fit(train, 4, 5)
    whole = model.bits(test, 3)
    monkeypatch.setattr(ngrams, 'CHUNK', 7)
    assert model.bits(test, 3).tobytes() == whole.tobytes() and len(whole) == len(test) - 3
    assert model.bits(test[:1]).shape == (0,)


def test_what_repeats_is_known_and_longer_memory_helps():
    train = np.tile(np.array([0, 0, 0, 1, 1, 2], np.uint8), 50)
    means = [ngrams.fit(train, order, 3).bits(train[:60], 10).mean() for order in (1, 2, 3, 4)]
    assert means == sorted(means, reverse=True) and means[-1] < 0.1 and means[0] > 1.4


@pytest.mark.parametrize('order', [0, 4])
def test_an_order_that_the_text_has_not_is_refused(order):
    with pytest.raises(ValueError, match=f'order={order}'):
        ngrams.fit(np.array([0, 1, 0], np.uint8), order, 2)
