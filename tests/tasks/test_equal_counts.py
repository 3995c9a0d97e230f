"""a^n b^n and a^n b^n c^n: strings and sets of next symbols by a list of the language, and what `wrong` means."""

import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import anbncn
from seqjax.tasks import equal_counts, synthetic
from tests.helpers.drawing import compiled

LANGUAGES = {'a^n b^n': (2, 20), 'a^n b^n c^n': (3, 30), 'four letters': (4, 24)}
each = pytest.mark.parametrize(('letters', 'longest'), LANGUAGES.values(), ids=LANGUAGES)


def language(letters, most):
    return {n: ''.join('abcdefgh'[letter] * n for letter in range(letters)) for n in range(1, most + 1)}


def continuations(word, letters):
    """The symbols that follow this prefix in any string of the language, '.' the end; by trying long ones, too."""
    strings = [text + '.' for text in language(letters, len(word) + 1).values()]
    return {text[len(word)] for text in strings if text.startswith(word)}


def rows(batch):
    """(word, set of symbols at each step) of each sequence; what stands after the end is zeros."""
    values, lengths = jax.device_get(batch.inputs.values), batch.inputs.seq_lengths.tolist()
    real = np.arange(values.shape[1]) < np.array(lengths)[:, None]
    np.testing.assert_array_equal(values.sum(-1), real)
    np.testing.assert_array_equal(batch.mask, real)
    assert not batch.targets[~real].any() and set(np.unique(batch.targets)) <= {0.0, 1.0}
    names = 'abcdefgh'[: values.shape[-1]]
    for row, sets, length in zip(values, batch.targets, lengths, strict=True):
        word = ''.join(names[i] for i in row[:length].argmax(-1))
        yield word, [{symbol for symbol, on in zip(names + '.', step, strict=True) if on} for step in sets[:length]]


@each
def test_strings_are_of_the_language_and_targets_are_all_that_can_follow(letters, longest):
    problem = compiled(equal_counts.anbncn, letters=letters, longest=longest)
    batch = jax.device_get(problem.sample(jax.random.key(0), 300))
    assert batch.inputs.values.shape == (300, longest, letters) and batch.targets.shape == (300, longest, letters + 1)
    for word, sets in rows(batch):
        assert word == language(letters, longest // letters)[len(word) // letters]
        assert sets == [continuations(word[: t + 1], letters) for t in range(len(word))]
    assert (problem.spec.output, problem.spec.outputs, problem.spec.features) == ('per_step', letters + 1, letters)
    assert problem.spec.causal


@each
def test_every_n_is_as_likely(letters, longest):
    problem, most = compiled(equal_counts.anbncn, letters=letters, longest=longest), longest // letters
    counts = Counter(problem.sample(jax.random.key(1), 1000 * most).inputs.seq_lengths.tolist())
    assert set(counts) == {letters * n for n in range(1, most + 1)}
    assert max(abs(n - 1000) for n in counts.values()) < 4.5 * math.sqrt(1000)


@each
def test_draws_of_given_lengths(letters, longest):
    """Beyond those of training, too; what is no multiple of the number of letters is reduced to one."""
    problem, lengths = compiled(equal_counts.anbncn, letters=letters, longest=longest), jnp.arange(1, 100)
    batch = jax.device_get(problem.draw(jax.random.key(2), lengths, 128))
    assert batch.inputs.seq_lengths.tolist() == [length // letters * letters for length in range(1, 100)]
    for word, sets in rows(batch):
        assert not word or word == language(letters, 50)[len(word) // letters]
        assert sets == [continuations(word[: t + 1], letters) for t in range(len(word))]


@each
def test_the_best_constant_is_the_loss_of_the_shares_of_all_strings(letters, longest):
    problem, words = (
        compiled(equal_counts.anbncn, letters=letters, longest=longest),
        language(letters, longest // letters),
    )
    sets = [continuations(word[:t], letters) for word in words.values() for t in range(1, len(word) + 1)]
    shares = np.array([np.mean([symbol in step for step in sets]) for symbol in 'abcdefgh'[:letters] + '.'])
    want = -(shares * np.log(shares) + (1 - shares) * np.log(1 - shares)).sum()
    assert problem.reference_losses == pytest.approx({'best constant': want})
    batch = problem.draw(jax.random.key(0), letters * jnp.arange(1, len(words) + 1), longest)
    logits = jnp.broadcast_to(jnp.log(shares / (1 - shares)), batch.targets.shape)
    found = problem.loss_fn(logits, batch)
    assert float(found['loss'].compute()) == pytest.approx(want, rel=1e-5)
    assert found[synthetic.WRONG].compute() == 1


@each
def test_a_string_is_accepted_if_every_symbol_of_every_step_is_on_its_side(letters, longest):
    """Of a perfect answer, one logit of one string changes its sign; in padding nothing matters."""
    problem = compiled(equal_counts.anbncn, letters=letters, longest=longest)
    batch = problem.sample(jax.random.key(3), 40)
    sure = np.where(np.asarray(batch.targets) > 0, 0.1, -0.1)
    sure[~np.asarray(batch.mask)] = np.nan
    assert problem.loss_fn(jnp.asarray(sure), batch)[synthetic.WRONG] == (0, 40)
    for t in range(letters):
        for symbol in range(letters + 1):
            changed = sure.copy()
            changed[5, t, symbol] *= -1
            assert problem.loss_fn(jnp.asarray(changed), batch)[synthetic.WRONG] == (1, 40)
    assert problem.loss_fn(jnp.asarray(np.where(sure == -0.1, np.nan, sure)), batch)[synthetic.WRONG] == (40, 40)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'letters': 1}, 'letters=1'),
        ({'letters': 27, 'longest': 27}, 'letters=27'),
        ({'longest': 31}, 'longest=31 .* letters=3'),
        ({'letters': 2, 'longest': 0}, 'longest=0'),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        equal_counts.anbncn(**options)


def test_its_experiment_takes_its_defaults():
    settings = anbncn.EXPERIMENT.check({'letters': 2, 'longest': 20})
    assert anbncn.EXPERIMENT.name == 'anbncn' and settings.train.batch_size == 16
