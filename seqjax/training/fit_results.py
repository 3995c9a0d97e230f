"""Results of training with early stopping: evaluations and best parameters of every seed, and their files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax import types
from seqjax.runs import parameters, result_files
from seqjax.runs.directory import Workdir
from seqjax.types import Best

TABLE, MODELS = 'evals.csv', 'models.npz'


class FitResult(NamedTuple):
    """Results of the seeds [R] of a run with early stopping."""

    seeds: np.ndarray  # [R]
    metrics: list[str]  # names: those of training since the evaluation before, and of the splits
    evals: np.ndarray  # [R, evaluations, metrics]; NaN after a seed has stopped
    best: Best  # leaves [R, ...], on the host
    resumed: bool = False  # whether a part of it was done before this process
    rates: np.ndarray = np.empty(0)  # [evaluations]: the learning rate of the last step before each

    def best_seed(self) -> int:
        """Returns the index of the seed that is best on validation."""
        return int(np.argmin(self.best.value))


def select_seed(best: Best, place: int) -> Best:
    """Selects one seed of [R]."""
    return jax.tree.map(lambda x: x[place], best)


def typical_step(found: FitResult, eval_every: int) -> int:
    """Returns the step of the evaluation that was best for the median seed."""
    return eval_every * max(1, round(float(np.median(found.best.step[np.isfinite(found.best.value)])) / eval_every))


def write_evals(folder: Workdir, found: FitResult, eval_every: int) -> None:
    """Writes evals.csv: a row for every seed and evaluation."""

    def rows() -> Iterator[list[Any]]:
        for seed, evals in zip(found.seeds, found.evals, strict=True):
            for i, values in enumerate(evals):
                if not np.isnan(values).all():
                    yield [seed, (i + 1) * eval_every, *(f'{x:.9g}' for x in values), found.rates[i]]

    result_files.write_table(folder, TABLE, ['seed', 'step', *found.metrics, 'learning_rate'], rows())


def write_models(folder: Workdir, found: FitResult) -> None:
    """Writes models.npz: the best parameters and variables of every seed, leaves [R, ...] by name, and the seeds."""
    arrays = parameters.flatten_with_names({'params': found.best.params, 'variables': found.best.variables})
    result_files.write_arrays(folder, MODELS, seeds=found.seeds, value=found.best.value, step=found.best.step, **arrays)


def read_models(path: Path, like: Mapping[str, Any], count: int | None = None) -> tuple[np.ndarray, Best]:
    """Reads the file that `write_models` wrote: the seeds [R], and the best of each, leaves [R, ...].

    `like` has shapes and dtypes of the model's variables, as `model.init` gives them; `count` is how many seeds there
    must be. Raises UserError where the file cannot be read, or is of another model.
    """
    params, variables = like['params'], {name: x for name, x in like.items() if name not in ('params', types.CARRY)}
    shapes = {'params': params, 'variables': variables}
    seeds = result_files.read_arrays(path, {'seeds': ((count,), np.int64)})['seeds']
    leaves = parameters.flatten_with_names(shapes)
    own = {'seeds': ((len(seeds),), np.int64), 'value': ((len(seeds),), np.float32), 'step': ((len(seeds),), np.int32)}
    expected = own | {name: ((len(seeds), *leaf.shape), _stored_dtype(leaf.dtype)) for name, leaf in leaves.items()}
    held = result_files.read_arrays(path, expected, others=False)
    learned = [held[name].view(leaf.dtype) for name, leaf in leaves.items()]
    return seeds, Best(held['value'], held['step'], **jax.tree.unflatten(jax.tree.structure(shapes), learned))


def _stored_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype in a file's header; NumPy has no name for bfloat16 and the like, and writes raw bytes."""
    dtype = np.dtype(dtype)
    return np.dtype(f'V{dtype.itemsize}') if dtype.kind == 'V' else dtype
