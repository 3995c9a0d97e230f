"""Piano rolls: the next frame of 88 notes is forecast, each note by itself given all frames before.

The score is the negative log-likelihood of a frame in nats, summed over its notes and averaged over the frames 2 .. T
of all pieces together, so that a long piece counts for more than a short one: as the code of Bai, Kolter and Koltun
2018 has it (locuslab/TCN, poly_music).

    frames read      1   2   3  ...  T-1
    frames foretold  2   3   4  ...  T

Training draws windows out of all pieces laid end to end, and a piece begins anew wherever it begins in one. Evaluation
reads whole pieces, several in a row of the batch one after the other, so that little is padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seqjax import config
from seqjax.datasets.baselines import note_baselines
from seqjax.datasets.dataset import Dataset, Items, Measure, OnlinePredictor, Table, Unseen
from seqjax.datasets.readers import piano_rolls
from seqjax.datasets.readers.piano_rolls import Pieces
from seqjax.errors import UserError
from seqjax.nn import losses
from seqjax.ops import masking
from seqjax.ops import windows as ops_windows
from seqjax.types import Arrays, Batch, Mean, ModelSpec, Sequences

ROWS = 8  # B of evaluation; the same for all files, as a number may depend on it in its last digit
HIGHEST = piano_rolls.LOWEST + piano_rolls.NOTES - 1
COLUMNS = ('part', 'piece', 'frame', 'nll', 'sounding', 'forecast')  # of predictions
SILENCE = '-'  # a frame without a note, as text
LIKELIEST = 6  # notes that a stream is told with their probabilities


class Roll(NamedTuple):
    """What is trained on: M places, all frames that another follows, in pieces laid end to end."""

    frames: np.ndarray  # [M + P, 88] uint8, of P pieces
    places: np.ndarray  # [M] int32, rows of `frames`
    piece: np.ndarray  # [M] int32, of which piece
    begins: np.ndarray  # [M] bool, whether it is the first of its piece
    lowest: np.ndarray  # [P] int32, the furthest that each piece may be moved down, 0 or negative; and up
    highest: np.ndarray
    order: jax.Array  # key of the order of windows


def music(
    name: str, parts: Mapping[str, Pieces], *, batch_size: int, window: int = 64, transpose: int = 0, seed: int = 0
) -> Dataset:
    """Piano rolls, divided into parts as the file has it.

    `parts` has pieces [T, 88] uint8 for 'train', 'validation' and 'test'. Training draws `batch_size` windows of
    `window` frames, in an order that the seed decides, and moves a piece by up to `transpose` semitones, as far as it
    loses no note.
    """
    roll, steps = _roll(parts['train'], transpose, jax.random.key(seed)), _longest(parts)
    validation, test = (Packed.of(parts[split], steps) for split in config.SPLITS)

    def items(forecast, split):
        return forecast(parts['train'], parts[split])

    return Dataset(
        name=name,
        look=[*look(parts), *_look_at_training(parts['train'], window, transpose)],
        spec=spec(),
        answers=answers,
        recipe={'steps': steps},
        loss_fn=loss_fn,
        batch=partial(windows, batch_size, window, transpose > 0),
        data=roll,
        both=lambda: _roll([*parts['train'], *parts['validation']], transpose, jax.random.key(seed)),
        epoch=math.ceil(math.ceil(len(roll.places) / window) / batch_size),
        validation=validation.batches(),
        test=unseen({'test': parts['test']}, steps),
        measure=Measure('NLL per frame', unit='nats'),
        items=partial(_items, test),
        baselines={
            'each note by itself': partial(items, note_baselines.marginal),
            'Markov chain': partial(items, note_baselines.markov),
        },
    )


def spec() -> ModelSpec:
    """Of every model of piano rolls."""
    return ModelSpec('per_step', piano_rolls.NOTES, features=piano_rolls.NOTES, causal=True)


def loss_fn(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    """The negative log-likelihood of frames, in nats."""
    return {'loss': losses.frame_nll(logits, batch.targets, batch.mask)}


def answers(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """nll [B, T], 0 at padding; likely [B, T, 11] uint8, the bits of the 88 notes that rather sound than not."""
    logits = logits.astype(jnp.float32)
    values = optax.sigmoid_binary_cross_entropy(logits, batch.targets.astype(jnp.float32)).sum(axis=-1)
    return {'nll': jnp.where(batch.mask, values, 0), 'likely': jnp.packbits(logits > 0, axis=-1)}


# --- training --------------------------------------------------------------------------------------


def _roll(pieces: Pieces, transpose: int, order: jax.Array) -> Roll:
    read = [len(piece) - 1 for piece in pieces]
    number = np.repeat(np.arange(len(pieces), dtype=np.int32), read)
    places = np.arange(len(number), dtype=np.int32) + number  # each piece before has a last frame, that is not read
    begins = np.diff(number, prepend=-1) > 0
    room = [_room(piece, transpose) for piece in pieces]
    lowest, highest = np.array(room, np.int32).T
    return Roll(np.concatenate(pieces), places, number, begins, lowest, highest, order)


def _room(piece: np.ndarray, most: int) -> tuple[int, int]:
    """By how many semitones a piece may be moved down (0 or negative) and up."""
    sounding = np.flatnonzero(piece.any(axis=0))
    if not sounding.size:
        return 0, 0
    return -min(most, int(sounding[0])), min(most, piano_rolls.NOTES - 1 - int(sounding[-1]))


def windows(batch_size: int, window: int, moved: bool, roll: Roll, key: jax.Array, step: jax.Array) -> Batch:
    """A training batch: windows of this epoch's order, each begun anew and from a little further on, drawn by `key`.

    Where a window ends is so never the same twice; beyond the end of the last piece the first one follows.
    """
    count = len(roll.places)
    rows, real = ops_windows.epoch_rows(roll.order, step, math.ceil(count / window), batch_size)
    ahead_key, move_key = jax.random.split(key)
    first = rows * window + jax.random.randint(ahead_key, rows.shape, 0, window)
    at = jnp.add.outer(first, jnp.arange(window)) % count
    places, mask = roll.places[at], jnp.broadcast_to(real[:, None], at.shape)
    frames, targets = roll.frames[places], roll.frames[places + 1]
    if moved:
        semitones = jax.random.randint(move_key, roll.lowest.shape, roll.lowest, roll.highest + 1)[roll.piece[at]]
        frames, targets = move(frames, semitones), move(targets, semitones)
    inputs = Sequences(frames.astype(jnp.float32), mask=mask, resets=roll.begins[at])
    return Batch(inputs, targets, mask)


def move(frames: jax.Array, semitones: jax.Array) -> jax.Array:
    """Frames [..., 88] moved up by `semitones` [...]; what leaves the piano is lost.

    >>> [move(jnp.eye(piano_rolls.NOTES)[1], jnp.array(by)).nonzero()[0].tolist() for by in (3, -1, -2)]
    [[4], [0], []]
    """
    source = jnp.add.outer(-semitones, jnp.arange(piano_rolls.NOTES))
    moved = jnp.take_along_axis(frames, source % piano_rolls.NOTES, axis=-1)
    return masking.zero(moved, (source >= 0) & (source < piano_rolls.NOTES))


# --- evaluation ------------------------------------------------------------------------------------


class Packed(NamedTuple):
    """Pieces in rows of `steps` frames, where several fit one after the other."""

    pieces: Pieces
    steps: int  # L
    rows: np.ndarray  # [P] the row that each is in
    firsts: np.ndarray  # [P] and where it begins there

    @classmethod
    def of(cls, pieces: Pieces, steps: int) -> Packed:
        """The longest first, each into the first row that has room; no piece reads more than `steps` frames."""
        reads = np.array([len(piece) - 1 for piece in pieces])
        rows, firsts, room = np.empty_like(reads), np.empty_like(reads), np.full(len(reads), steps)
        for i in np.argsort(-reads, kind='stable'):
            rows[i] = np.argmax(room >= reads[i])
            firsts[i] = steps - room[rows[i]]
            room[rows[i]] -= reads[i]
        return cls(pieces, steps, rows, firsts)

    @property
    def batch_count(self) -> int:
        """N, batches."""
        return math.ceil((int(self.rows.max()) + 1) / ROWS)

    def batches(self) -> Batch:
        """Leaves [N, 8, L, ...]; rows that no piece is in are masked."""
        shape = (self.batch_count * ROWS, self.steps)
        frames = np.zeros((*shape, piano_rolls.NOTES), np.float32)
        targets = np.zeros((*shape, piano_rolls.NOTES), np.uint8)
        mask, resets = np.zeros(shape, bool), np.zeros(shape, bool)
        for piece, row, first in zip(self.pieces, self.rows, self.firsts, strict=True):
            part = slice(first, first + len(piece) - 1)
            frames[row, part], targets[row, part], mask[row, part] = piece[:-1], piece[1:], True
            resets[row, first] = True
        batch = Batch(Sequences(frames, mask=mask, resets=resets), targets, mask)
        return jax.tree.map(lambda x: x.reshape(self.batch_count, ROWS, *x.shape[1:]), batch)

    def split(self, values: np.ndarray) -> Iterator[np.ndarray]:
        """[N, 8, L, ...] of the batches -> [T - 1, ...] of each piece."""
        values = np.asarray(values)
        values = values.reshape(-1, *values.shape[2:])
        for piece, row, first in zip(self.pieces, self.rows, self.firsts, strict=True):
            yield values[row, first : first + len(piece) - 1]


def _longest(parts: Mapping[str, Pieces]) -> int:
    """Frames that are read of the longest piece of a file, and so L of all its parts."""
    return max(len(piece) - 1 for pieces in parts.values() for piece in pieces)


def _items(packed: Packed, answers: Arrays) -> Items:
    nll = list(packed.split(answers['nll']))
    return Items(np.array([piece.sum(dtype=np.float64) for piece in nll]), np.array([len(piece) for piece in nll]))


def unseen(parts: Mapping[str, Pieces], steps: int) -> Unseen:
    """Whole pieces to forecast, by part; the batches of a part are the same whichever others there are.

    `steps` is L of training's evaluation; it is more where a piece is longer.
    """
    steps = max(steps, _longest(parts))
    packed = {part: Packed.of(pieces, steps) for part, pieces in parts.items()}
    batches = jax.tree.map(lambda *x: np.concatenate(x), *(one.batches() for one in packed.values()))
    return Unseen(batches, partial(_table, packed), look(parts))


def _table(packed: Mapping[str, Packed], answers: Arrays) -> Table:
    """A row a frame that was forecast; pieces and frames are counted from 1."""
    ends = np.cumsum([one.batch_count for one in packed.values()])[:-1]
    split = {name: np.split(np.asarray(values), ends) for name, values in answers.items()}
    parts = zip(packed, packed.values(), split['nll'], split['likely'], strict=True)
    return COLUMNS, (row for part in parts for row in _rows(*part))


def _rows(part: str, packed: Packed, nll: np.ndarray, likely: np.ndarray) -> Iterator[Sequence[Any]]:
    pieces = zip(packed.pieces, packed.split(nll), packed.split(np.unpackbits(likely, axis=-1)), strict=True)
    for number, (piece, losses_of, notes_of) in enumerate(pieces, 1):
        for frame, (loss, sounding, forecast) in enumerate(zip(losses_of, piece[1:], notes_of, strict=True), 2):
            yield part, number, frame, float(loss), as_text(sounding), as_text(forecast)


# --- text ------------------------------------------------------------------------------------------


def as_text(frame: np.ndarray) -> str:
    """The MIDI numbers of the notes of a frame [88] that are not 0.

    >>> as_text(np.eye(piano_rolls.NOTES)[0] + np.eye(piano_rolls.NOTES)[39]), as_text(np.zeros(piano_rolls.NOTES))
    ('21 60', '-')
    """
    return ' '.join(map(str, np.flatnonzero(frame) + piano_rolls.LOWEST)) or SILENCE


def parse(line: str) -> np.ndarray:
    """A frame [88] float32 of the MIDI numbers of its notes, separated by blanks; '-' is one in which none sounds.

    >>> np.flatnonzero(parse('60 64 67')).tolist()
    [39, 43, 46]
    """
    frame = np.zeros(piano_rolls.NOTES, np.float32)
    words = line.split()
    for word in words if words != [SILENCE] else ():
        if not (word.isascii() and word.isdecimal() and piano_rolls.LOWEST <= int(word[:9]) <= HIGHEST):
            raise UserError(
                f'{word!r} is no note: a line has MIDI numbers from {piano_rolls.LOWEST} to {HIGHEST}, separated by '
                f'blanks, or {SILENCE} where nothing sounds'
            )
        frame[int(word) - piano_rolls.LOWEST] = 1
    return frame


def stream() -> OnlinePredictor:
    """Frames a line; what is forecast of each is the next one, as it would be written, and its likeliest notes."""
    return OnlinePredictor(parse, ('next', 'likeliest'), _values)


def _values(logits: np.ndarray, frame: np.ndarray) -> Sequence[str]:
    del frame
    logits = np.asarray(logits, np.float64)
    likeliest = np.argsort(-logits, kind='stable')[:LIKELIEST]
    shares = (1 / (1 + np.exp(-np.clip(logits[likeliest], -80, 80)))).tolist()
    told = ' '.join(f'{note + piano_rolls.LOWEST}:{share!r}' for note, share in zip(likeliest, shares, strict=True))
    return as_text(logits > 0), told


# --- the first look --------------------------------------------------------------------------------


def look(parts: Mapping[str, Pieces]) -> list[str]:
    """Pieces and their lengths, and what the parts have in common."""
    lines = []
    for part, pieces in parts.items():
        lengths = [len(piece) for piece in pieces]
        lines.append(
            f'{part}: {len(pieces):,} pieces of {min(lengths):,} to {max(lengths):,} frames, half of them up to '
            f'{np.median(lengths):,.0f}; {sum(lengths) - len(lengths):,} frames to forecast'
        )
    known = {piece.tobytes() for piece in parts.get('train', ())}
    again = {split: sum(piece.tobytes() in known for piece in parts.get(split, ())) for split in config.SPLITS}
    if any(again.values()):
        told = ' and '.join(f'{count} of {name}' for name, count in again.items() if count)
        lines.append(f'in training too, note for note: {told}')
    return lines


def _look_at_training(pieces: Pieces, window: int, transpose: int) -> list[str]:
    frames = np.concatenate(pieces)
    sounding, at_once = np.flatnonzero(frames.any(axis=0)) + piano_rolls.LOWEST, frames.sum(axis=1)
    lines = [
        f'{len(sounding)} of {piano_rolls.NOTES} notes sound in training'
        + (f', MIDI {sounding[0]} to {sounding[-1]}' if sounding.size else '')
        + f'; {at_once.mean():.1f} at once, none in {(at_once == 0).mean():.1%} of frames',
        f'trained on in windows of {window} frames, evaluated on whole pieces',
        f'scored: nats a frame, summed over {piano_rolls.NOTES} notes, averaged over frames 2 .. T of all pieces '
        'together',
    ]
    if transpose:
        lines.append(
            f'training moves pieces by up to {transpose} semitones (--transpose): published figures are without that, '
            'and do not compare'
        )
    return lines
