"""What README, docs and flagfiles say is run, or compared with what is there."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import launch, lstm_step, studies, td
from seqjax import cells, linear, models, report
from seqjax.initializers import GATE_BIASES, SCHEMES
from seqjax.layers import RNN
from tests import reference

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
    names = run_block('decode.greedy(')
    assert names['logits'].shape == (2, 5, 10) and np.isfinite(names['loss'])
    written, best = names['written'], names['best']
    assert [x.shape for x in written] == [(2, 6), (2,), (2,)] and [x.shape for x in best] == [(2, 4, 6), (2, 4), (2, 4)]
    for tokens, length in zip(written.tokens, written.lengths, strict=True):
        assert length == (list(tokens).index(0) + 1 if 0 in tokens else 6)


def test_the_readmes_parameters_are_loaded_as_they_were(in_tmp):
    names = run_block('checkpoint.load(')
    reference.assert_trees_equal(names['params'], names['variables']['params'])
    assert [path.name for path in in_tmp.iterdir()] == ['model.safetensors']


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
    """Every module under seqjax/ and experiments/ stands in the README's map, and nothing else does.

    But for the tasks and their studies, of which there is one line: a new one is entered nowhere.
    """
    listed = set(re.findall(r'^ {2,4}(\w+)\.py ', README, re.MULTILINE))
    there = {path.stem for folder in ('seqjax', 'experiments') for path in (ROOT / folder).glob('*.py')}
    assert listed == (there - {'__init__', *studies.NAMES}) | {'adding'}


CELLS_PAGE = (ROOT / 'docs/cells.md').read_text(encoding='utf-8')


@pytest.mark.parametrize(
    ('name', 'code', 'formula', 'parallel'),
    re.findall(r'^\| (?:`(\w+)`)? ?\| `(\w+\(H.*?\))` \| `(.*?)` \| (yes|no) \|', CELLS_PAGE, re.MULTILINE),
)
@pytest.mark.parametrize('sizes', [{'F': 3, 'H': 5, 'P': 2}, {'F': 1, 'H': 4, 'P': 4}])
def test_the_gallery_tells_the_true_count_of_parameters(name, code, formula, parallel, sizes):
    """Each row's code is run, and its formula; the name is what --cell calls it."""
    cell = eval(code, {**vars(cells), **vars(linear)}, dict(sizes))
    params = RNN(cell).init(jax.random.key(0), np.zeros((1, 2, sizes['F']), np.float32))
    assert report.count_params(params) == eval(formula, {}, dict(sizes))
    assert not name or models.CELLS[name] is type(cell)
    assert hasattr(cell, 'affine') == (parallel == 'yes')


def test_the_gallery_has_every_cell_and_every_option():
    named = set(re.findall(r'^\| `(\w+)` \| `\w+\(H\)`', CELLS_PAGE, re.MULTILINE))
    assert named == set(models.CELLS)
    plain = {field.name for field in dataclasses.fields(cells.Cell)} | {'name', 'parent'}
    for cell in models.CELLS.values():
        for field in dataclasses.fields(cell):
            assert (
                field.name in plain
                or field.name in ('recurrent_kernel_init', 'peephole_init')
                or (f'{field.name}' in CELLS_PAGE)
            ), field.name
    for word in (*SCHEMES, *(bias.__name__ for bias in GATE_BIASES.values())):
        assert word in CELLS_PAGE


def test_the_gallery_shows_what_the_step_prints(capsys):
    """Every word and, to a hundredth, every number."""
    lstm_step.run(x=[0.2])
    printed = capsys.readouterr().out
    printed = printed[printed.index('step 1') :].split()
    shown = CELLS_PAGE[CELLS_PAGE.index('\nstep 1: x = 0.2') :].split('```', 1)[0].split()
    assert len(printed) == len(shown) > 100
    for ours, theirs in zip(printed, shown, strict=True):
        if re.fullmatch(r'-?\d+\.\d+[);]*', ours):
            assert abs(float(ours.strip(');')) - float(theirs.strip(');'))) < 0.01
        else:
            assert ours == theirs


def test_the_gallery_and_the_flagfiles_tell_the_same_of_temporal_order():
    for name, bias in (('6a', 'ChronoGate(110)'), ('6a_forget_bias', 'ConstantGate(1.0)')):
        row = next(line for line in CELLS_PAGE.splitlines() if line.startswith(f'| `{bias}` |') and 'of 20' in line)
        header = ' '.join((launch.FLAGFILES / f'temporal_order_{name}.flags').read_text().replace('#', '').split())
        expect = header[header.index('Expect:') : header.index('--cell')]
        for number in re.findall(
            r'[\d,.]*\d%?', row.split('|', 2)[2].replace('20 of 20', '20').replace('0 of 20', '20')
        ):
            assert number in expect, (name, number)


def test_every_picture_and_page_that_is_linked_is_there():
    for page in (ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')):
        for link in re.findall(r'\]\(([^)#: ]+)(?: "\w+")?\)', page.read_text(encoding='utf-8')):
            assert (page.parent / link).is_file(), link
