"""A training session of a replica group: chunks of training steps, with checkpoints and graceful shutdown between."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from seqjax.runs import manifest, multihost, signals
from seqjax.runs.append_log import AppendLog
from seqjax.runs.checkpoint_manager import CheckpointManager
from seqjax.runs.manifest import CheckpointMetadata
from seqjax.runs.signals import ShutdownRequest
from seqjax.training import chunk_result, divergence, host_streaming, programs
from seqjax.training.chunk_result import ChunkResult
from seqjax.training.host_streaming import Feed
from seqjax.training.replicas import ReplicaGroup
from seqjax.types import Arrays, Metrics, TrainState


class CheckpointConfig(NamedTuple):
    """Configuration of checkpoints: when to save, and which to keep."""

    save_every: int  # training steps between checkpoints; another one is saved at the end
    max_to_keep: int = 2  # number of newest checkpoints to keep
    keep_best: str | None = None  # metric whose best checkpoint is also kept; lowest is best, with max:NAME highest


class TrainSession:
    """Training of one replica group from its start or restore to the next stop; made by `CompiledRun.session`."""

    def __init__(
        self,
        run: Any,
        group: ReplicaGroup,
        manager: CheckpointManager | None,
        logs: Mapping[str, AppendLog],
        state: TrainState,
        step: int,
        restored: Mapping[str, bytes],
        data_feed: Feed | None,
        shutdown: ShutdownRequest | None = None,
    ):
        self.run, self.group, self.manager, self.logs, self.shutdown = run, group, manager, logs, shutdown
        self.count = None if run.width is None else len(group.seeds)
        self.data_feed, self.task = data_feed, run.task
        self.state = state
        self.step = step  # number of training steps taken, including earlier sessions
        self.restored = restored  # content of each log, by name, at the start of the session
        self.values: dict[str, float | None] = {}  # metrics by name after the last chunk; None if not finite

    @property
    def num_seeds(self) -> int:
        """Number of seeds of the group, without padding replicas."""
        return len(self.group.seeds)

    def train(self) -> Iterator[ChunkResult]:
        """Trains to the last step of the run, and yields every chunk; saves checkpoints every `save_every` steps.

        The caller must append a chunk to the logs before it requests the next one, because a checkpoint may follow.

        Raises:
          UserError: the losses of all seeds of the group are not finite at some step, and `run.allow_divergence` is
            False. The last state with finite parameters is saved before.
          UserError: a checkpoint cannot be written.
          BaseException: the exception of `signals.stop_exception`, if a signal was received.
        """
        run, save_every = self.run, self.run.checkpoints.save_every
        for state, metrics, evals in programs.train(
            run.model,
            run.task,
            run.tx,
            self.state,
            steps=run.steps,
            steps_per_call=run.steps_per_call,
            train_chunk=run.programs.train_chunk,
            extra_sync_every=() if self.manager is None else (save_every,),
            data_fn=None if self.data_feed is None else self._take,
        ):
            good = divergence.first_divergence(
                divergence.without_padding(chunk_result.mean_values(metrics['loss']), self.count)
            )
            if good is not None and not run.allow_divergence:
                yield from self._diverged(metrics, good)
            yield self._finish_chunk(state, metrics, evals)
            if self.manager is not None:
                self.manager.raise_if_failed()
                self.check_signals()
                if self.step % save_every == 0:
                    self.save()

    def _take(self, first: int, count: int) -> Arrays:
        self.task = self.task._replace(data=self.data_feed.take(first, count))
        return self.task.data

    def _chunk_result(self, state: TrainState, metrics: Metrics, evals: dict[str, Metrics]) -> ChunkResult:
        metrics, evals = jax.tree.map(lambda x: divergence.without_padding(x, self.count), (metrics, evals))
        return ChunkResult(self.step, state, metrics, evals)

    def _finish_chunk(self, state: TrainState, metrics: Metrics, evals: dict[str, Metrics]) -> ChunkResult:
        chunk = self._chunk_result(state, metrics, evals)
        self.state, self.step = state, chunk.end
        names = chunk_result.metric_names(self.run.programs)
        self.values = dict(zip(names, map(chunk_result.typical_value, chunk_result.latest_values(chunk)), strict=True))
        return chunk

    def save(self) -> None:
        """Starts to save a checkpoint in the background; does nothing without a run directory."""
        if self.manager is None:
            return
        offsets = {name: log.offset() for name, log in self.logs.items()}
        state, folder = self.run.unpadded(self.state, self.count), self.run.workdir
        leaves, versions = manifest.describe(state), manifest.versions()
        metadata = CheckpointMetadata(
            self.step, folder.experiment, folder.settings, offsets, self.values, leaves, versions, self._feed_state()
        )
        self.manager.save(state, metadata)

    def _feed_state(self) -> dict[str, Any] | None:
        """Returns the state of the data feed at `step`, or None; after a divergence the feed itself may be ahead."""
        return None if self.data_feed is None else {**self.data_feed.state, host_streaming.NEXT: self.step}

    def check_signals(self) -> None:
        """Saves a checkpoint and raises the exception that stops the run, if a signal was received."""
        number = 0 if self.shutdown is None else multihost.allreduce_max(self.shutdown.number or 0)
        if not number:
            return
        self.save()
        self.manager.wait()
        name = signals.name(number)
        raise signals.stop_exception(
            number,
            f'stopped by {name} after step {self.step:,} of {self.run.steps:,}; its checkpoint is saved in '
            f'{self.manager.folder}; run the same command to resume',
        )

    def _diverged(self, metrics: Metrics, good: int) -> Iterator[ChunkResult]:
        """Saves the last state with finite parameters, yields the steps up to the first bad loss, and raises UserError.

        Args:
          metrics: training metrics of all steps of the chunk that diverged.
          good: index of the first step of the chunk at which no seed of the group has a finite loss.
        """
        first, task = self.step, self.task
        n, state, evals = divergence.last_finite(self.run, task, self.state, good)
        if n:
            yield self._finish_chunk(state, jax.tree.map(lambda x: x[:n], metrics), evals)
        self.save()
        error = divergence.error(self.run, task, state, metrics, step=first, finite=n, good=good, count=self.count)
        yield self._chunk_result(state, jax.tree.map(lambda x: x[n : good + 1], metrics), evals)
        if self.manager is None:
            raise error
        self.manager.wait()
        raise type(error)(f'{error}; the state after step {first + n:,} is saved in {self.manager.folder}')
