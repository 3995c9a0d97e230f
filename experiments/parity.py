"""Parity of strings of bits: a regular task of Delétang et al. (2022).

    python -m experiments.parity
    python -m experiments.parity --longest=20 --cell=gru --learning_rate=0.01

The task itself is in seqjax/tasks/regular.py.
"""

from experiments import study
from seqjax.tasks.regular import parity

STUDY = study.Study(parity, batch_size=64, steps=10000, every=125)
COMMAND = STUDY.command(__doc__)
FLAGS, run, main = STUDY.FLAGS, STUDY.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
