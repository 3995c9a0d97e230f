"""Graceful shutdown on SIGTERM, which schedulers send, and SIGINT (Ctrl-C)."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

# Schedulers restart a job that ends with 75 (EX_TEMPFAIL of sysexits.h).
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}


class Terminated(SystemExit):
    """Exception that ends a run after SIGTERM; `message` has the command that resumes it."""

    def __init__(self, message: str):
        super().__init__(EXIT_CODES[signal.SIGTERM])
        self.message = message


class Interrupted(KeyboardInterrupt):
    """Exception that ends a run after SIGINT; `message` has the command that resumes it."""

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message


def exit_code(stopped: Terminated | Interrupted) -> int:
    """Returns the exit code of the process after a stop exception: 75 for Terminated, 130 for Interrupted."""
    return EXIT_CODES[signal.SIGINT if isinstance(stopped, Interrupted) else signal.SIGTERM]


def name(number: int) -> str:
    return signal.Signals(number).name


def stop_exception(number: int, message: str) -> BaseException:
    """Returns the exception that ends a run after a signal: Interrupted for SIGINT, or else Terminated."""
    return (Interrupted if number == signal.SIGINT else Terminated)(message)


def end_process(code: int) -> NoReturn:
    """Ends the process immediately with an exit code, without cleanup; no other function calls os._exit.

    A command that is done has nothing left to free, and shutting down the interpreter costs 0.1 to 0.3 s. In a signal
    handler, an exception could be caught by the interrupted code, such as an import.
    """
    os._exit(code)


def exit_immediately(number: int, frame: Any) -> NoReturn:
    """Signal handler that ends the process immediately with the exit code of the signal."""
    end_process(EXIT_CODES[number])


class ShutdownRequest:
    """Signal handler that records the first signal in `number`; the second signal ends the process immediately.

    Args:
      defer: True to only record the first signal; False to raise Terminated or Interrupted as well.
    """

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
                f'stopped by {name(number)}; run the same command to resume from the last checkpoint, if there is one',
            )
        repeat = 'press Ctrl-C again' if number == signal.SIGINT else 'send it again'
        print(
            f'\n{name(number)}: finishing the current steps and saving ({repeat} to exit immediately)',
            file=sys.stderr,
            flush=True,
        )


def restore_python_handlers() -> None:
    """Installs the SIGTERM and SIGINT handlers of Python again, after a native library has replaced them."""
    if threading.current_thread() is threading.main_thread():
        for number in EXIT_CODES:
            signal.signal(number, signal.getsignal(number))


@contextlib.contextmanager
def handle_signals(*, defer: bool) -> Iterator[ShutdownRequest]:
    """Context manager that handles SIGTERM and SIGINT, and restores the previous handlers at the end.

    The first signal is only recorded in the ShutdownRequest if `defer` is set; otherwise it raises Terminated or
    Interrupted. A second signal ends the process immediately, without cleanup. Outside of the main thread, no handler
    is installed: Python handles signals in the main thread only.
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
                old.number = handler.number  # the outer handler counts this signal, too
