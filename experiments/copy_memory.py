"""Copy ten symbols after a long delay, as in Bai, Kolter and Koltun (2018).

    python -m experiments.copy_memory --flagfile=experiments/flags/copy_memory_100.flags
    python -m experiments.copy_memory --delay=30 --cell=gru

The task itself is in seqjax/tasks/copy_memory.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import copy_memory

EXPERIMENT = TaskExperiment(copy_memory.copy_memory)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
