"""How a run is asked to stop: SIGTERM, as schedulers send it, and SIGINT, which is Ctrl-C."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

# Of the process. Schedulers start a job again that ends with 75 (EX_TEMPFAIL of sysexits.h), and not one with 0.
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}


class Terminated(SystemExit):
    """SIGTERM; its message says what was saved."""

    def __init__(self, message: str):
        super().__init__(EXIT_CODES[signal.SIGTERM])
        self.message = message


class Interrupted(KeyboardInterrupt):
    """SIGINT; its message says what was saved."""

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message


def exit_code(stopped: Terminated | Interrupted) -> int:
    """The exit code of a process that was stopped so."""
    return EXIT_CODES[signal.SIGINT if isinstance(stopped, Interrupted) else signal.SIGTERM]


def name(number: int) -> str:
    return signal.Signals(number).name


def stop_exception(number: int, message: str) -> BaseException:
    """The exception that ends a run which the signal asked to stop."""
    return (Interrupted if number == signal.SIGINT else Terminated)(message)


def end_process(code: int) -> NoReturn:
    """Ends the process at once, with an exit code; the only place that does so.

    A command that is done has nothing left to free, and to take the interpreter down costs 0.1 to 0.3 s. In a handler
    of a signal, an exception would end in whatever is under way, as an import that turns it into another one.
    """
    os._exit(code)


def exit_immediately(number: int, frame: Any) -> NoReturn:
    """Handler that ends the process with the exit code of the signal."""
    end_process(EXIT_CODES[number])


class ShutdownRequest:
    """Which signal has asked to stop; None until then. The second one ends the process at once."""

    def __init__(self, defer: bool):
        self.number: int | None = None
        self.defer = defer

    def __call__(self, number, frame):
        if self.number is not None:
            exit_immediately(number, frame)
        self.number = number
        if not self.defer:
            raise stop_exception(
                number,
                f'stopped by {name(number)}; the same command goes on from the last checkpoint, or begins anew where '
                'there is none',
            )
        print(f'\n{name(number)}: finishing the chunk and saving; once more ends at once', file=sys.stderr, flush=True)


def restore_python_handlers() -> None:
    """Takes the signals back from a library that has put its own handlers in the place of Python's."""
    if threading.current_thread() is threading.main_thread():
        for number in EXIT_CODES:
            signal.signal(number, signal.getsignal(number))


@contextlib.contextmanager
def handle_signals(*, defer: bool) -> Iterator[ShutdownRequest]:
    """Within, a first signal is noted where `defer` is set, and raises at once where it is not.

    Python takes signals in its main thread only; elsewhere nothing changes.
    """
    handler = ShutdownRequest(defer)
    if threading.current_thread() is not threading.main_thread():
        yield handler
        return
    before = {number: signal.signal(number, handler) for number in EXIT_CODES}
    try:
        yield handler
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
            if isinstance(old, ShutdownRequest) and handler.number is not None:
                old.number = handler.number  # the next one is the second there, too
