"""Results of training with early stopping: evaluations and best parameters of every seed, and their files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax import types
from seqjax.runs import parameters, result_files
from seqjax.runs.directory import Workdir
from seqjax.types import BestParameters

TABLE, MODELS = 'evals.csv', 'models.npz'


class FitResult(NamedTuple):
    """Results of a run with early stopping, of R seeds."""

    seeds: np.ndarray  # [R]
    metrics: list[str]  # names: training metrics (means since the previous evaluation), then metrics of splits
    evals: np.ndarray  # [R, evaluations, metrics]; NaN once a seed has stopped
    best: BestParameters  # leaves [R, ...], on the host; value is infinity for a seed without a finite evaluation
    resumed: bool = False  # True if the run was resumed from a checkpoint
    rates: np.ndarray = np.empty(0)  # [evaluations], learning rate of the last training step before each evaluation

    def best_seed(self) -> int:
        """Returns the index (0 to R-1) of the seed with the lowest monitored metric, such as the validation loss."""
        return int(np.argmin(self.best.value))


def select_seed(best: BestParameters, index: int) -> BestParameters:
    """Returns the best parameters of the seed at `index`, without the leading axis R."""
    return jax.tree.map(lambda x: x[index], best)


def typical_step(result: FitResult, eval_every: int) -> int:
    """Returns the median over seeds of the step of the best evaluation, rounded to a positive multiple of `eval_every`.

    Seeds without a finite evaluation are left out.
    """
    return eval_every * max(1, round(float(np.median(result.best.step[np.isfinite(result.best.value)])) / eval_every))


def write_evals(folder: Workdir, result: FitResult, eval_every: int) -> None:
    """Writes evals.csv: a row per seed and evaluation, with the metrics and the learning rate."""

    def rows() -> Iterator[list[Any]]:
        for seed, evals in zip(result.seeds, result.evals, strict=True):
            for i, values in enumerate(evals):
                if not np.isnan(values).all():
                    yield [seed, (i + 1) * eval_every, *(f'{x:.9g}' for x in values), result.rates[i]]

    result_files.write_table(folder, TABLE, ['seed', 'step', *result.metrics, 'learning_rate'], rows())


def write_models(folder: Workdir, result: FitResult) -> None:
    """Writes models.npz: the seeds [R], and their best metric, step, parameters and variables, arrays [R, ...]."""
    arrays = parameters.flatten_with_names({'params': result.best.params, 'variables': result.best.variables})
    best = result.best
    result_files.write_arrays(folder, MODELS, seeds=result.seeds, value=best.value, step=best.step, **arrays)


def read_models(path: Path, like: Mapping[str, Any], count: int | None = None) -> tuple[np.ndarray, BestParameters]:
    """Reads models.npz, the file that `write_models` writes.

    Args:
      path: the file.
      like: arrays, or shapes and dtypes, of the variables of the model, as `model.init` returns them.
      count: expected number of seeds; None for any.

    Returns:
      The seeds [R], and the best parameters of each, leaves [R, ...].

    Raises:
      UserError: the file cannot be read, or its arrays differ from `like` or `count`.
    """
    params, variables = like['params'], {name: x for name, x in like.items() if name not in ('params', types.CARRY)}
    shapes = {'params': params, 'variables': variables}
    seeds = result_files.read_arrays(path, {'seeds': ((count,), np.int64)})['seeds']
    leaves = parameters.flatten_with_names(shapes)
    n = len(seeds)
    expected = {'seeds': ((n,), np.int64), 'value': ((n,), np.float32), 'step': ((n,), np.int32)}
    expected |= {name: ((n, *leaf.shape), _stored_dtype(leaf.dtype)) for name, leaf in leaves.items()}
    arrays = result_files.read_arrays(path, expected, others=False)
    learned = [arrays[name].view(leaf.dtype) for name, leaf in leaves.items()]
    return seeds, BestParameters(
        arrays['value'], arrays['step'], **jax.tree.unflatten(jax.tree.structure(shapes), learned)
    )


def _stored_dtype(dtype: np.dtype) -> np.dtype:
    """Returns the dtype with which NumPy stores an array in a file: raw bytes for dtypes it lacks, such as bfloat16."""
    dtype = np.dtype(dtype)
    return np.dtype(f'V{dtype.itemsize}') if dtype.kind == 'V' else dtype
