"""Attention: the mean of the keys of a source over time, weighted by the softmax of their scores for a query.

Called as `attention(query, keys, mask)`. A decoder, whose source is the same at all steps, calls `prepare` once and
`attend` at each step. Axes beyond those in `seqjax`: S time steps of the source, K features of a key, Q features of a
query.

A masked step has weight 0, even if its key is NaN. In a row whose steps are all masked, the weights, the context and
all gradients are 0.
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
    """Source sequence as `Attention.prepare` returns it: keys and mask, the same for all queries."""

    keys: jax.Array  # [B, S, K], 0 at masked steps
    projected_keys: jax.Array  # [B, S, ...], result of `_project_keys`; does not depend on the query
    mask: jax.Array | None  # [B, S] bool, True at valid steps; None if all steps are valid


class Attention(NamedOptions, nn.Module):
    """Base class of attention modules: subclasses define `_scores` and may override `_project_keys`, the identity."""

    def __call__(self, query: jax.Array, keys: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Computes the attention of one query per row to the keys of the row.

        Args:
          query: [B, Q].
          keys: [B, S, K].
          mask: bool [B, S], True at valid steps; by default all steps are valid.

        Returns:
          (context [B, K], weights [B, S]): the weighted mean of the keys, and the weights, which sum to 1 over the
          valid steps of a row. Both are 0 in a row without valid steps.

        Raises:
          ValueError: the shape or dtype of an argument is wrong; the message names it.
        """
        return self.attend(query, self.prepare(keys, mask))

    def prepare(self, keys: jax.Array, mask: jax.Array | None = None) -> Source:
        """Returns keys [B, S, K] and mask [B, S] as the `Source` that `attend` reads, with keys 0 at masked steps."""
        keys = jnp.asarray(keys)
        if keys.ndim != 3 or not jnp.issubdtype(keys.dtype, jnp.floating):
            raise ValueError(f'keys {keys.shape} of {keys.dtype} must be floating-point numbers [B, S, K]')
        if mask is not None:
            mask = masking.as_flags(mask, keys.shape[:2], of=f'keys {keys.shape}')
            keys = masking.zero(keys, mask)  # NaN in padding times a weight of 0 would be NaN
        return Source(keys, self._project_keys(keys), mask)

    def attend(self, query: jax.Array, source: Source) -> tuple[jax.Array, jax.Array]:
        """Returns (context [B, K], weights [B, S]) of a query [B, Q] for a source from `prepare`."""
        query, keys = jnp.asarray(query), source.keys
        if query.ndim != 2 or query.shape[0] != keys.shape[0]:
            raise ValueError(f'query {query.shape} must be [B, Q] with B = {keys.shape[0]}, the batch size of keys')
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
    products key U are computed once, by `prepare`.
    """

    features: int  # A, the size of the sum query W + key U
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        if self.features < 1:
            raise ValueError(f'features={self.features} must be at least 1: the size of the projected query and keys')
        types = {'use_bias': False, 'dtype': self.dtype, 'param_dtype': self.param_dtype}
        self.query, self.key = nn.Dense(self.features, **types), nn.Dense(self.features, **types)
        self.score = nn.Dense(1, **types)

    def _project_keys(self, keys: jax.Array) -> jax.Array:
        return self.key(keys)

    def _scores(self, query: jax.Array, projected_keys: jax.Array) -> jax.Array:
        return self.score(jnp.tanh(self.query(query)[:, None] + projected_keys))[..., 0]


class DotAttention(Attention):
    """Dot attention: score = query . key, or with `general` (query W) . key (Luong et al. 2015, equation 7).

    Parameters: with `general`, `query` [Q, K] (W), the kernel of a dense layer without bias; else none, and Q must
    equal K. With `scale` scores are divided by sqrt(K) (Vaswani et al. 2017, equation 1).
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
                f'query {query.shape} and keys {projected_keys.shape} must have the same last axis for a dot '
                'product; use general=True, which maps the query to the size of a key by a learned matrix'
            )
        query, keys = promote_dtype(query, projected_keys, dtype=self.dtype)
        scores = jnp.einsum('bk,bsk->bs', query, keys)
        return scores / math.sqrt(width) if self.scale else scores


def masked_softmax(scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns the softmax of scores [B, S] over the valid steps of each row, in float32 or wider; 0 at masked steps.

    A row without valid steps is all 0. Without a mask all steps are valid.

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
