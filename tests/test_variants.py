"""Every variant of a cell against its paper's equations in NumPy, values and all gradients; and its limit laws."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.cells import GRUCell, HiddenCarry, LSTMCarry, LSTMCell, SimpleRNNCell
from seqjax.layers import RNN
from seqjax.linear import ComplexCarry, LRUCell, MinGRUCell, MinLSTMCell, RGLRUCell, positive
from tests import equations, reference

B, T, F, H, P = 2, 4, 2, 3, 2
KEY = jax.random.key(5)


class Case(NamedTuple):
    step: object  # of `equations`
    cell: nn.Module
    training: bool = False


def gaussian(z):
    return jnp.exp(-z * z)


HALF = {'recurrent_dropout': 0.5}
STEP = {'recurrent_dropout': 0.4, 'recurrent_dropout_mask': 'step'}
ZONE = {'zoneout_h': 0.3}
CASES = [
    Case(equations.gers_2000, LSTMCell(H)),
    Case(equations.arctan, LSTMCell(H, activation=jnp.arctan, recurrent_activation=gaussian)),
    Case(equations.hochreiter_1997, LSTMCell(H, forget='none')),
    Case(equations.greff_2017, LSTMCell(H, forget='coupled')),
    Case(equations.gers_2002, LSTMCell(H, peepholes=True)),
    Case(equations.gers_2002_without_forget_gate, LSTMCell(H, peepholes=True, forget='none')),
    Case(equations.greff_2017_peepholes, LSTMCell(H, peepholes=True, forget='coupled')),
    Case(equations.sak_2014, LSTMCell(H, peepholes=True, projection=P)),
    Case(equations.ba_2016_lstm, LSTMCell(H, layer_norm=True)),
    Case(equations.gal_2016_lstm, LSTMCell(H, **HALF), True),
    Case(equations.semeniuta_2016_lstm, LSTMCell(H, **STEP), True),
    Case(equations.merity_2018_lstm, LSTMCell(H, drop_connect=0.3), True),
    Case(equations.krueger_2017_lstm, LSTMCell(H, zoneout_h=0.3, zoneout_c=0.6), True),
    Case(equations.krueger_2017_lstm, LSTMCell(H, zoneout_h=0.3, zoneout_c=0.6), False),
    Case(equations.cho_2014, GRUCell(H, reset_after=False)),
    Case(equations.keras_gru, GRUCell(H)),
    Case(equations.gal_2016_gru, GRUCell(H, reset_after=False, **HALF), True),
    Case(equations.gal_2016_gru_after, GRUCell(H, **HALF), True),
    Case(equations.cho_2014, GRUCell(H, reset_after=False, **STEP), True),
    Case(equations.keras_gru, GRUCell(H, **STEP), True),
    Case(equations.merity_2018_gru, GRUCell(H, reset_after=False, drop_connect=0.3), True),
    Case(equations.krueger_2017_gru, GRUCell(H, **ZONE), True),
    Case(equations.krueger_2017_gru, GRUCell(H, **ZONE), False),
    Case(equations.ba_2016_gru, GRUCell(H, layer_norm=True)),
    Case(equations.ba_2016_gru_before, GRUCell(H, layer_norm=True, reset_after=False)),
    Case(equations.elman_1990, SimpleRNNCell(H)),
    Case(equations.ba_2016_simple, SimpleRNNCell(H, layer_norm=True)),
    Case(equations.gal_2016_simple, SimpleRNNCell(H, **HALF), True),
    Case(equations.semeniuta_2016_simple, SimpleRNNCell(H, **STEP), True),
    Case(equations.merity_2018_simple, SimpleRNNCell(H, drop_connect=0.3), True),
    Case(equations.krueger_2017_simple, SimpleRNNCell(H, **ZONE), True),
    Case(equations.feng_2024_mingru, MinGRUCell(H)),
    Case(equations.feng_2024_mingru_positive, MinGRUCell(H, activation=positive)),
    Case(equations.feng_2024_minlstm, MinLSTMCell(H)),
    Case(equations.feng_2024_minlstm_positive, MinLSTMCell(H, activation=positive)),
    Case(equations.orvieto_2023, LRUCell(H, outputs=P)),
    Case(equations.de_2024, RGLRUCell(H)),
]


def name_of(case):
    return f'{case.step.__name__}-{"training" if case.training else "evaluation"}'


def drawn_by(layer, variables, rngs):
    """What each of the T steps draws, as the equations take it: 0 or 1 / (1 - rate), and 0 or 1 for what is kept."""
    cell = layer.cell
    if not rngs:
        rates = {'keep_c': getattr(cell, 'zoneout_c', 0), 'keep_h': getattr(cell, 'zoneout_h', 0)}
        return [rates] * T
    noise = layer.apply(variables, method=lambda layer: layer.cell.noise((B,)), rngs=rngs)
    steps = []
    for t in range(T):
        key = jax.random.fold_in(noise.key, t)

        def kept(part, rate, key=key):
            return np.asarray(jax.random.bernoulli(jax.random.fold_in(key, part), rate, (B, H)), float)

        drawn = {'hidden': noise.hidden, 'kernel': noise.kernel, 'keep_c': 0.0, 'keep_h': 0.0}
        if getattr(cell, 'zoneout_c', 0):
            drawn['keep_c'] = kept(1, cell.zoneout_c)
        if cell.zoneout_h:
            drawn['keep_h'] = kept(2, cell.zoneout_h)
        if cell.recurrent_dropout_mask == 'step':
            drawn['candidate'] = kept(0, 1 - cell.recurrent_dropout) / (1 - cell.recurrent_dropout)
        drawn = {
            name: value if isinstance(value, float) else np.asarray(value)
            for name, value in drawn.items()
            if value is not None
        }
        steps.append(drawn)
    return steps


def complex_step(f, tree):
    """The derivatives of a real function of a tree of arrays, exact to rounding."""
    leaves, structure = jax.tree.flatten(tree)
    slopes = [np.zeros(leaf.shape) for leaf in leaves]
    for n, leaf in enumerate(leaves):
        for index in np.ndindex(leaf.shape):
            moved = leaf.astype(complex)
            moved[index] += 1e-30j
            slopes[n][index] = f(structure.unflatten([*leaves[:n], moved, *leaves[n + 1 :]])).imag / 1e-30
    return structure.unflatten(slopes)


@pytest.mark.parametrize('case', CASES, ids=name_of)
def test_a_variant_and_all_its_gradients_equal_the_papers_equations(case, x64):
    """Outputs, the carry, and gradients of every parameter, of inputs and of the carry: relative 1e-10."""
    layer = RNN(case.cell.clone(param_dtype=jnp.float64))
    rng = np.random.default_rng(3)
    x = rng.normal(size=(B, T, F))
    own = jax.eval_shape(lambda: layer.cell.initialize_carry(KEY, (B, F)))
    variables = jax.tree.map(np.asarray, reference.random_variables(layer, x))
    first = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), own)
    rngs = {'dropout': KEY} if case.training else {}
    args = {'params': variables['params']['cell'], 'carry': tuple(first), 'x': x}
    drawn = drawn_by(layer, variables, rngs)
    weights = None

    def by_hand(args):
        carry, outputs = args['carry'], []
        for t in range(T):
            carry, y = case.step(args['params'], carry, args['x'][:, t], drawn[t])
            outputs.append(y)
        return carry, np.stack(outputs, 1)

    want = by_hand(args)
    weights = jax.tree.map(lambda y: rng.normal(size=y.shape), want)

    def total(results):
        return sum((w * y).sum() for w, y in zip(jax.tree.leaves(weights), jax.tree.leaves(results), strict=True))

    def ours(args):
        carry = type(first)(*args['carry'])
        run = functools.partial(layer.apply, {'params': {'cell': args['params']}}, rngs=rngs, return_carry=True)
        carry, outputs = run(args['x'], initial_carry=carry)
        return total((tuple(carry), outputs)), (tuple(carry), outputs)

    grads, got = jax.jit(jax.grad(ours, has_aux=True))(args)
    wanted = complex_step(lambda args: total(by_hand(args)), args)
    for which, (mine, theirs) in {'values': (got, want), 'gradients': (grads, wanted)}.items():
        pairs = zip(jax.tree_util.tree_leaves_with_path(theirs), jax.tree.leaves(mine), strict=True)
        for (path, right), value in pairs:
            reference.assert_close(value, right, 1e-10, f'{which}{jax.tree_util.keystr(path)}')
            assert np.abs(right).max() > 1e-4, f'{which}{jax.tree_util.keystr(path)} says nothing'
