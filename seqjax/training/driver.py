"""The one driver: trains all seeds of a run, a replica group at a time, and calls its observers in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from seqjax.training.compiled_run import CompiledRun, StateOverride
from seqjax.training.observers import Observer
from seqjax.training.replicas import ReplicaGroup


def train_seeds(
    run: CompiledRun,
    seeds: Sequence[int] | np.ndarray,
    observers: Sequence[Observer],
    *,
    place: Callable[[ReplicaGroup], str] = str,
    override: Callable[[ReplicaGroup], StateOverride | None] = lambda group: None,
) -> None:
    """Trains every seed to the last step, or until an observer stops its group; resumes each group from its checkpoint.

    Args:
      run: from `compile_run`.
      seeds: [R]; without replicas, one.
      observers: called in this order at the start of a group, after every chunk, and at the end of a group.
      place: the folder of a group's checkpoints and logs, within that of the run's; '' for a run of one seed.
      override: changes the TrainState of a group before its first step.

    Raises:
      UserError: see `CompiledRun.session` and `TrainSession.train`.
    """
    for group in run.groups(np.asarray(seeds)):
        folder = '' if run.width is None else place(group)
        logs = {observer.log_name: observer.open_log(run, folder) for observer in observers if observer.log_name}
        with run.session(group, logs, place=folder, override=override(group)) as session:
            for observer in observers:
                observer.on_start(session, session.restored.get(observer.log_name, b''))
            if not _stopped(observers):
                for chunk in session.train():
                    for observer in observers:
                        rows = observer.on_chunk(session, chunk)
                        if rows:
                            logs[observer.log_name].append(rows)
                    if _stopped(observers):
                        break
            for observer in observers:
                observer.on_end(session)


def _stopped(observers: Sequence[Observer]) -> bool:
    return any(observer.should_stop for observer in observers)
