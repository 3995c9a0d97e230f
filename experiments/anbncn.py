"""Mark the symbols that can follow in a^n b^n c^n, after Gers and Schmidhuber (2001).

    python -m experiments.anbncn
    python -m experiments.anbncn --letters=2 --longest=20 --hidden=8

The task itself is in seqjax/tasks/equal_counts.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import equal_counts

EXPERIMENT = TaskExperiment(equal_counts.anbncn)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
