"""Decoding: what a model writes when nobody tells it the targets. All of it works within `jax.jit`.

A model is one of `seqjax.nn.seq2seq`, or has what is used of it here: `first`, the token to begin with, and
methods `encode(source)`, whose result has a `carry`, and `step(memory, carry, token)`. Axes beyond those in `seqjax`:
W hypotheses of a beam.

A sequence ends with the token `end`. Whatever stands behind it is `end` too, and counts in neither length nor score.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqjax import validation
from seqjax.nn.cells import cell
from seqjax.ops import masking

IMPOSSIBLE = -1e30  # a log-probability far below any, but finite, as `jax_debug_infs` has it


class Decoded(NamedTuple):
    """What was written: [B], or [B, W] with the best first."""

    tokens: jax.Array  # [..., longest] int32
    lengths: jax.Array  # [...] int32: how many tokens there are, with `end`; `longest` where `end` never came
    scores: jax.Array  # [...]: the sum of their log-probabilities


class _State(NamedTuple):
    """Where the writing stands; [B] or [B, W] where Decoded is."""

    carry: Any  # of the model, [B, ...] or [B * W, ...]
    last: jax.Array  # [...] the token written last
    ended: jax.Array  # [...] bool
    decoded: Decoded


def greedy(model: nn.Module, variables: Any, source: Any, *, longest: int, end: int | None = None) -> Decoded:
    """The most probable token at each step: tokens [B, longest], lengths [B], scores [B].

    Args:
      model, variables: see the module.
      source: what the model encodes.
      longest: how many tokens are written at most.
      end: the token that ends a sequence; None where all are `longest`.
    """
    return _write(model, variables, source, longest, end, lambda log_p, _: jnp.argmax(log_p, axis=-1))


def sample(
    model: nn.Module,
    variables: Any,
    source: Any,
    *,
    key: jax.Array,
    longest: int,
    end: int | None = None,
    temperature: Any = 1.0,
) -> Decoded:
    """Each token drawn with probability p^(1 / temperature), normalised; as `greedy` otherwise.

    Scores are of the model's own p. A temperature near 0 is `greedy`. In compiled code, which cannot raise, one that is
    not above 0 makes the scores NaN.
    """
    _check_number('temperature', temperature, above=True)

    def draw(log_p, step):
        return jax.random.categorical(jax.random.fold_in(key, step), log_p / temperature)

    return _spoil(_write(model, variables, source, longest, end, draw), temperature > 0)


def beam(
    model: nn.Module,
    variables: Any,
    source: Any,
    *,
    longest: int,
    width: int,
    end: int | None = None,
    length_penalty: Any = 0.0,
) -> Decoded:
    """Beam search: at each step the `width` best continuations of all hypotheses; those that have ended stay.

    Args:
      width: W. With 1 it is `greedy`.
      length_penalty: a, from 0. Hypotheses are compared by score / ((5 + length) / 6)^a (Wu et al. 2016, equation 14),
        at each step and in the end; above 0 it favours long ones. In compiled code, which cannot raise, one below 0
        makes the scores NaN.
      others: see `greedy`.

    Returns:
      tokens [B, W, longest], lengths [B, W], scores [B, W], the best first. Scores are sums of log-probabilities
      without the penalty. Where there are fewer than W sequences at all, the rest has the score -inf.

    Raises:
      ValueError: an argument is out of its range.
    """
    cell.check_count('longest', longest, 'how many tokens are written at most')
    cell.check_count('width', width, 'how many hypotheses are kept')
    _check_number('length_penalty', length_penalty)
    memory = model.apply(variables, source, method='encode')
    memory = jax.tree.map(lambda x: jnp.repeat(x, width, axis=0), memory)
    batch = len(jax.tree.leaves(memory.carry)[0]) // width
    state = _begin(model, memory, (batch, width), longest)
    alone = jnp.where(jnp.arange(width) == 0, 0.0, IMPOSSIBLE)  # they begin as one: the others are impossible
    scores = jnp.broadcast_to(alone.astype(jnp.float32), (batch, width))
    state = state._replace(decoded=state.decoded._replace(scores=scores))

    def step(state, index):
        carry, log_p = _log_probabilities(model, variables, memory, state, end)
        log_p, tokens = jax.lax.top_k(log_p, min(width, log_p.shape[-1]))  # [B, W, K]: no other can be among the W best
        if end is not None:
            once = jnp.where(jnp.arange(log_p.shape[-1]) == 0, 0.0, IMPOSSIBLE)  # what has ended goes on in one way
            log_p = masking.select(state.ended, jnp.broadcast_to(once, log_p.shape), log_p)
            tokens = masking.select(state.ended, jnp.full_like(tokens, end), tokens)
        return _keep(state, carry, log_p, tokens, index, end, length_penalty), None

    decoded = jax.lax.scan(step, state, jnp.arange(longest))[0].decoded
    decoded = decoded._replace(scores=jnp.where(decoded.scores > IMPOSSIBLE / 2, decoded.scores, -jnp.inf))
    return _spoil(decoded, length_penalty >= 0)


def _keep(
    state: _State, carry: Any, log_p: jax.Array, tokens: jax.Array, index: jax.Array, end: int | None, penalty: Any
) -> _State:
    """The best W of the continuations [B, W, K]; of equals that of the better hypothesis, and of its better token."""
    (batch, width), count = state.last.shape, log_p.shape[-1]
    scores = state.decoded.scores[..., None] + log_p
    lengths = _longer(state)
    ranks = scores / (((5 + lengths) / 6) ** penalty)[..., None]
    _, best = jax.lax.top_k(ranks.reshape(batch, width * count), width)
    parent = best // count  # [B, W]

    def of_parent(x):
        return jnp.take_along_axis(x, masking.expand(parent, x.ndim), axis=1)

    def of_best(x):
        return jnp.take_along_axis(x.reshape(batch, width * count), best, axis=1)

    def rows(x):
        return of_parent(x.reshape(batch, width, *x.shape[1:])).reshape(x.shape)

    last = of_best(tokens)
    written = of_parent(state.decoded.tokens).at[:, :, index].set(last)
    ended = state.ended if end is None else last == end
    return _State(jax.tree.map(rows, carry), last, ended, Decoded(written, of_parent(lengths), of_best(scores)))


def _write(
    model: nn.Module,
    variables: Any,
    source: Any,
    longest: int,
    end: int | None,
    choose: Callable[[jax.Array, jax.Array], jax.Array],
) -> Decoded:
    """One sequence a row; `choose` takes log-probabilities [B, V] and the number of the step to tokens [B]."""
    cell.check_count('longest', longest, 'how many tokens are written at most')
    memory = model.apply(variables, source, method='encode')
    batch = len(jax.tree.leaves(memory.carry)[0])

    def step(state, index):
        carry, log_p = _log_probabilities(model, variables, memory, state, end)
        last = choose(log_p, index).astype(jnp.int32)
        score = jnp.take_along_axis(log_p, last[:, None], axis=1)[:, 0]
        if end is not None:
            last, score = jnp.where(state.ended, end, last), jnp.where(state.ended, 0, score)
        tokens, _, scores = state.decoded
        decoded = Decoded(tokens.at[:, index].set(last), _longer(state), scores + score)
        return _State(carry, last, state.ended if end is None else last == end, decoded), None

    return jax.lax.scan(step, _begin(model, memory, (batch,), longest), jnp.arange(longest))[0].decoded


def _longer(state: _State) -> jax.Array:
    """The lengths after a step, which adds a token to what has not ended."""
    return state.decoded.lengths + (~state.ended).astype(jnp.int32)


def _begin(model: nn.Module, memory: Any, shape: tuple[int, ...], longest: int) -> _State:
    """Before anything is written."""
    tokens = jnp.zeros((*shape, longest), jnp.int32)
    decoded = Decoded(tokens, jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    return _State(memory.carry, jnp.full(shape, model.first, jnp.int32), jnp.zeros(shape, bool), decoded)


def _log_probabilities(
    model: nn.Module, variables: Any, memory: Any, state: _State, end: int | None
) -> tuple[Any, jax.Array]:
    """The carry after a step, and log-probabilities [..., V] of the next token."""
    carry, logits = model.apply(variables, memory, state.carry, state.last.reshape(-1), method='step')
    count = logits.shape[-1]
    if end is not None and end not in range(count):
        raise ValueError(f'end={end!r} must be a token from 0 to {count - 1}, or None where no token ends a sequence')
    return carry, jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(*state.last.shape, count)


def _spoil(decoded: Decoded, fine: Any) -> Decoded:
    """The same with scores of NaN where compiled code finds that a number is out of its range."""
    return (
        decoded if validation.is_concrete(fine) else decoded._replace(scores=jnp.where(fine, decoded.scores, jnp.nan))
    )


def _check_number(name: str, value: Any, above: bool = False) -> None:
    """Raises ValueError where the value is known and below 0, or with `above` 0."""
    if validation.is_concrete(value) and not (value > 0 if above else value >= 0):
        raise ValueError(f'{name}={value} must be {"above" if above else "from"} 0')
