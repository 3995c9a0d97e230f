"""Decoding of encoder-decoder models without targets: greedy search, sampling, beam search. All work in `jax.jit`.

A model is one of `seqjax.nn.seq2seq`, or has the same interface: `first_token`, the start token, and methods
`encode(source)`, whose result has a `carry`, and `step(memory, carry, token)`. Axes beyond those in `seqjax`: W
hypotheses of a beam.

A sequence ends with the token `end`. All tokens after it are `end` too, and count in neither length nor score.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqjax import validation
from seqjax.nn.cells import cell
from seqjax.ops import masking

LOG_ZERO = -1e30  # stands for log(0), but is finite, for `jax_debug_infs`


class Decoded(NamedTuple):
    """Decoded sequences: [B], or [B, W] with the best first."""

    tokens: jax.Array  # [..., longest] int32
    lengths: jax.Array  # [...] int32, number of tokens including `end`; `longest` without `end`
    scores: jax.Array  # [...], sum of the log-probabilities of the tokens


class _DecoderState(NamedTuple):
    """State of the decoding loop, with the leading axes of Decoded, [B] or [B, W]."""

    carry: Any  # carry of the model, [B, ...] or [B * W, ...]
    last: jax.Array  # [...] last token
    ended: jax.Array  # [...] bool, True after `end`
    decoded: Decoded


def greedy(model: nn.Module, variables: Any, source: Any, *, longest: int, end: int | None = None) -> Decoded:
    """Decodes the most probable token at each step.

    Args:
      model: an encoder-decoder model, see the module's docstring.
      variables: variables of the model.
      source: argument of the model's `encode`.
      longest: maximal number of tokens.
      end: token that ends a sequence; None if all sequences have `longest` tokens.

    Returns:
      tokens [B, longest], lengths [B], scores [B].

    Raises:
      ValueError: an argument is out of its range.
    """
    return _decode(model, variables, source, longest, end, lambda log_p, _: jnp.argmax(log_p, axis=-1))


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
    """Samples each token with probability p^(1 / temperature), normalized; other arguments as in `greedy`.

    Scores are log-probabilities at temperature 1. A temperature near 0 is `greedy`. In compiled code, which cannot
    raise, one that is not above 0 makes the scores NaN.
    """
    _check_number('temperature', temperature, above=True)

    def draw(log_p, step):
        return jax.random.categorical(jax.random.fold_in(key, step), log_p / temperature)

    return _poison_scores(_decode(model, variables, source, longest, end, draw), temperature > 0)


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
    """Beam search, which keeps the `width` best continuations of all hypotheses at each step.

    Args:
      width: W; 1 is `greedy`.
      length_penalty: a, at least 0. Hypotheses are ranked by score / ((5 + length) / 6)^a (Wu et al. 2016, equation
        14), at each step and at the end; values above 0 favor long ones. In compiled code, which cannot raise, a value
        below 0 makes the scores NaN.
      others: see `greedy`.

    Returns:
      tokens [B, W, longest], lengths [B, W], scores [B, W], the best first. Scores are sums of log-probabilities
      without the penalty. If fewer than W sequences exist, the remaining scores are -inf.

    Raises:
      ValueError: an argument is out of its range.
    """
    cell.check_count('longest', longest, 'the maximal number of tokens')
    cell.check_count('width', width, 'the number of hypotheses')
    _check_number('length_penalty', length_penalty)
    memory = model.apply(variables, source, method='encode')
    memory = jax.tree.map(lambda x: jnp.repeat(x, width, axis=0), memory)
    batch = len(jax.tree.leaves(memory.carry)[0]) // width
    state = _initial_state(model, memory, (batch, width), longest)
    first_only = jnp.where(jnp.arange(width) == 0, 0.0, LOG_ZERO)  # all hypotheses are equal at first: keep one
    scores = jnp.broadcast_to(first_only.astype(jnp.float32), (batch, width))
    state = state._replace(decoded=state.decoded._replace(scores=scores))

    def step(state, index):
        carry, log_p = _log_probabilities(model, variables, memory, state, end)
        log_p, tokens = jax.lax.top_k(
            log_p, min(width, log_p.shape[-1])
        )  # [B, W, K]: others cannot be among the W best
        if end is not None:
            only_end = jnp.where(jnp.arange(log_p.shape[-1]) == 0, 0.0, LOG_ZERO)  # one continuation after the end
            log_p = masking.select(state.ended, jnp.broadcast_to(only_end, log_p.shape), log_p)
            tokens = masking.select(state.ended, jnp.full_like(tokens, end), tokens)
        return _select_beams(state, carry, log_p, tokens, index, end, length_penalty), None

    decoded = jax.lax.scan(step, state, jnp.arange(longest))[0].decoded
    decoded = decoded._replace(scores=jnp.where(decoded.scores > LOG_ZERO / 2, decoded.scores, -jnp.inf))
    return _poison_scores(decoded, length_penalty >= 0)


def _select_beams(
    state: _DecoderState,
    carry: Any,
    log_p: jax.Array,
    tokens: jax.Array,
    index: jax.Array,
    end: int | None,
    penalty: Any,
) -> _DecoderState:
    """Returns the W best continuations of [B, W, K]; among equals the better hypothesis, then the better token."""
    (batch, width), count = state.last.shape, log_p.shape[-1]
    scores = state.decoded.scores[..., None] + log_p
    lengths = _next_lengths(state)
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
    all_tokens = of_parent(state.decoded.tokens).at[:, :, index].set(last)
    ended = state.ended if end is None else last == end
    return _DecoderState(
        jax.tree.map(rows, carry), last, ended, Decoded(all_tokens, of_parent(lengths), of_best(scores))
    )


def _decode(
    model: nn.Module,
    variables: Any,
    source: Any,
    longest: int,
    end: int | None,
    select: Callable[[jax.Array, jax.Array], jax.Array],
) -> Decoded:
    """Decodes one sequence for each row; `select` maps log-probabilities [B, V] and the step's index to tokens [B]."""
    cell.check_count('longest', longest, 'the maximal number of tokens')
    memory = model.apply(variables, source, method='encode')
    batch = len(jax.tree.leaves(memory.carry)[0])

    def step(state, index):
        carry, log_p = _log_probabilities(model, variables, memory, state, end)
        last = select(log_p, index).astype(jnp.int32)
        score = jnp.take_along_axis(log_p, last[:, None], axis=1)[:, 0]
        if end is not None:
            last, score = jnp.where(state.ended, end, last), jnp.where(state.ended, 0, score)
        tokens, _, scores = state.decoded
        decoded = Decoded(tokens.at[:, index].set(last), _next_lengths(state), scores + score)
        return _DecoderState(carry, last, state.ended if end is None else last == end, decoded), None

    return jax.lax.scan(step, _initial_state(model, memory, (batch,), longest), jnp.arange(longest))[0].decoded


def _next_lengths(state: _DecoderState) -> jax.Array:
    """Returns the lengths after a step, which adds a token to sequences that have not ended."""
    return state.decoded.lengths + (~state.ended).astype(jnp.int32)


def _initial_state(model: nn.Module, memory: Any, shape: tuple[int, ...], longest: int) -> _DecoderState:
    """Returns the state before the first token."""
    tokens = jnp.zeros((*shape, longest), jnp.int32)
    decoded = Decoded(tokens, jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    return _DecoderState(memory.carry, jnp.full(shape, model.first_token, jnp.int32), jnp.zeros(shape, bool), decoded)


def _log_probabilities(
    model: nn.Module, variables: Any, memory: Any, state: _DecoderState, end: int | None
) -> tuple[Any, jax.Array]:
    """Returns the carry after a step, and log-probabilities [..., V] of the next token."""
    carry, logits = model.apply(variables, memory, state.carry, state.last.reshape(-1), method='step')
    count = logits.shape[-1]
    if end is not None and end not in range(count):
        raise ValueError(f'end={end!r} must be a token from 0 to {count - 1}, or None')
    return carry, jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(*state.last.shape, count)


def _poison_scores(decoded: Decoded, valid: Any) -> Decoded:
    """Returns `decoded` with NaN scores if compiled code finds an argument out of range."""
    return (
        decoded if validation.is_concrete(valid) else decoded._replace(scores=jnp.where(valid, decoded.scores, jnp.nan))
    )


def _check_number(name: str, value: Any, above: bool = False) -> None:
    """Raises ValueError if a concrete value is below 0, or with `above` not above 0."""
    if validation.is_concrete(value) and not (value > 0 if above else value >= 0):
        raise ValueError(f'{name}={value} must be {"above" if above else "at least"} 0')
