"""Texts as token numbers: characters, bytes or words of a file, or of all .txt and .md files below a folder.

Files are decoded in chunks, so that memory holds the token numbers of a text but not the text itself.
"""

import codecs
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqjax import files as seqjax_files
from seqjax.datasets.readers.bounds import Bounds
from seqjax.errors import UserError

KINDS = ('characters', 'bytes', 'words')
SUFFIXES = ('.txt', '.md')  # suffixes of the files that are read from a folder
PIECE = 2**20  # bytes that are read and decoded at a time
CODES = 0x110000  # number of Unicode code points
# Up to 100 letters, digits and _, or one punctuation mark, each with a space before it if there is one; or one white
# space character. All words joined are the text.
WORD = re.compile(r' ?\w{1,100}| ?[^\w\s]|\s')
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
ESCAPES = {'\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t'}  # character -> escape sequence; others see `escape`

Training = Callable[[int], int]  # number of tokens of a text -> how many of them, from the start, are for training


class Vocabulary(NamedTuple):
    """Known tokens and their numbers. The last number is the unknown token, which replaces tokens that are not known.

    A byte is its own number, and all bytes are known.
    """

    kind: str  # one of KINDS
    known: Sequence[str] = ()  # known tokens in the order of their numbers, from 0; empty for bytes

    @property
    def size(self) -> int:
        """Number of token numbers V: known tokens plus the unknown token; 256 for bytes."""
        return 256 if self.kind == 'bytes' else len(self.known) + 1

    @property
    def unknown(self) -> int | None:
        """Number of the unknown token; None for bytes."""
        return None if self.kind == 'bytes' else len(self.known)

    def name(self, token: int) -> str:
        """Returns the text of a token number for tables: the number of a byte, the escaped token, or '<unknown>'.

        >>> vocabulary = Vocabulary('characters', '\\nab')
        >>> [vocabulary.name(token) for token in range(4)]
        ['\\\\n', 'a', 'b', '<unknown>']
        """
        if self.kind == 'bytes':
            return str(token)
        return '<unknown>' if token == self.unknown else escape(self.known[token])

    def split(self, text: str) -> list[str | int]:
        """Returns the tokens of a text, known or not: its characters, its words, or the numbers of its UTF-8 bytes."""
        if self.kind == 'bytes':
            return list(text.encode())
        return list(text) if self.kind == 'characters' else WORD.findall(text)

    def encode(self, text: str) -> tuple[np.ndarray, list[str]]:
        """Returns the token numbers [N] of a short text, such as a prompt, and its distinct tokens that are unknown."""
        if self.kind == 'bytes':
            return np.array(self.split(text), np.uint8), []
        numbers = {token: number for number, token in enumerate(self.known)}
        tokens = self.split(text)
        missing = [token for token in dict.fromkeys(tokens) if token not in numbers]
        return np.array([numbers.get(token, self.unknown) for token in tokens], smallest(self.size)), missing

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the text of token numbers [N]; '\\ufffd' for each unknown token, and for bytes that are not UTF-8."""
        if self.kind == 'bytes':
            return bytes(tokens.tolist()).decode(errors='replace')
        return ''.join('\ufffd' if token == self.unknown else self.known[token] for token in tokens.tolist())


class TextData(NamedTuple):
    """Text after reading: its token numbers and their vocabulary."""

    tokens: np.ndarray  # [N] token numbers, of the smallest unsigned integer type
    vocabulary: Vocabulary
    files: int  # number of files that were read
    notes: Sequence[str]  # lines about how reading changed the text, such as its line ends
    missing: Sequence[str]  # first 20 distinct unknown tokens, in the order of the text
    different: int  # number of distinct unknown tokens


def escape(token: str) -> str:
    """Returns a token with backslashes, line ends, tabs and other non-printable characters as escape sequences.

    >>> escape('a\\n'), escape('\\\\')
    ('a\\\\n', '\\\\\\\\')
    """
    return ''.join(ESCAPES.get(c, c) if c in ESCAPES or c.isprintable() else ascii(c)[1:-1] for c in token)


def unescape(line: str) -> str:
    """Returns a line with the escape sequences of `escape` replaced by their characters; inverts `escape`."""
    if '\\' not in line:
        return line

    def character(match: re.Match) -> str:
        word = match.group()
        if word[1] in 'xuU':
            return chr(int(word[2:], 16)) if int(word[2:], 16) < CODES else word
        return {escaped: c for c, escaped in ESCAPES.items()}[word]

    return re.sub(r'\\(?:[\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})', character, line)


def smallest(size: int) -> type:
    """Returns the smallest unsigned integer type for the token numbers 0 to size - 1."""
    return np.uint8 if size <= 2**8 else np.uint16 if size <= 2**16 else np.uint32


# --- reading ---------------------------------------------------------------------------------------


def find_texts(path: Path) -> list[Path]:
    """Returns [path] for a file, or the .txt and .md files in a folder and its subfolders, sorted by path.

    Raises UserError if a folder cannot be read or has no such file. A file is not opened and may not exist.
    """
    try:
        if not path.is_dir():
            return [path]
        texts = sorted(Path(place) / name for place, _, names in os.walk(path, onerror=_refuse) for name in names)
        texts = [file for file in texts if file.suffix.lower() in SUFFIXES and file.is_file()]
    except OSError as error:
        raise UserError(f'{error.filename or path} cannot be read ({error.strerror}); pass another --data') from error
    if not texts:
        raise UserError(f'{path} is a folder without {" or ".join(SUFFIXES)} files; pass a file or another folder')
    return texts


def check_size(path: Path, bounds: Bounds) -> None:
    """Raises UserError if a file, or a text of a folder, cannot be read, or if the total size exceeds `bounds`."""
    size = 0
    for file in find_texts(path):
        with seqjax_files.open_data(file) as opened:
            size += os.fstat(opened.fileno()).st_size
    bounds.check_bytes(path, size)


def _refuse(error: OSError) -> None:
    raise error


def read_text(path: Path, kind: str, training: Training, *, size: int = 10_000) -> TextData:
    """Returns the tokens of a text, with a vocabulary built from its training split alone.

    Args:
      path: a file, or a folder, whose .txt and .md files are joined.
      kind: one of KINDS. For characters and words, a byte order mark is dropped, and each line end becomes '\\n'.
      training: function that returns the number of tokens in the training split, the start of the text, given the
        number of tokens of the text.
      size: maximum number of known words: the most frequent ones of the training split, the earlier one in a tie. It
        does not apply to characters and bytes.

    Raises:
      UserError: the text is empty, cannot be read, or is not UTF-8 (except for bytes), or the tokens of its training
        split are all the same.
    """
    files = find_texts(path)
    text = {'characters': _new_characters, 'bytes': _all_bytes, 'words': _new_words}[kind](files, training, size)
    _refuse_empty(path, text)
    tokens = text.tokens[: training(len(text.tokens))]
    if len(tokens) and (tokens == tokens[0]).all():
        token = text.vocabulary.name(int(tokens[0]))
        raise UserError(f'{path} has only the token {token!r} in its training split; use a text with different tokens')
    return text


def read_with_vocabulary(path: Path, vocabulary: Vocabulary) -> TextData:
    """Returns the tokens of a text in an existing vocabulary.

    Raises UserError if the text is empty, cannot be read, or is not UTF-8 (except for bytes).
    """
    files = find_texts(path)
    if vocabulary.kind == 'bytes':
        text = _all_bytes(files)
    elif vocabulary.kind == 'words':
        text = _known_words(files, *_count_words(files), vocabulary)
    else:
        text = _known_characters(files, *_first_places(files), vocabulary)
    _refuse_empty(path, text)
    return text


def _refuse_empty(path: Path, text: TextData) -> None:
    if not len(text.tokens):
        raise UserError(f'{path} is empty; use another text')


def _pieces(file: Path) -> Iterator[bytes]:
    with seqjax_files.open_data(file) as opened:
        while piece := opened.read(PIECE):
            yield piece


def decoded(file: Path, notes: set[str]) -> Iterator[str]:
    """Yields the text of a UTF-8 file in chunks, without its byte order mark and with '\\n' as the only line end.

    Adds a line to `notes` for each of these two changes that it makes. Raises UserError if the file is not UTF-8 or has
    a byte 0.
    """
    decoder = codecs.getincrementaldecoder('utf-8')()
    lines, place = io.IncrementalNewlineDecoder(None, translate=True), 0
    for piece in _pieces(file):
        if place == 0:
            if piece.startswith(UTF16):
                raise UserError(f'{file} is UTF-16, as its byte order mark shows; save it as UTF-8')
            if piece.startswith(codecs.BOM_UTF8):
                notes.add('the byte order mark was dropped')
                place, piece = 3, piece[3:]
        yield lines.decode(_decode(file, decoder, piece, place))
        place += len(piece)
    yield lines.decode(_decode(file, decoder, b'', place, final=True), final=True)
    if lines.newlines not in (None, '\n'):
        notes.add('line ends \\r\\n and \\r were read as \\n')


def _decode(file: Path, decoder: codecs.IncrementalDecoder, piece: bytes, place: int, final: bool = False) -> str:
    """Returns the text of the chunk `piece`, which starts at byte `place` of the file.

    A character that is cut at the end of a chunk is returned with the next chunk.
    """
    before = place - len(decoder.getstate()[0])
    zero = piece.find(b'\0')
    if zero >= 0:
        raise UserError(
            f'{file} is not text: counted from 0, byte {place + zero:,} is 0; use another text, or --tokenizer=bytes'
        )
    try:
        return decoder.decode(piece, final)
    except UnicodeDecodeError as error:
        raise UserError(
            f'{file} is not UTF-8: counted from 0, byte {before + error.start:,} is 0x{error.object[error.start]:02x}; '
            'save it as UTF-8, or use --tokenizer=bytes'
        ) from error


def _texts(files: Sequence[Path], notes: set[str]) -> Iterator[str]:
    for file in files:
        yield from decoded(file, notes)


# --- bytes -----------------------------------------------------------------------------------------


def _all_bytes(files: Sequence[Path], training: Training | None = None, size: int | None = None) -> TextData:
    parts = [np.frombuffer(piece, np.uint8) for file in files for piece in _pieces(file)]
    tokens = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    return TextData(tokens, Vocabulary('bytes'), len(files), (), (), 0)


# --- characters ------------------------------------------------------------------------------------


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode('utf-32-le'), np.uint32)


def _first_places(files: Sequence[Path]) -> tuple[dict[int, int], int, set[str]]:
    """Returns a dict from code points of a text to first positions, its number of characters, and notes on reading."""
    seen, first, count, notes = np.zeros(CODES, bool), {}, 0, set()
    for text in _texts(files, notes):
        codes = _codes(text)
        unseen = np.flatnonzero(~seen[codes])
        if len(unseen):
            new, places = np.unique(codes[unseen], return_index=True)
            seen[new] = True
            first |= zip(new.tolist(), (count + unseen[places]).tolist(), strict=True)
        count += len(codes)
    return first, count, notes


def _new_characters(files: Sequence[Path], training: Training, size: int) -> TextData:
    first, count, notes = _first_places(files)
    end = training(count)
    known = ''.join(chr(code) for code in sorted(first) if first[code] < end)
    return _known_characters(files, first, count, notes, Vocabulary('characters', known))


def _known_characters(
    files: Sequence[Path], first: dict[int, int], count: int, notes: set[str], vocabulary: Vocabulary
) -> TextData:
    dtype = smallest(vocabulary.size)
    number = np.full(CODES, vocabulary.unknown, dtype)
    number[_codes(''.join(vocabulary.known))] = np.arange(len(vocabulary.known))
    tokens, place = np.empty(count, dtype), 0
    for text in _texts(files, notes):
        codes = _codes(text)
        if place + len(codes) > count:
            raise UserError(f'{files[0]}: the text changed while it was read; run the command again')
        number.take(codes, out=tokens[place : place + len(codes)], mode='clip')
        place += len(codes)
    known = set(vocabulary.known)
    missing = [chr(code) for code in sorted(first, key=first.get) if chr(code) not in known]
    return TextData(tokens[:place], vocabulary, len(files), sorted(notes), missing[:20], len(missing))


# --- words -----------------------------------------------------------------------------------------


def _words(files: Sequence[Path], notes: set[str]) -> Iterator[list[str]]:
    """Yields a list of words for each chunk; the last word moves to the next list, since it may continue there."""
    rest = ''
    for text in _texts(files, notes):
        words = WORD.findall(rest + text)
        rest = words.pop() if words else ''
        yield words
    yield [rest] if rest else []


class _Numbers(dict):
    """Dict from words to numbers. A new word gets the next number, in the order of first occurrence."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


def _count_words(files: Sequence[Path]) -> tuple[list[np.ndarray], list[str], set[str]]:
    """Returns the text as chunks of word numbers [n] uint32, the words by number, and notes on reading."""
    numbers, notes = _Numbers(), set()
    parts = [np.fromiter(map(numbers.__getitem__, words), np.uint32, len(words)) for words in _words(files, notes)]
    return parts, list(numbers), notes


def _new_words(files: Sequence[Path], training: Training, size: int) -> TextData:
    parts, words, notes = _count_words(files)
    left = training(sum(map(len, parts)))
    counts = np.zeros(len(words), np.int64)
    for part in parts:
        counts += np.bincount(part[: max(left, 0)], minlength=len(words))
        left -= len(part)
    order = np.argsort(-counts, kind='stable')[:size]
    known = [words[number] for number in order.tolist() if counts[number]]
    return _known_words(files, parts, words, notes, Vocabulary('words', known))


def _known_words(
    files: Sequence[Path], parts: list[np.ndarray], words: list[str], notes: set[str], vocabulary: Vocabulary
) -> TextData:
    numbers = {word: number for number, word in enumerate(vocabulary.known)}
    table = np.array([numbers.get(word, vocabulary.unknown) for word in words], smallest(vocabulary.size))
    tokens, place = np.empty(sum(map(len, parts)), table.dtype), 0
    for part in parts:
        tokens[place : place + len(part)] = table[part]
        place += len(part)
    missing = [word for word in words if word not in numbers]
    return TextData(tokens, vocabulary, len(files), sorted(notes), missing[:20], len(missing))
