"""One step of an LSTM, number by number.

    python -m experiments.lstm_step --x=0.2
    python -m experiments.lstm_step --x=0.0,0.2,0.4 --hidden=3 --seed=7

Nothing is trained, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.cli import command, flag_tables
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import Choice, Many, Number, Whole
from seqjax.nn import activations
from seqjax.nn.cells.lstm_cell import LSTMCell

UNITS = 10  # that fit a line

FLAGS = {
    'x': Flag(Many(Number(), distinct=False), 'inputs, separated by commas: a step for each'),
    'hidden': Flag(Whole(1, UNITS), 'units of the LSTM'),
    'recurrent_activation': Flag(Choice(*activations.RECURRENT_ACTIVATIONS), 'of the gates i, f and o'),
    'seed': flag_tables.SHARED['seed'],
}


class Step(NamedTuple):
    """What one step computes, each [H]."""

    x: float
    i: np.ndarray
    f: np.ndarray
    g: np.ndarray
    o: np.ndarray
    c: np.ndarray
    h: np.ndarray


def run(
    *, x: Sequence[float] = (0.2,), hidden: int = 5, recurrent_activation: str = 'sigmoid', seed: int = 0
) -> list[Step]:
    """Shows every number that an LSTM with its initial weights computes in a step.

    Every argument is a flag of the command line, where `FLAGS` explains it.

    Raises:
      UserError (a ValueError): an argument is refused.
    """
    settings = flag_tables.check(FLAGS, locals(), command.default_values(run))
    act, units = settings['recurrent_activation'], settings['hidden']
    cell = LSTMCell(units, recurrent_activation=activations.RECURRENT_ACTIVATIONS[act])
    inputs = [jnp.full((1, 1), value) for value in settings['x']]
    carry = cell.initialize_carry(None, (1, 1))
    variables = cell.init(jax.random.key(settings['seed']), carry, inputs[0])
    weights = {name: np.asarray(value) for name, value in variables['params'].items()}
    _show_weights(weights, units, settings['seed'])
    steps = []
    for t, value in enumerate(inputs):
        old = jax.tree.map(lambda leaf: np.asarray(leaf[0]), carry)
        (carry, _), sown = cell.apply({'params': weights}, carry, value, mutable=['intermediates'])
        gates = {name: np.asarray(values[0][0]) for name, values in sown['intermediates'].items()}
        step = Step(settings['x'][t], **gates, c=np.asarray(carry.c[0]), h=np.asarray(carry.h[0]))
        _show_step(t, step, old, weights, act)
        steps.append(step)
    return steps


def _show_weights(weights: dict[str, np.ndarray], units: int, seed: int) -> None:
    count = sum(value.size for value in weights.values())
    print(f'LSTM with 1 input and {units} units: 4 ((1 + 1) {units} + {units}^2) = {count} weights, seed {seed}.')
    print('A column is a unit. W is the kernel, U the recurrent kernel, b the bias; c and h begin at 0.\n')
    blocks = {name: np.split(value, 4, axis=-1) for name, value in weights.items()}
    for n, gate in enumerate('ifgo'):
        _row(f'W_{gate}', blocks['kernel'][n][0])
        for row in blocks['recurrent_kernel'][n]:
            _row(f'U_{gate}', row)
        _row(f'b_{gate}', blocks['bias'][n])


def _show_step(
    t: int, step: Step, old: tuple[np.ndarray, np.ndarray], weights: dict[str, np.ndarray], act: str
) -> None:
    c, h = old
    print(f'\nstep {t + 1}: x = {step.x:g}')
    _row('old c', c)
    _row('old h', h)
    z = np.split(step.x * weights['kernel'][0] + h @ weights['recurrent_kernel'] + weights['bias'], 4)
    words = {'i': 'input gate', 'f': 'forget gate', 'g': 'candidate', 'o': 'output gate'}
    for gate, sum_ in zip('ifgo', z, strict=True):
        _row(f'z_{gate}', sum_, f'x W_{gate} + h U_{gate} + b_{gate}')
        _row(gate, getattr(step, gate), f'{"tanh" if gate == "g" else act}(z_{gate}), {words[gate]}')
    _row('c', step.c, 'f * c + i * g: what is kept, and what is written')
    _row('h', step.h, 'o * tanh(c): what is shown')
    kept, written = step.f[0] * c[0], step.i[0] * step.g[0]
    print(
        f'unit 1: c = {step.f[0]:.4f} * {c[0]:.4f} + {step.i[0]:.4f} * {step.g[0]:.4f} = {kept:.4f} + {written:.4f} '
        f'= {step.c[0]:.4f}; h = {step.o[0]:.4f} * tanh({step.c[0]:.4f}) = {step.h[0]:.4f}'
    )


def _row(name: str, values: np.ndarray, words: str = '') -> None:
    print(f'{name:>6} ' + ' '.join(f'{value + 0.0:>8.4f}' for value in values) + f'   {words}'.rstrip())


COMMAND = Command('lstm_step', __doc__, run, FlagTable(FLAGS, command.default_values(run)))
main = COMMAND.main


if __name__ == '__main__':
    COMMAND.execute()
