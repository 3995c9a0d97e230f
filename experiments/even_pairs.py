"""Decide if the total number of pairs 01 and 10 in a bit string is even: a regular task of Delétang et al. (2022).

    python -m experiments.even_pairs
    python -m experiments.even_pairs --longest=100 --cell=mingru --parallel

The task itself is in seqjax/tasks/regular.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import regular

EXPERIMENT = TaskExperiment(regular.even_pairs)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
