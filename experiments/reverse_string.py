"""Write a string in reverse order after it has been read, as in Delétang et al. (2022).

    python -m experiments.reverse_string
    python -m experiments.reverse_string --longest=10 --cell=gru

The task itself is in seqjax/tasks/reverse_string.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import reverse_string

EXPERIMENT = TaskExperiment(reverse_string.reverse_string)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
