"""Echo: name the symbol of some steps before, read from a stream or from shuffled windows.

    python -m experiments.echo --flagfile=experiments/flags/echo_stream.flags
    python -m experiments.echo --feed=shuffle --cell=gru --delay=6 --num_seeds=20

It has all that a longer run has: truncated backpropagation or shuffled epochs, dropout, a schedule, clipping. The task
itself is in seqjax/tasks/echo.py.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from seqjax.cli.fixed_steps_experiment import FinishedRun, FixedStepsExperiment
from seqjax.cli.settings import Settings
from seqjax.config import TrainConfig, option
from seqjax.errors import UserError
from seqjax.reporting import plots, statistics
from seqjax.tasks import echo
from seqjax.training import host_streaming, programs, replicas
from seqjax.types import Arrays, Task

FRESH, ASKED = 64, 64  # sequences to test on, and their answers that count
RIGHT = 0.99  # the share of right answers from which on a seed counts as one that echoes


@dataclasses.dataclass(frozen=True)
class EchoConfig:
    """The flags of the echo experiment alone."""

    feed: str = option('stream', 'windows in order with the carry handed on, or in a new order', choices=echo.FEEDS)
    delay: int = option(4, 'how many steps back the answer lies', (0, None))
    window: int = option(16, 'steps of a window', (1, None))
    length: int = option(16_384, 'symbols of the series that is trained on', (1, None))
    stream_from_host: bool = option(
        False, 'leave the series on the host and stream its batches from there (needs grain, the extra "stream")'
    )


class Answers(NamedTuple):
    """Number of right answers of each seed in the test."""

    right: list[int]
    count: int


class EchoExperiment(FixedStepsExperiment):
    """The experiment on the echo task; `right` is the share of symbols of other sequences that are named rightly."""

    measured = 'right'

    def check(self, values: Mapping[str, Any]) -> Settings:
        settings = super().check(values)
        if self.own(settings).stream_from_host and importlib.util.find_spec('grain') is None:
            raise UserError(f'--stream_from_host needs grain, and {host_streaming.NO_GRAIN}')
        return settings

    def task(self, own: EchoConfig, train: TrainConfig) -> Task:
        sizes = {'window': own.window, 'batch_size': train.batch_size, 'length': own.length}
        return echo.echo(own.feed, delay=own.delay, **sizes, seed=train.seed)

    def test(self, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
        """Symbols and answers [FRESH, delay + ASKED] that no seed is trained on."""
        delay = self.own(settings).delay
        # The series that is trained on is drawn from --seed, which is below 2**32.
        symbols, answers = echo.series(settings.train.seed + 2**32, FRESH * (delay + ASKED), delay)
        return symbols.reshape(FRESH, delay + ASKED), answers.reshape(FRESH, delay + ASKED)

    def test_inputs(self, task: Task, settings: Settings) -> Arrays:
        return self.test(settings)[0]

    def answers(self, outputs: np.ndarray, settings: Settings) -> Answers:
        delay, (_, answers) = self.own(settings).delay, self.test(settings)
        known = outputs[..., delay:, :].argmax(-1) == answers[:, delay:]
        return Answers(known.reshape(-1, FRESH * ASKED).sum(axis=1).tolist(), FRESH * ASKED)

    def measure(self, outputs: np.ndarray, settings: Settings) -> np.ndarray:
        right, count = self.answers(outputs, settings)
        return np.array(right) / count

    def outcome(self, losses: np.ndarray, outputs: np.ndarray, settings: Settings) -> dict[str, Any]:
        return {'answers': self.answers(outputs, settings)._asdict()}

    def conclusion(self, run: FinishedRun) -> str:
        answers, by_chance = Answers(**run.summary['answers']), f'guessing names 1 of {echo.SYMBOLS}'
        shares = [right / answers.count for right in answers.right]
        text = f'{self.title(run.settings)} of {run.settings.model.hidden} units: '
        if run.settings.train.num_seeds is None:
            named = f'{shares[0]:.1%} of {answers.count:,} symbols of other sequences are named rightly'
            return f'{text}{named}; {by_chance}.'
        right, count = sum(share >= RIGHT for share in shares), len(shares)
        low, high = statistics.wilson_interval(right, count)
        return (
            f'{text}{right:,} of {count:,} seeds ({right / count:.1%}; 95% interval {low:.1%} to {high:.1%}) name at '
            f'least {RIGHT:.0%} of {answers.count:,} symbols of other sequences rightly; the median seed names '
            f'{np.median(shares):.1%}, and {by_chance}.'
        )

    def title(self, settings: Settings) -> str:
        return f'echo of {self.own(settings).delay} steps before, {settings.model.cell}'

    def draw(self, axes: Any, run: FinishedRun) -> None:
        (axis,) = axes
        plots.draw_loss(axis, run.losses, unit='step', ylabel='cross-entropy')
        axis.axhline(np.log(echo.SYMBOLS), color=plots.GREY, lw=1, ls=':')

    def result(self, run: FinishedRun, figure: Any) -> Answers:
        return Answers(**run.summary['answers'])

    def sizes(self, **flags: Any) -> tuple[int, dict[str, Any]]:
        settings = Settings.of(flags)
        own, model, train = self.own(settings), settings.model, settings.train
        read, asked = own.window * train.batch_size, FRESH * (own.delay + ASKED)
        side_by_side = 1 if train.num_seeds is None else replicas.group_width(train.num_seeds)
        weights, kept = model.layers * model.hidden**2, 2 * model.layers * max(read, asked) * model.hidden
        at_once = side_by_side if read * model.hidden**2 <= programs.MAX_VMAP_SIZE else 1
        # A symbol is an int64 where the series is drawn and cut into rows, and so is its place.
        numbers = 6 * side_by_side * weights + at_once * kept + 12 * max(own.length, read)
        numbers += (train.num_seeds or 1) * (3 * train.steps + asked * echo.SYMBOLS)
        numbers += 4 * side_by_side * min(settings.run.steps_per_call, train.steps)
        names = ('hidden', 'layers', 'window', 'batch_size', 'length', 'delay', 'steps', 'num_seeds', 'steps_per_call')
        return numbers, {name: flags[name] for name in names}


STUDY = EchoExperiment(
    'echo',
    EchoConfig,
    (
        *('feed', 'delay', 'cell', 'hidden', 'layers', 'dropout', 'window', 'batch_size', 'length', 'stream_from_host'),
        *('steps', 'schedule', 'decay_steps', 'clip_norm'),
    ),
    steps=1000,
    learning_rate=1e-2,
    num_seeds=None,
)
COMMAND = STUDY.command(__doc__)
FLAGS, run, main = STUDY.FLAGS, STUDY.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
