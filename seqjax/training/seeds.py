"""Training of all seeds of a run, one replica group after the other.

`train_seeds` is the driver. The other functions call it with observers that log the loss of every step, stop early, or
stop when a success criterion is met.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from seqjax import types
from seqjax.errors import UserError
from seqjax.reporting import statistics
from seqjax.runs import directory
from seqjax.runs.directory import Workdir
from seqjax.tasks.synthetic import SuccessCriterion
from seqjax.training import chunk_result, evaluation, observers, optimizers, progress
from seqjax.training.chunk_result import ChunkResult
from seqjax.training.compiled_run import CompiledRun, StateOverride
from seqjax.training.fit_results import FitResult
from seqjax.training.observers import (
    EarlyStoppingMonitor,
    EvaluationLog,
    Observer,
    Predictions,
    ProgressBar,
    ReplicaStepLog,
    StepLog,
    SuccessMonitor,
)
from seqjax.training.replicas import ReplicaGroup
from seqjax.training.session import TrainSession
from seqjax.training.success_results import SuccessResults
from seqjax.types import Arrays, Batch, BestParameters, Mean, Task, TrainState

# (state of one seed, held-out data) -> metrics by name; a Mean with count 0 becomes NaN.
TestFn = Callable[[TrainState, Arrays], Mapping[str, jax.Array | Mean]]


def train_seeds(
    run: CompiledRun,
    seeds: Sequence[int] | np.ndarray,
    observers: Sequence[Observer],
    *,
    subfolder: Callable[[ReplicaGroup], str] = str,
    override: Callable[[ReplicaGroup], StateOverride | None] = lambda group: None,
) -> None:
    """Trains every group of seeds to the last step, or until an observer stops it; resumes it from its checkpoint.

    Args:
      run: from `compile_run`.
      seeds: [R]; a single one for a run that was compiled without replicas.
      observers: called in this order at the start of a group, after every chunk, and at the end of a group; results
        are in their attributes.
      subfolder: returns the folder of the checkpoints and logs of a group; not called for a run without replicas.
      override: returns a change of the initial TrainState of a group, or None for no change.

    Raises:
      UserError: see `CompiledRun.session` and `TrainSession.train`.
    """
    for group in run.groups(np.asarray(seeds)):
        folder = '' if run.width is None else subfolder(group)
        logs = {observer.log_name: observer.open_log(run, folder) for observer in observers if observer.log_name}
        with run.session(group, logs, subfolder=folder, override=override(group)) as session:
            for observer in observers:
                observer.on_start(session, session.restored.get(observer.log_name, b''))
            if not _stopped(observers):
                for chunk in session.train():
                    for observer in observers:
                        rows = observer.on_chunk(session, chunk)
                        if rows:
                            logs[observer.log_name].append(rows)
                    if _stopped(observers):
                        break
            for observer in observers:
                observer.on_end(session)


def _stopped(observers: Sequence[Observer]) -> bool:
    return any(observer.should_stop for observer in observers)


def _train(
    run: CompiledRun,
    seeds: np.ndarray,
    observers: Sequence[Observer],
    status_observer: Observer,
    *,
    unit: str = 'seed-step',
    label: Callable[[TrainSession], str] = lambda session: session.group.label,
    **kwargs: Any,
) -> bool:
    """Calls `train_seeds` with a progress bar that shows the status of `status_observer`.

    Returns:
      True if the run was resumed from a checkpoint.
    """
    with progress.progress(len(seeds) * run.steps, unit) as bar:
        bar_observer = ProgressBar(bar, status_observer, label)
        train_seeds(run, seeds, [*observers, bar_observer], **kwargs)
    return bar_observer.resumed


class RunResult(NamedTuple):
    """Losses of every training step, and outputs of the trained models."""

    losses: np.ndarray  # [steps], or [R, steps] with replicas
    outputs: np.ndarray  # outputs of the trained models: [B, ...], or [R, B, ...] with replicas
    state: TrainState  # state after the last step; with replicas, the state of the last group, with padding replicas
    seconds: dict[str, float]  # seconds of this session, by name: 'compile' and 'train'
    resumed: bool = False  # True if the run was resumed from a checkpoint

    def timing(self) -> str:
        """Returns the compilation and training time of this session as text."""
        text = 'compiled in {compile:.2f} s, trained in {train:.2f} s'.format(**self.seconds)
        return f'{text} after resuming' if self.resumed else text


def train_with_losses(run: CompiledRun, inputs: Arrays, seeds: np.ndarray, *, unit: str = 'epoch') -> RunResult:
    """Trains seeds to the last step, writes the loss of every step to metrics.csv, and predicts for `inputs`.

    With replicas, a row of metrics.csv has the quantiles of the loss over all seeds, including diverged ones.

    Args:
      run: from `compile_run`.
      inputs: inputs of the predictions, the same as in `compile_run`.
      seeds: [R]; a single one for a run that was compiled without replicas.
      unit: name of a training step in the progress bar.

    Raises:
      UserError: see `train_seeds`.
    """
    start, has_replicas = time.perf_counter(), run.width is not None
    rates = optimizers.learning_rates(run.tx, np.arange(run.steps))
    log = ReplicaStepLog(run.steps, len(seeds)) if has_replicas else StepLog(run.steps, rates)
    predictions = Predictions(inputs)
    resumed = _train(run, seeds, [log, predictions], log, unit=f'seed-{unit}' if has_replicas else unit)
    seconds = {'compile': run.seconds, 'train': time.perf_counter() - start}
    if has_replicas:
        _write_bands(run.workdir, log.losses, rates)
    outputs = np.concatenate(predictions.outputs) if has_replicas else predictions.outputs[0]
    return RunResult(log.losses, outputs, predictions.state, seconds, resumed)


def _write_bands(workdir: Workdir, losses: np.ndarray, rates: np.ndarray) -> None:
    """Writes metrics.csv: a row per step with quantiles of losses [R, steps] over replicas, and the learning rate."""

    def write(path: Path) -> None:
        names = ['step', 'loss', *(f'loss_q{q:g}' for q in statistics.BANDS if q != 0.5), 'learning_rate']
        low, q1, median, q3, high = statistics.loss_quantiles(losses).astype(np.float32)
        path.write_text(
            ','.join(names) + '\n' + observers.format_rows(1, rates, median, low, q1, q3, high), encoding='utf-8'
        )

    workdir.write(directory.METRICS, write)


# --- early stopping --------------------------------------------------------------------------------


def train_with_early_stopping(run: CompiledRun, seeds: np.ndarray) -> FitResult:
    """Trains seeds [R] with early stopping; returns their evaluations, and the best parameters of each.

    Raises:
      UserError: see `train_seeds`; or the monitored metric was not finite at any evaluation of any seed.
    """
    config, metrics = run.task.early_stopping, chunk_result.metric_names(run.programs)
    monitor = EarlyStoppingMonitor(run)
    log = EvaluationLog(metrics, config.eval_every, monitor)
    resumed = _train(run, seeds, [log, monitor], monitor)
    best = jax.tree.map(lambda *parts: np.concatenate(parts), *monitor.groups)
    if not np.isfinite(best.value).any():
        raise UserError(
            f'the {config.split} {config.metric} was not finite at any evaluation of {len(seeds)} seeds; use a smaller '
            '--learning_rate, or --clip_norm=1'
        )
    values = log.values()
    return FitResult(seeds, metrics, values, best, resumed, _rates(run, config.eval_every, values.shape[1]))


def _rates(run: CompiledRun, eval_every: int, evaluations: int) -> np.ndarray:
    """Returns the learning rate of the last training step before each evaluation, [evaluations]."""
    return optimizers.learning_rates(run.tx, eval_every * np.arange(1, evaluations + 1) - 1)


class _LastStates(Observer):
    """Keeps parameters and variables of every seed after the last step; shows the median loss of the last chunk."""

    def __init__(self) -> None:
        self.groups: list[Any] = []  # (params, variables) of each finished group, leaves [n, ...], on the host
        self.loss = float('nan')

    def on_chunk(self, session: TrainSession, chunk: ChunkResult) -> bytes:
        mean = Mean(*(np.sum(x, 0, np.float64) for x in chunk.metrics['loss']))
        self.loss = observers.finite_median(chunk_result.mean_values(mean))
        return b''

    def on_end(self, session: TrainSession) -> None:
        state = session.run.unpadded(session.state, session.num_seeds)
        self.groups.append(session.run.to_host((state.params, state.variables)))

    def status(self) -> str:
        return f'loss {self.loss:.4g}'


def retrain(run: CompiledRun, fit: FitResult) -> FitResult:
    """Trains the seeds of `fit` again, from their initial parameters and for `run.steps` steps without early stopping.

    The training data of `run` should include the validation split, and its number of steps come from early stopping on
    that split (Goodfellow, Bengio and Courville 2016, algorithm 7.2).

    Returns:
      `fit` with the parameters after the last step as its best ones; their metric is still the metric of `fit`.

    Raises:
      UserError: see `train_seeds`.
    """
    states = _LastStates()

    def label(session: TrainSession) -> str:
        return ' '.join(['the retraining', *(['of', session.group.label] if session.group.label else [])])

    # The name of the folder includes the steps, which may differ when a run is continued with more steps.
    _train(
        run,
        fit.seeds,
        [states],
        states,
        unit='retraining seed-step',
        label=label,
        subfolder=lambda group: f'refit_{run.steps}_{group}',
    )
    params, variables = jax.tree.map(lambda *parts: np.concatenate(parts), *states.groups)
    best = BestParameters(
        fit.best.value, np.full(len(fit.seeds), run.steps, np.int32), params, types.without_carry(variables)
    )
    return fit._replace(best=best)


# --- success criterion -----------------------------------------------------------------------------


def batch_test(model: nn.Module, task: Task, batch_size: int) -> TestFn:
    """Returns test(state, batch) -> mean of each metric of the task over a batch of N sequences.

    The model computes `batch_size` sequences at a time.
    """

    def test(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        outputs = evaluation.predict(model, state, batch.inputs, batch_size=batch_size)
        return {name: mean.compute() for name, mean in task.loss(outputs, batch).items()}

    return test


def train_until_solved(
    run: CompiledRun,
    seeds: np.ndarray,
    *,
    criterion: SuccessCriterion,
    eval_every: int,
    test: TestFn,
    held_out: Arrays,
    batch_size: int,
    train_all_steps: bool = False,
) -> SuccessResults:
    """Trains seeds until all of a group meet a success criterion, or to the last step, and tests each on held-out data.

    A seed is tested when it first meets the criterion, or else after the last step.

    Args:
      run: from `compile_run`.
      seeds: [R].
      criterion: name of a training metric, and its largest mean since the previous evaluation that is a success.
      eval_every: training steps between evaluations.
      test: test(state of one seed, held_out) -> metrics by name.
      held_out: held-out sequences.
      batch_size: number of sequences in a training step.
      train_all_steps: True trains every group to the last step, and takes the test results from there.

    Raises:
      UserError: see `train_seeds`.
    """
    metrics = list(run.programs.shapes[1])
    log = EvaluationLog(metrics, eval_every)
    monitor = SuccessMonitor(
        run,
        log,
        criterion=criterion,
        test=test,
        held_out=held_out,
        batch_size=batch_size,
        train_all_steps=train_all_steps,
        num_seeds=len(seeds),
    )
    resumed = _train(run, seeds, [log, monitor], monitor)
    values = log.values()
    return SuccessResults(monitor.results, metrics, values, resumed, _rates(run, eval_every, values.shape[1]))
