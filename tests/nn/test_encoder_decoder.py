"""Encoder and decoder: against NumPy step by step, what padding may not do, and a task that is learned."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seqjax import training
from seqjax.nn import decoding, losses, models, seq2seq
from seqjax.nn import rnn as nn_rnn
from seqjax.nn.attention import DotAttention
from seqjax.nn.cells.gru_cell import GRUCell
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.nn.seq2seq import Bridge, EncoderDecoder
from seqjax.nn.wrappers import Bidirectional
from seqjax.types import Batch, Sequences, Task
from tests.helpers import reference

B, S, U, F, H, V = 3, 5, 4, 3, 4, 7
LENGTHS = np.array([5, 2, 3])
VALID = np.arange(S) < LENGTHS[:, None]
TARGET_LENGTHS = np.array([4, 1, 3])
TARGET_VALID = np.arange(U) < TARGET_LENGTHS[:, None]
MODELS = {
    'plain': {},
    'additive': {'attention': 'additive', 'bidirectional': True, 'layers': 2},
    'dot': {'attention': 'dot', 'bidirectional': True, 'merge_mode': 'sum', 'start_token': 3},
    'general': {'attention': 'general', 'cell': 'gru', 'bidirectional': True, 'source_vocabulary': 9, 'embedding': 6},
    'projected': {'attention': 'dot', 'projection': 2, 'peepholes': True, 'layers': 2, 'start_token': 0},
    'flax': {'attention': 'additive', 'cell': nn.OptimizedLSTMCell, 'bidirectional': True},
}
MODELS |= {
    f'cell {cell}': {'cell': cell, 'attention': ('additive', 'dot')[i % 2]} for i, cell in enumerate(models.CELLS)
}


@functools.cache
def start(name, seed=0):
    """A model, its variables, source tokens and targets."""
    model = seq2seq.encoder_decoder(V, features=H, **MODELS[name])
    rng = np.random.default_rng(seed)
    source, targets = rng.integers(0, V, (B, S)), rng.integers(0, V, (B, U))
    return model, reference.random_variables(model, ((source, LENGTHS), targets)), source, targets


def apply(model, variables, source, targets, **options):
    return model.apply(variables, ((source, LENGTHS), targets), **options)


@pytest.mark.representative(every=4, first=1)
@pytest.mark.parametrize('name', MODELS)
def test_teacher_forcing_is_one_step_after_another(name):
    """Every cell and every kind of attention; a row of the batch is what it is alone, without its padding."""
    model, variables, source, targets = start(name)
    logits = jax.jit(model.apply)(variables, ((source, LENGTHS), targets))
    assert logits.shape == (B, U, V) and logits.dtype == jnp.float32
    memory = model.apply(variables, (source, LENGTHS), method='encode')
    step = jax.jit(lambda *args: model.apply(variables, *args, method='step'))
    carry, token = memory.carry, np.full(B, model.first_token)
    for u in range(U):
        carry, got = step(memory, carry, token)
        reference.assert_close(got, logits[:, u], 1e-5)
        token = targets[:, u]
    alone = model.apply(variables, (source[1:2, :2], targets[1:2]))
    reference.assert_close(alone[0], logits[1], 1e-5)


def dense(params, x):
    return x @ params['kernel'] + params.get('bias', 0)


def attended(scores, keys):
    """scores [S], keys [S, K] -> [K]."""
    shares = np.exp(scores)
    return shares @ keys / shares.sum()


def by_hand(name, params, model, source, targets):
    """Logits of an LSTM, a row at a time, from the equations; every array float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    logits = np.zeros((len(source), targets.shape[1], V))
    for b, length in enumerate(LENGTHS):
        x, zero = p['embed']['embedding'][source[b : b + 1, :length]], np.zeros((1, H))
        if 'bridges_0' in p:
            cells = p['encoder']['forward_rnn']['cell'], p['encoder']['backward_rnn']['cell']
            (forward, there), (backward, back) = (
                reference.lstm(x, zero, zero, **cell)[:2] for x, cell in zip((x, x[:, ::-1]), cells, strict=True)
            )
            keys = (forward + backward[:, ::-1])[0]
            c, h = (
                dense(p['bridges_0'][part], np.concatenate([there[i], back[i]], axis=1)) for i, part in enumerate('ch')
            )
        else:
            outputs, (c, h), _ = reference.lstm(x, zero, zero, **p['encoder']['cell'])
            keys = outputs[0]
        token = model.start_token
        for u in range(targets.shape[1]):
            x = np.zeros((1, H)) if token is None else p['embed']['embedding'][token][None]
            if name == 'additive':
                weights = p['attention']
                sums = dense(weights['query'], np.concatenate([c, h], axis=1)) + dense(weights['key'], keys)
                context = attended(dense(weights['score'], np.tanh(sums))[:, 0], keys)[None]
                x = np.concatenate([x, context], axis=1)
            _, (c, h), _ = reference.lstm(x[:, None], c, h, **p['cells_0'])
            y = h
            if name == 'additive':
                y = np.concatenate([h, context], axis=1)
            if name == 'dot':
                y = np.tanh(dense(p['combine'], np.concatenate([attended(keys @ h[0], keys)[None], h], axis=1)))
            logits[b, u] = dense(p['head'], y)[0]
            token = targets[b, u]
    return logits


@pytest.mark.representative(1)
@pytest.mark.parametrize(('name', 'bidirectional'), [('none', False), ('additive', False), ('dot', True)])
@pytest.mark.parametrize('start_token', [None, 2])
def test_logits_are_the_papers_equations(x64, name, bidirectional, start_token):
    """Of an LSTM without attention (Sutskever), with that of Bahdanau, and with that of Luong over both directions."""
    how = {'bidirectional': True, 'merge_mode': 'sum'} if bidirectional else {}
    _, _, source, targets = start('plain')
    model = seq2seq.encoder_decoder(
        V, features=H, attention=name, start_token=start_token, param_dtype=jnp.float64, **how
    )
    variables = reference.random_variables(model, ((source, LENGTHS), targets))
    want = by_hand(name, variables['params'], model, source, targets)
    np.testing.assert_allclose(apply(model, variables, source, targets), want, rtol=1e-10, atol=1e-11)


# --- padding ---------------------------------------------------------------------------------------


def masked_loss(model, variables, source, targets):
    logits = model.apply(variables, (source, targets))
    return losses.cross_entropy(logits, targets, TARGET_VALID).compute(), jnp.where(TARGET_VALID[..., None], logits, 0)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('name', ['plain', 'additive', 'general', 'cell lru'])
def test_padding_of_source_and_targets_changes_no_value_and_no_gradient(name):
    """Of tokens any number, be it none; of a source [B, S, F] NaN and infinity too."""
    model, variables, source, targets = start(name)
    run = jax.jit(jax.value_and_grad(functools.partial(masked_loss, model), has_aux=True))
    want = run(variables, (source, LENGTHS), targets)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(want))
    for padding in (0, -1, V, 10**6, -(10**6)):
        padded = np.where(VALID, source, padding), np.where(TARGET_VALID, targets, padding)
        reference.assert_trees_equal(run(variables, (padded[0], LENGTHS), padded[1]), want)
    if 'source_vocabulary' in MODELS[name]:
        return
    x = np.random.default_rng(1).normal(size=(B, S, F)).astype(np.float32)
    variables = reference.random_variables(model, ((x, LENGTHS), targets))

    def grads(variables, x, targets):
        return masked_loss(model, variables, Sequences(x, mask=VALID), targets)

    run = jax.jit(jax.value_and_grad(grads, (0, 1), has_aux=True))
    want = run(variables, x, targets)
    np.testing.assert_array_equal(np.asarray(want[1][1])[~VALID], 0)
    for padding in (np.nan, np.inf, 1e30):
        reference.assert_trees_equal(run(variables, np.where(VALID[..., None], x, np.float32(padding)), targets), want)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('name', ['plain', 'additive', 'dot'])
def test_a_source_without_a_real_step_is_an_empty_one(name):
    """The row is decoded from zeros, whatever its padding holds; values and gradients are finite."""
    model, variables, source, targets = start(name)
    lengths = np.array([5, 0, 3])
    run = jax.jit(jax.value_and_grad(functools.partial(masked_loss, model), has_aux=True))
    (_, logits), grads = got = run(variables, (source, lengths), targets)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    reference.assert_trees_equal(run(variables, (np.where(VALID, source, -5), lengths), targets)[1], got[1])
    empty = model.apply(variables, (source[1:2, :0], targets[1:2]))
    reference.assert_close(logits[1, :1], empty[0, :1], 1e-5)


def test_logits_depend_on_the_targets_before_and_on_no_later_one():
    model, variables, source, targets = start('additive')
    run = jax.jit(functools.partial(apply, model, variables, source))
    logits = np.asarray(run(targets))
    for u in range(U):
        changed = targets.copy()
        changed[:, u] = (changed[:, u] + 1) % V
        other = np.asarray(run(changed))
        np.testing.assert_array_equal(other[:, : u + 1], logits[:, : u + 1])
        assert u == U - 1 or (np.abs(other - logits)[:, u + 1 :].max(axis=-1) > 1e-5).all()


def test_no_targets_and_no_source_steps_work():
    model, variables, source, targets = start('general')
    assert apply(model, variables, source, targets[:, :0]).shape == (B, 0, V)
    assert np.isfinite(model.apply(variables, (source[:, :0], targets))).all()


# --- in training -----------------------------------------------------------------------------------


def sampled(rate, name='plain', **options):
    return seq2seq.encoder_decoder(V, features=H, scheduled_sampling=rate, **MODELS[name], **options)


KEY = {'dropout': jax.random.key(0)}


def test_no_scheduled_sampling_is_teacher_forcing_at_no_cost():
    """Without the stream at any rate, and with it at rate 0, where nothing is drawn."""
    model, variables, source, targets = start('additive')
    want = apply(model, variables, source, targets)
    np.testing.assert_array_equal(apply(model, variables, source, targets, rngs=KEY), want)
    np.testing.assert_array_equal(apply(sampled(1.0, 'additive'), variables, source, targets), want)
    program = jax.make_jaxpr(lambda key: apply(model, variables, source, targets, rngs={'dropout': key}))
    assert 'random_bits' not in str(program(KEY['dropout']))
    program = jax.make_jaxpr(
        lambda key: apply(sampled(0.1, 'additive'), variables, source, targets, rngs={'dropout': key})
    )
    assert 'random_bits' in str(program(KEY['dropout']))


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('name', ['additive', 'dot', 'cell lru'])
def test_scheduled_sampling_of_all_tokens_is_free_running(name):
    """The logits are those that greedy decoding sees, and no target is read."""
    model, variables, source, targets = start(name)
    written = decoding.greedy(model, variables, (source, LENGTHS), longest=U)
    want = apply(model, variables, source, written.tokens)
    for told in (targets, (targets + 1) % V):
        got = apply(sampled(1.0, name), variables, source, told, rngs=KEY)
        reference.assert_close(got, want, 1e-5)
    assert np.abs(want - apply(model, variables, source, targets)).max() > 1e-3


def test_scheduled_sampling_draws_for_each_row_and_step():
    """At rate 0.3 of 2,000 equal rows that share reads its own token at each step, and steps do not go together."""
    model, variables, source, _ = start('plain')
    rows = np.repeat(source[:1], 2000, axis=0)
    own = np.asarray(decoding.greedy(model, variables, source[:1], longest=U).tokens)
    told = np.repeat((own + 1) % V, 2000, axis=0)
    logits = np.asarray(sampled(0.3).apply(variables, (rows, told), rngs=KEY))
    # What each of the first two choices would give: (told or own) at step 1, then (told or the last choice) at step 2.
    first = {token: np.asarray(model.apply(variables, (rows[:1], np.array([[token, 0]])))) for token in range(V)}
    took_own = np.abs(logits[:, 1] - first[own[0, 0]][:, 1]).max(axis=-1) < 1e-4
    took_told = np.abs(logits[:, 1] - first[told[0, 0]][:, 1]).max(axis=-1) < 1e-4
    assert (took_own ^ took_told).all()
    noise = 4 * np.sqrt(0.3 * 0.7 / 2000)
    assert abs(took_own.mean() - 0.3) < noise
    after = [len(np.unique(np.round(logits[took == 1, 2], 3), axis=0)) for took in (took_own, took_told)]
    assert after == [2, 2]  # both choices come after both: the next step draws anew
    np.testing.assert_array_equal(logits[:, 0], np.repeat(logits[:1, 0], 2000, axis=0))


@pytest.mark.representative(every=4)
@pytest.mark.parametrize('options', [{'layers': 2, 'dropout': 0.5}, {'recurrent_dropout': 0.5}, {'zoneout_h': 0.5}])
@pytest.mark.parametrize('lengths', [LENGTHS, 0 * LENGTHS])
def test_dropout_acts_with_a_stream_alone(options, lengths):
    """Between layers and within cells, in the decoder of an encoder that reads nothing too; `step` drops nothing."""
    model, (_, _, source, targets) = seq2seq.encoder_decoder(V, features=H, **options), start('plain')
    inputs = (source, lengths), targets
    variables = reference.random_variables(model, inputs)
    run = jax.jit(model.apply)
    plain = run(variables, inputs)
    one, other = (run(variables, inputs, rngs={'dropout': jax.random.key(k)}) for k in (0, 1))
    assert np.abs(one - plain).max() > 1e-3 and np.abs(one - other).max() > 1e-3
    memory = model.apply(variables, (source, lengths), method='encode')
    args = variables, memory, memory.carry, np.full(B, model.first_token)
    reference.assert_close(model.apply(*args, method='step')[1], plain[:, 0], 1e-5)
    np.testing.assert_array_equal(model.apply(*args, method='step', rngs=KEY)[1], model.apply(*args, method='step')[1])


def test_attention_weights_can_be_looked_at():
    """[B, U, S], 0 at the padding."""
    for name in ('additive', 'dot'):
        model, variables, source, targets = start(name)
        _, seen = apply(model, variables, source, targets, mutable='intermediates')
        (weights,) = seen['intermediates']['attention_weights']
        assert weights.shape == (B, U, S)
        reference.assert_close(weights.sum(axis=-1), np.ones((B, U)), 1e-5)
        np.testing.assert_array_equal(np.asarray(weights).transpose(0, 2, 1)[~VALID], 0)


def test_it_is_traced_once_for_all_values():
    model, variables, source, targets = start('additive')
    count = 0

    @jax.jit
    def run(variables, source, lengths, targets, key):
        nonlocal count
        count += 1
        return sampled(0.5, 'additive').apply(variables, ((source, lengths), targets), rngs={'dropout': key})

    for seed in range(3):
        rng = np.random.default_rng(seed)
        inputs = rng.integers(0, V, (B, S)), rng.integers(0, S + 1, B), rng.integers(0, V, (B, U))
        assert np.isfinite(run(variables, *inputs, jax.random.key(seed))).all()
    assert count == 1


def test_half_precision_keeps_parameters_and_carries_in_float32():
    model = seq2seq.encoder_decoder(V, features=H, attention='additive', bidirectional=True, dtype=jnp.bfloat16)
    whole = seq2seq.encoder_decoder(V, features=H, attention='additive', bidirectional=True)
    _, _, source, targets = start('plain')
    variables = jax.jit(model.init)(jax.random.key(0), ((source, LENGTHS), targets))
    logits = apply(model, variables, source, targets)
    assert logits.dtype == jnp.bfloat16
    carry = jax.eval_shape(functools.partial(model.apply, method='encode'), variables, source).carry
    assert {x.dtype for x in jax.tree.leaves((variables, carry))} == {jnp.dtype('float32')}
    np.testing.assert_allclose(logits, apply(whole, variables, source, targets), atol=0.05)
    written = jax.eval_shape(lambda variables: decoding.beam(model, variables, source, longest=3, width=2), variables)
    assert written.scores.dtype == jnp.float32


# --- what is built, and what is refused ------------------------------------------------------------


def test_the_carry_of_the_encoder_starts_the_decoder():
    """As it is, layer by layer; source and targets share an embedding unless the source has its own."""
    model, variables, source, _ = start('projected')
    embedded = variables['params']['embed']['embedding'][source]
    rnn = {'params': variables['params']['encoder']}
    carry, _ = model.encoder.apply(rnn, embedded, seq_lengths=LENGTHS, return_carry=True)
    reference.assert_trees_equal(model.apply(variables, (source, LENGTHS), method='encode').carry, carry)
    assert set(variables['params']) == {'encoder', 'cells_0', 'cells_1', 'head', 'embed', 'combine'}
    shapes = jax.tree.map(jnp.shape, start('general')[1]['params'])
    assert shapes['source_embed'] == {'embedding': (9, 6)} and shapes['embed'] == {'embedding': (V, 6)}
    assert shapes['bridges_0'] == {'h': {'kernel': (2 * H, H), 'bias': (H,)}}
    assert set(start('cell lru')[1]['params']['cells_0']) >= {'nu_log'}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'vocabulary': 0}, 'vocabulary=0'),
        ({'source_vocabulary': 0}, 'source_vocabulary=0'),
        ({'embedding': 0}, 'embedding=0'),
        ({'cell': 'lsmt'}, "cell='lsmt'"),
        ({'layers': 0}, 'layers=0'),
        ({'features': 0}, 'features=0'),
        ({'attention': 'luong'}, "attention='luong'"),
        ({'attention': 'dot', 'bidirectional': True}, "attention='dot'"),
        ({'bidirectional': True, 'merge_mode': 'none'}, "merge_mode='none'"),
        ({'start_token': V}, 'start_token=7'),
        ({'start_token': -1}, 'start_token=-1'),
        ({'scheduled_sampling': 1.5}, 'scheduled_sampling=1.5'),
        ({'dropout': 1.0, 'layers': 2}, 'dropout=1.0'),
    ],
)
def test_models_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        seq2seq.encoder_decoder(**{'vocabulary': V, 'features': H, **options})


PARTS = {'encoder': nn_rnn.RNN(GRUCell(H)), 'cells': [GRUCell(H)], 'head': nn.Dense(V), 'embed': nn.Embed(V, H)}
BOTH = Bidirectional(nn_rnn.RNN(GRUCell(H)), nn_rnn.RNN(GRUCell(H)))


@pytest.mark.parametrize(
    ('parts', 'message'),
    [
        ({'cells': [LSTMCell(H)]}, 'encoder'),
        ({'cells': [GRUCell(H + 1)]}, r'float32\[1, 4\].*float32\[1, 5\]'),
        ({'cells': [GRUCell(H), GRUCell(H)]}, 'encoder'),
        ({'encoder': BOTH}, 'bridges'),
        ({'encoder': BOTH, 'bridges': [Bridge(), Bridge()]}, 'bridges'),
        ({'cells': [nn_rnn.RNN(GRUCell(H))]}, r'cells\[0\]'),
        ({'combine': nn.Dense(H)}, 'combine'),
        ({'dropout': -0.1}, 'dropout=-0.1'),
        ({'encoder': BOTH, 'bridges': [Bridge()], 'attention': DotAttention()}, 'query.*keys'),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        EncoderDecoder(**{**PARTS, **parts}).init(jax.random.key(0), (np.ones((1, 3), int), np.ones((1, 2), int)))


TOKENS, TARGETS = np.ones((B, S), int), np.ones((B, U), int)


@pytest.mark.parametrize(
    ('inputs', 'message'),
    [
        (TOKENS, 'inputs'),
        (Sequences(TOKENS, LENGTHS), 'inputs'),
        ((TOKENS, LENGTHS, TARGETS), 'inputs'),
        ((TOKENS, LENGTHS), r'targets \(3,\)'),
        ((TOKENS, np.ones((B, U))), r'targets \(3, 4\).*float32'),
        ((TOKENS, TARGETS[:2]), r'targets \(2, 4\)'),
        ((np.full((B, S), V), TARGETS), r'tokens\[0, 0\].*7'),
        ((np.ones((B, S)), TARGETS), r'tokens \(3, 5\)'),
        (((TOKENS, LENGTHS + 9), TARGETS), r'seq_lengths\[0\].*14'),
        ((Sequences(TOKENS, resets=VALID), TARGETS), 'resets'),
        ((np.ones(B, int), TARGETS), r'inputs \(3,\)'),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        seq2seq.encoder_decoder(V, features=H).init(jax.random.key(0), inputs)


def test_what_is_no_token_of_a_step_is_refused():
    model, variables, source, _ = start('plain')
    memory = model.apply(variables, source, method='encode')
    for token in (np.ones((B, 1), int), np.ones(B)):
        with pytest.raises(ValueError, match='token '):
            model.apply(variables, memory, memory.carry, token, method='step')


# --- learning --------------------------------------------------------------------------------------

END, LETTERS, LONGEST = 0, 8, 5


def reversal(key, rows):
    """Words of 2 to 5 letters, and the same backward with an end."""
    one, other = jax.random.split(key)
    lengths = jax.random.randint(one, (rows,), 2, LONGEST + 1)
    words = jax.random.randint(other, (rows, LONGEST), 1, LETTERS)
    places = lengths[:, None] - 1 - jnp.arange(LONGEST + 1)[None]
    backward = jnp.take_along_axis(words, jnp.maximum(places, 0), axis=1)
    return Batch(
        (Sequences(words, lengths), jnp.where(places >= 0, backward, END)),
        jnp.where(places >= 0, backward, END),
        places >= -1,
    )


@functools.partial(jax.jit, static_argnums=0)
def share_right(model, params, batch):
    """Of words that greedy decoding writes without a mistake."""
    source, targets = batch.inputs
    written = decoding.greedy(model, {'params': params}, source, longest=LONGEST + 1, end=END)
    return (written.tokens == targets).all(axis=1).mean()


@pytest.mark.slow
def test_reversal_is_learned_with_attention(optimized):
    """Words that were drawn apart are written backward: over 95% of 500, and by an untrained model almost none."""
    model = seq2seq.encoder_decoder(LETTERS, features=32, cell='gru', attention='additive', bidirectional=True)
    task, tx = Task(losses.classification, lambda data, key, step: reversal(key, 64)), optax.adam(5e-3)
    state, held_out = training.init_state(model, task, tx, jax.random.key(0)), reversal(jax.random.key(1), 500)
    assert share_right(model, state.params, held_out) < 0.02
    for state, _, _ in training.train(model, task, tx, state, steps=200, steps_per_call=200):
        pass
    assert share_right(model, state.params, held_out) > 0.95
