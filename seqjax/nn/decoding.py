"""Decoding of encoder-decoder models without targets: greedy search, sampling, beam search. All work in `jax.jit`.

A model is an `EncoderDecoder` of `seqjax.nn.seq2seq`, or a module with `first_token` (the token that the decoder reads
first), `encode(source)`, whose result (the memory) has a field `carry`, and `step(memory, carry, token)`. Axes beyond
those in `seqjax`: W hypotheses of a beam.

A sequence ends with the first token `end`. All later tokens are `end` too, and count in neither length nor score.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqjax import validation
from seqjax.nn.cells import cell
from seqjax.ops import masking

LOG_ZERO = -1e30  # replaces log(0) by a finite value, for `jax_debug_infs`


class Decoded(NamedTuple):
    """Decoded sequences; the leading axes [...] are [B], or [B, W] after beam search, the best sequence first."""

    tokens: jax.Array  # [..., longest] int32
    lengths: jax.Array  # [...] int32, number of tokens up to the first `end`, including it; else `longest`
    scores: jax.Array  # [...] float32, sum of the log-probabilities of these tokens


class _DecoderState(NamedTuple):
    """State of the decoding loop after a step; the leading axes [...] are [B], or [B, W] in beam search."""

    carry: Any  # carry of the decoder, a tree of arrays [B, ...], or [B * W, ...] in beam search
    last: jax.Array  # [...] last decoded token; `first_token` before the first step
    ended: jax.Array  # [...] bool, True if the sequence contains `end`
    decoded: Decoded


def greedy(model: nn.Module, variables: Any, source: Any, *, longest: int, end: int | None = None) -> Decoded:
    """Decodes the most probable token at each step, for each row of a source.

    Args:
      model: an encoder-decoder model, see the module's docstring.
      variables: Flax variables of the model.
      source: source sequences, the argument of the model's `encode`.
      longest: maximal number of decoded tokens, including `end`.
      end: token that ends a sequence; None if all sequences have `longest` tokens.

    Returns:
      tokens [B, longest], lengths [B], and scores [B], the sum of the log-probabilities up to the first `end`.

    Raises:
      ValueError: `longest` is not an integer of at least 1, or `end` is not a token of the model.
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
    """Samples each token with probability proportional to p^(1 / temperature); otherwise like `greedy`.

    Scores are sums of log-probabilities at temperature 1, whatever the temperature. With a temperature near 0 the
    samples equal `greedy`'s. A temperature not above 0 raises ValueError; in compiled code, which cannot raise,
    the scores are then NaN.
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
    """Decodes by beam search: at each step the `width` best continuations of all hypotheses of a row are kept.

    Args:
      model, variables, source, longest, end: see `greedy`.
      width: W, the number of hypotheses per row; 1 is the same as `greedy`.
      length_penalty: a, at least 0. Hypotheses are ranked by score / ((5 + length) / 6)^a (Wu et al. 2016, equation
        14), at each step and at the end; values above 0 favor long hypotheses. In compiled code, which cannot raise, a
        value below 0 makes the scores NaN.

    Returns:
      tokens [B, W, longest], lengths [B, W], scores [B, W], the best first. Scores are sums of log-probabilities
      without the penalty. If a row has fewer than W different sequences, the remaining scores are -inf.

    Raises:
      ValueError: `longest` or `width` is not an integer of at least 1, `length_penalty` is below 0, or `end` is not a
        token of the model.
    """
    cell.check_count('longest', longest, 'the maximal number of decoded tokens')
    cell.check_count('width', width, 'the number of hypotheses per row')
    _check_number('length_penalty', length_penalty)
    memory = model.apply(variables, source, method='encode')
    memory = jax.tree.map(lambda x: jnp.repeat(x, width, axis=0), memory)
    batch = len(jax.tree.leaves(memory.carry)[0]) // width
    state = _initial_state(model, memory, (batch, width), longest)
    first_only = jnp.where(jnp.arange(width) == 0, 0.0, LOG_ZERO)  # all hypotheses are equal at first: one counts
    scores = jnp.broadcast_to(first_only.astype(jnp.float32), (batch, width))
    state = state._replace(decoded=state.decoded._replace(scores=scores))

    def step(state, index):
        carry, log_p = _log_probabilities(model, variables, memory, state, end)
        log_p, tokens = jax.lax.top_k(
            log_p, min(width, log_p.shape[-1])
        )  # [B, W, K]: less probable tokens are not among the W best
        if end is not None:
            only_end = jnp.where(jnp.arange(log_p.shape[-1]) == 0, 0.0, LOG_ZERO)  # one continuation if ended
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
    """Returns the state after a step, with the W best of the W * K continuations of each row.

    `log_p` and `tokens` [B, W, K] are log-probabilities and tokens of the continuations, `carry` is the carry after the
    step. Of equally ranked continuations, the one of the better hypothesis comes first, then the more probable token.
    """
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
    """Decodes one sequence per row; `select` maps log-probabilities [B, V] and the index of a step to tokens [B]."""
    cell.check_count('longest', longest, 'the maximal number of decoded tokens')
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
    """Returns the lengths [...] after the next step: 1 more for sequences that have not ended, else unchanged."""
    return state.decoded.lengths + (~state.ended).astype(jnp.int32)


def _initial_state(model: nn.Module, memory: Any, shape: tuple[int, ...], longest: int) -> _DecoderState:
    """Returns the state before the first step, with leading axes `shape`: no tokens, lengths and scores 0."""
    tokens = jnp.zeros((*shape, longest), jnp.int32)
    decoded = Decoded(tokens, jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    return _DecoderState(memory.carry, jnp.full(shape, model.first_token, jnp.int32), jnp.zeros(shape, bool), decoded)


def _log_probabilities(
    model: nn.Module, variables: Any, memory: Any, state: _DecoderState, end: int | None
) -> tuple[Any, jax.Array]:
    """Runs a step of the decoder; returns its carry, and the log-probabilities [..., V] of the next token."""
    carry, logits = model.apply(variables, memory, state.carry, state.last.reshape(-1), method='step')
    count = logits.shape[-1]
    if end is not None and end not in range(count):
        raise ValueError(f'end={end!r} must be a token from 0 to {count - 1}, or None for no end token')
    return carry, jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(*state.last.shape, count)


def _poison_scores(decoded: Decoded, valid: Any) -> Decoded:
    """Returns `decoded`, in compiled code with NaN scores if `valid` (an argument is in its range) is False."""
    return (
        decoded if validation.is_concrete(valid) else decoded._replace(scores=jnp.where(valid, decoded.scores, jnp.nan))
    )


def _check_number(name: str, value: Any, above: bool = False) -> None:
    """Raises ValueError if the value is below 0, or with `above` not above 0; in compiled code nothing is checked."""
    if validation.is_concrete(value) and not (value > 0 if above else value >= 0):
        raise ValueError(f'{name}={value} must be {"above" if above else "at least"} 0')
