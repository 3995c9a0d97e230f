"""What all tests share: strict shapes, float64 where a test asks for it, Keras on its JAX backend."""

import functools
import gc
import itertools
import os
from pathlib import Path

import jax
import pytest

from seqjax import optim, train
from seqjax.tasks.td import td

os.environ['KERAS_BACKEND'] = 'jax'  # read when Keras is imported, which only the fixture below does

# A mask [B, T] against outputs [B, T, O], or a bias against a batch, must not be broadcast by accident.
jax.config.update('jax_numpy_rank_promotion', 'raise')


jax.devices()  # one of the CPU: the command line would make every core one

MAPS, MAX_MAPS, finished = Path('/proc/self/maps'), 30_000, itertools.count(1)


@pytest.fixture(autouse=True)
def room_for_programs():
    """Lets go of compiled programs before there are too many.

    Each is some mappings of memory, of which Linux gives a process 65,530 by default; the next one aborts it.
    """
    yield
    if next(finished) % 20 == 0 and MAPS.exists() and MAPS.read_bytes().count(b'\n') > MAX_MAPS:
        jax.clear_caches()
        gc.collect()


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
    """setup -> the td task, an optimiser, and programs for up to 200 steps of it: compiled once for all tests."""

    @functools.cache
    def compiled(setup, replicas=None):
        task, tx = td(setup), optim.adam(1e-3, 1e-7)
        programs = train.compile_programs(task, tx, task.data.inputs, chunk=200, replicas=replicas)
        return task, tx, programs

    return compiled
