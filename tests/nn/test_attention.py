"""Attention: against loops over NumPy's float64, and what a masked step may not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.nn import attention
from seqjax.nn.attention import AdditiveAttention, DotAttention
from tests.helpers import reference

B, S, K, Q, A = 3, 5, 4, 3, 6
KINDS = {
    'additive': AdditiveAttention(A),
    'dot': DotAttention(),
    'scaled': DotAttention(scale=True),
    'general': DotAttention(general=True),
    'scaled_general': DotAttention(scale=True, general=True),
}
MASK = np.array([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1]], bool)


def start(kind, dtype=np.float32):
    rng = np.random.default_rng(0)
    query = rng.normal(size=(B, K if kind in ('dot', 'scaled') else Q)).astype(dtype)
    keys = rng.normal(size=(B, S, K)).astype(dtype)
    return KINDS[kind], reference.random_variables(KINDS[kind], query, keys), query, keys


def score(kind, params, query, key):
    """Of one query [Q] and one key [K]."""
    if kind == 'additive':
        w, u, v = (np.asarray(params[name]['kernel'], np.float64) for name in ('query', 'key', 'score'))
        return float(np.tanh(query @ w + key @ u) @ v[:, 0])
    if 'general' in kind:
        query = query @ np.asarray(params['query']['kernel'], np.float64)
    return float(query @ key) / (np.sqrt(K) if 'scaled' in kind else 1)


def by_loops(kind, params, query, keys, mask):
    """Contexts and weights, a row and a step at a time."""
    contexts, weights = np.zeros((B, K)), np.zeros((B, S))
    for b in range(B):
        valid = [s for s in range(S) if mask[b, s]]
        shares = {s: np.exp(score(kind, params, query[b], keys[b, s])) for s in valid}
        for s in valid:
            weights[b, s] = shares[s] / sum(shares.values())
            contexts[b] += weights[b, s] * keys[b, s]
    return contexts, weights


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('mask', [None, MASK])
def test_attention_is_the_papers_equations(x64, kind, mask):
    """In float64 to 1e-10, with padding right and in holes."""
    attend, variables, query, keys = start(kind, np.float64)
    want = by_loops(kind, variables.get('params'), query, keys, np.ones((B, S), bool) if mask is None else mask)
    for got, expected in zip(attend.apply(variables, query, keys, mask), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('kind', KINDS)
def test_masked_steps_reach_nothing(kind):
    """Their weight is exactly 0, and NaN, infinity or 1e30 there change no value and no gradient."""
    attend, variables, query, keys = start(kind)

    @jax.jit
    def run(variables, query, keys):
        def total(variables, query, keys):
            context, weights = attend.apply(variables, query, keys, MASK)
            return (context**2).sum() + (weights**2).sum(), (context, weights)

        return jax.value_and_grad(total, (0, 1, 2), has_aux=True)(variables, query, keys)

    want = run(variables, query, keys)
    weights = want[0][1][1]
    np.testing.assert_array_equal(np.asarray(weights)[~MASK], 0)
    reference.assert_close(weights.sum(axis=1), np.ones(B), 1e-6)
    for padding in (np.nan, np.inf, -np.inf, 1e30):
        reference.assert_trees_equal(run(variables, query, np.where(MASK[..., None], keys, np.float32(padding))), want)
    np.testing.assert_array_equal(np.asarray(want[1][2])[~MASK], 0)
    assert (np.abs(np.asarray(want[1][2])[MASK]).max(axis=-1) > 1e-6).all()


@pytest.mark.parametrize('kind', KINDS)
def test_a_source_without_a_real_step_gives_zeros(kind):
    """Context, weights and all gradients of that row; of a source without steps at all too."""
    attend, variables, query, keys = start(kind)
    mask = MASK.copy()
    mask[1] = False

    def total(variables, query, keys, mask):
        context, weights = attend.apply(variables, query, keys, mask)
        return (context + 1).sum() + (weights**2).sum(), (context, weights)

    grad = jax.grad(total, (0, 1, 2), has_aux=True)
    (of_params, of_query, of_keys), (context, weights) = grad(
        variables, query, np.where(mask[..., None], keys, np.nan), mask
    )
    for rows in (context, weights, of_query, of_keys):
        np.testing.assert_array_equal(rows[1], 0)
        assert np.isfinite(rows).all() and np.abs(rows[0]).max() > 1e-6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(of_params))
    grads, outputs = grad(variables, query, keys, np.zeros((B, S), bool))
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves((grads, outputs)))
    context, weights = attend.apply(variables, query, keys[:, :0])
    np.testing.assert_array_equal(context, np.zeros((B, K)))
    assert weights.shape == (B, 0)


@pytest.mark.parametrize('kind', KINDS)
def test_the_source_is_prepared_once(kind):
    """`attend` on what `prepare` gave is the call, and needs no weight that meets the keys alone."""
    attend, variables, query, keys = start(kind)
    want = attend.apply(variables, query, keys, MASK)
    source = attend.apply(variables, keys, MASK, method='prepare')
    rest = {'params': {name: x for name, x in variables.get('params', {}).items() if name != 'key'}}
    reference.assert_trees_equal(attend.apply(rest, query, source, method='attend'), want)


def test_scores_of_any_size_and_precision():
    """Large ones overflow nowhere; in half precision weights are float32, and the context is as the keys."""
    scores = jnp.array([[1e30, 1e30, -1e30], [-1e30, -3e38, -1e30]])
    reference.assert_close(attention.masked_softmax(scores, None), [[0.5, 0.5, 0], [0.5, 0, 0.5]], 1e-6)
    attend, variables, query, keys = start('additive')
    half = AdditiveAttention(A, dtype=jnp.bfloat16)
    context, weights = half.apply(variables, query, keys.astype(jnp.bfloat16), MASK)
    assert (context.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(weights, attend.apply(variables, query, keys, MASK)[1], atol=0.05)


@pytest.mark.parametrize(
    ('kind', 'query', 'keys', 'mask', 'message'),
    [
        (
            DotAttention(),
            (B, Q),
            (B, S, K),
            None,
            r'query \(3, 3\).*keys \(3, 5, 4\)',
        ),
        (DotAttention(), (B, 1, K), (B, S, K), None, r'query \(3, 1, 4\)'),
        (DotAttention(), (2, K), (B, S, K), None, r'query \(2, 4\)'),
        (DotAttention(), (B, K), (B, K), None, r'keys \(3, 4\)'),
        (DotAttention(), (B, K), (B, S, K), np.ones((B, K), bool), r'mask \(3, 4\)'),
        (AdditiveAttention(A), (B, K), (B, S, K), np.ones((B, S)), 'mask.*float64'),
        (AdditiveAttention(0), (B, K), (B, S, K), None, 'features=0'),
    ],
)
def test_what_does_not_fit_is_refused(kind, query, keys, mask, message):
    with pytest.raises(ValueError, match=message):
        kind.init(jax.random.key(0), np.zeros(query, np.float32), np.zeros(keys, np.float32), mask)
