"""Reverse string: what is read and written by plain Python, the law of strings, and both fractions of wrong answers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import reverse_string as experiment
from seqjax.tasks import reverse_string, synthetic
from tests.helpers.drawing import compiled


def rows(batch, symbols):
    """(string that is read, string that is written) of each sequence, which are checked to stand where they must."""
    values, targets, mask = jax.device_get((batch.inputs.values, batch.targets, batch.mask))
    for x, y, counts, steps in zip(values, targets, mask, batch.inputs.seq_lengths.tolist(), strict=True):
        n = steps // 2
        assert steps == 2 * n and not x[steps:].any() and (x[:steps].sum(-1) == 1).all()
        tokens = x[:steps].argmax(-1).tolist()
        assert tokens[n:] == [symbols] * n and symbols not in tokens[:n]
        assert counts.tolist() == [False] * n + [True] * n + [False] * (len(y) - steps) and not y[~counts].any()
        yield tokens[:n], y[n:steps].tolist()


@pytest.mark.parametrize('symbols', [2, 5])
def test_what_is_written_is_the_string_backwards(symbols):
    problem = compiled(reverse_string.reverse_string, longest=7, symbols=symbols)
    batch = problem.sample(jax.random.key(0), 1000)
    assert batch.inputs.values.shape == (1000, 14, symbols + 1) and batch.targets.shape == (1000, 14)
    assert all(written == read[::-1] for read, written in rows(batch, symbols))
    assert (problem.spec.output, problem.spec.outputs, problem.spec.features) == ('per_step', symbols, symbols + 1)
    assert problem.reference_losses == {'best constant': math.log(symbols)}


def test_lengths_and_symbols_are_drawn_evenly():
    problem, count = compiled(reverse_string.reverse_string, longest=4, symbols=3), 12_000
    strings = [tuple(read) for read, _ in rows(problem.sample(jax.random.key(1), count), 3)]
    for n in range(1, 5):
        found = [string for string in strings if len(string) == n]
        assert abs(len(found) - count / 4) < 4.5 * math.sqrt(count * 3 / 16)
        codes = np.bincount(np.array(found) @ 3 ** np.arange(n), minlength=3**n)
        assert len(codes) == 3**n and np.abs(codes - len(found) / 3**n).max() < 4.5 * math.sqrt(len(found) / 3**n)


def test_draws_of_given_lengths():
    """A length is a number of time steps, two for each symbol; an odd one loses one."""
    problem, lengths = compiled(reverse_string.reverse_string, longest=2), jnp.array([1, 2, 9, 30])
    batch = problem.draw(jax.random.key(2), lengths, 32)
    assert batch.inputs.seq_lengths.tolist() == [0, 2, 8, 30]
    found = list(rows(batch, 2))
    assert [len(read) for read, _ in found] == [0, 1, 4, 15]
    assert all(written == read[::-1] for read, written in found)
    assert found != list(rows(problem.draw(jax.random.key(3), lengths, 32), 2))


def test_wrong_symbols_are_counted_one_by_one_and_wrong_strings_once():
    problem = compiled(reverse_string.reverse_string, longest=6)
    batch = problem.draw(jax.random.key(4), jnp.array([6, 12, 4]), 12)
    logits = np.where(np.arange(2) == np.asarray(batch.targets)[..., None], 9.0, 0.0)
    logits[~np.asarray(batch.mask)] = np.nan
    metrics = problem.loss_fn(jnp.asarray(logits), batch)
    assert metrics[synthetic.WRONG] == (0, 3) and metrics[synthetic.WRONG_SYMBOLS] == (0, 11)
    logits[1, 7:9] = 9 - logits[1, 7:9]
    logits[2, 2, 0] = np.nan
    metrics = problem.loss_fn(jnp.asarray(logits), batch)
    assert metrics[synthetic.WRONG] == (2, 3) and metrics[synthetic.WRONG_SYMBOLS] == (3, 11)


@pytest.mark.parametrize(('options', 'words'), [({'longest': 0}, 'longest=0'), ({'symbols': 1}, 'symbols=1')])
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        reverse_string.reverse_string(**options)


def test_its_experiment_takes_its_defaults():
    assert experiment.EXPERIMENT.name == 'reverse_string' and experiment.EXPERIMENT.check({}).model.hidden == 64
