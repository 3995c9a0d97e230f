"""Tables, conclusion and figure of a run on a dataset."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seqjax.cli.settings import Settings
from seqjax.datasets.dataset import Dataset, Measure
from seqjax.reporting import plots, significance, statistics, text_tables
from seqjax.reporting.significance import Improvement
from seqjax.runs import result_files
from seqjax.runs.directory import Workdir
from seqjax.training.fit_results import FitResult
from seqjax.types import Arrays

PREDICTIONS, COMPARED = 'predictions.csv', 'compare.csv'


class CellResult(NamedTuple):
    """What a cell has made of the test part."""

    cell: str
    hidden: int
    params: int
    seeds: list[int]
    values: np.ndarray  # [R] of the measure
    baselines: Mapping[str, float]  # values by name
    gains: Mapping[str, Improvement]  # over each baseline
    chosen: int  # the seed that is best on validation, which a prediction uses
    tell: Sequence[str]  # lines of the kind, about that seed
    baseline: str | None = None  # the one that is best on validation; None in results of earlier versions


def plain(result: CellResult) -> dict[str, Any]:
    """As JSON has it."""
    gains = {
        name: [gain.mean, gain.half_width if math.isfinite(gain.half_width) else None]
        for name, gain in result.gains.items()
    }
    return result._asdict() | {'values': result.values.tolist(), 'gains': gains}


def result_of(held: Mapping[str, Any]) -> CellResult:
    """What `plain` gave."""
    gains = {
        name: Improvement(mean, math.inf if half is None else half) for name, (mean, half) in held['gains'].items()
    }
    return CellResult(**{**held, 'values': np.array(held['values'], float), 'gains': gains})


def table_lines(measure: Measure, results: Sequence[CellResult]) -> list[str]:
    """A row for each cell and each baseline."""
    seeds, unit = len(results[0].values), f' ({measure.unit})' if measure.unit else ''
    lines = [f'on the test part; mean of {seeds} seed{"s" if seeds > 1 else ""}, and its 95% interval\n']
    lines.append(f'{"":<28}{"parameters":>12}{measure.name + unit:>30}')
    for result in results:
        value = text_tables.format_interval(result.values, measure.spec, measure.spec)
        lines.append(f'{_who(result):<28}{result.params:>12,}{value:>30}')
    lines += [f'{name:<28}{"":>12}{value:>30{measure.spec}}' for name, value in results[0].baselines.items()]
    return lines


def difference_lines(measure: Measure, results: Sequence[CellResult]) -> list[str]:
    """Each cell against the first one, seed by seed."""
    first, lines = results[0], []
    for result in results[1:]:
        difference = result.values - first.values
        mean, half = statistics.mean_interval(difference)
        clear = '' if abs(mean) > half else '   (no clear difference)'
        words = text_tables.format_interval(difference, '+' + measure.spec, measure.spec)
        lines.append(f'{result.cell} - {first.cell:<20}{measure.name} {words}{clear}')
    better = 'above' if measure.higher else 'below'
    return [f'differences over the same seeds: {better} 0, the first of the two is better', *lines] if lines else []


def _who(result: CellResult) -> str:
    return f'{result.cell}({result.hidden})'


def conclusion(measure: Measure, result: CellResult) -> str:
    """The last line: whether the model beats the baseline that is best on validation, by how much, how sure that is.

    Where another baseline is better on the test part, and the model does not clearly beat that one, the line says so.
    """
    best = significance.best_name(measure, result.baselines)
    whom = result.baseline or best
    line = significance.verdict(measure, result.gains[whom], _who(result), whom)
    gain = result.gains[best]
    if best != whom and not (gain.significant and gain.mean > 0):
        value = f'{result.baselines[best]:{measure.spec}}'
        line += f'; {whom} is the best baseline on validation, but on the test part {best} is better ({value})'
    return line + '.'


def write_compared(folder: Workdir, results: Sequence[CellResult], measure: Measure) -> None:
    """compare.csv: a row for each seed of each cell, and one for each baseline."""
    rows = [
        [result.cell, result.hidden, result.params, seed, value]
        for result in results
        for seed, value in zip(result.seeds, result.values.tolist(), strict=True)
    ]
    rows += [[name, '', '', '', value] for name, value in results[0].baselines.items()]
    result_files.write_table(folder, COMPARED, ['model', 'hidden', 'params', 'seed', measure.name], rows)


def picture(
    folder: Workdir, dataset: Dataset, found: FitResult, result: CellResult, answers: Arrays, settings: Settings
) -> None:
    """What each seed makes of training and validation, what the test says, and what the kind shows of it."""
    try:
        count = 2 + (dataset.figure_data is not None)
        figure, axes = plots.new_figure(count, f'{dataset.name}: {_who(result)}')
    except ImportError:
        print('\n' + plots.NO_MATPLOTLIB)
        return
    _draw_looks(axes[0], found)
    _draw_values(axes[1], dataset.measure, result)
    if dataset.figure_data is not None:
        plots.draw_test(axes[2], dataset.figure_data(answers))
    result_files.write_figure(folder, figure)


def _draw_looks(axis: Any, found: FitResult) -> None:
    for name, style, color in (('loss', '--', plots.GREY), ('validation/loss', '-', plots.BLUE)):
        for i, curve in enumerate(found.evals[:, :, found.metrics.index(name)]):
            label = {'loss': 'training'}.get(name, 'validation') if i == 0 else None
            axis.plot(np.arange(1, len(curve) + 1), curve, style, color=color, lw=0.8, label=label)
    axis.set(xlabel='evaluation', ylabel='loss of each seed')
    plots.add_legend(axis)


def _draw_values(axis: Any, measure: Measure, result: CellResult) -> None:
    """A point for each seed, a line for each baseline."""
    axis.plot(
        np.zeros(len(result.values)),
        result.values,
        'o',
        color=plots.BLUE,
        alpha=0.6,
        label=f'{_who(result)}, each seed',
    )
    for i, (name, value) in enumerate(result.baselines.items()):
        axis.axhline(value, color=plots.GREY, lw=1, ls=('-', '--', ':', '-.')[i % 4], label=name)
    unit = f', {measure.unit}' if measure.unit else ''
    axis.set(xticks=[], ylabel=f'test {measure.name}{unit}', xlim=(-1, 1))
    plots.add_legend(axis)
