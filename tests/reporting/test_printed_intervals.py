"""Intervals in the printed tables and conclusions of the commands."""

import numpy as np
import pytest

from seqjax.cli import compare, dataset_report, lengths, task_registry, task_report, task_setup
from seqjax.cli.compare import Entry
from seqjax.cli.dataset_report import CellResult
from seqjax.cli.lengths import Lengths
from seqjax.datasets.dataset import MetricSpec
from seqjax.reporting import statistics, text_tables
from seqjax.reporting.statistics import bounded_mean_interval
from seqjax.training.success_results import SeedResult, SuccessResults

WRONG = np.array([0.0, 0.0, 0.004, 0.012, 0.0, 0.0, 0.0, 0.008])
ACCURACY = MetricSpec('accuracy', higher_is_better=True, format_spec='.1%')


def results(wrong, sequences=None):
    sequences = [100] * len(wrong) if sequences is None else sequences
    seeds = [SeedResult(i, n, {'loss': 0.5, 'wrong': x}) for i, (n, x) in enumerate(zip(sequences, wrong, strict=True))]
    return SuccessResults(seeds, ['loss', 'wrong'], np.zeros((len(wrong), 1, 2)))


def experiment_of(name, **flags):
    experiment = task_registry.find(name)
    settings = experiment.check(experiment.defaults | flags)
    return experiment, experiment.synthetic_task(settings.options), settings


@pytest.mark.parametrize(
    ('name', 'flags', 'items', 'words'),
    [
        ('addition', {'examples': 900}, 45, '45 held-out examples (validation)'),
        ('parity', {}, task_setup.NUM_EVAL_SEQUENCES, '2,560 new sequences (validation)'),
    ],
)
def test_the_error_rate_has_an_interval_with_the_error_of_the_test_items(name, flags, items, words):
    experiment, task, settings = experiment_of(name, **flags)
    line = experiment.conclusion(task, results(WRONG), settings)
    assert task_report.num_held_out(task, settings) == items
    interval = text_tables.format_bounded(bounded_mean_interval(WRONG, items=items), '.2%')
    assert f'{words}: {interval}.' in line


def test_failed_seeds_are_in_the_median_of_the_needed_sequences():
    _, task, settings = experiment_of('parity', steps=100, eval_every=10, batch_size=10)
    sequences = [400, 300, 200, None, 500, 600, 700]
    line = task_report.success_summary(task, results([0.0] * 7, sequences), settings)
    assert line.endswith('after 200 to 700; median over all seeds 500 (95% CI 200 to over 1,000), 1 of 7 failed')
    line = task_report.success_summary(task, results([0.0] * 3, [100, 200, 300]), settings)
    assert line.endswith('after 100 to 300 (mean 200 ± 248)')
    assert task_report.success_summary(task, results([0.0] * 3, [None] * 3), settings).endswith('sequences)')


def test_compared_error_rates_have_intervals_and_their_differences_too():
    entries = [Entry('t', cell, 1, 1, {}, None) for cell in ('a', 'b')]
    outcomes = [results(WRONG), results(WRONG / 2 + 0.1)]
    pairs = list(zip(entries, outcomes, strict=True))
    for items in (None, 2560):
        table = '\n'.join(compare.table_lines(pairs, items and {'t': items}))
        for outcome in outcomes:
            wrong = compare.values_of(outcome)[1]
            assert text_tables.format_bounded(bounded_mean_interval(wrong, items=items), '.2%') in table
        line = list(compare.difference_lines(pairs, items and {'t': items}))[-1]
        interval = statistics.share_difference_interval(WRONG / 2 + 0.1, WRONG, items=items)
        assert f'wrong {text_tables.format_bounded(interval, "+.2%")}' in line and 'significant' not in line
    same = list(zip(entries, [results(np.zeros(8))] * 2, strict=True))
    assert 'wrong +0.00% (-32.44% to +32.44%)   (not stat' in list(compare.difference_lines(same))[-1]


def cell_result(cell, values, num_items):
    return CellResult(cell, 4, 9, list(range(len(values))), np.array(values), {}, {}, 0, [], None, num_items)


@pytest.mark.parametrize('num_items', [None, 50])
def test_accuracies_have_bounded_intervals(num_items):
    first, second = [0.96, 0.98, 1.0, 1.0, 0.98, 1.0], [0.9, 0.92, 0.95, 0.94, 0.92, 0.96]
    pair = [cell_result('a', first, num_items), cell_result('b', second, num_items)]
    table = '\n'.join(dataset_report.table_lines(ACCURACY, pair))
    for values in (first, second):
        assert text_tables.format_bounded(bounded_mean_interval(np.array(values), items=num_items)) in table
    interval = statistics.share_difference_interval(np.array(second), np.array(first), items=num_items)
    line = dataset_report.difference_lines(ACCURACY, pair)[-1]
    assert text_tables.format_bounded(interval, '+.1%') in line and ('not stat' in line) == (num_items is not None)
    errors = '\n'.join(dataset_report.table_lines(MetricSpec('RMSE'), pair))
    assert f'{np.mean(first):.4g} ± ' in errors


def test_results_of_an_earlier_version_have_no_number_of_items():
    values = dataset_report.to_json(cell_result('a', [0.5, 1.0], 7))
    assert dataset_report.from_json(values).num_items == 7
    del values['num_items']
    assert dataset_report.from_json(values).num_items is None


def test_accuracies_by_length_have_intervals(capsys):
    experiment = Lengths(task_registry.find('parity'))
    settings = experiment.check({'longest': 4, 'max_test_length': 8, 'num_lengths': 3, 'sequences_per_length': 64})
    wrong = [{'within/4': 0.0, 'beyond/5': x, 'beyond/8': 2 * x} for x in WRONG]
    outcome = SuccessResults(
        [SeedResult(i, None, test) for i, test in enumerate(wrong)], ['loss', 'wrong'], np.zeros((8, 1, 2))
    )
    experiment.show(outcome, settings)
    rows = {line[:11].strip(): line[11:].split() for line in capsys.readouterr().out.splitlines()}
    for i, values in enumerate((np.ones(8), 1 - WRONG, 1 - 2 * WRONG)):
        expected = bounded_mean_interval(values, items=64)
        shown = [rows[name][i] for name in ('95% CI low', 'mean', '95% CI high')]
        assert shown == [f'{x:.1%}' for x in expected]
    assert rows['worst seed'][2] == '97.6%' and rows['best seed'][2] == '100.0%'
    line = experiment.conclusion(experiment.synthetic_task(settings.options), outcome, settings)
    mean = bounded_mean_interval(1 - 1.5 * WRONG, items=128)
    assert text_tables.format_bounded(mean) in line
    longest = lengths.solved_up_to(*lengths.curves(outcome.seeds))
    assert text_tables.format_bounded(bounded_mean_interval(longest, high=8), '.0f') in line
