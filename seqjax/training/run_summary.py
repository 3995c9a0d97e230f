"""Content of summary.json: flags, versions, device and layers of any run; losses of a run without early stopping."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import seqjax
from seqjax.ops.native import library
from seqjax.reporting import statistics
from seqjax.reporting.text_tables import Layer
from seqjax.runs import manifest


def new_summary(experiment: str, settings: dict[str, Any], layers: Sequence[Layer]) -> dict[str, Any]:
    """Returns the content of summary.json before the first step of a run, with finished = False.

    Args:
      experiment: name of the experiment.
      settings: the flags of the run, with JSON types.
      layers: layers of the model.
    """
    device = jax.devices()[0]
    versions = {'seqjax': seqjax.__version__, 'python': platform.python_version()}
    return {
        'experiment': experiment,
        'finished': False,
        'flags': settings,
        'versions': versions | manifest.versions(),
        'device': f'{device.platform} ({device.device_kind})',
        'layers': [layer._asdict() for layer in layers],
        'params': sum(layer.params for layer in layers),
    }


def finished_summary(summary: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of summary.json after the last step of a run, from `new_summary` and the results.

    It lists the dtypes whose native kernels this process has used.
    """
    return {**summary, 'finished': True, 'native_kernels': sorted(library.USED), **results}


def loss_summary(losses: np.ndarray) -> dict[str, Any]:
    """Returns the first and last loss of losses [steps] for summary.json.

    With losses [R, steps], these are medians over replicas, and quantiles of the last loss are added.
    """
    if losses.ndim == 1:
        return {'first_loss': float(losses[0]), 'last_loss': float(losses[-1])}
    quantiles = statistics.loss_quantiles(losses[:, [0, -1]])
    names = [f'{q:g}' for q in statistics.BANDS]
    return {
        'first_loss': float(quantiles[2, 0]),
        'last_loss': float(quantiles[2, 1]),
        'last_loss_quantiles': dict(zip(names, quantiles[:, 1].tolist(), strict=True)),
    }
