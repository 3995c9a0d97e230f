"""Files of the UCR and UEA archive of time series, .ts (Bagnall et al. 2018, "The UEA multivariate archive").

    @univariate false
    @classLabel true left right
    @data
    1.5,1.25,?:0.5,0.25,0.125:left        a series a line: its channels, each the same number of steps, and its class

sktime has a reader for them, which is no good for files that may be mangled: it holds 11 times the size of a file
(measured with 10 MB), takes a class that the head does not declare, writes classes in small letters, and does not say
in which line a word stands that is no number. So the lines are taken apart here, and the numbers are read by NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqjax.files import UserError

UNKNOWN = -1  # the label of a series whose class is not told
MISSING = '?'  # a value, or a class
SHOWN = 40  # characters of a word in a sentence


class Series(NamedTuple):
    """Many series, one behind the other."""

    values: np.ndarray  # [S, C] float32: C channels, S the steps of all series; NaN where missing
    lengths: np.ndarray  # [N] int64, each at least 1
    labels: np.ndarray  # [N] int32: places in `classes`, or UNKNOWN
    classes: tuple[str, ...]  # as the head declares them; none where it declares that there are none


def read_series(path: Path) -> Series:
    """Reads a .ts file, line by line.

    Raises:
      UserError: it is no such file, or is mangled; the sentence names the line.
    """
    try:
        # What is no UTF-8 may stand in a comment; elsewhere it is refused.
        with path.open(encoding='utf-8-sig', errors='surrogateescape') as file:
            return _read(path, enumerate(file, 1))
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror or error}') from error


def _read(path: Path, lines: Iterator[tuple[int, str]]) -> Series:
    classes, channels = _head(path, lines)
    places = {name.casefold(): place for place, name in enumerate(classes)}
    values, lengths, labels = bytearray(), [], []  # not an array a series: each would take a hundred bytes more
    for number, line in _content(path, lines):
        where = f'{path}, line {number}'
        words = line.split(':')
        label = _label(where, words.pop(), places) if classes else UNKNOWN
        channels = channels or len(words)
        if len(words) != channels:
            raise UserError(
                f'{where} has {len(words)} channels{" before its class" if classes else ""} and must have {channels}; '
                'is the file cut?'
            )
        steps = _steps(where, words)
        values += steps.tobytes()
        lengths.append(len(steps))
        labels.append(label)
    if not lengths:
        raise UserError(f'{path} has no series after @data; is the file cut?')
    flat = np.frombuffer(values, np.float32).reshape(-1, channels)
    return Series(flat, np.array(lengths), np.array(labels, np.int32), classes)


def _content(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Lines that say something; raises UserError where one is no text."""
    for number, line in lines:
        line = line.strip()
        if '\0' in line:
            raise UserError(
                f'{path}, line {number} holds a zero byte, so it is no .ts file, or one in UTF-16: save UTF-8'
            )
        if not line or line.startswith(('#', '%')):
            continue
        if not line.isascii() and any('\udc80' <= c <= '\udcff' for c in line):
            raise UserError(f'{path}, line {number} is no UTF-8 text; save the file as UTF-8')
        yield number, line


def _head(path: Path, lines: Iterator[tuple[int, str]]) -> tuple[tuple[str, ...], int | None]:
    """The classes, and how many channels there are if that is told; `lines` stand behind @data then."""
    tags: dict[str, list[str]] = {}
    for number, line in _content(path, lines):
        tag, *words = line.split()
        if not tag.startswith('@'):
            raise UserError(f'{path}, line {number} begins with {_shown(tag)} before any @data; a .ts file has a head')
        if tag.lower() == '@data':
            return _classes(path, tags), _channels(path, tags)
        tags[tag.lower()] = words
    raise UserError(f'{path} has no line @data, so it is no .ts file, or it is cut')


def _classes(path: Path, tags: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    if _flag(path, tags, '@targetlabel'):
        raise UserError(f'{path} is for regression: its @targetLabel is a number; classification needs @classLabel')
    if _flag(path, tags, '@timestamps'):
        raise UserError(f'{path} has time stamps, which are not read; write the values alone and @timeStamps false')
    if '@classlabel' not in tags and '@targetlabel' not in tags:
        raise UserError(
            f"{path} has no line @classLabel before @data; write '@classLabel false' if there are no classes"
        )
    if not _flag(path, tags, '@classlabel'):
        return ()
    classes = {name.casefold(): name for name in tags['@classlabel'][1:]}
    if not classes:
        raise UserError(f'{path} has @classLabel true without any class; name them behind it, separated by spaces')
    return tuple(classes.values())


def _channels(path: Path, tags: Mapping[str, Sequence[str]]) -> int | None:
    told = tags.get('@dimensions') or tags.get('@dimension')
    if told is None:
        return 1 if _flag(path, tags, '@univariate') else None
    if not (told[0].isascii() and told[0].isdigit() and len(told[0]) < 10 and int(told[0])):
        raise UserError(f'{path} has @dimensions {_shown(told[0])}, which must be a whole number from 1')
    return int(told[0])


def _flag(path: Path, tags: Mapping[str, Sequence[str]], tag: str) -> bool:
    """Whether a tag says true; without the tag it does not."""
    if tag not in tags:
        return False
    word = ''.join(tags[tag][:1]).lower()
    if word not in ('true', 'false'):
        raise UserError(f'{path} has {tag} {_shown(word)}, which must be true or false')
    return word == 'true'


def _label(where: str, word: str, places: Mapping[str, int]) -> int:
    word = word.strip()
    if word == MISSING:
        return UNKNOWN
    if word.casefold() not in places:
        raise UserError(f'{where} ends with {_shown(word)}, which is no class that @classLabel names; is the file cut?')
    return places[word.casefold()]


def _steps(where: str, words: Sequence[str]) -> np.ndarray:
    """Channels of one series as text -> [T, C] float32."""
    for channel, word in enumerate(words, 1):
        if not word.strip():
            raise UserError(f'{where} has no value in channel {channel}; a series has at least one step')
    sizes = [word.count(',') + 1 for word in words]
    for channel, size in enumerate(sizes, 1):
        if size != sizes[0]:
            raise UserError(
                f'{where} has {size} steps in channel {channel} and {sizes[0]} in channel 1; is the file cut?'
            )
    plain = [word.replace(MISSING, 'nan') for word in words]
    try:
        return np.loadtxt(plain, np.float32, delimiter=',', comments=None, ndmin=2).T
    except ValueError as error:
        raise UserError(f'{where} {_no_number(words)}') from error


def _no_number(words: Sequence[str]) -> str:
    """The first word that is no number, and where it stands."""
    for channel, word in enumerate(words, 1):
        for step, value in enumerate(word.split(','), 1):
            try:
                np.loadtxt([value.replace(MISSING, 'nan') or '-'], np.float32, delimiter=',', comments=None)
            except ValueError:
                return f'has {_shown(value)} at step {step} of channel {channel}, which is no number'
    return 'holds what is no number'


def _shown(word: str) -> str:
    return repr(word if len(word) <= SHOWN else word[:SHOWN] + '...')
