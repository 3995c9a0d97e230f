"""Layers and models traced with symbolic sizes: any batch and any length, the numbers of the concrete call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from seqjax.nn import losses, models, rnn, seq2seq
from seqjax.nn.cells.gru_cell import GRUCell
from seqjax.nn.cells.linear_cells import LRUCell, MinGRUCell
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.nn.cells.simple_cell import SimpleRNNCell
from seqjax.nn.wrappers import Bidirectional, Stack, Stateful, TimeDistributed
from seqjax.ops import common
from tests.helpers.reference import assert_near

B, T, F, H = 3, 12, 4, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, F)).astype(np.float32)
MASK, RESETS = RNG.random((B, T)) < 0.7, RNG.random((B, T)) < 0.2
LENGTHS = np.array([0, 5, T], np.int32)
TOKENS = RNG.integers(0, 5, (B, T)).astype(np.int32)


def agrees(function, spec, *arrays):
    """The exported program with the symbolic sizes of `spec`, called with what the function is called with."""
    scope = export.SymbolicScope()

    def symbolic(x):
        dims = [name if name in spec else str(size) for name, size in zip('bt', x.shape, strict=False)]
        dims += map(str, x.shape[2:])
        return jax.ShapeDtypeStruct(export.symbolic_shape(', '.join(dims), scope=scope), x.dtype)

    exported = export.export(jax.jit(function))(*map(symbolic, arrays))
    want, got = jax.jit(function)(*arrays), exported.call(*arrays)
    assert_near(got, want, 1e-5)


LAYERS = {
    'lstm': lambda: rnn.RNN(LSTMCell(H)),
    'lstm rows': lambda: rnn.RNN(LSTMCell(H), backend='rows', reverse=True),
    'gru': lambda: rnn.RNN(GRUCell(H), unroll=4),
    'simple': lambda: rnn.RNN(SimpleRNNCell(H), unroll=5, masked_output='hold'),
    'segments': lambda: rnn.RNN(LSTMCell(H, layer_norm=True, projection=2), remat_segments=3),
    'parallel': lambda: rnn.RNN(LRUCell(H), parallel=True, learn_initial_carry=True),
    'both': lambda: Bidirectional(rnn.RNN(GRUCell(H)), rnn.RNN(MinGRUCell(H))),
    'stack': lambda: Stack([rnn.RNN(LSTMCell(H)), rnn.RNN(GRUCell(H))], residual=True),
    'stateful': lambda: Stateful(rnn.RNN(GRUCell(H))),
}


@pytest.mark.representative(every=3)
@pytest.mark.parametrize(('name', 'spec'), [(name, 'bt'[i % 2 :]) for i, name in enumerate(LAYERS)] + [('lstm', 'b')])
def test_a_layer_with_symbolic_sizes_gives_the_numbers_of_the_concrete_call(name, spec):
    layer = LAYERS[name]()
    variables = {'params': layer.init(jax.random.key(0), X)['params']}  # a stream that is kept has its own batch

    def run(x, lengths, mask, resets):
        return layer.apply(variables, x, seq_lengths=lengths, mask=mask, resets=resets, return_carry=True)

    agrees(run, spec, X, LENGTHS, MASK, RESETS)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('backend', ['plain', 'rows'])
def test_gradients_and_an_initial_carry_with_symbolic_sizes(backend):
    layer = rnn.RNN(LSTMCell(H), backend=backend)
    variables = layer.init(jax.random.key(0), X)
    carry = (np.ones((B, H), np.float32), np.ones((B, H), np.float32))

    def gradients(x, *carry):
        return jax.grad(lambda v: (layer.apply(v, x, initial_carry=carry) ** 2).mean())(variables)

    scope = export.SymbolicScope()
    shapes = [export.symbolic_shape(shape, scope=scope) for shape in (f'b, t, {F}', f'b, {H}', f'b, {H}')]
    exported = export.export(jax.jit(gradients))(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    assert_near(exported.call(X, *carry), gradients(X, *carry), 1e-5)


def test_models_and_losses_with_symbolic_sizes():
    model = models.sequence_model('per_step', 5, features=H, vocabulary=5, bidirectional=True)
    variables = model.init(jax.random.key(0), TOKENS)

    def loss(tokens, lengths, mask):
        logits = model.apply(variables, (tokens, lengths))
        return losses.cross_entropy(logits, tokens, mask), losses.accuracy(logits, tokens, mask)

    agrees(loss, 'bt', TOKENS, LENGTHS, MASK)


def test_an_encoder_decoder_with_symbolic_sizes():
    model = seq2seq.encoder_decoder(5, features=H, attention='additive', bidirectional=True)
    variables = model.init(jax.random.key(0), (TOKENS, TOKENS))
    agrees(lambda source, lengths, targets: model.apply(variables, ((source, lengths), targets)), 'bt', *(
        TOKENS, LENGTHS, TOKENS
    ))  # fmt: skip


def test_a_time_distributed_layer_with_symbolic_sizes():
    layer = TimeDistributed(rnn.RNN(SimpleRNNCell(H)))
    x = np.stack([X, -X], axis=2)
    variables = layer.init(jax.random.key(0), x)
    agrees(lambda x, mask: layer.apply(variables, x, mask=mask), 'bt', x, MASK)


def test_only_symbolic_sizes_are_unknown():
    (size,) = export.symbolic_shape('b')
    assert common.is_static(3, 4) and not common.is_static(3, size)
    assert common.select_unroll(size, 4) == common.select_unroll(4, size) == 1
