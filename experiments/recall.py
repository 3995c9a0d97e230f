"""Recall the values of many keys: associative recall, after Arora et al. (2023).

    python -m experiments.recall --pairs=2 --queries=2 --length=16
    python -m experiments.recall --pairs=8 --queries=8 --length=128 --hidden=128 --cell=gru

The task itself is in seqjax/tasks/recall.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import recall

EXPERIMENT = TaskExperiment(recall.recall)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
