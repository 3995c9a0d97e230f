"""Tables of parameters and numbers as text."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from seqjax.reporting import statistics
from seqjax.types import Arrays, Params


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


def format_tenths(x: float) -> str:
    """One decimal, and never -0.0.

    >>> format_tenths(-0.04), format_tenths(0.25), format_tenths(0.7700233)
    ('0.0', '0.2', '0.8')
    """
    return f'{round(float(x), 1) + 0.0:.1f}'


def format_interval(values: np.ndarray, spec: str = '.4g', half_spec: str = '.2g') -> str:
    """The mean of [R] with its 95% interval, for a person.

    >>> format_interval(np.array([1.0, 2.0, 3.0, 4.0])), format_interval(np.array([0.5]), '.1%')
    ('2.5 ± 2.1', '50.0%')
    """
    mean, half = statistics.mean_interval(values)
    return f'{mean:{spec}}' if math.isinf(half) else f'{mean:{spec}} ± {half:{half_spec}}'
