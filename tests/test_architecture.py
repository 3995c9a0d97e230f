"""The order of imports and the public surface. Files are parsed, not run."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / 'seqjax'

# Each imports only from those before it, and from itself.
ORDER = (
    *('lazy', 'errors', 'files', 'options', 'validation', 'types', 'config', 'ops', 'nn', 'tasks', 'datasets'),
    *('reporting', 'runs', 'training', 'cli'),
)
PACKAGES = ('ops', 'nn', 'tasks', 'datasets', 'reporting', 'runs', 'training', 'cli')
FILES = sorted(
    file for file in LIBRARY.rglob('*.py') if file.parent != LIBRARY or file.stem not in ('__init__', '__main__')
)
OUTSIDE = ('experiments', 'benchmarks', 'tests')  # to the whole library


def imported(file):
    """Full names of all that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{file}: relative import'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def room(file):
    first = file.relative_to(LIBRARY).parts[0]
    return first.removesuffix('.py')


@pytest.mark.parametrize('file', FILES, ids=lambda file: str(file.relative_to(LIBRARY)))
def test_a_file_imports_only_from_what_comes_before_it(file):
    allowed = ORDER[: ORDER.index(room(file)) + 1]
    for name in imported(file):
        parts = name.split('.')
        assert parts[0] not in OUTSIDE, name
        if parts[0] == 'seqjax' and parts[1:] not in ([], ['__version__']):
            assert parts[1] in allowed, f'{name} comes after {room(file)}'
        if parts[0] == 'absl':
            assert room(file) == 'cli', name


def test_the_order_names_everything_there_is():
    assert {room(file) for file in FILES} == set(ORDER)


@pytest.mark.parametrize('package', PACKAGES)
def test_public_names_of_a_package_exist(package):
    module = importlib.import_module(f'seqjax.{package}')
    assert module.__all__ == dir(module)
    for name in module.__all__:
        assert getattr(module, name) is not None, name
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


def test_no_two_public_classes_and_no_two_modules_share_a_name():
    """A package may be named as a module of another kind is; files of one name in two folders are confusing."""
    modules, classes = {}, {}
    for file in FILES:
        if file.stem != '__init__':
            modules.setdefault(file.stem, []).append(file)
        for node in ast.parse(file.read_text(encoding='utf-8')).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
                classes.setdefault(node.name, []).append(file)
    assert not {name: found for name, found in (classes | modules).items() if len(found) > 1}


TOUCHES = {'print', 'open', 'input', 'read_text', 'write_text', 'read_bytes', 'write_bytes', 'savez', 'savetxt'}
COMPILES = ('library.py',)  # calls a compiler and keeps its result
WORLD = {'os', 'sys', 'io', 'pathlib', 'shutil', 'tempfile', 'subprocess', 'logging', 'csv', 'json', 'rich'}


@pytest.mark.parametrize(
    'file',
    [file for file in FILES if room(file) in ('types', 'config', 'ops', 'nn', 'tasks') and file.name not in COMPILES],
    ids=lambda file: str(file.relative_to(LIBRARY)),
)
def test_what_computes_neither_prints_nor_touches_files(file):
    called = {
        getattr(node.func, 'id', None) or getattr(node.func, 'attr', None)
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8')))
        if isinstance(node, ast.Call)
    }
    assert not TOUCHES & called
    assert not WORLD & {name.split('.')[0] for name in imported(file)}


def test_training_and_runs_name_no_task():
    """Neither as a word in the code nor in a comment."""
    tasks = {file.stem for file in (LIBRARY / 'tasks').glob('*.py')} - {'__init__', 'synthetic'}
    for file in FILES:
        if room(file) in ('training', 'runs', 'reporting'):
            assert not tasks & set(re.findall(r'\w+', file.read_text(encoding='utf-8'))), file


def length(node):
    """Lines of a function but for its docstring."""
    count, doc = node.end_lineno - node.lineno + 1, node.body[0]
    if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str):
        count -= doc.end_lineno - doc.lineno + 1
    return count


@pytest.mark.parametrize('file', FILES, ids=lambda file: str(file.relative_to(LIBRARY)))
def test_files_and_functions_are_short(file):
    text = file.read_text(encoding='utf-8')
    assert text.count('\n') <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert length(node) <= 60, node.name


def run(code):
    env = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_package_loads_nothing_else():
    """Not even JAX: names are loaded when they are used."""
    assert run('import sys, seqjax; print("jax" in sys.modules)') == 'False'


def test_X03_importing_every_module_changes_no_signal_handler_no_collector_and_no_flag():
    files = [*FILES, *(file for folder in OUTSIDE[:2] for file in sorted((ROOT / folder).glob('*.py')))]
    names = ['.'.join(file.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__') for file in files]
    code = (
        'import gc, importlib, signal\n'
        'from absl import flags\n'
        'import jax, flax.linen, optax\n'
        'before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], gc.isenabled(), list(flags.FLAGS)\n'
        f'for name in {names}: importlib.import_module(name)\n'
        'after = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], gc.isenabled(), list(flags.FLAGS)\n'
        'print(before == after)'
    )
    assert run(code) == 'True'
