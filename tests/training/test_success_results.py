"""Success criterion and test: seeds that met the one in training, but not on held-out sequences."""

import numpy as np
import pytest

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks.adding import adding
from seqjax.tasks.synthetic import SuccessCriterion
from seqjax.training import success_results
from seqjax.training.success_results import SeedResult, SuccessResults


@pytest.mark.parametrize(('value', 'disagrees'), [(0.05, False), (0.1, False), (0.11, True), (np.nan, True)])
def test_a_seed_disagrees_if_its_test_is_above_the_threshold_of_the_criterion(value, disagrees):
    seeds = [SeedResult(1, 200, {'wrong': 0.0, 'loss': value}), SeedResult(2, None, {'wrong': 1.0, 'loss': 9.0})]
    found = success_results.disagreements(seeds, SuccessCriterion(0.1, 'loss'))
    assert [seed.seed for seed in found] == [1] * disagrees


def test_the_last_line_of_a_run_counts_the_seeds_that_disagree():
    experiment = TaskExperiment(adding)
    settings = experiment.check({'num_seeds': 3})
    seeds = [SeedResult(i, 2_000, {'wrong': wrong, 'loss': 0.0}) for i, wrong in enumerate((0.0, 0.2, 0.0))]
    outcome = SuccessResults(seeds, ['loss', 'wrong'], np.zeros((3, 1, 2)))
    line = experiment.conclusion(adding(), outcome, settings)
    assert line.endswith(' 1 of 3 successful seeds do not meet the criterion there: wrong up to 20.00%.')
    agreed = outcome._replace(seeds=[seeds[0]] * 3)
    assert 'do not meet' not in experiment.conclusion(adding(), agreed, settings)
