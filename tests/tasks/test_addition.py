"""Addition: its questions and answers, the law of its numbers, and the finite set."""

import math
import random
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import addition as experiments_addition
from seqjax.tasks import addition
from seqjax.tasks.synthetic import SuccessCriterion


def draw(problem, count, seed):
    return jax.jit(problem.sample, static_argnums=1)(jax.random.key(seed), count)


def spell(tokens):
    return ''.join(' 0123456789+'[token] for token in tokens)


def written(batch, reverse):
    """(question, answer) of each row as it is written; all else about the row is checked."""
    (source, read), targets, mask = jax.device_get(batch)
    assert (read == targets).all() and source.values.dtype == targets.dtype == np.int32
    found = []
    for tokens, length, answer, counts in zip(source.values, source.seq_lengths, targets, mask, strict=True):
        question, told = spell(tokens), spell(answer)
        assert question[length:].strip() == '' and ' ' not in question[:length]
        told = told.rstrip()
        assert counts.tolist() == [True] * (len(told) + 1) + [False] * (len(answer) - len(told) - 1)
        found.append((question[:length][::-1] if reverse else question[:length], told))
    return found


def numbers(batch, reverse=True):
    return np.array([list(map(int, question.split('+'))) for question, _ in written(batch, reverse)])


@pytest.mark.representative(1)
@pytest.mark.parametrize('reverse', [True, False])
@pytest.mark.parametrize('digits', [1, 3, 9])
def test_answers_are_sums(digits, reverse):
    problem = addition.addition(digits, 30, reverse)
    batch = draw(problem, 1000, 1)
    assert batch.inputs[0].values.shape == (1000, 2 * digits + 1) and batch.targets.shape == (1000, digits + 2)
    for batch in (batch, *problem.examples()):
        for question, answer in written(batch, reverse):
            one, other = question.split('+')
            assert question == f'{int(one)}+{int(other)}' and answer == str(int(one) + int(other))
            assert max(len(one), len(other)) <= digits
    assert (problem.spec.outputs, problem.spec.vocabulary, problem.success) == (11, 12, SuccessCriterion(at_most=0.01))


def test_numbers_have_the_law_of_the_source():
    """One or two random digits, each as often, and zeros in front are not written; the two numbers are independent."""
    found = numbers(draw(addition.addition(2, 10), 20_000, 2))
    law = np.full(100, 1 / 2 / 100)
    law[:10] += 1 / 2 / 10
    assert law.sum() == pytest.approx(1)
    for column in found.T:
        counts = np.bincount(column, minlength=100)
        assert counts.min() > 0 and len(counts) == 100
        assert (np.abs(counts - 20_000 * law) < 4.5 * np.sqrt(20_000 * law * (1 - law))).all()
    short = np.bincount((found < 10) @ [2, 1], minlength=4) / 20_000
    share = law[:10].sum()
    expected = np.outer([1 - share, share], [1 - share, share]).ravel()
    assert (np.abs(short - expected) < 4 * np.sqrt(expected * (1 - expected) / 20_000)).all()


def test_both_ends_of_three_digits_are_drawn():
    found = numbers(draw(addition.addition(examples=10), 20_000, 0))
    assert set(found[:, 0]) >= {0, 9, 10, 99, 100, 999} and found.min(0).tolist() == [0, 0]
    assert found.max(0).tolist() == [999, 999]


def test_equal_keys_give_equal_questions_and_others_do_not():
    problem = addition.addition(examples=10)
    one, same, other = (jax.tree.leaves(draw(problem, 50, seed)) for seed in (3, 3, 4))
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert not any((a == b).all() for a, b in zip(one, other, strict=True))


# --- the finite set --------------------------------------------------------------------------------


def test_no_question_is_in_the_set_twice():
    """Not in one part, not in two, and not the other way round."""
    parts = [numbers(part) for part in addition.addition(examples=3000).examples()]
    assert [len(part) for part in parts] == [2700, 150, 150]
    assert len({frozenset(pair) for part in parts for pair in part.tolist()}) == 3000
    assert len(addition.questions(3, 60_000)[0]) == 60_000
    assert len(np.unique(np.sort(addition.questions(3, 60_000), axis=0), axis=1)[0]) == 60_000
    assert [addition.held_out(examples) for examples in (1, 20, 21, 50_000)] == [1, 1, 2, 2500]


def test_the_set_is_always_the_same_and_reversal_changes_only_the_order_of_reading():
    first = jax.device_get(addition.addition(2, 200).examples())
    addition.questions.cache_clear()
    again, straight = (
        jax.device_get(addition.addition(2, 200).examples()),
        addition.addition(2, 200, reverse=False).examples(),
    )
    for one, same, other in zip(first, again, straight, strict=True):
        assert all((a == b).all() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(same), strict=True))
        assert written(one, True) == written(other, False)
    assert numbers(first.train)[:3].tolist() == [[71, 4], [28, 46], [67, 82]]  # by NumPy 2.1 and 2.4


def test_the_set_is_drawn_as_the_source_draws_it():
    """Its loop, slowly and 30 times: how many questions have a number below 10, and how many have two."""
    random.seed(0)

    def number():
        return int(''.join(random.choice('0123456789') for _ in range(random.randint(1, 2))))

    def shorts(pairs):
        return [sum(sum(n < 10 for n in pair) >= least for pair in pairs) for least in (1, 2)]

    drawn = []
    for _ in range(30):
        seen = set()
        while len(seen) < 600:
            seen.add(tuple(sorted((number(), number()))))
        drawn.append(shorts(seen))
    found = shorts(addition.questions(2, 600).T.tolist())
    assert (np.abs(found - np.mean(drawn, 0)) < 4 * np.std(drawn, 0) + 1).all()
    assert found[0] > 1.3 * 600 * (1 - 0.9**2)  # draws of every question as often would have fewer


def test_the_parts_are_alike():
    """Questions are shuffled before they are parted: the last ones drawn have the larger numbers."""
    pairs = addition.questions(3, 60_000)
    order = [np.sort(pairs[:, part].sum(0)) for part in (slice(50_000), slice(50_000, 55_000), slice(55_000, 60_000))]
    deviation = order[0].std()
    for part in order[1:]:
        assert abs(part.mean() - order[0].mean()) < 4 * deviation * math.sqrt(1 / 5000 + 1 / 50_000)
    short = [(np.sort(pairs[:, part], axis=0)[1] < 100).mean() for part in (slice(50_000), slice(50_000, None))]
    assert abs(short[0] - short[1]) < 4 * math.sqrt(short[0] * (1 - short[0]) * (1 / 50_000 + 1 / 10_000))
    # Which of the two numbers comes first is open.
    larger = (pairs[0] > pairs[1]).sum() / (pairs[0] != pairs[1]).sum()
    assert abs(larger - 0.5) < 4 * math.sqrt(0.25 / 60_000)


def test_the_last_question_too_is_found():
    """Numbers of one digit make 55 questions."""
    parts = addition.addition(1, 55).examples()
    pairs = {frozenset(pair) for part in parts for pair in numbers(part).tolist()}
    assert pairs == {frozenset((a, b)) for a in range(10) for b in range(10)}


@pytest.mark.parametrize(('digits', 'examples'), [(1, 40), (2, 300), (3, 2000)])
def test_the_best_constant_by_counting(digits, examples):
    """The entropy of the tokens that are to be told, over the questions to learn from."""
    problem = addition.addition(digits, examples)
    train = problem.examples().train
    counts = Counter(token for _, answer in written(train, True) for token in answer + '.')
    shares = np.array(list(counts.values())) / counts.total()
    assert problem.reference_losses == {'best constant': pytest.approx(-(shares * np.log(shares)).sum())}
    odds = jnp.log(jnp.array([counts[c] / counts.total() for c in '.0123456789']))
    loss = problem.loss_fn(jnp.broadcast_to(odds, (*train.mask.shape, 11)), train)['loss'].compute()
    assert loss == pytest.approx(problem.reference_losses['best constant'], rel=1e-5)


def test_it_can_be_made_while_something_is_traced():
    """As `Study.sizes` makes it."""
    shapes = jax.eval_shape(lambda: addition.addition(2, 77).sample(jax.random.key(0), 3))
    assert shapes.inputs[0].values.shape == (3, 5)
    assert addition.addition(2, 77).examples().train.mask.shape == (69, 4)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'digits': 0}, 'digits=0'),
        ({'digits': 10}, 'digits=10'),
        ({'examples': 2}, 'examples=2'),
        ({'digits': 1, 'examples': 56}, 'examples=56'),
        ({'digits': 2}, 'examples=50000'),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        addition.addition(**options)


def test_arguments_are_flags():
    experiment = experiments_addition.EXPERIMENT
    assert experiment.own_flags == ('digits', 'examples', 'reverse') and addition.addition is experiment.make
    problem = experiment.synthetic_task(experiment.defaults | {'digits': 2, 'examples': 50})
    assert '2' in problem.name
