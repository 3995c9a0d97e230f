"""Polyphonic music: a model predicts the 88 notes of the next frame, independently given all frames before it.

The metric is the negative log-likelihood of a frame in nats, summed over its notes and averaged over the frames
2 .. T of all pieces of a split together, so long pieces have more weight. The code of Bai, Kolter and Koltun 2018
(locuslab/TCN, poly_music) has the same metric.

    input frames   1   2   3  ...  T-1
    targets        2   3   4  ...  T

Training reads windows of the concatenated pieces. Evaluation reads whole pieces, several one after the other in a row
of a batch, so that there is little padding. Both reset the carry at the first frame of a piece.
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
from seqjax.datasets.dataset import (
    Dataset,
    ItemScores,
    MetricSpec,
    OnlinePredictor,
    PredictionInputs,
    Table,
    fit_splits,
)
from seqjax.datasets.readers import piano_rolls
from seqjax.datasets.readers.piano_rolls import Pieces
from seqjax.errors import UserError
from seqjax.nn import losses
from seqjax.ops import masking
from seqjax.ops import windows as ops_windows
from seqjax.types import Arrays, Batch, Mean, ModelSpec, Sequences

BATCH_SIZE = 8  # B of evaluation, the same for all files, since rounding depends on it
HIGHEST_NOTE = piano_rolls.LOWEST + piano_rolls.NOTES - 1  # MIDI number of the last key
COLUMNS = ('split', 'piece', 'frame', 'nll', 'sounding', 'forecast')  # columns of predictions.csv
SILENCE = '-'  # text of a frame without notes
NUM_LIKELIEST = 6  # number of notes that an online prediction lists with probabilities


class PianoRollData(NamedTuple):
    """P training pieces, concatenated, and their M input frames: all frames but the last of each piece."""

    frames: np.ndarray  # [M + P, 88] uint8, all frames of the pieces
    places: np.ndarray  # [M] int32, index in `frames` of each input frame
    piece: np.ndarray  # [M] int32, index of the piece of each input frame
    is_first: np.ndarray  # [M] bool, True for the first frame of a piece
    lowest: np.ndarray  # [P] int32, minimum transposition of each piece in semitones, 0 or negative
    highest: np.ndarray  # [P] int32, maximum transposition of each piece in semitones, 0 or positive
    order: jax.Array  # random key of the order of windows in each epoch


def dataset(
    name: str, splits: Mapping[str, Pieces], *, batch_size: int, window: int = 64, transpose: int = 0, seed: int = 0
) -> Dataset:
    """Returns the Dataset of piano rolls, with the splits of the file.

    Args:
      name: name of the file.
      splits: pieces [T, 88] uint8 of 'train', 'validation' and 'test'.
      batch_size: number of windows of a training batch.
      window: frames of a training window.
      transpose: maximum number of semitones by which training transposes a piece up or down; 0 for none. A piece is
        transposed only so far that all of its notes stay on the piano.
      seed: seed of the order of windows in each epoch.
    """
    roll, steps = _piano_roll_data(splits['train'], transpose, jax.random.key(seed)), _longest(splits)
    validation, test = (PackedPieces.pack(splits[split], steps) for split in config.SPLITS)

    def items(forecast, split):
        return forecast([piece for name in fit_splits(split) for piece in splits[name]], splits[split])

    return Dataset(
        name=name,
        description=[*describe(splits), *_describe_training(splits['train'], window, transpose)],
        spec=spec(),
        postprocess=postprocess,
        preprocessing={'steps': steps},
        loss_fn=loss_fn,
        batch=partial(windows, batch_size, window, transpose > 0),
        data=roll,
        train_plus_validation=lambda: _piano_roll_data(
            [*splits['train'], *splits['validation']], transpose, jax.random.key(seed)
        ),
        steps_per_epoch=math.ceil(math.ceil(len(roll.places) / window) / batch_size),
        validation=validation.batches(),
        test=prediction_inputs({'test': splits['test']}, steps),
        metric=MetricSpec('NLL per frame', unit='nats'),
        items=partial(_items, test),
        baselines={
            'note frequencies': partial(items, note_baselines.marginal),
            'Markov chain': partial(items, note_baselines.markov),
        },
    )


def spec() -> ModelSpec:
    """Returns the ModelSpec for piano rolls: inputs are frames of 88 notes, outputs a logit per note at each step."""
    return ModelSpec('per_step', piano_rolls.NOTES, features=piano_rolls.NOTES, causal=True)


def loss_fn(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    """Returns the mean negative log-likelihood of a frame in nats, summed over its notes, as 'loss'."""
    return {'loss': losses.frame_nll(logits, batch.targets, batch.mask)}


def postprocess(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Returns 'nll' [B, T] and 'likely' [B, T, 11] uint8.

    'nll' is the negative log-likelihood of each target frame in nats, 0 at padding. 'likely' has a bit for each of the
    88 notes, packed into bytes: 1 if its probability is above 1/2.
    """
    logits = logits.astype(jnp.float32)
    values = optax.sigmoid_binary_cross_entropy(logits, batch.targets.astype(jnp.float32)).sum(axis=-1)
    return {'nll': jnp.where(batch.mask, values, 0), 'likely': jnp.packbits(logits > 0, axis=-1)}


# --- training --------------------------------------------------------------------------------------


def _piano_roll_data(pieces: Pieces, transpose: int, order: jax.Array) -> PianoRollData:
    read = [len(piece) - 1 for piece in pieces]
    number = np.repeat(np.arange(len(pieces), dtype=np.int32), read)
    places = (
        np.arange(len(number), dtype=np.int32) + number
    )  # skips the last frame of each piece, which is not an input
    is_first = np.diff(number, prepend=-1) > 0
    room = [_transpose_range(piece, transpose) for piece in pieces]
    lowest, highest = np.array(room, np.int32).T
    return PianoRollData(np.concatenate(pieces), places, number, is_first, lowest, highest, order)


def _transpose_range(piece: np.ndarray, most: int) -> tuple[int, int]:
    """Returns the lowest (0 or negative) and the highest transposition of a piece in semitones, at most `most` of them.

    All notes stay on the piano. For a piece without notes, returns (0, 0).
    """
    sounding = np.flatnonzero(piece.any(axis=0))
    if not sounding.size:
        return 0, 0
    return -min(most, int(sounding[0])), min(most, piano_rolls.NOTES - 1 - int(sounding[-1]))


def windows(batch_size: int, window: int, moved: bool, roll: PianoRollData, key: jax.Array, step: jax.Array) -> Batch:
    """Returns the batch of training step `step`: windows of `window` input frames, in a random order in each epoch.

    Each window is shifted by a random 0 to `window` - 1 frames, so that windows end at different frames in each epoch.
    After the last piece, the first one follows. If `moved`, each piece is transposed by a random number of semitones.
    """
    count = len(roll.places)
    rows, valid = ops_windows.epoch_rows(roll.order, step, math.ceil(count / window), batch_size)
    ahead_key, move_key = jax.random.split(key)
    first = rows * window + jax.random.randint(ahead_key, rows.shape, 0, window)
    at = jnp.add.outer(first, jnp.arange(window)) % count
    places, mask = roll.places[at], jnp.broadcast_to(valid[:, None], at.shape)
    frames, targets = roll.frames[places], roll.frames[places + 1]
    if moved:
        semitones = jax.random.randint(move_key, roll.lowest.shape, roll.lowest, roll.highest + 1)[roll.piece[at]]
        frames, targets = move(frames, semitones), move(targets, semitones)
    inputs = Sequences(frames.astype(jnp.float32), mask=mask, resets=roll.is_first[at])
    return Batch(inputs, targets, mask)


def move(frames: jax.Array, semitones: jax.Array) -> jax.Array:
    """Returns frames [..., 88] transposed up by `semitones` [...], down if negative; notes outside the piano are lost.

    >>> [move(jnp.eye(piano_rolls.NOTES)[1], jnp.array(by)).nonzero()[0].tolist() for by in (3, -1, -2)]
    [[4], [0], []]
    """
    source = jnp.add.outer(-semitones, jnp.arange(piano_rolls.NOTES))
    moved = jnp.take_along_axis(frames, source % piano_rolls.NOTES, axis=-1)
    return masking.zero(moved, (source >= 0) & (source < piano_rolls.NOTES))


# --- evaluation ------------------------------------------------------------------------------------


class PackedPieces(NamedTuple):
    """Pieces in the rows of evaluation batches, several one after the other in a row of `steps` frames."""

    pieces: Pieces
    steps: int  # L, input frames of a row
    rows: np.ndarray  # [P] index of the row of each piece, counted over all batches
    firsts: np.ndarray  # [P] index in its row of the first frame of each piece

    @classmethod
    def pack(cls, pieces: Pieces, steps: int) -> PackedPieces:
        """Returns the pieces packed from the longest to the shortest, each into the first row with enough space.

        A piece takes one frame less than it has; no piece may take more than `steps`.
        """
        reads = np.array([len(piece) - 1 for piece in pieces])
        rows, firsts, room = np.empty_like(reads), np.empty_like(reads), np.full(len(reads), steps)
        for i in np.argsort(-reads, kind='stable'):
            rows[i] = np.argmax(room >= reads[i])
            firsts[i] = steps - room[rows[i]]
            room[rows[i]] -= reads[i]
        return cls(pieces, steps, rows, firsts)

    @property
    def batch_count(self) -> int:
        """Number N of batches, of `BATCH_SIZE` rows each."""
        return math.ceil((int(self.rows.max()) + 1) / BATCH_SIZE)

    def batches(self) -> Batch:
        """Returns batches with leaves [N, 8, L, ...]; frames of a row that no piece uses are masked."""
        shape = (self.batch_count * BATCH_SIZE, self.steps)
        frames = np.zeros((*shape, piano_rolls.NOTES), np.float32)
        targets = np.zeros((*shape, piano_rolls.NOTES), np.uint8)
        mask, resets = np.zeros(shape, bool), np.zeros(shape, bool)
        for piece, row, first in zip(self.pieces, self.rows, self.firsts, strict=True):
            part = slice(first, first + len(piece) - 1)
            frames[row, part], targets[row, part], mask[row, part] = piece[:-1], piece[1:], True
            resets[row, first] = True
        batch = Batch(Sequences(frames, mask=mask, resets=resets), targets, mask)
        return jax.tree.map(lambda x: x.reshape(self.batch_count, BATCH_SIZE, *x.shape[1:]), batch)

    def unpack(self, values: np.ndarray) -> Iterator[np.ndarray]:
        """Yields, for each piece of T frames, its values [T - 1, ...] out of values [N, 8, L, ...] of the batches."""
        values = np.asarray(values)
        values = values.reshape(-1, *values.shape[2:])
        for piece, row, first in zip(self.pieces, self.rows, self.firsts, strict=True):
            yield values[row, first : first + len(piece) - 1]


def _longest(splits: Mapping[str, Pieces]) -> int:
    """Returns L, the number of input frames of the longest piece of all splits: its frames but the last."""
    return max(len(piece) - 1 for pieces in splits.values() for piece in pieces)


def _items(packed: PackedPieces, predictions: Arrays) -> ItemScores:
    nll = list(packed.unpack(predictions['nll']))
    return ItemScores(np.array([piece.sum(dtype=np.float64) for piece in nll]), np.array([len(piece) for piece in nll]))


def prediction_inputs(splits: Mapping[str, Pieces], steps: int) -> PredictionInputs:
    """Returns the PredictionInputs of whole pieces; pieces of different splits are never in the same batch.

    `steps` is L, the input frames of a row in the evaluation of the run; longer rows are used if a piece needs them.
    """
    steps = max(steps, _longest(splits))
    packed = {split: PackedPieces.pack(pieces, steps) for split, pieces in splits.items()}
    batches = jax.tree.map(
        lambda *x: np.concatenate(x), *(packed_pieces.batches() for packed_pieces in packed.values())
    )
    return PredictionInputs(batches, partial(_table, packed), describe(splits))


def _table(packed: Mapping[str, PackedPieces], predictions: Arrays) -> Table:
    """Returns a table with a row for each frame but the first of each piece; pieces and frames are counted from 1."""
    ends = np.cumsum([packed_pieces.batch_count for packed_pieces in packed.values()])[:-1]
    columns = {name: np.split(np.asarray(values), ends) for name, values in predictions.items()}
    rows = zip(packed, packed.values(), columns['nll'], columns['likely'], strict=True)
    return COLUMNS, (row for split in rows for row in _rows(*split))


def _rows(split: str, packed: PackedPieces, nll: np.ndarray, likely: np.ndarray) -> Iterator[Sequence[Any]]:
    pieces = zip(packed.pieces, packed.unpack(nll), packed.unpack(np.unpackbits(likely, axis=-1)), strict=True)
    for number, (piece, nlls, notes) in enumerate(pieces, 1):
        for frame, (loss, sounding, forecast) in enumerate(zip(nlls, piece[1:], notes, strict=True), 2):
            yield split, number, frame, float(loss), as_text(sounding), as_text(forecast)


# --- text ------------------------------------------------------------------------------------------


def as_text(frame: np.ndarray) -> str:
    """Returns the MIDI numbers of the nonzero notes of a frame [88], separated by blanks; '-' without any.

    >>> as_text(np.eye(piano_rolls.NOTES)[0] + np.eye(piano_rolls.NOTES)[39]), as_text(np.zeros(piano_rolls.NOTES))
    ('21 60', '-')
    """
    return ' '.join(map(str, np.flatnonzero(frame) + piano_rolls.LOWEST)) or SILENCE


def parse(line: str) -> np.ndarray:
    """Returns a frame [88] float32 of 0 and 1, parsed from MIDI numbers separated by blanks; '-' is a silent frame.

    Raises UserError if a word is not the MIDI number of a piano key, 21 to 108.

    >>> np.flatnonzero(parse('60 64 67')).tolist()
    [39, 43, 46]
    """
    frame = np.zeros(piano_rolls.NOTES, np.float32)
    words = line.split()
    for word in words if words != [SILENCE] else ():
        if not (word.isascii() and word.isdecimal() and piano_rolls.LOWEST <= int(word[:9]) <= HIGHEST_NOTE):
            raise UserError(
                f'{word!r} is not a note; write MIDI numbers from {piano_rolls.LOWEST} to {HIGHEST_NOTE}, separated '
                f'by blanks, or only {SILENCE} for silence'
            )
        frame[int(word) - piano_rolls.LOWEST] = 1
    return frame


def stream() -> OnlinePredictor:
    """Returns an online predictor: a line is a frame, as `parse` reads it, and the output is about the next frame.

    Its columns are the notes with a probability above 1/2, and the most probable notes with their probabilities.
    """
    return OnlinePredictor(parse, ('next', 'likeliest'), _values)


def _values(logits: np.ndarray, frame: np.ndarray) -> Sequence[str]:
    del frame
    logits = np.asarray(logits, np.float64)
    likeliest = np.argsort(-logits, kind='stable')[:NUM_LIKELIEST]
    probabilities = (1 / (1 + np.exp(-np.clip(logits[likeliest], -80, 80)))).tolist()
    likeliest_notes = ' '.join(
        f'{note + piano_rolls.LOWEST}:{probability!r}'
        for note, probability in zip(likeliest, probabilities, strict=True)
    )
    return as_text(logits > 0), likeliest_notes


# --- description -----------------------------------------------------------------------------------


def describe(splits: Mapping[str, Pieces]) -> list[str]:
    """Returns lines with the number and lengths of the pieces of each split, and with duplicates of training pieces."""
    lines = []
    for split, pieces in splits.items():
        lengths = [len(piece) for piece in pieces]
        lines.append(
            f'{split}: {len(pieces):,} pieces of {min(lengths):,} to {max(lengths):,} frames, median '
            f'{np.median(lengths):,.0f}; {sum(lengths) - len(lengths):,} target frames'
        )
    known = {piece.tobytes() for piece in splits.get('train', ())}
    duplicates = {split: sum(piece.tobytes() in known for piece in splits.get(split, ())) for split in config.SPLITS}
    if any(duplicates.values()):
        counts = ' and '.join(f'{count} of {name}' for name, count in duplicates.items() if count)
        lines.append(f'pieces that are also in training: {counts}')
    return lines


def _describe_training(pieces: Pieces, window: int, transpose: int) -> list[str]:
    frames = np.concatenate(pieces)
    sounding, at_once = np.flatnonzero(frames.any(axis=0)) + piano_rolls.LOWEST, frames.sum(axis=1)
    lines = [
        f'{len(sounding)} of {piano_rolls.NOTES} notes occur in training'
        + (f', MIDI {sounding[0]} to {sounding[-1]}' if sounding.size else '')
        + f'; on average {at_once.mean():.1f} at once, silence in {(at_once == 0).mean():.1%} of frames',
        f'training windows of {window} frames, evaluation on whole pieces',
        f'metric: nats per frame, summed over {piano_rolls.NOTES} notes, averaged over frames 2 .. T of all pieces',
    ]
    if transpose:
        lines.append(
            f'training transposes pieces by up to {transpose} semitones (--transpose); published results do not, and '
            'are not comparable'
        )
    return lines
