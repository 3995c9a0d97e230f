"""Stacks of LSTMs and all their gradients against the reference LSTM of JAX, which has the weights of PyTorch."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import rnn as jax_rnn

from tests.helpers.oracles import (
    F64,
    LENGTHS,
    VALID,
    F,
    H,
    assert_same,
    differentiated,
    our_stack,
    stack_args,
    stack_cells,
)


@pytest.mark.representative(every=3)
@pytest.mark.parametrize('directions', [1, 2])
@pytest.mark.parametrize('count', [1, 2])
def test_stacks_and_all_gradients_equal_the_reference_lstm_of_jax(x64, count, directions):
    """`jax.experimental.rnn.lstm_ref`, the reference for its binding to cuDNN, with lengths from 1."""

    def theirs(args, lengths):
        cells = stack_cells(args['weights'], directions)
        kernels, recurrent_kernels = (
            {i: cell[k].T for i, cell in enumerate(cells)} for k in ('kernel', 'recurrent_kernel')
        )
        biases, none = {i: c['bias'] for i, c in enumerate(cells)}, {i: jnp.zeros(4 * H) for i in range(len(cells))}
        weights = kernels, recurrent_kernels, biases, none
        sizes = F, H, count, 0.0, directions == 2
        outputs, h, c = jax_rnn.lstm_ref(args['inputs'], args['h'], args['c'], *weights, lengths, *sizes)
        return {'outputs': jnp.where(VALID[..., None], outputs, 0), 'h': h, 'c': c}

    args = stack_args('lstm', count, directions, F64)
    got = our_stack('lstm', count, directions, F64)(args, lengths=LENGTHS)
    with jax.numpy_rank_promotion('allow'):
        want = differentiated(theirs)(args, lengths=LENGTHS)
    assert_same(got, want, 1e-10)
