"""The Colab notebook runs from its first cell to its last, and shows what it promises."""

import base64
import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / 'notebooks' / 'seqjax_colab.ipynb'


def test_it_holds_no_outputs():
    """What a reader sees is what the reader ran."""
    cells = json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']
    code = [cell for cell in cells if cell['cell_type'] == 'code']
    assert len(code) >= 9
    assert all(cell['outputs'] == [] and cell['execution_count'] is None for cell in code)
    assert len({cell['id'] for cell in cells}) == len(cells)


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """The notebook, executed in a kernel of this interpreter, from a folder of its own."""
    nbformat = pytest.importorskip('nbformat', reason='nbclient and ipykernel (the extra "test") run the notebook')
    nbclient = pytest.importorskip('nbclient', reason='nbclient (the extra "test") runs the notebook')
    pytest.importorskip('ipykernel', reason='ipykernel (the extra "test") runs the notebook')
    kernel = tmp_path / 'share' / 'kernels' / 'this'
    kernel.mkdir(parents=True)
    argv = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}']
    (kernel / 'kernel.json').write_text(json.dumps({'argv': argv, 'display_name': 'this', 'language': 'python'}))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path / 'share'))
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
    folder = tmp_path / 'empty'
    folder.mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name='this', resources={'metadata': {'path': str(folder)}}
    )
    client.execute()  # raises where a cell does
    assert list(folder.iterdir()) == []
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


# The kernel's client, not ours: event loops and sockets that are closed late.
@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.filterwarnings('ignore::ResourceWarning')
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_it_runs_and_shows_its_pictures(executed):
    """Five runs show a picture each, JAX stays as it was, and the share of seeds is the one that is known."""
    pictures = [data['image/png'] for cell in executed for data in outputs(cell) if 'image/png' in data]
    assert len(pictures) == 5
    assert all(base64.b64decode(plot).startswith(b'\x89PNG') for plot in pictures)
    shown = '\n'.join(text(cell) for cell in executed)
    assert f"'jax': '{jax.__version__}'" in shown
    share = int(shown.split('to one decimal: ')[1].split(' of 1000')[0]) / 1000
    assert 0.15 < share < 0.30
    last = np.fromstring(text(executed[-1]).split('Array([')[1].split(']')[0], sep=',')
    np.testing.assert_allclose(last, [0.0, 0.2, 0.4, 0.6, 0.8], atol=0.05)


def outputs(cell):
    return [output['data'] for output in cell.outputs if 'data' in output]


def text(cell):
    streams = [output['text'] for output in cell.outputs if output['output_type'] == 'stream']
    return ''.join(streams + [data.get('text/plain', '') for data in outputs(cell)])
