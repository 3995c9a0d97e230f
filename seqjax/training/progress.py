"""Progress of a run: a bar on a terminal, a few lines elsewhere, and a warning if the run takes more than a day."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from seqjax import errors
from seqjax.runs import multihost

PLAIN_LINES = 10  # maximal number of progress lines if stdout is not a terminal
DAY = 86_400  # seconds
MIN_MEASURED = 5  # seconds since the first chunk after which the speed is known
MIN_FIRST_CHUNK = 30  # a first chunk of at least this many seconds suffices to measure the speed
WARNING_PERIOD = 60  # a warning is possible during this many seconds of a session
WARNING_CHUNKS = 5  # and during this many chunks, even if they take longer

Draw = Callable[[int, int, str, str], None]  # (units done, total units, status, remaining time as text)


class Progress:
    """Progress of training over replica groups that are trained one after the other.

    Progress is counted in units of work, such as training steps summed over all seeds.

    Args:
      total: units of all groups.
      unit: name of a unit, such as 'seed-step'.
      draw: shows the progress.
    """

    def __init__(self, total: int, unit: str, draw: Draw):
        self.total, self.unit, self.draw = total, unit, draw
        self.finished_units = 0  # units of finished groups, including earlier sessions
        self.session_units = 0  # units done in this session
        self.session_chunks = 0  # chunks done in this session
        self.status = ''
        self.start = time.perf_counter()
        self.first_chunk = (0.0, 0)  # time at the end of the first chunk of the session, and its units
        self.has_warned = False
        self.timer = threading.Timer(WARNING_PERIOD, self._print_warning)
        self.resume_line: str | None = ''  # line about the resumed step, or empty; None after it was printed

    def begin(
        self,
        group: str,
        steps_taken: int,
        is_done: bool,
        folder: Path | None,
        steps_per_call: int = 0,
        num_seeds: int = 1,
    ) -> None:
        """Starts a group; prints the step from which the run resumes, if it does, at the first unfinished group.

        Args:
          group: name of the group; empty if there is only one.
          steps_taken: training steps that the group has taken in earlier sessions.
          is_done: True if the group has no steps left to train.
          folder: run directory; None prints nothing.
          steps_per_call: training steps of the first chunk; 0 for no warning before that chunk ends.
          num_seeds: units of a training step: the number of seeds in the group.
        """
        if not self.session_units and not is_done:
            self.start = time.perf_counter()
            self._start_timer(steps_taken * num_seeds, steps_per_call * num_seeds)
        if folder is None or self.resume_line is None or not (steps_taken or self.resume_line):
            return
        self.resume_line = f'Resuming from step {steps_taken:,}{group and f" of {group}"} ({folder})'
        if not is_done:
            self._print_resume_line()

    def _start_timer(self, done: int, chunk: int) -> None:
        """Starts a timer that warns if the first chunk takes over a minute and, at that speed, the rest over a day.

        Args:
          done: units of the group that were done in earlier sessions.
          chunk: units of the first chunk; 0 for no warning.
        """
        self.timer.cancel()
        least = WARNING_PERIOD * (self.total - self.finished_units - done) / max(chunk, 1)
        if chunk and least > DAY:
            self.timer = threading.Timer(
                WARNING_PERIOD,
                self._print_warning,
                (f'the first steps take over {WARNING_PERIOD} s: this run, unless it stops early,', 'least', least),
            )
            self.timer.daemon = True
            self.timer.start()

    def _print_resume_line(self) -> None:
        if self.resume_line:
            print(self.resume_line, flush=True)
        self.resume_line = None

    def show(self, done: int, new: int, status: str = '') -> None:
        """Shows the progress after a chunk: `done` units of this group so far, `new` of them from the chunk."""
        self.timer.cancel()
        self.session_units, self.session_chunks = self.session_units + new, self.session_chunks + 1
        self.status, now = status, time.perf_counter()
        remaining = (self.total - self.finished_units - done) / max(self._speed(now), 1e-9)
        self._draw(done, now, remaining)
        if self.session_chunks == 1:
            self.first_chunk = now, self.session_units
        self._warn_if_long(now, remaining)

    def end(self, done: int, planned: int) -> None:
        """Ends a group after `done` of its `planned` units; subtracts the units that are left out from the total."""
        self.finished_units += done
        self.total -= planned - done
        self._draw(0, time.perf_counter(), 0.0)

    def close(self) -> None:
        """Prints the line about the resumed step if `begin` did not, because no group had steps left."""
        self._print_resume_line()

    def _draw(self, done: int, now: float, remaining: float) -> None:
        units = self.session_units
        rate = f'  {units / max(now - self.start, 1e-9):,.0f} {self.unit}/s' if units else ''
        remaining_time = _duration(remaining) if units else ''
        self.draw(self.finished_units + done, self.total, self.status + rate, remaining_time)

    def _speed(self, now: float) -> float:
        """Returns the units per second of this session; the first chunk is left out once there is a second."""
        start, units = self.first_chunk if self.session_chunks > 1 else (self.start, 0)
        return (self.session_units - units) / max(now - start, 1e-9)

    def _warn_if_long(self, now: float, remaining: float) -> None:
        """Warns once, early in the session, if at the measured speed the rest of the run takes more than a day."""
        if self.session_chunks > 1:
            is_measured = now - self.first_chunk[0] >= MIN_MEASURED
        else:
            is_measured = now - self.start >= MIN_FIRST_CHUNK
        is_early = now - self.start < WARNING_PERIOD or self.session_chunks <= WARNING_CHUNKS
        if remaining > DAY and is_measured and is_early:
            speed = f'{self._speed(now):,.3g} {self.unit}s per second'
            self._print_warning(f'at the measured speed of {speed}, the rest of this run', 'most', remaining)

    def _print_warning(self, subject: str, bound: str, seconds: float) -> None:
        flag = next((name for name in ('epoch', 'step') if name in self.unit), None)  # --steps or --epochs, by the unit
        if flag is None or self.has_warned or not multihost.is_process0():
            return
        self.has_warned = True
        errors.warn(
            f'{subject} takes at {bound} {seconds / DAY:,.1f} days; '
            f'reduce --{flag}s, --num_seeds or --hidden to shorten it'
        )


def _duration(seconds: float) -> str:
    """Returns a duration in seconds as text: hours, minutes and seconds, or days and hours from one day on.

    >>> _duration(3725.4), _duration(90_000)
    ('1:02:05', '1 d 1 h')
    """
    minutes, seconds = divmod(int(min(seconds, 1e12)), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours < 24 else f'{hours // 24:,} d {hours % 24} h'


@contextlib.contextmanager
def progress(total: int, unit: str) -> Iterator[Progress]:
    """Context manager that yields a Progress, drawn as a bar on a terminal and as about PLAIN_LINES lines elsewhere."""
    with (_bar if sys.stdout.isatty() else _lines)(total, unit) as draw:
        shown = Progress(total, unit, draw)
        try:
            yield shown
            shown.close()
        finally:
            shown.timer.cancel()


@contextlib.contextmanager
def _lines(total: int, unit: str) -> Iterator[Draw]:
    parts, last = 0, None  # tenths of the total shown so far; last (done, total) printed
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
