"""Baselines for piano rolls: the frequency of each note, and a Markov chain for each note.

Both forecast the frames 2 .. T of a piece [T, N] of 0 and 1 from the frames before. They count over the training
pieces and add half an observation of each kind (Jeffreys' prior), so that no probability is 0.
"""

from collections.abc import Callable, Sequence

import numpy as np

from seqjax.datasets.dataset import ItemScores

PRIOR = 0.5  # Jeffreys' prior of a probability: Beta(1/2, 1/2)

Pieces = Sequence[np.ndarray]  # each [T, N], 1 where a note sounds


def marginal(train: Pieces, pieces: Pieces) -> ItemScores:
    """Scores notes by their frequencies in training, independent of the frames before; an item is a piece.

    >>> chord, rest = np.ones((1, 2)), np.zeros((1, 2))
    >>> marginal([np.concatenate([rest, chord, rest])], [np.concatenate([chord, chord])]).totals.round(4).tolist()
    [1.3863]
    """
    _, now = _pairs(train)
    probabilities = _frequencies(now)
    return _score(pieces, lambda before: np.broadcast_to(probabilities, before.shape))


def markov(train: Pieces, pieces: Pieces) -> ItemScores:
    """Scores notes by their frequencies in training, given that the note sounded in the frame before or not.

    Arguments and return value are the same as for `marginal`.

    >>> held = np.ones((5, 1))
    >>> markov([held], [held]).totals.round(4).tolist()  # 4 log(5 / 4.5)
    [0.4214]
    """
    before, now = _pairs(train)
    after_sounding, after_silent = _frequencies(now, before), _frequencies(now, ~before)
    return _score(pieces, lambda before: np.where(before, after_sounding, after_silent))


def _pairs(pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
    """Returns all frames with a next frame, and these next frames: [M, N] bool."""
    return tuple(np.concatenate([piece[part] for piece in pieces]) > 0 for part in (slice(-1), slice(1, None)))


def _frequencies(now: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Returns the frequency of each note [N] in the frames where `where` is True, or in all frames."""
    count = len(now) if where is None else where.sum(axis=0)
    return (now.sum(axis=0, where=True if where is None else where) + PRIOR) / (count + 2 * PRIOR)


def _score(pieces: Pieces, forecast: Callable[[np.ndarray], np.ndarray]) -> ItemScores:
    """Scores `forecast`, a function from previous frames [T - 1, N] bool to note probabilities of the next frames."""
    totals, counts = [], []
    for piece in pieces:
        before, now = _pairs([piece])
        probabilities = forecast(before)
        totals.append(-np.log(np.where(now, probabilities, 1 - probabilities)).sum())
        counts.append(len(now))
    return ItemScores(np.array(totals), np.array(counts))
