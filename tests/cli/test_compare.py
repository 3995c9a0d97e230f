"""Cells side by side: equal budgets, paired differences, a comparison that goes on where it was."""

import csv

import numpy as np
import pytest

from seqjax.cli import compare, task_registry
from seqjax.cli.compare import Entry
from seqjax.errors import UserError
from seqjax.reporting import statistics, text_tables
from seqjax.training import seeds as training_seeds
from seqjax.training.success_results import SeedResult, SuccessResults

SHORT = {'length': 22, 'hidden': 5, 'steps': 4, 'eval_every': 2, 'batch_size': 4, 'num_seeds': 3, 'plot': False}


@pytest.mark.parametrize('cells', [['gru'], pytest.param(['gru', 'mingru'], marks=pytest.mark.slow)])
def test_each_entry_is_the_run_of_its_own_experiment(cells, in_tmp, capsys):
    """The same seeds, the same numbers, the last row's too; and the table says so, and a figure with a panel each."""
    found = compare.run(tasks=['adding', 'temporal_order'], cells=cells, **SHORT | {'plot': True}, workdir='w')
    assert [(entry.task, entry.cell) for entry, _ in found] == [
        (task, cell) for task in ('adding', 'temporal_order') for cell in cells
    ]
    assert (in_tmp / 'w/curve.png').stat().st_size > 10_000
    for entry, outcome in found:
        alone = task_registry.find(entry.task).run(**SHORT, cell=entry.cell, train_all_steps=True)
        assert alone.seeds == outcome.seeds
    out = capsys.readouterr().out
    mean, half = statistics.mean_interval(np.array([seed.test['loss'] for seed in found[0][1].seeds]))
    assert f'{mean:.4g} ± {half:.2g}' in out


@pytest.mark.representative(every=7)
@pytest.mark.parametrize('params', [300, 2000])
def test_a_budget_makes_models_as_large_as_it_allows(params):
    for cell in ('lstm', 'gru', 'simple', 'lru'):
        defaults = compare.table_of(['adding'])[1]
        entry = compare.entry_of(defaults | {'max_params': params}, 'adding', cell)
        wider = entry.settings.flags | {'hidden': entry.hidden + 1}
        assert entry.params <= params < compare.count_params(entry.experiment, wider)


def outcome_of(*pairs):
    seeds = [SeedResult(i, None, {'loss': loss, 'wrong': wrong}) for i, (loss, wrong) in enumerate(pairs)]
    return SuccessResults(seeds, ['loss', 'wrong'], np.zeros((len(pairs), 1, 2)))


def test_differences_are_paired():
    """Seeds that differ much, and cells that differ by the same little on each of them: the difference is clear."""
    one = outcome_of((1, 0.1), (2, 0.5), (4, 0.9))
    other = outcome_of((1.1, 0.1), (2.1, 0.5), (4.11, 0.9))
    entries = [Entry('t', cell, 1, 1, {}, None) for cell in ('a', 'b')]
    (line,) = list(compare.difference_lines(list(zip(entries, (one, other), strict=True))))[1:]
    mean, half = statistics.mean_interval(np.array([0.1, 0.1, 0.11]))
    assert f'loss {mean:+.4g} ± {half:.2g}' in line and 'significant' not in line
    (line,) = list(compare.difference_lines([(entries[0], one), (entries[1], outcome_of((1, 0.1), (1, 0), (6, 1)))]))[
        1:
    ]
    assert 'not statistically significant' in line


def test_a_seed_that_diverged_is_told_and_left_out():
    one = outcome_of((1, 0.1), (float('nan'), 1), (2, 0.3))
    values, failed = compare._finite(compare.values_of(one))
    assert failed.strip() == '1 diverged' and values.tolist() == [[1, 2], [0.1, 0.3]]
    values, failed = compare._finite(np.full((2, 3), np.nan))
    assert failed.strip() == '3 diverged' and text_tables.format_interval(values[0]) == 'nan'


def test_a_comparison_goes_on_where_it_was_and_may_grow(in_tmp, monkeypatch, capsys):
    """What is finished is not trained again; a cell more is trained alone."""
    whole = compare.run(tasks=['adding'], cells=['gru', 'simple'], **SHORT, workdir='a')
    trained, original = [], training_seeds.train_until_solved

    def run(*args, **options):
        trained.append(len(trained))
        if len(trained) == 2:
            raise ZeroDivisionError
        return original(*args, **options)

    monkeypatch.setattr(training_seeds, 'train_until_solved', run)
    with pytest.raises(ZeroDivisionError):
        compare.run(tasks=['adding'], cells=['gru', 'simple'], **SHORT, workdir='b')
    assert compare.run(tasks=['adding'], cells=['gru', 'simple'], **SHORT, workdir='b')[1][1].seeds == whole[1][1].seeds
    assert len(trained) == 3
    compare.run(tasks=['adding'], cells=['gru', 'simple', 'mingru'], **SHORT, workdir='b')
    assert len(trained) == 4
    with (in_tmp / 'b/compare.csv').open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(row['cell'], int(row['seed'])) for row in rows] == [
        (cell, seed) for cell in ('gru', 'simple', 'mingru') for seed in range(3)
    ]
    assert float(rows[0]['loss']) == pytest.approx(whole[0][1].seeds[0].test['loss'], rel=1e-6)
    with pytest.raises(UserError, match='--length=22.*--length=23'):
        compare.run(tasks=['adding'], cells=['gru'], **SHORT | {'length': 23}, workdir='b')


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (['--tasks=addin'], '--task=addin'),
        (['--cells=lstm,lstm'], '--cells=lstm,lstm'),
        (['--cells=lstm,xlstm'], '--cells=lstm,xlstm'),
        (['--max_params=3'], '--max_params=3'),
        (['--max_params=3000', '--hidden=4'], '--max_params=3000'),
        (['--tasks=adding,copy_memory', '--bidirectional'], '--bidirectional'),
        (['--cells=mingru,gru', '--parallel'], '--parallel=True'),
        (['--tasks=adding,copy_memory', '--length=50'], '--length'),
        (['--dropout=0.1'], '--dropout=0.1'),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_trained(flags, words, in_tmp, capsys):
    assert compare.main([*flags, '--noplot']) == 2
    out, err = capsys.readouterr()
    assert words in err.replace('flag --cells', '--cells') and err.count('\n') == 1 and 'seed-step' not in out
