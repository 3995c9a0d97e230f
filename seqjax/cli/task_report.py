"""Conclusion and figure of a run on a synthetic task."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from seqjax.cli import task_setup
from seqjax.cli.settings import Settings
from seqjax.reporting import plots, statistics, text_tables
from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SuccessCriterion, SyntheticTask
from seqjax.training import success_results
from seqjax.training.success_results import SeedResult, SuccessResults


def success_criterion(task: SyntheticTask, settings: Settings) -> SuccessCriterion:
    """Returns the success criterion of a task; --success_threshold replaces the largest value allowed, if it is set."""
    return (
        task.success
        if settings.train.success_threshold is None
        else task.success._replace(at_most=settings.train.success_threshold)
    )


def criterion_text(criterion: SuccessCriterion) -> str:
    """Returns a success criterion as text, such as `no error` or `loss of at most 0.1`."""
    if criterion.metric == synthetic.WRONG:
        return f'error rate of at most {criterion.at_most:.4g}' if criterion.at_most > 0 else 'no error'
    return f'{criterion.metric} of at most {criterion.at_most:.4g}'


def success_summary(task: SyntheticTask, outcome: SuccessResults, settings: Settings) -> str:
    """Returns a sentence: number of successful seeds, success criterion, and training sequences that they needed.

    If a seed failed, the sentence has the median over all seeds, because the mean over the others would be too low.
    """
    sequences, count = [seed.sequences for seed in success_results.successful(outcome.seeds)], len(outcome.seeds)
    low, high = statistics.wilson_interval(len(sequences), count)
    train = settings.train
    window, maximum = train.eval_every * train.batch_size, train.steps * train.batch_size
    text = (
        f'{len(sequences):,} of {count:,} seeds ({len(sequences) / count:.1%}, 95% CI {low:.1%} to {high:.1%}) '
        f'succeeded within {maximum:,} sequences ({criterion_text(success_criterion(task, settings))} '
        f'over {window:,} sequences)'
    )
    if not sequences:
        return text
    text += f', after {min(sequences):,} to {max(sequences):,}'
    if len(sequences) < count:
        median = statistics.censored_median(success_results.sequences_needed(outcome.seeds))
        return f'{text}; median over all seeds {text_tables.format_censored(median, maximum)}'
    return f'{text} (mean {text_tables.format_interval(np.array(sequences, float), ",.0f", ",.0f")})'


def disagreement_text(seeds: Sequence[SeedResult], criterion: SuccessCriterion, phrase: str = '') -> str:
    """Returns text: number of the successful seeds whose test does not meet the criterion, and their largest value.

    `phrase` follows the numbers. The value is left out if all tests meet the criterion.

    >>> spike, solved = SeedResult(114, 8000, {'wrong': 0.2}), SeedResult(115, 8000, {'wrong': 0.0})
    >>> disagreement_text([spike, solved], SuccessCriterion(), ' seeds fail:')
    '1 of 2 seeds fail: wrong up to 20.00%'
    """
    values = [seed.test[criterion.metric] for seed in success_results.disagreements(seeds, criterion)]
    text = f'{len(values)} of {len(success_results.successful(seeds))}'
    if not values:
        return text
    spec = '.2%' if criterion.metric == synthetic.WRONG else '.4g'
    return f'{text}{phrase} {criterion.metric} up to {max(values):{spec}}'


def num_held_out(task: SyntheticTask, settings: Settings) -> int:
    """Returns the number of held-out sequences, of validation or test, on which a run is tested."""
    if task.examples is None:
        return task_setup.NUM_EVAL_SEQUENCES
    return len(task_setup.held_out_batch(task, settings.train.split).mask)


def error_rate_text(task: SyntheticTask, outcome: SuccessResults, settings: Settings) -> str:
    """Returns a sentence: mean error rate of the successful seeds, or of all if none is, on held-out sequences."""
    successful = success_results.successful(outcome.seeds)
    wrong = np.array([seed.test[synthetic.WRONG] for seed in (successful or outcome.seeds)])
    which, count = 'successful seeds' if successful else 'all seeds', num_held_out(task, settings)
    sequences = 'held-out examples' if task.examples is not None else 'new sequences'
    interval = text_tables.format_bounded(statistics.bounded_mean_interval(wrong, items=count), '.2%')
    return f'Mean error rate of {which} on {count:,} {sequences} ({settings.train.split}): {interval}.'


def metric_label(metric: str) -> str:
    """Returns the axis label of a metric: `fraction of wrong answers` for WRONG, and else the name of the metric."""
    return 'fraction of wrong answers' if metric == synthetic.WRONG else metric


def draw_metric(axis: Any, task: SyntheticTask, outcome: SuccessResults, settings: Settings) -> None:
    """Draws the metric of the success criterion against training sequences, a line for each seed.

    If the metric is the loss, reference losses are horizontal lines.
    """
    criterion, window = success_criterion(task, settings), settings.train.eval_every * settings.train.batch_size
    curves = outcome.evals[:, :, outcome.metrics.index(criterion.metric)]
    sequences = window * np.arange(1, curves.shape[1] + 1)
    for i, curve in enumerate(curves):
        axis.plot(sequences, curve, color=plots.curve_color(i / max(len(curves) - 1, 1)), lw=0.8)
    axis.set(xlabel='training sequences', ylabel=f'{metric_label(criterion.metric)}, each seed')
    if criterion.metric == 'loss':
        for name, value in task.reference_losses.items():
            axis.axhline(value, color=plots.GREY, lw=1, ls=':')
            axis.annotate(name, (sequences[-1], value), fontsize=8, ha='right', va='bottom', color=plots.GREY)


def draw_success(axis: Any, outcome: SuccessResults, settings: Settings) -> None:
    """Draws the fraction of successful seeds against training sequences."""
    end = settings.train.eval_every * settings.train.batch_size * outcome.evals.shape[1]
    sequences = sorted(seed.sequences for seed in success_results.successful(outcome.seeds))
    fractions = np.arange(len(sequences) + 1) / len(outcome.seeds)
    axis.step([0, *sequences, end], [*fractions, fractions[-1]], where='post', color=plots.BLUE)
    axis.set(xlabel='training sequences', ylabel='fraction of successful seeds', ylim=(0, 1.02))
