"""Specification of a synthetic task, without a model: sampler, loss function, metrics, reference losses.

Other modules of `seqjax/tasks/` have functions that return a SyntheticTask. The arguments of such a function are flags
of the command of the task, and its docstring has their help texts.
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
MAX_OPERATIONS = 10**9  # of the precomputation of a task; about 10 s
WRONG_SYMBOLS = 'wrong_symbols'  # name of a metric of some, which `seqjax lengths` tests instead of WRONG
WRONG = 'wrong'  # name of a metric of every loss function: the fraction of sequences with a wrong answer


class SuccessCriterion(NamedTuple):
    """Success criterion of a seed: the mean of a training metric since the previous evaluation is at most `at_most`."""

    at_most: float = 0.0  # largest mean that is a success
    metric: str = WRONG  # name of a metric of the loss function


def task_defaults(**defaults: Any) -> Callable[[T], T]:
    """Returns a decorator that stores default flag values of a task's command on the function that returns the task.

    Args:
      defaults: values by name, for fields of `ModelConfig`, `TrainConfig` and `RunConfig`; `eval_every` is reduced to
        --steps if it is larger.
    """

    def decorate(make: T) -> T:
        make.defaults = defaults
        return make

    return decorate


class Examples(NamedTuple):
    """The three splits of a finite set of examples, each one batch of all of its examples."""

    train: Batch  # [N, ...]
    validation: Batch  # [M, ...], to select settings
    test: Batch  # [M, ...], for reported results


class SyntheticTask(NamedTuple):
    """Specification of a task with random sequences, for any model that fits its `spec`."""

    name: str  # name for messages, such as 'parity of 1 to 40 bits'
    sample: Callable[[jax.Array, int], Batch]  # (key, count) -> count random sequences; pure; only count sets shapes
    loss_fn: LossFn  # (outputs, batch) -> Mean by name: 'loss', which training minimizes, 'wrong', and others
    spec: ModelSpec
    reference_losses: Mapping[str, float] = {}  # losses of simple or optimal predictors, by name, such as best constant
    success: SuccessCriterion = SuccessCriterion()
    # (key, lengths [count], longest) -> random sequences of these lengths, padded to `longest`, which is static;
    # None if sequences of other lengths cannot be drawn.
    draw: Callable[[jax.Array, jax.Array, int], Batch] | None = None
    examples: Callable[[], Examples] | None = None  # returns the finite set of examples; None: new ones at every step


def input_shapes(task: SyntheticTask) -> Arrays:
    """Returns the shapes and dtypes of the inputs of a batch of one sequence, [1, ...], without drawing one."""
    return jax.eval_shape(lambda: task.sample(jax.random.key(0), 1)).inputs


def check_cost(work: int, **sizes: int) -> None:
    """Raises ValueError if the precomputation of a task needs `work` > MAX_OPERATIONS operations.

    `sizes` are the arguments that decide this, by name, for the message.

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
    """Returns the fraction of sequences with a False at any unmasked element of `correct`; both arguments [B, ...].

    Sequences that are wholly masked do not count.

    >>> float(error_rate(jnp.array([[True, False], [True, True]]), jnp.array([[True, True], [True, False]])).compute())
    0.5
    """
    rows = tuple(range(1, mask.ndim))
    wrong, counted = (~correct & mask).any(rows), mask.any(rows)
    return Mean(wrong.sum(dtype=jnp.float32), counted.sum(dtype=jnp.float32))


def classification(logits: jax.Array, batch: Batch) -> dict[str, Mean]:
    """Returns 'loss', the mean cross-entropy, and 'wrong', the fraction of sequences with a wrong answer.

    A sequence is wrong if, at any unmasked step, the most probable class is not the target or a logit is not finite.
    """
    return {
        'loss': losses.cross_entropy(logits, batch.targets, batch.mask),
        WRONG: error_rate(is_correct(logits, batch), batch.mask),
    }


def is_correct(logits: jax.Array, batch: Batch) -> jax.Array:
    """Returns True where the most probable class of finite logits [..., O] is the target, bool [...]."""
    return (logits.argmax(-1) == batch.targets) & jnp.isfinite(logits).all(-1)


def regression(tolerance: float) -> LossFn:
    """Returns a loss function with 'loss', the mean squared error, and 'wrong', the fraction of wrong sequences.

    A sequence is correct if the absolute error of every unmasked output is below `tolerance`.
    """

    def loss_fn(outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        correct = jnp.abs(outputs.astype(jnp.float32) - batch.targets) < tolerance  # NaN is wrong
        correct = correct.all(tuple(range(batch.mask.ndim, correct.ndim)))
        return {
            'loss': losses.squared_error(outputs, batch.targets, batch.mask),
            WRONG: error_rate(correct, batch.mask),
        }

    return loss_fn


def uniform_lengths(key: jax.Array, count: int, shortest: int, longest: int) -> jax.Array:
    """Returns random lengths [count], uniform from `shortest` to `longest`, both included."""
    return jax.random.randint(key, (count,), shortest, longest + 1)


def sampler_by_length(
    draw: Callable[[jax.Array, jax.Array, int], Batch], longest: int, *, shortest: int = 1, step: int = 1
) -> Callable[[jax.Array, int], Batch]:
    """Returns the `sample` of a task, which calls `draw` with random lengths.

    Lengths are uniform over shortest, shortest + step, ... up to `longest`.
    """

    def sample(key: jax.Array, count: int) -> Batch:
        length_key, draw_key = jax.random.split(key)
        lengths = shortest + step * uniform_lengths(length_key, count, 0, (longest - shortest) // step)
        return draw(draw_key, lengths, longest)

    return sample


def entropy(shares: Iterable[float]) -> float:
    """Returns the entropy in nats of class frequencies `shares`, which is the cross-entropy of the best constant.

    >>> round(entropy([0.5, 0.5, 0.0]), 4)
    0.6931
    """
    return -sum(share * math.log(share) for share in shares if share)
