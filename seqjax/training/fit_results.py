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
    """Results of the seeds [R] of a run with early stopping."""

    seeds: np.ndarray  # [R]
    metrics: list[str]  # names of the metrics: training since the previous evaluation, and splits
    evals: np.ndarray  # [R, evaluations, metrics]; NaN after a seed has stopped
    best: BestParameters  # leaves [R, ...], on the host
    resumed: bool = False  # whether the run was resumed from a checkpoint
    rates: np.ndarray = np.empty(0)  # [evaluations]: learning rate of the last step before each

    def best_seed(self) -> int:
        """Returns the index of the seed with the best value on validation."""
        return int(np.argmin(self.best.value))


def select_seed(best: BestParameters, index: int) -> BestParameters:
    """Returns the best parameters of one seed of [R]."""
    return jax.tree.map(lambda x: x[index], best)


def typical_step(result: FitResult, eval_every: int) -> int:
    """Returns the median best step of the seeds with a finite loss, rounded to a multiple of `eval_every`."""
    return eval_every * max(1, round(float(np.median(result.best.step[np.isfinite(result.best.value)])) / eval_every))


def write_evals(folder: Workdir, result: FitResult, eval_every: int) -> None:
    """Writes evals.csv: a row for every seed and evaluation."""

    def rows() -> Iterator[list[Any]]:
        for seed, evals in zip(result.seeds, result.evals, strict=True):
            for i, values in enumerate(evals):
                if not np.isnan(values).all():
                    yield [seed, (i + 1) * eval_every, *(f'{x:.9g}' for x in values), result.rates[i]]

    result_files.write_table(folder, TABLE, ['seed', 'step', *result.metrics, 'learning_rate'], rows())


def write_models(folder: Workdir, result: FitResult) -> None:
    """Writes models.npz: the best parameters and variables of every seed, leaves [R, ...] by name, and the seeds."""
    arrays = parameters.flatten_with_names({'params': result.best.params, 'variables': result.best.variables})
    best = result.best
    result_files.write_arrays(folder, MODELS, seeds=result.seeds, value=best.value, step=best.step, **arrays)


def read_models(path: Path, like: Mapping[str, Any], count: int | None = None) -> tuple[np.ndarray, BestParameters]:
    """Reads the file that `write_models` wrote.

    Args:
      path: the file.
      like: shapes and dtypes of the model's variables, as `model.init` returns them.
      count: expected number of seeds; None for any.

    Returns:
      The seeds [R], and the best parameters of each, leaves [R, ...].

    Raises:
      UserError: the file cannot be read, or belongs to another model.
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
    """Returns the dtype in a file's header: NumPy writes dtypes that it does not know, such as bfloat16, as bytes."""
    dtype = np.dtype(dtype)
    return np.dtype(f'V{dtype.itemsize}') if dtype.kind == 'V' else dtype
