"""What a wheel holds, and what it asks for."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = {'absl-py': '1.4.0', 'flax': '0.11.2', 'jax': '0.7.2', 'jaxlib': '0.7.2', 'numpy': '2.0', 'optax': '0.2.5'}


def test_the_wheel_holds_the_library_alone(tmp_path):
    """Every module of seqjax and no other package; the console script `seqjax`; the marker that it is typed."""
    pytest.importorskip('setuptools', minversion='70.1', reason='setuptools (the extra "test") builds the wheel')
    source = tmp_path / 'source'  # building leaves files beside setup.cfg
    for name in ('seqjax', 'experiments', 'benchmarks', 'tests'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-q']
    subprocess.run([*build, '-w', tmp_path, source], check=True, capture_output=True, timeout=120)
    with zipfile.ZipFile(next(tmp_path.glob('seqjax-*.whl'))) as wheel:
        held = {name for name in wheel.namelist() if '.dist-info/' not in name}
        scripts = next(wheel.read(name) for name in wheel.namelist() if name.endswith('entry_points.txt')).decode()
    wanted = {str(path.relative_to(source)) for path in (source / 'seqjax').rglob('*') if path.is_file()}
    assert len(wanted) > 100 and held == wanted and 'seqjax/py.typed' in held
    assert 'seqjax = seqjax.cli.app:execute' in scripts


def test_the_core_packages_and_their_floors():
    """Six packages with floors and no ceilings: a higher floor would take Colab's JAX away from its TPU."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg', encoding='utf-8')
    requires = config['options']['install_requires'].split()
    assert dict(line.split('>=') for line in requires) == CORE
    assert config['options']['python_requires'] == '>=3.11'
