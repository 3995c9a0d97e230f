"""Evaluate modular arithmetic without brackets: a regular task of Delétang et al. (2022).

    python -m experiments.modular_arithmetic
    python -m experiments.modular_arithmetic --modulus=3 --cell=gru

The task itself is in seqjax/tasks/regular.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import regular

EXPERIMENT = TaskExperiment(regular.modular_arithmetic)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
