"""Text: how it is fed and scored, its baselines, what a finished run says of a text, and what it writes."""

import contextlib
import csv
import functools
import io
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax import training
from seqjax.cli import predict
from seqjax.cli import text as cli_text
from seqjax.datasets import language_modeling
from seqjax.datasets.baselines import ngrams
from seqjax.datasets.language_modeling import SplitBounds
from seqjax.datasets.readers.texts import Vocabulary
from seqjax.errors import UserError
from seqjax.nn import models
from seqjax.ops import windows
from seqjax.types import Task, TrainState

FEW = settings(max_examples=60, deadline=None, derandomize=True)
V, T, B = 5, 4, 3


def series(count, seed=0):
    return np.random.default_rng(seed).integers(0, V, count).astype(np.uint8)


def dataset(tokens, bounds, **options):
    options = {'size': V, 'unit': 'character', 'title': 'x', 'batch_size': B, 'window': T, 'ngram_order': 2} | options
    return language_modeling.dataset(
        tokens, bounds, **{'max_ngram_tokens': 10**6, 'token_name': str, 'preprocessing': {}, **options}
    )


@functools.cache
def model_and_variables():
    model = models.sequence_model('per_step', V, features=6, vocabulary=V, stateful=True)
    return model, {'params': model.init(jax.random.key(0), jnp.zeros((1, 1), int))['params']}


# --- how it is fed ---------------------------------------------------------------------------------


@pytest.mark.parametrize(('batch_size', 'window', 'more'), [(1, 1, 0), (3, 4, 0), (3, 4, 11), (2, 3, 13)])
def test_windows_follow_each_other_and_every_target_is_the_token_after(batch_size, window, more):
    tokens = np.arange(batch_size * (window + 1) + more)
    rows = windows.token_rows(tokens, batch_size, window)
    assert np.shares_memory(rows, tokens) and (rows.shape[1] - 1) % window == 0
    count, share = (rows.shape[1] - 1) // window, len(tokens) // batch_size
    assert share - rows.shape[1] < window  # what is left out of a row fills no window
    cut = jax.jit(lambda step: windows.token_window(rows, step, window))
    read = [cut(step) for step in range(count + 1)]
    inputs, targets = (np.concatenate([part[i] for part in read[:count]], axis=1) for i in (0, 1))
    assert (inputs == np.arange(batch_size)[:, None] * share + np.arange(count * window)).all()
    assert (targets == inputs + 1).all()
    assert [bool(part[2][:, 0].all()) for part in read] == [True] + [False] * (count - 1) + [True]
    assert not any(part[2][:, 1:].any() for part in read) and (read[-1][0] == read[0][0]).all()


def test_rows_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match='14 tokens.*3 rows'):
        windows.token_rows(series(14), 3, 4)
    with pytest.raises(ValueError, match='window=0'):
        windows.token_rows(series(14), 3, 0)
    with pytest.raises(ValueError, match='window=5'):
        windows.token_window(windows.token_rows(series(15), 3, 4), 0, 5)


def test_parts_follow_each_other_in_the_text():
    assert SplitBounds.from_fractions(100, 0.05, 0.1, max_eval_tokens=1000) == (85, 90, 100)
    assert SplitBounds.from_fractions(10_000, 0.05, 0.1, max_eval_tokens=50) == (9900, 9950, 10_000)
    bounds = SplitBounds.from_fractions(100, 0.05, 0.1, 1000)
    assert [bounds.split(name) for name in ('all', 'validation', 'test')] == [(0, 100), (85, 90), (90, 100)]


@given(st.integers(1, 700), st.integers(1, 5))
@FEW
def test_every_token_but_the_first_is_predicted_once_after_the_one_before(count, window):
    tokens = np.arange(count + 1)
    batch = language_modeling.evaluation_batch(tokens, window)
    assert (batch.targets[batch.mask] == batch.inputs[batch.mask] + 1).all()
    assert sorted(batch.targets[batch.mask]) == list(range(1, count + 1))
    assert batch.mask.shape[1:] == (language_modeling.rows_for(count, window), window)
    assert language_modeling.from_batches(batch.targets, count).tolist() == list(range(1, count + 1))
    rows = batch.inputs.swapaxes(0, 1).reshape(batch.mask.shape[1], -1)
    real = batch.mask.swapaxes(0, 1).reshape(rows.shape)
    assert (np.diff(rows)[real[:, 1:]] == 1).all() and not (~real[:, :-1] & real[:, 1:]).any()


def test_training_never_sees_what_is_held_out():
    tokens = np.arange(200, dtype=np.uint8)
    found = dataset(tokens, SplitBounds(150, 170, 200), size=200)
    assert found.data.max() == 148 and found.steps_per_epoch == 12  # two tokens of every row fill no window
    assert (found.validation.inputs[found.validation.mask].min(), found.validation.targets.max()) == (150, 169)
    assert found.test.batches.inputs[found.test.batches.mask].min() == 170


# --- how it is scored ------------------------------------------------------------------------------


def test_answers_are_the_nats_of_the_tokens_that_came():
    model, variables = model_and_variables()
    tokens = series(33)
    batch = language_modeling.evaluation_batch(tokens, T)
    task = Task(language_modeling.loss_fn, lambda *_: None, (), {'test': batch})
    state = TrainState(0, None, variables['params'], {}, None)
    found = jax.jit(lambda batch: training.evaluate_batches(model, state, batch, language_modeling.postprocess))(batch)
    logits = jax.jit(model.apply)(variables, tokens[None, :-1].astype(int))  # all steps in one call
    expected = optax.softmax_cross_entropy_with_integer_labels(logits[0], tokens[1:].astype(int))
    np.testing.assert_allclose(language_modeling.from_batches(np.asarray(found['nats']), 32), expected, rtol=1e-5)
    assert found['right'].sum() == (logits[0].argmax(-1) == tokens[1:]).sum()
    means = jax.jit(lambda state: training.evaluate(model, task, state))(
        TrainState(0, None, variables['params'], {}, None)
    )
    means = means['test']['loss']
    assert float(means.compute()) == pytest.approx(float(expected.mean()), rel=1e-5) and means.count == 32


def test_items_are_stretches_in_bits_and_their_sum_is_the_whole():
    found = dataset(series(900), SplitBounds(600, 700, 900), window=3)
    mask = found.test.batches.mask
    nats = np.where(mask, np.random.default_rng(0).random(mask.shape), 1e9).astype(np.float32)
    items = found.items({'nats': nats})
    assert items.counts.sum() == 199 and items.counts.max() == 3 and items.counts.min() > 0
    assert items.totals.sum() == pytest.approx(nats[mask].sum(dtype=float) / math.log(2))
    assert found.metric.name == 'bits per character' and not found.metric.higher_is_better
    columns, rows = found.test.table({'nats': nats})
    rows = list(rows)
    assert columns == ('place', 'token', 'bits') and [row[0] for row in rows] == list(range(701, 900))
    assert [row[1] for row in rows] == [str(token) for token in series(900)[701:]]
    assert sum(row[2] for row in rows) == pytest.approx(items.totals.sum())


def test_perplexity_is_told():
    nats = np.full((1, 1, 4), math.log(3), np.float32)
    lines = language_modeling.summary({'nats': nats, 'right': np.array([[[True, False, False, False]]])}, 4, 'word')
    assert len(lines) == 1 and re.findall(r'\d[\d.]*%?', lines[0]) == ['1.5850', '3', '25.0%', '4']


@pytest.mark.parametrize('split', ['validation', 'test'])
def test_baselines_are_scored_on_the_tokens_of_the_model_and_may_look_back(split):
    tokens, bounds = np.sort(series(400)), SplitBounds(300, 340, 400)
    tokens = np.random.default_rng(1).permutation(tokens)
    found = dataset(tokens, bounds, ngram_order=3, max_ngram_tokens=250)
    begin, end = bounds.split(split)
    fitted = tokens[50:300] if split == 'validation' else tokens[50:340]
    for name, order in (('unigram', 1), ('Kneser-Ney 3-gram', 3)):
        bits = ngrams.fit(fitted, order, V).bits(tokens[:end], begin + 1)
        mask = {'validation': found.validation, 'test': found.test.batches}[split].mask
        items = found.baselines[name](split)
        assert items.totals.sum() == pytest.approx(bits.sum())
        assert items.counts.tolist() == [count for count in mask.sum(-1).reshape(-1) if count]
        expected = [part.sum() for part in np.split(bits, np.cumsum(items.counts)[:-1])]
        np.testing.assert_allclose(items.totals, expected)  # one row here: its stretches are the text's


# --- token by token, and writing -------------------------------------------------------------------


def streamed(stream, model, variables, lines):
    found, carry = [], None
    step = jax.jit(lambda carry, token: model.apply(variables, token, initial_carry=carry, return_carry=True))
    for line in lines:
        token = stream.parse(line)
        carry, logits = step(carry, token[None, None])
        found.append(stream.values(np.asarray(logits).reshape(-1), token))
    return found


def test_token_by_token_the_bits_are_those_of_the_whole_text():
    model, variables = model_and_variables()
    vocabulary = Vocabulary('characters', '\nabc')
    text = 'ab\ncabx'
    tokens, _ = vocabulary.encode(text)
    lines = ['a', 'b', '\\n', 'c', 'a', 'b', 'x']
    stream = language_modeling.stream(lambda line: cli_text.parse_line(line, vocabulary), vocabulary.name)
    found = streamed(stream, model, variables, lines)
    logits = np.asarray(jax.jit(model.apply)(variables, tokens[None]))[0]
    expected = optax.softmax_cross_entropy_with_integer_labels(logits[:-1], tokens[1:].astype(int)) / math.log(2)
    np.testing.assert_allclose([row[1] for row in found[1:]], expected, rtol=1e-5)
    assert [row[0] for row in found] == ['a', 'b', '\\n', 'c', 'a', 'b', '<unknown>']
    assert [row[2] for row in found] == [vocabulary.name(token) for token in logits.argmax(-1)]
    assert found[0][1] == ''
    stream.restart()
    assert streamed(stream, model, variables, lines[:2]) == found[:2]


def test_a_line_is_one_token():
    characters, words = Vocabulary('characters', 'a\n\\'), Vocabulary('words', ['the', ' cat'])
    assert [int(cli_text.parse_line(line, characters)) for line in ('a', '\\n', '\\', '\\\\', 'é')] == [0, 1, 2, 2, 3]
    assert [int(cli_text.parse_line(line, words)) for line in ('the', ' cat', ' the')] == [0, 1, 2]
    assert int(cli_text.parse_line('255', Vocabulary('bytes'))) == 255
    with pytest.raises(UserError, match="'ab'"):
        cli_text.parse_line('ab', characters)
    with pytest.raises(UserError, match="'the cat'"):
        cli_text.parse_line('the cat', words)
    for line in ('256', '-1', 'a', '²', '1.0'):
        with pytest.raises(UserError, match='0 to 255'):
            cli_text.parse_line(line, Vocabulary('bytes'))


def test_what_is_written_follows_from_what_was_written_before():
    model, variables = model_and_variables()
    prompt = np.array([1, 2], np.uint8)
    written = language_modeling.sample(model, variables, prompt, jax.random.key(0), 1e-4, length=9, samples=2)
    whole = np.concatenate([np.broadcast_to(prompt, (2, 2)), np.asarray(written)], axis=1)
    best = np.asarray(jax.jit(model.apply)(variables, whole[:, :-1].astype(int))).argmax(-1)
    assert (best[:, 1:] == written).all()  # at a temperature near 0


def test_tokens_are_drawn_by_their_probabilities_and_never_the_one_that_is_not_to_be():
    model, variables = model_and_variables()
    prompt, key, temperature = np.array([3], np.uint8), jax.random.key(1), 0.2
    first = np.asarray(
        language_modeling.sample(model, variables, prompt, key, temperature, length=1, samples=4000, never=4)
    )
    logits = np.asarray(model.apply(variables, prompt[None].astype(int)))[0, 0, :4] / temperature
    shares = np.bincount(first[:, 0], minlength=V) / 4000
    np.testing.assert_allclose(shares[:4], np.exp(logits) / np.exp(logits).sum(), atol=0.04)
    assert shares[4] == 0


# --- the experiment --------------------------------------------------------------------------------

SONG = 'old macdonald had a farm,\nee-i-ee-i-o!\n' * 60
SMALL = {'hidden': 16, 'batch_size': 4, 'window': 16, 'steps': 150, 'eval_every': 50, 'num_seeds': 2, 'plot': False}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run on a song, in whose test part there is a character that is not known."""
    folder = tmp_path_factory.mktemp('text')
    file = folder / 'song.txt'
    file.write_text(SONG[:-9] + 'é' + SONG[-8:], encoding='utf-8')
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        result = cli_text.EXPERIMENT.run(
            data=str(file), workdir=str(folder / 'run'), test_fraction=0.1, ngram_order=3, **SMALL
        )[0]
    return file, folder / 'run', result, out.getvalue()


def test_a_run_looks_at_the_text_and_beats_the_shares_of_its_characters(finished):
    _, folder, result, told = finished
    assert '2,340 characters' in told
    assert re.search(r'1,989\b.*\b117\b.*\b234\b', told)
    assert '17 characters' in told and told.count('0.00%') >= 2
    assert 'é' not in told and 'bits per character' in told and 'unigram' in told
    assert result.gains['unigram'].mean > 0.3 and result.gains['unigram'].significant
    assert result.summary_lines[0].endswith('of 233 characters')
    preprocessing = json.loads((folder / 'summary.json').read_text())['preprocessing']
    assert preprocessing['known'] == ''.join(sorted(set(SONG))) and preprocessing['window'] == 16


def predicted(capsys, *flags):
    assert predict.main([*flags]) == 0
    captured = capsys.readouterr()
    return list(csv.DictReader(io.StringIO(captured.out))), captured.err


def test_the_part_that_was_tested_on_is_scored_as_it_was_bit_for_bit(finished, in_tmp, capsys):
    file, folder, result, _ = finished
    rows, told = predicted(capsys, f'--workdir={folder}', f'--data={file}', '--split=test')
    with (folder / 'predictions.csv').open(newline='', encoding='utf-8') as table:
        assert rows == list(csv.DictReader(table)) and len(rows) == 233
    chosen = result.values[result.seeds.index(result.chosen)]
    assert sum(float(row['bits']) for row in rows) / 233 == pytest.approx(chosen, rel=1e-12)
    assert result.summary_lines[0] in told
    assert re.search(r"\b1 of 2,340 .*0\.04%.*'é'", told)
    assert [row['token'] for row in rows].count('<unknown>') == 1


def test_a_new_text_is_scored_whole(finished, in_tmp, capsys):
    _, folder, _, _ = finished
    (in_tmp / 'new.txt').write_text('old mac\n', encoding='utf-8')
    rows, told = predicted(capsys, f'--workdir={folder}', '--data=new.txt')
    assert [row['token'] for row in rows] == [*'ld mac', '\\n'] and [row['place'] for row in rows] == list('1234567')
    mean = sum(float(row['bits']) for row in rows) / 7
    assert f'{mean:.4f} bits per character' in told and f'{2**mean:.4g}' in told
    (in_tmp / 'new.txt').write_text('o', encoding='utf-8')
    with pytest.raises(UserError, match='new.txt'):
        predict.run(workdir=str(folder), data='new.txt')
    with pytest.raises(UserError, match='--split=validation'):
        predict.run(workdir=str(folder), data='new.txt', split='validation')


def test_a_run_writes_on_from_a_prompt(finished, in_tmp, capsys):
    _, folder, _, _ = finished
    how = {'workdir': str(folder), 'prompt': 'old mac', 'max_new_tokens': 20, 'num_samples': 2}
    predict.run(**how)
    first = capsys.readouterr().out
    predict.run(**how)
    assert capsys.readouterr().out == first and first.startswith('old mac')
    assert len(first) == 2 * (len('old mac') + 20 + 2) and set(first) <= set(SONG)
    predict.run(**how, sample_seed=1)
    assert capsys.readouterr().out != first
    with pytest.raises(UserError, match="--prompt.*'Ö', 'É'"):
        predict.run(workdir=str(folder), prompt='ÖÉÖ')


@pytest.mark.parametrize(
    ('content', 'values', 'sentence'),
    [
        (SONG, {'batch_size': 100, 'window': 64}, '--window=64'),
        (SONG[:40], {'batch_size': 1, 'window': 1, 'test_fraction': 0.01}, '--test_fraction=0.01'),
        (SONG, {'validation_fraction': 0.5, 'test_fraction': 0.5}, '--validation_fraction=0.5.*--test_fraction=0.5'),
        ('a\0b', {}, 'byte 1'),
        (SONG, {'tokenizer': 'letters'}, '--tokenizer=letters'),
        (SONG, {'bidirectional': True}, 'bidirectional'),
    ],
)
def test_what_cannot_be_learned_from_is_refused(in_tmp, content, values, sentence):
    (in_tmp / 'x.txt').write_text(content, encoding='utf-8')
    with pytest.raises(UserError, match=sentence) as refused:
        cli_text.EXPERIMENT.run(data='x.txt', **values)
    assert '\n' not in str(refused.value)


@pytest.mark.parametrize(('tokenizer', 'unit'), [('bytes', 'byte'), ('words', 'word')])
def test_bytes_and_words_are_looked_at_in_their_own_units(in_tmp, tokenizer, unit):
    (in_tmp / 'x.txt').write_text(SONG, encoding='utf-8')
    flags = {'data': 'x.txt', 'tokenizer': tokenizer, 'batch_size': 2, 'window': 8, 'max_ngram_tokens': 500}
    values = cli_text.EXPERIMENT.check(flags)
    found = cli_text.EXPERIMENT.dataset(values.replace(vocabulary_size=6))
    assert found.metric.name == f'bits per {unit}' and found.spec == cli_text.EXPERIMENT.spec(found.preprocessing)
    assert f'500 {tokenizer}' in found.description[-1]
    assert found.spec.vocabulary == {'bytes': 256, 'words': 7}[tokenizer]
    assert json.loads(json.dumps(found.preprocessing)) == found.preprocessing
    again = cli_text.EXPERIMENT.prediction_inputs(values, found.preprocessing, 'x.txt', 'test')
    for ours, theirs in zip(jax.tree.leaves(again.batches), jax.tree.leaves(found.test.batches), strict=True):
        assert ours.tobytes() == theirs.tobytes() and ours.dtype == theirs.dtype
