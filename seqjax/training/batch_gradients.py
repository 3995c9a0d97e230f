"""Gradients of one batch, before anything is sharded."""

from __future__ import annotations

import flax.linen as nn
import jax

from seqjax.types import Batch, Metrics, Params, Task, Variables


def batch_gradients(
    model: nn.Module,
    task: Task,
    params: Params,
    variables: Variables,
    batch: Batch,
    key: jax.Array,
    *,
    mean: bool = True,
) -> tuple[Params, Metrics, Variables]:
    """Returns the gradients of the mean loss (or of its total), the metrics, and the variables after the batch."""

    def loss_fn(params):
        # 'dropout' is the stream that says "training"; whatever else a model draws comes from 'params'.
        rngs = dict(zip(('params', 'dropout'), jax.random.split(key), strict=True))
        outputs, new = model.apply({'params': params, **variables}, batch.inputs, rngs=rngs, mutable=list(variables))
        metrics = task.loss(outputs, batch)
        loss = metrics['loss']
        return loss.compute() if mean else loss.total, (metrics, new)

    grads, (metrics, new) = jax.grad(loss_fn, has_aux=True)(params)
    return grads, metrics, new
