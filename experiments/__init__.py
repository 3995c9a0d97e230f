"""What is run: one module a study. Importing one defines no flag; `python -m experiments.NAME --help` lists its own."""

import gc
import os
import signal
import sys

if sys.argv[:1] == ['-m']:  # so it reads while `python -m experiments.NAME` looks for its module
    # A fifth of a start goes into searching what the imports bring for garbage. `launch.main` turns it on again.
    gc.disable()
    # Nothing has begun: a signal ends the process without a traceback of the imports. `launch.main` takes that back.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
