"""Worker process that runs the workloads of a library: reads JSON requests and writes JSON replies, one per line.

    {"do": "prepare", "name": "a", "what": "training", "sizes": [5, 5, 1, 5, "gru"], "path": "/tmp/a.npz"}
                                                                       -> {"temporaries": 12345}
    {"do": "measure", "name": "a", "seconds": 0.2, "threads": null}    -> {"seconds": 0.000123}
    {"do": "forget"}                                                   -> {}

The process ends with its input. Between requests it is idle, so that other workers are not slowed down.
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
    'native_off': ('benchmarks.peers.ours', 'Ours'),
    'flax': ('benchmarks.peers.flaxes', 'Flax'),
    'keras': ('benchmarks.peers.kerases', 'Keras'),
    'torch': ('benchmarks.peers.torches', 'Torch'),
}


class Worker:
    """Prepared workloads of a process; the methods are the requests."""

    def __init__(self, peer: Any):
        self.peer, self.works = peer, {}

    def prepare(self, name: str, what: str, sizes: list[Any], path: str | None = None) -> dict[str, Any]:
        """Compiles a workload and runs it once; with `path`, an .npz file, writes its results."""
        self.works[name] = work = getattr(self.peer, what)(*sizes)
        if path is None:
            work.call()
        else:
            np.savez(path, **{key: np.asarray(value) for key, value in work.results().items()})
        gc.collect()
        gc.freeze()  # so that garbage collection in `measure` is fast
        return {'temporaries': work.temporaries}

    def measure(self, name: str, seconds: float, threads: int | None) -> dict[str, Any]:
        """Returns the median time of the calls within `seconds`, and at least of one call."""
        if threads is not None:
            use_threads(threads)
        gc.collect()
        gc.disable()
        try:
            return {'seconds': statistics.median(timed(self.works[name].call, seconds))}
        finally:
            gc.enable()

    def forget(self) -> dict[str, Any]:
        """Frees all workloads."""
        self.works.clear()
        gc.unfreeze()
        gc.collect()
        return {}


def timed(call: Any, seconds: float) -> list[float]:
    """Returns the time of each call, until the sum reaches `seconds`."""
    times: list[float] = []
    while not times or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def use_threads(count: int) -> None:
    """Sets the number of PyTorch's threads."""
    import torch

    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def take_output() -> TextIO:
    """Returns stdout for replies, and redirects what libraries print to stderr."""
    replies = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    return replies


def main(name: str) -> None:
    """Runs the worker of a library."""
    replies = take_output()
    module, kind = PEERS[name]
    worker = Worker(getattr(importlib.import_module(module), kind)())
    requests = {method: getattr(worker, method) for method in ('prepare', 'measure', 'forget')}
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(requests[request.pop('do')](**request)), file=replies, flush=True)
