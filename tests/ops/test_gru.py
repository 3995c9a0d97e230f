"""Every backend is held to the plain recurrence, and that to a loop in NumPy; layers to their steps."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamNotFoundError
from jax.flatten_util import ravel_pytree

from seqjax.nn import rnn
from seqjax.nn.cells.gru_cell import GRUCell
from seqjax.ops import gru
from seqjax.ops.gru import GRUOutput, GRUWeights
from tests.helpers import backends, reference
from tests.helpers.reference import assert_near

FAST = sorted(set(backends.available(gru.BACKENDS)) - {'plain'})
ANY_DTYPE = sorted(set(FAST) - {'native'})
CHUNK = gru.LAYOUT.chunk
WEIGHTS = GRUWeights._fields


def problem(key, count, rows, features, hidden, dtype=jnp.float32):
    """Arguments of `gru`: inputs, h, weights, and another h."""
    shapes = {
        'inputs': (count, rows, features),
        'h': (rows, hidden),
        'kernel': (features, 3 * hidden),
        'recurrent_kernel': (hidden, 3 * hidden),
        'bias': (3 * hidden,),
        'recurrent_bias': (3 * hidden,),
        'reset_carry': (rows, hidden),
    }
    keys = jax.random.split(key, len(shapes))
    x = {name: jax.random.normal(key, shape, dtype) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
    x['kernel'] /= max(features, 1) ** 0.5
    x['recurrent_kernel'] /= max(hidden, 1) ** 0.5
    return x


def call(x, *, reset_after=True, **options):
    options |= {'reset_carry': x['reset_carry'] if options.get('resets') is not None else None}
    kernel, recurrent_kernel, bias, recurrent_bias = (x[name] for name in WEIGHTS)
    weights = (kernel, recurrent_kernel, bias, recurrent_bias if reset_after else None)
    return gru.gru(x['inputs'], x['h'], *weights, reset_after=reset_after, **options)


def values_and_gradients(x, **options):
    """All that a backend gives, and the gradients of a weighing of all that to all that it is given."""

    def loss(x):
        run = call(x, **options)
        return sum((y.astype(jnp.float32) * weighing(y)).sum() for y in run), run

    (_, run), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
    return run, gradients


def weighing(y):
    return jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)


def make(seed, *shape, dtype=jnp.float32, everything=False):
    """A problem and options as the seed says; inputs of masked steps are huge."""
    rng, (count, rows) = np.random.default_rng(seed), shape[:2]
    options = {
        'seq_lengths': jnp.asarray(rng.permutation(np.r_[0, count, rng.integers(0, count + 1, rows)])[:rows]),
        'mask': jnp.asarray(rng.random((count, rows)) < 0.7),
        'resets': jnp.asarray(rng.random((count, rows)) < 0.2),
        'reverse': True,
    }
    options = {name: value for name, value in options.items() if everything or rng.random() < 0.5}
    real = np.ones((count, rows), bool) & np.asarray(options.get('mask', True))
    real &= np.arange(count)[:, None] < np.asarray(options.get('seq_lengths', np.full(rows, count)))[None]
    x = problem(jax.random.key(seed), *shape, dtype)
    return x | {'inputs': jnp.where(real[..., None], x['inputs'], jnp.asarray(1e30, dtype))}, options


# --- values and gradients --------------------------------------------------------------------------


def loop(x, seq_lengths=None, mask=None, resets=None, reverse=False, reset_after=True):
    """The equations in float64, one step and one row after the other."""
    x = {name: np.asarray(value, np.float64) for name, value in x.items()}
    (count, rows, _), h = x['inputs'].shape, x['h'].copy()
    outputs = np.zeros((count, *h.shape))
    for t in reversed(range(count)) if reverse else range(count):
        for b in range(rows):
            if resets is not None and resets[t, b]:
                h[b] = x['reset_carry'][b]
            if (mask is None or mask[t, b]) and (seq_lengths is None or t < seq_lengths[b]):
                of_x = np.split(x['inputs'][t, b] @ x['kernel'] + x['bias'], 3)
                of_h = np.split(h[b] @ x['recurrent_kernel'] + reset_after * x['recurrent_bias'], 3)
                z, r = (reference.sigmoid(of_x[i] + of_h[i]) for i in (0, 1))
                inner = r * of_h[2] if reset_after else (r * h[b]) @ np.split(x['recurrent_kernel'], 3, axis=1)[2]
                h[b] = z * h[b] + (1 - z) * np.tanh(of_x[2] + inner)
            outputs[t, b] = h[b]
    return GRUOutput(h, outputs)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('reset_after', [True, False])
@pytest.mark.parametrize('seed', range(4))
def test_the_plain_recurrence_equals_a_loop_over_the_equations(x64, seed, reset_after):
    x, options = make(seed, 7, 4, 3, 5, dtype=jnp.float64, everything=seed == 0)
    options['reset_after'] = reset_after
    assert_near(jax.jit(lambda x: call(x, backend='plain', **options))(x), loop(x, **options), 1e-13)


SHAPES = [(1, 1, 1, 1), (2, 3, 1, 4), (CHUNK, 2, 3, 5), (2 * CHUNK + 1, 1, 2, 8), (70, 3, 9, 6)]


@pytest.mark.representative(every=3)
@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('seed', [*range(10), 11, 14])
def test_a_backend_equals_the_plain_recurrence(backend, seed):
    x, options = make(seed, *SHAPES[seed % len(SHAPES)], everything=seed >= 10)
    want = values_and_gradients(x, backend='plain', **options)
    assert_near(values_and_gradients(x, backend=backend, **options), want, 1e-5)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('count', [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1])
def test_in_float64_a_backend_is_the_plain_recurrence_to_ten_digits(x64, backend, count):
    x, options = make(3, count, 3, 2, 4, dtype=jnp.float64, everything=True)
    want = values_and_gradients(x, backend='plain', **options)
    assert_near(values_and_gradients(x, backend=backend, **options), want, 1e-10)


@pytest.mark.parametrize('backend', ['plain', *ANY_DTYPE])
def test_half_precision_is_near_and_h_keeps_its_dtype(backend):
    x, options = make(4, 20, 4, 3, 5, everything=True)
    half = {name: v.astype(jnp.bfloat16) if name in ('inputs', *WEIGHTS) else v for name, v in x.items()}
    rounded = {name: v.astype(jnp.float32) for name, v in half.items()}
    got, gradients = values_and_gradients(half, backend=backend, **options)
    assert got.last.dtype == jnp.float32 and got.outputs.dtype == jnp.bfloat16
    assert {name: v.dtype for name, v in gradients.items()} == {name: v.dtype for name, v in half.items()}
    want = values_and_gradients(rounded, backend='plain', **options)
    assert_near(*(jax.tree.map(lambda v: v.astype(jnp.float32), y) for y in ((got, gradients), want)), 2e-2)


@pytest.mark.parametrize('backend', FAST)
def test_the_gradient_of_a_gate_that_hardly_keeps_is_no_rounding(backend):
    """Where z is 1e-6, the gradients of its sums are as small, and have their digits."""
    x = problem(jax.random.key(0), 18, 2, 3, 4)
    x['bias'] = x['bias'].at[:4].set(-14)
    (_, want), (_, got) = (values_and_gradients(x, backend=name) for name in ('plain', backend))
    assert 0 < np.abs(want['bias'][:4]).max() < 1e-3
    assert_near(got['bias'][:4] * 1e6, want['bias'][:4] * 1e6, 1e-4)


@pytest.mark.parametrize('backend', FAST)
def test_saturated_gates_have_finite_gradients(backend):
    x = problem(jax.random.key(0), 18, 2, 3, 4)
    x['inputs'] *= 1e3
    assert_near(values_and_gradients(x, backend=backend), values_and_gradients(x, backend='plain'), 1e-4)


@pytest.mark.parametrize('shape', [(3, 0, 2, 4), (0, 2, 2, 4), (3, 2, 0, 4), (3, 2, 2, 0)])
@pytest.mark.parametrize('backend', FAST)
def test_nothing_has_values_and_gradients_too(backend, shape):
    x, options = make(0, *shape, everything=True)
    want = values_and_gradients(x, backend='plain', **options)
    assert_near(values_and_gradients(x, backend=backend, **options), want, 1e-5)


# --- transformations -------------------------------------------------------------------------------


@pytest.mark.parametrize('backend', ['plain', *FAST])
def test_second_derivatives_are_those_of_finite_differences(x64, backend):
    x, _ = make(5, 5, 1, 1, 2, dtype=jnp.float64)
    x['inputs'] = x['inputs'].clip(-1, 1)
    resets = jnp.arange(5)[:, None] == 3
    flat, unravel = ravel_pytree(x)

    def loss(flat, backend):
        return sum((y**2).sum() for y in call(unravel(flat), resets=resets, backend=backend))

    twice = jax.jit(jax.hessian(functools.partial(loss, backend=backend)))(flat)
    gradient, step = jax.jit(jax.vmap(jax.grad(functools.partial(loss, backend='plain')))), 1e-5 * jnp.eye(flat.size)
    assert_near(twice, (gradient(flat[None] + step) - gradient(flat[None] - step)) / 2e-5, 1e-7)


def test_forward_mode_works_with_every_backend():
    x = problem(jax.random.key(0), 4, 2, 1, 3)

    def loss(x, backend='plain'):
        return call(x, backend=backend).outputs.sum()

    want = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(jax.grad(loss)(x)), jax.tree.leaves(x), strict=True))
    for backend in ('plain', *FAST):
        slope = jax.jvp(functools.partial(loss, backend=backend), (x,), (x,))[1]
        np.testing.assert_allclose(slope, want, rtol=1e-5)


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('what', [('inputs', 'h'), WEIGHTS])
def test_many_at_once_are_each_by_itself(backend, what):
    x, options = make(6, 18, 2, 2, 3, everything=True)
    x['inputs'], scale = x['inputs'].clip(-2, 2), jnp.array([1, -0.5, 0.3])

    def one(scale):
        return values_and_gradients(x | {name: x[name] * scale for name in what}, backend=backend, **options)

    alone = jax.jit(one)
    one_by_one = [alone(s) for s in scale]
    assert_near(jax.jit(jax.vmap(one))(scale), jax.tree.map(lambda *y: jnp.stack(y), *one_by_one), 1e-5)


# --- refusals, sizes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'inputs': jnp.ones((3, 2))}, r'inputs \(3, 2\)'),
        ({'inputs': jnp.ones((3, 2, 1), int)}, 'inputs.*int32'),
        ({'kernel': jnp.ones((2, 12))}, r'kernel \(2, 12\)'),
        ({'recurrent_kernel': jnp.ones((4, 12), jnp.bfloat16)}, 'recurrent_kernel.*bfloat16'),
        ({'bias': jnp.ones((1, 12))}, r'bias \(1, 12\)'),
        ({'recurrent_bias': jnp.ones(16)}, r'recurrent_bias \(16,\)'),
        ({'h': jnp.zeros((1, 4))}, r'h \(1, 4\)'),
        ({'h': jnp.zeros((2, 4), int)}, 'h .*int32'),
        ({'reset_carry': jnp.zeros((4, 2))}, r'reset_carry \(4, 2\)'),
        ({'reset_carry': jnp.zeros((2, 4), jnp.bfloat16)}, 'reset_carry.*bfloat16'),
        ({'seq_lengths': jnp.array([1, 4])}, r'seq_lengths\[1\].*4'),
        ({'mask': jnp.ones((2, 3), bool)}, r'mask \(2, 3\)'),
        ({'resets': jnp.ones((3, 2))}, 'resets.*float32'),
        ({'unroll': 0}, 'unroll=0'),
        ({'backend': 'columns'}, "backend='columns'"),
        ({'reset_after': False}, 'recurrent_bias is .*reset_after'),
        ({'recurrent_bias': None}, 'recurrent_bias is None.*reset_after'),
        ({'recurrent_bias': None, 'reset_after': False, 'backend': 'rows'}, "backend='rows'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    good = {'inputs': jnp.ones((3, 2, 1)), 'h': jnp.zeros((2, 4)), 'kernel': jnp.ones((1, 12))}
    good |= {'recurrent_kernel': jnp.ones((4, 12)), 'bias': jnp.ones(12), 'recurrent_bias': jnp.ones(12)}
    with pytest.raises(ValueError, match='^' + message):
        gru.gru(**good | change)


@pytest.mark.parametrize('backend', ['auto', *backends.available(gru.BACKENDS)])
def test_a_long_sequence_is_no_larger_a_program(backend):
    def equations(count):
        x = jax.eval_shape(lambda: problem(jax.random.key(0), count, 2, 1, 300))
        return str(jax.make_jaxpr(jax.grad(lambda x: call(x, backend=backend).outputs.sum()))(x)).count(' = ')

    assert equations(64) == equations(16384)


@pytest.mark.parametrize('backend', FAST)
def test_a_backend_of_its_own_needs_less_memory(optimized, backend):
    x = jax.eval_shape(lambda: problem(jax.random.key(0), 100, 32, 64, 128))

    def needs(backend):
        gradient = jax.jit(jax.grad(lambda x: (call(x, backend=backend).outputs ** 2).sum()))
        return gradient.lower(x).compile().memory_analysis().temp_size_in_bytes

    assert needs(backend) < needs('plain')


@pytest.mark.parametrize(
    ('steps', 'rows', 'hidden', 'want'),
    [
        (0, 99, 99, 'plain'),
        (9, 2, 32, 'plain'),
        (9, 2, 33, 'rows'),
        (9, 1, 512, 'plain'),
        (9, 1, 513, 'rows'),
        (9, 2, 99, 'rows'),
    ],
)
def test_a_backend_is_chosen_by_size(steps, rows, hidden, want):
    assert gru.select_backend(steps, rows, hidden) == want
    assert gru.select_backend(steps, rows, hidden, native=True) == ('native' if steps else 'plain')
    assert gru.select_backend(8, 1, 512, native=True) == 'plain'
    assert gru.select_backend(4, 4, 512, native=True) == 'plain'
    assert gru.select_backend(4, 4, 513, native=True) == 'native'
    assert gru.select_backend(1, 2, 384, native=True) == 'native'
    assert gru.select_backend(1, 3, 384, native=True) == gru.select_backend(1, 2, 383, native=True) == 'plain'
    assert gru._select_reset_before(steps, rows, hidden, 'cpu', False) == 'plain'
    assert gru._select_reset_before(99, rows, hidden, 'cpu', True) == 'native'


# --- layers ----------------------------------------------------------------------------------------


class Stepwise(GRUCell):
    """The same cell, which no layer takes at once."""

    def __call__(self, carry, inputs, **how):
        return super().__call__(carry, inputs, **how)


@pytest.mark.representative(by=lambda backend, dropped, batch, reset_after: [(backend, reset_after), batch, dropped])
@pytest.mark.parametrize(
    ('backend', 'reset_after'),
    [
        (name, after)
        for name in ['auto', *backends.available(gru.BACKENDS)]
        for after in (True, False)
        if after or name != 'rows'
    ],
)
@pytest.mark.parametrize('dropped', [0.0, 0.4])
@pytest.mark.parametrize('batch', [(3,), (), (2, 3)])
def test_a_layer_gives_what_its_steps_give(backend, reset_after, dropped, batch):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(*batch, 19, 2)), jnp.float32)
    flags = {name: jnp.asarray(rng.random((*batch, 19)) < share) for name, share in (('mask', 0.8), ('resets', 0.2))}
    one, other = (cell(5, drop_connect=dropped, reset_after=reset_after) for cell in (GRUCell, Stepwise))
    how = {'learn_initial_carry': True, 'reverse': True, 'keep_order': True}
    fused, stepwise = rnn.RNN(one, backend=backend, **how), rnn.RNN(other, **how)
    weights = fused.init(jax.random.key(1), x)
    assert_near(weights, stepwise.init(jax.random.key(1), x), 0)
    assert one.fused and not other.fused

    def differentiated(layer):
        def loss(weights, x):
            rngs = {'dropout': jax.random.key(2)} if dropped else {}
            got = layer.apply(weights, x, rngs=rngs, carry_history=True, **flags)
            return sum((y * weighing(y)).sum() for y in jax.tree.leaves(got)), got

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(weights, x)

    assert_near(differentiated(fused), differentiated(stepwise), 1e-5)


@pytest.mark.parametrize(
    'options',
    [
        {'layer_norm': True},
        {'recurrent_dropout': 0.1},
        {'zoneout_h': 0.1},
        {'activation': jax.nn.relu},
        {'recurrent_activation': jax.nn.hard_sigmoid},
    ],
)
def test_other_cells_go_step_by_step(options):
    assert GRUCell(5).fused and GRUCell(5, drop_connect=0.1).fused and not GRUCell(5, **options).fused


def test_a_weight_that_is_not_there_is_flaxs_to_refuse():
    layer, x = rnn.RNN(GRUCell(3)), jnp.ones((2, 4, 2))
    params = layer.init(jax.random.key(0), x)['params']['cell']
    for name in GRUWeights._fields:
        rest = {other: value for other, value in params.items() if other != name}
        with pytest.raises(ScopeParamNotFoundError, match=f'"{name}"'):
            layer.apply({'params': {'cell': rest}}, x)


def test_a_layer_refuses_a_way_that_is_the_lstms_alone():
    layer, x = rnn.RNN(GRUCell(3), backend='columns'), jnp.ones((2, 4, 1))
    weights = layer.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="backend='columns'"):
        layer.apply(weights, x)


# --- devices ---------------------------------------------------------------------------------------

MESH = """
import json, re
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from tests.ops import test_gru as tests
jax.config.update('jax_disable_most_optimizations', True)
found = {}
for count, rows in ((2, 4), (3, 4), (3, 2)):
    mesh = jax.make_mesh((count,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
    x, options = tests.make(rows, 34, rows, 2, 4, everything=True)
    def run(x, backend):
        return tests.values_and_gradients(x, backend=backend, **options)
    want = run(x, 'plain')
    for backend in tests.FAST:
        with jax.set_mesh(mesh):
            one = jax.device_put(x, NamedSharding(mesh, P()))
            program = jax.jit(run, static_argnums=1).lower(one, backend).compile()
            tests.assert_near(program(one), want, 1e-6)
        parts = re.split(r'\\nENTRY ', program.as_text())
        found[f'{count} {rows} {backend}'] = [len(re.findall(r' all-reduce(?:-start)?\\(', x)) for x in parts]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_devices_are_one_and_gradients_are_added_up_once():
    root = Path(__file__).parent.parent.parent
    env = os.environ | {'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '3'}
    done = subprocess.run([sys.executable, '-c', MESH], env=env, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 3 * len(FAST)
    for name, (inside, outside) in found.items():
        count, rows, _ = name.split()
        assert inside == 0 and (outside > 0) == (int(rows) >= int(count)), (name, inside, outside)
