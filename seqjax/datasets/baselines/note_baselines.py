"""Baselines for piano rolls: the frequency of each note, and a Markov chain for each note.

Both give each note a probability in frames 2 to T of a piece [T, N] of 0 and 1. They count frames of the pieces
`train`, and add half a frame with the note and half a frame without it (Jeffreys' prior), so that no probability is 0.
"""

from collections.abc import Callable, Sequence

import numpy as np

from seqjax.datasets.dataset import ItemScores

PRIOR = 0.5  # Jeffreys' prior of a probability: Beta(1/2, 1/2)

Pieces = Sequence[np.ndarray]  # each [T, N]: 1 where a note sounds, otherwise 0


def marginal(train: Pieces, pieces: Pieces) -> ItemScores:
    """Returns the losses of pieces if each note sounds with its frequency in training, independent of other frames.

    An item is a piece. Its total is the cross-entropy in nats, summed over notes and frames 2 to T; its count is T - 1.

    >>> chord, rest = np.ones((1, 2)), np.zeros((1, 2))
    >>> marginal([np.concatenate([rest, chord, rest])], [np.concatenate([chord, chord])]).totals.round(4).tolist()
    [1.3863]
    """
    _, now = _pairs(train)
    probabilities = _frequencies(now)
    return _score(pieces, lambda before: np.broadcast_to(probabilities, before.shape))


def markov(train: Pieces, pieces: Pieces) -> ItemScores:
    """Returns the losses of pieces if the probability of a note depends on the same note in the frame before.

    The probability is the frequency in training after frames with, or without, the note. Items are as in `marginal`.

    >>> held = np.ones((5, 1))
    >>> markov([held], [held]).totals.round(4).tolist()  # 4 log(5 / 4.5)
    [0.4214]
    """
    before, now = _pairs(train)
    after_sounding, after_silent = _frequencies(now, before), _frequencies(now, ~before)
    return _score(pieces, lambda before: np.where(before, after_sounding, after_silent))


def _pairs(pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
    """Returns two arrays [M, N] bool: the frames of all pieces that have a next frame, and their next frames."""
    return tuple(np.concatenate([piece[part] for piece in pieces]) > 0 for part in (slice(-1), slice(1, None)))


def _frequencies(now: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Returns the frequency [N] of each note in frames [M, N], with the prior; only where `where` [M, N] is True."""
    count = len(now) if where is None else where.sum(axis=0)
    return (now.sum(axis=0, where=True if where is None else where) + PRIOR) / (count + 2 * PRIOR)


def _score(pieces: Pieces, forecast: Callable[[np.ndarray], np.ndarray]) -> ItemScores:
    """Returns the losses of pieces, see `marginal`; `forecast` maps frames [T - 1, N] to probabilities of the next."""
    totals, counts = [], []
    for piece in pieces:
        before, now = _pairs([piece])
        probabilities = forecast(before)
        totals.append(-np.log(np.where(now, probabilities, 1 - probabilities)).sum())
        counts.append(len(now))
    return ItemScores(np.array(totals), np.array(counts))
