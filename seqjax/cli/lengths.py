"""Length generalisation: trained on short sequences, tested on longer ones, with a curve over the lengths.

    seqjax lengths --task=parity --longest=40 --up_to=500
    seqjax lengths --flagfile=experiments/flags/parity.flags

It has every flag of the task. All steps are trained, and the parameters at the end are what is tested.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seqjax.cli import flag_tables, task_registry, task_setup
from seqjax.cli.flag_tables import Flag
from seqjax.cli.parsers import Whole
from seqjax.cli.settings import Settings
from seqjax.cli.task_experiment import TaskExperiment
from seqjax.errors import UserError
from seqjax.reporting import plots, statistics, text_tables
from seqjax.runs import memory, result_files
from seqjax.runs.directory import Workdir
from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SyntheticTask
from seqjax.training import evaluation
from seqjax.training.seeds import TestFn
from seqjax.training.success_results import SeedResult, SuccessResults
from seqjax.types import Mean, Task, TrainState

WITHIN, BEYOND = 'within', 'beyond'  # what was trained on: where a tested length lies
TIMES = 10  # the longest tested length by default, in those trained on
SOLVED = 0.99  # of the sequences of every length tested: such a seed generalises
OWN = {
    'up_to': Flag(Whole(1), f'the longest length that is tested; {TIMES} times the longest trained on by default'),
    'points': Flag(Whole(2, 10_000), 'how many lengths are tested, evenly spaced from 1 on'),
    'count': Flag(Whole(1), 'sequences of each length'),
}
OWN_DEFAULTS = {'up_to': None, 'points': 50, 'count': 512}


class Lengths(TaskExperiment):
    """A study whose seeds are tested at many lengths.

    Args:
      study: of the task.
    """

    def __init__(self, study: TaskExperiment):
        super().__init__(study.make, name=study.name, eval_every=study.eval_every)
        for name in set(OWN) & set(study.own):
            raise UserError(f'{study.name}({name}=...) is the name of a flag of this command: its arguments are flags')
        self.FLAGS = {name: flag for name, flag in self.FLAGS.items() if name != 'train_all_steps'} | OWN
        self.defaults = study.defaults | OWN_DEFAULTS

    def check(self, values: Mapping[str, Any]) -> Settings:
        settings = super().check(values)
        longest = trained(self.problem(settings.options))
        up_to = settings.options['up_to'] or TIMES * longest
        if up_to <= longest:
            raise UserError(f'--up_to={up_to} must be over {longest}, the longest trained on')
        return settings.replace(train_all_steps=True, up_to=up_to)

    def sizes(self, **flags: Any) -> tuple[int, dict[str, Any]]:
        numbers, named = super().sizes(**flags)
        problem, count = self.problem(flags), flags['count']
        if problem.draw is None:
            raise UserError(f'--task={self.name}: {problem.name} is not drawn by length; parity, for example, is')
        size = max(padded([flags['up_to'] or TIMES * trained(problem)]))
        tested = named | {'up_to': flags['up_to'], 'count': count}
        steps = 1 if problem.spec.output == 'last' else size
        needed = count * (size * (2 + flags['hidden']) + 3 * steps * problem.spec.outputs)
        flag_tables.check_memory(needed, tested)
        try:
            program = jax.make_jaxpr(lambda: problem.draw(jax.random.key(0), jnp.full(count, size), size))()
        except (ValueError, OverflowError) as error:
            raise UserError(f'--up_to={flags["up_to"] or size}: {error}') from error
        return numbers + needed + memory.peak_bytes(program) // 4, tested

    def test(self, problem: SyntheticTask, model: nn.Module, task: Task, settings: Settings) -> tuple[TestFn, Any]:
        points, longest = lengths_of(problem, settings), trained(problem)
        key = jax.random.key(task_setup.SPLITS[settings.train.split])

        def wrong(state: TrainState, key: jax.Array, length: jax.Array, size: int) -> Mean:
            batch = problem.draw(jax.random.fold_in(key, length), jnp.full(settings.options['count'], length), size)
            return task.loss(evaluation.apply(model, state, batch.inputs), batch)[synthetic.WRONG]

        def test(state: TrainState, key: jax.Array) -> dict[str, Mean]:
            values = {}
            # The model is compiled for each padded length, and not for each length.
            for size, among in padded(points).items():
                found = jax.lax.map(lambda x, size=size: wrong(state, key, x, size), jnp.array(among))
                for i, length in enumerate(among):
                    one = jax.tree.map(lambda x, i=i: x[i], found)
                    values[f'{WITHIN if length <= longest else BEYOND}/{length}'] = one
            return values

        return test, key

    def show(self, outcome: SuccessResults, settings: Settings) -> None:
        """The share of sequences that are answered rightly, for some of the lengths."""
        lengths, right = curves(outcome.seeds)
        shown = np.unique(np.linspace(0, len(lengths) - 1, 9).round().astype(int))
        print(f'{"length":>10}' + ''.join(f'{lengths[i]:>8}' for i in shown))
        rows = {'mean': right.mean(0), 'best seed': right.max(0), 'worst seed': right.min(0)}
        for name, values in rows.items():
            print(f'{name:>10}' + ''.join(f'{values[i]:>8.1%}' for i in shown))

    def conclusion(self, problem: SyntheticTask, outcome: SuccessResults, settings: Settings) -> str:
        lengths, right = curves(outcome.seeds, BEYOND)
        scores, solved, count = right.mean(1), count_solved(right), len(right)
        low, high = statistics.wilson_interval(solved, count)
        mean = text_tables.format_interval(scores, '.1%', '.1%')
        return (
            f'{problem.name}, {settings.model.title}, trained to length {trained(problem)}: at '
            f'lengths {lengths[0]} to {lengths[-1]} the mean seed answers {mean} rightly '
            f'and the best {scores.max():.1%}; {solved} of {count} seeds ({solved / count:.1%}; 95% interval '
            f'{low:.1%} to {high:.1%}) answer at least {SOLVED:.0%} at every one of them.'
        )

    def draw(self, folder: Workdir, problem: SyntheticTask, outcome: SuccessResults, settings: Settings) -> None:
        """The share answered rightly against the length: every seed, and their mean."""
        try:
            title = f'{problem.name}, length generalization: {settings.model.title}'
            figure, (axis,) = plots.new_figure(1, title, 8)
        except ImportError:
            print('\n' + plots.NO_MATPLOTLIB)
            return
        lengths, right = curves(outcome.seeds)
        for i, curve in enumerate(right):
            axis.plot(lengths, curve, color=plots.curve_color(i / max(len(right) - 1, 1)), lw=0.8, alpha=0.7)
        axis.plot(lengths, right.mean(0), color='black', label='mean over seeds')
        axis.axvline(trained(problem), color=plots.GREY, ls=':', label='longest training length')
        axis.set(xlabel='sequence length', ylabel='fraction of correct answers, each seed', ylim=(-0.02, 1.02))
        plots.add_legend(axis)
        result_files.write_figure(folder, figure)


def trained(problem: SyntheticTask) -> int:
    """The longest length that is trained on."""
    return jax.tree.leaves(synthetic.input_shapes(problem))[0].shape[1]


def lengths_of(problem: SyntheticTask, settings: Settings) -> list[int]:
    """The lengths that are tested, ascending: evenly spaced, with the longest that is trained on and the next."""
    spaced = np.linspace(1, settings.options['up_to'], settings.options['points']).round().astype(int)
    return sorted({*spaced.tolist(), trained(problem), trained(problem) + 1})


def padded(lengths: Sequence[int]) -> dict[int, list[int]]:
    """Lengths by what they are padded to, powers of 2: few shapes, and at most as much padding as sequence.

    >>> padded([1, 16, 17, 40])
    {16: [1, 16], 32: [17], 64: [40]}
    """
    found: dict[int, list[int]] = {}
    for length in lengths:
        found.setdefault(max(16, 1 << (length - 1).bit_length()), []).append(length)
    return found


def curves(seeds: Sequence[SeedResult], *places: str) -> tuple[np.ndarray, np.ndarray]:
    """Lengths [L] of which there are sequences, and the share that each seed answers rightly, [R, L].

    `places` are WITHIN what was trained on and BEYOND it; both by default.
    """
    tested = {
        int(name.partition('/')[2]): name for name in seeds[0].test if name.startswith(places or (WITHIN, BEYOND))
    }
    lengths = sorted(length for length, name in tested.items() if not np.isnan(seeds[0].test[name]))
    return np.array(lengths), np.array([[1 - seed.test[tested[length]] for length in lengths] for seed in seeds])


def count_solved(right: np.ndarray) -> int:
    """Seeds that generalise, by what they answer rightly [R, L]."""
    return int((right.min(1) >= SOLVED).sum())


COMMAND = task_registry.task_command('lengths', __doc__, default='parity', wrap=Lengths)
FLAGS, run, main = COMMAND.table_for([]).flags, COMMAND.run, COMMAND.main
