"""The process that does the work of one library: a JSON request a line comes in, a JSON reply a line goes out.

    {"do": "prepare", "name": "a", "what": "training", "sizes": [5, 5, 1, 5]}  -> {"temporaries": 12345}
    {"do": "measure", "name": "a", "seconds": 0.2, "threads": null}                -> {"seconds": 0.000123}
    {"do": "save", "name": "a", "path": "/tmp/a.npz"}                              -> {}
    {"do": "forget"}                                                               -> {}

It ends where its input ends. Between two requests it waits for the next, and takes no time from the others.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import statistics
import sys
import time
from typing import Any, TextIO

import numpy as np

PEERS = {
    'ours': ('benchmarks.peers.ours', 'Ours'),
    'flax': ('benchmarks.peers.flaxes', 'Flax'),
    'keras': ('benchmarks.peers.kerases', 'Keras'),
    'torch': ('benchmarks.peers.torches', 'Torch'),
}


class Worker:
    """What a process has prepared; the methods are the requests."""

    def __init__(self, peer: Any):
        self.peer, self.works = peer, {}

    def prepare(self, name: str, what: str, sizes: list[int]) -> dict[str, Any]:
        """Compiles, and calls once, so that what is measured is warm."""
        self.works[name] = work = getattr(self.peer, what)(*sizes)
        work.call()
        gc.collect()
        gc.freeze()  # so that `measure` has little to look through
        return {'temporaries': work.temporaries}

    def measure(self, name: str, seconds: float, threads: int | None) -> dict[str, Any]:
        """The median of as many calls as `seconds` have, but at least one."""
        if threads is not None:
            use_threads(threads)
        gc.collect()
        gc.disable()
        try:
            return {'seconds': statistics.median(timed(self.works[name].call, seconds))}
        finally:
            gc.enable()

    def save(self, name: str, path: str) -> dict[str, Any]:
        """Writes what the work computes, for a comparison."""
        np.savez(path, **{name: np.asarray(value) for name, value in self.works[name].results().items()})
        return {}

    def forget(self) -> dict[str, Any]:
        """Lets go of all that was prepared."""
        self.works.clear()
        gc.unfreeze()
        gc.collect()
        return {}


def timed(call: Any, seconds: float) -> list[float]:
    """The seconds of each call, until they add up to `seconds`."""
    times: list[float] = []
    while not times or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def use_threads(count: int) -> None:
    """Of PyTorch alone, which may have fewer than there are cores."""
    import torch

    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def take_output() -> TextIO:
    """The pipe of the replies; what libraries print goes to stderr from now on."""
    replies = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    return replies


def main(name: str) -> None:
    replies = take_output()
    module, kind = PEERS[name]
    worker = Worker(getattr(importlib.import_module(module), kind)())
    requests = {method: getattr(worker, method) for method in ('prepare', 'measure', 'save', 'forget')}
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(requests[request.pop('do')](**request)), file=replies, flush=True)
