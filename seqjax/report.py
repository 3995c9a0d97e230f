"""What a person sees: the parameter table, shares with their intervals, pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from seqjax.task import Arrays, Params

Z95 = 1.959964  # the normal distribution's 97.5% quantile
BANDS = (0.025, 0.25, 0.5, 0.75, 0.975)  # quantiles: the edges of the 95% and 50% bands, and the median


# --- the parameter table ---------------------------------------------------------------------------


class Layer(NamedTuple):
    """A row of the parameter table."""

    name: str
    kind: str
    output_shape: tuple[int | None, ...]  # None for the batch axis, as Keras writes it; of a parameter its own
    params: int


def count_params(params: Params) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def model_layers(model: nn.Module, inputs: Arrays) -> list[Layer]:
    """The model's direct parts in the order of their calls, then its own parameters; nothing is computed.

    The rows have every parameter once, by whichever method a part is reached. A part without a call, such as an
    attention that is prepared once, shows the output of the method that was called last.
    """
    parts: dict[str, tuple[str, tuple[int, ...]]] = {}  # kinds and shapes alone: outputs are tracers
    called = set()

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        shapes = [x.shape for x in jax.tree.leaves(result) if hasattr(x, 'shape')]
        name, is_call = context.module.path[:1], context.method_name == '__call__'
        if len(context.module.path) == 1 and shapes and context.method_name != 'setup':
            called.update(name if is_call else ())
            if is_call or name[0] not in called:
                parts[name[0]] = _kind(context.module), shapes[0]
        return result

    with nn.intercept_methods(record):
        variables = jax.eval_shape(lambda inputs: model.init(jax.random.key(0), inputs), inputs)
    params = variables.get('params', {})
    layers = [
        Layer(name, kind, (None, *shape[1:]), count_params(params.get(name, {})))
        for name, (kind, shape) in parts.items()
    ]
    return layers + [_own(name, params[name]) for name in params if name not in parts]


def _own(name: str, value: Params) -> Layer:
    """Parameters that belong to no part that was called: an array of the model's own, or several."""
    leaves = jax.tree.leaves(value)
    kind, shape = ('parameter', tuple(leaves[0].shape)) if len(leaves) == 1 else ('parameters', ())
    return Layer(name, kind, shape, count_params(value))


def _kind(module: nn.Module) -> str:
    """RNN(LSTMCell): the type, with the type of the module that it wraps."""
    inner = getattr(module, 'cell', None) or getattr(module, 'module', None)
    return f'{type(module).__name__}({type(inner).__name__})' if inner is not None else type(module).__name__


def format_table(layers: Sequence[Layer]) -> str:
    """The table that Keras's `model.summary()` prints, as plain text.

    >>> print(format_table([Layer('head', 'Dense', (None, 1), 6)]))
    Layer (type)    Output Shape    Param #
    =======================================
    head (Dense)    (None, 1)             6
    =======================================
    Total params: 6
    """
    rows = [('Layer (type)', 'Output Shape', 'Param #')]
    rows += [(f'{layer.name} ({layer.kind})', str(tuple(layer.output_shape)), f'{layer.params:,}') for layer in layers]
    first, second, third = (max(len(row[i]) for row in rows) for i in range(3))
    lines = [f'{a:<{first}}    {b:<{second}}    {c:>{third}}' for a, b, c in rows]
    rule = '=' * len(lines[0])
    total = f'Total params: {sum(layer.params for layer in layers):,}'
    return '\n'.join([lines[0], rule, *lines[1:], rule, total])


# --- numbers ---------------------------------------------------------------------------------------


def tenths(x: float) -> str:
    """One decimal, and never -0.0.

    >>> tenths(-0.04), tenths(0.25), tenths(0.7700233)
    ('0.0', '0.2', '0.8')
    """
    return f'{round(float(x), 1) + 0.0:.1f}'


def share_interval(successes: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927, equation 2), which stays within 0 and 1.

    >>> [round(x, 4) for x in share_interval(93, 100)]
    [0.8625, 0.9657]
    """
    share, z = successes / count, Z95**2 / count
    middle = (share + z / 2) / (1 + z)
    half = (share * (1 - share) * z + z * z / 4) ** 0.5 / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)


FEWEST = 6  # values from which on the median has a 95% interval of ranks


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The median of [R] within its 95% interval, from ranks alone (Conover 1999, section 3.2); NaN counts as infinite.

    Fewer than FEWEST values have no such interval: their range is given.

    >>> median_interval(np.arange(1.0, 21.0))
    (6.0, 10.5, 15.0)
    """
    values = np.sort(np.where(np.isnan(values), np.inf, values))
    count = len(values)
    # The largest rank r with P(fewer than r of `count` fair coins show heads) <= 2.5%; with few values there is none.
    below = np.cumsum([math.comb(count, k) for k in range(count + 1)]) / 2.0**count
    rank = max(1, int((below <= 0.025).sum()))
    return float(values[rank - 1]), float(np.median(values)), float(values[count - rank])


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """The mean of [R], and half the width of its 95% interval (Student 1908); one value alone has none, infinity.

    >>> [round(x, 3) for x in mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))]
    [2.5, 2.054]
    """
    from scipy.special import (
        stdtrit,  # comes with JAX, and takes a tenth of a second to import
    )

    count = len(values)
    if count < 2:
        return float(np.mean(values)), math.inf
    error = np.std(values, ddof=1) / count**0.5
    return float(np.mean(values)), float(stdtrit(count - 1, 0.975) * error)


def format_interval(values: np.ndarray, spec: str = '.4g', half_spec: str = '.2g') -> str:
    """The mean of [R] with its 95% interval, for a person.

    >>> format_interval(np.array([1.0, 2.0, 3.0, 4.0])), format_interval(np.array([0.5]), '.1%')
    ('2.5 ± 2.1', '50.0%')
    """
    mean, half = mean_interval(values)
    return f'{mean:{spec}}' if math.isinf(half) else f'{mean:{spec}} ± {half:{half_spec}}'


# --- pictures --------------------------------------------------------------------------------------

BLUE, ORANGE, GREY = '#2563a8', '#d1601f', '#555555'
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
        low, q1, median, q3, high = loss_quantiles(losses)
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
        low, q1, median, q3, high = np.nanquantile(predictions, BANDS, axis=0)
        axis.vlines(steps, low, high, color=BLUE, alpha=0.5, lw=2, label='95% of seeds')
        axis.vlines(steps, q1, q3, color=BLUE, lw=5, label='50%')
        axis.plot(steps, median, 'o', color='white', mec=BLUE, markersize=5, label='median prediction')
    axis.set(xlabel='place in the sequence', ylabel='value', xticks=steps if len(steps) <= 20 else [])
    axis.legend(frameon=False, fontsize=9)


def loss_quantiles(losses: np.ndarray) -> np.ndarray:
    """losses [R, steps] -> [5, steps], the BANDS over replicas; one that diverged counts as infinite."""
    blocks = [_quantiles(losses[:, i : i + COLUMNS]) for i in range(0, losses.shape[1], COLUMNS)]
    return np.concatenate(blocks, axis=1)


COLUMNS = 64  # steps that are copied at once: the losses of many replicas are the largest array of a run


def _quantiles(losses: np.ndarray) -> np.ndarray:
    rows = losses.T.copy()
    rows[~np.isfinite(rows)] = np.finfo(np.float32).max
    return np.quantile(rows, BANDS, axis=1, overwrite_input=True)
