"""Predict the next symbol of a^n b^n, after Gers and Schmidhuber (2001).

    python -m experiments.anbn
    python -m experiments.anbn --longest=100 --cell=gru

The task itself is in seqjax/tasks/counting.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import counting

EXPERIMENT = TaskExperiment(counting.anbn)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
