"""Comparisons of several runs, each in a subfolder of the comparison's folder."""

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
    """Trains the entries of a comparison one after the other and writes a table of their results.

    Args:
      flags: flags of the comparison.
      name: name of the comparison.
      names: files and folders that the comparison writes.
      entries: compared models.
      train: trains an entry in a folder below the given one and returns its result.
      write: writes the table of results.
      show: prints the table of results.

    Returns:
      The result of each entry.
    """
    with directory.open_workdir(dict(flags), name, names=names) as (folder, _):
        summary = {'experiment': name, 'finished': False, 'flags': dict(flags)}
        folder.write_summary(summary)
        results = [train(entry, folder) for entry in entries]
        write(folder, results)
        folder.write_summary(summary | {'finished': True})
        show(folder, results)
        if folder.path is not None:
            print('\n' + folder.listing())
        return results
