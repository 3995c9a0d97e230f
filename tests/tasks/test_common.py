"""What holds for every kind of data: one door, every cell, parts of a file, predictions that are those of the test."""

import importlib
import json

import jax
import numpy as np
import pytest

from seqjax.cli import predict, registry, task_setup
from seqjax.nn import models
from tests.cli.test_fitting import argv_of, rows_of
from tests.helpers import kinds

pytest.importorskip('pandas', reason='files are read by the extra "data"')

QUICK = {'hidden': 4, 'steps': 4, 'eval_every': 2, 'patience': 2, 'num_seeds': 2, 'batch_size': 4, 'plot': False}


# name -> file, its maker, flags
KINDS = {
    'forecast': ('waves.csv', kinds.table, {'target': 'wave', 'covariates': 'day', 'horizon': 3, 'window': 16}),
    'classify': ('slopes.ts', kinds.archive, {}),
    'text': ('cats.txt', kinds.text, {'window': 16, 'max_eval_tokens': 400}),
    'music': ('songs.mat', kinds.rolls, {'window': 8}),
    'digits': ('digits', None, {'test_size': 100}),
}


@pytest.fixture(params=KINDS)
def kind(request, in_tmp):
    """A kind, and the flags of a small run of it."""
    file, make, flags = KINDS[request.param]
    if make is not None:
        make(in_tmp / file)
    return registry.module(request.param).EXPERIMENT, {**QUICK, **flags, 'data': file}


@pytest.fixture(scope='module')
def runs():
    """Finished runs: name -> a folder, and what the command said."""
    return {}


@pytest.fixture
def trained(kind, runs, in_tmp, tmp_path_factory, capsys):
    """Leaves a finished run of the kind in w, which is trained once for all tests; returns what the command said."""
    kind, flags = kind
    assert registry.find(kind.name).main(argv_of(flags | {'workdir': 'w'})) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'lstm(4)' in lines[-1]
    assert predict.main(['--workdir=w', f'--data={flags["data"]}', '--split=test', '--out=p.csv']) == 0
    own, again = rows_of('w/predictions.csv'), rows_of('p.csv')
    assert len(own) > 4 and again == own
    if kind.name != 'text':  # which reads on from what stands before
        assert predict.main(['--workdir=w', f'--data={flags["data"]}', '--out=all.csv']) == 0
        shared = [i for i, name in enumerate(own[0]) if name not in ('index', 'piece')]
        whole = {tuple(row[i] for i in shared) for row in rows_of('all.csv')}
        assert {tuple(row[i] for i in shared) for row in own} <= whole


@pytest.mark.representative(1)
@pytest.mark.parametrize('cell', models.CELLS)
def test_it_takes_every_cell_in_two_layers(kind, cell):
    kind, flags = kind
    settings = kind.check(flags | {'cell': cell, 'layers': 2, 'dropout': 0.5, 'input_dropout': 0.1})
    spec = kind.dataset(settings).spec
    assert spec.outputs >= 1
    task_setup.make_model(spec, settings.replace(bidirectional=not spec.causal).model)


def test_its_recipe_is_json_and_makes_the_same_model(kind):
    kind, flags = kind
    settings = kind.check(flags)
    dataset = kind.dataset(settings)
    preprocessing = json.loads(json.dumps(dict(dataset.preprocessing)))
    spec = kind.spec(preprocessing)
    for name in ('output', 'outputs', 'features', 'vocabulary', 'stateful', 'causal'):
        assert getattr(spec, name) == getattr(dataset.spec, name), name


def test_both_parts_are_read_as_one_is_and_the_test_is_in_neither(kind, in_tmp):
    """Batches have the same shapes; and the test part of the file may hold anything else."""
    kind, flags = kind
    dataset = kind.dataset(kind.check(flags))
    shapes = [
        jax.eval_shape(dataset.batch, data, jax.random.key(0), jax.ShapeDtypeStruct((), np.int32))
        for data in (dataset.data, dataset.train_plus_validation())
    ]
    assert shapes[0] == shapes[1]
    assert sum(x.size for x in jax.tree.leaves(dataset.train_plus_validation())) > sum(
        x.size for x in jax.tree.leaves(dataset.data)
    )


def test_every_flag_has_a_help_and_the_module_shows_how_it_is_run(kind, capsys):
    kind, _ = kind
    assert registry.find(kind.name).main(['--help']) == 0
    shown = capsys.readouterr().out
    for name, flag in kind.FLAGS.items():
        assert (f'--{name}=(' in shown or f'--[no]{name}' in shown) and len(flag.help) > 5
    assert set(kind.FLAGS) == set(kind.defaults)
    assert f'seqjax {kind.name} --data=' in registry.module(kind.name).__doc__


@pytest.mark.representative(every=2)
@pytest.mark.usefixtures('trained')
def test_a_run_of_another_kind_reads_no_such_file(kind, capsys):
    """In one sentence: what the file is, or is not."""
    kind, _ = kind
    for other, (file, make, _) in KINDS.items():
        if other != kind.name and make is not None:
            make(importlib.import_module('pathlib').Path(file))
            if (kind.name, other) in {('text', 'forecast'), ('text', 'classify')}:
                continue  # which are texts, too
            capsys.readouterr()
            code = predict.main(['--workdir=w', f'--data={file}'])
            error = capsys.readouterr().err
            assert code == 2 and error.count('\n') == 1 and file in error, (other, error)
