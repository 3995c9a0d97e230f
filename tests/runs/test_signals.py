"""How a process is asked to stop: at once or later, and the second time for good."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from seqjax.runs import signals
from seqjax.runs.signals import Interrupted, Terminated

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX')


@pytest.mark.parametrize('number', signals.EXIT_CODES)
def test_asked_for_later_a_signal_is_noted_and_afterwards_handlers_are_as_before(number, capsys):
    before = {n: signal.getsignal(n) for n in signals.EXIT_CODES}
    with signals.handle_signals(defer=True) as asked:
        assert asked.number is None
        os.kill(os.getpid(), number)
        assert asked.number == number
    assert {n: signal.getsignal(n) for n in signals.EXIT_CODES} == before
    err = capsys.readouterr().err
    assert err.count('\n') == 2 and number.name in err


@pytest.mark.parametrize('number', signals.EXIT_CODES)
def test_asked_at_once_a_signal_raises(number):
    with pytest.raises((Terminated, Interrupted)) as caught, signals.handle_signals(defer=False):
        os.kill(os.getpid(), number)
    assert signals.exit_code(caught.value) == signals.EXIT_CODES[number] and number.name in caught.value.message


@pytest.mark.parametrize('nested', [False, True])
@pytest.mark.parametrize('number', signals.EXIT_CODES)
def test_the_second_signal_ends_the_process_at_once(number, nested):
    """Also where the first came in an inner part of the run."""
    inner = 'with signals.handle_signals(defer=True):\n        kill()\n    kill()' if nested else 'kill()\n    kill()'
    code = f"""
import os
from seqjax.runs import signals
def kill():
    os.kill(os.getpid(), {int(number)})
with signals.handle_signals(defer={not nested}):
    {inner}
    print('still here')
"""
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == signals.EXIT_CODES[number] and done.stdout == '' and 'Traceback' not in done.stderr


def test_outside_of_the_main_thread_nothing_changes():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run():
        with signals.handle_signals(defer=True) as asked:
            seen.append((asked.number, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


def test_a_handler_that_was_taken_is_taken_back():
    """As from a library that sets its own behind Python's back; what Python believes is what is set."""
    with signals.handle_signals(defer=True) as asked:
        signals.restore_python_handlers()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.number == signal.SIGTERM
