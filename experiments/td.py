"""The notebook's three experiments: an LSTM echoes 0.0 0.2 0.4 0.6 0.8.

    python -m experiments.td --flagfile=experiments/flags/many_to_many.flags
    python -m experiments.td --setup=many_to_one --replicas=100

From Python: `td.run(setup='many_to_many')`. The task itself is in seqjax/tasks/td.py.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import optax

from seqjax import files, training
from seqjax.cli import command, default_workdir, flag_tables
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import Choice, Whole
from seqjax.config import TrainConfig
from seqjax.nn import activations as nn_activations
from seqjax.reporting import plots, statistics, text_tables
from seqjax.reporting.text_tables import Layer
from seqjax.runs import directory, result_files
from seqjax.runs.directory import Workdir
from seqjax.tasks import td
from seqjax.training import optimizers, run_summary
from seqjax.training import replicas as training_replicas
from seqjax.training.seeds import RunResult
from seqjax.types import Task

EPOCHS = {'one_to_one': 1000, 'many_to_one': 500, 'many_to_many': 1000}  # the notebook's
NOTEBOOK = {'length': 5, 'hidden': 5, 'learning_rate': 1e-3, 'adam_epsilon': 1e-7}
REFERENCE = Path(__file__).parent / 'reference'
STEPS = 'epochs'  # the flag that says how many training steps there are

FLAGS = {
    'setup': Flag(Choice(*td.SETUPS), 'how the sequence goes in and comes out'),
    'length': Flag(Whole(1), 'steps in the sequence i / length'),
    'hidden': Flag(Whole(1), 'units of the LSTM'),
    'epochs': Flag(Whole(1), "training steps; the notebook's by default: 1000, for many_to_one 500"),
    'recurrent_activation': Flag(
        Choice(*nn_activations.RECURRENT_ACTIVATIONS),
        "of the gates: Keras 3's is sigmoid, the notebook's was keras2_hard_sigmoid",
    ),
    **flag_tables.SHARED,
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What `run` returns. With replicas, arrays have a leading axis R."""

    metrics: dict[str, np.ndarray]  # 'loss': [epochs] or [R, epochs]
    predictions: np.ndarray  # [length] or [R, length]
    targets: np.ndarray  # [length]
    summary: dict[str, Any]  # what summary.json holds
    figure: Any  # matplotlib's, or None
    state: Any  # seqjax.types.TrainState after the last step; None where a finished run was read back

    def _repr_png_(self) -> bytes | None:
        """A notebook shows the picture."""
        if self.figure is None:
            return None
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format='png', dpi=100)
        return buffer.getvalue()


def run(
    *,
    setup: str = 'many_to_many',
    length: int = 5,
    hidden: int = 5,
    epochs: int | None = None,
    recurrent_activation: str = 'sigmoid',
    learning_rate: float = 1e-3,
    adam_epsilon: float = 1e-7,
    seed: int = 0,
    replicas: int | None = None,
    matmul_precision: str = 'default',
    workdir: str | None = None,
    overwrite: bool = False,
    picture: bool = True,
    mesh: str | None = None,
    checkpoint_every: int = 100_000,
    keep: int = 2,
    best: str | None = None,
    chunk: int = 100,
) -> Result:
    """Trains an LSTM to echo a sequence, and shows the model, the training, the predictions and the loss curve.

    Every argument is a flag of the command line, where `FLAGS` explains it. Without `workdir` nothing is kept.

    Raises:
      UserError (a ValueError): an argument is refused, the folder holds another run, or the loss is not finite.
    """
    settings = flag_tables.check(FLAGS, locals(), command.default_values(run))
    settings = complete(settings)
    flag_tables.check_seeds(settings['seed'], settings['replicas'])
    flag_tables.check_memory(*sizes(**settings))
    with directory.open_workdir(settings, 'td', steps=STEPS) as (folder, summary):
        return _run(settings, folder, summary)


def complete(settings: dict[str, Any]) -> dict[str, Any]:
    """With the number of epochs that a setup has where none is given."""
    return {**settings, 'epochs': settings['epochs'] or EPOCHS[settings['setup']]}


def _run(settings: dict[str, Any], folder: Workdir, summary: dict[str, Any] | None) -> Result:
    """Trains, or reads what a finished run left, and shows it."""
    targets = td.sequence(settings['length'])
    print(f'{settings["setup"]}: echo {_words(targets)}\n')
    if summary is None:
        with flag_tables.matmul_precision(settings['matmul_precision']):
            summary, record = _train(settings, folder, targets)
        losses, state = record.losses, record.state
        predictions, conclusion = _flat(record.outputs, settings), _conclusion(summary, targets)
    else:
        print(f'{folder.path} holds this run, finished: shown again (--overwrite trains anew)\n')
        with files.reading(folder.file(directory.SUMMARY)):
            print(_table(summary))
            conclusion = _conclusion(summary, targets)
        losses, state = result_files.read_losses(folder, settings['epochs'], settings['replicas']), None
        predictions = _read_predictions(folder, summary)
    _show_predictions(targets, predictions)
    figure = _picture(settings, losses, predictions, targets, folder) if settings['picture'] else None
    if folder.path is not None:
        print('\n' + folder.listing())
    print('\n' + conclusion)
    return Result({'loss': losses}, predictions, targets, summary, figure, state)


def make_model(settings: dict[str, Any]) -> nn.Module:
    names = ('length', 'hidden', 'recurrent_activation')
    return td.td_model(settings['setup'], **{name: settings[name] for name in names})


def make_task(settings: dict[str, Any]) -> Task:
    return td.td(settings['setup'], length=settings['length'])


def make_optimiser(settings: dict[str, Any]) -> optax.GradientTransformation:
    config = TrainConfig(learning_rate=settings['learning_rate'], adam_epsilon=settings['adam_epsilon'])
    return optimizers.make_optimizer(config)


def _train(settings: dict[str, Any], folder: Workdir, targets: np.ndarray) -> tuple[dict[str, Any], RunResult]:
    """Trains, and leaves everything but the picture in the folder."""
    model, task = make_model(settings), make_task(settings)
    inputs = task.data.inputs
    summary = run_summary.new_summary('td', settings, text_tables.model_layers(model, inputs))
    print(_table(summary))
    folder.write_summary(summary)
    seed, count = settings['seed'], settings['replicas']
    how = {'steps': settings['epochs'], 'chunk': settings['chunk'], 'workdir': folder, **flag_tables.keeping(settings)}
    how |= {'replicas': count, 'max_width': max_width(**settings)}
    compiled = training.compile_run(model, task, make_optimiser(settings), inputs, **how)
    which = f', seed {seed}' if count is None else f' of seeds {seed} to {seed + count - 1}'
    print(f'{settings["epochs"]:,} epochs{which}, on {summary["device"]}')
    record = training.train_with_losses(compiled, inputs, np.arange(seed, seed + (count or 1)))
    if count is not None:
        result_files.write_replicas(folder, loss=record.losses, predictions=_flat(record.outputs, settings))
    print(record.timing() + '\n')
    seconds = None if record.resumed else record.seconds
    summary |= {'finished': True, 'seconds': seconds, **run_summary.loss_summary(record.losses)}
    summary |= _outcome(record.losses, _flat(record.outputs, settings), targets, settings)
    folder.write_summary(summary)
    return summary, record


# --- what was reached ------------------------------------------------------------------------------


def exact(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Whether every prediction, rounded to one decimal, is its target: [..., length] and [length] -> [...].

    For targets that are no multiples of 0.1 (length 4: 0.25), "rounded" means: no further off than 0.05.

    >>> exact(np.array([[-0.04, 0.24], [0.06, 0.2]]), np.array([0.0, 0.2])).tolist()
    [True, False]
    """
    return (np.rint(10 * (predictions - targets)) == 0).all(axis=-1)


def _outcome(
    losses: np.ndarray, predictions: np.ndarray, targets: np.ndarray, settings: dict[str, Any]
) -> dict[str, Any]:
    """The task's own part of the summary. With replicas, `predictions` and `exact` are those of the first seed."""
    first = predictions if settings['replicas'] is None else predictions[0]
    outcome = {
        'targets': targets.tolist(),
        'predictions': [x if np.isfinite(x) else None for x in first.tolist()],
        'exact': bool(exact(first, targets)),
    }
    if settings['replicas'] is None:
        return outcome
    count, solved = len(predictions), int(exact(predictions, targets).sum())
    outcome['replicas'] = {
        'count': count,
        'exact': solved,
        'share': solved / count,
        'interval': statistics.share_interval(solved, count),
        'diverged': int((~np.isfinite(losses[:, -1])).sum()),
    }
    reference = read_reference(settings)
    if reference is not None:
        outcome['notebook'] = within_band(*reference, losses)
    return outcome


def read_reference(settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """The epochs and losses that the notebook printed, where the settings are the notebook's."""
    path = REFERENCE / f'loss_{settings["setup"]}.csv'
    if not path.exists() or any(settings[name] != value for name, value in NOTEBOOK.items()):
        return None
    with path.open(newline='', encoding='utf-8') as lines:
        rows = [(int(row['epoch']), float(row['loss'])) for row in csv.DictReader(lines)]
    rows = [row for row in rows if row[0] <= settings['epochs']]
    return (np.array([epoch for epoch, _ in rows]), np.array([loss for _, loss in rows])) if rows else None


def within_band(epochs: np.ndarray, curve: np.ndarray, losses: np.ndarray) -> dict[str, int]:
    """At how many of `epochs` (counted from 1) the curve lies within the 95% band of losses [R, steps]."""
    low, *_, high = statistics.loss_quantiles(losses[:, epochs - 1])
    return {'epochs': len(epochs), 'inside': int(((low <= curve) & (curve <= high)).sum())}


def _conclusion(summary: dict[str, Any], targets: np.ndarray) -> str:
    """The last line: in words, what was reached."""
    settings = summary['flags']
    after = f'{settings["setup"]}: after {settings["epochs"]:,} epochs '
    if 'replicas' not in summary:
        first, last = summary['first_loss'], summary['last_loss']
        predictions = np.array(summary['predictions'], float)
        right = int(exact(predictions[:, None], targets[:, None]).sum())
        moved = f'{"fell" if last < first else "rose"} from {first:.3g} to {last:.3g}'
        if last == first:
            moved = f'stayed at {last:.3g}'
        return (
            f'{after}{"all" if summary["exact"] else right} of {len(targets)} predictions equal their targets to one '
            f'decimal, and the loss {moved}; that is seed {settings["seed"]} alone, and --replicas=100 shows how often '
            'it happens.'
        )
    found = summary['replicas']
    low, high = found['interval']
    quantiles = summary['last_loss_quantiles']
    text = (
        f'{after}{found["exact"]:,} of {found["count"]:,} seeds ({found["share"]:.1%}; 95% interval {low:.1%} to '
        f'{high:.1%}) predict every target to one decimal; the median last loss is {quantiles["0.5"]:.2g} '
        f'(95% of seeds: {quantiles["0.025"]:.2g} to {quantiles["0.975"]:.2g})'
    )
    if found['diverged']:
        text += f'; {found["diverged"]:,} seeds diverged'
    if 'notebook' in summary:
        inside, epochs = summary['notebook']['inside'], summary['notebook']['epochs']
        text += f"; the notebook's curve lies within the 95% band at {inside} of its {epochs} epochs"
    return text + '.'


# --- what is shown ---------------------------------------------------------------------------------

SHOWN = 10  # numbers of a sequence before the rest is cut


def _words(sequence: np.ndarray) -> str:
    """The first numbers of a sequence, with the decimals that they have, up to four: 0.0 0.25 0.5."""
    words = []
    for x in sequence[:SHOWN]:
        short, long = text_tables.tenths(x), f'{round(float(x), 4):g}'
        words.append(short if float(short) == float(long) else long)
    return ' '.join(words) + (f' ... ({len(sequence):,} numbers)' if len(sequence) > SHOWN else '')


def _table(summary: dict[str, Any]) -> str:
    return text_tables.format_table([Layer(**layer) for layer in summary['layers']]) + '\n'


def _show_predictions(targets: np.ndarray, predictions: np.ndarray) -> None:
    """Targets beside predictions to one decimal; with replicas the first seed's, and the share that is right."""
    many = predictions.ndim == 2
    print('target  prediction' + (' of the first seed  right in' if many else ''))
    for i, target in enumerate(targets[:SHOWN]):
        values = predictions[..., i]
        line = f'{_words(targets[i : i + 1]):>6}  {text_tables.tenths(values[0] if many else values):>10}'
        if many:
            line += f'{exact(values[:, None], target[None]).mean():>27.1%}'
        print(line)
    if len(targets) > SHOWN:
        print(f'   ... {len(targets) - SHOWN:,} more')


def _picture(
    settings: dict[str, Any], losses: np.ndarray, predictions: np.ndarray, targets: np.ndarray, folder: Workdir
) -> Any:
    """The loss curve, the notebook's over it, and the predictions; kept as curve.png."""
    try:
        figure, (left, right) = plots.new_figure(2, f'{settings["setup"]}: echo {_words(targets)}')
    except ImportError:
        print('\n' + plots.NO_PICTURE)
        return None
    plots.draw_loss(left, losses)
    reference = read_reference(settings)
    if reference is not None:
        left.plot(*reference, '.', color=plots.ORANGE, markersize=3, label="the notebook's run")
        left.legend(frameon=False, fontsize=9)
    plots.draw_predictions(right, targets, predictions)
    result_files.write_picture(folder, figure)
    return figure


# --- shapes and files ------------------------------------------------------------------------------


def _flat(outputs: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """The model's outputs, whatever the setup's shape, as [length], or [R, length] with replicas."""
    return outputs.reshape((-1, settings['length']) if settings['replicas'] is not None else settings['length'])


def _read_predictions(folder: Workdir, summary: dict[str, Any]) -> np.ndarray:
    settings = summary['flags']
    if settings['replicas'] is None:
        with files.reading(folder.file(directory.SUMMARY)):
            return np.array(summary['predictions'], np.float32).reshape(settings['length'])
    return result_files.read_replicas(folder, 'predictions', (settings['replicas'], settings['length']))


def _numbers(setup: str, length: int, hidden: int) -> int:
    """About how many float32 numbers a training step has."""
    outputs = length if setup == 'many_to_one' else 1
    params = 4 * (2 * hidden + hidden**2) + (hidden + 1) * outputs
    activations = 16 * length * hidden  # gates and states of every step, and their gradients
    return 8 * params + activations


def max_width(*, setup: str, length: int, hidden: int, **_: Any) -> int:
    """How many replicas lie side by side at most."""
    return training_replicas.max_width(_numbers(setup, length, hidden))


def sizes(
    *, setup: str, length: int, hidden: int, epochs: int, replicas: int | None, chunk: int = 1, **_: Any
) -> tuple[int, dict[str, Any]]:
    """About how many float32 numbers a run holds at once, and the flags that decide it."""
    one = _numbers(setup, length, hidden)
    side_by_side = 1 if replicas is None else training_replicas.group_width(replicas, training_replicas.max_width(one))
    numbers = side_by_side * (one + 4 * min(chunk, epochs)) + (replicas or 1) * (3 * epochs + length)
    return numbers, {'length': length, 'hidden': hidden, 'epochs': epochs, 'replicas': replicas, 'chunk': chunk}


DEFAULTS = command.default_values(run)
COMMAND = Command(
    'td',
    __doc__,
    run,
    FlagTable(FLAGS, DEFAULTS),
    lambda values: default_workdir.default_workdir(
        values, DEFAULTS, 'td', values['setup'], named=['setup'], steps=STEPS
    ),
)
main = COMMAND.main


if __name__ == '__main__':
    COMMAND.execute()
