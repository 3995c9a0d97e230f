"""Attention: the mean of a source's steps, weighted by their scores for a query.

Called as `attention(query, keys, mask)`. A decoder, whose source is the same at all steps, calls `prepare` once and
`attend` at each step. Axes beyond those in `seqjax`: S steps of the source, K features of its keys, Q of the query.

A masked step has weight 0, whatever its keys are; if all steps are masked, weights, context and all gradients are 0.
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
    """Source of the attention, prepared once for all queries."""

    keys: jax.Array  # [B, S, K], 0 at masked steps
    projected_keys: jax.Array  # [B, S, ...], the part of the score that does not depend on the query
    mask: jax.Array | None  # [B, S] bool, True at valid steps; None if all are


class Attention(NamedOptions, nn.Module):
    """Base class: subclasses define `_scores`, the score of each step, and may define `_project_keys`."""

    def __call__(self, query: jax.Array, keys: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Attends to the keys.

        Args:
          query: [B, Q].
          keys: [B, S, K].
          mask: bool [B, S], True at valid steps; by default all are valid.

        Returns:
          context [B, K], the weighted mean of the keys, and weights [B, S], which sum to 1 over the valid steps.

        Raises:
          ValueError: an argument does not fit the others; the message names it.
        """
        return self.attend(query, self.prepare(keys, mask))

    def prepare(self, keys: jax.Array, mask: jax.Array | None = None) -> Source:
        """Returns the part of the computation that does not depend on the query."""
        keys = jnp.asarray(keys)
        if keys.ndim != 3 or not jnp.issubdtype(keys.dtype, jnp.floating):
            raise ValueError(f'keys {keys.shape} of {keys.dtype} must be floating [B, S, K], one key for each step')
        if mask is not None:
            mask = masking.as_flags(mask, keys.shape[:2], of=f'keys {keys.shape}')
            keys = masking.zero(keys, mask)  # NaN in padding times a weight of 0 would be NaN
        return Source(keys, self._project_keys(keys), mask)

    def attend(self, query: jax.Array, source: Source) -> tuple[jax.Array, jax.Array]:
        """Attends to a source from `prepare`; returns context and weights, like a call."""
        query, keys = jnp.asarray(query), source.keys
        if query.ndim != 2 or query.shape[0] != keys.shape[0]:
            raise ValueError(f'query {query.shape} must be [B, Q] with B = {keys.shape[0]}, the rows of keys')
        weights = masked_softmax(self._scores(query, source.projected_keys), source.mask)
        return jnp.einsum('bs,bsk->bk', weights.astype(keys.dtype), keys), weights

    def _project_keys(self, keys: jax.Array) -> jax.Array:
        return keys

    def _scores(self, query: jax.Array, projected_keys: jax.Array) -> jax.Array:
        """Returns scores [B, S] of query [B, Q] and projected keys [B, S, ...]."""
        raise NotImplementedError


class AdditiveAttention(Attention):
    """Additive attention: score = v tanh(query W + key U) (Bahdanau et al. 2015, appendix A.1.2).

    Parameters: `query` [Q, A] (W), `key` [K, A] (U), `score` [A, 1] (v), as kernels of dense layers without bias. The
    product of U and the keys is computed once, by `prepare`.
    """

    features: int  # A
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        if self.features < 1:
            raise ValueError(f'features={self.features} must be at least 1: the width of the sum of query and key')
        types = {'use_bias': False, 'dtype': self.dtype, 'param_dtype': self.param_dtype}
        self.query, self.key = nn.Dense(self.features, **types), nn.Dense(self.features, **types)
        self.score = nn.Dense(1, **types)

    def _project_keys(self, keys: jax.Array) -> jax.Array:
        return self.key(keys)

    def _scores(self, query: jax.Array, projected_keys: jax.Array) -> jax.Array:
        return self.score(jnp.tanh(self.query(query)[:, None] + projected_keys))[..., 0]


class DotAttention(Attention):
    """Dot attention: score = query . key, or with `general` (query W) . key (Luong et al. 2015, equation 7).

    Parameters: none, or `query` [Q, K] (W), the kernel of a dense layer without bias. With `scale` scores are divided
    by sqrt(K) (Vaswani et al. 2017, equation 1).
    """

    scale: bool = False
    general: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def _scores(self, query: jax.Array, projected_keys: jax.Array) -> jax.Array:
        width = projected_keys.shape[-1]
        if self.general:
            types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
            query = nn.Dense(width, use_bias=False, name='query', **types)(query)
        elif query.shape[-1] != width:
            raise ValueError(
                f'query {query.shape} and keys {projected_keys.shape} must have the same width for a dot product; '
                'use general=True, which learns a matrix between them'
            )
        query, keys = promote_dtype(query, projected_keys, dtype=self.dtype)
        scores = jnp.einsum('bk,bsk->bs', query, keys)
        return scores / math.sqrt(width) if self.scale else scores


def masked_softmax(scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns the softmax of scores [B, S] over valid steps, in float32 or wider; masked steps have weight 0.

    >>> masked_softmax(jnp.zeros((2, 3)), jnp.array([[True, False, True], [False] * 3])).tolist()
    [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]
    """
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    lowest = jnp.finfo(scores.dtype).min
    mask = jnp.ones(scores.shape, bool) if mask is None else mask
    scores = jnp.where(mask, scores, lowest)
    highest = jnp.max(scores, axis=-1, keepdims=True, initial=lowest)  # `initial` for S = 0
    weights = masking.zero(jnp.exp(scores - jax.lax.stop_gradient(highest)), mask)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)
