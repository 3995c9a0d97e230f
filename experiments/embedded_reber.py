"""Predict the next symbol of the embedded Reber grammar: experiment 1 of Hochreiter and Schmidhuber (1997).

    python -m experiments.embedded_reber
    python -m experiments.embedded_reber --examples=0 --cell=gru

The task itself is in seqjax/tasks/reber.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import reber

EXPERIMENT = TaskExperiment(reber.embedded_reber)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
