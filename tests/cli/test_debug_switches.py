"""JAX's switches for debugging: runs finish under each of them, with the numbers of a plain run."""

import jax
import numpy as np
import pytest

from experiments import parity, td
from seqjax.cli import lengths
from seqjax.runs import directory
from seqjax.runs.directory import Workdir
from seqjax.training import fit_results
from tests.helpers import kinds
from tests.training import test_fit

SWITCHES = {
    'jax_disable_jit': True,
    'jax_check_tracer_leaks': True,
    'jax_debug_nans': True,
    'jax_debug_infs': True,
    'jax_enable_x64': True,
}


@pytest.fixture
def switch(request):
    """Turns a switch on."""
    before = getattr(jax.config, request.param)
    jax.config.update(request.param, SWITCHES[request.param])
    yield request.param
    jax.config.update(request.param, before)


@pytest.fixture(scope='module')
def plain():
    return test_fit.run(test_fit.noisy(), rate=0.1, steps=4, seeds=(0, 1))


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('switch', SWITCHES, indirect=True)
def test_a_fit_has_the_same_numbers(switch, plain):
    found = test_fit.run(test_fit.noisy(), rate=0.1, steps=4, seeds=(0, 1))
    assert found.evals.shape == plain.evals.shape and np.isfinite(found.evals).all()
    if switch != 'jax_enable_x64':  # which draws other numbers
        np.testing.assert_allclose(found.evals, plain.evals, rtol=1e-5)
        np.testing.assert_array_equal(found.best.step, plain.best.step)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('switch', ['jax_disable_jit', 'jax_enable_x64'], indirect=True)
def test_a_run_of_td_finishes(switch, tmp_path):
    how = {'length': 2, 'hidden': 1, 'epochs': 2, 'plot': False, 'workdir': str(tmp_path)}
    found = td.run(**how, num_seeds=2)
    assert found.metrics['loss'].shape == (2, 2) and found.metrics['loss'].dtype == np.float32
    assert td.run(**how, num_seeds=2).summary['finished']  # shown again


SHORT = {'longest': 2, 'hidden': 1, 'batch_size': 2, 'steps': 1, 'eval_every': 1, 'num_seeds': 1, 'plot': False}


@pytest.mark.parametrize('switch', ['jax_enable_x64'], indirect=True)
def test_a_study_finishes(switch):
    assert len(parity.run(**SHORT).seeds) == 1


@pytest.mark.parametrize('switch', ['jax_debug_nans'], indirect=True)
def test_a_length_without_a_sequence_makes_no_nan_on_the_device(switch):
    """Of one symbol there is no a^n b^n."""
    outcome = lengths.run(
        task='anbn', **SHORT | {'longest': 4}, max_test_length=8, num_lengths=2, sequences_per_length=2
    )
    test = outcome.seeds[0].test
    assert 'within/4' in test and 'within/1' not in test and not np.isnan(list(test.values())).any()


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('switch', ['jax_debug_infs', 'jax_enable_x64'], indirect=True)
def test_a_run_on_a_file_finishes(switch, tmp_path):
    (tmp_path / 'data').write_text('40')
    kinds.EXPERIMENT.run(
        data=str(tmp_path / 'data'), steps=1, num_seeds=1, hidden=1, plot=False, workdir=str(tmp_path / 'w')
    )
    assert (
        directory.read_summary(Workdir(tmp_path / 'w'))['finished'] and (tmp_path / 'w' / fit_results.MODELS).is_file()
    )


@pytest.mark.parametrize('switch', ['jax_debug_nans'], indirect=True)
def test_a_nan_stops_a_run_where_it_arises(switch):
    with pytest.raises(FloatingPointError):
        td.run(length=2, hidden=1, epochs=20, learning_rate=1e38, plot=False)
