"""The result of a chunk of training steps on the host, and the values of its metrics."""

from typing import NamedTuple

import numpy as np

from seqjax.training.programs import CompiledPrograms
from seqjax.types import Mean, Metrics, TrainState


class ChunkResult(NamedTuple):
    """Result of a chunk of training steps."""

    step: int  # number of steps before the chunk
    state: TrainState  # state after the chunk; leaves [R, ...] with replicas, including padding replicas
    metrics: Metrics  # training metrics, leaves [n], or [n, R] without padding replicas
    evals: dict[str, Metrics]  # metrics of every split after the chunk, leaves [] or [R]

    @property
    def steps(self) -> int:
        """Number of training steps of the chunk."""
        return len(self.metrics['loss'].total)

    @property
    def end(self) -> int:
        """Number of steps after the chunk."""
        return self.step + self.steps


def mean_values(mean: Mean) -> np.ndarray:
    """Returns total / count as float32, and 0 if the count is 0."""
    return (mean.total / np.maximum(mean.count, 1)).astype(np.float32)


def metric_names(programs: CompiledPrograms) -> list[str]:
    """Returns the names of the metrics of training and of every split, such as loss and validation/loss."""
    _, metrics, evals = programs.shapes
    return [*metrics, *(f'{split}/{name}' for split, means in evals.items() for name in means)]


def eval_values(chunk: ChunkResult) -> list[np.ndarray]:
    """Returns the metrics of every split after a chunk, each [] or [R]."""
    return [mean_values(mean) for means in chunk.evals.values() for mean in means.values()]


def latest_values(chunk: ChunkResult) -> np.ndarray:
    """Returns all metrics after the last step of a chunk, in the order of `metric_names`: [metrics] or [metrics, R]."""
    return np.stack([*(mean_values(mean)[-1] for mean in chunk.metrics.values()), *eval_values(chunk)])


def typical_value(values: np.ndarray) -> float | None:
    """Returns a metric's value for selecting the best checkpoint; with replicas the median of the finite values."""
    finite = values[np.isfinite(values)] if values.ndim else values
    return float(np.median(finite)) if finite.size and np.isfinite(finite).all() else None
