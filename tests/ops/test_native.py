"""The native kernels: any shape equals the plain recurrence, and a machine that cannot build them runs without."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqjax.nn import rnn, wrappers
from seqjax.nn.cells.gru_cell import GRUCell
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.ops import gru, lstm
from seqjax.ops.native import library
from tests.helpers import backends
from tests.helpers.reference import assert_near

needs_kernels = pytest.mark.skipif(not backends.available(['native']), reason='no C++ compiler')
CELLS = ['lstm', 'gru', 'gru_reset_before']
ROOT = Path(__file__).parent.parent.parent


def run(cell, x, flags, backend, reverse=False):
    if cell == 'lstm':
        carry, reset_carry = (x['c'], x['h']), (x['reset_c'], x['reset_h'])
        flags = flags | ({'reset_carry': reset_carry} if 'resets' in flags else {})
        weights = (x['kernel'], x['recurrent_kernel'], x['bias'])
        return lstm.lstm(x['inputs'], carry, *weights, **flags, reverse=reverse, history=True, backend=backend)
    flags = flags | ({'reset_carry': x['reset_h']} if 'resets' in flags else {})
    after = cell == 'gru'
    weights = (x['kernel'], x['recurrent_kernel'], x['bias'], x['recurrent_bias'] if after else None)
    return gru.gru(x['inputs'], x['h'], *weights, **flags, reset_after=after, reverse=reverse, backend=backend)


def problem(cell, steps, rows, features, hidden, dtype=np.float64, seed=0):
    rng, count = np.random.default_rng(seed), 4 if cell == 'lstm' else 3
    shapes = {
        'inputs': (steps, rows, features),
        'kernel': (features, count * hidden),
        'recurrent_kernel': (hidden, count * hidden),
        'bias': (count * hidden,),
        'recurrent_bias': (count * hidden,),
    } | dict.fromkeys(('c', 'h', 'reset_c', 'reset_h'), (rows, hidden))
    scale = {'recurrent_kernel': hidden, 'kernel': features + 1}  # without which rounding grows from step to step
    x = {name: rng.normal(size=shape) / 2 / scale.get(name, 1) ** 0.5 for name, shape in shapes.items()}
    x = {name: jnp.asarray(v, dtype) for name, v in x.items()}
    flags = {name: jnp.asarray(rng.random((steps, rows)) < share) for name, share in (('mask', 0.7), ('resets', 0.2))}
    return x, flags


def values_and_gradients(cell, x, flags, backend, reverse=False):
    def values(x):
        return jax.tree.leaves(run(cell, x, flags, backend, reverse))

    out, pullback = jax.vjp(values, x)
    rng = np.random.default_rng(1)
    return out, pullback([jnp.asarray(rng.normal(size=v.shape), v.dtype) for v in out])


@needs_kernels
@pytest.mark.parametrize('cell', CELLS)
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.integers(1, 40),
    rows=st.integers(0, 70),
    features=st.integers(0, 70),
    hidden=st.integers(1, 140),
    names=st.sets(st.sampled_from(['mask', 'resets'])),
    reverse=st.booleans(),
)
def test_any_shape_equals_the_plain_recurrence(x64, cell, steps, rows, features, hidden, names, reverse):
    x, flags = problem(cell, steps, rows, features, hidden)
    flags = {name: flags[name] for name in sorted(names)}
    want = values_and_gradients(cell, x, flags, 'plain', reverse)
    assert_near(values_and_gradients(cell, x, flags, 'native', reverse), want, 1e-11)


@needs_kernels
@pytest.mark.parametrize('cell', CELLS)
@pytest.mark.parametrize(('rows', 'hidden'), [(40, 48), (9, 300), (1, 33)])  # rows divided, units divided, few rows
def test_sizes_that_use_several_threads(cell, rows, hidden):
    x, flags = problem(cell, 50, rows, 20, hidden, np.float32)
    want = values_and_gradients(cell, x, flags, 'plain')
    got = [values_and_gradients(cell, x, flags, 'native') for _ in range(3)]
    assert_near(got[0], want, 1e-5)
    for other in got[1:]:
        jax.tree.map(np.testing.assert_array_equal, got[0], other)


@needs_kernels
@pytest.mark.parametrize('cell', CELLS)
@pytest.mark.parametrize(('steps', 'rows', 'hidden'), [(1, 1, 300), (1, 11, 33), (3, 4, 70)])
def test_few_steps_read_the_weights_without_packing_them(x64, cell, steps, rows, hidden):
    x, flags = problem(cell, steps, rows, 19, hidden)
    want = values_and_gradients(cell, x, flags, 'plain')
    assert_near(values_and_gradients(cell, x, flags, 'native'), want, 1e-11)


@needs_kernels
@pytest.mark.parametrize('cell', CELLS)
@pytest.mark.parametrize('value', [np.nan, np.inf, -1e30])
def test_masked_inputs_reach_nothing(cell, value):
    x, flags = problem(cell, 12, 5, 3, 20, np.float32)
    changed = x | {'inputs': jnp.where(flags['mask'][..., None], x['inputs'], value)}
    got, want = (values_and_gradients(cell, y, flags, 'native') for y in (changed, x))
    jax.tree.map(np.testing.assert_array_equal, got, want)


@needs_kernels
def test_large_and_missing_numbers_are_those_of_the_plain_recurrence():
    x, _ = problem('lstm', 6, 3, 2, 5, np.float32)
    x['inputs'] = jnp.full((6, 3, 2), 1e4).at[2, 1].set(jnp.nan)
    got, want = (jax.tree.leaves(run('lstm', x, {}, backend)) for backend in ('native', 'plain'))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-37)


@needs_kernels
@pytest.mark.parametrize('cell', CELLS)
def test_mapped_and_shared_arrays(x64, cell):
    x, flags = problem(cell, 7, 4, 3, 18)
    many = {name: jnp.stack([v, 2 * v, -v]) for name, v in x.items() if name in ('kernel', 'h')}

    def gradients(backend):
        def loss(changed):
            return sum((v**2).sum() for v in jax.tree.leaves(run(cell, x | changed, flags, backend)))

        return jax.vmap(jax.value_and_grad(loss))(many)

    assert_near(gradients('native'), gradients('plain'), 1e-11)


@needs_kernels
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_other_dtypes_are_refused_by_name_and_run_by_default(dtype):
    x, _ = problem('lstm', 12, 60, 2, 30, dtype)
    with pytest.raises(ValueError, match=f"backend='native'.*{jnp.dtype(dtype).name}"):
        run('lstm', x, {}, 'native')
    assert run('lstm', x, {}, 'auto').outputs.dtype == dtype


@needs_kernels
@pytest.mark.parametrize('cell', [LSTMCell(40), GRUCell(40), GRUCell(40, reset_after=False)])
def test_layers_use_the_kernels(cell):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 20, 6)), jnp.float32)
    layer = wrappers.Stack([rnn.RNN(cell), wrappers.Bidirectional(rnn.RNN(cell.copy()), rnn.RNN(cell.copy()))])
    weights = layer.init(jax.random.key(0), x)
    lengths = jnp.array([20, 1, 0, 7, 20, 3, 11, 19])

    def outputs(weights):
        return layer.apply(weights, x, seq_lengths=lengths)

    assert str(jax.make_jaxpr(outputs)(weights)).count('seqjax_forward') == 3
    fast = jax.grad(lambda w: (outputs(w) ** 2).sum())(weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.VARIABLE, library.OFF)
        assert 'seqjax_forward' not in str(jax.make_jaxpr(lambda w: outputs(w))(weights))
        assert_near(jax.grad(lambda w: (outputs(w) ** 2).sum())(weights), fast, 1e-5)


# --- the library -----------------------------------------------------------------------------------

PROGRAM = """
import sys
from seqjax.ops.native import library
import jax.numpy as jnp
from seqjax.ops import lstm
zeros = jnp.zeros((9, 40))
out = lstm.lstm(jnp.ones((9, 9, 2)), (zeros, zeros), jnp.ones((2, 160)), jnp.ones((40, 160)) / 9, jnp.zeros(160))
print(float(out.outputs.sum()), library.load('float32').key is not None)
"""


def start(**changes):
    env = {name: value for name, value in (os.environ | {'PYTHONPATH': str(ROOT)} | changes).items() if value != ''}
    return subprocess.Popen(
        [sys.executable, '-c', PROGRAM], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result(process):
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    value, used = out.split()
    return float(value), used == 'True', err


@needs_kernels
def test_without_the_kernels_everything_runs(tmp_path):
    value, used, err = result(start())
    assert used and err == ''
    blocked = tmp_path / 'file'
    blocked.write_text('')
    ways = {
        'off': {library.VARIABLE: library.OFF},
        'no compiler': {'PATH': str(tmp_path), 'CXX': '', 'XDG_CACHE_HOME': str(tmp_path / 'a')},
        'a compiler that fails': {'CXX': '/bin/false', 'XDG_CACHE_HOME': str(tmp_path / 'b')},
        'a cache that cannot be written': {'XDG_CACHE_HOME': str(blocked)},
    }
    for process in [start(**changes) for changes in ways.values()]:
        other, used, err = result(process)
        assert not used and err == '' and other == pytest.approx(value, rel=1e-5)


@needs_kernels
def test_two_processes_build_at_once_and_a_truncated_file_is_built_again(tmp_path):
    for _ in range(2):
        found = [result(process) for process in [start(XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]]
        assert all(used for _, used, _ in found) and len({value for value, _, _ in found}) == 1
        assert any('Compiled the native kernels for float32' in err for _, _, err in found)
        *_, path = (tmp_path / 'seqjax' / 'native').glob('*.so')
        path.write_bytes(path.read_bytes()[:5000])  # loading it would end the process


def test_the_variable_decides(monkeypatch):
    monkeypatch.setenv(library.VARIABLE, 'no')
    with pytest.raises(ValueError, match=f'{library.VARIABLE}=no'):
        library.load('float32')
    monkeypatch.setattr(library, '_load', lambda dtype: library.Library(None, 'no compiler here'))
    monkeypatch.setenv(library.VARIABLE, library.REQUIRE)
    with pytest.raises(RuntimeError, match='no compiler here'):
        library.load('float32')
    monkeypatch.setenv(library.VARIABLE, library.AUTO)
    assert library.load('float32').key is None and not library.supports('cpu', jnp.zeros(1))


@pytest.mark.parametrize('how', ['flag', 'variable'])
def test_a_command_that_cannot_build_required_kernels_ends_with_one_sentence(tmp_path, how):
    env = os.environ | {'PATH': str(tmp_path), 'CXX': '', 'XDG_CACHE_HOME': str(tmp_path), 'PYTHONPATH': str(ROOT)}
    env |= {library.VARIABLE: library.REQUIRE} if how == 'variable' else {}
    flags = ['--native=require'] if how == 'flag' else []
    done = subprocess.run(
        [sys.executable, '-m', 'experiments.td', '--epochs=1', f'--workdir={tmp_path}/w', *flags],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and 'no C++ compiler' in done.stderr and 'Traceback' not in done.stderr


def test_a_gpu_never_sees_them():
    assert not library.supports('gpu', jnp.zeros(1)) and not library.supports('tpu', jnp.zeros(1))
    assert not library.supports('cpu', jnp.zeros(1), jnp.zeros(1, jnp.bfloat16))


# --- the kernels alone -----------------------------------------------------------------------------

SANITIZE = ['-march=native', '-g', '-fno-sanitize-recover=all']


@needs_kernels
@pytest.mark.parametrize(
    'flags',
    [
        pytest.param(['-march=native'], id='this machine'),
        pytest.param([], id='baseline'),
        pytest.param(['-mavx2', '-mfma'], id='avx2', marks=pytest.mark.slow),
        pytest.param([*SANITIZE, '-fsanitize=address,undefined'], id='addresses', marks=pytest.mark.slow),
        pytest.param([*SANITIZE, '-fsanitize=thread'], id='threads', marks=pytest.mark.slow),
    ],
)
def test_the_kernels_equal_loops_over_numbers(tmp_path, flags):
    """Forward passes, and that gradients do not depend on the number of threads; see native_check.cc."""
    out = tmp_path / 'check'
    options = ['-O1', '-std=c++17', '-ffp-contract=fast', '-fno-math-errno', '-pthread']
    source = Path(__file__).parent / 'native_check.cc'
    include = Path(library.__file__).parent
    compiler = library.find_compiler()
    subprocess.run([*compiler, *options, *flags, f'-I{include}', '-o', str(out), str(source)], check=True, timeout=300)
    done = subprocess.run([str(out), '20'], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
