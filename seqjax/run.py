"""The host half of a run: its folder, its loop, its log. It knows no task by name."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.metadata
import json
import os
import platform
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import seqjax
from seqjax import report, sweep, train
from seqjax.task import Arrays, Mean, State, Task

METRICS, SUMMARY, CURVE, REPLICAS = 'metrics.csv', 'summary.json', 'curve.png', 'replicas.npz'
FILES = (METRICS, SUMMARY, CURVE, REPLICAS)  # what a run leaves in its folder
# Settings that change what is shown or where it is kept, but no number: two runs that differ in them are the same.
NO_NUMBER = ('workdir', 'overwrite', 'picture', 'chunk')
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'absl-py')


class UserError(ValueError):
    """What a person can mend; its message is one sentence that names the thing, the value and the remedy."""


class Record(NamedTuple):
    """What a run leaves behind."""

    losses: np.ndarray  # [steps], or [R, steps] with replicas
    outputs: np.ndarray  # of the trained model: [B, ...], or [R, B, ...]
    state: State  # the last; of the last group with replicas
    seconds: dict[str, float]  # 'compile' and 'train'


# --- the folder ------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the file system refuses into a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror or error}; choose another --workdir') from error


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The folder of a run. With path None nothing is kept."""

    path: Path | None
    names: Sequence[str] = FILES  # the files that are ours; nothing else there is touched

    def file(self, name: str) -> Path:
        return self.path / name

    def files(self) -> list[Path]:
        """Those that runs leave here."""
        return [file for name in self.names if (file := self.file(name)).exists()]

    def listing(self) -> str:
        """For a person: the folder, and what runs left there."""
        return f'results: {self.path}{os.sep} {" ".join(sorted(file.name for file in self.files()))}'

    def write_summary(self, summary: dict[str, Any]) -> None:
        if self.path is None:
            return
        target = self.file(SUMMARY)
        with writing(target):
            text = json.dumps(summary, indent=2, allow_nan=False)
            replace(target, lambda path: path.write_text(text + '\n', encoding='utf-8'))


def replace(target: Path, write: Any) -> None:
    """Writes a file beside `target` and moves it there, so that `target` is never half written."""
    temporary = target.with_name(f'.{os.getpid()}-{target.name}')  # keeps the suffix, by which writers choose
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def open_workdir(
    path: str | None, experiment: str, settings: dict[str, Any], overwrite: bool, names: Sequence[str] = FILES
) -> tuple[Workdir, dict[str, Any] | None]:
    """Makes the folder of a run ready.

    Args:
      path: the folder; None to keep nothing.
      experiment: what is run.
      settings: its flags, as JSON would give them back.
      overwrite: whether files of ours that are there may be removed.
      names: the files that the experiment leaves.

    Returns:
      The folder, and the summary of a finished run with the same settings if it holds one.

    Raises:
      UserError: it cannot be written, or holds something else and `overwrite` is not set.
    """
    if path is None:
        return Workdir(None), None
    try:
        folder = Path(path).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UserError(f'--workdir={path} is in the home of somebody who is not here; choose another') from error
    workdir = Workdir(folder, names)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for file in workdir.files():
                file.unlink()
        held = workdir.files()
        if not held:
            probe = folder / f'.{os.getpid()}-probe'  # refuse before the training, not after it
            probe.write_bytes(b'')
            probe.unlink()
    if not held:
        return workdir, None
    summary = _read_summary(workdir)
    if summary.get('experiment') != experiment:
        raise UserError(
            f'{folder} holds a run of {summary.get("experiment")}, and this one is of {experiment}; '
            'choose another --workdir, or --overwrite to replace it'
        )
    _refuse_other_settings(workdir, summary['flags'], settings)
    return workdir, summary if summary['finished'] else None


def _read_summary(workdir: Workdir) -> dict[str, Any]:
    try:
        summary = json.loads(workdir.file(SUMMARY).read_text(encoding='utf-8'))
        summary['flags'].keys(), summary['finished']  # a file of ours has both
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f'{workdir.path} holds files whose {SUMMARY} cannot be read ({error!r}); '
            'choose another --workdir, or --overwrite to replace them'
        ) from error
    return summary


def _refuse_other_settings(workdir: Workdir, held: dict[str, Any], settings: dict[str, Any]) -> None:
    for name in sorted(held.keys() | settings.keys()):
        old, new = held.get(name), settings.get(name)
        if name not in NO_NUMBER and old != new:
            before, now = (f'without --{name}' if x is None else f'with --{name}={x}' for x in (old, new))
            raise UserError(
                f'{workdir.path} holds a run {before}, and this one is {now}; '
                'choose another --workdir, or --overwrite to replace it'
            )


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what is wrong with a file of a finished run into a sentence."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f'{path} of a finished run cannot be read ({error}); --overwrite trains again') from error


def read_losses(workdir: Workdir, steps: int, replicas: int | None) -> np.ndarray:
    """The losses of a finished run, [steps] or [R, steps]."""
    if replicas is not None:
        return read_replicas(workdir, 'loss', (replicas, steps))
    path = workdir.file(METRICS)
    with reading(path), path.open(newline='') as lines:
        return np.array([float(row['loss']) for row in csv.DictReader(lines)], np.float32).reshape(steps)


def read_replicas(workdir: Workdir, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One array of replicas.npz."""
    path = workdir.file(REPLICAS)
    with reading(path), np.load(path) as held:
        return held[name].reshape(shape)


# --- the summary -----------------------------------------------------------------------------------


def new_summary(experiment: str, settings: dict[str, Any], layers: Sequence[report.Layer]) -> dict[str, Any]:
    """What is known of a run before its first step."""
    device = jax.devices()[0]
    versions = {'seqjax': seqjax.__version__, 'python': platform.python_version()}
    return {
        'experiment': experiment,
        'finished': False,
        'flags': settings,
        'versions': versions | {name: importlib.metadata.version(name) for name in PACKAGES},
        'device': f'{device.platform} ({device.device_kind})',
        'layers': [layer._asdict() for layer in layers],
        'params': sum(layer.params for layer in layers),
    }


def loss_summary(losses: np.ndarray) -> dict[str, Any]:
    """The first and the last loss; with replicas [R, steps] their medians, and quantiles of the last."""
    if losses.ndim == 1:
        return {'first_loss': float(losses[0]), 'last_loss': float(losses[-1])}
    quantiles = report.loss_quantiles(losses[:, [0, -1]])
    names = [f'{q:g}' for q in report.BANDS]
    return {
        'first_loss': float(quantiles[2, 0]),
        'last_loss': float(quantiles[2, 1]),
        'last_loss_quantiles': dict(zip(names, quantiles[:, 1].tolist(), strict=True)),
    }


# --- the loop --------------------------------------------------------------------------------------


@contextlib.contextmanager
def metrics_file(workdir: Workdir, columns: Sequence[str]) -> Iterator[Callable[[Iterable[Sequence[float]]], None]]:
    """Opens metrics.csv and gives a function that adds rows: a step, then float32 values, written without loss."""
    if workdir.path is None:
        yield lambda rows: None
        return
    path = workdir.file(METRICS)
    with writing(path):
        file = path.open('wb', buffering=0)  # no buffer whose rest would be refused again when it closes
    with file:

        def write(rows):
            lines = [','.join([str(step), *(f'{x:.9g}' for x in values)]) + '\n' for step, *values in rows]
            _write_all(path, file, ''.join(lines))

        _write_all(path, file, ','.join(columns) + '\n')
        yield write


def _write_all(path: Path, file: Any, text: str) -> None:
    rest = text.encode()
    with writing(path):
        while rest:  # a disk that is nearly full takes a part
            rest = rest[file.write(rest) :]


def _divide(mean: Mean) -> np.ndarray:
    return (mean.total / np.maximum(mean.count, 1)).astype(np.float32)


def _diverged(who: str, step: int, value: float, steps: int) -> str:
    return f'the loss{who} became {value} at step {step:,} of {steps:,}: try a smaller --learning_rate'


def run_one(
    task: Task, tx: optax.GradientTransformation, inputs: Arrays, seed: int, *, steps: int, chunk: int, workdir: Workdir
) -> Record:
    """Trains once, with a row of metrics.csv for every step, and gives the trained model's outputs for `inputs`.

    Raises:
      UserError: the loss became NaN or infinite; the rows up to that step are kept.
    """
    chunk = min(chunk, steps)
    start = time.perf_counter()
    programs = train.compile_programs(task, tx, inputs, chunk=chunk)
    compiled = time.perf_counter()
    initial = programs.init(np.uint32(seed))
    losses, done = np.empty(steps, np.float32), 0
    with metrics_file(workdir, ['step', 'loss']) as write, report.progress(steps, 'epoch') as show:
        chunks = train.train(task, tx, initial, steps=steps, chunk=chunk, advance=programs.advance)
        for state, metrics, _ in chunks:
            new = _divide(metrics['loss'])
            bad = np.flatnonzero(~np.isfinite(new))
            new = new[: bad[0] + 1] if bad.size else new
            write(enumerate_rows(done + 1, new))
            losses[done : done + len(new)] = new
            done += len(new)
            if bad.size:
                kept = '' if workdir.path is None else f'; the rows up to there are in {workdir.file(METRICS)}'
                raise UserError(_diverged('', done, new[-1], steps) + kept)
            show(done, f'loss {new[-1]:.4g}')
    outputs = np.asarray(programs.predict(state, inputs))
    seconds = {'compile': compiled - start, 'train': time.perf_counter() - compiled}
    return Record(losses, outputs, state, seconds)


def enumerate_rows(first: int, *columns: np.ndarray) -> Iterator[tuple[float, ...]]:
    """Rows of metrics.csv: the number of the step, counted from 1, and a value of each column."""
    return ((first + i, *values) for i, values in enumerate(zip(*columns, strict=True)))


def run_many(
    task: Task,
    tx: optax.GradientTransformation,
    inputs: Arrays,
    seeds: np.ndarray,
    *,
    steps: int,
    chunk: int,
    workdir: Workdir,
) -> Record:
    """Trains one replica for each of `seeds` [R]; metrics.csv gets the median loss and its bands.

    A replica whose loss is not finite stays in the record as one that failed.

    Raises:
      UserError: the loss of every replica of a group became NaN or infinite.
    """
    chunk, width = min(chunk, steps), sweep.group_width(len(seeds))
    start = time.perf_counter()
    programs = train.compile_programs(task, tx, inputs, chunk=chunk, replicas=width)
    compiled = time.perf_counter()
    losses, outputs, done = np.empty((len(seeds), steps), np.float32), [], 0
    chunks = sweep.sweep(task, tx, seeds, steps=steps, chunk=chunk, width=width, programs=programs)
    with report.progress(len(seeds) * steps, 'seed-epoch') as show:
        for first, step, state, metrics, _ in chunks:
            new = _divide(metrics['loss']).T
            alive = np.isfinite(new).any(axis=0)
            if not alive.all():
                worst = int(np.argmin(alive))
                who = f' of seeds {seeds[first]} to {seeds[first + len(new) - 1]}'
                raise UserError(_diverged(who, step + worst + 1, new[0, worst], steps))
            losses[first : first + len(new), step : step + new.shape[1]] = new
            done += new.size
            show(done, f'median loss {np.median(new[:, -1]):.4g}')
            if step + new.shape[1] == steps:
                outputs.append(np.asarray(programs.predict(state, inputs))[: len(new)])
    seconds = {'compile': compiled - start, 'train': time.perf_counter() - compiled}
    with metrics_file(workdir, ['step', 'loss', *(f'loss_q{q:g}' for q in report.BANDS if q != 0.5)]) as write:
        low, q1, median, q3, high = report.loss_quantiles(losses)
        write(enumerate_rows(1, median, low, q1, q3, high))
    return Record(losses, np.concatenate(outputs), state, seconds)


def write_replicas(workdir: Workdir, **arrays: np.ndarray) -> None:
    """replicas.npz: arrays with a leading axis R."""
    if workdir.path is not None:
        target = workdir.file(REPLICAS)
        with writing(target):
            replace(target, lambda path: np.savez(path, **arrays))


def write_table(workdir: Workdir, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file with a header."""
    if workdir.path is None:
        return
    target = workdir.file(name)

    def write(path):
        with path.open('w', newline='', encoding='utf-8') as file:
            table = csv.writer(file, lineterminator='\n')
            table.writerow(columns)
            table.writerows(rows)

    with writing(target):
        replace(target, write)


def write_picture(workdir: Workdir, figure: Any, name: str = CURVE) -> None:
    if workdir.path is not None:
        target = workdir.file(name)
        with writing(target):
            replace(target, lambda path: figure.savefig(path, dpi=120))
