"""Experiments on datasets: training of seeds with early stopping, one test, and comparison with baselines.

    EXPERIMENT = Classify()                              # in seqjax/cli/classify.py
    classify.run(data='x.ts', cell='gru', num_seeds=3)   # from Python

A subclass of `DatasetExperiment` for each kind of data reads, splits and evaluates its files.
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
from seqjax.cli.parsers import CellParser, IntParser, ListParser, PathParser
from seqjax.cli.settings import Settings
from seqjax.config import ModelConfig, RunConfig, TrainConfig
from seqjax.datasets.dataset import Dataset, OnlinePredictor, PostprocessFn, PredictionInputs
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
from seqjax.types import BestParameters, EarlyStopping, ModelSpec, Task

STEPS = 'steps'
FILES = (directory.SUMMARY, fit_results.TABLE, fit_results.MODELS, dataset_report.PREDICTIONS, directory.CURVE)
MAX_EVAL_EVERY = 500  # largest default of --eval_every, which is otherwise the training steps of an epoch

# Configuration fields that do not apply to datasets.
UNUSED = (
    'attention',
    'scheduled_sampling',
    'success_threshold',
    'train_all_steps',
    'split',
    'keep_best',
    'steps_per_call',
)
MODEL = flag_tables.flags_of(ModelConfig, without=UNUSED)
COMPARE = {
    'cells': Flag(
        ListParser(CellParser()), 'cells to compare, used instead of --cell; each is trained with the same seeds'
    )
}
TRAINING = flag_tables.flags_of(TrainConfig, RunConfig, without=UNUSED)
LIMITS = {
    'max_columns': Flag(IntParser(1), 'maximal number of columns or channels of a file; more are an error'),
    'max_bytes': Flag(
        IntParser(1, 2**63 - 1), 'maximal size of a file in bytes, after decompression; more is an error'
    ),
}
DEFAULTS = {f'max_{name}': value for name, value in Bounds()._asdict().items()} | {'cells': None}
DEFAULTS |= flag_tables.defaults_of(
    ModelConfig(hidden=64),
    TrainConfig(batch_size=32, steps=10_000, clip_norm=1.0, num_seeds=5),
    RunConfig(),
    without=UNUSED,
)


class Sampling(NamedTuple):
    """Configuration of text generation."""

    max_new_tokens: int  # tokens to generate for each text
    temperature: float  # softmax temperature
    num_samples: int  # number of texts
    seed: int  # random seed of sampling


class TrainedModel(NamedTuple):
    """Trained model of one seed of a finished run."""

    experiment: Any  # the DatasetExperiment
    settings: Settings  # flags of the run
    preprocessing: Mapping[str, Any]  # fitted on the training split, see `Dataset.preprocessing`
    model: nn.Module  # without parameters
    seed: int  # seed of the training
    best: BestParameters  # trained parameters of this seed


def bounds_of(options: Mapping[str, Any]) -> Bounds:
    """Returns the limits on a file that --max_columns and --max_bytes set; the default for a missing option."""
    return Bounds(**{name: options[f'max_{name}'] for name in Bounds._fields if f'max_{name}' in options})


class DatasetExperiment:
    """Base class of experiments on datasets.

    Subclasses override the methods before `__init__`, which raise UserError if a file or a flag is invalid. In their
    arguments, `settings.options` are the flags in no configuration of `seqjax.config`, such as the flags in `OWN`, and
    `preprocessing` is the `Dataset.preprocessing` of the run.
    """

    STEPS = STEPS
    name: str  # name of the command, of its module and of its folder in runs/
    OWN: Mapping[str, Flag]  # flags of the subclass
    own_defaults: Mapping[str, Any]  # defaults of `OWN`, and new defaults of common flags

    def dataset(self, settings: Settings) -> Dataset:
        """Reads --data, and returns it split, preprocessed and batched."""
        raise NotImplementedError

    def spec(self, preprocessing: Mapping[str, Any]) -> ModelSpec:
        """Returns the model's inputs and outputs for this preprocessing: the `Dataset.spec` of the run."""
        raise NotImplementedError

    def postprocess(self, preprocessing: Mapping[str, Any]) -> PostprocessFn:
        """Returns the function from model outputs to predictions: the `Dataset.postprocess` of the run."""
        raise NotImplementedError

    def check_preprocessing(self, settings: Settings, preprocessing: Any) -> Mapping[str, Any]:
        """Returns `preprocessing`, which was read from a run directory; raises UserError if it is invalid.

        The base class returns it without a check.
        """
        return preprocessing

    def prediction_inputs(
        self, settings: Settings, preprocessing: Mapping[str, Any], path: str, split: str = 'all'
    ) -> PredictionInputs:
        """Reads inputs to predict: all of the file `path`, or its 'validation' or 'test' split.

        Raises:
          UserError: the file is invalid, or its labels or columns differ from the training file.
        """
        raise NotImplementedError

    def stream(self, settings: Settings, preprocessing: Mapping[str, Any]) -> OnlinePredictor:
        """Returns the predictor for observations that arrive one per line, as in `seqjax predict --stdin`."""
        raise NotImplementedError

    def write(self, trained: TrainedModel, prompt: str, sampling: Sampling) -> list[str]:
        """Returns `sampling.num_samples` texts that continue `prompt`; raises UserError if it is no language model."""
        raise UserError(
            f'--prompt needs a language model, but --workdir contains a run of {self.name}; pass a run of seqjax text'
        )

    def __init__(self):
        data = Flag(PathParser('file'), self.data_help)
        self.FLAGS = {'data': data, **self.OWN, **LIMITS, **MODEL, **COMPARE, **TRAINING}
        self.defaults = {'data': None, **DEFAULTS, **self.own_defaults}

    data_help = 'file, or PACKAGE:PATH for a file inside an installed package'
    suffix = ''  # usual suffix of --data, left out of the name of the default run directory

    def check(self, values: Mapping[str, Any]) -> Settings:
        """Returns the settings for flag values by name, with the defaults of the flags that are missing.

        Raises:
          UserError: a value is unknown or invalid, values are incompatible, or the run exceeds the memory.
        """
        flag_tables.check_known(values, self.FLAGS)
        settings = Settings.of(flag_tables.check(self.FLAGS, {**self.defaults, **values}, self.defaults))
        if settings.options['data'] is None:
            raise UserError(f'--data is missing; pass --data=FILE ({self.data_help})')
        flag_tables.check_seeds(settings.train.seed, settings.train.num_seeds)
        task_setup.make_optimizer(settings.train)
        flag_tables.check_memory(*self.sizes(settings))
        return settings

    def sizes(self, settings: Settings) -> tuple[int, dict[str, Any]]:
        """Returns a lower bound of a run's memory as a number of float32 values, and the flags that determine it."""
        names, model = ('hidden', 'layers', 'batch_size', 'eval_every', 'num_seeds'), settings.model
        hidden, rows, seeds = model.hidden, settings.train.batch_size, settings.train.num_seeds
        num_layers, width = model.layers * (1 + model.bidirectional), training_replicas.group_width(seeds)
        gates = min(map(task_setup.gates, settings.options['cells'] or [model.cell]))
        weights, residuals = num_layers * gates * hidden * hidden, num_layers * (gates + 2) * rows * hidden
        parallel_replicas = width if rows * gates * hidden**2 <= programs.MAX_VMAP_SIZE else 1
        numbers = 6 * width * weights + parallel_replicas * residuals + 4 * width * (settings.train.eval_every or 1)
        numbers += seeds * (2 * weights + 50)  # results of a seed on the host
        return numbers, {name: settings.flags[name] for name in names}

    def run(self, **values: Any) -> list[CellResult]:
        """Trains on a file, tests the best parameters of each seed, and compares them with baselines.

        Every argument is a flag of the command line. Without `workdir`, no files are written. If `workdir` contains
        this run, finished, its results are read instead.

        Returns:
          A list with a CellResult for each of `cells` or, without `cells`, for `cell`.

        Raises:
          UserError (a ValueError): an argument or the file is invalid, the folder contains another run, or no
            validation loss is finite.
        """
        settings, start = self.check(values), time.perf_counter()
        dataset = self.dataset(settings)
        # Stored in the flags of the run, because it must not change if --steps is increased later.
        eval_every = settings.train.eval_every or min(dataset.steps_per_epoch, MAX_EVAL_EVERY)
        settings = settings.replace(eval_every=min(eval_every, settings.train.steps))
        dataset = dataset._replace(
            baselines={name: functools.cache(score) for name, score in dataset.baselines.items()}
        )
        cells = settings.options['cells']
        for cell in cells or [settings.model.cell]:
            task_setup.make_model(dataset.spec, settings.replace(cell=cell).model)
        print('\n  '.join([dataset.name, *dataset.description, *dataset_test.validation_lines(dataset)]))
        print(f'  read in {time.perf_counter() - start:.1f} s\n', flush=True)
        return [self._run_one(dataset, settings)] if cells is None else self._run_several(dataset, settings)

    def _run_one(self, dataset: Dataset, settings: Settings) -> CellResult:
        """Trains and tests the cell --cell, or reads the results of its finished run, and prints them."""
        with directory.open_workdir(settings.flags, self.name, names=FILES) as (folder, summary):
            result = self._result(dataset, settings, folder, summary)
            print('\n'.join(['', *result.summary_lines, '', *dataset_report.table_lines(dataset.metric, [result])]))
            if folder.path is not None:
                print('\n' + folder.listing())
            print('\n' + dataset_report.conclusion(dataset.metric, result))
            return result

    def _run_several(self, dataset: Dataset, settings: Settings) -> list[CellResult]:
        """Trains and tests each cell of --cells in its own subfolder of the run directory, and prints a comparison."""
        cells, metric = settings.options['cells'], dataset.metric
        shared = {name: value for name, value in settings.flags.items() if name not in ('cells', 'cell')}

        def train(cell: str, folder: Workdir) -> CellResult:
            path = None if folder.path is None else str(folder.path / cli_default_workdir.safe_name(cell))
            cell_settings = settings.replace(cell=cell, cells=None, workdir=path)
            with directory.open_workdir(cell_settings.flags, self.name, names=FILES) as (inner, summary):
                result = self._result(dataset, cell_settings, inner, summary)
            print()
            return result

        def show(folder: Workdir, results: Sequence[CellResult]) -> None:
            differences = dataset_report.difference_lines(metric, results)
            print('\n'.join([*dataset_report.table_lines(metric, results), '', *differences]))

        folders = map(cli_default_workdir.safe_name, cells)
        names = dict.fromkeys([directory.SUMMARY, dataset_report.COMPARED, *models.CELLS, *folders])
        write = partial(dataset_report.write_compared, metric=metric)
        results = comparison.compare_runs(shared, f'{self.name}.compare', tuple(names), cells, train, write, show)
        print('\n' + '\n'.join(dataset_report.conclusion(metric, result) for result in results))
        return results

    def _result(
        self,
        dataset: Dataset,
        settings: Settings,
        folder: Workdir,
        summary: Mapping[str, Any] | None,
    ) -> CellResult:
        """Returns the test results of one cell: trains, tests and writes them, or reads them from `summary`.

        `summary` belongs to the finished run in the folder; None if the run is not finished.
        """
        data = dataset_test.fingerprint(dataset)
        if summary is not None:
            dataset_test.check_same_data(folder, summary, data)
            print(f'{folder.path} contains this run, finished; showing its results (use --overwrite to retrain)')
            with folder.reading():
                return dataset_report.from_json(summary['result'])
        if folder.path is not None and folder.file(directory.SUMMARY).exists():
            dataset_test.check_same_data(folder, directory.read_summary(folder), data)
        model, start = task_setup.make_model(dataset.spec, settings.model), time.perf_counter()
        layers = text_tables.model_layers(model, jax.tree.map(lambda x: x[0], dataset.validation.inputs))
        summary = run_summary.new_summary(self.name, settings.flags, layers) | {
            'data': data,
            'preprocessing': dataset.preprocessing,
        }
        print(text_tables.format_table(layers) + '\n')
        folder.write_summary(summary)
        with flag_tables.matmul_precision(settings.train.matmul_precision):
            fit, eval_every = self._fit(dataset, model, settings, folder)
            result = _test(dataset, model, settings, fit, summary['params'], folder)
        fit_results.write_evals(folder, fit, eval_every)
        fit_results.write_models(folder, fit)
        seconds = None if fit.resumed else time.perf_counter() - start
        models_sha256 = files.sha256(folder.file(fit_results.MODELS)) if folder.writes else None
        end = {'seconds': seconds, 'result': dataset_report.to_json(result), 'models': models_sha256}
        folder.write_summary(run_summary.finished_summary(summary, end))
        return result

    def _fit(self, dataset: Dataset, model: nn.Module, settings: Settings, folder: Workdir) -> tuple[FitResult, int]:
        """Trains all seeds with early stopping, then again with --refit; returns the FitResult and --eval_every."""
        eval_every = settings.train.eval_every
        steps = settings.train.steps // eval_every * eval_every
        stopping = EarlyStopping(eval_every, settings.train.patience)
        evals = {stopping.split: dataset.validation}
        task = Task(dataset.loss_fn, dataset.batch, dataset.data, evals, stopping)
        run = _compile(model, task, settings, folder, steps)
        train = settings.train
        rounded = (
            ''
            if steps == train.steps
            else f' (--steps={train.steps}, rounded down to a multiple of --eval_every={eval_every})'
        )
        print(
            f'At most {steps:,} training steps{rounded}, batch size {train.batch_size}, evaluation every '
            f'{eval_every:,} steps, early stopping with patience {train.patience}'
        )
        seeds = np.arange(train.seed, train.seed + train.num_seeds)
        fit = training.train_with_early_stopping(run._replace(allow_divergence=True), seeds)
        if settings.train.refit:
            steps = fit_results.typical_step(fit, eval_every)
            print(f'Retraining for {steps:,} steps on the training and validation splits')
            task = task._replace(data=dataset.train_plus_validation(), evals={}, early_stopping=None)
            fit = training.retrain(_compile(model, task, settings, folder, steps), fit)
        return fit, eval_every

    def command(self, doc: str) -> Command:
        """Returns the command that runs this experiment; `doc` is the docstring of its module, for --help."""
        return Command(self.name, doc, self.run, FlagTable(self.FLAGS, self.defaults), self.default_workdir)

    def default_workdir(self, values: dict[str, Any]) -> dict[str, Any]:
        """Returns the flag values with the default --workdir, unless --workdir is set."""
        cell_name = 'compare' if values['cells'] else values['cell']
        # As in `run`: --steps limits --eval_every.
        eval_every = min(values['eval_every'] or MAX_EVAL_EVERY, values['steps'])
        completed = cli_default_workdir.default_workdir(
            values | {'eval_every': eval_every},
            self.defaults | {'eval_every': MAX_EVAL_EVERY},
            *(self.name, cell_name),
            excluded=('cell', 'cells'),
            suffix=self.suffix,
        )
        return values | {'workdir': completed['workdir']}


def _compile(model: nn.Module, task: Task, settings: Settings, folder: Workdir, steps: int) -> CompiledRun:
    """Compiles the training of all seeds; without --mesh, the seeds are sharded over the devices, see `_devices`."""
    run = dataclasses.replace(settings.run, mesh=settings.run.mesh or _devices(settings.train.num_seeds))
    return task_setup.compile_seeds(model, task, settings.train, run, folder, steps)


def _devices(num_seeds: int) -> str | None:
    """Returns the default --mesh, data:N with N = min(seeds, devices); None if N is 1 or with several processes."""
    count = min(num_seeds, len(jax.devices()))
    return f'{sharding.DATA}:{count}' if count > 1 and not multihost.is_multiprocess() else None


def _test(
    dataset: Dataset, model: nn.Module, settings: Settings, fit: FitResult, params: int, folder: Workdir
) -> CellResult:
    """Returns the test results of all seeds and of the baselines.

    Writes predictions.csv of the seed that is best on validation and, with --plot, curve.png.
    """
    predict, items, best_index = dataset_test.make_predictor(model, dataset.postprocess), [], fit.best_seed()
    for i in range(len(fit.seeds)):
        answers = predict(fit_results.select_seed(fit.best, i), dataset.test.batches)
        items.append(dataset.items(answers))
        if i == best_index:
            best_answers = answers
    baseline_items = {name: score('test') for name, score in dataset.baselines.items()}
    gains = {name: significance.improvement(dataset.metric, items, scores) for name, scores in baseline_items.items()}
    values = np.array([dataset_test.metric_value(dataset.metric, scores) for scores in items])
    baselines = {name: dataset_test.metric_value(dataset.metric, scores) for name, scores in baseline_items.items()}
    result = CellResult(
        settings.model.cell,
        settings.model.hidden,
        params,
        fit.seeds.tolist(),
        values,
        baselines,
        gains,
        int(fit.seeds[best_index]),
        list(dataset.summary(best_answers)),
        significance.best_name(dataset.metric, dataset_test.validation_values(dataset)),
        len(items[0].totals),
    )
    result_files.write_table(folder, dataset_report.PREDICTIONS, *dataset.test.table(best_answers))
    if settings.run.plot:
        dataset_report.plot(folder, dataset, fit, result, best_answers)
    return result
