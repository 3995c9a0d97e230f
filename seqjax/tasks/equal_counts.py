"""Equal counts: which symbols can follow in a^n b^n and a^n b^n c^n, after Gers and Schmidhuber 2001.

At every step a model marks all symbols that can follow, the end included, each by an output of its own:

    a^n b^n c^n       a    a    b    b    c    c
    can follow        a b  a b  b    c    c    end

While letters a are read, n is not known: another a can follow as well as the first b, at any n. A string is accepted if
at every step exactly the symbols that can follow have a positive logit, which is a probability above one half. The
metric `wrong` is the fraction of strings that are not accepted. The task `anbn` has the same strings and trains on the
next symbol alone.

There is one string for each n, so all strings up to the longest of training also occur in training.
"""

from functools import partial

import jax
import jax.numpy as jnp

from seqjax.nn import losses
from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SyntheticTask, task_defaults
from seqjax.types import Batch, Mean, ModelSpec, Sequences

MIN_LETTERS, MAX_LETTERS = 2, 26


@task_defaults(batch_size=16, eval_every=100, steps=20_000)
def anbncn(letters: int = 3, longest: int = 30) -> SyntheticTask:
    """Returns the task of marking all symbols that can follow in a^n b^n c^n, with n uniform from 1 to its maximum.

    Args:
      letters: number of different letters: 2 for a^n b^n, 3 for a^n b^n c^n, at most 26.
      longest: maximal length of a string, a multiple of `letters`; the maximal n is `longest` / `letters`.

    Raises:
      ValueError: `letters` is not from 2 to 26, or `longest` is not a positive multiple of it.

    >>> batch = anbncn(longest=6).sample(jax.random.key(1), 1)
    >>> ''.join('abc'[symbol] for symbol in batch.inputs.values[0].argmax(-1)), int(batch.inputs.seq_lengths[0])
    ('aabbcc', 6)
    >>> [''.join('abc.'[i] for i in range(4) if step[i]) for step in batch.targets[0]]
    ['ab', 'ab', 'b', 'c', 'c', '.']
    """
    if not MIN_LETTERS <= letters <= MAX_LETTERS:
        raise ValueError(f'letters={letters} must be from {MIN_LETTERS} to {MAX_LETTERS}')
    if longest < letters or longest % letters:
        raise ValueError(f'longest={longest} must be a positive multiple of letters={letters}')
    draw = partial(_draw, letters=letters)
    language = ' '.join(f'{chr(ord("a") + letter)}^n' for letter in range(letters))
    return SyntheticTask(
        name=f'{language} with n from 1 to {longest // letters}',
        sample=synthetic.sampler_by_length(draw, longest, shortest=letters, step=letters),
        loss_fn=_loss_fn,
        spec=ModelSpec('per_step', outputs=letters + 1, features=letters, causal=True, memory_span=longest),
        reference_losses={'best constant': _best_constant(letters, longest // letters)},
        draw=draw,
    )


def _best_constant(letters: int, most: int) -> float:
    """Returns the loss of the best constant: the sum over symbols of the entropy of whether a symbol can follow.

    In a string, a can follow at n steps, b at 2n - 1, every other letter at n, and the end at one step.
    """
    mean = (most + 1) / 2
    counts = [mean, 2 * mean - 1, *[mean] * (letters - 2), 1]
    shares = [count / (letters * mean) for count in counts]
    return sum(synthetic.entropy([share, 1 - share]) for share in shares)


def _loss_fn(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    """Returns 'loss', the cross-entropy summed over symbols, and 'wrong', the fraction of strings not accepted."""
    correct = ((logits > 0) == (batch.targets > 0)) & jnp.isfinite(logits)
    return {
        'loss': losses.frame_nll(logits, batch.targets, batch.mask),
        synthetic.WRONG: synthetic.error_rate(correct.all(-1), batch.mask),
    }


def _draw(key: jax.Array, lengths: jax.Array, longest: int, *, letters: int) -> Batch:
    """Returns the batch of the strings of these lengths [N]; each length is reduced to a multiple of `letters`."""
    n = (lengths // letters)[:, None]
    steps = jnp.arange(longest)[None]
    letter = jnp.where(steps < n * letters, steps // jnp.maximum(n, 1), -1)  # -1 in padding
    last = (steps + 1) % jnp.maximum(n, 1) == 0  # last step of a block of equal letters
    follows = jax.nn.one_hot(jnp.where(last | (letter == 0), letter + 1, letter), letters + 1)
    follows = jnp.where((letter == 0)[..., None], follows + jax.nn.one_hot(letter, letters + 1), follows)
    valid = letter >= 0
    values = jax.nn.one_hot(letter, letters)  # -1 becomes all zeros
    return Batch(Sequences(values, letters * n[:, 0]), jnp.where(valid[..., None], follows, 0), valid)
