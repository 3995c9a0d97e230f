"""Figures of losses and predictions, drawn with Matplotlib."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from seqjax.datasets.dataset import ConfusionMatrix, ForecastCurve
from seqjax.reporting import statistics

BLUE, ORANGE, GREY = '#2563a8', '#d1601f', '#555555'
MAX_CLASS_LABELS = 20  # beyond, a confusion matrix has no names of classes
NO_PICTURE = 'no picture: matplotlib is missing; pip install "seqjax[plots]", or --nopicture'


def shade(x: float) -> Any:
    """A colour for a place from 0 to 1 in an order."""
    from matplotlib import colormaps

    return colormaps['viridis'](0.9 * x)


def new_figure(columns: int, title: str, width: float = 5.6) -> tuple[Any, Any]:
    """A figure with `columns` pairs of axes, each `width` inches wide, free of matplotlib's global state.

    Raises:
      ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = width * columns, 4.2
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    # Margins by hand, in inches: matplotlib's own layout draws everything three times.
    figure.subplots_adjust(0.75 / width, 0.6 / height, 1 - 0.15 / width, 1 - 0.45 / height, wspace=0.18)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(True, alpha=0.25)
        axis.spines[['top', 'right']].set_visible(False)
    return figure, axes


def draw_loss(axis: Any, losses: np.ndarray, *, unit: str = 'epoch', what: str = 'mean squared error') -> None:
    """The loss against the step on a log axis: losses [steps], or [R, steps] as a median with its bands."""
    steps = np.arange(1, losses.shape[-1] + 1)
    if losses.ndim == 1:
        axis.plot(steps, losses, color=BLUE, label='this run')
    else:
        low, q1, median, q3, high = statistics.loss_quantiles(losses)
        axis.fill_between(steps, low, high, color=BLUE, alpha=0.15, lw=0, label=f'95% of {len(losses):,} seeds')
        axis.fill_between(steps, q1, q3, color=BLUE, alpha=0.35, lw=0, label='50%')
        axis.plot(steps, median, color=BLUE, label='median')
    scale = 'log' if (losses > 0).any() else 'linear'  # --length=1 is answered rightly from the beginning
    axis.set(xlabel=unit, ylabel=what, yscale=scale)
    axis.legend(frameon=False, fontsize=9)


def draw_band(axis: Any, steps: Sequence[int], curve: np.ndarray, color: Any, label: str) -> None:
    """A line with a band around it: curve [steps, 3] has the lower edge, the line and the upper edge."""
    low, middle, high = np.where(np.isfinite(curve), curve, np.nan).T
    axis.fill_between(steps, low, high, color=color, alpha=0.2, lw=0)
    axis.plot(steps, middle, color=color, label=label)


def draw_predictions(axis: Any, targets: np.ndarray, predictions: np.ndarray) -> None:
    """Predictions [T], or [R, T] as a median with its bands, over targets [T] and what rounds to them."""
    steps = np.arange(len(targets))
    axis.bar(steps, 0.1, 0.5, targets - 0.05, color=ORANGE, alpha=0.25, label='equal to one decimal')
    axis.hlines(targets, steps - 0.25, steps + 0.25, color=ORANGE, label='target')
    if predictions.ndim == 1:
        axis.plot(steps, predictions, 'o', color=BLUE, markersize=5, label='prediction')
    else:
        low, q1, median, q3, high = np.nanquantile(predictions, statistics.BANDS, axis=0)
        axis.vlines(steps, low, high, color=BLUE, alpha=0.5, lw=2, label='95% of seeds')
        axis.vlines(steps, q1, q3, color=BLUE, lw=5, label='50%')
        axis.plot(steps, median, 'o', color='white', mec=BLUE, markersize=5, label='median prediction')
    axis.set(xlabel='place in the sequence', ylabel='value', xticks=steps if len(steps) <= 20 else [])
    axis.legend(frameon=False, fontsize=9)


def draw_test(axis: Any, data: ConfusionMatrix | ForecastCurve) -> None:
    """The test of a dataset: shares of a confusion matrix, or a stretch of forecasts with their interval."""
    if isinstance(data, ConfusionMatrix):
        _draw_confusion(axis, data)
    else:
        _draw_forecast(axis, data)


def _draw_confusion(axis: Any, data: ConfusionMatrix) -> None:
    counts, classes = data
    axis.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap='Blues', vmin=0, vmax=1)
    axis.set(xlabel='predicted', ylabel='truth', title='share of each class')
    if len(classes) <= MAX_CLASS_LABELS:
        axis.set(xticks=range(len(classes)), yticks=range(len(classes)), yticklabels=classes)
        axis.set_xticklabels(classes, rotation='vertical')


def _draw_forecast(axis: Any, data: ForecastCurve) -> None:
    axis.plot(data.times, data.actual, color='black', lw=1, label=data.name)
    axis.plot(data.times, data.forecasts, lw=1, label='one step ahead')
    if data.band is not None:
        axis.fill_between(data.times, *data.band, alpha=0.2, label='90%')
    axis.set(xlabel='test part', ylabel=data.name)
    axis.legend(frameon=False, fontsize=9)
