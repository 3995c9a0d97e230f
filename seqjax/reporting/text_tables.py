"""Parameter tables and formatted numbers as text, and blocks of text in Markdown pages."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from seqjax import files
from seqjax.errors import UserError
from seqjax.reporting import statistics
from seqjax.types import Arrays, Params


class Layer(NamedTuple):
    """A row of the parameter table."""

    name: str  # name of a submodule or parameter
    kind: str  # type of the submodule, 'parameter', or 'parameters' for several that form one row
    output_shape: tuple[int | None, ...]  # None for the batch axis, as in Keras; for a parameter its own shape
    params: int  # number of parameters


def count_params(params: Params) -> int:
    """Returns the number of parameters: the sum of the sizes of all arrays, or shapes, in `params`."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def model_layers(model: nn.Module, inputs: Arrays) -> list[Layer]:
    """Returns the rows of the parameter table: the model's direct submodules in call order, then its own parameters.

    Only shapes are evaluated. Every parameter is counted once. A submodule without `__call__`, such as an attention
    that is prepared once, has the output shape of the method that was called last.
    """
    submodules: dict[str, tuple[str, tuple[int, ...]]] = {}  # kinds and shapes only: outputs are tracers
    called = set()

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        shapes = [x.shape for x in jax.tree.leaves(result) if hasattr(x, 'shape')]
        name, is_call = context.module.path[:1], context.method_name == '__call__'
        if len(context.module.path) == 1 and shapes and context.method_name != 'setup':
            called.update(name if is_call else ())
            if is_call or name[0] not in called:
                submodules[name[0]] = _kind(context.module), shapes[0]
        return result

    with nn.intercept_methods(record):
        variables = jax.eval_shape(lambda inputs: model.init(jax.random.key(0), inputs), inputs)
    params = variables.get('params', {})
    layers = [
        Layer(name, kind, (None, *shape[1:]), count_params(params.get(name, {})))
        for name, (kind, shape) in submodules.items()
    ]
    return layers + [_parameter_row(name, params[name]) for name in params if name not in submodules]


def _parameter_row(name: str, value: Params) -> Layer:
    """Returns the table row of a parameter, or of a group of parameters, that belongs to no called submodule."""
    leaves = jax.tree.leaves(value)
    kind, shape = ('parameter', tuple(leaves[0].shape)) if len(leaves) == 1 else ('parameters', ())
    return Layer(name, kind, shape, count_params(value))


def _kind(module: nn.Module) -> str:
    """Returns the type name of a module, followed by the type of the module that it wraps, if any: RNN(LSTMCell)."""
    inner = getattr(module, 'cell', None) or getattr(module, 'module', None)
    return f'{type(module).__name__}({type(inner).__name__})' if inner is not None else type(module).__name__


def format_table(layers: Sequence[Layer]) -> str:
    """Returns the parameter table as plain text, in the format of Keras's `model.summary()`.

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


def format_decimals(x: float, decimals: int = 1) -> str:
    """Returns a number as text with `decimals` decimals, and 0.0 instead of -0.0.

    >>> format_decimals(-0.04), format_decimals(0.25), format_decimals(0.7700233, 3)
    ('0.0', '0.2', '0.770')
    """
    return f'{round(float(x), decimals) + 0.0:.{decimals}f}'


def format_interval(values: np.ndarray, spec: str = '.4g', half_spec: str = '.2g') -> str:
    """Returns the mean of values [R] as text, with ± half the width of its 95% confidence interval unless R is 1.

    >>> format_interval(np.array([1.0, 2.0, 3.0, 4.0])), format_interval(np.array([0.5]), '.1%')
    ('2.5 ± 2.1', '50.0%')
    """
    mean, half_width = statistics.mean_interval(values)
    return f'{mean:{spec}}' if math.isinf(half_width) else f'{mean:{spec}} ± {half_width:{half_spec}}'


MAX_MORE_DECIMALS = 3  # most decimals that a percentage gets more than its format specification


def format_bounded(interval: statistics.Interval, spec: str = '.1%') -> str:
    """Returns an estimate with the edges of its 95% confidence interval as text; only the estimate if it is NaN.

    A percentage gets more decimals if the edges are equal otherwise.

    >>> format_bounded((0.9892, 0.9968, 1.0)), format_bounded((0.99993, 0.99998, 1.0))
    ('99.7% (98.9% to 100.0%)', '100.00% (99.99% to 100.00%)')
    """
    lower, middle, upper = interval
    if math.isnan(middle):
        return f'{middle:{spec}}'
    head, point, decimals = spec.removesuffix('%').rpartition('.')
    more = MAX_MORE_DECIMALS if spec.endswith('%') and point else 0
    specs = [spec, *(f'{head}.{int(decimals) + i}%' for i in range(1, more + 1))]
    spec = next((spec for spec in specs if f'{lower:{spec}}' != f'{upper:{spec}}'), spec)
    return f'{middle:{spec}} ({lower:{spec}} to {upper:{spec}})'


def format_censored(median: statistics.CensoredMedian, limit: float, spec: str = ',.0f') -> str:
    """Returns the median of values up to `limit` as text, with its 95% confidence interval and the number of failures.

    For few values, whose interval is their range, the text has the range.

    >>> format_censored(statistics.CensoredMedian(18_000, 21_000, np.inf, 3, 10), 100_000)
    '21,000 (95% CI 18,000 to over 100,000), 3 of 10 failed'
    >>> format_censored(statistics.CensoredMedian(np.inf, np.inf, np.inf, 10, 10), 100_000)
    'over 100,000, 10 of 10 failed'
    """

    def text(x: float) -> str:
        return f'{x:{spec}}' if math.isfinite(x) else f'over {limit:{spec}}'

    name = '95% CI' if median.count >= statistics.MIN_MEDIAN_COUNT else 'range'
    has_edges = median.count > 1 and math.isfinite(median.lower)
    edges = f' ({name} {text(median.lower)} to {text(median.upper)})' if has_edges else ''
    return text(median.median) + edges + (f', {median.failures} of {median.count} failed' if median.failures else '')


def replaced_block(page: Path, name: str, text: str) -> str:
    """Returns a Markdown file with `text` between `<!-- NAME -->` and `<!-- end of NAME -->`.

    Raises:
      UserError: the page cannot be read, or does not have exactly one such block.
    """
    try:
        with files.open_data(page, 'r', encoding='utf-8') as file:
            old = file.read()
    except UnicodeDecodeError as error:
        raise UserError(f'{page} is not UTF-8 text ({error.reason}); use another file') from error
    start, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
    new, count = re.subn(f'(?s){start}.*?{end}', lambda _: f'{start}\n\n{text.strip()}\n\n{end}', old)
    if count != 1:
        raise UserError(f'{page} has {count} blocks from {start} to {end}, but must have exactly one; correct the page')
    return new


def replace_block(page: Path, name: str, text: str) -> None:
    """Replaces the block of a Markdown file that `replaced_block` describes.

    Raises:
      UserError: as `replaced_block`, or the page cannot be written.
    """
    new = replaced_block(page, name, text)
    with files.writing(page):
        files.replace(page, lambda path: path.write_text(new, encoding='utf-8'))
