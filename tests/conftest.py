"""What all tests share: strict shapes, float64 where a test asks for it, Keras on its JAX backend."""

import functools
import gc
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import pytest

from seqjax import training
from seqjax.config import ModelConfig
from seqjax.nn.build import build_model
from seqjax.tasks import td
from seqjax.training import optimizers
from tests.helpers import grids

ROOT = str(Path(__file__).parent.parent)  # where experiments and benchmarks are found, also by other processes
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [ROOT, os.environ.get('PYTHONPATH')]))
os.environ['KERAS_BACKEND'] = 'jax'  # read when Keras is imported, which only the fixture below does

# A mask [B, T] against outputs [B, T, O], or a bias against a batch, must not be broadcast by accident.
jax.config.update('jax_numpy_rank_promotion', 'raise')

# GPUs and TPUs round the factors of a product of float32 unless they are asked not to; a CPU never does.
jax.config.update('jax_default_matmul_precision', 'highest')


PLAIN = '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'


def compile_plainly():
    """Most of the time of these tests goes into compiling small programs, which takes XLA far less for plain code.

    It reads its flags once, and ends the process where it does not know one, so another process tries them. Those of
    the environment go first: with `XLA_FLAGS=` all tests run the code that XLA makes by default.
    """
    if 'XLA_FLAGS' not in os.environ:
        flags = os.environ | {'XLA_FLAGS': PLAIN}
        client = 'from jaxlib import xla_client; xla_client.make_cpu_client()'
        if not subprocess.run([sys.executable, '-c', client], env=flags, capture_output=True, check=False).returncode:
            os.environ['XLA_FLAGS'] = PLAIN  # also for the processes that are started from here, as xdist's
    jax.config.update('jax_disable_most_optimizations', os.environ.get('XLA_FLAGS') == PLAIN)


def pytest_configure(config):
    """A loop that is run without `jit` is compiled by every call; the same program is compiled once for all tests.

    Before any test file is read, as JAX looks for a cache when it compiles for the first time. Each process has its own
    folder, so that none reads what another is writing.
    """
    compile_plainly()
    config.compiled = tempfile.mkdtemp(prefix='seqjax-tests-')
    jax.config.update('jax_compilation_cache_dir', config.compiled)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
    jax.devices()  # one of the CPU: the command line would make every core one


def pytest_unconfigure(config):
    shutil.rmtree(config.compiled, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # before the slow ones are deselected
def pytest_collection_modifyitems(items):
    grids.mark_slow(items)


def pytest_collection_finish():
    """Tracing makes much garbage, and more frequent looks through all modules and tests take a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)


MAPS, MAX_MAPS, finished = Path('/proc/self/maps'), 4_000, itertools.count(1)


@pytest.fixture(autouse=True)
def room_for_programs():
    """Lets go of compiled programs before there are too many.

    Each is some mappings of memory, of which Linux gives a process 65,530 by default; the next one aborts it. Four
    thousand go with almost two gigabytes.
    """
    yield
    if next(finished) % 20 == 0 and MAPS.exists() and MAPS.read_bytes().count(b'\n') > MAX_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def optimized():
    """Has XLA optimise for one test, that computes for longer than it compiles."""
    before = jax.config.read('jax_disable_most_optimizations')
    jax.config.update('jax_disable_most_optimizations', False)
    yield
    jax.config.update('jax_disable_most_optimizations', before)


@pytest.fixture
def x64():
    """Turns float64 on for one test."""
    before = jax.config.jax_enable_x64
    jax.config.update('jax_enable_x64', True)
    yield
    jax.config.update('jax_enable_x64', before)


@pytest.fixture(scope='session')
def keras():
    """Keras, imported by the first test that needs it. Its calls need `jax.numpy_rank_promotion('allow')`."""
    return pytest.importorskip('keras', reason='Keras is the reference here: pip install "seqjax[test]"')


@pytest.fixture(scope='session')
def compiled_td():
    """setup -> the td model and task, an optimiser, and programs for up to 200 steps: compiled once for all tests."""

    @functools.cache
    def compiled(setup, replicas=None):
        task, tx = td.td(setup), optimizers.adam(1e-3, 1e-7)
        model = build_model(task.spec, ModelConfig(hidden=5))
        programs = training.compile_programs(model, task, tx, task.data.inputs, steps_per_call=200, replicas=replicas)
        return model, task, tx, programs

    return compiled


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """An empty folder to be in; what is compiled there is not kept for other runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('seqjax.cli.compilation_cache.enable_cache', lambda _: None)
    return tmp_path
