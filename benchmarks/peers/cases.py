"""What is measured: the sizes of an LSTM layer, its arrays, and sizes drawn at random."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from seqjax.errors import UserError

RANGES = ((1, 256), (10, 2000), (1, 256), (16, 1024))  # of B, T, F, H that are drawn
FLOPS, QUICK_FLOPS = 5e11, 5e9  # of a training step: seconds on a few cores, and a thirtieth of one
BYTES = 2e9  # of a training step of Flax's, beside which four other processes have theirs
KEPT = 15  # arrays [T, B, H] that Flax's backward pass has at once: gates, states, their activations, gradients
SEED = 0  # of the arrays, which decide no time


class Case(NamedTuple):
    """The sizes of one LSTM layer and its inputs, as B x T x F x H."""

    batch: int
    steps: int
    features: int
    units: int

    def __str__(self) -> str:
        return 'x'.join(map(str, self))

    def flops(self, what: str) -> float:
        """Of the matrix products alone; the backward pass has two for each of the forward pass."""
        forward = 2.0 * self.batch * self.steps * 4 * self.units * (self.features + self.units)
        return 3 * forward if what == TRAINING else forward

    def flax_bytes(self) -> float:
        """About what Flax's training step needs."""
        return 4.0 * self.batch * self.steps * (KEPT * self.units + self.features)


AT_ONCE = 'SEQJAX_BENCH_AT_ONCE'  # in the environment of a worker on JAX that hands no step to another thread

FORWARD, TRAINING, STREAMING = 'forward', 'training', 'streaming'
ROWS = (
    Case(32, 100, 64, 128),
    Case(64, 256, 128, 512),
    Case(256, 784, 1, 128),
    Case(32, 512, 64, 1024),
    Case(1, 1000, 1, 32),
    Case(5, 5, 1, 5),
)
QUICK_STEPS = 8  # of the rows of many steps, in the quick version


def quick(row: Case) -> Case:
    """A row in about a fiftieth of its time."""
    return row._replace(steps=min(row.steps, max(QUICK_STEPS, row.steps // 50)))


def sizes(row: str) -> tuple[int, ...]:
    """The numbers of a row.

    >>> sizes(str(Case(5, 5, 1, 5)))
    (5, 5, 1, 5)
    """
    return tuple(int(word) for word in row.split('x'))


def draw(rng: np.random.Generator, count: int, most_flops: float) -> list[Case]:
    """So many cases, B, T, F and H log-uniform within RANGES.

    One whose training step takes more than `most_flops`, or about BYTES in Flax, is drawn again.
    """
    found: list[Case] = []
    while len(found) < count:
        logs = [rng.uniform(np.log(low), np.log(high)) for low, high in RANGES]
        case = Case(*(int(np.rint(np.exp(x))) for x in logs))
        if case.flops(TRAINING) <= most_flops and case.flax_bytes() <= BYTES:
            found.append(case)
    return found


class Arrays(NamedTuple):
    """Of one case, float32; gates are in the order i, f, g, o."""

    inputs: np.ndarray  # [B, T, F]
    targets: np.ndarray  # [B, T, H]
    weights: dict[str, np.ndarray]  # kernel [F, 4H], recurrent_kernel [H, 4H], bias [4H]


def arrays(case: Case) -> Arrays:
    """The same in every process: normal inputs and targets, weights as PyTorch begins, uniform within 1 / sqrt(H)."""
    rng, edge, gates = np.random.default_rng(SEED), case.units**-0.5, 4 * case.units
    shapes = {'kernel': (case.features, gates), 'recurrent_kernel': (case.units, gates), 'bias': (gates,)}
    weights = {name: (edge * (2 * rng.random(shape, np.float32) - 1)) for name, shape in shapes.items()}
    inputs = rng.standard_normal((case.batch, case.steps, case.features), np.float32)
    targets = rng.standard_normal((case.batch, case.steps, case.units), np.float32)
    return Arrays(inputs, targets, {name: array.astype(np.float32) for name, array in weights.items()})


def check_equal(ours: dict[str, np.ndarray], others: dict[str, np.ndarray], peer: str, where: str) -> None:
    """Raises UserError where a peer computes something else, beyond TOLERANCE of the largest number of an array."""
    for name, array in ours.items():
        scale = max(float(np.abs(array).max()), np.finfo(np.float32).tiny)
        difference = float(np.abs(array - others[name]).max()) / scale
        if not difference <= TOLERANCE:
            raise UserError(
                f'{where}: {name} of {peer} differs from ours by {difference:.1e} of its largest number, so the times '
                f'would be of different work; leave it out with --peers'
            )


TOLERANCE = 1e-4
