"""A text to be predicted token by token: what follows is learned from all that came before (Graves 2013, section 3).

Training reads rows side by side with the carry handed on: truncated backpropagation. What is held out are the last
tokens, cut into rows too, of which a model knows nothing at their beginning.

What is not in the vocabulary is one token of its own, and scored as any other. Which of the unknown ones it was is no
part of the score: where there are some, the bits are fewer than a code that restores the text would need.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seqjax.datasets.baselines import ngrams
from seqjax.datasets.dataset import Dataset, Items, Measure, OnlinePredictor, Table, Unseen
from seqjax.nn import losses
from seqjax.ops import windows as ops_windows
from seqjax.types import Arrays, Batch, Mean, ModelSpec, Sequences

ROWS, LEAST = 32, 32  # rows that are read side by side to score a text, where each is so many windows long
COLUMNS = ('place', 'token', 'bits')


class SplitBounds(NamedTuple):
    """Where the parts of a text end: they follow each other."""

    training: int
    validation: int
    test: int  # the text's own end

    @classmethod
    def of(cls, count: int, validation: float, test: float, most: int) -> SplitBounds:
        """By the shares of the last parts, of at most so many tokens each.

        >>> SplitBounds.of(1000, 0.05, 0.1, most=80)
        SplitBounds(training=870, validation=920, test=1000)
        """
        middle = count - min(most, round(count * test))
        return cls(middle - min(most, round(count * validation)), middle, count)

    def part(self, name: str) -> tuple[int, int]:
        """From where to where 'all', 'validation' or 'test' goes."""
        return {
            'all': (0, self.test),
            'validation': (self.training, self.validation),
            'test': (self.validation, self.test),
        }[name]


def rows_for(count: int, window: int) -> int:
    """B for so many predictions: few enough that it matters little that every row begins with nothing known."""
    return max(1, min(ROWS, count // (LEAST * window)))


def arrange(values: np.ndarray, window: int) -> np.ndarray:
    """One value a prediction [N], in the order of the text -> [windows, B, T], padded with 0; row i goes on in row i.

    >>> arrange(np.arange(1, 6), window=3).tolist()
    [[[1, 2, 3]], [[4, 5, 0]]]
    """
    rows = rows_for(len(values), window)
    share = math.ceil(len(values) / rows)
    windows = math.ceil(share / window)
    values = np.pad(values, (0, rows * share - len(values))).reshape(rows, share)
    values = np.pad(values, ((0, 0), (0, windows * window - share)))
    return values.reshape(rows, windows, window).swapaxes(0, 1)


def in_order(values: np.ndarray, count: int) -> np.ndarray:
    """What `arrange` was given: [windows, B, T] -> [N].

    >>> in_order(arrange(np.arange(5), window=3), 5).tolist()
    [0, 1, 2, 3, 4]
    """
    windows, rows, window = values.shape
    share = math.ceil(count / rows)
    return values.swapaxes(0, 1).reshape(rows, windows * window)[:, :share].reshape(-1)[:count]


def held_out(tokens: np.ndarray, window: int) -> Batch:
    """Tokens [N] -> batches that predict each but the first: leaves [windows, B, T]."""
    mask = arrange(np.ones(len(tokens) - 1, bool), window)
    return Batch(arrange(tokens[:-1], window), arrange(tokens[1:], window), mask)


def answers(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Of logits [B, T, V] what is worth keeping: the nats of every token [B, T], and whether it was the likeliest."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    targets = batch.targets.astype(jnp.int32)
    nats = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return {'nats': jnp.where(batch.mask, nats, 0), 'right': (log_p.argmax(-1) == targets) & batch.mask}


def loss_fn(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    """The cross-entropy in nats."""
    return {'loss': losses.cross_entropy(logits, batch.targets, batch.mask)}


def items(bits: np.ndarray, mask: np.ndarray) -> Items:
    """Bits [windows, B, T] by stretches of T tokens, one after the other in the text."""
    totals, counts = np.where(mask, bits, 0).sum(-1, dtype=np.float64).reshape(-1), mask.sum(-1).reshape(-1)
    return Items(totals[counts > 0], counts[counts > 0])


def in_bits(found: Arrays) -> np.ndarray:
    """Of all answers, leaves [windows, B, T]."""
    return np.asarray(found['nats'], np.float64) / math.log(2)


def summary(found: Arrays, count: int, unit: str) -> list[str]:
    """Lines about a text that was scored."""
    bits = in_bits(found).sum() / count
    right = np.asarray(found['right']).sum() / count
    return [
        f'{bits:.4f} bits per {unit}: perplexity {2**bits:.4g}; the most probable one was right in {right:.1%} of '
        f'{count:,}'
    ]


def scored(
    tokens: np.ndarray,
    window: int,
    begin: int,
    *,
    unit: str,
    token_name: Callable[[int], str],
    look: Sequence[str] = (),
) -> Unseen:
    """A text to be scored: tokens [N], at least two, the first of which is at place `begin` of its file.

    `unit` is what a token is, 'character'; `token_name` names one in the table; `look` are lines about the file.
    """
    count = len(tokens) - 1

    def rows(found: Arrays) -> Iterable[Sequence[Any]]:
        for place, bits in enumerate(in_order(in_bits(found), count).tolist(), 1):
            yield begin + place, token_name(int(tokens[place])), bits

    def table(found: Arrays) -> Table:
        return COLUMNS, rows(found)

    return Unseen(held_out(tokens, window), table, look, lambda found: summary(found, count, unit))


def spec(size: int, window: int) -> ModelSpec:
    """Of models of a text with so many different tokens."""
    return ModelSpec('per_step', size, vocabulary=size, stateful=True, causal=True, memory_span=window)


def _window(window: int, rows: jax.Array, key: jax.Array, step: jax.Array) -> Batch:
    del key
    inputs, targets, resets = ops_windows.token_window(rows, step, window)
    return Batch(Sequences(inputs, resets=resets), targets, jnp.ones(targets.shape, bool))


def text(
    tokens: np.ndarray,
    bounds: SplitBounds,
    *,
    size: int,
    unit: str,
    title: str,
    batch_size: int,
    window: int,
    order: int,
    most: int,
    token_name: Callable[[int], str],
    recipe: Mapping[str, Any],
    look: Sequence[str] = (),
) -> Dataset:
    """A text as a Dataset.

    Args:
      tokens: [N], unsigned.
      bounds: of its parts; validation and test have two tokens at least.
      size: V.
      unit, token_name, look: see `scored`.
      title: of the text, in a sentence.
      batch_size, window: B, the rows that training reads side by side, and T.
      order, most: of the n-grams that are to be beaten, and the last tokens of training that they are counted on.
      recipe: see Dataset.

    Raises:
      ValueError: the part that is trained on is too short, see `token_rows` and `ngrams.fit`.
    """
    rows = ops_windows.token_rows(tokens[: bounds.training], batch_size, window)
    validation = held_out(tokens[slice(*bounds.part('validation'))], window)
    begin, end = bounds.part('test')
    test = scored(tokens[begin:end], window, begin, unit=unit, token_name=token_name)
    mask = test.batches.mask
    counted = tokens[max(0, bounds.training - most) : bounds.training]

    def baseline(order: int) -> Callable[[str], Items]:
        model = functools.cache(lambda: ngrams.fit(counted, order, size))

        def found(split: str) -> Items:
            begin, end = bounds.part(split)
            before = begin - max(0, begin - order)  # the n-grams may look back beyond the beginning of the part
            bits = model().bits(tokens[begin - before : end], before + 1)
            return items(arrange(bits, window), arrange(np.ones(len(bits), bool), window))

        return found

    return Dataset(
        name=title,
        look=look,
        spec=spec(size, window),
        answers=answers,
        recipe=recipe,
        loss_fn=loss_fn,
        batch=partial(_window, window),
        data=rows,
        both=lambda: ops_windows.token_rows(tokens[: bounds.part('test')[0]], batch_size, window),
        epoch=(rows.shape[1] - 1) // window,
        validation=validation,
        test=test,
        measure=Measure(f'bits per {unit}', spec='.4f'),
        items=lambda found: items(in_bits(found), mask),
        baselines={'unigram': baseline(1), f'Kneser-Ney {order}-gram': baseline(order)},
        tell=test.tell,
    )


def stream(parse: Callable[[str], np.ndarray], token_name: Callable[[int], str]) -> OnlinePredictor:
    """Tokens that come one at a time: what each cost, given those before, and which is the most probable next."""
    before: list[np.ndarray] = []  # log-probabilities [V] for the token that comes; none at the beginning

    def values(logits: np.ndarray, token: np.ndarray) -> Sequence[Any]:
        log_p = np.asarray(logits, np.float64)
        log_p = log_p - np.logaddexp.reduce(log_p)
        bits = -before.pop()[int(token)] / math.log(2) if before else ''
        before.append(log_p)
        return token_name(int(token)), bits, token_name(int(log_p.argmax()))

    return OnlinePredictor(parse, ('token', 'bits', 'next'), values, before.clear)


@partial(jax.jit, static_argnames=('model', 'length', 'samples', 'never'))
def sample(
    model: nn.Module,
    variables: Mapping[str, Any],
    prompt: jax.Array,
    key: jax.Array,
    temperature: jax.Array | float = 1.0,
    *,
    length: int,
    samples: int = 1,
    never: int | None = None,
) -> jax.Array:
    """Tokens [samples, length], int32, that a model writes after a prompt [P].

    Each token is drawn with probability p^(1 / temperature), normalised; near 0 the most probable one is drawn, and
    `never` is not. P is at least 1.
    """

    def read(tokens, carry):
        carry, logits = model.apply(variables, tokens, initial_carry=carry, return_carry=True)
        return carry, logits[:, -1].astype(jnp.float32)

    def step(state, key):
        carry, logits = state
        if never is not None:
            logits = logits.at[:, never].set(-jnp.inf)
        token = jax.random.categorical(key, logits / temperature).astype(jnp.int32)
        return read(token[:, None], carry), token

    prompts = jnp.broadcast_to(jnp.asarray(prompt, jnp.int32), (samples, len(prompt)))
    return jax.lax.scan(step, read(prompts, None), jax.random.split(key, length))[1].T
