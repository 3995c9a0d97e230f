"""The guide to a task of one's own: its very text is run, and what it adds is counted."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / 'docs/tasks.md').read_text(encoding='utf-8')
BLOCKS = dict(re.findall(r'^`([\w/.]+)`\n\n```\w*\n(.*?)```', GUIDE, re.DOTALL | re.MULTILINE))


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def followed(tmp_path_factory):
    """A copy of the project in which somebody followed the guide."""
    folder = tmp_path_factory.mktemp('guide')
    for name in ('seqjax', 'experiments', 'tests'):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
    before = files(folder)
    for name, text in BLOCKS.items():
        assert not (folder / name).exists(), f'{name} is an existing file'
        (folder / name).write_text(text, encoding='utf-8')
    return folder, before


def command(folder, *words, plainly=False, **how):
    env = os.environ | {'PYTHONPATH': str(folder), 'XLA_FLAGS': '', 'JAX_DISABLE_MOST_OPTIMIZATIONS': str(int(plainly))}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=300, **how
    )


def test_it_adds_four_files_and_edits_none(followed):
    folder, before = followed
    after = files(folder)
    assert {name: after[name] for name in before} == before
    new = {str(name) for name in after.keys() - before.keys()}
    assert new == set(BLOCKS) and len(new) == 4
    assert {Path(name).parts[0] for name in new} == {'seqjax', 'experiments', 'tests'}
    code = [line for text in BLOCKS.values() for line in text.splitlines() if line.strip()]
    assert len(code) <= 110  # about 80 without docstrings and comments
    assert len([line for line in code if not re.match(r'\s*(#|"""|>>>|\(Array|[A-Z]\w+:)', line)]) <= 95


@pytest.mark.slow
def test_its_experiment_reaches_what_the_flagfile_says(followed):
    done = command(followed[0], '-m', 'experiments.majority', '--flagfile=majority', '--noplot', '--workdir=w')
    assert done.returncode == 0, done.stderr
    assert re.search(r'1 to 21\b.*gru\(8\): 10 of 10', done.stdout.splitlines()[-1]), done.stdout


def test_its_test_and_its_doctest_pass_and_can_fail(followed):
    folder, _ = followed
    words = ('-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--import-mode=importlib', '--noconftest')
    run = (*words, '--doctest-modules', 'tests/tasks/test_majority.py', 'seqjax/tasks/majority.py')
    done = command(folder, *run)
    assert done.returncode == 0 and '3 passed' in done.stdout, done.stdout
    task = folder / 'seqjax/tasks/majority.py'
    text = task.read_text()
    task.write_text(text.replace('2 * symbols.sum(1) > lengths', '3 * symbols.sum(1) > lengths'))
    try:
        assert command(folder, *run).returncode == 1
    finally:
        task.write_text(text)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(
    'words',
    [
        ['lengths', '--task=majority', '--max_test_length=60', '--num_lengths=5', '--sequences_per_length=16'],
        ['compare', '--tasks=majority', '--cells=gru,mingru'],
        ['run', '--task=majority'],
        ['run', '--task=seqjax.tasks.majority:majority'],
        ['sweep', '--experiment=majority', '--grid=hidden:4,8'],
    ],
)
def test_every_command_knows_it(words, followed):
    small = ['--steps=25', '--num_seeds=2', '--noplot', '--batch_size=4']
    done = command(followed[0], '-m', 'seqjax', words[0], *words[1:], *small, plainly=True)
    assert done.returncode == 0, done.stderr
    assert 'majority' in done.stdout
