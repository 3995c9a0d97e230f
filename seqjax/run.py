"""The host half of a run: from checkpoint to checkpoint, logged, stopped by signals. It knows no task by name."""

from __future__ import annotations

import contextlib
import functools
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import seqjax
from seqjax import checkpoint, memory, mesh, optim, processes, report, signals, streaming, sweep, train
from seqjax.checkpoint import About, Store
from seqjax.files import CHECKPOINTS, METRICS, Journal, UserError, Workdir
from seqjax.progress import progress
from seqjax.task import Arrays, Mean, State, Task, batch_shapes

LOSSES = 'losses.f32'  # of a group of replicas, [steps, replicas], until replicas.npz is written


class Saving(NamedTuple):
    """When a run saves, and what it keeps."""

    every: int  # steps; it saves at the end, too
    keep: int = 2  # of the newest checkpoints
    best: str | None = None  # the metric whose best checkpoint stays as well, see `checkpoint.Store`


class Record(NamedTuple):
    """What a run leaves behind."""

    losses: np.ndarray  # [steps], or [R, steps] with replicas
    outputs: np.ndarray  # of the trained model: [B, ...], or [R, B, ...]
    state: State  # the last; of the last group with replicas
    seconds: dict[str, float]  # 'compile' and 'train', of this session
    resumed: bool = False  # whether a part of it was done before this session

    def timing(self) -> str:
        """The seconds, for a person."""
        text = 'compiled in {compile:.2f} s, trained in {train:.2f} s'.format(**self.seconds)
        return f'{text} since it was resumed' if self.resumed else text


class Part(NamedTuple):
    """A chunk of training."""

    step: int  # steps taken before it
    state: State  # after it; leaves [R, ...] with replicas, a group that was filled up with what filled it
    metrics: train.Metrics  # leaves [n], or [n, R] without what filled the group up
    evals: dict[str, train.Metrics]  # of every split after it, leaves [] or [R]


# --- the summary -----------------------------------------------------------------------------------


def new_summary(experiment: str, settings: dict[str, Any], layers: Sequence[report.Layer]) -> dict[str, Any]:
    """What is known of a run before its first step."""
    device = jax.devices()[0]
    versions = {'seqjax': seqjax.__version__, 'python': platform.python_version()}
    return {
        'experiment': experiment,
        'finished': False,
        'flags': settings,
        'versions': versions | checkpoint.versions(),
        'device': f'{device.platform} ({device.device_kind})',
        'layers': [layer._asdict() for layer in layers],
        'params': sum(layer.params for layer in layers),
    }


def loss_summary(losses: np.ndarray) -> dict[str, Any]:
    """The first and the last loss; with replicas [R, steps] their medians, and quantiles of the last."""
    if losses.ndim == 1:
        return {'first_loss': float(losses[0]), 'last_loss': float(losses[-1])}
    quantiles = report.loss_quantiles(losses[:, [0, -1]])
    names = [f'{q:g}' for q in report.BANDS]
    return {
        'first_loss': float(quantiles[2, 0]),
        'last_loss': float(quantiles[2, 1]),
        'last_loss_quantiles': dict(zip(names, quantiles[:, 1].tolist(), strict=True)),
    }


# --- from checkpoint to checkpoint -----------------------------------------------------------------


class Begin(NamedTuple):
    """What happens to a State before its first step."""

    change: Callable[[State, Arrays], State]  # the same function for all groups, so that it is compiled once
    given: Arrays  # to it, of one group


class Plan(NamedTuple):
    """What all legs of a run share."""

    task: Task
    tx: optax.GradientTransformation
    programs: train.Programs
    steps: int
    chunk: int
    workdir: Workdir
    saving: Saving
    layout: mesh.Layout | None  # None on one device
    width: int | None  # replicas side by side, with what fills a group up
    seconds: float  # that compiling took
    source: Task | None = None  # whose data stay on the host, from where they are streamed
    tolerant: bool = False  # goes on where no loss of a group is finite any more
    group: int | None = None  # replicas of a group

    @property
    def whole(self) -> jax.sharding.Sharding | None:
        """Of what the host wants to see."""
        return None if self.layout is None else self.layout.whole

    @contextlib.contextmanager
    def leg(
        self,
        seeds: Any,
        journals: Mapping[str, Journal],
        *,
        place: str = '',
        begin: Begin | None = None,
    ) -> Iterator[Leg]:
        """One seed, or one group of them, on its way from where it was left.

        Saves at the end, and ends the run there where a signal asked for it.

        Args:
          seeds: a seed, or those of a group [n], n at most the width.
          journals: what is written along the way, by name; each is cut off where the checkpoint found it.
          place: the folder of its checkpoints, within that of the run's.
          begin: changes the State before the first step, such as its learning rates.

        Raises:
          UserError: no checkpoint is sound, it is of another run, or the disk refuses to take one.
        """
        count = None if self.width is None else len(seeds)
        seeds = np.asarray(seeds, np.uint32) if count is None else sweep.fill(seeds, self.width).astype(np.uint32)
        if self.workdir.path is None:
            state = self._initial(seeds, begin)
            yield Leg(self, None, journals, state, 0, dict.fromkeys(journals, b''), count, self._feed(0, None))
            return
        store = Store(self.workdir.path / CHECKPOINTS / place, keep=self.saving.keep, best=self.saving.best)
        with contextlib.ExitStack() as stack:
            stack.callback(store.close)
            found = store.restore(self._kept_shapes(count), partial(self._fault, journals))
            if found is None:
                state, taken, marks, feed = self._initial(seeds, begin), 0, dict.fromkeys(journals), None
            else:
                state, about = found
                state, taken, marks, feed = self._placed(state), about.step, about.journals, about.feed
                self.workdir.refuse_fewer_steps(taken)
                _tell_versions(about)
            for journal in journals.values():
                stack.callback(journal.close)
            held = processes.share(lambda: {name: journal.begin(marks[name]) for name, journal in journals.items()})
            asked = stack.enter_context(signals.asked(later=True))
            leg = Leg(self, store, journals, state, taken, held, count, self._feed(taken, feed), asked)
            yield leg
            leg.save()
            leg.heed_signals()

    def _feed(self, step: int, state: Mapping[str, Any] | None) -> streaming.Feed | None:
        if self.source is None:
            return None
        return streaming.Feed(self.source, steps=self.steps, chunk=self.chunk, step=step, state=state and dict(state))

    def _initial(self, seeds: np.ndarray, begin: Begin | None) -> State:
        state = self.programs.init(seeds)
        return state if begin is None else jax.jit(begin.change, out_shardings=self._lies)(state, begin.given)

    @property
    def _lies(self) -> Any:
        """Where the State belongs."""
        return None if self.layout is None else self.layout.state(self.programs.shapes[0])

    def kept(self, state: State, count: int | None) -> State:
        """What is saved of a State: not what filled a group up, so that it does not matter how wide the group was."""
        return state if count == self.width else _first_rows(count, self.whole)(state)

    def _kept_shapes(self, count: int | None) -> State:
        shapes = self.programs.shapes[0]
        return shapes if count == self.width else jax.eval_shape(_first_rows(count, None), shapes)

    def _placed(self, state: State) -> State:
        """What was saved, filled up, where it belongs."""
        if self.width is not None:
            state = jax.tree.map(lambda x: sweep.fill(x, self.width), state)
        shapes = self.programs.shapes[0]
        return jax.jit(lambda state: checkpoint.with_keys(state, shapes), out_shardings=self._lies)(state)

    def _fault(self, journals: Mapping[str, Journal], about: About) -> str | None:
        """Why a sound checkpoint is of no use here."""
        self.workdir.refuse_another_run(about.experiment, about.flags)
        faults = [journal.fault(about.journals[name]) for name, journal in journals.items()]
        return next((fault for fault in faults if fault is not None), None)


@functools.cache
def _first_rows(count: int, whole: jax.sharding.Sharding | None) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: jax.tree.map(lambda x: x[:count], tree), out_shardings=whole)


def _tell_versions(about: About) -> None:
    now = checkpoint.versions()
    other = [
        f'{name} {about.versions[name]} (here {now[name]})' for name in now if about.versions.get(name) != now[name]
    ]
    if other:
        print(f'step {about.step:,} was saved with {", ".join(other)}: the numbers may differ in their last bits')


class Leg:
    """See `Plan.leg`."""

    def __init__(
        self,
        plan: Plan,
        store: Store | None,
        journals: Mapping[str, Journal],
        state: State,
        taken: int,
        held: Mapping[str, bytes],
        count: int | None,
        feed: streaming.Feed | None,
        asked: signals.Asked | None = None,
    ):
        self.plan, self.store, self.journals, self.count, self.asked = plan, store, journals, count, asked
        self.feed, self.task = feed, plan.task
        self.state = state
        self.taken = taken  # steps
        self.held = held  # what each journal said when the leg began
        self.values: dict[str, float | None] = {}  # of the metrics at the last step

    def train(self) -> Iterator[Part]:
        """Goes on to the last step; what the caller logs of a part is in the checkpoint that follows it.

        Raises:
          UserError: the loss is not finite, of a group that of every seed; the last finite state is saved.
        """
        plan = self.plan
        how = {'steps': plan.steps, 'chunk': plan.chunk, 'advance': plan.programs.advance}
        how['visits'] = () if self.store is None else (plan.saving.every,)
        how['feed'] = None if self.feed is None else self._take
        for state, metrics, evals in train.train(plan.task, plan.tx, self.state, **how):
            losses = self._only_asked(divide(metrics['loss']))
            finite = np.isfinite(losses) if losses.ndim == 1 else np.isfinite(losses).any(axis=1)
            if not finite.all() and not plan.tolerant:
                yield from self._diverged(metrics, int(np.argmin(finite)))
            yield self._went_on(state, metrics, evals)
            if self.store is not None:
                self.store.heed()
                self.heed_signals()
                if self.taken % plan.saving.every == 0:
                    self.save()

    def _take(self, first: int, count: int) -> Arrays:
        self.task = self.task._replace(data=self.feed.take(first, count))
        return self.task.data

    def _went_on(self, state: State, metrics: train.Metrics, evals: dict[str, train.Metrics]) -> Part:
        metrics, evals = (jax.tree.map(self._only_asked, x) for x in (metrics, evals))
        part = Part(self.taken, state, metrics, evals)
        self.state, self.taken = state, self.taken + len(metrics['loss'].total)
        self.values = dict(zip(metric_names(self.plan.programs), map(_typical, latest(part)), strict=True))
        return part

    def _only_asked(self, x: np.ndarray) -> np.ndarray:
        return x if self.count is None else x[..., : self.count]

    def save(self) -> None:
        """Begins to save where the leg stands."""
        if self.store is None:
            return
        marks = {name: journal.mark() for name, journal in self.journals.items()}
        state, folder = self.plan.kept(self.state, self.count), self.plan.workdir
        leaves = checkpoint.describe(state)
        what = (self.taken, folder.experiment, folder.settings, marks, self.values, leaves, checkpoint.versions())
        self.store.save(state, About(*what, feed=self._feed_state()))

    def _feed_state(self) -> dict[str, Any] | None:
        """Of the step where the leg stands, which is not where its feed does if a chunk ended in a NaN."""
        return None if self.feed is None else {**self.feed.state, streaming.NEXT: self.taken}

    def heed_signals(self) -> None:
        """Saves and ends the run where a signal has asked for it."""
        number = 0 if self.asked is None else processes.largest(self.asked.number or 0)
        if not number:
            return
        self.save()
        self.store.wait()
        name = signals.name(number)
        raise signals.stop(
            number,
            f'stopped by {name} after step {self.taken:,} of {self.plan.steps:,}, which is saved in '
            f'{self.store.folder}; the same command goes on from there',
        )

    def _diverged(self, metrics: train.Metrics, good: int) -> Iterator[Part]:
        """The rest of a leg whose loss stops being finite after `good` steps of a chunk."""
        before, first, advance, task = self.state, self.taken, self.plan.programs.advance, self.task
        for n in range(good, -1, -1):  # the update before may already have been too large
            state, _, evals = advance(task.data, task.evals, before, n)
            if n == 0 or self._any_finite(state):
                break
        evals = jax.device_get(evals)
        if n:
            yield self._went_on(state, jax.tree.map(lambda x: x[:n], metrics), evals)
        self.save()
        name, size = self._largest_gradient(state)
        rest = jax.tree.map(lambda x: x[n : good + 1], metrics)
        yield Part(self.taken, state, *(jax.tree.map(self._only_asked, x) for x in (rest, evals)))
        kept = ''
        if self.store is not None:
            self.store.wait()
            kept = f'; the state after step {first + n:,} is saved in {self.store.folder}'
        value = self._only_asked(divide(metrics['loss']))[good].flat[0]
        who = '' if self.count is None else f' of all {self.count} seeds'
        raise UserError(
            f'the loss{who} became {value} at step {first + good + 1:,} of {self.plan.steps:,}: try a smaller '
            f'--learning_rate; the largest gradient of step {first + n + 1:,} is {size:.3g}, in {name}{kept}'
        )

    def _any_finite(self, state: State) -> bool:
        """Whether all parameters are finite; with replicas, those of one of them."""

        def finite(params):
            return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]).all()

        each = finite if self.count is None else jax.vmap(finite)
        return bool(np.asarray(jax.jit(each, out_shardings=self.plan.whole)(state.params)).any())

    def _largest_gradient(self, state: State) -> tuple[str, float]:
        """The parameter with the largest gradient at the next step, and its size; what is not finite is the largest."""

        def sizes(state):
            return jax.tree.map(lambda x: jnp.abs(x).max(initial=0), train.gradients(self.task, state)[0])

        each = sizes if self.count is None else jax.vmap(sizes)
        found = checkpoint.named(jax.device_get(jax.jit(each, out_shardings=self.plan.whole)(state)))
        found = {name: np.max(self._only_asked(x)) for name, x in found.items()}
        name = max(found, key=lambda name: found[name] if np.isfinite(found[name]) else np.inf)
        return name, float(found[name])


def divide(mean: Mean) -> np.ndarray:
    return (mean.total / np.maximum(mean.count, 1)).astype(np.float32)


def _typical(values: np.ndarray) -> float | None:
    """A metric's value for the choice of the best; with replicas the median of those that are finite."""
    finite = values[np.isfinite(values)] if values.ndim else values
    return float(np.median(finite)) if finite.size and np.isfinite(finite).all() else None


def prepare(
    task: Task,
    tx: optax.GradientTransformation,
    inputs: Arrays | None,
    *,
    steps: int,
    chunk: int,
    workdir: Workdir,
    saving: Saving,
    devices: str | None = None,
    stream: bool = False,
    replicas: int | None = None,
    max_width: int = sweep.MAX_WIDTH,
) -> Plan:
    """Compiles what a run executes.

    Args:
      task, tx: see `train.train`.
      inputs: those of the predictions; None where there are none.
      steps, chunk: see `train.train`.
      workdir, saving: where the run is kept, and when it saves.
      devices: the mesh, see `mesh.choose`.
      stream: whether the task's data stay on the host.
      replicas: R, how many seeds there are in all; they run side by side in groups of `sweep.group_width`.
      max_width: how many of them at most, see `sweep.max_width`.

    Raises:
      UserError: there is no metric of the name that the best checkpoint goes by, the mesh cannot be, or the training
        steps need more memory than this machine has.
    """
    start, chunk = time.perf_counter(), min(chunk, steps)
    if workdir.path is not None:
        checkpoint.warm_up()
    layout, group, whole = _lay_out(task, devices, replicas), None, None
    source, task = (task, streaming.streamed(task, chunk)) if stream else (None, task)
    if replicas is not None:
        group = sweep.group_width(replicas, max_width)
    width = group
    if layout is not None:
        width = group and -(-group // layout.size) * layout.size
        whole, task = layout.whole, layout.task(task)
    if not stream:
        task = task._replace(data=_put(task.data, whole))
    task = task._replace(evals=jax.device_put(task.evals, whole))
    how = {'chunk': chunk, 'replicas': width, 'placement': layout}
    programs = train.compile_programs(task, tx, inputs, **how, inspect=partial(memory.check, workdir.settings))
    checkpoint.describe(programs.shapes[0])  # refuses names that no checkpoint can hold
    _check_best(saving.best, programs)
    seconds = time.perf_counter() - start
    return Plan(task, tx, programs, steps, chunk, workdir, saving, layout, width, seconds, source, group=group)


def _put(tree: Arrays, where: jax.sharding.Sharding | None) -> Arrays:
    """The arrays there; keys as the numbers that they are made of, which alone may go to devices of other processes."""

    def leaf(x):
        if not checkpoint.is_key(x):
            return jax.device_put(x, where)
        wrap = partial(jax.random.wrap_key_data, impl=jax.random.key_impl(x))
        return jax.jit(wrap, out_shardings=where)(jax.device_put(np.asarray(jax.random.key_data(x)), where))

    return jax.tree.map(leaf, tree)


def _lay_out(task: Task, devices: str | None, replicas: int | None) -> mesh.Layout | None:
    """Which devices, told where there is a choice."""
    rows = None if replicas else batch_shapes(task).mask.shape[0]
    try:
        layout, line = mesh.choose(devices, rows=rows, replicas=replicas, pays=partial(train.worth_dividing, task))
    except ValueError as error:
        asked = 'this run' if devices is None else f'--mesh={devices}'
        raise UserError(f'{asked} {error}') from error
    if line:
        print(line)
    return layout


def metric_names(programs: train.Programs) -> list[str]:
    """Of training, and of every split: loss, validation/loss."""
    _, metrics, evals = programs.shapes
    return [*metrics, *(f'{split}/{name}' for split, found in evals.items() for name in found)]


def latest(part: Part) -> np.ndarray:
    """The values of all metrics after a part, in the order of `metric_names`: [metrics], or [metrics, R]."""
    values = [divide(mean)[-1] for mean in part.metrics.values()]
    return np.stack([*values, *(divide(mean) for found in part.evals.values() for mean in found.values())])


def _check_best(best: str | None, programs: train.Programs) -> None:
    names = metric_names(programs)
    if best is not None and checkpoint.goal(best)[1] not in names:
        raise UserError(f'--best={best} is no metric of this run; there are {", ".join(names)}')


# --- the loop --------------------------------------------------------------------------------------


def run_one(plan: Plan, inputs: Arrays, seed: int, *, unit: str = 'epoch') -> Record:
    """Trains once, with a row of metrics.csv for every step, and gives the trained model's outputs for `inputs`.

    `unit` is what a step is called where progress is shown.

    Raises:
      UserError: see `Plan.leg` and `Leg.train`.
    """
    log, steps = plan.workdir.log('step,loss,learning_rate\n'), plan.steps
    start = time.perf_counter()
    rates = optim.learning_rates(plan.tx, np.arange(steps))
    with plan.leg(seed, {METRICS: log}) as leg:
        losses = np.empty(steps, np.float32)
        losses[: leg.taken] = _losses_of(leg.held[METRICS])
        resumed = leg.taken
        with progress(steps, unit) as shown:
            shown.begin('', leg.taken, leg.taken == steps, plan.workdir.path, plan.chunk)
            for part in leg.train():
                new = divide(part.metrics['loss'])
                log.append(format_rows(part.step + 1, rates[part.step :], new).encode())
                losses[part.step : part.step + len(new)] = new
                shown.show(part.step + len(new), len(new), f'loss {new[-1]:.4g}')
            shown.end(steps, steps)
    outputs = np.asarray(plan.programs.predict(leg.state, inputs))
    seconds = {'compile': plan.seconds, 'train': time.perf_counter() - start}
    return Record(losses, outputs, leg.state, seconds, resumed > 0)


def _losses_of(rows: bytes) -> list[float]:
    return [float(row.split(',')[1]) for row in rows.decode().splitlines()]


def format_rows(first: int, rates: np.ndarray, *columns: np.ndarray) -> str:
    """Rows of metrics.csv: step, counted from 1; columns; learning rate. Float32 values, written without loss."""
    rows = zip(rates, *columns, strict=False)
    return ''.join(
        ','.join([str(first + i), *(f'{x:.9g}' for x in row), str(rate)]) + '\n' for i, (rate, *row) in enumerate(rows)
    )


def run_many(plan: Plan, inputs: Arrays, seeds: np.ndarray, *, unit: str = 'epoch') -> Record:
    """Trains one replica for each of `seeds` [R]; metrics.csv gets the median loss and its bands.

    A replica whose loss is not finite stays in the record as one that failed.

    Raises:
      UserError: see `Plan.leg` and `Leg.train`.
    """
    workdir, steps = plan.workdir, plan.steps
    start = time.perf_counter()
    losses, outputs = np.empty((len(seeds), steps), np.float32), []
    resumed = False
    with progress(len(seeds) * steps, f'seed-{unit}') as shown:
        for group in sweep.groups(seeds, plan.group):
            place, count = str(group), len(group.seeds)
            log = workdir.journal(place, LOSSES)
            with plan.leg(group.seeds, {LOSSES: log}, place=place) as leg:
                mine = losses[group.first : group.first + count]
                mine[:, : leg.taken] = np.frombuffer(leg.held[LOSSES], '<f4').reshape(-1, count).T
                resumed |= leg.taken > 0
                shown.begin(
                    group.place_among(len(seeds)), leg.taken, leg.taken == steps, workdir.path, plan.chunk * count
                )
                for part in leg.train():
                    new = divide(part.metrics['loss'])
                    log.append(new.astype('<f4').tobytes())
                    mine[:, part.step : part.step + len(new)] = new.T
                    shown.show((part.step + len(new)) * count, new.size, _median_loss(new[-1]))
                shown.end(steps * count, steps * count)
            outputs.append(np.asarray(plan.programs.predict(leg.state, inputs))[:count])
    seconds = {'compile': plan.seconds, 'train': time.perf_counter() - start}
    _write_bands(workdir, losses, optim.learning_rates(plan.tx, np.arange(steps)))
    return Record(losses, np.concatenate(outputs), leg.state, seconds, resumed)


def _median_loss(losses: np.ndarray) -> str:
    """The median loss of a group [n], and how many of its seeds diverged."""
    finite = losses[np.isfinite(losses)]
    diverged = f', {len(losses) - len(finite)} diverged' if len(finite) < len(losses) else ''
    return f'median loss {np.median(finite) if len(finite) else np.nan:.4g}{diverged}'


def _write_bands(workdir: Workdir, losses: np.ndarray, rates: np.ndarray) -> None:
    """metrics.csv of replicas, whose losses are [R, steps] and rates [steps]."""

    def write(path):
        names = ['step', 'loss', *(f'loss_q{q:g}' for q in report.BANDS if q != 0.5), 'learning_rate']
        low, q1, median, q3, high = report.loss_quantiles(losses).astype(np.float32)
        path.write_text(','.join(names) + '\n' + format_rows(1, rates, median, low, q1, q3, high), encoding='utf-8')

    workdir.write(METRICS, write)
