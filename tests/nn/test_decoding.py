"""Decoding: against every sequence there is, and a beam search in plain Python."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import decoding, seq2seq
from tests.helpers import reference

B, S, V, LONGEST = 2, 3, 3, 4
MODEL = seq2seq.encoder_decoder(V, cell='gru', features=4, attention='additive')
SOURCE = np.array([[0, 1, 2], [2, 2, 1]]), np.array([3, 2])
ALL = np.array(list(itertools.product(range(V), repeat=LONGEST)))  # [V ** longest, longest]


SHAPES = jax.eval_shape(MODEL.init, jax.random.key(0), (SOURCE, np.zeros((B, LONGEST), int)))


def draw(seed=1):
    """Variables of the model, all numbers distinct."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), SHAPES)


@partial(jax.jit, static_argnums=0)
def forced(model, variables, source, tokens):
    """Log-probabilities of the tokens [B, U] that the model is told, in [B, U]."""
    log_p = jax.nn.log_softmax(model.apply(variables, (source, tokens)))
    return jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]


def cut(tokens, end):
    """A sequence up to its first `end`."""
    tokens = tuple(int(x) for x in tokens)
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def enumerated(variables, row, end):
    """Every sequence there is -> its score, from the model under teacher forcing."""
    source = tuple(np.repeat(x[row : row + 1], len(ALL), axis=0) for x in SOURCE)
    log_p = np.asarray(forced(MODEL, variables, source, ALL), np.float64)
    kept = ((cut(tokens, end), one) for tokens, one in zip(ALL, log_p, strict=True))
    return {tokens: one[: len(tokens)].sum() for tokens, one in kept}


def rank(tokens, score, penalty):
    return score / ((5 + len(tokens)) / 6) ** penalty


def read(decoded, index, end):
    """The sequence at an index, whose form is checked: nothing but `end` behind its length."""
    tokens, length = np.asarray(decoded.tokens[index]), int(decoded.lengths[index])
    np.testing.assert_array_equal(tokens[length:], end if end is not None else [])
    assert cut(tokens, end) == tuple(tokens[:length])
    return tuple(tokens[:length].tolist())


@partial(jax.jit, static_argnames=('width', 'end', 'longest'))
def search(variables, width, end, penalty=0.0, longest=LONGEST):
    return decoding.beam(MODEL, variables, SOURCE, longest=longest, width=width, end=end, length_penalty=penalty)


@pytest.mark.representative(1)
@pytest.mark.parametrize('end', [None, 1])
@pytest.mark.parametrize('penalty', [0.0, 1.0, 3.0])
def test_a_wide_beam_finds_every_sequence_in_its_order(end, penalty):
    """As wide as there are sequences, and wider: what is left over has the score -inf."""
    for seed in (1, 2):
        variables = draw(seed)
        for row in range(B):
            want = enumerated(variables, row, end)
            width = 90 if end is None else 40
            assert len(want) == (81 if end is None else 31)
            decoded = search(variables, width, end, penalty)
            got = [read(decoded, (row, i), end) for i in range(len(want))]
            assert len(set(got)) == len(want) and set(got) == set(want)
            scores = np.asarray(decoded.scores[row])
            reference.assert_close(scores[: len(want)], [want[tokens] for tokens in got], 1e-5)
            ranks = [rank(tokens, want[tokens], penalty) for tokens in got]
            assert (np.diff(ranks) < 1e-5).all()
            assert got[0] == max(want, key=lambda tokens: rank(tokens, want[tokens], penalty))
            np.testing.assert_array_equal(scores[len(want) :], -np.inf)


def test_a_length_penalty_favours_long_sequences():
    """Over some models the best sequence gets longer, and never shorter."""
    lengths = np.array([[search(draw(s), 40, 1, penalty).lengths[:, 0] for penalty in (0.0, 3.0)] for s in range(8)])
    assert (lengths[:, 1] >= lengths[:, 0]).all() and (lengths[:, 1] > lengths[:, 0]).any()


def plain_beam(want, width, end, penalty):
    """Beam search over prefixes; scores of prefixes are those of what `want` gives them."""
    kept = {(): 0.0}
    for _ in range(LONGEST):
        grown = {}
        for prefix, score in kept.items():
            if prefix and prefix[-1] == end:
                grown[prefix] = score
            else:
                grown |= {(*prefix, token): want[(*prefix, token)] for token in range(V)}
        best = sorted(grown, key=lambda tokens: rank(tokens, grown[tokens], penalty), reverse=True)[:width]
        kept = {tokens: grown[tokens] for tokens in best}
    return kept


@pytest.mark.representative(1)
@pytest.mark.parametrize('width', [1, 2, 5])
@pytest.mark.parametrize(('end', 'penalty'), [(None, 0.0), (0, 0.0), (2, 1.5)])
def test_a_narrow_beam_is_the_plain_one(width, end, penalty):
    """Sequences, their order and their scores; widths below and above the vocabulary."""
    for seed in range(1, 5):
        variables = draw(seed)
        decoded = search(variables, width, end, penalty)
        for row in range(B):
            source = tuple(np.repeat(x[row : row + 1], len(ALL), axis=0) for x in SOURCE)
            log_p = np.asarray(forced(MODEL, variables, source, ALL), np.float64).cumsum(axis=1)
            prefixes = {
                tuple(t[: n + 1].tolist()): p[n] for t, p in zip(ALL, log_p, strict=True) for n in range(LONGEST)
            }
            want = plain_beam(prefixes, width, end, penalty)
            assert [read(decoded, (row, i), end) for i in range(width)] == list(want)
            reference.assert_close(decoded.scores[row], list(want.values()), 1e-5)


@pytest.mark.representative(every=2, first=1)
@pytest.mark.parametrize('end', [None, 1])
def test_a_beam_of_one_is_greedy(end):
    """Bit for bit, over 40 models; and greedy takes the largest logit of each step."""
    one = jax.jit(lambda variables: decoding.greedy(MODEL, variables, SOURCE, longest=LONGEST, end=end))
    lengths = set()
    for seed in range(40):
        variables = draw(seed)
        got = one(variables)
        reference.assert_trees_equal(jax.tree.map(lambda x: x[:, 0], search(variables, 1, end)), got)
        logits = np.asarray(MODEL.apply(variables, (SOURCE, got.tokens))) if seed < 5 else None
        for row in range(B):
            length = len(read(got, row, end))
            lengths.add(length)
            if logits is not None:
                np.testing.assert_array_equal(got.tokens[row, :length], logits[row, :length].argmax(axis=-1))
    assert lengths == ({LONGEST} if end is None else {1, 2, 3, 4})


def test_scores_are_those_under_teacher_forcing():
    """Of all three ways, for a model with everything; tokens behind the end count nothing."""
    model = seq2seq.encoder_decoder(5, features=4, layers=2, bidirectional=True, attention='general', start_token=2)
    variables = reference.random_variables(model, (SOURCE, np.zeros((B, 6), int)))
    decoded = {
        'greedy': decoding.greedy(model, variables, SOURCE, longest=6, end=1),
        'sample': decoding.sample(model, variables, SOURCE, longest=6, end=1, key=jax.random.key(0), temperature=3.0),
    }
    beams = decoding.beam(model, variables, SOURCE, longest=6, end=1, width=3)
    decoded |= {f'beam {i}': jax.tree.map(lambda x, i=i: x[:, i], beams) for i in range(3)}
    for name, (tokens, lengths, scores) in decoded.items():
        log_p = np.asarray(forced(model, variables, SOURCE, tokens))
        valid = np.arange(6) < np.asarray(lengths)[:, None]
        reference.assert_close(scores, np.where(valid, log_p, 0).sum(axis=1), 1e-5, name)


def test_what_has_ended_stays_as_it_is():
    """With more steps a finished sequence keeps its tokens, length and score; the others go on from where they were."""
    ended = []
    run = jax.jit(
        lambda variables, longest: decoding.greedy(MODEL, variables, SOURCE, longest=longest, end=1), static_argnums=1
    )
    for seed in range(6):
        variables = draw(seed)
        short, long = (run(variables, n) for n in (3, 7))
        np.testing.assert_array_equal(long.tokens[:, :3], short.tokens)
        for row in range(B):
            done = 1 in np.asarray(short.tokens[row])
            ended.append(done)
            assert int(short.lengths[row]) == (len(cut(short.tokens[row], 1)) if done else 3)
            if done:
                assert (long.lengths[row], long.scores[row]) == (short.lengths[row], short.scores[row])
                np.testing.assert_array_equal(long.tokens[row, 3:], 1)
    assert 0 < sum(ended) < len(ended)


def test_samples_have_the_models_probabilities():
    """The first token of 4,000 rows, at two temperatures; near 0 all are greedy; another key gives others."""
    variables = jax.tree.map(lambda x: x / 2, draw(1))
    rows = tuple(np.repeat(x[:1], 4000, axis=0) for x in SOURCE)

    @partial(jax.jit, static_argnames='longest')
    def run(key, temperature, longest):
        return decoding.sample(MODEL, variables, rows, key=key, longest=longest, temperature=temperature)

    logits = np.asarray(MODEL.apply(variables, (SOURCE, np.zeros((B, 1), int))))[0, 0]
    for temperature in (1.0, 2.5):
        p = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        got = np.bincount(run(jax.random.key(0), temperature, 1).tokens[:, 0], minlength=V) / 4000
        assert (np.abs(got - p) < 4 * np.sqrt(p * (1 - p) / 4000)).all() and p.min() > 0.01
    cold = run(jax.random.key(0), 1e-6, LONGEST)
    np.testing.assert_array_equal(cold.tokens, decoding.greedy(MODEL, variables, rows, longest=LONGEST).tokens)
    one, other = (run(jax.random.key(seed), 1.0, LONGEST).tokens for seed in (0, 1))
    assert (one != other).mean() > 0.1
    assert abs(np.corrcoef(one[:, 0], one[:, 1])[0, 1]) < 0.99  # each step draws anew


def test_decoding_is_compiled_once_for_all_values():
    count = 0

    @jax.jit
    def run(variables, tokens, lengths, penalty):
        nonlocal count
        count += 1
        source = (tokens, lengths)
        return (
            decoding.greedy(MODEL, variables, source, longest=3, end=1),
            decoding.beam(MODEL, variables, source, longest=3, width=2, end=1, length_penalty=penalty),
        )

    for seed in range(3):
        tokens = np.random.default_rng(seed).integers(0, V, (B, S))
        got = run(draw(seed), tokens, np.array([1 + seed, 2]), 0.5 * seed)
        want = decoding.greedy(MODEL, draw(seed), (tokens, np.array([1 + seed, 2])), longest=3, end=1)
        np.testing.assert_array_equal(got[0].tokens, want.tokens)
    assert count == 1


@pytest.mark.parametrize(
    ('how', 'options', 'message'),
    [
        (decoding.greedy, {'longest': 0}, 'longest=0'),
        (decoding.greedy, {'longest': 2.0}, 'longest=2.0'),
        (decoding.greedy, {'end': V}, 'end=3'),
        (decoding.beam, {'width': 2, 'end': -1}, 'end=-1'),
        (decoding.beam, {'width': 0}, 'width=0'),
        (decoding.beam, {'width': 2, 'longest': 0}, 'longest=0'),
        (decoding.beam, {'width': 2, 'length_penalty': -1.0}, 'length_penalty=-1.0'),
        (decoding.sample, {'key': jax.random.key(0), 'temperature': 0.0}, 'temperature=0.0'),
    ],
)
def test_what_cannot_be_decoded_is_refused(how, options, message):
    with pytest.raises(ValueError, match=message):
        how(MODEL, draw(), SOURCE, **{'longest': LONGEST, **options})


@pytest.mark.parametrize(
    ('decode', 'good', 'bad'),
    [
        (
            lambda model, x: decoding.sample(MODEL, model, SOURCE, longest=3, key=jax.random.key(0), temperature=x),
            0.5,
            0.0,
        ),
        (
            lambda model, x: decoding.sample(MODEL, model, SOURCE, longest=3, key=jax.random.key(0), temperature=x),
            0.5,
            -1.0,
        ),
        (
            lambda model, x: decoding.sample(MODEL, model, SOURCE, longest=3, key=jax.random.key(0), temperature=x),
            2.0,
            np.nan,
        ),
        (lambda model, x: decoding.beam(MODEL, model, SOURCE, longest=3, width=2, length_penalty=x), 0.0, -0.5),
    ],
)
def test_compiled_scores_are_nan_where_a_number_is_out_of_range(decode, good, bad):
    """It is refused otherwise; a number that can be gives what it gives without compiling."""
    variables, compiled = draw(), jax.jit(decode)
    assert np.isnan(compiled(variables, bad).scores).all()
    got, want = compiled(variables, good), decode(variables, good)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-5)
    with pytest.raises(ValueError, match='temperature|length_penalty'):
        decode(variables, bad)
