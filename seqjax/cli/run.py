"""Any task: one of those here, or a function of your own that returns a SyntheticTask.

    seqjax run --task=parity --cell=gru
    seqjax run --task=my_module:my_task --flagfile=my.flags

`docs/tasks.md` walks through a task of your own.
"""

from seqjax.cli import task_registry

COMMAND = task_registry.task_command('run', __doc__, default='adding')
FLAGS, run, main = COMMAND.table_for([]).flags, COMMAND.run, COMMAND.main
