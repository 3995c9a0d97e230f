"""The build of the native kernels: compilers, failures that are remembered, files that are removed, commands.

Most tests compile nothing: the compiler is a script that counts its calls.
"""

import os
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import td
from seqjax.ops import lstm
from seqjax.ops.native import library
from seqjax.training import run_summary
from tests.helpers import backends

needs_kernels = pytest.mark.skipif(not backends.available(['native']), reason='no C++ compiler')
ROOT = Path(__file__).parent.parent.parent
DAY = 24 * 3600
ERROR = 'recurrent.h:7:1: error: no such type'
FAIL = f'echo "In file included from recurrent.cc" >&2; echo "{ERROR}" >&2; echo "1 error generated." >&2; exit 1'
WRITE = 'while [ "$1" != -o ]; do shift; done; out=$2\n'  # the path of the compiled file


class Compiler:
    """Script with the name of a compiler, and the cache of its results."""

    def __init__(self, folder, name='g++'):
        self.path, self.log, self.broken = folder / name, folder / 'calls', folder / 'broken'
        self.cache = folder / 'cache' / 'seqjax' / library.FOLDER

    def does(self, code):
        self.path.write_text(f'#!/bin/sh\necho "$0 $*" >> {self.log}\n{code}\n')
        self.path.chmod(0o755)

    def calls(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def files(self, pattern='*'):
        return sorted(self.cache.glob(pattern))


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that fails; `library.load` behaves as in a new process at every call."""
    monkeypatch.setattr(library, '_load', library._load.__wrapped__)
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    compiler = Compiler(tmp_path)
    monkeypatch.setenv('CXX', str(compiler.path))
    compiler.does(FAIL)
    return compiler


@pytest.fixture(scope='module')
def compiled():
    """Path of compiled kernels."""
    return library.load('float32').reason


# --- failures --------------------------------------------------------------------------------------


def test_a_failure_of_the_compiler_is_remembered(compiler):
    first = library.load('float32')
    assert first.key is None and ERROR in first.reason and 'exit status 1' in first.reason
    (path,) = compiler.files()
    assert path.name.startswith('recurrent-') and path.suffix == '.failed' and '1 error generated.' in path.read_text()
    second = library.load('float32')
    assert second.key is None and second.reason == f'{first.reason}; delete {path} to compile again'
    assert len(compiler.calls()) == 1
    library.load('float64')  # another file
    assert len(compiler.calls()) == len(compiler.files()) == 2


def test_a_remembered_failure_is_tried_again(compiler, monkeypatch):
    """If its file is deleted or a day old, the compiler or its arguments change, or the kernels are required."""
    library.load('float32')
    (path,) = compiler.files()
    path.unlink()
    library.load('float32')
    assert len(compiler.calls()) == 2
    os.utime(path, (time.time() - DAY - 60,) * 2)
    library.load('float32')
    assert len(compiler.calls()) == 3
    library.load('float32')
    assert len(compiler.calls()) == 3  # the file was written again
    compiler.does(f'{FAIL} # another compiler')
    library.load('float32')
    assert len(compiler.calls()) == 4
    monkeypatch.setenv('CXX', f'{compiler.path} -O1')
    library.load('float32')
    assert len(compiler.calls()) == 5
    monkeypatch.setenv(library.VARIABLE, library.REQUIRE)
    for count in (6, 7):
        with pytest.raises(library.UnavailableError, match=ERROR):
            library.load('float32')
        assert len(compiler.calls()) == count


@pytest.mark.parametrize(
    'code',
    [
        pytest.param('exec sleep 9', id='slow'),
        pytest.param('kill -9 $$', id='killed'),
        pytest.param('echo "fatal error: Killed signal terminated program cc1plus" >&2; exit 1', id='parts killed'),
        pytest.param('echo "error writing to /tmp/cc.s: No space left on device" >&2; exit 1', id='disk full'),
    ],
)
def test_a_failure_that_may_pass_is_not_remembered(compiler, monkeypatch, code):
    monkeypatch.setattr(library, 'TIMEOUT', 0.5 if 'sleep' in code else 60)
    compiler.does(code)
    for count in (1, 2):
        assert library.load('float32').key is None
        assert len(compiler.calls()) == count and not compiler.files()


def test_a_cache_that_cannot_be_written_is_no_failure_of_the_compiler(compiler, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    assert 'Not a directory' in library.load('float32').reason and not compiler.calls()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(library.files, 'replace', lambda *_: (_ for _ in ()).throw(OSError('full')))
    assert ERROR in library.load('float32').reason and not compiler.files()


@pytest.mark.parametrize(
    'code',
    [
        pytest.param('echo nonsense > "$out"', id='no library'),
        pytest.param('echo "int x;" | c++ -shared -fPIC -x c++ -o "$out" -', id='no symbol', marks=needs_kernels),
    ],
)
def test_a_file_that_cannot_be_loaded_is_deleted_and_remembered(compiler, code):
    compiler.does(WRITE + code)
    for _ in range(2):
        found = library.load('float32')
        assert found.key is None and 'cannot be loaded' in found.reason
        assert len(compiler.calls()) == 1 and [path.suffix for path in compiler.files()] == ['.failed']


def test_a_compiler_that_writes_no_file_has_failed(compiler):
    compiler.does('exit 0')
    assert 'g++ failed with exit status 0' in library.load('float32').reason and len(compiler.files('*.failed')) == 1


@needs_kernels
def test_a_success_replaces_a_remembered_failure(compiler, compiled, monkeypatch):
    compiler.does(f'{WRITE}test -e {compiler.broken} && exit 1; cp {compiled} "$out"')
    compiler.broken.write_text('')
    assert library.load('float32').key is None
    compiler.broken.unlink()
    assert library.load('float32').key is None
    monkeypatch.setenv(library.VARIABLE, library.REQUIRE)
    key = library.load('float32').key
    assert key is not None and len(compiler.calls()) == 2
    (path,) = compiler.files()
    assert path.suffix == '.so' and key in path.name


@needs_kernels
def test_a_build_removes_what_was_not_used_for_90_days(compiler, compiled):
    compiler.does(f'{WRITE}cp {compiled} "$out"')
    compiler.cache.mkdir(parents=True)
    names = ('recurrent-1-2.so', 'recurrent-1.failed', 'tmpabc/g')
    for age in (89, 91):
        for name in names:
            path = compiler.cache / f'{age}{name}'
            path.parent.mkdir(exist_ok=True)
            path.write_text('')
            for changed in {path, compiler.cache / path.relative_to(compiler.cache).parts[0]}:
                os.utime(changed, (time.time() - age * DAY,) * 2)
    path = Path(library.load('float32').reason)
    assert [file.name for file in compiler.files() if file != path] == [f'89{name.split("/")[0]}' for name in names]
    os.utime(path, (0, 0))
    library.load('float32')  # use of a file
    assert time.time() - path.stat().st_mtime < DAY and len(compiler.calls()) == 1


# --- compilers -------------------------------------------------------------------------------------


def test_cxx_may_have_arguments(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv('CXX', ' g++  -O1 "-DNAME=a b"')
    assert library.find_compiler() == (str(compiler.path), '-O1', '-DNAME=a b')
    assert "g++ -O1 '-DNAME=a b' failed" in library.load('float32').reason
    assert compiler.calls()[0].startswith(f'{compiler.path} -O1 -DNAME=a b -O2')
    cache = Compiler(tmp_path, 'ccache')
    cache.does(FAIL)
    monkeypatch.setenv('CXX', 'ccache g++')
    assert library.find_compiler() == (str(cache.path), 'g++')
    key = library._key(library.find_compiler(), 'float32')
    assert key == library._key(library.find_compiler(), 'float32')
    compiler.does(f'{FAIL} # another compiler')
    assert key != library._key(library.find_compiler(), 'float32')


@pytest.mark.parametrize('value', ['nonesuch', '/nonesuch/g++ -O1', 'g++ "', '""'])
def test_cxx_that_is_no_command_is_refused_by_name(compiler, monkeypatch, value):
    monkeypatch.setenv('CXX', value)
    assert library.find_compiler() is None
    assert library.load('float32').reason == f'CXX={value} is not a command; correct or unset it'


def test_without_cxx_the_first_compiler_of_the_path_is_used_and_then_ziglang(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('CXX', ' ')
    assert library.find_compiler() == (str(compiler.path),)
    compiler.path.unlink()
    monkeypatch.setitem(sys.modules, 'ziglang', None)  # importing it fails
    assert library.find_compiler() is None and library.load('float32').reason.startswith('no C++ compiler')
    package = types.ModuleType('ziglang')
    package.__path__ = [str(tmp_path / 'ziglang')]
    monkeypatch.setitem(sys.modules, 'ziglang', package)
    assert library.find_compiler() is None
    (tmp_path / 'ziglang').mkdir()
    zig = Compiler(tmp_path / 'ziglang', 'zig')
    zig.does(f'echo "$ZIG_GLOBAL_CACHE_DIR $ZIG_LOCAL_CACHE_DIR" >> {zig.log}\n{FAIL}')
    assert library.find_compiler() == (str(zig.path), 'c++')
    assert 'zig c++ failed' in library.load('float32').reason
    call, folders = zig.calls()
    assert call.startswith(f'{zig.path} c++ -O2') and len(folders.split()) == 2
    for folder in folders.split():  # they are deleted
        assert Path(folder).parent == compiler.cache and not Path(folder).exists()
    monkeypatch.setenv('CXX', 'nonesuch')
    assert library.find_compiler() is None


def test_nothing_is_compiled_for_another_platform(compiler, monkeypatch):
    assert library.reason('gpu', 'float32') == '' and not library.supports('gpu', jnp.zeros(1))
    assert library.reason('cpu', 'bfloat16') == ''
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    zeros = jnp.zeros((2, 3))
    arguments = (jnp.zeros((4, 2, 1)), (zeros, zeros), jnp.zeros((1, 12)), jnp.zeros((3, 12)), jnp.zeros(12))
    with pytest.raises(ValueError, match=r'float32 on gpu here\)$'):
        lstm.lstm(*arguments, backend='native')
    assert not compiler.calls()


def test_the_reason_on_a_cpu_is_the_error_of_the_compiler(compiler):
    assert library.reason('cpu', 'float32').endswith(ERROR) and len(compiler.calls()) == 1


# --- commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize('value', ['no', 'REQUIRE', ' '])
def test_a_command_refuses_another_value_of_the_variable(tmp_path, monkeypatch, capsys, value):
    monkeypatch.setenv(library.VARIABLE, value)
    assert td.main([f'--workdir={tmp_path}/w']) == 2
    out, err = capsys.readouterr()
    assert err == f'experiments.td: {library.VARIABLE}={value} must be one of auto, off, require\n' and not out


def test_an_empty_variable_is_the_default(monkeypatch):
    monkeypatch.setenv(library.VARIABLE, '')
    assert library.setting() == library.AUTO


@pytest.mark.parametrize('how', ['a compiler that fails', 'CXX that is no command', 'a cache that cannot be written'])
def test_a_command_whose_required_kernels_fail_ends_with_one_sentence(compiler, tmp_path, how):
    (tmp_path / 'file').write_text('')
    ways = {
        'a compiler that fails': ({}, ERROR),
        'CXX that is no command': ({'CXX': 'nonesuch'}, 'CXX=nonesuch is not a command'),
        'a cache that cannot be written': ({'XDG_CACHE_HOME': str(tmp_path / 'file')}, 'Not a directory'),
    }
    changes, reason = ways[how]
    command = [sys.executable, '-m', 'experiments.td', '--epochs=1', f'--workdir={tmp_path}/w', '--native=require']
    command += ['--compilation_cache=off']
    env = os.environ | changes
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
    assert done.stderr.startswith(f'experiments.td: {library.VARIABLE}=require, but') and reason in done.stderr
    assert done.stderr.endswith('use auto to run without them\n') and not (tmp_path / 'w').exists()


def test_a_finished_summary_lists_the_kernels_that_were_used(monkeypatch):
    monkeypatch.setattr(library, 'USED', set())
    monkeypatch.setattr(library, '_load', lambda dtype: library.Library('key' if dtype == 'float32' else None, ''))
    monkeypatch.delenv(library.VARIABLE, raising=False)
    assert library.load('float32').key == 'key' and not library.supports('cpu', jnp.zeros(1, jnp.bfloat16))
    assert run_summary.finished_summary({'finished': False, 'x': 1}, {'x': 2}) == {
        'finished': True,
        'native_kernels': [],
        'x': 2,
    }
    assert library.supports('cpu', jnp.zeros(1))
    assert run_summary.finished_summary({}, {})['native_kernels'] == ['float32']
