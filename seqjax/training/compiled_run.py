"""A compiled run, shared by all of its replica groups, and the context manager of their training sessions."""

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
    """Change of the initial TrainState of a replica group, before its first training step."""

    change: Callable[[TrainState, Arrays], TrainState]  # (state, values) -> state; the same function for all groups
    values: Arrays  # second argument of `change` for one group, leaves [width, ...]


class CompiledRun(NamedTuple):
    """Compiled programs and settings shared by all replica groups of a run."""

    model: nn.Module
    task: Task
    tx: optax.GradientTransformation
    programs: CompiledPrograms
    steps: int  # last training step of the run
    steps_per_call: int  # maximal number of training steps in a chunk
    workdir: Workdir
    checkpoints: CheckpointConfig
    shardings: MeshShardings | None  # None on one device
    width: int | None  # replicas computed together, including padding replicas; None for one seed
    seconds: float  # time that compilation took
    host_task: Task | None = None  # the original task, if its batches are streamed from the host; None otherwise
    allow_divergence: bool = False  # True: continue training a group even if none of its losses is finite
    group_width: int | None = None  # seeds of a full group, without padding replicas; None for one seed

    @property
    def replicated(self) -> jax.sharding.Sharding | None:
        """Sharding that replicates an array on all devices, for arrays that the host reads; None on one device."""
        return None if self.shardings is None else self.shardings.replicated

    def groups(self, seeds: np.ndarray) -> Iterator[ReplicaGroup]:
        """Yields the replica groups of the seeds [R], `group_width` seeds each; a run of one seed has one group."""
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
        """Context manager that yields the training session of a group, restored from its newest valid checkpoint.

        When the context ends without an exception, a checkpoint is saved; then the run stops if a signal was received.
        Without a checkpoint, training starts at step 0; without a run directory, nothing is saved.

        Args:
          group: the seeds, at most `width`.
          logs: append-only logs by name; each is truncated to its offset in the checkpoint.
          subfolder: folder for the checkpoints of the group, within the checkpoints folder of the run.
          override: change of a new TrainState, such as other learning rates; not applied to a restored one.

        Raises:
          UserError: there are checkpoints but none is valid, they are of another run, more steps were taken than
            `steps`, or a file cannot be written.
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
        """Returns the state of the first `count` replicas, so that a checkpoint does not depend on the width.

        Returns the state unchanged without padding replicas, or for one seed (`count` None).
        """
        return state if count == self.width else _first_replicas(count, self.replicated)(state)

    def _unpadded_shapes(self, count: int | None) -> TrainState:
        shapes = self.programs.shapes[0]
        return shapes if count == self.width else jax.eval_shape(_first_replicas(count, None), shapes)

    def _padded(self, state: TrainState) -> TrainState:
        """Returns a restored state with padding replicas added, PRNG keys restored, and the shardings of the run."""
        if self.width is not None:
            state = jax.tree.map(lambda x: replicas.pad_replicas(x, self.width), state)
        shapes = self.programs.shapes[0]
        return jax.jit(lambda state: orbax_io.with_keys(state, shapes), out_shardings=self._state_shardings)(state)

    def to_host(self, tree: Any) -> Any:
        """Returns NumPy copies of the arrays of a tree, gathered from all devices and processes."""
        return jax.device_get(jax.jit(lambda x: x, out_shardings=self.replicated)(tree))

    def _fault(self, logs: Mapping[str, AppendLog], metadata: CheckpointMetadata) -> str | None:
        """Returns the reason why a log does not match the checkpoint, or None if all do.

        Raises:
          UserError: the checkpoint is of another run.
        """
        self.workdir.check_same_run(metadata.experiment, metadata.flags)
        faults = [log.fault(metadata.logs[name]) for name, log in logs.items()]
        return next((fault for fault in faults if fault is not None), None)


@functools.cache
def _first_replicas(count: int, sharding: jax.sharding.Sharding | None) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: jax.tree.map(lambda x: x[:count], tree), out_shardings=sharding)


def _print_other_versions(metadata: CheckpointMetadata) -> None:
    installed = manifest.versions()
    others = [
        f'{name} {metadata.versions.get(name, "(unknown version)")} ({installed[name]} is installed)'
        for name in installed
        if metadata.versions.get(name) != installed[name]
    ]
    if others:
        print(
            f'The checkpoint of step {metadata.step:,} was saved with {", ".join(others)}: '
            'results may differ in rounding.'
        )
