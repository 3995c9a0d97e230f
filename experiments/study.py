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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from absl import flags

from experiments import launch
from experiments.launch import Choice, Flag, Fraction, Number, Positive, Switch, Whole
from experiments.run_directory import default_workdir
from seqjax import files, memory, optim, report, training, trials
from seqjax.data import epoch_rows
from seqjax.encoder_decoder import ATTENTIONS, encoder_decoder
from seqjax.files import UserError
from seqjax.initializers import GATE_BIASES
from seqjax.models import CELLS, sequence_model
from seqjax.problem import WRONG, Goal, Problem, input_shapes
from seqjax.task import Batch, Task, batch_shapes
from seqjax.training import replicas as replica_groups
from seqjax.training.programs import MAX_VMAP_SIZE
from seqjax.training.seeds import Test, on_batch
from seqjax.training.summary import new_summary
from seqjax.trials import Outcome

STEPS = 'steps'
FILES = (files.SUMMARY, trials.TABLE, files.CURVE)
# Hochreiter and Schmidhuber (1997) test on as many sequences, and look back at 2,000.
HELD_OUT = 2560
SPLITS = {'validation': 2**32 - 1, 'test': 2**32 - 2}  # seeds of their draws, which no run has
TESTED = 256  # sequences at a time
GATES = {'lstm': 4, 'gru': 3}  # of the recurrent kernel; other cells have at least one
EVERY = 125
SHOWN = 20  # seeds of the table before the rest is cut

MODEL = {
    'cell': Flag(Choice(*CELLS), 'the recurrent cell'),
    'hidden': Flag(Whole(1), 'units of a layer'),
    'layers': Flag(Whole(1, 100), 'recurrent layers'),
    'bidirectional': Flag(Switch(), 'read in both directions'),
    'dropout': Flag(Fraction(), 'share of values that is dropped between two layers'),
    'gate_bias': Flag(
        Choice('default', *GATE_BIASES),
        'how the gate that keeps begins: constant at a bias of 1; chrono so that units keep for 1 step up to the '
        "longest sequence; uniform spread evenly; default is the cell's own",
    ),
    'parallel': Flag(Switch(), 'take all steps at once, for cells whose recurrence is linear'),
    'attention': Flag(Choice(*ATTENTIONS), 'how a decoder looks back at its source, where sequences are written'),
    'scheduled_sampling': Flag(Fraction(), 'share of tokens that a decoder reads of its own in training'),
}
# Names of flags that every command has, and of absl's own.
RESERVED = {'task', *launch.TOGETHER, *launch.KEPT, 'flagfile', 'undefok', 'help', 'helpfull', 'helpshort', 'h'}
TRAINING = {
    'batch_size': Flag(Whole(1), 'sequences in a training step'),
    'steps': Flag(Whole(1), 'training steps at most; a multiple of --every'),
    'every': Flag(
        Whole(1),
        'steps between two looks, each at the sequences that were trained on since the last; as the task has it by '
        'default, and never more than --steps',
    ),
    'until': Flag(Number(), "a seed is at the goal where a look's mean is at most this; by default as the task has it"),
    'to_the_end': Flag(Switch(), 'train all --steps, also where the goal is reached'),
    'split': Flag(
        Choice(*SPLITS), 'the unseen sequences that a seed is tested on: choose settings by validation, and report test'
    ),
    'schedule': Flag(Choice(*optim.SCHEDULES), 'of the learning rate'),
    'decay_steps': Flag(Whole(1), 'steps until --schedule=cosine is at 0'),
    'clip_norm': Flag(Positive(), 'gradients beyond this norm are scaled down to it'),
    **{name: flag for name, flag in launch.SHARED.items() if name != 'chunk'},
}
DEFAULTS = {
    **{'cell': 'lstm', 'hidden': 32, 'layers': 1, 'bidirectional': False, 'dropout': 0.0, 'gate_bias': 'default'},
    **{'parallel': False, 'attention': 'none', 'scheduled_sampling': 0.0},
    **{'batch_size': 16, 'steps': 6250, 'every': None, 'until': None, 'to_the_end': False},
    **{'split': 'validation', 'schedule': 'constant', 'decay_steps': None, 'clip_norm': None, 'learning_rate': 3e-3},
    **{'adam_epsilon': 1e-7, 'seed': 0, 'replicas': 10, 'matmul_precision': 'default', 'workdir': None},
    **{'overwrite': False, 'picture': True, 'mesh': None, 'checkpoint_every': 1000, 'keep': 2, 'best': None},
}


# --- a problem's own flags -------------------------------------------------------------------------


def options_of(make: Callable[..., Problem]) -> tuple[dict[str, Flag], dict[str, Any]]:
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
        if name in MODEL or name in TRAINING or name in RESERVED:
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


def _help(make: Callable[..., Problem], name: str) -> str:
    """What the docstring says of an argument."""
    found = re.search(rf'^( +){name}: (.+(?:\n\1 +.+)*)', inspect.getdoc(make) or '', re.MULTILINE)
    return ' '.join(found[2].split()).rstrip('.') if found else 'of the task'


# --- what the flags ask for ------------------------------------------------------------------------


def named(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    """--length=5 --rule=add, for a sentence."""
    return ' '.join(f'--{name}={settings[name]}' for name in names)


def make_model(problem: Problem, settings: Mapping[str, Any]) -> nn.Module:
    """The model that the flags ask for; raises UserError where it cannot be."""
    if settings['dropout'] and settings['layers'] == 1:
        raise UserError(f'--dropout={settings["dropout"]} does nothing with --layers=1: it stands between two layers')
    if settings['bidirectional'] and problem.causal:
        raise UserError(f'--bidirectional would look at the answers: {problem.name} asks at each step what follows')
    options = {name: settings[name] for name in ('cell', 'layers', 'bidirectional', 'dropout')}
    options |= {'features': settings['hidden'], **gate_bias(problem.horizon, problem.name, settings['gate_bias'])}
    try:
        model = (_writer if problem.answer == 'tokens' else _reader)(problem, settings, options)
        jax.eval_shape(model.init, jax.random.key(0), input_shapes(problem))
    except (ValueError, TypeError) as error:  # a TypeError: a cell without such a gate
        names = ['cell', *(name for name in MODEL if name != 'cell' and settings[name] != DEFAULTS[name])]
        raise UserError(f'{named(settings, names)} do not go together: {error}') from error
    return model


def _reader(problem: Problem, settings: Mapping[str, Any], options: dict[str, Any]) -> nn.Module:
    """Answers a sequence, or each of its steps."""
    for name, without in (('attention', 'none'), ('scheduled_sampling', 0.0)):
        if settings[name] != without:
            raise ValueError(f'{name}={settings[name]} is of a decoder, and {problem.name} has none')
    options |= {'vocabulary': problem.vocabulary, 'parallel': settings['parallel']}
    return sequence_model(problem.answer, problem.outputs, **options)


def _writer(problem: Problem, settings: Mapping[str, Any], options: dict[str, Any]) -> nn.Module:
    """Writes a sequence for a sequence."""
    if settings['parallel']:
        raise ValueError('parallel=True: a decoder goes step by step')
    options |= {name: settings[name] for name in ('attention', 'scheduled_sampling')}
    return encoder_decoder(problem.outputs, source_vocabulary=problem.vocabulary, **options)


def gate_bias(horizon: int | None, name: str, word: str) -> dict[str, Any]:
    """The option of a cell that --gate_bias asks for, where something must be kept over `horizon` steps."""
    if word == 'default':
        return {}
    if word == 'chrono' and horizon is None:
        raise UserError(f'--gate_bias=chrono needs to know how long to keep, and {name} does not say')
    return {'bias_init': GATE_BIASES[word](*((horizon,) if word == 'chrono' else ()))}


def make_optimiser(settings: Mapping[str, Any]) -> optax.GradientTransformation:
    """The optimiser that the flags ask for; raises UserError where it cannot be."""
    try:
        rate = optim.schedule(settings['schedule'], settings['learning_rate'], settings['decay_steps'])
    except ValueError as error:
        raise UserError(f'{named(settings, ("schedule", "decay_steps"))}: {error}') from error
    return optim.adam(rate, settings['adam_epsilon'], settings['clip_norm'], settings.get('weight_decay', 0.0))


def task_of(problem: Problem, settings: Mapping[str, Any]) -> Task:
    """Returns the task: fresh sequences at every step, or the problem's examples in an order of their own."""
    batch_size = settings['batch_size']
    if problem.examples is None:
        return Task(problem.score, lambda data, key, step: problem.sample(key, batch_size))
    examples = problem.examples().train

    def batch(data: tuple[jax.Array, Batch], key: jax.Array, step: jax.Array) -> Batch:
        order, examples = data
        rows, real = epoch_rows(order, step, len(examples.mask), batch_size)
        part = jax.tree.map(lambda x: x[rows], examples)
        return part._replace(mask=part.mask & real.reshape(-1, *[1] * (part.mask.ndim - 1)))

    return Task(problem.score, batch, (jax.random.key(settings['seed']), examples))


def unseen(problem: Problem, split: str) -> Batch:
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

    def __init__(self, make: Callable[..., Problem], *, name: str | None = None, every: int = EVERY, **defaults: Any):
        own, values = options_of(make)
        self.make, self.name, self.own, self.every = make, name or make.__name__, tuple(own), every
        self.FLAGS = own | MODEL | TRAINING
        self.defaults = values | DEFAULTS | defaults

    def problem(self, settings: Mapping[str, Any]) -> Problem:
        """What the flags ask for; raises UserError where it cannot be."""
        try:
            return self.make(**{name: settings[name] for name in self.own})
        except ValueError as error:
            raise UserError(f'{named(settings, self.own)}: {error}') from error

    def make_model(self, settings: Mapping[str, Any]) -> nn.Module:
        return make_model(self.problem(settings), settings)

    def make_task(self, settings: Mapping[str, Any]) -> Task:
        return task_of(self.problem(settings), settings)

    def make_optimiser(self, settings: Mapping[str, Any]) -> optax.GradientTransformation:
        return make_optimiser(settings)

    def sizes(self, **settings: Any) -> tuple[int, dict[str, Any]]:
        """About how many float32 numbers a run holds at least, and the flags that decide it.

        Whole numbers of any size, before anything is compiled; `seqjax.memory` has more of a program that is traced.
        """
        names = (*self.own, 'hidden', 'layers', 'batch_size', 'every', 'replicas')
        problem, hidden, rows = self.problem(settings), settings['hidden'], settings['batch_size']
        program, batch = self._drawn(problem, settings)
        values, answers = jax.tree.leaves(batch.inputs)[0], math.prod(batch.mask.shape[1:]) * problem.outputs
        steps, features = values.shape[1], values.shape[2] if values.ndim > 2 else hidden
        tokens = problem.outputs + (problem.vocabulary or 0)
        wide, gates = settings['layers'] * (1 + settings['bidirectional']), GATES.get(settings['cell'], 1)
        weights = wide * gates * hidden * (hidden + features) + hidden * tokens
        kept = wide * (gates + 2) * steps * rows * hidden + rows * (steps * features + 2 * answers)
        width = replica_groups.group_width(settings['replicas'])
        # Larger replicas take turns, see `training.programs.MAX_VMAP_SIZE`.
        at_once = width if rows * hidden * max(gates * hidden, tokens) <= MAX_VMAP_SIZE else 1
        metrics = 4 * width * (settings['every'] or 1)
        numbers = 6 * width * weights + at_once * kept + metrics + memory.peak_bytes(program) // 4
        # What is kept of a seed on the host.
        numbers += 3 * HELD_OUT * answers + 150 * settings['replicas']
        return numbers, {name: settings[name] for name in names}

    def _drawn(self, problem: Problem, settings: Mapping[str, Any]) -> tuple[Any, Batch]:
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

    def check(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Plain values -> all settings; raises UserError where one is refused or two do not go together."""
        launch.check_known(values, self.FLAGS)
        settings = launch.check(self.FLAGS, {**self.defaults, **values}, self.defaults)
        launch.check_seeds(settings['seed'], settings['replicas'])
        settings['every'] = settings['every'] or min(self.every, settings['steps'])
        launch.check_every(settings['every'], STEPS, settings['steps'])
        if settings['steps'] % settings['every']:
            fewer = settings['steps'] // settings['every'] * settings['every']
            raise UserError(
                f'{named(settings, ("steps", "every"))}: the steps must be a multiple of --every, such as {fewer}'
            )
        launch.check_memory(*self.sizes(**settings))
        make_model(self.problem(settings), settings), self.make_optimiser(settings)
        return settings

    def run(self, **values: Any) -> Outcome:
        """Trains every seed until it has reached the goal, and tests it on sequences that it never saw.

        Every argument is a flag of the command line. Without `workdir` nothing is kept.

        Raises:
          UserError (a ValueError): an argument is refused, the folder holds another run, or no loss is finite any more.
        """
        settings = self.check(values)
        problem = self.problem(settings)
        with files.open_workdir(settings, self.name, names=FILES) as (folder, summary):
            if summary is not None:
                print(f'{folder.path} holds this run, finished: shown again (--overwrite trains anew)\n')
            outcome = self.outcome(problem, settings, folder, summary)
            self.show(outcome, settings)
            if settings['picture']:
                self.draw(folder, problem, outcome, settings)
            if folder.path is not None:
                print('\n' + folder.listing())
            print('\n' + self.conclusion(problem, outcome, settings))
            return outcome

    def outcome(
        self, problem: Problem, settings: dict[str, Any], folder: files.Workdir, summary: Mapping[str, Any] | None
    ) -> Outcome:
        """Trains and tests every seed, and leaves everything but the picture in the folder; or reads what it holds."""
        sequences = settings['every'] * settings['batch_size']
        if summary is not None:
            return trials.read_outcome(folder, summary, sequences)
        start, model, task = time.perf_counter(), make_model(problem, settings), task_of(problem, settings)
        layers = report.model_layers(model, batch_shapes(task).inputs)
        summary = new_summary(self.name, settings, layers)
        print(report.format_table(layers) + '\n')
        folder.write_summary(summary)
        with launch.matmul_precision(settings['matmul_precision']):
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
        problem: Problem,
        model: nn.Module,
        task: Task,
        settings: dict[str, Any],
        folder: files.Workdir,
        device: str,
    ) -> Outcome:
        """Trains and tests every seed."""
        every = settings['every']
        # A checkpoint stands at a look, so that what is seen since the last one needs no place in it.
        saved = settings | {'checkpoint_every': -(-settings['checkpoint_every'] // every) * every}
        how = {'steps': settings['steps'], 'chunk': every, 'replicas': settings['replicas'], 'workdir': folder}
        run = training.compile_run(model, task, self.make_optimiser(settings), None, **how, **launch.keeping(saved))
        test, held_out = self.test(problem, model, run.task, settings)
        print(f'at most {settings["steps"]:,} steps of {settings["batch_size"]} sequences, on {device}')
        return training.train_until_solved(
            run,
            np.arange(settings['seed'], settings['seed'] + settings['replicas']),
            criterion=goal_of(problem, settings),
            eval_every=every,
            test=test,
            held_out=held_out,
            batch_size=settings['batch_size'],
            train_all_steps=settings['to_the_end'],
        )

    def test(self, problem: Problem, model: nn.Module, task: Task, settings: Mapping[str, Any]) -> tuple[Test, Any]:
        """Returns the test of a seed, and the held-out data that it is called with."""
        return on_batch(model, task, TESTED), unseen(problem, settings['split'])

    def show(self, outcome: Outcome, settings: Mapping[str, Any]) -> None:
        """A row for each seed."""
        names = list(outcome.seeds[0].test)
        print(' seed  sequences to the goal' + ''.join(f'  {name:>12}' for name in names))
        for seed in outcome.seeds[:SHOWN]:
            reached = '-' if seed.sequences is None else f'{seed.sequences:,}'
            print(f'{seed.seed:>5}  {reached:>21}' + ''.join(f'  {seed.test[name]:>12.4g}' for name in names))
        if len(outcome.seeds) > SHOWN:
            print(f'  ... {len(outcome.seeds) - SHOWN:,} more')

    def conclusion(self, problem: Problem, outcome: Outcome, settings: Mapping[str, Any]) -> str:
        """The last line: in words, what was reached."""
        reached = [seed for seed in outcome.seeds if seed.sequences is not None]
        wrong = [seed.test[WRONG] for seed in (reached or outcome.seeds)]
        held_out = 'examples for' if problem.examples is not None else f'{HELD_OUT:,} fresh sequences for'
        return (
            f'{problem.name}, {settings["cell"]}({settings["hidden"]}): {to_the_goal(problem, outcome, settings)}; '
            f'then {np.mean(wrong):.2%} of the {held_out} {settings["split"]} are answered wrongly.'
        )

    def draw(self, folder: files.Workdir, problem: Problem, outcome: Outcome, settings: Mapping[str, Any]) -> None:
        """What each seed makes of it, and the share of seeds at the goal."""
        try:
            figure, axes = report.new_figure(2, f'{problem.name}: {settings["cell"]}({settings["hidden"]})')
        except ImportError:
            print('\n' + report.NO_PICTURE)
            return
        draw_seeds(axes[0], problem, outcome, settings)
        draw_shares(axes[1], outcome, settings)
        files.write_picture(folder, figure)

    def parse(self, argv: list[str]) -> dict[str, Any]:
        """The value of every flag; raises UserError where one is refused."""
        return launch.parse(self.FLAGS, self.defaults, argv)

    def default_workdir(self, values: dict[str, Any], *names: str) -> dict[str, Any]:
        """Returns the flags with the default --workdir below runs/NAMES."""
        every = values['every'] or min(self.every, values['steps'])  # as `check` has it
        named = ('task', 'cell')
        found = default_workdir(
            values | {'every': every}, self.defaults | {'every': self.every}, *names, values['cell'], named=named
        )
        return values | {'workdir': found['workdir']}

    def main(self, argv: list[str] | None = None) -> int:
        return launch.main(
            self.run,
            self.FLAGS,
            argv,
            name=f'experiments.{self.name}',
            complete=lambda values: self.default_workdir(values, self.name),
            defaults=self.defaults,
        )


def goal_of(problem: Problem, settings: Mapping[str, Any]) -> Goal:
    return problem.goal if settings['until'] is None else problem.goal._replace(at_most=settings['until'])


# --- what is shown ---------------------------------------------------------------------------------


def goal_words(goal: Goal) -> str:
    if goal.metric == WRONG:
        return (
            'answer every sequence rightly'
            if goal.at_most <= 0
            else f'answer at least {1 - goal.at_most:.4g} of them rightly'
        )
    return f'bring {goal.metric} to at most {goal.at_most:.4g}'


def to_the_goal(problem: Problem, outcome: Outcome, settings: Mapping[str, Any]) -> str:
    """How many seeds came to it, and after how many sequences."""
    needed, count = [seed.sequences for seed in outcome.seeds if seed.sequences is not None], len(outcome.seeds)
    low, high = report.share_interval(len(needed), count)
    window, most = settings['every'] * settings['batch_size'], settings['steps'] * settings['batch_size']
    text = (
        f'{len(needed):,} of {count:,} seeds ({len(needed) / count:.1%}; 95% interval {low:.1%} to {high:.1%}) '
        f'{goal_words(goal_of(problem, settings))} of the last {window:,} within {most:,}'
    )
    if needed:
        mean = report.format_interval(np.array(needed, float), ',.0f', ',.0f')
        text += f', after {min(needed):,} to {max(needed):,} (mean {mean})'
    return text


def draw_seeds(axis: Any, problem: Problem, outcome: Outcome, settings: Mapping[str, Any]) -> None:
    """The metric of the goal, a line for each seed."""
    goal, window = goal_of(problem, settings), settings['every'] * settings['batch_size']
    curves = outcome.looks[:, :, outcome.metrics.index(goal.metric)]
    sequences = window * np.arange(1, curves.shape[1] + 1)
    for i, curve in enumerate(curves):
        axis.plot(sequences, curve, color=report.shade(i / max(len(curves) - 1, 1)), lw=0.8)
    what = 'share answered wrongly' if goal.metric == WRONG else goal.metric
    axis.set(xlabel='sequences', ylabel=f'{what}, a line for each seed')
    if goal.metric == 'loss':
        for name, value in problem.figures.items():
            axis.axhline(value, color=report.GREY, lw=1, ls=':')
            axis.annotate(name, (sequences[-1], value), fontsize=8, ha='right', va='bottom', color=report.GREY)


def draw_shares(axis: Any, outcome: Outcome, settings: Mapping[str, Any]) -> None:
    """The share of seeds at the goal."""
    end = settings['every'] * settings['batch_size'] * outcome.looks.shape[1]
    needed = sorted(seed.sequences for seed in outcome.seeds if seed.sequences is not None)
    shares = np.arange(len(needed) + 1) / len(outcome.seeds)
    axis.step([0, *needed, end], [*shares, shares[-1]], where='post', color=report.BLUE)
    axis.set(xlabel='sequences', ylabel='share of seeds at the goal', ylim=(0, 1.02))
