"""Observers of training: per-step losses, evaluations, early stopping, success criterion, predictions, progress.

An observer collects results from all replica groups. When a group is resumed, the observer is restored from the
append-only log that it wrote for this group. n: seeds of the current group.
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

LOSSES = 'losses.f32'  # log file: losses of a replica group, float32 [steps, n]
EVALUATIONS = 'evals.f32'  # log file: metrics of a replica group, float32 [evaluations, n, metrics]
REACHED = 'reached.jsonl'  # log file: test results of the successful seeds of a replica group


class Observer:
    """Base class of observers; its methods do nothing. `seeds.train_seeds` calls them."""

    log_name: str | None = None  # file name of the append-only log; None for no log
    should_stop = False  # True to stop the training of the current group

    def open_log(self, run: CompiledRun, subfolder: str) -> AppendLog:
        """Returns the append-only log of a group, in the folder of its checkpoints.

        It is not called if `log_name` is None.
        """
        return run.workdir.append_log(subfolder, self.log_name)

    def on_start(self, session: TrainSession, restored: bytes) -> None:
        """Called when training of a group starts or resumes; `restored` is the content of its log (empty if new)."""

    def on_chunk(self, session: TrainSession, chunk: ChunkResult) -> bytes:
        """Called after every chunk; returns the bytes to append to the log, empty for none."""
        return b''

    def on_end(self, session: TrainSession) -> None:
        """Called when training of a group has ended; not if it was interrupted by an exception."""

    def status(self) -> str:
        """Returns the text that the progress bar shows beside its counts."""
        return ''


class StepLog(Observer):
    """Logs every training step of a run of one seed as a row of metrics.csv: step, loss, learning rate.

    Args:
      steps: number of training steps of the run.
      rates: learning rates of all steps, [steps].
    """

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
    """Returns rows of metrics.csv as text: step, a value of each column, learning rate; no float32 digit is lost.

    Args:
      first: step of the first row.
      rates: learning rates; those beyond the length of the columns are ignored.
      columns: arrays of one length, such as losses.
    """
    rows = zip(rates, *columns, strict=False)
    return ''.join(
        ','.join([str(first + i), *(f'{x:.9g}' for x in row), str(rate)]) + '\n' for i, (rate, *row) in enumerate(rows)
    )


class ReplicaStepLog(Observer):
    """Logs the loss of every training step of every seed; `losses` are [R, steps].

    Args:
      steps: number of training steps of the run.
      num_seeds: R, the number of seeds of all groups.
    """

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
    """Returns the median of the finite values, or NaN if no value is finite."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float('nan')


class EvaluationLog(Observer):
    """Logs the metrics of every seed at every evaluation: training means since the previous one, then split metrics.

    Args:
      metrics: names of these metrics.
      eval_every: training steps between evaluations; chunks must end at its multiples.
      monitor: if set, metrics of seeds that it stopped at an earlier evaluation are NaN; must be a later observer.
    """

    log_name = EVALUATIONS

    def __init__(self, metrics: list[str], eval_every: int, monitor: EarlyStoppingMonitor | None = None):
        self.metrics, self.eval_every, self.monitor = metrics, eval_every, monitor
        self.latest: np.ndarray | None = None  # [n, metrics] float64; None if the last chunk had no evaluation
        self.groups: list[np.ndarray] = []  # metrics of each finished group, [n, evaluations, metrics]
        self.rows: list[np.ndarray] = []  # metrics at each evaluation of the current group, [n, metrics]
        self.sums: dict[str, Mean] = {}  # totals and counts of the training metrics since the last evaluation, [n]

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
            self.latest[self.monitor.stopped] = np.nan  # stopped seeds are trained until their group stops
        self.rows.append(self.latest.astype(np.float32))
        return self.rows[-1].astype('<f4').tobytes()

    def on_end(self, session: TrainSession) -> None:
        empty = np.empty((session.num_seeds, 0, len(self.metrics)), np.float32)
        self.groups.append(np.stack(self.rows, 1) if self.rows else empty)

    def values(self) -> np.ndarray:
        """Returns the metrics of all groups, [R, evaluations, metrics]; NaN after the last evaluation of a group."""
        longest = max(x.shape[1] for x in self.groups)
        return np.concatenate(
            [np.pad(x, [(0, 0), (0, longest - x.shape[1]), (0, 0)], constant_values=np.nan) for x in self.groups]
        )


def _add(before: Mapping[str, Mean], new: Mapping[str, Mean]) -> dict[str, Mean]:
    """Returns the totals and counts `before` ([R]; {} for none) plus the sums over new steps [steps, R], in float64."""
    sums = {name: Mean(*(np.asarray(x, np.float64).sum(0) for x in mean)) for name, mean in new.items()}
    return {name: before[name].merge(mean) if before else mean for name, mean in sums.items()}


def _mean(metric: Mean) -> np.ndarray:
    """Returns total / count [R] in float64; NaN where total and count are 0."""
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.asarray(metric.total, np.float64) / np.asarray(metric.count, np.float64)


class EarlyStoppingMonitor(Observer):
    """Stops a group when all of its seeds have stopped early; keeps the best parameters of each seed.

    `run.task.early_stopping` must not be None.
    """

    def __init__(self, run: CompiledRun):
        self.run, self.config = run, run.task.early_stopping
        self.stopped = np.empty(0, bool)  # [n], True for seeds that have stopped early
        self.values = np.empty(0, np.float32)  # [n], lowest monitored metric of each seed so far
        self.groups: list = []  # BestParameters of each finished group, leaves [n, ...], on the host
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
        # At step 0 no evaluation was better than the initial value, so none was finite.
        self.groups.append(best._replace(value=np.where(best.step == 0, np.inf, best.value)))

    def status(self) -> str:
        best = finite_median(self.values[self.values < training_step.INITIAL_BEST])
        words = f'best {self.config.split} {self.config.metric} {best:.4g}'
        if self.stopped.any():
            words += f', {self.stopped.sum()} of {len(self.stopped)} seeds stopped early'
        return words


class SuccessMonitor(Observer):
    """Tests each seed when it first meets the success criterion, or else at the end of training.

    Stops a group when all of its seeds have met the criterion.

    Args:
      run: from `compile_run`.
      evaluations: log of the training metrics, which must be an earlier observer.
      criterion: name of a training metric, and its largest mean since the previous evaluation that is a success.
      test: test(state of one seed, held_out) -> metrics by name.
      held_out: held-out sequences.
      batch_size: number of sequences in a training step.
      train_all_steps: True trains every group to the last step, and takes the test results from there.
      num_seeds: number of seeds of all groups.
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
        self.results: list[SeedResult] = []  # results of finished groups
        self.successes: dict[int, SeedResult] = {}  # seed -> result, for successful seeds of the current group
        self.should_stop = False
        self._test = jax.jit(
            lambda states, i, held_out: test(jax.tree.map(lambda x: x[i], states), held_out),
            out_shardings=run.replicated,
        )

    def on_start(self, session: TrainSession, restored: bytes) -> None:
        self.successes = {seed.seed: seed for seed in success_results.parse_lines(restored)}
        self._update(session)

    def _update(self, session: TrainSession) -> None:
        self.should_stop = len(self.successes) == session.num_seeds and not self.train_all_steps

    def on_chunk(self, session: TrainSession, chunk: ChunkResult) -> bytes:
        if self.evaluations.latest is None:
            return b''
        solved = np.flatnonzero(self.evaluations.latest[:, self.metric] <= self.at_most)  # NaN is not
        new = [int(i) for i in solved if int(session.group.seeds[i]) not in self.successes]
        tested = [self.run_test(session, i, chunk.state, chunk.end) for i in new]
        self.successes |= {seed.seed: seed for seed in tested}
        self._update(session)
        return success_results.to_lines(tested)

    def on_end(self, session: TrainSession) -> None:
        for i, seed in enumerate(session.group.seeds.tolist()):
            before = self.successes.get(seed)
            if self.train_all_steps or before is None:
                at_end = self.run_test(session, i, session.state, None)
                self.successes[seed] = at_end if before is None else at_end._replace(sequences=before.sequences)
        self.results += [self.successes[seed] for seed in session.group.seeds.tolist()]

    def run_test(self, session: TrainSession, i: int, states: TrainState, steps: int | None) -> SeedResult:
        """Tests seed i of a group with its state in `states`; returns its SeedResult.

        `steps` is the number of training steps at which the seed met the criterion, or None if it did not.
        """
        metrics = jax.device_get(self._test(states, i, self.held_out))
        values = {name: success_results.to_number(x) for name, x in metrics.items()}
        return SeedResult(int(session.group.seeds[i]), None if steps is None else steps * self.batch_size, values)

    def status(self) -> str:
        before = len(success_results.successful(self.results))
        return f'{before + len(self.successes)} of {self.num_seeds} seeds successful'


class Predictions(Observer):
    """Predicts for `inputs` with the trained models; keeps the outputs of each group, and the last group's state."""

    def __init__(self, inputs: Arrays):
        self.inputs = inputs
        self.outputs: list[np.ndarray] = []
        self.state: TrainState | None = None

    def on_end(self, session: TrainSession) -> None:
        outputs = np.asarray(session.run.programs.predict(session.state, self.inputs))
        self.outputs.append(outputs if session.count is None else outputs[: session.count])
        self.state = session.state


class ProgressBar(Observer):
    """Shows the progress of training over all groups; must be the last observer.

    Args:
      bar: from `seqjax.training.progress.progress`.
      observer: observer whose status is shown; None shows none.
      label: returns the name of the group of a session for messages; empty if there is only one group.
    """

    def __init__(
        self,
        bar: Progress,
        observer: Observer | None = None,
        label: Callable[[TrainSession], str] = lambda session: session.group.label,
    ):
        self.bar, self.observer, self.label = bar, observer or Observer(), label
        self.resumed = False  # True once a group was resumed from a checkpoint

    def on_start(self, session: TrainSession, restored: bytes) -> None:
        run = session.run
        self.resumed |= session.step > 0
        done = self.observer.should_stop or session.step == run.steps
        self.bar.begin(self.label(session), session.step, done, run.workdir.path, run.steps_per_call, session.num_seeds)

    def on_chunk(self, session: TrainSession, chunk: ChunkResult) -> bytes:
        count = session.num_seeds
        self.bar.show(chunk.end * count, chunk.steps * count, self.observer.status())
        return b''

    def on_end(self, session: TrainSession) -> None:
        self.bar.end(session.step * session.num_seeds, session.run.steps * session.num_seeds)
