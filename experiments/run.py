"""Any task: one of those here, or a function of your own that returns a Problem.

    python -m experiments.run --task=parity --cell=gru
    python -m experiments.run --task=my_module:my_task --flagfile=my.flags

`docs/tasks.md` walks through a task of your own.
"""

from experiments import launch, studies

COMMAND = studies.Command('run', 'Trains any task, and tests it on sequences that it never saw.', default='adding')
FLAGS, run, main = COMMAND.FLAGS, COMMAND.run, COMMAND.main

if __name__ == '__main__':
    launch.leave(main())
