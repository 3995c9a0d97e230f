"""Add or multiply two numbers over long time lags: experiments 4 and 5 of Hochreiter and Schmidhuber (1997).

    python -m experiments.adding --flagfile=experiments/flags/adding_100.flags
    python -m experiments.adding --rule=multiply --cell=gru

The task itself is in seqjax/tasks/adding.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import adding

EXPERIMENT = TaskExperiment(adding.adding)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
