"""Experiments that train seeds for a fixed number of steps and log the loss of every step.

The subclasses are in experiments/td.py and experiments/echo.py. The flags are the fields of the configurations of
`seqjax.config` and of a dataclass of the task.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
import optax

from seqjax import config as seqjax_config
from seqjax import training
from seqjax.cli import default_workdir, figures, flag_tables, task_setup
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import FlagTable
from seqjax.cli.settings import Settings
from seqjax.config import ModelConfig, TrainConfig
from seqjax.errors import UserError
from seqjax.reporting import text_tables
from seqjax.reporting.text_tables import Layer
from seqjax.runs import directory, result_files
from seqjax.runs.directory import Workdir
from seqjax.training import replicas, run_summary
from seqjax.types import Arrays, Task, TrainState


class FinishedRun(NamedTuple):
    """Results of a finished run, just trained or read from its run directory."""

    settings: Settings  # flags of the run
    summary: dict[str, Any]  # content of summary.json
    losses: np.ndarray  # [steps] training loss of every step, or [R, steps] with replicas
    predictions: np.ndarray | None  # see `FixedStepsExperiment.predictions`
    state: TrainState | None = None  # after the last step; None for a run that was read back


class FixedStepsExperiment(abc.ABC):
    """Base class of experiments that train seeds for a fixed number of steps.

    Subclasses define the abstract methods.

    Args:
      name: name of the experiment and of its folder in runs/.
      config: frozen dataclass of the task's flags.
      flags: names of the flags that are not in `flag_tables.SHARED`, in order; the value of the first is part of the
        name of the run directory.
      **defaults: default values that replace the defaults of the configurations.
    """

    STEPS = 'steps'  # flag of the number of training steps
    measured: str  # name of the metric that `measure` returns, for the tables of a sweep
    panels = 1  # number of axes in the figure

    def __init__(self, name: str, config: type, flags: Iterable[str], **defaults: Any):
        configs = (config, *seqjax_config.CONFIGS)
        table, values = flag_tables.flags_of(*configs), flag_tables.defaults_of(*(make() for make in configs))
        self.name, self.config, names = name, config, (*flags, *flag_tables.SHARED)
        self.FLAGS = {name: table[name] for name in names}
        self.defaults = {name: (values | defaults)[name] for name in names}

    def own(self, settings: Settings) -> Any:
        """Returns the values of the task's own flags, as an instance of the dataclass `config`."""
        return self.config(**settings.options)

    def make_task(self, flags: Mapping[str, Any]) -> Task:
        """Returns the task for the values of all flags; raises UserError if flags are invalid or incompatible."""
        settings = Settings.of(flags)
        try:
            return self.task(self.own(settings), settings.train)
        except ValueError as error:
            raise UserError(f'{task_setup.format_flags(settings.options, settings.options)}: {error}') from error

    def make_model(self, flags: Mapping[str, Any], task: Task | None = None) -> nn.Module:
        """Returns the model for the values of all flags; if `task` is None, the task is made from the flags."""
        settings = Settings.of(flags)
        config = self.model_config(settings.model, self.own(settings))
        return task_setup.make_model((task or self.make_task(flags)).spec, config)

    def make_optimizer(self, flags: Mapping[str, Any]) -> optax.GradientTransformation:
        """Returns the optimizer for the values of all flags."""
        return task_setup.make_optimizer(Settings.of(flags).train)

    @abc.abstractmethod
    def task(self, own: Any, train: TrainConfig) -> Task:
        """Returns the task, with a spec, for the task's own flags and the training flags.

        Raises:
          ValueError: flags are incompatible; `make_task` adds the flags to the message.
        """

    @abc.abstractmethod
    def test_inputs(self, task: Task, settings: Settings) -> Arrays:
        """Returns the model inputs [B, ...] for which trained models are run after the last step, see `measure`."""

    @abc.abstractmethod
    def measure(self, outputs: np.ndarray, settings: Settings) -> np.ndarray:
        """Returns the metric `measured` of each seed, [R], from the model outputs for the test inputs, [R, B, ...]."""

    @abc.abstractmethod
    def outcome(self, losses: np.ndarray, outputs: np.ndarray, settings: Settings) -> dict[str, Any]:
        """Returns the entries that the task adds to summary.json, from losses and model outputs for the test inputs."""

    @abc.abstractmethod
    def conclusion(self, run: FinishedRun) -> str:
        """Returns the last line of the printed output, a summary of the results."""

    @abc.abstractmethod
    def title(self, settings: Settings) -> str:
        """Returns the title of the figure."""

    @abc.abstractmethod
    def draw(self, axes: Any, run: FinishedRun) -> None:
        """Draws the results for curve.png on `axes`, an array of `panels` Matplotlib axes."""

    @abc.abstractmethod
    def result(self, run: FinishedRun, figure: Any) -> Any:
        """Returns the value that `run` returns; `figure` is None without --plot or Matplotlib."""

    @abc.abstractmethod
    def sizes(self, **flags: Any) -> tuple[int, dict[str, Any]]:
        """Returns an estimate of a run's memory as a number of float32 values, and the flags that determine it."""

    def max_width(self, **flags: Any) -> int:
        """Returns the maximal number of seeds in a replica group."""
        return replicas.MAX_WIDTH

    def complete(self, flags: dict[str, Any]) -> dict[str, Any]:
        """Returns the flag values after filling in defaults that depend on other flags; the base class changes none."""
        return flags

    def model_config(self, model: ModelConfig, own: Any) -> ModelConfig:
        """Returns the model configuration: `model`, which subclasses may change by the task's own flags."""
        return model

    def predictions(self, outputs: np.ndarray, settings: Settings) -> np.ndarray | None:
        """Returns the predictions of the run from model outputs for the test inputs; None for no predictions.

        With replicas, they are stored in replicas.npz.
        """
        return None

    def read_predictions(self, folder: Workdir, summary: dict[str, Any], settings: Settings) -> np.ndarray | None:
        """Returns the stored `predictions` of a finished run; None if it has none."""
        return None

    def show(self, run: FinishedRun) -> None:  # noqa: B027
        """Prints a table of the predictions; the base class prints nothing."""

    def check(self, values: Mapping[str, Any]) -> Settings:
        """Returns the settings for flag values by name, with the defaults of the flags that are missing.

        Raises:
          UserError: a value is unknown or invalid, or the run exceeds the memory.
        """
        flag_tables.check_known(values, self.FLAGS)
        flags = self.complete(flag_tables.check(self.FLAGS, {**self.defaults, **values}, self.defaults))
        settings = Settings.of(flags)
        flag_tables.check_seeds(settings.train.seed, settings.train.num_seeds)
        flag_tables.check_memory(*self.sizes(**flags))
        return settings

    def run(self, **values: Any) -> Any:
        """Trains seeds for all steps, or reads the results of the finished run in `workdir`; prints and plots them.

        Every argument is a flag of the command line. Without `workdir`, no files are written.

        Returns:
          The value of `result`, which depends on the experiment.

        Raises:
          UserError (a ValueError): an argument is invalid, the folder contains another run, or the loss of all seeds of
            a replica group is not finite.
        """
        settings = self.check(values)
        task = self.make_task(settings.flags)
        model, tx = self.make_model(settings.flags, task), self.make_optimizer(settings.flags)
        with directory.open_workdir(settings.flags, self.name, steps=self.STEPS) as (folder, summary):
            print(f'{self.title(settings)}\n')
            if summary is None:
                with flag_tables.matmul_precision(settings.train.matmul_precision):
                    run = self.train(model, task, tx, settings, folder)
            else:
                print(f'{folder.path} contains this run, finished; showing its results (use --overwrite to retrain)\n')
                run = self.read(folder, summary, settings)
            with folder.reading():
                conclusion = self.conclusion(run)
                self.show(run)
            figure = self.plot(folder, run) if settings.run.plot else None
            if folder.path is not None:
                print('\n' + folder.listing())
            print('\n' + conclusion)
            return self.result(run, figure)

    def train(
        self, model: nn.Module, task: Task, tx: optax.GradientTransformation, settings: Settings, folder: Workdir
    ) -> FinishedRun:
        """Trains all seeds, writes all results except for the figure, and returns them."""
        inputs, config, steps = self.test_inputs(task, settings), settings.train, settings.flags[self.STEPS]
        summary = run_summary.new_summary(self.name, settings.flags, text_tables.model_layers(model, inputs))
        print(_table(summary))
        folder.write_summary(summary)
        run_options = {
            'steps': steps,
            'steps_per_call': settings.run.steps_per_call,
            'workdir': folder,
            'num_seeds': config.num_seeds,
            'max_width': self.max_width(**settings.flags),
            'stream': settings.options.get('stream_from_host', False),
        }
        compiled = training.compile_run(
            model, task, tx, inputs, **run_options, **flag_tables.checkpoint_kwargs(vars(settings.run))
        )
        seeds = np.arange(config.seed, config.seed + (config.num_seeds or 1))
        seed_text = f', seed {seeds[0]}' if config.num_seeds is None else f' of seeds {seeds[0]} to {seeds[-1]}'
        print(f'{steps:,} {self.STEPS}{seed_text}, on {summary["device"]}')
        record = training.train_with_losses(compiled, inputs, seeds, unit=self.STEPS.removesuffix('s'))
        predictions = self.predictions(record.outputs, settings)
        if config.num_seeds is not None:
            arrays = {} if predictions is None else {'predictions': predictions}
            result_files.write_replicas(folder, loss=record.losses, **arrays)
        print(record.timing() + '\n')
        seconds = None if record.resumed else record.seconds
        results = {'seconds': seconds, **run_summary.loss_summary(record.losses)}
        results |= self.outcome(record.losses, record.outputs, settings)
        summary = run_summary.finished_summary(summary, results)
        folder.write_summary(summary)
        return FinishedRun(settings, summary, record.losses, predictions, record.state)

    def read(self, folder: Workdir, summary: dict[str, Any], settings: Settings) -> FinishedRun:
        """Reads the results of a finished run from its directory, and prints its parameter table."""
        with folder.reading():
            print(_table(summary))
        losses = result_files.read_losses(folder, settings.flags[self.STEPS], settings.train.num_seeds)
        return FinishedRun(settings, summary, losses, self.read_predictions(folder, summary, settings))

    def plot(self, folder: Workdir, run: FinishedRun) -> Any:
        """Draws the figure, writes it to the run directory and returns it; returns None without Matplotlib."""
        return figures.write_figure(folder, self.panels, self.title(run.settings), lambda axes: self.draw(axes, run))

    def command(self, doc: str) -> Command:
        """Returns the command that runs this experiment; `doc` is the docstring of its module, for --help."""
        first = next(iter(self.FLAGS))

        def complete(values: dict[str, Any]) -> dict[str, Any]:
            return default_workdir.default_workdir(
                values, self.defaults, self.name, values[first], excluded=[first], steps=self.STEPS
            )

        return Command(self.name, doc, self.run, FlagTable(self.FLAGS, self.defaults), complete)


def _table(summary: dict[str, Any]) -> str:
    return text_tables.format_table([Layer(**layer) for layer in summary['layers']]) + '\n'
