"""The LSTM over time as a function of arrays, `lstm`, with several backends.

`BACKENDS` maps names to backends, and `select_backend` chooses one; `./run.sh bench` measures them.
`lstm_scan.plain` scans the equations of `LSTMCell`; `lstm_backward.fast` computes the same numbers with a custom
backward pass, in one of the memory layouts of `lstm_layouts`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from seqjax import validation
from seqjax.ops import common, lstm_backward, lstm_scan
from seqjax.ops.common import StepInputs
from seqjax.ops.lstm_layouts import BatchMajor, BatchMajorGates, FeatureMajor
from seqjax.ops.lstm_scan import LSTMOutput, LSTMState, LSTMWeights


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


def select_backend(steps: int, rows: int, hidden: int, platform: str = 'cpu') -> str:
    """Returns the fastest backend for T, B (on one device) and H.

    The first line that applies:

    T = 0, or T or B symbolic      plain
    B H up to 512, T up to 8       plain, all steps unrolled
    B = 1, H up to 128             small
    H up to 32                     narrow
    H at least 900, B at least 8   columns
    else                           rows

    Measured on CPUs. On GPUs (measured on an H200) ahead for H up to 512, else columns, replaces small, narrow, columns
    and rows. Other platforms, such as TPUs, which are not measured yet, use plain.
    """
    if (
        not common.is_static(steps, rows)
        or not steps
        or platform not in ('cpu', 'gpu')
        or (steps <= common.UNROLL_MAX_STEPS and rows * hidden <= common.UNROLL_MAX_SIZE)
    ):
        return 'plain'
    if platform == 'gpu':
        return 'ahead' if hidden <= GPU_AHEAD_MAX_UNITS else 'columns'
    if rows == 1 and hidden <= SINGLE_ROW_MAX_UNITS:
        return 'small'
    if hidden <= NARROW_MAX_UNITS:
        return 'narrow'
    return 'columns' if hidden >= COLUMNS_MIN_UNITS and rows >= COLUMNS_MIN_ROWS else 'rows'


SINGLE_ROW_MAX_UNITS = 128  # largest H for 'small', with B = 1
NARROW_MAX_UNITS = 32  # largest H for 'narrow'
COLUMNS_MIN_UNITS = 900  # smallest H for 'columns'
COLUMNS_MIN_ROWS = 8  # smallest B for 'columns': products of fewer rows are computed row by row
GPU_AHEAD_MAX_UNITS = 512  # largest H for 'ahead', on a GPU


def _check(steps: StepInputs, carry: LSTMState, weights: LSTMWeights, reset_carry: LSTMState) -> None:
    """Raises ValueError if an array has a wrong shape or dtype; H is that of carry.h, F that of the inputs."""
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
    'ahead': lstm_scan.ahead,
    'rows': lstm_backward.with_layout(lstm_backward.fast, BatchMajor()),
    'narrow': lstm_backward.with_layout(lstm_backward.fast, BatchMajorGates()),
    'columns': lstm_backward.with_layout(lstm_backward.fast, FeatureMajor()),
    'small': lstm_backward.with_layout(lstm_backward.small, BatchMajor()),
}
