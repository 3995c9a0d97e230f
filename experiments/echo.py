"""Predict the symbol of --delay time steps before, in a stream of random symbols or in shuffled windows of it.

    python -m experiments.echo --flagfile=experiments/flags/echo_stream.flags
    python -m experiments.echo --feed=shuffle --cell=gru --delay=6 --num_seeds=20

The experiment has the options of longer runs: truncated backpropagation or shuffled epochs, dropout, a schedule,
clipping. The task itself is in seqjax/tasks/echo.py.
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

TEST_SEQUENCES, SCORED_STEPS = 64, 64  # test sequences, and scored time steps of each
SUCCESS_ACCURACY = 0.99  # minimal accuracy of a successful seed


@dataclasses.dataclass(frozen=True)
class EchoConfig:
    """Flags of the echo experiment."""

    feed: str = option(
        'stream', 'order of the windows: stream (in order, with the carry kept) or shuffle', choices=echo.FEEDS
    )
    delay: int = option(4, 'delay of the target, in time steps', (0, None))
    window: int = option(16, 'time steps of a window', (1, None))
    length: int = option(16_384, 'symbols of the training series', (1, None))
    stream_from_host: bool = option(
        False, 'keep the series in host memory and stream batches to the device (needs grain, the extra "stream")'
    )


class Answers(NamedTuple):
    """Number of correct predictions of each seed in the test."""

    right: list[int]  # number of correct predictions, by seed
    count: int  # number of predictions of a seed


class EchoExperiment(FixedStepsExperiment):
    """The experiment on the echo task; the metric `right` is the fraction of correct predictions on test sequences."""

    measured = 'right'

    def check(self, values: Mapping[str, Any]) -> Settings:
        settings = super().check(values)
        if self.own(settings).stream_from_host and importlib.util.find_spec('grain') is None:
            raise UserError(f'--stream_from_host needs grain, but {host_streaming.NO_GRAIN}')
        return settings

    def task(self, own: EchoConfig, train: TrainConfig) -> Task:
        sizes = {'window': own.window, 'batch_size': train.batch_size, 'length': own.length}
        return echo.echo(own.feed, delay=own.delay, **sizes, seed=train.seed)

    def test(self, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
        """Returns test symbols and targets, each [TEST_SEQUENCES, delay + SCORED_STEPS], drawn from another seed."""
        delay = self.own(settings).delay
        shape = TEST_SEQUENCES, delay + SCORED_STEPS
        # The training series is drawn from --seed, which is below 2**32.
        symbols, targets = echo.series(settings.train.seed + 2**32, shape[0] * shape[1], delay)
        return symbols.reshape(shape), targets.reshape(shape)

    def test_inputs(self, task: Task, settings: Settings) -> Arrays:
        return self.test(settings)[0]

    def answers(self, outputs: np.ndarray, settings: Settings) -> Answers:
        """Returns the number of correct predictions of each seed, from test outputs [..., B, T, symbols]."""
        delay, (_, targets) = self.own(settings).delay, self.test(settings)
        is_correct = outputs[..., delay:, :].argmax(-1) == targets[:, delay:]
        count = TEST_SEQUENCES * SCORED_STEPS
        return Answers(is_correct.reshape(-1, count).sum(axis=1).tolist(), count)

    def measure(self, outputs: np.ndarray, settings: Settings) -> np.ndarray:
        right, count = self.answers(outputs, settings)
        return np.array(right) / count

    def outcome(self, losses: np.ndarray, outputs: np.ndarray, settings: Settings) -> dict[str, Any]:
        return {'answers': self.answers(outputs, settings)._asdict()}

    def conclusion(self, run: FinishedRun) -> str:
        answers, chance = Answers(**run.summary['answers']), f'chance level: {1 / echo.SYMBOLS:.1%}'
        accuracies = [right / answers.count for right in answers.right]
        text = f'{self.title(run.settings)} with {run.settings.model.hidden} units: '
        if run.settings.train.num_seeds is None:
            return f'{text}{accuracies[0]:.1%} of {answers.count:,} symbols of test sequences are correct ({chance}).'
        successes, count = sum(accuracy >= SUCCESS_ACCURACY for accuracy in accuracies), len(accuracies)
        low, high = statistics.wilson_interval(successes, count)
        return (
            f'{text}{successes:,} of {count:,} seeds ({successes / count:.1%}, 95% CI {low:.1%} to {high:.1%}) echo at '
            f'least {SUCCESS_ACCURACY:.0%} of {answers.count:,} symbols of test sequences correctly; median '
            f'{np.median(accuracies):.1%} ({chance}).'
        )

    def title(self, settings: Settings) -> str:
        return f'echo with a delay of {self.own(settings).delay}, {settings.model.cell}'

    def draw(self, axes: Any, run: FinishedRun) -> None:
        (axis,) = axes
        plots.draw_loss(axis, run.losses, unit='step', ylabel='cross-entropy')
        axis.axhline(np.log(echo.SYMBOLS), color=plots.GREY, lw=1, ls=':')

    def result(self, run: FinishedRun, figure: Any) -> Answers:
        return Answers(**run.summary['answers'])

    def sizes(self, **flags: Any) -> tuple[int, dict[str, Any]]:
        settings = Settings.of(flags)
        own, model, train = self.own(settings), settings.model, settings.train
        train_symbols, test_symbols = own.window * train.batch_size, TEST_SEQUENCES * (own.delay + SCORED_STEPS)
        width = 1 if train.num_seeds is None else replicas.group_width(train.num_seeds)
        weights = model.layers * model.hidden**2
        activations = 2 * model.layers * max(train_symbols, test_symbols) * model.hidden
        vmap_width = width if train_symbols * model.hidden**2 <= programs.MAX_VMAP_SIZE else 1
        # Symbols and their positions are int64 when the series is drawn and cut into rows.
        numbers = 6 * width * weights + vmap_width * activations + 12 * max(own.length, train_symbols)
        numbers += (train.num_seeds or 1) * (3 * train.steps + test_symbols * echo.SYMBOLS)
        numbers += 4 * width * min(settings.run.steps_per_call, train.steps)
        names = ('hidden', 'layers', 'window', 'batch_size', 'length', 'delay', 'steps', 'num_seeds', 'steps_per_call')
        return numbers, {name: flags[name] for name in names}


EXPERIMENT = EchoExperiment(
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
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
