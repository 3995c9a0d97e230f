"""Functions for the test of a run on a dataset: predictions, baseline metrics, and a fingerprint of the data."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from seqjax.datasets.dataset import Dataset, ItemScores, MetricSpec, PostprocessFn
from seqjax.errors import UserError
from seqjax.runs import parameters
from seqjax.runs.directory import Workdir
from seqjax.training import evaluation
from seqjax.types import Arrays, Batch, BestParameters, TrainState


def make_predictor(model: nn.Module, read: PostprocessFn) -> Callable[[BestParameters, Batch], Arrays]:
    """Returns a function (best parameters of one seed, batches [M, B, ...]) -> predictions on the host, [M, B, ...].

    `read` is the function from model outputs to predictions, `Dataset.postprocess`.

    The test of a run and later predictions use the same function, so that they agree bit for bit. It compiles a program
    for one batch, because XLA compiles a loop over one batch differently from a loop over several.
    """

    @jax.jit
    def program(best, carry, batch):
        state = TrainState(0, None, best.params, best.variables, None)
        return evaluation.eval_step(model, state, read, carry, batch)

    def predict(best, batches):
        best = jax.device_put(best)  # transfer the parameters once
        batches = [jax.tree.map(lambda x, i=i: x[i], batches) for i in range(len(batches.mask))]
        carry, predictions = evaluation.initial_eval_carry(partial(program, best), batches[0]), []
        for batch in batches:
            carry, prediction = program(best, carry, batch)
            predictions.append(jax.device_get(prediction))
        return jax.tree.map(lambda *x: np.stack(x), *predictions)

    return predict


def fingerprint(dataset: Dataset) -> str:
    """Returns the SHA-256 of the data of all splits and the preprocessing, by which a run detects a changed file."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((dataset.data, dataset.validation, dataset.test.batches)):
        array = np.ascontiguousarray(jax.random.key_data(leaf) if parameters.is_key(leaf) else leaf)
        digest.update(f'{array.shape}{array.dtype}'.encode())
        digest.update(array.view(np.uint8).data if array.size else b'')
    # The preprocessing contains the names of columns and classes.
    digest.update(json.dumps(dataset.preprocessing, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def check_same_data(folder: Workdir, summary: Mapping[str, Any], data: str) -> None:
    """Raises UserError if `data`, the fingerprint of the current data, differs from the one in the run's summary."""
    if summary.get('data') != data:
        raise UserError(
            f'{folder.path} contains a run on other data: a data file has changed since; use another --workdir, or '
            '--overwrite to replace the run'
        )


def validation_lines(dataset: Dataset) -> list[str]:
    """Returns a list of one line: the metric of each baseline on the validation split."""
    values = validation_values(dataset)
    metrics = ', '.join(f'{name} {value:{dataset.metric.format_spec}}' for name, value in values.items())
    unit = f' ({dataset.metric.unit})' if dataset.metric.unit else ''
    return [f'{dataset.metric.name}{unit} of baselines on validation: {metrics}']


def validation_values(dataset: Dataset) -> dict[str, float]:
    """Returns {name of a baseline: metric on the validation split}."""
    return {name: metric_value(dataset.metric, score('validation')) for name, score in dataset.baselines.items()}


def metric_value(metric: MetricSpec, items: ItemScores) -> float:
    """Returns the metric over all items together, from the sums of their totals and counts."""
    return float(metric.value(np.sum(items.totals, dtype=np.float64), np.sum(items.counts, dtype=np.float64)))
