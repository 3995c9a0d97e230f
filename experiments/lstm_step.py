"""Print every number that an LSTM computes in each time step: pre-activations, gates and states.

    python -m experiments.lstm_step --x=0.2
    python -m experiments.lstm_step --x=0.0,0.2,0.4 --hidden=3 --seed=7
    python -m experiments.lstm_step --x=0.0,0.2,0.4 --workdir=runs/td/many_to_many

The weights are the initial weights of --seed, or with --workdir the trained weights of a run of experiments.td without
--num_seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import files
from seqjax.cli import command, flag_tables
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import ChoiceParser, FloatParser, IntParser, ListParser, PathParser
from seqjax.errors import UserError
from seqjax.nn import activations
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.runs import directory, orbax_io
from seqjax.runs.checkpoint_manager import CheckpointManager
from seqjax.runs.manifest import CorruptCheckpointError

MAX_UNITS = 10  # columns that fit a line
WEIGHTS = ('kernel', 'recurrent_kernel', 'bias')

FLAGS = {
    'x': Flag(ListParser(FloatParser(), distinct=False), 'inputs, separated by commas, one for each time step'),
    'hidden': Flag(IntParser(1, MAX_UNITS), 'number of units of the LSTM; not used with --workdir'),
    'recurrent_activation': Flag(
        ChoiceParser(*activations.RECURRENT_ACTIVATIONS), 'activation of the gates i, f and o; not used with --workdir'
    ),
    'seed': Flag(flag_tables.SHARED['seed'].parser, 'seed of the initial weights; not used with --workdir'),
    'workdir': Flag(PathParser(), 'run directory of experiments.td without --num_seeds: use its trained weights'),
}


class Step(NamedTuple):
    """Input, gates and states of one time step; gates and states are [H]."""

    x: float  # input
    i: np.ndarray  # input gate
    f: np.ndarray  # forget gate
    g: np.ndarray  # candidate
    o: np.ndarray  # output gate
    c: np.ndarray  # new cell state
    h: np.ndarray  # new hidden state, the output


def run(
    *,
    x: Sequence[float] = (0.2,),
    hidden: int = 5,
    recurrent_activation: str = 'sigmoid',
    seed: int = 0,
    workdir: str | None = None,
) -> list[Step]:
    """Prints every number that an LSTM computes in each time step, and returns them.

    Every argument is a flag of the command line, where `FLAGS` explains it.

    Raises:
      UserError (a ValueError): an argument is invalid, or `workdir` has no trained LSTM of one seed and one input.
    """
    settings = flag_tables.check(FLAGS, locals(), command.default_values(run))
    if settings['workdir'] is None:
        act, weights = settings['recurrent_activation'], _initial_weights(settings['hidden'], settings['seed'])
        source = f'initial weights of seed {settings["seed"]}'
    else:
        act, weights = _trained_weights(settings['workdir'])
        source = f'trained weights of {settings["workdir"]}'
    units = len(weights['recurrent_kernel'])
    cell = LSTMCell(units, recurrent_activation=activations.RECURRENT_ACTIVATIONS[act])
    inputs = [jnp.full((1, 1), value) for value in settings['x']]
    carry = cell.initialize_carry(None, (1, 1))
    _show_weights(weights, units, source)
    steps = []
    for t, value in enumerate(inputs):
        old = jax.tree.map(lambda leaf: np.asarray(leaf[0]), carry)
        (carry, _), sown = cell.apply({'params': weights}, carry, value, mutable=['intermediates'])
        gates = {name: np.asarray(values[0][0]) for name, values in sown['intermediates'].items()}
        step = Step(settings['x'][t], **gates, c=np.asarray(carry.c[0]), h=np.asarray(carry.h[0]))
        _show_step(t, step, old, weights, act)
        steps.append(step)
    return steps


def _initial_weights(units: int, seed: int) -> dict[str, np.ndarray]:
    cell, inputs = LSTMCell(units), jnp.zeros((1, 1))
    variables = cell.init(jax.random.key(seed), cell.initialize_carry(None, inputs.shape), inputs)
    return {name: np.asarray(value) for name, value in variables['params'].items()}


def _trained_weights(workdir: str) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the gate activation and the LSTM weights of the newest checkpoint; raises UserError if invalid."""
    folder = files.expand('workdir', workdir)
    store = CheckpointManager(folder / directory.CHECKPOINTS, writes=False)
    steps = store.steps()
    if not steps:
        raise UserError(
            f'--workdir={workdir} has no checkpoint of one seed; train one with: python -m experiments.td '
            f'--workdir={workdir}'
        )
    try:
        flags = store.check(steps[-1]).flags
    except CorruptCheckpointError as error:
        raise UserError(
            f'--workdir={workdir}: the newest checkpoint is corrupt ({error}); train again with --overwrite'
        ) from error
    arrays = orbax_io.read_arrays(store.path(steps[-1]))
    weights = {name: arrays[f'params/rnn/cell/{name}'] for name in WEIGHTS if f'params/rnn/cell/{name}' in arrays}
    shapes = [value.shape for value in weights.values()]
    units = shapes[1][0] if len(shapes) == len(WEIGHTS) else 0
    if shapes != [(1, 4 * units), (units, 4 * units), (4 * units,)] or units > MAX_UNITS:
        raise UserError(
            f'--workdir={workdir} is not a run of one seed of an LSTM with one input and at most {MAX_UNITS} units; '
            'use a run of experiments.td without --num_seeds'
        )
    return flags.get('recurrent_activation', 'sigmoid'), weights


def _show_weights(weights: dict[str, np.ndarray], units: int, source: str) -> None:
    count = sum(value.size for value in weights.values())
    print(f'LSTM with 1 input and {units} units: 4 ((1 + 1) {units} + {units}^2) = {count} weights; {source}.')
    print('One column per unit. W is the kernel, U the recurrent kernel, b the bias; c and h are 0 before step 1.\n')
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
    _row('c', step.c, 'f * c + i * g, new cell state')
    _row('h', step.h, 'o * tanh(c), output')
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
