"""Echo: name the symbol of some steps before, read from a stream or from shuffled windows.

    python -m experiments.echo --flagfile=experiments/flags/echo_stream.flags
    python -m experiments.echo --feed=shuffle --cell=gru --delay=6 --replicas=20

It has all that a longer run has: truncated backpropagation or shuffled epochs, dropout, a schedule, clipping. The task
itself is in seqjax/tasks/echo.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
import optax

from seqjax import config, training
from seqjax.cli import command, default_workdir, flag_tables, task_setup
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import Choice, Fraction, Positive, Switch, Whole
from seqjax.config import TrainConfig
from seqjax.errors import UserError
from seqjax.nn import models
from seqjax.reporting import plots, statistics, text_tables
from seqjax.runs import directory, result_files
from seqjax.runs.directory import Workdir
from seqjax.tasks import echo
from seqjax.training import host_streaming, programs, run_summary
from seqjax.training import replicas as training_replicas
from seqjax.types import Task

NAME, STEPS = 'echo', 'steps'
FRESH, ASKED = 64, 64  # sequences to test on, and their answers that count
RIGHT = 0.99  # the share of right answers from which on a seed counts as one that echoes

FLAGS = {
    'feed': Flag(Choice(*echo.FEEDS), 'windows one after the other with the carry handed on, or in a new order'),
    'delay': Flag(Whole(0), 'how many steps back the answer lies'),
    'cell': Flag(Choice(*models.CELLS), 'the recurrent cell'),
    'hidden': Flag(Whole(1), 'units of a layer'),
    'layers': Flag(Whole(1, 100), 'recurrent layers'),
    'dropout': Flag(Fraction(), 'share of values that is dropped between two layers'),
    'window': Flag(Whole(1), 'steps of a window'),
    'batch_size': Flag(Whole(1), 'windows in a training step'),
    'length': Flag(Whole(1), 'symbols of the series that is trained on'),
    'on_host': Flag(
        Switch(), 'leave the series on the host and stream its batches from there (needs grain, the extra "stream")'
    ),
    'steps': Flag(Whole(1), 'training steps'),
    'schedule': Flag(Choice(*config.SCHEDULES), 'of the learning rate'),
    'decay_steps': Flag(Whole(1), 'steps until --schedule=cosine is at 0'),
    'clip_norm': Flag(Positive(), 'gradients beyond this norm are scaled down to it'),
    **flag_tables.SHARED,
}


class Answers(NamedTuple):
    """How many of the test's answers each seed gave rightly."""

    right: list[int]
    count: int


def run(
    *,
    feed: str = 'stream',
    delay: int = 4,
    cell: str = 'lstm',
    hidden: int = 32,
    layers: int = 1,
    dropout: float = 0.0,
    window: int = 16,
    batch_size: int = 16,
    length: int = 16_384,
    on_host: bool = False,
    steps: int = 1000,
    schedule: str = 'constant',
    decay_steps: int | None = None,
    clip_norm: float | None = None,
    learning_rate: float = 1e-2,
    adam_epsilon: float = 1e-7,
    seed: int = 0,
    replicas: int | None = None,
    matmul_precision: str = 'default',
    workdir: str | None = None,
    overwrite: bool = False,
    picture: bool = True,
    mesh: str | None = None,
    checkpoint_every: int = 1000,
    keep: int = 2,
    best: str | None = None,
    chunk: int = 100,
) -> Answers:
    """Trains a recurrent model to name the symbol of some steps before, and tests it on sequences of its own.

    Every argument is a flag of the command line, where `FLAGS` explains it. Without `workdir` nothing is kept.

    Raises:
      UserError (a ValueError): an argument is refused, the folder holds another run, or the loss is not finite.
    """
    settings = flag_tables.check(FLAGS, locals(), command.default_values(run))
    flag_tables.check_seeds(settings['seed'], settings['replicas'])
    flag_tables.check_memory(*sizes(**settings))
    if settings['on_host'] and importlib.util.find_spec('grain') is None:
        raise UserError(f'--on_host needs grain, and {host_streaming.NO_GRAIN}')
    model, task, tx = make_model(settings), make_task(settings), make_optimiser(settings)
    with directory.open_workdir(settings, NAME) as (folder, summary):
        if summary is None:
            with flag_tables.matmul_precision(settings['matmul_precision']):
                summary, losses = _train(model, task, tx, settings, folder)
        else:
            print(f'{folder.path} holds this run, finished: shown again (--overwrite trains anew)\n')
            losses = result_files.read_losses(folder, settings['steps'], settings['replicas'])
        with folder.reading():
            answers = Answers(**summary['answers'])
            conclusion = _conclusion(answers, settings)
        if settings['picture']:
            _picture(folder, losses, settings)
        if folder.path is not None:
            print('\n' + folder.listing())
        print('\n' + conclusion)
        return answers


def make_task(settings: dict[str, Any]) -> Task:
    """Returns the task that the flags ask for; raises UserError if they do not go together."""
    with _together(settings):
        names = ('delay', 'window', 'batch_size', 'length', 'seed')
        return echo.echo(settings['feed'], **{name: settings[name] for name in names})


def make_model(settings: dict[str, Any]) -> nn.Module:
    """Returns the model that the flags ask for; raises UserError if they do not go together."""
    if settings['dropout'] and settings['layers'] == 1:
        raise UserError(f'--dropout={settings["dropout"]} does nothing with --layers=1: it stands between two layers')
    with _together(settings):
        options = {name: settings[name] for name in ('cell', 'layers', 'dropout')}
        return echo.echo_model(settings['feed'], features=settings['hidden'], **options)


@contextlib.contextmanager
def _together(settings: dict[str, Any]) -> Iterator[None]:
    """Turns a ValueError into a UserError that names the flags."""
    try:
        yield
    except ValueError as error:
        names = ('feed', 'delay', 'cell', 'layers', 'dropout', 'window', 'batch_size', 'length')
        named = ' '.join(f'--{name}={settings[name]}' for name in names)
        raise UserError(f'{named} do not go together: {error}') from error


def make_optimiser(settings: dict[str, Any]) -> optax.GradientTransformation:
    names = ('learning_rate', 'adam_epsilon', 'schedule', 'decay_steps', 'clip_norm')
    return task_setup.make_optimizer(TrainConfig(**{name: settings[name] for name in names}))


def _train(
    model: nn.Module,
    task: Task,
    tx: optax.GradientTransformation,
    settings: dict[str, Any],
    folder: Workdir,
) -> tuple[dict[str, Any], np.ndarray]:
    """Trains, tests, and leaves everything but the picture in the folder."""
    delay, seed, replicas = settings['delay'], settings['seed'], settings['replicas']
    # The series that is trained on is drawn from --seed, which is below 2**32.
    symbols, answers = echo.series(seed + 2**32, FRESH * (delay + ASKED), delay)
    symbols, answers = (x.reshape(FRESH, delay + ASKED) for x in (symbols, answers))
    layers = text_tables.model_layers(model, symbols)
    summary = run_summary.new_summary(NAME, settings, layers)
    print(text_tables.format_table(layers) + '\n')
    folder.write_summary(summary)
    how = {'steps': settings['steps'], 'chunk': settings['chunk'], 'workdir': folder, **flag_tables.keeping(settings)}
    compiled = training.compile_run(model, task, tx, symbols, **how, stream=settings['on_host'], replicas=replicas)
    print(f'{settings["steps"]:,} steps, on {summary["device"]}')
    record = training.train_with_losses(compiled, symbols, np.arange(seed, seed + (replicas or 1)), unit='step')
    if replicas is not None:
        result_files.write_replicas(folder, loss=record.losses)
    print(record.timing())
    known = record.outputs[..., delay:, :].argmax(-1) == answers[:, delay:]
    right = known.reshape(-1, FRESH * ASKED).sum(axis=1)
    seconds = None if record.resumed else record.seconds
    summary |= {'finished': True, 'seconds': seconds, **run_summary.loss_summary(record.losses)}
    summary |= {'answers': Answers(right.tolist(), FRESH * ASKED)._asdict()}
    folder.write_summary(summary)
    return summary, record.losses


def _conclusion(answers: Answers, settings: dict[str, Any]) -> str:
    """The last line: in words, what was reached."""
    shares = [right / answers.count for right in answers.right]
    text = f'echo of {settings["delay"]} steps before, {settings["cell"]} of {settings["hidden"]} units: '
    by_chance = f'guessing names 1 of {echo.SYMBOLS}'
    if settings['replicas'] is None:
        return f'{text}{shares[0]:.1%} of {answers.count:,} symbols of other sequences are named rightly; {by_chance}.'
    right, count = sum(share >= RIGHT for share in shares), len(shares)
    low, high = statistics.share_interval(right, count)
    return (
        f'{text}{right:,} of {count:,} seeds ({right / count:.1%}; 95% interval {low:.1%} to {high:.1%}) name at least '
        f'{RIGHT:.0%} of {answers.count:,} symbols of other sequences rightly; the median seed names '
        f'{np.median(shares):.1%}, and {by_chance}.'
    )


def _picture(folder: Workdir, losses: np.ndarray, settings: dict[str, Any]) -> None:
    try:
        figure, (axis,) = plots.new_figure(1, f'echo of {settings["delay"]} steps before: {settings["cell"]}')
    except ImportError:
        print('\n' + plots.NO_PICTURE)
        return
    plots.draw_loss(axis, losses, unit='step', what='cross-entropy')
    axis.axhline(np.log(echo.SYMBOLS), color=plots.GREY, lw=1, ls=':')
    result_files.write_picture(folder, figure)


def sizes(
    *,
    hidden: int,
    layers: int,
    window: int,
    batch_size: int,
    length: int,
    steps: int,
    replicas: int | None,
    delay: int,
    chunk: int = 1,
    **_: Any,
) -> tuple[int, dict[str, Any]]:
    """About how many float32 numbers a run holds at once, and the flags that decide it."""
    rows = max(window * batch_size, FRESH * (delay + ASKED))
    side_by_side = 1 if replicas is None else training_replicas.group_width(replicas)
    weights, kept = layers * hidden**2, 2 * layers * rows * hidden
    at_once = side_by_side if window * batch_size * hidden**2 <= programs.MAX_VMAP_SIZE else 1
    # A symbol is an int64 where the series is drawn and cut into rows, and so is its place.
    numbers = 6 * side_by_side * weights + at_once * kept + 12 * max(length, window * batch_size)
    numbers += (replicas or 1) * (3 * steps + FRESH * (delay + ASKED) * echo.SYMBOLS)
    numbers += 4 * side_by_side * min(chunk, steps)
    named = {'hidden': hidden, 'layers': layers, 'window': window, 'batch_size': batch_size, 'length': length}
    return numbers, named | {'delay': delay, 'steps': steps, 'replicas': replicas, 'chunk': chunk}


DEFAULTS = command.default_values(run)
COMMAND = Command(
    'echo',
    __doc__,
    run,
    FlagTable(FLAGS, DEFAULTS),
    lambda values: default_workdir.default_workdir(values, DEFAULTS, NAME, values['feed'], named=['feed'], steps=STEPS),
)
main = COMMAND.main


if __name__ == '__main__':
    COMMAND.execute()
