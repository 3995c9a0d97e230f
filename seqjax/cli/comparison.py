"""Several runs side by side, each in a folder within that of their comparison."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from seqjax.runs import directory
from seqjax.runs.directory import Workdir

E = TypeVar('E')
R = TypeVar('R')


def compare_runs(
    flags: Mapping[str, Any],
    name: str,
    names: Sequence[str],
    entries: Iterable[E],
    train: Callable[[E, Workdir], R],
    write: Callable[[Workdir, Sequence[R]], None],
    show: Callable[[Workdir, Sequence[R]], None],
) -> list[R]:
    """Runs what is compared, one after the other, in folders within that of the comparison, and leaves a table.

    `train` takes an entry and the folder of the comparison; `write` leaves the table of what came out, and `show`
    prints it. `names` are the files and folders that the comparison leaves.
    """
    with directory.open_workdir(dict(flags), name, names=names) as (folder, _):
        summary = {'experiment': name, 'finished': False, 'flags': dict(flags)}
        folder.write_summary(summary)
        found = [train(entry, folder) for entry in entries]
        write(folder, found)
        folder.write_summary(summary | {'finished': True})
        show(folder, found)
        if folder.path is not None:
            print('\n' + folder.listing())
        return found
