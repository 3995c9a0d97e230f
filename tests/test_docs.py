"""Code blocks of the README run, links and anchors of README and docs resolve, claims of the flagfiles hold."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import td
from seqjax.cli import command_line
from tests.helpers import reference

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def run_block(containing):
    """Executes the README's python block with these words, as whoever copies it would."""
    (block,) = (text for text in re.findall(r'```python\n(.*?)```', README, re.DOTALL) if containing in text)
    names = {}
    with jax.numpy_rank_promotion('allow'):  # JAX's default
        exec(compile(block, 'README.md', 'exec'), names)
    return names


def test_every_python_block_of_the_readme_is_run():
    assert README.count('```python') == 6


def test_the_readmes_experiment_runs():
    assert run_block('td.run(')['result'].metrics['loss'].shape == (65,)


def test_the_readmes_training_learns(capsys):
    """It ends far below the loss of a constant."""
    names = run_block('mean_squared_error')
    assert names['predictions'].shape == names['y'].shape == (64, 20, 1)
    last = float(re.findall(r'loss ([\d.]+)', capsys.readouterr().out)[-1])
    assert last < names['y'].var() / 20


def test_the_readmes_classifier_of_tokens_drops_in_training_alone():
    names = run_block("sequence_model('last'")
    assert names['logits'].shape == names['noisy'].shape == (2, 3)
    assert np.abs(names['logits'] - names['noisy']).max() > 1e-4


def test_the_readmes_stream_learns_its_sentence(capsys):
    """Far below the 4.4 bits of a model that knows how often each character comes, and no more."""
    text = run_block('stream_rows')['text']
    share = np.bincount(text) / len(text)
    entropy = -np.sum(share[share > 0] * np.log2(share[share > 0]))
    bits = [float(x) for x in re.findall(r'([\d.]+) bits', capsys.readouterr().out)]
    assert len(bits) == 4 and bits[-1] < entropy / 10


def test_the_readmes_decoder_writes_what_it_says():
    """Shapes as in the comments; scores are of the best first, and end or not each length is right."""
    names = run_block('decoding.greedy(')
    assert names['logits'].shape == (2, 5, 10) and np.isfinite(names['loss'])
    written, best = names['written'], names['best']
    assert [x.shape for x in written] == [(2, 6), (2,), (2,)] and [x.shape for x in best] == [(2, 4, 6), (2, 4), (2, 4)]
    for tokens, length in zip(written.tokens, written.lengths, strict=True):
        assert length == (list(tokens).index(0) + 1 if 0 in tokens else 6)


def test_the_readmes_parameters_are_loaded_as_they_were(in_tmp):
    names = run_block('runs.load(')
    reference.assert_trees_equal(names['params'], names['variables']['params'])
    assert [path.name for path in in_tmp.iterdir()] == ['model.safetensors']


def test_the_tests_that_the_readme_links_to_are_there():
    """Each link with a test's name leads to a file that defines it."""
    for file, name in re.findall(r'\]\((tests/\w+\.py) "(test_\w+)"\)', README):
        assert f'\ndef {name}(' in (ROOT / file).read_text(encoding='utf-8'), name


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(
    ('name', 'low', 'high'),
    [
        ('one_to_one', 0.927, 0.956),
        ('many_to_one', 0.994, 1.0),
        ('many_to_many', 0.191, 0.242),
        ('many_to_many_solved', 0.994, 1.0),
    ],
)
def test_a_flagfiles_claim_holds(name, low, high):
    """A short version of each claim: the share of 200 seeds has an interval that meets that of the claimed one.

    An untrained model makes none of them right.
    """
    values = command_line.parse(td.FLAGS, td.EXPERIMENT.defaults, [f'--flagfile={name}'])
    result = td.run(**{**values, 'num_seeds': 200, 'plot': False})
    ours = result.summary['seeds']['interval']
    assert ours[0] <= high and low <= ours[1]
    if 'notebook' in result.summary:
        assert result.summary['notebook']['inside'] >= 0.95 * result.summary['notebook']['epochs']


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r'```.*?```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL)
    headings = re.findall(r'^#+ +(.+)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def test_every_link_resolves():
    """Files and anchors that README and docs link to are there."""
    for page in (ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')):
        text = re.sub(r'```.*?```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL)
        for link in re.findall(r'\]\(([^): ]+)(?: "\w+")?\)', text):
            path, _, anchor = link.partition('#')
            target = page.parent / path if path else page
            assert target.is_file() or (target.is_dir() and not anchor), link
            assert not anchor or anchor in anchors(target), link


def test_every_known_fault_has_its_tests():
    """docs/known_faults.md names the tests that begin with an ID, and no others."""
    page = (ROOT / 'docs/known_faults.md').read_text(encoding='utf-8')
    files = [file.read_text(encoding='utf-8') for file in (ROOT / 'tests').rglob('test_*.py')]
    defined = {name for text in files for name in re.findall(r'^def (test_[A-Z]\d\d_\w+)', text, re.MULTILINE)}
    assert set(re.findall(r'`(test_[A-Z]\d\d_\w+)`', page)) == defined
    for fault, names in re.findall(r'^\| ([A-Z]\d\d) \|.*\| (.*) \|$', page, re.MULTILINE):
        assert all(name.startswith(f'`test_{fault}_') for name in names.split(', ')), fault
