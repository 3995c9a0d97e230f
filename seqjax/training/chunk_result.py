"""The result of a chunk of training steps, one device call, and values computed from its metrics."""

from typing import NamedTuple

import numpy as np

from seqjax.training.programs import CompiledPrograms
from seqjax.types import Mean, Metrics, TrainState


class ChunkResult(NamedTuple):
    """Result of a chunk, that is of the training steps of one device call. R: seeds of a replica group."""

    step: int  # number of training steps of the run before the chunk
    state: TrainState  # state after the chunk, on devices; with replicas its leaves include padding replicas
    metrics: Metrics  # of each of its n training steps: leaves [n], or [n, R] without padding replicas
    evals: dict[str, Metrics]  # split name -> metrics after the chunk, leaves [], or [R] without padding replicas

    @property
    def steps(self) -> int:
        """Number of training steps in the chunk."""
        return len(self.metrics['loss'].total)

    @property
    def end(self) -> int:
        """Number of training steps of the run up to the end of the chunk."""
        return self.step + self.steps


def mean_values(mean: Mean) -> np.ndarray:
    """Returns total / count, elementwise, as float32; 0 where the count is 0."""
    return (mean.total / np.maximum(mean.count, 1)).astype(np.float32)


def metric_names(programs: CompiledPrograms) -> list[str]:
    """Returns the names of the training metrics (loss), then of the metrics of every split (validation/loss)."""
    _, metrics, evals = programs.shapes
    return [*metrics, *(f'{split}/{name}' for split, means in evals.items() for name in means)]


def eval_values(chunk: ChunkResult) -> list[np.ndarray]:
    """Returns each metric of each split after a chunk, float32 [] or [R], in the order of `metric_names`."""
    return [mean_values(mean) for means in chunk.evals.values() for mean in means.values()]


def latest_values(chunk: ChunkResult) -> np.ndarray:
    """Returns training metrics at the last step of a chunk, then the split metrics after it: [metrics] or [metrics, R].

    The order follows `metric_names`.
    """
    return np.stack([*(mean_values(mean)[-1] for mean in chunk.metrics.values()), *eval_values(chunk)])


def typical_value(values: np.ndarray) -> float | None:
    """Returns a metric for selecting the best checkpoint: the value [] itself, or the median of the finite of [R].

    Returns None if no value is finite.
    """
    finite = values[np.isfinite(values)] if values.ndim else values
    return float(np.median(finite)) if finite.size and np.isfinite(finite).all() else None
