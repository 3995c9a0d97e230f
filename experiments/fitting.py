"""The experiment that every kind of data has: a file is read, looked at, learned from, and compared with baselines.

    KIND = Classify()                                 # in experiments/classify.py, beside the two lines that run it
    classify.run(data='x.ts', cell='gru', replicas=3)   # from Python

What the files of a kind are, and how they are split, is the kind's; all else is here.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from experiments import launch, study
from experiments.comparison import compare_runs
from experiments.launch import CellName, Command, Flag, Many, Place, Table, Whole
from experiments.run_directory import default_workdir, safe_name
from experiments.settings import Settings
from seqjax import checkpoint, files, fit, processes, report, training, verdict
from seqjax.config import ModelConfig, RunConfig, TrainConfig
from seqjax.dataset import Answers, Dataset, Items, Measure, Stream, Unseen
from seqjax.files import UserError
from seqjax.fit import Fit
from seqjax.models import CELLS
from seqjax.readers.bounds import Bounds
from seqjax.task import Arrays, Batch, Best, EarlyStopping, Task, TrainState
from seqjax.training import replicas as replica_groups
from seqjax.training.evaluation import eval_step, initial_eval_carry
from seqjax.training.programs import MAX_VMAP_SIZE
from seqjax.training.run import CompiledRun
from seqjax.training.sharding import DATA
from seqjax.training.summary import new_summary
from seqjax.types import ModelSpec
from seqjax.verdict import Gain

STEPS = 'steps'
PREDICTIONS, COMPARED = 'predictions.csv', 'compare.csv'
FILES = (files.SUMMARY, fit.TABLE, fit.MODELS, PREDICTIONS, files.CURVE)
MOST_EVERY = 500  # steps between two looks, where an epoch has more

# Fields of the configurations that are of no use to a dataset.
OTHERS = ('attention', 'scheduled_sampling', 'until', 'to_the_end', 'split', 'best', 'chunk')
MODEL = launch.flags_of(ModelConfig, without=OTHERS)
COMPARE = {'compare': Flag(Many(CellName()), 'train each of these cells, and put them in one table')}
TRAINING = launch.flags_of(TrainConfig, RunConfig, without=OTHERS)
LIMITS = {
    'max_columns': Flag(Whole(1), 'columns or channels that a file may have'),
    'max_bytes': Flag(Whole(1, 2**63 - 1), 'bytes that a file may have, after it is decompressed'),
}
DEFAULTS = {f'max_{name}': value for name, value in Bounds()._asdict().items()} | {'compare': None}
DEFAULTS |= launch.defaults_of(
    ModelConfig(hidden=64),
    TrainConfig(batch_size=32, steps=10_000, clip_norm=1.0, replicas=5),
    RunConfig(),
    without=OTHERS,
)


class Sampling(NamedTuple):
    """How texts go on from a prompt."""

    length: int  # tokens
    temperature: float
    samples: int  # texts
    seed: int  # of what is drawn


class Result(NamedTuple):
    """What a cell has made of the test part."""

    cell: str
    hidden: int
    params: int
    seeds: list[int]
    values: np.ndarray  # [R] of the measure
    baselines: Mapping[str, float]  # values by name
    gains: Mapping[str, Gain]  # over each baseline
    chosen: int  # the seed that is best on validation, which a prediction uses
    tell: Sequence[str]  # lines of the kind, about that seed
    baseline: str | None = None  # the one that is best on validation; None in results of earlier versions


# --- the model and the task ------------------------------------------------------------------------


def answering(model: nn.Module, read: Answers) -> Callable[[Best, Batch], Arrays]:
    """What gives (best of one seed, batches, leaves [M, B, ...]) -> what the model says to them, on the host.

    The test of a run and later predictions share it, and so their numbers: bit for bit, as its program takes one batch
    and XLA does not compile a loop over one batch as it does a loop over several.
    """

    @jax.jit
    def program(best, carry, batch):
        state = TrainState(0, None, best.params, best.variables, None)
        return eval_step(model, state, read, carry, batch)

    def answers(best, batches):
        best = jax.device_put(best)  # once, and not for every batch
        batches = [jax.tree.map(lambda x, i=i: x[i], batches) for i in range(len(batches.mask))]
        carry, found = initial_eval_carry(partial(program, best), batches[0]), []
        for batch in batches:
            carry, answer = program(best, carry, batch)
            found.append(jax.device_get(answer))
        return jax.tree.map(lambda *x: np.stack(x), *found)

    return answers


def bounds_of(options: Mapping[str, Any]) -> Bounds:
    """Returns the limits on a file that --max_columns and --max_bytes set."""
    return Bounds(**{name: options[f'max_{name}'] for name in Bounds._fields if f'max_{name}' in options})


# --- the experiment --------------------------------------------------------------------------------


class Kind:
    """A kind of data, of which a module of this folder makes its experiment: KIND = Classify().

    The methods before `__init__` are a kind's own. They raise UserError where a file or a setting is wrong.
    `settings.options` has the kind's own flags; `recipe` is what `dataset` left for predictions.
    """

    STEPS = STEPS
    name: str  # of the module, and of the folder in runs/
    OWN: Mapping[str, Flag]  # its own flags, beside those that every kind has
    own_defaults: Mapping[str, Any]  # theirs; and of other flags, where those of this kind differ

    def dataset(self, settings: Settings) -> Dataset:
        """Reads --data, and splits it."""
        raise NotImplementedError

    def spec(self, recipe: Mapping[str, Any]) -> ModelSpec:
        """Of the models of a run, as its recipe has it; that of `dataset`."""
        raise NotImplementedError

    def answers(self, recipe: Mapping[str, Any]) -> Answers:
        """What the host is given of outputs; that of `dataset`."""
        raise NotImplementedError

    def check_recipe(self, settings: Settings, recipe: Any) -> Mapping[str, Any]:
        """Returns the recipe of a run that was read from a file; raises UserError if it is invalid."""
        return recipe

    def unseen(self, settings: Settings, recipe: Mapping[str, Any], path: str) -> Unseen:
        """A file to predict, through the same preprocessing; refuses unknown labels and other columns by name."""
        raise NotImplementedError

    def stream(self, settings: Settings, recipe: Mapping[str, Any]) -> Stream:
        """Observations from --stdin."""
        raise NotImplementedError

    def write(
        self,
        settings: Settings,
        recipe: Mapping[str, Any],
        model: nn.Module,
        best: Best,
        prompt: str,
        how: Sampling,
    ) -> list[str]:
        """Texts that go on from a prompt."""
        raise UserError(f'--prompt is for a model of text, and this one is of {self.name}')

    def __init__(self):
        data = Flag(Place('file'), self.data_help)
        self.FLAGS = {'data': data, **self.OWN, **LIMITS, **MODEL, **COMPARE, **TRAINING}
        self.defaults = {'data': None, **DEFAULTS, **self.own_defaults}

    data_help = 'the file; or PACKAGE:PATH, a file that an installed package has'
    suffix = ''  # the usual one of --data

    def check(self, values: Mapping[str, Any]) -> Settings:
        """Plain values -> all settings; raises UserError where one is refused or two do not go together."""
        launch.check_known(values, self.FLAGS)
        settings = Settings.of(launch.check(self.FLAGS, {**self.defaults, **values}, self.defaults))
        if settings.options['data'] is None:
            raise UserError(f'--data is missing: {self.data_help}')
        launch.check_seeds(settings.train.seed, settings.train.replicas)
        study.make_optimizer(settings.train)
        launch.check_memory(*self.sizes(settings))
        return settings

    def sizes(self, settings: Settings) -> tuple[int, dict[str, Any]]:
        """About how many float32 numbers a run holds at least, whatever its data, and the flags that decide it."""
        names, model = ('hidden', 'layers', 'batch_size', 'every', 'replicas'), settings.model
        hidden, rows, seeds = model.hidden, settings.train.batch_size, settings.train.replicas
        wide, width = model.layers * (1 + model.bidirectional), replica_groups.group_width(seeds)
        gates = min(map(study.gates, settings.options['compare'] or [model.cell]))
        weights, kept = wide * gates * hidden * hidden, wide * (gates + 2) * rows * hidden
        at_once = width if rows * gates * hidden**2 <= MAX_VMAP_SIZE else 1
        numbers = 6 * width * weights + at_once * kept + 4 * width * (settings.train.every or 1)
        numbers += seeds * (2 * weights + 50)  # what is kept of a seed on the host
        return numbers, {name: settings.flags[name] for name in names}

    def run(self, **values: Any) -> list[Result]:
        """Learns from a file, and says whether that was worth it.

        Every argument is a flag of the command line. Without `workdir` nothing is kept.

        Raises:
          UserError (a ValueError): an argument or the file is refused, the folder holds another run, or no loss is
            finite.
        """
        settings, start = self.check(values), time.perf_counter()
        dataset = self.dataset(settings)
        # Resolved: a run that is asked for more steps must keep it.
        every = settings.train.every or min(dataset.epoch, MOST_EVERY)
        settings = settings.replace(every=min(every, settings.train.steps))
        dataset = dataset._replace(baselines={name: functools.cache(one) for name, one in dataset.baselines.items()})
        cells = settings.options['compare']
        for cell in cells or [settings.model.cell]:
            study.make_model(dataset.spec, settings.replace(cell=cell).model)
        print('\n'.join([dataset.name, *(f'  {line}' for line in [*dataset.look, *first_scores(dataset)])]))
        print(f'  read and looked at in {time.perf_counter() - start:.1f} s\n', flush=True)
        return [self._run_one(dataset, settings)] if cells is None else self._run_several(dataset, settings)

    def _run_one(self, dataset: Dataset, settings: Settings) -> Result:
        with files.open_workdir(settings.flags, self.name, names=FILES) as (folder, summary):
            result = self._result(dataset, settings, folder, summary)
            print('\n'.join(['', *result.tell, '', *table_lines(dataset.measure, [result])]))
            if folder.path is not None:
                print('\n' + folder.listing())
            print('\n' + conclusion(dataset.measure, result))
            return result

    def _run_several(self, dataset: Dataset, settings: Settings) -> list[Result]:
        """Each cell in a folder of its own, within that of the comparison."""
        cells, measure = settings.options['compare'], dataset.measure
        shared = {name: value for name, value in settings.flags.items() if name not in ('compare', 'cell')}

        def train(cell: str, folder: files.Workdir) -> Result:
            path = None if folder.path is None else str(folder.path / safe_name(cell))
            one = settings.replace(cell=cell, compare=None, workdir=path)
            with files.open_workdir(one.flags, self.name, names=FILES) as (inner, summary):
                result = self._result(dataset, one, inner, summary)
            print()
            return result

        def show(folder: files.Workdir, results: Sequence[Result]) -> None:
            print('\n'.join([*table_lines(measure, results), '', *difference_lines(measure, results)]))

        names = dict.fromkeys([files.SUMMARY, COMPARED, *CELLS, *map(safe_name, cells)])
        write = partial(write_compared, measure=measure)
        results = compare_runs(shared, f'{self.name}.compare', tuple(names), cells, train, write, show)
        print('\n' + '\n'.join(conclusion(measure, result) for result in results))
        return results

    def _result(
        self,
        dataset: Dataset,
        settings: Settings,
        folder: files.Workdir,
        summary: Mapping[str, Any] | None,
    ) -> Result:
        """Trains and tests, and leaves everything in the folder; or reads what it holds."""
        data = fingerprint(dataset)
        if summary is not None:
            _refuse_other_data(folder, summary, data)
            print(f'{folder.path} holds this run, finished: shown again (--overwrite trains anew)')
            with folder.reading():
                return result_of(summary['result'])
        if folder.path is not None and folder.file(files.SUMMARY).exists():
            _refuse_other_data(folder, files.read_summary(folder), data)
        model, start = study.make_model(dataset.spec, settings.model), time.perf_counter()
        layers = report.model_layers(model, jax.tree.map(lambda x: x[0], dataset.validation.inputs))
        summary = new_summary(self.name, settings.flags, layers) | {'data': data, 'recipe': dataset.recipe}
        print(report.format_table(layers) + '\n')
        folder.write_summary(summary)
        with launch.matmul_precision(settings.train.matmul_precision):
            found, every = self._fit(dataset, model, settings, folder)
            result = _tested(dataset, model, settings, found, summary['params'], folder)
        fit.write_looks(folder, found, every)
        fit.write_models(folder, found)
        ended = {'seconds': None if found.resumed else time.perf_counter() - start, 'result': plain(result)}
        ended['models'] = files.sha256(folder.file(fit.MODELS)) if folder.writes else None
        folder.write_summary(summary | {'finished': True} | ended)
        return result

    def _fit(self, dataset: Dataset, model: nn.Module, settings: Settings, folder: files.Workdir) -> tuple[Fit, int]:
        """Trains every seed, and tells the steps between two looks."""
        every = settings.train.every
        steps = settings.train.steps // every * every
        stopping = EarlyStopping(every, settings.train.patience)
        evals = {stopping.split: dataset.validation}
        task = Task(dataset.loss_fn, dataset.batch, dataset.data, evals, stopping)
        run = _compile(model, task, settings, folder, steps, every)
        cut = (
            ''
            if steps == settings.train.steps
            else f' (--steps={settings.train.steps} cut to a multiple of --every={every})'
        )
        print(
            f'at most {steps:,} steps{cut} of {settings.train.batch_size}, a look every {every:,}, until '
            f'{settings.train.patience} looks were no better'
        )
        seeds = np.arange(settings.train.seed, settings.train.seed + settings.train.replicas)
        found = training.train_with_early_stopping(run._replace(allow_divergence=True), seeds)
        if settings.train.refit:
            steps = fit.typical_step(found, every)
            print(f'and {steps:,} steps anew, with the validation part in what is trained on')
            task = task._replace(data=dataset.both(), evals={}, early_stopping=None)
            found = training.retrain(_compile(model, task, settings, folder, steps, every), found)
        return found, every

    def command(self, doc: str) -> Command:
        """The command of the module whose docstring this is."""
        return Command(self.name, doc, self.run, Table(self.FLAGS, self.defaults), self.default_workdir)

    def default_workdir(self, values: dict[str, Any]) -> dict[str, Any]:
        what = 'compare' if values['compare'] else values['cell']
        # Few steps decide --every.
        every = min(values['every'] or MOST_EVERY, values['steps'])
        found = default_workdir(
            values | {'every': every},
            self.defaults | {'every': MOST_EVERY},
            *(self.name, what),
            named=('cell', 'compare'),
            suffix=self.suffix,
        )
        return values | {'workdir': found['workdir']}


def _compile(
    model: nn.Module, task: Task, settings: Settings, folder: files.Workdir, steps: int, every: int
) -> CompiledRun:
    """Compiles a run for replica groups."""
    # A checkpoint stands at an evaluation, so that what is seen since the last one needs no place in it.
    saved = settings.flags | {'checkpoint_every': -(-settings.run.checkpoint_every // every) * every, 'best': None}
    saved['mesh'] = settings.run.mesh or _devices(settings.train.replicas)
    how = {'steps': steps, 'chunk': every, 'replicas': settings.train.replicas, 'workdir': folder}
    tx = study.make_optimizer(settings.train)
    return training.compile_run(model, task, tx, None, **how, **launch.keeping(saved))


def _devices(replicas: int) -> str | None:
    """A model that learns from a file has enough to do for a core: seeds share all of them."""
    count = min(replicas, len(jax.devices()))
    return f'{DATA}:{count}' if count > 1 and not processes.several() else None


# --- the data --------------------------------------------------------------------------------------


def fingerprint(dataset: Dataset) -> str:
    """Of all that a run learns from and is tested on: a run does not go on with a file that was changed."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((dataset.data, dataset.validation, dataset.test.batches)):
        array = np.ascontiguousarray(jax.random.key_data(leaf) if checkpoint.is_key(leaf) else leaf)
        digest.update(f'{array.shape}{array.dtype}'.encode())
        digest.update(array.view(np.uint8).data if array.size else b'')
    digest.update(json.dumps(dataset.recipe, sort_keys=True, default=str).encode())  # names of columns and classes
    return digest.hexdigest()


def _refuse_other_data(folder: files.Workdir, summary: Mapping[str, Any], data: str) -> None:
    if summary.get('data') != data:
        raise UserError(
            f'{folder.path} holds a run on other data: the file has changed since; choose another --workdir, or '
            '--overwrite to replace it'
        )


def first_scores(dataset: Dataset) -> list[str]:
    """What the baselines reach on validation."""
    values = validation_values(dataset)
    told = ', '.join(f'{name} {value:{dataset.measure.spec}}' for name, value in values.items())
    unit = f' ({dataset.measure.unit})' if dataset.measure.unit else ''
    return [f'{dataset.measure.name}{unit} on validation: {told}']


def validation_values(dataset: Dataset) -> dict[str, float]:
    """Returns the measure of each baseline on the validation part."""
    return {name: _value(dataset.measure, score('validation')) for name, score in dataset.baselines.items()}


def _value(measure: Measure, items: Items) -> float:
    return float(measure.value(np.sum(items.totals, dtype=np.float64), np.sum(items.counts, dtype=np.float64)))


# --- the test --------------------------------------------------------------------------------------


def _tested(
    dataset: Dataset, model: nn.Module, settings: Settings, found: Fit, params: int, folder: files.Workdir
) -> Result:
    """The one look at the test part."""
    program, items, chosen = answering(model, dataset.answers), [], found.chosen()
    for i in range(len(found.seeds)):
        answers = program(fit.of_seed(found.best, i), dataset.test.batches)
        items.append(dataset.items(answers))
        if i == chosen:
            of_chosen = answers
    theirs = {name: score('test') for name, score in dataset.baselines.items()}
    gains = {name: verdict.gain(dataset.measure, items, its) for name, its in theirs.items()}
    values = np.array([_value(dataset.measure, one) for one in items])
    baselines = {name: _value(dataset.measure, its) for name, its in theirs.items()}
    result = Result(
        settings.model.cell,
        settings.model.hidden,
        params,
        found.seeds.tolist(),
        values,
        baselines,
        gains,
        int(found.seeds[chosen]),
        list(dataset.tell(of_chosen)),
        verdict.best(dataset.measure, validation_values(dataset)),
    )
    files.write_table(folder, PREDICTIONS, *dataset.test.table(of_chosen))
    if settings.run.picture:
        _picture(folder, dataset, found, result, of_chosen, settings)
    return result


def plain(result: Result) -> dict[str, Any]:
    """As JSON has it."""
    gains = {name: [gain.mean, gain.half if math.isfinite(gain.half) else None] for name, gain in result.gains.items()}
    return result._asdict() | {'values': result.values.tolist(), 'gains': gains}


def result_of(held: Mapping[str, Any]) -> Result:
    """What `plain` gave."""
    gains = {name: Gain(mean, math.inf if half is None else half) for name, (mean, half) in held['gains'].items()}
    return Result(**{**held, 'values': np.array(held['values'], float), 'gains': gains})


# --- what is shown ---------------------------------------------------------------------------------


def table_lines(measure: Measure, results: Sequence[Result]) -> list[str]:
    """A row for each cell and each baseline."""
    seeds, unit = len(results[0].values), f' ({measure.unit})' if measure.unit else ''
    lines = [f'on the test part; mean of {seeds} seed{"s" if seeds > 1 else ""}, and its 95% interval\n']
    lines.append(f'{"":<28}{"parameters":>12}{measure.name + unit:>30}')
    for result in results:
        value = report.format_interval(result.values, measure.spec, measure.spec)
        lines.append(f'{_who(result):<28}{result.params:>12,}{value:>30}')
    lines += [f'{name:<28}{"":>12}{value:>30{measure.spec}}' for name, value in results[0].baselines.items()]
    return lines


def difference_lines(measure: Measure, results: Sequence[Result]) -> list[str]:
    """Each cell against the first one, seed by seed."""
    first, lines = results[0], []
    for result in results[1:]:
        difference = result.values - first.values
        mean, half = report.mean_interval(difference)
        clear = '' if abs(mean) > half else '   (no clear difference)'
        words = report.format_interval(difference, '+' + measure.spec, measure.spec)
        lines.append(f'{result.cell} - {first.cell:<20}{measure.name} {words}{clear}')
    better = 'above' if measure.higher else 'below'
    return [f'differences over the same seeds: {better} 0, the first of the two is better', *lines] if lines else []


def _who(result: Result) -> str:
    return f'{result.cell}({result.hidden})'


def conclusion(measure: Measure, result: Result) -> str:
    """The last line: whether the model beats the baseline that is best on validation, by how much, how sure that is.

    Where another baseline is better on the test part, and the model does not clearly beat that one, the line says so.
    """
    best = verdict.best(measure, result.baselines)
    whom = result.baseline or best
    line = verdict.sentence(measure, result.gains[whom], _who(result), whom)
    gain = result.gains[best]
    if best != whom and not (gain.clear and gain.mean > 0):
        value = f'{result.baselines[best]:{measure.spec}}'
        line += f'; {whom} is the best baseline on validation, but on the test part {best} is better ({value})'
    return line + '.'


def write_compared(folder: files.Workdir, results: Sequence[Result], measure: Measure) -> None:
    """compare.csv: a row for each seed of each cell, and one for each baseline."""
    rows = [
        [result.cell, result.hidden, result.params, seed, value]
        for result in results
        for seed, value in zip(result.seeds, result.values.tolist(), strict=True)
    ]
    rows += [[name, '', '', '', value] for name, value in results[0].baselines.items()]
    files.write_table(folder, COMPARED, ['model', 'hidden', 'params', 'seed', measure.name], rows)


def _picture(
    folder: files.Workdir, dataset: Dataset, found: Fit, result: Result, answers: Arrays, settings: Settings
) -> None:
    """What each seed makes of training and validation, what the test says, and what the kind shows of it."""
    try:
        count = 2 + (dataset.draw is not None)
        figure, axes = report.new_figure(count, f'{dataset.name}: {_who(result)}')
    except ImportError:
        print('\n' + report.NO_PICTURE)
        return
    _draw_looks(axes[0], found)
    _draw_values(axes[1], dataset.measure, result)
    if dataset.draw is not None:
        dataset.draw(axes[2], answers)
    files.write_picture(folder, figure)


def _draw_looks(axis: Any, found: Fit) -> None:
    for name, style, color in (('loss', '-', report.GREY), ('validation/loss', '-', report.BLUE)):
        for i, curve in enumerate(found.looks[:, :, found.metrics.index(name)]):
            label = name.replace('/', ' ') if i == 0 else None
            axis.plot(np.arange(1, len(curve) + 1), curve, style, color=color, lw=0.8, label=label)
    axis.set(xlabel='look', ylabel='loss, a line for each seed')
    axis.legend(frameon=False, fontsize=9)


def _draw_values(axis: Any, measure: Measure, result: Result) -> None:
    """A point for each seed, a line for each baseline."""
    axis.plot(np.zeros(len(result.values)), result.values, 'o', color=report.BLUE, alpha=0.6, label=_who(result))
    for i, (name, value) in enumerate(result.baselines.items()):
        axis.axhline(value, color=report.GREY, lw=1, ls=('-', '--', ':', '-.')[i % 4], label=name)
    unit = f', {measure.unit}' if measure.unit else ''
    axis.set(xticks=[], ylabel=f'{measure.name}{unit} on the test part', xlim=(-1, 1))
    axis.legend(frameon=False, fontsize=9)
