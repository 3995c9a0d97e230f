"""Runs of several processes, on one machine or on many, by `jax.distributed`.

All processes run the same program; process 0 writes and logs. Decisions that depend on files, such as the checkpoint to
restore, are made by process 0 and broadcast.
"""

import pickle
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar('T')
OFF, AUTO = 'off', 'auto'


class Address(NamedTuple):
    """Place of one process in a distributed run."""

    coordinator: str  # HOST:PORT of process 0
    count: int  # number of processes
    index: int  # index of this process


def parse(text: str) -> Address | None:
    """Returns the Address of HOST:PORT,COUNT,INDEX; None for 'off' and 'auto'.

    Raises:
      ValueError: the text has another form, or the port or index is out of range.

    >>> parse('localhost:1234,2,0')
    Address(coordinator='localhost:1234', count=2, index=0)
    """
    if text in (OFF, AUTO):
        return None
    match = re.fullmatch(r'([^\s,]+:([0-9]{1,5})),([0-9]{1,6}),([0-9]{1,6})', text, re.ASCII)
    if match is None or not 0 < int(match[2]) < 2**16 or not int(match[4]) < int(match[3]):
        raise ValueError('must be off, auto, or HOST:PORT,COUNT,INDEX with 0 <= INDEX < COUNT, such as node1:1234,2,0')
    return Address(match[1], int(match[3]), int(match[4]))


def start(text: str, heartbeat_timeout: int) -> None:
    """Connects to the other processes of a run; must be called before JAX is initialized; 'off' does nothing.

    Args:
      text: 'off', 'auto' to detect a cluster, or HOST:PORT,COUNT,INDEX, see `parse`.
      heartbeat_timeout: seconds without a heartbeat after which a process counts as dead, and all others end.

    Raises:
      ValueError: 'auto' detects no cluster.
      RuntimeError: the other processes cannot be reached.
      OSError: process 0 cannot listen at the port, because it is in use.
    """
    if text == OFF:
        return
    address, options = parse(text), {'heartbeat_timeout_seconds': heartbeat_timeout}
    if address is None:
        connect = partial(jax.distributed.initialize, **options)
    else:
        connect = partial(jax.distributed.initialize, *address, **options)
        if address.index == 0:  # JAX exits without an error message if the port is in use
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(('', int(address.coordinator.rpartition(':')[2])))
    executor = ThreadPoolExecutor(1)  # in a thread, so that signals are handled while it waits
    try:
        executor.submit(connect).result()
    finally:
        executor.shutdown(wait=False)


def stop() -> None:
    """Disconnects from the other processes, if there are any; otherwise they would treat this process as dead."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def is_multiprocess() -> bool:
    """Returns True if the run has more than one process."""
    return jax.process_count() > 1


def is_process0() -> bool:
    """Returns True if this process is process 0, which writes and logs."""
    return jax.process_index() == 0


def broadcast_from_process0(make: Callable[[], T]) -> T:
    """Calls `make` in process 0 only, and returns its result, or raises its exception, in every process.

    Every process must call this function; otherwise the others wait.
    """
    if not is_multiprocess():
        return make()
    outcome: tuple[Any, Exception | None] = (None, None)
    if is_process0():
        try:
            outcome = (make(), None)
        except Exception as error:  # raised below, in every process
            outcome = (None, error)
    value, error = pickle.loads(_broadcast(pickle.dumps(outcome)))
    if error is not None:
        raise error
    return value


def _broadcast(data: bytes) -> bytes:
    """Returns the `data` of process 0 in every process."""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(length, np.uint8)
    if is_process0():
        padded[:] = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()


def allreduce_max(number: int) -> int:
    """Returns the maximum of a number over all processes; every process must call this."""
    return int(np.max(multihost_utils.process_allgather(np.int32(number)))) if is_multiprocess() else number
