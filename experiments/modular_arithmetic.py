"""Evaluate modular arithmetic without brackets: a regular task of Delétang et al. (2022).

    python -m experiments.modular_arithmetic
    python -m experiments.modular_arithmetic --modulus=3 --cell=gru

The task itself is in seqjax/tasks/regular.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import regular

STUDY = TaskExperiment(regular.modular_arithmetic)
COMMAND = STUDY.command(__doc__)
FLAGS, run, main = STUDY.FLAGS, STUDY.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
