"""Every flag of every experiment, with values that nobody should write: one sentence and exit code 2, or a run."""

from pathlib import Path

import pytest

from seqjax.cli import (
    compare,
    compilation_cache,
    dataset_experiment,
    flag_tables,
    lengths,
    registry,
    sweep_grid,
    task_flags,
    task_registry,
)
from seqjax.cli.parsers import ListParser, NameParser, PathParser
from seqjax.runs import multihost
from seqjax.training import compilation
from tests.helpers import kinds

MODULES = [name for package in (registry.PACKAGE, *registry.RESEARCH) for name in registry.modules(package)]
MODULES += ['begin']  # a kind of data whose files are read in no time: with it the flags of all kinds go deep
VALUES = [
    *('', ' ', '0', '-0', '-1', '1', '2', '1.5', '1e3', '1e-400', '1e400', 'nan', 'inf', '-inf', '0x10', '1_000'),
    *(
        '9' * 400,
        'x' * 10_000,
        'ä',
        '５',
        '💥',
        '\0',
        'a\nb',
        '\udcff',
        'true',
        'None',
        '1,2',
        '1,1',
        ',',
        '1,,2',
        'a:b',
    ),
    *(
        'a:1',
        ':',
        'hidden:0',
        'length:ä',
        '../x',
        '/dev/null',
        '/dev/null/x',
        '/proc/x',
        '~nobody_here/x',
        '--',
        '%s',
        '{}',
    ),
    *(
        'auto',
        'data:1',
        'data:0',
        'data:99',
        'localhost:1',
        'loss',
        'max:',
        'max:loss',
        "'",
        '"',
        '$HOME',
        '*',
        '\x1b[31m',
    ),
]
# Of flags that name a file, a folder, a module or a column.
PLACES = [
    *('.', '..', '/', 'data', 'data/x', 'x' * 300, 'x/' * 3000, '/' + 'x/' * 500, 'ä' * 200, '\ud800', 'x\n'),
    *('seqjax:' + 'x' * 5000, 'x' * 5000 + ':y', 'x' * 200 + ':' + 'y/' * 100, 'a.b:c', 'seqjax:', 'seqjax:..'),
    *(
        'builtins:dict',
        'builtins:print',
        'seqjax.tasks.synthetic:SyntheticTask',
        'os:path',
        'os:getcwd',
        'import:x',
        'sys:exit()',
    ),
]
NAMING = (PathParser, NameParser, ListParser)


OWN = {
    'run': ['task', 'cell', 'flagfile', 'unknown'],
    'lengths': ['task', *lengths.OWN, 'longest', 'flagfile', 'unknown'],
    'compare': [*compare.OWN, 'hidden', 'workdir', 'length', 'flagfile', 'unknown'],
}


class Reached(Exception):
    """A run would begin."""


def module_of(name):
    return kinds if name == 'begin' else registry.module(name)


def flags_of(name):
    """All of them; of the studies and the commands on them, which share most of theirs, one has all."""
    module = module_of(name)
    if name == 'begin':
        ours = [flag for flag in dataset_experiment.TRAINING if flag not in task_flags.FLAGS] + [
            'steps',
            'batch_size',
            'num_seeds',
        ]
        return [
            'data',
            *ours,
            *(flag for flag in dataset_experiment.MODEL if flag not in task_flags.FLAGS),
            'flagfile',
            'unknown',
        ]
    if isinstance(getattr(module, 'EXPERIMENT', None), dataset_experiment.DatasetExperiment):
        return ['data', *module.EXPERIMENT.OWN, 'unknown']
    table = sweep_grid.table_of('td')[0] if name == 'sweep' else module.FLAGS
    if name in task_registry.NAMES and name != 'adding':
        return module.EXPERIMENT.own_flags
    if name in OWN:
        return OWN[name]
    return [*table, *(flag_tables.DISTRIBUTED_FLAGS if 'mesh' in table else []), 'flagfile', 'unknown']


@pytest.fixture
def stopped(monkeypatch, tmp_path):
    """What begins to compile, or to look for other processes, has had its flags accepted."""

    def stop(*args, **kwargs):
        raise Reached

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compilation_cache, 'enable_cache', lambda _: None)
    monkeypatch.setattr(compilation, 'compile_run', stop)
    monkeypatch.setattr('seqjax.runs.multihost.start', lambda text, _: None if text == multihost.OFF else stop())
    monkeypatch.setattr('seqjax.cli.command.use_cores', lambda *_: None)
    monkeypatch.setattr('benchmarks.soak.Soak', stop)
    monkeypatch.setattr('benchmarks.bench.Bench.run', stop)


@pytest.mark.representative(every=7, first=3)
@pytest.mark.parametrize(('name', 'flag'), [(name, flag) for name in MODULES for flag in flags_of(name)])
def test_no_value_of_a_flag_ends_in_a_traceback(name, flag, stopped, capsys):
    module, accepted = module_of(name), 0
    default = {'checkpoint': ['--workdir=nowhere'], 'begin': ['--data=data']}
    Path('data').write_text('40')
    parser = (getattr(module, 'FLAGS', {}) | flag_tables.CACHE_FLAGS).get(flag, (None,))[0]
    values = [*VALUES, *(PLACES if flag == 'flagfile' or isinstance(parser, NAMING) else [])]
    for value in values:
        try:
            code = module.main([*default.get(name, []), f'--{flag}={value}'])
        except Reached:
            code = None
        out, err = capsys.readouterr()
        if code == 2:
            assert err.count('\n') == 1, (value, err)
            assert len(err) < 1000 + 2 * len(value), (value, err)
        else:
            assert code in (None, 0) and err == '', (value, code, err)
            accepted += 1
    assert accepted < len(values) / 2 or flag in (
        'workdir',
        'replica_group',
        'export',
        'keep_best',
        'metric',
        'prompt',
        'page',
    )
