"""The default run directory: a pure function of the flags that decide numbers."""

import os
import re

import pytest

from experiments import echo, parity, td
from seqjax.cli import classify, command_line, compare, default_workdir, forecast, lengths, sweep, text
from seqjax.errors import UserError

HASH = '-[0-9a-f]{6}$'


def directory(module, *argv):
    """The --workdir that a command line gets; nothing is run."""
    command = module.COMMAND
    values = command.complete(command_line.parse(*command.full_table(argv), list(argv)))
    return values['workdir'].replace(os.sep, '/')


@pytest.mark.parametrize(
    ('module', 'argv', 'want'),
    [
        (td, [], 'runs/td/many_to_many'),
        (td, ['--flagfile=many_to_many'], 'runs/td/many_to_many'),
        (td, ['--flagfile=one_to_one'], 'runs/td/one_to_one'),
        (td, ['--setup=many_to_one', '--epochs=3', '--noplot', '--max_to_keep=5'], 'runs/td/many_to_one'),
        (td, ['--learning_rate=0.001', '--distributed=off', '--mesh=data:1'], 'runs/td/many_to_many'),
        (echo, ['--feed=shuffle'], 'runs/echo/shuffle'),
        (parity, ['--cell=gru', '--steps=500', '--eval_every=125'], 'runs/parity/gru'),
        (lengths, ['--task=parity'], 'runs/lengths/parity/lstm'),
        (compare, ['--tasks=adding,parity', '--cells=lstm,gru,lru'], 'runs/compare/adding-parity'),
        (sweep, ['--experiment=echo'], 'runs/sweep/echo'),
        (text, ['--data=book.txt'], 'runs/text/book-lstm'),
        (text, ['--data=book.txt', '--cells=lstm,gru'], 'runs/text/book-compare'),
        (classify, ['--data=Gestures_TRAIN.ts', '--cell=gru'], 'runs/classify/Gestures_TRAIN-gru'),
        (forecast, ['--data=sales.csv', '--steps=700'], 'runs/forecast/sales-lstm'),
        (td, ['--workdir=mine', '--hidden=6'], 'mine'),
    ],
)
def test_flags_at_their_defaults_keep_the_plain_name(module, argv, want):
    assert directory(module, *argv) == want


# Pairs of command lines that make different numbers, or that one directory refuses.
PAIRS = [
    (td, [], ['--learning_rate=0.1']),
    (td, ['--learning_rate=0.1'], ['--learning_rate=0.2']),
    (td, [], ['--num_seeds=100']),
    (td, ['--flagfile=many_to_many'], ['--flagfile=many_to_many_solved']),
    (echo, ['--seed=1'], ['--seed=2']),
    (parity, [], ['--hidden=8']),
    (parity, [], ['--steps=20']),  # which decide --eval_every
    (parity, ['--longest=10'], ['--longest=11']),
    (lengths, ['--max_test_length=500'], ['--max_test_length=600']),
    (compare, ['--max_params=5000'], ['--max_params=6000']),
    (compare, [], ['--steps=20']),
    (sweep, ['--grid=hidden:8,16'], ['--grid=hidden:8,32']),
    (sweep, ['--epochs=100'], ['--epochs=200']),
    (forecast, ['--data=sales.csv'], ['--data=sales.tsv']),
    (forecast, ['--data=2019/sales.csv'], ['--data=2020/sales.csv']),
    (forecast, ['--data=sales.csv'], ['--data=2020/sales.csv']),
    (forecast, ['--data=sales.csv'], ['--data=costs.csv']),
    (forecast, ['--data=sales.csv'], ['--data=sales.csv', '--horizon=14']),
    (forecast, ['--data=a b.csv'], ['--data=a?b.csv']),
    (forecast, [f'--data={"x" * 250}1.csv'], [f'--data={"x" * 250}2.csv']),
    (forecast, ['--data=é.csv'], ['--data=è.csv']),
    (forecast, ['--data=a.csv', '--steps=25'], ['--data=a.csv', '--steps=50']),
    (text, ['--data=one/'], ['--data=two/']),
]


@pytest.mark.parametrize(('module', 'one', 'other'), PAIRS)
def test_runs_of_other_numbers_have_other_directories(module, one, other):
    first, second = directory(module, *one), directory(module, *other)
    assert first != second and first == directory(module, *one)
    for path in (first, second):
        for part in path.split('/'):
            assert re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9._-]{0,140}', part), path


@pytest.mark.parametrize(
    'data',
    ['...', '.csv', '-x.csv', 'a/b/..', 'a\nb.csv', 'C:\\sales.csv', 'x' * 255, '\udce9.csv', 'p:q/r.csv', '/'],
    ids=lambda data: ascii(data)[:20],  # half a surrogate pair in a name ends the tests of several processes
)
def test_the_directory_is_one_that_every_file_system_takes(data, tmp_path):
    path = directory(forecast, f'--data={data}')
    assert re.fullmatch(r'runs/forecast/[A-Za-z0-9_][A-Za-z0-9._-]{0,140}', path) and re.search(HASH, path)
    (tmp_path / path).mkdir(parents=True)


def test_a_path_has_one_hash_in_every_locale():
    """Python has bytes that the locale cannot decode as surrogates."""
    assert directory(forecast, '--data=é/x.csv') == directory(forecast, '--data=\udcc3\udca9/x.csv')


def test_what_python_is_given_is_left_alone():
    assert default_workdir.default_workdir({'workdir': 'w', 'a': 1}, {'a': 2}, 'x')['workdir'] == 'w'


def test_the_second_command_is_not_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ['--epochs=2', '--noplot']
    assert td.main(argv) == td.main([*argv, '--learning_rate=0.1']) == td.main([*argv, '--hidden=3']) == 0
    found = sorted(path.name for path in (tmp_path / 'runs/td').iterdir())
    assert len(found) == 3 and found[0] == 'many_to_many'
    out = capsys.readouterr().out
    assert all(f'runs/td/{name} ' in out.replace(os.sep, '/') for name in found)


def test_a_task_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match='--task=nothing'):
        directory(lengths, '--task=nothing')
