"""Memory that a program needs, estimated from its jaxpr before XLA compiles it, and memory of this machine."""

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from seqjax.errors import UserError

# Flags with integer values that do not change the size of a run.
NON_SIZE_FLAGS = (
    'seed',
    'sample_seed',
    'max_to_keep',
    'checkpoint_every',
    'decay_steps',
    'patience',
    'heartbeat_timeout',
    'transpose',
    'ar_order',
)

CGROUP = (Path('/sys/fs/cgroup/memory.max'), Path('/sys/fs/cgroup/memory/memory.limit_in_bytes'))  # versions 2 and 1

# XLA fuses these into the operations that read them.
FUSED = {'broadcast_in_dim', 'iota', 'reshape', 'squeeze', 'expand_dims', 'convert_element_type', 'copy'}
IN_PLACE = {'dynamic_update_slice', 'scatter', 'scatter-add'}  # the output overwrites the operand


def check(settings: Mapping[str, Any], program: ClosedJaxpr) -> None:
    """Raises UserError if `program` needs more memory per process than the machine or its container has in total.

    `settings` are the run's flags. On a GPU or a TPU nothing is checked, since the program runs in the device's memory.
    """
    if jax.default_backend() == 'cpu':
        check_bytes(named_sizes(settings), peak_bytes(program) // jax.process_count())


def check_bytes(sizes: str, needed: int) -> None:
    """Raises UserError if `needed` bytes exceed the available memory; `sizes` are the flags that the message shows."""
    available = available_bytes()
    if needed > available:
        raise UserError(
            f'{sizes} would need about {needed / 1e9:,.0f} GB of memory, and {available / 1e9:,.0f} GB are '
            'available; use smaller values'
        )


def named_sizes(settings: Mapping[str, Any]) -> str:
    """Returns the integer settings that are sizes as text, such as --length=5 --hidden=32; `this run` if none is."""
    sizes = {name: x for name, x in settings.items() if type(x) is int and name not in NON_SIZE_FLAGS}
    return ' '.join(f'--{name}={x}' for name, x in sizes.items()) or 'this run'


def available_bytes() -> int:
    """Returns the bytes of memory that this process may use: the machine's, or the limit of its container."""
    limits = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
    for path in CGROUP:
        with contextlib.suppress(OSError, ValueError):  # no such file, or no limit ('max')
            limits.append(int(path.read_text()))
    return min(limits)


def peak_bytes(program: ClosedJaxpr) -> int:
    """Returns an estimate of the peak memory of a program in bytes, including arguments and results.

    The estimate assumes that an array lives from the equation that makes it to the last one that reads it, and
    that XLA fuses only the operations `FUSED`.
    """
    inner = program.jaxpr
    return sum(_bytes(x) for x in (*inner.invars, *inner.constvars)) + _allocated(inner)


def _allocated(jaxpr: Jaxpr) -> int:
    """Returns an estimate of the peak memory in bytes that a jaxpr allocates, without its arguments."""
    last = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in eqn.invars if not isinstance(var, Literal)}
    last |= {var: len(jaxpr.eqns) for var in jaxpr.outvars if not isinstance(var, Literal)}
    sizes: dict[Any, int] = {}
    live = peak = 0
    for i, eqn in enumerate(jaxpr.eqns):
        name, outputs = eqn.primitive.name, {var: _bytes(var) for var in eqn.outvars}
        if name in FUSED:
            outputs = dict.fromkeys(outputs, 0)
        if name in IN_PLACE and not isinstance(eqn.invars[0], Literal) and last[eqn.invars[0]] == i:
            live -= sizes.pop(eqn.invars[0], 0)
        output_bytes, inner_bytes = sum(outputs.values()), max(map(_allocated, _jaxprs(eqn.params)), default=0)
        if name == 'shard_map':
            inner_bytes *= math.prod(eqn.params['mesh'].shape.values())
        is_loop = name in ('scan', 'while')
        peak = max(peak, live + (output_bytes + inner_bytes if is_loop else max(output_bytes, inner_bytes)))
        live, sizes = live + output_bytes, sizes | outputs
        for var in (*eqn.invars, *eqn.outvars):
            if not isinstance(var, Literal) and last.get(var, i) <= i:
                live -= sizes.pop(var, 0)
    return peak


def _jaxprs(params: Any) -> list[Jaxpr]:
    """Returns the jaxprs among the parameters of an equation."""
    values = [x for value in params.values() for x in (value if isinstance(value, tuple | list) else [value])]
    return [getattr(x, 'jaxpr', x) for x in values if isinstance(x, ClosedJaxpr | Jaxpr)]


def _bytes(var: Any) -> int:
    shape, dtype = getattr(var.aval, 'shape', ()), getattr(var.aval, 'dtype', None)
    return math.prod(shape) * getattr(dtype, 'itemsize', 4)
