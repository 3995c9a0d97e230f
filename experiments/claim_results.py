"""Results of a claim: a row of the table in docs/results.md, from the summary of a finished run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seqjax.cli import lengths, task_registry, task_report
from seqjax.cli.settings import Settings
from seqjax.reporting import statistics, text_tables
from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SuccessCriterion
from seqjax.training import success_results
from seqjax.training.success_results import SeedResult


class ClaimRun(NamedTuple):
    """Finished run of a claim."""

    seeds: list[SeedResult]
    flags: Mapping[str, Any]  # flags of the run
    criterion: SuccessCriterion
    num_held_out: int  # number of test sequences of a seed

    @property
    def max_sequences(self) -> int:
        """Maximal number of training sequences of a seed."""
        return self.flags['steps'] * self.flags['batch_size']

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> ClaimRun:
        """Returns the run with this content of summary.json."""
        seeds, flags = [success_results.from_json(entry) for entry in summary['seeds']], summary['flags']
        experiment, settings = task_registry.find(summary['experiment']), Settings.of(flags)
        task = experiment.synthetic_task(flags)
        criterion = task_report.success_criterion(task, settings)
        return cls(seeds, flags, criterion, task_report.num_held_out(task, settings))


class ClaimRow(NamedTuple):
    """A row of the table of claims."""

    claim: str
    published: str
    ours: str  # result with its 95% confidence interval over seeds
    seeds: str  # first and last seed
    failed: str  # number of seeds that did not meet the success criterion
    criterion_not_test: str  # number of seeds that met the criterion in training but not on test sequences
    parameters: str
    sequences: str  # maximal number of training sequences of a seed
    minutes: str  # time of the run; `interrupted` if it was resumed
    device: str
    command: str
    search_log: str  # link to the CSV file of the settings that were tried; empty if there is none
    flagfile: str


# --- measures --------------------------------------------------------------------------------------


def _sequences(run: ClaimRun) -> str:
    """Returns text with the median of training sequences over all seeds, their mean, and the error rate on the test.

    A failed seed is above the maximal number of sequences; the mean counts it as the maximum.
    """
    needed = success_results.sequences_needed(run.seeds)
    median, limit = statistics.censored_median(needed), run.max_sequences
    mean = f'mean {"over " if median.failures else ""}{np.minimum(needed, limit).mean():,.0f}'
    wrong = np.array([seed.test[synthetic.WRONG] for seed in run.seeds])
    error_rate = text_tables.format_bounded(statistics.bounded_mean_interval(wrong, items=run.num_held_out), '.2%')
    return f'sequences: median {text_tables.format_censored(median, limit)}, {mean}; {error_rate} wrong'


def _loss(run: ClaimRun) -> str:
    return f'loss {text_tables.format_interval(np.array([seed.test["loss"] for seed in run.seeds]))}'


def _excess(run: ClaimRun) -> str:
    """Returns text with the mean of excess loss / entropy floor, where the floor is loss - excess loss."""
    ratios = [seed.test['excess'] / (seed.test['loss'] - seed.test['excess']) for seed in run.seeds]
    return f'{text_tables.format_interval(np.array(ratios), ".2%", ".2%")} above the floor'


def _exact(run: ClaimRun) -> str:
    accuracies = 1 - np.array([seed.test[synthetic.WRONG] for seed in run.seeds])
    interval = statistics.bounded_mean_interval(accuracies, items=run.num_held_out)
    return f'{text_tables.format_bounded(interval, ".2%")} correct'


def _lengths(run: ClaimRun) -> str:
    """Returns text with the mean and best accuracy at all lengths beyond training, see `seqjax.cli.lengths`."""
    tested, accuracies = lengths.curves(run.seeds, lengths.BEYOND)
    items = len(tested) * run.flags['sequences_per_length']
    mean = text_tables.format_bounded(statistics.bounded_mean_interval(accuracies.mean(1), items=items), '.1%')
    solved, count = lengths.count_solved(accuracies), len(run.seeds)
    low, high = statistics.wilson_interval(solved, count)
    return (
        f'mean {mean}, best {accuracies.mean(1).max():.1%}; {solved} of {count} ({low:.1%} to {high:.1%}) '
        f'at {lengths.SOLVED:.0%}'
    )


MEASURES: dict[str, Callable[[ClaimRun], str]] = {
    'sequences': _sequences,
    'loss': _loss,
    'excess': _excess,
    'exact': _exact,
    'lengths': _lengths,
}


def held_out_metrics(seed: SeedResult) -> dict[str, float]:
    """Returns the test metrics of a seed; the mean error rates within and beyond the training lengths for `lengths`.

    The error rate within the training lengths is also the metric `wrong`, which the success criterion needs.
    """
    if all('/' not in name for name in seed.test):
        return dict(seed.test)
    within, beyond = (1 - lengths.curves([seed], part)[1].mean() for part in (lengths.WITHIN, lengths.BEYOND))
    return {synthetic.WRONG: float(within), f'{synthetic.WRONG}_{lengths.BEYOND}': float(beyond)}


def disagreements(run: ClaimRun) -> str:
    """Returns text with the number of seeds that met the criterion but not on the test, and their largest value."""
    seeds = [seed._replace(test=held_out_metrics(seed)) for seed in run.seeds]
    return task_report.disagreement_text(seeds, run.criterion, ',')


# --- the table -------------------------------------------------------------------------------------


def row_of(claim: Any, summary: Mapping[str, Any], search_log: str) -> ClaimRow:
    """Returns the row of the table for a claim, from the summary of its finished run; see `ClaimRow.search_log`."""
    run, seconds = ClaimRun.of(summary), summary['seconds']
    failed = len(run.seeds) - len(success_results.successful(run.seeds))
    return ClaimRow(
        claim=claim.claim,
        published=claim.published,
        ours=MEASURES[claim.measure](run),
        seeds=f'{run.seeds[0].seed} to {run.seeds[-1].seed}',
        failed=f'{failed} of {len(run.seeds)}',
        criterion_not_test=disagreements(run),
        parameters=f'{summary["params"]:,}',
        sequences=f'at most {run.max_sequences:,}' if claim.measure == 'sequences' else f'{run.max_sequences:,}',
        minutes='interrupted' if seconds is None else f'{seconds / 60:.1f}',
        device=summary['device'],
        command=claim.command,
        search_log=search_log,
        flagfile=claim.name,
    )


def _table(heading: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    yield f'| {" | ".join(heading)} |'
    yield f'|{"---|" * len(heading)}'
    for row in rows:
        yield f'| {" | ".join(row)} |'


def markdown(rows: Sequence[ClaimRow]) -> Iterator[str]:
    """Yields the lines of two Markdown tables with a row for each claim, as in docs/results.md: results, and runs."""
    heading = ('claim', 'published', 'seqjax, with 95% CI', 'seeds', 'failed', 'criterion met, but not on the test')
    yield from _table(heading, ((f'{row.claim} (`{row.flagfile}`)', *row[1:6]) for row in rows))
    yield ''
    heading = ('flagfile', 'parameters', 'sequences per seed', 'minutes', 'device', 'command', 'search log')
    yield from _table(
        heading,
        (
            (f'`{row.flagfile}`', row.parameters, row.sequences, row.minutes, row.device, f'`{row.command}`', row[11])
            for row in rows
        ),
    )


def sources(claims: Sequence[Any]) -> Iterator[str]:
    """Yields the lines of a Markdown table of the sources' and our settings; claims with the same ones share a row."""
    groups: dict[tuple[str, str], list[str]] = {}
    for claim in claims:
        groups.setdefault((claim.source, claim.ours), []).append(f'`{claim.name}`')
    yield from _table(('flagfile', 'source', 'ours'), ((', '.join(names), *texts) for texts, names in groups.items()))
