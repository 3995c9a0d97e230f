"""Attention: a weighted mean of a source's steps, weighted by how well each fits a query.

Called as `attend(query, keys, mask)`. A decoder, whose source is the same at all its steps, calls `prepare` once and
`attend` at each of them. Axes beyond those in `seqjax`: S steps of the source, K features of its keys, Q of the query.

A masked step has weight 0, whatever its keys hold; where all are masked, weights and context are 0, as all gradients.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from seqjax.ops import masking
from seqjax.options import NamedOptions


class Source(NamedTuple):
    """What a query is compared with, made once for all queries."""

    keys: jax.Array  # [B, S, K], 0 at masked steps
    scored: jax.Array  # [B, S, ...]: what the score is computed from
    mask: jax.Array | None  # [B, S] bool: which steps are real; None for all


class Attention(NamedOptions, nn.Module):
    """What all kinds share; a kind says by `_scores` how well each step fits, and by `_scored` from what."""

    def __call__(self, query: jax.Array, keys: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Looks at the source.

        Args:
          query: [B, Q].
          keys: [B, S, K].
          mask: bool [B, S], which steps are real; all by default.

        Returns:
          context [B, K], the mean of the keys by the weights [B, S], which add up to 1 over the real steps.
        """
        return self.attend(query, self.prepare(keys, mask))

    def prepare(self, keys: jax.Array, mask: jax.Array | None = None) -> Source:
        """What of the source does not depend on the query."""
        keys = jnp.asarray(keys)
        if keys.ndim != 3 or not jnp.issubdtype(keys.dtype, jnp.floating):
            raise ValueError(f'keys {keys.shape} of {keys.dtype} must be floating [B, S, K]: one for each step')
        if mask is not None:
            mask = masking.as_flags(mask, keys.shape[:2], of=f'keys {keys.shape}')
            keys = masking.zero(keys, mask)  # so that NaN in padding never meets a weight
        return Source(keys, self._scored(keys), mask)

    def attend(self, query: jax.Array, source: Source) -> tuple[jax.Array, jax.Array]:
        """As a call, with what `prepare` gave."""
        query, keys = jnp.asarray(query), source.keys
        if query.ndim != 2 or query.shape[0] != keys.shape[0]:
            raise ValueError(f'query {query.shape} must be [B, Q] with B = {keys.shape[0]}, the rows of keys')
        weights = masked_softmax(self._scores(query, source.scored), source.mask)
        return jnp.einsum('bs,bsk->bk', weights.astype(keys.dtype), keys), weights

    def _scored(self, keys: jax.Array) -> jax.Array:
        return keys

    def _scores(self, query: jax.Array, scored: jax.Array) -> jax.Array:
        """query [B, Q], scored [B, S, ...] -> [B, S]."""
        raise NotImplementedError


class AdditiveAttention(Attention):
    """score = v tanh(query W + key U) (Bahdanau et al. 2015, appendix A.1.2).

    Parameters: `query` [Q, A] (W), `key` [K, A] (U), `score` [A, 1] (v), as kernels of dense layers without bias. The
    product of U and the keys is taken once, by `prepare`.
    """

    features: int  # A
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        if self.features < 1:
            raise ValueError(
                f'features={self.features} must be at least 1: in how many numbers query and key are added'
            )
        types = {'use_bias': False, 'dtype': self.dtype, 'param_dtype': self.param_dtype}
        self.query, self.key = nn.Dense(self.features, **types), nn.Dense(self.features, **types)
        self.score = nn.Dense(1, **types)

    def _scored(self, keys: jax.Array) -> jax.Array:
        return self.key(keys)

    def _scores(self, query: jax.Array, scored: jax.Array) -> jax.Array:
        return self.score(jnp.tanh(self.query(query)[:, None] + scored))[..., 0]


class DotAttention(Attention):
    """score = query . key, or with `general` (query W) . key (Luong et al. 2015, equation 7).

    Parameters: none, or `query` [Q, K] (W), the kernel of a dense layer without bias. With `scale` scores are divided
    by sqrt(K) (Vaswani et al. 2017, equation 1).
    """

    scale: bool = False
    general: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def _scores(self, query: jax.Array, scored: jax.Array) -> jax.Array:
        width = scored.shape[-1]
        if self.general:
            types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
            query = nn.Dense(width, use_bias=False, name='query', **types)(query)
        elif query.shape[-1] != width:
            raise ValueError(
                f'query {query.shape} and keys {scored.shape} must be of one width for a dot product; '
                'general=True learns a matrix between them'
            )
        query, scored = promote_dtype(query, scored, dtype=self.dtype)
        scores = jnp.einsum('bk,bsk->bs', query, scored)
        return scores / math.sqrt(width) if self.scale else scores


def masked_softmax(scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    """scores [B, S] -> weights [B, S] in float32 or wider: 0 where masked, and all 0 where all are.

    >>> masked_softmax(jnp.zeros((2, 3)), jnp.array([[True, False, True], [False] * 3])).tolist()
    [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]
    """
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    lowest = jnp.finfo(scores.dtype).min
    mask = jnp.ones(scores.shape, bool) if mask is None else mask
    scores = jnp.where(mask, scores, lowest)
    highest = jnp.max(scores, axis=-1, keepdims=True, initial=lowest)  # also where S is 0
    shares = masking.zero(jnp.exp(scores - jax.lax.stop_gradient(highest)), mask)
    total = shares.sum(axis=-1, keepdims=True)
    return shares / jnp.where(total > 0, total, 1)
