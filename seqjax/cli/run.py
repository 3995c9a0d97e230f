"""Train on a synthetic task: one of the library, or a function of your own.

    seqjax run --task=parity --cell=gru
    seqjax run --task=my_module:my_task --flagfile=my.flags

`docs/tasks.md` explains how to add a task.
"""

from seqjax.cli import task_registry

COMMAND = task_registry.task_command('run', __doc__, default='adding')
FLAGS, run, main = COMMAND.table_for([]).flags, COMMAND.run, COMMAND.main
