"""N-grams with interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998, section 3).

With a word w after its context h, the n-1 tokens before it, and h' the context without its first token:

    p_n(w | h) = max(c(h w) - D(c(h w)), 0) / c(h .) + rest(h) p_{n-1}(w | h')
    rest(h)    = (D1 N1(h .) + D2 N2(h .) + D3 N3+(h .)) / c(h .)
    Y = n1 / (n1 + 2 n2),   D1 = 1 - 2 Y n2 / n1,   D2 = 2 - 3 Y n3 / n2,   D3+ = 3 - 4 Y n4 / n3

N1(h .) is how many tokens follow h once, n1 how many n-grams of the order there are once. At the highest order c counts
how often an n-gram stands in the text, at the others how many different tokens stand before it (Kneser and Ney 1995).
p_0 is 1 / V. After a context that was never seen p_n is p_{n-1}.
"""

from typing import NamedTuple

import numpy as np

FACTOR, MIX = 0x9E3779B97F4A7C15, np.uint64(0xFF51AFD7ED558CCD)  # odd, with bits all over
DISCOUNTS = (0.5, 1.0, 1.5)  # where the counts say none, as for the few tokens of a small alphabet
AT_ONCE = 2**20  # tokens that are looked up at once


class Order(NamedTuple):
    """What is known of the n-grams of one n. A key has the token in its last bits, and a hash of the context before."""

    keys: np.ndarray  # [G] uint64, ascending: n-grams, those of one context side by side
    share: np.ndarray  # [G]: max(c - D, 0) / c(h .)
    contexts: np.ndarray  # [C] uint64, ascending
    rest: np.ndarray  # [C]: what is left for the order below


class NGrams(NamedTuple):
    """A model of tokens given those before."""

    orders: tuple[Order, ...]  # of n = 1, 2, ...
    size: int  # V

    def bits(self, tokens: np.ndarray, first: int = 1) -> np.ndarray:
        """-log2 of the probability of tokens [N] from place `first` on, given all before -> [N - first] float64."""
        parts = []
        for begin in range(first, len(tokens), AT_ONCE):
            reach = max(0, begin - len(self.orders) + 1)
            part = tokens[reach : begin + AT_ONCE]
            parts.append(-np.log2(self._probabilities(part)[begin - reach :]))
        return np.concatenate(parts) if parts else np.zeros(0)

    def _probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """[N]; where fewer tokens stand before one than the order asks for, of a lower order."""
        p = np.full(len(tokens), 1 / self.size)
        for context, order in zip(_contexts(tokens, len(self.orders), self.size), self.orders, strict=True):
            here = p[len(tokens) - len(context) :]  # a view
            here *= _look_up(order.contexts, order.rest, context, missing=1)
            here += _look_up(order.keys, order.share, _keys(context, tokens), missing=0)
        return p


def fit(tokens: np.ndarray, order: int, size: int) -> NGrams:
    """Counts tokens [N], unsigned integers of `size` different ones, in n-grams of up to `order` tokens.

    Raises ValueError where the text is shorter than its longest n-gram, or the order is below 1.

    >>> model = fit(np.array([0, 1, 0, 1, 0, 1, 0, 2], np.uint8), 2, size=3)
    >>> model.bits(np.array([0, 1], np.uint8)).round(2).tolist()
    [0.88]
    """
    if not 1 <= order <= len(tokens):
        raise ValueError(f'order={order} must be at least 1 and at most the {len(tokens)} tokens of the text')
    contexts = _contexts(tokens, order, size)
    keys, places, counts = _distinct(_keys(contexts[-1], tokens))
    orders = [_order(keys, counts, size)]
    for context in reversed(contexts[:-1]):
        # Each different n-gram of the order above stands for one token before what it ends with.
        shorter = _keys(context, tokens)
        keys, places, counts = _distinct(shorter[places + 1], places + 1)
        orders.append(_order(keys, counts, size))
    return NGrams(tuple(reversed(orders)), size)


def _contexts(tokens: np.ndarray, order: int, size: int) -> list[np.ndarray]:
    """For n = 1, ..., order hashes [N - n + 1] of the n - 1 tokens before a token, with room below for the token."""
    room = np.uint64(max(1, (size - 1).bit_length()))
    total, hashes = np.zeros(len(tokens), np.uint64), []
    for n in range(1, order + 1):
        if n > 1:  # one more token before
            power = np.uint64(pow(FACTOR, n - 1, 2**64))
            total = total[1:] + (tokens[: len(tokens) - n + 1].astype(np.uint64) + np.uint64(1)) * power
        mixed = (total ^ (total >> np.uint64(32))) * MIX
        hashes.append((mixed ^ (mixed >> np.uint64(29))) >> room << room)
    return hashes


def _keys(context: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return context | tokens[len(tokens) - len(context) :]


def _distinct(keys: np.ndarray, places: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ascending: different keys, a place of each, and how often it is there."""
    order = np.argsort(keys)
    keys = keys[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    some = order[first]
    return keys[first], some if places is None else places[some], np.diff(first, append=len(keys))


def _order(keys: np.ndarray, counts: np.ndarray, size: int) -> Order:
    room = np.uint64(max(1, (size - 1).bit_length()))
    discount = np.array([0, *_discounts(counts)])[np.minimum(counts, 3)]
    contexts = keys >> room << room
    first = np.flatnonzero(np.concatenate([[True], contexts[1:] != contexts[:-1]]))
    totals = np.add.reduceat(counts, first)
    share = (counts - discount) / np.repeat(totals, np.diff(first, append=len(keys)))
    return Order(keys, share, contexts[first], np.add.reduceat(discount, first) / totals)


def _discounts(counts: np.ndarray) -> tuple[float, ...]:
    """D1, D2, D3+; where one is not between 0 and what is counted, all of `DISCOUNTS`."""
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].tolist()
    if 0 in n[:3]:
        return DISCOUNTS
    y = n[0] / (n[0] + 2 * n[1])
    found = tuple(k - (k + 1) * y * n[k] / n[k - 1] for k in (1, 2, 3))
    return found if all(0 < d <= k for k, d in enumerate(found, 1)) else DISCOUNTS


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, missing: float) -> np.ndarray:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], missing)
