"""Predict the next symbol of balanced brackets, after Skachkova et al. (2018).

    python -m experiments.dyck
    python -m experiments.dyck --kinds=1 --deepest=3 --hidden=16

The task itself is in seqjax/tasks/counting.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import counting

EXPERIMENT = TaskExperiment(counting.dyck)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
