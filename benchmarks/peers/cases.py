"""Benchmark cases: an LSTM or GRU layer and its sizes, its arrays, and random sizes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from seqjax.errors import UserError

RANGES = ((1, 256), (10, 2000), (1, 256), (16, 1024))  # ranges of random B, T, F, H
FLOPS, QUICK_FLOPS = 5e11, 5e9  # maximal FLOPs of a training step: seconds, or a thirtieth of a second, on a few cores
BYTES = 2e9  # maximal memory of Flax's training step; the other processes need memory as well
FLAX_ARRAYS = 15  # arrays [T, B, H] of Flax's backward pass: gates, states, their activations, gradients
SEED = 0  # seed of the arrays
LSTM, GRU = 'lstm', 'gru'
GATES = {LSTM: 4, GRU: 3}  # number of gates, the candidate included; the GRU has the reset gate after the product


class Case(NamedTuple):
    """One recurrent layer and its inputs: the sizes B x T x F x H, and the cell."""

    batch: int
    steps: int
    features: int
    units: int
    cell: str = LSTM  # a key of GATES

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes B, T, F, H."""
        return self[:4]

    def __str__(self) -> str:
        return f'{self.cell} {"x".join(map(str, self.sizes))}'

    def flops(self, what: str) -> float:
        """Returns the FLOPs of the matrix products; the backward pass has two for each of the forward pass."""
        forward = 2.0 * self.batch * self.steps * GATES[self.cell] * self.units * (self.features + self.units)
        return 3 * forward if what == TRAINING else forward

    def flax_bytes(self) -> float:
        """Estimates the memory of Flax's training step."""
        return 4.0 * self.batch * self.steps * (FLAX_ARRAYS * self.units + self.features)


SYNCHRONOUS = 'SEQJAX_BENCH_SYNCHRONOUS'  # environment variable of a worker on JAX without asynchronous dispatch

FORWARD, TRAINING, STREAMING = 'forward', 'training', 'streaming'
ROWS = (
    Case(32, 100, 64, 128),
    Case(64, 256, 128, 512),
    Case(256, 784, 1, 128),
    Case(32, 512, 64, 1024),
    Case(1, 1000, 1, 32),
    Case(5, 5, 1, 5),
)
GRU_ROWS = tuple(ROWS[n]._replace(cell=GRU) for n in (0, 1, 2, 4))
QUICK_STEPS = 8  # minimal number of time steps in the quick version


def quick(row: Case) -> Case:
    """Returns a case that takes about a fiftieth of the time."""
    return row._replace(steps=min(row.steps, max(QUICK_STEPS, row.steps // 50)))


def sizes(row: str) -> tuple[int, ...]:
    """Returns the numbers of a row, without its cell.

    >>> sizes(str(Case(5, 5, 1, 5))), sizes('1000x20')
    ((5, 5, 1, 5), (1000, 20))
    """
    return tuple(int(word) for word in row.rpartition(' ')[2].split('x'))


def parse(row: str) -> Case:
    """Returns the case of a row; without the name of a cell it is an LSTM.

    >>> parse('gru 5x5x1x5').cell, str(parse('5x5x1x5'))
    ('gru', 'lstm 5x5x1x5')
    """
    return Case(*sizes(row), cell=row.rpartition(' ')[0] or LSTM)


def draw(rng: np.random.Generator, count: int, most_flops: float, cell: str = LSTM) -> list[Case]:
    """Draws random cases of a cell, with B, T, F and H log-uniform within RANGES.

    Cases whose training step needs more than `most_flops`, or about BYTES in Flax, are rejected.
    """
    drawn: list[Case] = []
    while len(drawn) < count:
        logs = [rng.uniform(np.log(low), np.log(high)) for low, high in RANGES]
        case = Case(*(int(np.rint(np.exp(x))) for x in logs), cell)
        if case.flops(TRAINING) <= most_flops and case.flax_bytes() <= BYTES:
            drawn.append(case)
    return drawn


class Arrays(NamedTuple):
    """Arrays of a case, float32; G gates in the order i, f, g, o for the LSTM, and z, r, n for the GRU."""

    inputs: np.ndarray  # [B, T, F]
    targets: np.ndarray  # [B, T, H]
    weights: dict[str, np.ndarray]  # kernel [F, GH], recurrent_kernel [H, GH], bias [GH]; GRU: recurrent_bias [GH]


def arrays(case: Case) -> Arrays:
    """Returns the arrays of a case, the same in every process: normal inputs and targets, PyTorch's initial weights."""
    rng, edge, gates = np.random.default_rng(SEED), case.units**-0.5, GATES[case.cell] * case.units
    shapes = {'kernel': (case.features, gates), 'recurrent_kernel': (case.units, gates), 'bias': (gates,)}
    if case.cell == GRU:
        shapes['recurrent_bias'] = (gates,)
    weights = {name: (edge * (2 * rng.random(shape, np.float32) - 1)) for name, shape in shapes.items()}
    if case.cell == GRU:
        weights['recurrent_bias'][: 2 * case.units] = 0  # Flax has only one bias for z and one for r
    inputs = rng.standard_normal((case.batch, case.steps, case.features), np.float32)
    targets = rng.standard_normal((case.batch, case.steps, case.units), np.float32)
    return Arrays(inputs, targets, {name: array.astype(np.float32) for name, array in weights.items()})


def check_equal(ours: dict[str, np.ndarray], others: dict[str, np.ndarray], peer: str, where: str) -> None:
    """Raises UserError if an array of a peer differs by more than TOLERANCE of its largest number."""
    for name, array in ours.items():
        scale = max(float(np.abs(array).max()), np.finfo(np.float32).tiny)
        difference = float(np.abs(array - others[name]).max()) / scale
        if not difference <= TOLERANCE:
            raise UserError(
                f'{where}: {name} of {peer} differs from ours by {difference:.1e} of its largest number, so times '
                f'cannot be compared; exclude {peer} with --peers'
            )


TOLERANCE = 1e-4
