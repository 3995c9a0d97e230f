"""Run one of the three experiments of the Keras notebook: an LSTM echoes the sequence 0.0 0.2 0.4 0.6 0.8.

    python -m experiments.td --flagfile=experiments/flags/many_to_many.flags
    python -m experiments.td --setup=many_to_one --num_seeds=100
    python -m experiments.td --setup=many_to_one --sequence=0.1,0.5,0.2

From Python: `td.run(setup='many_to_many')`. The task itself is in seqjax/tasks/td.py.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np

from seqjax.cli.fixed_steps_experiment import FinishedRun, FixedStepsExperiment
from seqjax.cli.settings import Settings
from seqjax.config import ModelConfig, TrainConfig, option
from seqjax.errors import UserError
from seqjax.nn import activations
from seqjax.reporting import plots, statistics, text_tables
from seqjax.runs import result_files
from seqjax.runs.directory import Workdir
from seqjax.tasks import td
from seqjax.training import replicas
from seqjax.types import Arrays, Task

EPOCHS = {'one_to_one': 1000, 'many_to_one': 500, 'many_to_many': 1000}  # as in the notebook
# Flags of the notebook.
NOTEBOOK = {'length': 5, 'sequence': None, 'hidden': 5, 'learning_rate': 1e-3, 'adam_epsilon': 1e-7}
REFERENCE = Path(__file__).parent / 'reference'  # losses that the notebook printed
MAX_SHOWN = 10  # maximal number of printed values of a sequence


@dataclasses.dataclass(frozen=True)
class TdConfig:
    """Flags of the notebook's experiments."""

    setup: str = option('many_to_many', 'experiment, which decides the shapes of inputs and outputs', choices=td.SETUPS)
    length: int = option(5, 'number N of values of the sequence 0/N, 1/N, ..., (N-1)/N', (1, None))
    sequence: list[float] | None = option(None, 'numbers to echo instead of 0/N, ..., (N-1)/N, separated by commas')
    epochs: int | None = option(None, 'training steps; by default 1000, and 500 for many_to_one', (1, None))
    recurrent_activation: str = option(
        'sigmoid',
        'activation of the gates: sigmoid (Keras 3) or keras2_hard_sigmoid (the notebook)',
        choices=tuple(activations.RECURRENT_ACTIVATIONS),
    )


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of `run`. With replicas (--num_seeds), losses and predictions have a leading axis R."""

    metrics: dict[str, np.ndarray]  # 'loss': [epochs] or [R, epochs]
    predictions: np.ndarray  # [length] or [R, length]
    targets: np.ndarray  # [length]
    summary: dict[str, Any]  # content of summary.json
    figure: Any  # Matplotlib figure, or None
    state: Any  # seqjax.types.TrainState after the last step; None if the results of a finished run were read

    def _repr_png_(self) -> bytes | None:
        """Returns the figure as PNG, which Jupyter displays; None if there is no figure."""
        if self.figure is None:
            return None
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format='png', dpi=100)
        return buffer.getvalue()


class TdExperiment(FixedStepsExperiment):
    """The notebook's experiments; the metric `exact` of a seed is True if it predicts every target to one decimal."""

    STEPS, measured, panels = 'epochs', 'exact', 2

    def complete(self, flags: dict[str, Any]) -> dict[str, Any]:
        """Returns the flags with the setup's default --epochs, and --length set to the length of --sequence, if any."""
        length, numbers = flags['length'], flags['sequence']
        if numbers is not None and length not in (self.defaults['length'], len(numbers)):
            raise UserError(
                f'--length={length} differs from the {len(numbers)} numbers of --sequence; pass only one of these flags'
            )
        length = length if numbers is None else len(numbers)
        return {**flags, 'length': length, 'epochs': flags['epochs'] or EPOCHS[flags['setup']]}

    def task(self, own: TdConfig, train: TrainConfig) -> Task:
        return td.td(own.setup, length=own.length, numbers=own.sequence)

    def model_config(self, model: ModelConfig, own: TdConfig) -> ModelConfig:
        return dataclasses.replace(model, cell=f'lstm(recurrent_activation={own.recurrent_activation})')

    def test_inputs(self, task: Task, settings: Settings) -> Arrays:
        return task.data.inputs

    def targets(self, settings: Settings) -> np.ndarray:
        own = self.own(settings)
        return td.sequence(own.length) if own.sequence is None else np.array(own.sequence, np.float32)

    def predictions(self, outputs: np.ndarray, settings: Settings) -> np.ndarray:
        """Returns the outputs of any setup as predictions [length], or [R, length] with replicas."""
        length = self.own(settings).length
        return outputs.reshape(length if settings.train.num_seeds is None else (-1, length))

    def read_predictions(self, folder: Workdir, summary: dict[str, Any], settings: Settings) -> np.ndarray:
        length = self.own(settings).length
        if settings.train.num_seeds is None:
            with folder.reading():
                return np.array(summary['predictions'], np.float32).reshape(length)
        return result_files.read_replicas(folder, 'predictions', (settings.train.num_seeds, length))

    def measure(self, outputs: np.ndarray, settings: Settings) -> np.ndarray:
        return exact(outputs.reshape(-1, self.own(settings).length), self.targets(settings))

    def outcome(self, losses: np.ndarray, outputs: np.ndarray, settings: Settings) -> dict[str, Any]:
        """Returns the results for summary.json; with replicas, `predictions` and `exact` are of the first seed."""
        targets, is_exact = self.targets(settings), self.measure(outputs, settings)
        first = outputs.reshape(-1, len(targets))[0]
        outcome = {
            'targets': targets.tolist(),
            'predictions': [x if np.isfinite(x) else None for x in first.tolist()],
            'exact': bool(is_exact[0]),
        }
        if settings.train.num_seeds is None:
            return outcome
        count, solved = len(is_exact), int(is_exact.sum())
        outcome['seeds'] = {
            'count': count,
            'exact': solved,
            'share': solved / count,
            'interval': statistics.wilson_interval(solved, count),
            'diverged': int((~np.isfinite(losses[:, -1])).sum()),
        }
        reference = read_reference(settings)
        if reference is not None:
            outcome['notebook'] = within_band(*reference, losses)
        return outcome

    def conclusion(self, run: FinishedRun) -> str:
        summary = run.summary
        after = '{0.setup}: after {0.epochs:,} epochs '.format(self.own(run.settings))
        if run.settings.train.num_seeds is None:
            return after + _conclusion_of_one(summary, self.targets(run.settings), run.settings.train.seed)
        seeds, quantiles = summary['seeds'], summary['last_loss_quantiles']
        low, high = seeds['interval']
        text = (
            f'{after}{seeds["exact"]:,} of {seeds["count"]:,} seeds ({seeds["share"]:.1%}, 95% CI {low:.1%} to '
            f'{high:.1%}) predict every target to one decimal; the median last loss is {quantiles["0.5"]:.2g} '
            f'(95% of seeds: {quantiles["0.025"]:.2g} to {quantiles["0.975"]:.2g})'
        )
        if seeds['diverged']:
            text += f'; {seeds["diverged"]:,} seeds diverged'
        if 'notebook' in summary:
            inside, epochs = summary['notebook']['inside'], summary['notebook']['epochs']
            text += f"; the notebook's loss is within the 95% band of the seeds at {inside} of its {epochs} epochs"
        return text + '.'

    def title(self, settings: Settings) -> str:
        return f'{self.own(settings).setup}: echo {_format_numbers(self.targets(settings))}'

    def show(self, run: FinishedRun) -> None:
        """Prints targets and predictions; with replicas, for the first seed, and the fraction of correct seeds."""
        targets, predictions = self.targets(run.settings), np.asarray(run.predictions)
        has_replicas = predictions.ndim == 2
        print('target  prediction' + (' (first seed)  correct seeds' if has_replicas else ''))
        for i, target in enumerate(targets[:MAX_SHOWN]):
            values = predictions[..., i]
            prediction = text_tables.format_decimals(values[0] if has_replicas else values, 3)
            line = f'{_format_numbers(targets[i : i + 1]):>6}  {prediction:>10}'
            if has_replicas:
                line += f'{exact(values[:, None], target[None]).mean():>28.1%}'
            print(line)
        if len(targets) > MAX_SHOWN:
            print(f'   ... {len(targets) - MAX_SHOWN:,} more')

    def draw(self, axes: Any, run: FinishedRun) -> None:
        """Draws the loss curve (with the losses of the notebook, if its flags are the same) and the predictions."""
        left, right = axes
        plots.draw_loss(left, run.losses)
        reference = read_reference(run.settings)
        if reference is not None:
            left.plot(*reference, '.', color=plots.ORANGE, markersize=3, label="the notebook's run")
            plots.add_legend(left)
        plots.draw_predictions(right, self.targets(run.settings), run.predictions)

    def result(self, run: FinishedRun, figure: Any) -> Result:
        targets = self.targets(run.settings)
        return Result({'loss': run.losses}, run.predictions, targets, run.summary, figure, run.state)

    def max_width(self, *, setup: str, length: int, hidden: int, **_: Any) -> int:
        return replicas.max_width(_numbers(setup, length, hidden))

    def sizes(self, **flags: Any) -> tuple[int, dict[str, Any]]:
        settings, step_numbers = Settings.of(flags), _numbers(flags['setup'], flags['length'], flags['hidden'])
        count, steps, length = settings.train.num_seeds, self.own(settings).epochs, self.own(settings).length
        width = 1 if count is None else replicas.group_width(count, replicas.max_width(step_numbers))
        numbers = width * (step_numbers + 4 * min(settings.run.steps_per_call, steps))
        numbers += (count or 1) * (3 * steps + length)
        return numbers, {name: flags[name] for name in ('length', 'hidden', 'epochs', 'num_seeds', 'steps_per_call')}


def exact(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns True if every prediction is within 0.05 of its target: [..., length], [length] -> bool [...].

    For targets that are multiples of 0.1, the prediction then equals its target when rounded to one decimal.

    >>> exact(np.array([[-0.04, 0.24], [0.06, 0.2]]), np.array([0.0, 0.2])).tolist()
    [True, False]
    """
    return (np.rint(10 * (predictions - targets)) == 0).all(axis=-1)


def read_reference(settings: Settings) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the epochs and losses that the notebook printed; None if it printed none or has other flags."""
    flags = settings.flags
    path = REFERENCE / f'loss_{flags["setup"]}.csv'
    if not path.exists() or any(flags[name] != value for name, value in NOTEBOOK.items()):
        return None
    with path.open(newline='', encoding='utf-8') as lines:
        rows = [(int(row['epoch']), float(row['loss'])) for row in csv.DictReader(lines)]
    rows = [row for row in rows if row[0] <= flags['epochs']]
    return (np.array([epoch for epoch, _ in rows]), np.array([loss for _, loss in rows])) if rows else None


def within_band(epochs: np.ndarray, curve: np.ndarray, losses: np.ndarray) -> dict[str, int]:
    """Counts the `epochs` (from 1), and those where `curve` is within the 95% band over seeds of losses [R, steps]."""
    low, *_, high = statistics.loss_quantiles(losses[:, epochs - 1])
    return {'epochs': len(epochs), 'inside': int(((low <= curve) & (curve <= high)).sum())}


def _conclusion_of_one(summary: dict[str, Any], targets: np.ndarray, seed: int) -> str:
    """Returns the conclusion of a run of one seed: correct predictions, and the first and last loss."""
    first, last = summary['first_loss'], summary['last_loss']
    predictions = np.array(summary['predictions'], float)
    correct = int(exact(predictions[:, None], targets[:, None]).sum())
    change = f'{"fell" if last < first else "rose"} from {first:.3g} to {last:.3g}'
    if last == first:
        change = f'stayed at {last:.3g}'
    return (
        f'{"all" if summary["exact"] else correct} of {len(targets)} predictions equal their targets to one decimal, '
        f'and the loss {change}. This is seed {seed} only; use --num_seeds=100 to see how many seeds succeed.'
    )


def _format_numbers(sequence: np.ndarray) -> str:
    """Returns the first MAX_SHOWN numbers of a sequence as text: 0.0 0.25 0.5 ... (12 numbers).

    Numbers are rounded to four decimals and six significant digits. The count follows only if some are left out.
    """
    words = []
    for x in sequence[:MAX_SHOWN]:
        short, long = text_tables.format_decimals(x), f'{round(float(x), 4):g}'
        words.append(short if float(short) == float(long) else long)
    return ' '.join(words) + (f' ... ({len(sequence):,} numbers)' if len(sequence) > MAX_SHOWN else '')


def _numbers(setup: str, length: int, hidden: int) -> int:
    """Returns an estimate of the float32 numbers that a training step of one seed needs in memory."""
    outputs = length if setup == 'many_to_one' else 1
    params = 4 * (2 * hidden + hidden**2) + (hidden + 1) * outputs
    activations = 16 * length * hidden  # gates and states of every time step, and their gradients
    return 8 * params + activations


EXPERIMENT = TdExperiment(
    'td',
    TdConfig,
    ('setup', 'length', 'sequence', 'hidden', 'epochs', 'recurrent_activation'),
    hidden=5,
    learning_rate=1e-3,
    num_seeds=None,
    checkpoint_every=100_000,
)
COMMAND = EXPERIMENT.command(__doc__)
FLAGS, run, main = EXPERIMENT.FLAGS, EXPERIMENT.run, COMMAND.main

if __name__ == '__main__':
    COMMAND.execute()
