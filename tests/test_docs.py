"""What README, docs and flagfiles say is run, or compared with what is there."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import launch, td

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')
TABLE = re.compile(r'^\| `?(\w+)`? \|.*?\| \**([\d.]+)%\**(?: \||) ?\(?([\d.]+)% to ([\d.]+)%', re.MULTILINE)
CLAIM = re.compile(r'from (?:only )?(\d+|[\d.]+)% of 1,000 seeds \(95% interval ([\d.]+)% to ([\d.]+)%')


def run_block(containing):
    """Executes the README's python block with these words, as whoever copies it would."""
    (block,) = (text for text in re.findall(r'```python\n(.*?)```', README, re.DOTALL) if containing in text)
    names = {}
    with jax.numpy_rank_promotion('allow'):  # JAX's default
        exec(compile(block, 'README.md', 'exec'), names)
    return names


def test_every_python_block_of_the_readme_is_run():
    assert README.count('```python') == 4


def test_the_readmes_experiment_runs():
    assert run_block('td.run(')['result'].metrics['loss'].shape == (65,)


def test_the_readmes_training_learns(capsys):
    """It ends far below the loss of a constant."""
    names = run_block('mean_squared_error')
    assert names['predictions'].shape == names['y'].shape == (64, 20, 1)
    last = float(re.findall(r'loss ([\d.]+)', capsys.readouterr().out)[-1])
    assert last < names['y'].var() / 20


def test_the_readmes_classifier_of_tokens_drops_in_training_alone():
    names = run_block("sequence_model('vector'")
    assert names['logits'].shape == names['noisy'].shape == (2, 3)
    assert np.abs(names['logits'] - names['noisy']).max() > 1e-4


def test_the_readmes_stream_learns_its_sentence(capsys):
    """Far below the 4.4 bits of a model that knows how often each character comes, and no more."""
    text = run_block('stream_rows')['text']
    share = np.bincount(text) / len(text)
    entropy = -np.sum(share[share > 0] * np.log2(share[share > 0]))
    bits = [float(x) for x in re.findall(r'([\d.]+) bits', capsys.readouterr().out)]
    assert len(bits) == 4 and bits[-1] < entropy / 10


def test_the_tests_that_the_readme_links_to_are_there():
    """Each link with a test's name leads to a file that defines it, and each row of the table has one."""
    links = re.findall(r'\]\((tests/\w+\.py) "(test_\w+)"\)', README)
    for file, name in links:
        assert f'\ndef {name}(' in (ROOT / file).read_text(encoding='utf-8'), name
    table = README.split('| | seqjax |', 1)[1].split('\n\n', 1)[0]
    assert len(links) == len(table.splitlines()) - 2 >= 15


def test_the_shares_of_readme_docs_and_flagfiles_are_the_same():
    """The three places that tell a share agree on it, for each setup."""
    readme = {name: tuple(map(float, rest)) for name, *rest in TABLE.findall(README)}
    docs = {name: tuple(map(float, rest)) for name, *rest in TABLE.findall((ROOT / 'docs/notebook.md').read_text())}
    assert set(readme) == {'one_to_one', 'many_to_one', 'many_to_many'} and readme == docs
    for name, (share, low, high) in readme.items():
        text = ' '.join((launch.FLAGFILES / f'{name}.flags').read_text().split())
        claimed = tuple(map(float, CLAIM.search(text).groups()))
        assert claimed[1:] == (low, high) and abs(claimed[0] - share) < 0.5


@pytest.mark.parametrize('name', ['one_to_one', 'many_to_one', 'many_to_many', 'many_to_many_solved'])
def test_a_flagfiles_claim_holds(name, capsys):
    """A short version of each claim: the share of 200 seeds has an interval that meets the claimed one.

    An untrained model makes none of them right.
    """
    values = launch.parse(td.FLAGS, launch.default_values(td.run), [f'--flagfile={name}'])
    result = td.run(**{**values, 'replicas': 200, 'picture': False})
    text = ' '.join((launch.FLAGFILES / f'{name}.flags').read_text().split())
    claimed = re.search(r'95% interval ([\d.]+)% to ([\d.]+)%', text)
    low, high = (float(x) / 100 for x in claimed.groups())
    ours = result.summary['replicas']['interval']
    assert ours[0] <= high and low <= ours[1]
    if 'notebook' in result.summary:
        assert result.summary['notebook']['inside'] >= 0.95 * result.summary['notebook']['epochs']


def test_the_readmes_map_names_the_rooms():
    """Every module under seqjax/ and experiments/ stands in the README's map, and nothing else does."""
    listed = set(re.findall(r'^  (?:tasks/)?(\w+)\.py ', README, re.MULTILINE))
    there = {path.stem for folder in ('seqjax', 'experiments') for path in (ROOT / folder).rglob('*.py')}
    assert listed == there - {'__init__'}


def test_every_picture_and_page_that_is_linked_is_there():
    for page in (ROOT / 'README.md', ROOT / 'docs/notebook.md'):
        for link in re.findall(r'\]\(([^)#: ]+)(?: "\w+")?\)', page.read_text(encoding='utf-8')):
            assert (page.parent / link).is_file(), link
