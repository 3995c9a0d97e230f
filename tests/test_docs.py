"""Code blocks of README and docs run, links and flags exist, claims of the flagfiles hold."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import td
from seqjax.cli import command_line, registry
from tests.helpers import reference

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
GUIDE = 'tasks.md'  # see tests/test_guide.py


def blocks(page, language):
    return re.findall(rf'```{language}\n(.*?)```', page.read_text(encoding='utf-8'), re.DOTALL)


def run_block(page, containing):
    """Executes the Python block of a page that contains these words."""
    (block,) = (text for text in blocks(ROOT / page, 'python') if containing in text)
    names = {}
    with jax.numpy_rank_promotion('allow'):  # JAX's default
        exec(compile(block, page, 'exec'), names)
    return names


def test_every_python_block_is_run():
    counts = {page.name: len(blocks(page, 'python')) for page in PAGES if page.name != GUIDE}
    assert {name: count for name, count in counts.items() if count} == {
        'README.md': 1,
        'library.md': 6,
        'notebook.md': 1,
    }


def test_an_experiment_runs_from_python():
    assert run_block('docs/library.md', 'td.run(')['result'].metrics['loss'].shape == (65,)


@pytest.mark.parametrize('page', ['README.md', 'docs/library.md'])
def test_training_ends_far_below_the_loss_of_a_constant(page, capsys):
    names = run_block(page, 'mean_squared_error')
    assert names['predictions'].shape == names['y'].shape == (64, 20, 1)
    last = float(re.findall(r'loss ([\d.]+)', capsys.readouterr().out)[-1])
    assert last < names['y'].var() / 20


def test_the_notebooks_model_in_python_is_that_of_the_experiment(capsys):
    """The same seed, the same loss and predictions as experiments.td."""
    names, out = run_block('docs/notebook.md', 'TimeDistributed'), capsys.readouterr().out
    run = td.run(setup='many_to_many', plot=False)
    np.testing.assert_allclose(names['result'].ravel(), run.predictions, atol=1e-4)
    assert 'Total params: 146' in out and f'loss {run.metrics["loss"][-1]:.5f}' in out


def test_a_classifier_of_tokens_drops_in_training_alone():
    names = run_block('docs/library.md', "sequence_model('last'")
    assert names['logits'].shape == names['noisy'].shape == (2, 3)
    assert np.abs(names['logits'] - names['noisy']).max() > 1e-4


def test_a_stream_is_learned_far_below_the_entropy_of_its_characters(capsys):
    text = run_block('docs/library.md', 'stream_rows')['text']
    share = np.bincount(text) / len(text)
    entropy = -np.sum(share[share > 0] * np.log2(share[share > 0]))
    bits = [float(x) for x in re.findall(r'([\d.]+) bits', capsys.readouterr().out)]
    assert len(bits) == 4 and bits[-1] < entropy / 10


def test_decoded_sequences_have_the_shapes_of_the_comments():
    """Scores are of the best first, and each length ends at the end token."""
    names = run_block('docs/library.md', 'decoding.greedy(')
    assert names['logits'].shape == (2, 5, 10) and np.isfinite(names['loss'])
    written, best = names['written'], names['best']
    assert [x.shape for x in written] == [(2, 6), (2,), (2,)] and [x.shape for x in best] == [(2, 4, 6), (2, 4), (2, 4)]
    for tokens, length in zip(written.tokens, written.lengths, strict=True):
        assert length == (list(tokens).index(0) + 1 if 0 in tokens else 6)


def test_saved_parameters_are_loaded_unchanged(in_tmp):
    names = run_block('docs/library.md', 'runs.load(')
    reference.assert_trees_equal(names['params'], names['variables']['params'])
    assert [path.name for path in in_tmp.iterdir()] == ['model.safetensors']


def test_links_to_tests_name_tests_that_exist():
    links = [
        (page.parent / file, name)
        for page in PAGES
        for file, name in re.findall(r'\]\(([\w./]+\.py) "(test_\w+)"\)', page.read_text(encoding='utf-8'))
    ]
    assert len(links) >= 20
    for file, name in links:
        assert f'\ndef {name}(' in file.read_text(encoding='utf-8'), name


def commands(page):
    """The words of each command line of seqjax in the bash blocks of a page."""
    for block in blocks(page, 'bash'):
        for line in block.replace('\\\n', ' ').splitlines():
            for part in line.split('|'):
                words = part.partition('#')[0].replace("'", '').split()
                while words and words[0] in ('srun', 'exec') or words and words[0].startswith('--'):
                    words = words[1:]
                if words[:2] == ['python', '-m'] and len(words) > 2:
                    yield words[2].rpartition('.')[2], words[3:]
                elif words[:1] in (['seqjax'], ['./run.sh']) and len(words) > 1:
                    yield words[1], words[2:]


def test_commands_have_the_flags_that_the_pages_show():
    """A flag that was renamed or removed does not stay on a page."""
    checked = 0
    for page in PAGES:
        for name, words in commands(page):
            if name in ('test', 'versions', 'check', 'pytest') or 'majority' in ' '.join([name, *words]):
                continue
            command = registry.find(name)
            table = command.full_table([word for word in words if 'flagfile' not in word or '/' not in word])
            shown = {match[1] for word in words if (match := re.match(r'--(\w+)', word))} - {
                'flagfile',
                'help',
                'helpfull',
            }
            for flag in shown:
                assert flag in table.flags or flag.removeprefix('no') in table.flags, f'{page.name}: {name} --{flag}'
            checked += len(shown)
    assert checked > 60


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
    for page in PAGES:
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
