"""JAX's debugging switches: nothing leaks, is promoted silently, or is infinite on the way."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import decoding, losses, rnn, seq2seq
from seqjax.nn.cells.gru_cell import GRUCell
from seqjax.nn.cells.linear_cells import LRUCell, MinLSTMCell
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.nn.cells.simple_cell import SimpleRNNCell
from seqjax.nn.wrappers import Bidirectional, Stack, TimeDistributed

B, T, F, H = 3, 4, 2, 3
RNG = np.random.default_rng(0)
X, MASK, RESETS = RNG.normal(size=(B, T, F)).astype(np.float32), RNG.random((B, T)) < 0.7, RNG.random((B, T)) < 0.2
LENGTHS, TOKENS = np.array([T, 0, 3], np.int32), RNG.integers(0, 5, (B, T)).astype(np.int32)
TRACING = {
    'jax_check_tracer_leaks': True,
    'jax_numpy_dtype_promotion': 'strict',
    'jax_numpy_rank_promotion': 'raise',
}


@contextlib.contextmanager
def switched(**switches):
    before = {name: getattr(jax.config, name) for name in switches}
    try:
        for name, value in switches.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.representative(every=3)
@pytest.mark.parametrize(
    'layer',
    [
        rnn.RNN(LSTMCell(H), backend='rows'),
        rnn.RNN(LSTMCell(H), backend='columns', remat_segments=2),
        rnn.RNN(GRUCell(H, zoneout_h=0.1, recurrent_dropout=0.1), learn_initial_carry=True),
        rnn.RNN(GRUCell(H), backend='rows', masked_output='hold', reverse=True),
        rnn.RNN(MinLSTMCell(H), parallel=True),
        rnn.RNN(LRUCell(H), parallel=True),
        Bidirectional(rnn.RNN(LSTMCell(H, layer_norm=True, peepholes=True, projection=3)), rnn.RNN(SimpleRNNCell(H))),
        Stack([rnn.RNN(LSTMCell(H)), rnn.RNN(GRUCell(H))], dropout=0.1, residual=True),
        TimeDistributed(nn.Dense(H)),
    ],
)
def test_a_layer_traces_with_strict_promotion_and_without_a_leak(layer):
    options = {} if isinstance(layer, TimeDistributed) else {'seq_lengths': LENGTHS, 'resets': RESETS}

    def loss(v):
        outputs = layer.apply(v, X, mask=MASK, rngs={'dropout': jax.random.key(1)}, **options)
        return losses.squared_error(outputs, jnp.zeros_like(outputs), MASK).total

    with switched(**TRACING):
        variables = jax.eval_shape(layer.init, jax.random.key(0), X)
        gradients = jax.eval_shape(jax.grad(loss), variables)
    assert jax.tree.structure(gradients) == jax.tree.structure(variables)


def test_decoding_traces_with_strict_promotion_and_without_a_leak():
    model = seq2seq.encoder_decoder(5, features=H, attention='additive', bidirectional=True)
    source = (TOKENS, LENGTHS)

    def write(variables):
        return (
            decoding.greedy(model, variables, source, longest=3, end=1),
            decoding.sample(model, variables, source, key=jax.random.key(0), longest=3, end=1, temperature=0.5),
            decoding.beam(model, variables, source, longest=3, end=1, width=2, length_penalty=0.6),
        )

    with switched(**TRACING):
        variables = jax.eval_shape(model.init, jax.random.key(0), (source, TOKENS))
        shapes = jax.eval_shape(write, variables)
    assert shapes[2].tokens.shape == (B, 2, 3)


def test_a_beam_has_no_infinity_where_there_are_enough_sequences():
    model = seq2seq.encoder_decoder(5, features=H)
    variables = model.init(jax.random.key(0), (TOKENS, TOKENS))
    want = decoding.beam(model, variables, TOKENS, longest=3, end=1, width=3)
    with switched(jax_debug_infs=True, jax_debug_nans=True):
        got = decoding.beam(model, variables, TOKENS, longest=3, end=1, width=3)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert np.isfinite(got.scores).all()


def test_a_loss_of_known_labels_has_no_nan_without_jit():
    logits = RNG.normal(size=(B, T, 5)).astype(np.float32)
    want = float(losses.cross_entropy(logits, TOKENS, MASK).total)
    with jax.disable_jit(), switched(jax_debug_nans=True):
        assert float(losses.cross_entropy(logits, TOKENS, MASK).total) == pytest.approx(want, rel=1e-6)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('layer', [rnn.RNN(LSTMCell(H), backend='rows'), rnn.RNN(GRUCell(H), backend='rows')])
def test_a_layer_without_jit_has_the_same_gradients_and_nothing_infinite(layer):
    variables = layer.init(jax.random.key(0), X)

    def loss(v):
        return (layer.apply(v, X, mask=MASK, seq_lengths=LENGTHS, resets=RESETS) ** 2).sum()

    want = jax.grad(loss)(variables)
    with jax.disable_jit(), switched(jax_debug_infs=True, jax_debug_nans=True):
        got = jax.grad(loss)(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)
