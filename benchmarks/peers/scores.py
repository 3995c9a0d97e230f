"""From seconds to a verdict: ratios with their spread, exponents of growth, the gates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.peers import cases
from benchmarks.peers.cases import Case

OURS, FLAX, KERAS, TORCH = 'ours', 'flax', 'keras', 'torch'
PRODUCT, REPLICAS = 'product', 'replicas'
LAYER = (cases.FORWARD, cases.TRAINING)  # what is measured of every row
PLAIN = 'plain'
BACKENDS = {f'{what} by a backend': what for what in LAYER}  # of ours, whose name is in the place of a peer's
WARM, COLD = 'start, warm', 'start, cold'
COMPILING = 'compiling over T'
# What grows, and which of a row's numbers it grows with.
GROWTH = {'growth over T': 1, 'growth over B': 0, 'growth over H': 3, 'growth over replicas': 0, COMPILING: 1}
LINEAR = ('growth over T', 'growth over replicas')  # whose exponents must be 1

FLAX_SHARE, EXPONENT = 0.65, (0.95, 1.05)
AIMS = dict(zip(cases.ROWS, (0.85, 0.80, 0.55, 0.95, 0.70, 0.20), strict=True))  # of PyTorch's training step
QUARTILES = (0.25, 0.5, 0.75)
UPPER = 16  # the exponent is of sizes from the largest / UPPER on, where what does not grow is small


class Timing(NamedTuple):
    """A line of timings.csv."""

    row: str  # sizes: BxTxFxH, for a backend behind its cell; seeds x epochs of replicas; the side of a matrix product
    what: str
    peer: str
    setting: str  # threads and allocator of PyTorch
    round: int  # from 1; 0 is the pilot, which chooses the setting
    seconds: float  # a call, the median of those of one visit


class Ratio(NamedTuple):
    """Our time / a peer's over rounds: the median, and the quartiles, which no single disturbed round moves far."""

    low: float
    median: float
    high: float


class Gate(NamedTuple):
    """A condition, whether it holds (None: it could not be judged), and what fails it."""

    text: str
    holds: bool | None
    failing: tuple[str, ...] = ()

    def __str__(self) -> str:
        word = {True: 'holds', False: 'FAILS', None: 'not judged'}[self.holds]
        return f'{word}: {self.text}' + (f' -- {"; ".join(self.failing)}' if self.failing else '')


class Timings:
    """All that was timed, and questions about it."""

    def __init__(self, timings: Iterable[Timing] = ()):
        self.all = list(timings)

    def seconds(self, row: str, what: str, peer: str) -> np.ndarray:
        """Of each round, in their order; the pilot is not among them."""
        found = [t for t in self.all if (t.row, t.what, t.peer) == (row, what, peer) and t.round > 0]
        return np.array([t.seconds for t in sorted(found, key=lambda t: t.round)])

    def median(self, row: str, what: str, peer: str) -> float:
        """Over the rounds of what was measured."""
        return float(np.median(self.seconds(row, what, peer)))

    def ratio(self, row: str, what: str, peer: str, ours: str = OURS) -> Ratio | None:
        """Round by round, so that what slows a machine for a while slows both."""
        ours, theirs = self.seconds(row, what, ours), self.seconds(row, what, peer)
        rounds = min(len(ours), len(theirs))
        return Ratio(*map(float, np.quantile(ours[:rounds] / theirs[:rounds], QUARTILES))) if rounds else None

    def rows(self, *whats: str) -> list[tuple[str, str]]:
        """(row, what) in the order in which they were measured."""
        return list(dict.fromkeys((t.row, t.what) for t in self.all if t.what in whats))

    def peers(self, row: str, what: str) -> list[str]:
        """By whom it was measured."""
        return list(dict.fromkeys(t.peer for t in self.all if (t.row, t.what) == (row, what)))

    def setting(self, row: str, what: str, peer: str) -> str:
        """That of the rounds that count."""
        settings = (t.setting for t in self.all if (t.row, t.what, t.peer) == (row, what, peer) and t.round > 0)
        return next(settings, '')

    def rate(self) -> float | None:
        """Floating-point operations a second of the matrix product, the median of its rounds."""
        rates = [2 * cases.sizes(t.row)[0] ** 3 / t.seconds for t in self.all if t.what == PRODUCT]
        return float(np.median(rates)) if rates else None

    def curve(self, what: str) -> tuple[np.ndarray, np.ndarray]:
        """Sizes and median seconds of a growth, in the order of the sizes."""
        points = [(cases.sizes(row)[GROWTH[what]], self.median(row, what, OURS)) for row, _ in self.rows(what)]
        return tuple(np.array(sorted(points), float).reshape(-1, 2).T)

    def exponent(self, what: str) -> float | None:
        """Of the growth, by its upper points; None where there are fewer than two."""
        sizes, seconds = upper(*self.curve(what))
        return exponent(sizes, seconds) if len(sizes) > 1 else None


def upper(sizes: np.ndarray, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points from a sixteenth of the largest size on."""
    kept = sizes * UPPER >= sizes.max(initial=0)
    return sizes[kept], seconds[kept]


def exponent(sizes: np.ndarray, seconds: np.ndarray) -> float:
    """k of seconds ~ sizes^k, by least squares on logarithms.

    >>> round(exponent(np.array([1.0, 2.0, 4.0]), np.array([3.0, 12.0, 48.0])), 6)
    2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


# --- the gates -------------------------------------------------------------------------------------


def gates(timings: Timings, memory: Mapping[tuple[str, str], int]) -> list[Gate]:
    """The four; memory is bytes by row and peer."""
    return [not_slower(timings), faster_than_flax(timings), less_memory(memory), linear(timings)]


def losses(timings: Timings, peer: str) -> list[str]:
    """Where we are slower than a peer beyond the spread: even the lower quartile of the ratio is over 1."""
    found = []
    for row, what in timings.rows(*LAYER, cases.STREAMING, REPLICAS, WARM, COLD):
        ratio = timings.ratio(row, what, peer)
        if ratio is not None and ratio.low > 1:
            found.append(f'{row} {what} {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})')
    return found


def not_slower(timings: Timings) -> Gate:
    """Against PyTorch at its best setting."""
    text = 'no row slower than the best of PyTorch beyond the spread of the rounds'
    judged = [timings.ratio(row, what, TORCH) for row, what in timings.rows(*LAYER, cases.STREAMING)]
    if not any(judged):
        return Gate(text, None)
    failing = losses(timings, TORCH)
    return Gate(text, not failing, tuple(failing))


def faster_than_flax(timings: Timings) -> Gate:
    """Over rows, for the forward pass and the training step each."""
    text, failing, judged = f"the median row at most {FLAX_SHARE} of Flax's time", [], False
    for what in LAYER:
        ratios = {row: timings.ratio(row, what, FLAX) for row, _ in timings.rows(what)}
        medians = {row: ratio.median for row, ratio in ratios.items() if ratio is not None}
        if not medians:
            continue
        judged, median = True, float(np.median(list(medians.values())))
        text += f'; {what}: {median:.2f}'
        if median > FLAX_SHARE:
            failing += [f'{row} {what} {share:.2f}' for row, share in medians.items() if share > FLAX_SHARE]
    return Gate(text, not failing if judged else None, tuple(failing))


def less_memory(memory: Mapping[tuple[str, str], int]) -> Gate:
    """Of the temporaries of the training step."""
    text = "temporaries of the training step at most Flax's in every row"
    rows = [row for row, peer in memory if peer == FLAX and (row, OURS) in memory]
    shares = {row: (memory[row, OURS], memory[row, FLAX]) for row in rows}
    failing = [
        f'{row} {ours / 1e6:,.3g} MB for {flax / 1e6:,.3g}' for row, (ours, flax) in shares.items() if ours > flax
    ]
    return Gate(text, not failing if rows else None, tuple(failing))


def linear(timings: Timings) -> Gate:
    """Over T and over replicas."""
    low, high = EXPONENT
    text, failing, judged = f'exponents from {low} to {high}', [], 0
    for what in LINEAR:
        found = timings.exponent(what)
        if found is None:
            continue
        judged += 1
        text += f'; {what}: {found:.3f}'
        if not low <= found <= high:
            failing.append(f'{what} {found:.3f}')
    return Gate(text, not failing if failing or judged == len(LINEAR) else None, tuple(failing))


def aims(timings: Timings) -> list[str]:
    """For each of the rows that has an aim, the training step beside PyTorch's, in words."""
    found = []
    for case, aim in AIMS.items():
        ratio = timings.ratio(str(case), cases.TRAINING, TORCH)
        if ratio is not None:
            found.append(f'{case} {ratio.median:.2f} of {aim:.2f}{"" if ratio.median <= aim else " (missed)"}')
    return found


def least_seconds(row: str, what: str, rate: float) -> float:
    """What the matrix products of a row take at that rate."""
    return Case(*cases.sizes(row)).flops(what) / rate


def best(pilot: Sequence[tuple[str, float]]) -> str:
    """The setting of the fewest seconds."""
    return min(pilot, key=lambda point: point[1])[0]
