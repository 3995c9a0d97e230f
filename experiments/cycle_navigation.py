"""Compute the final position on a cycle after left, right and stay moves: a regular task of Delétang et al. (2022).

    python -m experiments.cycle_navigation
    python -m experiments.cycle_navigation --schedule=cosine --decay_steps=20000

The task itself is in seqjax/tasks/regular.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import regular

EXPERIMENT = TaskExperiment(regular.cycle_navigation)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
