"""Every backend is held to the plain recurrence, and that to a loop in NumPy."""

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
from jax.flatten_util import ravel_pytree

from seqjax.ops import lstm, lstm_layouts
from seqjax.ops.lstm_layouts import BatchMajor, FeatureMajor
from seqjax.ops.lstm_scan import LSTMOutput, LSTMState
from tests.helpers import backends, reference
from tests.helpers.reference import assert_near

AGAIN = 'rows_again'  # the backend 'rows' as it is for many steps
FAST = sorted({*backends.available(lstm.BACKENDS), AGAIN} - {'plain'})
AVAILABLE = sorted(set(FAST) - {AGAIN})
ANY_DTYPE = sorted(set(FAST) - {'native'})
CHUNK = dict.fromkeys(('rows', AGAIN), BatchMajor.chunk) | {'columns': FeatureMajor.chunk}
WEIGHTS = ('kernel', 'recurrent_kernel', 'bias')


def problem(key, count, rows, features, hidden, dtype=jnp.float32):
    """Arguments of `lstm`: inputs, carry, weights, and another carry."""
    shapes = {
        'inputs': (count, rows, features),
        'c': (rows, hidden),
        'h': (rows, hidden),
        'kernel': (features, 4 * hidden),
        'recurrent_kernel': (hidden, 4 * hidden),
        'bias': (4 * hidden,),
        'reset_c': (rows, hidden),
        'reset_h': (rows, hidden),
    }
    keys = jax.random.split(key, len(shapes))
    x = {name: jax.random.normal(key, shape, dtype) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
    x['kernel'] /= max(features, 1) ** 0.5
    x['recurrent_kernel'] /= hidden**0.5
    return x


@pytest.fixture(autouse=True)
def made_again(request, monkeypatch):
    if hasattr(request.node, 'callspec') and request.node.callspec.params.get('backend') == AGAIN:
        monkeypatch.setattr(lstm_layouts, 'RECOMPUTE_MIN_SIZE', 0)


def call(x, **options):
    options['backend'] = 'rows' if options.get('backend') == AGAIN else options.get('backend', 'auto')
    reset_carry = (x['reset_c'], x['reset_h']) if options.get('resets') is not None else None
    return lstm.lstm(
        x['inputs'], (x['c'], x['h']), x['kernel'], x['recurrent_kernel'], x['bias'], reset_carry=reset_carry, **options
    )


def values_and_gradients(x, **options):
    """All that a backend gives, and the gradients of a random weighing of all that to all that it is given."""

    def loss(x):
        run = call(x, **options)
        leaves = jax.tree.leaves(run)
        weighings = (jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape) for y in leaves)
        return sum((y.astype(jnp.float32) * w).sum() for y, w in zip(leaves, weighings, strict=True)), run

    (_, run), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
    return run, gradients


def options_of(seed, count, rows, everything=False):
    """What a seed says: lengths, a mask with holes, resets, the order, the history."""
    rng = np.random.default_rng(seed)
    lengths = rng.permutation(np.r_[0, count, rng.integers(0, count + 1, rows)])[:rows]
    made = {
        'seq_lengths': jnp.asarray(lengths),
        'mask': jnp.asarray(rng.random((count, rows)) < 0.7),
        'resets': jnp.asarray(rng.random((count, rows)) < 0.2),
        'reverse': True,
        'history': True,
    }
    return {k: v for k, v in made.items() if everything or rng.random() < 0.5}


def with_huge_padding(x, options):
    """The same problem, with 1e30 at all steps that are masked."""
    count, rows = x['inputs'].shape[:2]
    real = np.ones((count, rows), bool) & np.asarray(options.get('mask', True))
    real &= np.arange(count)[:, None] < np.asarray(options.get('seq_lengths', np.full(rows, count)))[None]
    return x | {'inputs': jnp.where(real[..., None], x['inputs'], jnp.asarray(1e30, x['inputs'].dtype))}


def make(seed, *shape, dtype=jnp.float32, everything=False):
    options = options_of(seed, *shape[:2], everything=everything)
    return with_huge_padding(problem(jax.random.key(seed), *shape, dtype), options), options


# --- values and gradients --------------------------------------------------------------------------


def loop(x, seq_lengths=None, mask=None, resets=None, reverse=False, history=False):
    """The equations in float64, one step and one row after the other."""
    x = {name: np.asarray(value, np.float64) for name, value in x.items()}
    (count, rows, _), c, h = x['inputs'].shape, x['c'].copy(), x['h'].copy()
    outputs, cells = np.zeros((2, count, *c.shape))
    for t in reversed(range(count)) if reverse else range(count):
        for b in range(rows):
            if resets is not None and resets[t, b]:
                c[b], h[b] = x['reset_c'][b], x['reset_h'][b]
            if (mask is None or mask[t, b]) and (seq_lengths is None or t < seq_lengths[b]):
                z = x['inputs'][t, b] @ x['kernel'] + h[b] @ x['recurrent_kernel'] + x['bias']
                i, f, g, o = np.split(z, 4)
                c[b] = reference.sigmoid(f) * c[b] + reference.sigmoid(i) * np.tanh(g)
                h[b] = reference.sigmoid(o) * np.tanh(c[b])
            outputs[t, b], cells[t, b] = h[b], c[b]
    return LSTMOutput(LSTMState(c, h), outputs, cells if history else None)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('seed', range(4))
def test_the_plain_recurrence_equals_a_loop_over_the_equations(x64, seed):
    x, options = make(seed, 7, 4, 3, 5, dtype=jnp.float64, everything=seed == 0)
    assert_near(jax.jit(lambda x: call(x, backend='plain', **options))(x), loop(x, **options), 1e-13)


def test_gradients_of_the_plain_recurrence_equal_those_written_by_hand(x64):
    x = problem(jax.random.key(0), 6, 3, 2, 4, jnp.float64)
    _, got = values_and_gradients(x, backend='plain')
    y = {name: np.asarray(value) for name, value in x.items()}
    inputs = y['inputs'].swapaxes(0, 1)
    _, _, tape = reference.lstm(inputs, y['c'], y['h'], *(y[name] for name in WEIGHTS))
    d_c = d_h = np.cos(np.arange(12, dtype=np.float32)).reshape(3, 4)
    d_outputs = np.cos(np.arange(72, dtype=np.float32)).reshape(6, 3, 4).swapaxes(0, 1)
    # The weighing is of last.c, last.h and outputs in turn, each from cos(0) on.
    want = reference.lstm_backward(tape, d_outputs, d_c, d_h)
    want['inputs'] = want['inputs'].swapaxes(0, 1)
    assert_near({name: got[name] for name in want}, want, 1e-6)


SHAPES = [(1, 1, 1, 1), (2, 3, 1, 4), (16, 2, 3, 5), (33, 1, 2, 8), (70, 3, 9, 6)]


@functools.cache
def plain(seed, shape):
    x, options = make(seed, *shape, everything=seed >= 10)
    return values_and_gradients(x, backend='plain', **options)


@pytest.mark.representative(1)
@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('seed', [*range(5), 14])
def test_a_backend_equals_the_plain_recurrence(backend, seed):
    shape = SHAPES[seed % len(SHAPES)]
    x, options = make(seed, *shape, everything=seed >= 10)
    assert_near(values_and_gradients(x, backend=backend, **options), plain(seed, shape), 1e-5)


@pytest.mark.representative(every=6)
@pytest.mark.parametrize(
    ('backend', 'count'),
    [(name, k * CHUNK[name] + more) for name in CHUNK for k, more in ((1, -1), (1, 0), (1, 1), (2, 0), (2, 1))],
)
def test_chunks_of_steps_join(backend, count):
    x, options = make(12, count, 2, 1, 3, everything=True)
    assert_near(values_and_gradients(x, backend=backend, **options), plain(12, (count, 2, 1, 3)), 1e-5)


@functools.cache
def plain_in_float64():
    x, options = make(3, 35, 3, 2, 4, dtype=jnp.float64, everything=True)
    return values_and_gradients(x, backend='plain', **options)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('backend', FAST)
def test_in_float64_a_backend_is_the_plain_recurrence_to_ten_digits(x64, backend):
    x, options = make(3, 35, 3, 2, 4, dtype=jnp.float64, everything=True)
    assert_near(values_and_gradients(x, backend=backend, **options), plain_in_float64(), 1e-10)


def rounded_to_half(x):
    return {name: v.astype(jnp.bfloat16) if name in ('inputs', *WEIGHTS) else v for name, v in x.items()}


@functools.cache
def plain_of_rounded():
    x, options = make(4, 20, 4, 3, 5, everything=True)
    rounded = {name: v.astype(jnp.float32) for name, v in rounded_to_half(x).items()}
    return values_and_gradients(rounded, backend='plain', **options)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('backend', ['plain', *ANY_DTYPE])
def test_half_precision_is_near_and_a_carry_keeps_its_dtype(backend):
    x, options = make(4, 20, 4, 3, 5, everything=True)
    half = rounded_to_half(x)
    got, gradients = values_and_gradients(half, backend=backend, **options)
    assert got.last.c.dtype == got.cells.dtype == jnp.float32 and got.outputs.dtype == jnp.bfloat16
    assert {name: v.dtype for name, v in gradients.items()} == {name: v.dtype for name, v in half.items()}
    want = plain_of_rounded()
    assert_near(*(jax.tree.map(lambda v: v.astype(jnp.float32), y) for y in ((got, gradients), want)), 2e-2)


@pytest.mark.representative(every=2, first=1)
@pytest.mark.parametrize('backend', FAST)
def test_saturated_gates_have_finite_gradients(backend):
    x = problem(jax.random.key(0), 18, 2, 3, 4)
    x['inputs'] *= 1e3
    want = values_and_gradients(x, backend='plain')
    assert_near(values_and_gradients(x, backend=backend), want, 1e-4)


@pytest.mark.representative(every=7)
@pytest.mark.parametrize('shape', [(3, 0, 2, 4), (0, 2, 2, 4), (3, 2, 0, 4), (3, 2, 2, 0)])
@pytest.mark.parametrize('backend', FAST)
def test_nothing_has_values_and_gradients_too(backend, shape):
    x, options = problem(jax.random.key(0), *shape), options_of(0, *shape[:2], everything=True)
    want = values_and_gradients(x, backend='plain', **options)
    assert_near(values_and_gradients(x, backend=backend, **options), want, 1e-5)


# --- transformations -------------------------------------------------------------------------------


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('backend', ['plain', *FAST])
def test_second_derivatives_are_those_of_finite_differences(x64, backend):
    x, options = make(5, CHUNK.get(backend, 3) + 2, 1, 1, 1, dtype=jnp.float64)
    options |= {'resets': jnp.arange(len(x['inputs']))[:, None] % 5 == 3, 'mask': None, 'seq_lengths': None}
    inputs = x.pop('inputs').clip(-1, 1)
    flat, unravel = ravel_pytree(x)

    def loss(flat):
        return sum((y**2).sum() for y in jax.tree.leaves(call(unravel(flat) | {'inputs': inputs}, **options)))

    options['backend'] = backend
    twice = jax.jit(jax.jacrev(jax.jacrev(loss)))(flat)
    options['backend'] = 'plain'
    gradient, step = jax.jit(jax.vmap(jax.grad(loss))), 1e-5 * jnp.eye(flat.size)
    want = (gradient(flat[None] + step) - gradient(flat[None] - step)) / 2e-5
    assert_near(twice, want, 1e-7)
    options['backend'] = backend
    assert_near(jax.jit(jax.hessian(loss))(flat), twice, 1e-10)


def test_forward_mode_works_with_every_backend():
    x = problem(jax.random.key(0), 4, 2, 1, 3)

    def loss(x, backend):
        return call(x, backend=backend).outputs.sum()

    gradients = jax.grad(loss)(x, 'plain')
    want = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(x), strict=True))
    for backend in ('plain', *FAST):
        slope = jax.jvp(functools.partial(loss, backend=backend), (x,), (x,))[1]
        np.testing.assert_allclose(slope, want, rtol=1e-5)


@pytest.mark.representative(1)
@pytest.mark.parametrize('backend', ['plain', *FAST])
@pytest.mark.parametrize('what', [('inputs', 'c', 'h'), WEIGHTS])
def test_many_at_once_are_each_by_itself(backend, what):
    count = 18
    x, options = make(6, count, 2, 2, 3, everything=True)
    scale = jnp.array([1, -0.5, 0.3])
    options['mask'] = options['seq_lengths'] = None  # so that no input is huge, whose rounding is
    x['inputs'] = x['inputs'].clip(-2, 2)

    def one(scale, backend):
        return values_and_gradients(x | {name: x[name] * scale for name in what}, backend=backend, **options)

    alone = jax.jit(functools.partial(one, backend='plain'))
    one_by_one = [alone(s) for s in scale]
    assert_near(
        jax.jit(jax.vmap(functools.partial(one, backend=backend)))(scale),
        jax.tree.map(lambda *y: jnp.stack(y), *one_by_one),
        1e-5,
    )


@pytest.mark.representative(every=2, first=1)
@pytest.mark.parametrize('backend', FAST)
def test_a_backend_works_within_scan_and_remat(backend):
    """Three steps of gradient descent, compiled in one loop."""
    x = problem(jax.random.key(7), 18, 2, 2, 3)

    def descend(run):
        def step(x, _):
            value, slopes = jax.value_and_grad(lambda x: (run(x).outputs ** 2).sum())(x)
            return jax.tree.map(lambda a, b: a - 0.1 * b, x, slopes), value

        return jax.jit(lambda x: jax.lax.scan(step, x, length=3))(x)

    got = descend(jax.checkpoint(functools.partial(call, backend=backend)))
    assert_near(got, descend(functools.partial(call, backend='plain')), 1e-5)


# --- refusals --------------------------------------------------------------------------------------

HALF = jnp.zeros((2, 4), jnp.bfloat16)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'inputs': jnp.ones((3, 2))}, r'inputs \(3, 2\)'),
        ({'inputs': jnp.ones((3, 2, 1), int)}, 'inputs.*int32'),
        ({'kernel': jnp.ones((2, 16))}, r'kernel \(2, 16\)'),
        ({'kernel': jnp.ones((1, 16), jnp.bfloat16)}, 'kernel.*bfloat16'),
        ({'recurrent_kernel': jnp.ones((4, 12))}, r'recurrent_kernel \(4, 12\)'),
        ({'recurrent_kernel': jnp.ones((4, 16), jnp.bfloat16)}, 'recurrent_kernel.*bfloat16'),
        ({'bias': jnp.ones((1, 16))}, r'bias \(1, 16\)'),
        ({'bias': jnp.ones(16, jnp.bfloat16)}, 'bias.*bfloat16'),
        ({'carry': (jnp.zeros((2, 4)),)}, 'carry'),
        ({'carry': (jnp.zeros((2, 3)), jnp.zeros((2, 4)))}, r'carry.c \(2, 3\)'),
        ({'carry': (jnp.zeros((2, 4)), jnp.zeros((1, 4)))}, r'carry.h \(1, 4\)'),
        ({'carry': (jnp.zeros((2, 4)), jnp.zeros((2, 4), int))}, 'carry.h.*int32'),
        ({'reset_carry': (jnp.zeros((2, 4)), jnp.zeros((4, 2)))}, r'reset_carry.h \(4, 2\)'),
        ({'reset_carry': (HALF, jnp.zeros((2, 4)))}, 'reset_carry.c.*bfloat16'),
        ({'reset_carry': jnp.zeros((3, 2, 4))}, 'reset_carry'),
        ({'seq_lengths': jnp.array([1])}, r'seq_lengths \(1,\)'),
        ({'seq_lengths': jnp.array([1, 4])}, r'seq_lengths\[1\].*4'),
        ({'mask': jnp.ones((2, 3), bool)}, r'mask \(2, 3\)'),
        ({'mask': jnp.ones((3, 2))}, 'mask.*float32'),
        ({'resets': jnp.ones((2, 3), bool)}, r'resets \(2, 3\)'),
        ({'unroll': 0}, 'unroll=0'),
        ({'backend': 'fast'}, "backend='fast'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    zeros = jnp.zeros((2, 4))
    good = {
        'inputs': jnp.ones((3, 2, 1)),
        'carry': (zeros, zeros),
        'kernel': jnp.ones((1, 16)),
        'recurrent_kernel': jnp.ones((4, 16)),
        'bias': jnp.ones(16),
    }
    with pytest.raises(ValueError, match='^' + message):
        lstm.lstm(**good | change)


# --- size and speed --------------------------------------------------------------------------------


@pytest.mark.parametrize('backend', ['auto', *backends.available(lstm.BACKENDS)])
def test_a_long_sequence_is_no_larger_a_program(backend):
    def equations(count):
        x = jax.eval_shape(lambda: problem(jax.random.key(0), count, 2, 1, 300))
        return str(jax.make_jaxpr(jax.grad(lambda x: call(x, backend=backend).outputs.sum()))(x)).count(' = ')

    assert equations(64) == equations(16384)


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='a GPU lends its products memory of their own')
@pytest.mark.parametrize('backend', CHUNK)
def test_a_backend_of_its_own_needs_less_memory(optimized, backend):
    x = jax.eval_shape(lambda: problem(jax.random.key(0), 100, 32, 64, 128))

    def needs(backend):
        gradient = jax.jit(jax.grad(lambda x: (call(x, backend=backend).outputs ** 2).sum()))
        return gradient.lower(x).compile().memory_analysis().temp_size_in_bytes

    assert needs(backend) < needs('plain')


def test_many_sums_are_not_kept(optimized, monkeypatch):
    def needs(hidden):
        x = jax.eval_shape(lambda: problem(jax.random.key(0), 512, 8, 8, hidden))
        gradient = jax.jit(jax.grad(lambda x: (call(x, backend='rows').outputs ** 2).sum()))
        return gradient.lower(x).compile().memory_analysis().temp_size_in_bytes

    chosen = {hidden: needs(hidden) for hidden in (63, 64, 128)}  # fewer sums than that, many, and dear ones
    monkeypatch.setattr(lstm_layouts, 'RECOMPUTE_MIN_SIZE', 2**30)
    assert {hidden: chosen[hidden] / needs(hidden) < 0.7 for hidden in chosen} == {63: False, 64: True, 128: False}


@pytest.mark.parametrize(
    ('steps', 'rows', 'hidden', 'want'),
    [
        (0, 9999, 9999, 'plain'),
        (8, 1, 512, 'plain'),
        (8, 1, 513, 'rows'),
        (8, 8, 900, 'columns'),
        (8, 7, 900, 'rows'),
        (9, 1, 1, 'rows'),
        (9, 99, 32, 'rows'),
        (100, 32, 899, 'rows'),
    ],
)
def test_a_backend_is_chosen_by_size(steps, rows, hidden, want):
    assert lstm.select_backend(steps, rows, hidden) == want
    assert lstm.select_backend(steps, rows, hidden, 'tpu') == 'plain'
    native = 'plain' if want == 'plain' else 'native'
    assert lstm.select_backend(steps, rows, hidden, native=True) == native
    on_gpu = 'plain' if want == 'plain' else 'ahead' if hidden <= 512 else 'columns'
    assert lstm.select_backend(steps, rows, hidden, 'gpu') == on_gpu


# --- devices ---------------------------------------------------------------------------------------

MESH = """
import json, re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from seqjax.ops import lstm, lstm_layouts
from tests.ops import test_lstm as tests
jax.config.update('jax_disable_most_optimizations', True)
found = {}
meshes = {
    'two': ({'data': 2}, ['plain', *tests.AVAILABLE], (4,)),
    'three': ({'data': 3}, tests.FAST, (2, 4)),
    'both': ({'data': 2, 'model': 2}, tests.FAST, (4,)),
}
for name in sys.argv[1:]:
    axes, backends, rows = meshes[name]
    count = int(np.prod(list(axes.values())))
    types = (AxisType.Auto,) * len(axes)
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=jax.devices()[:count])
    for b in rows:
        x, options = tests.make(b, 34, b, 2, 4, everything=True)
        def run(x, backend):
            return tests.values_and_gradients(x, backend=backend, **options)
        want = run(x, 'plain')
        places = jax.tree.map(lambda _: NamedSharding(mesh, P()), x)
        if 'model' in axes:
            for weight in ('kernel', 'recurrent_kernel'):
                places[weight] = NamedSharding(mesh, P(None, 'model'))
        if b % axes['data'] == 0:
            places['inputs'] = NamedSharding(mesh, P(None, 'data'))
        for backend in backends:
            lstm_layouts.RECOMPUTE_MIN_SIZE = 0 if backend == tests.AGAIN else 2**20
            with jax.set_mesh(mesh):
                program = jax.jit(run, static_argnums=1, in_shardings=(places,)).lower(x, backend).compile()
                tests.assert_near(program(jax.device_put(x, places)), want, 1e-6)
            entry = re.split(r'\\nENTRY ', program.as_text())
            found[f'{name} {b} {backend}'] = [len(re.findall(r' all-reduce(?:-start)?\\(', x)) for x in entry]
print(json.dumps(found))
"""


@pytest.mark.parametrize('meshes', [('two',), pytest.param(('three', 'both'), marks=pytest.mark.slow)])
def test_devices_are_one_and_gradients_are_added_up_once(meshes):
    root = Path(__file__).parent.parent.parent
    env = os.environ | {'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '4'}
    done = subprocess.run([sys.executable, '-c', MESH, *meshes], env=env, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == (1 + len(AVAILABLE) if meshes == ('two',) else 3 * len(FAST))
    for name, (inside, outside) in found.items():
        axes, rows, _ = name.split()
        if axes != 'both':
            spread = int(rows) >= {'two': 2, 'three': 3}[axes]
            assert inside == 0 and (outside > 0) == spread, (name, inside, outside)
