"""The LSTM over a batch of sequences, as functions of arrays: one signature, several ways to compute it.

`BACKENDS` has all ways by name, and `choose` says which is taken where; `./run.sh bench` measures what they are worth.
`lstm_scan.plain` is the recurrence as the equations of `LSTMCell` have it; `lstm_backward.fast` computes the same
numbers and brings its own backward pass, in one of the memory layouts of `lstm_layouts`.
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
    fresh: tuple[jax.Array, jax.Array] | None = None,
    reverse: bool = False,
    history: bool = False,
    unroll: int | None = None,
    backend: str = 'auto',
) -> LSTMOutput:
    """The LSTM of `seqjax.nn.cells.lstm_cell.LSTMCell`, with tanh and sigmoid, over time, which is the first axis.

    Gradients reach inputs, carry, weights and fresh in every backend, in reverse mode, in forward mode (`jax.jvp`,
    `jax.jacfwd`), and in both again (`jax.hessian`). Forward mode costs what it costs with 'plain'. The rows are spread
    over the axis 'data' of the mesh in effect (`jax.set_mesh`), where there is one.

    Args:
      inputs: [T, B, F].
      carry: c and h before the first step, each [B, H], in a dtype that they keep.
      kernel: [F, 4H], gates i, f, g, o side by side, in the dtype of the inputs, as are the other weights.
      recurrent_kernel, bias: [H, 4H] and [4H].
      seq_lengths: integers [B], 0 to T: how many steps of each row are real, counted from the first.
      mask: bool [T, B]: which steps are real. At others c and h stay as they were, and the output is that h; their
        inputs reach nothing, as long as they are finite.
      resets: bool [T, B]: before which steps, in the order in which they are taken, c and h become those of `fresh`.
      fresh: c and h, each [B, H]; zeros by default.
      reverse: whether steps are taken from the last to the first; outputs keep the places of their inputs.
      history: whether c after each step is given, too.
      unroll: steps in one iteration of the plain backend's compiled loop; by default as `seqjax.ops.common.loop` says.
      backend: a key of `BACKENDS`; by default as `choose` says. Where T or B is symbolic (`jax.export`), it is 'plain'.

    >>> x, zeros, bias = jnp.ones((7, 2, 3)), jnp.zeros((2, 5)), jnp.zeros(20)
    >>> run = lstm(x, (zeros, zeros), jnp.ones((3, 20)), jnp.ones((5, 20)), bias, seq_lengths=jnp.array([7, 4]))
    >>> run.outputs.shape, bool((run.outputs[3, 1] == run.last.h[1]).all())
    ((7, 2, 5), True)
    """
    common.check_backend(backend, BACKENDS, unroll)
    carry, weights = lstm_scan.initial_state('carry', carry), LSTMWeights(kernel, recurrent_kernel, bias)
    fresh = jax.tree.map(jnp.zeros_like, carry) if fresh is None else lstm_scan.initial_state('fresh', fresh)
    steps = common.as_steps(inputs, seq_lengths, mask, resets)
    _check(steps, carry, weights, fresh)
    how = {'unroll': unroll, 'reverse': reverse, 'history': history}
    return LSTMOutput(*common.run_backend(BACKENDS, choose, backend, steps, carry, weights, fresh, **how))


def choose(steps: int, rows: int, hidden: int, platform: str = 'cpu') -> str:
    """The backend for T, B (on one device) and H.

    B H up to 512, T up to 8    plain, all steps unrolled
    B = 1, H up to 128          small
    H up to 32                  narrow
    H from 900 on, B from 8 on  columns
    else                        rows
    T or B symbolic             plain

    Measured on CPUs. On a GPU (an H200) the last four are ahead for H up to 512, else columns. A TPU, where nothing has
    been measured yet, has plain.
    """
    if (
        not common.known(steps, rows)
        or not steps
        or platform not in ('cpu', 'gpu')
        or (steps <= common.ALL and rows * hidden <= common.SMALL)
    ):
        return 'plain'
    if platform == 'gpu':
        return 'ahead' if hidden <= LAUNCHED else 'columns'
    if rows == 1 and hidden <= ALONE:
        return 'small'
    if hidden <= NARROW:
        return 'narrow'
    return 'columns' if hidden >= WIDE and rows >= MATRIX else 'rows'


ALONE, NARROW, WIDE, LAUNCHED = 128, 32, 900, 512
MATRIX = 8  # columns; fewer are multiplied as so many vectors


def _check(steps: StepInputs, carry: LSTMState, weights: LSTMWeights, fresh: LSTMState) -> None:
    """Raises ValueError where an array has not the shape or the dtype that the others say."""
    (_, rows, features), dtype = steps.inputs.shape, steps.inputs.dtype
    common.check_floats('inputs', dtype)
    hidden = carry.h.shape[-1] if carry.h.ndim else 0
    shapes = {'kernel': (features, 4 * hidden), 'recurrent_kernel': (hidden, 4 * hidden), 'bias': (4 * hidden,)}
    why = f'inputs {steps.inputs.shape} and a carry of {hidden} units'
    common.check_weights(weights, shapes, dtype, why)
    for name, state in (('carry', carry), ('fresh', fresh)):
        for part in state._fields:
            value, like = getattr(state, part), getattr(carry, part).dtype
            validation.check_shape(f'{name}.{part}', value.shape, (rows, hidden), why)
            common.check_floats(f'{name}.{part}', value.dtype)
            if value.dtype != like:
                raise ValueError(f'{name}.{part} is {value.dtype} and must be {like}, as a carry keeps its dtype')


BACKENDS: dict[str, Callable[..., LSTMOutput]] = {
    'plain': lstm_scan.plain,
    'ahead': lstm_scan.ahead,
    'rows': lstm_backward.with_layout(lstm_backward.fast, BatchMajor()),
    'narrow': lstm_backward.with_layout(lstm_backward.fast, BatchMajorGates()),
    'columns': lstm_backward.with_layout(lstm_backward.fast, FeatureMajor()),
    'small': lstm_backward.with_layout(lstm_backward.small, BatchMajor()),
}
