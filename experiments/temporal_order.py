"""Classify the order of two or three distant symbols: experiments 6a and 6b of Hochreiter and Schmidhuber (1997).

    python -m experiments.temporal_order --flagfile=experiments/flags/temporal_order_6a.flags
    python -m experiments.temporal_order --relevant=three --cell=gru

The task itself is in seqjax/tasks/temporal_order.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import temporal_order

EXPERIMENT = TaskExperiment(temporal_order.temporal_order)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
