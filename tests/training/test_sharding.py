"""Devices: eight of them give the curve of one, whatever is divided; and what cannot be divided is told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import echo
from seqjax.ops.native import library
from seqjax.training import sharding
from tests.runs.test_multihost import RUN, losses

ROOT = Path(__file__).parent.parent.parent

CODE = """
import sys
from experiments import echo
for argv in sys.argv[1:]:
    code = echo.main(argv.split())
    print('code', code)
"""


def eight(*commands):
    """Runs in one process with eight devices -> its output."""
    env = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_NUM_CPU_DEVICES': '8', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
    done = subprocess.run(
        [sys.executable, '-c', CODE, *commands], env=env, capture_output=True, text=True, check=False, timeout=300
    )
    return done.stdout + done.stderr


def flags(**options):
    return ' '.join(f'--{name}={value}' for name, value in {**RUN, **options}.items())


def test_eight_devices_are_one(tmp_path):
    """A batch of 8, replicas that do not divide, weights divided, too: curves to 1e-5, and checkpoints that move."""
    common, many = {'steps': 12}, {'steps': 6, 'num_seeds': 11}
    out = eight(
        flags(**common, mesh='data:8', workdir=tmp_path / 'rows'),
        flags(**common, mesh='data:2,model:4', workdir=tmp_path / 'weights'),
        flags(**common | {'steps': 6}, mesh='data:4', workdir=tmp_path / 'moved'),
        flags(**many, mesh='data:8', workdir=tmp_path / 'replicas'),
        flags(**many | {'steps': 3}, mesh='data:4', workdir=tmp_path / 'moved_replicas'),
        flags(num_seeds=3, steps=3, mesh='data:2,model:2', workdir=tmp_path / 'no'),
        flags(steps=3, mesh='data:3', workdir=tmp_path / 'none'),
    )
    assert out.count('code 0') == 5 and out.count('code 2') == 2, out
    assert '--mesh=data:3' in out
    assert 'data:8 of 8 cpu' in out
    assert '--mesh=data:2,model:2' in out
    echo.run(**RUN, **common, workdir=str(tmp_path / 'one'))
    echo.run(**RUN, **common, workdir=str(tmp_path / 'moved'))
    want = losses(tmp_path / 'one')
    for name in ('rows', 'weights', 'moved'):
        np.testing.assert_allclose(losses(tmp_path / name), want, rtol=1e-5, err_msg=name)
    echo.run(**RUN, **many, workdir=str(tmp_path / 'one_replicas'))
    echo.run(**RUN, **many, workdir=str(tmp_path / 'moved_replicas'))
    want = np.load(tmp_path / 'one_replicas' / 'replicas.npz')['loss']
    assert want.shape == (11, 6)
    for name in ('replicas', 'moved_replicas'):
        np.testing.assert_allclose(np.load(tmp_path / name / 'replicas.npz')['loss'], want, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_by_itself_a_run_divides_what_pays_and_replicas_that_take_turns_are_single_runs(tmp_path):
    """Rows that cannot be divided evenly, a model that draws, replicas too large to lie side by side."""
    sizes = {'cell': 'lstm', 'hidden': 32, 'batch_size': 65, 'window': 24, 'length': 4000, 'steps': 4}
    draws = sizes | {'layers': 2, 'dropout': 0.5}
    out = eight(
        flags(**sizes, workdir=tmp_path / 'rows'),
        flags(**draws, workdir=tmp_path / 'draws'),
        flags(**sizes, num_seeds=64, workdir=tmp_path / 'replicas'),
    )
    assert out.count('code 0') == 3, out
    assert 'a batch of 65 on 8 cpu devices' in out and 'a batch of 65 on 1 of 8 cpu devices' in out
    assert '64 replicas on 8 cpu devices' in out
    echo.run(**RUN | sizes, workdir=str(tmp_path / 'one'))
    want = losses(tmp_path / 'one')
    np.testing.assert_allclose(losses(tmp_path / 'rows'), want, rtol=1e-5)
    replicas = np.load(tmp_path / 'replicas' / 'replicas.npz')['loss']
    np.testing.assert_allclose(replicas[0], want, rtol=1e-5)
    assert len(np.unique(replicas[:, 0])) == 64


def test_the_layout_divides_what_it_says():
    """Of a State on eight devices: the carry's rows, the weights' columns, replicas; all else is everywhere."""
    code = """
import jax, json, numpy as np
from experiments import echo
from seqjax import training
from seqjax.runs.parameters import flatten_with_names
flags = {**echo.EXPERIMENT.defaults, 'batch_size': 8, 'hidden': 4}
experiment = echo.EXPERIMENT
model, task, tx = experiment.make_model(flags), experiment.make_task(flags), experiment.make_optimizer(flags)
shapes = jax.eval_shape(lambda: training.init_state(model, task, tx, jax.random.key(0)))
found = {}
for asked, replicas in (('data:4,model:2', None), ('data:8', None), ('data:8', 16)):
    layout, _ = training.select_mesh(asked, rows=8, replicas=replicas)
    found[f'{asked} {replicas}'] = {name: str(x.spec) for name, x in flatten_with_names(layout.state(shapes)).items()}
print(json.dumps(found))
"""
    env = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_NUM_CPU_DEVICES': '8'}
    done = subprocess.run(
        [sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True, timeout=300
    )
    found = {
        kind: {k: v.replace('PartitionSpec', 'P') for k, v in x.items()} for kind, x in json.loads(done.stdout).items()
    }
    rows, both, replicas = found['data:8 None'], found['data:4,model:2 None'], found['data:8 16']
    assert set(replicas.values()) == {"P('data',)"}
    for layout in (rows, both):
        carries = {spec for name, spec in layout.items() if name.startswith('variables/carry')}
        assert carries == {"P('data',)"}
    assert {spec for name, spec in rows.items() if not name.startswith('variables/carry')} == {'P()'}
    assert (
        both['params/rnn/rnn/cell/recurrent_kernel'] == "P(None, 'model')" and both['params/rnn/rnn/cell/bias'] == 'P()'
    )
    assert {spec for name, spec in both.items() if name.endswith('recurrent_kernel')} == {"P(None, 'model')"}


@pytest.mark.parametrize(
    'text', ['', 'data', 'data:0', 'data:-1', 'data:x', 'model:2', 'data:2,', 'data:2,model:0', 'data:2 ', 'data:２']
)
def test_what_is_no_mesh_is_refused(text, capsys):
    assert echo.main([f'--mesh={text}']) == 2
    assert f'--mesh={text}' in capsys.readouterr().err


class Device:
    def __init__(self, platform):
        self.platform = platform


@pytest.mark.parametrize(
    ('platform', 'count', 'rows', 'replicas', 'widest', 'want'),
    [
        ('cpu', 1, 100, 100, None, ({'data': 1}, '')),
        ('cpu', 2, 64, None, 4 * 8**2, ({'data': 1}, 'a batch on 1 of 2 cpu devices (use --mesh=data:2 for all)')),
        ('cpu', 2, 640, None, 4 * 8**2, ({'data': 2}, 'a batch on 2 cpu devices')),
        ('cpu', 2, 64, None, 4 * 128**2, ({'data': 2}, 'a batch on 2 cpu devices')),
        (
            'cpu',
            2,
            64,
            None,
            4 * 1024**2,
            ({'data': 1}, 'a batch on 1 of 2 cpu devices (use --mesh=data:2 for all)'),
        ),
        ('cpu', 2, 12, None, 4 * 128**2, ({'data': 1}, 'a batch on 1 of 2 cpu devices (use --mesh=data:2 for all)')),
        ('cpu', 2, 65, None, 4 * 128**2, ({'data': 2}, 'a batch on 2 cpu devices')),
        ('cpu', 2, 64, 16, None, ({'data': 2}, 'a batch on 2 cpu devices')),
        ('cpu', 2, 64, 15, None, ({'data': 1}, 'a batch on 1 of 2 cpu devices (use --mesh=data:2 for all)')),
        ('tpu', 4, 64, None, None, ({'data': 4}, 'a batch on 4 tpu devices')),
        ('tpu', 4, 63, None, None, ({'data': 1}, 'a batch on 1 of 4 tpu devices (use --mesh=data:4 for all)')),
        ('gpu', 8, 32, None, None, ({'data': 1}, 'a batch on 1 of 8 gpu devices (use --mesh=data:8 for all)')),
    ],
)
def test_by_default_all_devices_are_used_where_each_has_enough_to_do(platform, count, rows, replicas, widest, want):
    def pays(work, most):  # sequences of 100 steps
        return 100 * rows * widest >= work and widest <= most

    assert sharding._default([Device(platform)] * count, 'a batch', rows, replicas, pays) == want


def test_cores_divide_what_is_work_and_neither_too_wide_nor_drawn(monkeypatch):
    def worth(work, widest, **options):
        flags = {**echo.EXPERIMENT.defaults, 'batch_size': 8, 'window': 10, 'hidden': 4, **options}
        return sharding.data_parallel_pays(
            echo.EXPERIMENT.make_model(flags), echo.EXPERIMENT.make_task(flags), work, widest
        )

    largest = 4 * 4 * 4  # the recurrent kernel of the LSTM, beside one input
    if library.load('float32').key is not None:  # the kernels use all cores of one device
        assert not worth(8 * 10 * largest, largest, cell='lstm')
    monkeypatch.setenv(library.VARIABLE, library.OFF)
    assert worth(8 * 10 * largest, largest, cell='lstm')
    assert not worth(8 * 10 * largest + 1, largest, cell='lstm')
    assert not worth(8 * 10 * largest, largest - 1, cell='lstm')
    assert not worth(0, 10**9, cell='lstm', layers=2, dropout=0.5)


def test_more_devices_than_there_are_is_told():
    with pytest.raises(ValueError, match='--mesh=data:2'):
        echo.run(**RUN, mesh='data:2')
    assert len(jax.devices()) == 1
