"""Tables, conclusion and figure of a run on a dataset."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seqjax.cli import figures
from seqjax.datasets.dataset import Dataset, MetricSpec
from seqjax.reporting import plots, significance, statistics, text_tables
from seqjax.reporting.significance import Improvement
from seqjax.runs import result_files
from seqjax.runs.directory import Workdir
from seqjax.training.fit_results import FitResult
from seqjax.types import Arrays

PREDICTIONS, COMPARED = 'predictions.csv', 'compare.csv'


class CellResult(NamedTuple):
    """Test results of all seeds of a cell, and of the baselines."""

    cell: str
    hidden: int  # units per recurrent layer
    params: int  # number of parameters of the model
    seeds: list[int]  # [R] seeds of the training
    values: np.ndarray  # [R] test metric of each seed
    baselines: Mapping[str, float]  # name of a baseline -> its test metric
    gains: Mapping[str, Improvement]  # name of a baseline -> mean improvement of the seeds over it
    chosen: int  # seed with the lowest validation loss, used for predictions
    summary_lines: Sequence[str]  # text about the test predictions of that seed, such as a confusion matrix
    baseline: str | None = None  # name of the baseline that is best on validation; None in results of earlier versions
    num_items: int | None = None  # number of items of the test split; None in results of earlier versions


def to_json(result: CellResult) -> dict[str, Any]:
    """Returns a result as a dictionary of JSON values; an infinite half width becomes null."""
    gains = {
        name: [gain.mean, gain.half_width if math.isfinite(gain.half_width) else None]
        for name, gain in result.gains.items()
    }
    return result._asdict() | {'values': result.values.tolist(), 'gains': gains}


def from_json(values: Mapping[str, Any]) -> CellResult:
    """Returns the result that `to_json` turned into JSON values, in this or an earlier version."""
    values = {'summary_lines' if name == 'tell' else name: value for name, value in values.items()}  # earlier versions
    gains = {
        name: Improvement(mean, math.inf if half is None else half) for name, (mean, half) in values['gains'].items()
    }
    return CellResult(**{**values, 'values': np.array(values['values'], float), 'gains': gains})


def table_lines(metric: MetricSpec, results: Sequence[CellResult]) -> list[str]:
    """Returns the lines of a text table: for each cell, parameters and mean test metric with CI; then the baselines."""
    seeds, unit = len(results[0].values), f' ({metric.unit})' if metric.unit else ''
    width = max(28, *(len(name) + 2 for name in (*map(_title, results), *results[0].baselines)))
    lines = [f'Test split: mean of {seeds} seed{"s" if seeds > 1 else ""} with 95% CI\n']
    lines.append(f'{"":<{width}}{"parameters":>12}{metric.name + unit:>30}')
    for result in results:
        value = _mean_text(metric, result)
        lines.append(f'{_title(result):<{width}}{result.params:>12,}{value:>30}')
    baselines = results[0].baselines.items()
    lines += [f'{name:<{width}}{"":>12}{value:>30{metric.format_spec}}' for name, value in baselines]
    return lines


def _is_share(metric: MetricSpec) -> bool:
    """Returns True if a metric is a share of the items, from 0 to 1, which is printed in percent."""
    return metric.format_spec.endswith('%')


def _mean_text(metric: MetricSpec, result: CellResult) -> str:
    """Returns the mean test metric over seeds as text with its 95% CI; of a share, with the items' sampling error."""
    if not _is_share(metric):
        return text_tables.format_interval(result.values, metric.format_spec, metric.format_spec)
    interval = statistics.bounded_mean_interval(result.values, items=result.num_items)
    return text_tables.format_bounded(interval, metric.format_spec)


def difference_lines(metric: MetricSpec, results: Sequence[CellResult]) -> list[str]:
    """Returns text lines: test metric of each other cell minus the first cell's, paired by seed; [] for one cell."""
    first, lines = results[0], []
    for result in results[1:]:
        difference, spec = result.values - first.values, '+' + metric.format_spec
        if _is_share(metric):
            interval = statistics.share_difference_interval(result.values, first.values, items=result.num_items)
            is_significant, text = statistics.excludes_zero(interval), text_tables.format_bounded(interval, spec)
        else:
            mean, half = statistics.mean_interval(difference)
            is_significant = abs(mean) > half
            text = text_tables.format_interval(difference, spec, metric.format_spec)
        note = '' if is_significant else '   (not statistically significant)'
        lines.append(f'{result.cell} - {first.cell:<20}{metric.name} {text}{note}')
    sign = 'positive' if metric.higher_is_better else 'negative'
    return [f'Differences A - B over the same seeds ({sign}: A is better than B)', *lines] if lines else []


def _title(result: CellResult) -> str:
    """Returns the cell and its units per layer as text, such as lstm(32)."""
    return f'{result.cell}({result.hidden})'


def conclusion(metric: MetricSpec, result: CellResult) -> str:
    """Returns the last line of the output: the model against the baseline that is best on validation, by test metric.

    If another baseline is the best on the test split, and the model is not significantly better than that one, the line
    names it as well.
    """
    best = significance.best_name(metric, result.baselines)
    baseline = result.baseline or best
    line = significance.verdict(metric, result.gains[baseline], _title(result), baseline)
    gain = result.gains[best]
    if best != baseline and not (gain.significant and gain.mean > 0):
        value = f'{result.baselines[best]:{metric.format_spec}}'
        line += f'; {baseline} is the best baseline on validation, but {best} is better on the test split ({value})'
    return line + '.'


def write_compared(folder: Workdir, results: Sequence[CellResult], metric: MetricSpec) -> None:
    """Writes compare.csv: a row with the test metric for each seed of each cell, and for each baseline."""
    rows = [
        [result.cell, result.hidden, result.params, seed, value]
        for result in results
        for seed, value in zip(result.seeds, result.values.tolist(), strict=True)
    ]
    rows += [[name, '', '', '', value] for name, value in results[0].baselines.items()]
    result_files.write_table(folder, COMPARED, ['model', 'hidden', 'params', 'seed', metric.name], rows)


def plot(folder: Workdir, dataset: Dataset, fit: FitResult, result: CellResult, answers: Arrays) -> None:
    """Writes curve.png: losses of all seeds, test metrics of seeds and baselines, and `answers` (test predictions)."""

    def draw(axes: Any) -> None:
        _draw_losses(axes[0], fit)
        _draw_values(axes[1], dataset.metric, result)
        if dataset.figure_data is not None:
            plots.draw_test(axes[2], dataset.figure_data(answers))

    columns = 2 + (dataset.figure_data is not None)
    figures.write_figure(folder, columns, f'{dataset.name}: {_title(result)}', draw)


def _draw_losses(axis: Any, fit: FitResult) -> None:
    """Draws the training and validation losses of all seeds at each evaluation."""
    for name, style, color in (('loss', '--', plots.GREY), ('validation/loss', '-', plots.BLUE)):
        for i, curve in enumerate(fit.evals[:, :, fit.metrics.index(name)]):
            label = {'loss': 'training'}.get(name, 'validation') if i == 0 else None
            axis.plot(np.arange(1, len(curve) + 1), curve, style, color=color, lw=0.8, label=label)
    axis.set(xlabel='evaluation', ylabel='loss of each seed')
    plots.add_legend(axis)


def _draw_values(axis: Any, metric: MetricSpec, result: CellResult) -> None:
    """Draws the test metric: a point for each seed and a line for each baseline."""
    axis.plot(
        np.zeros(len(result.values)),
        result.values,
        'o',
        color=plots.BLUE,
        alpha=0.6,
        label=f'{_title(result)}, each seed',
    )
    for i, (name, value) in enumerate(result.baselines.items()):
        axis.axhline(value, color=plots.GREY, lw=1, ls=('-', '--', ':', '-.')[i % 4], label=name)
    unit = f', {metric.unit}' if metric.unit else ''
    axis.set(xticks=[], ylabel=f'test {metric.name}{unit}', xlim=(-1, 1))
    plots.add_legend(axis)
