"""Sort symbols with an encoder and a decoder, as in Vinyals et al. (2016).

    python -m experiments.sorting --longest=10 --hidden=64
    python -m experiments.sorting --longest=20 --symbols=20 --cell=gru --num_seeds=3

The task itself is in seqjax/tasks/reorder.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import reorder

EXPERIMENT = TaskExperiment(reorder.sorting)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
