"""Which module may import which, and which may print or touch files. Files are parsed, not run."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / 'seqjax'

# What each room may import of the library: a new room is entered here, below those it imports.
ALLOWED = {
    'types': set(),
    'task': set(),
    'options': set(),
    'masks': {'options'},
    'losses': {'task', 'masks'},
    'activations': {'masks'},
    'initializers': set(),
    'row_sharding': set(),
    'linear_map': set(),
    'ops': {'masks'},
    'lstm_ops': {'masks', 'row_sharding', 'linear_map', 'ops'},
    'gru_ops': {'masks', 'row_sharding', 'linear_map', 'ops'},
    'cells': {'masks', 'activations', 'initializers', 'lstm_ops', 'gru_ops', 'options'},
    'linear': {'masks', 'activations', 'initializers', 'cells'},
    'recurrence': {'masks', 'ops'},
    'layers': {'masks', 'ops', 'lstm_ops', 'recurrence', 'options'},
    'models': {'task', 'masks', 'cells', 'linear', 'layers', 'options'},
    'attention': {'masks', 'options'},
    'encoder_decoder': {'task', 'masks', 'cells', 'layers', 'models', 'attention', 'options'},
    'decode': {'masks'},
    'data': set(),
    'problem': {'task', 'types', 'losses'},
    'tasks': {'task', 'masks', 'losses', 'activations', 'cells', 'layers', 'models', 'data', 'problem', 'types'},
    'dataset': {'task', 'types', 'problem'},
    'config': {'initializers', 'encoder_decoder'},
    'build': {'task', 'types', 'initializers', 'models', 'encoder_decoder', 'config'},
    'optim': {'config'},
    'train': {'task', 'spread'},
    'sweep': set(),
    'report': {'task'},
    'processes': set(),
    'streaming': {'task'},
    'files': {'processes'},
    'progress': {'files', 'processes'},
    'memory': {'files'},
    'signals': set(),
    'parameters': {'files'},
    'checkpoint': {'task', 'files', 'parameters', 'processes'},
    'trials': {'task', 'files'},
    'fit': {'task', 'files', 'checkpoint'},
    'training': {
        *('task', 'problem', 'optim', 'row_sharding', 'processes', 'streaming', 'report', 'files', 'memory'),
        *('progress', 'signals', 'checkpoint', 'trials', 'fit', 'training'),
    },
    'verdict': {'dataset', 'report'},
    'readers': {'files', 'readers'},
    'baselines': {'dataset', 'files', 'readers', 'baselines'},
    'datasets': {
        'task',
        'masks',
        'losses',
        'data',
        'problem',
        'dataset',
        'files',
        'readers',
        'baselines',
        'datasets',
        'types',
    },
    'cli': {'cli'},
}
# Those that touch files or print.
OUTSIDE = {
    *(
        'report',
        'files',
        'progress',
        'parameters',
        'memory',
        'signals',
        'checkpoint',
        'run',
        'trials',
        'fit',
        'verdict',
    ),
    *('readers', 'baselines', 'datasets'),
}
FORBIDDEN = {'absl', 'experiments', 'tests'}  # to the whole library

# Names of modules, functions and methods by which code reaches files or a terminal.
WORLD = {'os', 'sys', 'io', 'pathlib', 'shutil', 'tempfile', 'subprocess', 'logging', 'csv', 'json', 'rich'}
TOUCHES = {'print', 'open', 'input', 'read_text', 'write_text', 'read_bytes', 'write_bytes', 'savez', 'savetxt'}


def rooms():
    """name -> files, as they are on disk."""
    found = {file.stem: [file] for file in LIBRARY.glob('*.py') if file.stem not in ('__init__', '__main__')}
    folders = {file.parent for file in LIBRARY.glob('*/*.py')}
    return found | {folder.name: sorted(folder.glob('*.py')) for folder in folders}


def imported(file):
    """Full names of all that a file imports, inside functions too; a relative import made absolute."""
    package = file.relative_to(ROOT).with_suffix('').parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = '.'.join([*above, *([node.module] if node.module else [])])
            yield from (f'{base}.{alias.name}' for alias in node.names)


def called(file):
    """Names of the functions and methods that a file calls."""
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Call):
            yield getattr(node.func, 'id', None) or getattr(node.func, 'attr', None)


def test_the_table_names_exactly_the_rooms_there_are():
    assert set(ALLOWED) == set(rooms())


def test_the_table_lists_each_room_below_those_it_imports():
    names = list(ALLOWED)
    for room, others in ALLOWED.items():
        assert all(names.index(other) < names.index(room) for other in others - {room}), room


@pytest.mark.parametrize('room', ALLOWED)
def test_rooms_import_only_what_the_table_allows(room):
    """Of the library: the table. Of other packages: no flags, no experiments, no tests."""
    for file in rooms()[room]:
        for name in imported(file):
            package, *rest = name.split('.')
            assert package not in FORBIDDEN, f'{file.name} imports {name}'
            if package == 'seqjax' and rest:  # `import seqjax` alone is for its version
                assert rest[0] in ALLOWED[room] | {'__version__'}, f'{file.name} imports {name}'
        if file.name not in ('extra.py', 'models.py', 'registry.py'):  # which find what is named by a person
            assert not {'import_module', '__import__', 'exec', 'eval'} & set(called(file)), file.name


@pytest.mark.parametrize(
    'room',
    ['training', 'processes', 'streaming', 'report', 'files', 'progress', 'signals', 'checkpoint', 'trials', 'fit'],
)
def test_the_machinery_names_no_task(room):
    """Neither as a word in the code nor in a comment."""
    words = {word for file in rooms()[room] for word in re.findall(r'\w+', file.read_text(encoding='utf-8'))}
    tasks = {file.stem for file in rooms()['tasks']} - {'__init__'}
    assert tasks and not tasks & words


@pytest.mark.parametrize('room', [room for room in ALLOWED if room not in OUTSIDE])
def test_rooms_that_compute_neither_print_nor_touch_files(room):
    """No call that prints, reads or writes, and no import of a module that could."""
    for file in rooms()[room]:
        assert not TOUCHES & set(called(file)), file.name
        assert not WORLD & {name.split('.')[0] for name in imported(file)}, file.name


def test_X03_importing_every_experiment_defines_no_flag():
    """All in one process: absl's global flags are afterwards what absl and the core packages made them."""
    code = """
import importlib, pkgutil
import flax.linen, jax, optax
from absl import app, flags, logging
before = set(flags.FLAGS)
import experiments
names = [module.name for module in pkgutil.iter_modules(experiments.__path__) if not module.ispkg]
for name in names:
    importlib.import_module(f'experiments.{name}')
print(' '.join(names))
print('defined:', *sorted(set(flags.FLAGS) - before))
"""
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    names, defined = done.stdout.splitlines()
    assert set(names.split()) == {file.stem for file in (ROOT / 'experiments').glob('*.py')} - {'__init__'}
    assert defined == 'defined:'
