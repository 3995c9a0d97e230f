"""Reverse string: writing a string backwards after it has been read (Delétang et al. 2022).

A recurrent model reads n symbols, then n empty tokens, at which it writes the symbols in reverse order:

    read      1 1 0 1 _ _ _ _
    write     . . . . 1 0 1 1

A string of n symbols has 2 n time steps. The metric `wrong_symbols` is the fraction of wrong symbols, which the source
reports as accuracy, and which `seqjax lengths` reports for this task: guessing has an accuracy of 1 / `symbols`.
The metric `wrong` is the fraction of strings with a wrong symbol. The task `reversal` is for an encoder-decoder model.

There are few short strings, so short test strings also occur in training.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SuccessCriterion, SyntheticTask, task_defaults
from seqjax.types import Batch, Mean, ModelSpec, Sequences


@task_defaults(hidden=64, batch_size=64, eval_every=100, steps=10_000)
def reverse_string(longest: int = 40, symbols: int = 2) -> SyntheticTask:
    """Returns the task of writing a string of random symbols in reverse order, at the steps after the string.

    Args:
      longest: maximal number of symbols of a string; the minimal number is 1.
      symbols: number of different symbols.

    Raises:
      ValueError: `longest` is below 1, or `symbols` is below 2.

    >>> batch = reverse_string(longest=4, symbols=3).sample(jax.random.key(1), 1)
    >>> length = int(batch.inputs.seq_lengths[0])
    >>> ''.join('012_'[token] for token in batch.inputs.values[0, :length].argmax(-1))
    '2121____'
    >>> ''.join(str(x) if counts else '.' for x, counts in zip(batch.targets[0], batch.mask[0]))
    '....1212'
    """
    for name, value, least in (('longest', longest, 1), ('symbols', symbols, 2)):
        if value < least:
            raise ValueError(f'{name}={value} must be at least {least}')
    draw = partial(_draw, symbols=symbols)
    return SyntheticTask(
        name=f'reverse string of 1 to {longest} of {symbols} symbols',
        sample=synthetic.sampler_by_length(draw, 2 * longest, shortest=2, step=2),
        loss_fn=_loss_fn,
        spec=ModelSpec('per_step', outputs=symbols, features=symbols + 1, causal=True, memory_span=2 * longest),
        reference_losses={'best constant': math.log(symbols)},
        success=SuccessCriterion(at_most=0.01),
        draw=draw,
    )


def _loss_fn(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    """Returns the metrics of `synthetic.classification`, and the fraction of wrong symbols."""
    wrong = ~synthetic.is_correct(logits, batch) & batch.mask
    share = Mean(wrong.sum(dtype=jnp.float32), batch.mask.sum(dtype=jnp.float32))
    return {**synthetic.classification(logits, batch), synthetic.WRONG_SYMBOLS: share}


def _draw(key: jax.Array, lengths: jax.Array, longest: int, *, symbols: int) -> Batch:
    """Returns random strings in these numbers of time steps [N], two for each symbol; an odd one is reduced by one."""
    n, steps = (lengths // 2)[:, None], jnp.arange(longest)[None]
    string = jax.random.randint(key, (len(lengths), longest), 0, symbols)
    valid, written = steps < 2 * n, (steps >= n) & (steps < 2 * n)
    values = jax.nn.one_hot(jnp.where(steps < n, string, jnp.where(valid, symbols, -1)), symbols + 1)
    reverse = jnp.take_along_axis(string, jnp.clip(2 * n - 1 - steps, 0, longest - 1), 1)
    return Batch(Sequences(values, 2 * n[:, 0]), jnp.where(written, reverse, 0), written)
