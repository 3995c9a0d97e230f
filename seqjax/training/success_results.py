"""Results of training until a success criterion is met: evaluations and tests of every seed, and evals.csv."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seqjax import files
from seqjax.runs import result_files
from seqjax.runs.directory import Workdir
from seqjax.tasks.synthetic import SuccessCriterion
from seqjax.types import Mean

TABLE = 'evals.csv'


class SeedResult(NamedTuple):
    """Result of training one seed until a success criterion is met."""

    seed: int
    sequences: int | None  # number of training sequences until the criterion was met; None if it was not
    test: Mapping[str, float]  # metrics on held-out sequences, when the criterion was met or at the end


class SuccessResults(NamedTuple):
    """Results of training R seeds until a success criterion is met."""

    seeds: list[SeedResult]  # one per seed
    metrics: list[str]  # names of the training metrics
    evals: np.ndarray  # [R, evaluations, metrics], means since the previous evaluation; NaN after training ended
    resumed: bool = False  # True if the run was resumed from a checkpoint
    rates: np.ndarray = np.empty(0)  # [evaluations], learning rate of the last step before each evaluation


def to_number(x: np.ndarray | Mean) -> float:
    """Returns a test metric, a scalar or a Mean, as a float; NaN for a Mean with count 0."""
    if not isinstance(x, Mean):
        return float(x)
    return float(np.float32(x.total) / np.float32(x.count)) if x.count > 0 else math.nan


def successful(seeds: Iterable[SeedResult]) -> list[SeedResult]:
    """Returns the seeds that met the success criterion in training."""
    return [seed for seed in seeds if seed.sequences is not None]


def sequences_needed(seeds: Sequence[SeedResult]) -> np.ndarray:
    """Returns the training sequences [R] until each seed met the success criterion; infinity if it did not."""
    return np.array([math.inf if seed.sequences is None else seed.sequences for seed in seeds])


def disagreements(seeds: Sequence[SeedResult], criterion: SuccessCriterion) -> list[SeedResult]:
    """Returns the seeds that met the success criterion in training, but do not meet it on held-out sequences.

    The criterion is a mean over training sequences, of which each is computed before its update. If the loss rises in
    the last updates, the tested parameters are worse than that mean.

    >>> spike, solved = SeedResult(114, 8000, {'wrong': 0.2}), SeedResult(115, 8000, {'wrong': 0.0})
    >>> failed = SeedResult(116, None, {'wrong': 0.9})
    >>> [seed.seed for seed in disagreements([spike, solved, failed], SuccessCriterion())]
    [114]
    """
    # NaN does not meet it.
    return [seed for seed in successful(seeds) if not seed.test[criterion.metric] <= criterion.at_most]


def to_json(seed: SeedResult) -> dict[str, Any]:
    """Returns the result of a seed as a dict with JSON types; a test metric that is not finite becomes None."""
    return seed._asdict() | {'test': {name: x if math.isfinite(x) else None for name, x in seed.test.items()}}


def from_json(entry: Mapping[str, Any]) -> SeedResult:
    """Returns the result of a seed from the dict of `to_json`; None becomes NaN in test metrics."""
    values = {name: math.nan if x is None else float(x) for name, x in entry['test'].items()}
    return SeedResult(int(entry['seed']), None if entry['sequences'] is None else int(entry['sequences']), values)


def to_lines(seeds: Sequence[SeedResult]) -> bytes:
    """Returns the results of seeds as UTF-8 text, one line of JSON per seed."""
    return ''.join(json.dumps(to_json(seed)) + '\n' for seed in seeds).encode()


def parse_lines(lines: bytes) -> list[SeedResult]:
    """Returns the results of seeds from the bytes of `to_lines`."""
    return [from_json(json.loads(line)) for line in lines.decode().splitlines()]


def write_evals(folder: Workdir, results: SuccessResults, sequences: int) -> None:
    """Writes evals.csv: a row per seed and evaluation, with the training sequences so far, metrics and learning rate.

    Args:
      folder: run directory.
      results: results of all seeds.
      sequences: number of training sequences between two evaluations.
    """

    def rows() -> Iterator[list[Any]]:
        for seed, evals in zip(results.seeds, results.evals, strict=True):
            for i, values in enumerate(evals):
                if not np.isnan(values).all():
                    yield [seed.seed, (i + 1) * sequences, *(f'{x:.9g}' for x in values), results.rates[i]]

    columns = ['seed', 'sequences', *results.metrics, 'learning_rate']
    result_files.write_table(folder, TABLE, columns, rows())


def read_results(folder: Workdir, summary: Mapping[str, Any], sequences: int) -> SuccessResults:
    """Returns the results of a finished run from its summary and evals.csv, without learning rates.

    Args:
      folder: run directory.
      summary: content of summary.json.
      sequences: number of training sequences between two evaluations.

    Raises:
      UserError: the summary or evals.csv is invalid, or evals.csv is missing.
    """
    with folder.reading():
        seeds, metrics = [from_json(entry) for entry in summary['seeds']], list(summary['metrics'])
    indices, path = {seed.seed: i for i, seed in enumerate(seeds)}, folder.file(TABLE)
    with files.reading(path), files.open_file(path, 'r', newline='', encoding='utf-8') as lines:
        table = csv.reader(lines)
        columns = ['seed', 'sequences', *metrics]
        end = len(columns)
        if next(table, [])[:end] != columns:
            raise ValueError('its columns differ from the columns of this run')
        rows = [(indices[int(row[0])], int(row[1]) // sequences - 1, list(map(float, row[2:end]))) for row in table]
        evals = np.full((len(seeds), max((row[1] for row in rows), default=-1) + 1, len(metrics)), np.nan, np.float32)
        for index, evaluation, values in rows:
            evals[index, evaluation] = values
        if np.isnan(evals).all((1, 2)).any():
            raise ValueError('a seed of the run has no row')
    return SuccessResults(seeds, metrics, evals)
