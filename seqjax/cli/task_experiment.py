"""Experiments on synthetic tasks: train seeds until they succeed, and test them on held-out sequences.

    EXPERIMENT = TaskExperiment(adding.adding)      # in experiments/adding.py
    adding.run(length=50, cell='gru', num_seeds=3)   # from Python

The arguments of the function that makes the task become flags, with their names, types, defaults and docstrings.
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
from seqjax.cli import figures, flag_tables, task_flags, task_report, task_setup
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import FlagTable
from seqjax.cli.settings import Settings
from seqjax.errors import UserError
from seqjax.reporting import text_tables
from seqjax.runs import directory, memory
from seqjax.runs.directory import Workdir
from seqjax.tasks import synthetic
from seqjax.tasks.synthetic import SyntheticTask
from seqjax.training import programs, replicas, run_summary, seeds, success_results
from seqjax.training.seeds import TestFn
from seqjax.training.success_results import SuccessResults
from seqjax.types import Batch, Task

STEPS = 'steps'
FILES = (directory.SUMMARY, success_results.TABLE, directory.CURVE)
EVAL_EVERY = 125  # default training steps between evaluations
MAX_ROWS = 20  # maximal number of seeds in the printed table


class TaskExperiment:
    """Experiment on one synthetic task.

    Args:
      make: function that returns the task; its arguments become flags.
      name: name of the experiment and of its folder in runs/; by default the name of `make`.
      **defaults: default values of flags, instead of the values of `seqjax.tasks.synthetic.task_defaults` and of the
        configurations.
    """

    STEPS = STEPS

    def __init__(self, make: Callable[..., SyntheticTask], *, name: str | None = None, **defaults: Any):
        table, values = task_flags.options_of(make)
        defaults = getattr(make, 'defaults', {}) | defaults  # see `seqjax.tasks.synthetic.task_defaults`
        self.make, self.name, self.own_flags = make, name or make.__name__, tuple(table)
        self.eval_every = defaults.pop('eval_every', EVAL_EVERY)
        self.FLAGS = table | task_flags.FLAGS
        self.defaults = values | task_flags.DEFAULTS | defaults

    def synthetic_task(self, options: Mapping[str, Any]) -> SyntheticTask:
        """Returns the synthetic task for the task's own flags in `options`; raises UserError if they are invalid."""
        try:
            return self.make(**{name: options[name] for name in self.own_flags})
        except ValueError as error:
            raise UserError(f'{task_setup.format_flags(options, self.own_flags)}: {error}') from error

    def make_model(self, flags: Mapping[str, Any]) -> nn.Module:
        """Returns the model for the flags; raises UserError if they are invalid."""
        task = self.synthetic_task(flags)
        return task_setup.make_model(task.spec, Settings.of(flags).model, synthetic.input_shapes(task))

    def make_task(self, flags: Mapping[str, Any]) -> Task:
        """Returns the training task for the flags."""
        return task_setup.make_training_task(self.synthetic_task(flags), Settings.of(flags))

    def make_optimizer(self, flags: Mapping[str, Any]) -> optax.GradientTransformation:
        """Returns the optimizer for the flags; raises UserError if they are invalid."""
        return task_setup.make_optimizer(Settings.of(flags).train)

    def sizes(self, **flags: Any) -> tuple[int, dict[str, Any]]:
        """Returns a lower bound of a run's memory in float32 numbers, and {flag: value} of the flags that decide it.

        It is computed before anything is compiled; `seqjax.runs.memory` estimates the memory of a traced program.
        """
        names, settings = (
            (*self.own_flags, 'hidden', 'layers', 'batch_size', 'eval_every', 'num_seeds'),
            Settings.of(flags),
        )
        task, model, train = self.synthetic_task(flags), settings.model, settings.train
        hidden, rows = model.hidden, train.batch_size
        sampler, batch = self._trace_sampler(task, flags)
        values, outputs = jax.tree.leaves(batch.inputs)[0], math.prod(batch.mask.shape[1:]) * task.spec.outputs
        steps, features = values.shape[1], values.shape[2] if values.ndim > 2 else hidden
        tokens = task.spec.outputs + (task.spec.vocabulary or 0)
        num_layers, gates = model.layers * (1 + model.bidirectional), task_setup.gates(model.cell)
        weights = num_layers * gates * hidden * (hidden + features) + hidden * tokens
        residuals = num_layers * (gates + 2) * steps * rows * hidden + rows * (steps * features + 2 * outputs)
        width = replicas.group_width(train.num_seeds)
        # Larger replicas run one after the other, see `seqjax.training.programs.MAX_VMAP_SIZE`.
        parallel_replicas = width if rows * hidden * max(gates * hidden, tokens) <= programs.MAX_VMAP_SIZE else 1
        metrics = 4 * width * (train.eval_every or 1)
        numbers = 6 * width * weights + parallel_replicas * residuals + metrics + memory.peak_bytes(sampler) // 4
        # Results of a seed on the host.
        numbers += 3 * task_setup.NUM_EVAL_SEQUENCES * outputs + 150 * train.num_seeds
        return numbers, {name: flags[name] for name in names}

    def _trace_sampler(self, task: SyntheticTask, settings: Mapping[str, Any]) -> tuple[Any, Batch]:
        """Returns the jaxpr that samples the held-out sequences, and a Batch of their shapes.

        Raises:
          UserError: the sampler of the task fails, or does not return a Batch.
        """
        try:
            trace = jax.make_jaxpr(
                lambda: task.sample(jax.random.key(0), task_setup.NUM_EVAL_SEQUENCES), return_shape=True
            )
            sampler, batch = trace()
        except (ValueError, TypeError, OverflowError) as error:
            flags = f'{task_setup.format_flags(settings, self.own_flags)}: ' if self.own_flags else ''
            raise UserError(f'{flags}{task.name} cannot be sampled: {error}') from error
        if not isinstance(batch, Batch):
            raise UserError(f'{self.name}: `sample` must return a Batch of seqjax.types, not {type(batch).__name__}')
        return sampler, batch

    def check(self, values: Mapping[str, Any]) -> Settings:
        """Returns the settings for `values` and defaults; raises UserError if they are invalid or exceed the memory."""
        flag_tables.check_known(values, self.FLAGS)
        settings = Settings.of(flag_tables.check(self.FLAGS, {**self.defaults, **values}, self.defaults))
        train = settings.train
        flag_tables.check_seeds(train.seed, train.num_seeds)
        eval_every = train.eval_every or min(self.eval_every, train.steps)
        settings = settings.replace(eval_every=eval_every)
        flag_tables.check_eval_every(eval_every, STEPS, train.steps)
        if train.steps % eval_every:
            fewer = train.steps // eval_every * eval_every
            raise UserError(
                f'--steps={train.steps} must be a multiple of --eval_every={eval_every}; use --steps={fewer}'
            )
        flag_tables.check_memory(*self.sizes(**settings.flags))
        self.make_model(settings.flags)
        task_setup.make_optimizer(settings.train)
        return settings

    def run(self, **values: Any) -> SuccessResults:
        """Trains every seed until it succeeds, at most --steps steps, and tests it on held-out sequences.

        Every argument is a flag of the command line. Without `workdir`, no files are written. The results of a finished
        run are read and printed.

        Raises:
          UserError (a ValueError): an argument is invalid, the folder contains another run, or the loss of every seed
            of a replica group has diverged.
        """
        settings = self.check(values)
        task = self.synthetic_task(settings.options)
        with directory.open_workdir(settings.flags, self.name, names=FILES) as (folder, summary):
            if summary is not None:
                print(f'{folder.path} contains this run, finished; showing its results (use --overwrite to retrain)\n')
            outcome = self.outcome(task, settings, folder, summary)
            self.show(outcome, settings)
            if settings.run.plot:
                self.plot(folder, task, outcome, settings)
            if folder.path is not None:
                print('\n' + folder.listing())
            print('\n' + self.conclusion(task, outcome, settings))
            return outcome

    def outcome(
        self, task: SyntheticTask, settings: Settings, folder: Workdir, summary: Mapping[str, Any] | None
    ) -> SuccessResults:
        """Trains and tests every seed and writes the results; reads the results instead if `summary` is not None."""
        sequences = settings.train.eval_every * settings.train.batch_size
        if summary is not None:
            return success_results.read_results(folder, summary, sequences)
        start, model = time.perf_counter(), self.make_model(settings.flags)
        training_task = task_setup.make_training_task(task, settings)
        layers = text_tables.model_layers(model, types.batch_shapes(training_task).inputs)
        summary = run_summary.new_summary(self.name, settings.flags, layers)
        print(text_tables.format_table(layers) + '\n')
        folder.write_summary(summary)
        with flag_tables.matmul_precision(settings.train.matmul_precision):
            outcome = self.train(task, model, training_task, settings, folder, summary['device'])
        print()
        seconds = None if outcome.resumed else time.perf_counter() - start
        success_results.write_evals(folder, outcome, sequences)
        end = {
            'seconds': seconds,
            'metrics': outcome.metrics,
            'seeds': [success_results.to_json(seed) for seed in outcome.seeds],
        }
        folder.write_summary(run_summary.finished_summary(summary, end))
        return outcome

    def train(
        self,
        task: SyntheticTask,
        model: nn.Module,
        training_task: Task,
        settings: Settings,
        folder: Workdir,
        device: str,
    ) -> SuccessResults:
        """Trains and tests every seed, and returns the results; `device`, such as cpu, is only printed."""
        config = settings.train
        run = task_setup.compile_seeds(model, training_task, config, settings.run, folder, config.steps)
        test, test_data = self.test(task, model, run.task, settings)
        print(f'At most {config.steps:,} training steps, batch size {config.batch_size}, on {device}')
        return training.train_until_solved(
            run,
            np.arange(config.seed, config.seed + config.num_seeds),
            criterion=task_report.success_criterion(task, settings),
            eval_every=config.eval_every,
            test=test,
            held_out=test_data,
            batch_size=config.batch_size,
            train_all_steps=config.train_all_steps,
        )

    def test(
        self, task: SyntheticTask, model: nn.Module, training_task: Task, settings: Settings
    ) -> tuple[TestFn, Any]:
        """Returns the test function, (state of one seed, data) -> metrics, and its data, the held-out sequences."""
        test_data = task_setup.held_out_batch(task, settings.train.split)
        return seeds.batch_test(model, training_task, task_setup.TEST_BATCH_SIZE), test_data

    def show(self, outcome: SuccessResults, settings: Settings) -> None:
        """Prints a row for each of the first MAX_ROWS seeds: training sequences until success, and test metrics."""
        names = list(outcome.seeds[0].test)
        print(' seed   sequences to success' + ''.join(f'  {name:>12}' for name in names))
        for seed in outcome.seeds[:MAX_ROWS]:
            sequences = '-' if seed.sequences is None else f'{seed.sequences:,}'
            print(f'{seed.seed:>5}  {sequences:>21}' + ''.join(f'  {seed.test[name]:>12.4g}' for name in names))
        if len(outcome.seeds) > MAX_ROWS:
            print(f'  ... {len(outcome.seeds) - MAX_ROWS:,} more')

    def conclusion(self, task: SyntheticTask, outcome: SuccessResults, settings: Settings) -> str:
        """Returns the last line of the output: the number of successful seeds and their mean error rate.

        The error rate is on held-out data, which --split selects: validation or test. Without a successful seed, the
        mean is over all seeds. Successful seeds that do not meet the success criterion on held-out data are counted.
        """
        summary = task_report.success_summary(task, outcome, settings)
        error_rate = task_report.error_rate_text(task, outcome, settings)
        text = f'{task.name}, {settings.model.title}: {summary}. {error_rate}'
        criterion = task_report.success_criterion(task, settings)
        if success_results.disagreements(outcome.seeds, criterion):
            phrase = ' successful seeds do not meet the criterion there:'
            text += f' {task_report.disagreement_text(outcome.seeds, criterion, phrase)}.'
        return text

    def plot(self, folder: Workdir, task: SyntheticTask, outcome: SuccessResults, settings: Settings) -> None:
        """Writes curve.png: the metric of the success criterion for each seed, and the fraction of successful seeds."""

        def draw(axes: Any) -> None:
            task_report.draw_metric(axes[0], task, outcome, settings)
            task_report.draw_success(axes[1], outcome, settings)

        figures.write_figure(folder, 2, f'{task.name}: {settings.model.title}', draw)

    def default_workdir(self, values: dict[str, Any], *names: str) -> dict[str, Any]:
        """Returns the flags with the default --workdir, runs/NAMES/CELL or runs/NAMES/CELL-HASH, unless it is set."""
        eval_every = values['eval_every'] or min(self.eval_every, values['steps'])  # as in `check`
        completed = cli_default_workdir.default_workdir(
            values | {'eval_every': eval_every},
            self.defaults | {'eval_every': self.eval_every},
            *names,
            values['cell'],
            excluded=('task', 'cell'),
        )
        return values | {'workdir': completed['workdir']}

    def command(self, doc: str) -> Command:
        """Returns the command of this experiment; `doc` is the docstring of the command's module."""
        table = FlagTable(self.FLAGS, self.defaults)
        return Command(self.name, doc, self.run, table, lambda values: self.default_workdir(values, self.name))
