"""Sizes and numbers of measurements of `benchmarks.bench`: the full benchmark, and the quick version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.peers import cases, scores
from benchmarks.peers.cases import Case


class BenchmarkConfig(NamedTuple):
    """Sizes and numbers of measurements."""

    seconds: float  # time of a visit
    rounds: int  # default number of rounds
    slow_rounds: int | None  # rounds of workloads that take seconds (start, compilation); None: as many as `rounds`
    rows: Sequence[Case]
    random: dict[str, int]  # default number of random rows of each cell
    flops: float  # maximal FLOPs of a random row's training step
    streams: Sequence[Case]
    one_core: Sequence[Case]  # cases measured on one core
    replicas: tuple[int, int]  # seeds, epochs
    backends: Sequence[tuple[str, Case]]  # backend, case
    growth: dict[str, Sequence[Sequence[int]]]  # sizes of each curve
    product: int  # side of the matrices


def _streams(*units: int) -> tuple[Case, ...]:
    lstms = (Case(1, 1, 1 if unit == 32 else 64, unit) for unit in units)
    return (*lstms, Case(1, 1, 64, 512, cases.GRU))


def _growth(steps: Sequence[int], rows: Sequence[int], units: Sequence[int], seeds: Sequence[int], epochs: int) -> Any:
    return {
        'growth over T': [Case(4, n, 8, 64) for n in steps],
        'growth over B': [Case(n, 64, 8, 64) for n in rows],
        'growth over H': [Case(16, 64, 8, n) for n in units],
        'growth over replicas': [(n, epochs) for n in seeds],
        scores.COMPILING: [Case(4, n, 8, 64) for n in sorted({steps[-1], *steps[::2]})],
    }


SELECTED = (  # backend, and a case for which it is selected on CPUs, with or without the native kernels
    ('native', Case(1, 1000, 1, 32)),
    ('native', Case(15, 114, 8, 28)),
    ('native', Case(32, 100, 64, 128)),
    ('native', Case(32, 128, 64, 1024)),
    ('rows', Case(15, 114, 8, 28)),
    ('rows', Case(32, 100, 64, 128)),
    ('rows', Case(4, 4096, 8, 64)),  # recomputes pre-activations
    ('columns', Case(32, 128, 64, 1024)),
    ('native', Case(32, 100, 64, 128, cases.GRU)),
    ('native', Case(64, 64, 128, 512, cases.GRU)),
    ('rows', Case(32, 100, 64, 128, cases.GRU)),
    ('rows', Case(64, 64, 128, 512, cases.GRU)),
)

ONE_CORE = (Case(32, 100, 64, 128), Case(64, 64, 128, 512), Case(32, 100, 64, 128, cases.GRU))

FULL = BenchmarkConfig(
    seconds=0.2,
    rounds=5,
    slow_rounds=None,
    rows=cases.ROWS + cases.GRU_ROWS,
    random={cases.LSTM: 6, cases.GRU: 2},
    flops=cases.FLOPS,
    streams=_streams(32, 128, 512, 1024),
    one_core=ONE_CORE,
    replicas=(1000, 100),
    backends=SELECTED,
    growth=_growth(
        [64, 256, 1024, 2048, 4096, 8192, 16_384],
        [1, 4, 16, 64, 256, 1024, 4096],
        [16, 32, 64, 128, 256, 512, 1024],
        [10, 100, 1000, 10_000, 25_000, 50_000, 100_000],
        20,
    ),
    product=4096,
)
QUICK = BenchmarkConfig(
    seconds=0.05,
    rounds=3,
    slow_rounds=1,
    rows=tuple(cases.quick(row) for row in FULL.rows if row.flops(cases.TRAINING) <= cases.QUICK_FLOPS),
    random={cases.LSTM: 1, cases.GRU: 0},
    flops=cases.QUICK_FLOPS,
    streams=_streams(512),
    one_core=tuple(cases.quick(case) for case in ONE_CORE[:1]),
    replicas=(1000, 20),
    backends=tuple((name, cases.quick(case)) for name, case in SELECTED if case.units == 28),
    growth=_growth([256, 1024, 2048, 4096], [4, 64, 512], [32, 128, 512], [1000, 4000], 10),
    product=1024,
)
