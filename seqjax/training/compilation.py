"""Compilation of a run: selects the devices and the size of replica groups, and compiles the programs."""

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
    """Selects the mesh, compiles the programs of a run, and moves the data of the task to the devices.

    Args:
      model, task, tx: see `programs.train`.
      inputs: inputs [B, ...] for which the trained model predicts; None compiles no prediction program.
      steps, steps_per_call: see `programs.train`.
      workdir: run directory.
      checkpoints: when to save, and which checkpoints to keep.
      devices: the mesh, such as 'data:4'; None selects it, see `sharding.select_mesh`.
      stream: True keeps `task.data` on the host and streams batches to the device.
      num_seeds: R, the number of seeds, trained in groups of `replicas.group_width`; None: one seed without axis R.
      max_width: maximal number of seeds in a group, see `replicas.max_width`.

    Raises:
      UserError: `checkpoints.keep_best` is not a metric of this run, the mesh is invalid, two arrays of the state would
        have the same name in a checkpoint, or a program needs more memory than this machine has.
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
    manifest.describe(programs.shapes[0])  # raises UserError if two arrays would have the same name in a checkpoint
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


def _put(tree: Arrays, sharding: jax.sharding.Sharding | None) -> Arrays:
    """Returns the arrays on the devices of `sharding`; None: on the default device.

    PRNG keys are moved as integers, because keys cannot be moved to devices of other processes.
    """

    def leaf(x):
        if not parameters.is_key(x):
            return jax.device_put(x, sharding)
        wrap = partial(jax.random.wrap_key_data, impl=jax.random.key_impl(x))
        return jax.jit(wrap, out_shardings=sharding)(jax.device_put(np.asarray(jax.random.key_data(x)), sharding))

    return jax.tree.map(leaf, tree)


def _select_mesh(model: nn.Module, task: Task, devices: str | None, replicas: int | None) -> MeshShardings | None:
    """Returns the shardings on the selected mesh, None for one device; prints the selection if there was a choice.

    Raises:
      UserError: the mesh `devices`, the value of --mesh, is invalid for this run.
    """
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
        raise UserError(
            f'--keep_best={keep_best} is not a metric of this run; use one of {", ".join(names)}, or max:NAME to keep '
            'the highest'
        )
