"""Published results: every claim's flagfile says what it must, and its small version reaches the goal."""

import csv
import re
from pathlib import Path

import pytest

from experiments import claims
from experiments.claims import Claim
from seqjax.cli import command_line, compilation_cache, registry, task_registry
from seqjax.errors import UserError

ROOT = Path(__file__).parent.parent.parent
RESULTS = (ROOT / 'docs/results.md').read_text(encoding='utf-8')
CLAIMS = claims.all_claims()


def test_there_are_a_dozen_and_each_is_complete():
    assert len(CLAIMS) >= 12
    for claim in CLAIMS.values():
        assert claim.measure in claims.MEASURES and claim.quick and claim.published
        command = registry.find(claim.module)
        values = command.parse([f'--flagfile={claim.name}'])
        assert values['split'] == 'test' and values['num_seeds'] >= 10 and values['seed'] == 0
        small = command.parse([f'--flagfile={claim.name}', *claim.quick])
        assert small != values and small['num_seeds'] >= 2


def test_the_results_page_has_the_table():
    """A row for each claim, as the command prints them, where --page writes it."""
    (block,) = re.findall(r'<!-- claims -->\n(.*?)<!-- end of claims -->', RESULTS, re.DOTALL)
    assert next(claims.markdown([])) in block
    rows = re.findall(r'^\| (.+?) \(`(\w+)`\) \| (.+?) \|', RESULTS, re.MULTILINE)
    assert {name: (text, published) for text, name, published in rows} == {
        name: (claim.claim, claim.published) for name, claim in CLAIMS.items()
    }


@pytest.mark.slow
def test_the_small_version_of_every_claim_reaches_its_goal(tmp_path, optimized, capsys):
    """Each of its seeds; an untrained model is at none of these goals."""
    claims.run(quick=True, workdir=str(tmp_path / 'w'))
    with (tmp_path / 'w/claims.csv').open() as lines:
        rows = {row['flagfile']: row for row in csv.DictReader(lines)}
    assert set(rows) == set(CLAIMS)
    for name, row in rows.items():
        reached, count = row['successful_seeds'].split(' of ')
        assert reached == count, (name, row)
    text = (tmp_path / 'w/claims.md').read_text()
    assert text.count('\n') == len(CLAIMS) + 2 and text in capsys.readouterr().out
    again = claims.run(quick=True, workdir=str(tmp_path / 'w'), names=['parity'])
    assert len(again) == 1


def flagfile(tmp_path, text):
    path = tmp_path / 'x.flags'
    path.write_text(text)
    return path


def test_a_header_is_read_with_its_continuations(tmp_path):
    text = """# A title.
# Claim:     somebody: this,
#            and that
# Published: 1
# Measure:   loss
# Command:   python -m experiments.adding --flagfile=x
# Quick:     --a=1 --b='2 3'
# Time:      1 minute
--c=3
# a comment
"""
    assert claims.read(flagfile(tmp_path, text)) == Claim(
        'x', 'adding', 'somebody: this, and that', '1', 'loss', ['--a=1', '--b=2 3']
    )
    assert claims.read(flagfile(tmp_path, text.replace('Claim', 'Not'))) is None
    with pytest.raises(UserError, match='Published'):
        claims.read(flagfile(tmp_path, text.replace('Published', 'Other')))
    with pytest.raises(UserError, match='Measure: speed'):
        claims.read(flagfile(tmp_path, text.replace('loss', 'speed')))
    with pytest.raises(UserError, match='Command: run adding'):
        claims.read(flagfile(tmp_path, text.replace('python -m experiments.', 'run ')))
    with pytest.raises(UserError, match='Quick: --a=1'):
        claims.read(flagfile(tmp_path, text.replace("3'", '3')))


def test_an_unknown_claim_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(compilation_cache, 'enable_cache', lambda _: None)
    assert claims.main(['--names=parit']) == 2
    assert '--names=parit' in capsys.readouterr().err


def test_a_page_without_the_table_is_refused_before_any_claim_runs(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('<!-- claims -->\n')
    for path in (page, tmp_path / 'none.md'):
        with pytest.raises(UserError, match=path.name):
            claims.run(page=str(path), workdir=str(tmp_path / 'w'))
    assert not (tmp_path / 'w').exists()


def test_every_flagfile_of_a_study_is_accepted():
    """By its own experiment, as its command says."""
    for path in command_line.flagfile_folder().glob('*.flags'):
        module = re.search(r'^# Command: +(?:python -m experiments\.|seqjax )(\w+) ', path.read_text(), re.MULTILINE)[1]
        if module in task_registry.NAMES:
            task_registry.find(module).check(registry.find(module).parse([f'--flagfile={path}']))
