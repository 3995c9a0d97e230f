"""Figures of losses and predictions, drawn with Matplotlib."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from seqjax.datasets.dataset import ConfusionMatrix, ForecastCurve
from seqjax.reporting import statistics

BLUE, ORANGE, GREY = '#2563a8', '#d1601f', '#555555'
MAX_CLASS_LABELS = 20  # a confusion matrix of more classes is drawn without their names
NO_MATPLOTLIB = 'no figure: matplotlib is not installed; run pip install "seqjax[plots]", or use --noplot'


def curve_color(x: float) -> Any:
    """Returns the RGBA color of position `x` in a sequence of curves, from 0 (dark) to 1 (light)."""
    from matplotlib import colormaps

    return colormaps['viridis'](0.9 * x)


def new_figure(columns: int, title: str, width: float = 5.6) -> tuple[Any, Any]:
    """Returns a figure and its axes [columns], side by side; Matplotlib's global state is not changed.

    Args:
      columns: number of axes.
      title: title of the figure.
      width: width of each of the axes in inches.

    Raises:
      ImportError: Matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = width * columns, 4.6
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    # Fixed margins in inches: matplotlib's automatic layout draws everything three times.
    figure.subplots_adjust(0.75 / width, 0.6 / height, 1 - 0.3 / width, 1 - 0.9 / height, wspace=0.18)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(True, alpha=0.25)
        axis.spines[['top', 'right']].set_visible(False)
    return figure, axes


def add_legend(axis: Any, title: str = '') -> None:
    """Adds a legend, with an optional title, above the axes; does nothing if there are no labels and no title."""
    labels = axis.get_legend_handles_labels()[1]
    if labels or title:
        axis.legend(
            loc='lower left',
            bbox_to_anchor=(0, 1),
            ncols=3,
            frameon=False,
            fontsize=8.5,
            borderaxespad=0.2,
            handlelength=1.8,
            columnspacing=1.2,
            title=title or None,
            alignment='left',
        )


def draw_loss(axis: Any, losses: np.ndarray, *, unit: str = 'epoch', ylabel: str = 'mean squared error') -> None:
    """Draws losses [steps], or the median and the 50% and 95% bands of losses [R, steps], on a log axis.

    The axis is linear if no loss is positive. `unit` is the label of the x axis.
    """
    steps = np.arange(1, losses.shape[-1] + 1)
    if losses.ndim == 1:
        axis.plot(steps, losses, color=BLUE, label='this run')
    else:
        low, q1, median, q3, high = statistics.loss_quantiles(losses)
        axis.fill_between(steps, low, high, color=BLUE, alpha=0.15, lw=0, label=f'95% of {len(losses):,} seeds')
        axis.fill_between(steps, q1, q3, color=BLUE, alpha=0.35, lw=0, label='50% of seeds')
        axis.plot(steps, median, color=BLUE, label='median')
    scale = 'log' if (losses > 0).any() else 'linear'  # for the sequence 0.0, all losses are 0
    axis.set(xlabel=unit, ylabel=ylabel, yscale=scale)
    add_legend(axis)


LINE_STYLES = ('-', '--', ':', '-.')
HATCHES = ('', '////', '....', '\\\\\\\\')


def draw_band(axis: Any, steps: Sequence[int], curve: np.ndarray, index: int, count: int, label: str) -> None:
    """Draws a line with a band; lines of different `index` differ in color, line style and hatching.

    Args:
      axis: Matplotlib axes.
      steps: x values [steps].
      curve: [steps, 3]: lower edge of the band, line, upper edge; values that are not finite are not drawn.
      index: number of this line, from 0.
      count: number of lines.
      label: name of the line in the legend.
    """
    low, middle, high = np.where(np.isfinite(curve), curve, np.nan).T
    color, style = curve_color(index / max(count - 1, 1)), LINE_STYLES[index % len(LINE_STYLES)]
    hatch = HATCHES[index % len(HATCHES)]
    axis.fill_between(steps, low, high, facecolor=(*color[:3], 0.15), edgecolor=(*color[:3], 0.5), hatch=hatch, lw=0.6)
    axis.plot(steps, middle, style, color=color, label=label, lw=2)


def draw_predictions(axis: Any, targets: np.ndarray, predictions: np.ndarray) -> None:
    """Draws targets [T], and predictions [T] or the median and the 50% and 95% bands of predictions [R, T]."""
    steps = np.arange(len(targets))
    axis.bar(steps, 0.1, 0.5, targets - 0.05, color=ORANGE, alpha=0.25, label='correct to one decimal')
    axis.hlines(targets, steps - 0.25, steps + 0.25, color=ORANGE, label='target')
    if predictions.ndim == 1:
        axis.plot(steps, predictions, 'o', color=BLUE, markersize=5, label='prediction')
    else:
        low, q1, median, q3, high = np.nanquantile(predictions, statistics.BANDS, axis=0)
        axis.vlines(steps, low, high, color=BLUE, alpha=0.5, lw=2, label='95% of seeds')
        axis.vlines(steps, q1, q3, color=BLUE, lw=5, label='50% of seeds')
        axis.plot(steps, median, 'o', color='white', mec=BLUE, markersize=5, label='median prediction')
    axis.set(xlabel='time step', ylabel='value', xticks=steps if len(steps) <= 20 else [])
    add_legend(axis)


def draw_test(axis: Any, data: ConfusionMatrix | ForecastCurve) -> None:
    """Draws test predictions: a confusion matrix, or actual values and forecasts, with their 90% interval if known."""
    if isinstance(data, ConfusionMatrix):
        _draw_confusion(axis, data)
    else:
        _draw_forecast(axis, data)


def _draw_confusion(axis: Any, data: ConfusionMatrix) -> None:
    counts, classes = data
    axis.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap='Blues', vmin=0, vmax=1)
    axis.set(xlabel='predicted class', ylabel='true class')
    add_legend(axis, 'fraction of each true class')
    if len(classes) <= MAX_CLASS_LABELS:
        axis.set(xticks=range(len(classes)), yticks=range(len(classes)), yticklabels=classes)
        axis.set_xticklabels(classes, rotation='vertical')


def _draw_forecast(axis: Any, data: ForecastCurve) -> None:
    axis.plot(data.times, data.actual, color='black', lw=1, label=data.name)
    axis.plot(data.times, data.forecasts, lw=1, ls='--', color=BLUE, label='forecast one step ahead')
    if data.band is not None:
        axis.fill_between(data.times, *data.band, color=BLUE, alpha=0.2, lw=0, label='90% interval')
    axis.set(xlabel='test split', ylabel=data.name)
    add_legend(axis)
