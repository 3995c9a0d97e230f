"""Run directories: files, logs and checkpoints that survive a crash; signals; processes."""

from typing import TYPE_CHECKING

from seqjax import lazy

if TYPE_CHECKING:
    from seqjax.runs import memory, multihost, parameters, signals
    from seqjax.runs.append_log import AppendLog
    from seqjax.runs.checkpoint_manager import CheckpointManager
    from seqjax.runs.directory import Workdir, open_workdir
    from seqjax.runs.manifest import CheckpointMetadata, CorruptCheckpointError
    from seqjax.runs.parameters import load, save
else:
    __getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
