"""Conclusion and figure of a run on a synthetic task."""

from typing import Any

import numpy as np

from seqjax.cli.settings import Settings
from seqjax.reporting import plots, statistics, text_tables
from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SuccessCriterion, SyntheticTask
from seqjax.training.success_results import SuccessResults


def goal_of(problem: SyntheticTask, settings: Settings) -> SuccessCriterion:
    return (
        problem.success
        if settings.train.success_threshold is None
        else problem.success._replace(at_most=settings.train.success_threshold)
    )


def goal_words(goal: SuccessCriterion) -> str:
    if goal.metric == synthetic.WRONG:
        share = f'at least {1 - goal.at_most:.4g} of them' if goal.at_most > 0 else 'every sequence'
        return f'answer {share} rightly'
    return f'bring {goal.metric} to at most {goal.at_most:.4g}'


def to_the_goal(problem: SyntheticTask, outcome: SuccessResults, settings: Settings) -> str:
    """How many seeds came to it, and after how many sequences."""
    needed, count = [seed.sequences for seed in outcome.seeds if seed.sequences is not None], len(outcome.seeds)
    low, high = statistics.wilson_interval(len(needed), count)
    window, most = (
        settings.train.eval_every * settings.train.batch_size,
        settings.train.steps * settings.train.batch_size,
    )
    text = (
        f'{len(needed):,} of {count:,} seeds ({len(needed) / count:.1%}; 95% interval {low:.1%} to {high:.1%}) '
        f'{goal_words(goal_of(problem, settings))} of the last {window:,} within {most:,}'
    )
    if needed:
        mean = text_tables.format_interval(np.array(needed, float), ',.0f', ',.0f')
        text += f', after {min(needed):,} to {max(needed):,} (mean {mean})'
    return text


def draw_seeds(axis: Any, problem: SyntheticTask, outcome: SuccessResults, settings: Settings) -> None:
    """The metric of the goal, a line for each seed."""
    goal, window = goal_of(problem, settings), settings.train.eval_every * settings.train.batch_size
    curves = outcome.evals[:, :, outcome.metrics.index(goal.metric)]
    sequences = window * np.arange(1, curves.shape[1] + 1)
    for i, curve in enumerate(curves):
        axis.plot(sequences, curve, color=plots.curve_color(i / max(len(curves) - 1, 1)), lw=0.8)
    what = 'fraction of wrong answers' if goal.metric == synthetic.WRONG else goal.metric
    axis.set(xlabel='training sequences', ylabel=f'{what}, each seed')
    if goal.metric == 'loss':
        for name, value in problem.reference_losses.items():
            axis.axhline(value, color=plots.GREY, lw=1, ls=':')
            axis.annotate(name, (sequences[-1], value), fontsize=8, ha='right', va='bottom', color=plots.GREY)


def draw_shares(axis: Any, outcome: SuccessResults, settings: Settings) -> None:
    """The share of seeds at the goal."""
    end = settings.train.eval_every * settings.train.batch_size * outcome.evals.shape[1]
    needed = sorted(seed.sequences for seed in outcome.seeds if seed.sequences is not None)
    shares = np.arange(len(needed) + 1) / len(outcome.seeds)
    axis.step([0, *needed, end], [*shares, shares[-1]], where='post', color=plots.BLUE)
    axis.set(xlabel='training sequences', ylabel='fraction of successful seeds', ylim=(0, 1.02))
