"""Temporal order (Hochreiter and Schmidhuber 1997, experiment 6a): how many sequences a cell sees until it is right.

    python -m experiments.temporal_order --flagfile=experiments/flags/temporal_order_chrono.flags
    python -m experiments.temporal_order --cell=mingru --parallel --length=50 --replicas=3

The task itself is in seqjax/tasks/temporal_order.py.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import launch
from experiments.launch import Choice, Flag, Switch, Whole
from seqjax import files, optim, report, sweep, train
from seqjax import run as host
from seqjax.files import UserError
from seqjax.initializers import GATE_BIASES
from seqjax.models import CELLS, recurrent
from seqjax.task import Batch, State, Task
from seqjax.tasks import temporal_order as task_order

NAME, ERRORS, STEPS = 'temporal_order', 'errors.csv', 'steps'
LOOKS, RIGHT = 'looks.csv', 'right.csv'  # of each group, beside its checkpoints
FILES = (files.SUMMARY, ERRORS, files.CURVE)
VALIDATION, TEST = 256, 2560  # sequences; the source tests on as many
VALIDATION_SEED, TEST_SEED = 2**32 - 1, 2**32 - 2  # of their draws, from keys that no step has
SHOWN = 20  # seeds of the table before the rest is cut

FLAGS = {
    'cell': Flag(Choice(*CELLS), 'the recurrent cell'),
    'hidden': Flag(Whole(1), 'units of the cell'),
    'length': Flag(Whole(task_order.SHORTEST), 'symbols in the shortest sequences; all spans grow with it'),
    'gate_bias': Flag(
        Choice('default', *GATE_BIASES),
        'how the gate that keeps begins: constant at a bias of 1; chrono so that units keep for 1 step up to the '
        "longest sequence; uniform spread evenly; default is the cell's own",
    ),
    'parallel': Flag(Switch(), 'take all steps at once, for cells whose recurrence is linear'),
    'batch_size': Flag(Whole(1), 'sequences in a training step'),
    'steps': Flag(Whole(1), 'training steps at most'),
    'every': Flag(
        Whole(1), f'steps between two looks at the {VALIDATION} validation sequences; the last is at a multiple of it'
    ),
    **{
        name: launch.SHARED[name]
        for name in ('learning_rate', 'adam_epsilon', 'seed', 'replicas', 'matmul_precision', 'workdir', 'overwrite')
    },
    **{name: launch.SHARED[name] for name in ('picture', 'mesh', 'checkpoint_every', 'keep', 'best')},
}


class Seed(NamedTuple):
    """What became of one seed."""

    seed: int
    sequences: int | None  # seen until all validation sequences were right; None where that did not happen
    wrong: int  # of the test's sequences, at that moment or at the end


def run(
    *,
    cell: str = 'lstm',
    hidden: int = 32,
    length: int = 100,
    gate_bias: str = 'default',
    parallel: bool = False,
    batch_size: int = 16,
    steps: int = 6250,
    every: int = 25,
    learning_rate: float = 3e-3,
    adam_epsilon: float = 1e-7,
    seed: int = 0,
    replicas: int = 10,
    matmul_precision: str = 'default',
    workdir: str | None = None,
    overwrite: bool = False,
    picture: bool = True,
    mesh: str | None = None,
    checkpoint_every: int = 500,
    keep: int = 2,
    best: str | None = None,
) -> list[Seed]:
    """How many sequences a cell sees until it tells the order of two symbols that are far apart.

    Every argument is a flag of the command line, where `FLAGS` explains it. Without `workdir` nothing is kept.

    Raises:
      UserError (a ValueError): an argument is refused, the folder holds another run, or no loss is finite any more.
    """
    settings = launch.check(FLAGS, locals(), launch.default_values(run))
    launch.check_seeds(settings['seed'], settings['replicas'])
    launch.check_memory(*sizes(**settings))
    launch.check_every(settings['every'], 'steps', settings['steps'])
    make_layer(settings)  # refuses what does not go together before the folder is touched
    with files.open_workdir(settings, NAME, names=FILES) as (folder, summary):
        if summary is None:
            with launch.matmul_precision(settings['matmul_precision']):
                seeds, looks = _train(settings, folder)
        else:
            print(f'{folder.path} holds this run, finished: shown again (--overwrite trains anew)\n')
            with files.reading(folder.file(files.SUMMARY)):
                seeds = [Seed(*row) for row in summary['seeds']]
            looks = _read_errors(folder)
        _show(seeds)
        if settings['picture']:
            _picture(folder, looks, seeds, settings)
        if folder.path is not None:
            print('\n' + folder.listing())
        print('\n' + _conclusion(seeds, settings))
        return seeds


def make_layer(settings: dict[str, Any]) -> nn.Module:
    """The recurrent layer that the flags ask for; raises UserError where it cannot be."""
    bias = settings['gate_bias']
    spans = {'chrono': (task_order.longest(settings['length']),)}
    options = {} if bias == 'default' else {'bias_init': GATE_BIASES[bias](*spans.get(bias, ()))}
    try:
        layer = recurrent(settings['cell'], settings['hidden'], parallel=settings['parallel'], **options)
        jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 2, len(task_order.SYMBOLS))))
    except ValueError as error:
        named = ' '.join(f'--{name}={settings[name]}' for name in ('cell', 'hidden', 'gate_bias', 'parallel'))
        raise UserError(f'{named} do not go together: {error}') from error
    return layer


# --- training --------------------------------------------------------------------------------------


class Look(NamedTuple):
    """A look at the validation sequences, a row of errors.csv."""

    seed: int
    sequences: int  # seen until then
    wrong: int  # of the validation sequences


def make_task(settings: dict[str, Any]) -> Task:
    """The task that the flags ask for; raises UserError where they do not go together."""
    validation = _draw(VALIDATION_SEED, VALIDATION, settings['length'])
    options = {'length': settings['length'], 'batch_size': settings['batch_size'], 'validation': validation}
    return task_order.temporal_order(make_layer(settings), **options)


def make_optimiser(settings: dict[str, Any]) -> optax.GradientTransformation:
    return optim.adam(settings['learning_rate'], settings['adam_epsilon'])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _draw(seed: int, count: int, length: int) -> Batch:
    return task_order.sample(jax.random.key(seed), count, length)


def _train(settings: dict[str, Any], folder: files.Workdir) -> tuple[list[Seed], list[Look]]:
    """Trains every seed, and leaves everything but the picture in the folder."""
    task, test = make_task(settings), _draw(TEST_SEED, TEST, settings['length'])
    layers = report.model_layers(task.model, test.inputs)
    summary = host.new_summary(NAME, settings, layers)
    print(report.format_table(layers) + '\n')
    folder.write_summary(summary)
    first, count = settings['seed'], settings['replicas']
    how = {'steps': settings['steps'], 'chunk': settings['every'], 'replicas': count, 'workdir': folder}
    how |= launch.keeping(settings)
    plan = host.prepare(task, make_optimiser(settings), None, **how)
    study = Study(plan, _count_wrong(plan, test), settings['every'], settings['batch_size'], count)
    print(f'at most {settings["steps"]:,} steps of {settings["batch_size"]} sequences, on {summary["device"]}')
    seeds, looks = [], []
    with report.progress(count * settings['steps'], 'seed-step') as show:
        for group in sweep.groups(np.arange(first, first + count), sweep.group_width(count)):
            right = sum(seed.sequences is not None for seed in seeds)
            its_seeds, its_looks = study.train(group, right, show)
            seeds += its_seeds
            looks += its_looks
    print()
    files.write_table(folder, ERRORS, Look._fields, looks)
    folder.write_summary(summary | {'finished': True, 'seeds': seeds})
    return seeds, looks


class Study(NamedTuple):
    """What all groups of seeds share."""

    plan: host.Plan
    count_wrong: Callable[[State, int], jax.Array]  # of the test's sequences, by one of the replicas
    every: int
    batch_size: int
    count: int  # of all seeds

    def train(
        self, group: sweep.Group, right: int, show: Callable[[int, int, str], None]
    ) -> tuple[list[Seed], list[Look]]:
        """What became of seeds that are trained side by side until all are right; `right` others are already."""
        place, count, steps = str(group), len(group.seeds), self.plan.steps
        journals = {name: self.plan.workdir.journal(place, name) for name in (LOOKS, RIGHT)}
        with self.plan.leg(group.seeds, journals, place=place) as leg:
            looks = [Look(*row) for row in files.whole_numbers(leg.held[LOOKS])]
            found = {row[0]: Seed(*row) for row in files.whole_numbers(leg.held[RIGHT])}
            for part in leg.train() if len(found) < count else ():
                done = part.step + len(part.metrics['loss'].total)
                if done % self.every == 0:
                    new = self.look(part, group, done)
                    looks += new
                    just = {look.seed: look for look in new if look.wrong == 0 and look.seed not in found}
                    just = {
                        seed: look._replace(wrong=self.wrong(part.state, group, seed)) for seed, look in just.items()
                    }
                    found |= {seed: Seed(*look) for seed, look in just.items()}
                    journals[LOOKS].append(files.format_whole_numbers(new))
                    journals[RIGHT].append(files.format_whole_numbers(just.values()))
                finished = len(found) == count
                taken = group.first * steps + (steps if finished else done) * count
                show(taken, (done - part.step) * count, f'{right + len(found)} of {self.count} right')
                if finished:
                    break
            for seed in set(group.seeds.tolist()) - found.keys():
                found[seed] = Seed(seed, None, self.wrong(leg.state, group, seed))
        return [found[seed] for seed in group.seeds.tolist()], looks

    def look(self, part: host.Part, group: sweep.Group, done: int) -> list[Look]:
        """The validation errors of a group after `done` steps."""
        wrong, sequences = part.evals['validation']['wrong'].total, done * self.batch_size
        return [Look(seed, sequences, int(n)) for seed, n in zip(group.seeds.tolist(), wrong, strict=True)]

    def wrong(self, states: State, group: sweep.Group, seed: int) -> int:
        """How many of the test's sequences one seed answers wrongly."""
        return int(self.count_wrong(states, seed - int(group.seeds[0])))


def _count_wrong(plan: host.Plan, test: Batch) -> Callable[[State, int], jax.Array]:
    def count(states, i):
        outputs = train.predict(plan.task, jax.tree.map(lambda x: x[i], states), test.inputs, batch_size=VALIDATION)
        return task_order.score(outputs, test)['wrong'].total

    return jax.jit(count, out_shardings=plan.whole)


# --- what is shown ---------------------------------------------------------------------------------


def _show(seeds: Sequence[Seed]) -> None:
    print(f' seed  sequences until right  wrong of {TEST:,} others')
    for seed, sequences, wrong in seeds[:SHOWN]:
        print(f'{seed:>5}  {"-" if sequences is None else f"{sequences:,}":>21}  {wrong:>21,}')
    if len(seeds) > SHOWN:
        print(f'  ... {len(seeds) - SHOWN:,} more')


def _conclusion(seeds: Sequence[Seed], settings: dict[str, Any]) -> str:
    """The last line: in words, what was reached."""
    right, count = [seed for seed in seeds if seed.sequences is not None], len(seeds)
    low, high = report.share_interval(len(right), count)
    text = (
        f'temporal order of length {settings["length"]}, {settings["cell"]} with --gate_bias={settings["gate_bias"]}: '
        f'{len(right):,} of {count:,} seeds ({len(right) / count:.1%}; 95% interval {low:.1%} to {high:.1%}) come to '
        f'answer all of {VALIDATION} sequences rightly within {settings["steps"] * settings["batch_size"]:,}'
    )
    if not right:
        return text + '.'
    needed = [seed.sequences for seed in right]
    return (
        f'{text}, after {min(needed):,} to {max(needed):,} (median of these {np.median(needed):,.0f}), and then answer '
        f'at most {max(seed.wrong for seed in right):,} of {TEST:,} others wrongly.'
    )


def _picture(folder: files.Workdir, looks: Sequence[Look], seeds: Sequence[Seed], settings: dict[str, Any]) -> None:
    """The share of sequences that each seed answers wrongly, and the share of seeds that are right."""
    title = f'temporal order, length {settings["length"]}: {settings["cell"]}, --gate_bias={settings["gate_bias"]}'
    try:
        figure, (left, right) = report.new_figure(2, title)
    except ImportError:
        print('\n' + report.NO_PICTURE)
        return
    for i, seed in enumerate(seeds):
        curve = [look for look in looks if look.seed == seed.seed]
        curve = [look for look in curve if seed.sequences is None or look.sequences <= seed.sequences]
        color = report.shade(i / max(len(seeds) - 1, 1))
        left.plot([look.sequences for look in curve], [look.wrong / VALIDATION for look in curve], color=color, lw=0.8)
    left.set(xlabel='sequences', ylabel='share answered wrongly, a line for each seed', ylim=(0, 1.02))
    needed = sorted(seed.sequences for seed in seeds if seed.sequences is not None)
    end = max(look.sequences for look in looks)
    right.step(
        [0, *needed, end],
        [*np.arange(len(needed) + 1) / len(seeds), len(needed) / len(seeds)],
        where='post',
        color=report.BLUE,
    )
    right.set(xlabel='sequences', ylabel='share of seeds that are right', ylim=(0, 1.02))
    files.write_picture(folder, figure)


# --- files and sizes -------------------------------------------------------------------------------


def _read_errors(folder: files.Workdir) -> list[Look]:
    path = folder.file(ERRORS)
    with files.reading(path), path.open(newline='', encoding='utf-8') as lines:
        return [Look(**{name: int(row[name]) for name in Look._fields}) for row in csv.DictReader(lines)]


def sizes(*, hidden: int, length: int, batch_size: int, replicas: int, **_: Any) -> tuple[int, dict[str, Any]]:
    """About how many float32 numbers a run holds at once, and the flags that decide it."""
    steps, symbols = task_order.longest(length), len(task_order.SYMBOLS)
    activations = 10 * steps * batch_size * hidden  # states and gates of every step, for the gradient
    looks = VALIDATION * steps * (hidden + symbols)
    numbers = sweep.group_width(replicas) * (8 * 4 * hidden * (hidden + symbols) + activations + looks)
    sizes = {'hidden': hidden, 'length': length, 'batch_size': batch_size, 'replicas': replicas}
    return numbers + TEST * steps * symbols, sizes


def main(argv: list[str] | None = None) -> int:
    return launch.main(
        run,
        FLAGS,
        argv,
        name='experiments.temporal_order',
        complete=lambda values: launch.default_workdir(values, NAME, values['cell'], values['gate_bias']),
    )


if __name__ == '__main__':
    launch.leave(main())
