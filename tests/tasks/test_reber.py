"""Embedded Reber grammar: strings by a list of edges, their law by every string, targets by every prefix."""

import itertools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import embedded_reber as experiment
from seqjax.tasks import reber, synthetic
from tests.helpers.drawing import compiled

SYMBOLS = reber.SYMBOLS
SHORT = 14  # every string up to this length is listed


def is_reber(text):
    """A walk by hand through the picture in Cleeremans et al. 1989, all edges as (node, symbol, node)."""
    picture = ['0T1', '0P2', '1S1', '1X3', '2T2', '2V4', '3X2', '3S5', '4P3', '4V5', '5E6']
    nodes = {0} if text[:1] == 'B' else set()
    for symbol in text[1:]:
        nodes = {int(edge[2]) for edge in picture if edge[1] == symbol and int(edge[0]) in nodes}
    return nodes == {6}


def listed(longest):
    """Every embedded string up to this length, and how likely it is among them: 1/2 for each choice.

    They are found by growing prefixes: a prefix lives as long as some string begins with it.
    """
    inner, grown = [], ['B']
    while grown:
        grown = [text + symbol for text in grown for symbol in 'TPSXVE']
        inner += [text for text in grown if is_reber(text)]
        grown = [text for text in grown if len(text) < longest - 4 and text[-1] != 'E' and is_prefix(text)]
    law = {f'B{outer}{text}{outer}E': 0.5 ** (1 + choices(text)) for text in inner for outer in 'TP'}
    return {text: p / sum(law.values()) for text, p in law.items()}


def is_prefix(text):
    """Within five more symbols every node reaches the end: TXSE, or VVE."""
    return any(is_reber(text + end) for end in ('E', 'SE', 'VE', 'XSE', 'VVE', 'TXSE', 'PVVE'))


def choices(text):
    """Steps of an inner string at which another symbol could follow."""
    return sum(len(after(text[:t])) == 2 for t in range(1, len(text)))


def after(prefix):
    """Symbols that can follow a prefix of an inner string, by trying each."""
    return {symbol for symbol in 'TPSXVE' if is_prefix(prefix + symbol) or is_reber(prefix + symbol)}


def can_follow(word, t):
    """Symbols that can follow the first t symbols of an embedded string."""
    if t == 1:
        return {'T', 'P'}
    if t == 2:
        return {'B'}
    if t < len(word) - 2:
        return after(word[2:t])
    return {word[1]} if t == len(word) - 2 else {'E'}


LAW = listed(SHORT)


def words(batch):
    """The strings; what stands after the end is zeros, and every step but the last one counts."""
    values, lengths = jax.device_get(batch.inputs.values), np.asarray(batch.inputs.seq_lengths)
    steps = np.arange(values.shape[1])
    np.testing.assert_array_equal(values.sum(-1), steps < lengths[:, None])
    np.testing.assert_array_equal(batch.mask, steps < lengths[:, None] - 1)
    return [''.join(SYMBOLS[i] for i in row[:n].argmax(-1)) for row, n in zip(values, lengths, strict=True)]


def test_the_list_begins_with_what_can_be_counted_by_hand():
    lengths = Counter(map(len, LAW))
    assert {n: lengths[n] for n in (9, 10, 11)} == {9: 4, 10: 6, 11: 8}
    assert {'BTBTXSETE', 'BPBPVVEPE', 'BPBTSXSEPE', 'BTBPTVVETE', 'BPBPVPSEPE'} <= set(LAW)
    assert 'BTBTXSEPE' not in LAW and not is_reber('BTTXSE')


def test_every_string_is_as_likely_as_its_choices_make_it():
    count = 40_000
    batch = compiled(reber.embedded_reber, longest=SHORT).sample(jax.random.key(0), count)
    found = Counter(words(batch))
    assert set(found) <= set(LAW) and {text for text, p in LAW.items() if p * count > 20} <= set(found)
    for text, p in LAW.items():
        assert abs(found[text] - p * count) < 5 * math.sqrt(p * count) + 1, text


def test_targets_are_the_next_symbols_and_long_strings_are_of_the_grammar():
    batch = jax.device_get(compiled(reber.embedded_reber).sample(jax.random.key(1), 500))
    for word, targets, mask in zip(words(batch), batch.targets, batch.mask, strict=True):
        assert (word[0], word[-1]) == ('B', 'E') and word[1] == word[-2] in 'TP' and is_reber(word[2:-2])
        assert [SYMBOLS[i] for i in targets[mask]] == list(word[1:]) and not targets[~mask].any()


def test_draws_of_given_lengths():
    problem, lengths = compiled(reber.embedded_reber, longest=SHORT), jnp.arange(1, 61)
    batch = problem.draw(jax.random.key(2), lengths, 64)
    found = words(batch)
    assert [len(word) for word in found] == [0] * 8 + list(range(9, 61))
    assert all(word[1] == word[-2] and is_reber(word[2:-2]) for word in found[8:])
    count = 8000
    found = Counter(words(problem.draw(jax.random.key(3), jnp.full(count, 12), SHORT)))
    share = sum(p for text, p in LAW.items() if len(text) == 12)
    law = {text: p / share for text, p in LAW.items() if len(text) == 12}
    assert set(found) == set(law)
    assert all(abs(found[text] - p * count) < 5 * math.sqrt(p * count) for text, p in law.items())


def test_what_can_follow_is_what_some_string_goes_on_with():
    batch = compiled(reber.embedded_reber, longest=SHORT).sample(jax.random.key(4), 300)
    follows = np.asarray(jax.jit(reber.can_follow)(batch.inputs.values))
    for word, sets in zip(words(batch), follows, strict=True):
        for t in range(1, len(word)):
            assert {SYMBOLS[i] for i in np.nonzero(sets[t - 1])[0]} == can_follow(word, t), (word, t)


def test_a_string_is_right_if_what_can_follow_is_most_active():
    """By the sets above; then one impossible symbol of one string is raised over the less active possible one."""
    problem = compiled(reber.embedded_reber, longest=SHORT)
    batch = problem.sample(jax.random.key(5), 50)
    logits = np.full((50, SHORT, 7), -1.0)
    for row, word in zip(logits, words(batch), strict=True):
        for t in range(1, len(word)):
            row[t - 1, [SYMBOLS.index(symbol) for symbol in can_follow(word, t)]] = 1
    logits += np.random.default_rng(0).uniform(-0.9, 0.9, logits.shape)
    logits[~np.asarray(batch.mask)] = np.nan
    assert problem.loss_fn(jnp.asarray(logits), batch)[synthetic.WRONG] == (0, 50)
    word = words(batch)[7]
    for t in range(1, len(word)):
        changed, impossible = logits.copy(), sorted(set(SYMBOLS) - can_follow(word, t))[t % 4]
        least = min(changed[7, t - 1, SYMBOLS.index(symbol)] for symbol in can_follow(word, t))
        changed[7, t - 1, SYMBOLS.index(impossible)] = least + 0.001
        assert problem.loss_fn(jnp.asarray(changed), batch)[synthetic.WRONG] == (1, 50)


def test_reference_losses_by_every_string():
    counts = Counter()
    for word, p in LAW.items():
        for symbol in word[1:]:
            counts[symbol] += p
    total = sum(counts.values())
    constant = -sum(n / total * math.log(n / total) for n in counts.values())
    floor = -sum(p * math.log(p) for p in LAW.values()) / total
    assert reber.embedded_reber(longest=SHORT).reference_losses == pytest.approx(
        {'best constant': constant, 'entropy floor': floor}
    )


def test_the_finite_set_has_three_parts_of_independent_strings():
    problem = reber.embedded_reber(examples=100)
    parts = problem.examples()
    assert all(len(part.mask) == 100 for part in parts)
    first = [words(part) for part in parts]
    assert all(a != b for a, b in itertools.combinations(first, 2))
    assert first == [words(part) for part in problem.examples()]
    assert reber.embedded_reber(examples=0).examples is None


@pytest.mark.parametrize(
    ('options', 'word'),
    [({'longest': 8}, 'longest=8'), ({'longest': 10**9}, 'longest='), ({'examples': 10**9}, 'examples=')],
)
def test_what_cannot_be_is_refused(options, word):
    with pytest.raises(ValueError, match=word):
        reber.embedded_reber(**options)


def test_its_experiment_takes_its_defaults():
    settings = experiment.EXPERIMENT.check({})
    assert experiment.EXPERIMENT.name == 'embedded_reber'
    assert settings.train.batch_size * settings.train.eval_every == settings.options['examples']
