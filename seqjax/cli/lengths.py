"""Measure length generalization: train on short sequences and test on longer ones.

    seqjax lengths --task=parity --longest=40 --max_test_length=500
    seqjax lengths --flagfile=experiments/flags/parity.flags

The command has the flags of the task, except --train_all_steps: every seed is trained for all --steps, and its final
parameters are tested.

Accuracy is the fraction of correct sequences, or of correct symbols for a task with the metric `wrong_symbols`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seqjax.cli import figures, flag_tables, task_registry, task_setup
from seqjax.cli.flag_tables import Flag
from seqjax.cli.parsers import IntParser
from seqjax.cli.settings import Settings
from seqjax.cli.task_experiment import TaskExperiment
from seqjax.errors import UserError
from seqjax.reporting import plots, statistics, text_tables
from seqjax.runs import memory
from seqjax.runs.directory import Workdir
from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SyntheticTask
from seqjax.training import evaluation
from seqjax.training.seeds import TestFn
from seqjax.training.success_results import SeedResult, SuccessResults
from seqjax.types import Mean, Sequences, Task, TrainState

WITHIN, BEYOND = 'within', 'beyond'  # prefixes of metrics: lengths up to the longest training length, and longer
LENGTH_FACTOR = 10  # default of --max_test_length, as a multiple of the longest training length
SOLVED = 0.99  # minimal accuracy, at every length beyond training, of a seed that generalizes
OWN = {
    'max_test_length': Flag(
        IntParser(1), f'longest test length; by default {LENGTH_FACTOR} times the longest training length'
    ),
    'num_lengths': Flag(
        IntParser(2, 10_000),
        'number of test lengths, evenly spaced from 1 to --max_test_length; the longest training length, and '
        'that length plus 1, are added',
    ),
    'sequences_per_length': Flag(IntParser(1), 'number of test sequences of each length'),
}
OWN_DEFAULTS = {'max_test_length': None, 'num_lengths': 50, 'sequences_per_length': 512}


class Lengths(TaskExperiment):
    """Length generalization experiment: trains the seeds of a task, and tests each at many sequence lengths.

    Args:
      experiment: experiment on the task; its flags and its training are used.

    Raises:
      UserError: an argument of the task has the name of a flag of `lengths`.
    """

    def __init__(self, experiment: TaskExperiment):
        super().__init__(experiment.make, name=experiment.name, eval_every=experiment.eval_every)
        for name in set(OWN) & set(experiment.own_flags):
            raise UserError(
                f'{experiment.name}({name}=...) has the name of a flag of `seqjax lengths`; rename the argument'
            )
        self.FLAGS = {name: flag for name, flag in self.FLAGS.items() if name != 'train_all_steps'} | OWN
        self.defaults = experiment.defaults | OWN_DEFAULTS

    def check(self, values: Mapping[str, Any]) -> Settings:
        settings = super().check(values)
        longest = training_length(self.synthetic_task(settings.options))
        max_test_length = settings.options['max_test_length'] or LENGTH_FACTOR * longest
        if max_test_length <= longest:
            raise UserError(
                f'--max_test_length={max_test_length} must be greater than the longest training length, {longest}'
            )
        return settings.replace(train_all_steps=True, max_test_length=max_test_length)

    def sizes(self, **flags: Any) -> tuple[int, dict[str, Any]]:
        numbers, size_flags = super().sizes(**flags)
        task, count = self.synthetic_task(flags), flags['sequences_per_length']
        if task.draw is None:
            raise UserError(
                f'--task={self.name} has no sampler by length (`draw`); use a task that has one, such as parity'
            )
        max_test_length = flags['max_test_length'] or LENGTH_FACTOR * training_length(task)
        size = max(padded([max_test_length]))
        size_flags |= {'max_test_length': flags['max_test_length'], 'sequences_per_length': count}
        steps = 1 if task.spec.output == 'last' else size
        needed = count * (size * (2 + flags['hidden']) + 3 * steps * task.spec.outputs)
        flag_tables.check_memory(needed, size_flags)
        try:
            sampler = jax.make_jaxpr(lambda: task.draw(jax.random.key(0), jnp.full(count, size), size))()
        except (ValueError, OverflowError) as error:
            raise UserError(f'--max_test_length={max_test_length}: {error}') from error
        return numbers + needed + memory.peak_bytes(sampler) // 4, size_flags

    def test(
        self, task: SyntheticTask, model: nn.Module, training_task: Task, settings: Settings
    ) -> tuple[TestFn, Any]:
        """Returns the test function of one seed and its data, the random key of the test sequences.

        The function returns the error rate at every test length, with the names within/LENGTH and beyond/LENGTH.
        """
        lengths, longest = select_lengths(task, settings), training_length(task)
        key = jax.random.key(task_setup.SPLITS[settings.train.split])

        def wrong(state: TrainState, key: jax.Array, length: jax.Array, size: int) -> Mean:
            batch = task.draw(
                jax.random.fold_in(key, length), jnp.full(settings.options['sequences_per_length'], length), size
            )
            metrics = training_task.loss(evaluation.apply(model, state, batch.inputs), batch)
            return metrics.get(synthetic.WRONG_SYMBOLS, metrics[synthetic.WRONG])

        def test(state: TrainState, key: jax.Array) -> dict[str, Mean]:
            values = {}
            # The model is compiled once per padded length.
            for size, group in padded(lengths).items():
                errors = jax.lax.map(lambda x, size=size: wrong(state, key, x, size), jnp.array(group))
                for i, length in enumerate(group):
                    error = jax.tree.map(lambda x, i=i: x[i], errors)
                    values[f'{WITHIN if length <= longest else BEYOND}/{length}'] = error
            return values

        return test, key

    def show(self, outcome: SuccessResults, settings: Settings) -> None:
        """Prints the mean accuracy over seeds, its 95% CI, and the extremes at up to nine of the test lengths."""
        lengths, accuracies = curves(outcome.seeds)
        columns = np.unique(np.linspace(0, len(lengths) - 1, 9).round().astype(int))
        print(f'{"length":>11}' + ''.join(f'{lengths[i]:>8}' for i in columns))
        items = settings.options['sequences_per_length']
        intervals = [statistics.bounded_mean_interval(accuracies[:, i], items=items) for i in columns]
        low, means, high = np.array(intervals).T
        rows = {'mean': means, '95% CI low': low, '95% CI high': high}
        rows |= {'best seed': accuracies.max(0)[columns], 'worst seed': accuracies.min(0)[columns]}
        for name, values in rows.items():
            print(f'{name:>11}' + ''.join(f'{value:>8.1%}' for value in values))

    def conclusion(self, task: SyntheticTask, outcome: SuccessResults, settings: Settings) -> str:
        """Returns the last line of the output: the accuracy at the test lengths beyond the training lengths."""
        lengths, accuracies = curves(outcome.seeds, BEYOND)
        means, solved, count = accuracies.mean(1), count_solved(accuracies), len(accuracies)
        low, high = statistics.wilson_interval(solved, count)
        items = len(lengths) * settings.options['sequences_per_length']
        mean = text_tables.format_bounded(statistics.bounded_mean_interval(means, items=items))
        longest = statistics.bounded_mean_interval(solved_up_to(*curves(outcome.seeds)), high=lengths[-1])
        return (
            f'{task.name}, {settings.model.title}, trained on lengths up to {training_length(task)}: accuracy '
            f'at lengths {lengths[0]} to {lengths[-1]} is {mean} as a mean over seeds and {means.max():.1%} for the '
            f'best seed; {solved} of {count} seeds ({solved / count:.1%}, 95% CI {low:.1%} to {high:.1%}) reach '
            f'{SOLVED:.0%} at every one of these lengths. From the shortest length, seeds reach {SOLVED:.0%} at every '
            f'length up to {text_tables.format_bounded(longest, ".0f")} as a mean over seeds.'
        )

    def plot(self, folder: Workdir, task: SyntheticTask, outcome: SuccessResults, settings: Settings) -> None:
        """Writes curve.png: accuracy against sequence length, a curve for each seed and one for the mean over seeds."""

        def draw(axes: Any) -> None:
            axis, (lengths, accuracies) = axes[0], curves(outcome.seeds)
            for i, curve in enumerate(accuracies):
                axis.plot(lengths, curve, color=plots.curve_color(i / max(len(accuracies) - 1, 1)), lw=0.8, alpha=0.7)
            axis.plot(lengths, accuracies.mean(0), color='black', label='mean over seeds')
            axis.axvline(training_length(task), color=plots.GREY, ls=':', label='longest training length')
            axis.set(xlabel='sequence length', ylabel='fraction of correct answers, each seed', ylim=(-0.02, 1.02))
            plots.add_legend(axis)

        figures.write_figure(folder, 1, f'{task.name}, length generalization: {settings.model.title}', draw, 8)


def training_length(task: SyntheticTask) -> int:
    """Returns the longest training length of a task in time steps, to which its training inputs are padded."""
    return jax.tree.leaves(synthetic.input_shapes(task))[0].shape[1]


def select_lengths(task: SyntheticTask, settings: Settings) -> list[int]:
    """Returns the test lengths, ascending: evenly spaced ones, the longest training length, and that length plus 1.

    A length that no sequence of the task has is replaced by the length that the task draws instead, such as an odd
    length of a^n b^n by the even one below it. Length 0 is left out.
    """
    spaced = np.linspace(1, settings.options['max_test_length'], settings.options['num_lengths']).round().astype(int)
    lengths = np.array([*spaced, training_length(task), training_length(task) + 1])
    return sorted({*drawn_lengths(task, lengths).tolist()} - {0})


def drawn_lengths(task: SyntheticTask, lengths: np.ndarray) -> np.ndarray:
    """Returns the lengths [L] of the sequences that the task draws for `lengths` [L]; the same if it declares none."""
    size = max(padded(lengths.tolist()))

    @jax.jit  # removes the computation of the sequences
    def drawn(lengths: jax.Array) -> list[jax.Array]:
        inputs = task.draw(jax.random.key(0), lengths, size).inputs
        parts = jax.tree.leaves(inputs, is_leaf=lambda x: isinstance(x, Sequences))
        return [part.seq_lengths for part in parts if isinstance(part, Sequences) and part.seq_lengths is not None]

    declared = drawn(jnp.asarray(lengths))
    return np.asarray(declared[0]) if declared else lengths


def padded(lengths: Sequence[int]) -> dict[int, list[int]]:
    """Groups lengths by padded length, the next power of 2 from 16 on, so that few shapes are compiled.

    >>> padded([1, 16, 17, 40])
    {16: [1, 16], 32: [17], 64: [40]}
    """
    groups: dict[int, list[int]] = {}
    for length in lengths:
        groups.setdefault(max(16, 1 << (length - 1).bit_length()), []).append(length)
    return groups


def curves(seeds: Sequence[SeedResult], *ranges: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tested lengths [L] in ascending order, and the accuracy of every seed at each of them [R, L].

    Lengths that have no test sequence (error rate NaN) are left out. `ranges` are WITHIN and BEYOND, or one of them; by
    default both.
    """
    names = {int(name.partition('/')[2]): name for name in seeds[0].test if name.startswith(ranges or (WITHIN, BEYOND))}
    lengths = sorted(length for length, name in names.items() if not np.isnan(seeds[0].test[name]))
    return np.array(lengths), np.array([[1 - seed.test[names[length]] for length in lengths] for seed in seeds])


def count_solved(accuracies: np.ndarray) -> int:
    """Returns the number of seeds whose accuracy is at least SOLVED at every length, from accuracies [R, L]."""
    return int((accuracies.min(1) >= SOLVED).sum())


def solved_up_to(lengths: np.ndarray, accuracies: np.ndarray) -> np.ndarray:
    """Returns the longest length [R] up to which each seed has an accuracy of SOLVED at every tested length.

    It is 0 if a seed is below SOLVED at the shortest length. The arguments are the results of `curves`.

    >>> solved_up_to(np.array([2, 4, 6]), np.array([[1.0, 1.0, 1.0], [1.0, 0.5, 1.0], [0.9, 1.0, 1.0]])).tolist()
    [6, 2, 0]
    """
    counts = np.cumprod(accuracies >= SOLVED, axis=1).sum(1)
    return np.concatenate([[0], lengths])[counts]


COMMAND = task_registry.task_command('lengths', __doc__, default='parity', wrap=Lengths)
FLAGS, run, main = COMMAND.table_for([]).flags, COMMAND.run, COMMAND.main
