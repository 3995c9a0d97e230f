"""Specification of a synthetic task, without a model: sampler, loss function, metrics, reference losses.

The modules of `seqjax/tasks/` have functions that return a SyntheticTask. Their arguments are the flags of the task's
command, and their docstrings the help texts.
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
MAX_OPERATIONS = 10**9  # about 10 s of precomputation
WRONG = 'wrong'  # metric of every loss function: the fraction of sequences with a wrong answer


class SuccessCriterion(NamedTuple):
    """Success criterion of a seed: the mean of a metric over the sequences of the last training steps."""

    at_most: float = 0.0  # largest value of the metric for a solved task
    metric: str = WRONG


def task_defaults(**defaults: Any) -> Callable[[T], T]:
    """Decorates a function that returns a SyntheticTask with defaults of the flags of its command.

    Args:
      defaults: values for fields of `ModelConfig`, `TrainConfig` and `RunConfig`; `eval_every` is at most --steps.
    """

    def decorate(make: T) -> T:
        make.defaults = defaults
        return make

    return decorate


class Examples(NamedTuple):
    """Splits of a finite set of examples."""

    train: Batch  # [N, ...]
    validation: Batch  # [M, ...], to choose settings
    test: Batch  # [M, ...], for reported results


class SyntheticTask(NamedTuple):
    """Specification of a task with randomly drawn sequences, for any model of its spec."""

    name: str  # name in a sentence: 'parity of 1 to 40 bits'
    sample: Callable[[jax.Array, int], Batch]  # (key, count) -> leaves [count, ...]; pure, shapes depend only on count
    loss_fn: LossFn  # returns 'loss', which training minimizes, and 'wrong'
    spec: ModelSpec
    reference_losses: Mapping[str, float] = {}  # by name: best constant, memoryless predictor, entropy floor
    success: SuccessCriterion = SuccessCriterion()
    # Sampler with lengths: (key, lengths [count], longest) -> batch padded to `longest`, the only static argument.
    draw: Callable[[jax.Array, jax.Array, int], Batch] | None = None
    examples: Callable[[], Examples] | None = None  # finite set of examples, instead of new sequences at every step


def input_shapes(task: SyntheticTask) -> Arrays:
    """Returns shapes and dtypes of the inputs of one sequence [1, ...], without drawing one."""
    return jax.eval_shape(lambda: task.sample(jax.random.key(0), 1)).inputs


def check_cost(work: int, **sizes: int) -> None:
    """Raises ValueError if the precomputation of a task of these sizes takes more than `MAX_OPERATIONS`.

    >>> check_cost(10**12, longest=10**6)
    Traceback (most recent call last):
    ...
    ValueError: longest=1000000 is too large: precomputation would take about 10,000 s; use a smaller value
    """
    if work > MAX_OPERATIONS:
        named = ' with '.join(f'{name}={size}' for name, size in sizes.items())
        seconds = f'{work // 10**8:,} s'
        raise ValueError(f'{named} is too large: precomputation would take about {seconds}; use a smaller value')


def error_rate(correct: jax.Array, mask: jax.Array) -> Mean:
    """Returns the fraction of sequences with a wrong answer at an unmasked element of correct, bool [B, ...].

    >>> float(error_rate(jnp.array([[True, False], [True, True]]), jnp.array([[True, True], [True, False]])).compute())
    0.5
    """
    rows = tuple(range(1, mask.ndim))
    wrong, counted = (~correct & mask).any(rows), mask.any(rows)
    return Mean(wrong.sum(dtype=jnp.float32), counted.sum(dtype=jnp.float32))


def classification(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    """Loss function with the cross-entropy; an answer is correct if its most probable class is the target."""
    correct = logits.argmax(-1) == batch.targets
    return {
        'loss': losses.cross_entropy(logits, batch.targets, batch.mask),
        WRONG: error_rate(correct & jnp.isfinite(logits).all(-1), batch.mask),
    }


def regression(tolerance: float) -> LossFn:
    """Returns a loss function with the squared error; an answer is correct if its error is below `tolerance`."""

    def loss_fn(outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        correct = jnp.abs(outputs.astype(jnp.float32) - batch.targets) < tolerance  # NaN is wrong
        correct = correct.all(tuple(range(batch.mask.ndim, correct.ndim)))
        return {
            'loss': losses.squared_error(outputs, batch.targets, batch.mask),
            WRONG: error_rate(correct, batch.mask),
        }

    return loss_fn


def uniform_lengths(key: jax.Array, count: int, shortest: int, longest: int) -> jax.Array:
    """Draws lengths [count] uniformly from `shortest` to `longest`, both included."""
    return jax.random.randint(key, (count,), shortest, longest + 1)


def sampler_by_length(
    draw: Callable[[jax.Array, jax.Array, int], Batch], longest: int, *, shortest: int = 1, step: int = 1
) -> Callable[[jax.Array, int], Batch]:
    """Returns the `sample` of a task with a `draw`, uniform over every `step`-th length, `shortest` to `longest`."""

    def sample(key: jax.Array, count: int) -> Batch:
        length_key, draw_key = jax.random.split(key)
        lengths = shortest + step * uniform_lengths(length_key, count, 0, (longest - shortest) // step)
        return draw(draw_key, lengths, longest)

    return sample


def entropy(shares: Iterable[float]) -> float:
    """Returns the entropy in nats of class frequencies, the loss of the best constant.

    >>> round(entropy([0.5, 0.5, 0.0]), 4)
    0.6931
    """
    return -sum(share * math.log(share) for share in shares if share)
