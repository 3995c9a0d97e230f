"""Language modeling: a model predicts each token of a text from all tokens before it (Graves 2013, section 3).

Training reads B rows of the text in parallel, window by window, and keeps their carries between windows: truncated
backpropagation through time. The last tokens of the text are the validation and test splits. They are cut into rows as
well, and each row starts without context.

All tokens outside the vocabulary are replaced by one unknown token, which is scored like any other. Its bits do not
give the token that it stands for, so with unknown tokens the bits are fewer than lossless compression would need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seqjax.datasets.baselines import ngrams
from seqjax.datasets.dataset import Dataset, ItemScores, MetricSpec, OnlinePredictor, PredictionInputs, Table
from seqjax.nn import losses
from seqjax.ops import windows as ops_windows
from seqjax.types import Arrays, Batch, Mean, ModelSpec, Sequences

MAX_ROWS, MIN_WINDOWS_PER_ROW = 32, 32  # maximum rows of an evaluation batch, minimum windows of a row
COLUMNS = ('place', 'token', 'bits')  # columns of predictions.csv; 'place' is the index of the token


class SplitBounds(NamedTuple):
    """Ends of the three splits of a text, as indices of tokens; each split starts where the one before it ends."""

    training: int
    validation: int
    test: int  # number of tokens of the text

    @classmethod
    def from_fractions(cls, count: int, validation: float, test: float, max_eval_tokens: int) -> SplitBounds:
        """Returns the bounds for a text of `count` tokens; `validation` and `test` are the fractions of these splits.

        Each of the two splits has at most `max_eval_tokens` tokens.

        >>> SplitBounds.from_fractions(1000, 0.05, 0.1, max_eval_tokens=80)
        SplitBounds(training=870, validation=920, test=1000)
        """
        middle = count - min(max_eval_tokens, round(count * test))
        return cls(middle - min(max_eval_tokens, round(count * validation)), middle, count)

    def split(self, name: str) -> tuple[int, int]:
        """Returns the (start, end) of the split 'validation' or 'test', or of the whole text for 'all'."""
        return {
            'all': (0, self.test),
            'validation': (self.training, self.validation),
            'test': (self.validation, self.test),
        }[name]


# --- evaluation ------------------------------------------------------------------------------------


def rows_for(count: int, window: int) -> int:
    """Returns B, the number of parallel rows that evaluate `count` predictions, from 1 to `MAX_ROWS`.

    Each row starts without context, so a row has at least `MIN_WINDOWS_PER_ROW` windows unless B is 1.
    """
    return max(1, min(MAX_ROWS, count // (MIN_WINDOWS_PER_ROW * window)))


def to_batches(values: np.ndarray, window: int) -> np.ndarray:
    """Returns values [N], one for each prediction, as windows [windows, B, T] padded with 0.

    Row i of a window continues row i of the window before it.

    >>> to_batches(np.arange(1, 6), window=3).tolist()
    [[[1, 2, 3]], [[4, 5, 0]]]
    """
    rows = rows_for(len(values), window)
    share = math.ceil(len(values) / rows)
    windows = math.ceil(share / window)
    values = np.pad(values, (0, rows * share - len(values))).reshape(rows, share)
    values = np.pad(values, ((0, 0), (0, windows * window - share)))
    return values.reshape(rows, windows, window).swapaxes(0, 1)


def from_batches(values: np.ndarray, count: int) -> np.ndarray:
    """Returns values [N = `count`] in the order of the text from [windows, B, T]: the inverse of `to_batches`.

    >>> from_batches(to_batches(np.arange(5), window=3), 5).tolist()
    [0, 1, 2, 3, 4]
    """
    windows, rows, window = values.shape
    share = math.ceil(count / rows)
    return values.swapaxes(0, 1).reshape(rows, windows * window)[:, :share].reshape(-1)[:count]


def evaluation_batch(tokens: np.ndarray, window: int) -> Batch:
    """Returns batches with all tokens [N] but the first as targets, and the tokens before them as inputs.

    The leaves are [windows, B, T]; padding is masked.
    """
    mask = to_batches(np.ones(len(tokens) - 1, bool), window)
    return Batch(to_batches(tokens[:-1], window), to_batches(tokens[1:], window), mask)


def postprocess(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Returns 'nats' and 'right', each [B, T], from logits [B, T, V].

    'nats' is the negative log-probability of the target, 0 at masked steps. 'right' is True where the target has the
    largest logit, False at masked steps.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    targets = batch.targets.astype(jnp.int32)
    nats = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return {'nats': jnp.where(batch.mask, nats, 0), 'right': (log_p.argmax(-1) == targets) & batch.mask}


def loss_fn(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    """Returns the mean cross-entropy of the unmasked targets in nats per token, as 'loss'."""
    return {'loss': losses.cross_entropy(logits, batch.targets, batch.mask)}


def items(bits: np.ndarray, mask: np.ndarray) -> ItemScores:
    """Returns the item scores of bits [windows, B, T]; an item is the unmasked tokens of one row of one window."""
    totals, counts = np.where(mask, bits, 0).sum(-1, dtype=np.float64).reshape(-1), mask.sum(-1).reshape(-1)
    return ItemScores(totals[counts > 0], counts[counts > 0])


def bits_of(predictions: Arrays) -> np.ndarray:
    """Returns the bits of each target, -log2 of its probability, [windows, B, T] float64."""
    return np.asarray(predictions['nats'], np.float64) / math.log(2)


def summary(predictions: Arrays, count: int, unit: str) -> list[str]:
    """Returns a line with bits per token, perplexity and accuracy over the `count` predicted tokens of a text."""
    bits = bits_of(predictions).sum() / count
    right = np.asarray(predictions['right']).sum() / count
    return [f'{bits:.4f} bits per {unit}, perplexity {2**bits:.4g}, accuracy {right:.1%} of {count:,} {unit}s']


def scoring_inputs(
    tokens: np.ndarray,
    window: int,
    begin: int,
    *,
    unit: str,
    token_name: Callable[[int], str],
    description: Sequence[str] = (),
) -> PredictionInputs:
    """Returns the PredictionInputs of a text; their table has a row for each token but the first, with its bits.

    Args:
      tokens: [N], at least two.
      window: T, time steps of a batch.
      begin: index of the first token in its file, from 0.
      unit: kind of token in printed lines, such as 'character'.
      token_name: function from a token to its text in the table.
      description: lines that describe the file.
    """
    count = len(tokens) - 1

    def rows(predictions: Arrays) -> Iterable[Sequence[Any]]:
        for place, bits in enumerate(from_batches(bits_of(predictions), count).tolist(), 1):
            yield begin + place, token_name(int(tokens[place])), bits

    def table(predictions: Arrays) -> Table:
        return COLUMNS, rows(predictions)

    return PredictionInputs(
        evaluation_batch(tokens, window), table, description, lambda predictions: summary(predictions, count, unit)
    )


# --- training --------------------------------------------------------------------------------------


def spec(size: int, window: int) -> ModelSpec:
    """Returns the ModelSpec of a stateful language model of `size` tokens; `window` is its memory span."""
    return ModelSpec('per_step', size, vocabulary=size, stateful=True, causal=True, memory_span=window)


def _window(window: int, rows: jax.Array, key: jax.Array, step: jax.Array) -> Batch:
    del key
    inputs, targets, resets = ops_windows.token_window(rows, step, window)
    return Batch(Sequences(inputs, resets=resets), targets, jnp.ones(targets.shape, bool))


def dataset(
    tokens: np.ndarray,
    bounds: SplitBounds,
    *,
    size: int,
    unit: str,
    title: str,
    batch_size: int,
    window: int,
    ngram_order: int,
    max_ngram_tokens: int,
    token_name: Callable[[int], str],
    preprocessing: Mapping[str, Any],
    description: Sequence[str] = (),
) -> Dataset:
    """Returns the Dataset for language modeling of a text.

    Args:
      tokens: [N], unsigned integers below `size`.
      bounds: ends of the splits; validation and test must have at least two tokens each.
      size: V, size of the vocabulary.
      unit, token_name, description: see `scoring_inputs`.
      title: name of the text in messages.
      batch_size, window: B, the rows that training reads in parallel, and T, the time steps of a batch.
      ngram_order: order of the n-gram baseline.
      max_ngram_tokens: maximum number of tokens of the training split on which the n-gram baselines are fitted, the
        last ones. For the test, they are fitted on these and on all tokens of the validation split.
      preprocessing: see Dataset.

    Raises:
      ValueError: the training split has fewer than B (T + 1) tokens, or a size is below 1; see `token_rows`.
    """
    rows = ops_windows.token_rows(tokens[: bounds.training], batch_size, window)
    validation = evaluation_batch(tokens[slice(*bounds.split('validation'))], window)
    begin, end = bounds.split('test')
    test = scoring_inputs(tokens[begin:end], window, begin, unit=unit, token_name=token_name)
    mask = test.batches.mask

    def baseline(order: int) -> Callable[[str], ItemScores]:
        def item_scores(split: str) -> ItemScores:
            begin, end = bounds.split(split)
            before = begin - max(0, begin - order)  # n-grams may read tokens before the split
            model = ngrams.fit(tokens[max(0, bounds.training - max_ngram_tokens) : begin], order, size)
            bits = model.bits(tokens[begin - before : end], before + 1)
            return items(to_batches(bits, window), to_batches(np.ones(len(bits), bool), window))

        return item_scores

    return Dataset(
        name=title,
        description=description,
        spec=spec(size, window),
        postprocess=postprocess,
        preprocessing=preprocessing,
        loss_fn=loss_fn,
        batch=partial(_window, window),
        data=rows,
        train_plus_validation=lambda: ops_windows.token_rows(tokens[: bounds.split('test')[0]], batch_size, window),
        steps_per_epoch=(rows.shape[1] - 1) // window,
        validation=validation,
        test=test,
        metric=MetricSpec(f'bits per {unit}', format_spec='.4f'),
        items=lambda predictions: items(bits_of(predictions), mask),
        baselines={'unigram': baseline(1), f'Kneser-Ney {ngram_order}-gram': baseline(ngram_order)},
        summary=test.summary,
    )


# --- prediction and sampling -----------------------------------------------------------------------


def stream(parse: Callable[[str], np.ndarray], token_name: Callable[[int], str]) -> OnlinePredictor:
    """Returns an online predictor for tokens; its columns are the token, its bits, and the most probable next token.

    The first token of a sequence has no bits. `parse` is the function from a line to a token.
    """
    before: list[np.ndarray] = []  # log-probabilities [V] of the next token; empty at the start

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
    """Returns sampled tokens [samples, length] int32 that continue a prompt of P >= 1 tokens, [P].

    A token to which the model gives probability p is sampled with a probability proportional to p^(1 / temperature).
    The temperature must be above 0, which is not checked. The token `never` is not sampled; None allows all tokens.
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
