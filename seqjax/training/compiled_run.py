"""A compiled run, shared by all replica groups, and the start of their training sessions."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from seqjax.runs import directory, manifest, multihost, orbax_io, signals
from seqjax.runs.append_log import AppendLog
from seqjax.runs.checkpoint_manager import CheckpointManager
from seqjax.runs.directory import Workdir
from seqjax.runs.manifest import CheckpointMetadata
from seqjax.training import replicas
from seqjax.training.host_streaming import Feed
from seqjax.training.programs import CompiledPrograms
from seqjax.training.replicas import ReplicaGroup
from seqjax.training.session import CheckpointConfig, TrainSession
from seqjax.training.sharding import MeshShardings
from seqjax.types import Arrays, Task, TrainState


class StateOverride(NamedTuple):
    """Change of a TrainState before its first step."""

    change: Callable[[TrainState, Arrays], TrainState]  # the same function for all groups, so it is compiled once
    values: Arrays  # second argument of `change` for one group


class CompiledRun(NamedTuple):
    """Compiled programs and settings shared by all replica groups of a run."""

    model: nn.Module
    task: Task
    tx: optax.GradientTransformation
    programs: CompiledPrograms
    steps: int
    steps_per_call: int
    workdir: Workdir
    checkpoints: CheckpointConfig
    shardings: MeshShardings | None  # None on one device
    width: int | None  # replicas computed together, with padding; None for one seed
    seconds: float  # compilation time
    host_task: Task | None = None  # the task whose data are streamed from the host
    allow_divergence: bool = False  # continue training if no loss of a group is finite
    group_width: int | None = None  # replicas of a group; None for one seed

    @property
    def replicated(self) -> jax.sharding.Sharding | None:
        """Sharding for arrays that the host reads."""
        return None if self.shardings is None else self.shardings.replicated

    def groups(self, seeds: np.ndarray) -> Iterator[ReplicaGroup]:
        """Yields the replica groups of all seeds; without replicas, each seed is a group."""
        return replicas.replica_groups(seeds, self.group_width or 1)

    @contextlib.contextmanager
    def session(
        self,
        group: ReplicaGroup,
        logs: Mapping[str, AppendLog],
        *,
        subfolder: str = '',
        override: StateOverride | None = None,
    ) -> Iterator[TrainSession]:
        """Context manager that restores a group of seeds and yields its training session.

        A checkpoint is saved at the end; then the run stops if a signal was received.

        Args:
          group: the seeds, at most `width`.
          logs: append-only logs by name; each is truncated to its offset in the checkpoint.
          subfolder: folder of the group within the run's folder of checkpoints.
          override: change of the TrainState before the first step, such as other learning rates.

        Raises:
          UserError: no checkpoint is valid, the checkpoint is of another run, or it cannot be saved.
        """
        count = None if self.width is None else len(group.seeds)
        seeds = group.seeds[0] if count is None else replicas.pad_replicas(group.seeds, self.width)
        seeds = np.asarray(seeds).astype(np.uint32)
        if self.workdir.path is None:
            state, restored = self._initial(seeds, override), dict.fromkeys(logs, b'')
            yield TrainSession(self, group, None, logs, state, 0, restored, self._data_feed(0, None))
            return
        max_to_keep, keep_best = self.checkpoints.max_to_keep, self.checkpoints.keep_best
        manager = CheckpointManager(
            self.workdir.path / directory.CHECKPOINTS / subfolder, max_to_keep=max_to_keep, keep_best=keep_best
        )
        with contextlib.ExitStack() as stack:
            stack.callback(manager.close)
            checkpoint = manager.restore(self._unpadded_shapes(count), partial(self._fault, logs))
            if checkpoint is None:
                state, step, offsets, feed = self._initial(seeds, override), 0, dict.fromkeys(logs), None
            else:
                state, metadata = checkpoint
                state, step, offsets, feed = self._padded(state), metadata.step, metadata.logs, metadata.feed
                self.workdir.check_steps(step)
                _print_other_versions(metadata)
            for log in logs.values():
                stack.callback(log.close)
            restored = multihost.broadcast_from_process0(
                lambda: {name: log.open(offsets[name]) for name, log in logs.items()}
            )
            shutdown = stack.enter_context(signals.handle_signals(defer=True))
            session = TrainSession(
                self, group, manager, logs, state, step, restored, self._data_feed(step, feed), shutdown
            )
            yield session
            session.save()
            session.check_signals()

    def _data_feed(self, step: int, state: Mapping[str, Any] | None) -> Feed | None:
        if self.host_task is None:
            return None
        return Feed(
            self.host_task, steps=self.steps, steps_per_call=self.steps_per_call, step=step, state=state and dict(state)
        )

    def _initial(self, seeds: np.ndarray, override: StateOverride | None) -> TrainState:
        state = self.programs.init(seeds)
        if override is None:
            return state
        return jax.jit(override.change, out_shardings=self._state_shardings)(state, override.values)

    @property
    def _state_shardings(self) -> Any:
        return None if self.shardings is None else self.shardings.state(self.programs.shapes[0])

    def unpadded(self, state: TrainState, count: int | None) -> TrainState:
        """Drops padding replicas, so that a checkpoint does not depend on the group width."""
        return state if count == self.width else _first_replicas(count, self.replicated)(state)

    def _unpadded_shapes(self, count: int | None) -> TrainState:
        shapes = self.programs.shapes[0]
        return shapes if count == self.width else jax.eval_shape(_first_replicas(count, None), shapes)

    def _padded(self, state: TrainState) -> TrainState:
        """Returns a restored state, padded and sharded."""
        if self.width is not None:
            state = jax.tree.map(lambda x: replicas.pad_replicas(x, self.width), state)
        shapes = self.programs.shapes[0]
        return jax.jit(lambda state: orbax_io.with_keys(state, shapes), out_shardings=self._state_shardings)(state)

    def to_host(self, tree: Any) -> Any:
        """Copies arrays from devices, possibly of several processes, to the host."""
        return jax.device_get(jax.jit(lambda x: x, out_shardings=self.replicated)(tree))

    def _fault(self, logs: Mapping[str, AppendLog], metadata: CheckpointMetadata) -> str | None:
        """Reason why a valid checkpoint cannot be used for this run, or None."""
        self.workdir.check_same_run(metadata.experiment, metadata.flags)
        faults = [log.fault(metadata.logs[name]) for name, log in logs.items()]
        return next((fault for fault in faults if fault is not None), None)


@functools.cache
def _first_replicas(count: int, sharding: jax.sharding.Sharding | None) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: jax.tree.map(lambda x: x[:count], tree), out_shardings=sharding)


def _print_other_versions(metadata: CheckpointMetadata) -> None:
    installed = manifest.versions()
    others = [
        f'{name} {metadata.versions[name]} ({installed[name]} is installed)'
        for name in installed
        if metadata.versions.get(name) != installed[name]
    ]
    if others:
        print(f'Step {metadata.step:,} was saved with {", ".join(others)}: results may differ in the last bits.')
