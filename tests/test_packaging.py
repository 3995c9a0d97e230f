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


def test_the_wheel_holds_every_module_flagfile_and_curve(tmp_path):
    pytest.importorskip('setuptools', minversion='70.1', reason='setuptools (the extra "test") builds the wheel')
    source = tmp_path / 'source'  # building leaves files beside setup.cfg
    ours = ('seqjax', 'experiments')
    for name in ours:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-q']
    subprocess.run([*build, '-w', tmp_path, source], check=True, capture_output=True, timeout=120)
    with zipfile.ZipFile(next(tmp_path.glob('seqjax-*.whl'))) as wheel:
        held = set(wheel.namelist())
    wanted = {str(path.relative_to(source)) for name in ours for path in (source / name).rglob('*') if path.is_file()}
    assert len(wanted) > 20 and {name for name in held if name.startswith(ours)} - wanted == {
        name for name in held if name.startswith('seqjax-')
    }
    assert wanted <= held


def test_the_core_packages_and_their_floors():
    """Six packages with floors and no ceilings: a higher floor would take Colab's JAX away from its TPU."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg', encoding='utf-8')
    requires = config['options']['install_requires'].split()
    assert dict(line.split('>=') for line in requires) == CORE
    assert config['options']['python_requires'] == '>=3.11'
