"""The experiment that every problem of `seqjax/tasks/` has: its flags, its run, its table and its picture.

    STUDY = study.Study(adding)                     # in experiments/adding.py, beside the two lines that run it
    adding.run(length=50, cell='gru', replicas=3)   # from Python

The arguments of the function that makes the problem are flags of the experiment, by their names, types and defaults,
and what its docstring says of them is their help.
"""

from __future__ import annotations

import inspect
import math
import re
import time
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from absl import flags

from experiments import launch
from experiments.launch import Choice, Command, Flag, Number, Switch, Table, Whole
from experiments.run_directory import default_workdir
from experiments.settings import Settings
from seqjax import files, memory, optim, report, training, trials
from seqjax.build import build_model
from seqjax.config import CONFIGS, ModelConfig, RunConfig, TrainConfig, changed
from seqjax.data import epoch_rows
from seqjax.files import UserError
from seqjax.problem import WRONG, SuccessCriterion, SyntheticTask, input_shapes
from seqjax.task import Arrays, Batch, Task, batch_shapes
from seqjax.training import replicas as replica_groups
from seqjax.training.programs import MAX_VMAP_SIZE
from seqjax.training.seeds import Test, on_batch
from seqjax.training.summary import new_summary
from seqjax.trials import Outcome
from seqjax.types import ModelSpec

STEPS = 'steps'
FILES = (files.SUMMARY, trials.TABLE, files.CURVE)
# Hochreiter and Schmidhuber (1997) test on as many sequences, and look back at 2,000.
HELD_OUT = 2560
SPLITS = {'validation': 2**32 - 1, 'test': 2**32 - 2}  # seeds of their draws, which no run has
TESTED = 256  # sequences at a time
GATES = {'lstm': 4, 'gru': 3}  # of the recurrent kernel; other cells have at least one
EVERY = 125
SHOWN = 20  # seeds of the table before the rest is cut

# Fields of the configurations that are of no use to a synthetic task.
OTHERS = ('input_dropout', 'output_dropout', 'recurrent_dropout', 'drop_connect', 'patience', 'refit', 'weight_decay')
OTHERS += ('chunk',)
FLAGS = launch.flags_of(*CONFIGS, without=OTHERS)
DEFAULTS = launch.defaults_of(ModelConfig(), TrainConfig(), RunConfig(), without=OTHERS)
# Names of flags that every command has, and of absl's own.
RESERVED = {'task', *launch.flags_of(*CONFIGS), *launch.TOGETHER, *launch.KEPT}
RESERVED |= {'flagfile', 'undefok', 'help', 'helpfull', 'helpshort', 'h'}


# --- a problem's own flags -------------------------------------------------------------------------


def options_of(make: Callable[..., SyntheticTask]) -> tuple[dict[str, Flag], dict[str, Any]]:
    """The flags of a problem and their defaults.

    Raises:
      UserError: an argument has no default, a default or a type that no flag has, or the name of a flag of the command.
    """
    table, defaults, types = {}, {}, typing.get_type_hints(make)
    for name, parameter in inspect.signature(make).parameters.items():
        who = f'{getattr(make, "__qualname__", make)}({name}=...)'
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(f'{who} cannot be passed by its name: its arguments are flags')
        if parameter.default is parameter.empty:
            raise UserError(f'{who} needs a default: its arguments are flags')
        if name in RESERVED:
            raise UserError(f'{who} is the name of a flag of every task: its arguments are flags')
        parser = _parser(types.get(name))
        if parser is None:
            raise UserError(
                f'{who} of type {types.get(name, "none")} is no flag: its arguments are int, float, bool or Literal of '
                'texts'
            )
        try:
            default = parser.parse(parameter.default)
        except ValueError as error:
            raise UserError(f'{who}: its default {parameter.default!r} {error}') from error
        table[name], defaults[name] = Flag(parser, _help(make, name)), default
    return table, defaults


def _parser(kind: Any) -> flags.ArgumentParser | None:
    words = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    if words:
        return Choice(*words) if all(isinstance(word, str) for word in words) else None
    return {int: Whole(0), float: Number(), bool: Switch()}.get(kind) if isinstance(kind, type) else None


def _help(make: Callable[..., SyntheticTask], name: str) -> str:
    """What the docstring says of an argument."""
    found = re.search(rf'^( +){name}: (.+(?:\n\1 +.+)*)', inspect.getdoc(make) or '', re.MULTILINE)
    return ' '.join(found[2].split()).rstrip('.') if found else 'of the task'


# --- what the flags ask for ------------------------------------------------------------------------


def named(settings: Mapping[str, Any], names: Iterable[str]) -> str:
    """--length=5 --rule=add, for a sentence."""
    return ' '.join(f'--{name}={settings[name]}' for name in names)


def gates(cell: str) -> int:
    """How many gates lie side by side in the recurrent kernel of a cell, at least."""
    return GATES.get(cell.partition('(')[0], 1)


def make_model(spec: ModelSpec, config: ModelConfig, inputs: Arrays | None = None) -> nn.Module:
    """The model that the flags ask for; raises UserError where it cannot be."""
    try:
        return build_model(spec, config, inputs)
    except ValueError as error:
        sentence = launch.as_flags(error, launch.flags_of(ModelConfig))
        if not sentence.startswith('--'):
            names = dict.fromkeys(['cell', *changed(config)])
            together = ' do not go together' if len(names) > 1 else ''
            sentence = f'{named(vars(config), names)}{together}: {sentence}'
        raise UserError(sentence) from error


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """The optimizer that the flags ask for; raises UserError where it cannot be."""
    try:
        return optim.make_optimizer(config)
    except ValueError as error:
        raise UserError(f'{named(vars(config), ("schedule", "decay_steps"))}: {error}') from error


def task_of(problem: SyntheticTask, settings: Settings) -> Task:
    """Returns the task: fresh sequences at every step, or the problem's examples in an order of their own."""
    batch_size = settings.train.batch_size
    if problem.examples is None:
        return Task(problem.loss_fn, lambda data, key, step: problem.sample(key, batch_size))
    examples = problem.examples().train

    def batch(data: tuple[jax.Array, Batch], key: jax.Array, step: jax.Array) -> Batch:
        order, examples = data
        rows, real = epoch_rows(order, step, len(examples.mask), batch_size)
        part = jax.tree.map(lambda x: x[rows], examples)
        return part._replace(mask=part.mask & real.reshape(-1, *[1] * (part.mask.ndim - 1)))

    return Task(problem.loss_fn, batch, (jax.random.key(settings.train.seed), examples))


def unseen(problem: SyntheticTask, split: str) -> Batch:
    """The sequences of a split [N, ...], which no training step draws."""
    if problem.examples is not None:
        return getattr(problem.examples(), split)
    return jax.jit(lambda: problem.sample(jax.random.key(SPLITS[split]), HELD_OUT))()


# --- the study -------------------------------------------------------------------------------------


class Study:
    """The experiment of one problem.

    Args:
      make: returns the problem; its arguments are flags.
      name: of the experiment, and of its folder in runs/; that of `make` by default.
      every: the steps between two looks, unless a flag says otherwise.
      defaults: of flags that every study has, where those of this one differ.
    """

    STEPS = STEPS

    def __init__(
        self, make: Callable[..., SyntheticTask], *, name: str | None = None, every: int = EVERY, **defaults: Any
    ):
        own, values = options_of(make)
        self.make, self.name, self.own, self.every = make, name or make.__name__, tuple(own), every
        self.FLAGS = own | FLAGS
        self.defaults = values | DEFAULTS | defaults

    def problem(self, options: Mapping[str, Any]) -> SyntheticTask:
        """The task that the flags ask for; raises UserError where it cannot be."""
        try:
            return self.make(**{name: options[name] for name in self.own})
        except ValueError as error:
            raise UserError(f'{named(options, self.own)}: {error}') from error

    def make_model(self, flags: Mapping[str, Any]) -> nn.Module:
        problem = self.problem(flags)
        return make_model(problem.spec, Settings.of(flags).model, input_shapes(problem))

    def make_task(self, flags: Mapping[str, Any]) -> Task:
        return task_of(self.problem(flags), Settings.of(flags))

    def make_optimiser(self, flags: Mapping[str, Any]) -> optax.GradientTransformation:
        return make_optimizer(Settings.of(flags).train)

    def sizes(self, **flags: Any) -> tuple[int, dict[str, Any]]:
        """About how many float32 numbers a run holds at least, and the flags that decide it.

        Whole numbers of any size, before anything is compiled; `seqjax.memory` has more of a program that is traced.
        """
        names, settings = (*self.own, 'hidden', 'layers', 'batch_size', 'every', 'replicas'), Settings.of(flags)
        problem, model, train = self.problem(flags), settings.model, settings.train
        hidden, rows = model.hidden, train.batch_size
        program, batch = self._drawn(problem, flags)
        values, answers = jax.tree.leaves(batch.inputs)[0], math.prod(batch.mask.shape[1:]) * problem.spec.outputs
        steps, features = values.shape[1], values.shape[2] if values.ndim > 2 else hidden
        tokens = problem.spec.outputs + (problem.spec.vocabulary or 0)
        wide, side_by_side = model.layers * (1 + model.bidirectional), gates(model.cell)
        weights = wide * side_by_side * hidden * (hidden + features) + hidden * tokens
        kept = wide * (side_by_side + 2) * steps * rows * hidden + rows * (steps * features + 2 * answers)
        width = replica_groups.group_width(train.replicas)
        # Larger replicas take turns, see `seqjax.training.programs.MAX_VMAP_SIZE`.
        at_once = width if rows * hidden * max(side_by_side * hidden, tokens) <= MAX_VMAP_SIZE else 1
        metrics = 4 * width * (train.every or 1)
        numbers = 6 * width * weights + at_once * kept + metrics + memory.peak_bytes(program) // 4
        # What is kept of a seed on the host.
        numbers += 3 * HELD_OUT * answers + 150 * train.replicas
        return numbers, {name: flags[name] for name in names}

    def _drawn(self, problem: SyntheticTask, settings: Mapping[str, Any]) -> tuple[Any, Batch]:
        """The program that draws the unseen sequences, and their shapes; nothing is drawn."""
        try:
            draw = jax.make_jaxpr(lambda: problem.sample(jax.random.key(0), HELD_OUT), return_shape=True)
            program, batch = draw()
        except (ValueError, TypeError, OverflowError) as error:
            flags = f'{named(settings, self.own)}: ' if self.own else ''
            raise UserError(f'{flags}{problem.name} cannot be drawn: {error}') from error
        if not isinstance(batch, Batch):
            raise UserError(f'{self.name}: a sample must be a Batch of seqjax.task, and is {type(batch).__name__}')
        return program, batch

    def check(self, values: Mapping[str, Any]) -> Settings:
        """Plain values -> all settings; raises UserError where one is refused or two do not go together."""
        launch.check_known(values, self.FLAGS)
        settings = Settings.of(launch.check(self.FLAGS, {**self.defaults, **values}, self.defaults))
        train = settings.train
        launch.check_seeds(train.seed, train.replicas)
        every = train.every or min(self.every, train.steps)
        settings = settings.replace(every=every)
        launch.check_every(every, STEPS, train.steps)
        if train.steps % every:
            fewer = train.steps // every * every
            raise UserError(
                f'--steps={train.steps} --every={every}: the steps must be a multiple of --every, such as {fewer}'
            )
        launch.check_memory(*self.sizes(**settings.flags))
        problem = self.problem(settings.options)
        make_model(problem.spec, settings.model, input_shapes(problem)), make_optimizer(settings.train)
        return settings

    def run(self, **values: Any) -> Outcome:
        """Trains every seed until it has reached the goal, and tests it on sequences that it never saw.

        Every argument is a flag of the command line. Without `workdir` nothing is kept.

        Raises:
          UserError (a ValueError): an argument is refused, the folder holds another run, or no loss is finite any more.
        """
        settings = self.check(values)
        problem = self.problem(settings.options)
        with files.open_workdir(settings.flags, self.name, names=FILES) as (folder, summary):
            if summary is not None:
                print(f'{folder.path} holds this run, finished: shown again (--overwrite trains anew)\n')
            outcome = self.outcome(problem, settings, folder, summary)
            self.show(outcome, settings)
            if settings.run.picture:
                self.draw(folder, problem, outcome, settings)
            if folder.path is not None:
                print('\n' + folder.listing())
            print('\n' + self.conclusion(problem, outcome, settings))
            return outcome

    def outcome(
        self, problem: SyntheticTask, settings: Settings, folder: files.Workdir, summary: Mapping[str, Any] | None
    ) -> Outcome:
        """Trains and tests every seed, and leaves everything but the picture in the folder; or reads what it holds."""
        sequences = settings.train.every * settings.train.batch_size
        if summary is not None:
            return trials.read_outcome(folder, summary, sequences)
        start, model = time.perf_counter(), make_model(problem.spec, settings.model, input_shapes(problem))
        task = task_of(problem, settings)
        layers = report.model_layers(model, batch_shapes(task).inputs)
        summary = new_summary(self.name, settings.flags, layers)
        print(report.format_table(layers) + '\n')
        folder.write_summary(summary)
        with launch.matmul_precision(settings.train.matmul_precision):
            outcome = self.train(problem, model, task, settings, folder, summary['device'])
        print()
        seconds = None if outcome.resumed else time.perf_counter() - start
        trials.write_looks(folder, outcome, sequences)
        ended = {
            'seconds': seconds,
            'metrics': outcome.metrics,
            'seeds': [trials.plain(seed) for seed in outcome.seeds],
        }
        folder.write_summary(summary | {'finished': True} | ended)
        return outcome

    def train(
        self,
        problem: SyntheticTask,
        model: nn.Module,
        task: Task,
        settings: Settings,
        folder: files.Workdir,
        device: str,
    ) -> Outcome:
        """Trains and tests every seed."""
        config, every = settings.train, settings.train.every
        # A checkpoint stands at an evaluation, so that what is seen since the last one needs no place in it.
        saved = settings.flags | {'checkpoint_every': -(-settings.run.checkpoint_every // every) * every}
        how = {'steps': config.steps, 'chunk': every, 'replicas': config.replicas, 'workdir': folder}
        run = training.compile_run(model, task, make_optimizer(config), None, **how, **launch.keeping(saved))
        test, held_out = self.test(problem, model, run.task, settings)
        print(f'at most {config.steps:,} steps of {config.batch_size} sequences, on {device}')
        return training.train_until_solved(
            run,
            np.arange(config.seed, config.seed + config.replicas),
            criterion=goal_of(problem, settings),
            eval_every=every,
            test=test,
            held_out=held_out,
            batch_size=config.batch_size,
            train_all_steps=config.to_the_end,
        )

    def test(self, problem: SyntheticTask, model: nn.Module, task: Task, settings: Settings) -> tuple[Test, Any]:
        """Returns the test of a seed, and the held-out data that it is called with."""
        return on_batch(model, task, TESTED), unseen(problem, settings.train.split)

    def show(self, outcome: Outcome, settings: Settings) -> None:
        """A row for each seed."""
        names = list(outcome.seeds[0].test)
        print(' seed  sequences to the goal' + ''.join(f'  {name:>12}' for name in names))
        for seed in outcome.seeds[:SHOWN]:
            reached = '-' if seed.sequences is None else f'{seed.sequences:,}'
            print(f'{seed.seed:>5}  {reached:>21}' + ''.join(f'  {seed.test[name]:>12.4g}' for name in names))
        if len(outcome.seeds) > SHOWN:
            print(f'  ... {len(outcome.seeds) - SHOWN:,} more')

    def conclusion(self, problem: SyntheticTask, outcome: Outcome, settings: Settings) -> str:
        """The last line: in words, what was reached."""
        reached = [seed for seed in outcome.seeds if seed.sequences is not None]
        wrong = [seed.test[WRONG] for seed in (reached or outcome.seeds)]
        held_out = 'examples for' if problem.examples is not None else f'{HELD_OUT:,} fresh sequences for'
        return (
            f'{problem.name}, {settings.model.title}: {to_the_goal(problem, outcome, settings)}; '
            f'then {np.mean(wrong):.2%} of the {held_out} {settings.train.split} are answered wrongly.'
        )

    def draw(self, folder: files.Workdir, problem: SyntheticTask, outcome: Outcome, settings: Settings) -> None:
        """What each seed makes of it, and the share of seeds at the goal."""
        try:
            figure, axes = report.new_figure(2, f'{problem.name}: {settings.model.title}')
        except ImportError:
            print('\n' + report.NO_PICTURE)
            return
        draw_seeds(axes[0], problem, outcome, settings)
        draw_shares(axes[1], outcome, settings)
        files.write_picture(folder, figure)

    def default_workdir(self, values: dict[str, Any], *names: str) -> dict[str, Any]:
        """Returns the flags with the default --workdir below runs/NAMES."""
        every = values['every'] or min(self.every, values['steps'])  # as `check` has it
        named = ('task', 'cell')
        found = default_workdir(
            values | {'every': every}, self.defaults | {'every': self.every}, *names, values['cell'], named=named
        )
        return values | {'workdir': found['workdir']}

    def command(self, doc: str) -> Command:
        """The command of the module whose docstring this is."""
        table = Table(self.FLAGS, self.defaults)
        return Command(self.name, doc, self.run, table, lambda values: self.default_workdir(values, self.name))


def goal_of(problem: SyntheticTask, settings: Settings) -> SuccessCriterion:
    return problem.success if settings.train.until is None else problem.success._replace(at_most=settings.train.until)


# --- what is shown ---------------------------------------------------------------------------------


def goal_words(goal: SuccessCriterion) -> str:
    if goal.metric == WRONG:
        return (
            'answer every sequence rightly'
            if goal.at_most <= 0
            else f'answer at least {1 - goal.at_most:.4g} of them rightly'
        )
    return f'bring {goal.metric} to at most {goal.at_most:.4g}'


def to_the_goal(problem: SyntheticTask, outcome: Outcome, settings: Settings) -> str:
    """How many seeds came to it, and after how many sequences."""
    needed, count = [seed.sequences for seed in outcome.seeds if seed.sequences is not None], len(outcome.seeds)
    low, high = report.share_interval(len(needed), count)
    window, most = settings.train.every * settings.train.batch_size, settings.train.steps * settings.train.batch_size
    text = (
        f'{len(needed):,} of {count:,} seeds ({len(needed) / count:.1%}; 95% interval {low:.1%} to {high:.1%}) '
        f'{goal_words(goal_of(problem, settings))} of the last {window:,} within {most:,}'
    )
    if needed:
        mean = report.format_interval(np.array(needed, float), ',.0f', ',.0f')
        text += f', after {min(needed):,} to {max(needed):,} (mean {mean})'
    return text


def draw_seeds(axis: Any, problem: SyntheticTask, outcome: Outcome, settings: Settings) -> None:
    """The metric of the goal, a line for each seed."""
    goal, window = goal_of(problem, settings), settings.train.every * settings.train.batch_size
    curves = outcome.looks[:, :, outcome.metrics.index(goal.metric)]
    sequences = window * np.arange(1, curves.shape[1] + 1)
    for i, curve in enumerate(curves):
        axis.plot(sequences, curve, color=report.shade(i / max(len(curves) - 1, 1)), lw=0.8)
    what = 'share answered wrongly' if goal.metric == WRONG else goal.metric
    axis.set(xlabel='sequences', ylabel=f'{what}, a line for each seed')
    if goal.metric == 'loss':
        for name, value in problem.reference_losses.items():
            axis.axhline(value, color=report.GREY, lw=1, ls=':')
            axis.annotate(name, (sequences[-1], value), fontsize=8, ha='right', va='bottom', color=report.GREY)


def draw_shares(axis: Any, outcome: Outcome, settings: Settings) -> None:
    """The share of seeds at the goal."""
    end = settings.train.every * settings.train.batch_size * outcome.looks.shape[1]
    needed = sorted(seed.sequences for seed in outcome.seeds if seed.sequences is not None)
    shares = np.arange(len(needed) + 1) / len(outcome.seeds)
    axis.step([0, *needed, end], [*shares, shares[-1]], where='post', color=report.BLUE)
    axis.set(xlabel='sequences', ylabel='share of seeds at the goal', ylim=(0, 1.02))
