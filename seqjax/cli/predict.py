"""Predict with the model of a finished run: for a file, for a stream of observations, or by continuing a text.

    seqjax predict --workdir=runs/sales --data=new.csv --out=predictions.csv
    tail -f sales.csv | seqjax predict --workdir=runs/sales --stdin
    seqjax predict --workdir=runs/text/book-lstm --prompt='KING' --max_new_tokens=300 --temperature=0.8

New data go through the preprocessing that was fitted on the training split of the run. With --split=test on the file
that the run was trained on, the predictions equal the run's test predictions bit for bit.
"""

import csv
import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import config, files, options
from seqjax.cli import dataset_experiment, dataset_test, flag_tables, registry, task_setup
from seqjax.cli.command import Command
from seqjax.cli.dataset_experiment import DatasetExperiment, Sampling, TrainedModel
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import BoolParser, ChoiceParser, IntParser, PathParser, PositiveParser, TextParser
from seqjax.cli.settings import Settings
from seqjax.datasets.dataset import OnlinePredictor
from seqjax.errors import UserError
from seqjax.nn import build
from seqjax.runs import directory
from seqjax.runs.directory import Workdir
from seqjax.training import fit_results
from seqjax.types import BestParameters

NAME = 'predict'
ALL = 'all'

FLAGS = {
    'workdir': Flag(PathParser(), 'run directory of a finished run on a dataset (required)'),
    'data': Flag(
        PathParser('file'),
        'file to predict, in the format of the training file; or PACKAGE:PATH, a file of an installed package',
    ),
    'split': Flag(
        ChoiceParser(ALL, *config.SPLITS),
        'predict all of --data, or only its validation or test split; the file is split as in training',
    ),
    'out': Flag(PathParser('file'), 'CSV file for the predictions of --data; by default the standard output'),
    'overwrite': Flag(BoolParser(), 'replace --out if it exists'),
    'seed': Flag(
        IntParser(0, 2**32 - 1),
        'seed of the run whose model is used; by default the seed that is best on validation',
    ),
    'stdin': Flag(
        BoolParser(),
        'read observations from the standard input, one per line, and write a prediction after each line; a run of '
        "forecast reads CSV rows, with the columns of a header line in the input or else of the run's file",
    ),
    'prompt': Flag(TextParser(), 'text to continue; needs a run of seqjax text'),
    'max_new_tokens': Flag(IntParser(1), 'number of tokens to generate after --prompt'),
    'temperature': Flag(
        PositiveParser(), 'softmax temperature of sampling; values below 1 make likely tokens likelier'
    ),
    'num_samples': Flag(IntParser(1), 'number of texts to generate for --prompt'),
    'sample_seed': Flag(IntParser(0, 2**32 - 1), 'random seed of sampling for --prompt'),
    **{
        name: flag._replace(help=flag.help + "; by default the run's value")
        for name, flag in dataset_experiment.LIMITS.items()
    },
}


DEFAULTS = dict.fromkeys(FLAGS) | {'split': ALL, 'overwrite': False, 'stdin': False}
DEFAULTS |= {'max_new_tokens': 200, 'temperature': 1.0, 'num_samples': 1, 'sample_seed': 0}


def run(**values: Any) -> None:
    """Predicts with the model of a finished run, and prints the predictions or writes them to `out`.

    Every argument is a flag of the command line.

    Raises:
      UserError (a ValueError): an argument is invalid; the run does not exist, is unfinished or has no dataset; or the
        data do not match the run.
    """
    flag_tables.check_known(values, FLAGS)
    settings = flag_tables.check(FLAGS, DEFAULTS | values, DEFAULTS)
    if settings['workdir'] is None:
        raise UserError(
            '--workdir is missing; pass the run directory of a finished run, such as runs/forecast/sales-lstm'
        )
    out_path = None if settings['out'] is None else _check_out(settings)
    modes = [name for name in ('data', 'stdin', 'prompt') if settings[name] not in (None, False)]
    if len(modes) != 1:
        passed = ', '.join(f'--{name}' for name in modes) or 'none'
        raise UserError(f'pass exactly one of --data, --stdin and --prompt (passed: {passed})')
    if settings['stdin']:  # a step takes less time than its dispatch to another thread
        jax.config.update('jax_cpu_enable_async_dispatch', False)
    trained = load(settings['workdir'], settings['seed'])
    limits = {name: settings[name] for name in dataset_experiment.LIMITS if settings[name] is not None}
    trained = trained._replace(settings=trained.settings.replace(**limits))
    predict = {'data': _predict_file, 'stdin': _predict_stream, 'prompt': _generate}[modes[0]]
    predict(trained, settings | {'out': out_path})


def load(workdir: str, seed: int | None = None) -> TrainedModel:
    """Returns the trained model of one seed of a finished run.

    Args:
      workdir: run directory.
      seed: one of the run's seeds; None for the seed that is best on validation.

    Raises:
      UserError: the directory contains no finished run on a dataset, its files are invalid, or the run has no such seed
        or the loss of the seed was never finite.
    """
    folder = Workdir(files.expand('workdir', workdir))
    if not os.path.lexists(folder.path) or (os.path.isdir(folder.path) and not folder.has(directory.SUMMARY)):
        raise UserError(
            f'--workdir={workdir} contains no {directory.SUMMARY}; pass the run directory of a finished run'
        )
    summary = directory.read_summary(folder)
    experiment = find_experiment(summary['experiment'], workdir)
    if not summary['finished']:
        raise UserError(f'--workdir={workdir} contains an unfinished run; rerun its command to finish it')
    settings, preprocessing = _checked(experiment, summary, folder)
    spec = experiment.spec(preprocessing)
    model = task_setup.make_model(spec, settings.model)
    like = dict(jax.eval_shape(model.init, jax.random.key(0), build.one_step(spec)))
    seeds, best = _models(folder, summary, settings, like)
    seed = summary['result']['chosen'] if seed is None else seed
    if seed not in seeds:
        raise UserError(f'--seed={seed} is not a seed of the run in {workdir}; use one from {seeds[0]} to {seeds[-1]}')
    index = seeds.tolist().index(seed)
    if not np.isfinite(best.value[index]):
        raise UserError(f'--seed={seed} never had a finite validation loss in the run of {workdir}; use another seed')
    seed_best = fit_results.select_seed(best, index)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((seed_best.params, seed_best.variables))):
        raise UserError(
            f'{folder.file(fit_results.MODELS)} contains non-finite parameters of seed {seed}; repeat the training '
            'command with --overwrite'
        )
    return TrainedModel(experiment, settings, preprocessing, model, seed, seed_best)


def _checked(
    experiment: DatasetExperiment, summary: Mapping[str, Any], folder: Workdir
) -> tuple[Settings, Mapping[str, Any]]:
    """Returns the settings and the preprocessing in the summary of a run; raises UserError if they are invalid."""
    try:
        settings = experiment.check(summary['flags'])
        preprocessing = experiment.check_preprocessing(settings, summary.get('preprocessing'))
        best_seed = summary['result'].get('chosen') if isinstance(summary.get('result'), dict) else None
        first = settings.train.seed
        last = first + settings.train.num_seeds - 1
        if type(best_seed) is not int or not first <= best_seed <= last:
            raise UserError(f'result.chosen={best_seed} must be a seed of the run, from {first} to {last}')
    except UserError as error:
        raise UserError(
            f'{folder.file(directory.SUMMARY)} is not a valid run summary ({error}); repeat the training command with '
            '--overwrite'
        ) from error
    return settings, preprocessing


def _models(
    folder: Workdir, summary: Mapping[str, Any], settings: Settings, like: Mapping[str, Any]
) -> tuple[np.ndarray, BestParameters]:
    """Returns the seeds [R] of a run and their best parameters, after verifying the checksum if the summary has it."""
    path = folder.file(fit_results.MODELS)
    with files.reading(path):
        if summary.get('models') not in (None, files.sha256(path)):
            raise ValueError(f'the checksum of {fit_results.MODELS} differs from that in {directory.SUMMARY}')
    seeds, best = fit_results.read_models(path, like, settings.train.num_seeds)
    if not np.array_equal(seeds, np.arange(len(seeds)) + settings.train.seed):
        raise UserError(
            f'{path} has the seeds {options.some(map(str, seeds.tolist()), 5)}, which must be consecutive from '
            f'{settings.train.seed}; repeat the training command with --overwrite'
        )
    return seeds, best


def find_experiment(name: str, workdir: str) -> DatasetExperiment:
    """Returns the dataset experiment of the command `name`; raises UserError if the command does not have one.

    `workdir` is the run directory that the message shows.
    """
    module = None
    if re.fullmatch(r'[a-z_]+', name):
        try:
            module = importlib.import_module(f'{registry.PACKAGE}.{name}')
        except ModuleNotFoundError as error:
            if error.name != f'{registry.PACKAGE}.{name}':
                raise
    experiment = getattr(module, 'EXPERIMENT', None)
    if not isinstance(experiment, DatasetExperiment):
        hint = '; pass the folder of one cell inside it' if name.endswith('.compare') else '; use a run on a dataset'
        raise UserError(f'--workdir={workdir} contains a run of {name}, not of one cell on a dataset{hint}')
    return experiment


# --- files ----------------------------------------------------------------------------------------


def _predict_file(trained: TrainedModel, settings: Mapping[str, Any]) -> None:
    unseen = trained.experiment.prediction_inputs(
        trained.settings, trained.preprocessing, settings['data'], settings['split']
    )
    answers = dataset_test.make_predictor(trained.model, trained.experiment.postprocess(trained.preprocessing))(
        trained.best, unseen.batches
    )
    columns, rows = unseen.table(answers)
    lines = [
        *unseen.description,
        *unseen.summary(answers),
        f'predictions of seed {trained.seed} of {settings["workdir"]}',
    ]
    if settings['out'] is None:
        print(*lines, sep='\n', file=sys.stderr)
        files.write_rows(sys.stdout, columns, rows)
        return
    _write_csv(settings['out'], columns, rows)
    print(*lines, f'Wrote {settings["out"]}', sep='\n')


def _check_out(settings: Mapping[str, Any]) -> Path:
    """Returns the path of --out; raises UserError if it cannot be written, or exists without --overwrite."""
    target = files.expand('out', settings['out'])
    try:
        exists, is_file, has_folder = os.path.lexists(target), target.is_file(), target.parent.is_dir()
    except OSError as error:
        raise UserError(f'--out={target} cannot be written ({error.strerror}); use another path') from error
    if exists and not is_file:
        raise UserError(f'--out={target} exists and is not a file; use another path')
    if not has_folder:
        raise UserError(
            f'--out={target} cannot be written: {target.parent} is not an existing folder; create it, or use another '
            'path'
        )
    if exists and not settings['overwrite']:
        raise UserError(f'--out={target} exists; use another path, or --overwrite to replace it')
    return target


def _write_csv(target: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    def write(path):
        with path.open('w', newline='', encoding='utf-8') as file:
            files.write_rows(file, columns, rows)

    try:
        files.replace(target, write)
    except OSError as error:
        raise UserError(f'--out={target} cannot be written ({error.strerror or error}); use another path') from error


# --- streams of observations ---------------------------------------------------------------


def _predict_stream(trained: TrainedModel, settings: Mapping[str, Any]) -> None:
    if trained.settings.model.bidirectional:
        raise UserError(
            f'--stdin needs a causal model, and {settings["workdir"]} was trained with --bidirectional; use --data'
        )
    stream = trained.experiment.stream(trained.settings, trained.preprocessing)
    table = csv.writer(sys.stdout, lineterminator='\n')
    table.writerow(stream.columns)
    sys.stdout.flush()
    for values in predictions_of(trained, stream, lines_of(sys.stdin)):
        table.writerow(values)
        sys.stdout.flush()


def lines_of(file: Any) -> Iterator[str]:
    """Yields the lines of a file without line ends and byte-order mark; raises UserError if a line is not UTF-8."""
    number = 0
    try:
        for number, line in enumerate(file, 1):
            yield (line.removeprefix('\ufeff') if number == 1 else line).rstrip('\r\n')
    except UnicodeDecodeError as error:
        raise UserError(
            f'line {number + 1} of the standard input, or a later one, is not UTF-8 ({error.reason}); convert the input'
        ) from error


def predictions_of(trained: TrainedModel, stream: OnlinePredictor, lines: Iterable[str]) -> Iterator[Sequence[Any]]:
    """Yields the row of output values of each line that is an observation.

    The carry is kept between lines, so a prediction costs one time step. Another line, such as an empty one, resets the
    carries of all series.
    """
    variables = jax.device_put({'params': trained.best.params, **trained.best.variables})
    first_step = partial(jax.jit(lambda variables, x: trained.model.apply(variables, x, return_carry=True)), variables)
    next_step = partial(
        jax.jit(lambda variables, carry, x: trained.model.apply(variables, x, initial_carry=carry, return_carry=True)),
        variables,
    )
    carries: dict[Any, Any] = {}  # carry of each series
    for number, line in enumerate(lines, 1):
        try:
            observed = stream.parse(line) if line or stream.takes_empty else None
        except UserError as error:
            raise UserError(f'line {number} of the standard input: {error}') from error
        if observed is None:
            carries.clear()
            stream.restart()
            continue
        inputs, series = jnp.asarray(np.stack([observed[None]] * stream.rows)), stream.series()
        carry, outputs = next_step(carries[series], inputs) if series in carries else first_step(inputs)
        carries[series] = carry
        yield stream.values(np.asarray(outputs)[0].reshape(-1), observed)


# --- texts ------------------------------------------------------------------------------------------


def _generate(trained: TrainedModel, settings: Mapping[str, Any]) -> None:
    sampling = Sampling(
        settings['max_new_tokens'], settings['temperature'], settings['num_samples'], settings['sample_seed']
    )
    texts = trained.experiment.write(trained, settings['prompt'], sampling)
    for text in texts:
        print(text + '\n')


COMMAND = Command('predict', __doc__, run, FlagTable(FLAGS, DEFAULTS))
main = COMMAND.main
