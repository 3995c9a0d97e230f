"""Figures of runs, which are drawn if Matplotlib is installed and written to the run directory."""

from collections.abc import Callable
from typing import Any

from seqjax.reporting import plots
from seqjax.runs import result_files
from seqjax.runs.directory import Workdir


def write_figure(folder: Workdir, columns: int, title: str, draw: Callable[[Any], None], width: float = 5.6) -> Any:
    """Draws a figure, writes it as curve.png and returns it; prints a hint and returns None without Matplotlib.

    Args:
      folder: run directory; nothing is written if it has no path.
      columns, title, width: see `plots.new_figure`.
      draw: function that draws on an array of `columns` Matplotlib axes.
    """
    try:
        figure, axes = plots.new_figure(columns, title, width)
    except ImportError:
        print('\n' + plots.NO_MATPLOTLIB)
        return None
    draw(axes)
    result_files.write_figure(folder, figure)
    return figure
