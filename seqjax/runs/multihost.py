"""Several processes, of one machine or of many, that compute one run: `jax.distributed` is the engine.

All of them run the same program; process 0 writes and logs. What is decided by looking at the outside, such as which
checkpoint is sound, process 0 decides, and the others are told.
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
    """One process among others."""

    coordinator: str  # HOST:PORT of process 0
    count: int
    index: int


def parse(text: str) -> Address | None:
    """'off' and 'auto' -> None; HOST:PORT,COUNT,INDEX -> Address.

    Raises ValueError where the text is none of these.

    >>> parse('localhost:1234,2,0')
    Address(coordinator='localhost:1234', count=2, index=0)
    """
    if text in (OFF, AUTO):
        return None
    match = re.fullmatch(r'([^\s,]+:([0-9]{1,5})),([0-9]{1,6}),([0-9]{1,6})', text, re.ASCII)
    if match is None or not 0 < int(match[2]) < 2**16 or not int(match[4]) < int(match[3]):
        raise ValueError(
            'must be off, auto, or HOST:PORT,COUNT,INDEX with INDEX from 0 to below COUNT, such as node1:1234,2,0'
        )
    return Address(match[1], int(match[3]), int(match[4]))


def start(text: str, heartbeat_timeout: int) -> None:
    """Joins the other processes; JAX must not have begun. See `parse` for the text.

    After `heartbeat_timeout` seconds a process that is not heard of is taken for dead, and all others end.

    Raises:
      ValueError: 'auto' finds no cluster.
      RuntimeError: the others cannot be reached.
      OSError: the port is taken.
    """
    if text == OFF:
        return
    address, how = parse(text), {'heartbeat_timeout_seconds': heartbeat_timeout}
    if address is None:
        join = partial(jax.distributed.initialize, **how)
    else:
        join = partial(jax.distributed.initialize, *address, **how)
        if address.index == 0:  # JAX would end without a word
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(('', int(address.coordinator.rpartition(':')[2])))
    waiting = ThreadPoolExecutor(1)  # a thread, so that a signal reaches us while the others are waited for
    try:
        waiting.submit(join).result()
    finally:
        waiting.shutdown(wait=False)


def stop() -> None:
    """Waits for the others; whoever leaves without it is taken for dead by them."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def is_multiprocess() -> bool:
    return jax.process_count() > 1


def is_process0() -> bool:
    """Whether this process writes and logs."""
    return jax.process_index() == 0


def broadcast_from_process0(make: Callable[[], T]) -> T:
    """What `make` gives, or raises, in process 0; every process must come here."""
    if not is_multiprocess():
        return make()
    outcome: tuple[Any, Exception | None] = (None, None)
    if is_process0():
        try:
            outcome = (make(), None)
        except Exception as error:  # raised below, in all
            outcome = (None, error)
    value, error = pickle.loads(_broadcast(pickle.dumps(outcome)))
    if error is not None:
        raise error
    return value


def _broadcast(data: bytes) -> bytes:
    """The bytes of process 0."""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(length, np.uint8)
    if is_process0():
        padded[:] = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()


def allreduce_max(number: int) -> int:
    """The largest of what the processes bring; every process must come here."""
    return int(np.max(multihost_utils.process_allgather(np.int32(number)))) if is_multiprocess() else number
