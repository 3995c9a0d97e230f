"""Add numbers written in digits with an encoder and a decoder: the example addition_rnn of Keras.

    python -m experiments.addition
    python -m experiments.addition --digits=2 --examples=5000 --noreverse --num_seeds=3

The Keras example has LSTMs of 128 units and batches of 32 questions, and reports 99% accuracy within 100 epochs.
The task itself is in seqjax/tasks/addition.py.
"""

from seqjax.cli.task_experiment import TaskExperiment
from seqjax.tasks import addition

EXPERIMENT = TaskExperiment(addition.addition)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
