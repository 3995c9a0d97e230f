"""The LSTM over time as a function of arrays, `lstm`, with several backends.

`BACKENDS` maps names to backends, and `select_backend` chooses one; `./run.sh bench` measures them.
`lstm_scan.plain` scans the equations of `LSTMCell`. `native.recurrent.run` computes the same numbers by kernels in C++
on a CPU; `lstm_backward.fast` in JAX with a custom backward pass, in one of the memory layouts of `lstm_layouts`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from seqjax import validation
from seqjax.ops import common, lstm_backward, lstm_scan
from seqjax.ops.common import StepInputs
from seqjax.ops.lstm_layouts import BatchMajor, FeatureMajor
from seqjax.ops.lstm_scan import LSTMOutput, LSTMState, LSTMWeights
from seqjax.ops.native import recurrent


def lstm(
    inputs: jax.Array,
    carry: tuple[jax.Array, jax.Array],
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    *,
    seq_lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reset_carry: tuple[jax.Array, jax.Array] | None = None,
    reverse: bool = False,
    history: bool = False,
    unroll: int | None = None,
    backend: str = 'auto',
) -> LSTMOutput:
    """Runs an LSTM, `seqjax.nn.LSTMCell` with tanh, sigmoid and no variants, over all time steps of the inputs.

    Every backend is differentiable in inputs, carry, weights and reset_carry: in reverse mode, in forward mode
    (`jax.jvp`, `jax.jacfwd`), and in second order (`jax.hessian`). Forward mode costs as much as with 'plain'.

    Rows are sharded over the axis 'data' of the mesh in effect (`jax.set_mesh`), if there is one.

    Args:
      inputs: [T, B, F].
      carry: initial (c, h), each [B, H]; c and h keep their dtypes at every step.
      kernel: [F, 4H], gates i, f, g, o side by side, in the dtype of the inputs, like the other weights.
      recurrent_kernel: [H, 4H].
      bias: [4H].
      seq_lengths: integers [B], 0 to T: the number of valid steps of each row, counted from the first.
      mask: bool [T, B], True at valid steps. A masked step leaves c and h unchanged and outputs this h; its inputs
        affect no result and no gradient if they are finite.
      resets: bool [T, B], True at steps before which c and h become `reset_carry`, in the order of processing.
      reset_carry: (c, h) after a reset, each [B, H]; zeros by default.
      reverse: process steps from the last to the first; outputs keep the places of their inputs.
      history: True to return c after each step, too.
      unroll: time steps per iteration of the plain backend's compiled loop; by default
        `seqjax.ops.common.select_unroll`.
      backend: a key of `BACKENDS`, or 'auto' for the result of `select_backend`; always 'plain' if T is 0, or T or B
        is symbolic (`jax.export`).

    Returns:
      The last (c, h), the outputs h [T, B, H], and with `history` c after each step [T, B, H], else None.

    >>> x, zeros, bias = jnp.ones((7, 2, 3)), jnp.zeros((2, 5)), jnp.zeros(20)
    >>> run = lstm(x, (zeros, zeros), jnp.ones((3, 20)), jnp.ones((5, 20)), bias, seq_lengths=jnp.array([7, 4]))
    >>> run.outputs.shape, bool((run.outputs[3, 1] == run.last.h[1]).all())
    ((7, 2, 5), True)
    """
    common.check_backend(backend, BACKENDS, unroll)
    carry, weights = lstm_scan.initial_state('carry', carry), LSTMWeights(kernel, recurrent_kernel, bias)
    reset_carry = (
        jax.tree.map(jnp.zeros_like, carry)
        if reset_carry is None
        else lstm_scan.initial_state('reset_carry', reset_carry)
    )
    steps = common.as_steps(inputs, seq_lengths, mask, resets)
    _check(steps, carry, weights, reset_carry)
    options = {'unroll': unroll, 'reverse': reverse, 'history': history}
    return LSTMOutput(
        *common.run_backend(BACKENDS, select_backend, backend, steps, carry, weights, reset_carry, **options)
    )


def select_backend(steps: int, rows: int, hidden: int, platform: str = 'cpu', native: bool = False) -> str:
    """Returns the fastest backend.

    The first line that applies:

    T = 0, or T or B symbolic                     plain
    `native`, see `common.native_pays`            native
    `native`, or B H up to 512 and T up to 8      plain
    a GPU, H up to 512                            ahead
    a GPU, or H at least 900 and B at least 8     columns
    else                                          rows

    Measured on CPUs, and for GPUs on an H200. Other platforms, such as TPUs, which are not measured yet, use plain.

    Args:
      steps, rows, hidden: T, B (on one device) and H.
      platform: 'cpu', 'gpu' or another platform of JAX.
      native: True if the native kernels can be used, see `seqjax.ops.native.library.supports`.
    """
    if not common.is_static(steps, rows) or not steps or platform not in ('cpu', 'gpu'):
        return 'plain'
    if native:
        return 'native' if common.native_pays(steps, rows, hidden) else 'plain'
    if steps <= common.UNROLL_MAX_STEPS and rows * hidden <= common.UNROLL_MAX_SIZE:
        return 'plain'
    if platform == 'gpu':
        return 'ahead' if hidden <= GPU_AHEAD_MAX_UNITS else 'columns'
    return 'columns' if hidden >= COLUMNS_MIN_UNITS and rows >= COLUMNS_MIN_ROWS else 'rows'


COLUMNS_MIN_UNITS = 900  # smallest H for 'columns'
COLUMNS_MIN_ROWS = 8  # smallest B for 'columns': products of fewer rows are computed row by row
GPU_AHEAD_MAX_UNITS = 512  # largest H for 'ahead', on a GPU


def _check(steps: StepInputs, carry: LSTMState, weights: LSTMWeights, reset_carry: LSTMState) -> None:
    """Raises ValueError if an array has a wrong shape or dtype; H is taken from carry.h, F from the inputs."""
    (_, rows, features), dtype = steps.inputs.shape, steps.inputs.dtype
    common.check_floats('inputs', dtype)
    hidden = carry.h.shape[-1] if carry.h.ndim else 0
    shapes = {'kernel': (features, 4 * hidden), 'recurrent_kernel': (hidden, 4 * hidden), 'bias': (4 * hidden,)}
    why = f'for inputs {steps.inputs.shape} and a carry with {hidden} units'
    common.check_weights(weights, shapes, dtype, why)
    for name, state in (('carry', carry), ('reset_carry', reset_carry)):
        for part in state._fields:
            value, like = getattr(state, part), getattr(carry, part).dtype
            validation.check_shape(f'{name}.{part}', value.shape, (rows, hidden), why)
            common.check_floats(f'{name}.{part}', value.dtype)
            if value.dtype != like:
                raise ValueError(f'{name}.{part} is {value.dtype} and must be {like}, the dtype of carry.{part}')


BACKENDS: dict[str, Callable[..., LSTMOutput]] = {
    'plain': lstm_scan.plain,
    'native': partial(recurrent.run, recurrent.LSTM, lstm_scan.plain, LSTMOutput),
    'ahead': lstm_scan.ahead,
    'rows': lstm_backward.with_layout(BatchMajor()),
    'columns': lstm_backward.with_layout(FeatureMajor()),
}
