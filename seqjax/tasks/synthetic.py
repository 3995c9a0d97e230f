"""What is to be learned, before there is a model: how it is drawn, how it is scored, what is known of the best.

A file of `seqjax/tasks/` has functions that return a SyntheticTask. Their arguments are the flags of an experiment.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from seqjax.nn import losses
from seqjax.types import Arrays, Batch, Mean, ModelSpec

T = TypeVar('T', bound=Callable)
LossFn = Callable[[Arrays, Batch], dict[str, Mean]]
MOST_WORK = 10**9  # operations, about 10 s, before a task is there
WRONG = 'wrong'  # the metric that every loss function returns: the share of sequences that are not answered rightly


class SuccessCriterion(NamedTuple):
    """When a seed has solved its task: the mean of a metric over the sequences that were trained on last."""

    at_most: float = 0.0
    metric: str = WRONG


def task_defaults(**defaults: Any) -> Callable[[T], T]:
    """Decorates a function that returns a SyntheticTask with the defaults of the flags of its experiment.

    Args:
      defaults: of fields of `ModelConfig`, `TrainConfig` and `RunConfig`, instead of theirs; `eval_every` is at most
        --steps.
    """

    def decorate(make: T) -> T:
        make.defaults = defaults
        return make

    return decorate


class Examples(NamedTuple):
    """A finite set to learn from, and others that are not in it."""

    train: Batch  # [N, ...]
    validation: Batch  # [M, ...], for the choice of settings
    test: Batch  # [M, ...], for the last word


class SyntheticTask(NamedTuple):
    """A task whose sequences are drawn, for any recurrent model."""

    name: str  # in a sentence: 'parity of 1 to 40 bits'
    sample: Callable[[jax.Array, int], Batch]  # (key, count) -> leaves [count, ...]; pure, shapes from the count alone
    loss_fn: LossFn  # 'loss', which training lowers, and 'wrong'
    spec: ModelSpec
    reference_losses: Mapping[str, float] = {}  # by name: of the best constant, of a memoryless predictor, the floor
    success: SuccessCriterion = SuccessCriterion()
    # (key, lengths [count], longest) -> as sample, of those lengths and padded to `longest`, which alone is static.
    draw: Callable[[jax.Array, jax.Array, int], Batch] | None = None
    examples: Callable[[], Examples] | None = None  # instead of fresh sequences at every step


def input_shapes(task: SyntheticTask) -> Arrays:
    """Shapes and dtypes of the inputs of one sequence [1, ...]; nothing is drawn."""
    return jax.eval_shape(lambda: task.sample(jax.random.key(0), 1)).inputs


def check_cost(work: int, **sizes: int) -> None:
    """Raises ValueError where what a task of these sizes computes beforehand takes more than `MOST_WORK` operations.

    >>> check_cost(10**12, longest=10**6)
    Traceback (most recent call last):
    ...
    ValueError: longest=1000000 is too large: what is computed beforehand would take about 10,000 s
    """
    if work > MOST_WORK:
        named = ' with '.join(f'{name}={size}' for name, size in sizes.items())
        raise ValueError(f'{named} is too large: what is computed beforehand would take about {work // 10**8:,} s')


def mistakes(right: jax.Array, mask: jax.Array) -> Mean:
    """The share of sequences with an answer that is not right: right and mask [B, ...], bool.

    >>> float(mistakes(jnp.array([[True, False], [True, True]]), jnp.array([[True, True], [True, False]])).compute())
    0.5
    """
    rows = tuple(range(1, mask.ndim))
    wrong, asked = (~right & mask).any(rows), mask.any(rows)
    return Mean(wrong.sum(dtype=jnp.float32), asked.sum(dtype=jnp.float32))


def classification(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    """Cross-entropy; a sequence is right where the most probable class is, at every step that counts."""
    right = logits.argmax(-1) == batch.targets
    return {
        'loss': losses.cross_entropy(logits, batch.targets, batch.mask),
        WRONG: mistakes(right & jnp.isfinite(logits).all(-1), batch.mask),
    }


def within(tolerance: float) -> LossFn:
    """Squared error; a sequence is right where every output is nearer to its target than `tolerance`."""

    def loss_fn(outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        near = jnp.abs(outputs.astype(jnp.float32) - batch.targets) < tolerance  # NaN is not near
        near = near.all(tuple(range(batch.mask.ndim, near.ndim)))
        return {
            'loss': losses.squared_error(outputs, batch.targets, batch.mask),
            WRONG: mistakes(near, batch.mask),
        }

    return loss_fn


def lengths_between(key: jax.Array, count: int, shortest: int, longest: int) -> jax.Array:
    """Lengths [count], each as likely, both ends included."""
    return jax.random.randint(key, (count,), shortest, longest + 1)


def by_length(
    draw: Callable[[jax.Array, jax.Array, int], Batch], longest: int, *, shortest: int = 1, step: int = 1
) -> Callable[[jax.Array, int], Batch]:
    """The `sample` of a task that has a `draw`: every `step`-th length from `shortest` to `longest` is as likely."""

    def sample(key: jax.Array, count: int) -> Batch:
        which, what = jax.random.split(key)
        lengths = shortest + step * lengths_between(which, count, 0, (longest - shortest) // step)
        return draw(what, lengths, longest)

    return sample


def entropy(shares: Iterable[float]) -> float:
    """In nats: the loss of the best constant, which has the shares of the classes as its probabilities.

    >>> round(entropy([0.5, 0.5, 0.0]), 4)
    0.6931
    """
    return -sum(share * math.log(share) for share in shares if share)
