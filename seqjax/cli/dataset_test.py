"""The test of a run on a dataset: predictions, scores, and the identity of the data."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from seqjax.datasets.dataset import Answers, Dataset, Items, Measure
from seqjax.errors import UserError
from seqjax.runs import parameters
from seqjax.runs.directory import Workdir
from seqjax.training import evaluation
from seqjax.types import Arrays, Batch, Best, TrainState


def answering(model: nn.Module, read: Answers) -> Callable[[Best, Batch], Arrays]:
    """What gives (best of one seed, batches, leaves [M, B, ...]) -> what the model says to them, on the host.

    The test of a run and later predictions share it, and so their numbers: bit for bit, as its program takes one batch
    and XLA does not compile a loop over one batch as it does a loop over several.
    """

    @jax.jit
    def program(best, carry, batch):
        state = TrainState(0, None, best.params, best.variables, None)
        return evaluation.eval_step(model, state, read, carry, batch)

    def answers(best, batches):
        best = jax.device_put(best)  # once, and not for every batch
        batches = [jax.tree.map(lambda x, i=i: x[i], batches) for i in range(len(batches.mask))]
        carry, found = evaluation.initial_eval_carry(partial(program, best), batches[0]), []
        for batch in batches:
            carry, answer = program(best, carry, batch)
            found.append(jax.device_get(answer))
        return jax.tree.map(lambda *x: np.stack(x), *found)

    return answers


def fingerprint(dataset: Dataset) -> str:
    """Of all that a run learns from and is tested on: a run does not go on with a file that was changed."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((dataset.data, dataset.validation, dataset.test.batches)):
        array = np.ascontiguousarray(jax.random.key_data(leaf) if parameters.is_key(leaf) else leaf)
        digest.update(f'{array.shape}{array.dtype}'.encode())
        digest.update(array.view(np.uint8).data if array.size else b'')
    digest.update(json.dumps(dataset.recipe, sort_keys=True, default=str).encode())  # names of columns and classes
    return digest.hexdigest()


def refuse_other_data(folder: Workdir, summary: Mapping[str, Any], data: str) -> None:
    if summary.get('data') != data:
        raise UserError(
            f'{folder.path} holds a run on other data: the file has changed since; choose another --workdir, or '
            '--overwrite to replace it'
        )


def first_scores(dataset: Dataset) -> list[str]:
    """What the baselines reach on validation."""
    values = validation_values(dataset)
    told = ', '.join(f'{name} {value:{dataset.measure.spec}}' for name, value in values.items())
    unit = f' ({dataset.measure.unit})' if dataset.measure.unit else ''
    return [f'{dataset.measure.name}{unit} on validation: {told}']


def validation_values(dataset: Dataset) -> dict[str, float]:
    """Returns the measure of each baseline on the validation part."""
    return {name: measure_value(dataset.measure, score('validation')) for name, score in dataset.baselines.items()}


def measure_value(measure: Measure, items: Items) -> float:
    return float(measure.value(np.sum(items.totals, dtype=np.float64), np.sum(items.counts, dtype=np.float64)))
