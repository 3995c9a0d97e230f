"""Compute the parity of bit strings: a regular task of Delétang et al. (2022).

    python -m experiments.parity
    python -m experiments.parity --longest=20 --cell=gru --learning_rate=0.01

The task itself is in seqjax/tasks/regular.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import regular

EXPERIMENT = TaskExperiment(regular.parity)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
