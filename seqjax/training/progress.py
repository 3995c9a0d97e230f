"""Progress of a run: a bar on a terminal, a few lines elsewhere, and a warning if the run takes days."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from seqjax import errors
from seqjax.runs import multihost

PLAIN_LINES = 10  # lines of progress without a terminal
DAY = 86_400
MIN_MEASURED = 5  # seconds after the first chunk before the speed is known
MIN_FIRST_CHUNK = 30  # seconds of a first chunk for which compilation time is negligible
WARNING_PERIOD = 60  # seconds from the start in which a long run is warned of, and at least so many chunks:
WARNING_CHUNKS = 5

Draw = Callable[[int, int, str, str], None]  # units done, total, status, remaining time


class Progress:
    """Progress in units of work, such as steps of all seeds, over groups that are trained one after the other."""

    def __init__(self, total: int, unit: str, draw: Draw):
        self.total, self.unit, self.draw = total, unit, draw
        self.finished_units = 0  # units of finished groups
        self.session_units = 0  # units of this session
        self.session_chunks = 0  # chunks of this session
        self.status = ''
        self.start = time.perf_counter()
        self.first_chunk = (0.0, 0)  # time after the first chunk, and its units
        self.has_warned = False
        self.timer = threading.Timer(WARNING_PERIOD, self._print_warning)
        self.resume_line: str | None = ''  # line about the resumed step; None after it was printed

    def begin(self, group: str, steps_taken: int, is_done: bool, folder: Path | None, steps_per_call: int = 0) -> None:
        """Starts a group, and prints once from which step a run resumes.

        Args:
          group: name of the group; empty if there is only one.
          steps_taken: steps of earlier sessions.
          is_done: whether the group has no steps left.
          folder: run directory, or None.
          steps_per_call: units before the first call of `show`.
        """
        if not self.session_units and not is_done:
            self.start = time.perf_counter()
            self._start_timer(steps_per_call)
        if folder is None or self.resume_line is None or not (steps_taken or self.resume_line):
            return
        self.resume_line = f'Resuming from step {steps_taken:,}{group and f" of {group}"} ({folder})'
        if not is_done:
            self._print_resume_line()

    def _start_timer(self, steps_per_call: int) -> None:
        """Starts a timer that warns after a minute without a chunk if at that speed the run takes more than a day."""
        self.timer.cancel()
        least = WARNING_PERIOD * (self.total - self.finished_units) / max(steps_per_call, 1)
        if steps_per_call and least > DAY:
            self.timer = threading.Timer(
                WARNING_PERIOD,
                self._print_warning,
                (f'the first steps take more than {WARNING_PERIOD} seconds: this run', 'least', least),
            )
            self.timer.daemon = True
            self.timer.start()

    def _print_resume_line(self) -> None:
        if self.resume_line:
            print(self.resume_line, flush=True)
        self.resume_line = None

    def show(self, done: int, new: int, status: str = '') -> None:
        """Shows `done` units of this group, including `new` units since the last call."""
        self.timer.cancel()
        self.session_units, self.session_chunks = self.session_units + new, self.session_chunks + 1
        self.status, now = status, time.perf_counter()
        remaining = (self.total - self.finished_units - done) / max(self._speed(now), 1e-9)
        self._draw(done, now, remaining)
        if self.session_chunks == 1:
            self.first_chunk = now, self.session_units
        self._warn_if_long(now, remaining)

    def end(self, done: int, planned: int) -> None:
        """Ends a group after `done` of its `planned` units; the others are subtracted from the total."""
        self.finished_units += done
        self.total -= planned - done
        self._draw(0, time.perf_counter(), 0.0)

    def close(self) -> None:
        """Prints from which step the run resumed if no step was left."""
        self._print_resume_line()

    def _draw(self, done: int, now: float, remaining: float) -> None:
        units = self.session_units
        rate = f'  {units / max(now - self.start, 1e-9):,.0f} {self.unit}/s' if units else ''
        remaining_time = _duration(remaining) if units else ''
        self.draw(self.finished_units + done, self.total, self.status + rate, remaining_time)

    def _speed(self, now: float) -> float:
        """Returns units per second, without the first chunk if there are more."""
        start, units = self.first_chunk if self.session_chunks > 1 else (self.start, 0)
        return (self.session_units - units) / max(now - start, 1e-9)

    def _warn_if_long(self, now: float, remaining: float) -> None:
        """Warns once, early in the run, if it takes more than a day."""
        if self.session_chunks > 1:
            is_measured = now - self.first_chunk[0] >= MIN_MEASURED
        else:
            is_measured = now - self.start >= MIN_FIRST_CHUNK
        is_early = now - self.start < WARNING_PERIOD or self.session_chunks <= WARNING_CHUNKS
        if remaining > DAY and is_measured and is_early:
            speed = f'{self._speed(now):,.3g} {self.unit}s per second'
            self._print_warning(f'at the measured speed of {speed}, the rest of this run', 'most', remaining)

    def _print_warning(self, subject: str, bound: str, seconds: float) -> None:
        flag = next((name for name in ('epoch', 'step') if name in self.unit), None)  # the flag with the steps
        if flag is None or self.has_warned or not multihost.is_process0():
            return
        self.has_warned = True
        errors.warn(
            f'{subject} takes at {bound} {seconds / DAY:,.1f} days; '
            f'reduce --{flag}s, --num_seeds or --hidden to shorten it'
        )


def _duration(seconds: float) -> str:
    """Returns a duration as text.

    >>> _duration(3725.4), _duration(90_000)
    ('1:02:05', '1 d 1 h')
    """
    minutes, seconds = divmod(int(min(seconds, 1e12)), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours < 24 else f'{hours // 24:,} d {hours % 24} h'


@contextlib.contextmanager
def progress(total: int, unit: str) -> Iterator[Progress]:
    """Context manager that shows progress: a bar on a terminal, and at most PLAIN_LINES lines elsewhere."""
    with (_bar if sys.stdout.isatty() else _lines)(total, unit) as draw:
        shown = Progress(total, unit, draw)
        try:
            yield shown
            shown.close()
        finally:
            shown.timer.cancel()


@contextlib.contextmanager
def _lines(total: int, unit: str) -> Iterator[Draw]:
    parts, last = 0, None  # PLAIN_LINES parts of the total; the last line
    width = len(f'{total:,}')

    def draw(done, total, status, remaining):
        nonlocal parts, last
        is_new = done * PLAIN_LINES // max(total, 1) > parts
        if (is_new or done == total) and last != (done, total):
            parts, last = done * PLAIN_LINES // max(total, 1), (done, total)
            print(f'{unit} {done:>{width},}/{total:,}  {status}'.rstrip(), flush=True)

    yield draw


@contextlib.contextmanager
def _bar(total: int, unit: str) -> Iterator[Draw]:
    from rich import (
        progress as rich_progress,  # used on terminals only; importing it takes a tenth of a second
    )

    columns: list[Any] = [
        rich_progress.TextColumn(unit),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn('{task.fields[status]}'),
        rich_progress.TextColumn('{task.fields[remaining]}'),
    ]
    # A warning is printed above the bar, or to the file to which stderr is redirected.
    with rich_progress.Progress(*columns, redirect_stderr=sys.stderr.isatty()) as bar:
        task = bar.add_task(unit, total=total, status='', remaining='')

        def draw(done, total, status, remaining):
            remaining = f'at most {remaining} left' if remaining and done < total else ''
            bar.update(task, completed=done, total=total, status=status, remaining=remaining)

        yield draw
