"""Observers of training: per-step losses, evaluations, early stopping, success criterion, predictions, progress.

Each has one purpose, and all that it keeps of the groups of a run. Its append-only log is what it needs to resume.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np

from seqjax.runs import directory
from seqjax.runs.append_log import AppendLog
from seqjax.tasks.synthetic import SuccessCriterion
from seqjax.training import chunk_result, success_results
from seqjax.training import step as training_step
from seqjax.training.chunk_result import ChunkResult
from seqjax.training.compiled_run import CompiledRun
from seqjax.training.progress import Progress
from seqjax.training.session import TrainSession
from seqjax.training.success_results import SeedResult
from seqjax.types import Arrays, Mean, TrainState

LOSSES = 'losses.f32'  # of a replica group, [steps, replicas]
EVALUATIONS = 'evals.f32'  # of a replica group, [evaluations, replicas, metrics]
REACHED = 'reached.jsonl'  # of a replica group: the seeds that met the success criterion


class Observer:
    """Base class of observers, which does nothing. See `train_seeds` for the order of calls."""

    log_name: str | None = None  # of its append-only log; None for none
    should_stop = False  # whether the group has trained enough

    def open_log(self, run: CompiledRun, subfolder: str) -> AppendLog:
        """Returns the log of a group, kept beside its checkpoints."""
        return run.workdir.append_log(subfolder, self.log_name)

    def on_start(self, session: TrainSession, restored: bytes) -> None:
        """Begins a group, with the restored content of the log."""

    def on_chunk(self, session: TrainSession, chunk: ChunkResult) -> bytes:
        """Takes a chunk, and returns what is appended to the log."""
        return b''

    def on_end(self, session: TrainSession) -> None:
        """Ends a group."""

    def status(self) -> str:
        """Returns a few words for the progress bar."""
        return ''


class StepLog(Observer):
    """Loss of every training step of one seed, a row of metrics.csv each."""

    log_name = directory.METRICS

    def __init__(self, steps: int, rates: np.ndarray):
        self.losses, self.rates = np.empty(steps, np.float32), rates
        self.latest = np.float32(np.nan)

    def open_log(self, run: CompiledRun, subfolder: str) -> AppendLog:
        return run.workdir.metrics_log('step,loss,learning_rate\n')

    def on_start(self, session: TrainSession, restored: bytes) -> None:
        self.losses[: session.step] = [float(row.split(',')[1]) for row in restored.decode().splitlines()]

    def on_chunk(self, session: TrainSession, chunk: ChunkResult) -> bytes:
        new = chunk_result.mean_values(chunk.metrics['loss'])
        self.losses[chunk.step : chunk.end], self.latest = new, new[-1]
        return format_rows(chunk.step + 1, self.rates[chunk.step :], new).encode()

    def status(self) -> str:
        return f'loss {self.latest:.4g}'


def format_rows(first: int, rates: np.ndarray, *columns: np.ndarray) -> str:
    """Returns rows of metrics.csv: step, counted from 1; columns; learning rate. Float32 values, without loss."""
    rows = zip(rates, *columns, strict=False)
    return ''.join(
        ','.join([str(first + i), *(f'{x:.9g}' for x in row), str(rate)]) + '\n' for i, (rate, *row) in enumerate(rows)
    )


class ReplicaStepLog(Observer):
    """Loss of every training step of every seed, [R, steps]."""

    log_name = LOSSES

    def __init__(self, steps: int, num_seeds: int):
        self.losses = np.empty((num_seeds, steps), np.float32)
        self.latest = np.empty(0, np.float32)

    def _rows(self, session: TrainSession) -> np.ndarray:
        first = session.group.first
        return self.losses[first : first + session.num_seeds]

    def on_start(self, session: TrainSession, restored: bytes) -> None:
        self._rows(session)[:, : session.step] = np.frombuffer(restored, '<f4').reshape(-1, session.num_seeds).T

    def on_chunk(self, session: TrainSession, chunk: ChunkResult) -> bytes:
        new = chunk_result.mean_values(chunk.metrics['loss'])
        self._rows(session)[:, chunk.step : chunk.end], self.latest = new.T, new[-1]
        return new.astype('<f4').tobytes()

    def status(self) -> str:
        diverged = int((~np.isfinite(self.latest)).sum())
        return f'median loss {finite_median(self.latest):.4g}' + (f', {diverged} diverged' if diverged else '')


def finite_median(values: np.ndarray) -> float:
    """Returns the median of the finite values, NaN if there is none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float('nan')


class EvaluationLog(Observer):
    """Metrics of every seed at every evaluation: means of training since the evaluation before, and of the splits."""

    log_name = EVALUATIONS

    def __init__(self, metrics: list[str], eval_every: int, monitor: EarlyStoppingMonitor | None = None):
        self.metrics, self.eval_every, self.monitor = metrics, eval_every, monitor
        self.latest: np.ndarray | None = None  # [n, metrics] float64 after a chunk with an evaluation
        self.groups: list[np.ndarray] = []  # [n, evaluations, metrics] each
        self.rows: list[np.ndarray] = []
        self.sums: dict[str, Mean] = {}  # of training since the last evaluation

    def on_start(self, session: TrainSession, restored: bytes) -> None:
        self.rows = list(np.frombuffer(restored, '<f4').reshape(-1, session.num_seeds, len(self.metrics)))
        self.latest, self.sums = None, {}

    def on_chunk(self, session: TrainSession, chunk: ChunkResult) -> bytes:
        self.sums, self.latest = _add(self.sums, chunk.metrics), None
        if chunk.end % self.eval_every:
            return b''
        self.latest = np.stack([*map(_mean, self.sums.values()), *chunk_result.eval_values(chunk)], -1)
        self.sums = {}
        if self.monitor is not None:
            self.latest[self.monitor.stopped] = np.nan  # trained on beside others of the group
        self.rows.append(self.latest.astype(np.float32))
        return self.rows[-1].astype('<f4').tobytes()

    def on_end(self, session: TrainSession) -> None:
        empty = np.empty((session.num_seeds, 0, len(self.metrics)), np.float32)
        self.groups.append(np.stack(self.rows, 1) if self.rows else empty)

    def values(self) -> np.ndarray:
        """Returns [R, evaluations, metrics] of all groups, NaN after the last evaluation of a group."""
        longest = max(x.shape[1] for x in self.groups)
        return np.concatenate(
            [np.pad(x, [(0, 0), (0, longest - x.shape[1]), (0, 0)], constant_values=np.nan) for x in self.groups]
        )


def _add(before: Mapping[str, Mean], new: Mapping[str, Mean]) -> dict[str, Mean]:
    """Sums over steps [n, R] in float64, added to those before [R]."""
    sums = {name: Mean(*(np.asarray(x, np.float64).sum(0) for x in mean)) for name, mean in new.items()}
    return {name: before[name].merge(mean) if before else mean for name, mean in sums.items()}


def _mean(metric: Mean) -> np.ndarray:
    """[R]; NaN where nothing was counted."""
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.asarray(metric.total, np.float64) / np.asarray(metric.count, np.float64)


class EarlyStoppingMonitor(Observer):
    """Stops a group once the patience of every seed has run out; keeps the best parameters of each."""

    def __init__(self, run: CompiledRun):
        self.run, self.config = run, run.task.early_stopping
        self.stopped = np.empty(0, bool)  # [n]
        self.values = np.empty(0, np.float32)  # [n], the best so far
        self.groups: list = []  # Best of each group, leaves [n, ...], on the host
        config = self.config
        self._read = jax.jit(
            lambda state: (training_step.should_stop(config, state), state.best.value), out_shardings=run.replicated
        )

    def _update(self, session: TrainSession, state: TrainState) -> None:
        self.stopped, self.values = (np.asarray(x)[: session.num_seeds] for x in self._read(state))
        self.should_stop = bool(self.stopped.all())

    def on_start(self, session: TrainSession, restored: bytes) -> None:
        self._update(session, session.state)

    def on_chunk(self, session: TrainSession, chunk: ChunkResult) -> bytes:
        self._update(session, chunk.state)
        return b''

    def on_end(self, session: TrainSession) -> None:
        best = self.run.to_host(self.run.unpadded(session.state, session.num_seeds).best)
        # Before the first evaluation with a finite value.
        self.groups.append(best._replace(value=np.where(best.step == 0, np.inf, best.value)))

    def status(self) -> str:
        best = finite_median(self.values[self.values < training_step.INITIAL_BEST])
        words = f'best {self.config.split} {self.config.metric} {best:.4g}'
        if self.stopped.any():
            words += f', {self.stopped.sum()} of {len(self.stopped)} seeds stopped early'
        return words


class SuccessMonitor(Observer):
    """Tests each seed when it meets the success criterion, or at the end; stops a group once all of its seeds do.

    Args:
      run, evaluations: from `compile_run`, and the log of evaluations, which comes before it among the observers.
      criterion: the metric, and what its mean at an evaluation is at most.
      test, held_out: (state of one seed, held out) -> metrics by name, and its second argument.
      batch_size: sequences of a training step.
      train_all_steps: whether training goes on to the last step, and the test is at the end.
      num_seeds: of all groups.
    """

    log_name = REACHED

    def __init__(
        self,
        run: CompiledRun,
        evaluations: EvaluationLog,
        *,
        criterion: SuccessCriterion,
        test: Callable[[TrainState, Arrays], Mapping[str, jax.Array | Mean]],
        held_out: Arrays,
        batch_size: int,
        train_all_steps: bool,
        num_seeds: int,
    ):
        self.evaluations, self.metric = evaluations, evaluations.metrics.index(criterion.metric)
        self.at_most = criterion.at_most
        self.held_out, self.batch_size = held_out, batch_size
        self.train_all_steps, self.num_seeds = train_all_steps, num_seeds
        self.results: list[SeedResult] = []  # of the groups that ended
        self.reached: dict[int, SeedResult] = {}  # of this group
        self.should_stop = False
        self._test = jax.jit(
            lambda states, i, held_out: test(jax.tree.map(lambda x: x[i], states), held_out),
            out_shardings=run.replicated,
        )

    def on_start(self, session: TrainSession, restored: bytes) -> None:
        self.reached = {seed.seed: seed for seed in success_results.parse_lines(restored)}
        self._update(session)

    def _update(self, session: TrainSession) -> None:
        self.should_stop = len(self.reached) == session.num_seeds and not self.train_all_steps

    def on_chunk(self, session: TrainSession, chunk: ChunkResult) -> bytes:
        if self.evaluations.latest is None:
            return b''
        solved = np.flatnonzero(self.evaluations.latest[:, self.metric] <= self.at_most)  # NaN is not
        new = [int(i) for i in solved if int(session.group.seeds[i]) not in self.reached]
        tested = [self.run_test(session, i, chunk.state, chunk.end) for i in new]
        self.reached |= {seed.seed: seed for seed in tested}
        self._update(session)
        return success_results.to_lines(tested)

    def on_end(self, session: TrainSession) -> None:
        for i, seed in enumerate(session.group.seeds.tolist()):
            before = self.reached.get(seed)
            if self.train_all_steps or before is None:
                at_end = self.run_test(session, i, session.state, None)
                self.reached[seed] = at_end if before is None else at_end._replace(sequences=before.sequences)
        self.results += [self.reached[seed] for seed in session.group.seeds.tolist()]

    def run_test(self, session: TrainSession, i: int, states: TrainState, steps: int | None) -> SeedResult:
        """Returns the result of seed i of a group, tested with these states."""
        metrics = jax.device_get(self._test(states, i, self.held_out))
        values = {name: success_results.to_number(x) for name, x in metrics.items()}
        return SeedResult(int(session.group.seeds[i]), None if steps is None else steps * self.batch_size, values)

    def status(self) -> str:
        before = sum(seed.sequences is not None for seed in self.results)
        return f'{before + len(self.reached)} of {self.num_seeds} at the goal'


class Predictions(Observer):
    """Outputs of the trained model of every seed, and its last state."""

    def __init__(self, inputs: Arrays):
        self.inputs = inputs
        self.outputs: list[np.ndarray] = []
        self.state: TrainState | None = None

    def on_end(self, session: TrainSession) -> None:
        outputs = np.asarray(session.run.programs.predict(session.state, self.inputs))
        self.outputs.append(outputs if session.count is None else outputs[: session.count])
        self.state = session.state


class ProgressBar(Observer):
    """Progress of all groups, with the status of an observer; comes last among the observers.

    `label` names the group in a message, unless it has all seeds.
    """

    def __init__(
        self,
        bar: Progress,
        observer: Observer | None = None,
        label: Callable[[TrainSession], str] = lambda session: session.group.label,
    ):
        self.bar, self.observer, self.label = bar, observer or Observer(), label
        self.resumed = False  # whether a part of the run was done before this process

    def on_start(self, session: TrainSession, restored: bytes) -> None:
        run = session.run
        self.resumed |= session.step > 0
        done = self.observer.should_stop or session.step == run.steps
        self.bar.begin(
            self.label(session), session.step, done, run.workdir.path, run.steps_per_call * session.num_seeds
        )

    def on_chunk(self, session: TrainSession, chunk: ChunkResult) -> bytes:
        count = session.num_seeds
        self.bar.show(chunk.end * count, chunk.steps * count, self.observer.status())
        return b''

    def on_end(self, session: TrainSession) -> None:
        self.bar.end(session.step * session.num_seeds, session.run.steps * session.num_seeds)
