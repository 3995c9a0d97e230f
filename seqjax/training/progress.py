"""Progress of a run: a bar on a terminal, a few lines elsewhere, and a warning where the run takes days."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from seqjax import errors
from seqjax.runs import multihost

PLAIN_LINES = 10  # of progress, where there is no terminal
DAY = 86_400
MEASURED = 5  # seconds after the first chunk from which on the speed counts
LONG = 30  # seconds of a first chunk in which what is compiled does not matter
FIRST = 60  # seconds in which the speed is looked at, and so many chunks at least
CHUNKS = 5

Draw = Callable[[int, int, str, str], None]  # units done, their total, words, the time left


class Progress:
    """Units of work, such as steps of all seeds, of groups that follow each other."""

    def __init__(self, total: int, unit: str, draw: Draw):
        self.total, self.unit, self.draw = total, unit, draw
        self.ended = 0  # units of the groups that ended
        self.here = 0  # units of this session
        self.chunks = 0  # of this session
        self.words = ''
        self.start, self.first = time.perf_counter(), (0.0, 0)  # the latter after the first chunk, with its units
        self.slow = False  # whether the warning was given
        self.late = threading.Timer(FIRST, self._say)
        self.resumed: str | None = ''  # what a run resumes from; None once it was told

    def begin(self, place: str, taken: int, over: bool, folder: Path | None, steps_per_call: int = 0) -> None:
        """Begins a group (`place`, empty where there is but one), and says once from which step a run resumes.

        It took `taken` steps in earlier sessions; nothing of it is left to do where it is `over`. `steps_per_call`
        units come before the first call of `show`.
        """
        if not self.here and not over:
            self.start = time.perf_counter()
            self._wait(steps_per_call)
        if folder is None or self.resumed is None or not (taken or self.resumed):
            return
        self.resumed = f'Resuming from step {taken:,}{place and f" of {place}"} ({folder})'
        if not over:
            self._tell()

    def _wait(self, steps_per_call: int) -> None:
        """Warns after a minute without a first chunk, where as many of them as there are take more than a day."""
        self.late.cancel()
        least = FIRST * (self.total - self.ended) / max(steps_per_call, 1)
        if steps_per_call and least > DAY:
            self.late = threading.Timer(
                FIRST, self._say, (f'no chunk was done in {FIRST} seconds: all of this run', 'least', least)
            )
            self.late.daemon = True
            self.late.start()

    def _tell(self) -> None:
        if self.resumed:
            print(self.resumed, flush=True)
        self.resumed = None

    def show(self, done: int, new: int, words: str = '') -> None:
        """Shows `done` units of this group, of which `new` came since the last call."""
        self.late.cancel()
        self.here, self.chunks, self.words = self.here + new, self.chunks + 1, words
        now = time.perf_counter()
        left = (self.total - self.ended - done) / max(self._speed(now), 1e-9)
        self._draw(done, now, left)
        if self.chunks == 1:
            self.first = now, self.here
        self._warn(now, left)

    def end(self, done: int, planned: int) -> None:
        """Ends a group after `done` of the `planned` units: what is left out counts no more."""
        self.ended += done
        self.total -= planned - done
        self._draw(0, time.perf_counter(), 0.0)

    def close(self) -> None:
        """Says what was resumed where nothing was left to do."""
        self._tell()

    def _draw(self, done: int, now: float, left: float) -> None:
        rate = f'  {self.here / max(now - self.start, 1e-9):,.0f} {self.unit}/s' if self.here else ''
        self.draw(self.ended + done, self.total, self.words + rate, _duration(left) if self.here else '')

    def _speed(self, now: float) -> float:
        """Units a second; what the first chunk took counts only until there is another."""
        start, units = self.first if self.chunks > 1 else (self.start, 0)
        return (self.here - units) / max(now - start, 1e-9)

    def _warn(self, now: float, left: float) -> None:
        """Says once, early on, that a run takes more than a day."""
        measured = now - self.first[0] >= MEASURED if self.chunks > 1 else now - self.start >= LONG
        early = now - self.start < FIRST or self.chunks <= CHUNKS
        if left > DAY and measured and early:
            speed = f'{self._speed(now):,.3g} {self.unit}s a second'
            self._say(f'at the measured speed of {speed} the rest of this run', 'most', left)

    def _say(self, what: str, bound: str, seconds: float) -> None:
        named = next((name for name in ('epoch', 'step') if name in self.unit), None)  # the flag of the steps
        if named is None or self.slow or not multihost.is_process0():
            return
        self.slow = True
        errors.warn(
            f'{what} takes at {bound} {seconds / DAY:,.1f} days; fewer --{named}s or --num_seeds, or a smaller '
            '--hidden, shorten it'
        )


def _duration(seconds: float) -> str:
    """
    >>> _duration(3725.4), _duration(90_000)
    ('1:02:05', '1 d 1 h')
    """
    minutes, seconds = divmod(int(min(seconds, 1e12)), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours < 24 else f'{hours // 24:,} d {hours % 24} h'


@contextlib.contextmanager
def progress(total: int, unit: str) -> Iterator[Progress]:
    """Shows how far a run of so many units is: a bar on a terminal, at most PLAIN_LINES lines elsewhere."""
    with (_bar if sys.stdout.isatty() else _lines)(total, unit) as draw:
        shown = Progress(total, unit, draw)
        try:
            yield shown
            shown.close()
        finally:
            shown.late.cancel()


@contextlib.contextmanager
def _lines(total: int, unit: str) -> Iterator[Draw]:
    tenths, last = 0, None
    width = len(f'{total:,}')

    def draw(done, total, words, left):
        nonlocal tenths, last
        new = done * PLAIN_LINES // max(total, 1) > tenths
        if (new or done == total) and last != (done, total):
            tenths, last = done * PLAIN_LINES // max(total, 1), (done, total)
            print(f'{unit} {done:>{width},}/{total:,}  {words}'.rstrip(), flush=True)

    yield draw


@contextlib.contextmanager
def _bar(total: int, unit: str) -> Iterator[Draw]:
    from rich import (
        progress as rich_progress,  # only a terminal needs it, and it takes a tenth of a second
    )

    columns: list[Any] = [
        rich_progress.TextColumn(unit),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn('{task.fields[words]}'),
        rich_progress.TextColumn('{task.fields[left]}'),
    ]
    # A warning goes to the terminal above the bar, or to the file that takes the errors.
    with rich_progress.Progress(*columns, redirect_stderr=sys.stderr.isatty()) as bar:
        task = bar.add_task(unit, total=total, words='', left='')

        def draw(done, total, words, left):
            left = f'at most {left} left' if left and done < total else ''
            bar.update(task, completed=done, total=total, words=words, left=left)

        yield draw
