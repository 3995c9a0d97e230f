"""Uses a finished run: predictions for a file, for observations that come one at a time, or a text that goes on.

    seqjax predict --workdir=runs/sales --data=new.csv --out=predictions.csv
    tail -f sales.csv | seqjax predict --workdir=runs/sales --stdin
    seqjax predict --workdir=runs/text/book-lstm --prompt='KING' --length=300 --temperature=0.8

The data go through what the run's went through, with what was fitted on its training part. On the file that the run was
trained on it gives the numbers that the run's own test gave, bit for bit.
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

from seqjax import config, files
from seqjax.cli import dataset_experiment, dataset_test, flag_tables, registry, task_setup
from seqjax.cli.command import Command
from seqjax.cli.dataset_experiment import DatasetExperiment, Sampling, TrainedModel
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import Choice, Place, Positive, Switch, TextParser, Whole
from seqjax.cli.settings import Settings
from seqjax.datasets.dataset import OnlinePredictor
from seqjax.errors import UserError
from seqjax.nn import build
from seqjax.runs import directory
from seqjax.runs.directory import Workdir
from seqjax.training import fit_results
from seqjax.types import Best

NAME = 'predict'
ALL = 'all'

FLAGS = {
    'workdir': Flag(Place(), 'the folder of a finished run'),
    'data': Flag(Place('file'), 'what is predicted: a file like that of the run; or PACKAGE:PATH'),
    'part': Flag(
        Choice(ALL, *config.SPLITS), 'predict all of --data, or the part of it that a run on that file would test on'
    ),
    'out': Flag(Place('file'), 'the CSV file that is written; the terminal by default'),
    'overwrite': Flag(Switch(), 'replace --out where it exists'),
    'seed': Flag(Whole(0, 2**32 - 1), "which of the run's seeds; by default the one that is best on validation"),
    'stdin': Flag(
        Switch(),
        'read observations from the standard input, a line each, and answer each at once; a forecast reads rows with '
        "the columns of the run's file, or those that a header line names",
    ),
    'prompt': Flag(TextParser(), 'write on from here, with a model of text'),
    'length': Flag(Whole(1), 'tokens to write'),
    'temperature': Flag(Positive(), 'below 1 what is likely becomes likelier'),
    'samples': Flag(Whole(1), 'how many texts to write'),
    'draw': Flag(Whole(0, 2**32 - 1), 'decides what is drawn for --prompt'),
    **{
        name: flag._replace(help=flag.help + '; as in the run by default')
        for name, flag in dataset_experiment.LIMITS.items()
    },
}


DEFAULTS = dict.fromkeys(FLAGS) | {'part': ALL, 'overwrite': False, 'stdin': False}
DEFAULTS |= {'length': 200, 'temperature': 1.0, 'samples': 1, 'draw': 0}


def run(**values: Any) -> None:
    """Predicts with the model of a finished run; every argument is a flag of the command line.

    Raises:
      UserError (a ValueError): the run is not there, or of another kind; or the data are not like those of the run.
    """
    flag_tables.check_known(values, FLAGS)
    settings = flag_tables.check(FLAGS, DEFAULTS | values, DEFAULTS)
    if settings['workdir'] is None:
        raise UserError('--workdir is missing: the folder of a finished run, such as runs/forecast/sales-lstm')
    target = None if settings['out'] is None else _target(settings)
    asked = [name for name in ('data', 'stdin', 'prompt') if settings[name] not in (None, False)]
    if len(asked) != 1:
        given = ', '.join(f'--{name}' for name in asked) or 'none of them'
        raise UserError(f'one of --data, --stdin and --prompt must say what to predict, and {given} is given')
    if settings['stdin']:  # a step takes less time than to hand it to another thread
        jax.config.update('jax_cpu_enable_async_dispatch', False)
    found = load(settings['workdir'], settings['seed'])
    limits = {name: settings[name] for name in dataset_experiment.LIMITS if settings[name] is not None}
    found = found._replace(settings=found.settings.replace(**limits))
    {'data': _file, 'stdin': _stream, 'prompt': _write}[asked[0]](found, settings | {'out': target})


def load(workdir: str, seed: int | None = None) -> TrainedModel:
    """The model of a finished run: that of `seed`, or of the seed that is best on validation.

    Raises UserError where there is none; the sentence says what the folder holds instead.
    """
    folder = Workdir(files.expand('workdir', workdir))
    if not os.path.lexists(folder.path) or (os.path.isdir(folder.path) and not folder.has(directory.SUMMARY)):
        raise UserError(f'--workdir={workdir} holds no {directory.SUMMARY}: name the folder of a finished run')
    summary = directory.read_summary(folder)
    kind = kind_of(summary['experiment'], workdir)
    if not summary['finished']:
        raise UserError(f'--workdir={workdir} holds a run that is not finished: the command that began it goes on')
    settings, recipe = _checked(kind, summary, folder)
    spec = kind.spec(recipe)
    model = task_setup.make_model(spec, settings.model)
    like = dict(jax.eval_shape(model.init, jax.random.key(0), build.one_step(spec)))
    seeds, best = _models(folder, summary, settings, like)
    seed = summary['result']['chosen'] if seed is None else seed
    if seed not in seeds:
        raise UserError(f'--seed={seed} is none of the seeds of {workdir}, which are {seeds[0]} to {seeds[-1]}')
    place = seeds.tolist().index(seed)
    if not np.isfinite(best.value[place]):
        raise UserError(f'--seed={seed} of {workdir} never had a finite loss; choose another')
    one = fit_results.select_seed(best, place)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((one.params, one.variables))):
        raise UserError(
            f'{folder.file(fit_results.MODELS)} has parameters of seed {seed} that are not finite; train it again'
        )
    return TrainedModel(kind, settings, recipe, model, seed, one)


def _checked(
    kind: DatasetExperiment, summary: Mapping[str, Any], folder: Workdir
) -> tuple[Settings, Mapping[str, Any]]:
    """The flags and the recipe of a run, which may come from elsewhere: nothing is built of them before this."""
    try:
        settings = kind.check(summary['flags'])
        recipe = kind.check_recipe(settings, summary.get('recipe'))
        chosen = summary['result'].get('chosen') if isinstance(summary.get('result'), dict) else None
        first = settings.train.seed
        last = first + settings.train.num_seeds - 1
        if type(chosen) is not int or not first <= chosen <= last:
            raise UserError(f'its result has chosen={chosen}, which must be a seed from {first} to {last}')
    except UserError as error:
        raise UserError(f'{folder.file(directory.SUMMARY)} is not that of a run: {error}') from error
    return settings, recipe


def _models(
    folder: Workdir, summary: Mapping[str, Any], settings: Settings, like: Mapping[str, Any]
) -> tuple[np.ndarray, Best]:
    """The models of a run, verified by the checksum in its summary; that of an older run has none."""
    path = folder.file(fit_results.MODELS)
    with files.reading(path):
        if summary.get('models') not in (None, files.sha256(path)):
            raise ValueError(f'it is not the file of which {directory.SUMMARY} has the checksum')
    seeds, best = fit_results.read_models(path, like, settings.train.num_seeds)
    if not np.array_equal(seeds, np.arange(len(seeds)) + settings.train.seed):
        raise UserError(f'{path} has the seeds {seeds.tolist()[:5]} ..., and the first must be {settings.train.seed}')
    return seeds, best


def kind_of(experiment: str, workdir: str) -> DatasetExperiment:
    """Returns the dataset experiment of that name; raises UserError if there is none."""
    module = None
    if re.fullmatch(r'[a-z_]+', experiment):
        try:
            module = importlib.import_module(f'{registry.PACKAGE}.{experiment}')
        except ModuleNotFoundError as error:
            if error.name != f'{registry.PACKAGE}.{experiment}':
                raise
    kind = getattr(module, 'KIND', None)
    if not isinstance(kind, DatasetExperiment):
        hint = ': name one of the folders in it' if experiment.endswith('.compare') else ''
        raise UserError(f'--workdir={workdir} holds a run of {experiment}, which learned from no file of data{hint}')
    return kind


def _file(found: TrainedModel, settings: Mapping[str, Any]) -> None:
    unseen = found.kind.unseen(found.settings.replace(part=settings['part']), found.recipe, settings['data'])
    answers = dataset_test.answering(found.model, found.kind.answers(found.recipe))(found.best, unseen.batches)
    columns, rows = unseen.table(answers)
    lines = [*unseen.look, *unseen.tell(answers), f'predicted by seed {found.seed} of {settings["workdir"]}']
    if settings['out'] is None:
        print(*lines, sep='\n', file=sys.stderr)
        files.write_rows(sys.stdout, columns, rows)
        return
    _written(settings['out'], columns, rows)
    print(*lines, f'written to {settings["out"]}', sep='\n')


def _target(settings: Mapping[str, Any]) -> Path:
    """The file of --out; raises UserError where it may not be written."""
    target = files.expand('out', settings['out'])
    try:
        exists, is_file, has_folder = os.path.lexists(target), target.is_file(), target.parent.is_dir()
    except OSError as error:
        raise UserError(f'--out={target} cannot be written ({error.strerror}); choose another') from error
    if exists and not is_file:
        raise UserError(f'--out={target} is not a file; choose another')
    if not has_folder:
        raise UserError(
            f'--out={target} cannot be written: {target.parent} is not a folder; make it, or choose another'
        )
    if exists and not settings['overwrite']:
        raise UserError(f'--out={target} exists; choose another, or --overwrite to replace it')
    return target


def _written(target: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    def write(path):
        with path.open('w', newline='', encoding='utf-8') as file:
            files.write_rows(file, columns, rows)

    try:
        files.replace(target, write)
    except OSError as error:
        raise UserError(f'--out={target} cannot be written ({error.strerror or error}); choose another') from error


def _stream(found: TrainedModel, settings: Mapping[str, Any]) -> None:
    if found.settings.model.bidirectional:
        raise UserError(
            f'--stdin: {settings["workdir"]} was trained --bidirectional, which needs the end before the begin'
        )
    stream = found.kind.stream(found.settings, found.recipe)
    table = csv.writer(sys.stdout, lineterminator='\n')
    table.writerow(stream.columns)
    sys.stdout.flush()
    for values in answers_to(found, stream, lines_of(sys.stdin)):
        table.writerow(values)
        sys.stdout.flush()


def lines_of(file: Any) -> Iterator[str]:
    """Lines without their ends, and without a byte-order mark; raises UserError where one is no text."""
    number = 0
    try:
        for number, line in enumerate(file, 1):
            yield (line.removeprefix('\ufeff') if number == 1 else line).rstrip('\r\n')
    except UnicodeDecodeError as error:
        raise UserError(f'line {number + 1} of the standard input is not UTF-8: {error.reason}') from error


def answers_to(found: TrainedModel, stream: OnlinePredictor, lines: Iterable[str]) -> Iterator[Sequence[Any]]:
    """An answer for each observation, at the cost of one step: the carry is kept."""
    variables = jax.device_put({'params': found.best.params, **found.best.variables})
    first = partial(jax.jit(lambda variables, x: found.model.apply(variables, x, return_carry=True)), variables)
    further = partial(
        jax.jit(lambda variables, carry, x: found.model.apply(variables, x, initial_carry=carry, return_carry=True)),
        variables,
    )
    carries: dict[Any, Any] = {}  # of each series
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
        carry, outputs = further(carries[series], inputs) if series in carries else first(inputs)
        carries[series] = carry
        yield stream.values(np.asarray(outputs)[0].reshape(-1), observed)


def _write(found: TrainedModel, settings: Mapping[str, Any]) -> None:
    how = Sampling(settings['length'], settings['temperature'], settings['samples'], settings['draw'])
    texts = found.kind.write(found, settings['prompt'], how)
    for text in texts:
        print(text + '\n')


COMMAND = Command('predict', __doc__, run, FlagTable(FLAGS, DEFAULTS))
main = COMMAND.main
