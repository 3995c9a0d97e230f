"""The experiment on a dataset: trains seeds with early stopping, tests them once, compares with baselines.

    KIND = Classify()                                   # in seqjax/cli/classify.py, beside its COMMAND
    classify.run(data='x.ts', cell='gru', num_seeds=3)   # from Python

What the files of a kind are, and how they are split, is the kind's; all else is here.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from seqjax import files, training
from seqjax.cli import comparison, dataset_report, dataset_test, flag_tables, task_setup
from seqjax.cli import default_workdir as cli_default_workdir
from seqjax.cli.command import Command
from seqjax.cli.dataset_report import CellResult
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import CellName, Many, Place, Whole
from seqjax.cli.settings import Settings
from seqjax.config import ModelConfig, RunConfig, TrainConfig
from seqjax.datasets.dataset import Answers, Dataset, OnlinePredictor, Unseen
from seqjax.datasets.readers.bounds import Bounds
from seqjax.errors import UserError
from seqjax.nn import models
from seqjax.reporting import significance, text_tables
from seqjax.runs import directory, multihost, result_files
from seqjax.runs.directory import Workdir
from seqjax.training import fit_results, programs, run_summary, sharding
from seqjax.training import replicas as training_replicas
from seqjax.training.compiled_run import CompiledRun
from seqjax.training.fit_results import FitResult
from seqjax.types import Best, EarlyStopping, ModelSpec, Task

STEPS = 'steps'
FILES = (directory.SUMMARY, fit_results.TABLE, fit_results.MODELS, dataset_report.PREDICTIONS, directory.CURVE)
MOST_EVERY = 500  # steps between two looks, where an epoch has more

# Fields of the configurations that are of no use to a dataset.
OTHERS = (
    'attention',
    'scheduled_sampling',
    'success_threshold',
    'train_all_steps',
    'split',
    'keep_best',
    'steps_per_call',
)
MODEL = flag_tables.flags_of(ModelConfig, without=OTHERS)
COMPARE = {'cells': Flag(Many(CellName()), 'train each of these cells, and put them in one table')}
TRAINING = flag_tables.flags_of(TrainConfig, RunConfig, without=OTHERS)
LIMITS = {
    'max_columns': Flag(Whole(1), 'columns or channels that a file may have'),
    'max_bytes': Flag(Whole(1, 2**63 - 1), 'bytes that a file may have, after it is decompressed'),
}
DEFAULTS = {f'max_{name}': value for name, value in Bounds()._asdict().items()} | {'cells': None}
DEFAULTS |= flag_tables.defaults_of(
    ModelConfig(hidden=64),
    TrainConfig(batch_size=32, steps=10_000, clip_norm=1.0, num_seeds=5),
    RunConfig(),
    without=OTHERS,
)


class Sampling(NamedTuple):
    """How texts go on from a prompt."""

    length: int  # tokens
    temperature: float
    samples: int  # texts
    seed: int  # of what is drawn


class TrainedModel(NamedTuple):
    """A trained model, and what it was trained for."""

    kind: Any  # the DatasetExperiment
    settings: Settings  # of the run
    recipe: Mapping[str, Any]
    model: nn.Module
    seed: int
    best: Best


def bounds_of(options: Mapping[str, Any]) -> Bounds:
    """Returns the limits on a file that --max_columns and --max_bytes set."""
    return Bounds(**{name: options[f'max_{name}'] for name in Bounds._fields if f'max_{name}' in options})


class DatasetExperiment:
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

    def stream(self, settings: Settings, recipe: Mapping[str, Any]) -> OnlinePredictor:
        """Observations from --stdin."""
        raise NotImplementedError

    def write(self, found: TrainedModel, prompt: str, how: Sampling) -> list[str]:
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
        flag_tables.check_known(values, self.FLAGS)
        settings = Settings.of(flag_tables.check(self.FLAGS, {**self.defaults, **values}, self.defaults))
        if settings.options['data'] is None:
            raise UserError(f'--data is missing: {self.data_help}')
        flag_tables.check_seeds(settings.train.seed, settings.train.num_seeds)
        task_setup.make_optimizer(settings.train)
        flag_tables.check_memory(*self.sizes(settings))
        return settings

    def sizes(self, settings: Settings) -> tuple[int, dict[str, Any]]:
        """About how many float32 numbers a run holds at least, whatever its data, and the flags that decide it."""
        names, model = ('hidden', 'layers', 'batch_size', 'eval_every', 'num_seeds'), settings.model
        hidden, rows, seeds = model.hidden, settings.train.batch_size, settings.train.num_seeds
        wide, width = model.layers * (1 + model.bidirectional), training_replicas.group_width(seeds)
        gates = min(map(task_setup.gates, settings.options['cells'] or [model.cell]))
        weights, kept = wide * gates * hidden * hidden, wide * (gates + 2) * rows * hidden
        at_once = width if rows * gates * hidden**2 <= programs.MAX_VMAP_SIZE else 1
        numbers = 6 * width * weights + at_once * kept + 4 * width * (settings.train.eval_every or 1)
        numbers += seeds * (2 * weights + 50)  # what is kept of a seed on the host
        return numbers, {name: settings.flags[name] for name in names}

    def run(self, **values: Any) -> list[CellResult]:
        """Learns from a file, and says whether that was worth it.

        Every argument is a flag of the command line. Without `workdir` nothing is kept.

        Raises:
          UserError (a ValueError): an argument or the file is refused, the folder holds another run, or no loss is
            finite.
        """
        settings, start = self.check(values), time.perf_counter()
        dataset = self.dataset(settings)
        # Resolved: a run that is asked for more steps must keep it.
        eval_every = settings.train.eval_every or min(dataset.epoch, MOST_EVERY)
        settings = settings.replace(eval_every=min(eval_every, settings.train.steps))
        dataset = dataset._replace(baselines={name: functools.cache(one) for name, one in dataset.baselines.items()})
        cells = settings.options['cells']
        for cell in cells or [settings.model.cell]:
            task_setup.make_model(dataset.spec, settings.replace(cell=cell).model)
        look = [*dataset.look, *dataset_test.first_scores(dataset)]
        print('\n  '.join([dataset.name, *look]))
        print(f'  read and looked at in {time.perf_counter() - start:.1f} s\n', flush=True)
        return [self._run_one(dataset, settings)] if cells is None else self._run_several(dataset, settings)

    def _run_one(self, dataset: Dataset, settings: Settings) -> CellResult:
        with directory.open_workdir(settings.flags, self.name, names=FILES) as (folder, summary):
            result = self._result(dataset, settings, folder, summary)
            print('\n'.join(['', *result.tell, '', *dataset_report.table_lines(dataset.measure, [result])]))
            if folder.path is not None:
                print('\n' + folder.listing())
            print('\n' + dataset_report.conclusion(dataset.measure, result))
            return result

    def _run_several(self, dataset: Dataset, settings: Settings) -> list[CellResult]:
        """Each cell in a folder of its own, within that of the comparison."""
        cells, measure = settings.options['cells'], dataset.measure
        shared = {name: value for name, value in settings.flags.items() if name not in ('cells', 'cell')}

        def train(cell: str, folder: Workdir) -> CellResult:
            path = None if folder.path is None else str(folder.path / cli_default_workdir.safe_name(cell))
            one = settings.replace(cell=cell, cells=None, workdir=path)
            with directory.open_workdir(one.flags, self.name, names=FILES) as (inner, summary):
                result = self._result(dataset, one, inner, summary)
            print()
            return result

        def show(folder: Workdir, results: Sequence[CellResult]) -> None:
            differences = dataset_report.difference_lines(measure, results)
            print('\n'.join([*dataset_report.table_lines(measure, results), '', *differences]))

        folders = map(cli_default_workdir.safe_name, cells)
        names = dict.fromkeys([directory.SUMMARY, dataset_report.COMPARED, *models.CELLS, *folders])
        write = partial(dataset_report.write_compared, measure=measure)
        results = comparison.compare_runs(shared, f'{self.name}.compare', tuple(names), cells, train, write, show)
        print('\n' + '\n'.join(dataset_report.conclusion(measure, result) for result in results))
        return results

    def _result(
        self,
        dataset: Dataset,
        settings: Settings,
        folder: Workdir,
        summary: Mapping[str, Any] | None,
    ) -> CellResult:
        """Trains and tests, and leaves everything in the folder; or reads what it holds."""
        data = dataset_test.fingerprint(dataset)
        if summary is not None:
            dataset_test.refuse_other_data(folder, summary, data)
            print(f'{folder.path} holds this run, finished: shown again (--overwrite trains anew)')
            with folder.reading():
                return dataset_report.result_of(summary['result'])
        if folder.path is not None and folder.file(directory.SUMMARY).exists():
            dataset_test.refuse_other_data(folder, directory.read_summary(folder), data)
        model, start = task_setup.make_model(dataset.spec, settings.model), time.perf_counter()
        layers = text_tables.model_layers(model, jax.tree.map(lambda x: x[0], dataset.validation.inputs))
        summary = run_summary.new_summary(self.name, settings.flags, layers) | {'data': data, 'recipe': dataset.recipe}
        print(text_tables.format_table(layers) + '\n')
        folder.write_summary(summary)
        with flag_tables.matmul_precision(settings.train.matmul_precision):
            found, eval_every = self._fit(dataset, model, settings, folder)
            result = _tested(dataset, model, settings, found, summary['params'], folder)
        fit_results.write_evals(folder, found, eval_every)
        fit_results.write_models(folder, found)
        seconds = None if found.resumed else time.perf_counter() - start
        models_sha256 = files.sha256(folder.file(fit_results.MODELS)) if folder.writes else None
        ended = {'seconds': seconds, 'result': dataset_report.plain(result), 'models': models_sha256}
        folder.write_summary(summary | {'finished': True} | ended)
        return result

    def _fit(self, dataset: Dataset, model: nn.Module, settings: Settings, folder: Workdir) -> tuple[FitResult, int]:
        """Trains every seed, and tells the steps between two looks."""
        eval_every = settings.train.eval_every
        steps = settings.train.steps // eval_every * eval_every
        stopping = EarlyStopping(eval_every, settings.train.patience)
        evals = {stopping.split: dataset.validation}
        task = Task(dataset.loss_fn, dataset.batch, dataset.data, evals, stopping)
        run = _compile(model, task, settings, folder, steps)
        train = settings.train
        cut = '' if steps == train.steps else f' (--steps={train.steps} cut to a multiple of --eval_every={eval_every})'
        print(
            f'at most {steps:,} training steps{cut} of {train.batch_size} rows, evaluated every {eval_every:,}; early '
            f'stopping with patience {train.patience}'
        )
        seeds = np.arange(train.seed, train.seed + train.num_seeds)
        found = training.train_with_early_stopping(run._replace(allow_divergence=True), seeds)
        if settings.train.refit:
            steps = fit_results.typical_step(found, eval_every)
            print(f'and {steps:,} steps anew, with the validation part in what is trained on')
            task = task._replace(data=dataset.both(), evals={}, early_stopping=None)
            found = training.retrain(_compile(model, task, settings, folder, steps), found)
        return found, eval_every

    def command(self, doc: str) -> Command:
        """The command of the module whose docstring this is."""
        return Command(self.name, doc, self.run, FlagTable(self.FLAGS, self.defaults), self.default_workdir)

    def default_workdir(self, values: dict[str, Any]) -> dict[str, Any]:
        what = 'compare' if values['cells'] else values['cell']
        # Few steps decide --eval_every.
        eval_every = min(values['eval_every'] or MOST_EVERY, values['steps'])
        found = cli_default_workdir.default_workdir(
            values | {'eval_every': eval_every},
            self.defaults | {'eval_every': MOST_EVERY},
            *(self.name, what),
            named=('cell', 'cells'),
            suffix=self.suffix,
        )
        return values | {'workdir': found['workdir']}


def _compile(model: nn.Module, task: Task, settings: Settings, folder: Workdir, steps: int) -> CompiledRun:
    """Compiles a run whose replicas share all cores, unless --mesh says otherwise."""
    run = dataclasses.replace(settings.run, mesh=settings.run.mesh or _devices(settings.train.num_seeds))
    return task_setup.compile_seeds(model, task, settings.train, run, folder, steps)


def _devices(num_seeds: int) -> str | None:
    """A model that learns from a file has enough to do for a core: seeds share all of them."""
    count = min(num_seeds, len(jax.devices()))
    return f'{sharding.DATA}:{count}' if count > 1 and not multihost.is_multiprocess() else None


def _tested(
    dataset: Dataset, model: nn.Module, settings: Settings, found: FitResult, params: int, folder: Workdir
) -> CellResult:
    """The one look at the test part."""
    program, items, chosen = dataset_test.answering(model, dataset.answers), [], found.best_seed()
    for i in range(len(found.seeds)):
        answers = program(fit_results.select_seed(found.best, i), dataset.test.batches)
        items.append(dataset.items(answers))
        if i == chosen:
            of_chosen = answers
    theirs = {name: score('test') for name, score in dataset.baselines.items()}
    gains = {name: significance.improvement(dataset.measure, items, its) for name, its in theirs.items()}
    values = np.array([dataset_test.measure_value(dataset.measure, one) for one in items])
    baselines = {name: dataset_test.measure_value(dataset.measure, its) for name, its in theirs.items()}
    result = CellResult(
        settings.model.cell,
        settings.model.hidden,
        params,
        found.seeds.tolist(),
        values,
        baselines,
        gains,
        int(found.seeds[chosen]),
        list(dataset.tell(of_chosen)),
        significance.best_name(dataset.measure, dataset_test.validation_values(dataset)),
    )
    result_files.write_table(folder, dataset_report.PREDICTIONS, *dataset.test.table(of_chosen))
    if settings.run.plot:
        dataset_report.picture(folder, dataset, found, result, of_chosen, settings)
    return result
