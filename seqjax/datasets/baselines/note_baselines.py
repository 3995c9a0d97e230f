"""What is simple about piano rolls: each note by itself, by how often it sounds, or by what it did a frame before.

Both forecast the frames 2 .. T of a piece [T, N] of 0 and 1, as a model does that reads the frames before. They count
over the training pieces, with half an observation of each kind added (Jeffreys' prior): nothing is impossible.
"""

from collections.abc import Callable, Sequence

import numpy as np

from seqjax.datasets.dataset import Items

HALF = 0.5  # Jeffreys' prior of a share: Beta(1/2, 1/2)

Pieces = Sequence[np.ndarray]  # each [T, N], 1 where a note sounds


def marginal(train: Pieces, pieces: Pieces) -> Items:
    """Each note sounds as often as it does in the pieces to train on; a piece an item, of the nats of its frames.

    >>> chord, rest = np.ones((1, 2)), np.zeros((1, 2))
    >>> marginal([np.concatenate([rest, chord, rest])], [np.concatenate([chord, chord])]).totals.round(4).tolist()
    [1.3863]
    """
    _, now = _pairs(train)
    shares = _shares(now)
    return _score(pieces, lambda before: np.broadcast_to(shares, before.shape))


def markov(train: Pieces, pieces: Pieces) -> Items:
    """Each note sounds as often as it does in training after a frame in which it sounded, or after one in which not.

    Arguments and what is returned are those of `marginal`.

    >>> held = np.ones((5, 1))
    >>> markov([held], [held]).totals.round(4).tolist()  # 4 log(5 / 4.5)
    [0.4214]
    """
    before, now = _pairs(train)
    held, silent = _shares(now, before), _shares(now, ~before)
    return _score(pieces, lambda before: np.where(before, held, silent))


def _pairs(pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
    """All frames that another follows, and those that follow: [M, N] bool."""
    return tuple(np.concatenate([piece[part] for piece in pieces]) > 0 for part in (slice(-1), slice(1, None)))


def _shares(now: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """How often each note sounds [N], of the frames in which `where` is true of it; of all without."""
    of = len(now) if where is None else where.sum(axis=0)
    return (now.sum(axis=0, where=True if where is None else where) + HALF) / (of + 2 * HALF)


def _score(pieces: Pieces, forecast: Callable[[np.ndarray], np.ndarray]) -> Items:
    """`forecast`: frames before [T - 1, N] bool -> probabilities of the notes of those that follow."""
    totals, counts = [], []
    for piece in pieces:
        before, now = _pairs([piece])
        shares = forecast(before)
        totals.append(-np.log(np.where(now, shares, 1 - shares)).sum())
        counts.append(len(now))
    return Items(np.array(totals), np.array(counts))
