"""Time series in the .ts format of the UCR and UEA archives (Bagnall et al. 2018, "The UEA multivariate archive").

    @univariate false
    @classLabel true left right
    @data
    1.5,1.25,?:0.5,0.25,0.125:left        one series: its channels, each with the same number of steps, and its class

sktime's reader is unsuitable for invalid files: it takes 11 times the size of a file in memory (measured with 10 MB),
accepts classes that the header does not declare, lowercases classes, and does not name the line of an invalid number.
Here the lines are split in Python, and NumPy parses the numbers.
"""

import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from seqjax import files
from seqjax.datasets.readers import bounds as readers_bounds
from seqjax.datasets.readers.bounds import Bounds
from seqjax.errors import UserError

COPIES = 8  # copies of a line in memory while it is read
PIECE = 2**20  # maximum number of characters that are parsed at a time, about
UNKNOWN = -1  # label of a series without a class
MISSING = '?'  # word for a missing value or class
SHOWN, SHOWN_CLASSES = 40, 10  # maximum numbers of characters of a word, and of classes, in a message
QUOTED = re.compile(r'(?:"[^"\s]+\s[^"]*"|\'[^\'\s]+\s[^\']*\')(?!\S)')  # a name with spaces


class LabelledSeries(NamedTuple):
    """Time series, concatenated, and their classes."""

    values: np.ndarray  # [S, C] float32: C channels, S the steps of all series; NaN where missing
    lengths: np.ndarray  # [N] int64 numbers of steps, each at least 1
    labels: np.ndarray  # [N] int32: indices of `classes`, or UNKNOWN
    classes: tuple[str, ...]  # names of the classes in the order of the header; empty without classes


def read_series(path: Path, bounds: Bounds = readers_bounds.DEFAULT) -> LabelledSeries:
    """Returns the series of a .ts file; raises UserError, with the line at fault, if it is invalid or too large."""
    # Invalid UTF-8 is allowed in comments and refused elsewhere.
    with files.open_data(path, 'r', encoding='utf-8-sig', errors='surrogateescape') as file:
        bounds.check_bytes(path, os.fstat(file.fileno()).st_size)
        return _read(path, _lines(path, file, bounds), bounds)


def _lines(path: Path, file: TextIO, bounds: Bounds) -> Iterator[tuple[int, str]]:
    """Yields each line with its number, counted from 1.

    Raises UserError if a line is longer than the limit in bytes divided by `COPIES`.
    """
    for number in itertools.count(1):
        line = file.readline(bounds.bytes // COPIES + 1)
        if not line:
            return
        bounds.check_bytes(f'{path}, line {number}', len(line), copies=COPIES)
        yield number, line


def _read(path: Path, lines: Iterator[tuple[int, str]], bounds: Bounds) -> LabelledSeries:
    classes, channels = _head(path, lines)
    bounds.check_columns(path, channels or 0, 'channels')
    same = matching(classes)
    places = {same(name): place for place, name in enumerate(classes)}
    values, lengths, labels = bytearray(), [], []  # an array for each series would take a hundred bytes more
    for number, line in _content(path, lines):
        where = f'{path}, line {number}'
        bounds.check_columns(where, line.count(':') + (not classes), 'channels')
        words = line.split(':')
        label = _label(where, words.pop(), classes, places, same) if classes else UNKNOWN
        channels = channels or len(words)
        if len(words) != channels:
            raise UserError(
                f'{where} has {len(words)} channels{" before its class" if classes else ""} instead of {channels}, as '
                'in @dimensions, @univariate or the first series; correct the line'
            )
        steps = _steps(where, words)
        values += steps.tobytes()
        bounds.check_bytes(where, len(values), 'and the lines before it have')
        lengths.append(len(steps))
        labels.append(label)
    if not lengths:
        raise UserError(f'{path} has no series after @data; use a complete file')
    flat = np.frombuffer(values, np.float32).reshape(-1, channels)
    return LabelledSeries(flat, np.array(lengths), np.array(labels, np.int32), classes)


def _content(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yields the number and the stripped text of each line that is neither empty nor a comment (# or %).

    Raises UserError if a line has a byte 0, or is not UTF-8 and not a comment.
    """
    for number, line in lines:
        line = line.strip()
        if '\0' in line:
            raise UserError(f'{path}, line {number} is not text: a byte is 0; save the file as UTF-8')
        if not line or line.startswith(('#', '%')):
            continue
        if not line.isascii() and any('\udc80' <= c <= '\udcff' for c in line):
            raise UserError(f'{path}, line {number} is not UTF-8; save the file as UTF-8')
        yield number, line


def _head(path: Path, lines: Iterator[tuple[int, str]]) -> tuple[tuple[str, ...], int | None]:
    """Returns the classes and the number of channels that the header declares, () and None if it declares none.

    `lines` then continues after @data.
    """
    tags: dict[str, list[str]] = {}
    for number, line in _content(path, lines):
        tag, *words = line.split()
        if not tag.startswith('@'):
            raise UserError(
                f'{path}, line {number}: {_shown(tag)} before @data is not a tag, such as @classLabel; use a .ts file '
                'with a header'
            )
        if tag.lower() == '@data':
            return _classes(path, tags), _channels(path, tags)
        tags[tag.lower()] = words
    raise UserError(f'{path} has no line @data; use a .ts file')


def _classes(path: Path, tags: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    if _flag(path, tags, '@targetlabel'):
        raise UserError(f'{path} is for regression, with @targetLabel true; use a file with @classLabel true')
    if _flag(path, tags, '@timestamps'):
        raise UserError(f'{path} has time stamps, which are not supported; write only values, and @timeStamps false')
    if '@classlabel' not in tags and '@targetlabel' not in tags:
        raise UserError(
            f"{path} has no line @classLabel before @data; add '@classLabel true' with the classes, or "
            "'@classLabel false' if there are none"
        )
    if not _flag(path, tags, '@classlabel'):
        return ()
    words = re.findall(rf'{QUOTED.pattern}|\S+', ' '.join(tags['@classlabel'][1:]))
    if not words:
        raise UserError(f'{path} has @classLabel true without classes; add the classes after it, separated by spaces')
    return tuple(dict.fromkeys(map(_unquoted, words)))


def matching(*declared: Sequence[str]) -> Callable[[str], str]:
    """Returns a function from a class name to a key; names with equal keys are the same class.

    The key ignores upper and lower case and Unicode composition, unless two names of a list in `declared` would become
    equal. Then it ignores Unicode composition only, or nothing.

    >>> [matching(names)('A') for names in (['A', 'b'], ['A', 'a', 'b'])]
    ['a', 'A']
    """
    for key in (_folded, _composed):
        if all(len(set(map(key, names))) == len(set(names)) for names in declared):
            return key
    return str


def _composed(name: str) -> str:
    return unicodedata.normalize('NFC', name)


def _folded(name: str) -> str:
    return _composed(_composed(name).casefold())


def _unquoted(word: str) -> str:
    """Returns a quoted word without its quotes if it contains spaces; otherwise the unchanged word."""
    return word[1:-1] if QUOTED.fullmatch(word) else word


def _channels(path: Path, tags: Mapping[str, Sequence[str]]) -> int | None:
    tag = next((tag for tag in ('@dimensions', '@dimension') if tag in tags), None)
    if tag is None:
        return 1 if _flag(path, tags, '@univariate') else None
    word = ''.join(tags[tag][:1])
    if not (word.isascii() and word.isdigit() and len(word) < 10 and int(word)):
        raise UserError(f'{path} has {tag} {_shown(word)}; use a positive integer')
    return int(word)


def _flag(path: Path, tags: Mapping[str, Sequence[str]], tag: str) -> bool:
    """Returns True if the header sets a tag to true; False if to false or not at all; raises UserError otherwise."""
    if tag not in tags:
        return False
    word = ''.join(tags[tag][:1]).lower()
    if word not in ('true', 'false'):
        raise UserError(f'{path} has {tag} {_shown(word)}; use true or false')
    return word == 'true'


def _label(where: str, word: str, classes: Sequence[str], places: Mapping[str, int], same: Callable[[str], str]) -> int:
    word = _unquoted(word.strip())
    if same(word) in places:
        return places[same(word)]
    if word == MISSING:
        return UNKNOWN
    raise UserError(
        f'{where} ends with {_shown(word)}, which is not a class of @classLabel '
        f'({", ".join(map(_shown, classes[:SHOWN_CLASSES]))}{", ..." if len(classes) > SHOWN_CLASSES else ""}); '
        'correct the line, or add the class'
    )


def _steps(where: str, words: Sequence[str]) -> np.ndarray:
    """Returns the steps of a series [T, C] float32, NaN where missing, from the texts [C] of its channels."""
    for channel, word in enumerate(words, 1):
        if not word.strip():
            raise UserError(f'{where} has no value in channel {channel}; add a value, or ?')
    sizes = [word.count(',') + 1 for word in words]
    for channel, size in enumerate(sizes, 1):
        if size != sizes[0]:
            raise UserError(
                f'{where} has {size} steps in channel {channel} but {sizes[0]} in channel 1; make them equal'
            )
    try:
        if sum(map(len, words)) <= PIECE:
            return _numbers(words).T
        steps = np.empty((sizes[0], len(words)), np.float32)
        for channel, word in enumerate(words):
            place = 0
            for piece in _pieces(word):
                numbers = _numbers([piece])[0]
                steps[place : place + len(numbers), channel] = numbers
                place += len(numbers)
    except ValueError as error:
        raise UserError(f'{where} {_no_number(words)}') from error
    return steps


def _pieces(word: str) -> Iterator[str]:
    """Yields parts of a text, split at commas about every `PIECE` characters; NumPy takes many times their size."""
    start = 0
    while start < len(word):
        stop = word.find(',', start + PIECE)
        stop = len(word) if stop < 0 else stop
        yield word[start:stop]
        start = stop + 1
    if word.endswith(','):
        yield ''


def _numbers(words: Sequence[str]) -> np.ndarray:
    """Returns the numbers of texts of equal length [texts, steps] float32; raises ValueError if a value is not one."""
    plain = [word.replace(MISSING, 'nan') for word in words]
    if not all(plain):
        raise ValueError
    return np.loadtxt(plain, np.float32, delimiter=',', comments=None, ndmin=2)


def _no_number(words: Sequence[str]) -> str:
    """Returns the end of a message with the first value that is not a number, its step and its channel."""

    def bad(text: str) -> bool:
        try:
            _numbers([text])
        except ValueError:
            return True
        return False

    for channel, word in enumerate(words, 1):
        step = 1
        for piece in _pieces(word):
            if not bad(piece):
                step += piece.count(',') + 1
                continue
            values = piece.split(',')
            while len(values) > 1:
                half = len(values) // 2
                first = bad(','.join(values[:half]))
                values, step = (values[:half], step) if first else (values[half:], step + half)
            return (
                f'has {_shown(values[0])} at step {step} of channel {channel}, which is not a number; correct it, or '
                'write ? for a missing value'
            )
    return 'has a value that is not a number; correct it, or write ? for a missing value'


def _shown(word: str) -> str:
    return repr(word if len(word) <= SHOWN else word[:SHOWN] + '...')
