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
    """Trains the entries of a comparison one after the other, and writes and prints their results.

    Args:
      flags: flags of the comparison, with `workdir` and `overwrite`.
      name: name of the comparison in summary.json.
      names: names of the files and folders that the comparison writes; --overwrite removes them.
      entries: compared models or settings, each an argument of `train`.
      train: train(entry, folder of the comparison) trains an entry in a subfolder, and returns its result.
      write: write(folder, results) writes the table of all results.
      show: show(folder, results) prints the table of all results.

    Returns:
      The results of `train`, in the order of `entries`.

    Raises:
      UserError: the folder cannot be written, is in use, or contains another comparison.
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
