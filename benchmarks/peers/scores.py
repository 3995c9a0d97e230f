"""Scores of timings: ratios with quartiles, exponents of growth, and checks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.peers import cases

OURS, FLAX, KERAS, TORCH = 'ours', 'flax', 'keras', 'torch'
NATIVE_OFF = 'native_off'  # ours without the native kernels
NAMES = {
    OURS: 'seqjax',
    TORCH: 'PyTorch',
    FLAX: 'Flax',
    KERAS: 'Keras',
    NATIVE_OFF: 'seqjax without native kernels',
}
PRODUCT, REPLICAS = 'product', 'replicas'
LAYER = (cases.FORWARD, cases.TRAINING)  # workloads of every row
ONE_CORE = {f'{what} on one core': what for what in LAYER}  # workloads of processes that run on one core
PLAIN = 'plain'
BACKENDS = {f'{what} by a backend': what for what in LAYER}  # workloads of a backend, whose name is in column `peer`
WARM, COLD = 'start, warm', 'start, cold'
COMPILING = 'compiling over T'
# Index of the number of a row that grows.
GROWTH = {'growth over T': 1, 'growth over B': 0, 'growth over H': 3, 'growth over replicas': 0, COMPILING: 1}
LINEAR = ('growth over T', 'growth over replicas')  # workloads whose exponent must be 1

# Maximal time of the median row relative to a library, for each cell.
GOALS = {
    TORCH: {cases.FORWARD: 0.75, cases.TRAINING: 0.80},
    FLAX: {cases.FORWARD: 0.50, cases.TRAINING: 0.40},
}
EXPONENT = (0.95, 1.05)
AIMS = dict(zip(cases.ROWS, (0.85, 0.80, 0.55, 0.95, 0.70, 0.20), strict=True))  # time relative to PyTorch's
QUARTILES = (0.25, 0.5, 0.75)
UPPER = 16  # exponents are fitted to sizes from the largest / UPPER on, where constant time is negligible


class Timing(NamedTuple):
    """A row of timings.csv."""

    row: str  # a case, such as 'gru 5x5x1x5'; seeds x epochs of replicas; the side of a matrix product
    what: str  # workload
    peer: str  # library; for a workload of BACKENDS the backend
    setting: str  # threads and allocator of PyTorch
    round: int  # from 1; 0 is the pilot, which selects the setting
    seconds: float  # time of a call, the median of a visit


class Ratio(NamedTuple):
    """Ratio of our time to a peer's over rounds: median and quartiles, which are robust to single slow rounds."""

    low: float
    median: float
    high: float


class Check(NamedTuple):
    """A condition on the results."""

    text: str
    holds: bool | None  # None if it was not measured
    failing: tuple[str, ...] = ()  # rows that violate the condition

    def __str__(self) -> str:
        word = {True: 'holds', False: 'FAILS', None: 'not measured'}[self.holds]
        return f'{word}: {self.text}' + (f' -- {"; ".join(self.failing)}' if self.failing else '')


class Timings:
    """All timings, and statistics of them."""

    def __init__(self, timings: Iterable[Timing] = ()):
        self.records = list(timings)

    def seconds(self, row: str, what: str, peer: str) -> np.ndarray:
        """Returns the time of each round, in their order, without the pilot."""
        timings = [t for t in self.records if (t.row, t.what, t.peer) == (row, what, peer) and t.round > 0]
        return np.array([t.seconds for t in sorted(timings, key=lambda t: t.round)])

    def median(self, row: str, what: str, peer: str) -> float:
        """Returns the median time over rounds."""
        return float(np.median(self.seconds(row, what, peer)))

    def ratio(self, row: str, what: str, peer: str, ours: str = OURS) -> Ratio | None:
        """Returns the ratio of times of the same round, so that a slow machine affects both."""
        ours, theirs = self.seconds(row, what, ours), self.seconds(row, what, peer)
        rounds = min(len(ours), len(theirs))
        return Ratio(*map(float, np.quantile(ours[:rounds] / theirs[:rounds], QUARTILES))) if rounds else None

    def rows(self, *whats: str) -> list[tuple[str, str]]:
        """Returns (row, workload) in the order of measurement."""
        return list(dict.fromkeys((t.row, t.what) for t in self.records if t.what in whats))

    def peers(self, row: str, what: str) -> list[str]:
        """Returns the libraries with timings of a row and workload."""
        return list(dict.fromkeys(t.peer for t in self.records if (t.row, t.what) == (row, what)))

    def setting(self, row: str, what: str, peer: str) -> str:
        """Returns the setting of a library after the pilot."""
        settings = (t.setting for t in self.records if (t.row, t.what, t.peer) == (row, what, peer) and t.round > 0)
        return next(settings, '')

    def rate(self) -> float | None:
        """Returns the median floating-point operations per second of the matrix product."""
        rates = [2 * cases.sizes(t.row)[0] ** 3 / t.seconds for t in self.records if t.what == PRODUCT]
        return float(np.median(rates)) if rates else None

    def curve(self, what: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns sizes and median times, in the order of the sizes."""
        points = [(cases.sizes(row)[GROWTH[what]], self.median(row, what, OURS)) for row, _ in self.rows(what)]
        return tuple(np.array(sorted(points), float).reshape(-1, 2).T)

    def exponent(self, what: str) -> float | None:
        """Returns the exponent of the growth at its upper sizes; None for fewer than two sizes."""
        sizes, seconds = upper(*self.curve(what))
        return exponent(sizes, seconds) if len(sizes) > 1 else None


def upper(sizes: np.ndarray, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points from a sixteenth of the largest size on."""
    is_upper = sizes * UPPER >= sizes.max(initial=0)
    return sizes[is_upper], seconds[is_upper]


def exponent(sizes: np.ndarray, seconds: np.ndarray) -> float:
    """Returns k of seconds ~ sizes^k, by least squares on logarithms.

    >>> round(exponent(np.array([1.0, 2.0, 4.0]), np.array([3.0, 12.0, 48.0])), 6)
    2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


# --- checks ----------------------------------------------------------------------------------------


def checks(timings: Timings, memory: Mapping[tuple[str, str], int]) -> list[Check]:
    """Returns the five checks; `memory` has bytes by row and peer."""
    return [
        not_slower(timings),
        faster_than(timings, TORCH),
        faster_than(timings, FLAX),
        less_memory(memory),
        linear(timings),
    ]


def losses(timings: Timings, peer: str) -> list[str]:
    """Returns the rows in which we are slower than a peer: the lower quartile of the ratio is above 1."""
    slower = []
    for row, what in timings.rows(*LAYER, cases.STREAMING, *ONE_CORE, REPLICAS, WARM, COLD):
        ratio = timings.ratio(row, what, peer)
        if ratio is not None and ratio.low > 1:
            slower.append(f'{row} {what} {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})')
    return slower


def not_slower(timings: Timings) -> Check:
    """Checks that no row is slower than PyTorch at its best setting."""
    text = 'in every row, the lower quartile of the time relative to PyTorch at its best setting is at most 1'
    ratios = [timings.ratio(row, what, TORCH) for row, what in timings.rows(*LAYER, cases.STREAMING, *ONE_CORE)]
    if not any(ratios):
        return Check(text, None)
    failing = losses(timings, TORCH)
    return Check(text, not failing, tuple(failing))


def faster_than(timings: Timings, peer: str) -> Check:
    """Checks the median over the rows of each cell of the time relative to a library with goals."""
    goals = ', '.join(f'{goal:.2f} ({what})' for what, goal in GOALS[peer].items())
    text, failing = f"the median row of each cell takes at most {goals} of {NAMES[peer]}'s time", []
    is_measured = False
    for cell, (what, goal) in itertools.product(cases.GATES, GOALS[peer].items()):
        rows = [row for row, _ in timings.rows(what) if cases.parse(row).cell == cell]
        ratios = {row: timings.ratio(row, what, peer) for row in rows}
        medians = {row: ratio.median for row, ratio in ratios.items() if ratio is not None}
        if not medians:
            continue
        is_measured, median = True, float(np.median(list(medians.values())))
        text += f'; {cell} {what}: {median:.2f}'
        if median > goal:
            failing += [f'{row} {what} {share:.2f}' for row, share in medians.items() if share > goal]
    return Check(text, not failing if is_measured else None, tuple(failing))


def less_memory(memory: Mapping[tuple[str, str], int]) -> Check:
    """Checks that the training step needs at most as much temporary memory as Flax's."""
    text = "temporaries of the training step are at most Flax's in every row"
    rows = [row for row, peer in memory if peer == FLAX and (row, OURS) in memory]
    shares = {row: (memory[row, OURS], memory[row, FLAX]) for row in rows}
    failing = [
        f'{row} {ours / 1e6:,.3g} MB instead of {flax / 1e6:,.3g} MB'
        for row, (ours, flax) in shares.items()
        if ours > flax
    ]
    return Check(text, not failing if rows else None, tuple(failing))


def linear(timings: Timings) -> Check:
    """Checks that times grow linearly over T and over replicas."""
    low, high = EXPONENT
    text, failing, measured = f'exponents are from {low} to {high}', [], 0
    for what in LINEAR:
        value = timings.exponent(what)
        if value is None:
            continue
        measured += 1
        text += f'; {what}: {value:.3f}'
        if not low <= value <= high:
            failing.append(f'{what} {value:.3f}')
    return Check(text, not failing if failing or measured == len(LINEAR) else None, tuple(failing))


def aims(timings: Timings) -> list[str]:
    """Returns the time of the training step relative to PyTorch's, for each row with an aim, as text."""
    lines = []
    for case, aim in AIMS.items():
        ratio = timings.ratio(str(case), cases.TRAINING, TORCH)
        if ratio is not None:
            lines.append(f'{case} {ratio.median:.2f} of {aim:.2f}{"" if ratio.median <= aim else " (missed)"}')
    return lines


def least_seconds(row: str, what: str, rate: float) -> float:
    """Returns the time of the matrix products of a row at a given rate."""
    return cases.parse(row).flops(what) / rate


def best(pilot: Sequence[tuple[str, float]]) -> str:
    """Returns the fastest setting."""
    return min(pilot, key=lambda point: point[1])[0]
