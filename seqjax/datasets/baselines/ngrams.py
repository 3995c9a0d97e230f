"""N-gram language models with interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998, section 3).

With a word w after its context h, the n-1 tokens before it, and h' the context without its first token:

    p_n(w | h) = max(c(h w) - D(c(h w)), 0) / c(h .) + backoff(h) p_{n-1}(w | h')
    backoff(h) = (D1 N1(h .) + D2 N2(h .) + D3 N3+(h .)) / c(h .)
    Y = n1 / (n1 + 2 n2),   D1 = 1 - 2 Y n2 / n1,   D2 = 2 - 3 Y n3 / n2,   D3+ = 3 - 4 Y n4 / n3

D(c) is D1, D2 or D3+ for a count c of 1, 2, or 3 and more. N1(h .) is the number of distinct tokens w with c(h w) = 1,
n1 the number of distinct n-grams with count 1, and so on; c(h .) is the sum of c(h w) over w. At the highest order, c
counts the occurrences of an n-gram in the text, at the others the distinct tokens before it (Kneser and Ney 1995). p_0
is 1 / V. After an unseen context, p_n is p_{n-1}.
"""

from typing import NamedTuple

import numpy as np

FACTOR, MIX = 0x9E3779B97F4A7C15, np.uint64(0xFF51AFD7ED558CCD)  # odd multipliers of the hash
DISCOUNTS = (0.5, 1.0, 1.5)  # D1, D2, D3+ if the counts give no valid ones, as for small alphabets
CHUNK = 2**20  # maximum number of tokens that are looked up at a time


class NGramOrder(NamedTuple):
    """Discounted frequencies of the n-grams of one n, and the backoff weights of their contexts.

    A key is a hash of the context with the token in its last bits.
    """

    keys: np.ndarray  # [G] uint64, ascending: n-grams, grouped by context
    discounted: np.ndarray  # [G]: max(c(h w) - D, 0) / c(h .) of each n-gram
    contexts: np.ndarray  # [C] uint64, ascending: hashes of contexts, with 0 in the bits of the token
    backoff: np.ndarray  # [C]: backoff(h), the weight of the next lower order after each context


class NGrams(NamedTuple):
    """N-gram language model."""

    orders: tuple[NGramOrder, ...]  # for n = 1, 2, ...
    size: int  # number of different tokens V

    def bits(self, tokens: np.ndarray, first: int = 1) -> np.ndarray:
        """Returns -log2 of the probability [N - first] float64 of each of tokens [N] from index `first` on."""
        parts = []
        for begin in range(first, len(tokens), CHUNK):
            reach = max(0, begin - len(self.orders) + 1)
            part = tokens[reach : begin + CHUNK]
            parts.append(-np.log2(self._probabilities(part)[begin - reach :]))
        return np.concatenate(parts) if parts else np.zeros(0)

    def _probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Returns the probabilities [N] of tokens [N], each given those before it; the first ones use lower orders."""
        p = np.full(len(tokens), 1 / self.size)
        for context, order in zip(_contexts(tokens, len(self.orders), self.size), self.orders, strict=True):
            here = p[len(tokens) - len(context) :]  # a view
            here *= _look_up(order.contexts, order.backoff, context, missing=1)
            here += _look_up(order.keys, order.discounted, _keys(context, tokens), missing=0)
        return p


def fit(tokens: np.ndarray, order: int, size: int) -> NGrams:
    """Returns a model with n-grams of up to `order` tokens, fitted to tokens [N], unsigned integers below `size`.

    Raises ValueError if `order` is below 1 or above N.

    >>> model = fit(np.array([0, 1, 0, 1, 0, 1, 0, 2], np.uint8), 2, size=3)
    >>> model.bits(np.array([0, 1], np.uint8)).round(2).tolist()
    [0.88]
    """
    if not 1 <= order <= len(tokens):
        raise ValueError(f'order={order} must be from 1 to {len(tokens)}, the number of tokens of the text')
    contexts = _contexts(tokens, order, size)
    keys, places, counts = _distinct(_keys(contexts[-1], tokens))
    orders = [_order(keys, counts, size)]
    for context in reversed(contexts[:-1]):
        # Each distinct n-gram of the order above counts one token before the shorter n-gram.
        shorter = _keys(context, tokens)
        keys, places, counts = _distinct(shorter[places + 1], places + 1)
        orders.append(_order(keys, counts, size))
    return NGrams(tuple(reversed(orders)), size)


def _contexts(tokens: np.ndarray, order: int, size: int) -> list[np.ndarray]:
    """Returns for n = 1, ..., order the hashes [N - n + 1] of the n - 1 tokens before each token that has so many.

    The last bits of a hash are 0; `_keys` writes the token there.
    """
    token_bits = np.uint64(max(1, (size - 1).bit_length()))
    total, hashes = np.zeros(len(tokens), np.uint64), []
    for n in range(1, order + 1):
        if n > 1:  # adds one token before
            power = np.uint64(pow(FACTOR, n - 1, 2**64))
            total = total[1:] + (tokens[: len(tokens) - n + 1].astype(np.uint64) + np.uint64(1)) * power
        mixed = (total ^ (total >> np.uint64(32))) * MIX
        hashes.append((mixed ^ (mixed >> np.uint64(29))) >> token_bits << token_bits)
    return hashes


def _keys(context: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return context | tokens[len(tokens) - len(context) :]


def _distinct(keys: np.ndarray, places: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the distinct keys in ascending order, and for each its entry in `places` (or an index) and its count."""
    order = np.argsort(keys)
    keys = keys[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    indices = order[first]
    return keys[first], indices if places is None else places[indices], np.diff(first, append=len(keys))


def _order(keys: np.ndarray, counts: np.ndarray, size: int) -> NGramOrder:
    token_bits = np.uint64(max(1, (size - 1).bit_length()))
    discount = np.array([0, *_discounts(counts)])[np.minimum(counts, 3)]
    contexts = keys >> token_bits << token_bits
    first = np.flatnonzero(np.concatenate([[True], contexts[1:] != contexts[:-1]]))
    totals = np.add.reduceat(counts, first)
    discounted = (counts - discount) / np.repeat(totals, np.diff(first, append=len(keys)))
    return NGramOrder(keys, discounted, contexts[first], np.add.reduceat(discount, first) / totals)


def _discounts(counts: np.ndarray) -> tuple[float, ...]:
    """Returns D1, D2 and D3+ of n-grams with these counts [G]; `DISCOUNTS` if one of them is invalid."""
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].tolist()
    if 0 in n[:3]:
        return DISCOUNTS
    y = n[0] / (n[0] + 2 * n[1])
    discounts = tuple(k - (k + 1) * y * n[k] / n[k - 1] for k in (1, 2, 3))
    return discounts if all(0 < d <= k for k, d in enumerate(discounts, 1)) else DISCOUNTS


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, missing: float) -> np.ndarray:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], missing)
