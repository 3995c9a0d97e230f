"""Add the two marked numbers of a long sequence, as in Bai et al. (2018).

    python -m experiments.adding_problem
    python -m experiments.adding_problem --length=100 --cell=gru

The task itself is in seqjax/tasks/adding_problem.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import adding_problem

EXPERIMENT = TaskExperiment(adding_problem.adding_problem)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
