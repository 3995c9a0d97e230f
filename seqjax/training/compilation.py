"""Compiles a run: its devices, its groups of replicas, and the programs that they execute."""

import time
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import optax

from seqjax import types
from seqjax.errors import UserError
from seqjax.runs import checkpoint_manager, manifest, memory, orbax_io, parameters
from seqjax.runs.directory import Workdir
from seqjax.training import chunk_result, host_streaming, sharding
from seqjax.training import programs as training_programs
from seqjax.training import replicas as training_replicas
from seqjax.training.compiled_run import CompiledRun
from seqjax.training.programs import CompiledPrograms
from seqjax.training.session import CheckpointConfig
from seqjax.training.sharding import MeshShardings
from seqjax.types import Arrays, Task


def compile_run(
    model: nn.Module,
    task: Task,
    tx: optax.GradientTransformation,
    inputs: Arrays | None,
    *,
    steps: int,
    steps_per_call: int,
    workdir: Workdir,
    checkpoints: CheckpointConfig,
    devices: str | None = None,
    stream: bool = False,
    num_seeds: int | None = None,
    max_width: int = training_replicas.MAX_WIDTH,
) -> CompiledRun:
    """Compiles the programs of a run.

    Args:
      model, task, tx, steps, chunk: see `train`.
      inputs: those of the predictions; None if there are none.
      workdir, checkpoints: where the run is kept, and when it saves.
      devices: the mesh, see `sharding.select_mesh`.
      stream: whether the task's data stay on the host.
      num_seeds: R, the number of seeds; they are trained in groups of `replicas.group_width`. None: one seed.
      max_width: most seeds of a group, see `replicas.max_width`.

    Raises:
      UserError: there is no metric of the name that selects the best checkpoint, the mesh cannot be made, or the
        training steps need more memory than this machine has.
    """
    start, steps_per_call = time.perf_counter(), min(steps_per_call, steps)
    if workdir.path is not None:
        orbax_io.warm_up()
    shardings, group, replicated = _select_mesh(model, task, devices, num_seeds), None, None
    host_task, task = (task, host_streaming.streamed(task, steps_per_call)) if stream else (None, task)
    if num_seeds is not None:
        group = training_replicas.group_width(num_seeds, max_width)
    width = group
    if shardings is not None:
        width = group and -(-group // shardings.size) * shardings.size
        replicated, task = shardings.replicated, shardings.task(task)
    if not stream:
        task = task._replace(data=_put(task.data, replicated))
    task = task._replace(evals=jax.device_put(task.evals, replicated))
    programs = training_programs.compile_programs(
        model,
        task,
        tx,
        inputs,
        steps_per_call=steps_per_call,
        replicas=width,
        shardings=shardings,
        inspect=partial(memory.check, workdir.settings),
    )
    manifest.describe(programs.shapes[0])  # refuses names that no checkpoint can hold
    _check_best(checkpoints.keep_best, programs)
    return CompiledRun(
        model,
        task,
        tx,
        programs,
        steps,
        steps_per_call,
        workdir,
        checkpoints,
        shardings,
        width,
        time.perf_counter() - start,
        host_task,
        group_width=group,
    )


def _put(tree: Arrays, where: jax.sharding.Sharding | None) -> Arrays:
    """The arrays there; keys as the numbers that they are made of, which alone may go to devices of other processes."""

    def leaf(x):
        if not parameters.is_key(x):
            return jax.device_put(x, where)
        wrap = partial(jax.random.wrap_key_data, impl=jax.random.key_impl(x))
        return jax.jit(wrap, out_shardings=where)(jax.device_put(np.asarray(jax.random.key_data(x)), where))

    return jax.tree.map(leaf, tree)


def _select_mesh(model: nn.Module, task: Task, devices: str | None, replicas: int | None) -> MeshShardings | None:
    """The devices, printed if there is a choice."""
    rows = None if replicas else types.batch_shapes(task).mask.shape[0]
    pays = partial(sharding.data_parallel_pays, model, task)
    try:
        shardings, line = sharding.select_mesh(devices, rows=rows, replicas=replicas, pays=pays)
    except ValueError as error:
        requested = 'this run' if devices is None else f'--mesh={devices}'
        raise UserError(f'{requested} {error}') from error
    if line:
        print(line)
    return shardings


def _check_best(keep_best: str | None, programs: CompiledPrograms) -> None:
    names = chunk_result.metric_names(programs)
    if keep_best is not None and checkpoint_manager.parse_metric(keep_best)[1] not in names:
        raise UserError(f'--keep_best={keep_best} is no metric of this run; there are {", ".join(names)}')
