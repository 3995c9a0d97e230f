"""The experiment on a synthetic task: trains seeds until they succeed, and tests them on sequences they never saw.

    STUDY = TaskExperiment(adding.adding)           # in experiments/adding.py, beside the two lines that run it
    adding.run(length=50, cell='gru', num_seeds=3)   # from Python

The arguments of the function that makes the task are flags of the experiment, by their names, types and defaults, and
its docstring's lines about them are their help.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from seqjax import training, types
from seqjax.cli import default_workdir as cli_default_workdir
from seqjax.cli import flag_tables, task_flags, task_report, task_setup
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import FlagTable
from seqjax.cli.settings import Settings
from seqjax.errors import UserError
from seqjax.reporting import plots, text_tables
from seqjax.runs import directory, memory, result_files
from seqjax.runs.directory import Workdir
from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SyntheticTask
from seqjax.training import programs, replicas, run_summary, seeds, success_results
from seqjax.training.seeds import TestFn
from seqjax.training.success_results import SuccessResults
from seqjax.types import Batch, Task

STEPS = 'steps'
FILES = (directory.SUMMARY, success_results.TABLE, directory.CURVE)
EVERY = 125
SHOWN = 20  # seeds of the table before the rest is cut


class TaskExperiment:
    """The experiment on one synthetic task.

    Args:
      make: returns the task; its arguments are flags.
      name: of the experiment, and of its folder in runs/; that of `make` by default.
      defaults: see `seqjax.tasks.synthetic.task_defaults`, whose values these replace.
    """

    STEPS = STEPS

    def __init__(self, make: Callable[..., SyntheticTask], *, name: str | None = None, **defaults: Any):
        own, values = task_flags.options_of(make)
        defaults = getattr(make, 'defaults', {}) | defaults  # see `seqjax.tasks.synthetic.task_defaults`
        self.make, self.name, self.own = make, name or make.__name__, tuple(own)
        self.eval_every = defaults.pop('eval_every', EVERY)
        self.FLAGS = own | task_flags.FLAGS
        self.defaults = values | task_flags.DEFAULTS | defaults

    def problem(self, options: Mapping[str, Any]) -> SyntheticTask:
        """The task that the flags ask for; raises UserError where it cannot be."""
        try:
            return self.make(**{name: options[name] for name in self.own})
        except ValueError as error:
            raise UserError(f'{task_setup.named(options, self.own)}: {error}') from error

    def make_model(self, flags: Mapping[str, Any]) -> nn.Module:
        problem = self.problem(flags)
        return task_setup.make_model(problem.spec, Settings.of(flags).model, synthetic.input_shapes(problem))

    def make_task(self, flags: Mapping[str, Any]) -> Task:
        return task_setup.task_of(self.problem(flags), Settings.of(flags))

    def make_optimiser(self, flags: Mapping[str, Any]) -> optax.GradientTransformation:
        return task_setup.make_optimizer(Settings.of(flags).train)

    def sizes(self, **flags: Any) -> tuple[int, dict[str, Any]]:
        """About how many float32 numbers a run holds at least, and the flags that decide it.

        Whole numbers of any size, before anything is compiled; `seqjax.runs.memory` has more of a program that is
        traced.
        """
        names, settings = (*self.own, 'hidden', 'layers', 'batch_size', 'eval_every', 'num_seeds'), Settings.of(flags)
        problem, model, train = self.problem(flags), settings.model, settings.train
        hidden, rows = model.hidden, train.batch_size
        program, batch = self._drawn(problem, flags)
        values, answers = jax.tree.leaves(batch.inputs)[0], math.prod(batch.mask.shape[1:]) * problem.spec.outputs
        steps, features = values.shape[1], values.shape[2] if values.ndim > 2 else hidden
        tokens = problem.spec.outputs + (problem.spec.vocabulary or 0)
        wide, side_by_side = model.layers * (1 + model.bidirectional), task_setup.gates(model.cell)
        weights = wide * side_by_side * hidden * (hidden + features) + hidden * tokens
        kept = wide * (side_by_side + 2) * steps * rows * hidden + rows * (steps * features + 2 * answers)
        width = replicas.group_width(train.num_seeds)
        # Larger replicas take turns, see `seqjax.training.programs.MAX_VMAP_SIZE`.
        at_once = width if rows * hidden * max(side_by_side * hidden, tokens) <= programs.MAX_VMAP_SIZE else 1
        metrics = 4 * width * (train.eval_every or 1)
        numbers = 6 * width * weights + at_once * kept + metrics + memory.peak_bytes(program) // 4
        # What is kept of a seed on the host.
        numbers += 3 * task_setup.HELD_OUT * answers + 150 * train.num_seeds
        return numbers, {name: flags[name] for name in names}

    def _drawn(self, problem: SyntheticTask, settings: Mapping[str, Any]) -> tuple[Any, Batch]:
        """The program that draws the unseen sequences, and their shapes; nothing is drawn."""
        try:
            draw = jax.make_jaxpr(lambda: problem.sample(jax.random.key(0), task_setup.HELD_OUT), return_shape=True)
            program, batch = draw()
        except (ValueError, TypeError, OverflowError) as error:
            flags = f'{task_setup.named(settings, self.own)}: ' if self.own else ''
            raise UserError(f'{flags}{problem.name} cannot be drawn: {error}') from error
        if not isinstance(batch, Batch):
            raise UserError(f'{self.name}: a sample must be a Batch of seqjax.types, and is {type(batch).__name__}')
        return program, batch

    def check(self, values: Mapping[str, Any]) -> Settings:
        """Plain values -> all settings; raises UserError where one is refused or two do not go together."""
        flag_tables.check_known(values, self.FLAGS)
        settings = Settings.of(flag_tables.check(self.FLAGS, {**self.defaults, **values}, self.defaults))
        train = settings.train
        flag_tables.check_seeds(train.seed, train.num_seeds)
        eval_every = train.eval_every or min(self.eval_every, train.steps)
        settings = settings.replace(eval_every=eval_every)
        flag_tables.check_every(eval_every, STEPS, train.steps)
        if train.steps % eval_every:
            fewer = train.steps // eval_every * eval_every
            raise UserError(f'--steps={train.steps} must be a multiple of --eval_every={eval_every}, such as {fewer}')
        flag_tables.check_memory(*self.sizes(**settings.flags))
        problem = self.problem(settings.options)
        (
            task_setup.make_model(problem.spec, settings.model, synthetic.input_shapes(problem)),
            task_setup.make_optimizer(settings.train),
        )
        return settings

    def run(self, **values: Any) -> SuccessResults:
        """Trains every seed until it has reached the goal, and tests it on sequences that it never saw.

        Every argument is a flag of the command line. Without `workdir` nothing is kept.

        Raises:
          UserError (a ValueError): an argument is refused, the folder holds another run, or no loss is finite any more.
        """
        settings = self.check(values)
        problem = self.problem(settings.options)
        with directory.open_workdir(settings.flags, self.name, names=FILES) as (folder, summary):
            if summary is not None:
                print(f'{folder.path} holds this run, finished: shown again (--overwrite trains anew)\n')
            outcome = self.outcome(problem, settings, folder, summary)
            self.show(outcome, settings)
            if settings.run.plot:
                self.draw(folder, problem, outcome, settings)
            if folder.path is not None:
                print('\n' + folder.listing())
            print('\n' + self.conclusion(problem, outcome, settings))
            return outcome

    def outcome(
        self, problem: SyntheticTask, settings: Settings, folder: Workdir, summary: Mapping[str, Any] | None
    ) -> SuccessResults:
        """Trains and tests every seed, and leaves everything but the picture in the folder; or reads what it holds."""
        sequences = settings.train.eval_every * settings.train.batch_size
        if summary is not None:
            return success_results.read_results(folder, summary, sequences)
        start, model = (
            time.perf_counter(),
            task_setup.make_model(problem.spec, settings.model, synthetic.input_shapes(problem)),
        )
        task = task_setup.task_of(problem, settings)
        layers = text_tables.model_layers(model, types.batch_shapes(task).inputs)
        summary = run_summary.new_summary(self.name, settings.flags, layers)
        print(text_tables.format_table(layers) + '\n')
        folder.write_summary(summary)
        with flag_tables.matmul_precision(settings.train.matmul_precision):
            outcome = self.train(problem, model, task, settings, folder, summary['device'])
        print()
        seconds = None if outcome.resumed else time.perf_counter() - start
        success_results.write_evals(folder, outcome, sequences)
        ended = {
            'seconds': seconds,
            'metrics': outcome.metrics,
            'seeds': [success_results.to_json(seed) for seed in outcome.seeds],
        }
        folder.write_summary(summary | {'finished': True} | ended)
        return outcome

    def train(
        self,
        problem: SyntheticTask,
        model: nn.Module,
        task: Task,
        settings: Settings,
        folder: Workdir,
        device: str,
    ) -> SuccessResults:
        """Trains and tests every seed."""
        config = settings.train
        run = task_setup.compile_seeds(model, task, config, settings.run, folder, config.steps)
        test, held_out = self.test(problem, model, run.task, settings)
        print(f'at most {config.steps:,} steps of {config.batch_size} sequences, on {device}')
        return training.train_until_solved(
            run,
            np.arange(config.seed, config.seed + config.num_seeds),
            criterion=task_report.goal_of(problem, settings),
            eval_every=config.eval_every,
            test=test,
            held_out=held_out,
            batch_size=config.batch_size,
            train_all_steps=config.train_all_steps,
        )

    def test(self, problem: SyntheticTask, model: nn.Module, task: Task, settings: Settings) -> tuple[TestFn, Any]:
        """Returns the test of a seed, and the held-out data that it is called with."""
        return seeds.batch_test(model, task, task_setup.TESTED), task_setup.unseen(problem, settings.train.split)

    def show(self, outcome: SuccessResults, settings: Settings) -> None:
        """A row for each seed."""
        names = list(outcome.seeds[0].test)
        print(' seed  sequences to the goal' + ''.join(f'  {name:>12}' for name in names))
        for seed in outcome.seeds[:SHOWN]:
            reached = '-' if seed.sequences is None else f'{seed.sequences:,}'
            print(f'{seed.seed:>5}  {reached:>21}' + ''.join(f'  {seed.test[name]:>12.4g}' for name in names))
        if len(outcome.seeds) > SHOWN:
            print(f'  ... {len(outcome.seeds) - SHOWN:,} more')

    def conclusion(self, problem: SyntheticTask, outcome: SuccessResults, settings: Settings) -> str:
        """The last line: in words, what was reached."""
        reached = [seed for seed in outcome.seeds if seed.sequences is not None]
        wrong = [seed.test[synthetic.WRONG] for seed in (reached or outcome.seeds)]
        held_out = 'examples for' if problem.examples is not None else f'{task_setup.HELD_OUT:,} fresh sequences for'
        return (
            f'{problem.name}, {settings.model.title}: {task_report.to_the_goal(problem, outcome, settings)}; '
            f'then {np.mean(wrong):.2%} of the {held_out} {settings.train.split} are answered wrongly.'
        )

    def draw(self, folder: Workdir, problem: SyntheticTask, outcome: SuccessResults, settings: Settings) -> None:
        """What each seed makes of it, and the share of seeds at the goal."""
        try:
            figure, axes = plots.new_figure(2, f'{problem.name}: {settings.model.title}')
        except ImportError:
            print('\n' + plots.NO_MATPLOTLIB)
            return
        task_report.draw_seeds(axes[0], problem, outcome, settings)
        task_report.draw_shares(axes[1], outcome, settings)
        result_files.write_figure(folder, figure)

    def default_workdir(self, values: dict[str, Any], *names: str) -> dict[str, Any]:
        """Returns the flags with the default --workdir below runs/NAMES."""
        eval_every = values['eval_every'] or min(self.eval_every, values['steps'])  # as `check` has it
        named = ('task', 'cell')
        found = cli_default_workdir.default_workdir(
            values | {'eval_every': eval_every},
            self.defaults | {'eval_every': self.eval_every},
            *names,
            values['cell'],
            named=named,
        )
        return values | {'workdir': found['workdir']}

    def command(self, doc: str) -> Command:
        """The command of the module whose docstring this is."""
        table = FlagTable(self.FLAGS, self.defaults)
        return Command(self.name, doc, self.run, table, lambda values: self.default_workdir(values, self.name))
